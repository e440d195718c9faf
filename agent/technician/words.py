"""What the tools say, in the two languages of those who read it: one `Words` per sentence."""

from decimal import Decimal
from typing import Final

import msgspec


class Words(msgspec.Struct, frozen=True):
    """One sentence in Chinese and in English; in JSON an object of these two."""

    zh: str
    en: str

    def __str__(self) -> str:
        """Return both on one line, as short labels are shown."""
        return f"{self.en} {self.zh}"


PROTOCOLS: Final = {"modbus": "Modbus", "cjt188": "CJ/T 188", "mbus": "M-Bus", "": ""}
QUALITIES: Final = {
    "ok": Words("正常", "ok"),
    "suspect": Words("存疑", "suspect"),
    "missing": Words("缺失", "missing"),
}
REASONS: Final = {
    "no_response": Words("无应答", "no answer"),
    "garbled": Words("乱码", "garbled"),
    "wrong_answer": Words("错答", "wrong answer"),
    "refused": Words("表拒绝", "refused"),
    "meter_fault": Words("表数据异常", "meter fault"),
    "port_lost": Words("串口不可用", "port not usable"),
    "other_record": Words("别的记录", "another record"),  # of a frame that is decoded
}
FLAGS: Final = {
    "battery_low": Words("电池欠压", "battery low"),
    "valve_closed": Words("阀门关闭", "valve closed"),
    "valve_fault": Words("阀门异常", "valve fault"),
    "sensor_fault": Words("传感器故障", "sensor fault"),
    "memory_fault": Words("存储器故障", "memory fault"),
    "empty_pipe": Words("空管", "empty pipe"),
    "leak": Words("漏水", "leak"),
    "burst": Words("爆管", "burst"),
    "reverse_flow": Words("倒流", "reverse flow"),
    "tamper": Words("拆动", "tamper"),
    "overload": Words("超量程", "overload"),
    "power_fault": Words("供电故障", "power fault"),
    "permanent_error": Words("永久故障", "permanent error"),
    "temporary_error": Words("临时故障", "temporary error"),
    "application_busy": Words("表忙", "application busy"),
    "application_error": Words("应用错误", "application error"),
    "alarm": Words("报警", "alarm"),
}
EVIDENCE: Final = {
    "field": Words("现场核对", "field check"),
    "capture": Words("实采", "capture"),
    "manual": Words("说明书", "manual"),
    "constructed": Words("推算", "built"),
}


def word(table: dict[str, Words], key: str) -> Words:
    """Return the words for a code; a code that has none stands for itself."""
    return table.get(key, Words(key, key.replace("_", " ")))


def name_of(protocol: str, framing: str | None) -> str:
    """Return `CJ/T 188`, `Modbus`, `Modbus ASCII`."""
    return PROTOCOLS[protocol] + (f" {framing.upper()}" if framing not in (None, "rtu") else "")


def cubic_metres(volume_ml: int, *, step_ml: int = 1) -> str:
    """Return a volume exactly in cubic metres, with as many decimals as the meter's step has: `127.113`."""
    decimals = max(0, 6 - _trailing_zeros(step_ml))
    value = Decimal(volume_ml).scaleb(-6)
    exact = max(decimals, -int(value.normalize().as_tuple().exponent))  # more where the volume has more
    return f"{value:.{exact}f}"


def millilitres(volume_ml: int) -> str:
    """Return a volume in millilitres with thin gaps: `127 113 000 mL`."""
    return f"{volume_ml:,} mL".replace(",", " ")


def _trailing_zeros(number: int) -> int:
    digits = str(number)
    return len(digits) - len(digits.rstrip("0"))
