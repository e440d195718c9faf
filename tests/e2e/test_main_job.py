"""The whole way on real parts: pymodbus on a pty, `shuiwang run` as a process, mosquitto, and two kinds of county."""

import datetime
import itertools
import os
import random
import signal
import socket
import sqlite3
import sys
import time

import pytest
from partners.processes import Running, run_shuiwang

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def values(readings):
    return [reading["volume_ml"] for reading in readings if reading["volume_ml"] is not None]


def test_every_reading_reaches_the_county_though_the_broker_dies_in_between(world, soon):
    line = world.meters(17, 18)
    world.configure([17, 18, 99])
    receiver_file = world.folder / "county.db"
    receive = [sys.executable, "-m", "county.cli", "receive", "--broker", f"mqtt://127.0.0.1:{world.broker.port}"]
    with Running(world.folder / "county.log", *receive, "--db", receiver_file, "--json"):
        agent = world.agent()
        agent.wait_for("broker_connected")
        chance, shown = random.Random(5), {17: 127_113, 18: 5_000_000}
        for step in range(60):
            for unit in list(shown):
                shown[unit] += chance.randrange(4000)
                line.show(unit, shown[unit])
            if step == 15:
                world.broker.kill()
            if step == 35:
                world.broker.start()
            time.sleep(0.1)

        served_before = []

        def drained():
            served_before[:] = line.served()
            outbox = world.status()["outbox"]
            return outbox["telemetry"]["waiting"] == 0 and outbox["telemetry"]["last_seq"] > 10

        agent.wait_for("broker_lost")
        soon(drained, timeout_s=30, what="everything acknowledged")
        assert agent.stop() == 0

    served = line.served()
    stored = sqlite3.connect(receiver_file)
    for unit in (17, 18):
        rows = stored.execute(
            "select volume_ml from readings where meter = ? order by epoch, seq, at", [f"m-{unit:03}"]
        ).fetchall()
        said = [volume_ml for served_unit, volume_ml in served if served_unit == unit]
        # What the agent read after that may wait in its outbox. A value may be served more often than it becomes a
        # reading: a new process, and one that failed, asks again before it believes what it hears.
        before = [volume_ml for served_unit, volume_ml in served_before if served_unit == unit]
        stored_ml = [row[0] for row in rows]
        left = iter(said)
        assert all(volume_ml in left for volume_ml in stored_ml)  # in this order, none that was not served
        assert len(stored_ml) >= len(before) * 3 // 4
        assert len(set(before) - set(stored_ml)) <= 2
    dead = stored.execute("select distinct volume_ml, quality, reason from readings where meter = 'm-099'").fetchall()
    assert dead == [(None, "missing", "refused")]
    seqs = [row[0] for row in stored.execute("select seq from messages where stream = 'telemetry' order by seq")]
    assert seqs == list(range(1, len(seqs) + 1))


def test_low_usage_is_raised_once_resent_until_acknowledged_and_cleared_when_water_runs(world, soon):
    line = world.meters(17)
    world.configure([17], window_h=0.001)  # 3.6 s
    county = world.county(acknowledging=False)
    line.show(17, 500_000)
    agent = world.agent()
    soon(lambda: len(county.of("alert")) >= 2, timeout_s=30, what="the alert and its repetition")
    first, second = county.of("alert")[:2]
    assert (first["seq"], second["seq"]) == (1, 1)
    assert first["alert"] == second["alert"]
    assert first["alert"]["kind"] == "low_usage"
    assert (first["alert"]["state"], first["alert"]["level"]) == ("open", "yellow")
    county.acknowledging = True
    county.acknowledge()
    soon(lambda: _waiting(world) == 0, what="the receipt")
    line.show(17, 700_000)
    soon(lambda: len(county.alerts()) == 2, what="the end of the episode")
    states = [(kind, state, meter) for kind, state, meter, _ in county.alerts()]
    assert states == [("low_usage", "open", "m-017"), ("low_usage", "cleared", "m-017")]
    assert len({id_ for *_, id_ in county.alerts()}) == 1
    assert agent.stop() == 0
    assert county.of("state")[-1]["online"] is False


def _waiting(world):
    return world.status()["outbox"]["alert"]["waiting"]


def test_an_episode_survives_restarts_without_being_raised_again(world, soon):
    line = world.meters(17)
    world.configure([17], window_h=0.001)
    county = world.county()
    line.show(17, 500_000)
    agent = world.agent()
    soon(county.alerts, what="the alert")
    agent.kill()
    agent = world.agent()
    agent.wait_for("broker_connected")
    time.sleep(2)
    line.show(17, 700_000)
    soon(lambda: len(county.alerts()) >= 2, what="the end of the episode")
    assert [state for _, state, _, _ in county.alerts()] == ["open", "cleared"]
    assert len({id_ for *_, id_ in county.alerts()}) == 1


def test_the_alert_of_a_meter_that_is_taken_out_of_the_configuration_ends(world, soon):
    line = world.meters(17, 18)
    world.configure([17, 18], window_h=0.001)
    county = world.county()
    line.show(17, 500_000)
    line.show(18, 500_000)
    agent = world.agent()
    soon(lambda: len(county.alerts()) == 2, what="both alerts")
    assert agent.stop() == 0
    world.configure([18], window_h=0.001)
    world.agent()
    soon(lambda: len(county.alerts()) == 3, what="the end of one episode")
    first_id = next(id_ for _, _, meter, id_ in county.alerts() if meter == "m-017")
    assert county.alerts()[2] == ("low_usage", "cleared", "m-017", first_id)


@pytest.mark.parametrize("ran_ml", [0, 90_000, 150_000])
def test_a_gateway_that_was_off_decides_with_its_first_reading(world, soon, ran_ml):
    """Off for longer than the window: the scale is 4.3 s for 12 h, so 5 s for 14 h."""
    line = world.meters(17)
    world.configure([17], window_h=0.0012)
    county = world.county()
    line.show(17, 500_000)
    agent = world.agent()
    soon(lambda: len(values(county.readings("m-017"))) >= 2, what="two readings")
    agent.kill()
    line.show(17, 500_000 + ran_ml)
    time.sleep(5)
    served_before = len(line.served())
    agent = world.agent()
    if ran_ml < 100_000:
        soon(county.alerts, what="the alert")
        evidence = county.of("alert")[0]["alert"]["evidence"]
        assert evidence["usage_max_ml"] == ran_ml
        first = soon(lambda: _first_after_a_gap(county.readings("m-017")), what="the reading that decided")
        assert evidence["to"] == first["at"]
    else:
        soon(lambda: len(line.served()) > served_before + 4, what="a few readings")
        assert county.alerts() == []


def _first_after_a_gap(readings, *, gap_s=4):
    for earlier, later in itertools.pairwise(readings):
        moments = [datetime.datetime.fromisoformat(reading["at"]) for reading in (earlier, later)]
        if (moments[1] - moments[0]).seconds >= gap_s:
            return later
    return None


def test_kill_9_at_any_moment_loses_nothing_that_was_accepted_and_leaves_no_hole(world, soon):
    line = world.meters(17, 18)
    world.configure([17, 18], window_h=0.001, poll_every_s=0.1)
    county = world.county()
    chance, accepted = random.Random(9), set()
    for round_ in range(5):
        agent = world.agent()
        agent.wait_for("broker_connected")
        end = time.monotonic() + 2.0 + 1.5 * chance.random()  # two seconds it only listens to the line
        while time.monotonic() < end:
            # Water runs in some rounds and stands in others, so that alerts open and clear under the knife.
            line.show(17, 500_000 + (round(time.monotonic() * 1e6) % 10**9 if round_ % 2 else 0))
            line.show(18, 500_000 + round_ * 200_000)
            time.sleep(0.01)
        agent.kill()
        with sqlite3.connect(world.folder / "data" / "shuiwang.db") as store:
            accepted |= set(store.execute("select meter, wall_ms, volume_ml from reading").fetchall())
            alerts = store.execute("select last_seq from stream where name = 'alert'").fetchone()[0]
    agent = world.agent()
    agent.wait_for("broker_connected")
    soon(lambda: _waiting(world) == 0 and len(county.seqs("alert")) >= alerts, what="all alerts acknowledged")
    soon(lambda: _all_there(county, accepted), timeout_s=20, what="all accepted readings")
    assert agent.stop() == 0
    for stream in ("telemetry", "alert"):
        seqs = county.seqs(stream)
        assert seqs == list(range(1, len(seqs) + 1)), f"holes in {stream}"
    assert accepted


def _all_there(county, accepted):
    stored = {
        (reading["meter"], reading["at"], reading["volume_ml"])
        for meter in ("m-017", "m-018")
        for reading in county.readings(meter)
    }
    return {(meter, _instant(wall_ms), volume_ml) for meter, wall_ms, volume_ml in accepted} <= stored


def _instant(wall_ms):
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall_ms // 1000)) + f".{wall_ms % 1000:03}Z"


def test_a_platform_that_cannot_acknowledge_gets_each_message_once(world, soon):
    line = world.meters(17)
    world.configure([17], window_h=0.001, broker='acknowledgement = "broker"')
    county = world.county(acknowledging=False)
    line.show(17, 500_000)
    world.agent()
    soon(county.alerts, what="the alert")
    soon(lambda: _waiting(world) == 0, what="an empty outbox")
    seqs = [message["seq"] for message in county.of("telemetry")]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_second_agent_on_the_same_data_is_refused(world):
    world.meters(17)
    world.configure([17])
    world.agent().wait_for("agent_started")
    second = run_shuiwang("run", "-c", world.config)
    assert second.returncode == 4
    assert "in use by another agent" in second.stderr


def test_the_service_manager_hears_that_it_is_ready_alive_and_stopping(world):
    world.meters(17)
    world.configure([17])
    address = world.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(15)
        agent = world.agent(env={**os.environ, "NOTIFY_SOCKET": str(address)})
        said = [manager.recv(1000).decode() for _ in range(3)]
        agent.process.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in said:
            said.append(manager.recv(1000).decode())
    assert said[0].startswith("READY=1\nSTATUS=watching 1 meters on 1 buses")
    assert said[1] == "WATCHDOG=1"
    assert agent.process.wait(10) == 0


def test_a_wrong_configuration_names_file_line_and_remedy(world):
    world.meters(17)
    world.configure([17])
    broken = world.config.read_text(encoding="utf-8").replace('threshold_m3 = "0.1"', 'threshold_m3 = "0,1"')
    world.config.write_text(broken, encoding="utf-8")
    result = run_shuiwang("run", "-c", world.config)
    assert result.returncode == 3
    line_number = broken.splitlines().index('threshold_m3 = "0,1"') + 1
    assert f"shuiwang.toml:{line_number}: " in result.stderr
    assert '"0.1"' in result.stderr
    assert "Traceback" not in result.stderr
