"""M-Bus frames explained: who asks or answers, whose telegram it is, every record of it, and its checksum."""

from typing import Final

from agent.technician.pieces import DAMAGED, Checksum, FieldList, Kind, Piece
from agent.technician.words import Words, cubic_metres
from protocols import mbus, mbus_data, mbus_records
from protocols.errors import MeterFault
from protocols.mbus_records import Record
from protocols.registers import VOLUME_ML_MAX

_MEDIA: Final = {
    0x00: Words("其他", "other"),
    0x02: Words("电", "electricity"),
    0x03: Words("燃气", "gas"),
    0x04: Words("热量", "heat"),
    0x06: Words("温水", "warm water"),
    0x07: Words("水", "water"),
    0x15: Words("热水", "hot water"),
    0x16: Words("冷水", "cold water"),
    0x17: Words("冷热两用水", "hot and cold water"),
}
_REQUESTS: Final = {
    mbus.RESET_LINK: Words("复位链路", "SND_NKE: reset the link"),
    mbus.SEND_DATA: Words("发送数据", "SND_UD: send data"),
    mbus.REQUEST_DATA: Words("请求数据", "REQ_UD2: ask for data"),
}
_CONTENTS: Final = {
    mbus.SELECT: Words("按编号选表", "select a meter by its identity"),
    0x70: Words("一般错误", "general application error"),
    0x71: Words("报警", "alarm"),
    0x72: Words("可变结构数据", "variable structure"),
    0x76: Words("可变结构，高位在前", "variable structure, high byte first"),
    0x73: Words("固定结构数据", "fixed structure"),
    0x77: Words("固定结构，高位在前", "fixed structure, high byte first"),
    mbus_data.NO_HEADER: Words("可变结构，无数据头", "variable structure without a header"),
    mbus_data.SHORT_HEADER: Words("可变结构，短数据头", "variable structure with a short header"),
}
_QUANTITIES: Final = (
    (range(0x08), Words("能量", "energy")),
    (range(0x20, 0x24), Words("通电时间", "on time")),
    (range(0x24, 0x28), Words("运行时间", "operating time")),
    (range(0x28, 0x30), Words("功率", "power")),
    (range(0x38, 0x50), Words("流量", "flow")),
    (range(0x58, 0x64), Words("温度", "temperature")),
    (range(0x6C, 0x6E), Words("日期", "date")),
    (range(0x78, 0x79), Words("出厂编号", "fabrication number")),
    (range(0x7A, 0x7B), Words("总线地址", "bus address")),
)
_HEADER_BYTES: Final = 12  # identity, access number, status, signature
_SHORT_HEADER_BYTES: Final = 4  # access number, status, signature


def match(data: bytes, at: int) -> int:
    """Return the length of the sound frame that begins there, 0 where none does."""
    frame = mbus.parse_frame(data, at) if data[at] in (mbus.SHORT_START, mbus.LONG_START) else None
    return len(frame.encode()) if frame else 0


def near(data: bytes, at: int) -> int:
    """Return the length of what has a long frame's shape there but not its checksum, 0 where nothing has."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != mbus.LONG_START or head[3] != mbus.LONG_START or head[1] != head[2]:
        return 0
    length = mbus.LONG_OVERHEAD_BYTES + head[1]
    ends = data[at + length - 1 : at + length] == bytes([mbus.END])
    return length if ends and head[1] >= mbus.LENGTH_MIN else 0


def missing_bytes(data: bytes, at: int) -> int:
    """Return how many bytes a long frame that begins there still lacks at the end of the data; 0 where none begins."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != mbus.LONG_START or head[3] != mbus.LONG_START or head[1] != head[2]:
        return 0
    return max(0, at + mbus.LONG_OVERHEAD_BYTES + head[1] - len(data))


def acknowledgement(start: int) -> Piece:
    """Return the piece for E5 alone."""
    rows = FieldList(bytes([mbus.ACKNOWLEDGEMENT]))
    rows.add(1, Words("确认", "acknowledgement"), "E5")
    title = Words("确认", "M-Bus acknowledgement")
    data = rows.frame
    return Piece(
        start=start,
        end=start + 1,
        data=data,
        kind="acknowledgement",
        title=title,
        protocol="mbus",
        fields=rows.fields,
    )


def explain(data: bytes, *, start: int) -> Piece:
    """Return what a short or long frame says, its checksum right or not."""
    is_long = data[0] == mbus.LONG_START
    body = data[4:-2] if is_long else data[1:-2]
    frame = mbus.Frame(control=body[0], address=body[1], ci=body[2] if is_long else None, data=body[3:])
    rows = FieldList(data)
    rows.add(1, Words("帧头", "start"), f"{data[0]:02X}")
    if is_long:
        rows.add(2, Words("长度", "length L"), str(data[1]))
        rows.add(1, Words("帧头", "start"), "68")
    rows.add(1, Words("控制 C", "control"), _control_text(frame))
    rows.add(1, Words("地址 A", "address"), _address_text(frame.address))
    if frame.ci is not None:
        rows.add(1, Words("内容 CI", "content"), f"{frame.ci:02X} {_CONTENTS.get(frame.ci, Words('未知', 'unknown'))}")
    _explain_content(rows, frame)
    right, found = f"{mbus.checksum(body):02X}", f"{data[-2]:02X}"
    rows.add(1, Words("校验和", "checksum"), "right 正确" if right == found else f"WRONG 错误: {right} is right 应为")
    rows.add(1, Words("帧尾", "end"), "16")
    kind: Kind = "request" if frame.is_request else "answer"
    title = Words("请求", "M-Bus request") if frame.is_request else Words("应答", "M-Bus answer")
    piece = Piece(start=start, end=start + len(data), data=data, kind=kind, title=title, protocol="mbus")
    if frame.is_request and frame.function == mbus.SEND_DATA and frame.ci != mbus.SELECT:
        piece.notes.append(Words("此帧会写表！", "This frame WRITES to a meter"))
    piece.fields, piece.checksum = rows.fields, Checksum(found=found, right=right)
    if right != found:
        piece.kind = "damaged"
        piece.notes.append(DAMAGED)
    return piece


def _control_text(frame: mbus.Frame) -> str:
    if not frame.is_request:
        alarm = ", alarm waiting 有报警" if frame.control & 0x20 else ""
        busy = ", busy 忙" if frame.control & 0x10 else ""
        return f"{frame.control:02X} RSP_UD: data 数据应答{alarm}{busy}"
    name = _REQUESTS.get(frame.function, Words("未知", "unknown"))
    return f"{frame.control:02X} {name}"


def _address_text(address: int) -> str:
    special = {
        0: Words("未设置", "not configured"),
        mbus.SELECTED: Words("已选中的表", "the selected meter"),
        mbus.ANY_METER: Words("任意表", "any meter"),
        mbus.BROADCAST: Words("广播", "broadcast"),
    }
    return f"{address}" + (f" {special[address]}" if address in special else "")


def _explain_content(rows: FieldList, frame: mbus.Frame) -> None:
    size = len(rows.frame) - 2 - rows.at
    identity = frame.identity
    if frame.ci == mbus.SELECT and size >= mbus.IDENTITY_BYTES:
        identity = mbus.decode_identity(rows.take(mbus.IDENTITY_BYTES))
    if identity is not None and size >= mbus.IDENTITY_BYTES and frame.ci not in mbus.FIXED:
        rows.add(4, Words("编号", "identity"), identity.number)
        rows.add(2, Words("厂商", "manufacturer"), identity.manufacturer_name)
        rows.add(1, Words("版本", "version"), str(identity.version))
        rows.add(1, Words("介质", "medium"), str(_MEDIA.get(identity.medium, Words("其他", f"{identity.medium:02X}"))))
        if frame.ci in mbus.VARIABLE and size >= _HEADER_BYTES:
            _explain_short_header(rows)
    elif frame.ci == mbus_data.SHORT_HEADER and size >= _SHORT_HEADER_BYTES:
        _explain_short_header(rows)
    elif identity is not None:
        rows.add(4, Words("编号", "identity"), identity.number)
    is_headless = frame.ci == mbus_data.NO_HEADER or (
        frame.ci == mbus_data.SHORT_HEADER and size >= _SHORT_HEADER_BYTES
    )
    if is_headless or (frame.ci in mbus.VARIABLE and rows.at > mbus.HEADER_BYTES + 1):
        _explain_records(rows, high_byte_first=frame.ci in mbus.HIGH_BYTE_FIRST)
    rest = len(rows.frame) - 2 - rows.at
    if rest > 0:
        rows.add(rest, Words("数据", "data"), "")


def _explain_short_header(rows: FieldList) -> None:
    rows.add(1, Words("访问号", "access number"), str(rows.take(1)[0]))
    rows.add(1, Words("状态", "status"), _status_text(rows.take(1)[0]))
    rows.add(2, Words("签名", "signature"), rows.take(2).hex(" ").upper())


def _explain_records(rows: FieldList, *, high_byte_first: bool) -> None:
    """Add a field for each record up to the first that cannot be told, or to the maker's own data."""
    end = len(rows.frame) - 2
    while rows.at < end:
        first = rows.frame[rows.at]
        if first == mbus_records.FILLER:
            rows.add(1, Words("填充", "filler"), "")
            continue
        if first in (mbus_records.MAKER_DATA, mbus_records.MAKER_DATA_AND_MORE):
            rows.add(end - rows.at, Words("厂家数据", "maker's own data"), "")
            return
        found = _first_record(rows.frame[rows.at : end], high_byte_first=high_byte_first)
        if found is None:
            return
        size, record = found
        rows.add(size, _quantity(record), _record_text(record))


def _first_record(data: bytes, *, high_byte_first: bool) -> tuple[int, Record] | None:
    """Return the length of the first record and what it is: a record says how long it is, so fewer bytes fail."""
    for size in range(1, len(data) + 1):
        try:
            records, _ = mbus_records.parse_records(data[:size], high_byte_first=high_byte_first)
        except MeterFault:
            continue
        return (size, records[0]) if records else None
    return None


def _quantity(record: Record) -> Words:
    if record.volume_vib:
        return Words("体积", "volume")
    vif = record.vib[0] & 0x7F
    return next((name for codes, name in _QUANTITIES if record.vib[0] < 0xFB and vif in codes), Words("其他", "other"))


def _record_text(record: Record) -> str:
    """Return a record's value with its place: storage 0 and instantaneous are what the dial shows."""
    place = ", ".join(
        part
        for part in (
            mbus_records.FUNCTION_NAMES[record.function] if record.function else "",
            f"storage {record.storage} 历史" if record.storage else "",
            f"tariff {record.tariff}" if record.tariff else "",
            f"sub-unit {record.subunit}" if record.subunit else "",
        )
        if part
    )
    return _number_text(record) + (f" ({place})" if place else "")


def _number_text(record: Record) -> str:
    dates = record.vib[0] in {0x6C, 0x6D} and len(record.value) in {2, 4}
    if dates:
        return _date_text(record.value)
    try:
        number = mbus_records.decode_number(record)
    except MeterFault:
        return "no number 非数值"
    if record.volume_vib and 0 <= number * record.step_ml <= VOLUME_ML_MAX:
        volume = cubic_metres(int(number * record.step_ml), step_ml=min(1_000_000, max(1, record.step_ml)))
        vife = f", VIFE {record.volume_vib[1]}" if record.volume_vib[1] else ""
        return f"{volume} m³{vife}"
    return f"{number:f} (VIF {record.vib.hex(' ').upper()})"


def _date_text(value: bytes) -> str:
    """Return a date (type G) or date and time (type F)."""
    day = value[-2:]
    year, month = (day[0] >> 5 | (day[1] & 0xF0) >> 1), day[1] & 0x0F
    text = f"20{year:02d}-{month:02d}-{day[0] & 0x1F:02d}"
    return text if len(value) == 2 else f"{text} {value[1] & 0x1F:02d}:{value[0] & 0x3F:02d}"


def _status_text(status: int) -> str:
    names = [
        name
        for bit, name in ((4, "power low 电池欠压"), (8, "permanent error 永久故障"), (16, "temporary error 临时故障"))
        if status & bit
    ]
    return f"{status:02X} {', '.join(names) or 'ok 正常'}"
