"""Modbus meters on a virtual line that do everything wrong that meters and lines were seen to do, by a seeded die.

Each meter answers in the order of its requests and once at most, as a meter does: late, garbled, or not at all. Its
register shows the virtual time in ms, so that a value tells when it was measured.
"""

from collections import Counter

from gateway.line import LineSettings
from protocols import modbus

BYTE_S = LineSettings(name="", port="").byte_s
TURNAROUND_S = 0.02
# From one unit to the next, so that a value also tells whose it is; 139 hours in ms, and units 1 to 7 fit 32 bits.
BASE_ML = 500_000_000
RATES = {
    "silent": 0.04,
    "late": 0.06,
    "flip": 0.03,
    "burst": 0.02,
    "truncate": 0.02,
    "behead": 0.02,
    "noise before": 0.04,
    "noise after": 0.04,
    "foreign": 0.03,
    "twice": 0.02,
    "refusal": 0.01,
    "stall within": 0.03,
    "unplug": 0.003,
}
LATENESS_S = (0.15, 3.0)
HOLDS_BACK_RATE = 0.0005  # how often a meter, or its serial server, begins to be one answer behind for ever
CONSTANTLY_LATE_RATE = 0.005  # how often a meter begins to answer everything late by the same time


class FaultyMeters:
    """The meters of some units on a VirtualPort; `faulty` switches the faults on and off, `tally` counts them."""

    def __init__(self, port, dice, *, units, timeout_s, refusing=(), mute=()):
        """Of the units, those `refusing` answer no other number of registers than two, and those `mute` are silent."""
        self.faulty = True
        self.echo = False
        self.tally = Counter()
        self.requests = 0
        self._port = port
        self._dice = dice
        self._timeout_s = timeout_s
        self._reader = modbus.RequestReader()
        self._free_s = dict.fromkeys(units, 0.0)  # until when each meter is busy with earlier requests
        self._refusing, self._mute = refusing, mute
        self._held = {}  # what is held back until the next request, by unit
        self._constant = {}  # meters that answer everything late by the same time, and for how many requests
        port.on_write = self._take

    def measured_s(self, unit, volume_ml):
        """When a meter measured this volume."""
        return (volume_ml - BASE_ML * unit) / 1000

    def _take(self, data):
        self.requests += 1
        self._reader.silence()
        request = self._reader.feed(data)
        now_s = self._port.clock.now_s
        if self.echo:
            self._port.arrive(now_s + 0.001, data)
        if request.count != 2 and request.unit in self._mute:
            return
        if request.count != 2 and request.unit in self._refusing:
            frame = modbus.encode_exception(request, modbus.ILLEGAL_DATA_VALUE)
        else:
            frame = modbus.encode_response(request, self._registers(request, now_s)[: request.count])
        frame = self._hold_back(request.unit, frame)
        if frame:
            self._send(request, frame, now_s)

    def _hold_back(self, unit, frame):
        """Return the frame to send: for a meter that is one behind for ever, the one before."""
        if not self.faulty:
            self._held.clear()
        elif unit in self._held:
            self.tally["one behind for ever"] += 1
            frame, self._held[unit] = self._held[unit], frame
        elif self._dice.random() < HOLDS_BACK_RATE:
            self._held[unit] = frame
            return None
        return frame

    def _registers(self, request, now_s):
        volume_ml = BASE_ML * request.unit + round(now_s * 1000)
        if request.address == 0:
            return [volume_ml >> 16 & 0xFFFF, volume_ml & 0xFFFF]
        return [0, 1]  # the register of the unit: mL

    def _send(self, request, frame, now_s):
        faults = {fault for fault, rate in RATES.items() if self.faulty and self._dice.random() < rate}
        delay_s = TURNAROUND_S + self._lateness_s(request.unit, faults)
        self.tally.update(faults)
        if "unplug" in faults:
            self._port.go_away(now_s + self._dice.uniform(0, 0.1), now_s + self._dice.uniform(0.1, 2))
        if "silent" in faults:
            return
        if "refusal" in faults:
            frame = modbus.encode_exception(request, 6)
        begins_s = max(now_s + len(modbus.add_crc(b"123456")) * BYTE_S + delay_s, self._free_s[request.unit] + 0.005)
        data = self._spoil(request, frame, faults)
        if "stall within" in faults:
            self._port.arrive(begins_s, data[:4])
            begins_s += self._dice.uniform(0.01, 0.09)
            data = data[4:]
        begins_s += len(data) * BYTE_S
        self._port.arrive(begins_s, data)
        self._free_s[request.unit] = begins_s

    def _lateness_s(self, unit, faults):
        if not self.faulty:
            self._constant.clear()
            return 0
        if unit not in self._constant and self._dice.random() < CONSTANTLY_LATE_RATE:
            self._constant[unit] = [self._dice.uniform(*LATENESS_S), self._dice.randrange(2, 40)]
        if unit in self._constant:
            self.tally["late constantly"] += 1
            lateness_s, requests = self._constant[unit]
            self._constant[unit] = [lateness_s, requests - 1]
            if requests == 1:
                del self._constant[unit]
            return lateness_s
        return self._dice.uniform(*LATENESS_S) if "late" in faults else 0

    def _spoil(self, request, frame, faults):
        dice, data = self._dice, bytearray(frame)
        if "flip" in faults:  # up to three bits: the CRC tells them all in frames of this length
            for bit in dice.sample(range(8 * len(data)), dice.randrange(1, 4)):
                data[bit // 8] ^= 1 << bit % 8
        if "burst" in faults:  # up to sixteen bits in a row: likewise
            start = dice.randrange(len(data) - 1)
            data[start] ^= dice.randrange(1, 256)
            data[start + 1] ^= dice.randrange(256)
        if "truncate" in faults:
            del data[dice.randrange(1, len(data)) :]
        if "behead" in faults:
            del data[: dice.randrange(1, 4)]
        if "foreign" in faults:
            other = modbus.ReadRequest(unit=request.unit + 100, function=3, address=0, count=request.count)
            data[:0] = modbus.encode_response(other, [1] * request.count)
        if "noise before" in faults:
            data[:0] = dice.randbytes(dice.randrange(1, 6))
        if "noise after" in faults:
            data += dice.randbytes(dice.randrange(1, 6))
        return bytes(data) * (2 if "twice" in faults else 1)
