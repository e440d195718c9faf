"""Bytes of any protocol, cut into frames and noise and explained, with and without a profile."""

import functools
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from agent.technician import explain_cjt188, explain_mbus, explain_modbus, meanings, modbus_wire
from agent.technician.cutting import Cut, cut
from agent.technician.fits import Fit, fit_of
from agent.technician.hextext import Chunk
from agent.technician.pieces import Meaning, Piece
from agent.technician.words import Words
from protocols import cjt188, cjt188_data, mbus, modbus
from protocols import profile as profiles
from protocols.errors import MeterError, ShuiwangError
from protocols.profile import Profile
from protocols.reading import Measurement

# More ways to read the same registers than this help nobody.
NUMBERS_SHOWN: Final = 8
_PREAMBLE_BYTES_MIN: Final = 2
_TORN_ASCII_BYTES_MIN: Final = 5  # colon, unit, function: less is no beginning that says anything
_TORN_TCP_BYTES_MIN: Final = 9  # the header, unit, function and one byte more: only then does anything fit together
# One reading takes a few exchanges; with echo and preambles these many pieces hold it.
_PIECES_TOGETHER: Final = 24


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """What a profile makes of one answer (or of several that belong together): a volume, or why there is none."""

    profile: str
    end: int  # of the answer that completed it, in the input
    measurement: Measurement | None = None
    reason: str | None = None
    text: str | None = None


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the bytes say. `numbers` belong to the piece of that index: registers that nobody explained."""

    pieces: list[Piece]
    volumes: list[Volume]
    numbers: dict[int, list[meanings.Shown]]

    @property
    def frames(self) -> list[Piece]:
        """The sound ones."""
        return [piece for piece in self.pieces if piece.kind not in {"noise", "damaged", "truncated"}]


def decode(chunks: Sequence[Chunk], *, profile: Profile | None = None, request: bytes = b"") -> Decoding:
    """Explain bytes. `request` is the one that they answer, where they do not hold it themselves."""
    spec = profile.spec if profile and profile.head.protocol == "cjt188" else None
    pieces: list[Piece] = []
    asked = explain_modbus.request_of(request)
    start = 0
    for chunk in chunks:
        for one in cut(chunk.data, source="paste"):
            if one.protocol == "modbus":
                asked = explain_modbus.request_of(one.plain) or asked
            for piece in _explained(one, chunk.data, asked, spec):
                piece.start, piece.end = piece.start + start, piece.end + start
                piece.direction = chunk.direction
                pieces.append(piece)
        start += len(chunk.data)
    _mark_echoes(pieces)
    volumes = _volumes(profile, pieces, request) if profile else []
    numbers: dict[int, list[meanings.Shown]] = {}
    if profile is None:
        for index, piece in enumerate(pieces):
            if piece.kind == "answer" and piece.registers:
                numbers[index] = meanings.numbers(piece.registers, at_most=NUMBERS_SHOWN)
            if piece.kind == "answer":
                _name_profiles(piece, pieces[:index], request)
    return Decoding(pieces=pieces, volumes=volumes, numbers=numbers)


def completed(request: bytes) -> bytes:
    """Return a request as its protocol's module knows it: Modbus as an RTU frame, also without its checksum."""
    if len(request) == modbus.REQUEST_BYTES - 2 and request[1] in modbus.READ_FUNCTIONS:
        return modbus.add_crc(request)
    return plain(request)


def plain(data: bytes) -> bytes:
    """Return the RTU frame that says what the first Modbus frame in some bytes says; where none is, the bytes."""
    return next((one.plain for one in cut(data, source="paste") if one.protocol == "modbus"), data)


def _explained(one: Cut, data: bytes, asked: modbus.ReadRequest | None, spec: Any) -> list[Piece]:
    """Return a sound frame with its preamble, or what else stands there."""
    frame = data[one.start : one.end]
    if one.framing is not None:
        return [explain_modbus.explain(frame, start=one.start, framing=one.framing, request=asked)]
    if one.protocol == "mbus":
        return [explain_mbus.explain(frame, start=one.start)]
    if one.protocol == "cjt188":
        lead = _noise(data[one.start - one.lead : one.start], one.start - one.lead)
        return [*lead, explain_cjt188.explain(frame, start=one.start, spec=spec)]
    return _unsound(frame, one.start, spec)


def _unsound(data: bytes, start: int, spec: Any) -> list[Piece]:
    """Return what bytes between frames are: a damaged or torn frame with noise around it, an acknowledgement, noise."""
    if data == b"\xe5":
        return [explain_mbus.acknowledgement(start)]
    pieces: list[Piece] = []
    noise_at = at = 0
    while at < len(data):
        piece = _shaped(data, at, start, spec)
        if piece is None:
            at += 1
            continue
        pieces += _noise(data[noise_at:at], start + noise_at)
        pieces.append(piece)
        noise_at = at = piece.end - start
    return pieces + _noise(data[noise_at:], start + noise_at)


def _shaped(data: bytes, at: int, start: int, spec: Any) -> Piece | None:
    """Return a frame of the right shape with a wrong checksum, or the beginning of a torn one."""
    if length := explain_mbus.near(data, at):
        return explain_mbus.explain(data[at : at + length], start=start + at)
    if length := explain_cjt188.near(data, at):
        return explain_cjt188.explain(data[at : at + length], start=start + at, spec=spec)
    for name, missing in (
        ("CJ/T 188", explain_cjt188.missing_bytes(data, at)),
        ("M-Bus", explain_mbus.missing_bytes(data, at)),
    ):
        if missing:
            title = Words(f"{name} 帧不完整，缺 {missing} 字节", f"{name} frame, torn: {missing} bytes are missing")
            end = start + len(data)
            return Piece(start=start + at, end=end, data=data[at:], kind="truncated", title=title)
    return _shaped_modbus(data, at, start)


def _shaped_modbus(data: bytes, at: int, start: int) -> Piece | None:
    """Return Modbus that is damaged or torn. A shape alone says little there, but for the colon of ASCII."""
    if text := modbus_wire.ascii_text(data, at):
        frame = data[at : at + len(text)]
        return explain_modbus.explain(frame, start=start + at, framing="ascii")
    if modbus_wire.is_torn_ascii(data, at) and len(data) - at >= _TORN_ASCII_BYTES_MIN:
        title = Words("Modbus ASCII 帧不完整，缺 CR LF", "Modbus ASCII frame, torn: CR LF are missing")
        return Piece(start=start + at, end=start + len(data), data=data[at:], kind="truncated", title=title)
    if at == 0 and len(data) in modbus_wire.lengths(data, 0):  # it explains everything up to the end
        return explain_modbus.explain(data, start=start, framing="rtu")
    missing = modbus_wire.tcp_missing(data, at) if at == 0 and len(data) >= _TORN_TCP_BYTES_MIN else None
    if missing:
        title = Words(f"Modbus TCP 帧不完整，缺 {missing} 字节", f"Modbus TCP frame, torn: {missing} bytes are missing")
        return Piece(start=start, end=start + len(data), data=data, kind="truncated", title=title)
    return None


def _noise(data: bytes, start: int) -> list[Piece]:
    if not data:
        return []
    rest = data.rstrip(bytes([cjt188.PREAMBLE]))
    if rest and len(data) - len(rest) >= _PREAMBLE_BYTES_MIN:
        return _noise(rest, start) + _noise(data[len(rest) :], start + len(rest))
    if set(data) == {cjt188.PREAMBLE}:
        title = Words(f"前导 {len(data)} 字节", f"preamble, {len(data)} bytes")
    elif set(data) <= {0x00, 0xFF}:
        title = Words("空闲线或换向干扰", "an idle line or a driver switching")
    else:
        title = Words("噪声，不成帧", "noise, no frame")
    return [Piece(start=start, end=start + len(data), data=data, kind="noise", title=title)]


def _mark_echoes(pieces: list[Piece]) -> None:
    """Say where a request comes back at once: an adapter that hears itself, or a write that was carried out."""
    previous: Piece | None = None
    for piece in pieces:
        if piece.kind == "noise":
            continue
        if previous is not None and piece.kind == previous.kind == "request" and piece.data == previous.data:
            if piece.protocol == "modbus" and piece.plain[1] in {5, 6}:
                piece.notes.append(Words("回显，或写入成功的应答", "An echo, or the answer to a write"))
            else:
                piece.notes.append(Words("与上一帧相同：回显或重发", "The same as before: an echo, or a repeat"))
        previous = piece


def _exchanges(profile: Profile, pieces: Sequence[Piece], request: bytes) -> list[tuple[bytes, bytes, int]]:
    """Return (request, answer, end of the answer) for every answer of the profile's protocol.

    Where the request is not among the bytes, the one that the profile would have sent stands in for it.
    """
    exchanges = []
    asked = request
    for piece in pieces:
        if piece.protocol != profile.head.protocol or _is_no_reading(piece):
            continue
        frame = _by_a_meter(piece)
        if piece.kind == "request":
            asked = frame
        elif piece.kind in {"answer", "refusal"}:
            exchanges.append((asked or _request_for(profile, piece), frame, piece.end))
            asked = b""
    return exchanges


def _is_no_reading(piece: Piece) -> bool:
    """Tell whether a frame is about something else than data, such as a valve or an address: it holds no volume."""
    frame = cjt188.parse_frame(piece.data) if piece.protocol == "cjt188" else None
    return frame is not None and frame.request_control != cjt188.READ_DATA


def _by_a_meter(piece: Piece) -> bytes:
    """Return a frame as a profile knows it: unit 255, the device itself in Modbus TCP, becomes a unit of a meter."""
    if piece.protocol != "modbus":
        return piece.data
    if piece.plain[0] <= modbus.UNIT_MAX:
        return piece.plain
    return modbus.add_crc(bytes((modbus.UNIT_MIN,)) + piece.plain[1:-2])


def _request_for(profile: Profile, piece: Piece) -> bytes:
    """Return the request that an answer belongs to; empty where it cannot be told."""
    if piece.protocol == "cjt188":
        answer = cjt188.parse_frame(piece.data)
        assert answer is not None
        serial = bytes([answer.serial if answer.serial is not None else 0])
        wire = answer.data[:2] if answer.identifier else b"\x90\x1f"
        return cjt188.Frame(
            meter_type=answer.meter_type, address=answer.address, control=cjt188.READ_DATA, data=wire + serial
        ).encode()
    if piece.protocol == "mbus":
        return mbus.request_data(min(piece.data[5], mbus.SELECTED), frame_count_bit=True).encode()
    if piece.protocol == "modbus":
        told = _by_a_meter(piece)
        count = told[2] // 2 if piece.kind == "answer" else None
        for block in profile.spec.read:
            if count in (None, block.count):
                unit = told[0] or 1
                return modbus.ReadRequest(
                    unit=unit, function=profile.spec.function, address=block.address, count=block.count
                ).encode()
    return b""


def _volumes(profile: Profile, pieces: Sequence[Piece], request: bytes) -> list[Volume]:
    """Return what the profile reads: each answer by itself where it can, else as many as belong together."""
    found: list[Volume] = []
    pending: list[tuple[bytes, bytes]] = []
    for asked, answer, end in _exchanges(profile, pieces, request):
        other = _other_record(profile, answer)
        if other is not None:
            found.append(Volume(profile=profile.name, end=end, reason="other_record", text=f"{other}"))
            continue
        if not asked:
            text = "no request of the profile has an answer of this length 型号不会得到这个长度的应答"
            found.append(Volume(profile=profile.name, end=end, reason="wrong_answer", text=text))
            continue
        pending.append((asked, answer))
        volume = _volume_of(profile, pending, end)
        if volume is not None:
            found.append(volume)
            pending = []
    if pending:
        text = "other registers of the profile are missing 还缺该型号的其他寄存器"
        found.append(Volume(profile=profile.name, end=pieces[-1].end, reason="no_response", text=text))
    return found


def _other_record(profile: Profile, answer: bytes) -> Words | None:
    """Say which record an answer holds where it is not the current reading, of which alone a profile speaks."""
    frame = cjt188.parse_frame(answer) if profile.head.protocol == "cjt188" else None
    if frame is None or frame.is_abnormal or frame.identifier is None:
        return None
    identifier, _, name = explain_cjt188.identify(frame.identifier)
    if identifier == cjt188_data.CURRENT:
        return None
    what = name or Words("未知记录", "an unknown record")
    return Words(
        f"{identifier:04X} 是{what.zh}，不是当前读数（901F）；其值见上面各字段，历史记录用 `shuiwang history` 读取",
        f"{identifier:04X} is {what.en}, not the current reading (901F): its fields are above;"
        " `shuiwang history` reads such records.",
    )


def _volume_of(profile: Profile, pending: list[tuple[bytes, bytes]], end: int) -> Volume | None:
    """Return what the exchanges mean; None where a part is still to come."""
    try:
        measurement = profile.protocol.decode_case(profile.spec, list(pending))
    except MeterError as error:
        return Volume(profile=profile.name, end=end, reason=error.reason, text=str(error))
    except ShuiwangError as error:
        if profile.head.protocol == "modbus" and len(pending) < len(profile.spec.read):
            return None
        return Volume(profile=profile.name, end=end, reason="wrong_answer", text=str(error))
    return Volume(profile=profile.name, end=end, measurement=measurement)


@functools.cache
def _built_in() -> tuple[Profile, ...]:
    return tuple(profiles.load(name) for name in profiles.built_in_names())


def _name_profiles(piece: Piece, before: Sequence[Piece], request: bytes) -> None:
    """Say which built-in profiles read the answer, and as what: beside the meanings that are there already."""
    fits: list[Fit] = []
    has_request = bool(request) or any(other.kind == "request" and other.protocol == piece.protocol for other in before)
    if piece.protocol == "modbus" and not has_request:
        return  # without addresses any profile of that length would seem to fit
    for profile in _built_in():
        if profile.head.protocol != piece.protocol:
            continue
        for volume in _volumes(profile, [*before[-_PIECES_TOGETHER:], piece], request):
            if volume.end == piece.end and volume.measurement is not None:
                fit = fit_of(profile, volume.measurement, piece.data)
                fits += [fit] if fit is not None else []
    by_volume: dict[int, list[str]] = {}
    for fit in sorted(fits, key=lambda fit: -fit.certainty):
        by_volume.setdefault(fit.volume_ml, []).append(fit.profile)
    kept = [
        msgspec.structs.replace(meaning, profiles=tuple(by_volume.pop(meaning.volume_ml, ())))
        for meaning in piece.meanings
    ]
    named = [
        Meaning(how="profile 型号", volume_ml=volume_ml, profiles=tuple(names))
        for volume_ml, names in by_volume.items()
    ]
    piece.meanings = sorted(named + kept, key=lambda meaning: not meaning.profiles)
