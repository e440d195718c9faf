"""What the county (or the village, through a file) asks of this gateway: checked, done once, answered.

The rules:

1. The same id again brings the stored reply, and nothing is done again. While the first is under way the second waits
   with it.
2. A command whose deadline is over is refused. Without a synced clock nobody can tell; then everything but an absence
   is done: it makes us watch sooner, or notes what somebody says, and late is better than never. An absence is refused,
   because it makes us look away, and with a wrong clock for nobody knows how long.
3. What was done is remembered, and that a meter was asked in vain: both would be done once more. Any other refusal may
   become right later (a clock that is set, a disk that is freed), and costs nothing to find again.
4. Nothing that anybody sends stops or blocks the service: what is not understood is refused in words, what fails is
   refused and logged, and a reading is waited for no longer than so. How many commands are at hand at once is bounded
   where they come in (`agent.forwarder`, `agent.command_folder`).
"""

import asyncio
import difflib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import tzinfo
from typing import Any, Final, Protocol, TypeVar

from agent.alerts import is_made_before_red
from agent.command_texts import Texts, Words
from agent.forwarder import telemetry_reading
from agent.pipeline import StoreCalls
from gateway.clock import Clock
from gateway.store import StoreError
from protocols import contract
from protocols.absence import Absence
from protocols.contract import (
    ABSENCE_DAYS_MAX,
    ABSENCE_MS_MAX,
    AbsenceCommand,
    AcknowledgeCommand,
    AlertBody,
    Command,
    Ending,
    Leaf,
    PresentCommand,
    ReadNowCommand,
    Refusal,
    Reply,
    ResolveCommand,
)
from protocols.errors import ContractError
from protocols.reading import ClockTrust, Moment, Reading

log = logging.getLogger(__name__)
T = TypeVar("T")

DAY_MS: Final = 86_400_000
# A reply is remembered for a thousand commands: a deadline further ahead could outlive the memory of its command.
DEADLINE_AHEAD_MS_MAX: Final = 7 * DAY_MS
# Meters are polled every few minutes; whoever waits longer hears from the telemetry.
READ_NOW_S_MAX: Final = 15 * 60.0


class Actions(Protocol):
    """What commands are done with. Every one raises StoreError where it cannot be kept; then nothing happened."""

    async def declare_absence(self, absence: Absence) -> Absence:
        """Expect nobody at a home, in place of the home's earlier absence (or quiet hours); return it as it is kept.

        One of that id that is known already stays as it is, and as it ended.
        """
        ...

    async def end_absence(self, meter: str, *, by: Ending, at: Moment) -> Absence | None:
        """Expect somebody again; return what ended, None where nothing was declared."""
        ...

    async def note(self, alert: str, county: Mapping[str, Any], *, command_id: str) -> AlertBody | None:
        """Keep what the county says of an open alert; return it with that, None where none has that id.

        The command's id tells when the county said so.
        """
        ...

    async def next_reading(self, meter: str, *, since_boottime_ms: int) -> Reading:
        """Have a meter read now; return the first reading of that time or later, a missing one too, once it is kept."""
        ...


class Commands:
    """Answers commands."""

    def __init__(
        self,
        *,
        store: StoreCalls,
        clock: Clock,
        actions: Actions,
        meters: Collection[str],
        zone: tzinfo,
        withdraw: Callable[[PresentCommand], Awaitable[None]],
    ) -> None:
        """`meters` are those of the configuration, `zone` is where the gateway stands.

        `withdraw` deletes the absences of a home that wait to be asked again; it may raise OSError.
        """
        self._store = store
        self._clock = clock
        self._actions = actions
        self._meters = frozenset(meters)
        self._words = Words(zone)
        self._withdraw = withdraw
        self._at_hand: dict[str, asyncio.Task[Reply]] = {}

    async def handle(self, payload: bytes) -> Reply | None:
        """Do what is asked, once, and return the reply; None for what does not even give an id to reply to."""
        command = self._decode(payload)
        if command is None or isinstance(command, Reply):
            return command
        under_way = self._at_hand.get(command.id)
        if under_way is None:
            under_way = asyncio.create_task(self._answer(command), name=f"command-{command.id}")
            self._at_hand[command.id] = under_way
            under_way.add_done_callback(lambda _: self._at_hand.pop(command.id))
        # Whoever asked may go away (a lost connection); what was begun comes to its end, and the repetition finds it.
        return await asyncio.shield(under_way)

    async def close(self) -> None:
        """Give up what is still under way; whoever asked repeats it, and what was done is not done again."""
        tasks = list(self._at_hand.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _decode(self, payload: bytes) -> Command | Reply | None:
        """Return the command in a payload, the refusal of what is none, or None where nobody can be answered."""
        try:
            command: Any = contract.decode(Leaf.COMMAND, payload)
        except ContractError as error:
            command_id = contract.decode_command_id(payload[: contract.PAYLOAD_BYTES_MAX])
            log.warning("command_invalid id=%s payload=%r: %s", command_id, payload[:200], error)
            if command_id is None:
                return None
            return self._refuse(command_id, Refusal.INVALID, self._words.invalid(str(error)))
        decoded: Command = command
        return decoded

    async def _answer(self, command: Command) -> Reply:
        """Answer a command that is decoded. Never raises."""
        try:
            known = await self._store(lambda store: store.command_reply(command.id))
            if known is not None:
                return known
            reply = self._objection(command, self._clock.now()) or await self._do(command)
            if reply.done or reply.reason == Refusal.NO_READING:
                await self._remember(command, reply)
        except StoreError as error:
            log.error("command_failed id=%s do=%s: %s", command.id, _name(command), error)
            return self._refuse(command.id, Refusal.FAILED, self._words.failed(str(error)))
        except Exception:  # a bug of ours in one command must not end the connection, nor the service
            log.exception("command_failed id=%s do=%s: a bug of shuiwang's", command.id, _name(command))
            return self._refuse(command.id, Refusal.FAILED, self._words.failed("internal error 内部错误"))
        log.info("command_%s id=%s do=%s reason=%s", _outcome(reply), command.id, _name(command), reply.reason)
        return reply

    async def _remember(self, command: Command, reply: Reply) -> None:
        body, wall_ms = contract.encode(command), self._clock.now().wall_ms
        try:
            await self._store(lambda store: store.remember_command(reply, body=body, wall_ms=wall_ms))
        except StoreError as error:  # it is done; at worst the same id does once more what is so already
            log.error("command_not_remembered id=%s: %s", command.id, error)

    # -- what speaks against it -------------------------------------------------------------------------------------

    def _objection(self, command: Command, now: Moment) -> Reply | None:
        """Return the refusal of a command that must not be done."""
        is_synced = now.trust is ClockTrust.SYNCED
        deadline_ms = contract.wall_ms(command.deadline)
        if is_synced and deadline_ms < now.wall_ms:
            return self._refuse(command.id, Refusal.LATE, self._words.late(deadline_ms, now.wall_ms))
        if is_synced and deadline_ms > now.wall_ms + DEADLINE_AHEAD_MS_MAX:
            days = DEADLINE_AHEAD_MS_MAX // DAY_MS
            problem = f"期限最多提前 {days} 天 the deadline may lie {days} days ahead at most"
            return self._refuse(command.id, Refusal.INVALID, self._words.invalid(problem))
        if isinstance(command, AbsenceCommand | PresentCommand | ReadNowCommand) and command.meter not in self._meters:
            close = difflib.get_close_matches(command.meter, self._meters, n=1)
            text = self._words.unknown_meter(command.meter, suggestion=close[0] if close else None)
            return self._refuse(command.id, Refusal.UNKNOWN_METER, text)
        if isinstance(command, AbsenceCommand):
            return self._objection_to_absence(command, now)
        return None

    def _objection_to_absence(self, command: AbsenceCommand, now: Moment) -> Reply | None:
        if now.trust is not ClockTrust.SYNCED:
            return self._refuse(command.id, Refusal.CLOCK_UNSYNCED, self._words.clock_unsynced())
        until_ms = contract.wall_ms(command.until)
        if until_ms <= now.wall_ms:
            return self._refuse(command.id, Refusal.INVALID, self._words.until_over(until_ms))
        if until_ms > now.wall_ms + ABSENCE_MS_MAX:
            text = self._words.until_too_far(until_ms, days=ABSENCE_DAYS_MAX)
            return self._refuse(command.id, Refusal.INVALID, text)
        return None

    # -- doing it -----------------------------------------------------------------------------------------------------

    async def _do(self, command: Command) -> Reply:
        match command:
            case AbsenceCommand():
                return await self._declare(command)
            case PresentCommand():
                return await self._end(command)
            case AcknowledgeCommand():
                return await self._note(command, self._words.acknowledged(command.alert), {"acknowledged_at": None})
            case ResolveCommand():
                said = {"visited_at": None, "result": command.result.value}
                said |= {"why": command.why} if command.why else {}
                return await self._note(command, self._words.resolved(command.alert, command.result), said)
            case ReadNowCommand():
                return await self._read(command)

    async def _declare(self, command: AbsenceCommand) -> Reply:
        now_ms = self._clock.now().wall_ms
        start_ms = now_ms if command.start is None else max(now_ms, contract.wall_ms(command.start))
        absence = Absence(
            id=command.id,
            meter=command.meter,
            start_ms=start_ms,  # what was used before somebody told us must not end it
            until_ms=contract.wall_ms(command.until),
            declared_by=command.declared_by,
            declared_ms=now_ms,
            daily=command.daily,
        )
        kept = await self._actions.declare_absence(absence)
        # Where the power failed before the reply was remembered, it is known already, and may have ended since.
        return self._done(command, self._words.declared(kept) if kept.is_open else self._words.ended(kept))

    async def _end(self, command: PresentCommand) -> Reply:
        problem: OSError | None = None
        try:
            await self._withdraw(command)  # first: one of them may be being declared
        except OSError as error:
            log.error("absences_not_withdrawn meter=%s: %s", command.meter, error)
            problem = error
        ended = await self._actions.end_absence(command.meter, by=Ending.COMMAND, at=self._clock.now())
        if problem is not None:  # we look at the home again, but may be made to look away: to be asked once more
            return self._refuse(command.id, Refusal.FAILED, self._words.failed(str(problem)))
        return self._done(command, self._words.ended(ended) if ended else self._words.nothing_to_end(command.meter))

    async def _note(
        self, command: AcknowledgeCommand | ResolveCommand, text: Texts, said: Mapping[str, str | None]
    ) -> Reply:
        """Note what the county says; what is None in it is the time of noting, whose clock is named if it may lie."""
        now = self._clock.now()
        note = {key: contract.instant(now.wall_ms) if value is None else value for key, value in said.items()}
        if now.trust is not ClockTrust.SYNCED:
            note["clock"] = now.trust.value
        alert = await self._actions.note(command.alert, note, command_id=command.id)
        if alert is None:
            return self._refuse(command.id, Refusal.UNKNOWN_ALERT, self._words.unknown_alert(command.alert))
        if is_made_before_red(alert, command.id):
            text = self._words.said_before_red(command.alert)
        return self._done(command, text)

    async def _read(self, command: ReadNowCommand) -> Reply:
        now = self._clock.now()
        left_s = READ_NOW_S_MAX
        if now.trust is ClockTrust.SYNCED:
            left_s = min(left_s, (contract.wall_ms(command.deadline) - now.wall_ms) / 1000)
        reading = await self._within(
            left_s, self._actions.next_reading(command.meter, since_boottime_ms=now.boottime_ms)
        )
        if reading is None:
            return self._refuse(command.id, Refusal.BUSY, self._words.busy())
        text, shown = self._words.read(reading), telemetry_reading(reading)
        if reading.volume_ml is None:
            return self._refuse(command.id, Refusal.NO_READING, text, reading=shown)
        return self._done(command, text, reading=shown)

    async def _within(self, seconds: float, work: Any) -> Any:
        """Return the result of a coroutine, None where it takes longer than so many seconds of our clock."""
        doing = asyncio.create_task(work, name="command-work")
        waiting = asyncio.create_task(self._clock.sleep(seconds), name="command-deadline")
        try:
            await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return doing.result() if doing.done() else None
        finally:
            for task in (doing, waiting):
                task.cancel()
            await asyncio.gather(doing, waiting, return_exceptions=True)

    # -- replies ------------------------------------------------------------------------------------------------------

    def _done(self, command: Command, text: Texts, **more: Any) -> Reply:
        return Reply(schema=contract.REPLY_SCHEMA, id=command.id, at=self._now(), done=True, text=text, **more)

    def _refuse(self, command_id: str, refusal: Refusal, text: Texts, **more: Any) -> Reply:
        return Reply(
            schema=contract.REPLY_SCHEMA,
            id=command_id,
            at=self._now(),
            done=False,
            reason=refusal.value,
            text=text,
            **more,
        )

    def _now(self) -> str:
        return contract.instant(self._clock.now().wall_ms)


def _name(command: Command) -> str:
    """Return what is asked, as the command says it."""
    return str(command.__struct_config__.tag)


def _outcome(reply: Reply) -> str:
    return "done" if reply.done else "refused"
