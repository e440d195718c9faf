"""What is happening now, in words: read off what was observed, never off the script."""

import enum
from typing import Final, NamedTuple

from agent.demo import scene
from agent.demo.observer import Step, View
from protocols.contract import AlertBody, Kind, Level, Transition, wall_ms

_QUIET_MS: Final = 3 * scene.HOUR_MS
_SHOWN_MS: Final = 4 * scene.HOUR_MS  # for so long the dead meter is what matters


class Alert(NamedTuple):
    """How far the silent home's alert has come; each in village time, None for what is still to come."""

    raised_ms: int | None
    confirmed_ms: int | None
    escalated_ms: int | None
    visited_ms: int | None
    cleared_ms: int | None


# of `Alert`, in its order
STATIONS: Final = ("黄警 yellow", "到县 stored", "红警 red", "上门 visited", "解除 ended")


class Stretch(NamedTuple):
    """A time for which an alert of a home was open at one level; `end_ms` None is still."""

    start_ms: int
    end_ms: int | None
    level: Level


class Saying(NamedTuple):
    """What an alert says of itself, in the words that the county gets."""

    meter: str
    level: Level
    is_over: bool
    text: dict[str, str]


class Act(enum.Enum):
    """What the play is at; in the usual order."""

    STARTING = "starting"
    FIRST_HOURS = "first_hours"
    METER_SILENT = "meter_silent"
    HOMES = "homes"
    RULE_HOLDS = "rule_holds"
    SILENCE = "silence"
    AWAY = "away"
    RAISED_WHILE_AWAY = "raised_while_away"
    RECONNECTING = "reconnecting"
    DRAINING = "draining"
    RAISED = "raised"
    CONFIRMED = "confirmed"
    RED = "red"
    VISITED = "visited"
    YELLOW_AGAIN = "yellow_again"
    CLEARED = "cleared"


CAPTIONS: Final[dict[Act, tuple[str, str]]] = {
    Act.STARTING: (
        "各程序启动：消息服务器、县平台、模拟水表、村网关，都是独立的进程。",
        "Starting real processes: a broker, the county's receiver, simulated meters, the village gateway.",
    ),
    Act.FIRST_HOURS: (
        "网关每 20 分钟读一遍全村水表。县里的规定：12 小时用水不到 100 升就报警；头 12 小时还不能下结论。",
        (
            "The gateway reads all meters every 20 minutes. The county's rule: less than 100 L in 12 hours. Nobody is"
            " judged before 12 hours are full."
        ),
    ),
    Act.METER_SILENT: (
        "m-006 的表坏了：没有就是“没有”，绝不写 0 或旧数；三小时后县里知道无人看护。",
        (
            "The meter m-006 is dead. Missing is missing: never 0, never an old value. After 3 h the county is told"
            " that nobody watches this home."
        ),
    ),
    Act.HOMES: (
        "实话实说：真实的独居老人一天只用 30 到 90 升水。演示里的人家用得多，是为了让那一户的安静看得出来。",
        (
            "To be honest: real elders use 30 to 90 L a day. The homes of this demo use more, so that the one that"
            " falls silent can be seen."
        ),
    ),
    Act.RULE_HOLDS: (
        "满 12 小时了：从现在起，每来一个读数，就按县里的规定判断一次。",
        "Twelve hours are full: from now on the rule is judged with every reading.",
    ),
    Act.SILENCE: (
        "夜里家家安静，这很正常。m-004 晚上八点以后就没有再用过水。",
        "Homes are quiet at night, and that is as it should be. m-004 has used no water since eight in the evening.",
    ),
    Act.AWAY: (
        "网络断了。网关照样读表，每个读数先写进自己的盘里（紫色），一条也不丢。",
        "The network is gone. The gateway goes on reading and keeps every value on its own disk (purple).",
    ),
    Act.RAISED_WHILE_AWAY: (
        "m-004 12 小时用水不足 100 升：黄警。断着网也报警，先落盘，等网络回来第一个送。",
        (
            "m-004 has used less than 100 L in 12 hours: yellow. The alert is raised though it cannot be sent: it is on"
            " disk, and first in line."
        ),
    ),
    Act.RECONNECTING: (
        "网络通了。网关过一小会儿再连：上千个网关不能在同一秒一起涌回来。",
        (
            "The network is back. The gateway waits a random moment: a thousand gateways must not all call in the same"
            " second."
        ),
    ),
    Act.DRAINING: (
        "连上了：报警先送，读数随后补齐（紫变蓝）。县里存好并回执，网关才删。",
        (
            "Connected: the alert goes first, then the readings (purple turns blue). A message is deleted only when the"
            " county has stored it."
        ),
    ),
    Act.RAISED: (
        "m-004 满 12 小时用水不足 100 升：网关发出黄警，反复送，直到县里回执。",
        "m-004 has used less than 100 L in 12 hours: yellow, sent until the county says that it has stored it.",
    ),
    Act.CONFIRMED: (
        "县里已收下黄警。真实的独居老人有三分之二的时间合乎这条规定，所以黄警不派人。",
        (
            "The county has the yellow alert. For real people who live alone its rule holds two thirds of the time: so"
            " yellow sends nobody yet."
        ),
    ),
    Act.RED: (
        "红警：比这户的限度还安静（学满两周前用统一的）。黄警常有，红警才让人上门。",
        (
            "Red: silent for longer than this home's limit (a fixed one for two weeks). Yellow is common; red is"
            " what sends somebody to the door."
        ),
    ),
    Act.VISITED: (
        "有人上门帮了忙。县里下一道命令“已救助”，网关把它记在这条警报上。",
        (
            'Somebody went to the door and helped. The county says so with a command; the gateway notes "helped" on'
            " this alert."
        ),
    ),
    Act.YELLOW_AGAIN: (
        "m-004 又用水了：同一条红警解除。12 小时仍不足 100 升，县里的规定照章再亮黄警。",
        (
            "Water runs at m-004: the same alert ends, red is over. It is still less than 100 L in 12 hours: by the"
            " county's rule a new yellow begins."
        ),
    ),
    Act.CLEARED: (
        "做饭、洗衣，m-004 又有了水声，警报都解除了。只有 m-006 还黄着，等人修表。",
        "Cooking, washing: m-004 lives, and its alerts have ended. m-006 stays yellow until somebody mends the meter.",
    ),
}


def alert_of(view: View) -> Alert:
    """Return how far the alert has come: the first one of the silent home."""
    opened = next((step for step in view.steps if _is_home(step) and step.transition == Transition.OPENED), None)
    standing = _standing(view)
    if opened is None:
        return Alert(wall_ms(standing.at) if standing else None, None, None, None, None)
    steps = {step.transition: step.at_ms for step in view.steps if step.id == opened.id}
    escalated_ms = steps.get(Transition.ESCALATED)
    if escalated_ms is None and standing and standing.id == opened.id and standing.level is Level.RED:
        escalated_ms = wall_ms(standing.at)
    visits = [visit.at_ms for visit in view.visits if visit.done and visit.alert == opened.id]
    return Alert(
        raised_ms=opened.at_ms,
        confirmed_ms=view.confirmed_ms.get(opened.seq),
        escalated_ms=escalated_ms,
        visited_ms=visits[0] if visits else None,
        cleared_ms=steps.get(Transition.CLEARED),
    )


def stretches_of(view: View) -> list[Stretch]:
    """Return when the silent home's alerts were open, and at which level."""
    stretches: list[Stretch] = []
    for step in filter(_is_home, view.steps):
        if stretches and stretches[-1].end_ms is None:
            stretches[-1] = stretches[-1]._replace(end_ms=step.at_ms)
        if step.transition != Transition.CLEARED:
            stretches.append(Stretch(step.at_ms, None, Level(step.level)))
    standing = _standing(view)
    if standing and not any(stretch.end_ms is None for stretch in stretches):
        stretches.append(Stretch(wall_ms(standing.at), None, standing.level))
    return stretches


def saying_of(view: View) -> Saying | None:
    """Return what is to be read now: the alert of the silent home, before it that of the dead meter."""
    bodies = sorted(view.open_episodes, key=lambda body: body.kind is not Kind.LOW_USAGE)
    last = next((step for step in reversed(view.steps) if _is_home(step)), None)
    if last and (not bodies or bodies[0].kind is not Kind.LOW_USAGE):
        return Saying(last.meter or "", Level(last.level), is_over=True, text=last.text)
    if bodies:
        return Saying(bodies[0].meter or "", bodies[0].level, is_over=False, text=bodies[0].text or {})
    return None


def is_over(view: View) -> bool:
    """Tell whether the silent home has nothing open any more, after red."""
    return alert_of(view).cleared_ms is not None and not _standing(view)


def act_of(view: View) -> Act:
    """Return what is happening."""
    alert = alert_of(view)
    if not view.taken:
        return Act.STARTING
    if not view.link.is_up:
        return Act.AWAY if alert.raised_ms is None else Act.RAISED_WHILE_AWAY
    if alert.cleared_ms is not None:
        return Act.CLEARED if is_over(view) else Act.YELLOW_AGAIN
    if view.link.back_ms is not None and not _reached(view):
        return Act.RECONNECTING
    if alert.escalated_ms is not None:
        return Act.RED if alert.visited_ms is None else Act.VISITED
    if view.link.back_ms is not None and not _caught_up(view):
        return Act.DRAINING
    if alert.raised_ms is not None:
        return Act.RAISED if alert.confirmed_ms is None else Act.CONFIRMED
    return _peaceful(view)


def _is_home(step: Step) -> bool:
    return step.meter == scene.SILENT and step.kind == Kind.LOW_USAGE


def _standing(view: View) -> AlertBody | None:
    """Return the alert of the silent home that stands at the gateway."""
    home = scene.SILENT, Kind.LOW_USAGE
    return next((body for body in view.open_episodes if (body.meter, body.kind) == home), None)


def _peaceful(view: View) -> Act:
    usage = view.usage.get(scene.SILENT)
    if usage and usage.last_use_ms is not None and view.now_ms - usage.last_use_ms > _QUIET_MS:
        return Act.SILENCE
    if any(usage.most_ml is not None for usage in view.usage.values()):
        return Act.RULE_HOLDS
    silent = next((body for body in view.open_episodes if body.kind is Kind.METER_SILENT), None)
    if silent is None:
        return Act.FIRST_HOURS
    return Act.METER_SILENT if view.now_ms - wall_ms(silent.at) < _SHOWN_MS else Act.HOMES


def _reached(view: View) -> bool:
    """Tell whether anything has come to the county since the network is back."""
    back_ms = view.link.back_ms
    return back_ms is None or any(row.received_ms > back_ms for row in view.stored[-1:])


def _caught_up(view: View) -> bool:
    """Tell whether the county has what was read before the network came back."""
    back_ms = view.link.back_ms
    return back_ms is None or bool(view.stored and view.stored[-1].at_ms >= back_ms)
