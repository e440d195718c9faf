"""Modbus RTU frames explained: requests, answers, refusals, and those that would write.

Request and answer look alike for functions that write; which of the two it is only the order on the line tells.
"""

from typing import Final

from agent.technician.pieces import DAMAGED, Checksum, FieldList, Kind, Piece
from agent.technician.words import Words
from protocols import modbus
from protocols.errors import UsageError

FUNCTIONS: Final = {
    1: Words("读线圈", "read coils"),
    2: Words("读离散输入", "read discrete inputs"),
    3: Words("读保持寄存器", "read holding registers"),
    4: Words("读输入寄存器", "read input registers"),
    5: Words("写单个线圈", "WRITE one coil"),
    6: Words("写单个寄存器", "WRITE one register"),
    15: Words("写多个线圈", "WRITE coils"),
    16: Words("写多个寄存器", "WRITE registers"),
}
EXCEPTIONS: Final = {
    1: "非法功能码",
    2: "非法寄存器地址",
    3: "非法数据值",
    4: "设备故障",
    5: "已收到，处理中",
    6: "设备忙",
    8: "存储奇偶错",
    10: "网关路径不可用",
    11: "网关目标无应答",
}
_READS: Final = (1, 2, 3, 4)
_WRITES_MANY: Final = (15, 16)
_UNIT: Final = Words("地址", "unit")
_FUNCTION: Final = Words("功能码", "function")
_CRC: Final = Words("校验", "CRC-16")


def lengths(data: bytes, at: int) -> list[int]:
    """Return how long a frame that begins there can be by its looks, whatever its checksum; longest last."""
    head = data[at : at + 7]
    if len(head) < 3 or head[0] > modbus.UNIT_MAX:
        return []
    function = head[1]
    if function & 0x80:
        is_exception = function & 0x7F in FUNCTIONS and head[2] in modbus.EXCEPTION_NAMES
        return [modbus.EXCEPTION_BYTES] if is_exception else []
    if function not in FUNCTIONS:
        return []
    found = [modbus.REQUEST_BYTES]
    if function in _READS and head[2] and (function < modbus.READ_HOLDING_REGISTERS or head[2] % 2 == 0):
        found.append(5 + head[2])
    if function in _WRITES_MANY and len(head) == 7 and head[6]:
        found.append(9 + head[6])
    return sorted(set(found))


def match(data: bytes, at: int) -> int:
    """Return the length of the sound frame that begins there, 0 where none does."""
    for length in lengths(data, at):
        if at + length <= len(data) and modbus.has_crc(data[at : at + length]):
            return length
    return 0


def explain(frame: bytes, *, start: int, request: modbus.ReadRequest | None) -> Piece:
    """Return what a frame says, sound or not. `request` is the last one before it, for the registers' addresses."""
    is_sound = modbus.has_crc(frame)
    kind, rows = _kind(frame), FieldList(frame)
    unit = frame[0]
    who = "broadcast 广播" if unit == 0 else str(unit)
    rows.add(1, _UNIT, who)
    function = frame[1] & 0x7F
    name = FUNCTIONS.get(function, Words("未知功能", "unknown function"))
    refused = "  refused 拒绝" if frame[1] & 0x80 else ""
    rows.add(1, _FUNCTION, f"{function} {name}{refused}")
    piece = Piece(start=start, end=start + len(frame), data=frame, kind=kind, title=_title(kind), protocol="modbus")
    if kind == "refusal":
        code = frame[2]
        text = f"{code} {modbus.EXCEPTION_NAMES.get(code, 'unknown')} {EXCEPTIONS.get(code, '未知')}"
        rows.add(1, Words("异常码", "exception"), text)
    elif kind == "answer":
        _explain_data(piece, rows, request)
    else:
        _explain_request(rows, function)
    rest = len(frame) - 2 - rows.at
    if rest > 0:
        rows.add(rest, Words("数据", "data"), rows.take(rest).hex(" ").upper())
    right = modbus.add_crc(frame[:-2])[-2:].hex(" ").upper()
    found = frame[-2:].hex(" ").upper()
    rows.add(2, _CRC, f"{found} right 正确" if is_sound else f"{found} WRONG 错误: {right} is right 应为")
    if function in {5, 6, *_WRITES_MANY} and kind != "refusal":
        piece.notes.append(Words("此帧会写表！水望从不发送它", "This frame WRITES to a meter; shuiwang never sends it"))
    piece.fields, piece.checksum = rows.fields, Checksum(found=found, right=right)
    if not is_sound:
        piece.kind = "damaged"
        piece.notes.append(DAMAGED)
    return piece


def request_of(frame: bytes) -> modbus.ReadRequest | None:
    """Return the read request in a sound frame, None where it is none."""
    if len(frame) != modbus.REQUEST_BYTES or frame[1] not in modbus.READ_FUNCTIONS:
        return None
    try:
        return modbus.decode_request(bytes([frame[0] or 1]) + frame[1:])
    except UsageError:
        return None


def _kind(frame: bytes) -> Kind:
    if frame[1] & 0x80:
        return "refusal"
    if frame[1] in _READS and len(frame) == 5 + frame[2] and (len(frame) != modbus.REQUEST_BYTES or frame[1] < 3):
        # 8 bytes of function 1 or 2 may be either: an answer with three bytes of coils is the rarer one.
        return "request" if len(frame) == modbus.REQUEST_BYTES else "answer"
    return "request"


def _title(kind: Kind) -> Words:
    return {
        "request": Words("请求", "Modbus RTU request"),
        "answer": Words("应答", "Modbus RTU answer"),
        "refusal": Words("异常应答", "Modbus RTU exception"),
    }[kind]


def _explain_data(piece: Piece, rows: FieldList, request: modbus.ReadRequest | None) -> None:
    count = piece.data[2]
    rows.add(1, Words("字节数", "byte count"), f"{count} ({count // 2} registers 个寄存器)")
    if piece.data[1] not in modbus.READ_FUNCTIONS:
        return
    answers = (
        request is not None
        and 2 * request.count == count
        and request.function == piece.data[1]
        and request.unit in (piece.data[0], 1)
    )
    first = request.address if request is not None and answers else None
    for index in range(count // 2):
        raw = rows.take(2)
        register = int.from_bytes(raw, "big")
        place = f"{first + index} (0x{first + index:04X})" if first is not None else f"#{index}"
        rows.add(2, Words("寄存器", "register"), f"{place} = {register}")
        piece.registers[index + (first or 0)] = register
    if first is None:
        piece.notes.append(
            Words(
                "不知道是哪些寄存器：把请求一起贴上，或用 --request",
                "Which registers these are only the request tells: paste it too, or give --request",
            )
        )


def _explain_request(rows: FieldList, function: int) -> None:
    address = int.from_bytes(rows.take(2), "big")
    table = {1: "0", 2: "1", 4: "3"}.get(function, "4")
    manuals = f"manuals 手册: {address + 1}, {table}{address + 1:04d}"
    rows.add(2, Words("起始", "first register"), f"{address} = 0x{address:04X} ({manuals})")
    value = int.from_bytes(rows.take(2), "big")
    if function in {5, 6}:
        rows.add(2, Words("写入值", "value"), f"{value} (0x{value:04X})")
    else:
        rows.add(2, Words("数量", "count"), str(value))
    if function in _WRITES_MANY and len(rows.frame) > modbus.REQUEST_BYTES:
        rows.add(1, Words("字节数", "byte count"), str(rows.take(1)[0]))
