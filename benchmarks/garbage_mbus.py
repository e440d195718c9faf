"""How much garbage passes every check of the M-Bus codec and yields a wrong volume.

Run it from the checkout: `python benchmarks/garbage_mbus.py`. The protocol's checksum is an 8-bit sum. Each class of
damage is judged by the codec itself (reader, then decoder); a frame skips that only where its sum is wrong, which the
codec refuses by its first rule. A sample of the skipped frames is judged all the same, and the run fails if one of them
passes. The captured answer (Elster Falcon, libmbus corpus) shows 1234.567 m3; any other volume is wrong.
"""

import argparse
import itertools
import multiprocessing
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from protocols import mbus, mbus_data, mbus_dialogue
from protocols.errors import MeterError

ANSWER = bytes.fromhex(
    "68 4A 4A 68 08 01 72 45 23 11 70 93 15 0A 07 02 00 00 00 0C 13 67 45 23 01 04 6D 3A 0D E6 02 42 6C E1 01 4C"
    "13 51 69 45 00 42 EC 7E 01 11 12 3B 39 17 42 6C 01 11 02 3B F9 17 0F 0E 42 20 01 01 01 00 05 08 5E 01 20 3D"
    "12 08 3D 12 08 00 C0 16"
)
VOLUME_ML = 1_234_567_000
SPEC = mbus_data.MbusSpec()
SIZE = len(ANSWER)
HEAD = ANSWER[: mbus.HEADER_BYTES]
# Where a reader begins to look closer: 68 L L 68 and the control code of an answer, wherever they stand.
START = re.compile(rb"(?=\x68(.)\1\x68[\x08\x18\x28\x38])", re.DOTALL)
TOTAL_AT = 21  # the four bytes of the total
BLOCK = 4096  # frames per call of the random generator
SAMPLE_EVERY = 997  # of the skipped frames, one in so many is judged

Frames = Iterator[bytes]


def noise(generator: random.Random, count: int) -> Frames:
    """Nothing but random bytes: an open line, a wrong baud rate."""
    return random_between(b"", b"", generator, count)


def noise_after_header(generator: random.Random, count: int) -> Frames:
    """Start, length, control and address are right; all behind them is random."""
    return random_between(HEAD, b"", generator, count)


def noise_in_records(generator: random.Random, count: int) -> Frames:
    """All records and the checksum are random, everything else is right."""
    return random_between(ANSWER[:19], b"\x16", generator, count)


def random_between(front: bytes, back: bytes, generator: random.Random, count: int) -> Frames:
    """Frames of the right length with nothing but random bytes between front and back."""
    rest = SIZE - len(front) - len(back)
    for _ in range(0, count, BLOCK):
        block = generator.randbytes(BLOCK * rest)
        for at in range(0, len(block), rest):
            yield front + block[at : at + rest] + back


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
            digits = bytes.fromhex(f"{int.from_bytes(numbers[at : at + 7], 'little') % 10**8:08d}")
            check = numbers[at + 7 : at + 8]
            yield ANSWER[:TOTAL_AT] + digits + ANSWER[TOTAL_AT + 4 : -2] + check + b"\x16"


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
    "noise-in-records": noise_in_records,
    "burst-2-to-8": burst,
    "digits-for-digits": digits_for_digits,
    "two-bits": two_bits,
}


def judge(frame: bytes, address: str) -> int | None:
    """Return the volume that the codec makes of bytes from the line, None where it refuses them."""
    try:
        reading = mbus_dialogue.dialogue(SPEC, mbus_dialogue.parse_address(address))
        next(reading)
        answer = reading.send(b"\xe5").reader().feed(frame)
        if answer is None:
            return None
        try:
            reading.send(answer)
        except StopIteration as end:
            volume_ml: int = end.value.volume_ml
            return volume_ml
    except MeterError:
        return None
    return None  # a telegram that says that more follow


def run(job: tuple[str, str, int, int]) -> tuple[int, int, int]:
    """Return how many frames of a class were made, had a right sum, and gave a wrong volume."""
    name, address, seed, count = job
    made = summed = wrong = 0
    for frame in CLASSES[name](random.Random(seed), count):
        made += 1
        is_summed = sum(frame[4:-2]) & 0xFF == frame[-2]
        starts = [match.start() for match in START.finditer(frame)]
        # The sum is that of a whole answer, so whatever looks like another one is judged as well.
        plausible = bool(starts) and (is_summed or starts != [0] or frame[1] != HEAD[1])
        summed += is_summed
        if plausible or made % SAMPLE_EVERY == 0:
            volume_ml = judge(frame, address)
            assert plausible or volume_ml is None, frame.hex(" ")
            wrong += volume_ml not in (None, VOLUME_ML)
    return made, summed, wrong


def main() -> None:
    """Measure every class and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000_000, help="of each random class")
    parser.add_argument("--address", default="1", help="1, or 70112345 to select the meter by its identity")
    parser.add_argument("--seed", type=int, default=13757)
    parser.add_argument("--processes", type=int, default=min(2, multiprocessing.cpu_count()))
    options = parser.parse_args()
    assert judge(ANSWER, options.address) == VOLUME_ML
    print(f"{'class':20} {'frames':>12} {'sum right':>10} {'wrong volume':>12}  rate of wrong volumes")
    began = time.monotonic()
    with multiprocessing.Pool(options.processes) as pool:
        for number, name in enumerate(CLASSES):
            parts = 1 if name == "two-bits" else options.processes * 8
            share = -(-options.frames // parts)
            jobs = [(name, options.address, options.seed + 1000 * number + part, share) for part in range(parts)]
            made, summed, wrong = map(sum, zip(*pool.imap_unordered(run, jobs), strict=True))
            # Without a single case the rate is below 3/n with 95 % confidence (rule of three).
            rate = f"{wrong / made:.2g}, one in {made / wrong:,.0f}" if wrong else f"below {3 / made:.1g} (95 %)"
            print(f"{name:20} {made:12,} {summed:10,} {wrong:12,}  {rate}", flush=True)
    print(f"{time.monotonic() - began:.0f} s, {options.processes} processes, seed {options.seed}")


if __name__ == "__main__":
    main()
