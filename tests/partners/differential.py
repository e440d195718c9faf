"""Feeds the detector core millions of readings on CPython and on MicroPython, and compares what the two say.

    python tests/partners/differential.py [--readings 10000000] [--homes 10]

Ends with 1 where the two disagree on any transition of any home.
"""

import argparse
import collections
import functools
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from two_interpreters import HOW_TO_INSTALL, find_micropython, said

REPOSITORY = Path(__file__).parents[2]
STREAM = Path(__file__).with_name("judging_stream.py")


def main() -> int:
    """Run, print the tally, say whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--readings", type=int, default=10_000_000)
    parser.add_argument("--homes", type=int, default=10)
    options = parser.parse_args()
    board = find_micropython()
    if board is None:
        print(HOW_TO_INSTALL, file=sys.stderr)
        return 1
    each = options.readings // options.homes
    tally: collections.Counter[str] = collections.Counter()
    transitions, began_s = 0, time.monotonic()
    with ThreadPoolExecutor(2) as both:
        for home in range(1, 1 + options.homes):
            here, there = both.map(functools.partial(_said, readings=each, seed=home), (sys.executable, board))
            if here != there:
                print(f"home {home}: CPython and MicroPython disagree\n{here}\n{there}", file=sys.stderr)
                return 1
            head, *words = here.splitlines()
            transitions += int(head.split()[2])
            for line in words:
                word, number = line.rsplit(" ", 1)
                tally[word] += int(number)
            print(f"{time.monotonic() - began_s:5.0f} s  home {home} of {options.homes}: {head}", file=sys.stderr)
    print(f"{each * options.homes:,} readings, {transitions:,} transitions, identical on CPython and MicroPython")
    for word, number in sorted(tally.items()):
        print(f"{word:16} {number:>10,}")
    return 0


def _said(who: str, *, readings: int, seed: int) -> str:
    return said(who, STREAM, REPOSITORY, str(readings), str(seed))


if __name__ == "__main__":
    sys.exit(main())
