"""What is happening now, in words: read off what was observed, never off the script."""

import enum
from typing import Final, NamedTuple

from agent.demo import scene
from agent.demo.observer import View
from protocols.contract import AlertState, Kind, wall_ms

_QUIET_MS: Final = 3 * scene.HOUR_MS


class Alert(NamedTuple):
    """How far the alert of the silent home has come; each in village time, None for what is still to come."""

    raised_ms: int | None
    delivered_ms: int | None
    confirmed_ms: int | None
    cleared_ms: int | None


STATIONS: Final = ("发出 raised", "送达 delivered", "确认 confirmed", "解除 cleared")  # of `Alert`, in its order


class Act(enum.Enum):
    """What the play is at; in the usual order."""

    STARTING = "starting"
    FIRST_HOURS = "first_hours"
    HOMES = "homes"
    DEAD_METER = "dead_meter"
    RULE_HOLDS = "rule_holds"
    SILENCE = "silence"
    AWAY = "away"
    RAISED_WHILE_AWAY = "raised_while_away"
    RECONNECTING = "reconnecting"
    DRAINING = "draining"
    RAISED = "raised"
    CONFIRMED = "confirmed"
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
    Act.HOMES: (
        "实话实说：真实的独居老人一天只用 30 到 90 升水。演示里的人家用得多，是为了让那一户的安静看得出来。",
        (
            "To be honest: real elders use 30 to 90 L a day. The homes of this demo use more, so that the one that"
            " falls silent can be seen."
        ),
    ),
    Act.DEAD_METER: (
        "m-006 的表坏了：没有读数就写“没有，因为无应答”，绝不写 0，也绝不沿用旧数；别家照常读。",
        (
            'The meter m-006 is dead. The county is told "missing, because no answer": never 0, never an old value. Its'
            " neighbours are read on time."
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
        "网络断了。网关照样读表，每个读数先写进自己的盘里（黄色），一条也不丢。",
        "The network is gone. The gateway goes on reading and keeps every value on its own disk (yellow).",
    ),
    Act.RAISED_WHILE_AWAY: (
        "m-004 满 12 小时用水不足 100 升：网关断着网也报警，先落盘，等网络回来第一个送。",
        (
            "m-004 has used less than 100 L in 12 hours. The alert is raised though it cannot be sent: it is on disk,"
            " and first in line."
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
        "连上了：报警先送，读数随后补齐（黄变蓝）。县里存好并回执，网关才删。",
        (
            "Connected: the alert goes first, then the readings (yellow turns blue). A message is deleted only when the"
            " county has stored it."
        ),
    ),
    Act.RAISED: (
        "m-004 满 12 小时用水不足 100 升：网关发出报警，反复送，直到县里回执。",
        "m-004 has used less than 100 L in 12 hours. The alert is sent until the county says that it has stored it.",
    ),
    Act.CONFIRMED: (
        "县里已收下报警，有人正去 m-004 家敲门。一次异常只有一条报警，不会每 20 分钟响一次。",
        "The county has the alert; somebody is on the way to m-004's door. One silence is one alert, not one per poll.",
    ),
    Act.CLEARED: (
        "来人帮着做饭、洗衣，m-004 又有水声了：同一条报警解除。",
        "A visitor cooks and washes: water runs at m-004 again, and the same alert is cleared.",
    ),
}


def alert_of(view: View) -> Alert:
    """Return how far the alert has come."""
    episode = next((body for body in view.open_episodes if body.kind is Kind.LOW_USAGE), None)
    opened = next((step for step in view.steps if step.state == AlertState.OPEN), None)
    cleared = next((step for step in view.steps if step.state == AlertState.CLEARED), None)
    raised_ms = opened.at_ms if opened else None
    if raised_ms is None and episode is not None:
        raised_ms = wall_ms(episode.at)
    return Alert(
        raised_ms=raised_ms,
        delivered_ms=opened.received_ms if opened else None,
        confirmed_ms=view.confirmed_ms,
        cleared_ms=cleared.at_ms if cleared else None,
    )


def act_of(view: View) -> Act:
    """Return what is happening."""
    alert = alert_of(view)
    if not view.taken:
        return Act.STARTING
    if not view.link.is_up:
        return Act.AWAY if alert.raised_ms is None else Act.RAISED_WHILE_AWAY
    if alert.cleared_ms is not None:
        return Act.CLEARED
    if view.link.back_ms is not None and not _reached(view):
        return Act.RECONNECTING
    if view.link.back_ms is not None and not _caught_up(view):
        return Act.DRAINING
    if alert.raised_ms is not None:
        return Act.RAISED if alert.confirmed_ms is None else Act.CONFIRMED
    return _peaceful(view)


def _peaceful(view: View) -> Act:
    usage = view.usage.get(scene.SILENT)
    if usage and usage.last_use_ms is not None and view.now_ms - usage.last_use_ms > _QUIET_MS:
        return Act.SILENCE
    if any(usage.most_ml is not None for usage in view.usage.values()):
        return Act.RULE_HOLDS
    watched_h = (view.now_ms - view.taken[0].at.wall_ms) / scene.HOUR_MS
    return Act.FIRST_HOURS if watched_h < 4 else Act.HOMES if watched_h < 8 else Act.DEAD_METER


def _reached(view: View) -> bool:
    """Tell whether anything has come to the county since the network is back."""
    back_ms = view.link.back_ms
    return back_ms is None or any(row.received_ms > back_ms for row in view.stored[-1:])


def _caught_up(view: View) -> bool:
    """Tell whether the county has what was read before the network came back."""
    back_ms = view.link.back_ms
    return back_ms is None or bool(view.stored and view.stored[-1].at_ms >= back_ms)
