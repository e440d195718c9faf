"""The report that a technician files: Markdown, Chinese and English, one table of meters and one of checks."""

import datetime
import importlib.metadata
import platform

CHECKS = {
    "quiet": "空闲线安静 the idle line is quiet",
    "value": "读数与表盘相符 reads, and agrees with the dial",
    "repeat": "反复读：应答率、延时、不倒退 again and again: rate, latency, never falling",
    "turns": "轮流读，互不串读 in turns, never another meter's value",
    "nobody": "空地址无应答 an address that nobody has stays silent",
    "replug": "拔插适配器后恢复 unplugged and back",
}
SIGNS = {"passed": "✔ 通过 passed", "failed": "✘ 未通过 FAILED", "skipped": "– 未做 not done"}


def render(bench, *, wall_ms):
    """The whole report."""
    at = datetime.datetime.fromtimestamp(wall_ms / 1000, datetime.UTC).astimezone()
    failed = sum(result.outcome == "failed" for result in bench.results)
    skipped = sum(result.outcome == "skipped" for result in bench.results)
    verdict = "未通过 NOT ACCEPTED" if failed or not bench.results else "通过 ACCEPTED"
    kind = "模拟水表 simulated meters" if bench.is_simulated else "真实水表 real meters"
    passed = len(bench.results) - failed - skipped
    machine = f"{platform.system()} {platform.release()}"
    software = f"shuiwang {importlib.metadata.version('shuiwang')}, Python {platform.python_version()}, {machine}"
    line = bench.line
    parts = [
        f"# 水表验收报告 Acceptance report: {verdict}",
        "",
        f"- 时间 when: {at:%Y-%m-%d %H:%M %Z}",
        f"- 串口 port: `{bench.port}` {line.baudrate} 8{line.parity}{line.stop_bits}, {bench.adapter()}",
        f"- 对象 of: {kind}, {len(bench.meters)}",
        f"- 软件 software: {software}",
        f"- 结果 outcome: {passed} 通过 passed, {failed} 未通过 failed, {skipped} 未做 not done",
        "",
        "## 水表 Meters",
        "",
        "| 水表 meter | 读数 reading m³ | 表盘 dial m³ | 应答 answered | 延时 ms min/median/max |",
        "|---|---|---|---|---|",
        *(_row(meter, bench.measured.get(meter.label, {})) for meter in bench.meters),
        "",
        "## 检查 Checks",
        "",
        "| 检查 check | 水表 meter | 结果 outcome | 说明 detail |",
        "|---|---|---|---|",
        *(
            f"| {CHECKS[result.check]} | {_cell(result.meter)} | {SIGNS[result.outcome]} | {_cell(result.detail)} |"
            for result in sorted(bench.results, key=_order)
        ),
        "",
        "技术员 technician: ____________________　　日期 date: ____________________",
        "",
    ]
    return "\n".join(parts)


def _row(meter, measured):
    cells = (
        meter.label,
        measured.get("reading", "–"),
        meter.expected_m3 or "未给出 not given",
        measured.get("answered", "–"),
        measured.get("latency", "–"),
    )
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text):
    return str(text).replace("|", "\\|").replace("\n", " ")


def _order(result):
    return list(CHECKS).index(result.check), result.meter
