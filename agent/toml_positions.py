"""Where things stand in a TOML text: the two things that `tomllib` does not tell.

`locate` gives the line of every key and table, `explain` says in plain words why a text is no TOML.
"""

import re
import tomllib
from typing import Final

import msgspec

# ("meter", 1, "address") is the key `address` of the second `[[meter]]`.
KeyPath = tuple[str | int, ...]

_BASIC: Final = r'"(?:\\.|[^"\\\n])*"'
_LITERAL: Final = r"'[^'\n]*'"
_KEY_PART: Final = re.compile(rf"{_BASIC}|{_LITERAL}|[A-Za-z0-9_-]+", re.DOTALL)
_DOT: Final = re.compile(r"[ \t]*\.[ \t]*")
_BLANK: Final = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
# What a value is made of. A multi-line string may hold up to two of its quotes right before the closing three.
_VALUE_PART: Final = re.compile(
    rf"""(?P<skip>\"\"\"(?:\\.|[^\\])*?\"{{3,5}}|'''.*?'{{3,5}}|{_BASIC}|{_LITERAL}|[#][^\n]*|[^\[\]{{}}"'#\n]+)"""
    r"|(?P<open>[\[{])|(?P<close>[\]}])|(?P<newline>\n)",
    re.DOTALL,
)


class Positions(msgspec.Struct, frozen=True):
    """The line, counted from 1, on which each key and each table heading stands."""

    lines: dict[KeyPath, int]

    def line(self, path: KeyPath) -> int | None:
        """Return the line of a key; of what holds it where it is part of a value or absent; None where nothing is."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[:-1]
        return None


def locate(text: str) -> Positions:
    """Return where the keys of a text stand that `tomllib` accepts.

    What is inside a value (inline tables, arrays) has no line of its own. On a text that is no TOML the positions
    mean little, but nothing is raised and the text is gone through once.
    """
    return _Locator(text.replace("\r\n", "\n")).run()


class _Locator:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._elements: dict[KeyPath, int] = {}  # how many `[[…]]` of each array of tables came by
        self._table: KeyPath = ()

    def run(self) -> Positions:
        while True:
            self._skip_blank()
            if self._at >= len(self._text):
                return Positions(self._lines)
            if self._text.startswith("[[", self._at):
                self._array_heading()
            elif self._text.startswith("[", self._at):
                self._table_heading()
            else:
                self._key_and_value()

    def _array_heading(self) -> None:
        self._at += 2
        *parents, last = self._key() or [""]
        path = (*self._inside((), parents), last)
        number = self._elements.get(path, 0)
        self._elements[path] = number + 1
        self._lines.setdefault(path, self._line)
        self._table = (*path, number)
        self._lines[self._table] = self._line
        self._skip_line()

    def _table_heading(self) -> None:
        self._at += 1
        self._table = self._inside((), self._key())
        self._lines[self._table] = self._line  # a heading of its own wins over `[a.b]`, which only implies `a`
        self._skip_line()

    def _key_and_value(self) -> None:
        line = self._line
        path = self._inside(self._table, self._key())
        self._lines.setdefault(path, line)
        self._skip_value()

    def _inside(self, path: KeyPath, keys: list[str]) -> KeyPath:
        """Return the path of a dotted key; a name that is an array of tables means its latest element."""
        for key in keys:
            path = (*path, key)
            self._lines.setdefault(path, self._line)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _key(self) -> list[str]:
        keys: list[str] = []
        self._skip_spaces()
        while part := _KEY_PART.match(self._text, self._at):
            keys.append(_unquoted(part[0]))
            self._at = part.end()
            dot = _DOT.match(self._text, self._at)
            if dot is None:
                break
            self._at = dot.end()
        return keys

    def _skip_value(self) -> None:
        """Go behind the newline that ends a value: the first that is in no string and no bracket."""
        depth = 0
        while self._at < len(self._text):
            part = _VALUE_PART.match(self._text, self._at)
            end = part.end() if part else self._at + 1  # a quote that nothing closes: no TOML
            self._go(end)
            if part is None or part["skip"]:
                continue
            depth += bool(part["open"]) - bool(part["close"])
            if part["newline"] and depth <= 0:
                return

    def _skip_spaces(self) -> None:
        while self._text[self._at : self._at + 1] in {" ", "\t"}:
            self._at += 1

    def _skip_blank(self) -> None:
        blank = _BLANK.match(self._text, self._at)
        assert blank is not None  # it matches the empty text too
        self._go(blank.end())

    def _skip_line(self) -> None:
        end = self._text.find("\n", self._at)
        self._go(len(self._text) if end < 0 else end + 1)

    def _go(self, end: int) -> None:
        self._line += self._text.count("\n", self._at, end)
        self._at = end


def _unquoted(part: str) -> str:
    if part[0] == "'":
        return part[1:-1]
    if part[0] == '"' and "\\" in part:
        try:
            return str(tomllib.loads(f"key = {part}")["key"])
        except tomllib.TOMLDecodeError:
            return part
    return part.strip('"')


# What Chinese input methods and word processors put where TOML wants plain ASCII.
_LOOKALIKES: Final = {
    "“": '"',
    "”": '"',
    "„": '"',
    "＂": '"',
    "‘": "'",
    "’": "'",
    "＇": "'",
    "＝": "=",
    "＃": "#",
    "［": "[",
    "］": "]",
    "【": "[",
    "】": "]",
    "，": ",",
    "．": ".",
    "。": ".",
    "\u3000": " ",
    "\u00a0": " ",
}
# How tomllib begins its message, what that means, and what would be right. The first that fits is taken.
_EXPLANATIONS: Final = (
    ("Cannot overwrite a value", "this key stands in its table twice — delete one of the two lines"),
    ("Duplicate inline table key", "a key stands between the same { } twice — delete one of the two"),
    (
        "Cannot declare",
        "this heading stands in the file twice — put its keys under one; only [[bus]] and [[meter]] are repeated",
    ),
    ("Cannot", "this table or key clashes with one further up — give each key once, under one heading"),
    ("Illegal character '\\n'", 'a quote is not closed on this line — end the text with a "'),
    ("Found invalid character '\\n'", "a quote is not closed on this line — end the text with a '"),
    ("Found invalid character", "there is an invisible character — delete it and type the line again"),
    ("Illegal character", "there is an invisible character — delete it and type the line again"),
    ("Unterminated string", "a quote, here or further up, is not closed — end the text with the quote it begins with"),
    ("Expected \"'", "a quote, here or further up, is not closed — end the text with the quote it begins with"),
    ("Unescaped", r"a \ in a text has a special meaning — write \\ or use '…' instead of " + '"…"'),
    ("Expected '='", 'there is no = after the key — a line reads: key = "text" or key = 123'),
    ("Expected ']]'", "the heading is not closed — write [[bus]] or [[meter]] with two brackets on each side"),
    ("Expected ']'", "the heading is not closed — a heading reads [gateway], [[bus]] or [[meter]]"),
    (
        "Invalid value",
        'the value after = is not understood — text stands in quotes: key = "text"; numbers do not: key = 123',
    ),
    (
        "Expected newline",
        'something follows the value — each key has its own line; an address such as 012 is text: key = "012"',
    ),
    ("Invalid statement", 'this line is not understood — a line reads: key = "text", [heading] or # comment'),
    ("Invalid initial character", "a name is missing or not understood — names hold a-z, 0-9, _ and -"),
    ("Unclosed array", "a [, here or further up, is not closed — end the list with a ]"),
    ("Unclosed inline table", "a {, here or further up, is not closed — end it with a } on the same line"),
)
_WHERE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a text is no TOML, and on which line."""

    line: int
    message: str


def explain(error: ValueError | RecursionError, text: str) -> Explanation:
    """Return in plain words what `tomllib` found wrong with a text."""
    lines = text.replace("\r\n", "\n").rstrip("\n").split("\n")
    if isinstance(error, RecursionError):
        deepest = max(range(len(lines)), key=lambda index: lines[index].count("[") + lines[index].count("{"))
        return Explanation(line=deepest + 1, message="brackets stand in brackets too deep — close each [ and { at once")
    where = _WHERE.search(str(error))
    if where is None:  # no complaint about syntax: int() refuses numbers of thousands of digits
        longest = max(range(len(lines)), key=lambda index: len(lines[index]))
        return Explanation(line=longest + 1, message="a number is too long to be read — write a shorter one")
    what = str(error)[: where.start()]
    line = min(int(where[1]), len(lines)) if where[1] else len(lines)
    character = lines[line - 1][int(where[2]) - 1 : int(where[2])] if where[2] else ""
    if character in _LOOKALIKES:
        plain = _LOOKALIKES[character]
        named = "a plain space" if plain == " " else f"the plain {plain} of the English keyboard"
        seen = f"U+{ord(character):04X}, a special space," if plain == " " else character
        return Explanation(line=line, message=f"{seen} is not understood here — type {named}")
    for beginning, message in _EXPLANATIONS:
        if what.startswith(beginning):
            return Explanation(line=line, message=message)
    return Explanation(line=line, message=f"this is not valid TOML: {what} — compare the line with the sample file")
