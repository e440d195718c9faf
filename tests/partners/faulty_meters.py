"""Meters on a virtual line that do everything wrong that meters and lines were seen to do, by a seeded die.

Each meter answers in the order of its requests and once at most, as a meter does: late, garbled, or not at all. Its
register moves at its own pace in virtual time, so that a value tells whether a meter showed it while it was read.
"""

import itertools
from collections import Counter

from gateway.line import LineSettings
from protocols import cjt188, cjt188_data, cjt188_dialogue, mbus, mbus_dialogue, modbus, modbus_ascii, modbus_tcp

BYTE_S = LineSettings(name="", port="").byte_s
TURNAROUND_S = 0.02
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
    # Only where the checksum has eight bits. A CRC of sixteen lets one in 65,536 of them pass, and Modbus has nothing
    # else to tell: the guard takes that for little enough.
    "long burst": 0.02,
    "digits": 0.01,
    "unseen flips": 0.01,
}
SHORT_CHECKSUM_ONLY = {"long burst", "digits", "unseen flips"}
# What a gateway does not pass on. An answer that a meter gives twice is among it: whether its second half stays in the
# UART and passes for the answer to the next request is beyond what a master can know (docs/decisions/0001).
SERIAL_ONLY = {"noise before", "noise after", "stall within", "twice", "foreign"}
DAMAGES = {"flip", "burst", *SHORT_CHECKSUM_ONLY}
LATENESS_S = (0.15, 3.0)
HOLDS_BACK_RATE = 0.002  # how often a meter, or its serial server, begins to be one answer behind for ever
GATEWAY_PATIENCE_S = (0.06, 0.25)  # how long a Modbus TCP gateway waits for its meters
HOLDS_NO_MORE_RATE = 0.01  # how often it forgets what it held, by request
HELD_BACK = "one behind for ever"
CONSTANTLY_LATE_RATE = 0.005  # how often a meter begins to answer everything late by the same time


class Register:
    """What a meter shows: a volume that grows evenly and is cut to whole steps."""

    def __init__(self, *, start_ml=0, ml_per_s=1000, step_ml=1):
        self._start_ml, self._ml_per_s, self._step_ml = start_ml, ml_per_s, step_ml

    def at(self, now_s):
        return int(self._start_ml + now_s * self._ml_per_s) // self._step_ml * self._step_ml

    def showed(self, volume_ml, from_s, to_s):
        """Whether it showed this volume at some instant of this time."""
        return volume_ml % self._step_ml == 0 and self.at(from_s) <= volume_ml <= self.at(to_s)


class ModbusMeter:
    """Two registers of total and two of a unit. It may refuse any other number of registers than two, or be mute.

    It speaks RTU, also behind a gateway that we ask in Modbus TCP (`TcpGateway`), or ASCII.
    """

    def __init__(self, unit, register, *, refuses=False, is_mute=False, framing="rtu"):
        self.unit, self.register, self.framing = unit, register, framing
        self.protocol = "Modbus" if framing == "rtu" else f"Modbus {framing.upper()}"
        self.has_short_checksum = framing == "ascii"
        self._refuses, self._is_mute = refuses, is_mute

    def hear(self, data):
        if self.framing == "ascii":
            data = modbus_ascii.rtu_frame(data)
        elif self.framing == "tcp":
            data = modbus_tcp.rtu_frame(data)
        request = modbus.decode_request(data) if modbus.has_crc(data) and data[1] in (3, 4) else None
        return request if request and request.unit == self.unit else None

    def wire(self, frame):
        """An RTU frame as it leaves the meter."""
        return modbus_ascii.encode_frame(frame[:-2]) if self.framing == "ascii" else frame

    def find_frames(self, data):
        start = data.find(b":")
        return [body] if start >= 0 and (body := modbus_ascii.decode_frame(bytes(data[start:]))) else []

    def answer(self, request, now_s):
        if request.count != 2 and self._is_mute:
            return None
        if request.count != 2 and self._refuses:
            return modbus.encode_exception(request, modbus.ILLEGAL_DATA_VALUE)
        volume_ml = self.register.at(now_s)
        words = [volume_ml >> 16 & 0xFFFF, volume_ml & 0xFFFF] if request.address == 0 else [0, 1]  # the unit: mL
        return modbus.encode_response(request, words[: request.count])

    def refusal(self, request):
        return modbus.encode_exception(request, 6)

    def foreign(self, request):
        other = modbus.ReadRequest(unit=request.unit + 100, function=3, address=0, count=request.count)
        return modbus.encode_response(other, [1] * request.count)


class Cjt188Meter:
    """A CJ/T 188 meter at its 14 digits."""

    protocol = "CJ/T 188"
    has_short_checksum = True
    find_frames = staticmethod(cjt188.find_frames)
    wire = staticmethod(bytes)
    _STRANGER = "00000000999999"

    def __init__(self, address, register, spec):
        self.address, self.register, self._spec = address, register, spec

    def hear(self, data):
        frame = next((frame for _, frame in cjt188.find_frames(data)), None)
        return frame if frame and frame.address == self.address else None

    def answer(self, request, now_s):
        totals_ml = {cjt188_data.CURRENT: self.register.at(now_s)}
        return cjt188_dialogue.respond(self._spec, request, address=self.address, totals_ml=totals_ml)

    def refusal(self, request):
        return cjt188.refusal(request, b"\0\0", address=self.address, meter_type=self._spec.meter_type).encode()

    def foreign(self, request):
        content = cjt188_data.encode(self._spec, self._spec.fields, total_ml=1_230_000)
        return cjt188.answer(request, content, address=self._STRANGER, meter_type=self._spec.meter_type).encode()


class _NeverForgets(mbus_dialogue.Slave):
    """Acknowledges SND_NKE and selections, and keeps frame count bit and telegram all the same."""

    def _forget(self, address):
        pass


class MbusMeter:
    """An M-Bus meter, asked by its primary address or by its number: its slave keeps frame count bit and selection.

    It may never forget its last telegram, and may not count its accesses.
    """

    protocol = "M-Bus"
    has_short_checksum = True
    find_frames = staticmethod(mbus.find_frames)
    wire = staticmethod(bytes)

    def __init__(self, number, register, spec, *, primary=0, forgets=True, counts=True):
        self.register, self._spec, self._now_s = register, spec, 0.0
        self._identity = mbus.Identity(number=number, manufacturer=0x4024, version=1, medium=7)
        self._accesses = itertools.count(1) if counts else itertools.repeat(0)
        slave = mbus_dialogue.Slave if forgets else _NeverForgets
        self._slave = slave(identity=self._identity, telegrams=self._telegrams, primary=primary)
        self._answer = None

    def hear(self, data):
        """Return the request if this meter answers it; every meter hears every selection."""
        frame = next((frame for _, frame in mbus.find_frames(data)), None)
        self._answer = self._slave.answer(frame) if frame else None
        return frame if self._answer else None

    def answer(self, request, now_s):
        return self._answer

    def at(self, now_s):
        self._now_s = now_s

    def refusal(self, request):
        if request.function != mbus.REQUEST_DATA:
            return self._answer
        return mbus.Frame(control=mbus.RESPOND_DATA, address=self._slave.primary, ci=0x70, data=b"\x08").encode()

    def foreign(self, request):
        stranger = mbus.Identity(number="99999999", manufacturer=0x4024, version=1, medium=7)
        content = mbus_dialogue.total_telegram(self._spec, stranger, 1_230_000)
        return mbus.Frame(control=mbus.RESPOND_DATA, address=99, ci=content[0], data=content[1:]).encode()

    def _telegrams(self):
        volume_ml, access = self.register.at(self._now_s), next(self._accesses)
        return [mbus_dialogue.total_telegram(self._spec, self._identity, volume_ml, access=access)]


class TcpGateway:
    """Between Modbus TCP and the meters: asks one at a time, and takes what its UART has as the answer.

    An answer that comes after its patience lies there, one at most, until the next request: that one gets it, with its
    own transaction, at once, and so is every request after it an answer behind, until the gateway empties its UART. It
    sees checksums; unit, function and length are the master's business.
    """

    def __init__(self, port, dice):
        self._port, self._dice, self._patience_s = port, dice, dice.uniform(*GATEWAY_PATIENCE_S)
        self._uart = []
        self._free_s = 0.0
        self.is_behind = False  # the last request got what lay there

    def ask(self, data):
        """Take a request; return when the meters hear it."""
        self._free_s = max(self._port.clock.now_s, self._free_s)
        if self._dice.random() < HOLDS_NO_MORE_RATE:
            self._uart = [one for one in self._uart if one[0] > self._free_s]
        return self._free_s

    def recover(self):
        """Forget what lies in the UART and will."""
        self._uart.clear()

    def hear(self, at_s, frame):
        """Note bytes that come from a meter."""
        if modbus.has_crc(frame):
            self._uart.append((at_s, frame))

    def answer(self, data):
        """Answer a request when everything that it brought about was heard."""
        until_s = self._free_s + self._patience_s
        self._uart.sort(key=lambda one: one[0])
        lying = [one for one in self._uart if one[0] <= self._free_s][-1:]
        coming = [one for one in self._uart if one[0] > self._free_s]
        self.is_behind = bool(lying)
        if lying or (coming and coming[0][0] <= until_s):
            at_s, frame = (lying or coming)[0]
            self._uart = coming if lying else coming[1:]
            self._free_s = max(self._free_s, at_s) + 0.002
        else:
            frame = modbus.encode_exception(modbus.decode_request(modbus_tcp.rtu_frame(data)), 11)
            self._free_s = until_s
        answer = modbus_tcp.encode_frame(frame[:-2], transaction=int.from_bytes(data[:2], "big"))
        self._port.arrive(self._free_s, answer)


class FaultyMeters:
    """Meters on a VirtualPort; `faulty` switches the faults on and off, `tally` counts them by protocol."""

    def __init__(self, port, dice, meters, *, framing="rtu"):
        self.faulty = True
        self.echo = False
        self.tally = Counter()
        self.requests = Counter()
        self._port = port
        self._dice = dice
        self._meters = meters
        self._free_s = dict.fromkeys(meters, 0.0)  # until when each meter is busy with earlier requests
        self._held = {}  # what is held back until the next request, by meter
        self._constant = {}  # meters that answer everything late by the same time, and for how many requests
        self._gateway = TcpGateway(port, dice) if framing == "tcp" else None
        port.on_write = self._take

    def _take(self, data):
        if self._gateway and not self.faulty:
            self._gateway.recover()
        now_s = self._gateway.ask(data) if self._gateway else self._port.clock.now_s
        if self.echo and not self._gateway:
            self._port.arrive(now_s + 0.001, data)
        for meter in self._meters:
            if isinstance(meter, MbusMeter):
                meter.at(now_s)
        heard = [(meter, request) for meter in self._meters if (request := meter.hear(data))]
        assert len(heard) == 1, f"{data.hex(' ')} is to {len(heard)} meters"
        [(meter, request)] = heard
        self.requests[meter.protocol] += 1
        frame = meter.answer(request, now_s)
        if frame:
            frame = self._hold_back(meter, frame)
        if frame:
            self._send(meter, request, frame, now_s + len(data) * BYTE_S)
        if self._gateway:
            self._gateway.answer(data)
            if self._gateway.is_behind:
                self._count(meter, HELD_BACK)

    def _count(self, meter, fault):
        self.tally[meter.protocol, fault] += 1

    def _hold_back(self, meter, frame):
        """Return the frame to send: for a meter that is one behind for ever, the one before."""
        if not self.faulty:
            self._held.clear()
        elif self._gateway:
            pass  # it holds back itself; two in a row are two behind, which counting forgets after two minutes
        elif meter in self._held and self._dice.random() < HOLDS_NO_MORE_RATE:
            del self._held[meter]
        elif meter in self._held:
            self._count(meter, HELD_BACK)
            frame, self._held[meter] = self._held[meter], frame
        elif self._dice.random() < HOLDS_BACK_RATE:
            self._held[meter] = frame
            return None
        return frame

    def _send(self, meter, request, frame, sent_s):
        faults = {
            fault
            for fault, rate in RATES.items()
            if self.faulty
            and self._dice.random() < rate
            and (meter.has_short_checksum or fault not in SHORT_CHECKSUM_ONLY)
            and (self._gateway is None or fault not in SERIAL_ONLY)
        }
        delay_s = TURNAROUND_S + self._lateness_s(meter, faults)
        for fault in faults:
            self._count(meter, fault)
        now_s = self._port.clock.now_s
        if "unplug" in faults:
            self._port.go_away(now_s + self._dice.uniform(0, 0.1), now_s + self._dice.uniform(0.1, 2))
        if "silent" in faults:
            return
        if "refusal" in faults:
            frame = meter.refusal(request)
        begins_s = max(sent_s + delay_s, self._free_s[meter] + 0.005)
        data = self._spoil(meter, request, frame, faults)
        if self._gateway:
            self._free_s[meter] = begins_s + len(data) * BYTE_S
            self._gateway.hear(self._free_s[meter], data)
            return
        if "stall within" in faults:
            self._port.arrive(begins_s, data[:4])
            begins_s += self._dice.uniform(0.01, 0.09)
            data = data[4:]
        begins_s += len(data) * BYTE_S
        self._port.arrive(begins_s, data)
        self._free_s[meter] = begins_s

    def _lateness_s(self, meter, faults):
        if not self.faulty:
            self._constant.clear()
            return 0
        if meter not in self._constant and self._dice.random() < CONSTANTLY_LATE_RATE:
            self._constant[meter] = [self._dice.uniform(*LATENESS_S), self._dice.randrange(2, 40)]
        if meter in self._constant:
            self._count(meter, "late constantly")
            lateness_s, requests = self._constant[meter]
            self._constant[meter] = [lateness_s, requests - 1]
            if requests == 1:
                del self._constant[meter]
            return lateness_s
        return self._dice.uniform(*LATENESS_S) if "late" in faults else 0

    def _spoil(self, meter, request, frame, faults):
        dice, data = self._dice, bytearray(meter.wire(frame))
        sent = bytes(data)
        if "flip" in faults:  # up to three bits: a CRC tells them all in frames of this length, an eight-bit sum one
            for bit in dice.sample(range(8 * len(data)), dice.randrange(1, 4)):
                data[bit // 8] ^= 1 << bit % 8
        if "burst" in faults:  # up to sixteen bits in a row: likewise
            start = dice.randrange(max(1, len(data) - 1))
            for at in range(start, min(start + 2, len(data))):
                data[at] ^= dice.randrange(1, 256)
        if "long burst" in faults:
            length = dice.randrange(2, 9)
            start = dice.randrange(max(1, len(data) - length))
            data[start : start + length] = dice.randbytes(min(length, len(data) - start))
        if "digits" in faults and len(data) > 12:  # the hardest to see: digits for digits somewhere in the content
            start = dice.randrange(8, len(data) - 4)
            for at in range(start, start + dice.randrange(2, 5)):
                digits = dice.randrange(10) << 4 | dice.randrange(10)
                data[at] = b"0123456789ABCDEF"[digits & 0xF] if data[:1] == b":" else digits
        if "unseen flips" in faults:
            self._flip_unseen(data)
        if faults & DAMAGES and data != sent and meter.has_short_checksum and any(meter.find_frames(data)):
            self._count(meter, "damage with a right checksum")
        if "truncate" in faults and len(data) > 1:
            del data[dice.randrange(1, len(data)) :]
        if "behead" in faults:
            del data[: dice.randrange(1, 4)]
        if "foreign" in faults:
            data[:0] = meter.wire(meter.foreign(request))
        if "noise before" in faults:
            data[:0] = dice.randbytes(dice.randrange(1, 6))
        if "noise after" in faults:
            data += dice.randbytes(dice.randrange(1, 6))
        return bytes(data) * (2 if "twice" in faults else 1)

    def _flip_unseen(self, data):
        """Flip two bits that an eight-bit sum cannot see: the same bit, once up and once down."""
        for _ in range(20):
            bit = 1 << self._dice.randrange(8)
            first, second = self._dice.choices(range(len(data)), k=2)
            if (data[first] ^ data[second]) & bit:
                data[first] ^= bit
                data[second] ^= bit
                return
