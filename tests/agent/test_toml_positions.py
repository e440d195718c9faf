"""The key locator against tomllib, and what is said of texts that are no TOML."""

import gc
import json
import tomllib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.toml_positions import Positions, explain, locate

# Values that look like structure where there is none.
VALUES = (
    "1",
    "1979-05-27 07:32:00",
    '"a # [[x]] = 1"',
    '"\\"# \\\\"',
    "'C:\\' # comment with ' and \" and [",
    '"""\n[not.a.table]\nkey = 1\n\\""" # """',
    '""""two quotes""""" # [',
    "'''\n# no comment\n[[x]]\nk = '''",
    "'''a'''''",
    '"""one quote"""" # " [',
    "'''one quote'''' # ' [",
    '""',
    "''",
    '""""""',
    "''''''",
    '[1, 2, # ] comment\n  "]", """\n]""",\n  [3, { a = 1 }],\n]',
    '{ a = 1, "b.c" = ["}"], d = { e = 2 } }',
    "[]",
    "true # [t]",
)
BLANKS = ("", "\n", "# comment [[x]]\n", "  \t\n", "# a = 1 'unclosed\n\n", '# """\n')
SPACES = ("", " ", "\t")


@st.composite
def documents(draw) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """Return a valid text and, written down while it grew, on which line each key and heading stands."""
    text = ""
    lines: dict[tuple[str | int, ...], int] = {}
    arrays: dict[str, int] = {}

    def quoted(name: str) -> str:
        style = draw(st.sampled_from(("bare", "basic", "literal", "escaped")))
        escaped = "".join(f"\\u{ord(character):04x}" for character in name)
        return {"bare": name, "basic": f'"{name}"', "literal": f"'{name}'", "escaped": f'"{escaped}"'}[style]

    def dotted(names: list[str]) -> str:
        return (draw(st.sampled_from(SPACES)) + "." + draw(st.sampled_from(SPACES))).join(map(quoted, names))

    def add(line: str) -> None:
        nonlocal text
        text += draw(st.sampled_from(SPACES)) + line + "\n" + draw(st.sampled_from(BLANKS))

    def note(path: tuple[str | int, ...]) -> None:
        lines[path] = text.count("\n") + 1

    for number in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(("table", "deep", "array", "inner array", "inner table")))
        name = f"t{number}"
        array = draw(st.sampled_from(("x", "y")))
        here: tuple[str | int, ...] = (name,)
        if kind == "table":
            note(here)
            add(f"[{quoted(name)}]")
        elif kind == "deep":
            note((name,))
            here = (name, "a.b", "c")
            note((name, "a.b"))
            note(here)
            add(f'[{quoted(name)}."a.b".{quoted("c")}] # comment')
        elif kind == "array" or array not in arrays:
            index = arrays[array] = arrays.get(array, -1) + 1
            here = (array, index)
            if index == 0:
                note((array,))
            note(here)
            add(f"[[ {quoted(array)} ]]")
        elif kind == "inner array":
            here = (array, arrays[array], name, 0)
            note(here[:-1])
            note(here)
            add(f"[[{dotted([array, name])}]]")
        else:
            here = (array, arrays[array], name)
            note(here)
            add(f"[{dotted([array, name])}]")
        for key in range(draw(st.integers(0, 3))):
            names = [f"k{key}"] if draw(st.booleans()) else [f"k{key}", "sub key"[: draw(st.sampled_from((3, 8)))]]
            for depth in range(1, len(names) + 1):
                note((*here, *names[:depth]))
            shown = ".".join(quoted(part) if " " not in part else f'"{part}"' for part in names)
            add(f"{shown} = {draw(st.sampled_from(VALUES))}")
    return (text.replace("\n", "\r\n") if draw(st.booleans()) else text), lines


def holds(data: object, path: tuple[str | int, ...]) -> bool:
    for key in path:
        if not isinstance(data, Mapping if isinstance(key, str) else list):
            return False
        try:
            data = data[key]
        except LookupError:
            return False
    return True


@given(documents())
def test_every_key_is_found_on_its_line_and_nothing_else_is(document):
    text, expected = document
    data = tomllib.loads(text)  # the generator makes TOML
    assert locate(text).lines == expected
    for path in expected:
        assert holds(data, path), path


@given(documents(), st.data())
def test_after_any_edit_that_tomllib_accepts_only_real_keys_are_found(document, data):
    text, _ = document
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        removed = data.draw(st.integers(0, 2))
        text = text[:at] + data.draw(st.text("[]{}\"'#=.,\\\n akx1", max_size=3)) + text[at + removed :]
    positions = locate(text)  # never raises, whatever the text
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    for path, line in positions.lines.items():
        assert holds(tables, path), (path, line)
    for key in tables:
        assert (key,) in positions.lines


@given(st.text(max_size=200))
def test_any_text_is_gone_through(text):
    assert all(1 <= line <= text.count("\n") + 1 for line in locate(text).lines.values())


def test_what_has_no_line_of_its_own_has_that_of_its_holder():
    positions = locate('[a]\nb = { c = 1 }\n\n[[d]]\ne = 1\n[[d]]\n"f g" = 2\n')
    assert positions.line(("a", "b", "c")) == 2
    assert positions.line(("a", "missing")) == 1
    assert positions.line(("d", 1, "e")) == 6
    assert positions.line(("d", 1, "f g")) == 7
    assert positions.line(("nothing",)) is None
    assert Positions({}).line(()) is None


def test_a_heading_of_its_own_wins_over_one_that_implies_it():
    assert locate("[a.b]\n[a]\n").lines == {("a",): 2, ("a", "b"): 1}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb = [1\n", 2, "[, here or further up"),
        ("a = { b = 1\n", 1, "{, here or further up"),
        ("a = { b = 1, b = 2 }", 1, "twice"),
        ("\na = 'x", 2, "quote"),
        ('a = """x\n\n', 1, "quote"),
        ("a = 1\na = 2", 2, "twice"),
        ("[a]\nb = 1\n[a]\n", 3, "heading stands in the file twice"),
        ("a.b = 1\na = { c = 1 }\n", 2, "twice"),
        ("[]\n", 1, "name is missing"),
        ("[a\n", 1, "heading is not closed"),
        ("[[a]\n", 1, "heading is not closed"),
        ("a = \x01", 1, "after = is not understood"),
        ("a = 'x\x01'", 1, "invisible"),
        ('a = "\\ud800"', 1, "escaped"),
        ("?\n", 1, "a line reads"),
        ("a = 1\u3000\n", 1, "U+3000, a special space, is not understood here — type a plain space"),
        ("【a】\n", 1, "type the plain [ of the English keyboard"),
        ("a = 1\n\nb = " + "9" * 10_000 + "\nc = 1", 3, "too long"),
    ],
)
def test_what_is_no_toml_is_explained(text, line, words):
    with pytest.raises((ValueError, RecursionError)) as caught:
        tomllib.loads(text)
    explanation = explain(caught.value, text)
    assert explanation.line == line
    assert words.lower() in explanation.message.lower(), json.dumps(explanation.message)


def test_brackets_too_deep_for_tomllib_are_explained():
    text = "a = 1\nb = " + "[" * 100_000
    gc.disable()  # hypothesis' hook on the collector would fail for want of stack, here and there
    try:
        with pytest.raises(RecursionError) as caught:
            tomllib.loads(text)
    finally:
        gc.enable()
    assert explain(caught.value, text).line == 2
    assert "too deep" in explain(caught.value, text).message
