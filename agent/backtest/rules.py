"""Rule sets: which settings a watch is given. Several are tried side by side."""

from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Final

import msgspec

from agent.backtest.problems import InputProblem
from agent.detection.limit import COLD_H, COST_H, COST_MAX_H, COST_MIN_H, LIMIT_MAX_H, LIMIT_MIN_H, HomeLimit
from agent.detection.watch import HOUR_MS, Watch

M3_ML: Final = 1_000_000
# The longest window that a configuration may ask for, and the most that a county could mean.
WINDOW_H_MAX: Final = 168
THRESHOLD_M3_MAX: Final = 100


class RuleSet(msgspec.Struct, frozen=True, kw_only=True):
    """The county's rule, and what makes it red: the home's own limit, a fixed one (`fixed_h`), or nothing."""

    name: str
    window_ms: int = 12 * HOUR_MS
    threshold_ml: int = 100_000
    cost_h: int = COST_H
    cold_h: int = COLD_H
    fixed_h: int | None = None
    red: bool = True

    def watch(self) -> Watch:
        """Return the gateway's own watch under these settings."""
        watch = Watch(
            window_ms=self.window_ms,
            threshold_ml=self.threshold_ml,
            cost_h=self.cost_h,
            cold_h=self.fixed_h or self.cold_h,
        )
        if self.fixed_h is not None:
            watch.limit = FixedLimit(cold_h=self.fixed_h)
        return watch

    @property
    def in_words(self) -> str:
        """The rule set in one line."""
        county = f"yellow: less than {_plain(Decimal(self.threshold_ml) / M3_ML)} m³ in {self.window_ms / HOUR_MS:g} h"
        if not self.red:
            return f"{county}; no red"
        if self.fixed_h is not None:
            return f"{county}; red: no real use for {self.fixed_h} h in any home"
        return f"{county}; red: no real use for longer than the home's own limit (red_cost_h {self.cost_h})"


class FixedLimit(HomeLimit):
    """A limit that never learns, for comparison: all else of the watch stays as it is."""

    def _relearn(self) -> None:
        """Keep the limit that it began with."""


# The county's rule as ordered with our red; the same with a fixed limit in place of the home's own.
DEFAULT: Final = (RuleSet(name="home"), RuleSet(name="fixed-12", fixed_h=12), RuleSet(name="fixed-16", fixed_h=16))


def parse_rules(texts: Sequence[str]) -> tuple[RuleSet, ...]:
    """Return the rule sets of `--rules NAME=key:value,…`, else the default ones. Raises InputProblem."""
    rules = tuple(_parse(text) for text in texts) or DEFAULT
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise InputProblem(f"--rules: two rule sets are called {name!r}")
    return rules


def _parse(text: str) -> RuleSet:
    name, equals, rest = text.partition("=")
    name = name.strip()
    if not equals or not name:
        raise InputProblem(f"--rules {text!r} should read NAME=key:value,… with the keys {', '.join(_KEYS)}")
    settings: dict[str, object] = {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, _, value = (part.strip() for part in pair.partition(":"))
        if key not in _KEYS:
            raise InputProblem(f"--rules {name}: {key!r} is no key; they are {', '.join(_KEYS)}")
        field, read = _KEYS[key]
        if field in settings:
            raise InputProblem(f"--rules {name}: {key} is given twice")
        try:
            settings[field] = read(value)
        except (ValueError, InvalidOperation) as error:
            detail = str(error) if type(error) is ValueError else "is no number"
            raise InputProblem(f"--rules {name}: {key} {value!r}: {detail}") from None
    return RuleSet(name=name, **settings)  # type: ignore[arg-type]


def _decimal(text: str, *, unit: int, most: int) -> int:
    value = Decimal(text)
    exact = value * unit
    if not value.is_finite() or not 0 < value <= most or exact != exact.to_integral_value():
        finest = "millisecond" if unit == HOUR_MS else "millilitre"
        raise ValueError(f"should be more than 0, at most {most}, and no finer than a {finest}")
    return int(exact)


def _whole(text: str, *, least: int, most: int) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"should be a whole number from {least} to {most}")
    return int(text)


def _red(text: str) -> bool:
    if text not in {"home", "off"}:
        raise ValueError("should be home or off (a fixed limit is fixed_h:N)")
    return text == "home"


# The first four are those of [detection] in the configuration.
_KEYS: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "window_h": ("window_ms", lambda text: _decimal(text, unit=HOUR_MS, most=WINDOW_H_MAX)),
    "threshold_m3": ("threshold_ml", lambda text: _decimal(text, unit=M3_ML, most=THRESHOLD_M3_MAX)),
    "red_cost_h": ("cost_h", lambda text: _whole(text, least=COST_MIN_H, most=COST_MAX_H)),
    "red_after_h": ("cold_h", lambda text: _whole(text, least=LIMIT_MIN_H, most=LIMIT_MAX_H)),
    "fixed_h": ("fixed_h", lambda text: _whole(text, least=LIMIT_MIN_H, most=LIMIT_MAX_H)),
    "red": ("red", _red),
}


def _plain(value: Decimal) -> str:
    return f"{value.normalize():f}"
