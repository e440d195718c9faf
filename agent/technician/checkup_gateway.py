"""The gateway around the lines: its clock, its disk, its store, and what the running service stored of its meters."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.exit_codes import ExitCode
from agent.service import STORE_BYTES_MAX, STORE_NAME
from agent.settings import Config
from agent.status import status as status_of
from agent.technician.finding import Finding
from agent.technician.words import REASONS, Words, cubic_metres, word
from gateway.clock import Clock
from gateway.store import Store, StoreError
from protocols.contract import Stream, instant
from protocols.errors import WrongAnswer
from protocols.reading import ClockTrust, Moment

# 2026-01-01: this was written later, so a clock that shows less was never set.
WRITTEN_MS: Final = 1_767_225_600_000
# Readings are dated to the second; a clock that may be further off confuses who compares two gateways.
UNCERTAINTY_MS_GOOD: Final = 1000
MIB: Final = 1024 * 1024
# SQLite needs room for its write-ahead log and our reserve beside the store itself (`gateway.store_file`).
DISK_BYTES_MIN: Final = 64 * MIB
# A county that has been away for so long is worth a call.
WAITING_S_MAX: Final = 3600


def clock(now: Moment) -> Finding:
    """Return how far the wall clock can be trusted."""
    shown = instant(now.wall_ms)
    data = {"at": shown, "trust": now.trust.value, "uncertainty_ms": now.uncertainty_ms}
    steps = (
        Words("查看：timedatectl；chronyc sources 或 ntpq -p", "Look: timedatectl; chronyc sources or ntpq -p"),
        Words(
            "网络不通时：用带电池的 RTC；在此之前读数的时间不可信，用水量仍然正确",
            "Without network: a clock module with a battery. Until then dates are doubtful, usage is right",
        ),
    )
    if now.wall_ms < WRITTEN_MS:
        says = Words(f"系统时间是 {shown}：从未校准", f"the clock shows {shown}: it was never set")
        return Finding(topic="clock", level="warn", says=says, next=steps, data=data)
    if now.trust is not ClockTrust.SYNCED:
        says = Words("系统时间没有被任何时间源校准", "no time source disciplines the clock")
        return Finding(topic="clock", level="warn", says=says, next=steps, data=data)
    within = now.uncertainty_ms or 0
    says = Words(f"系统时间已校准，误差不超过 {within} ms", f"the clock is synchronised to within {within} ms")
    level = "warn" if within > UNCERTAINTY_MS_GOOD else "ok"
    return Finding(topic="clock", level=level, says=says, next=steps if level == "warn" else (), data=data)  # type: ignore[arg-type]


def disk(config: Config) -> Iterator[Finding]:
    """Yield whether data_dir can be written and has room."""
    folder = config.gateway.data_dir
    there = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        space = os.statvfs(there)
    except OSError as error:
        says = Words(f"{there} 读不到：{error}", f"{there} cannot be looked at: {error}")
        yield Finding(topic="disk", level="bad", says=says, code=ExitCode.STORE)
        return
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    data = {"folder": str(folder), "free_bytes": free, "total_bytes": total, "free_inodes": space.f_favail}
    is_read_only = bool(space.f_flag & os.ST_RDONLY)
    if is_read_only or not os.access(there, os.W_OK):
        yield Finding(
            topic="disk",
            level="bad",
            says=Words(
                f"{there} 不可写" + ("（只读挂载：卡可能坏了）" if is_read_only else ""),
                f"{there} cannot be written"
                + (" (mounted read-only: the card may be failing)" if is_read_only else ""),
            ),
            next=(
                Words("看内核日志：dmesg | tail", "Look at the kernel's log: dmesg | tail"),
                Words(f"属主与权限：ls -ld {there}", f"Owner and permissions: ls -ld {there}"),
            ),
            data=data,
            code=ExitCode.STORE,
        )
        return
    free_mib = free // MIB
    tight = Words(
        f"清理：du -xh {there} | sort -h | tail；日志：journalctl --vacuum-size=50M",
        f"Make room: du -xh {there} | sort -h | tail; logs: journalctl --vacuum-size=50M",
    )
    if free < DISK_BYTES_MIN or (space.f_files and not space.f_favail):
        says = Words(f"磁盘几乎满：剩 {free_mib} MiB", f"the disk is nearly full: {free_mib} MiB left")
        yield Finding(topic="disk", level="bad", says=says, next=(tight,), data=data, code=ExitCode.STORE)
    elif free < STORE_BYTES_MAX:
        says = Words(
            f"剩 {free_mib} MiB，存储最多会用 {STORE_BYTES_MAX // MIB} MiB",
            f"{free_mib} MiB left; the store may grow to {STORE_BYTES_MAX // MIB} MiB",
        )
        yield Finding(topic="disk", level="warn", says=says, next=(tight,), data=data)
    else:
        yield Finding(topic="disk", level="ok", says=Words(f"剩 {free_mib} MiB", f"{free_mib} MiB free"), data=data)


def store(config: Config, now: Clock) -> Iterator[Finding]:
    """Yield whether the store is sound, and what waits in it."""
    path = config.gateway.data_dir / STORE_NAME
    damaged = sorted(str(file) for file in path.parent.glob(f"{STORE_NAME}.damaged-*") if not file.name.endswith(_SIDE))
    if damaged:
        yield Finding(
            topic="store",
            level="warn",
            says=Words(
                f"有 {len(damaged)} 个曾损坏的存储被移开：{damaged[-1]}",
                f"{len(damaged)} damaged store(s) were set aside: {damaged[-1]}",
            ),
            next=(
                Words(
                    "卡可能在坏：dmesg；换卡，把文件交给支持",
                    "The card may be failing: dmesg; replace it, send the file in",
                ),
            ),
            data={"set_aside": damaged},
        )
    if not path.exists():
        says = Words(f"还没有存储（{path}）：服务没运行过", f"no store yet ({path}): the service has not run here")
        yield Finding(topic="store", level="note", says=says, data={"path": str(path)})
        return
    try:
        problems = _quick_check(path)
        opened = Store(path, read_only=True)
    except (StoreError, sqlite3.Error) as error:
        yield Finding(
            topic="store",
            level="bad",
            says=Words(f"存储打不开：{error}", f"the store cannot be opened: {error}"),
            next=(
                Words(
                    "权限：用服务的用户运行；损坏的存储会在服务启动时自动移开并抢救",
                    "Run as the service's user; a damaged store is set aside and salvaged when the service starts",
                ),
            ),
            data={"path": str(path), "error": str(error)},
            code=ExitCode.STORE,
        )
        return
    try:
        yield _health(opened, problems, now)
    finally:
        opened.close()


def meters_by_store(config: Config, now: Clock) -> Iterator[Finding]:
    """Yield how each meter was when the service polled it last."""
    try:
        report = status_of(config, now)
    except StoreError as error:
        says = Words(f"存储读不到：{error}", f"the store cannot be read: {error}")
        yield Finding(topic="meter", level="bad", says=says, code=ExitCode.STORE)
        return
    for meter in report.meters:
        shown = "–" if meter.volume_ml is None else f"{cubic_metres(meter.volume_ml, step_ml=1000)} m³"
        age = "" if meter.value_age_s is None else f", {meter.value_age_s} s"
        reason = word(REASONS, meter.last_reason) if meter.last_reason else None
        says = Words(
            f"{meter.meter}（{meter.profile} {meter.address}）：{shown}{age}"
            + (f"，最近一次：{reason.zh}" if reason else ""),
            f"{meter.meter} ({meter.profile} {meter.address}): {shown}{age}"
            + (f", last poll: {reason.en}" if reason else ""),
        )
        level = {"ok": "warn" if reason else "ok", "stale": "bad", "never": "bad"}[meter.state]
        steps = (
            *([_MAY_BE_BEHIND] if level == "bad" and meter.last_reason == WrongAnswer.reason else []),
            Words(
                "停服务后细查：systemctl stop shuiwang && shuiwang doctor -c …",
                "To look closer: systemctl stop shuiwang && shuiwang doctor -c …",
            ),
        )
        yield Finding(
            topic="meter",
            level=level,  # type: ignore[arg-type] # one of the four
            says=says,
            next=steps if level != "ok" else (),
            data={"meter": meter.meter, "state": meter.state, "volume_ml": meter.volume_ml, "age_s": meter.value_age_s},
            code=ExitCode.NO_READING if level == "bad" else ExitCode.OK,
        )


_MAY_BE_BEHIND: Final = Words(
    "一直没有读数、只有错答：串口服务器或网关可能慢一拍，先重启它",
    "No value, but wrong answers: a serial server may be one answer behind; restart it first",
)
_SIDE: Final = ("-wal", "-shm")


def _quick_check(path: Path) -> list[str]:
    """Return what SQLite finds wrong with a file; empty for a sound one. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        found = [str(row[0]) for row in connection.execute("pragma quick_check(5)")]
    finally:
        connection.close()
    return [] if found == ["ok"] else found


def _health(opened: Store, problems: list[str], now: Clock) -> Finding:
    waiting, oldest_s = {}, 0
    for stream in Stream:
        numbers = opened.status(stream)
        waiting[stream.value] = numbers.last_seq - numbers.acked_seq
        if waiting[stream.value] and numbers.acked_wall_ms is not None:
            oldest_s = max(oldest_s, (now.now().wall_ms - numbers.acked_wall_ms) // 1000)
    used = opened.bytes_used()
    data = {"bytes": used, "waiting": waiting, "acknowledged_s_ago": oldest_s or None, "problems": problems}
    if problems:
        return Finding(
            topic="store",
            level="bad",
            says=Words(f"存储损坏：{problems[0]}", f"the store is damaged: {problems[0]}"),
            next=(
                Words(
                    "重启服务：它会移开损坏的文件并抢救数据；卡可能在坏（dmesg）",
                    "Restart the service: it sets the file aside and salvages it; the card may be failing (dmesg)",
                ),
            ),
            data=data,
            code=ExitCode.STORE,
        )
    counts = ", ".join(f"{count} {name}" for name, count in waiting.items())
    says = Words(
        f"存储完好，{used / MIB:.1f} MiB；待县确认：{counts}",
        f"the store is sound, {used / MIB:.1f} MiB; waiting: {counts}",
    )
    if oldest_s > WAITING_S_MAX:
        ago = f"{oldest_s // 3600} h"
        steps = (
            Words(
                f"县平台 {ago} 没有确认：查网络与平台", f"The county has not acknowledged for {ago}: network, platform?"
            ),
        )
        return Finding(topic="store", level="warn", says=says, next=steps, data=data)
    return Finding(topic="store", level="ok", says=says, data=data)
