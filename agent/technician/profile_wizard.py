"""Making a profile from frames and what the dial showed: finds the ways to read them, writes the file, proves it."""

import datetime
import json
import os
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.technician import meanings
from agent.technician.meanings import Candidate
from protocols import cjt188, cjt188_data, mbus, modbus
from protocols import profile as profiles
from protocols.cjt188_data import Cjt188Spec
from protocols.errors import MeterError, ProfileError, ShuiwangError, UsageError
from protocols.profile import Line, Profile
from protocols.registers import UNIT_ML

ML_PER_M3: Final = 1_000_000
MBUS_EXPLAINS_ITSELF: Final = (
    "an M-Bus telegram says itself what its numbers are M-Bus 报文自带单位: take mbus-water, -10l, -100l or -no-header;"
    " `shuiwang decode` shows the VIF of the total; for another VIFE, storage or medium write the [mbus] table by hand"
)
_DIAL: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
_DECIMALS_TRIED: Final = range(7)


class WizardError(ShuiwangError):
    """The frames and the dial make no profile; the message says why and what would."""


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """What the dial showed; its last digit may be one off, because the water runs on and pointers stand between."""

    volume_ml: int
    tolerance_ml: int


class Exchange(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its answer."""

    request: bytes
    response: bytes


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the protocol that reads the frames as the dial shows, and the exact volumes that come out."""

    protocol: str
    how: str
    table: str  # TOML, without its heading
    step_ml: int
    volumes_ml: tuple[int, ...]


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What only people know of the meter and of these frames."""

    name: str
    title: str
    source: str
    evidence: str
    line: Line
    timeout_ms: int
    note: str = ""
    date: datetime.date | None = None
    place: str = ""


class Narrowing(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the register map already; None leaves it to the search."""

    register: int | None = None
    type: str | None = None
    order: str | None = None
    unit: str | None = None
    scale: str | None = None


def parse_dial(text: str) -> Dial:
    """Return a dial's value in cubic metres: `123.456`. Raises WizardError."""
    text = text.strip().replace(",", ".").removesuffix("m3").removesuffix("m³").strip()
    if not _DIAL.fullmatch(text):
        raise WizardError(f"--dial {text!r}: write cubic metres as the dial shows them 按表盘写立方米: 123.456")
    decimals = len(text.partition(".")[2])
    return Dial(volume_ml=int(Decimal(text) * ML_PER_M3), tolerance_ml=10 ** (6 - decimals))


def propose(
    protocol: str, exchanges: Sequence[Exchange], dials: Sequence[Dial], *, narrowing: Narrowing
) -> list[Proposal]:
    """Return every way to read the answers that shows the dials, the likeliest first; each dial has its answer.

    Raises WizardError where the frames cannot be used at all.
    """
    assert len(exchanges) == len(dials) > 0
    if all(dial.volume_ml == 0 for dial in dials):
        raise WizardError("a dial of 0 fits everything: let some water run first 表盘为零无法判断，请先放水")
    if protocol == "modbus":
        return _propose_modbus(exchanges, dials, narrowing)
    if protocol == "cjt188":
        return _propose_cjt188(exchanges, dials)
    if protocol == "mbus":
        raise WizardError(MBUS_EXPLAINS_ITSELF)
    raise WizardError(f"--protocol {protocol}: right would be modbus or cjt188; write other profiles by hand")


def request_for(answer: bytes, *, narrowing: Narrowing) -> bytes:
    """Return the request that a lone answer belongs to. Raises WizardError where that cannot be told."""
    frame = next((frame for _, frame in cjt188.find_frames(answer) if frame.is_reply), None)
    if frame is not None and frame.identifier is not None:
        assert frame.serial is not None
        return cjt188.Frame(
            meter_type=frame.meter_type,
            address=frame.address,
            control=cjt188.READ_DATA,
            data=frame.identifier + bytes([frame.serial]),
        ).encode()
    if modbus.has_crc(answer) and len(answer) > modbus.EXCEPTION_BYTES:
        if narrowing.register is None:
            raise WizardError(
                "a Modbus answer does not say which registers it holds: give --request or --register"
                " 应答不含寄存器地址，请给出请求帧或起始寄存器"
            )
        try:
            return modbus.ReadRequest(
                unit=answer[0], function=answer[1], address=narrowing.register, count=answer[2] // 2
            ).encode()
        except UsageError as error:
            raise WizardError(str(error)) from error
    if _is_mbus(answer):
        raise WizardError(MBUS_EXPLAINS_ITSELF)
    raise WizardError(f"{answer.hex(' ').upper()} is no sound answer 不是正确的应答帧: `shuiwang decode` says why")


def protocol_of(exchange: Exchange) -> str | None:
    """Return the protocol that an answer speaks, None where it is none of ours."""
    if any(True for _ in cjt188.find_frames(exchange.response)):
        return "cjt188"
    if modbus.has_crc(exchange.response):
        return "modbus"
    return "mbus" if _is_mbus(exchange.response) else None


def _is_mbus(answer: bytes) -> bool:
    return any(frame.ci is not None and not frame.is_request for _, frame in mbus.find_frames(answer))


def write(facts: Facts, exchanges: Sequence[Exchange], proposal: Proposal, path: Path, *, force: bool) -> Profile:
    """Write the profile, proven before and after; return it as loaded. Raises WizardError, also where a file stands."""
    text = toml(facts, exchanges, proposal)
    try:
        profiles.parse(text, where=str(path))
    except ProfileError as error:
        raise WizardError(f"the profile does not prove itself 自检未通过: {error}") from error
    if path.exists() and not force:
        raise WizardError(f"{path} exists 文件已存在: --force replaces it, or give another --out")
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if force:
            new.replace(path)
        else:
            os.link(new, path)  # unlike a rename, it never replaces what came meanwhile
    except FileExistsError as error:
        raise WizardError(f"{path} exists 文件已存在: --force replaces it, or give another --out") from error
    except OSError as error:
        raise WizardError(f"{path} cannot be written 无法写入: {error}") from error
    finally:
        new.unlink(missing_ok=True)
    return profiles.load(str(path.absolute()))


def toml(facts: Facts, exchanges: Sequence[Exchange], proposal: Proposal) -> str:
    """Return the profile as TOML."""
    head = [
        "[profile]",
        f"name = {_text(facts.name)}",
        f"title = {_text(facts.title)}",
        f"protocol = {_text(proposal.protocol)}",
        f"source = {_text(facts.source)}",
        f"step_ml = {proposal.step_ml}",
    ]
    if facts.note:
        head.append(f"note = {_text(facts.note)}")
    line = facts.line
    lines = [
        *head,
        "",
        "[line]",
        f"baudrate = {line.baudrate}",
        f"parity = {_text(line.parity)}",
        *([f"stop_bits = {line.stop_bits}"] if line.stop_bits != 1 else []),
        "",
        "[timing]",
        f"timeout_ms = {facts.timeout_ms}",
        "",
        f"[{proposal.protocol}]",
        proposal.table,
    ]
    for exchange, volume_ml in zip(exchanges, proposal.volumes_ml, strict=True):
        lines += ["", "[[test]]", f"evidence = {_text(facts.evidence)}", f"source = {_text(facts.source)}"]
        if facts.date is not None:
            lines.append(f"date = {facts.date:%Y-%m-%d}")
        if facts.place:
            lines.append(f"place = {_text(facts.place)}")
        request, response = exchange.request.hex(" ").upper(), exchange.response.hex(" ").upper()
        lines += [
            f"volume_ml = {volume_ml}",
            f'exchange = [{{ request = "{request}", response = "{response}" }}]',
        ]
    return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """Return a TOML string. JSON's escapes are TOML's; DEL is the one character that only TOML forbids."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _propose_modbus(exchanges: Sequence[Exchange], dials: Sequence[Dial], narrowing: Narrowing) -> list[Proposal]:
    readings = []
    blocks = set()
    function = modbus.READ_HOLDING_REGISTERS
    for exchange, dial in zip(exchanges, dials, strict=True):
        request = _modbus_request(exchange.request)
        values = _modbus_values(request, exchange.response)
        function = request.function
        blocks.add((request.address, request.count, request.function))
        readings.append((dict(enumerate(values, request.address)), dial.volume_ml))
    if len(blocks) != 1:
        raise WizardError("all requests must read the same registers 各请求须读相同的寄存器")
    tolerance_ml = max(dial.tolerance_ml for dial in dials)
    found = meanings.fitting(
        readings,
        tolerance_ml=tolerance_ml,
        address=narrowing.register if _is_inside(narrowing.register, readings) else None,
        number_type=narrowing.type,
        order=narrowing.order,
        unit=narrowing.unit,
        scale=narrowing.scale,
    )
    address, count, _ = next(iter(blocks))
    return [_modbus_proposal(candidate, readings, (address, count), function) for candidate in found]


def _is_inside(register: int | None, readings: Sequence[tuple[dict[int, int], int]]) -> bool:
    """Tell whether a register is a place to look at; the first of a block is only where the block begins."""
    return register is not None and register in readings[0][0] and register != min(readings[0][0])


def _modbus_proposal(
    candidate: Candidate,
    readings: Sequence[tuple[dict[int, int], int]],
    block: tuple[int, int],
    function: int,
) -> Proposal:
    from protocols.registers import Block, ModbusSpec, measure

    spec = ModbusSpec(
        read=(Block(address=block[0], count=block[1]),), total=candidate.terms, function=function, unit=candidate.unit
    )
    terms = []
    for term in candidate.terms:
        scale = f', scale = "{term.scale}"' if term.scale != "1" else ""
        terms.append(f'    {{ address = {term.address}, type = "{term.type}", order = "{term.order}"{scale} }},')
    table = [
        f"function = {function}",
        f"read = [{{ address = {block[0]}, count = {block[1]} }}]",
        "total = [",
        *terms,
        "]",
        f'unit = "{candidate.unit}"',
    ]
    volumes = tuple(measure(spec, registers).volume_ml for registers, _ in readings)
    last = candidate.terms[-1]
    is_float = last.type.startswith("float")
    # A float shows what its digits hold; a litre is what such meters print.
    step = Decimal(1000) if is_float else Decimal(last.scale) * UNIT_ML[candidate.unit]
    return Proposal(
        protocol="modbus",
        how=candidate.how,
        table="\n".join(table),
        step_ml=max(1, int(step)),
        volumes_ml=volumes,
    )


def _modbus_request(data: bytes) -> modbus.ReadRequest:
    if len(data) != modbus.REQUEST_BYTES or not modbus.has_crc(data):
        raise WizardError(f"request {data.hex(' ').upper()} is no sound Modbus read 请求帧不对")
    try:
        return modbus.decode_request(data)
    except UsageError as error:
        raise WizardError(f"request {data.hex(' ').upper()}: {error}") from error


def _modbus_values(request: modbus.ReadRequest, response: bytes) -> list[int]:
    reader = request.reader()
    try:
        frame = reader.feed(response)
        if frame is None:
            reader.close()
            raise AssertionError
        return modbus.decode_response(frame)
    except MeterError as error:
        raise WizardError(f"answer 应答 {response.hex(' ').upper()}: {error}") from error


def _propose_cjt188(exchanges: Sequence[Exchange], dials: Sequence[Dial]) -> list[Proposal]:
    frames = [_cjt188_frames(exchange) for exchange in exchanges]
    asked, answered = frames[0]
    size = len(answered.content)
    found: list[tuple[tuple[bool, bool, int], Proposal]] = []
    for layout, fields in cjt188_data.LAYOUTS.items():
        parsed = cjt188_data.parse_layout(fields)
        if cjt188_data.content_bytes(parsed) != size:
            continue
        unit_on_wire = parsed[0].has_unit
        unit = f"{answered.content[4]:02X}" if unit_on_wire else "2C"
        for decimals in _DECIMALS_TRIED:
            proposal = _cjt188_proposal(layout, unit, decimals, asked, [frame for _, frame in frames], unit_on_wire)
            if proposal is None:
                continue
            pairs = list(zip(proposal.volumes_ml, dials, strict=True))
            if all(abs(volume_ml - dial.volume_ml) <= dial.tolerance_ml for volume_ml, dial in pairs):
                is_exact = all(volume_ml == dial.volume_ml for volume_ml, dial in pairs)
                found.append(((not is_exact, layout != "standard", decimals), proposal))
    return [proposal for _, proposal in sorted(found, key=lambda item: item[0])]


def _cjt188_frames(exchange: Exchange) -> tuple[cjt188.Frame, cjt188.Frame]:
    asked = next((frame for _, frame in cjt188.find_frames(exchange.request) if not frame.is_reply), None)
    answered = next((frame for _, frame in cjt188.find_frames(exchange.response) if frame.is_reply), None)
    if asked is None or answered is None or asked.identifier is None or answered.is_abnormal:
        raise WizardError("give a CJ/T 188 request and the normal answer to it 需要一问一答两帧")
    return asked, answered


def _cjt188_proposal(
    layout: str,
    unit: str,
    decimals: int,
    asked: cjt188.Frame,
    answers: Sequence[cjt188.Frame],
    unit_on_wire: bool,  # noqa: FBT001
) -> Proposal | None:
    assert asked.identifier is not None
    order = "1F90" if asked.identifier == b"\x1f\x90" else "901F"
    keys: dict[str, Any] = {
        "layout": layout,
        "di_order": order,
        "decimals": {unit: decimals},
        "meter_type": answers[0].meter_type,
    }
    if not unit_on_wire:
        keys["unit"] = unit
    try:
        spec = msgspec.convert(keys, Cjt188Spec)
        volumes = tuple(_total(spec, frame.content) for frame in answers)
    except (msgspec.ValidationError, MeterError):
        return None
    if any(volume is None for volume in volumes):
        return None
    table = [
        f'layout = "{layout}"',
        f'di_order = "{order}"',
        *([f'unit = "{unit}"'] if not unit_on_wire else []),
        f'decimals = {{ "{unit}" = {decimals} }}',
        f"meter_type = 0x{answers[0].meter_type:02X}",
    ]
    return Proposal(
        protocol="cjt188",
        how=f"layout {layout}, unit {unit}, {decimals} decimals 位小数",
        table="\n".join(table),
        step_ml=cjt188_data.UNIT_ML[unit] // 10**decimals,
        volumes_ml=tuple(volume for volume in volumes if volume is not None),
    )


def _total(spec: Cjt188Spec, content: bytes) -> int | None:
    return cjt188_data.decode(spec, spec.fields, content).total_ml
