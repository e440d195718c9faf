"""The receiver's promises: stored once, acknowledged only without a hole, never stopped by what it cannot read."""

import json
import sqlite3
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import (
    COUNTY,
    EPISODE,
    EPOCH,
    GATEWAY,
    LATER_EPOCH,
    NOW,
    alert,
    birth,
    incoming,
    raw,
    reading,
    telemetry,
    tombstone,
    will,
)

from county import receiver as module
from county.errors import StoreFailed
from county.events import AlertStep, GatewayChange, MessageSetAside, MessagesSkipped, ReadingsDropped
from county.receiver import Incoming, Receiver
from county.store import Store
from protocols import contract
from protocols.contract import Ack, Leaf, Stream


def acks_of(outcome):
    return {(ack.topic, decoded.epoch): decoded for ack, decoded in _decoded(outcome)}


def only_ack(outcome):
    ((_, decoded),) = _decoded(outcome)
    return decoded


def _decoded(outcome):
    return [(ack, contract.decode(Leaf.ACK, ack.payload)) for ack in outcome.acks]


def up_to(ack):
    return ack.alert_up_to, ack.telemetry_up_to


def prefix(seqs):
    """The end of the run that begins at 1: the rule itself, said differently from the code."""
    return next(number for number in range(len(seqs) + 1) if number + 1 not in seqs)


STEPS = ("open", "escalated", "cleared")
SOURCES = [(GATEWAY, EPOCH), (GATEWAY, LATER_EPOCH), ("g-2", EPOCH)]


def _message(source, stream, seq):
    gateway, epoch = SOURCES[source]
    if stream == "alert":
        return alert(seq, STEPS[(seq - 1) % 3], gateway=gateway, epoch=epoch, episode=f"{source}{(seq - 1) // 3:025d}")
    return telemetry(seq, gateway=gateway, epoch=epoch)


deliveries = st.lists(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["alert", "telemetry"]), st.integers(1, 7)), min_size=1, max_size=8
    ),
    min_size=1,
    max_size=6,
)


def _snapshot(store):
    """Everything that does not depend on when it came."""
    with store.transaction():
        return (
            store.rows("SELECT county, gateway, epoch, stream, seq, payload FROM messages ORDER BY 1, 2, 3, 4, 5"),
            store.rows("SELECT * FROM readings ORDER BY county, gateway, epoch, seq, position"),
            store.rows("SELECT * FROM alerts ORDER BY gateway, id"),
            store.rows("SELECT * FROM alert_steps ORDER BY gateway, epoch, seq"),
            store.rows("SELECT * FROM streams WHERE up_to > 0 ORDER BY 1, 2, 3, 4"),
        )


@settings(max_examples=60, deadline=None)
@given(batches=deliveries, order=st.randoms(use_true_random=False))
def test_whatever_the_order_each_message_is_stored_once_and_the_ack_ends_before_the_first_hole(batches, order):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "one.db")
        receiver = Receiver(store)
        held = {}
        for batch in batches:
            outcome = receiver.receive([incoming(_message(*item), gateway=SOURCES[item[0]][0]) for item in batch])
            for source, stream, seq in batch:
                held.setdefault((source, stream), set()).add(seq)
            expected = {
                (contract.topic(COUNTY, SOURCES[source][0], Leaf.ACK), SOURCES[source][1]): (
                    prefix(held.get((source, "alert"), set())),
                    prefix(held.get((source, "telemetry"), set())),
                )
                for source, _, _ in batch
            }
            assert {key: up_to(ack) for key, ack in acks_of(outcome).items()} == expected
            assert not any(ack.not_understood for ack in acks_of(outcome).values())
        first = _snapshot(store)
        assert len(first[0]) == sum(map(len, held.values()))
        assert len(first[1]) == 2 * sum(len(seqs) for (_, stream), seqs in held.items() if stream == "telemetry")
        store.close()

        everything = [item for batch in batches for item in batch]
        order.shuffle(everything)
        again = Store(Path(folder) / "two.db")
        Receiver(again).receive([incoming(_message(*item), gateway=SOURCES[item[0]][0]) for item in everything])
        assert _snapshot(again) == first
        again.close()


def test_a_hole_holds_the_ack_back_until_it_is_filled(receiver):
    assert up_to(only_ack(receiver.receive([incoming(telemetry(1)), incoming(telemetry(3))]))) == (0, 1)
    assert up_to(only_ack(receiver.receive([incoming(telemetry(4))]))) == (0, 1)
    assert up_to(only_ack(receiver.receive([incoming(telemetry(2))]))) == (0, 4)


def test_a_repetition_is_dropped_told_nobody_and_acknowledged_again(receiver, store):
    first = receiver.receive([incoming(alert(1))])
    again = msgspec.structs.replace(alert(1, historical=True), sent_at=NOW)
    second = receiver.receive([incoming(again), incoming(again)])
    assert [type(event) for event in first.events] == [AlertStep]
    assert second.events == ()
    assert second.acks == first.acks
    with store.transaction():
        assert store.row("SELECT count(*) AS n FROM messages") == {"n": 1}


def test_the_same_number_with_other_content_is_never_silently_dropped(receiver, store):
    receiver.receive([incoming(alert(1))])
    other = alert(1, episode="0" * 26, meter="m-099")
    outcome = receiver.receive([incoming(other)])
    assert [type(event) for event in outcome.events] == [MessageSetAside]
    (named,) = only_ack(outcome).not_understood
    assert (named.stream, named.seq) == (Stream.ALERT, 1)
    assert named.held_otherwise
    assert "something else" in named.reason
    with store.transaction():
        assert store.rows("SELECT payload FROM set_aside") == [{"payload": contract.encode(other)}]
        assert [row["meter"] for row in store.rows("SELECT meter FROM alerts")] == ["m-001"]


def test_what_is_held_otherwise_is_named_again_because_the_first_receipt_may_be_lost(receiver):
    """A gateway that never hears of it takes the receipt of another message for that of its own."""
    receiver.receive([incoming(alert(1)), incoming(telemetry(1))])
    receiver.receive([incoming(alert(1, episode="0" * 26))])
    (named,) = only_ack(receiver.receive([incoming(birth())])).not_understood
    assert (named.stream, named.seq, named.held_otherwise) == (Stream.ALERT, 1, True)
    assert only_ack(receiver.receive([incoming(birth(epoch=LATER_EPOCH))])).not_understood == ()


def test_a_tombstone_in_place_of_readings_is_a_repetition_and_alone_it_is_stored_and_shown(receiver, store):
    receiver.receive([incoming(telemetry(1))])
    assert receiver.receive([incoming(tombstone(1))]).events == ()
    outcome = receiver.receive([incoming(tombstone(2))])
    assert up_to(only_ack(outcome)) == (0, 2)
    (event,) = outcome.events
    assert isinstance(event, ReadingsDropped)
    assert event.readings == 60
    with store.transaction():
        assert [(row["seq"], row["readings"]) for row in store.rows("SELECT * FROM dropped")] == [(2, 60)]


def test_readings_can_be_queried_and_what_is_missing_stays_missing(receiver, store):
    receiver.receive([incoming(telemetry(1, readings=(reading(1, volume_ml=5), reading(2))))])
    with store.transaction():
        rows = store.rows("SELECT meter, at, volume_ml, quality, clock, reason, epoch, seq FROM readings ORDER BY at")
    assert rows[0] == {
        "meter": "m-001",
        "at": reading(1).at,
        "volume_ml": 5,
        "quality": "ok",
        "clock": "synced",
        "reason": None,
        "epoch": EPOCH,
        "seq": 1,
    }
    assert (rows[1]["volume_ml"], rows[1]["reason"]) == (None, "no_response")


def test_an_episode_shows_its_newest_step_even_when_that_came_first(receiver, store):
    outcome = receiver.receive(
        [incoming(alert(3, "cleared")), incoming(alert(1, "open")), incoming(alert(2, "escalated", level="red"))]
    )
    assert [(event.alert.state, event.historical) for event in outcome.events] == [
        ("cleared", False),
        ("open", True),
        ("escalated", True),
    ]
    with store.transaction():
        assert [(row["id"], row["state"], row["seq"]) for row in store.rows("SELECT * FROM alerts")] == [
            (EPISODE, "cleared", 3)
        ]
        assert [row["state"] for row in store.rows("SELECT state FROM alert_steps ORDER BY seq")] == list(STEPS)
    assert receiver.standing(NOW) == ()


def newest(store):
    with store.transaction():
        return [(row["state"], row["epoch"]) for row in store.rows("SELECT state, epoch FROM alerts")]


@pytest.mark.parametrize(("earlier", "later"), [(EPOCH, LATER_EPOCH), (LATER_EPOCH, EPOCH), (EPOCH, "0" * 26)])
@pytest.mark.parametrize("births", [True, False])
def test_an_epoch_is_later_when_it_was_heard_of_later_whatever_its_ulid_says(receiver, store, earlier, later, births):
    """A store that was saved on a box that woke in 1970 has the lower ULID."""
    if births:
        receiver.receive([incoming(birth(epoch=earlier))])
    receiver.receive([incoming(alert(5, "open", epoch=earlier))])
    if births:
        receiver.receive([incoming(birth(epoch=later))])
    (event,) = receiver.receive([incoming(alert(1, "cleared", epoch=later))]).events
    assert not event.historical
    assert newest(store) == [("cleared", later)]
    assert receiver.standing(NOW) == ()


@pytest.mark.parametrize(("earlier", "later"), [(EPOCH, LATER_EPOCH), (LATER_EPOCH, EPOCH)])
def test_what_comes_late_or_again_of_an_earlier_epoch_opens_no_cleared_alert(receiver, store, earlier, later):
    receiver.receive([incoming(alert(5, "open", epoch=earlier))])
    receiver.receive([incoming(alert(1, "open", epoch=later)), incoming(alert(2, "cleared", epoch=later))])
    assert receiver.receive([incoming(alert(5, "open", epoch=earlier))]).events == ()
    (event,) = receiver.receive([incoming(alert(6, "escalated", epoch=earlier))]).events
    assert event.historical
    (event,) = receiver.receive([incoming(alert(9, "open", epoch=earlier, episode="0" * 26))]).events
    assert not event.historical, "of this episode nothing newer is known"
    with store.transaction():
        assert store.row("SELECT state, epoch FROM alerts WHERE id=?", EPISODE) == {"state": "cleared", "epoch": later}


def test_an_alert_that_a_rolled_back_gateway_has_open_again_is_open_until_it_clears_it(receiver, store):
    receiver.receive([incoming(alert(1, "open")), incoming(alert(2, "cleared"))])
    receiver.receive([incoming(alert(1, "open", epoch=LATER_EPOCH))])
    assert newest(store) == [("open", LATER_EPOCH)]
    receiver.receive([incoming(alert(2, "cleared", epoch=LATER_EPOCH))])
    assert newest(store) == [("cleared", LATER_EPOCH)]


def test_what_the_gateway_calls_historical_is_told_as_such(receiver):
    (event,) = receiver.receive([incoming(alert(1, historical=True))]).events
    assert event.historical


def test_open_alerts_are_told_again_after_a_restart(receiver):
    receiver.receive([incoming(alert(1)), incoming(alert(2, episode="0" * 26)), incoming(alert(3, "cleared"))])
    (event,) = receiver.standing(NOW)
    assert (event.alert.id, event.standing) == ("0" * 26, True)
    assert event.alert == alert(2, episode="0" * 26).alert


def test_a_new_epoch_begins_again_at_one_and_is_told(receiver):
    receiver.receive([incoming(birth()), incoming(telemetry(1)), incoming(telemetry(2))])
    outcome = receiver.receive([incoming(birth(epoch=LATER_EPOCH)), incoming(telemetry(1, epoch=LATER_EPOCH))])
    assert only_ack(outcome) == Ack(schema=contract.ACK_SCHEMA, epoch=LATER_EPOCH, alert_up_to=0, telemetry_up_to=1)
    (event,) = outcome.events
    assert isinstance(event, GatewayChange)
    assert event.new_store


def test_a_gateway_is_told_once_when_it_goes_and_once_when_it_comes_back(receiver, store):
    states = [birth(), birth(), will(), will("stopped"), birth()]
    told = [receiver.receive([incoming(state)]).events for state in states]
    assert [[event.online for event in events] for events in told] == [[True], [], [False], [], [True]]
    assert told[2][0].reason == "connection lost"
    with store.transaction():
        row = store.row("SELECT * FROM gateways")
    assert (row["online"], row["epoch"], row["agent"], row["meters"]) == (1, EPOCH, "shuiwang 0.1.0", 2)


def test_a_will_keeps_what_the_birth_said_and_is_no_contact(receiver, store):
    receiver.receive([incoming(birth(), received_at="2026-11-21T20:00:00.000Z")])
    receiver.receive([incoming(will(), received_at="2026-11-21T21:00:00.000Z")])
    with store.transaction():
        row = store.row("SELECT * FROM gateways")
    assert (row["epoch"], row["last_seen_at"], row["state_at"]) == (
        EPOCH,
        "2026-11-21T20:00:00.000Z",
        "2026-11-21T21:00:00.000Z",
    )


def test_a_retained_birth_is_no_contact_and_is_answered_with_what_is_stored(receiver, store):
    outcome = receiver.receive([incoming(birth(), retained=True)])
    assert up_to(only_ack(outcome)) == (0, 0)
    with store.transaction():
        assert store.row("SELECT last_seen_at FROM gateways") == {"last_seen_at": None}
    receiver.receive([incoming(alert(1))])
    assert up_to(only_ack(receiver.receive([incoming(birth(), retained=True)]))) == (1, 0)


def test_a_birth_lets_the_ack_cross_what_the_gateway_no_longer_holds(receiver, store):
    assert up_to(only_ack(receiver.receive([incoming(telemetry(6)), incoming(alert(1))]))) == (1, 0)
    outcome = receiver.receive([incoming(birth(oldest_telemetry=5, oldest_alert=1))])
    assert up_to(only_ack(outcome)) == (1, 4)
    skipped = [event for event in outcome.events if isinstance(event, MessagesSkipped)]
    assert [(event.stream, event.first, event.last) for event in skipped] == [(Stream.TELEMETRY, 1, 4)]
    assert up_to(only_ack(receiver.receive([incoming(telemetry(5))]))) == (1, 6)
    assert not [
        event
        for event in receiver.receive([incoming(birth(oldest_telemetry=5, oldest_alert=1))]).events
        if isinstance(event, MessagesSkipped)
    ]
    # What was skipped and comes nevertheless is stored, not taken for a repetition.
    receiver.receive([incoming(telemetry(2))])
    with store.transaction():
        assert [row["seq"] for row in store.rows("SELECT seq FROM messages WHERE stream='telemetry' ORDER BY 1")] == [
            2,
            5,
            6,
        ]


BROKEN = {
    "no schema": b'{"epoch":"%s","seq":1}' % EPOCH.encode(),
    "wrong type": contract.encode(telemetry(1)).replace(b'"volume_ml":1000', b'"volume_ml":"1000"'),
    "future version": contract.encode(telemetry(1)).replace(b"telemetry/1", b"telemetry/2"),
    "no such date": contract.encode(telemetry(1)).replace(b'"sent_at":"2026-11-21', b'"sent_at":"2026-13-45'),
    "other gateway": contract.encode(telemetry(1, gateway="g-9")),
    "too long": contract.encode(telemetry(1)) + b" " * contract.PAYLOAD_BYTES_MAX,
    "huge volume": contract.encode(telemetry(1)).replace(b"1000", b"9" * 40),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_understood_is_kept_takes_its_place_and_is_named(receiver, store, name):
    payload = BROKEN[name]
    outcome = receiver.receive([raw(Leaf.TELEMETRY, payload), incoming(telemetry(2))])
    ack = only_ack(outcome)
    assert up_to(ack) == (0, 2)
    (named,) = ack.not_understood
    assert (named.stream, named.seq) == (Stream.TELEMETRY, 1)
    assert named.reason
    (event,) = outcome.events
    assert (type(event), event.reason) == (MessageSetAside, named.reason)
    with store.transaction():
        (row,) = store.rows("SELECT * FROM set_aside")
        assert row["payload"] == payload[: contract.PAYLOAD_BYTES_MAX]
        assert (row["bytes"], row["reason"]) == (len(payload), named.reason)
        assert store.row("SELECT count(*) AS n FROM readings") == {"n": 2}
    # The gateway may have missed that acknowledgement: the next one names it again.
    assert only_ack(receiver.receive([incoming(telemetry(3))])).not_understood == (named,)


def test_what_is_understood_in_the_end_takes_its_place_over(receiver, store):
    receiver.receive([raw(Leaf.TELEMETRY, BROKEN["future version"])])
    ack = only_ack(receiver.receive([incoming(telemetry(1))]))
    assert (up_to(ack), ack.not_understood) == ((0, 1), ())
    with store.transaction():
        assert store.row("SELECT count(*) AS n FROM readings") == {"n": 2}
    # And what is understood stays: the broken one coming again changes nothing.
    receiver.receive([raw(Leaf.TELEMETRY, BROKEN["future version"])])
    with store.transaction():
        assert store.row("SELECT not_understood FROM messages") == {"not_understood": None}


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("shuiwang/v1/shenxian/g-1/telemetry", b""),
        ("shuiwang/v1/shenxian/g-1/alert", b"\xff" * 50),
        ("shuiwang/v1/shenxian/g-1/alert", b"[" * 100_000),
        ("shuiwang/v1/shenxian/g-1/alert", b'{"epoch":"%s","seq":%s}' % (EPOCH.encode(), b"9" * 30)),
        ("shuiwang/v1/shenxian/g-1/alert", b'{"epoch":"lower","seq":1}'),
        ("shuiwang/v1/shenxian/g-1/state", b'{"schema":"shuiwang/state/1","online":"yes"}'),
        ("shuiwang/v1/shenxian/g-1/ack", b"{}"),
        ("shuiwang/v1/shenxian/G_1/alert", contract.encode(alert(1))),
        ("other", b"x"),
    ],
)
def test_what_has_no_readable_number_is_kept_and_not_acknowledged(receiver, store, topic, payload):
    outcome = receiver.receive([Incoming(topic=topic, payload=payload, received_at=NOW)])
    assert outcome.acks == ()
    assert [type(event) for event in outcome.events] == [MessageSetAside]
    with store.transaction():
        (row,) = store.rows("SELECT topic, payload FROM set_aside")
        assert row == {"topic": topic, "payload": payload}
        assert store.rows("SELECT * FROM messages") == []


@settings(max_examples=40, deadline=None)
@given(
    payloads=st.lists(
        st.tuples(
            st.sampled_from([Leaf.STATE, Leaf.TELEMETRY, Leaf.ALERT]),
            st.binary(max_size=60) | st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=3)),
        ),
        max_size=10,
    )
)
def test_damaged_messages_never_stop_the_good_one_behind_them(payloads):
    good = {Leaf.STATE: birth(), Leaf.TELEMETRY: telemetry(2), Leaf.ALERT: alert(2)}
    batch = []
    for leaf, damage in payloads:
        if isinstance(damage, tuple):
            whole = contract.encode(good[leaf])
            place, patch = damage[0] % len(whole), damage[1]
            batch.append(raw(leaf, whole[:place] + patch + whole[place + len(patch) :]))
        else:
            batch.append(raw(leaf, damage))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "county.db")
        outcome = Receiver(store).receive([*batch, incoming(alert(1, epoch="7" * 26))])
        assert (contract.topic(COUNTY, GATEWAY, Leaf.ACK), "7" * 26) in acks_of(outcome)
        with store.transaction():
            assert store.row("SELECT seq FROM alert_steps WHERE epoch=?", "7" * 26) == {"seq": 1}
        store.close()


def test_what_is_set_aside_is_bounded_by_rows_and_the_oldest_go_counted(receiver, store, monkeypatch):
    monkeypatch.setattr(module, "SET_ASIDE_ROWS_MAX", 5)
    for number in range(8):
        receiver.receive([raw(Leaf.ALERT, b"%d" % number)])
    with store.transaction():
        assert [row["payload"] for row in store.rows("SELECT payload FROM set_aside ORDER BY id")] == [
            b"%d" % number for number in range(3, 8)
        ]
        assert store.count(module.EVICTED_COUNTER) == 3


def test_what_is_set_aside_is_bounded_by_bytes(receiver, store, monkeypatch):
    monkeypatch.setattr(module, "SET_ASIDE_BYTES_MAX", 100)
    receiver.receive([raw(Leaf.ALERT, bytes([number]) * 40) for number in range(4)])
    with store.transaction():
        assert [row["payload"][:1] for row in store.rows("SELECT payload FROM set_aside ORDER BY id")] == [b"\2", b"\3"]
        assert store.count(module.EVICTED_COUNTER) == 2


def test_a_flood_of_alike_garbage_is_one_line(receiver):
    outcome = receiver.receive([raw(Leaf.ALERT, b"garbage")] * 50)
    (event,) = outcome.events
    assert event.count == 50


def test_an_ack_names_a_bounded_number_of_earlier_failures(receiver):
    count = module.NOT_UNDERSTOOD_REPEATED + 10
    receiver.receive(
        [raw(Leaf.ALERT, b'{"epoch":"%s","seq":%d}' % (EPOCH.encode(), seq)) for seq in range(1, count + 1)]
    )
    ack = only_ack(receiver.receive([incoming(alert(count + 1))]))
    assert [named.seq for named in ack.not_understood] == list(range(11, count + 1))


def test_a_long_reason_is_cut(receiver):
    (event,) = receiver.receive([raw(Leaf.ALERT, json.dumps({"schema": "x" * 5000}).encode())]).events
    assert len(event.reason) <= module.REASON_CHARACTERS_MAX


def test_two_counties_with_a_gateway_of_one_name_stay_apart(receiver, store):
    outcome = receiver.receive([incoming(alert(1)), incoming(alert(1), county="other")])
    assert sorted(ack.topic.split("/")[2] for ack in outcome.acks) == ["other", COUNTY]
    with store.transaction():
        assert store.row("SELECT count(*) AS n FROM alerts") == {"n": 2}


def _statements(tmp_path):
    """How many statements the sample batch runs, so that each can be made to fail."""
    return _run_with_failure(tmp_path / "count.db", at=None)[1]


def _run_with_failure(file, *, at):
    store = Store(file)
    receiver = Receiver(store)
    database = store._database
    calls = 0
    genuine = database.conn

    class FullDisk:
        """The connection, but statement number `at` finds the disk full."""

        def __getattr__(self, name):
            return getattr(genuine, name)

        def execute(self, *arguments):
            nonlocal calls
            # sqlite-utils guards each query with a savepoint, and copes when that alone fails.
            if arguments[0].split()[0] not in {"SAVEPOINT", "RELEASE", "ROLLBACK"}:
                calls += 1
                if calls == at:
                    raise sqlite3.OperationalError("database or disk is full")
            return genuine.execute(*arguments)

    database.conn = FullDisk()
    batch = [incoming(birth(oldest_alert=1)), incoming(alert(1)), incoming(telemetry(1)), raw(Leaf.ALERT, b"x")]
    try:
        outcome = receiver.receive(batch)
    except StoreFailed:
        outcome = None
    database.conn = genuine
    return store, calls, receiver, batch, outcome


def test_whichever_statement_fails_nothing_is_acknowledged_or_stored_and_the_batch_can_be_given_again(tmp_path):
    statements = _statements(tmp_path)
    assert statements > 20
    for at in range(1, statements + 1):
        store, _, receiver, batch, outcome = _run_with_failure(tmp_path / f"{at}.db", at=at)
        assert outcome is None, f"statement {at}"
        with store.transaction():
            for table in ("messages", "gateways", "streams", "alerts", "readings", "set_aside"):
                assert store.rows(f"SELECT * FROM {table}") == [], (at, table)
        assert up_to(only_ack(receiver.receive(batch))) == (1, 1)
        store.close()


def test_a_disk_that_is_really_full_gives_no_ack_and_recovers(receiver, store):
    receiver.receive([incoming(telemetry(1))])
    store._database.execute("PRAGMA max_page_count=1")  # SQLite takes the present size for it: not one page more
    big = telemetry(2, readings=tuple(reading(number, volume_ml=number) for number in range(500)))
    with pytest.raises(StoreFailed, match="full"):
        receiver.receive([incoming(big)])
    store._database.execute("PRAGMA max_page_count=1000000")
    assert up_to(only_ack(receiver.receive([incoming(big)]))) == (0, 2)


def test_every_number_the_contract_allows_fits_the_database(receiver, store):
    largest = contract.INTEGER_MAX
    message = msgspec.structs.replace(
        telemetry(1), seq=largest, readings=(reading(1, volume_ml=largest),), epoch="Z" * 26
    )
    receiver.receive([incoming(message)])
    with store.transaction():
        assert store.row("SELECT seq, volume_ml FROM readings") == {"seq": largest, "volume_ml": largest}


def test_evidence_is_kept_whatever_it_holds(receiver, store):
    evidence = {"list": [1, {"deep": None}], "text": "\u0000\u202e水", "big": 10**30, "": -1.5}
    payload = json.loads(contract.encode(alert(1)))
    payload["alert"]["evidence"] = evidence
    receiver.receive([raw(Leaf.ALERT, json.dumps(payload).encode())])
    (event,) = receiver.standing(NOW)
    assert event.alert.evidence == evidence
