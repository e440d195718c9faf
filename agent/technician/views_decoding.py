"""How decoded bytes look: every frame with its fields, what its values may mean, and what a profile makes of it."""

from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from agent.technician import modbus_wire
from agent.technician.decoding import Decoding, Volume
from agent.technician.meanings import Shown
from agent.technician.pieces import Piece
from agent.technician.words import FLAGS, QUALITIES, REASONS, cubic_metres, millilitres, word

_COLOURS: Final = {
    "request": "cyan",
    "answer": "green",
    "acknowledgement": "green",
    "refusal": "yellow",
    "damaged": "red",
    "truncated": "red",
    "noise": "dim",
}


def show(decoding: Decoding, console: Console, *, has_profile: bool) -> None:
    """Print everything that the bytes say."""
    number = 0
    for index, piece in enumerate(decoding.pieces):
        if piece.kind == "noise":
            console.print(_noise(piece))
            continue
        number += 1
        console.print(_frame(piece, number))
        console.print(Padding(_fields(piece), (0, 0, 0, 2)))
        for note in piece.notes:
            console.print(Padding(Text(f"! {note.zh}\n  {note.en}", "yellow"), (0, 0, 0, 2)))
        if piece.meanings:
            console.print(Padding(_meanings(piece), (0, 0, 0, 2)))
        elif decoding.numbers.get(index):
            console.print(Padding(_numbers(decoding.numbers[index]), (0, 0, 0, 2)))
        for volume in decoding.volumes:
            if volume.end == piece.end:
                console.print(Padding(_volume(volume), (0, 0, 0, 2)))
        console.print()
    console.print(_summary(decoding, has_profile=has_profile))


def frames(decoding: Decoding) -> Group:
    """Return the frames and their fields, without noise and without what they may mean."""
    parts: list[RenderableType] = []
    for piece in decoding.pieces:
        if piece.kind != "noise":
            parts += [Text(f"{piece.title}", f"bold {_COLOURS[piece.kind]}"), Padding(_fields(piece), (0, 0, 1, 1))]
    return Group(*parts)


def as_json(decoding: Decoding) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "bytes": max((piece.end for piece in decoding.pieces), default=0),
        "frames": len(decoding.frames),
        "pieces": [_piece_json(piece, decoding.numbers.get(index, [])) for index, piece in enumerate(decoding.pieces)],
        "volumes": [_volume_json(volume) for volume in decoding.volumes],
    }


def _frame(piece: Piece, number: int) -> Text:
    colour = _COLOURS[piece.kind]
    line = Text.assemble((f"{number} ", "bold"), (f"{piece.title.en} {piece.title.zh}", f"bold {colour}"))
    if piece.direction:
        line.append(f"  {'>>' if piece.direction == 'tx' else '<<'}", "dim")
    if piece.checksum and not piece.checksum.is_right:
        line.append("  checksum wrong 校验错", "bold red")
    line.append(f"  bytes 字节 {piece.start}-{piece.end - 1}", "dim")
    return line


def _noise(piece: Piece) -> Text:
    data = piece.data.hex(" ").upper()
    shown = data if len(data) <= 48 else f"{data[:45]} …"
    return Text(f"  {shown}  {piece.title.en} {piece.title.zh}, bytes 字节 {piece.start}-{piece.end - 1}", "dim")


def _fields(piece: Piece) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, justify="right", style="dim")
    grid.add_column(style="bold", max_width=23, overflow="fold")
    grid.add_column(overflow="fold")
    grid.add_column(overflow="fold")
    if not piece.fields:
        grid.add_row("", piece.data.hex(" ").upper(), "", "")
    for field in piece.fields:
        place = str(field.start) if field.end == field.start + 1 else f"{field.start}-{field.end - 1}"
        raw = modbus_wire.shown(piece.data[field.start : field.end], piece.framing)
        is_wrong = "WRONG" in field.value
        grid.add_row(
            place, raw, Text(f"{field.name.en} {field.name.zh}", "dim"), Text(field.value, "red" if is_wrong else "")
        )
    return grid


def _meanings(piece: Piece) -> Group:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", style="bold", no_wrap=True)
    grid.add_column()
    for meaning in piece.meanings:
        who = f"  ← {', '.join(meaning.profiles)}" if meaning.profiles else ""
        style = "" if meaning.profiles else "dim"
        volume = Text(f"{cubic_metres(meaning.volume_ml, step_ml=1000)} m³", style)
        grid.add_row(volume, Text.assemble((meaning.how, style), (who, "green")))
    return Group(Text("the total may be 累计量可能是 (compare the dial 请对照表盘)", "bold"), grid)


def _numbers(numbers: list[Shown]) -> Group:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("number 数值", justify="right")
    for unit in ("m³", "L", "mL"):
        table.add_column(f"if 若 {unit}", justify="right")
    table.add_column("read as 读法")
    for shown in numbers:
        volumes = dict(shown.volumes)
        cells = [cubic_metres(volumes[unit], step_ml=1000) if unit in volumes else "" for unit in ("m3", "L", "mL")]
        table.add_row(f"{shown.number:f}", *cells, ", ".join(shown.places))
    title = "values that can be a total, in m³ 可能的累计量 (compare the dial 请对照表盘)"
    return Group(Text(title, "bold"), table)


def _volume(volume: Volume) -> Text:
    if volume.measurement is None:
        reason = word(REASONS, volume.reason or "")
        return Text.assemble((f"{reason}", "bold red"), f"  {volume.profile}: {volume.text}")
    value = volume.measurement.volume_ml
    quality = "suspect" if volume.measurement.is_doubtful else "ok"
    line = Text.assemble(
        (f"= {cubic_metres(value, step_ml=1000)} m³", "bold green"),
        f"  {millilitres(value)}  {QUALITIES[quality]}  ← {volume.profile}",
    )
    for flag in volume.measurement.flags:
        line.append(f"\n! {word(FLAGS, flag)}", "bold yellow")
    return line


def _summary(decoding: Decoding, *, has_profile: bool) -> Text:
    frames, damaged = len(decoding.frames), sum(piece.kind == "damaged" for piece in decoding.pieces)
    noise = sum(len(piece.data) for piece in decoding.pieces if piece.kind == "noise" and set(piece.data) != {0xFE})
    parts = [f"{frames} frame{'s' if frames != 1 else ''} 帧"]
    if damaged:
        parts.append(f"{damaged} damaged 损坏")
    if noise:
        parts.append(f"{noise} bytes of noise 噪声字节")
    line = Text(", ".join(parts), "bold" if frames else "bold red")
    if frames and not has_profile and any(piece.kind == "answer" for piece in decoding.pieces):
        line.append("   exact with 精确值: --profile NAME (shuiwang profiles)", "dim")
    return line


def _piece_json(piece: Piece, numbers: list[Shown]) -> dict[str, Any]:
    return {
        "start": piece.start,
        "end": piece.end,
        "hex": piece.data.hex(" ").upper(),
        "protocol": piece.protocol or None,
        "framing": piece.framing,
        "kind": piece.kind,
        "direction": piece.direction,
        "title": {"zh": piece.title.zh, "en": piece.title.en},
        "checksum": None
        if piece.checksum is None
        else {"right": piece.checksum.is_right, "found": piece.checksum.found, "should_be": piece.checksum.right},
        "fields": [
            {
                "start": field.start,
                "end": field.end,
                "hex": piece.data[field.start : field.end].hex(" ").upper(),
                "name": {"zh": field.name.zh, "en": field.name.en},
                "value": field.value,
            }
            for field in piece.fields
        ],
        "notes": [{"zh": note.zh, "en": note.en} for note in piece.notes],
        "meanings": [
            {"how": meaning.how, "volume_ml": meaning.volume_ml, "profiles": list(meaning.profiles)}
            for meaning in piece.meanings
        ],
        "numbers": [
            {"number": f"{shown.number:f}", "places": list(shown.places), "volumes_ml": dict(shown.volumes)}
            for shown in numbers
        ],
    }


def _volume_json(volume: Volume) -> dict[str, Any]:
    measurement = volume.measurement
    return {
        "profile": volume.profile,
        "end": volume.end,
        "volume_ml": measurement.volume_ml if measurement else None,
        "flags": list(measurement.flags) if measurement else [],
        "reason": volume.reason,
        "text": volume.text,
    }
