"""`shuiwang profiles new`: what the command line gives, asking for the rest on a terminal, and the live read."""

import datetime
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from agent.technician import advice, decoding, pasted, profile_wizard, views_profiles
from agent.technician.grading import evidence_of
from agent.technician.lines import line_of
from agent.technician.profile_wizard import Dial, Exchange, Facts, Narrowing, Proposal, WizardError
from agent.technician.words import Words, cubic_metres
from gateway import modbus_master
from gateway.line import Line
from protocols import cjt188, cjt188_dialogue, modbus, registers
from protocols.errors import MeterError, MeterRefused, NoResponse, PortLost, ShuiwangError
from protocols.profile import PROFILE_NAME_PATTERN, Query
from protocols.profile import Line as ProfileLine

Ask = Callable[[str, str | None], str]
_BAUDRATES = {"modbus": 9600, "cjt188": 2400}
_PARITIES = {"modbus": "N", "cjt188": "E"}
_TIMEOUT_MS = 1000
_REFUSED = Words("表有应答，但拒绝此请求", "The meter answers, and refuses: wiring, baud rate and address are right")
_ALL_ASKED = Words(
    "已按 90 1F 和 1F 90、冷水表类型 10 和任意类型 AA 都问过",
    "It was asked with 90 1F and 1F 90, as cold water (type 10) and as any type (AA)",
)


class NoReading(ShuiwangError):
    """The live read gave no answer; `advice` says what to check."""

    def __init__(self, message: str, *, words: list[Words], is_port: bool) -> None:
        super().__init__(message)
        self.advice = words
        self.is_port = is_port


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line gives; None and empty lists are asked for, or found out."""

    name: str | None
    title: str | None
    dial: list[str] | None
    request: list[str] | None
    response: list[str] | None
    protocol: str | None
    port: str | None
    address: str | None
    baudrate: int | None
    parity: str | None
    stop_bits: int | None
    data_bits: int | None
    framing: str | None
    timeout_ms: int | None
    register: int | None
    count: int
    function: int
    number_type: str | None
    order: str | None
    unit: str | None
    scale: str | None
    choose: int | None
    source: str | None
    evidence: str | None
    date: str | None
    place: str
    note: str
    out: Path | None
    force: bool


def run(answers: Answers, *, ask: Ask | None, console: Console) -> dict[str, Any]:
    """Make the profile; return what was made, for JSON. `ask` is None where nobody can be asked.

    Raises NoReading where a live read fails, WizardError and other ShuiwangErrors which say what to give.
    """
    _check_words(answers)
    narrowing = Narrowing(
        register=answers.register, type=answers.number_type, order=answers.order, unit=answers.unit, scale=answers.scale
    )
    exchanges, is_live = _exchanges(answers, narrowing, ask, console)
    protocol = answers.protocol or profile_wizard.protocol_of(exchanges[0])
    if protocol is None:
        raise WizardError("no protocol recognises the answer 无法识别协议: `shuiwang decode` says why")
    dials = _dials(answers, exchanges, ask)
    proposals = profile_wizard.propose(protocol, exchanges, dials, narrowing=narrowing)
    if not proposals:
        shown = ", ".join(cubic_metres(dial.volume_ml) for dial in dials)
        raise WizardError(
            f"nothing in these frames shows {shown} m³ 帧中没有与表盘相符的值: check the dial (m³, not litres),"
            " whether the frame was read at that moment, and whether it holds the total (other registers?)"
        )
    proposal = _choose(proposals, answers, ask, console)
    facts = _facts(answers, protocol, ask, is_live=is_live)
    path = answers.out or Path(f"{facts.name}.toml")
    made = profile_wizard.write(facts, exchanges, proposal, path, force=answers.force)
    grade = evidence_of(made).grade.value
    console.print(f"[bold green]proven 已自检[/] {made.name}, {grade}: {proposal.how}", highlight=False)
    console.print(f'use it 使用: profile = "./{path.name}"', highlight=False, markup=False)
    return {
        "file": str(path),
        "name": made.name,
        "protocol": protocol,
        "grade": grade,
        "how": proposal.how,
        "volumes_ml": list(proposal.volumes_ml),
        "proposals": len(proposals),
    }


def _check_words(answers: Answers) -> None:
    if answers.protocol == "mbus":
        raise WizardError(profile_wizard.MBUS_EXPLAINS_ITSELF)
    choices = (
        ("--protocol", answers.protocol, ("modbus", "cjt188")),
        ("--order", answers.order, ("ABCD", "CDAB", "BADC", "DCBA")),
        ("--unit", answers.unit, tuple(registers.UNIT_ML)),
        ("--type", answers.number_type, ("uint16", "uint32", "uint64", "float32", "float64")),
        ("--evidence", answers.evidence, ("capture", "manual", "constructed", "field")),
        ("--parity", answers.parity, ("N", "E", "O")),
    )
    for option, value, allowed in choices:
        if value is not None and value not in allowed:
            raise WizardError(f"{option} {value!r}: give one of {', '.join(allowed)} 请从中选择")
    if answers.scale is not None and not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", answers.scale):
        raise WizardError(f"--scale {answers.scale!r}: an exact decimal, such as 0.001 写小数")
    if answers.scale is not None and not Decimal(answers.scale):
        raise WizardError(f"--scale {answers.scale!r}: one count is worth more than 0 不能为零, such as 0.001")


def _exchanges(
    answers: Answers, narrowing: Narrowing, ask: Ask | None, console: Console
) -> tuple[list[Exchange], bool]:
    """Return requests and answers, and whether we have just read them ourselves."""
    responses = [_response(text) for text in (answers.response or [])]
    if not responses and answers.port is None:
        if ask is None:
            raise WizardError(
                "give --response (a captured answer) or --port (to read the meter now) 请给出应答帧或串口"
            )
        text = ask("captured answer in hex, or a port 应答帧（十六进制）或串口", None)
        if text.startswith("/dev/") or "://" in text:
            answers = msgspec.structs.replace(answers, port=text)
        else:
            responses = [_response(text)]
    if not responses:
        return [_read_live(answers, ask, console)], True
    requests = [decoding.completed(pasted.joined(text)) for text in (answers.request or [])]
    if len(requests) == 1:
        requests *= len(responses)
    if requests and len(requests) != len(responses):
        raise WizardError(f"{len(requests)} requests and {len(responses)} responses 请求与应答数目不一致")
    if not requests:
        narrowing = _with_register(narrowing, responses[0], ask)
        requests = [profile_wizard.request_for(response, narrowing=narrowing) for response in responses]
    pairs = zip(requests, responses, strict=True)
    return [Exchange(request=request, response=response) for request, response in pairs], False


def _with_register(narrowing: Narrowing, response: bytes, ask: Ask | None) -> Narrowing:
    """Ask where a Modbus answer begins: it does not say so itself."""
    if ask is None or narrowing.register is not None or not modbus.has_crc(response):
        return narrowing
    text = ask("first register of the answer, from 0 应答的起始寄存器（从 0 计）", None)
    if not text.isdecimal():
        raise WizardError(f"{text!r} is no register 不是寄存器地址")
    return msgspec.structs.replace(narrowing, register=int(text))


def _response(text: str) -> bytes:
    """Return an answer as a profile holds it: Modbus of any framing as RTU."""
    return decoding.plain(pasted.joined(text))


def _dials(answers: Answers, exchanges: list[Exchange], ask: Ask | None) -> list[Dial]:
    texts = list(answers.dial or [])
    if not texts:
        if ask is None:
            raise WizardError("give --dial, what the dial showed in m³ 请给出表盘读数（立方米）")
        texts = [
            ask(f"dial in m³ at answer {number} 第 {number} 帧时的表盘（立方米）", None)
            for number in range(1, len(exchanges) + 1)
        ]
    if len(texts) != len(exchanges):
        raise WizardError(f"{len(texts)} dials and {len(exchanges)} answers 表盘读数与应答数目不一致")
    return [profile_wizard.parse_dial(text) for text in texts]


def _choose(proposals: list[Proposal], answers: Answers, ask: Ask | None, console: Console) -> Proposal:
    if answers.choose is not None:
        if answers.choose > len(proposals):
            raise WizardError(f"--choose {answers.choose}: there are {len(proposals)} 只有 {len(proposals)} 项")
        return proposals[answers.choose - 1]
    if len(proposals) == 1:
        return proposals[0]
    console.print(f"{len(proposals)} ways to read show the dial {len(proposals)} 种读法与表盘相符：", markup=False)
    views_profiles.show_proposals(proposals, console)
    if ask is None:
        raise WizardError(
            "several fit: a second reading with another dial decides, or --choose N, --type, --order, --register"
            " 多种读法相符：再采一帧，或用 --choose"
        )
    text = ask("which 选哪一种", "1")
    if not text.isdecimal() or not 1 <= int(text) <= len(proposals):
        raise WizardError(f"{text!r} is none of 1 to {len(proposals)} 不在范围内")
    return proposals[int(text) - 1]


def _evidence(answers: Answers, *, is_live: bool) -> str:
    """Return what the frames are: what we read ourselves is a capture, what was pasted only if somebody vouches for it.

    Raises WizardError where pasted frames are to count as a meter's, and nobody says who saw them.
    """
    wanted = answers.evidence or ("field" if answers.place and answers.date else None)
    if is_live or wanted not in {"capture", "field"}:
        return wanted or ("capture" if is_live else "constructed")
    if not (answers.source or "").strip():
        raise WizardError(
            f"evidence {wanted} of pasted frames needs --source: who saw a meter send them, and where"
            " 粘贴的帧算实采须写明来源"
        )
    return wanted


def _facts(answers: Answers, protocol: str, ask: Ask | None, *, is_live: bool) -> Facts:
    evidence = _evidence(answers, is_live=is_live)
    source = (
        "read with shuiwang profiles new" if is_live else "pasted into shuiwang profiles new; nobody vouches for it"
    )
    wanted = {
        "name": ("--name", answers.name, "name of the profile, a-z 0-9 - 型号文件名", None),
        "title": ("--title", answers.title, "maker and model 厂家与型号", None),
        "source": ("--source", answers.source, "who saw these frames, where 来源", source),
    }
    if ask is None:
        missing = [option for option, value, _, default in wanted.values() if value is None and default is None]
        if missing:
            raise WizardError(f"give {', '.join(missing)} 请给出")
    values = {
        key: value if value is not None else (ask(question, default) if ask else default or "")
        for key, (_, value, question, default) in wanted.items()
    }
    if not re.fullmatch(PROFILE_NAME_PATTERN, values["name"]):
        raise WizardError(f"--name {values['name']!r}: a-z, 0-9 and - 只用小写字母、数字和 -")
    if not values["title"].strip():
        raise WizardError("--title: say maker and model 请写厂家与型号")
    try:
        date = datetime.date.fromisoformat(answers.date) if answers.date else None
    except ValueError as error:
        raise WizardError(f"--date {answers.date!r}: write 2026-11-21") from error
    if evidence == "field" and not (date and answers.place):
        raise WizardError("evidence field needs --date and --place 现场核对需要日期与地点")
    return Facts(
        name=values["name"],
        title=values["title"],
        source=values["source"],
        evidence=evidence,
        line=_line(answers, protocol),
        timeout_ms=answers.timeout_ms or (500 if protocol == "modbus" else _TIMEOUT_MS),
        note=answers.note,
        date=date,
        place=answers.place,
    )


def _line(answers: Answers, protocol: str) -> ProfileLine:
    return ProfileLine(
        baudrate=answers.baudrate or _BAUDRATES[protocol],
        parity=answers.parity or _PARITIES[protocol],
        stop_bits=answers.stop_bits or 1,
    )


def _read_live(answers: Answers, ask: Ask | None, console: Console) -> Exchange:
    """Read the meter once, with a request that only reads. Raises NoReading."""
    assert answers.port is not None
    protocol = answers.protocol
    if protocol is None:
        looks_like = "modbus" if answers.register is not None or len(answers.address or "") <= 3 else "cjt188"
        is_clear = answers.register is not None or answers.address is not None
        protocol = looks_like if is_clear or not ask else ask("protocol 协议 (modbus, cjt188)", looks_like)
    if protocol == "mbus":
        raise WizardError(profile_wizard.MBUS_EXPLAINS_ITSELF)
    if protocol not in _BAUDRATES:
        raise WizardError(f"protocol {protocol!r}: give modbus or cjt188 请选其一")
    address = answers.address or (ask("address 表号", None) if ask else None)
    if address is None:
        raise WizardError("give --address 请给出表号")
    queries = _queries(answers, protocol, address, ask)
    wire = _line(answers, protocol)
    settings = line_of(
        answers.port,
        baudrate=wire.baudrate,
        parity=wire.parity,
        stop_bits=wire.stop_bits,
        data_bits=answers.data_bits,
        framing=answers.framing,
    )
    line = Line(settings)
    try:
        exchange = _ask_meter(line, queries, timeout_ms=answers.timeout_ms or _TIMEOUT_MS)
    except MeterError as error:
        is_port = isinstance(error, PortLost)
        words = advice.port_advice(settings, error.__cause__) if is_port else _what_to_check(error, protocol)
        raise NoReading(str(error), words=words, is_port=is_port) from error
    finally:
        line.close()
    for mark, data in ((">>", exchange.request), ("<<", exchange.response)):
        console.print(f"{mark} {data.hex(' ').upper()}", markup=False, highlight=False)
    return exchange


def _ask_meter(line: Line, queries: list[Query], *, timeout_ms: int) -> Exchange:
    """Return the first of the queries that the meter answers, with its answer.

    Raises PortLost at once, else what tells the most of what came in place of an answer: silence tells the least.
    """
    failure: MeterError = NoResponse("no answer")
    for query in queries:
        try:
            response = _exchange(line, query, timeout_ms=timeout_ms)
        except PortLost:
            raise
        except MeterError as error:
            failure = error if isinstance(failure, NoResponse) else failure
        else:
            return Exchange(request=query.encode(), response=response)
    raise failure


def _exchange(line: Line, query: Query, *, timeout_ms: int) -> bytes:
    if isinstance(query, modbus.ReadRequest):
        return modbus_master.exchange(line, query, timeout_ms=timeout_ms)
    response = line.exchange(query, timeout_ms=timeout_ms)
    frame = cjt188.parse_frame(response)
    if frame is not None and frame.is_abnormal:
        raise MeterRefused(f"abnormal answer, control {frame.control:02X}, ST {frame.content.hex(' ').upper()}")
    return response


def _what_to_check(error: MeterError, protocol: str) -> list[Words]:
    asked = [_ALL_ASKED] if protocol == "cjt188" else []
    return [*([_REFUSED] if isinstance(error, MeterRefused) else advice.SILENCE), *asked]


def _queries(answers: Answers, protocol: str, address: str, ask: Ask | None) -> list[Query]:
    """Return what the meter is asked, one after the other until it answers. All of it only reads.

    Some meters lose the first request and wake up with it, so each is sent twice. CJ/T 188 meters differ in the order
    in which they want the identifier, as the gateway's `di_order = "probe"` knows; and some heed only their own meter
    type or AA.
    """
    if protocol == "modbus":
        register = answers.register
        if register is None and ask:
            text = ask("first register, from 0 起始寄存器（从 0 计）", "0")
            register = int(text) if text.isdecimal() else None
        if register is None:
            raise WizardError("give --register, the first register to read, from 0 请给出起始寄存器")
        is_tcp = (answers.framing or "").lower() == "tcp"
        unit = registers.parse_tcp_unit(address) if is_tcp else registers.parse_unit(address)
        return [modbus.ReadRequest(unit=unit, function=answers.function, address=register, count=answers.count)] * 2
    station = cjt188_dialogue.parse_address(address)
    types = (
        [cjt188.ANY_TYPE] * 2
        if station.address == cjt188.BROADCAST
        else [cjt188.COLD_WATER, cjt188.COLD_WATER, cjt188.ANY_TYPE]
    )
    frames = [
        cjt188.Frame(
            meter_type=meter_type,
            address=station.address,
            control=cjt188.READ_DATA,
            data=identifier + bytes([station.next_serial()]),
        )
        for meter_type in types
        for identifier in (b"\x90\x1f", b"\x1f\x90")
    ]
    lengths = tuple(range(4, cjt188.DATA_BYTES_MAX + 1))
    return [cjt188.Request(frame=frame, answer_lengths=lengths) for frame in frames]
