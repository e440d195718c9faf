"""What the county keeps besides readings and alerts: words of a step, who is away, what was asked and answered."""

import json

import msgspec
import pytest
from samples import (
    COUNTY,
    EPISODE,
    GATEWAY,
    LATER_EPOCH,
    NOW,
    alert,
    away,
    birth,
    incoming,
    raw,
    reply,
    resolve,
    will,
)

from county.events import AbsenceChange, AlertStep, CommandAnswered, MessageSetAside
from county.schema import MIGRATIONS
from county.store import Store
from protocols import contract
from protocols.contract import Daily, Ending, Leaf, PresentCommand, Transition

TEXT = {"zh": "请上门查看。", "en": "Please go and see."}


def rows(store, sql):
    with store.transaction():
        return store.rows(sql)


def events(receiver, *messages, kind):
    return [event for event in receiver.receive(messages).events if isinstance(event, kind)]


# -- alerts -----------------------------------------------------------------------------------------------------------


def test_what_a_step_says_is_kept_and_told_again_at_the_next_start(receiver, store):
    red = alert(1, "escalated", level="red", transition=Transition.ESCALATED, text=TEXT)
    (step,) = events(receiver, incoming(red), kind=AlertStep)
    (standing,) = receiver.standing(NOW)
    assert (step.alert, standing.alert) == (red.alert, red.alert)
    assert [json.loads(row["text"]) for row in rows(store, "SELECT text FROM alert_steps")] == [TEXT]


def test_an_alert_of_an_older_gateway_has_no_words(receiver):
    receiver.receive([incoming(alert(1))])
    (standing,) = receiver.standing(NOW)
    assert (standing.alert.transition, standing.alert.text) == (None, None)


def test_a_reminder_is_a_step_of_its_own(receiver, store):
    reminded = alert(2, "open", level="red", transition=Transition.REMINDED, text=TEXT)
    told = events(receiver, incoming(alert(1, level="red")), incoming(reminded), kind=AlertStep)
    assert [step.alert.transition for step in told] == [None, Transition.REMINDED]
    assert len(rows(store, "SELECT * FROM alert_steps")) == 2
    assert len(rows(store, "SELECT * FROM alerts")) == 1


def test_what_stands_at_a_start_is_told_red_first(receiver):
    receiver.receive(
        [
            incoming(alert(1, episode="1" * 26, since="2026-11-21T01:00:00.000Z")),
            incoming(alert(2, episode="2" * 26, since="2026-11-21T02:00:00.000Z", level="red")),
        ]
    )
    assert [event.alert.id[0] for event in receiver.standing(NOW)] == ["2", "1"]


# -- who is away ------------------------------------------------------------------------------------------------------


def test_who_is_away_is_what_the_newest_state_says_and_each_change_is_told(receiver, store):
    quiet = away("m-002", daily=Daily(start="22:00", end="06:00"))
    told = events(receiver, incoming(birth(absences=(away(), quiet))), kind=AbsenceChange)
    assert [event.absence for event in told] == [away(), quiet]
    assert events(receiver, incoming(birth(absences=(away(), quiet))), kind=AbsenceChange) == [], "nothing new"
    ended = away(ended_at=NOW, ended_by=Ending.USE)
    told = events(receiver, incoming(birth(absences=(ended, quiet))), kind=AbsenceChange)
    assert [event.absence for event in told] == [ended]
    assert [row["ended_by"] for row in rows(store, "SELECT * FROM absences ORDER BY meter")] == ["use", None]
    receiver.receive([incoming(will())])
    assert len(rows(store, "SELECT * FROM absences")) == 2, "a gateway that is gone does not bring anybody back"
    receiver.receive([incoming(birth())])
    assert rows(store, "SELECT * FROM absences") == []


@pytest.mark.parametrize("is_open_first", [False, True])
def test_two_declarations_of_the_same_days_are_told_as_one_and_once(receiver, store, is_open_first):
    """Somebody declared it twice: the first was replaced, and the gateway tells of both at every birth."""
    quiet = away("m-002", daily=Daily(start="22:00", end="06:00"))
    replaced = away(ended_at=NOW, ended_by=Ending.REPLACED)
    both = (away(), replaced) if is_open_first else (replaced, away())
    told = events(receiver, incoming(birth(absences=(*both, quiet))), kind=AbsenceChange)
    assert [event.absence for event in told] == [away(), quiet]
    for _connect in range(3):
        assert events(receiver, incoming(birth(absences=(*both, quiet))), kind=AbsenceChange) == []
    assert [row["ended_by"] for row in rows(store, "SELECT * FROM absences ORDER BY meter")] == [None, None]
    ended = away(ended_at=NOW, ended_by=Ending.USE)
    told = events(receiver, incoming(birth(absences=(replaced, ended, quiet))), kind=AbsenceChange)
    assert [event.absence for event in told] == [ended]


def test_each_gateway_speaks_of_its_own_meters(receiver, store):
    receiver.receive([incoming(birth(absences=(away(),))), incoming(birth(absences=(away(),)), gateway="g-2")])
    receiver.receive([incoming(birth(), gateway="g-2")])
    assert [row["gateway"] for row in rows(store, "SELECT * FROM absences")] == [GATEWAY]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_what_was_asked_and_answered_is_kept_and_told_once(receiver, store):
    asked = resolve(result="false", why="at a neighbour's")
    told = events(
        receiver, incoming(asked), incoming(asked), incoming(reply()), incoming(reply()), kind=CommandAnswered
    )
    assert told == [
        CommandAnswered(
            county=COUNTY,
            gateway=GATEWAY,
            received_at=NOW,
            id=asked.id,
            done=True,
            do="resolve",
            alert=EPISODE,
            result="false",
            text={"zh": "已记录", "en": "noted"},
        )
    ]
    (row,) = rows(store, "SELECT * FROM commands")
    assert (row["do"], row["result"], row["why"], row["done"], row["heard_at"], row["replied_at"]) == (
        "resolve",
        "false",
        "at a neighbour's",
        1,
        NOW,
        NOW,
    )
    assert contract.decode(Leaf.COMMAND, row["body"].encode()) == asked
    assert contract.decode(Leaf.REPLY, row["reply"].encode()) == reply()


def test_a_reply_may_be_heard_before_its_command(receiver, store):
    (told,) = events(receiver, incoming(reply()), kind=CommandAnswered)
    assert (told.do, told.alert) == (None, None)
    receiver.receive([incoming(resolve())])
    (row,) = rows(store, "SELECT * FROM commands")
    assert (row["do"], row["done"]) == ("resolve", 1)


def test_a_command_that_could_not_be_done_may_be_done_later_and_then_stays_done(receiver, store):
    messages = [resolve(), reply(reason="failed"), reply(reason="failed"), reply(), reply(reason="late")]
    told = events(receiver, *map(incoming, messages), kind=CommandAnswered)
    assert [(event.done, event.reason) for event in told] == [(False, "failed"), (True, None)]
    (row,) = rows(store, "SELECT * FROM commands")
    assert (row["done"], row["reason"]) == (1, None)


def test_commands_and_replies_need_no_acknowledgement_and_no_gateway_is_heard_in_a_command(receiver, store):
    outcome = receiver.receive([incoming(resolve())])
    assert outcome.acks == ()
    assert rows(store, "SELECT * FROM gateways") == []
    assert receiver.receive([incoming(reply())]).acks == ()
    assert [row["last_seen_at"] for row in rows(store, "SELECT * FROM gateways")] == [NOW]


@pytest.mark.parametrize("leaf", [Leaf.COMMAND, Leaf.REPLY])
@pytest.mark.parametrize("payload", [b"", b"{}", b"\xff", b'{"epoch":"01KAM3ZJ5V0000000000000000","seq":1}'])
def test_what_is_neither_command_nor_reply_is_set_aside_and_stops_nothing(receiver, store, leaf, payload):
    outcome = receiver.receive([raw(leaf, payload), incoming(alert(1))])
    assert [event.topic for event in outcome.events if isinstance(event, MessageSetAside)] == [
        contract.topic(COUNTY, GATEWAY, leaf)
    ]
    assert len(outcome.acks) == 1, "of the alert: such a message has no number"
    assert rows(store, "SELECT epoch FROM messages WHERE epoch = '" + LATER_EPOCH + "'") == []


def test_every_command_of_the_contract_can_be_kept(receiver, store):
    present = PresentCommand(schema=contract.COMMAND_SCHEMA, id="0" * 26, deadline=NOW, meter="m-001")
    receiver.receive([incoming(present), incoming(resolve())])
    found = rows(store, "SELECT do, meter, alert FROM commands ORDER BY do")
    assert found == [
        {"do": "present", "meter": "m-001", "alert": None},
        {"do": "resolve", "meter": None, "alert": EPISODE},
    ]


# -- the database -----------------------------------------------------------------------------------------------------


def test_a_database_from_before_commands_is_brought_up_to_date(tmp_path, receiver, store):
    """As the version before made it: its alerts stay, and have no words."""
    receiver.receive([incoming(alert(1))])
    with store.transaction():
        store.change("DROP TABLE absences")
        store.change("DROP TABLE commands")
        for table in ("alerts", "alert_steps"):
            for column in ("transition", "text"):
                store.change(f"ALTER TABLE {table} DROP COLUMN {column}")
        store.change("DELETE FROM _sqlite_migrations WHERE name = 'm0003_commands_and_absences'")
    store.close()
    for _ in range(2):
        again = Store(tmp_path / "county.db")
        assert MIGRATIONS.pending(again._database) == []
        with again.transaction():
            (row,) = again.rows("SELECT * FROM alerts")
            assert again.rows("SELECT * FROM commands") == []
        again.close()
    assert (row["id"], row["text"], row["transition"]) == (EPISODE, None, None)
    store._database = Store(tmp_path / "county.db")._database  # for the fixture to close


def test_an_event_is_json(receiver):
    (told,) = events(receiver, incoming(birth(absences=(away(),))), kind=AbsenceChange)
    text = json.loads(msgspec.json.encode(told))
    assert (text["event"], text["absence"]["meter"]) == ("absence", "m-001")
