"""Play the demo and draw its picture at one moment as an SVG: `python tools/demo_picture.py docs/demo.svg`.

Drawn cell by cell, bars as rectangles, so that it looks the same whatever fonts its reader has.
"""

import argparse
import html
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment
from rich.style import Style

from agent.demo import picture, run_demo
from agent.demo.observer import View
from agent.demo.play import Play
from agent.demo.story import Act, act_of, alert_of

COLUMNS, ROWS = 98, 32
CELL_W, CELL_H, FONT_PX = 8.6, 20, 15
MARGIN, HEAD = 18, 40
FONTS = "'Sarasa Mono SC','Noto Sans Mono CJK SC','Noto Sans Mono','PingFang SC','Microsoft YaHei',monospace"
GROUND, PAPER = "#10151c", "#1c2530"
COLOURS = {
    "bright_cyan": "#4cc2ff",
    "yellow": "#ffc34d",
    "magenta": "#c58af9",
    "bright_red": "#ff6b6b",
    "bright_black": "#7d8b99",
    "green": "#7ddc8b",
    None: "#e8eef4",
}
# Cells that are drawn: left, top, width and height as shares of the cell.
BLOCKS = {
    character: (0.06, 0.95 - 0.85 * level / 8, 0.88, 0.85 * level / 8) for level, character in enumerate("▁▂▃▄▅▆▇█", 1)
}
BLOCKS |= {
    "■": (0.06, 0.2, 0.88, 0.6),
    "▮": (0.15, 0.2, 0.7, 0.6),
    "━": (0, 0.44, 1, 0.12),
    "─": (0, 0.48, 1, 0.04),
    "┄": (0.2, 0.46, 0.5, 0.08),
    "┈": (0.35, 0.47, 0.3, 0.05),
    "┃": (0.4, 0, 0.2, 1),
    "·": (0.38, 0.44, 0.24, 0.11),
}
PIECES = re.compile(f"[{''.join(BLOCKS)}]| |[^ {''.join(BLOCKS)}]+")


def main() -> int:
    """Play, and write the picture that was taken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--moment", choices=["away", "delivered", "red", "end"], default="red")
    arguments = parser.parse_args()
    taken: list[View] = []

    def watch(play: Play) -> None:
        if is_moment(play.view, arguments.moment):
            taken[:] = [frozen(play.view)]

    code = run_demo(live=False, watch=watch)
    if code or not taken:
        return code or 1
    arguments.file.write_text(draw(picture.render(taken[0], width=COLUMNS, height=ROWS)), encoding="utf-8")
    print(f"{arguments.file}: {picture.stamp(taken[0].now_ms)}")
    return 0


def is_moment(view: View, moment: str) -> bool:
    """Tell whether this is the view to draw, or one like it; the last one counts."""
    act = act_of(view)
    if moment == "away":
        return act is Act.RAISED_WHILE_AWAY
    if moment == "delivered":  # the alert has overtaken the readings
        return act is Act.DRAINING and alert_of(view).confirmed_ms is not None and view.waiting > 15
    if moment == "red":  # the silence is red, and nobody is at the door yet
        return act is Act.RED
    return act is Act.CLEARED


def frozen(view: View) -> View:
    """Return a view whose sequences do not grow any more."""
    from msgspec.structs import replace

    return replace(view, taken=tuple(view.taken), stored=tuple(view.stored), steps=tuple(view.steps))


def draw(renderable: RenderableType) -> str:
    """Return the SVG of what a terminal would show."""
    console = Console(width=COLUMNS, height=ROWS, color_system="standard", force_terminal=True, file=io.StringIO())
    lines = console.render_lines(renderable, pad=False)
    while lines and not "".join(segment.text for segment in lines[-1]).strip():
        lines.pop()
    width, height = COLUMNS * CELL_W + 2 * MARGIN, len(lines) * CELL_H + HEAD + MARGIN
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}"'
            f' height="{height:g}" role="img" aria-label="shuiwang demo">'
        ),
        f'<rect width="100%" height="100%" rx="10" fill="{GROUND}"/>',
        f'<path d="M0 10a10 10 0 0 1 10-10H{width - 10:g}a10 10 0 0 1 10 10v18H0z" fill="{PAPER}"/>',
        *(
            f'<circle cx="{18 + 16 * n}" cy="14" r="5" fill="{c}"/>'
            for n, c in enumerate(("#ff5f57", "#febc2e", "#28c840"))
        ),
        (
            f'<text x="{width / 2:g}" y="19" fill="#9fb0c0" font-family="{FONTS}" font-size="13" text-anchor="middle">'
            "shuiwang demo</text>"
        ),
        f'<g font-family="{FONTS}" font-size="{FONT_PX}" xml:space="preserve">',
    ]
    for row, line in enumerate(lines):
        parts.extend(draw_line(line, HEAD + row * CELL_H))
    return "\n".join([*parts, "</g>", "</svg>", ""])


def draw_line(line: list[Segment], top: float) -> Iterator[str]:
    """Yield the elements of one line: a rectangle per drawn cell, a text per word."""
    cell = 0
    for segment in line:
        fill, weight = look(segment.style)
        for piece in PIECES.findall(segment.text):
            x, cells = MARGIN + cell * CELL_W, cell_len(piece)
            if piece in BLOCKS:
                left, above, wide, high = BLOCKS[piece]
                yield (
                    f'<rect x="{x + left * CELL_W:.1f}" y="{top + above * CELL_H:.1f}" width="{wide * CELL_W:.1f}"'
                    f' height="{high * CELL_H:.1f}" fill="{fill}"/>'
                )
            elif piece.strip():
                yield (
                    f'<text x="{x:.1f}" y="{top + 15:.1f}" textLength="{cells * CELL_W:.1f}" fill="{fill}"{weight}>'
                    f"{html.escape(piece)}</text>"
                )
            cell += cells


def look(style: Style | None) -> tuple[str, str]:
    """Return the colour and the weight of a style."""
    if style is None:
        return COLOURS[None], ""
    name = style.color.name if style.color else None
    return COLOURS.get(name, COLOURS[None]), ' font-weight="bold"' if style.bold else ""


if __name__ == "__main__":
    sys.exit(main())
