"""Commands: done once, answered in words, refused where they make no sense, and never a danger to the service."""

import asyncio
import json
import zoneinfo
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readings import shows, silent
from stores import EPOCH

from agent import command_folder
from agent import commands as commands_module
from agent.command_folder import CommandFolder
from agent.commands import ABSENCE_DAYS_MAX, DAY_MS, DEADLINE_AHEAD_MS_MAX, READ_NOW_S_MAX, Commands
from gateway.store import StoreDamaged, StoreError
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import Ending, Refusal
from protocols.reading import ClockTrust, Moment

NOW_MS = 1_795_293_540_000  # 2026-11-22 04:39 in Shanghai
SHANGHAI = zoneinfo.ZoneInfo("Asia/Shanghai")
ALERT = "01KAM4D2Q80000000000000000"
KEYS = ["schema", "id", "deadline", "do", "meter", "until", "from", "daily", "alert", "result", "why", "declared_by"]


class Clock:
    """Stands still unless somebody sleeps."""

    def __init__(self):
        self.wall_ms = NOW_MS
        self.trust = ClockTrust.SYNCED
        self.slept_s = []

    def now(self):
        return Moment(wall_ms=self.wall_ms, trust=self.trust, uncertainty_ms=0, boot_id="b", boottime_ms=self.wall_ms)

    async def sleep(self, seconds):
        self.slept_s.append(seconds)
        await asyncio.get_running_loop().create_future() if seconds > 1 else await asyncio.sleep(0)


def an_alert(**evidence):
    return contract.AlertBody(
        id=ALERT,
        meter="m-001",
        kind=contract.Kind.LOW_USAGE,
        state=contract.AlertState.ESCALATED,
        level=contract.Level.RED,
        since=contract.instant(NOW_MS - DAY_MS),
        at=contract.instant(NOW_MS),
        historical=False,
        evidence=evidence,
    )


class Actions:
    """Records what is done."""

    def __init__(self):
        self.done = []
        self.standing = {}
        self.alerts = {ALERT: an_alert()}
        self.readings = asyncio.Queue()
        self.error = None
        self.hold = None

    async def _do(self, *what):
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.done.append(what)

    async def declare_absence(self, absence):
        await self._do("absence", absence)
        return self.standing.setdefault(absence.meter, absence)

    async def end_absence(self, meter, *, by, at):
        await self._do("end", meter, by)
        absence = self.standing.pop(meter, None)
        return absence and absence.ended(by, at_ms=at.wall_ms)

    async def note(self, alert, county, *, command_id):
        await self._do("note", alert, dict(county), command_id)
        return self.alerts.get(alert)

    async def next_reading(self, meter, *, since_boottime_ms):
        await self._do("read", meter, since_boottime_ms)
        return await self.readings.get()


async def nothing_waits(_):
    """Withdraw nothing: no absence waits in a folder."""


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def actions():
    return Actions()


@pytest.fixture
async def commands(store, clock, actions):
    made = Commands(
        store=store, clock=clock, actions=actions, meters=["m-001", "m-002"], zone=SHANGHAI, withdraw=nothing_waits
    )
    yield made
    await made.close()


def command(do, *, number=1, deadline_ms=NOW_MS + 60_000, **fields):
    head = {"schema": contract.COMMAND_SCHEMA, "id": new_ulid(NOW_MS, random_bits=lambda _: number)}
    return json.dumps(head | {"deadline": contract.instant(deadline_ms), "do": do} | fields).encode()


def away(*, until_ms=NOW_MS + 10 * DAY_MS, meter="m-001", **more):
    return command("absence", meter=meter, until=contract.instant(until_ms), declared_by="technician", **more)


def refused(reply, refusal):
    assert (reply.done, reply.reason) == (False, refusal.value)
    assert set(reply.text) == {"zh", "en"}
    assert all(reply.text.values())
    return reply.text


# -- doing it ---------------------------------------------------------------------------------------------------------


async def test_an_absence_is_declared_from_now_on(commands, actions):
    reply = await commands.handle(away())
    assert reply.done
    ((_, absence),) = actions.done
    assert (absence.meter, absence.start_ms, absence.until_ms) == ("m-001", NOW_MS, NOW_MS + 10 * DAY_MS)
    assert (absence.id, absence.declared_by, absence.declared_ms) == (reply.id, "technician", NOW_MS)
    assert "2026-11-22 04:39" in reply.text["zh"]
    assert "2026-12-02 04:39" in reply.text["en"]


@pytest.mark.parametrize(("start_ms", "from_ms"), [(NOW_MS + DAY_MS, NOW_MS + DAY_MS), (NOW_MS - DAY_MS, NOW_MS)])
async def test_an_absence_begins_when_it_says_but_not_in_the_past(commands, actions, start_ms, from_ms):
    assert (await commands.handle(away(**{"from": contract.instant(start_ms)}))).done
    assert actions.done[0][1].start_ms == from_ms


async def test_an_absence_that_ended_before_its_reply_was_remembered_is_told_as_ended(commands, actions, store):
    """The power failed between the two, somebody came home, and the county repeats what it has no reply to."""
    await commands.handle(away())
    actions.standing["m-001"] = actions.standing["m-001"].ended(Ending.USE, at_ms=NOW_MS + 1)
    store.store._db.execute("delete from command")
    reply = await commands.handle(away())
    assert reply.done
    assert "watched again" in reply.text["en"]
    assert "恢复守护" in reply.text["zh"]


async def test_quiet_hours_say_so(commands, actions):
    reply = await commands.handle(away(daily={"from": "22:00", "to": "06:00"}))
    assert str(actions.done[0][1].daily) == "22:00-06:00"
    assert "每天 22:00-06:00 为安静时段" in reply.text["zh"]
    assert "quiet hours 22:00-06:00" in reply.text["en"]


async def test_the_end_of_a_day_is_called_by_its_date(commands):
    reply = await commands.handle(away(until_ms=contract.wall_ms("2026-12-01T16:00:00.000Z")))
    assert "2026-12-01 24:00" in reply.text["zh"]


async def test_presence_ends_what_was_declared_and_says_what(commands, actions):
    await commands.handle(away())
    reply = await commands.handle(command("present", number=2, meter="m-001"))
    assert reply.done
    assert actions.done[-1] == ("end", "m-001", Ending.COMMAND)
    assert "watched again" in reply.text["en"]
    reply = await commands.handle(command("present", number=3, meter="m-001"))
    assert reply.done, "there is nothing left to do, and that is what was wanted"
    assert "no absence" in reply.text["en"]


async def test_what_the_county_says_of_an_alert_is_noted_with_its_time(commands, actions):
    assert (await commands.handle(command("acknowledge", alert=ALERT))).done
    reply = await commands.handle(command("resolve", number=2, alert=ALERT, result="false", why="at a neighbour's"))
    assert reply.done
    at = contract.instant(NOW_MS)
    assert actions.done == [
        ("note", ALERT, {"acknowledged_at": at}, json.loads(command("acknowledge"))["id"]),
        ("note", ALERT, {"visited_at": at, "result": "false", "why": "at a neighbour's"}, reply.id),
    ]
    assert "误报" in reply.text["zh"]


@pytest.mark.parametrize(("escalated_ms", "counts"), [(NOW_MS - 1, True), (NOW_MS, True), (NOW_MS + 1, False)])
async def test_whoever_answered_a_yellow_alert_that_is_red_by_now_is_told_that_it_is_no_answer(
    commands, actions, escalated_ms, counts
):
    actions.alerts[ALERT] = an_alert(escalated_at=contract.instant(escalated_ms))
    replies = [
        await commands.handle(command("acknowledge", alert=ALERT)),
        await commands.handle(command("resolve", number=2, alert=ALERT, result="fine")),
    ]
    for reply in replies:
        assert reply.done
        assert ("send it with a new id" in reply.text["en"]) is not counts
        assert ("重新发送（新编号）" in reply.text["zh"]) is not counts
    assert len(actions.done) == 2, "it is noted all the same"


async def test_an_alert_that_is_not_open_is_told(commands, store):
    text = refused(await commands.handle(command("acknowledge", alert="0" * 26)), Refusal.UNKNOWN_ALERT)
    assert "0" * 26 in text["en"]


async def test_a_reading_comes_back_in_the_reply(commands, actions):
    actions.readings.put_nowait(shows("m-001", 1, 128_450.3))
    reply = await commands.handle(command("read_now", meter="m-001"))
    assert reply.done
    assert (reply.reading.volume_ml, reply.reading.quality) == (128_450_300, "ok")
    assert actions.done == [("read", "m-001", NOW_MS)], "a reading from now on (the test's clocks are one)"
    assert "128.4503 m³" in reply.text["en"]


async def test_a_meter_that_gives_nothing_is_told_with_its_reason(commands, actions, store):
    actions.readings.put_nowait(silent("m-001", 1))
    payload = command("read_now", meter="m-001")
    reply = await commands.handle(payload)
    assert "no_response" in refused(reply, Refusal.NO_READING)["en"]
    assert (reply.reading.volume_ml, reply.reading.reason) == (None, "no_response")
    assert await commands.handle(payload) == reply, "it was asked; asking again is another command"


async def test_a_reading_is_waited_for_until_the_deadline_and_no_longer(commands, actions, clock):
    clock.wall_ms += 59_500
    refused(await commands.handle(command("read_now", meter="m-001")), Refusal.BUSY)
    assert clock.slept_s == [0.5]
    clock.trust = ClockTrust.UNSYNCED
    waiting = asyncio.create_task(commands.handle(command("read_now", number=2, meter="m-001")))
    await asyncio.sleep(0.01)
    assert clock.slept_s[-1] == READ_NOW_S_MAX, "no deadline can be told: a fixed one"
    waiting.cancel()


async def test_presence_withdraws_what_waits_before_it_ends_what_stands_and_once(store, clock, actions):
    async def withdraw(asked):
        actions.done.append(("withdraw", asked.meter))

    made = Commands(store=store, clock=clock, actions=actions, meters=["m-001"], zone=SHANGHAI, withdraw=withdraw)
    for _ in range(2):  # its repetition: somebody may have gone away since
        assert (await made.handle(command("present", meter="m-001"))).done
    assert actions.done == [("withdraw", "m-001"), ("end", "m-001", Ending.COMMAND)]
    refused(await made.handle(command("present", number=2, meter="m-9")), Refusal.UNKNOWN_METER)
    await made.handle(away(number=3))
    assert len(actions.done) == 3


async def test_presence_ends_what_stands_where_what_waits_cannot_be_withdrawn_and_is_asked_again(
    store, clock, actions, caplog
):
    problems = [OSError(5, "Input/output error")]

    async def withdraw(_):
        if problems:
            raise problems.pop()

    made = Commands(store=store, clock=clock, actions=actions, meters=["m-001"], zone=SHANGHAI, withdraw=withdraw)
    await made.handle(away())
    text = refused(await made.handle(command("present", number=2, meter="m-001")), Refusal.FAILED)
    assert "Input/output error" in text["en"]
    assert "absences_not_withdrawn meter=m-001" in caplog.text
    assert actions.standing == {}
    assert (await made.handle(command("present", number=2, meter="m-001"))).done


@pytest.mark.parametrize("by", ["county", "folder"])
async def test_who_is_back_is_not_away_again_once_the_clock_is_right(store, clock, actions, tmp_path, by):
    """The two ends together: nobody may look away from who is at home because of an absence that waited."""

    async def nap(_):
        await asyncio.sleep(0.001)

    clock.sleep, clock.trust = nap, ClockTrust.UNSYNCED
    folder = CommandFolder(tmp_path, clock=clock)
    made = Commands(
        store=store, clock=clock, actions=actions, meters=["m-001"], zone=SHANGHAI, withdraw=folder.withdraw
    )
    looking = asyncio.create_task(folder.run(made.handle))
    absence = contract.decode(contract.Leaf.COMMAND, away(number=9))
    back = command("present", number=2, meter="m-001")
    command_folder.send(tmp_path, absence)
    while command_folder.reply_to(tmp_path, absence) is None:
        await asyncio.sleep(0.001)
    if by == "county":
        assert (await made.handle(back)).done
    else:
        command_folder.send(tmp_path, contract.decode(contract.Leaf.COMMAND, back))
    clock.trust = ClockTrust.SYNCED
    await asyncio.sleep(0.3)  # many attempts at what waits
    looking.cancel()
    assert actions.done == [("end", "m-001", Ending.COMMAND)]
    assert command_folder.waiting(tmp_path) == []


# -- once -------------------------------------------------------------------------------------------------------------


async def test_the_same_id_again_brings_the_same_reply_and_nothing_else(commands, actions, clock, store):
    first = await commands.handle(away())
    clock.wall_ms += 2 * DAY_MS
    assert await commands.handle(away()) == first, "although its deadline is over by now"
    anew = Commands(store=store, clock=clock, actions=actions, meters=[], zone=SHANGHAI, withdraw=nothing_waits)
    assert await anew.handle(away()) == first, "after a restart, with another configuration"
    assert len(actions.done) == 1


async def test_a_repetition_while_it_is_under_way_waits_for_the_same(commands, actions):
    actions.hold = asyncio.Event()
    both = [asyncio.create_task(commands.handle(away())) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in both)
    actions.hold.set()
    first, second = await asyncio.gather(*both)
    assert first == second
    assert len(actions.done) == 1


async def test_what_was_begun_ends_although_whoever_asked_is_gone(commands, actions, store):
    actions.hold = asyncio.Event()
    asker = asyncio.create_task(commands.handle(away()))
    await asyncio.sleep(0.01)
    asker.cancel()
    actions.hold.set()
    await asyncio.sleep(0.01)
    assert len(actions.done) == 1
    assert (await commands.handle(away())).done
    assert len(actions.done) == 1


async def test_a_reply_that_cannot_be_remembered_is_given_nevertheless(commands, store, caplog, monkeypatch):
    def refuse(*_, **__):
        raise StoreError("disk full")

    monkeypatch.setattr(store.store, "remember_command", refuse)
    assert (await commands.handle(away())).done
    assert "command_not_remembered" in caplog.text


# -- refusals ---------------------------------------------------------------------------------------------------------


async def test_a_command_after_its_deadline_is_refused(commands, actions, clock):
    clock.wall_ms = NOW_MS + 60_000
    assert (await commands.handle(away())).done, "in its last millisecond it is done"
    clock.wall_ms += 1
    text = refused(await commands.handle(away(number=2)), Refusal.LATE)
    assert "2026-11-22 04:40" in text["en"]
    assert len(actions.done) == 1


async def test_a_deadline_that_outlives_our_memory_is_refused(commands):
    limit_ms = NOW_MS + DEADLINE_AHEAD_MS_MAX
    assert (await commands.handle(away(deadline_ms=limit_ms))).done
    refused(await commands.handle(away(number=2, deadline_ms=limit_ms + 1)), Refusal.INVALID)


async def test_an_absence_of_more_than_90_days_or_one_that_is_over_is_refused(commands, actions):
    limit_ms = NOW_MS + ABSENCE_DAYS_MAX * DAY_MS
    assert (await commands.handle(away(until_ms=limit_ms))).done
    assert "90 days" in refused(await commands.handle(away(number=2, until_ms=limit_ms + 1)), Refusal.INVALID)["en"]
    assert "over already" in refused(await commands.handle(away(number=3, until_ms=NOW_MS)), Refusal.INVALID)["en"]
    assert (await commands.handle(away(number=4, until_ms=NOW_MS + 1))).done
    assert len(actions.done) == 2


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York"])
@pytest.mark.parametrize("until", ["9999-12-31T23:59:59.999Z", "9999-12-31T00:00:00.000Z"])
async def test_the_end_of_the_calendar_is_too_far_ahead(commands, actions, store, clock, zone, until):
    """No clock of the village shows it, and nothing is said to be wrong with the gateway."""
    here = Commands(
        store=store,
        clock=clock,
        actions=actions,
        meters=["m-001"],
        zone=zoneinfo.ZoneInfo(zone),
        withdraw=nothing_waits,
    )
    text = refused(await here.handle(away(until_ms=contract.wall_ms(until))), Refusal.INVALID)
    assert "more than 90 days ahead" in text["en"]
    assert "9999" in text["zh"]
    assert actions.done == []


async def test_the_first_day_of_the_calendar_is_over(actions, store, clock):
    here = Commands(
        store=store,
        clock=clock,
        actions=actions,
        meters=["m-001"],
        zone=zoneinfo.ZoneInfo("America/New_York"),
        withdraw=nothing_waits,
    )
    first = "0001-01-01T00:00:00.000Z"
    over = command("absence", meter="m-001", until=first, declared_by="technician")
    assert "over already" in refused(await here.handle(over), Refusal.INVALID)["en"]
    late = command("present", number=2, meter="m-001", deadline=first)
    assert "was over" in refused(await here.handle(late), Refusal.LATE)["en"]


@pytest.mark.parametrize("do", ["present", "read_now"])
async def test_a_meter_that_is_not_there_is_refused_with_the_one_that_may_be_meant(commands, actions, do):
    text = refused(await commands.handle(command(do, meter="m-0001")), Refusal.UNKNOWN_METER)
    assert "did you mean m-001?" in text["en"]
    assert "m-001" in text["zh"]
    text = refused(await commands.handle(command(do, meter="zzz")), Refusal.UNKNOWN_METER)
    assert "mean" not in text["en"]
    assert actions.done == []


async def test_without_a_synced_clock_nobody_looks_away_and_everything_else_is_done(commands, actions, clock):
    clock.trust = ClockTrust.UNSYNCED
    clock.wall_ms = 0
    refused(await commands.handle(away()), Refusal.CLOCK_UNSYNCED)
    actions.readings.put_nowait(shows("m-001", 1, 1))
    for number, payload in enumerate(
        [
            command("present", number=2, meter="m-001"),
            command("acknowledge", number=3, alert=ALERT),
            command("resolve", number=4, alert=ALERT, result="fine"),
            command("read_now", number=5, meter="m-001", deadline_ms=1),
        ]
    ):
        assert (await commands.handle(payload)).done, number
    noted = [what[2] for what in actions.done if what[0] == "note"]
    assert all(one["clock"] == "unsynced" for one in noted), "the time of the note may be wrong, and says so"
    clock.trust, clock.wall_ms = ClockTrust.SYNCED, NOW_MS
    assert (await commands.handle(away())).done, "what was refused is done when the clock is right"


async def test_what_is_no_command_is_refused_where_it_gives_an_id(commands, actions, caplog):
    text = refused(await commands.handle(command("absense", meter="m-001")), Refusal.INVALID)
    assert "'absense'" in text["en"]
    assert await commands.handle(b"{}") is None
    assert await commands.handle(b"\xff" * 1000) is None
    assert await commands.handle(b"x" * (contract.PAYLOAD_BYTES_MAX + 1)) is None
    assert actions.done == []
    assert max(len(line) for line in caplog.text.splitlines()) < 2000


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    st.binary(max_size=300)
    | st.dictionaries(
        st.sampled_from(KEYS),
        st.sampled_from(
            [contract.COMMAND_SCHEMA, EPOCH, "absence", "present", "read_now", "m-001", "2026-11-22T00:00:00.000Z",
             "9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00.000Z", "2026-02-30T00:00:00.000Z", "\x00", "🂡", -1, 1e300,
             None, True, [], {}, "x" * 600]
        ),
    ).map(lambda value: json.dumps(value).encode())
)  # fmt: skip
async def test_whatever_a_county_sends_nothing_breaks(store, payload):
    made = Commands(
        store=store, clock=Clock(), actions=Actions(), meters=["m-001"], zone=SHANGHAI, withdraw=nothing_waits
    )
    try:
        reply = await asyncio.wait_for(made.handle(payload), 0.05)
        assert reply is None or set(reply.text) == {"zh", "en"}
    except TimeoutError:
        assert b"read_now" in payload
    finally:
        await made.close()


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [StoreError("disk full"), StoreDamaged("malformed"), RuntimeError("a bug")], ids=repr)
async def test_what_fails_is_refused_and_may_be_asked_again(commands, actions, caplog, error):
    actions.error = error
    refused(await commands.handle(away()), Refusal.FAILED)
    assert "command_failed" in caplog.text
    actions.error = None
    assert (await commands.handle(away())).done


async def test_a_store_that_cannot_be_read_is_a_refusal(commands, store):
    store.error = StoreError("disk I/O error")
    refused(await commands.handle(away()), Refusal.FAILED)


async def test_closing_gives_up_what_is_under_way(commands, actions):
    actions.hold = asyncio.Event()
    asker = asyncio.create_task(commands.handle(away()))
    await asyncio.sleep(0.01)
    await commands.close()
    with pytest.raises(asyncio.CancelledError):
        await asker
    assert commands._at_hand == {}


def test_every_refusal_is_given_somewhere():
    """A word of the contract that no gateway says is a lie in its documentation."""
    text = Path(commands_module.__file__).read_text(encoding="utf-8")
    for refusal in Refusal:
        assert f"Refusal.{refusal.name}" in text
