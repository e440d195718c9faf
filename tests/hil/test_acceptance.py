"""The acceptance of a line of meters. Nothing but requests to read is sent.

Simulated, as in every run:     pytest tests/hil
Real meters on a port:          pytest tests/hil --hil-port /dev/ttyUSB0 --hil-meters meters.toml --hil-report report.md
                                (--hil-interactive also asks to unplug the adapter)
"""

import contextlib
import time
from pathlib import Path

import pytest
from hil import bench as benches

from agent.technician import checkup_meters, checkup_port
from agent.technician.reading import Station
from agent.technician.words import cubic_metres

# Of single attempts; a line that loses more needs repairing before the service is put on it.
RATE_MIN = 0.9
# A house cannot use more between two reads some seconds apart: DN40 at its full 16 m³/h for a minute.
STEP_ML_MAX = 300_000
GONE_S_MAX = 120.0

check = pytest.mark.check


@contextlib.contextmanager
def station(bench, plan):
    reading = Station(plan, clock=bench.clock)
    try:
        yield reading
    finally:
        reading.close()


@check("quiet")
def test_the_idle_line_is_quiet(bench, say):
    finding = checkup_port.silence(bench.line, seconds=0.5 if bench.is_simulated else 5.0)
    say(f"{finding.says.en} {finding.says.zh}")
    assert finding.level == "ok", finding.says.en


@check("value")
def test_it_reads_and_agrees_with_its_dial(bench, meter, say):
    with station(bench, bench.plan(meter)) as reading:
        report = reading.read()
    assert report.measurement is not None, f"{report.error}; check next: `shuiwang read`"
    volume_ml = report.measurement.volume_ml
    shown = cubic_metres(volume_ml, step_ml=report.plan.profile.head.step_ml)
    bench.measured.setdefault(meter.label, {})["reading"] = shown
    say(f"{shown} m³")
    if report.measurement.flags:
        say(f"meter reports 表报告 {', '.join(report.measurement.flags)}")
    if meter.expected_m3 is not None:
        difference_ml = volume_ml - benches.millilitres(meter.expected_m3)
        say(f"difference 差 {difference_ml / 1000:+.3f} L")
        assert abs(difference_ml) <= benches.millilitres(meter.tolerance_m3), (
            f"reads {shown} m³, the dial shows {meter.expected_m3}: another meter, or a wrong profile (unit, decimals)"
        )


@check("repeat")
@pytest.mark.timeout(3600)
def test_it_answers_again_and_again(bench, meter, reads, say):
    health = checkup_meters.measure(bench.plan(meter), reads=reads, clock=bench.clock)
    measured = bench.measured.setdefault(meter.label, {})
    measured["answered"] = f"{health.values} / {health.reads}"
    if health.latencies_ms:
        ordered = sorted(health.latencies_ms)
        measured["latency"] = f"{ordered[0]} / {ordered[len(ordered) // 2]} / {ordered[-1]}"
    say(f"{health.values} of {health.reads} reads 次, {measured.get('latency', '–')} ms")
    if health.causes:
        say(", ".join(f"{count} {cause}" for cause, count in health.causes.items()))
    assert health.values >= RATE_MIN * health.reads
    assert health.falls == 0, "the total fell between two reads"
    assert health.late == 0, "answers came after their timeout: make timeout_ms longer"


@check("turns")
def test_in_turns_each_meter_keeps_its_own_value(bench, reads, say):
    shown: dict[str, int] = {}
    turns = min(reads, 5)
    for _ in range(turns):
        for meter in bench.meters:
            with station(bench, bench.plan(meter)) as reading:
                report = reading.read()
            assert report.measurement is not None, f"{meter.label}: {report.error}"
            volume_ml = report.measurement.volume_ml
            before_ml = shown.setdefault(meter.label, volume_ml)
            assert 0 <= volume_ml - before_ml <= STEP_ML_MAX, f"{meter.label} went from {before_ml} to {volume_ml} mL"
            shown[meter.label] = volume_ml
    say(f"{turns} x {len(bench.meters)} reads 次")


@check("nobody")
def test_an_address_that_nobody_has_stays_silent(bench, meter, say):
    plan = bench.nobody(meter)
    with station(bench, plan) as reading:
        report = reading.read()
    say(f"address 地址 {plan.address_text}")
    assert report.measurement is None, f"somebody answers at {plan.address_text}: a meter that is not on the list?"
    echo = checkup_meters.is_only_echo(report)
    assert echo or report.error.reason == "no_response", f"{plan.address_text}: {report.error}"


@check("replug")
@pytest.mark.timeout(600)
def test_it_reads_again_after_the_adapter_was_unplugged(bench, say, is_interactive):
    if not bench.is_simulated and not is_interactive:
        pytest.skip("needs hands 需人工: --hil-interactive")
    meter = bench.meters[0]
    unplug, plug_in = bench.replug or (
        lambda: _ask("Unplug the adapter, then press Enter 拔下适配器，然后按回车: "),
        lambda: _ask("Plug it in again, wait 3 s, press Enter 插回，等 3 秒，按回车: "),
    )
    with station(bench, bench.plan(meter)) as reading:
        before = reading.read()
        assert before.measurement is not None, before.error
        unplug()
        gone = reading.read()
        assert gone.error is not None
        assert gone.error.reason == "port_lost", f"a value or {gone.error.reason} from a port that is gone"
        plug_in()
        began_s = time.monotonic()
        back = reading.read()
        while back.measurement is None and time.monotonic() - began_s < GONE_S_MAX:
            time.sleep(0.2)
            back = reading.read()
        took_s = time.monotonic() - began_s
    assert back.measurement is not None, (
        f"not back after {took_s:.0f} s: {back.error}; use a name under /dev/serial/by-id"
    )
    assert back.measurement.volume_ml >= before.measurement.volume_ml
    say(f"back after {took_s:.1f} s 后恢复")


def _ask(question):
    """Ask whoever sits there, past pytest's capturing."""
    with Path("/dev/tty").open("r+b", buffering=0) as terminal:
        terminal.write(b"\n" + question.encode())
        terminal.read(1)
