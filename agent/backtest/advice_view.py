"""What `shuiwang advise` prints for people: figures, words, and the lines for the configuration."""

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from agent.backtest.advice import Advice, RuleAdvice
from agent.backtest.advice_words import Words
from agent.backtest.score import RED

_HEADS: Final = ("alerts\n次", "while away\n外出", "stands\n占时", "help after\n中位", "9 of 10 within\n九成")


def print_home(advice: Advice | None, words: Sequence[Words], lines: Sequence[str]) -> None:
    """Print one home; where there is no advice, the words alone."""
    console = Console(highlight=False)
    if advice is not None:
        console.print(
            f"[bold]{advice.meter}[/bold]: {advice.readings:,} readings in {advice.days:g} days, the last"
            f" {advice.month_days:g} judged; {advice.litres_per_day:g} L a day; step {advice.step_ml / 1000:g} L",
            soft_wrap=True,
        )
        right = (Column(name, justify="right") for name in _HEADS)
        table = Table("rule\n规则", "level\n级别", *right, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        for rule in advice.rules:
            table.add_row(rule.name, "red 红" if rule.level == RED else "yellow 黄", *_cells(rule))
        console.print(table)
    for sentence in words:
        console.print(f"· {sentence['zh']}\n  {sentence['en']}", soft_wrap=True, markup=False)
    for line in lines:
        console.print(line, markup=False)


def _cells(rule: RuleAdvice) -> list[str]:
    if not rule.judged:
        return ["cannot be judged 无法判断", "", "", "", ""]
    hours = ["–" if value is None else f"{value:.0f} h" for value in (rule.median_h, rule.p90_h)]
    standing = "–" if rule.standing is None else f"{rule.standing:.0%}"
    return [str(rule.alerts), str(rule.absence_alerts), standing, *hours]
