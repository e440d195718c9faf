"""Modbus frames explained, in all framings: requests, answers, refusals, and those that would write.

Request and answer look alike for functions that write; which of the two it is only the order on the line tells.
"""

from typing import Final

from agent.technician.modbus_wire import READS, TCP_UNIT_MAX, WRITES, Framing, ascii_text, lengths, parity_in
from agent.technician.pieces import DAMAGED, Checksum, Field, FieldList, Kind, Piece
from agent.technician.words import Words
from protocols import modbus, modbus_ascii, modbus_tcp
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
_UNIT: Final = Words("地址", "unit")
_FUNCTION: Final = Words("功能码", "function")
_CRC: Final = Words("校验", "CRC-16")
_LRC: Final = Words("校验", "LRC")
MISFIT: Final = Words(
    "长度与功能码不符，或功能码未知：不是读写寄存器的帧",
    "The length does not fit the function, or nobody knows the function",
)
_TITLES: Final = {
    "request": Words("请求", "request"),
    "answer": Words("应答", "answer"),
    "refusal": Words("异常应答", "exception"),
}


def explain(wire: bytes, *, start: int, framing: Framing, request: modbus.ReadRequest | None = None) -> Piece:
    """Return what a frame says, sound or not. `request` is the last one before it, for the registers' addresses."""
    body, found, right = _taken_apart(wire, framing)
    kind, rows = _kind(body), FieldList(body)
    rows.add(1, _UNIT, {0: "broadcast 广播", TCP_UNIT_MAX: "255 this device 设备本身"}.get(body[0], str(body[0])))
    function = body[1] & 0x7F
    name = FUNCTIONS.get(function, Words("未知功能", "unknown function"))
    rows.add(1, _FUNCTION, f"{function} {name}{'  refused 拒绝' if body[1] & 0x80 else ''}")
    fits = len(body) + 2 in lengths(modbus.add_crc(body), 0, unit_max=TCP_UNIT_MAX)
    title = Words(_TITLES[kind].zh, f"Modbus {framing.upper()} {_TITLES[kind].en}")
    piece = Piece(
        start=start,
        end=start + len(wire),
        data=wire,
        kind=kind,
        title=title,
        protocol="modbus",
        framing=framing,
        plain=modbus.add_crc(body),
    )
    if not fits:
        piece.title = Words("帧", f"Modbus {framing.upper()} frame")
        piece.notes += [MISFIT] if found == right else []
    elif kind == "refusal":
        code = body[2]
        text = f"{code} {modbus.EXCEPTION_NAMES.get(code, 'unknown')} {EXCEPTIONS.get(code, '未知')}"
        rows.add(1, Words("异常码", "exception"), text)
    elif kind == "answer":
        _explain_data(piece, rows, request)
    else:
        _explain_request(rows, function)
    if rest := rows.take(len(body)):
        rows.add(len(rest), Words("数据", "data"), rest.hex(" ").upper())
    if fits and function in WRITES and kind != "refusal":
        piece.notes.append(Words("此帧会写表！水望从不发送它", "This frame WRITES to a meter; shuiwang never sends it"))
    if framing == "ascii" and (parity := parity_in(wire)):
        piece.notes.append(
            Words(
                f"第 7 位是校验位：线路是 7{parity}1，却按 8N1 接收",
                f"Bit 7 holds a parity: the line is 7{parity}1 and was received as 8N1",
            )
        )
    piece.fields = _on_the_wire(wire, framing, rows.fields, found, right)
    if framing != "tcp":
        piece.checksum = Checksum(found=found, right=right)
    if found != right:
        piece.notes.append(DAMAGED)
    if found != right or not fits:
        piece.kind = "damaged"
    return piece


def _taken_apart(wire: bytes, framing: Framing) -> tuple[bytes, str, str]:
    """Return unit and PDU, the checksum that stands in the frame, and the one that is right; TCP has none."""
    if framing == "rtu":
        body = wire[:-2]
        return body, wire[-2:].hex(" ").upper(), modbus.add_crc(body)[-2:].hex(" ").upper()
    if framing == "ascii":
        data = bytes.fromhex(ascii_text(wire, 0)[1:-2].decode("ascii"))
        return data[:-1], f"{data[-1]:02X}", f"{modbus_ascii.lrc(data[:-1]):02X}"
    return wire[modbus_tcp.HEADER_BYTES :], "", ""


def _on_the_wire(wire: bytes, framing: Framing, fields: list[Field], found: str, right: str) -> list[Field]:
    """Return the fields of unit and PDU where they stand in the frame, with what the framing puts around them."""
    rows = FieldList(wire)
    if framing == "ascii":
        rows.add(1, Words("帧头", "start"), "colon 冒号")
    elif framing == "tcp":
        rows.add(2, Words("事务号", "transaction"), str(int.from_bytes(wire[:2], "big")))
        rows.add(2, Words("协议号", "protocol"), "0 Modbus")
        rows.add(2, Words("长度", "length"), f"{len(wire) - modbus_tcp.HEADER_BYTES} bytes follow 字节")
    width = 2 if framing == "ascii" else 1
    for field in fields:
        rows.add(width * (field.end - field.start), field.name, field.value)
    verdict = "right 正确" if found == right else f"WRONG 错误: {right} is right 应为"
    if framing != "tcp":
        rows.add(2, _LRC if framing == "ascii" else _CRC, f"{found} {verdict}")
    if framing == "ascii":
        rows.add(2, Words("帧尾", "end"), "CR LF")
    return rows.fields


def request_of(frame: bytes) -> modbus.ReadRequest | None:
    """Return the read request in a sound RTU frame, None where it is none."""
    if len(frame) != modbus.REQUEST_BYTES or frame[1] not in modbus.READ_FUNCTIONS:
        return None
    try:
        unit = frame[0] if modbus.UNIT_MIN <= frame[0] <= modbus.UNIT_MAX else modbus.UNIT_MIN
        return modbus.decode_request(bytes((unit,)) + frame[1:])
    except UsageError:
        return None


def _kind(body: bytes) -> Kind:
    size = len(body) + 2
    if body[1] & 0x80:
        return "refusal"
    if body[1] in READS and size == 5 + body[2] and (size != modbus.REQUEST_BYTES or body[1] < 3):
        # 8 bytes of function 1 or 2 may be either: an answer with three bytes of coils is the rarer one.
        return "request" if size == modbus.REQUEST_BYTES else "answer"
    return "request"


def _explain_data(piece: Piece, rows: FieldList, request: modbus.ReadRequest | None) -> None:
    count = piece.plain[2]
    rows.add(1, Words("字节数", "byte count"), f"{count} ({count // 2} registers 个寄存器)")
    if piece.plain[1] not in modbus.READ_FUNCTIONS:
        return
    answers = (
        request is not None
        and 2 * request.count == count
        and request.function == piece.plain[1]
        and request.unit in (piece.plain[0], 1)
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
    if function in {15, 16} and len(rows.frame) > modbus.REQUEST_BYTES - 2:
        rows.add(1, Words("字节数", "byte count"), str(rows.take(1)[0]))
