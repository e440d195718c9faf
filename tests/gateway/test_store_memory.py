"""What the store remembers: learned states, hourly values, absences, commands; bounded, and never in the way."""

import pytest
from partners.episodes import episode_id, step
from partners.memories import DAY_MS, START_MS, absence, learned, reply
from readings import at, shows, silent

from gateway import store_memory
from gateway.store import HourlyValue, Store
from gateway.store_memory import Answered
from protocols.contract import AlertState, Daily, Ending, Stream
from protocols.reading import ClockTrust, Measurement, reading_of

HOUR = START_MS // 3_600_000
SPOILT = [b"{", b"{}", b"", b'{"\xff":1}', b'{"id":"\xff"}', b'"' + b"\xff" * 9 + b'"']


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "s.db", new_epoch=episode_id(0), reserve_bytes=0)
    yield store
    store.close()


def hours(store):
    return [(value.hour - HOUR, value.meter, value.volume_ml) for value in store.hourly()]


def forget_all(store):
    """Have all readings acknowledged and forgotten."""
    store.acknowledge({Stream.TELEMETRY: store.status(Stream.TELEMETRY).last_seq}, wall_ms=1)
    return store.forget(keep_newest=0)


# -- learned ----------------------------------------------------------------------------------------------------------


def test_what_was_learned_survives_and_the_newest_stands(store, tmp_path):
    states = [learned("m-001", b"\x00\xff" * 1000), learned("", b"the village", boottime_ms=-5)]
    store.commit([shows("m-001", 1, 1)], [step(1)], states)
    store.commit([], [], [learned("m-001", b"later")])
    store.close()
    reader = Store(tmp_path / "s.db", read_only=True)
    assert reader.learned() == {"m-001": learned("m-001", b"later"), "": states[1]}
    reader.close()


@pytest.mark.parametrize(
    "change",
    ["state = x'00'", "boot_id = 'boot-2'", "boottime_ms = boottime_ms + 1", "position_ms = 0", "meter = 'm-002'"],
)
def test_a_state_that_is_not_what_was_stored_is_left_out_and_told(store, caplog, change):
    store.commit([], [], [learned("m-001"), learned("m-009")])
    store._db.execute(f"update learned set {change} where meter = 'm-001'")
    assert store.learned() == {"m-009": learned("m-009")}
    assert "learned_damaged" in caplog.text


# -- hours ------------------------------------------------------------------------------------------------------------


def test_each_hour_keeps_its_last_value_beyond_doubt(store):
    hour = 0.1 - (START_MS % 3_600_000) / 3_600_000  # six minutes past an hour
    doubtful = reading_of("m-001", at(hour + 0.3), Measurement(volume_ml=9_000, flags=("leak",)))
    undated = shows("m-001", hour + 0.4, 8, trust=ClockTrust.UNSYNCED)
    store.commit([shows("m-001", hour, 1), shows("m-002", hour, 5)], [])
    store.commit([shows("m-001", hour + 0.2, 2), doubtful, undated, silent("m-001", hour + 0.5)], [])
    store.commit([shows("m-001", hour + 1, 3)], [])
    assert hours(store) == [], "the readings are still there"
    known = store.hours_of("m-001"), store.hours_of("m-002")
    assert [(value.hour - HOUR, value.volume_ml) for value in known[0]] == [(0, 2000), (1, 3000)]
    assert [(value.hour - HOUR, value.volume_ml) for value in known[1]] == [(0, 5000)]
    assert forget_all(store) == 7
    assert hours(store) == [(0, "m-001", 2000), (0, "m-002", 5000), (1, "m-001", 3000)]
    assert (store.hours_of("m-001"), store.hours_of("m-002")) == known


def test_an_hour_that_is_half_forgotten_has_the_later_value(store):
    hour = 0.1 - (START_MS % 3_600_000) / 3_600_000
    store.commit([shows("m-001", hour, 1), shows("m-001", hour + 0.5, 2)], [])
    store.acknowledge({Stream.TELEMETRY: 1}, wall_ms=1)
    assert store.forget(keep_newest=1) == 1
    assert hours(store) == [(0, "m-001", 1000)]
    assert [value.volume_ml for value in store.hours_of("m-001")] == [2000]
    store.forget(keep_newest=0)
    assert hours(store) == [(0, "m-001", 2000)]


def test_what_is_dropped_for_want_of_room_leaves_its_hours(store):
    for hour in range(30):
        store.commit([shows("m-001", hour, hour)], [])
    store._drop_oldest(12)
    assert [value.hour - HOUR for value in store.hourly()] == list(range(12))
    assert [value.hour - HOUR for value in store.hours_of("m-001")] == list(range(30))


def test_hours_outlive_the_readings_and_are_bounded_by_their_number(store, monkeypatch):
    monkeypatch.setattr(store_memory, "HOURS_KEPT", 5)
    for hour in range(10):
        store.commit([shows("m-001", hour, hour), shows("m-002", hour, hour)], [])
    store.acknowledge({Stream.TELEMETRY: 10}, wall_ms=1)
    assert store.forget(keep_newest=0) == 20
    assert [hour for hour, meter, _ in hours(store) if meter == "m-001"] == [5, 6, 7, 8, 9]
    assert len(hours(store)) == 10
    store.forget(keep_newest=0)
    assert len(hours(store)) == 10, "the same again"


def test_a_clock_that_leaps_ahead_costs_one_hour_and_not_all(store, monkeypatch):
    monkeypatch.setattr(store_memory, "HOURS_KEPT", 5)
    for hour in (0, 1, 2, 3, 4, 1_000_000):
        store.commit([shows("m-001", hour, 1)], [])
    forget_all(store)
    assert [hour for hour, *_ in hours(store)] == [1, 2, 3, 4, 1_000_000]


def test_up_to_the_bound_nothing_is_forgotten(store, monkeypatch):
    monkeypatch.setattr(store_memory, "HOURS_KEPT", 3)
    store.forget(keep_newest=0)
    for hour in range(3):
        store.commit([shows("m-001", hour, 1)], [])
        forget_all(store)
        assert len(hours(store)) == hour + 1


def test_where_no_reading_is_left_the_oldest_hours_make_room(store):
    for hour in range(400):
        store.commit([shows(f"m-{meter:03}", hour, hour) for meter in range(50)], [step(hour)])
    store.acknowledge({Stream.TELEMETRY: 400, Stream.ALERT: 400}, wall_ms=1)
    wanted = store.bytes_used() // 3
    store.make_room(bytes_max=wanted)
    assert store.bytes_used() <= wanted
    left = hours(store)
    assert 0 < len(left) < 400 * 50
    assert left[-1][0] == 399, "the newest stay"
    assert len(store.open_episodes()) == 400
    store.make_room(bytes_max=0)
    assert hours(store) == []


# -- absences ---------------------------------------------------------------------------------------------------------


def test_absences_are_kept_by_their_id(store):
    first, second = absence(1), absence(2, daily=Daily(start="22:00", end="06:00"))
    store.put_absence(second, first)
    assert store.absences() == [first, second]
    ended = first.ended(Ending.COMMAND, at_ms=START_MS + 5)
    store.commit([shows("m-001", 1, 1)], [], (), [ended])
    assert store.absences() == [ended, second]


@pytest.mark.parametrize("damage", [*SPOILT, b'{"id":1}'], ids=repr)
def test_an_absence_that_cannot_be_read_is_left_out_and_told(store, caplog, damage):
    store.put_absence(*(absence(number) for number in (1, 2, 3)))
    store._db.execute("update absence set body = cast(? as text) where id = ?", [damage, episode_id(2)])
    assert store.absences() == [absence(1), absence(3)]
    assert f"absence_damaged id={episode_id(2)}" in caplog.text


def test_ended_absences_are_bounded_and_those_that_stand_never_go(store, monkeypatch):
    monkeypatch.setattr(store_memory, "ENDED_ABSENCES_MAX", 3)
    ended = [absence(number).ended(Ending.USE, at_ms=START_MS + number) for number in range(10)]
    standing = [absence(number, until_ms=START_MS + DAY_MS) for number in range(20, 30)]
    store.put_absence(*ended, *standing)
    store.forget(keep_newest=0)
    assert store.absences() == [*ended[-3:], *standing]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_reply_to_a_command_is_remembered(store, tmp_path):
    assert store.command_reply(episode_id(1)) is None
    store.remember_command(reply(1), body=b'{"do":"present"}', wall_ms=START_MS)
    store.close()
    reader = Store(tmp_path / "s.db", read_only=True)
    assert reader.command_reply(episode_id(1)) == reply(1)
    assert reader.command_reply(episode_id(2)) is None
    reader.close()


@pytest.mark.parametrize("damage", SPOILT, ids=repr)
def test_a_reply_that_cannot_be_read_is_forgotten_and_may_be_given_anew(store, caplog, damage):
    for number in (1, 2):
        store.remember_command(reply(number), body=b"{}", wall_ms=START_MS)
    store._db.execute("update command set reply = cast(? as text) where id = ?", [damage, episode_id(1)])
    assert store.command_reply(episode_id(1)) is None
    assert f"reply_damaged id={episode_id(1)}" in caplog.text
    assert store.command_reply(episode_id(2)) == reply(2)
    store.remember_command(reply(1), body=b"{}", wall_ms=START_MS)
    assert store.command_reply(episode_id(1)) == reply(1)


def test_commands_are_bounded_and_the_oldest_go(store, monkeypatch):
    monkeypatch.setattr(store_memory, "COMMANDS_MAX", 5)
    for number in range(20):
        store.remember_command(reply(number), body=b"{}", wall_ms=START_MS)
    remembered = [number for number in range(20) if store.command_reply(episode_id(number))]
    assert remembered == [15, 16, 17, 18, 19]
    store.remember_commands([Answered(reply=reply(number), body=b"{}", wall_ms=1) for number in range(30, 50)])
    assert [number for number in range(50) if store.command_reply(episode_id(number))] == [45, 46, 47, 48, 49]


# -- notes on episodes ------------------------------------------------------------------------------------------------


def test_a_note_changes_what_an_open_episode_says_and_sends_nothing(store):
    store.commit([], [step(1), step(2), step(2, AlertState.CLEARED)])
    noted = step(1, county={"result": "fine"})
    assert store.note_episode(noted)
    assert store.open_episodes() == [noted]
    assert store.status(Stream.ALERT).last_seq == 3
    assert [message.alert.evidence for message in store.outgoing(Stream.ALERT, 0, 1)] == [{}], "what was sent stays"
    assert not store.note_episode(step(2, late=True)), "it is over"
    assert not store.note_episode(step(3)), "it never was"
    assert store.open_episodes() == [noted]


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_schema_fits_the_first_page_which_a_rescue_can_replace(store):
    """Were it longer, one damaged page beyond the first would cost every table: see `store_recovery`."""
    store._db.execute("pragma wal_checkpoint(truncate)")
    page = store.path.read_bytes()[:4096]
    assert page[100] == 13, "the first page of the schema is a leaf: there is no other"
    cells = int.from_bytes(page[103:105], "big")
    free = int.from_bytes(page[105:107], "big") - (108 + 2 * cells)
    assert cells == store._db.execute("select count(*) from sqlite_master").fetchone()[0]
    assert free > 200, "a migration to come needs some of it"


def test_a_value_is_what_was_asked_for(store):
    store.commit([shows("m-001", 0, 1)], [])
    forget_all(store)
    assert list(store.hourly()) == [HourlyValue(hour=HOUR, meter="m-001", volume_ml=1000)]
