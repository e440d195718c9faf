"""Meters of all protocols on faulty lines, and a judge that knows what each of them showed, and when.

    PYTHONPATH=.:tests python -m partners.faulty_village --exchanges 1000000

reads villages until so many requests were sent, in virtual time and several processes, prints the tally by cause and
protocol, and fails where a value was wrong. A village is repeated from its seed alone.
"""

import argparse
import multiprocessing
import random
import sys
import time
from collections import Counter

import minimalmodbus
from partners.dialogue import SPECS, make_reader
from partners.faulty_meters import Cjt188Meter, FaultyMeters, MbusMeter, ModbusMeter, Register
from partners.virtual_line import NeverRead, VirtualClock, VirtualPort, virtual_line

from protocols.errors import MeterError

READS = 700
TIMEOUT_MS = 100
RETRIES = 2
MODBUS = ("1", "2", "3", "4", "10")
RESTART_RATE = 0.01  # how often a read is the first of a new process
FIRST_SILENCE_S = 2.0  # the service's own (gateway/bus.py)
START_S = 2.0  # no sooner does a process that ended ask again, that silence not counted


def framing_of(seed):
    """Every fourth village speaks Modbus ASCII, every fourth Modbus TCP; the others all three protocols."""
    return {0: "ascii", 2: "tcp"}.get(seed % 4, "rtu")


def meters(framing="rtu"):
    """Every kind of meter by its address, and the profile that it is read with.

    Registers that never rest, that rest between two polls or for many; none comes near the value of another.
    """
    modbus = {
        "1": ("counter", ModbusMeter(1, Register(start_ml=500_000_000), framing=framing)),
        "2": ("counter", ModbusMeter(2, Register(start_ml=1_000_000_000), framing=framing, refuses=True)),
        "3": ("two-blocks", ModbusMeter(3, Register(start_ml=1_500_000_000), framing=framing, refuses=True)),
        "4": ("two-blocks", ModbusMeter(4, Register(start_ml=2_000_000_000), framing=framing, is_mute=True)),
        "10": ("counter", ModbusMeter(10, Register(start_ml=9_000_000, ml_per_s=20, step_ml=10_000), framing=framing)),
    }
    if framing != "rtu":
        return modbus

    def mbus(number, register, profile, **options):
        return profile, MbusMeter(number, register, SPECS[profile][1](), **options)

    def cjt188(address, register, profile):
        return profile, Cjt188Meter(address, register, SPECS[profile][1]())

    return modbus | {
        "00000805000001": cjt188("00000805000001", Register(start_ml=47_110_000_000, step_ml=10_000), "cjt188"),
        "00000805000002": cjt188("00000805000002", Register(ml_per_s=50, step_ml=10_000), "cjt188"),
        "00000805000003": cjt188("00000805000003", Register(start_ml=300_000_000, step_ml=10), "cjt188-litres-2"),
        "5": mbus("00000005", Register(start_ml=12_345_000_000, step_ml=1000), "mbus", primary=5),
        "12345678": mbus("12345678", Register(start_ml=6_543_000, ml_per_s=20, step_ml=1000), "mbus", primary=6),
        "7": mbus("00000007", Register(start_ml=2_000_000), "mbus-1ml", primary=7, counts=False),
        "8": mbus(
            "00000008", Register(start_ml=4_000_000, ml_per_s=20, step_ml=1000), "mbus", primary=8, forgets=False
        ),
        "9": mbus("00000009", Register(start_ml=9_000_000), "mbus-1ml", primary=9, forgets=False, counts=False),
    }


class Village:
    """The line, its meters, their readers, and what came of reading them."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.port = VirtualPort(VirtualClock())
        self.framing = framing_of(seed)
        self._profiles, self._meters = {}, {}
        for address, (profile, meter) in meters(self.framing).items():
            self._profiles[address], self._meters[address] = profile, meter
        self.addresses = list(self._meters)
        self.meters = FaultyMeters(self.port, self.dice, list(self._meters.values()), framing=self.framing)
        self.restarts = 0
        self.start()
        self.outcomes = Counter()
        self.wrong = []
        self.longest_s = 0.0

    def start(self):
        """Begin a new process: nothing is remembered, and the meters and servers on the way are as they were."""
        self.restarts += 1
        self.line = virtual_line(self.port, first_silence_s=FIRST_SILENCE_S, framing=self.framing)
        self.readers = {
            address: make_reader(
                profile, address, timeout_ms=TIMEOUT_MS, retries=RETRIES, new=True, chance=self.dice.random
            )
            for address, profile in self._profiles.items()
        }

    def protocol(self, address):
        return self._meters[address].protocol

    def read(self, address, read=None):
        """Read a meter once; return whether that brought a value. What is wrong about the value goes to `wrong`."""
        clock, meter = self.port.clock, self._meters[address]
        began_s = clock.now_s
        try:
            volume_ml = (read or (lambda: self.readers[address].read(self.line).volume_ml))()
        except MeterError as error:
            self.outcomes[meter.protocol, error.reason] += 1
            return False
        finally:
            self.longest_s = max(self.longest_s, clock.now_s - began_s)
        self.outcomes[meter.protocol, "value"] += 1
        if not meter.register.showed(volume_ml, began_s, clock.now_s):
            self.wrong.append((address, volume_ml, meter.register.at(began_s), meter.register.at(clock.now_s)))
        return True

    def live(self, reads, *, addresses=None, **options):
        for _ in range(reads):
            if self.dice.random() < RESTART_RATE:
                self.port.clock.pause(START_S)
                self.start()
            self.meters.echo = self.dice.random() < 0.1
            self.read(self.dice.choice(addresses or self.addresses), **options)
            # Polls come in rows and at intervals.
            if self.dice.random() < 0.3:
                self.port.clock.pause(self.dice.choice([0.01, 0.2, 0.5, 1, 2, 5, 60, 300]))


def _live(seed):
    # The line keeps its silence in virtual time; minimalmodbus would keep it once more in real time.
    minimalmodbus._latest_read_times = NeverRead()
    village = Village(seed)
    village.live(READS)
    return seed, village.restarts, village.meters.requests, village.meters.tally, village.outcomes, village.wrong


def _table(title, counts, columns):
    print(f"\n{title:32}" + "".join(f"{column:>14}" for column in columns))
    for row in sorted({row for _, row in counts}, key=lambda row: -sum(counts[c, row] for c in columns)):
        print(f"{row:32}" + "".join(f"{counts[column, row]:14,}" for column in columns))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exchanges", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1, help="of the first village; each further one has the next")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    requests, tally, outcomes, wrong, seeds = Counter(), Counter(), Counter(), [], 0
    starts = 0
    began_s = time.monotonic()
    with multiprocessing.Pool(options.processes) as pool:
        # A bounded number at once: a pool takes all that an iterator gives.
        while requests.total() < options.exchanges:
            batch = range(options.seed + seeds, options.seed + seeds + 16 * options.processes)
            for seed, restarts, sent, faults, came, mistakes in pool.imap_unordered(_live, batch):
                requests, tally, outcomes, seeds = requests + sent, tally + faults, outcomes + came, seeds + 1
                starts += restarts
                wrong += [(seed, *mistake) for mistake in mistakes]
    protocols = sorted(requests)
    took_s = time.monotonic() - began_s
    print(f"seeds {options.seed} to {options.seed + seeds - 1}, {took_s:.0f} s, {options.processes} processes")
    print(f"{outcomes.total():,} reads, {requests.total():,} requests, {starts:,} starts")
    _table("requests", Counter({(p, "sent"): n for p, n in requests.items()}), protocols)
    _table("faults injected", tally, protocols)
    _table("what the reads came to", outcomes, protocols)
    for seed, address, volume_ml, low_ml, high_ml in wrong:
        print(f"WRONG: seed {seed}, meter {address}: {volume_ml} mL, it showed {low_ml} to {high_ml} mL")
    print(f"\nwrong values: {len(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
