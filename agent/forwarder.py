"""Brings the outbox to the county: alerts first, in order, again and again until the county says that it has them.

1. A message leaves the store only when the county acknowledges it (`acknowledgement = "broker"`: when the broker does).
2. While an alert waits to be sent, no telemetry is.
3. On a new connection everything that is not acknowledged is sent again. So it is when acknowledgements stay away,
   after waits that double, and when one comes that should cover a message and does not: the county has a hole there.
4. Telemetry in flight is bounded, so that back-filling a week does not drown what is new, nor the county.
5. What the county asks (commands) is answered beside all this, over the same connection, and holds nothing up.
"""

import asyncio
import logging
import operator
import random
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from agent.pipeline import StoreCalls
from gateway.broker import BrokerError, Message, Received, Session
from gateway.clock import Clock
from gateway.store import Outgoing, StoreError, StoreRolledBack
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import Ack, Alert, Leaf, Reply, State, Stream, Telemetry, TelemetryReading
from protocols.errors import ContractError
from protocols.reading import Reading

log = logging.getLogger(__name__)

ALERTS_PER_LOOK: Final = 50
TELEMETRY_IN_FLIGHT_MAX: Final = 32
# At most so many telemetry messages a second: a week of 5-minute cycles goes out in under two minutes.
TELEMETRY_PAUSE_S: Final = 0.05
RESEND_S_MIN: Final = {Stream.ALERT: 10.0, Stream.TELEMETRY: 30.0}
RESEND_S_MAX: Final = 300.0
# A receipt that comes so long after a message was sent and does not cover it means that the message was lost. Longer
# than a county takes to store a batch, so that a slow county is not sent everything twice.
HOLE_S: Final = 3.0
# Beyond so many commands at once the rest are dropped: the county repeats what it has no reply to. The replies go over
# the connection of the alerts, and each read_now may keep a meter's line for seconds.
ANSWERS_MAX: Final = 64
# What a confused county makes us say is said so often at most, until the next start.
MENTIONS_MAX: Final = 100


class Sender(msgspec.Struct, frozen=True, kw_only=True):
    """Who sends: what stands in every topic."""

    county: str
    gateway: str

    def topic(self, leaf: Leaf) -> str:
        """Return the topic of our messages of one kind."""
        return contract.topic(self.county, self.gateway, leaf)


class _Progress:
    """How far one stream has been sent on this connection, and when it is time to send it again."""

    def __init__(self, stream: Stream, *, acked_seq: int, now: float) -> None:
        self.stream = stream
        self.acked_seq = acked_seq
        self.sent_seq = acked_seq
        self._wait_s = RESEND_S_MIN[stream]
        self._moved_at = self._oldest_sent_at = now

    def sent(self, seq: int, *, now: float) -> None:
        if seq != self.sent_seq + 1:
            return  # a receipt meanwhile made us start again from an earlier one
        if seq == self.acked_seq + 1:
            self._oldest_sent_at = now
        self.sent_seq = seq
        self._moved_at = now

    def acknowledged(self, seq: int, *, now: float) -> None:
        """Note what the county has; what it should have by now and has not is to be sent again."""
        if seq > self.acked_seq:
            self.acked_seq = seq
            self.sent_seq = max(self.sent_seq, seq)
            self._wait_s = RESEND_S_MIN[self.stream]
            self._moved_at = self._oldest_sent_at = now
        elif self.sent_seq > self.acked_seq and now - self._oldest_sent_at > HOLE_S:
            self.sent_seq = self.acked_seq

    def resend_in_s(self, now: float) -> float | None:
        """Return in how many seconds what is unacknowledged should be sent again, None where nothing is."""
        return self._moved_at + self._wait_s - now if self.sent_seq > self.acked_seq else None

    def start_again(self, *, now: float, jitter: float) -> None:
        self.sent_seq = self.acked_seq
        self._moved_at = now
        self._wait_s = min(self._wait_s * (1.5 + jitter), RESEND_S_MAX)


class Forwarder:
    """Serves one broker session after another from the store."""

    def __init__(
        self,
        *,
        store: StoreCalls,
        clock: Clock,
        sender: Sender,
        birth: Callable[[str, dict[Stream, int]], State],
        county_acknowledges: bool,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`birth` makes a connection's first message from the epoch and each stream's oldest seq that is still here.

        `handle`, where set, answers a command of the county; it never raises.
        """
        self._store = store
        self._clock = clock
        self._sender = sender
        self._epoch = ""
        self._birth = birth
        self._county_acknowledges = county_acknowledges
        self.handle: Callable[[bytes], Awaitable[Reply | None]] | None = None
        self._jitter = jitter
        self._news = asyncio.Event()
        self._changed = asyncio.Event()
        self._answering: set[str | None] = set()  # ids of the commands whose replies this connection waits for
        self._commands_dropped = 0
        self._replies_refused = False
        self._progress: dict[Stream, _Progress] = {}
        self._foreign_epochs: set[str] = set()
        self._invalid_acks = 0
        self._not_understood: set[tuple[Stream, int]] = set()

    def wake(self) -> None:
        """Say that the outbox has something new."""
        self._news.set()

    def announce(self) -> None:
        """Say that what a birth tells has changed (who is away): it is published anew, retained."""
        self._changed.set()

    async def serve(self, session: Session) -> None:
        """Send and listen until the connection is lost: raises BrokerError (in a group)."""
        now = _now()
        # The epoch may have changed since the last session: see `Store.acknowledge`.
        self._epoch = await self._store(operator.attrgetter("epoch"))
        for stream in Stream:
            try:
                status = await self._store(operator.methodcaller("status", stream))
            except StoreError as error:
                raise BrokerError(f"the outbox cannot be read: {error}") from error  # ends the session, not the service
            self._progress[stream] = _Progress(stream, acked_seq=status.acked_seq, now=now)
        self._changed.clear()
        await self._publish_birth(session)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(session, tasks), name="forwarder-listen")
            tasks.create_task(self._send(session), name="forwarder-send")
            tasks.create_task(self._announce(session), name="forwarder-announce")

    async def _publish_birth(self, session: Session) -> None:
        birth = self._birth(self._epoch, {stream: each.acked_seq + 1 for stream, each in self._progress.items()})
        message = Message(topic=self._sender.topic(Leaf.STATE), payload=contract.encode(birth), retain=True)
        await session.publish(message)

    async def _announce(self, session: Session) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish_birth(session)

    async def _send(self, session: Session) -> None:
        while True:
            self._news.clear()
            try:
                if await self._send_some(session):
                    continue
            except StoreError as error:
                log.error("outbox_unreadable: %s; tried again in %.0f s", error, RESEND_S_MIN[Stream.ALERT])
                await asyncio.sleep(RESEND_S_MIN[Stream.ALERT])
                continue
            await self._wait()

    async def _send_some(self, session: Session) -> bool:
        """Send waiting alerts, or else one telemetry message; tell whether anything was sent."""
        alerts = self._progress[Stream.ALERT]
        messages = await self._store(lambda store: store.outgoing(Stream.ALERT, alerts.sent_seq, ALERTS_PER_LOOK))
        for message in messages:
            await self._publish(session, message)
        if messages:
            return True
        telemetry = self._progress[Stream.TELEMETRY]
        if telemetry.sent_seq - telemetry.acked_seq >= TELEMETRY_IN_FLIGHT_MAX:
            return False
        messages = await self._store(lambda store: store.outgoing(Stream.TELEMETRY, telemetry.sent_seq, 1))
        for message in messages:
            await self._publish(session, message)
            await asyncio.sleep(TELEMETRY_PAUSE_S)
        return bool(messages)

    async def _publish(self, session: Session, message: Outgoing) -> None:
        progress = self._progress[message.stream]
        await session.publish(Message(topic=self._sender.topic(Leaf(message.stream)), payload=self._payload(message)))
        progress.sent(message.seq, now=_now())
        if not self._county_acknowledges:
            await self._acknowledge({message.stream: message.seq}, (), epoch=message.epoch)

    def _payload(self, message: Outgoing) -> bytes:
        envelope = {"gateway": self._sender.gateway, "epoch": message.epoch}
        sent_at = contract.instant(self._clock.now().wall_ms)
        if message.alert is not None:
            return contract.encode(
                Alert(schema=contract.ALERT_SCHEMA, seq=message.seq, sent_at=sent_at, alert=message.alert, **envelope)
            )
        readings = None if message.readings is None else tuple(map(telemetry_reading, message.readings))
        return contract.encode(
            Telemetry(
                schema=contract.TELEMETRY_SCHEMA,
                seq=message.seq,
                sent_at=sent_at,
                readings=readings,
                dropped=message.dropped,
                **envelope,
            )
        )

    async def _wait(self) -> None:
        """Wait for news, or until it is time to send something again."""
        waits = {stream: progress.resend_in_s(_now()) for stream, progress in self._progress.items()}
        due_s = min((wait for wait in waits.values() if wait is not None), default=None)
        try:
            async with asyncio.timeout(due_s):
                await self._news.wait()
        except TimeoutError:
            for stream, progress in self._progress.items():
                wait_s = progress.resend_in_s(_now())
                if wait_s is not None and wait_s <= 0:
                    log.warning(
                        "ack_missing stream=%s from_seq=%d to_seq=%d: the county has not acknowledged, sending again",
                        stream,
                        progress.acked_seq + 1,
                        progress.sent_seq,
                    )
                    progress.start_again(now=_now(), jitter=self._jitter())

    async def _listen(self, session: Session, tasks: asyncio.TaskGroup) -> None:
        async for received in session.messages():
            if received.topic == self._sender.topic(Leaf.COMMAND):
                self._take_command(received, session, tasks)
            else:
                await self._take_ack(received.payload)

    def _take_command(self, received: Received, session: Session, tasks: asyncio.TaskGroup) -> None:
        command_id = contract.decode_command_id(received.payload[: contract.PAYLOAD_BYTES_MAX])
        if self.handle is None or command_id in self._answering:
            return  # the reply to the first comes over this connection, and is the reply to its repetitions
        if len(self._answering) >= ANSWERS_MAX:
            self._commands_dropped += 1
            if self._commands_dropped <= MENTIONS_MAX:
                log.warning("command_dropped at_hand=%d: the county repeats what it has no reply to", ANSWERS_MAX)
            return
        self._answering.add(command_id)
        answer = tasks.create_task(self._answer(self.handle(received.payload), session), name="forwarder-answer")
        answer.add_done_callback(lambda _: self._answering.discard(command_id))

    async def _answer(self, work: Awaitable[Reply | None], session: Session) -> None:
        """Publish a reply. Where that fails it ends nothing: whoever listens finds out when the connection is lost."""
        reply = await work
        if reply is None:
            return
        try:
            await session.publish(Message(topic=self._sender.topic(Leaf.REPLY), payload=contract.encode(reply)))
            self._replies_refused = False
        except BrokerError as error:
            if not self._replies_refused:
                log.error("reply_refused id=%s: %s; what is asked is done, and the county not told so", reply.id, error)
            self._replies_refused = True

    async def _take_ack(self, payload: bytes) -> None:
        try:
            ack = contract.decode(Leaf.ACK, payload)
        except ContractError as error:
            self._invalid_acks += 1
            if self._invalid_acks <= MENTIONS_MAX:
                log.warning("ack_invalid payload=%r: %s", payload[:200], error)
            return
        assert isinstance(ack, Ack)
        if ack.epoch != self._epoch:
            self._mention_epoch(ack.epoch)
            return
        for item in ack.not_understood:
            self._mention_not_understood(item)
        up_to = {Stream.ALERT: ack.alert_up_to, Stream.TELEMETRY: ack.telemetry_up_to}
        await self._acknowledge(up_to, ack.not_understood, epoch=ack.epoch)

    async def _acknowledge(
        self, up_to: dict[Stream, int], not_understood: tuple[contract.NotUnderstood, ...], *, epoch: str
    ) -> None:
        wall_ms = self._clock.now().wall_ms
        new_epoch = new_ulid(wall_ms)
        try:
            acked = await self._store(
                lambda store: store.acknowledge(
                    up_to, wall_ms=wall_ms, not_understood=not_understood, epoch=epoch, new_epoch=new_epoch
                )
            )
        except StoreRolledBack as error:
            raise BrokerError(f"the store was rolled back and has a new epoch: {error}") from error  # ends the session
        except StoreError as error:
            log.error("ack_not_stored: %s; the messages stay and are sent again", error)
            return
        for stream, progress in self._progress.items():
            progress.acknowledged(acked.get(stream, progress.acked_seq), now=_now())
        self._news.set()

    def _mention_not_understood(self, item: contract.NotUnderstood) -> None:
        """Log it once: a county repeats what it could not read in every receipt."""
        key = item.stream, item.seq
        if key not in self._not_understood and len(self._not_understood) < MENTIONS_MAX:
            self._not_understood.add(key)
            log.error(
                "message_not_understood stream=%s seq=%d: the county says %r; our copy is kept aside"
                " in the store: report it to the county platform's maintainers",
                item.stream,
                item.seq,
                item.reason[:200],
            )

    def _mention_epoch(self, epoch: str) -> None:
        if epoch not in self._foreign_epochs and len(self._foreign_epochs) < MENTIONS_MAX:
            self._foreign_epochs.add(epoch)
            log.info("ack_of_other_epoch epoch=%r ours=%s: ignored, it speaks of an earlier store", epoch, self._epoch)


def telemetry_reading(reading: Reading) -> TelemetryReading:
    """Return a reading as the county is told it."""
    return TelemetryReading(
        meter=reading.meter,
        at=contract.instant(reading.at.wall_ms),
        volume_ml=reading.volume_ml,
        quality=reading.quality,
        clock=reading.at.trust,
        reason=reading.reason,
        flags=reading.flags,
        uncertainty_ms=reading.at.uncertainty_ms,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
