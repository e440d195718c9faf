"""How much garbage passes every check of the CJ/T 188 codec and yields a wrong volume.

Run it from the checkout: `python benchmarks/garbage_cjt188.py`. The protocol's checksum is an 8-bit sum. Each class of
damage is judged by the codec itself (reader, then decoder); a frame skips that only where its sum is wrong, which the
codec refuses by its first rule. A sample of the skipped frames is judged all the same, and the run fails if one of them
passes. The captured answer shows 2.00 m3; any other volume is wrong.
"""

import argparse
import itertools
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from protocols import cjt188, cjt188_data, cjt188_dialogue
from protocols.errors import MeterError

ANSWER = bytes.fromhex(
    "68 10 18 02 12 20 20 00 00 81 16 90 1F 00 00 02 00 00 2C 00 02 00 00 2C 00 00 00 00 00 00 00 00 FF 85 16"
)
VOLUME_ML = 2_000_000
SPEC = cjt188_data.Cjt188Spec()
ADDRESS = "00002020120218"
SIZE = len(ANSWER)
HEAD = ANSWER[: cjt188.HEADER_BYTES]
BLOCK = 4096  # frames per call of the random generator
SAMPLE_EVERY = 997  # of the skipped frames, one in so many is judged

Frames = Iterator[bytes]


def noise(generator: random.Random, count: int) -> Frames:
    """Nothing but random bytes: an open line, a wrong baud rate."""
    for _ in range(0, count, BLOCK):
        block = generator.randbytes(BLOCK * SIZE)
        for at in range(0, len(block), SIZE):
            yield block[at : at + SIZE]


def noise_after_header(generator: random.Random, count: int) -> Frames:
    """Start, type, address, control and length are right; all behind them is random."""
    rest = SIZE - len(HEAD)
    for _ in range(0, count, BLOCK):
        block = generator.randbytes(BLOCK * rest)
        for at in range(0, len(block), rest):
            yield HEAD + block[at : at + rest]


def noise_in_data(generator: random.Random, count: int) -> Frames:
    """All data and the checksum are random, everything else is right."""
    front, rest = ANSWER[:14], SIZE - 14 - 1
    for _ in range(0, count, BLOCK):
        block = generator.randbytes(BLOCK * rest)
        for at in range(0, len(block), rest):
            yield front + block[at : at + rest] + b"\x16"


def burst(generator: random.Random, count: int) -> Frames:
    """Two to eight bytes in a row, anywhere in the right answer, are random."""
    for _ in range(0, count, BLOCK):
        block = generator.randbytes(BLOCK * 10)
        for at in range(0, len(block), 10):
            length = 2 + block[at] % 7
            start = block[at + 1] % (SIZE - length + 1)
            yield ANSWER[:start] + block[at + 2 : at + 2 + length] + ANSWER[start + length :]


def digits_for_digits(generator: random.Random, count: int) -> Frames:
    """The worst case: other digits in the total and a random checksum, everything else is right."""
    for _ in range(0, count, BLOCK):
        numbers = generator.randbytes(BLOCK * 8)
        for at in range(0, len(numbers), 8):
            number = int.from_bytes(numbers[at : at + 7], "little") % 99_999_999
            digits = bytes.fromhex(f"{number:08d}")
            yield ANSWER[:14] + digits + ANSWER[18:-2] + numbers[at + 7 : at + 8] + b"\x16"


def two_bits(_: random.Random, __: int) -> Frames:
    """Every pair of flipped bits, once."""
    for first, second in itertools.combinations(range(8 * SIZE), 2):
        damaged = bytearray(ANSWER)
        damaged[first // 8] ^= 1 << first % 8
        damaged[second // 8] ^= 1 << second % 8
        yield bytes(damaged)


CLASSES: dict[str, Callable[[random.Random, int], Frames]] = {
    "noise": noise,
    "noise-after-header": noise_after_header,
    "noise-in-data": noise_in_data,
    "burst-2-to-8": burst,
    "digits-for-digits": digits_for_digits,
    "two-bits": two_bits,
}


def judge(frame: bytes) -> int | None:
    """Return the volume that the codec makes of bytes from the line, None where it refuses them."""
    try:
        reading = cjt188_dialogue.dialogue(SPEC, cjt188_dialogue.Station(ADDRESS))
        answer = next(reading).reader().feed(frame)
        if answer is None:
            return None
        try:
            reading.send(answer)
        except StopIteration as end:
            volume_ml: int = end.value.volume_ml
            return volume_ml
    except MeterError:
        return None
    raise AssertionError("one exchange is all that this dialogue has")


def run(job: tuple[str, int, int]) -> tuple[int, int, int]:
    """Return how many frames of a class were made, had a right sum, and gave a wrong volume."""
    name, seed, count = job
    made = summed = wrong = 0
    for frame in CLASSES[name](random.Random(seed), count):
        made += 1
        # The sum is that of a whole answer, so a header in the wrong place is judged as well.
        plausible = sum(frame[:-2]) & 0xFF == frame[-2] or HEAD in frame[1:]
        summed += plausible
        if plausible or made % SAMPLE_EVERY == 0:
            volume_ml = judge(frame)
            assert plausible or volume_ml is None, frame.hex(" ")
            wrong += volume_ml not in (None, VOLUME_ML)
    return made, summed, wrong


def main() -> None:
    """Measure every class and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000_000, help="of each random class")
    parser.add_argument("--seed", type=int, default=188)
    parser.add_argument("--processes", type=int, default=min(2, multiprocessing.cpu_count()))
    options = parser.parse_args()
    assert judge(ANSWER) == VOLUME_ML
    print(f"{'class':20} {'frames':>12} {'sum right':>10} {'wrong volume':>12}  rate of wrong volumes")
    began = time.monotonic()
    with multiprocessing.Pool(options.processes) as pool:
        for number, name in enumerate(CLASSES):
            parts = 1 if name == "two-bits" else options.processes * 8
            share = -(-options.frames // parts)
            jobs = [(name, options.seed + 1000 * number + part, share) for part in range(parts)]
            made, summed, wrong = map(sum, zip(*pool.imap_unordered(run, jobs), strict=True))
            # Without a single case the rate is below 3/n with 95 % confidence (rule of three).
            rate = f"{wrong / made:.2g}, one in {made / wrong:,.0f}" if wrong else f"below {3 / made:.1g} (95 %)"
            print(f"{name:20} {made:12,} {summed:10,} {wrong:12,}  {rate}", flush=True)
    print(f"{time.monotonic() - began:.0f} s, {options.processes} processes, seed {options.seed}")


if __name__ == "__main__":
    main()
