"""Every step of an alert in words that a village assistant understands, Chinese and English.

The words say what was seen and what to do; the figures behind them stand in the evidence. Times are those of the
gateway's time zone. No word says why somebody does not use water: nobody here knows.
"""

import datetime
import zoneinfo
from typing import Any, Final

from agent.alerts import AWAY, Step
from protocols.contract import AlertBody, Kind, Level, Transition

Words = dict[str, str]

_REASON_AWAY: Final = {"zh": "已登记外出，警报解除。", "en": "An absence was declared; the alert ends."}
_SUSPICION: Final = {
    "supply_outage": {
        "zh": "注意：村里多户同时没有用水，可能停水；但仍请核实。",
        "en": "Note: many homes stopped at the same time, the supply may be cut. Please check all the same.",
    },
    "bus_fault": {
        "zh": "注意：同一线路上多块水表无应答，可能是线路故障；但仍请核实。",
        "en": "Note: many meters on this line are silent, the line may be broken. Please check all the same.",
    },
}
_RESULTS: Final = {
    "fine": {"zh": "（已上门，人平安）", "en": " (visited, all well)"},
    "helped": {"zh": "（已上门，已救助）", "en": " (visited, helped)"},
    "false": {"zh": "（误报）", "en": " (false alarm)"},
}
# Said together with the date: a text may be read days later.
_DAYS: Final = {
    0: ("今天（{}）", "today ({})"),
    1: ("昨天（{}）", "yesterday ({})"),
    -1: ("明天（{}）", "tomorrow ({})"),
}
_NOTHING: Final = {"zh": "", "en": ""}
_YELLOW: Final = {
    "zh": "{window_h} 小时内用水不到 {threshold_l} 升（最多 {usage_max_l} 升）。",
    "en": "Less than {threshold_l} L in {window_h} h (at most {usage_max_l} L). ",
}
_COARSE: Final = {
    "zh": "注意：这块水表计量太粗，无法发出红色警报，请更换水表，并多上门看望。",
    "en": " Note: this meter counts too coarsely for red alerts. Have it replaced, and look in more often.",
}
_REMINDER: Final = {"zh": "再次提醒：", "en": "Reminder: "}
_LEAK_NOT_COUNTED: Final = {
    "zh": "（已扣除约 {leak_l_h} 升/小时的漏水）",
    "en": " (a leak of about {leak_l_h} L/h is not counted)",
}


class _Shown(dict[str, Any]):
    """The evidence as words show it: litres beside millilitres, lists as their length; what is not there is `?`."""

    def __init__(self, evidence: dict[str, Any]) -> None:
        super().__init__(evidence)
        for name, value in evidence.items():
            if isinstance(value, list):
                self[name] = len(value)
            for unit, litres in (("_ml", "_l"), ("_ml_h", "_l_h")):
                if name.endswith(unit) and isinstance(value, int):
                    self[name.removesuffix(unit) + litres] = f"{round(value / 1000, 1):g}"

    def __missing__(self, name: str) -> str:
        return "?"


class Explainer:
    """Puts steps into words, with the clock of one village."""

    def __init__(self, zone: zoneinfo.ZoneInfo) -> None:
        self._zone = zone

    def __call__(self, step: Step, body: AlertBody) -> Words:
        """Return a step's words by language."""
        words = _OTHERS.get((step.kind, step.transition)) or self._low_usage(step, body)
        words = {language: text.format_map(_Shown(body.evidence)) for language, text in words.items()}
        suspicion = _SUSPICION.get(body.evidence.get("suspicion", {}).get("kind", ""))
        if suspicion and step.transition is not Transition.CLEARED:
            words = {"zh": words["zh"] + suspicion["zh"], "en": f"{words['en']} {suspicion['en']}"}
        return words

    def _low_usage(self, step: Step, body: AlertBody) -> Words:
        evidence = body.evidence
        if step.signal == AWAY:
            return _REASON_AWAY
        if step.transition is Transition.CLEARED:
            when = self._when(evidence["to"], body.at)
            result = _RESULTS.get(evidence.get("county", {}).get("result", ""), _NOTHING)
            return {
                "zh": f"{when['zh']} 又有用水，警报解除。{result['zh']}",
                "en": f"Water was used again by {when['en']}; the alert ends.{result['en']}",
            }
        if step.level is Level.YELLOW:
            since = self._since(evidence.get("last_use_before"), body.at)
            coarse = _COARSE if evidence.get("unjudged") else _NOTHING
            return {language: _YELLOW[language] + since[language] + coarse[language] for language in _YELLOW}
        return self._red(step, body)

    def _red(self, step: Step, body: AlertBody) -> Words:
        evidence = body.evidence
        since = self._when(evidence["silent_since"], body.at)
        again = _REMINDER if step.transition is Transition.REMINDED else _NOTHING
        result = _RESULTS.get(evidence.get("county", {}).get("result", ""), _NOTHING)
        leak = _LEAK_NOT_COUNTED if evidence.get("leak_ml_h") else _NOTHING
        usual = _NOTHING
        if evidence.get("usual_by"):
            by = self._when(evidence["usual_by"], body.at)
            usual = {
                "zh": f"，平时最晚{by['zh']} 就会用水",
                "en": f"; this home has usually used water again by {by['en']}",
            }
        rest = {language: usual[language] + leak[language] + result[language] for language in usual}
        return {
            "zh": f"{again['zh']}自{since['zh']} 起 {{silent_h}} 小时没有正常用水{rest['zh']}。"
            "请立即联系，联系不上请上门查看。",
            "en": f"{again['en']}No real use for {{silent_h}} h, since {since['en']}{rest['en']}. "
            "Call now; go to the door if nobody answers.",
        }

    def _since(self, last_use: str | None, now: str) -> Words:
        if last_use is None:
            return {"zh": "开始观察以来没有用水。", "en": "None has been seen since watching began."}
        when = self._when(last_use, now)
        return {"zh": f"最近一次用水：{when['zh']} 前。", "en": f"Water last ran before {when['en']}."}

    def _when(self, instant: str, now: str) -> Words:
        """Return a moment as people say it, seen from another: 21:10 yesterday, on 3 Nov."""
        moment, today = (datetime.datetime.fromisoformat(text).astimezone(self._zone) for text in (instant, now))
        days = (today.date() - moment.date()).days
        zh, en = _DAYS.get(days, ("{}", "on {}"))
        return {
            "zh": f"{zh.format(f'{moment.month}月{moment.day}日')} {moment:%H:%M}",
            "en": f"{moment:%H:%M} {en.format(f'{moment.day} {moment:%b}')}",
        }


_OTHERS: Final[dict[tuple[Kind, Transition], Words]] = {
    (Kind.LEAK, Transition.OPENED): {
        "zh": "24 小时里水一直没有停过，每小时约 {leak_l_h} 升，可能漏水。请检查马桶、水箱和水管。",
        "en": "Water has not stopped for 24 h, about {leak_l_h} L an hour: probably a leak. Check cistern and pipes.",
    },
    (Kind.LEAK, Transition.CLEARED): {
        "zh": "水流已经停过 3 小时，不再漏水。",
        "en": "Water has stood still for 3 h; the leak is over.",
    },
    (Kind.BURST, Transition.OPENED): {
        "zh": "用水异常多：最近一小时约 {hour_l} 升，24 小时 {day_l} 升。可能爆管，请尽快查看。",
        "en": "Far too much water: {hour_l} L in the last hour, {day_l} L in 24 h. Perhaps a burst pipe; look soon.",
    },
    (Kind.BURST, Transition.CLEARED): {"zh": "用水量已恢复正常。", "en": "The flow is normal again."},
    (Kind.REVERSE_FLOW, Transition.OPENED): {
        "zh": "水表倒转：可能回流或装反。请维修人员检查。",
        "en": "The register runs backwards: water flows back, or the meter is fitted wrongly. Send a technician.",
    },
    (Kind.REVERSE_FLOW, Transition.CLEARED): {"zh": "水表恢复正转。", "en": "The register runs forwards again."},
    (Kind.METER_SILENT, Transition.OPENED): {
        "zh": "水表已 {silent_h} 小时读不到，这户暂时无人看护。请检查水表和线路，必要时联系住户。",
        "en": "The meter has given no value for {silent_h} h: nobody watches this home now. Check meter and line;"
        " call the home if in doubt.",
    },
    (Kind.METER_SILENT, Transition.CLEARED): {"zh": "水表恢复读数。", "en": "The meter can be read again."},
    (Kind.SUPPLY_OUTAGE, Transition.OPENED): {
        "zh": "{homes} 户同时没有用水，可能停水。请向供水单位核实；各户警报照常发出。",
        "en": "{homes} homes stopped using water at the same time: the supply may be cut. Ask the water company;"
        " the homes' own alerts still come.",
    },
    (Kind.SUPPLY_OUTAGE, Transition.CLEARED): {"zh": "多户恢复用水。", "en": "Several homes use water again."},
    (Kind.BUS_FAULT, Transition.OPENED): {
        "zh": "线路 {bus} 上 {meters} 块水表同时读不到，可能线路或转换器故障。请技术人员检查电源、接线和转换器。",
        "en": "{meters} meters on line {bus} stopped answering together: power, wiring or adapter. Send a technician.",
    },
    (Kind.BUS_FAULT, Transition.CLEARED): {"zh": "线路 {bus} 恢复。", "en": "Line {bus} works again."},
}
_REMOVED: Final = {
    "zh": "这块水表已从网关配置中移除，警报解除。",
    "en": "The meter is no longer in the gateway's configuration; the alert ends.",
}


def removed() -> Words:
    """Return the words for an alert that ends because its meter was taken out of the configuration."""
    return dict(_REMOVED)
