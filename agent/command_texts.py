"""What a reply says, in Chinese and English, to whoever asked: an operator at the county, an assistant in the village.

Times are local times of the gateway. Every text says what is so now and, where nothing was done, what to do.
"""

import datetime

from protocols.absence import Absence
from protocols.contract import Result, instant
from protocols.reading import Reading

Texts = dict[str, str]

_RESULT_ZH = {Result.FINE: "平安", Result.HELPED: "已施救助", Result.FALSE: "误报"}
_RESULT_EN = {Result.FINE: "the person is fine", Result.HELPED: "help was given", Result.FALSE: "it was a false alarm"}


def kept(refusal: Texts) -> Texts:
    """Return a refusal of what may be possible later, for whoever put the command into our folder."""
    return {
        "zh": f"{refusal['zh']}命令已保存，期限内会自动重试，无需再次提交；要撤回外出登记，请用 shuiwang absence end。",
        "en": f"{refusal['en']} The command is kept and tried again by itself until its deadline: no need to ask twice."
        " `shuiwang absence end` withdraws an absence.",
    }


class Words:
    """The texts, for one time zone."""

    def __init__(self, zone: datetime.tzinfo) -> None:
        self._zone = zone

    def local(self, wall_ms: int) -> str:
        """Return a time as people here read it; the end of a day as 24:00; in UTC where no calendar here has it."""
        try:
            moment = datetime.datetime.fromtimestamp(wall_ms / 1000, self._zone)
            if (moment.hour, moment.minute) == (0, 0):
                return f"{moment - datetime.timedelta(days=1):%Y-%m-%d} 24:00"
        except (OverflowError, ValueError):
            return instant(wall_ms)
        return f"{moment:%Y-%m-%d %H:%M}"

    def declared(self, absence: Absence) -> Texts:
        """An absence was declared."""
        start, until = self._start(absence.start_ms), self.local(absence.until_ms)
        meter = absence.meter
        if absence.daily:
            return {
                "zh": f"{meter}：{start} 至 {until}，每天 {absence.daily} 为安静时段，此间不因未用水而升级报警；"
                "满 24 小时未用水仍会报警。",
                "en": f"{meter}: quiet hours {absence.daily} every day from {start} to {until}; no use within them"
                " raises no alarm, 24 hours without any use still do.",
            }
        return {
            "zh": f"{meter}：{start} 至 {until} 登记为外出，此间不因未用水报警。一旦用水，外出即结束。",
            "en": f"{meter}: nobody is expected from {start} to {until}, and no use raises no alarm. Water that is used"
            " ends this.",
        }

    def ended(self, absence: Absence) -> Texts:
        """An absence was ended by a command."""
        until = self.local(absence.until_ms)
        if absence.daily:
            return {
                "zh": f"{absence.meter}：每天 {absence.daily} 的安静时段已取消（原定至 {until}）。",
                "en": f"{absence.meter}: the quiet hours {absence.daily} (until {until}) are over.",
            }
        return {
            "zh": f"{absence.meter}：外出已结束（原定至 {until}），恢复守护。",
            "en": f"{absence.meter}: the absence (until {until}) is over; the home is watched again.",
        }

    def nothing_to_end(self, meter: str) -> Texts:
        """There was no absence."""
        return {
            "zh": f"{meter}：没有登记外出或安静时段，一直在守护中。",
            "en": f"{meter}: no absence and no quiet hours were declared; the home is watched already.",
        }

    def acknowledged(self, alert: str) -> Texts:
        """Somebody takes care of an alert."""
        return {
            "zh": f"报警 {alert} 已记为有人处理；若为红色警报，恢复用水前每 24 小时提醒一次。",
            "en": f"It is noted that somebody takes care of alert {alert}. A red one is repeated every 24 h until water"
            " is used.",
        }

    def resolved(self, alert: str, result: Result) -> Texts:
        """Somebody was at the door."""
        return {
            "zh": f"报警 {alert} 的上门结果已记录：{_RESULT_ZH[result]}。恢复用水后报警自动解除。",
            "en": f"The visit because of alert {alert} is noted: {_RESULT_EN[result]}. Water that is used ends it.",
        }

    def said_before_red(self, alert: str) -> Texts:
        """What was said of a yellow alert came when it was red."""
        return {
            "zh": f"报警 {alert} 在该命令发出之后已转为红色：内容已记录，但不算对红色警报的答复，"
            "在答复之前每 6 小时提醒一次。如同样适用于红色警报，请重新发送（新编号）。",
            "en": f"Alert {alert} has turned red since this was sent. It is noted, but it is no answer to the red one,"
            " which is repeated every 6 h until there is one. If it holds for that too, send it with a new id.",
        }

    def read(self, reading: Reading) -> Texts:
        """A meter was read."""
        at = self.local(reading.at.wall_ms)
        if reading.volume_ml is None:
            return {
                "zh": f"{reading.meter}：{at} 未能读到（{reading.reason}）。请检查表和线路，稍后再试。",
                "en": f"{reading.meter}: no reading at {at} ({reading.reason}). Check meter and line, then ask again.",
            }
        whole, rest = divmod(reading.volume_ml, 1_000_000)
        figure = f"{whole}.{rest:06d}".rstrip("0").rstrip(".")
        return {
            "zh": f"{reading.meter}：{at} 读数 {figure} 立方米（{reading.quality}）。",
            "en": f"{reading.meter}: {figure} m³ at {at} ({reading.quality}).",
        }

    # -- refusals -----------------------------------------------------------------------------------------------------

    def invalid(self, problem: str) -> Texts:
        """It is no command."""
        return {"zh": f"命令无效，未执行：{problem}", "en": f"This is not a valid command, nothing was done: {problem}"}

    def late(self, deadline_ms: int, now_ms: int) -> Texts:
        """Its time was over."""
        deadline, now = self.local(deadline_ms), self.local(now_ms)
        return {
            "zh": f"命令期限 {deadline} 已过（现在 {now}），未执行。如仍需要，请用新编号重发。",
            "en": f"The deadline {deadline} was over (it is {now}), nothing was done. If it is still wanted, send it"
            " with a new id.",
        }

    def unknown_meter(self, meter: str, *, suggestion: str | None) -> Texts:
        """The gateway has no such meter."""
        zh, en = (f"，是否为 {suggestion}？", f"; did you mean {suggestion}?") if suggestion else ("。", ".")
        return {
            "zh": f"本网关没有水表 {meter}{zh}",
            "en": f"This gateway has no meter {meter}{en}",
        }

    def unknown_alert(self, alert: str) -> Texts:
        """No such alert is open."""
        return {
            "zh": f"没有编号为 {alert} 的未解除报警：可能已解除，或属于别的网关。",
            "en": f"No open alert has the id {alert}: it may be cleared by now, or be another gateway's.",
        }

    def until_over(self, until_ms: int) -> Texts:
        """An absence would be over already."""
        until = self.local(until_ms)
        return {
            "zh": f"结束时间 {until} 已过，未登记。",
            "en": f"The end {until} is over already; nothing was declared.",
        }

    def until_too_far(self, until_ms: int, *, days: int) -> Texts:
        """An absence would last too long."""
        until = self.local(until_ms)
        return {
            "zh": f"结束时间 {until} 超过 {days} 天。最多登记 {days} 天，到期可再次登记。",
            "en": f"The end {until} is more than {days} days ahead. Declare at most {days} days, and again after that.",
        }

    def clock_unsynced(self) -> Texts:
        """The gateway does not know what time it is."""
        return {
            "zh": "网关时钟尚未校准，无法判断起止时间，未登记。须先由网络校时。",
            "en": "The gateway's clock is not synchronised, so it cannot tell when an absence begins and ends; nothing"
            " was declared. It needs the time first (network, NTP).",
        }

    def busy(self) -> Texts:
        """No time or no room for it."""
        return {
            "zh": "网关来不及在期限内完成，请稍后重试。",
            "en": "The gateway could not do it in time; try again later.",
        }

    def failed(self, problem: str) -> Texts:
        """The gateway could not do it."""
        return {
            "zh": f"网关未能执行：{problem}。请重试；如仍失败，请检查网关磁盘与日志。",
            "en": f"The gateway could not do it: {problem}. Try again; if that fails, look at its disk and its log.",
        }

    def _start(self, wall_ms: int) -> str:
        return f"{datetime.datetime.fromtimestamp(wall_ms / 1000, self._zone):%Y-%m-%d %H:%M}"
