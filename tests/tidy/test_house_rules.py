"""House rules that no linter knows. Each test says the rule and, in one line, why it is one."""

import ast
import functools
import re
from pathlib import Path

from partners.two_interpreters import micropython, said

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("agent", "county", "firmware", "gateway", "protocols")
CODE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70


def files_of(*folders, suffix=".py"):
    """Return the files of some folders, caches and what other tools leave behind aside."""
    return [
        file
        for folder in folders
        for file in sorted((REPOSITORY / folder).rglob(f"*{suffix}"))
        if not any(part.startswith((".", "__pycache__")) for part in file.relative_to(REPOSITORY).parts)
    ]


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def place(file, line=None):
    name = file.relative_to(REPOSITORY).as_posix()
    return name if line is None else f"{name}:{line}"


def imports_of(file):
    """Return (line, module) of everything that a file imports, late imports too."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if (REPOSITORY / module.replace(".", "/")).is_dir():
                yield from ((node.lineno, f"{module}.{name.name}") for name in node.names)
            else:
                yield node.lineno, module


# What protocols may import: computing on values, nothing that could reach the world.
PURE = {
    *("collections", "collections.abc", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions"),
    *("functools", "itertools", "math", "re", "string", "struct", "textwrap", "tomllib", "typing"),
    "msgspec",
}
# Exceptions by name, each with its reason.
ALSO_PURE = {
    # A profile is data that comes with the package or lies beside the configuration; it is read once, at the start.
    "protocols/profile.py": {"importlib", "importlib.resources", "pathlib"},
}


def test_protocols_are_pure():
    """Bytes in, values out: only what reaches no clock, port, disk or log can be proven by a table of rows."""
    broken = [
        f"{place(file, line)} imports {module}"
        for file in files_of("protocols")
        for line, module in imports_of(file)
        if not module.startswith("protocols.") and module not in PURE | ALSO_PURE.get(place(file), set())
    ]
    assert not broken, "\n".join(broken)


# Calls that ask the machine for time, sleep or chance. Handing the function itself to a constructor as the default is
# allowed: a test hands in another one.
CLOCKS_AND_CHANCE = re.compile(
    r"(time\.(time|monotonic|perf_counter|clock_gettime|boottime)(_ns)?|time\.sleep|asyncio\.sleep"
    r"|(datetime\.)?(datetime|date)\.(now|utcnow|today)|secrets\.\w+|os\.urandom|uuid\.uuid[14]"
    r"|random\.(?!Random$)\w+)"
)
# Who may call which of them, and why. An entry that is no longer needed fails the test, so the list only shrinks.
MAY_ASK_THE_MACHINE = {
    # is where everybody else gets the time from
    "gateway/clock.py": {"time.time_ns", "time.clock_gettime_ns", "asyncio.sleep"},
    # plays meters on a real pty, whose other end sees microseconds
    "gateway/simulator.py": {"time.monotonic"},
    # pauses for the network, which no fast clock of a demonstration makes faster; the event loop's clock counts
    "gateway/broker.py": {"asyncio.sleep"},
    "agent/forwarder.py": {"asyncio.sleep"},
    # plays in real time: real processes, a real network that is cut, somebody who watches
    "agent/demo/network.py": {"asyncio.sleep"},
    "agent/demo/play.py": {"asyncio.sleep", "time.monotonic"},
    "agent/demo/processes.py": {"asyncio.sleep"},
    "agent/demo/scene.py": {"time.time_ns"},
    # is the county's own shell, which may not import the gateway's clock
    "county/service.py": {"asyncio.sleep", "time.time_ns"},
}


def calls_of_the_machine(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and CLOCKS_AND_CHANCE.fullmatch(ast.unparse(node.func)):
            yield node.lineno, ast.unparse(node.func)


def test_time_and_chance_come_from_one_place():
    """A run whose clock and dice are handed in can be repeated from its seed; one hidden clock ends that."""
    broken = [
        f"{place(file, line)} calls {call}"
        for file in files_of(*PACKAGES)
        for line, call in calls_of_the_machine(file)
        if call not in MAY_ASK_THE_MACHINE.get(place(file), set())
    ]
    assert not broken, "\n".join(broken)


def test_no_exception_outlives_its_need():
    """An exception that nobody uses is an open door."""
    for name, allowed in MAY_ASK_THE_MACHINE.items():
        assert {call for _, call in calls_of_the_machine(REPOSITORY / name)} == allowed, name


def test_the_net_catches_what_it_is_made_for():
    """A rule that cannot be broken guards nothing."""
    caught = ["time.time", "time.time_ns", "asyncio.sleep", "datetime.now", "datetime.datetime.now", "random.random"]
    for call in (*caught, "random.choice", "time.monotonic", "secrets.token_hex", "datetime.date.today", "time.sleep"):
        assert CLOCKS_AND_CHANCE.fullmatch(call), call
    for call in ("self._clock.now", "clock.sleep", "random.Random", "chance.random", "datetime.datetime.fromisoformat"):
        assert not CLOCKS_AND_CHANCE.fullmatch(call), call


def test_a_module_fits_into_a_head():
    """Whoever is called at night reads one file; beyond 400 lines nobody reads it whole."""
    lengths = {place(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files_of(*PACKAGES)}
    assert not {name: lines for name, lines in lengths.items() if lines > CODE_LINES_MAX}


def lines_of(function):
    """Return how many lines a function has; a text or a table (a schema, a page) counts as one, it has no paths."""
    data = (ast.Constant, ast.JoinedStr, ast.Dict, ast.List, ast.Set, ast.Tuple)
    wide = [node for node in ast.walk(function) if isinstance(node, data) and node.end_lineno > node.lineno]
    inside = {line for node in wide for line in range(node.lineno + 1, node.end_lineno + 1)}
    return function.end_lineno - function.lineno + 1 - len(inside)


def test_a_function_fits_on_a_screen():
    """A function that must be scrolled hides its error path."""
    broken = [
        f"{place(file, node.lineno)} {node.name} has {lines_of(node)} lines"
        for file in files_of(*PACKAGES)
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > FUNCTION_LINES_MAX
    ]
    assert not broken, "\n".join(broken)


# Written so that this file does not break the rule itself.
MACHINE_PATH = re.compile(r"(?<![\w./-])/(?:work|tmp|root|home/\w+|Users)/\w")
REGISTRY_HOST = re.compile(r"pypi[.]org|python[h]osted|registry[.]npm[j]s|crates[.]io")
TEXT_FILES = (".py", ".toml", ".md", ".txt", ".yml", ".yaml", ".json", ".sh", ".service", ".conf", ".cfg")


def test_no_file_names_a_machine_or_a_registry():
    """What works only where it was written, or only through one index, fails in the county's closed network."""
    broken = [
        f"{place(file, number)}: {line.strip()[:100]}"
        for suffix in TEXT_FILES
        for file in files_of(".", suffix=suffix)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if MACHINE_PATH.search(line) or REGISTRY_HOST.search(line)
    ]
    assert not broken, "\n".join(broken)


NO_MIRROR = {
    "tidy": "is about the whole tree",
    "hil": "is about hardware",
    "partners": "is about programs of other people",
    "e2e": "is about whole processes",
}


def test_tests_mirror_the_packages():
    """Whoever changes a module knows where its tests are without searching."""
    folders = {
        file.parent.relative_to(REPOSITORY / "tests") for file in files_of("tests") if file.name.startswith("test_")
    }
    strangers = [
        str(folder)
        for folder in folders
        if folder.parts[0] not in NO_MIRROR and not (REPOSITORY / folder / "__init__.py").exists()
    ]
    assert not strangers, f"no package has these names: {strangers}"


def test_tests_are_no_packages():
    """Importing by path lets two test files have the same name; an `__init__.py` would break that."""
    assert not [place(file) for file in files_of("tests") if file.name == "__init__.py"]


def test_every_protocol_module_has_its_tests():
    """A codec without a table of rows is a guess."""
    tested = {file.stem.removeprefix("test_") for file in files_of("tests/protocols")}
    modules = {file.stem for file in files_of("protocols") if file.stem != "__init__"}
    # The parts of one protocol share its tests: cjt188_data is tested in test_cjt188 or test_cjt188_data.
    untested = [name for name in modules if not {name, name.split("_")[0]} & tested]
    assert not untested


def portable_files():
    return [file for file in files_of(*PACKAGES) if "\nPortable:" in (ast.get_docstring(tree_of(file)) or "")]


def test_portable_modules_import_portable_modules_only():
    """What a node on MicroPython imports must be there: no msgspec, no standard library to speak of."""
    portable = {place(file).removesuffix(".py").replace("/", ".") for file in portable_files()}
    assert {"protocols.modbus", "protocols.errors"} <= portable
    broken = [
        f"{place(file, line)} imports {module}"
        for file in portable_files()
        for line, module in imports_of(file)
        if module not in portable | {"array", "micropython", "struct"}  # built into every port
    ]
    assert not broken, "\n".join(broken)


def test_portable_modules_are_taken_by_micropython():
    """Its parser and its types differ from CPython's in places that no linter checks."""
    names = [place(file).removesuffix(".py").replace("/", ".") for file in portable_files()]
    script = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n" + "".join(f"import {name}\n" for name in names)
    said(micropython(), "-c", script)
