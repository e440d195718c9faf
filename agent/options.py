"""What the options of our commands have in common, and what no option of Typer's can do."""

import math
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]
WATCH_EVERY_S_DEFAULT: Final = 5.0


def finite(value: float | None) -> float | None:
    """Return a number that an option was given. Raises BadParameter for `nan`, which no range refuses, and `inf`."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number of seconds 不是有效的秒数")
    return value


class WatchCommand(TyperCommand):
    """Lets `--watch` stand alone or take a number of seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Complete a `--watch` that no number follows."""
        completed: list[str] = []
        for index, argument in enumerate(args):
            following = args[index + 1] if index + 1 < len(args) else ""
            bare = argument in {"--watch", "-w"} and not _is_number(following)
            completed += [argument, f"{WATCH_EVERY_S_DEFAULT:g}"] if bare else [argument]
        return super().parse_args(ctx, completed)


def _is_number(text: str) -> bool:
    """Tell whether a text after `--watch` is meant for it; what is wrong with the number is said later."""
    try:
        float(text)
    except ValueError:
        return False
    return True
