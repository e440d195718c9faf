"""Access to the tables of a configuration: values checked one by one, every fault noted with its line.

Nothing here raises for what a user wrote. A value that is wrong is noted in the `Report` and replaced by a harmless one
of the right type; `agent.config.load` throws everything away once there is a problem, so nobody ever sees it.
"""

import contextlib
import datetime
import difflib
import functools
import json
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import msgspec

from agent.toml_positions import KeyPath, Positions
from protocols.contract import NAME_PATTERN

SHOWN_CHARACTERS_MAX: Final = 120  # a path is shown whole, a novel is not
COMPARED_CHARACTERS_MAX: Final = 60  # longer words resemble none of ours
# Ports that are a connection; they need a host and a port number.
NETWORK_PORTS: Final = ("socket", "rfc2217")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something in a configuration that is wrong (or, as a warning, doubtful), and what would be right.

    `line` counts from 1 and is None where the whole file is meant; `key` is empty where no key is meant.
    """

    file: str
    line: int | None
    key: str
    message: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.key}: {self.message}" if self.key else f"{where}: {self.message}"


class Key(msgspec.Struct, frozen=True):
    """A key that a table may hold, with a value as a user would write it."""

    example: str
    required: bool = False


# Every key that a configuration may hold, by kind of table. docs/shuiwang.example.toml explains each of them.
SCHEMA: Final[Mapping[str, Mapping[str, Key]]] = {
    "gateway": {
        "id": Key('"g-0371522"', required=True),
        "county": Key('"shenxian"', required=True),
        "data_dir": Key('"/var/lib/shuiwang"'),
        "timezone": Key('"Asia/Shanghai"'),
    },
    "broker": {
        "url": Key('"mqtts://mqtt.example.org:8883"', required=True),
        "ca_file": Key('"/etc/shuiwang/ca.pem"'),
        "cert_file": Key('"/etc/shuiwang/gateway.pem"'),
        "key_file": Key('"/etc/shuiwang/gateway.key"'),
        "username": Key('"g-0371522"'),
        "password_file": Key('"/etc/shuiwang/password"'),
        "acknowledgement": Key('"county"'),
    },
    "bus": {
        "name": Key('"rs485-1"', required=True),
        "port": Key('"/dev/ttyS1"', required=True),
        "baudrate": Key("9600"),
        "parity": Key('"N"'),
        "stop_bits": Key("1"),
        "data_bits": Key("8"),
        "framing": Key('"rtu"'),
    },
    "meter": {
        "id": Key('"m-001"', required=True),
        "bus": Key('"rs485-1"', required=True),
        "profile": Key('"usw-dn15-40"', required=True),
        "address": Key('"17"', required=True),
        "poll_every_s": Key("300"),
        "timeout_ms": Key("500"),
        "retries": Key("1"),
        "detection": Key('{ window_h = 24, threshold_m3 = "0.01" }'),
    },
    "detection": {
        "window_h": Key("12"),
        "threshold_m3": Key('"0.1"'),
        "red_after_h": Key("16"),
        "red_cost_h": Key("1500"),
    },
}
REPEATED: Final = frozenset({"bus", "meter"})


def heading(kind: str) -> str:
    """Return the heading of a table as it stands in the file."""
    return f"[[{kind}]]" if kind in REPEATED else f"[{kind}]"


class Report:
    """Collects what is wrong and what is doubtful in one file."""

    def __init__(self, *, file: str, positions: Positions) -> None:
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._file = file
        self._positions = positions

    def line(self, path: KeyPath) -> int | None:
        """Return the line of a key or of the table that would hold it."""
        return self._positions.line(path)

    def problem(self, path: KeyPath, key: str, message: str) -> None:
        """Note something that is wrong; `key` names it in the user's words."""
        self.problems.append(Problem(file=self._file, line=self.line(path), key=key, message=message))

    def warning(self, path: KeyPath, key: str, message: str) -> None:
        """Note something that is allowed but probably not meant."""
        self.warnings.append(Problem(file=self._file, line=self.line(path), key=key, message=message))


class Table:
    """One table of the file. Each getter returns the value of a key, its default where the key is absent."""

    def __init__(self, report: Report, *, kind: str, path: KeyPath, label: str, content: Mapping[str, Any]) -> None:
        """`label` is what messages call the table; a `label` that ends in `.` is the part of a key before the dot."""
        self.label = label
        self._report = report
        self._path = path
        self._keys = SCHEMA[kind]
        self._content = content
        self._faulty: set[str] = set()
        for key in content:
            if key not in self._keys:
                self._report_unknown(key, kind)

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def is_good(self, *keys: str) -> bool:
        """Whether nothing was wrong with these keys so far: only then is it worth comparing them with others."""
        return not self._faulty.intersection(keys)

    def line(self, key: str) -> int | None:
        """Return the line of a key; of the heading where the key is absent."""
        return self._report.line((*self._path, key))

    def problem(self, key: str, message: str) -> None:
        """Note that a key is wrong."""
        self._faulty.add(key)
        self._report.problem((*self._path, key), self._key_label(key), message)

    def warning(self, key: str, message: str) -> None:
        """Note that a key is doubtful; without a key, the table."""
        self._report.warning((*self._path, key), self._key_label(key) if key else self.label, message)

    def text(self, key: str, *, default: str = "") -> str:
        """Return a text: not empty, no space around it, nothing invisible in it."""
        value = self._value(key, default)
        if not isinstance(value, str):
            if isinstance(value, int | Decimal | datetime.date | datetime.time) and not isinstance(value, bool):
                self.problem(key, f'{shown(value)} is not text — put it in quotes: write "{shown(value)}"')
            else:
                self.problem(key, f"{shown(value)} is not text — {self._example(key)}")
        elif key in self._content and not value.strip():
            otherwise = "" if self._keys[key].required else ", or delete the line"
            self.problem(key, f"is empty — {self._example(key)}{otherwise}")
        elif not value.isprintable():
            hidden = next(character for character in value if not character.isprintable())
            self.problem(key, f"holds the invisible character U+{ord(hidden):04X} — delete it and type the text again")
        elif value != value.strip():
            self.problem(key, f"{shown(value)} begins or ends with a space — write {shown(value.strip())}")
        else:
            return value
        return default

    def optional_text(self, key: str) -> str | None:
        """Return a text, or None where the key is absent."""
        return (self.text(key) or None) if key in self else None

    def name(self, key: str) -> str:
        """Return a name that can stand in a topic: a-z, 0-9 and -; "" where it is wrong."""
        text = self.text(key)
        if text and not re.fullmatch(NAME_PATTERN, text):
            better = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63].rstrip("-")
            advice = f'write, for example, "{better}"' if better else self._example(key)
            rule = "a name holds only a-z, 0-9 and -, begins with a letter or digit and has at most 63 characters"
            self.problem(key, f"{shown(text)} is not a name that can be used: {rule} — {advice}")
            return ""
        return text

    def choice(self, key: str, choices: tuple[str, ...], *, default: str) -> str:
        """Return one of a few texts."""
        text = self.text(key, default=default)
        if text in choices:
            return text
        folded = {choice[:1].lower(): choice for choice in choices}
        better = suggestion(text, choices) or folded.get(text[:1].lower())
        listed = _listed([f'"{choice}"' for choice in choices])
        self.problem(key, f"{shown(text)} is not possible — write {shown(better) if better else listed}")
        return default

    def integer(self, key: str, *, default: int, minimum: int, maximum: int, unit: str = "") -> int:
        """Return a whole number within limits."""
        number = self.number(key, default=default, minimum=minimum, maximum=maximum, unit=unit)
        if number != int(number):
            self.problem(key, f"{number} is not a whole number — write {int(number)} or {int(number) + 1}")
            return default
        return int(number)

    def number(self, key: str, *, default: int, minimum: int | Decimal, maximum: int, unit: str = "") -> Decimal:
        """Return a number, exactly as it is written, within limits."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self.problem(key, self._no_number(key, value))
        elif isinstance(value, Decimal) and not value.is_finite():
            self.problem(key, f"{shown(value)} is not a number to count with — {self._example(key)}")
        elif not minimum <= value <= maximum:
            size = "small" if value < minimum else "large"
            span = f"a number from {minimum} to {maximum}{unit and ' ' + unit}"
            self.problem(key, f"{shown(value)} is too {size} — write {span}")
        else:
            return Decimal(value)
        return Decimal(default)

    def path(self, key: str, *, folder: Path, default: str = "") -> Path:
        """Return a path; a relative one begins at `folder`, that of the configuration."""
        text = self.text(key, default=default)
        if text.startswith("~"):
            self.problem(key, f"{shown(text)} begins with ~, which only a shell understands — write the whole path")
        return folder.absolute() / text

    def table(self, key: str, *, kind: str) -> "Table":
        """Return a table within this one; an empty one where it is absent."""
        content = self._value(key, {})
        if not isinstance(content, dict):
            self.problem(key, f"{shown(content)} is not a table — {self._example(key)}")
            content = {}
        label = f"{self.label}: {key}."
        return Table(self._report, kind=kind, path=(*self._path, key), label=label, content=content)

    def _value(self, key: str, default: object) -> object:
        known = self._keys[key]  # KeyError: a key that SCHEMA lacks is a bug of ours
        if key in self._content:
            return self._content[key]
        if known.required and key not in self._faulty:
            self.problem(key, f"is missing — add the line: {key} = {known.example}")
        return default

    def _no_number(self, key: str, value: object) -> str:
        if isinstance(value, str):
            with contextlib.suppress(InvalidOperation):
                number = Decimal(value.replace(",", "."))
                if number.is_finite():
                    return f"{shown(value)} stands in quotes and is therefore text — write {shown(number)}"
        return f"{shown(value)} is not a number — {self._example(key)}"

    def _report_unknown(self, key: str, kind: str) -> None:
        name = shown_key(key)
        better = suggestion(key, self._keys)
        homes = [heading(other) for other, keys in SCHEMA.items() if key in keys]
        if homes:
            message = f"this key does not belong to {heading(kind)} — move the line to {_listed(homes)}"
        elif better:
            message = f"there is no such key — did you mean {better}?"
            if better not in self._content:
                self._faulty.add(better)  # or it would be reported as missing, too
        else:
            message = f"there is no such key — delete the line; {heading(kind)} knows {', '.join(self._keys)}"
        self._report.problem((*self._path, key), self._key_label(name), message)

    def _example(self, key: str) -> str:
        return f"write, for example: {key} = {self._keys[key].example}"

    def _key_label(self, key: str) -> str:
        return f"{self.label}{key}" if self.label.endswith(".") else f"{self.label}: {key}"


class Claims:
    """Who has what nobody else may have."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, object], Table] = {}

    def claim(self, table: Table, key: str, what: str, value: object, advice: str) -> None:
        """Note that a table has a value for itself; where another has it already that is a problem of the later."""
        owner = self._owners.setdefault((what, value), table)
        if owner is not table:
            table.problem(key, f"{owner.label} on line {owner.line(key)} has the same {what} — {advice}")


def _listed(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def lacks_host(port: str) -> bool:
    """Tell whether a network port (`socket://`, `rfc2217://`) lacks its host or its port number."""
    scheme, separator, rest = port.partition("://")
    if not separator or scheme.lower() not in NETWORK_PORTS:
        return False
    match = re.match(r"(?:[^\s/:?]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})(?:[/?]|$)", rest)
    return match is None or not 1 <= int(match[1]) <= 65535


def shown(value: object) -> str:
    """Return a value of the file as TOML writes it, short enough for one line."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=not value.isprintable())
    elif isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int) and value.bit_length() > 128:  # str() refuses thousands of digits
        text = "a huge number"
    elif isinstance(value, Decimal) and not value.is_finite():
        text = str(float(value))  # as TOML writes it: nan, inf, -inf
    elif isinstance(value, dict):
        text = "a table"
    elif isinstance(value, list):
        text = "a list"
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


def shown_key(key: str) -> str:
    """Return a key as it may be written in TOML, short enough for one line."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else shown(key)


def suggestion(word: str, possible: Iterable[str]) -> str | None:
    """Return what the user probably meant, None where nothing is close."""
    return _suggestion(word, tuple(possible)) if len(word) <= COMPARED_CHARACTERS_MAX else None


@functools.lru_cache(maxsize=256)  # one wrong bus name in a thousand meters is compared once
def _suggestion(word: str, possible: tuple[str, ...]) -> str | None:
    close = difflib.get_close_matches(word, possible, n=1, cutoff=0.6)
    return close[0] if close else None
