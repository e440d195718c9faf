"""The demo, played as people play it and made to fail; its picture; and that each of its proofs can fail."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from rich.cells import cell_len
from rich.console import Console

import agent.demo
from agent.demo import checks, picture, scene, visit
from agent.demo.network import Network
from agent.demo.observer import Link, Step, Stored, Usage, View, Visit
from agent.demo.story import CAPTIONS, Act, Stretch, act_of, alert_of, is_over, saying_of, stretches_of
from agent.detection.limit import COLD_H
from agent.exit_codes import ExitCode
from gateway import village_file
from gateway.responder import SimulatedMeter
from gateway.store import StreamStatus
from protocols import contract
from protocols.contract import AlertBody, AlertState, Kind, Leaf, Level, Transition, instant
from protocols.reading import ClockTrust, Moment, Quality, Reading

pytest.importorskip("amqtt", reason="the demo needs the extra `demo`")

PLAN = village_file.parse(scene.village_text(), where="demo")
FALL, LATER, UNWATCHED = (f"01JAF0000000000000000000Z{letter}" for letter in "ABC")
SIZES = [(80, 24), (97, 29), (98, 30), (100, 32), (200, 60)]


def start_demo(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.cli", "demo", "--no-live"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"},
        start_new_session=True,
    )


def child_of(demo: subprocess.Popen[str], module: str, *, within_s: float = 30) -> psutil.Process:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for child in psutil.Process(demo.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in child.cmdline():
                    return child
        time.sleep(0.05)
    raise AssertionError(f"{module} was not started")


@contextlib.contextmanager
def no_process_left(demo: subprocess.Popen[str]):
    """Whatever the demo has started by the end of the block must be gone soon after the demo itself."""
    try:
        yield
    finally:
        family = psutil.Process(demo.pid).children(recursive=True) if demo.poll() is None else []
        output = demo.communicate(timeout=170)
        demo.output = output  # type: ignore[attr-defined]
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
        assert alive == []


@pytest.mark.e2e
@pytest.mark.timeout(170)
def test_everything_is_proved(tmp_path):
    with no_process_left(demo := start_demo(tmp_path)):
        child_of(demo, "county.cli")
        family = psutil.Process(demo.pid).children()
        stdout, stderr = demo.communicate(timeout=160)
    assert (demo.returncode, stderr) == (ExitCode.OK, "")
    assert stdout.count("✓") == 8
    assert "✗" not in stdout
    told = [stdout.index(f"{station}: {scene.SILENT}") for station in ("yellow", "stored", "red", "visited", "ended")]
    assert told == sorted(told)
    assert "(visited, helped)" in stdout
    assert list(tmp_path.iterdir()) == []
    assert psutil.wait_procs(family, timeout=5)[1] == []


@pytest.mark.e2e
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("module", "name"), [("county.cli", "county"), ("agent.demo.broker", "broker"), ("run", "agent")]
)
def test_a_process_that_dies_fails_it_at_once(tmp_path, module, name):
    with no_process_left(demo := start_demo(tmp_path)):
        child_of(demo, "run")
        child_of(demo, module).kill()
        began = time.monotonic()
    stdout, stderr = demo.output
    assert time.monotonic() - began < 20
    assert demo.returncode == ExitCode.DEMO_FAILED
    assert f"{name} ended early with exit code -9" in stderr
    assert "✓" not in stdout
    (kept,) = tmp_path.iterdir()
    assert str(kept) in stderr
    assert (kept / f"{name}.log").is_file()


@pytest.mark.e2e
@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_leaves_nothing(tmp_path, number):
    with no_process_left(demo := start_demo(tmp_path)):
        child_of(demo, "run")
        demo.send_signal(number)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert demo.returncode == ExitCode.DEMO_FAILED
    assert "Interrupted" in demo.output[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
@pytest.mark.timeout(60)
def test_not_even_sigkill_leaves_a_process(tmp_path):
    with no_process_left(demo := start_demo(tmp_path)):
        child_of(demo, "run")
        family = psutil.Process(demo.pid).children()
        demo.kill()
    assert len(family) == 4
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_without_its_broker_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(agent.demo.importlib.util, "find_spec", lambda _: None)
    assert agent.demo.run_demo(live=True) == ExitCode.DEMO_FAILED
    assert "pip install 'shuiwang[demo]'" in capsys.readouterr().err


# -- the village ---------------------------------------------------------------------------------------------------


def windows_ml(meter: str):
    """Yield the usage in the 12 h before each moment of the play from its 13th hour on."""
    register = next(plan.register for plan in PLAN.meters if plan.id == meter)
    for now_ms in range(scene.OPENS_MS + 13 * scene.HOUR_MS, scene.moment_ms(2, "23:59"), 300_000):
        yield now_ms, register.volume_ml(now_ms) - register.volume_ml(now_ms - scene.WINDOW_H * scene.HOUR_MS)


@pytest.mark.parametrize("home", [home for home in scene.HOMES if home.meter not in {scene.SILENT, scene.DEAD}])
def test_homes_that_live_stay_clear_of_the_rule(home):
    assert min(used_ml for _, used_ml in windows_ml(home.meter)) > 1.1 * scene.THRESHOLD_ML


def test_the_silent_home_meets_the_rule_while_the_network_is_away():
    low = [now_ms for now_ms, used_ml in windows_ml(scene.SILENT) if used_ml < scene.THRESHOLD_ML]
    assert scene.NETWORK_AWAY_MS < low[0] < scene.NETWORK_BACK_MS - scene.POLL_EVERY_S * 1000
    assert low[-1] > scene.VISITOR_MS
    assert low == list(range(low[0], low[-1] + 1, 300_000))


def test_the_visitor_comes_after_red_and_a_little_water_long_before_enough():
    register = next(plan.register for plan in PLAN.meters if plan.id == scene.SILENT)
    last_ml = register.volume_ml(scene.FALLS_SILENT_MS)
    moments = range(scene.FALLS_SILENT_MS, scene.moment_ms(2, "23:00"), 60_000)
    last_use_ms = next(at for at in range(scene.OPENS_MS, moments[0], 60_000) if register.volume_ml(at) == last_ml)
    some_ms = next(at for at in moments if register.volume_ml(at) > last_ml)
    enough_ms = next(at for at in moments if register.volume_ml(at) >= last_ml + scene.THRESHOLD_ML)
    poll_ms = scene.POLL_EVERY_S * 1000
    assert last_use_ms + COLD_H * scene.HOUR_MS + 2 * poll_ms < scene.VISITOR_MS
    assert scene.VISITOR_MS + 2 * poll_ms < some_ms
    assert some_ms + 2 * poll_ms < enough_ms


# -- the proofs ----------------------------------------------------------------------------------------------------


def reading_at(meter: str, wall_ms: int) -> Reading:
    simulated = next(SimulatedMeter(plan, chance=None) for plan in PLAN.meters if plan.id == meter)
    moment = Moment(
        wall_ms=wall_ms, trust=ClockTrust.SYNCED, uncertainty_ms=0, boot_id="b", boottime_ms=wall_ms - scene.OPENS_MS
    )
    if meter == scene.DEAD:
        return Reading(meter=meter, at=moment, quality=Quality.MISSING, reason="no_response")
    return Reading(meter=meter, at=moment, quality=Quality.OK, volume_ml=simulated.shown_ml(wall_ms - 90_000))


def good_view(until_ms: int = scene.moment_ms(2, "15:40")) -> View:
    """What a play in which all goes well shows at its end, or on the way."""
    taken, stored, seq = [], [], 0
    away, back = scene.NETWORK_AWAY_MS, scene.NETWORK_BACK_MS
    for seq, start_ms in enumerate(range(scene.OPENS_MS, until_ms, scene.POLL_EVERY_S * 1000), 1):
        for number, home in enumerate(scene.HOMES):
            reading = reading_at(home.meter, start_ms + number * 90_000)
            at_ms = reading.at.wall_ms
            if at_ms > until_ms:
                break
            taken.append(reading)
            received_ms = at_ms + 20_000
            if at_ms > away:  # in order, and faster than it was read
                received_ms = max(received_ms, back + scene.HOUR_MS + (at_ms - away) // 2)
            if received_ms <= until_ms:
                stored.append(
                    Stored(
                        seq=seq,
                        meter=reading.meter,
                        at_ms=at_ms,
                        volume_ml=reading.volume_ml,
                        quality=reading.quality,
                        reason=reading.reason,
                        received_ms=received_ms,
                    )
                )
    made = [step for step in STEPS if step.at_ms <= until_ms]
    steps = [step for step in made if step.received_ms <= until_ms]
    newest = {step.id: step for step in made}
    standing = tuple(episode_of(step) for step in newest.values() if step.transition != Transition.CLEARED)
    waiting = 2 * (len(taken) - len(stored)) // 7
    visits = [Visit(alert=FALL, result=visit.RESULT, done=True, at_ms=scene.VISITOR_MS + 60_000)]
    return View(
        now_ms=until_ms,
        taken=taken,
        stored=stored,
        steps=steps,
        visits=visits if until_ms > visits[0].at_ms else [],
        open_episodes=standing,
        usage={
            home.meter: Usage(least_ml=120_000, most_ml=120_000, last_use_ms=until_ms - 2 * scene.HOUR_MS)
            for home in scene.HOMES
            if home.meter != scene.DEAD and until_ms > scene.OPENS_MS
        },
        telemetry=StreamStatus(last_seq=seq, acked_seq=seq - waiting, acked_wall_ms=until_ms),
        alerts=StreamStatus(last_seq=len(made), acked_seq=len(steps), acked_wall_ms=until_ms),
        link=Link(
            is_up=not away <= until_ms < back,
            away_ms=away if until_ms >= away else None,
            back_ms=back if until_ms >= back else None,
        ),
        confirmed_ms={step.seq: step.received_ms for step in steps},
        is_settled=waiting == 0 and made == steps,
    )


SENTENCES = {  # as the agent says them
    scene.DEAD: {
        "zh": "水表已 3 小时读不到，这户暂时无人看护。请检查水表和线路，必要时联系住户。",
        "en": "The meter has given no value for 3 h: nobody watches this home now. Check meter and line;"
        " call the home if in doubt.",
    },
    Level.YELLOW: {
        "zh": "12 小时内用水不到 100 升（最多 79.1 升）。最近一次用水：昨天 20:03前。",
        "en": "Less than 100 L in 12 h (at most 79.1 L). Water last ran before 20:03 yesterday.",
    },
    Level.RED: {
        "zh": "自昨天 20:03 起 16 小时没有正常用水。请立即联系，联系不上请上门查看。",
        "en": "No real use for 16 h, since 20:03 yesterday. Call now; go to the door if nobody answers.",
    },
    Transition.CLEARED: {
        "zh": "今天 14:11又有用水，警报解除。（已上门，已救助）",
        "en": "Water was used again by 14:11 today; the alert ends. (visited, helped)",
    },
}


def step_of(seq: int, id_: str, level: Level, transition: Transition, at: tuple[int, str], **fields) -> Step:
    at_ms = scene.moment_ms(*at)
    is_dead = id_ == UNWATCHED
    said = scene.DEAD if is_dead else Transition.CLEARED if transition is Transition.CLEARED else level
    known = {
        "meter": scene.DEAD if is_dead else scene.SILENT,
        "kind": Kind.METER_SILENT if is_dead else Kind.LOW_USAGE,
        "received_ms": at_ms + 20_000,
        "text": SENTENCES[said],
    }
    return Step(seq=seq, id=id_, level=level, transition=transition, at_ms=at_ms, **known | fields)


def episode_of(step: Step) -> AlertBody:
    return AlertBody(
        id=step.id,
        meter=step.meter,
        kind=Kind(step.kind),
        state=AlertState.OPEN,
        level=Level(step.level),
        since=instant(step.at_ms - 12 * scene.HOUR_MS),
        at=instant(step.at_ms),
        historical=False,
        evidence={},
        transition=Transition(step.transition),
        text=step.text,
    )


YELLOW, RED = Level.YELLOW, Level.RED
STEPS = (
    step_of(1, UNWATCHED, YELLOW, Transition.OPENED, (1, "13:00")),
    step_of(2, FALL, YELLOW, Transition.OPENED, (2, "05:50"), received_ms=scene.NETWORK_BACK_MS + 3_600_000),
    step_of(3, FALL, RED, Transition.ESCALATED, (2, "12:03")),
    step_of(4, FALL, RED, Transition.CLEARED, (2, "14:11"), visit=visit.RESULT),
    step_of(5, LATER, YELLOW, Transition.OPENED, (2, "14:11")),
    step_of(6, LATER, YELLOW, Transition.CLEARED, (2, "15:13")),
)
GOOD = good_view()


def change(view: View, where, **fields) -> View:
    """Return a view in which the first stored reading that `where` chooses has other fields; none: it is gone."""
    index = next(index for index, row in enumerate(view.stored) if where(row))
    stored = list(view.stored)
    stored[index : index + 1] = [msgspec.structs.replace(stored[index], **fields)] if fields else []
    return msgspec.structs.replace(view, stored=stored)


def with_steps(*steps: Step, **fields) -> View:
    """Return a view in which these steps came, numbered as they should be."""
    steps = tuple(msgspec.structs.replace(step, seq=seq) for seq, step in enumerate(steps, 1))
    count = StreamStatus(last_seq=len(steps), acked_seq=len(steps), acked_wall_ms=0)
    return msgspec.structs.replace(GOOD, **{"steps": steps, "alerts": count} | fields)


def altered(step: Step, **fields) -> Step:
    return msgspec.structs.replace(step, **fields)


def failing(view: View) -> list[str]:
    return [check.english for check in checks.check_all(view, PLAN) if not check.holds]


ARRIVED, TRUE, OUTAGE, DEAD, HOME, VISITED, OTHERS = (check.english for check in checks.check_all(GOOD, PLAN))


def living(row: Stored) -> bool:
    return row.meter == "m-001" and row.at_ms > scene.moment_ms(1, "12:00")


def in_outage(row: Stored) -> bool:
    return row.meter == "m-003" and scene.NETWORK_AWAY_MS < row.at_ms < scene.NETWORK_BACK_MS


def test_a_good_play_proves_everything():
    assert failing(GOOD) == []


def test_a_visitor_who_runs_all_the_water_at_once_leaves_no_second_yellow():
    assert failing(with_steps(*STEPS[:4])) == []


SILENT, OPENED, ESCALATED, CLEARED, AGAIN, ENDED = STEPS
OTHER_HOME = altered(OPENED, meter="m-001", id=FALL[:-1] + "Y")
UNSTORED = StreamStatus(last_seq=6, acked_seq=5, acked_wall_ms=0)
BAD_VIEWS = {
    "a reading is lost": (change(GOOD, living), {ARRIVED}),
    "a reading came twice": (msgspec.structs.replace(GOOD, stored=[*GOOD.stored, GOOD.stored[9]]), {ARRIVED}),
    "a value was changed by a millilitre": (
        change(GOOD, living, volume_ml=next(filter(living, GOOD.stored)).volume_ml + 1),
        {ARRIVED, TRUE},
    ),
    "a reading of the outage is lost": (change(GOOD, in_outage), {ARRIVED, OUTAGE}),
    "a reading came through the cut network": (
        change(GOOD, in_outage, received_ms=scene.NETWORK_BACK_MS - 1),
        {OUTAGE},
    ),
    "the alert was raised after the outage": (
        with_steps(SILENT, altered(OPENED, at_ms=scene.NETWORK_BACK_MS), *STEPS[2:]),
        {OUTAGE},
    ),
    "the alert came through the cut network": (
        with_steps(SILENT, altered(OPENED, received_ms=OPENED.at_ms + 1), *STEPS[2:]),
        {OUTAGE},
    ),
    "the network was never cut": (msgspec.structs.replace(GOOD, link=Link()), {OUTAGE}),
    "the dead meter became 0": (
        change(GOOD, lambda row: row.meter == scene.DEAD, volume_ml=0, quality="ok", reason=None),
        {ARRIVED, TRUE, DEAD},
    ),
    "something still waits": (msgspec.structs.replace(GOOD, is_settled=False), {ARRIVED}),
    "nobody is told of the dead meter": (with_steps(*STEPS[1:]), {DEAD}),
    "the county is told of the dead meter twice": (with_steps(SILENT, *STEPS), {DEAD}),
    "the dead meter becomes a low usage": (with_steps(altered(SILENT, kind=Kind.LOW_USAGE), *STEPS[1:]), {DEAD}),
    "the dead meter's alert is gone": (msgspec.structs.replace(GOOD, open_episodes=()), {OTHERS}),
    "no alert": (with_steps(SILENT), {OUTAGE, HOME, VISITED}),
    "red at once": (with_steps(SILENT, altered(OPENED, level=RED), *STEPS[3:]), {HOME}),
    "never red": (with_steps(SILENT, OPENED, altered(CLEARED, level=YELLOW)), {HOME, VISITED}),
    "red never ends": (with_steps(*STEPS[:3]), {HOME, VISITED}),
    "it ends as another": (with_steps(*STEPS[:3], altered(CLEARED, id=FALL[:-1] + "X")), {HOME, VISITED}),
    "raised twice": (with_steps(SILENT, OPENED, *STEPS[1:]), {HOME}),
    "the second yellow stays": (with_steps(*STEPS[:5]), {HOME}),
    "the second yellow turns red": (with_steps(*STEPS[:5], altered(ENDED, level=RED)), {HOME}),
    "something of the home is still open": (
        msgspec.structs.replace(GOOD, open_episodes=(episode_of(SILENT), episode_of(AGAIN))),
        {HOME, OTHERS},
    ),
    "a step says nothing in words": (with_steps(*STEPS[:5], altered(ENDED, text={})), {HOME}),
    "nobody tells of the visit": (msgspec.structs.replace(GOOD, visits=[]), {VISITED}),
    "the gateway refuses the visit": (
        msgspec.structs.replace(GOOD, visits=[msgspec.structs.replace(GOOD.visits[0], done=False)]),
        {VISITED},
    ),
    "the visit is not in the alert": (with_steps(*STEPS[:3], altered(CLEARED, visit=None), *STEPS[4:]), {VISITED}),
    "another home is alarmed": (with_steps(*STEPS, OTHER_HOME), {OTHERS}),
    "not acknowledged": (msgspec.structs.replace(GOOD, alerts=UNSTORED), {OTHERS}),
    "a step is lost": (msgspec.structs.replace(GOOD, steps=STEPS[:5]), {HOME, OTHERS}),
}


@pytest.mark.parametrize("name", BAD_VIEWS)
def test_each_proof_can_fail(name):
    view, expected = BAD_VIEWS[name]
    assert set(failing(view)) == expected


def test_a_repeated_value_is_found_out():
    register = next(plan.register for plan in PLAN.meters if plan.id == "m-001")
    moving = next(
        row
        for row in GOOD.stored
        if row.meter == "m-001"
        and register.volume_ml(row.at_ms - checks.EXCHANGE_MS_MAX) > register.volume_ml(row.at_ms - 1_200_000) + 1000
    )
    old_ml = register.volume_ml(moving.at_ms - 1_200_000)
    assert TRUE in failing(change(GOOD, lambda row: row == moving, volume_ml=old_ml))


# -- the picture ---------------------------------------------------------------------------------------------------

MOMENTS = ["09:00", "09:40", "14:00", "19:00", "23:30"]
NEXT_DAY = ["05:00", "06:10", "06:45", "07:55", "10:30", "12:30", "13:40", "14:40", "15:40", "22:00"]
VIEWS = {f"1 {moment}": good_view(scene.moment_ms(1, moment)) for moment in MOMENTS} | {
    f"2 {moment}": good_view(scene.moment_ms(2, moment)) for moment in NEXT_DAY
}


def drawn(view: View, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, color_system=None, highlight=False)
    lines = console.render_lines(picture.render(view, width=width, height=height), pad=False)
    return ["".join(segment.text for segment in line) for line in lines]


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("moment", VIEWS)
def test_the_picture_fits(moment, width, height):
    lines = drawn(VIEWS[moment], width, height)
    assert len(lines) <= height
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    for home in scene.HOMES:
        assert home.meter in text
    shown = re.sub(r"\s", "", text)
    said = saying_of(VIEWS[moment])
    for words in (*CAPTIONS[act_of(VIEWS[moment])], *(said.text.values() if said else ())):
        assert re.sub(r"\s", "", words) in shown
    assert "…" not in shown


def test_the_picture_keeps_its_height():
    assert len({len(drawn(view, 80, 24)) for view in VIEWS.values()}) == 1


@pytest.mark.parametrize("act", Act)
def test_captions_fit_into_two_lines(act):
    for caption in CAPTIONS[act]:
        lines = picture.wrapped(caption, picture.COLUMNS_MIN - 2)
        assert len(lines) <= 2
        assert max(map(cell_len, lines)) <= picture.COLUMNS_MIN - 2


def test_the_picture_says_what_matters():
    away = "\n".join(drawn(VIEWS["2 06:10"], 100, 32))
    assert "● 黄警 yellow" in away
    assert "○ 到县 stored" in away
    assert "断 1.4 h" in away
    assert "╳" in away
    assert re.search(rf"{scene.SILENT} .*!.*黄警 YELLOW", away)
    assert re.search(rf"{scene.DEAD} +– +×+ +– +无人看 unwatched", away)
    assert re.search(rf"{scene.SILENT} .*!.*红警 RED", "\n".join(drawn(VIEWS["2 12:30"], 100, 32)))
    assert not re.search(r"[1-9]\d* (?=waiting)", "\n".join(drawn(GOOD, 100, 32)))
    assert "● 解除 ended" in "\n".join(drawn(GOOD, 100, 32))


def styles_of(view: View, text: str) -> set[str]:
    """Return the colours in which a text is drawn."""
    console = Console(width=100, height=32, color_system="standard", force_terminal=True, highlight=False)
    lines = console.render_lines(picture.render(view, width=100, height=32), pad=False)
    drawn_so = [segment for line in lines for segment in line if segment.text.strip() == text]
    return {segment.style.color.name for segment in drawn_so if segment.style and segment.style.color}


@pytest.mark.parametrize(
    ("moment", "text", "colour"),
    [
        ("1 14:00", SENTENCES[scene.DEAD]["zh"], "yellow"),
        ("2 10:30", SENTENCES[YELLOW]["en"], "yellow"),
        ("2 10:30", "黄警 YELLOW", "yellow"),
        ("2 12:30", SENTENCES[RED]["zh"], "bright_red"),
        ("2 12:30", SENTENCES[RED]["en"], "bright_red"),
        ("2 12:30", "红警 RED", "bright_red"),
        ("2 14:40", "黄警 YELLOW", "yellow"),
        ("2 15:40", SENTENCES[Transition.CLEARED]["en"], "green"),
    ],
)
def test_what_is_red_is_red(moment, text, colour):
    assert styles_of(VIEWS[moment], text) == {colour}


def test_stretches_have_their_level():
    yellow, red, again, ended = (step.at_ms for step in (OPENED, ESCALATED, CLEARED, ENDED))
    assert stretches_of(GOOD) == [
        Stretch(yellow, red, YELLOW),
        Stretch(red, again, RED),
        Stretch(again, ended, YELLOW),
    ]
    assert stretches_of(VIEWS["2 06:10"]) == [Stretch(yellow, None, YELLOW)]  # the county knows nothing of it yet


def test_it_is_over_when_nothing_of_the_home_is_open():
    assert not is_over(VIEWS["2 12:30"])
    assert not is_over(VIEWS["2 14:40"])
    assert is_over(GOOD)
    assert alert_of(GOOD).cleared_ms == CLEARED.at_ms


def test_acts_follow_what_was_observed():
    assert {moment: act_of(view) for moment, view in VIEWS.items()} == {
        "1 09:00": Act.STARTING,
        "1 09:40": Act.RULE_HOLDS,  # the usage of these views is always known
        "1 14:00": Act.RULE_HOLDS,
        "1 19:00": Act.RULE_HOLDS,
        "1 23:30": Act.RULE_HOLDS,
        "2 05:00": Act.AWAY,
        "2 06:10": Act.RAISED_WHILE_AWAY,
        "2 06:45": Act.RECONNECTING,
        "2 07:55": Act.DRAINING,
        "2 10:30": Act.CONFIRMED,
        "2 12:30": Act.RED,
        "2 13:40": Act.VISITED,
        "2 14:40": Act.YELLOW_AGAIN,
        "2 15:40": Act.CLEARED,
        "2 22:00": Act.CLEARED,
    }


def test_before_twelve_hours_are_full_the_dead_meter_is_what_matters():
    def at(moment: str) -> Act:
        usage = {"m-001": Usage(least_ml=50_000, most_ml=None, last_use_ms=None)}
        return act_of(msgspec.structs.replace(VIEWS[moment], usage=usage))

    assert [at("1 09:40"), at("1 14:00"), at("1 19:00")] == [Act.FIRST_HOURS, Act.METER_SILENT, Act.HOMES]


def test_the_visit_is_a_command_of_the_contract():
    command = visit.command(FALL, now_ms=scene.VISITOR_MS)
    assert contract.decode(Leaf.COMMAND, contract.encode(command)) == command
    assert contract.wall_ms(command.deadline) > scene.VISITOR_MS
    assert (command.alert, command.result) == (FALL, "helped")


# -- the network and the broker --------------------------------------------------------------------------------------


async def test_the_network_can_be_cut_and_mended():
    async def echo(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(100):
                writer.write(data)
        writer.close()
        await writer.wait_closed()

    far = await asyncio.start_server(echo, "127.0.0.1", 0)
    network = Network(broker_port=far.sockets[0].getsockname()[1])
    await network.mend()
    reader, writer = await asyncio.open_connection("127.0.0.1", network.port)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"

    cut = asyncio.create_task(network.cut())
    await asyncio.sleep(0.05)
    writer.write(b"two")  # into the black hole
    await cut
    with pytest.raises(ConnectionError):
        assert await reader.read(3) == b""
        raise ConnectionResetError
    assert network.bytes_lost == 3
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", network.port)

    await network.mend()
    reader, again = await asyncio.open_connection("127.0.0.1", network.port)
    again.write(b"three")
    assert await reader.readexactly(5) == b"three"
    await network.close()
    for end in (writer, again):
        end.close()
        with contextlib.suppress(ConnectionError):
            await end.wait_closed()
    far.close()
    await asyncio.sleep(0.05)  # the echo hears that its connections are gone


@pytest.mark.e2e
def test_the_broker_refuses_mqtt_5_at_once_and_takes_3_1_1():
    broker = subprocess.Popen([sys.executable, "-m", "agent.demo.broker"], stdout=subprocess.PIPE, text=True)
    try:
        port = int(broker.stdout.readline())
        for level, properties, answer in ((5, b"\x00", b"\x20\x02\x00\x01"), (4, b"", b"\x20\x02\x00\x00")):
            body = b"\x00\x04MQTT" + bytes((level, 2, 0, 30)) + properties + b"\x00\x03g-1"
            with socket.create_connection(("127.0.0.1", port), timeout=3) as client:
                client.sendall(bytes((0x10, len(body))) + body)
                assert client.recv(4) == answer
    finally:
        broker.terminate()
        broker.stdout.close()
        assert broker.wait(timeout=5) == 0
