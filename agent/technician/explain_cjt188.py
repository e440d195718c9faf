"""CJ/T 188 frames explained, both directions, both orders of the data identifier, with or without a profile."""

from collections.abc import Iterator
from typing import Final

from agent.technician.history_records import Kind as RecordKind
from agent.technician.history_records import kind_of, settlements_ago
from agent.technician.pieces import DAMAGED, Checksum, FieldList, Kind, Meaning, Piece
from agent.technician.words import Words, cubic_metres
from protocols import cjt188, cjt188_data
from protocols.cjt188 import HEADER_BYTES, OVERHEAD_BYTES, Frame
from protocols.cjt188_data import Cjt188Spec, ClockState, Field
from protocols.errors import MeterError
from protocols.registers import VOLUME_ML_MAX

TYPES_ZH: Final = {
    0x10: "冷水",
    0x11: "热水",
    0x12: "直饮水",
    0x13: "中水",
    0x20: "热量",
    0x21: "冷量",
    0x22: "冷热量",
    0x30: "燃气",
    0x40: "电表或其他",
    0xAA: "任意",
}
CONTROLS_ZH: Final = {
    0x01: "读数据",
    0x03: "读地址",
    0x04: "写数据",
    0x09: "读密钥版本",
    0x15: "写地址",
    0x16: "写机电同步（改底数）",
    0x22: "广播读地址（厂家）",
    0x2A: "阀控（厂家）",
    0x33: "读写存储（厂家）",
}
UNITS: Final = {
    "29": "L",
    "2A": "L × 10",
    "2B": "L × 100",
    "2C": "m³",
    "2D": "m³ × 10",
    "2E": "m³ × 100",
    "32": "L/h",
    "35": "m³/h",
}
FIELDS: Final = {
    "total": Words("累计量", "total"),
    "fraction": Words("累计量小数", "total, decimals"),
    "settled": Words("结算日累计", "settled total"),
    "flow": Words("流量", "flow"),
    "temperature": Words("温度", "temperature"),
    "pressure": Words("压力", "pressure"),
    "clock": Words("表内时钟", "meter's clock"),
    "status": Words("状态", "status ST"),
    "other": Words("其他", "other"),
}
_WRITES: Final = (cjt188.WRITE_DATA, cjt188.WRITE_ADDRESS, cjt188.SET_TOTAL, cjt188.VENDOR_VALVE)
_CLOCKS: Final = {
    ClockState.ABSENT: "absent 无",
    ClockState.INVALID: "no date 无效",
    ClockState.AMBIGUOUS: "ambiguous 两可",
}
# What people name the data identifiers that a water meter answers.
_IDENTIFIERS: Final = {
    cjt188_data.CURRENT: Words("当前计量数据", "current reading"),
    cjt188_data.ADDRESS: Words("表地址", "address"),
    cjt188_data.VALVE: Words("阀门", "valve"),
    0x8102: Words("价格表", "price table"),
    0x8103: Words("结算日", "settlement day"),
    0x8104: Words("抄表日", "reading day"),
    0x8105: Words("购入金额", "purchased amount"),
    0x8106: Words("密钥版本", "key version"),
    0xA015: Words("标准时间", "clock"),
    0xA016: Words("写机电同步数据", "set total"),
    0xA018: Words("写地址", "address"),
}
# Where the profile does not say: as many decimals as were seen or claimed for any meter.
_DECIMALS_TRIED: Final = range(4)
# A clock that was never set may stand in the last century.
_CENTURIES: Final = (0x19, 0x20)
_CLOCK_BYTES: Final = 7  # with the century


def match(data: bytes, at: int) -> int:
    """Return the length of the sound frame that begins there, 0 where none does."""
    frame = cjt188.parse_frame(data, at)
    return OVERHEAD_BYTES + len(frame.data) if frame else 0


def near(data: bytes, at: int) -> int:
    """Return the length of what has a frame's shape there but not its checksum, 0 where nothing has."""
    header = data[at : at + HEADER_BYTES]
    if len(header) < HEADER_BYTES or header[0] != cjt188.START or header[-1] > cjt188.DATA_BYTES_MAX:
        return 0
    length = OVERHEAD_BYTES + header[-1]
    return length if data[at + length - 1 : at + length] == bytes([cjt188.END]) else 0


def missing_bytes(data: bytes, at: int) -> int:
    """Return how many bytes a frame that begins there still lacks at the end of the data; 0 where none begins."""
    header = data[at : at + HEADER_BYTES]
    if len(header) < HEADER_BYTES or header[0] != cjt188.START or header[-1] > cjt188.DATA_BYTES_MAX:
        return 0
    known = header[1] in cjt188.TYPE_NAMES and header[9] & 0x3F in cjt188.CONTROL_NAMES
    return max(0, at + OVERHEAD_BYTES + header[-1] - len(data)) if known else 0


def explain(frame: bytes, *, start: int, spec: Cjt188Spec | None = None) -> Piece:
    """Return what a frame from 68 to 16 says, sound or not. A profile's `spec` says how totals are read."""
    parsed = _parse(frame)
    rows = FieldList(frame)
    kind: Kind = "refusal" if parsed.is_abnormal else "answer" if parsed.is_reply else "request"
    piece = Piece(start=start, end=start + len(frame), data=frame, kind=kind, title=_title(kind), protocol="cjt188")
    rows.add(1, Words("帧头", "start"), "68")
    type_name = cjt188.TYPE_NAMES.get(parsed.meter_type, "unknown")
    rows.add(1, Words("表类型", "meter type T"), f"{type_name} {TYPES_ZH.get(parsed.meter_type, '未知')}")
    any_meter = "  (any meter 任意表)" if parsed.address == cjt188.BROADCAST else ""
    rows.add(7, Words("表号", "address"), parsed.address + any_meter)
    rows.add(1, Words("控制码", "control C"), _control_text(parsed))
    rows.add(1, Words("长度", "length L"), f"{len(parsed.data)}")
    if parsed.is_abnormal:
        rows.add(1, Words("序号", "serial SER"), f"{parsed.data[:1].hex().upper()}")
        rows.add(2, FIELDS["status"], _status_text(rows.take(2), spec))
    elif parsed.identifier is not None:
        _explain_data(piece, rows, parsed, spec)
    rest = len(frame) - 2 - rows.at
    rows.add(rest, FIELDS["other"], rows.take(max(rest, 0)).hex(" ").upper())
    right, found = f"{cjt188.checksum(frame[:-2]):02X}", f"{frame[-2]:02X}"
    rows.add(1, Words("校验和", "checksum"), "right 正确" if right == found else f"WRONG 错误: {right} is right 应为")
    rows.add(1, Words("帧尾", "end"), "16")
    if parsed.request_control in _WRITES and not parsed.is_abnormal:
        piece.notes.append(Words("此帧写表（或是写表的应答）", "This frame WRITES to a meter, or answers one that did"))
    piece.fields, piece.checksum = rows.fields, Checksum(found=found, right=right)
    if right != found:
        piece.kind, piece.meanings = "damaged", []
        piece.notes.append(DAMAGED)
    return piece


def _parse(frame: bytes) -> Frame:
    """Return a frame of the right shape, whatever its checksum."""
    return Frame(
        meter_type=frame[1], address=frame[2:9][::-1].hex().upper(), control=frame[9], data=frame[HEADER_BYTES:-2]
    )


def _title(kind: Kind) -> Words:
    return {
        "request": Words("请求", "CJ/T 188 request"),
        "answer": Words("应答", "CJ/T 188 answer"),
        "refusal": Words("异常应答", "CJ/T 188 abnormal answer"),
    }[kind]


def _control_text(frame: Frame) -> str:
    code = frame.request_control
    name = f"{cjt188.CONTROL_NAMES.get(code, 'unknown')} {CONTROLS_ZH.get(code, '未知')}"
    if frame.is_abnormal:
        return f"refuses 拒绝: {name}"
    return f"answer to 应答: {name}" if frame.is_reply else name


def identify(wire: bytes) -> tuple[int, str, Words | None]:
    """Return a data identifier as a number, the order of its bytes on the wire, and its name if it has one."""
    for order, number in (("", "big"), (", low byte first 低位在前", "little")):
        identifier = int.from_bytes(wire, "big" if number == "big" else "little")
        name = _IDENTIFIERS.get(identifier) or _record_name(identifier)
        if name:
            return identifier, order, name
    return int.from_bytes(wire, "big"), "", None


def _record_name(identifier: int) -> Words | None:
    """Return what a total is called that the meter remembers; None for anything else."""
    kind, ago, number = kind_of(identifier), settlements_ago(identifier), identifier & 0xFF
    if kind is RecordKind.SETTLED_MONTH:
        return Words(f"上 {ago} 月结算累计", f"total settled {ago} month(s) ago")
    if kind is RecordKind.SETTLEMENT:
        return Words(f"上 {ago} 次结算累计", f"total settled {ago} settlement(s) ago")
    if kind is RecordKind.TIMED_FREEZE:
        return Words(f"定时冻结记录 {number}", f"record {number} frozen by schedule")
    if kind is RecordKind.COMMANDED_FREEZE:
        return Words(f"命令冻结记录 {number}", f"record {number} frozen on command")
    return None


def _explain_data(piece: Piece, rows: FieldList, frame: Frame, spec: Cjt188Spec | None) -> None:
    assert frame.identifier is not None
    identifier, order, name = identify(frame.identifier)
    text = f"{identifier:04X}" + (f" {name}{order}" if name else " unknown 未知")
    rows.add(2, Words("标识", "identifier DI"), text)
    rows.add(1, Words("序号", "serial SER"), f"{frame.serial:02X}")
    if identifier == cjt188_data.ADDRESS and len(frame.content) == 7:
        rows.add(7, Words("表号", "address"), frame.content[::-1].hex().upper())
        return
    if identifier == cjt188_data.VALVE and len(frame.content) == 1:
        valve = {0x55: "open 开阀", 0x99: "close 关阀"}.get(frame.content[0], "vendor code 厂家码")
        rows.add(1, Words("阀门操作", "valve"), valve)
        return
    layout = _layout(identifier, frame, spec)
    if layout is None:
        return
    for field in cjt188_data.parse_layout(layout):
        raw = rows.take(field.bytes)
        unit = rows.frame[rows.at + field.bytes] if field.has_unit else None
        rows.add(field.bytes, FIELDS[field.kind], _value_text(field.kind, raw, unit, spec))
        if unit is not None:
            rows.add(1, Words("单位", "unit"), UNITS.get(f"{unit:02X}", "unknown 未知"))
    if frame.is_reply and identifier == cjt188_data.CURRENT and spec is None:
        piece.meanings = meanings(frame.content)


def _layout(identifier: int, frame: Frame, spec: Cjt188Spec | None) -> tuple[str, ...] | None:
    """Return the layout of an answer's content: the profile's, or the first known one of that length."""
    if not frame.is_reply:
        return None
    candidates: list[tuple[str, ...]] = []
    if identifier == cjt188_data.CURRENT:
        candidates = [spec.fields] if spec else list(cjt188_data.LAYOUTS.values())
    elif identifier in cjt188_data.SETTLED_MONTHS or identifier in cjt188_data.HISTORY:
        candidates = [cjt188_data.SETTLED_LAYOUT]
    elif identifier in cjt188_data.FREEZES:
        candidates = [cjt188_data.FREEZE_LAYOUT]
    elif identifier == cjt188_data.VALVE:
        candidates = [cjt188_data.STATUS_LAYOUT]
    size = len(frame.content)
    fits = (layout for layout in candidates if cjt188_data.content_bytes(cjt188_data.parse_layout(layout)) == size)
    return next(fits, None)


def _value_text(kind: str, raw: bytes, unit: int | None, spec: Cjt188Spec | None) -> str:
    if kind == "clock":
        moment, state = cjt188_data.decode_clock(raw)
        return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else _CLOCKS[state]
    if kind == "status":
        return _status_text(raw, spec)
    if kind == "other":
        return raw.hex(" ").upper()
    if cjt188_data.is_empty(raw):
        return "empty: the meter has none 空，表不支持"
    digits = raw[::-1].hex().upper()
    if not digits.isdecimal():
        return f"{digits} are no BCD digits 不是 BCD 码"
    if kind in {"total", "settled"} and unit is not None:
        code = f"{unit:02X}"
        decimals = (spec.decimals if spec else {"2C": 2}).get(code)
        if code in cjt188_data.UNIT_ML and decimals is not None:
            volume_ml = int(digits) * cjt188_data.UNIT_ML[code] // 10**decimals
            says = "profile 型号" if spec else "usually 通常"
            step_ml = max(1, cjt188_data.UNIT_ML[code] // 10**decimals)
            return f"{digits} = {cubic_metres(volume_ml, step_ml=step_ml)} m³ ({says})"
    return digits


def _status_text(raw: bytes, spec: Cjt188Spec | None) -> str:
    text = raw.hex(" ").upper()
    if len(raw) < 2:
        return text
    if spec is not None and spec.status:
        flags = [name for name, bit in spec.status.items() if raw[int(bit[2])] >> int(bit[4]) & 1]
        return f"{', '.join(flags) or 'no flag 无标志'} (profile 型号)"
    valve = ("open 开", "closed 关", "?", "fault 异常")[raw[0] & 3]
    battery = "low 欠压" if raw[0] & 4 else "ok 正常"
    return f"usually 通常: valve 阀 {valve}, battery 电池 {battery}"


def meanings(content: bytes) -> list[Meaning]:
    """Return the volumes that the bytes after SER of a current reading may mean, each way of reading once."""
    found: list[Meaning] = []
    for name, fields in cjt188_data.LAYOUTS.items():
        layout = cjt188_data.parse_layout(fields)
        if cjt188_data.content_bytes(layout) != len(content):
            continue
        if layout[0].has_unit:
            found += _by_decimals(name, content[:4], content[4])
        else:  # RD-W10: whole cubic metres, then six decimals
            found += _by_fraction(name, content)
    return found


def certainty(spec: Cjt188Spec, content: bytes) -> int:
    """Return how much in the bytes after SER speaks for a profile's layout: its unit codes and its date, counted.

    Digits fit any layout. With 0 there is nothing that speaks for this one. A date of six bytes is the end of one of
    seven, shifted: with a clock that stood still or that has its high byte first it is a date as well. So it counts
    only where nothing beside the total speaks for the standard layout.
    """
    count = 0
    for field, raw, unit in _fields(spec, content):
        count += unit in cjt188_data.UNIT_ML
        is_date = field.kind == "clock" and cjt188_data.decode_clock(raw)[1] in (ClockState.SET, ClockState.AMBIGUOUS)
        count += is_date and (field.bytes == _CLOCK_BYTES or not _speaks_for_standard(content))
    return count


def _speaks_for_standard(content: bytes) -> bool:
    """Tell whether the standard layout has a unit code behind its settled total, or a date of seven bytes.

    The unit code of its total is not asked: it may be two decimals of another layout, and then both fit.
    """
    for field, raw, unit in _fields(Cjt188Spec(), content):
        if field.kind == "settled" and unit in cjt188_data.UNIT_ML:
            return True
        if field.kind == "clock" and (
            (raw[-1] in _CENTURIES and cjt188_data.decode_clock(raw[:-1])[1] is ClockState.SET)
            or (raw[0] in _CENTURIES and cjt188_data.decode_clock(raw[:0:-1])[1] is ClockState.SET)
        ):
            return True
    return False


def way(spec: Cjt188Spec, content: bytes) -> str:
    """Return how a profile makes a total of the bytes after SER: the same for all that will always show the same."""
    units = {field.kind: unit or spec.unit for field, _, unit in _fields(spec, content)}
    unit = units.get("fraction", units.get("total"))
    decimals = spec.decimals.get(unit) if unit else None
    return f"{spec.fields} {unit} {decimals}"


def _fields(spec: Cjt188Spec, content: bytes) -> Iterator[tuple[Field, bytes, str | None]]:
    """Yield the fields of a layout with their bytes and unit codes; none where the content has another length."""
    layout = cjt188_data.parse_layout(spec.fields)
    if cjt188_data.content_bytes(layout) != len(content):
        return
    at = 0
    for field in layout:
        end = at + field.bytes
        yield field, content[at:end], f"{content[end]:02X}" if field.has_unit else None
        at = end + field.has_unit


def _by_decimals(layout: str, raw: bytes, unit: int) -> list[Meaning]:
    code, digits = f"{unit:02X}", raw[::-1].hex()
    if code not in cjt188_data.UNIT_ML or not digits.isdecimal():
        return []
    usual = {"2C": 2}.get(code)
    order = sorted(_DECIMALS_TRIED, key=lambda decimals: decimals != usual)
    return [
        Meaning(how=f"{layout}, unit {code} {UNITS[code]}, {decimals} decimals 位小数", volume_ml=volume_ml)
        for decimals in order
        if (volume_ml := int(digits) * cjt188_data.UNIT_ML[code] // 10**decimals) <= VOLUME_ML_MAX
    ]


def _by_fraction(layout: str, content: bytes) -> list[Meaning]:
    spec = Cjt188Spec(layout=layout, unit="2C", decimals={"2C": 6})
    try:
        record = cjt188_data.decode(spec, spec.fields, content)
    except MeterError:
        return []
    if record.total_ml is None or not certainty(spec, content):
        return []
    return [Meaning(how=f"{layout}, m³ with 6 decimals 位小数", volume_ml=record.total_ml)]
