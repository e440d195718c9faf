"""A check-up of a line or of a whole gateway: each thing that can be wrong, as a finding with what to check next.

    port ─> adapter ─> silence ─> echo ─> each meter        clock, disk, store, broker (with a configuration)

Only requests to read are sent, and none at all into a line on which another master talks or that the service holds.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final

from agent.exit_codes import ExitCode
from agent.settings import Config
from agent.technician import checkup_broker, checkup_gateway, checkup_meters, checkup_port
from agent.technician.finding import Finding, Level
from agent.technician.reading import Plan, plan_from_config
from agent.technician.words import Words
from gateway.clock import Clock
from gateway.line import LineSettings, open_port
from gateway.lock import is_locked

# Five reads tell a meter that answers always from one that answers often; the service does thousands.
READS: Final = 5
LISTEN_S: Final = 1.5


class Doctor:
    """One check-up. Its methods yield findings as they are made."""

    def __init__(
        self,
        clock: Clock,
        *,
        reads: int = READS,
        listen_s: float = LISTEN_S,
        opener: Callable[[LineSettings], Any] = open_port,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._reads = reads
        self._listen_s = listen_s
        self._opener = opener
        self._monotonic = monotonic

    def examine_port(self, line: LineSettings) -> Iterator[Finding]:
        """Look at a port of which no meter is known."""
        is_silent = yield from self._line(line)
        if is_silent and line.framing != "tcp":
            yield checkup_port.echo(line, opener=self._opener, monotonic=self._monotonic)
        if is_silent:
            yield Finding(
                topic="meters",
                level="note",
                says=Words("没有给出水表：只检查了串口", "no meter is known: only the port was looked at"),
                next=(
                    Words("查找水表：`shuiwang scan`", "Look for meters: `shuiwang scan`"),
                    Words("检查全部：`shuiwang doctor -c 配置`", "Check everything: `shuiwang doctor -c FILE`"),
                ),
            )
        yield checkup_gateway.clock(self._clock.now())

    def examine_gateway(self, config: Config) -> Iterator[Finding]:
        """Look at everything that a configuration names."""
        if is_locked(config.gateway.data_dir):
            yield Finding(
                topic="service",
                level="ok",
                says=Words(
                    "水望服务正在运行并占用线路：不打扰它，水表按它的记录判断",
                    "the service runs and holds the lines: it is left alone, meters are judged by what it stored",
                ),
                data={"running": True},
            )
            yield from checkup_gateway.meters_by_store(config, self._clock)
        else:
            for line in config.buses:
                meters = [meter.id for meter in config.meters if meter.bus == line.name]
                yield from self._bus(line, [plan_from_config(config, meter) for meter in meters])
        yield checkup_gateway.clock(self._clock.now())
        yield from checkup_gateway.disk(config)
        yield from checkup_gateway.store(config, self._clock)
        yield from checkup_broker.examine(config, now_ms=self._clock.now().wall_ms, monotonic=self._monotonic)

    def _bus(self, line: LineSettings, plans: list[Plan]) -> Iterator[Finding]:
        is_silent = yield from self._line(line)
        if not is_silent:
            return
        yield from checkup_meters.examine(
            plans, reads=self._reads, clock=self._clock, opener=self._opener, monotonic=self._monotonic
        )

    def _line(self, line: LineSettings) -> Generator[Finding, None, bool]:
        """Look at a port and listen; return whether it may be asked into."""
        usable = yield from _until_bad(checkup_port.device(line, opener=self._opener))
        if not usable:
            return False
        if line.framing == "tcp":
            return True  # a connection is nobody else's: there is nothing to overhear, and no echo
        finding = checkup_port.silence(line, seconds=self._listen_s, opener=self._opener, monotonic=self._monotonic)
        yield finding
        return finding.level != "bad" and not finding.data.get("masters")


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return the code of the first finding that is bad: what is looked at first is what the rest stands on."""
    return next((finding.code for finding in findings if finding.level == "bad"), ExitCode.OK)


def _until_bad(findings: Iterable[Finding]) -> Generator[Finding, None, bool]:
    for finding in findings:
        yield finding
        if finding.level == "bad":
            return False
    return True


__all__ = ["Doctor", "Finding", "Level", "exit_code"]
