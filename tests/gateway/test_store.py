"""The store: what is committed is there, in order, without holes, whatever fails in between."""

import contextlib
import functools
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from partners.episodes import episode_id, step
from partners.memories import absence, learned, reply
from readings import shows, silent

from gateway import store_file, store_outbox, store_schema, store_space
from gateway.store import HourlyValue, Store, StoreDamaged, StoreError, StoreRolledBack
from gateway.store_file import RESERVE_BYTES
from protocols.contract import READINGS_PER_MESSAGE_MAX, AlertState, Ending, NotUnderstood, Stream
from protocols.reading import ClockTrust, Measurement, Moment, reading_of

EPOCH = episode_id(0)
ROOT = Path(__file__).parents[2]
SMALL = {"reserve_bytes": 64 * 1024}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "s.db", new_epoch=EPOCH, **SMALL)
    yield store
    store.close()


@contextlib.contextmanager
def reopened(path, **options):
    store = Store(path, **{**SMALL, **options})
    try:
        yield store
    finally:
        store.close()


def seqs(store, stream):
    return [row[0] for row in store._db.execute(f"select seq from {stream} order by seq")]


def everything(store):
    """All that a store says, for comparison."""
    return {
        "history": list(store.history()),
        "episodes": store.open_episodes(),
        "status": [store.status(stream) for stream in Stream],
        "outbox": [store.outgoing(stream, 0, 10_000) for stream in Stream],
        "last": store.last_readings(),
        "values": store.last_values(),
        "aside": store.set_aside_count(),
        "learned": store.learned(),
        "hourly": list(store.hourly()),
        "absences": store.absences(),
        "replies": [store.command_reply(episode_id(number)) for number in range(3)],
    }


# -- readings and messages --------------------------------------------------------------------------------------------


def test_an_empty_store_is_empty(store):
    assert store.epoch == EPOCH
    assert everything(store) == {
        "history": [],
        "episodes": [],
        "status": [store.status(Stream.ALERT), store.status(Stream.TELEMETRY)],
        "outbox": [[], []],
        "last": {},
        "values": {},
        "aside": 0,
        "learned": {},
        "hourly": [],
        "absences": [],
        "replies": [None] * 3,
    }
    assert msgspec.structs.astuple(store.status(Stream.ALERT)) == (0, 0, None)


def test_every_field_of_a_reading_survives(store, tmp_path):
    unsynced = Moment(wall_ms=5, trust=ClockTrust.UNSYNCED, uncertainty_ms=None, boot_id="boot-2", boottime_ms=2**40)
    readings = [
        shows("m-001", 1, 12.345, flags=("leak", "battery_low")),
        reading_of("m-002", unsynced, Measurement(volume_ml=2**53 - 1)),
        silent("m-003", 2, "wrong_answer"),
        shows("m-001", 3, 0),
    ]
    store.commit(readings, [])
    assert list(store.history()) == readings
    assert [message.readings for message in store.outgoing(Stream.TELEMETRY, 0, 9)] == [tuple(readings)]
    store.close()
    with reopened(tmp_path / "s.db") as again:
        assert list(again.history()) == readings
        assert again.epoch == EPOCH, "an epoch is given once"


def test_the_newest_reading_and_the_newest_value_of_every_meter(store):
    first, second, third = shows("m-001", 1, 5), silent("m-001", 2), shows("m-002", 1, 7)
    store.commit([first, third], [])
    store.commit([second], [])
    assert store.last_readings() == {"m-001": second, "m-002": third}
    assert store.last_values() == {"m-001": first, "m-002": third}


@pytest.mark.parametrize("extra", [-1, 0, 1, READINGS_PER_MESSAGE_MAX + 1])
def test_a_large_pass_is_split_into_messages_that_the_contract_allows(store, extra):
    readings = [shows("m-001", hour, hour) for hour in range(READINGS_PER_MESSAGE_MAX + extra)]
    store.commit(readings, [])
    messages = store.outgoing(Stream.TELEMETRY, 0, 10)
    assert [reading for message in messages for reading in message.readings] == readings
    assert max(len(message.readings) for message in messages) <= READINGS_PER_MESSAGE_MAX
    assert [message.seq for message in messages] == list(range(1, len(messages) + 1))


def test_an_alert_and_its_reading_are_two_streams_of_one_commit(store):
    store.commit([shows("m-001", 1, 1)], [step(1), step(2)])
    assert seqs(store, Stream.TELEMETRY) == [1]
    assert [(message.seq, message.alert.id) for message in store.outgoing(Stream.ALERT, 0, 9)] == [
        (1, episode_id(1)),
        (2, episode_id(2)),
    ]


def test_a_commit_without_readings_makes_no_telemetry(store):
    store.commit([], [step(1)])
    assert seqs(store, Stream.TELEMETRY) == []
    store.commit([], [])
    assert msgspec.structs.astuple(store.status(Stream.TELEMETRY)) == (0, 0, None)


def test_episodes_are_open_until_cleared_and_show_their_newest_step(store):
    store.commit([], [step(2), step(1), step(1, AlertState.ESCALATED, low=True)])
    assert [(body.id, body.state) for body in store.open_episodes()] == [
        (episode_id(1), "escalated"),
        (episode_id(2), "open"),
    ]
    store.commit([], [step(1, AlertState.CLEARED)])
    assert [body.id for body in store.open_episodes()] == [episode_id(2)]


def test_a_step_is_historical_when_a_later_step_of_its_episode_waits(store):
    store.commit([], [step(1), step(2), step(1, AlertState.CLEARED)])
    assert [message.alert.historical for message in store.outgoing(Stream.ALERT, 0, 9)] == [True, False, False]
    # The page that is asked for does not matter, only what waits.
    assert store.outgoing(Stream.ALERT, 0, 1)[0].alert.historical
    store.acknowledge({Stream.ALERT: 1}, wall_ms=1)
    assert [message.alert.historical for message in store.outgoing(Stream.ALERT, 0, 9)] == [False, False]


def test_an_alert_that_could_not_be_read_again_is_not_accepted(store):
    with pytest.raises(msgspec.ValidationError):
        store.commit([shows("m-001", 1, 1)], [msgspec.structs.replace(step(1), id="no ULID")])
    assert list(store.history()) == []


def test_pages_of_the_outbox(store):
    for hour in range(5):
        store.commit([shows("m-001", hour, hour)], [step(hour)])
    for stream in Stream:
        assert [message.seq for message in store.outgoing(stream, 2, 2)] == [3, 4]
        assert store.outgoing(stream, 5, 2) == []


# -- acknowledgements -------------------------------------------------------------------------------------------------


def test_acknowledged_messages_leave_and_readings_stay(store):
    for hour in range(3):
        store.commit([shows("m-001", hour, hour)], [step(hour)])
    assert store.acknowledge({Stream.TELEMETRY: 2, Stream.ALERT: 1}, wall_ms=77) == {
        Stream.TELEMETRY: 2,
        Stream.ALERT: 1,
    }
    assert (seqs(store, Stream.TELEMETRY), seqs(store, Stream.ALERT)) == ([3], [2, 3])
    assert msgspec.structs.astuple(store.status(Stream.TELEMETRY)) == (3, 2, 77)
    assert len(list(store.history())) == 3


@pytest.mark.parametrize("seq", [-1, 0, 1, 2])
def test_an_old_acknowledgement_moves_nothing(store, seq):
    for hour in range(3):
        store.commit([shows("m-001", hour, hour)], [])
    store.acknowledge({Stream.TELEMETRY: 2}, wall_ms=1)
    before = everything(store)
    assert store.acknowledge({Stream.TELEMETRY: seq}, wall_ms=2) == {}
    assert everything(store) == before


@pytest.mark.parametrize("seq", [4, 5, 2**53 - 1])
def test_an_acknowledgement_beyond_what_was_sent_is_ignored(store, caplog, seq):
    for hour in range(3):
        store.commit([shows("m-001", hour, hour)], [step(hour)])
    assert store.acknowledge({Stream.TELEMETRY: seq, Stream.ALERT: 2}, wall_ms=2) == {Stream.ALERT: 2}
    assert seqs(store, Stream.TELEMETRY) == [1, 2, 3]
    assert "ack_beyond_sent" in caplog.text


def test_what_the_county_did_not_understand_is_kept_aside_once(store, tmp_path):
    store.commit([shows("m-001", 1, 1)], [step(1, low="水")])
    complaints = [
        NotUnderstood(stream=Stream.ALERT, seq=1, reason="unknown kind"),
        NotUnderstood(stream=Stream.TELEMETRY, seq=1, reason="?"),
        NotUnderstood(stream=Stream.ALERT, seq=9, reason="never sent"),
    ]
    for _ in range(2):
        store.acknowledge({Stream.ALERT: 1}, wall_ms=5, not_understood=complaints)
    assert store.set_aside_count() == 2
    rows = store._db.execute("select stream, seq, body, reason, wall_ms from set_aside order by stream").fetchall()
    assert [(row[0], row[1], row[3], row[4]) for row in rows] == [
        ("alert", 1, "unknown kind", 5),
        ("telemetry", 1, "?", 5),
    ]
    assert "水" in rows[0][2]


def test_copies_of_what_was_not_understood_are_bounded_by_rows_and_the_oldest_go(store, monkeypatch, caplog):
    monkeypatch.setattr(store_outbox, "SET_ASIDE_ROWS_MAX", 3)
    store.commit([], [step(number) for number in range(1, 6)])
    for seq in range(1, 6):
        # A clock that leaps back makes nothing older.
        store.acknowledge({}, wall_ms=9 - seq, not_understood=[complaint(Stream.ALERT, seq)])
    assert [row[0] for row in store._db.execute("select seq from set_aside order by seq")] == [3, 4, 5]
    assert caplog.text.count("set_aside_evicted messages=1") == 2


def test_copies_of_what_was_not_understood_are_bounded_by_bytes(store, monkeypatch, caplog):
    monkeypatch.setattr(store_outbox, "SET_ASIDE_BYTES_MAX", 6000)
    store.commit([], [step(number, text="水" * 600) for number in range(1, 6)])
    for seq in range(1, 6):
        store.acknowledge({}, wall_ms=1, not_understood=[complaint(Stream.ALERT, seq)])
    assert [row[0] for row in store._db.execute("select seq from set_aside order by seq")] == [4, 5]
    assert "set_aside_evicted" in caplog.text


# -- a store that was rolled back -------------------------------------------------------------------------------------

NEW_EPOCH = episode_id(77)


def complaint(stream, seq, **more):
    return NotUnderstood(stream=stream, seq=seq, reason="?", **more)


def acknowledge(store, up_to, **more):
    """An acknowledgement as the forwarder gives it."""
    return store.acknowledge(up_to, wall_ms=5, epoch=store.epoch, new_epoch=NEW_EPOCH, **more)


def rolled_back(path):
    """Five messages and five alerts, two of each acknowledged; then it is opened anew, as an image put back is."""
    with reopened(path, new_epoch=EPOCH) as store:
        for hour in range(5):
            store.commit([shows("m-001", hour, hour)], [step(hour)])
        store.acknowledge({Stream.TELEMETRY: 2, Stream.ALERT: 2}, wall_ms=1)
    return reopened(path)


def waits_anew(store, *, more=0):
    """Tell whether all that waited waits under the new epoch, numbered from 1."""
    assert store.epoch == NEW_EPOCH
    for stream in Stream:
        status = store.status(stream)
        assert (status.last_seq, status.acked_seq, status.acked_wall_ms) == (3 + more, 0, None)
        messages = store.outgoing(stream, 0, 99)
        assert [(message.epoch, message.seq) for message in messages] == [
            (NEW_EPOCH, seq) for seq in range(1, 4 + more)
        ]
        if stream is Stream.ALERT:
            assert [message.alert.id for message in messages] == [episode_id(n) for n in range(2, 5 + more)]
        else:
            assert [message.readings[0].volume_ml for message in messages] == [1000 * n for n in range(2, 5 + more)]


@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("beyond", [1, 2**40])
def test_an_ack_beyond_the_last_message_gives_a_new_epoch_and_deletes_nothing(tmp_path, caplog, stream, beyond):
    path = tmp_path / "s.db"
    with rolled_back(path) as store:
        other = next(one for one in Stream if one is not stream)
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {other: 5, stream: 5 + beyond})
        waits_anew(store)
        assert caplog.text.count("store_rolled_back") == 1
        assert len(list(store.history())) == 5
        store.commit([shows("m-001", 5, 5)], [step(5)])
    with reopened(path) as store:
        waits_anew(store, more=1)
        assert acknowledge(store, {Stream.ALERT: 4, Stream.TELEMETRY: 4}) == {Stream.ALERT: 4, Stream.TELEMETRY: 4}


def test_an_ack_of_what_was_committed_since_but_never_handed_out_proves_a_rollback_too(tmp_path):
    """The county holds messages 6 and 7 of a future that was rolled back; ours are others."""
    with rolled_back(tmp_path / "s.db") as store:
        for hour in (5, 6):
            store.commit([shows("m-001", hour, hour)], [step(hour)])
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {Stream.ALERT: 6})
        waits_anew(store, more=2)


def test_an_ack_of_what_an_earlier_start_sent_or_this_one_handed_out_is_no_rollback(tmp_path):
    with rolled_back(tmp_path / "s.db") as store:
        assert acknowledge(store, {Stream.ALERT: 5}) == {Stream.ALERT: 5}
        store.commit([], [step(9)])
        store.outgoing(Stream.ALERT, 5, 9)
        assert acknowledge(store, {Stream.ALERT: 6}) == {Stream.ALERT: 6}
        assert store.epoch == EPOCH


def test_a_number_that_the_county_holds_otherwise_gives_a_new_epoch_before_its_ack_deletes_anything(tmp_path):
    with rolled_back(tmp_path / "s.db") as store:
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {Stream.ALERT: 5}, not_understood=[complaint(Stream.TELEMETRY, 4, held_otherwise=True)])
        waits_anew(store)
        assert store.set_aside_count() == 0


@pytest.mark.parametrize(("seq", "held_otherwise"), [(2, True), (4, False)])
def test_a_complaint_that_proves_no_rollback_gives_no_new_epoch(tmp_path, seq, held_otherwise):
    with rolled_back(tmp_path / "s.db") as store:
        item = complaint(Stream.ALERT, seq, held_otherwise=held_otherwise)
        assert acknowledge(store, {Stream.ALERT: 4}, not_understood=[item]) == {Stream.ALERT: 4}
        assert store.epoch == EPOCH


def test_a_county_that_lies_again_makes_no_further_epoch_and_deletes_nothing(tmp_path, caplog):
    with rolled_back(tmp_path / "s.db") as store:
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {Stream.ALERT: 99})
        store.commit([shows("m-001", 5, 5)], [step(5)])
        for seq in (4, 5, 99):  # 4 is committed, but never handed out
            assert store.acknowledge({Stream.ALERT: seq}, wall_ms=1, epoch=NEW_EPOCH, new_epoch=episode_id(78)) == {}
        waits_anew(store, more=1)
        assert "ack_beyond_sent" in caplog.text
        assert caplog.text.count("store_rolled_back") == 1


def test_an_ack_of_another_epoch_moves_nothing(tmp_path):
    with rolled_back(tmp_path / "s.db") as store:
        item = complaint(Stream.ALERT, 4, held_otherwise=True)
        for seq in (4, 99):
            assert (
                store.acknowledge(
                    {Stream.ALERT: seq}, wall_ms=1, not_understood=[item], epoch=NEW_EPOCH, new_epoch=episode_id(78)
                )
                == {}
            )
        assert store.epoch == EPOCH
        assert store.status(Stream.ALERT).acked_seq == 2


def test_a_tombstone_keeps_its_place_among_new_numbers(tmp_path):
    with rolled_back(tmp_path / "s.db") as store:
        store.make_room(bytes_max=0)
        store.commit([shows("m-001", 9, 9)], [])
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {Stream.TELEMETRY: 7})
        dropped = [message.dropped for message in store.outgoing(Stream.TELEMETRY, 0, 9)]
        assert [one and one.readings for one in dropped] == [1, 1, 1, None]


def test_a_copy_that_was_kept_aside_under_the_old_numbers_stands_beside_one_under_the_new(tmp_path):
    with rolled_back(tmp_path / "s.db") as store:
        acknowledge(store, {}, not_understood=[complaint(Stream.ALERT, 3)])
        with pytest.raises(StoreRolledBack):
            acknowledge(store, {Stream.ALERT: 99})
        store.outgoing(Stream.ALERT, 0, 9)
        acknowledge(store, {}, not_understood=[complaint(Stream.ALERT, 3)])
        rows = store._db.execute("select epoch, seq from set_aside order by id").fetchall()
        assert rows == [(EPOCH, 3), (NEW_EPOCH, 3)]


# -- space ------------------------------------------------------------------------------------------------------------


def test_a_message_of_which_one_reading_must_go_goes_as_a_whole(store):
    """`last_id` lies amid the second message: its tombstone says 3 readings, so none of them may stay."""
    for hour in range(3):
        store.commit([shows(f"m-{meter:03}", hour, 10 * hour + meter) for meter in range(3)], [])
    assert store._drop_oldest(4) == 6
    assert [reading.volume_ml for reading in store.history()] == [20_000, 21_000, 22_000]
    messages = store.outgoing(Stream.TELEMETRY, 0, 9)
    assert [message.dropped and message.dropped.readings for message in messages] == [3, 3, None]
    assert len(messages[2].readings) == 3


def test_forget_deletes_what_is_old_and_acknowledged(store):
    for hour in range(4):
        store.commit([shows("m-001", hour, hour)], [])
    store.acknowledge({Stream.TELEMETRY: 2}, wall_ms=1)
    assert store.forget(keep_newest=3) == 1
    assert store.forget(keep_newest=0) == 1, "what waits stays, however old"
    assert [reading.volume_ml for reading in store.history()] == [2000, 3000]
    assert [len(message.readings) for message in store.outgoing(Stream.TELEMETRY, 0, 9)] == [1, 1]


def test_forget_deletes_episodes_that_are_over_and_told(store):
    store.commit([], [step(1), step(1, AlertState.CLEARED), step(2), step(3, AlertState.CLEARED)])
    store.acknowledge({Stream.ALERT: 3}, wall_ms=1)
    store.forget(keep_newest=1000)
    ids = [row[0] for row in store._db.execute("select id from episode order by id")]
    assert ids == [episode_id(2), episode_id(3)]
    store.acknowledge({Stream.ALERT: 4}, wall_ms=1)
    store.forget(keep_newest=1000)
    assert [row[0] for row in store._db.execute("select id from episode")] == [episode_id(2)]


def test_an_id_is_not_given_again_after_its_reading_was_forgotten(store):
    """A message in the outbox points to ids; another reading under the same id would be sent in its place."""
    store.commit([shows("m-001", 1, 1)], [])
    store.make_room(bytes_max=0)
    store.commit([shows("m-001", 2, 2)], [])
    first, second = store.outgoing(Stream.TELEMETRY, 0, 9)
    assert first.dropped.readings == 1
    assert [reading.volume_ml for reading in second.readings] == [2000]


def test_dropped_telemetry_leaves_a_tombstone_and_alerts_stay(store):
    for hour in range(40):
        store.commit([shows("m-001", hour, hour), silent("m-002", hour + 0.5)], [step(hour)])
    store.acknowledge({Stream.TELEMETRY: 10}, wall_ms=1)
    assert store.make_room(bytes_max=0) == 60
    messages = store.outgoing(Stream.TELEMETRY, 0, 99)
    assert [message.seq for message in messages] == list(range(11, 41))
    assert all(message.readings is None and message.dropped.readings == 2 for message in messages)
    assert messages[0].dropped.start.endswith("Z")
    assert messages[0].dropped.start < messages[0].dropped.end
    assert seqs(store, Stream.ALERT) == list(range(1, 41))
    assert list(store.history()) == []
    assert store.make_room(bytes_max=0) == 0, "alerts alone: nothing more to drop, and an end"


def test_room_is_made_from_the_oldest_and_no_more_than_needed(store):
    for number in range(200):
        store.commit(cycle(number, meters=100), [])
    wanted = store.bytes_used() // 2
    dropped = store.make_room(bytes_max=wanted)
    assert store.bytes_used() <= wanted
    kept = [message for message in store.outgoing(Stream.TELEMETRY, 0, 999) if message.readings]
    assert 70 < len(kept) < 105
    assert [message.seq for message in kept] == list(range(201 - len(kept), 201)), "the newest stay"
    assert dropped == (200 - len(kept)) * 100
    assert store.make_room(bytes_max=wanted) == 0


def test_room_is_made_in_a_file_that_cannot_grow_by_a_page(store):
    """The tombstones are longer than what they stand for in the outbox: they go where the readings were."""
    for number in range(2000):
        store.commit(cycle(number, meters=5), [])
    pages = store._db.execute("pragma page_count").fetchone()[0]
    assert store._db.execute("pragma freelist_count").fetchone()[0] == 0
    store._db.execute(f"pragma max_page_count = {pages}")
    assert store.make_room(bytes_max=store.bytes_used() - 1) > 0


def test_deleting_much_is_done_in_steps_that_the_wal_can_hold(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_space, "READINGS_PER_DELETE_MAX", 1000)
    for hour in range(30):
        store.commit([shows(f"m-{number:03}", hour, hour) for number in range(500)], [])
    store.acknowledge({Stream.TELEMETRY: 20}, wall_ms=1)
    store._db.execute("pragma wal_checkpoint(truncate)")
    store._db.execute("pragma wal_autocheckpoint = 1")
    assert store.forget(keep_newest=0) == 20 * 500
    assert store.make_room(bytes_max=0) == 10 * 500
    assert (tmp_path / "s.db-wal").stat().st_size < 60 * 4096


# -- against a model --------------------------------------------------------------------------------------------------


class StoreModel(RuleBasedStateMachine):
    """Any order of operations and reopenings against lists; no seq is ever missing, doubled or changed."""

    folder = None

    @initialize()
    def begin(self):
        self.path = Path(self.folder) / f"{time.monotonic_ns()}.db"
        self.store = Store(self.path, new_epoch=EPOCH, **SMALL)
        self.hour = 0
        self.history = []  # (seq of its message, reading)
        self.messages = {Stream.TELEMETRY: [], Stream.ALERT: []}
        self.acked = {Stream.TELEMETRY: 0, Stream.ALERT: 0}
        self.dropped = {}

    @rule(
        readings=st.integers(0, 3),
        alerts=st.integers(0, 2),
        episode=st.integers(1, 3),
        state=st.sampled_from(AlertState),
    )
    def commit(self, readings, alerts, episode, state):
        new = [shows(f"m-{number:03}", self.hour + number / 100, self.hour) for number in range(readings)]
        self.hour += 1
        steps = [step(episode + number, state, n=self.hour) for number in range(alerts)]
        self.store.commit(new, steps)
        if new:
            self.messages[Stream.TELEMETRY].append(new)
            self.history += [(len(self.messages[Stream.TELEMETRY]), reading) for reading in new]
        self.messages[Stream.ALERT] += steps

    @rule(stream=st.sampled_from(Stream), share=st.floats(-0.1, 1.2))
    def acknowledge(self, stream, share):
        sent = len(self.messages[stream])
        seq = round(sent * share)
        moved = self.store.acknowledge({stream: seq}, wall_ms=self.hour)
        if self.acked[stream] < seq <= sent:
            assert moved == {stream: seq}
            self.acked[stream] = seq
        else:
            assert moved == {}

    @rule(keep=st.integers(0, 20))
    def forget(self, keep):
        old = [
            item for item in self.history[: max(0, len(self.history) - keep)] if item[0] <= self.acked[Stream.TELEMETRY]
        ]
        assert self.store.forget(keep_newest=keep) == len(old)
        self.history = [item for item in self.history if item not in old]

    @rule()
    def make_room(self):
        waiting = [seq for seq, _ in self.history if seq > self.acked[Stream.TELEMETRY]]
        assert self.store.make_room(bytes_max=0) == len(waiting)
        self.dropped |= {seq: waiting.count(seq) for seq in waiting}
        self.history = []

    @rule()
    def reopen(self):
        self.store.close()
        self.store = Store(self.path, new_epoch=episode_id(99), **SMALL)
        assert self.store.epoch == EPOCH

    @invariant()
    def agrees(self):
        if not hasattr(self, "store"):
            return
        assert list(self.store.history()) == [reading for _, reading in self.history]
        for stream in Stream:
            sent, acked = self.messages[stream], self.acked[stream]
            status = self.store.status(stream)
            assert (status.last_seq, status.acked_seq) == (len(sent), acked)
            assert seqs(self.store, stream) == list(range(acked + 1, len(sent) + 1))
        for message in self.store.outgoing(Stream.TELEMETRY, 0, 10_000):
            if message.seq in self.dropped:
                assert message.dropped.readings == self.dropped[message.seq]
            else:
                assert list(message.readings) == self.messages[Stream.TELEMETRY][message.seq - 1]
        steps = self.messages[Stream.ALERT]
        for message in self.store.outgoing(Stream.ALERT, 0, 10_000):
            wanted = steps[message.seq - 1]
            later = any(other.id == wanted.id for other in steps[message.seq :])
            assert message.alert == msgspec.structs.replace(wanted, historical=later)
        newest = {body.id: body for body in steps}
        open_now = sorted((body for body in newest.values() if body.state != "cleared"), key=lambda body: body.id)
        assert self.store.open_episodes() == open_now

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            for file in self.path.parent.glob(f"{self.path.name}*"):
                file.unlink()


def test_the_store_agrees_with_a_simple_model(tmp_path):
    machine = type("Model", (StoreModel,), {"folder": tmp_path})
    case = machine.TestCase
    case.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    case("runTest").runTest()


# -- failures ---------------------------------------------------------------------------------------------------------


class FailingConnection(sqlite3.Connection):
    """Fails at the n-th writing statement, once or for ever."""

    countdown = None
    for_ever = False

    def _count(self, sql):
        words = sql.split(None, 1)[0].lower()
        if FailingConnection.countdown is None or words in ("pragma", "select", "savepoint", "release"):
            return
        FailingConnection.countdown -= 1
        failing = FailingConnection.countdown == 0 or (FailingConnection.for_ever and FailingConnection.countdown < 0)
        # A rollback that SQLite could not do would leave the transaction open: the connection does not offer that.
        if failing and words != "rollback":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
            raise error

    def execute(self, sql, *parameters):
        self._count(sql)
        return super().execute(sql, *parameters)

    def executemany(self, sql, *parameters):
        self._count(sql)
        return super().executemany(sql, *parameters)


def renumber(store):
    with contextlib.suppress(StoreRolledBack):
        acknowledge(store, {Stream.TELEMETRY: 99})


WRITES = {
    "commit": lambda store: store.commit([shows("m-009", 50, 1), silent("m-010", 50)], [step(7), step(8)]),
    "acknowledge": lambda store: store.acknowledge(
        {Stream.TELEMETRY: 3, Stream.ALERT: 2},
        wall_ms=5,
        not_understood=[NotUnderstood(stream=Stream.ALERT, seq=1, reason="?")],
    ),
    "renumber": renumber,
    "forget": lambda store: store.forget(keep_newest=0),
    "make_room": lambda store: store.make_room(bytes_max=0),
    "adopt": lambda store: store.adopt(
        [shows("m-011", 60, 1)], [step(11)], learned=[learned("m-011")], absences=[absence(3)]
    ),
    "commit what was learned": lambda store: store.commit(
        [shows("m-001", 50, 1)], [], [learned("m-001", b"new")], [absence(1).ended(Ending.USE, at_ms=5)]
    ),
    "put_absence": lambda store: store.put_absence(absence(1), absence(2)),
    "remember_command": lambda store: store.remember_command(reply(1), body=b"{}", wall_ms=1),
    "note_episode": lambda store: store.note_episode(step(2, n=1)),
}


@pytest.mark.parametrize("for_ever", [False, True], ids=["once", "for ever"])
@pytest.mark.parametrize("write", WRITES)
def test_whatever_statement_fails_a_write_is_all_or_nothing(tmp_path, monkeypatch, write, for_ever):
    monkeypatch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=FailingConnection))
    monkeypatch.setattr(FailingConnection, "for_ever", for_ever)
    for number in range(1, 100):
        monkeypatch.setattr(FailingConnection, "countdown", None)
        with reopened(tmp_path / f"{number}.db", new_epoch=EPOCH) as store:
            for hour in range(1, 5):
                store.commit([shows("m-001", hour, hour)], [step(hour)], [learned("m-001")])
            store.acknowledge({Stream.TELEMETRY: 1}, wall_ms=1)
            before = everything(store)
            FailingConnection.countdown = number
            try:
                WRITES[write](store)
            except StoreError:
                FailingConnection.countdown = None
                after = everything(store)
                if write not in ("make_room", "forget"):  # which delete step by step, each of them whole
                    assert after == before, number
                assert [message.seq for message in after["outbox"][1]] == [2, 3, 4]
                WRITES[write](store)
            else:
                assert number > 1, "nothing failed at all"
                return
            finally:
                FailingConnection.countdown = None
            assert everything(store) != before, "the next attempt goes through"
    raise AssertionError("the write never came to its end")


def test_reading_a_closed_store_is_a_store_error(store):
    store.close()
    calls = [
        lambda: list(store.history()),
        lambda: store.commit([shows("m-001", 1, 1)], []),
        lambda: store.status(Stream.ALERT),
        lambda: store.outgoing(Stream.ALERT, 0, 1),
        lambda: store.acknowledge({Stream.ALERT: 1}, wall_ms=1),
        *(store.open_episodes, store.last_readings, store.last_values, store.set_aside_count, store.bytes_used),
        lambda: store.make_room(bytes_max=0),
        lambda: store.forget(keep_newest=1000),
        *(store.learned, store.absences, lambda: list(store.hourly()), lambda: store.command_reply("x")),
        lambda: store.put_absence(absence(1)),
        lambda: store.remember_command(reply(1), body=b"", wall_ms=1),
        lambda: store.note_episode(step(1)),
    ]
    for call in calls:
        with pytest.raises(StoreError) as caught:
            call()
        assert not isinstance(caught.value, StoreDamaged)


def test_a_row_that_makes_no_sense_is_damage_and_no_crash(store):
    store.commit([shows("m-001", 1, 1)], [step(1)])
    store._db.execute("pragma ignore_check_constraints = 1")
    store._db.execute("update reading set quality = 'fine'")
    store._db.execute("update alert set body = '{}'")
    store._db.execute("update episode set body = '{'")
    calls = [
        lambda: list(store.history()),
        lambda: store.outgoing(Stream.TELEMETRY, 0, 9),
        lambda: store.outgoing(Stream.ALERT, 0, 9),
        *(store.open_episodes, store.last_readings, store.last_values),
    ]
    for call in calls:
        with pytest.raises(StoreDamaged):
            call()


def test_text_that_is_no_utf_8_is_damage_and_no_crash(store):
    store.commit([shows("m-001", 1, 1)], [])
    store._db.execute("update reading set flags = cast(x'ff' as text)")
    with pytest.raises(StoreDamaged):
        list(store.history())


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MiB: the reserve of 8 MiB, a WAL of 4 MiB, and a store that fills the rest soon."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Leave not a byte free."""
    with (folder / "somebody-elses.log").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


def cycle(number, meters=200):
    """One poll cycle of a large village."""
    return [shows(f"m-{meter:03}", number / 12, number) for meter in range(meters)]


def commit_until_full(store, *, limit=3000):
    """Commit cycles until one is refused; return how many were accepted."""
    for number in range(limit):
        try:
            store.commit(cycle(number, meters=500), [])
        except StoreError:
            return number
    return limit


def test_on_a_full_disk_the_reserve_lets_alerts_in_and_room_be_made(small_disk, caplog):
    with reopened(small_disk / "s.db", new_epoch=EPOCH, reserve_bytes=RESERVE_BYTES) as store:
        accepted = commit_until_full(store)
        assert "disk_full" in caplog.text, "the reserve was given up first"
        assert len(seqs(store, Stream.TELEMETRY)) == accepted, "a commit that was refused left nothing"
        fill(small_disk)
        with pytest.raises(StoreError, match="full"):
            store.commit(cycle(accepted, meters=500), [])
        assert store.make_room(bytes_max=10**9) > 0, "deleting works on a disk without a free byte"
        store.commit(cycle(1), [step(1)])
        assert seqs(store, Stream.ALERT) == [1]
        last = store.status(Stream.TELEMETRY).last_seq
        assert seqs(store, Stream.TELEMETRY) == list(range(1, last + 1)), "tombstones keep every seq"


@pytest.mark.parametrize("cycles_before", [0, 30, 250], ids=lambda cycles: f"after {cycles} cycles")
def test_a_disk_that_others_fill_is_lived_with_in_the_space_that_the_store_has(small_disk, cycles_before):
    """Weeks on a disk that stays full: alerts come and go, the oldest readings go, nothing is refused."""
    with reopened(small_disk / "s.db", new_epoch=EPOCH, reserve_bytes=RESERVE_BYTES) as store:
        for number in range(cycles_before):
            store.commit(cycle(number), [])
        fill(small_disk)
        for number in range(400):
            store.commit(cycle(number), [step(number)])
            store.acknowledge({Stream.ALERT: number + 1}, wall_ms=1)
            if number % 2 == 1:  # housekeeping comes every 10 minutes
                store.forget(keep_newest=1000)
                store.make_room(bytes_max=10**9)
                fill(small_disk)
        assert len(list(store.history())) > 30 * 200, "no more is dropped than the space asks for"
        assert (small_disk / "s.db-reserve").stat().st_size == 0


def test_the_reserve_is_taken_back_when_there_is_space_again(small_disk):
    with reopened(small_disk / "s.db", new_epoch=EPOCH, reserve_bytes=2**20) as store:
        reserve = small_disk / "s.db-reserve"
        assert reserve.stat().st_size == 2**20
        fill(small_disk)
        commit_until_full(store)
        assert reserve.stat().st_size == 0
        store.make_room(bytes_max=10**9)
        assert reserve.stat().st_size == 0, "not while the disk is full"
        (small_disk / "somebody-elses.log").unlink()
        store.make_room(bytes_max=10**9)
        assert reserve.stat().st_size == 2**20
        pages = store._db.execute("pragma page_count").fetchone()[0]
        for number in range(100):
            store.commit(cycle(number), [])
        assert store._db.execute("pragma page_count").fetchone()[0] > pages + 100, "the file grows again"


def test_a_store_is_opened_on_a_full_disk(small_disk):
    with reopened(small_disk / "s.db", new_epoch=EPOCH, reserve_bytes=RESERVE_BYTES) as store:
        store.commit(cycle(1), [step(1)])
    fill(small_disk)
    with reopened(small_disk / "s.db", reserve_bytes=RESERVE_BYTES) as store:
        assert seqs(store, Stream.ALERT) == [1]
        store.commit(cycle(2), [step(2)])


def test_a_store_that_finds_no_room_for_a_reserve_says_so_and_works(small_disk, caplog):
    with reopened(small_disk / "s.db", new_epoch=EPOCH, reserve_bytes=2**24) as store:
        assert "disk_nearly_full" in caplog.text
        store.commit(cycle(1), [])
    fill(small_disk)
    with pytest.raises(StoreError) as caught:
        Store(small_disk / "s.db", reserve_bytes=2**24)
    assert not isinstance(caught.value, StoreDamaged)


def test_no_store_can_be_made_on_a_full_disk(small_disk):
    fill(small_disk)
    with pytest.raises(StoreError) as caught:
        Store(small_disk / "s.db", new_epoch=EPOCH)
    assert not isinstance(caught.value, StoreDamaged)


# -- a disk that fails to sync ----------------------------------------------------------------------------------------


SYNC_SCRIPT = """
import sys
from pathlib import Path
from partners.episodes import episode_id, step
from gateway.store import Store, StoreError
from protocols.contract import Stream
store = Store(Path(sys.argv[1]), new_epoch=episode_id(0), reserve_bytes=0)
accepted = []
for number in range(1, 61):
    try:
        store.commit([], [step(number)])
        accepted.append(number)
    except StoreError as error:
        print("refused", number, error)
print("accepted", *accepted)
print("stored", *[m.alert.at for m in store.outgoing(Stream.ALERT, 0, 99)])
print("seqs", *[m.seq for m in store.outgoing(Stream.ALERT, 0, 99)])
"""


@pytest.mark.parametrize("when", ["40", "40+3"], ids=["once", "again and again"])
def test_a_sync_that_fails_refuses_its_commit_and_only_that(tmp_path, when):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (make test installs it)")
    inject = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
    inject += ["-e", f"inject=fdatasync,fsync:error=EIO:when={when}"]
    probe = subprocess.run([*inject, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"strace may not trace here: {probe.stderr.strip()}")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [*inject, sys.executable, "-c", SYNC_SCRIPT, str(tmp_path / "s.db")],
        capture_output=True, text=True, timeout=50, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert "refused" in said, "the injection did not hit a commit"
    assert said["stored"] == [step(int(number)).at for number in said["accepted"]]
    assert said["seqs"] == [str(seq) for seq in range(1, len(said["accepted"]) + 1)]
    with reopened(tmp_path / "s.db") as store:  # the process ended without closing: this is what is in the files
        assert [message.alert.at for message in store.outgoing(Stream.ALERT, 0, 99)] == said["stored"]


# -- several processes ------------------------------------------------------------------------------------------------


def test_a_reader_sees_what_is_committed_beside_a_writer(store, tmp_path):
    store.commit([shows("m-001", 1, 1)], [step(1)])
    with reopened(tmp_path / "s.db", read_only=True) as reader:
        assert everything(reader) == everything(store)
        store.commit([shows("m-001", 2, 2)], [])
        assert everything(reader) == everything(store)
        with pytest.raises(StoreError, match="readonly"):
            reader.commit([shows("m-001", 3, 3)], [])
        history = reader.history()
        next(history)  # a reader in the middle of the file holds nobody up
        began_s = time.monotonic()
        store.commit([shows("m-001", 4, 4)], [])
        assert time.monotonic() - began_s < 1
        history.close()


def test_a_reader_makes_no_store(tmp_path):
    with pytest.raises(StoreError):
        Store(tmp_path / "s.db", read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_another_process_keeps_is_a_store_error_after_a_bounded_wait(store, tmp_path):
    store._db.execute("pragma busy_timeout = 50")
    script = textwrap.dedent(f"""
        import sqlite3, sys
        db = sqlite3.connect({str(tmp_path / "s.db")!r}, isolation_level=None)
        db.execute("begin immediate")
        print("locked", flush=True)
        sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        before = everything(store)
        with pytest.raises(StoreError, match="locked"):
            store.commit([shows("m-001", 1, 1)], [step(1)])
        assert everything(store) == before
        other.communicate()
    store.commit([shows("m-001", 1, 1)], [step(1)])
    assert seqs(store, Stream.ALERT) == [1]


# -- the file ---------------------------------------------------------------------------------------------------------


def test_what_the_promises_stand_on_is_set(store):
    for pragma, wanted in store_file._PRAGMAS:
        assert store._db.execute(f"pragma {pragma}").fetchone()[0] == wanted, pragma


def test_a_disk_that_cannot_keep_the_promises_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(store_file, "_PRAGMAS", (("journal_mode", "wal"), ("page_size", 3)))
    with pytest.raises(StoreError, match="page_size is 4096, not 3"):
        Store(tmp_path / "s.db", new_epoch=EPOCH)


def test_the_wal_stays_small(store, tmp_path):
    for number in range(200):
        store.commit(cycle(number, meters=500), [])
    assert (tmp_path / "s.db").stat().st_size > 2048 * store_file.CHECKPOINT_PAGES, "it was copied back"
    assert (tmp_path / "s.db-wal").stat().st_size < 1.1 * 4096 * store_file.CHECKPOINT_PAGES


SCHEMAS = Path(__file__).parent / "schemas"
FIXTURES = sorted(SCHEMAS.glob("*.sql"))


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_every_schema_that_was_ever_shipped_is_upgraded(file, tmp_path):
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(file.read_text(encoding="utf-8"))
    for _ in range(2):  # the second time there is nothing left to do
        with reopened(path) as store:
            assert store.epoch == EPOCH
            assert [reading.volume_ml for reading in store.history()] == [12345, None, 20000]
            assert seqs(store, Stream.ALERT) == [2, 3]
            assert [message.dropped is None for message in store.outgoing(Stream.TELEMETRY, 0, 9)] == [False, True]
            assert [body.id for body in store.open_episodes()] == [episode_id(2)]
            assert store.set_aside_count() == 1
            # What was stored before hours were: each hour's last value of what is beyond doubt.
            hours = [(value.hour, value.volume_ml) for value in store.hours_of("m-001")]
            assert (1_790_007_200_000 // 3_600_000, 20000) in hours
            assert all(volume_ml != 12345 for _, volume_ml in hours), "that was suspect"
            if file.stem > "v2":
                assert store.learned() == {"m-001": learned("m-001")}
                assert store.absences() == [absence(1)]
                assert store.command_reply(reply(1).id) == reply(1)
    with reopened(path) as store:
        store.commit([shows("m-001", 9, 30)], [step(9)])


def dump(path):
    """A store of the present schema with something in every table, as SQL."""
    store = Store(path, new_epoch=EPOCH, reserve_bytes=0)
    store.commit([shows("m-001", 0, 1)], [step(1)])
    complaint = NotUnderstood(stream=Stream.ALERT, seq=1, reason="unknown kind")
    store.acknowledge({Stream.ALERT: 1}, wall_ms=1_790_000_000_000, not_understood=[complaint])
    store.make_room(bytes_max=0)
    store.commit([shows("m-001", 1, 12.345, flags=("leak",)), silent("m-002", 1)], [step(1, AlertState.CLEARED)])
    store.commit([], [step(2, low=True)])
    hour = HourlyValue(hour=497224, meter="m-001", volume_ml=20_000)
    store.adopt([shows("m-001", 2, 20)], [], learned=[learned("m-001")], hourly=[hour], absences=[absence(1)])
    store.remember_command(reply(1), body=b"{}", wall_ms=1_790_000_000_000)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        text = "\n".join(connection.iterdump()) + "\n"
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+00:00", "2026-01-01 00:00:00.000000+00:00", text)


def test_the_newest_schema_is_kept_for_the_versions_to_come(tmp_path):
    """A schema that has been shipped does not change, a new one is a migration; UPDATE_SCHEMAS=1 writes its file."""
    file = SCHEMAS / f"{store_schema._VERSIONS[-1].split('_')[0]}.sql"
    now = dump(tmp_path / "s.db")
    if os.environ.get("UPDATE_SCHEMAS"):
        file.write_text(now, encoding="utf-8")
    assert file.read_text(encoding="utf-8") == now
    assert [fixture.stem for fixture in FIXTURES] == [name.split("_")[0] for name in store_schema._VERSIONS]


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    path = tmp_path / "s.db"
    with reopened(path, new_epoch=EPOCH) as store:
        store._db.execute(
            "insert into _sqlite_migrations"
            " select null, migration_set, 'v99', applied_at from _sqlite_migrations limit 1"
        )
    before = path.read_bytes()
    with pytest.raises(StoreError, match="v99") as caught:
        Store(path)
    assert not isinstance(caught.value, StoreDamaged)
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_not_taken_over(tmp_path):
    path = tmp_path / "s.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("create table songs (title)")
    with pytest.raises(StoreDamaged, match="another program"):
        Store(path, new_epoch=EPOCH)


def test_a_store_without_an_epoch_is_no_store(tmp_path):
    with pytest.raises(StoreDamaged, match="epoch"):
        Store(tmp_path / "s.db")


def test_a_folder_in_its_place_or_none_around_it_is_a_store_error(tmp_path):
    (tmp_path / "s.db").mkdir()
    for path in (tmp_path / "s.db", tmp_path / "nowhere" / "s.db"):
        with pytest.raises(StoreError) as caught:
            Store(path, new_epoch=EPOCH)
        assert not isinstance(caught.value, StoreDamaged)


def test_nothing_is_said_on_a_good_day(tmp_path, caplog):
    with caplog.at_level(logging.INFO), reopened(tmp_path / "s.db", new_epoch=EPOCH) as store:
        store.commit([shows("m-001", 1, 1)], [step(1)])
        store.make_room(bytes_max=10**9)
    assert caplog.text == ""
