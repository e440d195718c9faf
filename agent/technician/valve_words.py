"""What a technician is told before a valve moves, the words that must be said, and what to check when it did not."""

import enum
import unicodedata
from typing import Final

from agent.technician import advice, reading
from agent.technician.reading import Plan
from agent.technician.valve import Look, Report
from agent.technician.words import Words
from protocols.cjt188 import BROADCAST
from protocols.cjt188_data import Cjt188Spec
from protocols.cjt188_dialogue import Position


class Action(enum.StrEnum):
    """What `shuiwang valve` is asked to do."""

    OPEN = "open"
    CLOSE = "close"
    STATUS = "status"

    @property
    def target(self) -> Position | None:
        """Where the valve goes; None where it stays."""
        return {"open": Position.OPEN, "close": Position.CLOSED}.get(self.value)


ACTIONS: Final = {
    Action.OPEN: Words("开阀", "open"),
    Action.CLOSE: Words("关阀", "close"),
    Action.STATUS: Words("阀门状态", "status"),
}
POSITIONS: Final = {
    Position.OPEN: Words("开", "open"),
    Position.CLOSED: Words("关", "closed"),
    Position.FAULT: Words("阀门异常", "valve fault"),
    Position.UNKNOWN: Words("不明", "unknown"),
}
# The third is what the county sees: `low_usage` needs nothing but a register that stands still.
WARNINGS: Final = {
    Action.CLOSE: [
        Words(
            "关阀后这户人家完全停水：不能喝水、做饭、冲厕",
            "Closing stops all water in this home: nothing to drink, to cook with, to flush with",
        ),
        Words(
            "住户可能是独居老人：先当面或电话告知本人，并通知村级协理员；约好谁来开阀",
            "An old person may live here alone: tell them and the village assistant first; who opens it again?",
        ),
        Words(
            "关阀期间用水为零，县平台会收到低用水告警：请先告知县里",
            "A closed valve looks like a person who has fallen: the county will get a low-usage alert, so tell it now",
        ),
    ],
    Action.OPEN: [
        Words(
            "开阀后立即来水：屋内有人吗？龙头关好了吗？管道完好吗？",
            "Water runs at once: is somebody inside, are the taps closed, is the pipe whole?",
        ),
    ],
}
GO_AND_LOOK: Final = Words(
    "不要假定结果：到现场开一个龙头看有没有水，再离开",
    "Assume nothing: open a tap in the home and see whether water comes, before you leave",
)
_WITHOUT_VALVE: Final = Words(
    "该型号没有写明阀门命令，不能动阀",
    "this profile names no valve commands, so no valve is moved",
)
_OTHER_PROFILE: Final = Words(
    "表确有阀门时：换用 cjt188-water-valve 或 cjt188-water-valve-2a，或在自己的型号文件里写明 [cjt188] valve",
    "If the meter has a valve: take cjt188-water-valve or cjt188-water-valve-2a, or name its commands in a profile of"
    " your own, [cjt188] valve (docs/profiles.md)",
)
_BY_HAND: Final = Words("没有电动阀：用表前的手动阀", "If it has none: use the hand valve in front of the meter")


def obstacle(plan: Plan, action: Action) -> tuple[Words, list[Words]] | None:
    """Return why this cannot be done to such a meter, and what to do instead; None where it can."""
    spec = plan.profile.spec
    if not isinstance(spec, Cjt188Spec):
        return Words(
            f"{plan.profile.name} 是 {plan.profile.head.protocol} 表；只支持 CJ/T 188 表的阀门",
            f"{plan.profile.name} speaks {plan.profile.head.protocol}; valves are moved on CJ/T 188 meters only",
        ), [_BY_HAND]
    if action is Action.STATUS:
        if "valve_closed" in spec.status:
            return None
        return Words(
            f"{plan.profile.name}：该型号没有写明阀门状态位，无法判断",
            f"{plan.profile.name}: this profile names no status bit for the valve (valve_closed)",
        ), [_OTHER_PROFILE]
    if spec.valve is None:
        return Words(f"{plan.profile.name}：{_WITHOUT_VALVE.zh}", f"{plan.profile.name}: {_WITHOUT_VALVE.en}"), [
            _OTHER_PROFILE,
            _BY_HAND,
        ]
    if plan.address.address == BROADCAST:
        return Words(
            f"地址 {BROADCAST} 是所有的表：动阀必须写明一块表的地址",
            f"{BROADCAST} is every meter: a valve is moved by its own meter's address",
        ), [
            Words(
                "`shuiwang scan` 可查出地址；表上标签也有",
                "`shuiwang scan` finds the address; it is on the meter's label too",
            )
        ]
    return None


def phrases(plan: Plan, action: Action) -> tuple[str, str]:
    """Return the words that name what will happen, in English and in Chinese: `close 00000805000001`."""
    words = ACTIONS[action]
    return f"{words.en} {plan.address.address}", f"{words.zh} {plan.address.address}"


def says_so(text: str, plan: Plan, action: Action) -> bool:
    """Tell whether a text is one of the phrases; spaces, capitals and full-width digits make no difference."""
    return _folded(text) in {_folded(phrase) for phrase in phrases(plan, action)}


def check_next(report: Report) -> list[Words]:
    """Return what to do after a valve was to move; empty where it is confirmed."""
    if report.is_confirmed:
        return []
    if not report.is_sent:
        return after_look(report.plan, report.before)
    assert report.command is not None
    found = [GO_AND_LOOK]
    if report.position is Position.FAULT:
        found.append(
            Words(
                "表报阀门异常：阀可能卡住；反复发命令会烧电机，请联系厂家",
                "The meter reports a valve fault: it may be stuck; repeating wears the motor, call the maker",
            )
        )
    if report.command.reason == "refused":
        found.append(
            Words(
                "表拒绝命令：电池欠压或欠费时有的表不动阀；或该用另一型号（control 04 / 2A）",
                "The meter refused: some do on a low battery or when money is owed; or try the other code (04, 2A)",
            )
        )
    found.append(
        Words(
            "再看状态（不动阀）：shuiwang valve status …",
            "See again where it is, without moving it: shuiwang valve status …",
        )
    )
    if report.target is Position.CLOSED:
        found.append(
            Words(
                "在弄清之前，按已停水对待：告知住户和村级协理员",
                "Until you know, treat the home as one without water: tell the resident and the village assistant",
            )
        )
    return found


def after_look(plan: Plan, look: Look) -> list[Words]:
    """Return what to check after a reading that failed; empty where it did not fail."""
    return advice.after(reading.Report(plan=plan, wall_ms=0, took_ms=0, attempts=(), frames=(), error=look.error))


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())
