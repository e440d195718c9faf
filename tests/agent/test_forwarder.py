"""What leaves the outbox, in which order, how often, and what makes a message go: a real store, a scripted session."""

import asyncio
import json

import msgspec
import pytest
from readings import at, shows
from stores import EPOCH, StoreHere

from agent import forwarder as forwarder_module
from agent.forwarder import Forwarder, Sender
from gateway.broker import BrokerError, Received
from gateway.store import StoreError
from protocols import contract
from protocols.contract import AlertBody, AlertState, Kind, Leaf, Level, State, Stream

SENDER = Sender(county="shenxian", gateway="g-1")


class StillClock:
    def now(self):
        return at(1)


class Session:
    """Records what is published; what the county says comes from `say`."""

    def __init__(self):
        self.sent = []
        self.lost = False
        self.refused = set()
        self._inbox = asyncio.Queue()

    async def publish(self, message):
        await asyncio.sleep(0)
        leaf = message.topic.rsplit("/", 1)[1]
        if self.lost or leaf in self.refused:
            raise BrokerError("gone" if self.lost else f"the broker refuses what we publish on {leaf}: Not authorized")
        self.sent.append((leaf, json.loads(message.payload)))

    async def messages(self):
        while True:
            yield await self._inbox.get()

    def say(self, payload, leaf=Leaf.ACK):
        self._inbox.put_nowait(Received(topic=SENDER.topic(leaf), payload=payload))

    def acknowledge(self, alert=0, telemetry=0, epoch=EPOCH, **more):
        ack = contract.Ack(
            schema=contract.ACK_SCHEMA, epoch=epoch, alert_up_to=alert, telemetry_up_to=telemetry, **more
        )
        self.say(contract.encode(ack))

    def seqs(self, leaf):
        return [message["seq"] for kind, message in self.sent if kind == leaf]


def alert(number, state=AlertState.OPEN):
    return AlertBody(
        id=f"01ARZ3NDEKTSV4RRFFQ69G{number:04d}",
        meter="m-1",
        kind=Kind.LOW_USAGE,
        state=state,
        level=Level.YELLOW,
        since=contract.instant(0),
        at=contract.instant(0),
        historical=False,
        evidence={},
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(forwarder_module, "TELEMETRY_PAUSE_S", 0)


def make(store, **options):
    return Forwarder(
        store=store,
        clock=StillClock(),
        sender=SENDER,
        birth=lambda epoch, oldest: State(
            schema=contract.STATE_SCHEMA, online=True, epoch=epoch, oldest_alert=oldest[Stream.ALERT]
        ),
        county_acknowledges=options.pop("county_acknowledges", True),
        jitter=lambda: 0.5,
    )


class Serving:
    """The forwarder at work on one session."""

    def __init__(self, store, **options):
        self.forwarder = options.pop("forwarder", None) or make(store, **options)
        self.session = Session()

    async def __aenter__(self):
        self._task = asyncio.create_task(self.forwarder.serve(self.session))
        await self.settle()
        return self

    async def settle(self):
        for _ in range(400):
            await asyncio.sleep(0)

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def fill(store, *, alerts=0, cycles=0):
    for cycle in range(cycles):
        store.store.commit([shows("m-1", cycle, 500 + cycle)], [])
    for number in range(alerts):
        store.store.commit([], [alert(number)])


def waiting(store, stream):
    status = store.store.status(stream)
    return status.last_seq - status.acked_seq


async def test_birth_first_then_alerts_then_telemetry(store):
    fill(store, alerts=2, cycles=3)
    async with Serving(store) as serving:
        kinds = [kind for kind, _ in serving.session.sent]
    assert kinds == ["state", "alert", "alert", "telemetry", "telemetry", "telemetry"]


async def test_the_birth_says_from_where_on_messages_are_still_here(store):
    fill(store, alerts=5)
    store.store.acknowledge({Stream.ALERT: 3}, wall_ms=0)
    async with Serving(store) as serving:
        assert serving.session.sent[0][1]["oldest_alert"] == 4


async def test_nothing_leaves_the_store_before_the_county_says_so(store):
    fill(store, alerts=2, cycles=3)
    async with Serving(store) as serving:
        assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (2, 3)
        serving.session.acknowledge(alert=1, telemetry=2)
        await serving.settle()
        assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (1, 1)


async def test_telemetry_in_flight_is_bounded_and_goes_on_with_receipts(store):
    fill(store, cycles=50)
    async with Serving(store) as serving:
        assert serving.session.seqs("telemetry") == list(range(1, 33))
        serving.session.acknowledge(telemetry=10)
        await serving.settle()
        assert serving.session.seqs("telemetry") == list(range(1, 43))


async def test_an_alert_that_comes_during_back_filling_goes_next(store):
    fill(store, cycles=50)
    async with Serving(store) as serving:
        store.store.commit([], [alert(1)])
        serving.forwarder.wake()
        serving.session.acknowledge(telemetry=10)
        await serving.settle()
        kinds = [kind for kind, _ in serving.session.sent]
    assert kinds[33] == "alert"


async def test_a_new_connection_sends_everything_unacknowledged_again(store):
    fill(store, alerts=2)
    async with Serving(store) as serving:
        serving.session.acknowledge(alert=1)
        await serving.settle()
    async with Serving(store) as serving:
        assert serving.session.seqs("alert") == [2]


async def test_what_is_not_acknowledged_is_sent_again(store, monkeypatch):
    monkeypatch.setattr(forwarder_module, "RESEND_S_MIN", {Stream.ALERT: 0.05, Stream.TELEMETRY: 0.05})
    fill(store, alerts=1)
    async with Serving(store) as serving:
        await asyncio.sleep(0.6)
        # Waits of 0.05, 0.1, 0.2, 0.4 s: it must slow down.
        assert 3 <= len(serving.session.seqs("alert")) <= 5
        serving.session.acknowledge(alert=1)
        await serving.settle()
        count = len(serving.session.seqs("alert"))
        await asyncio.sleep(0.3)
        assert len(serving.session.seqs("alert")) == count


async def test_a_receipt_that_should_cover_a_message_and_does_not_shows_a_hole(store, monkeypatch):
    monkeypatch.setattr(forwarder_module, "HOLE_S", 0.05)
    fill(store, cycles=5)
    async with Serving(store) as serving:
        await asyncio.sleep(0.1)
        serving.session.acknowledge(telemetry=0)
        await serving.settle()
        assert serving.session.seqs("telemetry") == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


async def test_an_early_receipt_is_no_hole(store):
    fill(store, cycles=5)
    async with Serving(store) as serving:
        serving.session.acknowledge(telemetry=2)
        await serving.settle()
        serving.session.acknowledge(telemetry=2)
        await serving.settle()
        assert serving.session.seqs("telemetry") == [1, 2, 3, 4, 5]


async def test_a_broker_that_is_enough_empties_the_outbox_by_itself(store):
    fill(store, alerts=1, cycles=3)
    async with Serving(store, county_acknowledges=False):
        assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (0, 0)


async def test_a_lost_connection_ends_the_session_and_keeps_the_messages(store):
    fill(store, alerts=1)
    forwarder, session = make(store), Session()
    session.lost = True
    with pytest.raises(BrokerError):
        await forwarder.serve(session)
    assert waiting(store, Stream.ALERT) == 1


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"schema":"shuiwang/ack/2","epoch":"01ARZ3NDEKTSV4RRFFQ69G5FAV","alert_up_to":1,"telemetry_up_to":1}',
        b'{"schema":"shuiwang/ack/1","epoch":"01ARZ3NDEKTSV4RRFFQ69G5FAV","alert_up_to":-1,"telemetry_up_to":1}',
        b'{"schema":"shuiwang/ack/1","epoch":"01ARZ3NDEKTSV4RRFFQ69G5FAV","alert_up_to":"1"}',
        b"[" * 100_000,
    ],
)
async def test_a_receipt_that_makes_no_sense_deletes_nothing(store, payload):
    fill(store, alerts=1)
    async with Serving(store) as serving:
        serving.session.say(payload)
        await serving.settle()
        assert waiting(store, Stream.ALERT) == 1
        serving.session.acknowledge(alert=1)
        await serving.settle()
        assert waiting(store, Stream.ALERT) == 0


async def test_a_receipt_of_another_epoch_deletes_nothing(store):
    fill(store, alerts=2)
    async with Serving(store) as serving:
        serving.session.acknowledge(alert=2, epoch="01BX5ZZKBKACTAV9WEVGEMMVRZ")
        await serving.settle()
        assert waiting(store, Stream.ALERT) == 2


async def refused(forwarder, session, **receipt):
    """Serve a session until a receipt ends it."""
    session.acknowledge(**receipt)
    with pytest.raises(ExceptionGroup) as caught:
        await forwarder.serve(session)
    assert caught.group_contains(BrokerError, match="rolled back")


async def test_a_receipt_beyond_the_last_message_begins_a_session_with_a_new_epoch(store):
    """The store was rolled back: the county has other messages under these numbers."""
    fill(store, alerts=3, cycles=2)
    store.store.acknowledge({Stream.ALERT: 1}, wall_ms=0)
    forwarder = make(store)
    await refused(forwarder, Session(), alert=7, telemetry=2)
    assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (2, 2)
    async with Serving(store, forwarder=forwarder) as serving:
        sent = serving.session.sent
        (epoch,) = {message["epoch"] for _, message in sent}
        assert epoch == store.store.epoch != EPOCH
        assert (sent[0][0], sent[0][1]["oldest_alert"]) == ("state", 1)
        assert (serving.session.seqs("alert"), serving.session.seqs("telemetry")) == ([1, 2], [1, 2])
        serving.session.acknowledge(alert=3, telemetry=2)  # what the county said of the old epoch, late
        await serving.settle()
        assert waiting(store, Stream.ALERT) == 2
        serving.session.acknowledge(alert=99, telemetry=99, epoch=epoch)  # a county that lies: no second new epoch
        await serving.settle()
        assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (2, 2)
        serving.session.acknowledge(alert=2, telemetry=2, epoch=epoch)
        await serving.settle()
        assert (waiting(store, Stream.ALERT), waiting(store, Stream.TELEMETRY)) == (0, 0)


async def test_a_number_that_the_county_holds_otherwise_begins_a_session_with_a_new_epoch(store):
    fill(store, alerts=2)
    item = contract.NotUnderstood(stream=Stream.ALERT, seq=1, reason="held already", held_otherwise=True)
    await refused(make(store), Session(), alert=0, not_understood=(item,))
    assert waiting(store, Stream.ALERT) == 2
    assert store.store.epoch != EPOCH


async def test_a_broker_that_is_enough_confirms_nothing_of_a_new_epoch_with_an_old_number(store):
    """The old message is on its way while the receipt of a county gives everything new numbers."""
    fill(store, alerts=3)
    store.store.acknowledge({Stream.ALERT: 1}, wall_ms=0)
    forwarder = make(store, county_acknowledges=False)
    await refused(forwarder, Session(), alert=7)
    # At most the messages that the broker confirmed before are gone; what it confirms afterwards are new numbers.
    before = waiting(store, Stream.ALERT)
    await forwarder._acknowledge({Stream.ALERT: 2}, (), epoch=EPOCH)
    assert waiting(store, Stream.ALERT) == before


async def test_what_the_county_could_not_read_is_kept_aside(store):
    fill(store, alerts=1)
    async with Serving(store) as serving:
        item = contract.NotUnderstood(stream=Stream.ALERT, seq=1, reason="`kind` is new to us")
        serving.session.acknowledge(alert=1, not_understood=(item,))
        await serving.settle()
    assert waiting(store, Stream.ALERT) == 0
    assert store.store.set_aside_count() == 1


async def test_a_step_that_was_overtaken_is_marked_historical(store):
    store.store.commit([], [alert(1)])
    store.store.commit([], [alert(1, AlertState.CLEARED)])
    async with Serving(store) as serving:
        bodies = [message["alert"] for kind, message in serving.session.sent if kind == "alert"]
    assert [(body["state"], body["historical"]) for body in bodies] == [("open", True), ("cleared", False)]


async def test_every_message_follows_the_contract(store):
    fill(store, alerts=1, cycles=1)
    store.store.make_room(bytes_max=0)
    fill(store, cycles=1)
    async with Serving(store) as serving:
        for kind, message in serving.session.sent:
            contract.decode(contract.Leaf(kind), msgspec.json.encode(message))
        tombstone = next(message for kind, message in serving.session.sent if kind == "telemetry")
    assert tombstone["dropped"]["readings"] == 1


async def test_no_telemetry_before_the_last_of_many_alerts(store):
    fill(store, alerts=60, cycles=1)
    async with Serving(store) as serving:
        kinds = [kind for kind, _ in serving.session.sent]
    assert kinds == ["state", *["alert"] * 60, "telemetry"]


class Refusing(StoreHere):
    """A store that cannot write, or cannot be read, while `failing` names the method."""

    failing = None

    async def __call__(self, work):
        await asyncio.sleep(0)
        if self.failing and self.failing in _names_in(work):
            raise StoreError("disk I/O error")
        return work(self.store)


def _names_in(work):
    code = getattr(work, "__code__", None)
    return code.co_names if code else repr(work)


@pytest.fixture
def refusing(tmp_path):
    here = Refusing(tmp_path / "store.db")
    yield here
    here.store.close()


async def test_a_receipt_that_cannot_be_stored_ends_nothing_and_is_asked_for_again(refusing, monkeypatch):
    monkeypatch.setattr(forwarder_module, "RESEND_S_MIN", {Stream.ALERT: 0.05, Stream.TELEMETRY: 0.05})
    fill(refusing, alerts=1)
    async with Serving(refusing) as serving:
        refusing.failing = "acknowledge"
        serving.session.acknowledge(alert=1)
        await serving.settle()
        assert waiting(refusing, Stream.ALERT) == 1
        refusing.failing = None
        await asyncio.sleep(0.2)
        assert len(serving.session.seqs("alert")) > 1, "sent again"
        serving.session.acknowledge(alert=1)
        await serving.settle()
        assert waiting(refusing, Stream.ALERT) == 0


async def test_an_outbox_that_cannot_be_read_is_tried_again_without_news(refusing, monkeypatch):
    monkeypatch.setattr(forwarder_module, "RESEND_S_MIN", {Stream.ALERT: 0.05, Stream.TELEMETRY: 0.05})
    fill(refusing, alerts=1)
    refusing.failing = "outgoing"
    async with Serving(refusing) as serving:
        refusing.failing = None
        await asyncio.sleep(0.15)
        assert serving.session.seqs("alert")[:1] == [1]


async def test_a_store_that_cannot_be_read_at_the_start_ends_the_session_only(refusing):
    refusing.failing = "status"
    with pytest.raises(BrokerError, match="outbox cannot be read"):
        await make(refusing).serve(Session())


async def test_back_filling_is_slowed_down(store, monkeypatch):
    monkeypatch.setattr(forwarder_module, "TELEMETRY_PAUSE_S", 0.02)
    fill(store, cycles=50)
    async with Serving(store) as serving:
        await asyncio.sleep(0.2)
        assert 2 <= len(serving.session.seqs("telemetry")) <= 11


def test_waits_for_receipts_grow_up_to_a_limit():
    progress = forwarder_module._Progress(Stream.ALERT, acked_seq=0, now=0.0)
    progress.sent(1, now=0.0)
    waits = []
    for _ in range(20):
        waits.append(progress.resend_in_s(0.0))
        progress.start_again(now=0.0, jitter=0.5)
        progress.sent(1, now=0.0)
    assert waits[0] == forwarder_module.RESEND_S_MIN[Stream.ALERT]
    assert waits == sorted(waits)
    assert waits[-1] == forwarder_module.RESEND_S_MAX


# -- commands and who is away -----------------------------------------------------------------------------------------


def reply_to(payload):
    return contract.Reply(
        schema=contract.REPLY_SCHEMA,
        id=contract.decode_command_id(payload),
        at=contract.instant(0),
        done=True,
        text={"zh": "好", "en": "done"},
    )


def an_id(number):
    return f"01KAM5A00000000000000{number:05d}"


def asks(number):
    """A command, as far as the forwarder looks at it."""
    return json.dumps({"id": an_id(number)}).encode()


def replies(serving):
    return [message["id"] for kind, message in serving.session.sent if kind == "reply"]


class Handling:
    """Answers commands; those in `slow` wait until `hold` is set."""

    def __init__(self, forwarder, *, slow=()):
        self.asked = []
        self.hold = asyncio.Event()
        self._slow = [asks(number) for number in slow]
        forwarder.handle = self.handle

    async def handle(self, payload):
        self.asked.append(payload)
        if payload in self._slow:
            await self.hold.wait()
        return reply_to(payload) if contract.decode_command_id(payload) else None


async def test_a_command_is_answered_on_the_reply_topic(store):
    made = make(store)
    Handling(made)
    async with Serving(store, forwarder=made) as serving:
        serving.session.say(asks(1), Leaf.COMMAND)
        await serving.settle()
        assert replies(serving) == [an_id(1)]


async def test_a_command_that_takes_long_holds_nothing_up(store):
    made = make(store)
    handling = Handling(made, slow=[1])
    async with Serving(store, forwarder=made) as serving:
        for payload in (asks(1), b"nobody", asks(2)):
            serving.session.say(payload, Leaf.COMMAND)
        store.store.commit([shows("m-1", 1, 1)], [alert(1)])
        serving.forwarder.wake()
        await serving.settle()
        assert serving.session.seqs("alert") == [1]
        assert replies(serving) == [an_id(2)]
        serving.session.acknowledge(alert=1)
        await serving.settle()
        assert store.store.status(Stream.ALERT).acked_seq == 1
        handling.hold.set()
        await serving.settle()
        assert replies(serving) == [an_id(2), an_id(1)]


async def test_a_slow_command_that_is_repeated_keeps_no_other_out_and_is_answered_once(store, caplog):
    """A county repeats a read_now every 5 s for its 360 s."""
    made = make(store)
    handling = Handling(made, slow=[1])
    async with Serving(store, forwarder=made) as serving:
        for _ in range(forwarder_module.ANSWERS_MAX + 8):
            serving.session.say(asks(1), Leaf.COMMAND)
        serving.session.say(asks(2), Leaf.COMMAND)
        await serving.settle()
        assert replies(serving) == [an_id(2)]
        assert "command_dropped" not in caplog.text
        handling.hold.set()
        await serving.settle()
        assert replies(serving) == [an_id(2), an_id(1)]
        serving.session.say(asks(1), Leaf.COMMAND)
        await serving.settle()
        assert replies(serving) == [an_id(2), an_id(1), an_id(1)], "the reply may have been lost"


async def test_a_command_that_was_under_way_when_the_connection_was_lost_is_answered_on_the_next(store):
    made = make(store)
    handling = Handling(made, slow=[1])
    async with Serving(store, forwarder=made) as serving:
        serving.session.say(asks(1), Leaf.COMMAND)
        await serving.settle()
    async with Serving(store, forwarder=made) as serving:
        serving.session.say(asks(1), Leaf.COMMAND)
        handling.hold.set()
        await serving.settle()
        assert replies(serving) == [an_id(1)]


async def test_more_commands_at_once_than_can_be_answered_are_dropped_and_said(store, caplog):
    made = make(store)
    handling = Handling(made, slow=range(1000))
    async with Serving(store, forwarder=made) as serving:
        for number in range(forwarder_module.ANSWERS_MAX + 1):
            serving.session.say(asks(number), Leaf.COMMAND)
        await serving.settle()
        assert caplog.text.count("command_dropped") == 1
        handling.hold.set()
        await serving.settle()
        serving.session.say(asks(999), Leaf.COMMAND)
        await serving.settle()
        assert len(replies(serving)) == forwarder_module.ANSWERS_MAX + 1
        assert an_id(999) in replies(serving)


async def test_a_broker_that_takes_no_replies_costs_the_replies_alone(store, caplog):
    """Access rules from before there were commands."""
    made = make(store)
    handling = Handling(made)
    async with Serving(store, forwarder=made) as serving:
        serving.session.refused = {"reply"}
        for number in range(3):
            serving.session.say(asks(number), Leaf.COMMAND)
        await serving.settle()
        fill(store, alerts=1)
        serving.forwarder.wake()
        await serving.settle()
        assert (len(handling.asked), replies(serving), serving.session.seqs("alert")) == (3, [], [1])
        assert caplog.text.count("reply_refused") == 1, "a change is logged once"
        serving.session.refused = set()
        serving.session.say(asks(4), Leaf.COMMAND)
        await serving.settle()
        assert replies(serving) == [an_id(4)]
        serving.session.refused = {"reply"}
        serving.session.say(asks(5), Leaf.COMMAND)
        await serving.settle()
        assert caplog.text.count("reply_refused") == 2, "and so is the next change"


async def test_a_command_is_no_acknowledgement_and_the_other_way_round(store, caplog):
    made = make(store)
    asked = []

    async def handle(payload):
        asked.append(payload)

    made.handle = handle
    store.store.commit([], [alert(1)])
    async with Serving(store, forwarder=made) as serving:
        ack = contract.encode(contract.Ack(schema=contract.ACK_SCHEMA, epoch=EPOCH, alert_up_to=1))
        serving.session.say(ack, Leaf.COMMAND)
        await serving.settle()
        assert store.store.status(Stream.ALERT).acked_seq == 0
        assert asked == [ack]
        serving.session.say(b"{}")
        await serving.settle()
        assert asked == [ack]


async def test_a_birth_is_published_anew_when_somebody_goes_away(store):
    state = {"absences": ()}
    made = make(store)
    made._birth = lambda epoch, oldest: State(
        schema=contract.STATE_SCHEMA, online=True, epoch=epoch, oldest_alert=oldest[Stream.ALERT], **state
    )
    async with Serving(store, forwarder=made) as serving:
        assert len([kind for kind, _ in serving.session.sent if kind == "state"]) == 1
        away = contract.AbsenceNotice(meter="m-1", start=contract.instant(0), until=contract.instant(1))
        state["absences"] = (away,)
        store.store.commit([], [alert(1)])
        serving.forwarder.wake()
        await serving.settle()
        serving.session.acknowledge(alert=1)
        await serving.settle()
        serving.forwarder.announce()
        serving.forwarder.announce()
        await serving.settle()
        births = [message for kind, message in serving.session.sent if kind == "state"]
        assert len(births) == 2, "two changes at once are one message"
        assert births[1]["absences"] == [{"meter": "m-1", "from": contract.instant(0), "until": contract.instant(1)}]
        assert births[1]["oldest_alert"] == 2, "how far the county has come by now"
        assert births[1]["epoch"] == EPOCH
