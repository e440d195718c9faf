"""What is said of a meter's memory: the names of its records, why one is missing, and what to check next."""

from typing import Final

from agent.technician import advice, reading, views_reading
from agent.technician.history import SILENT_MAX, Entry, Report
from agent.technician.history_records import Kind, kind_of, settlements_ago
from agent.technician.reading import Plan
from agent.technician.words import PROTOCOLS, REASONS, Words
from protocols.cjt188 import BROADCAST
from protocols.cjt188_data import CURRENT, Cjt188Spec, ClockState, knows_past
from protocols.errors import MeterError, PortLost

MISSING: Final = REASONS | {
    "empty": Words("表内为空", "empty"),
    "not_asked": Words("未问", "not asked"),
}
EMPTY: Final = Words("全填 FF 或 99，没有存过", "filled with FF or 99: nothing is kept there")
CLOCKS: Final = {
    ClockState.ABSENT: Words("表没有时钟", "the meter has none"),
    ClockState.INVALID: Words("不是有效日期", "no valid date"),
    ClockState.AMBIGUOUS: Words("正反读出两个日期，无法判断", "two dates, read from either end"),
}
WRONG_CLOCK: Final = Words(
    "表时钟与本机相差一天以上：表按自己的时钟结算，结算日随之偏移",
    "The meter's clock is off by more than a day: it settles by its own clock, so its settlement days are off too",
)
NO_SETTLED: Final = Words("901F 所报的结算值读不懂", "what 901F says of the settlement day cannot be read")
FELL: Final = Words("变小", "fell")
WHY_FELL: Final = Words(
    "总量比上次结算还小：换过表或清过零？", "less than the settlement before: meter replaced or reset?"
)
_ONE_METER: Final = Words(
    f"{BROADCAST} 只适用于线上仅有一块表；否则用 --address 写明标签上的 14 位表号",
    f"{BROADCAST} is right where the line has a single meter; else give the 14 digits of the label with --address",
)
_ENDED_BY_SILENCE: Final = Words(
    f"连续 {SILENT_MAX} 项无应答，其余未问", f"{SILENT_MAX} in a row without an answer: the rest was not asked"
)
_ENDED_BY_DEAFNESS: Final = Words("当前总量读不到，其余未问", "no answer for today's total: nothing else was asked")
_ENDED_BY_ADDRESS: Final = Words("问不到表号，其余未问", "it does not say who it is: nothing else was asked")
_ENDED_BY_PORT: Final = Words("串口不可用，其余未问", "the port cannot be used: the rest was not asked")
_ENDED_BY_HAND: Final = Words("已中断，其余未问", "stopped: the rest was not asked")
_OTHER_ORDER: Final = Words(
    "有的表标识字节顺序相反：换用 cjt188-water-1f90 或 cjt188-water-probe 再试",
    "Some want the identifier's bytes the other way round: try cjt188-water-1f90 or cjt188-water-probe",
)
_KEEPS_NONE: Final = [
    Words(
        "线路和地址都对：表有应答，但不提供这些记录",
        "Line and address are right: the meter answers, but does not give these records",
    ),
    Words(
        "2018 版的表另有历史结算：--records D200-D20B",
        "Meters of 2018 keep their settlements elsewhere: --records D200-D20B",
    ),
]
_OF_THE_GATEWAY: Final = Words(
    "网关自己读到的用水：`shuiwang advise -c 配置 --meter 表号`",
    "What the gateway itself has read of a home: `shuiwang advise -c FILE --meter ID`",
)
_DECODE_MBUS: Final = Words(
    "M-Bus 表常随读数发送往月值：`shuiwang read --json` 取帧，`shuiwang decode` 逐条看",
    "Many M-Bus meters send old values with each reading: `shuiwang read --json` has the frames, `shuiwang decode`"
    " explains each record (storage 1, 2…)",
)


def obstacle(plan: Plan) -> tuple[Words, list[Words]] | None:
    """Return why such a meter has no memory that we read, and what to do instead; None where it may have one."""
    spec, protocol = plan.profile.spec, plan.profile.head.protocol
    if isinstance(spec, Cjt188Spec):
        if knows_past(spec):
            return None
        return Words(
            f"{plan.profile.name}：该型号的总量格式特殊；它的历史记录有几位小数没有资料，不猜",
            f"{plan.profile.name}: its total has a form of its own; how many decimals its past totals have is not"
            " known, and nothing is guessed",
        ), [_OF_THE_GATEWAY]
    name = PROTOCOLS[protocol]
    return Words(
        f"{plan.profile.name} 是 {name} 表；历史记录只能从 CJ/T 188 表读取",
        f"{plan.profile.name} speaks {name}; past totals are read from CJ/T 188 meters only",
    ), [*([_DECODE_MBUS] if protocol == "mbus" else []), _OF_THE_GATEWAY]


def name_of(identifier: int) -> Words:
    """Return what a record is: `now 当前`, `3 months ago 上3月`."""
    kind, number = kind_of(identifier), settlements_ago(identifier)
    if kind is Kind.SETTLED_MONTH:
        return Words(f"上{number}月", f"{number} month{'' if number == 1 else 's'} ago")
    if kind is Kind.SETTLEMENT:
        return Words(f"前{number}次结算", f"settled {number} back")
    return {
        Kind.CURRENT: Words("当前", "now"),
        Kind.TIMED_FREEZE: Words("定时冻结", "timed freeze"),
        Kind.COMMANDED_FREEZE: Words("命令冻结", "commanded freeze"),
    }[kind or Kind.CURRENT]


def why(report: Report, entry: Entry) -> str:
    """Return in a sentence why an entry has no total; empty where it has one, or was not asked for."""
    if entry.error is not None:
        return views_reading.error_text(_as_reading(report, entry.error))
    return str(EMPTY) if entry.reason == "empty" else ""


def ended(report: Report) -> Words | None:
    """Return why not all was asked for; None where all was."""
    if report.is_interrupted:
        return _ENDED_BY_HAND
    if report.error is None or all(entry.is_asked for entry in report.entries):
        return None
    if isinstance(report.error, PortLost):
        return _ENDED_BY_PORT
    last = [entry for entry in report.entries if entry.is_asked][-1:]
    if not last:
        return _ENDED_BY_ADDRESS
    return _ENDED_BY_DEAFNESS if last[0].identifier == CURRENT else _ENDED_BY_SILENCE


def check_next(report: Report) -> list[Words]:
    """Return what to check after records were asked for; empty where the meter gave what it has."""
    if report.error is not None and (not report.has_spoken or isinstance(report.error, PortLost)):
        is_anybody = report.plan.address.address == BROADCAST and report.answered_by is None
        alone = [_ONE_METER] if is_anybody and not isinstance(report.error, PortLost) else []
        return [*alone, *advice.after(_as_reading(report, report.error))]
    if not report.has_spoken or report.remembers or report.is_interrupted:
        return []
    # Who told today's total understands the order of the bytes.
    return _KEEPS_NONE if report.current is not None else [*_KEEPS_NONE, _OTHER_ORDER]


def _as_reading(report: Report, error: MeterError) -> reading.Report:
    """Return a failure as that of a reading, of which all is said already."""
    attempt = reading.Attempt(at_ms=0, took_ms=0, reason=error.reason, text=str(error))
    return reading.Report(
        plan=report.plan, wall_ms=0, took_ms=0, attempts=(attempt,), frames=report.frames, error=error
    )
