"""The advice in words, Chinese and English, for whoever sets the rules; every sentence carries its figure."""

from typing import Any, Final

from agent.backtest.advice import LEARN_DAYS, LEAST_DAYS, MONTH_DAYS, Advice, Finer, Recommended, RuleAdvice
from agent.backtest.rules import RuleSet
from agent.backtest.score import MONTH_H
from agent.detection.watch import HOUR_MS

Words = dict[str, str]
# A register that counts in such steps does not show that somebody has washed their hands.
COARSE_STEP_ML: Final = 10_000

_SAID: Final[dict[str, Words]] = {
    "too short": {
        "zh": "{meter}：记录不足 {days} 天，还不能给出建议。请先按县里的规则运行。",
        "en": "{meter}: less than {days} days of readings, too few for any advice. Run the county's rule as it is.",
    },
    "not learned": {
        "zh": (
            "记录只有 {days:g} 天，家庭自身的时限要 {learn_days} 天才学成；在此之前红色告警按固定的 {cold_h} 小时。"
            "以下仅供参考。"
        ),
        "en": (
            "There are only {days:g} days of readings; a home's own limit takes {learn_days}. Until then red comes"
            " after a fixed {cold_h} h. Take what follows as a first impression."
        ),
    },
    "still learning": {
        "zh": "记录共 {days:g} 天，被评判的日子里有一部分还在学习，结论尚不稳定。",
        "en": "There are {days:g} days of readings: part of what is judged was still learning, so expect changes.",
    },
    "mostly low": {
        "zh": (
            "这户 12 小时用水的中位数是 {median_l:.0f} 升，低于规则的 {threshold_l:g} 升：规则有 {standing:.0%}"
            " 的时间成立，黄色告警说明不了问题，请看红色告警。"
        ),
        "en": (
            "Half of the time this home uses less than {median_l:.0f} L in 12 h, and the rule asks for"
            " {threshold_l:g} L: it holds {standing:.0%} of the time, so yellow says little here; go by red."
        ),
    },
    "sometimes low": {
        "zh": "县里的规则上月成立 {standing:.0%} 的时间，黄色告警 {alerts} 次。",
        "en": "The county's rule held {standing:.0%} of the time last month: {alerts_en}.",
    },
    "as set": {
        "zh": (
            "建议 red_cost_h = {cost_h}，与现用的相同：预计每月在家时红色告警约 {expected:.1f} 次{help_zh}。{seen_zh}"
        ),
        "en": (
            "Recommended: red_cost_h = {cost_h}, as it is set now: about {expected:.1f} red alerts a month are to be"
            " expected while somebody is at home{help_en}. {seen_en}"
        ),
    },
    "earlier": {
        "zh": (
            "建议 red_cost_h = {cost_h}（现用 {now_h}）：即使这样，预计每月在家时红色告警约 {expected:.1f} 次，"
            "不到一次，救助可以更早{help_zh}。{seen_zh}"
        ),
        "en": (
            "Recommended: red_cost_h = {cost_h} (now {now_h}): even so about {expected:.1f} red alerts a month, less"
            " than one, are to be expected while somebody is at home, and help comes earlier{help_en}. {seen_en}"
        ),
    },
    "later": {
        "zh": (
            "建议 red_cost_h = {cost_h}（现用 {now_h}，预计每月在家时红色告警约 {now:.1f} 次）：约 {expected:.1f}"
            " 次{help_zh}。{seen_zh}"
        ),
        "en": (
            "Recommended: red_cost_h = {cost_h} (now {now_h}, at which about {now:.1f} red alerts a month are to be"
            " expected while somebody is at home): about {expected:.1f}{help_en}. {seen_en}"
        ),
    },
    "seen": {
        "zh": "（在家的 {days:.0f} 天里有 {reds} 次；再参照真实家庭的经验估计，因为平静的一两个月说明不了下个月。）",
        "en": (
            "({reds_en} in {days:.0f} days at home, weighed with what real homes had: a quiet month or two is no"
            " promise.)"
        ),
    },
    "nobody": {
        "zh": (
            "最近 {days:g} 天没有看到有人真正用水，因此没有建议。请上门看看这户是否有人居住：无人居住请登记外出"
            "（shuiwang absence add）；有人居住则是表没有反映他们的用水。"
        ),
        "en": (
            "No real use of water was seen in the last {days:g} days, so nothing is recommended. Look whether somebody"
            " lives there: if nobody does, declare an absence (shuiwang absence add); if somebody does, this meter does"
            " not show what they use."
        ),
    },
    "acts": {
        "zh": "改了配置后，从服务下次启动起生效（systemctl restart shuiwang）。",
        "en": "A changed configuration acts from the next start of the service on (systemctl restart shuiwang).",
    },
    "help": {
        "zh": "；若突然停止用水，红色告警一般在 {median_h:.0f} 小时后发出，十次有九次在 {p90_h:.0f} 小时内",
        "en": "; were all use to stop, red would come after {median_h:.0f} h, 9 of 10 times within {p90_h:.0f} h",
    },
    "finer": {
        "zh": (
            "如果县里同意，建议黄色改用 {window_h:g} 小时不足 {m3} 立方米：上月成立的时间从 {ordered:.0%} 降到"
            " {standing:.0%}，红色告警最多晚一小时。"
        ),
        "en": (
            "Recommended, if the county agrees: yellow below {m3} m³ in {window_h:g} h. Last month it would have held"
            " {standing:.0%} of the time instead of {ordered:.0%}, and red is at most an hour later."
        ),
    },
    "not finer": {
        "zh": (
            "黄色若改用 {window_h:g} 小时不足 {m3} 立方米，上月成立的时间会从 {ordered:.0%} 降到 {standing:.0%}；"
            "但红色告警也要等县里的规则成立，会从 {ordered_h:.0f} 小时晚到 {red_h:.0f} 小时。请保留原来的升数规则。"
        ),
        "en": (
            "Yellow below {m3} m³ in {window_h:g} h would have held {standing:.0%} of the time last month instead of"
            " {ordered:.0%}. But red waits for the county's rule too, and would come after {red_h:.0f} h instead of"
            " {ordered_h:.0f} h: keep the litres as ordered."
        ),
    },
    "limits": {
        "zh": (
            "这户自己的时限：最后一次用水在 {strict} 点前后，{strict_h} 小时后转红；在 {mild} 点前后，{mild_h}"
            " 小时后转红。"
        ),
        "en": (
            "This home's own limit: after a last use at about {strict}:00 red comes after {strict_h} h; at about"
            " {mild}:00 after {mild_h} h."
        ),
    },
    "leaks": {
        "zh": "现在漏水约每小时 {flow_l:g} 升（每月约 {month_m3:.1f} 立方米），请修理；判断沉默时已扣除。",
        "en": (
            "About {flow_l:g} L/h leak now (some {month_m3:.1f} m³ a month): have it mended. It is subtracted"
            " before silence is judged, so it hides no fall."
        ),
    },
    "leaked": {
        "zh": "上月有 {leaks} 次连续漏水。",
        "en": "Last month had {leaks_en}: water that did not stop for a day.",
    },
    "too coarse": {
        "zh": (
            "表的读数每 {step_l:g} 升才动一次，比规则的 {threshold_l:g} 升还粗，规则无法判断，只有红色告警有效。"
            "请读更细的寄存器或换表。"
        ),
        "en": (
            "The register moves in steps of {step_l:g} L, coarser than the rule's {threshold_l:g} L: the rule"
            " cannot be judged, only red works. Read a finer register of this meter, or replace it."
        ),
    },
    "coarse": {
        "zh": "表的读数每 {step_l:g} 升才动一次：洗手、烧水看不出来，沉默会显得更长。更细的读数能让红色告警更早。",
        "en": (
            "The register moves in steps of {step_l:g} L: washing hands or boiling water do not show, silences look"
            " longer than they are. Finer readings would let red come earlier."
        ),
    },
    "absences": {
        "zh": (
            "上月有 {absences} 次超过 36 小时没有用水，多半是外出；事先登记外出（shuiwang absence）可以免去这些告警。"
        ),
        "en": (
            "Last month had {absences_en} of more than 36 h, most likely absences: declared beforehand (shuiwang"
            " absence) they raise no alert."
        ),
    },
}


def too_short(meter: str) -> Words:
    """Say that nothing can be said yet."""
    return _say("too short", meter=meter, days=LEAST_DAYS)


def sentences(advice: Advice, *, ordered: RuleSet) -> list[Words]:
    """Return what is to be said of a home, the most important first."""
    recommended = advice.recommended
    if recommended is None:
        said = [_say("nobody", days=advice.month_days), _leak(advice), _step(advice, ordered)]
    else:
        said = [_honesty(advice, ordered), _county(advice, ordered), _recommended(advice, recommended, ordered)]
        said += [_finer(recommended.finer), _acts(advice, ordered), _limits(advice), _leak(advice)]
        said += [_step(advice, ordered), _absences(advice)]
    return [words for words in said if words is not None]


def detection_table(advice: Advice, *, ordered: RuleSet) -> list[str]:
    """Return the lines of `[meter.detection]` that differ from what is configured."""
    recommended = advice.recommended
    if recommended is None:
        return []
    lines, finer = [], recommended.finer
    if finer is not None and recommended.is_finer:
        if finer.window_h * HOUR_MS != ordered.window_ms:
            lines.append(f"window_h = {finer.window_h:g}")
        lines.append(f'threshold_m3 = "{finer.threshold_m3}"')
    if recommended.red_cost_h != ordered.cost_h:
        lines.append(f"red_cost_h = {recommended.red_cost_h}")
    return ["[meter.detection]", *lines] if lines else []


def _say(key: str, **values: Any) -> Words:
    return {language: text.format_map(values) for language, text in _SAID[key].items()}


def _honesty(advice: Advice, ordered: RuleSet) -> Words | None:
    if not advice.learned:
        return _say("not learned", days=advice.days, learn_days=LEARN_DAYS, cold_h=ordered.cold_h)
    return _say("still learning", days=advice.days) if advice.days < MONTH_DAYS + LEARN_DAYS else None


def _county(advice: Advice, ordered: RuleSet) -> Words | None:
    rule = next(rule for rule in advice.rules if rule.as_ordered)
    if not rule.judged or rule.standing is None or advice.window_median_ml is None:
        return None
    if advice.window_median_ml < ordered.threshold_ml:
        median_l, threshold_l = advice.window_median_ml / 1000, ordered.threshold_ml / 1000
        return _say("mostly low", median_l=median_l, threshold_l=threshold_l, standing=rule.standing)
    alerts_en = _count(rule.alerts, "yellow alert")
    return _say("sometimes low", standing=rule.standing, alerts=rule.alerts, alerts_en=alerts_en)


def _recommended(advice: Advice, recommended: Recommended, ordered: RuleSet) -> Words:
    cost_h, now_h = recommended.red_cost_h, ordered.cost_h
    red, now = _own(advice, cost_h), _own(advice, now_h)
    help_by = {"zh": "", "en": ""}
    if red.median_h is not None and red.p90_h is not None:
        help_by = _say("help", median_h=red.median_h, p90_h=red.p90_h)
    reds = red.past_reds or 0
    seen = _say("seen", reds=reds, reds_en=_count(reds, "red alert"), days=advice.past_months * MONTH_H / 24)
    return _say(
        "as set" if cost_h == now_h else "earlier" if cost_h < now_h else "later",
        cost_h=cost_h,
        now_h=now_h,
        expected=red.expected_reds,
        now=now.expected_reds,
        help_zh=help_by["zh"],
        help_en=help_by["en"],
        seen_zh=seen["zh"],
        seen_en=seen["en"],
    )


def _acts(advice: Advice, ordered: RuleSet) -> Words | None:
    return _say("acts") if detection_table(advice, ordered=ordered) else None


def _own(advice: Advice, cost_h: int) -> RuleAdvice:
    return next(rule for rule in advice.rules if rule.red_cost_h == cost_h)


def _finer(finer: Finer | None) -> Words | None:
    if finer is None:
        return None
    values = {"window_h": finer.window_h, "m3": finer.threshold_m3}
    values |= {"standing": finer.standing, "ordered": finer.ordered_standing}
    if not finer.delays_red:
        return _say("finer", **values)
    if finer.red_median_h is None or finer.ordered_median_h is None:
        return None  # no stop to compare
    return _say("not finer", **values, red_h=finer.red_median_h, ordered_h=finer.ordered_median_h)


def _limits(advice: Advice) -> Words | None:
    limits = advice.limits_h
    if not advice.learned or not limits:
        return None
    strict = min(limits, key=lambda hour: (limits[hour], hour))
    mild = max(limits, key=lambda hour: (limits[hour], hour))
    return _say("limits", strict=strict, strict_h=limits[strict], mild=mild, mild_h=limits[mild])


def _leak(advice: Advice) -> Words | None:
    if advice.leak_ml_h:
        return _say("leaks", flow_l=advice.leak_ml_h / 1000, month_m3=advice.leak_ml_h * MONTH_H / 1e6)
    return _say("leaked", leaks=advice.leaks, leaks_en=_count(advice.leaks, "leak")) if advice.leaks else None


def _step(advice: Advice, ordered: RuleSet) -> Words | None:
    step_l = advice.step_ml / 1000
    if advice.step_ml > ordered.threshold_ml:
        return _say("too coarse", step_l=step_l, threshold_l=ordered.threshold_ml / 1000)
    return _say("coarse", step_l=step_l) if advice.step_ml >= COARSE_STEP_ML else None


def _absences(advice: Advice) -> Words | None:
    if not advice.absences:
        return None
    return _say("absences", absences=advice.absences, absences_en=_count(advice.absences, "silence"))


def _count(number: int, one: str) -> str:
    return f"{number} {one}{'' if number == 1 else 's'}"
