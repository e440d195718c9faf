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
from agent.demo import checks, picture, scene
from agent.demo.network import Network
from agent.demo.observer import Link, Step, Stored, Usage, View
from agent.demo.story import CAPTIONS, Act, act_of
from agent.exit_codes import ExitCode
from gateway import village_file
from gateway.responder import SimulatedMeter
from gateway.store import StreamStatus
from protocols.contract import AlertBody, AlertState, Kind, Level, instant
from protocols.reading import ClockTrust, Moment, Quality, Reading

pytest.importorskip("amqtt", reason="the demo needs the extra `demo`")

PLAN = village_file.parse(scene.village_text(), where="demo")
EPISODE = "01JAF0000000000000000000ZZ"
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
    assert stdout.count("✓") == 6
    assert "✗" not in stdout
    for station in ("raised", "delivered", "confirmed", "cleared"):
        assert f"alert {station}: {scene.SILENT}" in stdout
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


# -- the proofs ----------------------------------------------------------------------------------------------------


def reading_at(meter: str, wall_ms: int) -> Reading:
    simulated = next(SimulatedMeter(plan, chance=None) for plan in PLAN.meters if plan.id == meter)
    moment = Moment(
        wall_ms=wall_ms, trust=ClockTrust.SYNCED, uncertainty_ms=0, boot_id="b", boottime_ms=wall_ms - scene.OPENS_MS
    )
    if meter == scene.DEAD:
        return Reading(meter=meter, at=moment, quality=Quality.MISSING, reason="no_response")
    return Reading(meter=meter, at=moment, quality=Quality.OK, volume_ml=simulated.shown_ml(wall_ms - 90_000))


def good_view(until_ms: int = scene.moment_ms(2, "15:00")) -> View:
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
    raised, cleared = scene.moment_ms(2, "07:40"), scene.moment_ms(2, "14:44")
    steps = [
        Step(seq=1, state="open", at_ms=raised, received_ms=back + 3_600_000, **STEP),
        Step(seq=2, state="cleared", at_ms=cleared, received_ms=cleared + 20_000, **STEP),
    ]
    steps = [step for step in steps if step.received_ms <= until_ms]
    episode = AlertBody(
        id=EPISODE,
        meter=scene.SILENT,
        kind=Kind.LOW_USAGE,
        state=AlertState.OPEN,
        level=Level.YELLOW,
        since=instant(raised - 12 * scene.HOUR_MS),
        at=instant(raised),
        historical=False,
        evidence={},
    )
    waiting = 2 * (len(taken) - len(stored)) // 7
    made = (until_ms >= raised) + (until_ms >= cleared)
    return View(
        now_ms=until_ms,
        taken=taken,
        stored=stored,
        steps=steps,
        open_episodes=(episode,) if raised <= until_ms < cleared else (),
        usage={
            home.meter: Usage(least_ml=120_000, most_ml=120_000, last_use_ms=until_ms - 2 * scene.HOUR_MS)
            for home in scene.HOMES
            if home.meter != scene.DEAD and until_ms > scene.OPENS_MS
        },
        telemetry=StreamStatus(last_seq=seq, acked_seq=seq - waiting, acked_wall_ms=until_ms),
        alerts=StreamStatus(last_seq=made, acked_seq=len(steps), acked_wall_ms=until_ms),
        link=Link(
            is_up=not away <= until_ms < back,
            away_ms=away if until_ms >= away else None,
            back_ms=back if until_ms >= back else None,
        ),
        confirmed_ms=steps[0].received_ms if steps else None,
        is_settled=waiting == 0 and made == len(steps),
    )


STEP = {"id": EPISODE, "meter": scene.SILENT, "kind": Kind.LOW_USAGE}
GOOD = good_view()


def change(view: View, where, **fields) -> View:
    """Return a view in which the first stored reading that `where` chooses has other fields; none: it is gone."""
    index = next(index for index, row in enumerate(view.stored) if where(row))
    stored = list(view.stored)
    stored[index : index + 1] = [msgspec.structs.replace(stored[index], **fields)] if fields else []
    return msgspec.structs.replace(view, stored=stored)


def with_steps(*steps: Step, **fields) -> View:
    count = StreamStatus(last_seq=len(steps), acked_seq=len(steps), acked_wall_ms=0)
    return msgspec.structs.replace(GOOD, **{"steps": steps, "alerts": count} | fields)


def failing(view: View) -> list[str]:
    return [check.english for check in checks.check_all(view, PLAN) if not check.holds]


ARRIVED, TRUE, OUTAGE, DEAD, ALERT = (check.english for check in checks.check_all(GOOD, PLAN))


def living(row: Stored) -> bool:
    return row.meter == "m-001" and row.at_ms > scene.moment_ms(1, "12:00")


def in_outage(row: Stored) -> bool:
    return row.meter == "m-003" and scene.NETWORK_AWAY_MS < row.at_ms < scene.NETWORK_BACK_MS


def test_a_good_play_proves_everything():
    assert failing(GOOD) == []


OPEN, CLEARED = GOOD.steps
OTHER_HOME = msgspec.structs.replace(OPEN, seq=3, meter="m-001", id=EPISODE[:-1] + "Y")
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
    "the network was never cut": (msgspec.structs.replace(GOOD, link=Link()), {OUTAGE}),
    "the dead meter became 0": (
        change(GOOD, lambda row: row.meter == scene.DEAD, volume_ml=0, quality="ok", reason=None),
        {ARRIVED, TRUE, DEAD},
    ),
    "something still waits": (msgspec.structs.replace(GOOD, is_settled=False), {ARRIVED}),
    "no alert": (with_steps(), {ALERT}),
    "never cleared": (with_steps(OPEN), {ALERT}),
    "cleared as another": (with_steps(OPEN, msgspec.structs.replace(CLEARED, id=EPISODE[:-1] + "X")), {ALERT}),
    "raised twice": (with_steps(OPEN, msgspec.structs.replace(OPEN, seq=2), CLEARED), {ALERT}),
    "another home is alarmed": (with_steps(OPEN, CLEARED, OTHER_HOME), {ALERT}),
    "not acknowledged": (
        with_steps(OPEN, CLEARED, alerts=StreamStatus(last_seq=2, acked_seq=1, acked_wall_ms=0)),
        {ALERT},
    ),
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

MOMENTS = ["05:00", "05:40", "11:00", "15:00", "19:00", "23:30"]
NEXT_DAY = ["06:50", "08:00", "09:10", "10:30", "12:00", "15:00", "22:00"]
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
    assert "…" not in "".join(lines)
    text = "\n".join(lines)
    for home in scene.HOMES:
        assert home.meter in text
    shown = re.sub(r"\s", "", text)
    for caption in CAPTIONS[act_of(VIEWS[moment])]:
        assert re.sub(r"\s", "", caption) in shown


def test_the_picture_keeps_its_height():
    assert len({len(drawn(view, 80, 24)) for view in VIEWS.values()}) == 1


@pytest.mark.parametrize("act", Act)
def test_captions_fit_into_two_lines(act):
    for caption in CAPTIONS[act]:
        lines = picture.wrapped(caption, picture.COLUMNS_MIN - 2)
        assert len(lines) <= 2
        assert max(map(cell_len, lines)) <= picture.COLUMNS_MIN - 2


def test_the_picture_says_what_matters():
    away = "\n".join(drawn(VIEWS["2 08:00"], 100, 32))
    assert "● 发出 raised" in away
    assert "○ 送达 delivered" in away
    assert "断 1.3 h" in away
    assert "╳" in away
    assert re.search(rf"{scene.SILENT} .*!.*报警 ALERT", away)
    assert re.search(rf"{scene.DEAD} +– +×+ +– +无应答 no answer", away)
    assert not re.search(r"[1-9]\d* (?=waiting)", "\n".join(drawn(GOOD, 100, 32)))
    assert "● 解除 cleared" in "\n".join(drawn(GOOD, 100, 32))


def test_acts_follow_what_was_observed():
    acts = [act_of(view) for view in VIEWS.values()]
    assert acts[0] is Act.STARTING
    assert act_of(VIEWS["2 08:00"]) is Act.RAISED_WHILE_AWAY
    assert act_of(VIEWS["2 09:10"]) is Act.RECONNECTING
    assert act_of(VIEWS["2 10:30"]) is Act.DRAINING
    assert act_of(VIEWS["2 12:00"]) is Act.CONFIRMED
    assert acts[-1] is Act.CLEARED


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
