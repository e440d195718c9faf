"""The `[[meter]]` tables and the low-usage rule that holds for each meter."""

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.config_table import Claims, Table, shown, suggestion
from agent.detection.limit import COLD_H, COST_H, COST_MAX_H, COST_MIN_H, LIMIT_MAX_H, LIMIT_MIN_H
from agent.detection.watch import COARSE_ML
from agent.settings import MS_PER_HOUR, DetectionSettings, MeterSettings, duration_in_words, volume_in_words
from protocols import profile as profiles
from protocols.errors import ProfileError
from protocols.profile import Profile

# Faster than any meter renews its register; the demo and the tests poll that fast.
POLL_EVERY_S_MIN: Final = Decimal("0.1")
POLL_EVERY_S_MAX: Final = 86_400
POLL_EVERY_S_DEFAULT: Final = 300
# About a second, for trials; and 10 days, which in milliseconds fits the 31-bit integers of small boards.
WINDOW_H_MIN: Final = Decimal("0.0003")
WINDOW_H_MAX: Final = 240
THRESHOLD_M3_MAX: Final = 1000  # in millilitres likewise 31 bits
# The county's rule, which holds where the file does not say otherwise.
WINDOW_H_DEFAULT: Final = 12
THRESHOLD_M3_DEFAULT: Final = "0.1"
# Nine in ten one-person homes use less than 0.106 m³ in 12 h; who writes ten times that probably means litres.
DOUBTFUL_ML_IN_12_H: Final = 1_000_000
# Less than the county's litres in more than its hours: the rule then holds so late that red comes late with it.
FEW_ML: Final = 100_000
LONG_WINDOW_MS: Final = 12 * MS_PER_HOUR
# The limits that profiles have in their `[timing]` table.
TIMEOUT_MS_MIN, TIMEOUT_MS_MAX = 10, 10_000
RETRIES_MAX: Final = 5


class _Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A low-usage rule, and from which tables its two halves come: there its problems are reported."""

    window_ms: int
    window_table: Table
    threshold_ml: int
    threshold_table: Table
    cost_h: int
    cold_h: int


def read_meters(
    tables: list[Table], *, detection: Table, buses: Mapping[str, str], folder: Path
) -> list[MeterSettings]:
    """Return the meters whose profile could be loaded; what is wrong is in the report of their tables.

    `detection` holds the rule for all, `buses` the names that a meter may give, with their framing (none: they are not
    compared).
    """
    reader = _Reader(_read_rule(detection, inherited=None), buses=buses, folder=folder)
    meters = [meter for table in tables if (meter := reader.read(table)) is not None]
    reader.report_shared()
    return meters


class _Reader:
    def __init__(self, rule: _Rule, *, buses: Mapping[str, str], folder: Path) -> None:
        self._rule = rule
        self._buses = buses
        self._folder = folder
        self._claims = Claims()
        self._profiles: dict[str, Profile | str] = {}  # a profile, or why there is none
        # What the rule for all does wrong to single meters: (table, key, wrong, right) and to whom.
        self._shared: dict[tuple[Table, str, str, str], list[str]] = {}
        # The meters on which red cannot be judged, by the name of their profile and its step.
        self._coarse: dict[tuple[str, int], list[Table]] = {}

    def read(self, table: Table) -> MeterSettings | None:
        """Return a meter; None where it has no profile."""
        identifier = table.name("id")
        if identifier:
            self._claims.claim(table, "id", "id", identifier, "every meter needs an id of its own")
        bus = self._bus(table)
        profile = self._profile(table)
        timing = profile.timing if profile else profiles.Timing()
        address_text = table.text("address")
        address = self._address(table, bus, profile, address_text)
        poll_every_s = table.number(
            "poll_every_s",
            default=POLL_EVERY_S_DEFAULT,
            minimum=POLL_EVERY_S_MIN,
            maximum=POLL_EVERY_S_MAX,
            unit="seconds",
        )
        rule = _read_rule(table.table("detection", kind="detection"), inherited=self._rule)
        self._check_window(table, rule, round(poll_every_s * 1000))
        if profile:
            self._check_threshold(table, rule, profile)
            if profile.head.step_ml > COARSE_ML:
                self._coarse.setdefault((profile.name, profile.head.step_ml), []).append(table)
        timeout_ms = table.integer(
            "timeout_ms", default=timing.timeout_ms, minimum=TIMEOUT_MS_MIN, maximum=TIMEOUT_MS_MAX, unit="milliseconds"
        )
        retries = table.integer("retries", default=timing.retries, minimum=0, maximum=RETRIES_MAX)
        if profile is None:
            return None
        return MeterSettings(
            id=identifier,
            bus=bus,
            profile=profile,
            address=address,
            address_text=address_text,
            poll_every_s=float(poll_every_s),
            timeout_ms=timeout_ms,
            retries=retries,
            detection=DetectionSettings(
                window_ms=rule.window_ms, threshold_ml=rule.threshold_ml, cost_h=rule.cost_h, cold_h=rule.cold_h
            ),
        )

    def report_shared(self) -> None:
        """Report what is wrong between meters and the rule, each thing once and not once per meter."""
        for (table, key, wrong, right), meters in self._shared.items():
            others = f" and {len(meters) - 1} more" if len(meters) > 1 else ""
            is_for_all = table in {self._rule.window_table, self._rule.threshold_table}
            table.problem(key, f"{wrong} ({meters[0]}{others}) — {right}" if is_for_all else f"{wrong} — {right}")

        for (name, step_ml), tables in self._coarse.items():
            _warn_of_coarse_steps(name, step_ml, tables)

    def _bus(self, table: Table) -> str:
        name = table.text("bus")
        if name and self._buses and name not in self._buses:
            better = suggestion(name, self._buses)
            known = ", ".join([*self._buses][:10])
            advice = f'did you mean "{better}"?' if better else f"the file has {known}; or add a [[bus]] of that name"
            table.problem("bus", f"there is no bus {shown(name)} — {advice}")
        return name

    def _profile(self, table: Table) -> Profile | None:
        name = table.text("profile")
        if not name:
            return None
        if name not in self._profiles:
            self._profiles[name] = self._load_profile(name)
        found = self._profiles[name]
        if isinstance(found, Profile):
            return found
        table.problem("profile", found)
        return None

    def _load_profile(self, name: str) -> Profile | str:
        """Return a profile, or what is wrong with it and what would be right."""
        if "/" in name or name.endswith(".toml"):
            path = self._folder / name
            try:
                if not path.is_file() or path.stat().st_size > profiles.PROFILE_BYTES_MAX:
                    return f"there is no profile file {shown(str(path))} — correct the path, or put the file there"
            except OSError as error:
                return f"{shown(str(path))} cannot be looked at ({error.strerror}) — check the path and its permissions"
        elif name not in (known := profiles.built_in_names()):
            better = suggestion(name, known)
            other = "write a name that `shuiwang profiles` lists, or the path of a profile file"
            advice = f'did you mean "{better}"?' if better else other
            return f"there is no profile {shown(name)} — {advice}"
        try:
            return profiles.load(name, relative_to=self._folder)
        except (ProfileError, ValueError, RecursionError) as error:  # the last two: odd TOML in somebody's own file
            return f"the profile cannot be used: {error} — correct that file"

    def _address(self, table: Table, bus: str, profile: Profile | None, text: str) -> Any:
        if profile is None or not text:
            return None
        try:
            # On a bus that is not there, whatever may be an address on some bus.
            address = profile.parse_address(text, framing=self._buses.get(bus, "tcp"))
        except ProfileError as error:
            table.problem("address", f"{shown(text)} cannot be the address of this meter — {error}")
            return None
        if bus and table.is_good("bus"):
            identity = (bus, profile.head.protocol, repr(address))  # repr: an address need not be hashable
            advice = "two meters with one address answer at once; give one of them another, then write it here"
            self._claims.claim(table, "address", f"address on bus {shown(bus)}", identity, advice)
        return address

    def _check_window(self, table: Table, rule: _Rule, poll_ms: int) -> None:
        window_ms = rule.window_ms
        if window_ms >= poll_ms or not rule.window_table.is_good("window_h") or not table.is_good("poll_every_s"):
            return
        poll, window = duration_in_words(poll_ms), duration_in_words(window_ms)
        if "poll_every_s" in table:
            wrong = (
                f"{poll} between two readings is longer than the window of {window}: the rule could never be decided"
            )
            table.problem("poll_every_s", f"{wrong} — write {window_ms / 1000:g} or less, or a longer window_h")
        else:
            wrong = f"a window of {window} is shorter than the {poll} between two readings: it could never be decided"
            right = f"write a longer window_h, or give the meter poll_every_s = {window_ms / 1000:g} or less"
            self._shared.setdefault((rule.window_table, "window_h", wrong, right), []).append(table.label)

    def _check_threshold(self, table: Table, rule: _Rule, profile: Profile) -> None:
        threshold_ml, step_ml = rule.threshold_ml, profile.head.step_ml
        if threshold_ml >= step_ml or not rule.threshold_table.is_good("threshold_m3"):
            return
        wrong = (
            f"{volume_in_words(threshold_ml)} is finer than {profile.name} meters can tell, which count in steps of "
            f"{volume_in_words(step_ml)}: one step would already be above it"
        )
        right = f'write "{_cubic_metres(step_ml)}" or more'
        self._shared.setdefault((rule.threshold_table, "threshold_m3", wrong, right), []).append(table.label)


def _read_rule(table: Table, *, inherited: _Rule | None) -> _Rule:
    """Return the rule in a table; what the table leaves out is inherited, or else is the county's."""
    if inherited is None:
        window_ms, threshold_ml = _read_window(table), _read_threshold(table)
        rule = _Rule(
            window_ms=window_ms,
            window_table=table,
            threshold_ml=threshold_ml,
            threshold_table=table,
            cost_h=_read_cost_h(table, default=COST_H),
            cold_h=_read_cold_h(table, default=COLD_H),
        )
    else:
        rule = inherited
        if "window_h" in table:
            rule = msgspec.structs.replace(rule, window_ms=_read_window(table), window_table=table)
        if "threshold_m3" in table:
            rule = msgspec.structs.replace(rule, threshold_ml=_read_threshold(table), threshold_table=table)
        rule = msgspec.structs.replace(
            rule,
            cost_h=_read_cost_h(table, default=inherited.cost_h),
            cold_h=_read_cold_h(table, default=inherited.cold_h),
        )
    if "threshold_m3" in table and table.is_good("window_h", "threshold_m3"):
        _warn_of_litres(table, rule)
    _warn_of_late_red(table, rule)
    return rule


def _read_window(table: Table) -> int:
    """Return the window in milliseconds."""
    window_h = table.number(
        "window_h", default=WINDOW_H_DEFAULT, minimum=WINDOW_H_MIN, maximum=WINDOW_H_MAX, unit="hours"
    )
    return round(window_h * MS_PER_HOUR)


def _read_cost_h(table: Table, *, default: int) -> int:
    """Return the price of a false red alert, in hours of waiting for help."""
    return table.integer("red_cost_h", default=default, minimum=COST_MIN_H, maximum=COST_MAX_H, unit="hours")


def _read_cold_h(table: Table, *, default: int) -> int:
    """Return after how many hours without real use a home that is not known yet turns red."""
    return table.integer("red_after_h", default=default, minimum=LIMIT_MIN_H, maximum=LIMIT_MAX_H, unit="hours")


def _read_threshold(table: Table) -> int:
    """Return the threshold in millilitres, 0 where it is wrong."""
    text = table.text("threshold_m3", default=THRESHOLD_M3_DEFAULT)
    if not table.is_good("threshold_m3"):
        return 0
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        # "0,1" and "0.1 m³" say what was meant; "1e-1" or "100 L" would be guessed wrongly by their first digits.
        meant = re.fullmatch(r"([0-9]{1,9}(?:[.][0-9]{1,9})?)\s*(?:m3|m³|m\^3)?", text.strip().replace(",", "."))
        better = meant[1] if meant and Fraction(meant[1]) else THRESHOLD_M3_DEFAULT
        table.problem("threshold_m3", f'{shown(text)} is not a decimal number of cubic metres — write "{better}"')
        return 0
    threshold_ml = Fraction(text) * 1_000_000
    if threshold_ml == 0:
        table.problem("threshold_m3", f'nothing is less than {shown(text)} — write, for example, "0.1"')
    elif threshold_ml > THRESHOLD_M3_MAX * 1_000_000:
        table.problem(
            "threshold_m3", f'{shown(text)} is above {THRESHOLD_M3_MAX} m³ — write, for example, "0.1" (100 L)'
        )
    elif threshold_ml.denominator != 1:
        better = _cubic_metres(max(1, round(threshold_ml)))
        table.problem("threshold_m3", f'{shown(text)} is finer than a millilitre — write "{better}"')
    return int(threshold_ml)


def _warn_of_litres(table: Table, rule: _Rule) -> None:
    window_ms, threshold_ml = rule.window_ms, rule.threshold_ml
    doubtful_ml = DOUBTFUL_ML_IN_12_H * max(window_ms, 12 * MS_PER_HOUR) // (12 * MS_PER_HOUR)
    if threshold_ml > doubtful_ml:
        much = f"{volume_in_words(threshold_ml)} is more than most homes use in {duration_in_words(window_ms)}"
        number, litres_as_m3 = _cubic_metres(threshold_ml), _cubic_metres(threshold_ml // 1000)
        advice = f'the number is cubic metres; for {number} litres write "{litres_as_m3}"'
        table.warning("threshold_m3", f"{much}: almost every home would always be reported — {advice}")


def _warn_of_late_red(table: Table, rule: _Rule) -> None:
    """Warn of few litres in many hours: red needs the county's rule as well (the figures: docs/backtest.md)."""
    few_in_long = 0 < rule.threshold_ml < FEW_ML and rule.window_ms > LONG_WINDOW_MS
    keys = [key for key in ("threshold_m3", "window_h") if key in table and table.is_good(key)]
    if few_in_long and keys:
        much = f"less than {volume_in_words(rule.threshold_ml)} in {duration_in_words(rule.window_ms)}"
        table.warning(
            keys[0],
            f"{much}: red waits for the county's rule; with 0.01 m³ in 24 h red came 10 hours later in the backtest —"
            " write window_h = 12 or less, and ask shuiwang advise what suits the home",
        )


def _warn_of_coarse_steps(name: str, step_ml: int, tables: list[Table]) -> None:
    others = f" ({len(tables)} meters)" if len(tables) > 1 else ""
    step, most = volume_in_words(step_ml), volume_in_words(COARSE_ML)
    wrong = (
        f"{name} meters count in steps of {step}, above {most}: such a register may stand still for a day although all"
        f" is well, so no alert of these homes ever turns red{others}"
    )
    tables[0].warning("profile", f"{wrong} — fit a meter that counts litres, or have these homes visited more often")


def _cubic_metres(volume_ml: int) -> str:
    return f"{(Decimal(volume_ml) / 1_000_000).normalize():f}"
