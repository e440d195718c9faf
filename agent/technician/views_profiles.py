"""How profiles look: a table of all, and everything that a technician needs to know of one."""

from typing import Any, Final

import msgspec
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import decoding, views_decoding
from agent.technician.grading import GRADES, MISSING, Evidence, Grade, evidence_of
from agent.technician.hextext import Chunk
from agent.technician.lines import bits_text
from agent.technician.profile_wizard import Proposal
from agent.technician.words import EVIDENCE, PROTOCOLS, REASONS, cubic_metres, millilitres, word
from protocols.profile import Case, Exchange, Profile

_COLOURS: Final = {
    Grade.BRONZE: "#cd7f32",
    Grade.SILVER: "#c0c0c0",
    Grade.GOLD: "#ffd700",
    Grade.PLATINUM: "bold #e5e4e2",
}
_EVIDENCE_ORDER: Final = list(EVIDENCE)  # the best first


def show_all(profiles: list[Profile], console: Console) -> None:
    """Print the table of all profiles."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("profile 型号", no_wrap=True)
    table.add_column("grade 等级", no_wrap=True)
    table.add_column("line 线路", no_wrap=True)
    table.add_column("step 分度", justify="right", no_wrap=True)
    table.add_column("evidence 证据", overflow="fold")
    is_wide = console.width >= 110
    if is_wide:
        table.add_column("title 名称")
    for protocol in dict.fromkeys(profile.head.protocol for profile in profiles):
        rows = [profile for profile in profiles if profile.head.protocol == protocol]
        table.add_row(Text(PROTOCOLS.get(protocol, protocol), "bold cyan"))
        for profile in rows:
            evidence = evidence_of(profile)
            cells: list[Text | str] = [
                Text(f" {profile.name}"),
                _grade(evidence.grade),
                bits_text(profile.line),
                _step(profile),
                _short_evidence(evidence),
            ]
            if is_wide:
                cells.append(Text(profile.head.title, "dim"))
            table.add_row(*cells)
    console.print(table)
    console.print()
    console.print(_legend())


def show_one(profile: Profile, console: Console, *, every: bool) -> None:
    """Print one profile with its proof; of the proofs the best is decoded, or every one."""
    evidence = evidence_of(profile)
    console.print(Text.assemble((profile.name, "bold"), "  ", _grade(evidence.grade)))
    console.print(Padding(Text(profile.head.title), (0, 0, 1, 0)))
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    timing = profile.timing
    grid.add_row("protocol 协议", PROTOCOLS.get(profile.head.protocol, profile.head.protocol))
    grid.add_row("line 线路", bits_text(profile.line) + "  (factory setting 出厂值)")
    grid.add_row("timing 时间", f"timeout 超时 {timing.timeout_ms} ms, {timing.retries} repeat(s) 重试")
    grid.add_row("step 分度", f"{_step(profile)} = {millilitres(profile.head.step_ml)}")
    grid.add_row("source 来源", Text(profile.head.source))
    if profile.head.note:
        grid.add_row("note 备注", Text(profile.head.note, "yellow"))
    missing = MISSING[evidence.grade]
    grid.add_row("next grade 升级", Text(f"{missing.zh}\n{missing.en}", "dim"))
    console.print(grid)
    console.print()
    console.print(Text("how it is read 读法", "bold"))
    console.print(Padding(Text(_table_text(profile)), (0, 0, 1, 2)))
    best = min(range(len(profile.cases)), key=lambda index: _EVIDENCE_ORDER.index(profile.cases[index].evidence))
    for index, case in enumerate(profile.cases):
        console.print(_case(case, index + 1))
        if every or index == best:
            for exchange in case.exchange:
                console.print(Padding(_decoded(profile, exchange), (0, 0, 0, 2)))
    if not every and len(profile.cases) > 1:
        console.print(Text("every proof decoded with --all 全部解码", "dim"))


def show_proposals(proposals: list[Proposal], console: Console) -> None:
    """Print the ways to read that fit the dial, numbered."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", justify="right", style="bold cyan")
    table.add_column("read as 读法")
    table.add_column("m³", justify="right")
    for number, proposal in enumerate(proposals, 1):
        values = ", ".join(cubic_metres(volume, step_ml=1000) for volume in proposal.volumes_ml)
        table.add_row(str(number), proposal.how, values)
    console.print(table)


def as_json(profile: Profile, *, full: bool) -> dict[str, Any]:
    """Return a profile for programs; `full` with its table and its frames."""
    evidence = evidence_of(profile)
    facts = {
        "name": profile.name,
        "title": profile.head.title,
        "protocol": profile.head.protocol,
        "grade": evidence.grade.value,
        "evidence": {
            "constructed": evidence.constructed,
            "manual": evidence.manual,
            "capture": evidence.capture,
            "field": evidence.field,
            "captured_faults": evidence.faults,
        },
        "line": msgspec.to_builtins(profile.line),
        "timing": msgspec.to_builtins(profile.timing),
        "step_ml": profile.head.step_ml,
        "source": profile.head.source,
        "note": profile.head.note,
    }
    if full:
        facts[profile.head.protocol] = msgspec.to_builtins(profile.spec)
        facts["test"] = [msgspec.to_builtins(case) for case in profile.cases]
    return facts


def _grade(grade: Grade) -> Text:
    return Text(str(GRADES[grade]), _COLOURS[grade])


def _short_evidence(evidence: Evidence) -> str:
    counts = {name: getattr(evidence, name) for name in EVIDENCE}
    parts = [f"{count} {EVIDENCE[name].en}" for name, count in counts.items() if count]
    return ", ".join(parts) + (f" ({evidence.faults} fault 故障)" if evidence.faults else "")


def _step(profile: Profile) -> str:
    step_ml = profile.head.step_ml
    if step_ml < 10:
        return f"{step_ml} mL"
    return f"{step_ml / 1000:g} L" if step_ml < 1_000_000 else f"{step_ml / 1_000_000:g} m³"


def _legend() -> Group:
    lines = [
        ("bronze 铜", _COLOURS[Grade.BRONZE], "frames printed or constructed 帧来自说明书或推算"),
        ("silver 银", _COLOURS[Grade.SILVER], "+ a real capture 实采帧"),
        ("gold 金", _COLOURS[Grade.GOLD], "+ a captured fault that is refused 实采故障帧"),
        ("platinum 铂金", _COLOURS[Grade.PLATINUM], "+ a field check against the dial 现场对照表盘"),
    ]
    grid = Table.grid(padding=(0, 1))
    for name, colour, meaning in lines:
        grid.add_row(Text(name, colour), Text(meaning, "dim"))
    more = "shuiwang profiles show NAME 详情   shuiwang profiles new 新建"
    return Group(grid, Text(more, "dim"))


def _table_text(profile: Profile) -> str:
    """Return the protocol's table, one key a line, without what it leaves open."""
    spec = profile.spec
    lines = []
    for field in msgspec.structs.fields(spec):
        value = getattr(spec, field.name)
        if value in (None, "", {}, ()):
            continue
        plain = msgspec.to_builtins(value)
        rows = plain if isinstance(plain, list | tuple) and plain and isinstance(plain[0], dict) else [plain]
        lines += [f"{field.name}: {_plain(row)}" for row in rows]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(_plain(entry) for entry in value)
    return str(value)


def _decoded(profile: Profile, exchange: Exchange) -> Group:
    """Return the frames of an exchange, byte by byte."""
    request, response = bytes.fromhex(exchange.request), bytes.fromhex(exchange.response)
    chunks = [Chunk(direction="tx", data=request), Chunk(direction="rx", data=response)]
    return views_decoding.frames(decoding.decode(chunks, profile=profile))


def _case(case: Case, number: int) -> Group:
    kind = word(EVIDENCE, case.evidence)
    if case.volume_ml is not None:
        outcome = Text(f"{cubic_metres(case.volume_ml, step_ml=1000)} m³ = {millilitres(case.volume_ml)}", "bold green")
    else:
        outcome = Text(f"refused as 拒绝: {word(REASONS, case.fault or '')}", "bold yellow")
    where = " ".join(filter(None, [case.date.isoformat() if case.date else "", case.place]))
    heading = Text.assemble((f"proof 证明 {number}  ", "bold"), (f"{kind}  ", "cyan"), outcome)
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for exchange in case.exchange:
        grid.add_row(Text(">>", "cyan"), Text(exchange.request, "cyan"))
        grid.add_row(Text("<<", "green"), Text(exchange.response, "green"))
    source = Text(case.source + (f"  {where}" if where else ""), "dim")
    return Group(heading, Padding(source, (0, 0, 0, 2)), Padding(grid, (0, 0, 1, 2)))
