"""Whatever is in the place of the store, the agent starts, and what could be read is not lost."""

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import threading

import pytest
from partners.episodes import episode_id, step
from partners.memories import absence, learned, reply
from readings import shows

from gateway import store_recovery
from gateway.store import HourlyValue, Store, StoreDamaged, StoreError
from gateway.store_recovery import open_store
from gateway.ulid import new_ulid
from protocols.contract import AlertState, Ending, Stream

PAGE = 4096
READINGS = [shows(f"m-{meter:03}", hour, hour) for hour in range(40) for meter in range(20)]
STEPS = [step(number, n="x" * 200) for number in range(1, 80)]
ACKED_READINGS, ACKED_STEPS = 20 * 20, 10
LEARNED = {f"m-{meter:03}": learned(f"m-{meter:03}", bytes([meter]) * 2000) for meter in range(20)}
REPLIES = {number: reply(number) for number in range(1, 30)}
ABSENCES = [absence(1), absence(2).ended(Ending.USE, at_ms=1_790_000_000_000)]


# Of these only the hours are left.
FORGOTTEN = [shows(f"m-{meter:03}", hour, 10 + hour) for hour in range(-10, 0) for meter in range(20)]


def hours_of(readings):
    return {
        HourlyValue(hour=reading.at.wall_ms // 3_600_000, meter=reading.meter, volume_ml=reading.volume_ml)
        for reading in readings
    }


HOURLY = hours_of(FORGOTTEN)


@pytest.fixture
def new_id():
    numbers = itertools.count(1000)
    return lambda: new_ulid(1_790_000_100_000, random_bits=lambda _: next(numbers))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A closed store with history, waiting telemetry, and alerts that nobody has acknowledged."""
    path = tmp_path_factory.mktemp("sound") / "s.db"
    store = Store(path, new_epoch=episode_id(0), reserve_bytes=0)
    store.commit(FORGOTTEN, [])
    store.acknowledge({Stream.TELEMETRY: 1}, wall_ms=1)
    assert store.forget(keep_newest=0) == len(FORGOTTEN)
    for hour in range(40):
        store.commit(READINGS[20 * hour : 20 * hour + 20], STEPS[2 * hour : 2 * hour + 2])
    for number, known in REPLIES.items():
        store.remember_command(known, body=b"{}", wall_ms=number)
    store.commit([], [], list(LEARNED.values()), ABSENCES)
    store.acknowledge({Stream.TELEMETRY: 21, Stream.ALERT: ACKED_STEPS}, wall_ms=1)
    store.close()
    assert not path.with_name("s.db-wal").exists()
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, sound):
    path = tmp_path / "s.db"
    path.write_bytes(sound)
    return path


@contextlib.contextmanager
def recovered(path, new_id):
    store, salvage = open_store(path, new_id=new_id)
    try:
        yield store, salvage
    finally:
        store.close()


def waiting_steps(store):
    return [message.alert for message in store.outgoing(Stream.ALERT, 0, 10_000)]


def waiting_readings(store):
    messages = store.outgoing(Stream.TELEMETRY, 0, 10_000)
    return [reading for message in messages for reading in message.readings or ()]


def replies(store):
    return {number: known for number in REPLIES if (known := store.command_reply(episode_id(number)))}


def check(store):
    """What every opened store must be: usable, its numbers without holes, nothing in it that was never put there."""
    assert set(store.history()) <= set(READINGS)
    bodies = {body.id: body for body in STEPS}
    assert all(body == bodies[body.id] for body in (*store.open_episodes(), *waiting_steps(store)))
    assert store.learned().items() <= LEARNED.items()
    assert all(one in ABSENCES for one in store.absences())
    assert replies(store).items() <= REPLIES.items()
    assert set(store.hourly()) <= HOURLY | hours_of(READINGS)
    for stream in Stream:
        status = store.status(stream)
        seqs = [message.seq for message in store.outgoing(stream, 0, 10_000)]
        assert seqs == list(range(status.acked_seq + 1, status.last_seq + 1))
    store.commit([shows("m-999", 99, 1)], [step(500)])


# -- sound stores -----------------------------------------------------------------------------------------------------


def test_a_sound_store_is_opened_as_it_is(path, new_id):
    with recovered(path, new_id) as (store, salvage):
        assert salvage is None
        assert store.epoch == episode_id(0)
        assert list(store.history()) == READINGS
        assert waiting_steps(store) == STEPS[ACKED_STEPS:]


def test_no_store_is_a_new_store(tmp_path, new_id):
    with recovered(tmp_path / "s.db", new_id) as (store, salvage):
        assert salvage is None
        check(store)


def test_an_empty_file_is_a_new_store(tmp_path, new_id):
    (tmp_path / "s.db").touch()
    with recovered(tmp_path / "s.db", new_id) as (store, _):
        check(store)


# -- damaged stores ---------------------------------------------------------------------------------------------------


def damage_page(path, number):
    """Overwrite a page (from 1) as a dying card does."""
    with path.open("r+b") as file:
        file.seek((number - 1) * PAGE)
        file.write(b"\xa5" * PAGE)


def pages_of(path, *tables):
    """The pages of some tables beyond their first."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        roots = dict(connection.execute("select name, rootpage from sqlite_master where rootpage"))
        assert all(roots[table] for table in tables)
        return roots


def test_a_damaged_store_is_set_aside_and_what_is_readable_is_saved(path, new_id, caplog):
    damage_page(path, pages_of(path, "set_aside")["set_aside"])
    with recovered(path, new_id) as (store, salvage):
        assert salvage.readings == len(READINGS)
        assert salvage.alerts == len(STEPS)
        assert store.epoch != episode_id(0), "numbers of which messages may be lost are not continued"
        assert list(store.history()) == READINGS
        assert waiting_readings(store) == READINGS[ACKED_READINGS:], "what waited waits again"
        assert waiting_steps(store) == STEPS
        assert store.open_episodes() == STEPS
        assert store.learned() == LEARNED
        assert store.absences() == ABSENCES
        assert replies(store) == REPLIES, "else a command that is repeated would be done twice"
        assert set(store.hourly()) == HOURLY
        check(store)
    assert salvage.set_aside.exists()
    assert salvage.set_aside.name.startswith("s.db.damaged-")
    assert "store_damaged" in caplog.text
    assert str(salvage.set_aside) in caplog.text
    with recovered(path, new_id) as (again, salvage):
        assert salvage is None, "the next start finds a sound store"
        assert again.epoch == store.epoch


def test_a_damaged_page_costs_its_own_rows_only(path, new_id):
    """The table is read from both ends."""
    size = path.stat().st_size // PAGE
    with contextlib.closing(sqlite3.connect(path)) as connection:
        text = path.read_bytes()
        # A page in the middle of the readings: one that holds the name of a meter many times.
        counts = {number: text[(number - 1) * PAGE : number * PAGE].count(b"m-0") for number in range(2, size + 1)}
        assert connection.execute("select count(*) from reading").fetchone()[0] == len(READINGS)
    leaves = [number for number, count in counts.items() if count > 40]
    damage_page(path, leaves[len(leaves) // 2])
    with recovered(path, new_id) as (store, salvage):
        lost = len(READINGS) - salvage.readings
        assert 0 < lost < 100
        history = list(store.history())
        assert history[0] == READINGS[0]
        assert history[-1] == READINGS[-1]
        assert waiting_steps(store) == STEPS
        check(store)


def test_every_page_in_turn(path, sound, new_id):
    """One page at a time is destroyed, the first, which says where everything is, as well."""
    for number in range(1, len(sound) // PAGE + 1):
        path.write_bytes(sound)
        damage_page(path, number)
        with recovered(path, new_id) as (store, salvage):
            if salvage is None:
                assert list(store.history()) == READINGS, f"page {number}: damaged, and nobody noticed"
                assert waiting_steps(store) == STEPS[ACKED_STEPS:]
            else:
                # The root of a large table is all there is to find its leaves by.
                assert salvage.readings > 0 or salvage.alerts > 0, number
            check(store)
        assert not list(path.parent.glob("*-copy*"))


@pytest.mark.parametrize(
    "head", [b"\0" * PAGE, b"\xff" * PAGE, b"SQLite format 2\0"], ids=["zeros", "ones", "one letter"]
)
def test_a_lost_first_page_costs_nothing(path, new_id, head):
    with path.open("r+b") as file:
        file.write(head)
    with recovered(path, new_id) as (store, salvage):
        assert (salvage.readings, salvage.alerts) == (len(READINGS), len(STEPS))
        assert waiting_readings(store) == READINGS[ACKED_READINGS:]
        assert waiting_steps(store) == STEPS
        assert store.open_episodes() == STEPS
        assert (store.learned(), store.absences(), set(store.hourly())) == (LEARNED, ABSENCES, HOURLY)
        check(store)


@pytest.mark.parametrize("table", ["learned", "hourly", "absence", "command"])
def test_what_is_remembered_and_lost_costs_no_reading_and_no_alert(path, new_id, table):
    damage_page(path, pages_of(path, table)[table])
    with recovered(path, new_id) as (store, salvage):
        assert (salvage.readings, salvage.alerts) == (len(READINGS), len(STEPS))
        assert (set(store.hourly()) == HOURLY) == (table != "hourly")
        assert (store.learned() == LEARNED) == (table != "learned")
        assert (store.absences() == ABSENCES) == (table != "absence")
        assert (replies(store) == REPLIES) == (table != "command")
        check(store)


@pytest.mark.parametrize(
    "sql",
    {
        "an absence is none": "update absence set body = '{}' where id like '%2'",
        "an absence contradicts itself": "update absence set body = json_set(body, '$.until_ms', 1) where id like '%2'",
        "an absence has a letter that is none": "update absence set body = cast(x'7bff7d' as text) where id like '%2'",
        "a reply is none": "update command set reply = '{' where number = 3",
        "a reply is of another version": "update command set reply = json_set(reply, '$.schema', 'shuiwang/reply/2')"
        " where number = 3",
    }.values(),
)
def test_what_is_remembered_and_not_readable_costs_itself_alone(path, new_id, sql):
    """No new epoch, nothing sent twice."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount == 1
    with recovered(path, new_id) as (store, salvage):
        assert salvage is None
        assert store.epoch == episode_id(0)
        assert len(store.absences()) == len(ABSENCES) - ("absence" in sql)
        assert len(replies(store)) == len(REPLIES) - ("command" in sql)
        check(store)


def test_a_remembered_command_that_makes_no_sense_is_not_saved(path, new_id):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("update command set reply = '{' where number = 3")
        connection.execute("update command set id = 'x' where number = 4")  # not the reply's
        connection.execute("delete from meta")
    with recovered(path, new_id) as (store, salvage):
        assert salvage is not None
        assert replies(store) == {number: one for number, one in REPLIES.items() if number not in {3, 4}}


def test_hours_older_than_the_history_are_saved(path, new_id):
    store = Store(path, reserve_bytes=0)
    store.forget(keep_newest=100)
    kept = len(list(store.history()))
    store.close()
    damage_page(path, pages_of(path, "set_aside")["set_aside"])
    with recovered(path, new_id) as (store, salvage):
        assert salvage.readings == kept < len(READINGS)
        assert set(store.hourly()) == HOURLY | hours_of(READINGS[:-kept])


def test_a_flipped_bit_in_what_was_learned_is_found_and_costs_that_home_alone(path, new_id, caplog):
    data = bytearray(path.read_bytes())
    state = data.find(bytes([7]) * 2000)
    assert state > 0
    data[state + 1000] ^= 1
    path.write_bytes(data)
    with recovered(path, new_id) as (store, salvage):
        assert salvage is None, "SQLite has no checksums: nobody sees it at the start"
        assert store.learned() == {meter: one for meter, one in LEARNED.items() if meter != "m-007"}
        assert "learned_damaged meter=m-007" in caplog.text


@pytest.mark.parametrize("seed", range(int(os.environ.get("SHUIWANG_DAMAGED_STORES", "60"))))
def test_bits_that_flip(path, sound, new_id, seed):
    dice = random.Random(seed)
    data = bytearray(sound)
    for _ in range(dice.choice([1, 1, 2, 8, 64])):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
    with contextlib.suppress(StoreDamaged), recovered(path, new_id) as (store, _):
        # A flip inside a text or a number that still makes sense is found by nobody: the file has no checksums.
        list(store.history())
        store.open_episodes()
        for stream in Stream:
            store.outgoing(stream, 0, 10_000)
        store.commit([shows("m-999", 99, 1)], [step(500)])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
def test_a_file_that_ends_too_soon(path, sound, new_id, share):
    path.write_bytes(sound[: int(len(sound) * share)])
    with recovered(path, new_id) as (store, salvage):
        # The last bytes of the file may be those of a learned state, whose own checksum finds it out.
        assert salvage is not None or len(store.learned()) == len(LEARNED) - 1
        check(store)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 15, 100, 512, 4096, 100_000])
def test_a_file_of_chance(path, new_id, size, seed):
    path.write_bytes(random.Random(seed).randbytes(size))
    with recovered(path, new_id) as (store, salvage):
        check(store)
        if salvage is None:
            assert size == 1, "less than SQLite looks at"
            return
        assert (salvage.readings, salvage.alerts) == (0, 0)
        assert salvage.set_aside.read_bytes() == random.Random(seed).randbytes(size), "nothing is thrown away"


def test_zeros_as_some_file_systems_leave_after_a_power_cut(path, sound, new_id):
    path.write_bytes(bytes(len(sound)))
    with recovered(path, new_id) as (store, salvage):
        assert salvage is not None
        check(store)


@pytest.mark.parametrize(
    ("problem", "sql"),
    {
        "a seq is missing": "delete from alert where seq = 50",
        "the last alert is missing": "delete from alert where seq = (select max(seq) from alert)",
        "a counter runs behind": "update stream set last_seq = 60 where name = 'alert'",
        "a counter is gone": "delete from stream where name = 'alert'",
        "readings of a message are gone": "delete from reading where id = 700",
        "an alert is not JSON": "update alert set body = '{' where seq = 50",
        "an alert is not an alert": "update episode set body = '{}'",
        "a tombstone is none": "update telemetry set dropped = '{}' where seq = 30",
        "the epoch is gone": "delete from meta",
        "the epoch is no ULID": "update meta set value = 'x'",
        "a boot is gone": "delete from boot",
        "a volume without a quality": "update reading set quality = 'missing' where id = 700",
        "a negative volume": "update reading set volume_ml = -5 where id = 700",
        "a table is gone": "drop table set_aside",
        "the history of versions is gone": "drop table _sqlite_migrations",
        "a version that never was": "update _sqlite_migrations set name = 'v1_readings_episodes_outbux'"
        " where name like 'v1%'",
    }.items(),
    ids=lambda value: value if " " in value and "'" not in value else "",
)
def test_a_sound_file_whose_rows_contradict_each_other_is_damaged(path, new_id, problem, sql):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma ignore_check_constraints = 1")
        connection.execute(sql)
    with recovered(path, new_id) as (store, salvage):
        assert salvage is not None, problem
        check_boots = "boot" not in problem
        assert salvage.readings >= (len(READINGS) - 1 if check_boots else 0)
        assert salvage.alerts >= len(STEPS) - ACKED_STEPS - 1
        check(store)


def test_an_index_that_disagrees_with_its_table_is_damaged(path, new_id):
    root = pages_of(path, "alert")["alert_episode"]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma writable_schema = 1")
        connection.execute("update sqlite_master set sql = 'create index alert_episode on alert (body, seq)'"
                           " where name = 'alert_episode'")  # fmt: skip
        connection.commit()
    assert root
    with recovered(path, new_id) as (store, salvage):
        assert salvage is not None
        assert waiting_steps(store) == STEPS


def test_a_letter_that_is_none_costs_its_row(path, new_id):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("pragma ignore_check_constraints = 1")
        connection.execute("update reading set meter = cast(x'6dff' as text) where id = 7")
        connection.execute("update alert set body = cast(x'7bff7d' as text) where seq = 50")
    with recovered(path, new_id) as (store, salvage):
        assert salvage.readings == len(READINGS) - 1
        assert salvage.alerts == len(STEPS)
        check(store)


def test_cleared_episodes_do_not_open_again(path, new_id):
    store = Store(path, reserve_bytes=0)
    store.commit([], [step(1, AlertState.CLEARED)])
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("delete from meta")
    with recovered(path, new_id) as (store, _):
        assert episode_id(1) not in {body.id for body in store.open_episodes()}
        assert waiting_steps(store)[-1] == step(1, AlertState.CLEARED)


@pytest.mark.parametrize("lost", ["every row", "some rows"])
def test_a_damaged_page_of_the_alerts_costs_no_open_alert(path, new_id, lost):
    """Their episodes are readable: each is sent again, because nobody will raise it again."""
    root = pages_of(path, "alert")["alert"]
    if lost == "every row":
        damage_page(path, root)
    else:
        damage_page(path, leaves_of(path, b"x" * 200, root)[1])
    with recovered(path, new_id) as (store, salvage):
        assert salvage.alerts == len(STEPS)
        assert sorted(waiting_steps(store), key=lambda body: body.id) == STEPS
        assert store.open_episodes() == STEPS
        check(store)


def leaves_of(path, text, root):
    """The pages that a table's root points to."""
    page = path.read_bytes()[(root - 1) * PAGE : root * PAGE]
    assert page[0] == 5, "an interior page of a table"
    cells = int.from_bytes(page[3:5], "big")
    starts = [int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big") for cell in range(cells)]
    leaves = [int.from_bytes(page[start : start + 4], "big") for start in starts]
    assert all(text in path.read_bytes()[(leaf - 1) * PAGE : leaf * PAGE] for leaf in leaves)
    return leaves


def test_a_lost_step_that_is_newer_than_the_found_ones_is_sent_behind_them(path, new_id):
    """Escalated and cleared: their messages are gone, the episodes tell of them."""
    store = Store(path, reserve_bytes=0)
    store.commit([], [step(40, AlertState.ESCALATED), step(41, AlertState.CLEARED)])
    store.commit([], [step(5, AlertState.CLEARED)])  # whose open is acknowledged
    store.close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("delete from alert where seq > ?", [len(STEPS) + 1])
    with recovered(path, new_id) as (store, salvage):
        assert salvage is not None
        newest = {body.id: body.state for body in waiting_steps(store)}
        assert newest[episode_id(40)] == "escalated"
        assert newest[episode_id(41)] == "cleared"
        assert newest[episode_id(5)] == "cleared"
        assert episode_id(41) not in {body.id for body in store.open_episodes()}


@pytest.mark.parametrize("how", ["page", "row", "first row", "last row", "counter"])
def test_where_the_outbox_of_telemetry_is_not_whole_every_reading_is_sent(path, new_id, how):
    """Sent twice is better than never: nobody can tell any more which of them the county has."""
    if how == "page":
        damage_page(path, pages_of(path, "telemetry")["telemetry"])
    else:
        sql = {
            "row": "delete from telemetry where seq = 30",
            "first row": "delete from telemetry where seq = 22",
            "last row": "delete from telemetry where seq = 41",
            "counter": "delete from stream where name = 'telemetry'",
        }[how]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(sql)
    with recovered(path, new_id) as (store, salvage):
        assert salvage.readings == len(READINGS)
        assert waiting_readings(store) == READINGS
        assert list(store.history()) == READINGS


# -- the log ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torn(path, tmp_path):
    """A store as a power cut leaves it: the file, and a WAL with ten more commits."""
    store = Store(path, reserve_bytes=0)
    for number in range(10):
        store.commit([shows("m-001", 100 + number, number)], [step(200 + number)])
    folder = tmp_path / "torn"
    folder.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", folder / f"s.db{suffix}")
    store.close()
    return folder / "s.db"


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.77, 0.999, 1])
@pytest.mark.parametrize("how", ["cut off", "garbage", "zeros"])
def test_a_torn_log_costs_what_is_behind_the_tear(torn, new_id, share, how):
    log = torn.with_name("s.db-wal")
    data = log.read_bytes()
    keep = int(len(data) * share)
    tail = {"cut off": b"", "garbage": random.Random(1).randbytes(len(data) - keep), "zeros": bytes(len(data) - keep)}
    log.write_bytes(data[:keep] + tail[how])
    with recovered(torn, new_id) as (store, salvage):
        assert salvage is None, "a torn log is what a power cut leaves, and no damage"
        steps = waiting_steps(store)
        count = len(steps) - len(STEPS) + ACKED_STEPS
        assert steps == STEPS[ACKED_STEPS:] + [step(200 + number) for number in range(count)]
        assert count == {0: 0, 1: 10}.get(share, count)
        assert len(list(store.history())) == len(READINGS) + count


def test_what_only_the_log_has_is_saved_from_a_damaged_file(torn, new_id):
    damage_page(torn, pages_of_copy(torn)["set_aside"])
    with recovered(torn, new_id) as (store, salvage):
        assert salvage.alerts == len(STEPS) + 10
        assert waiting_steps(store)[-1] == step(209)


def pages_of_copy(path):
    """Root pages, read from a copy so that the log stays as it is."""
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    return pages_of(copy, "set_aside")


# -- a power cut while a store is saved -------------------------------------------------------------------------------


class PowerCut(BaseException):
    """The power fails; nothing catches it."""


def cut_at_every(operation, monkeypatch, prepare, path, new_id):
    """Prepare a damaged store and rescue it, with the power failing at the 1st, 2nd ... operation; yield the start
    after it."""
    for number in range(1, 50):
        for file in path.parent.glob("s.db*"):
            file.unlink()
        prepare()
        calls = itertools.count(1)

        def fails(function, number=number, calls=calls):
            def call(*arguments, **options):
                if next(calls) == number:
                    raise PowerCut
                return function(*arguments, **options)

            return call

        place = store_recovery.os if operation == "fsync" else store_recovery.Path
        cut = False
        with monkeypatch.context() as patch:
            patch.setattr(place, operation, fails(getattr(place, operation)))
            try:
                open_store(path, new_id=new_id)[0].close()
            except PowerCut:
                cut = True
        with recovered(path, new_id) as (store, _):
            yield store
        if not cut:
            assert number > 1, f"{operation} is never called"
            return
    raise AssertionError("the rescue never came to its end")


@pytest.mark.parametrize("operation", ["rename", "unlink", "fsync"])
def test_the_power_may_fail_at_every_step_of_the_rescue(path, sound, new_id, monkeypatch, operation):
    def prepare():
        path.write_bytes(sound)
        damage_page(path, pages_of(path, "set_aside")["set_aside"])

    for store in cut_at_every(operation, monkeypatch, prepare, path, new_id):
        assert waiting_steps(store) == STEPS
        assert list(store.history()) == READINGS
        assert waiting_readings(store) == READINGS[ACKED_READINGS:]
        check(store)


@pytest.mark.parametrize("operation", ["rename", "unlink", "fsync"])
def test_what_only_the_log_has_survives_a_power_cut_during_the_rescue(torn, new_id, monkeypatch, operation):
    """The file alone is an older store, and a sound one: the damage and the newest steps are in the log."""
    kept = {suffix: torn.with_name(f"s.db{suffix}").read_bytes() for suffix in ("", "-wal")}

    def prepare():
        for suffix, data in kept.items():
            torn.with_name(f"s.db{suffix}").write_bytes(data)
        connection = sqlite3.connect(torn, isolation_level=None)
        connection.execute("delete from meta")  # the damage is in the log alone
        for suffix in ("", "-wal"):
            shutil.copy(f"{torn}{suffix}", f"{torn}{suffix}.kept")
        connection.close()
        for suffix in ("", "-wal"):
            torn.with_name(f"s.db{suffix}.kept").rename(f"{torn}{suffix}")

    for store in cut_at_every(operation, monkeypatch, prepare, torn, new_id):
        assert waiting_steps(store)[-1] == step(209)
        assert len(list(store.history())) == len(READINGS) + 10


# -- where nothing can be done ----------------------------------------------------------------------------------------


def test_a_folder_in_its_place_is_a_store_error(tmp_path, new_id):
    (tmp_path / "s.db").mkdir()
    with pytest.raises(StoreError, match="open"):
        open_store(tmp_path / "s.db", new_id=new_id)


def test_a_rescue_that_the_disk_refuses_leaves_the_damaged_file_where_it_is(path, new_id, monkeypatch):
    damage_page(path, 1)

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(store_recovery.Path, "rename", refuse)
    with pytest.raises(StoreError, match="Read-only"):
        open_store(path, new_id=new_id)
    assert path.exists()


def test_no_thread_is_left_behind():
    assert threading.active_count() < 10
