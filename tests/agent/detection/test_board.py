"""The detector core on a 32-bit board, MicroPython on a Cortex-M3: what CPython says, within 4 KiB a meter."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from partners.two_interpreters import memory_in, said

from tools.board import Board, BoardError

REPOSITORY = Path(__file__).parents[3]
PARTNERS = REPOSITORY / "tests" / "partners"
READINGS = 20_000
STATE_MAX = 4 * 1024  # bytes of heap a meter may take on a board: design.md

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def board():
    """A board of its own for each test, as its heap is small and in pieces after a script."""
    firmware = Path(os.environ.get("SHUIWANG_BOARD", REPOSITORY / "build" / "board" / "firmware.elf"))
    if not firmware.exists():
        pytest.skip("no board's firmware: `make board` builds it, or SHUIWANG_BOARD names one")
    if not shutil.which("qemu-system-arm"):
        pytest.skip("no qemu-system-arm on this machine: `make board` installs it")
    with Board(firmware) as board:
        yield board


def said_here(script, *arguments):
    return said(sys.executable, PARTNERS / script, REPOSITORY, *arguments)


def said_there(board, script, *arguments):
    return board.run((PARTNERS / script).read_text(encoding="utf-8"), "/repository", *arguments)


def test_it_is_a_board(board):
    """31-bit small integers and 32-bit floats: what the unix port cannot show."""
    script = "import sys; s = 0.0\nfor i in range(100000): s += 0.1\nprint(sys.implementation._machine, sys.maxsize, s)"
    machine, largest, sum_of_tenths = board.run(script).rsplit(maxsplit=2)
    assert ("Cortex-M3" in machine, int(largest)) == (True, 2**31 - 1)
    assert abs(float(sum_of_tenths) - 10_000) > 1


def test_it_says_the_same_of_every_reading(board):
    arguments = (str(READINGS), "11")
    here = said_here("judging_stream.py", *arguments)
    assert said_there(board, "judging_stream.py", *arguments) == here
    for word in ("low", "red-limit", "red-day", "leak-stands", "held", "jitter", "stale_copy"):
        assert f"\n{word} " in here, word


def test_a_meter_takes_4_kib_at_most_and_a_reading_leaves_nothing_behind(board):
    """20,000 readings, 10,000 more; then each fault of a register, absences, and 40 days of silence."""
    memory = memory_in(said_there(board, "board_memory.py", str(READINGS)))
    assert memory.lines == said_here("board_memory.py", str(READINGS)).splitlines()
    assert memory.grown == 0
    assert 2_000 < memory.taken <= memory.at_most <= STATE_MAX


def test_what_it_raises_is_told_with_its_place(board):
    with pytest.raises(BoardError, match=r"(?s)watch\.py.*ValueError: runs_max must be 16 or more"):
        board.run(
            "import sys; sys.path.append('/repository')\n"
            "from agent.detection.watch import Watch\n"
            "Watch(window_ms=1, threshold_ml=1, runs_max=1)"
        )
    assert board.run("print(1)") == "1\n"


def test_a_board_that_does_not_come_up_is_told(tmp_path):
    if not shutil.which("qemu-system-arm"):
        pytest.skip("no qemu-system-arm on this machine: `make board` installs it")
    with pytest.raises(BoardError, match="ended with 1"):
        Board(tmp_path / "none.elf")
