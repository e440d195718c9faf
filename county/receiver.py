"""What the county does with messages: check, store each exactly once, then say what may be acknowledged.

No network here. `Receiver.receive` takes a batch in any order, with holes and repetitions, and returns only after the
commit; what it returns may be published, and published again. The rules, in the order in which a message meets them:

1. A topic that is not the contract's, or a message whose number cannot be read, is set aside and not acknowledged.
2. A numbered message that cannot be understood is stored as it came, takes its place in the stream, and every
   acknowledgement names it as `not_understood`. The same number, understood later, takes that place over.
3. A number that is held already is dropped and acknowledged again. If it says something else than the one held, the
   gateway counts twice (a copied memory card, an old one put back): it is set aside, named as `not_understood` with
   `held_otherwise`, and told.
4. `up_to` ends before the first hole. Only a birth that names its `oldest_…` message can move it across one.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from county.events import Event, GatewayChange, MessageSetAside, MessagesSkipped, ReadingsDropped
from county.ingest import (
    alert_event,
    same_content,
    store_absences,
    store_alert,
    store_command,
    store_reply,
    store_telemetry,
)
from county.store import Store
from protocols import contract
from protocols.contract import Ack, Alert, Leaf, NotUnderstood, Reply, State, Stream, Telemetry, Topic
from protocols.errors import ContractError

# Set aside is what nobody asked for: bounded, so that a broken or hostile sender cannot fill the county's disk.
SET_ASIDE_ROWS_MAX: Final = 10_000
SET_ASIDE_BYTES_MAX: Final = 64 * 1024 * 1024
# Every acknowledgement repeats the newest of these, and of what is held otherwise, because the one that named them
# first may have been lost.
NOT_UNDERSTOOD_REPEATED: Final = 20
# Long enough for every text of ours; a hostile payload may be quoted in a reason.
REASON_CHARACTERS_MAX: Final = 300
EVICTED_COUNTER: Final = "set_aside_evicted"


class Incoming(msgspec.Struct, frozen=True, kw_only=True):
    """One message as the broker delivered it. `retained`: the broker kept it, so it says nothing about now."""

    topic: str
    payload: bytes
    received_at: str
    retained: bool = False


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """One message to publish."""

    topic: str
    payload: bytes


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What follows from a batch that is now committed."""

    acks: tuple[Outgoing, ...]
    events: tuple[Event, ...]


class _Source(msgspec.Struct, frozen=True, kw_only=True):
    """One epoch of one gateway: what an acknowledgement speaks of."""

    county: str
    gateway: str
    epoch: str

    def key(self, stream: Stream) -> tuple[str, str, str, Stream]:
        return self.county, self.gateway, self.epoch, stream


_Named = dict[tuple[Stream, int], NotUnderstood]


class _Batch:
    """What one batch has collected so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.touched: dict[_Source, _Named] = {}  # with what was not understood just now
        self.set_aside: dict[tuple[str, str], MessageSetAside] = {}

    def touch(self, source: _Source) -> _Named:
        return self.touched.setdefault(source, {})


class Receiver:
    """Turns batches of messages into rows, acknowledgements and events. Belongs to the thread of its store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def receive(self, messages: Sequence[Incoming]) -> Outcome:
        """Store a batch and return what may now be acknowledged.

        Raises StoreFailed where the batch is not committed: then nothing may be acknowledged, and the same batch may
        be given again.
        """
        batch = _Batch()
        with self._store.transaction():
            for message in messages:
                self._take(message, batch)
            acks = tuple(self._ack(source, named) for source, named in batch.touched.items())
            if batch.set_aside:
                self._bound_set_aside()
        return Outcome(acks=acks, events=(*batch.events, *batch.set_aside.values()))

    def standing(self, received_at: str) -> tuple[Event, ...]:
        """Return the alerts that are open in the database now, red ones first."""
        with self._store.transaction():
            rows = self._store.rows("SELECT * FROM alerts WHERE state <> 'cleared' ORDER BY level, since")
        return tuple(alert_event(row, received_at=received_at, standing=True) for row in rows)

    def _take(self, message: Incoming, batch: _Batch) -> None:
        try:
            topic = contract.parse_topic(message.topic)
            if topic.leaf is Leaf.ACK:
                raise ContractError(f"topic {message.topic!r} carries what the county says, not what it hears")
        except ContractError as error:
            self._set_aside(message, str(error), batch, topic=None)
            return
        try:
            decoded = contract.decode(topic.leaf, message.payload)
            if isinstance(decoded, Telemetry | Alert) and decoded.gateway != topic.gateway:
                raise ContractError(f"{topic.leaf}: gateway {decoded.gateway!r} on the topic of {topic.gateway!r}")
        except ContractError as error:
            self._take_not_understood(message, topic, _short(str(error)), batch)
            return
        match decoded:
            case State():
                self._take_state(message, topic, decoded, batch)
            case Telemetry() | Alert():
                self._take_numbered(message, topic, decoded, batch)
            case Reply():
                self._saw(topic, message)
                answered = store_reply(self._store, topic, decoded, received_at=message.received_at)
                batch.events += [answered] if answered else []
            case Ack():
                raise AssertionError("refused above")
            case _:
                store_command(self._store, topic, decoded, received_at=message.received_at)

    def _take_numbered(self, message: Incoming, topic: Topic, decoded: Telemetry | Alert, batch: _Batch) -> None:
        """Store an understood message and its content, or drop it as a repetition."""
        source = _Source(county=topic.county, gateway=topic.gateway, epoch=decoded.epoch)
        stream = Stream(topic.leaf)
        batch.touch(source)
        self._saw(topic, message)
        self._store.know(source.key(stream))
        held = self._store.row(
            "SELECT payload, not_understood FROM messages"
            " WHERE county=? AND gateway=? AND epoch=? AND stream=? AND seq=?",
            *source.key(stream),
            decoded.seq,
        )
        if held and held["not_understood"] is None:
            if not same_content(decoded, topic.leaf, held["payload"]):
                reason = f"{stream} {decoded.seq} of epoch {decoded.epoch} is held already and says something else"
                self._set_aside(message, reason, batch, topic=topic)
                place = dict(zip(("county", "gateway", "epoch", "stream"), source.key(stream), strict=True))
                self._store.insert("held_otherwise", place | {"seq": decoded.seq, "reason": reason})
                batch.touch(source)[stream, decoded.seq] = NotUnderstood(
                    stream=stream, seq=decoded.seq, reason=reason, held_otherwise=True
                )
            return
        self._store_message(message, source, stream, decoded.seq, not_understood=None)
        if isinstance(decoded, Alert):
            event = store_alert(self._store, topic, decoded, received_at=message.received_at)
            batch.events.append(event)
        else:
            store_telemetry(self._store, topic, decoded)
            if decoded.dropped:
                batch.events.append(
                    ReadingsDropped(
                        county=topic.county,
                        gateway=topic.gateway,
                        received_at=message.received_at,
                        readings=decoded.dropped.readings,
                        start=decoded.dropped.start,
                        end=decoded.dropped.end,
                    )
                )

    def _take_not_understood(self, message: Incoming, topic: Topic, reason: str, batch: _Batch) -> None:
        """Keep what cannot be read; where its number can be, it takes its place in the stream."""
        if topic.leaf is not Leaf.COMMAND:
            self._saw(topic, message)
        number = contract.decode_number(message.payload) if topic.leaf in {Leaf.TELEMETRY, Leaf.ALERT} else None
        if number is None:
            self._set_aside(message, reason, batch, topic=topic)
            return
        source = _Source(county=topic.county, gateway=topic.gateway, epoch=number.epoch)
        stream = Stream(topic.leaf)
        batch.touch(source)[stream, number.seq] = NotUnderstood(stream=stream, seq=number.seq, reason=reason)
        if self._store_message(message, source, stream, number.seq, not_understood=reason):
            self._set_aside(message, reason, batch, topic=topic)

    def _store_message(
        self, message: Incoming, source: _Source, stream: Stream, seq: int, *, not_understood: str | None
    ) -> bool:
        """Put a message into its place; return False where the place is taken. What is understood takes it over."""
        row = {
            "county": source.county,
            "gateway": source.gateway,
            "epoch": source.epoch,
            "stream": stream,
            "seq": seq,
            "received_at": message.received_at,
            "payload": _bounded(message.payload),
            "not_understood": not_understood,
        }
        if not_understood is None:
            self._store.replace("messages", row)
            return True
        return self._store.insert("messages", row)

    def _take_state(self, message: Incoming, topic: Topic, state: State, batch: _Batch) -> None:
        """Note that a gateway came or went; a birth is answered with what is stored of its epoch."""
        key = (topic.county, topic.gateway)
        self._store.insert("gateways", {"county": topic.county, "gateway": topic.gateway})
        before = self._store.row("SELECT online, epoch FROM gateways WHERE county=? AND gateway=?", *key)
        assert before is not None
        self._store.change(
            "UPDATE gateways SET online=?, epoch=coalesce(?, epoch), agent=coalesce(?, agent),"
            " boot_id=coalesce(?, boot_id), meters=coalesce(?, meters), reason=?, state_at=?"
            " WHERE county=? AND gateway=?",
            int(state.online),
            state.epoch,
            state.agent,
            state.boot_id,
            state.meters,
            state.reason,
            message.received_at,
            *key,
        )
        new_store = None not in (before["epoch"], state.epoch) and before["epoch"] != state.epoch
        if before["online"] != int(state.online) or new_store:
            change = GatewayChange(
                county=topic.county,
                gateway=topic.gateway,
                received_at=message.received_at,
                online=state.online,
                new_store=new_store,
                reason=state.reason,
                agent=state.agent,
                meters=state.meters,
            )
            batch.events.append(change)
        if state.online:
            self._saw(topic, message)
            batch.events += store_absences(self._store, topic, state.absences, received_at=message.received_at)
        if state.epoch is not None and state.online:
            source = _Source(county=topic.county, gateway=topic.gateway, epoch=state.epoch)
            batch.touch(source)
            for stream, oldest in ((Stream.ALERT, state.oldest_alert), (Stream.TELEMETRY, state.oldest_telemetry)):
                self._skip_to(oldest or 1, source, stream, message, batch)

    def _skip_to(self, oldest: int, source: _Source, stream: Stream, message: Incoming, batch: _Batch) -> None:
        """Do not wait for what the gateway no longer holds."""
        first = self._store.advance(source.key(stream)) + 1
        if oldest <= first:
            return
        self._store.advance(source.key(stream), at_least=oldest - 1)
        place = {"county": source.county, "gateway": source.gateway}
        skipped = {"first": first, "last": oldest - 1, "received_at": message.received_at}
        self._store.insert("skipped", place | {"epoch": source.epoch, "stream": stream} | skipped)
        batch.events.append(
            MessagesSkipped(
                county=source.county,
                gateway=source.gateway,
                received_at=message.received_at,
                stream=stream,
                first=first,
                last=oldest - 1,
            )
        )

    def _saw(self, topic: Topic, message: Incoming) -> None:
        """Note the last contact; what the broker retained is no contact."""
        self._store.insert("gateways", {"county": topic.county, "gateway": topic.gateway})
        if not message.retained:
            self._store.change(
                "UPDATE gateways SET last_seen_at=max(coalesce(last_seen_at, ''), ?) WHERE county=? AND gateway=?",
                message.received_at,
                topic.county,
                topic.gateway,
            )

    def _set_aside(self, message: Incoming, reason: str, batch: _Batch, *, topic: Topic | None) -> None:
        payload = _bounded(message.payload)
        reason = _short(reason)
        shown_topic = _short(message.topic)
        self._store.insert(
            "set_aside",
            {
                "topic": shown_topic,
                "payload": payload,
                "bytes": len(message.payload),
                "reason": reason,
                "received_at": message.received_at,
            },
        )
        before = batch.set_aside.get((shown_topic, reason))
        batch.set_aside[shown_topic, reason] = MessageSetAside(
            county=topic.county if topic else "",
            gateway=topic.gateway if topic else "",
            received_at=message.received_at,
            topic=shown_topic,
            reason=reason,
            count=before.count + 1 if before else 1,
        )

    def _bound_set_aside(self) -> None:
        """Let the oldest go where there are too many or they are too big, and count them."""
        evicted = self._store.change(
            "DELETE FROM set_aside WHERE id <= (SELECT coalesce(max(id), 0) FROM set_aside) - ?", SET_ASIDE_ROWS_MAX
        )
        # From the newest to the oldest, until the bytes are spent; everything from there on goes.
        evicted += self._store.change(
            "DELETE FROM set_aside WHERE id <= coalesce((SELECT max(id) FROM (SELECT id,"
            " sum(min(bytes, ?)) OVER (ORDER BY id DESC) AS spent FROM set_aside) WHERE spent > ?), 0)",
            contract.PAYLOAD_BYTES_MAX,
            SET_ASIDE_BYTES_MAX,
        )
        if evicted:
            self._store.count(EVICTED_COUNTER, add=evicted)

    def _ack(self, source: _Source, named: _Named) -> Outgoing:
        """Return what is stored of an epoch, as its gateway is told."""
        repeated = self._store.rows(
            "SELECT stream, seq, not_understood AS reason FROM messages WHERE county=? AND gateway=? AND epoch=?"
            " AND not_understood IS NOT NULL ORDER BY rowid DESC LIMIT ?",
            source.county,
            source.gateway,
            source.epoch,
            NOT_UNDERSTOOD_REPEATED,
        )
        repeated += self._store.rows(
            "SELECT stream, seq, reason, 1 AS held_otherwise FROM held_otherwise"
            " WHERE county=? AND gateway=? AND epoch=? ORDER BY rowid DESC LIMIT ?",
            source.county,
            source.gateway,
            source.epoch,
            NOT_UNDERSTOOD_REPEATED,
        )
        earlier = (
            NotUnderstood(
                stream=Stream(row["stream"]),
                seq=int(row["seq"]),
                reason=str(row["reason"]),
                held_otherwise="held_otherwise" in row,
            )
            for row in repeated
        )
        all_named = {(item.stream, item.seq): item for item in earlier} | named
        ack = Ack(
            schema=contract.ACK_SCHEMA,
            epoch=source.epoch,
            alert_up_to=self._store.advance(source.key(Stream.ALERT)),
            telemetry_up_to=self._store.advance(source.key(Stream.TELEMETRY)),
            not_understood=tuple(all_named[number] for number in sorted(all_named)),
        )
        topic = contract.topic(source.county, source.gateway, Leaf.ACK)
        return Outgoing(topic=topic, payload=contract.encode(ack))


def _bounded(payload: bytes) -> bytes:
    """Return what is kept of a payload: all that the contract allows, and the beginning of what it does not."""
    return payload[: contract.PAYLOAD_BYTES_MAX]


def _short(text: str) -> str:
    """Return a text that fits a line; what is cut off is marked."""
    return text if len(text) <= REASON_CHARACTERS_MAX else text[: REASON_CHARACTERS_MAX - 1] + "…"
