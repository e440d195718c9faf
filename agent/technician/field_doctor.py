"""`shuiwang doctor` on the terminal: findings as they are made, one line at the end."""

from collections.abc import Iterator
from pathlib import Path

from agent.exit_codes import ExitCode
from agent.technician import cli, views_doctor
from agent.technician.doctor import Doctor, exit_code
from agent.technician.finding import Finding
from gateway.clock import SystemClock
from gateway.line import LineSettings


def examine(config: Path | None, line: LineSettings | None, *, reads: int, listen_s: float, as_json: bool) -> ExitCode:
    """Examine a gateway or a port and print; return the exit code. What was stopped before its end is never well."""
    doctor = Doctor(SystemClock(), reads=reads, listen_s=listen_s)
    findings: list[Finding] = []
    console = cli.new_console()
    is_whole = True
    try:
        for finding in _findings(doctor, config, line):
            findings.append(finding)
            if not as_json:
                console.print(views_doctor.render(finding))
    except KeyboardInterrupt:
        is_whole = False
    code = exit_code(findings)
    if not is_whole and code is ExitCode.OK:
        code = ExitCode.INTERRUPTED
    if as_json:
        cli.print_json(views_doctor.as_json(findings, code, is_complete=is_whole))
    else:
        console.print()
        console.print(views_doctor.summary(findings, is_complete=is_whole))
    if not is_whole:
        cli.new_console(stderr=True).print("stopped before the end 已中断，检查未完成", style="yellow")
    return code


def _findings(doctor: Doctor, config: Path | None, line: LineSettings | None) -> Iterator[Finding]:
    if config is None:
        assert line is not None
        return doctor.examine_port(line)
    from agent.config import ConfigError, load
    from protocols.errors import ProfileError

    try:
        return doctor.examine_gateway(load(config))
    except (ConfigError, ProfileError) as error:
        cli.fail(ExitCode.CONFIGURATION, str(error))
