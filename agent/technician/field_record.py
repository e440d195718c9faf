"""`shuiwang record` and `shuiwang replay` on the terminal."""

import datetime
from collections.abc import Sequence
from pathlib import Path

from agent.exit_codes import ExitCode
from agent.technician import capture, cli, replaying, views_reading, views_replaying, views_sniffing
from agent.technician.field_sniff import warn_of_tcp
from agent.technician.lines import LineError, LineOptions, line_of, line_text
from agent.technician.overhearing import overhear
from agent.technician.reading import Plan, Report
from agent.technician.recording import PassiveRecorder, record_reads
from gateway.clock import SystemClock
from gateway.line import LineSettings
from protocols.errors import PortLost, ProfileError
from protocols.profile import Profile, load


def passive(
    lines: Sequence[LineSettings], to: Path, *, seconds: float | None, profile: str | None, as_json: bool
) -> ExitCode:
    """Record what is overheard; return the exit code. `profile` is a name or a file."""
    known = cli.load_profile(profile) if profile is not None else None
    named = _reference(profile, to) if profile is not None else None
    talk = cli.new_console(stderr=True)
    writer: capture.Writer | None = None
    recorder: PassiveRecorder | None = None
    line = lines[0]
    if to.exists():
        _exists(to)
    warn_of_tcp(line)
    talk.print("recording, Ctrl-C ends 正在录制，Ctrl-C 结束", style="dim")
    try:
        for moment in overhear(lines, seconds=seconds):
            if not moment.raw and recorder is None:
                continue
            if recorder is None or line != moment.line:  # other settings: what was written was no capture yet
                if writer is not None:
                    writer.close()
                    to.unlink()
                line, writer = moment.line, _writer(to, moment.line, "passive")
                recorder = PassiveRecorder(writer, line, profile=known, named=named)
            for heard in recorder.feed(moment.elapsed_ms, moment.raw):
                talk.print(views_sniffing.frame_line(heard, width=talk.width))
    except KeyboardInterrupt:
        pass  # that is how it ends
    except PortLost as error:
        if writer is None:
            cli.port_failed(line, error)
        talk.print(f"{error}", style="red")
    except OSError as error:
        cli.fail(ExitCode.USAGE, f"{to}: cannot be written 无法写入: {error.strerror}")
    if recorder is None or writer is None:
        cli.fail(ExitCode.NO_READING, "nothing was heard; no file was made 什么也没听到，未生成文件")
    recorder.finish()
    writer.close()
    summary = {
        "file": str(to),
        "line": line_text(line),
        "events": writer.events,
        "frames": recorder.sniffer.totals.frames,
        "stray_bytes": recorder.sniffer.totals.unknown_bytes,
    }
    _say(summary, to, as_json=as_json)
    return ExitCode.OK if recorder.sniffer.totals.frames else ExitCode.NO_READING


def active(
    port: str,
    to: Path,
    meters: Sequence[str],
    options: LineOptions,
    *,
    times: int,
    every_s: float,
    as_json: bool,
) -> ExitCode:
    """Read meters and record it; return the exit code."""
    talk = cli.new_console(stderr=True)
    plans = [_plan(port, text, options) for text in meters]
    named = {plan.address_text: _reference(_split(text)[0], to) for plan, text in zip(plans, meters, strict=True)}
    if len({plan.line for plan in plans}) > 1:
        cli.fail(
            ExitCode.USAGE, "the meters leave the factory with different line settings; give --baudrate and --parity"
        )
    by_address = {plan.address_text: plan.profile.name for plan in plans}
    if any(by_address[plan.address_text] != plan.profile.name for plan in plans):
        cli.fail(ExitCode.USAGE, "an address can be read as one model only in one file 同一地址只能用一个型号")
    if to.exists():
        _exists(to)
    reports: list[Report] = []

    def tell(report: Report) -> None:
        reports.append(report)
        talk.print(views_reading.watch_line(report, None, None))

    writer = _writer(to, plans[0].line, "active")
    try:
        with writer:
            values = record_reads(
                plans, writer, times=times, every_s=every_s, clock=SystemClock(), named=named, tell=tell
            )
    except KeyboardInterrupt:
        values = sum(report.measurement is not None for report in reports)
    except OSError as error:
        cli.fail(ExitCode.USAGE, f"{to}: cannot be written 无法写入: {error.strerror}")
    lost = next((report.error for report in reports if isinstance(report.error, PortLost)), None)
    if lost is not None and not values:
        to.unlink(missing_ok=True)
        cli.port_failed(plans[0].line, lost)
    summary = {
        "file": str(to),
        "line": line_text(plans[0].line),
        "events": writer.events,
        "readings": len(reports),
        "values": values,
    }
    _say(summary, to, as_json=as_json)
    return ExitCode.OK if values else ExitCode.NO_READING


def play(file: Path, *, profile: Profile | None, as_json: bool) -> ExitCode:
    """Replay a capture and print what comes out; return the exit code."""
    try:
        loaded = capture.load(file)
        result = replaying.replay(loaded, profile=profile)
    except capture.CaptureError as error:
        cli.fail(ExitCode.USAGE, str(error))
    if as_json:
        cli.print_json(views_replaying.as_json(loaded, result))
    else:
        views_replaying.show(loaded, result, cli.new_console())
    if result.differing:
        return ExitCode.DIFFERENT
    return ExitCode.OK if any(outcome.now for outcome in result.outcomes) else ExitCode.NO_READING


def _plan(port: str, text: str, options: LineOptions) -> Plan:
    name, address = _split(text)
    try:
        profile = load(name)
        settings = line_of(port, profile=profile, **options)
        parsed = profile.parse_address(address, framing=settings.framing)
    except ProfileError as error:
        cli.fail(ExitCode.CONFIGURATION, f"--read {text[:60]!r}: {error}")
    except LineError as error:
        cli.fail(ExitCode.USAGE, str(error))
    return Plan(
        meter=address,
        line=settings,
        profile=profile,
        address=parsed,
        address_text=address,
        timeout_ms=profile.timing.timeout_ms,
        retries=profile.timing.retries,
    )


def _split(text: str) -> tuple[str, str]:
    """Return profile and address of `--read`. An address has no colon; the path of a profile may."""
    name, _, address = text.rpartition(":")
    if not name or not address:
        cli.fail(ExitCode.USAGE, f"--read {text[:60]!r}: give PROFILE:ADDRESS, such as usw-dn15-40:17 格式无效")
    return name, address


def _reference(profile: str, to: Path) -> str:
    return cli.made(lambda: capture.reference(profile, capture=to))


def _writer(to: Path, line: LineSettings, how: str) -> capture.Writer:
    at = datetime.datetime.fromtimestamp(SystemClock().now().wall_ms / 1000, datetime.UTC)
    try:
        return capture.Writer(to, line, remark=f"Recorded with `shuiwang record`, {how}, {at:%Y-%m-%d %H:%M} UTC.")
    except FileExistsError:
        _exists(to)
        raise AssertionError from None
    except OSError as error:
        cli.fail(ExitCode.USAGE, f"{to}: cannot be made 无法创建: {error.strerror}")


def _exists(to: Path) -> None:
    cli.fail(ExitCode.USAGE, f"{to} exists and is not overwritten 文件已存在; name another one with --to")


def _say(summary: dict[str, object], to: Path, *, as_json: bool) -> None:
    if as_json:
        cli.print_json(summary)
        return
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in summary.items() if isinstance(count, int))
    cli.new_console().print(f"{to}  {summary['line']}  {counts}")
    cli.new_console(stderr=True).print(
        f"look at it 查看: shuiwang replay {to}   make it a test 变成测试: tests/gateway/captures/", style="dim"
    )
