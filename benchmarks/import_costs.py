"""What each import of `shuiwang run` adds to a fresh interpreter, as JSON in KiB; `memory.py` runs it.

Only a little of the standard library is imported before.
"""

import contextlib
import faulthandler
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

# The heavy and shared first; each step counts what the ones before have not brought.
IMPORTS = (
    "asyncio",
    "msgspec",
    "sqlite3",
    "sqlite_utils",
    "aiomqtt",
    "minimalmodbus",
    "typer",
    "agent.cli",
    "agent.config",
    "agent.service",
)
RUN_A_COMMAND = "typer runs a command"
# None of these has a place in a running agent.
UNWANTED = ("rich", "pandas", "numpy", "pip", "setuptools", "pytest", "pygments", "pydantic", "amqtt", "agent.views")


def memory_kib() -> tuple[int, int]:
    """Return RSS and what nobody else has."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    found = dict(line.split()[:2] for line in lines[1:])
    return int(found["Rss:"]), int(found["Private_Dirty:"])


def run_a_command() -> None:
    """Let typer take a command line apart: what it imports only then counts as well. The command ends at once."""
    from agent.cli import app

    with Path(os.devnull).open("w") as nowhere:
        with contextlib.redirect_stderr(nowhere):
            code = app(["run", "-c", "/nowhere/shuiwang.toml"], standalone_mode=False)
        faulthandler.disable()  # the command has enabled it on what is closed now
    assert code, "a configuration that does not exist was accepted"


def main() -> None:
    """Import and print."""
    rss, own = memory_kib()
    steps = [{"name": "(the interpreter)", "rss": rss, "own": own, "modules": len(sys.modules), "total": rss}]
    for name in (*IMPORTS, RUN_A_COMMAND):
        known = len(sys.modules)
        if name == RUN_A_COMMAND:
            run_a_command()
        else:
            __import__(name)
        before, (rss, now) = (rss, own), memory_kib()
        new = len(sys.modules) - known
        steps.append({"name": name, "rss": rss - before[0], "own": now - before[1], "modules": new, "total": rss})
        own = now
    import json

    print(json.dumps({"steps": steps, "unwanted": [name for name in UNWANTED if name in sys.modules]}))


if __name__ == "__main__":
    main()
