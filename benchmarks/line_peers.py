"""The lines on which the poll cycle is measured, and the programs that read them beside ours."""

import contextlib
import ctypes
import ctypes.util
import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import minimalmodbus
import serial
from measuring import fail

from protocols import modbus, profile

DELAY_MS = 5  # of every meter; a real one takes longer, which makes the same overhead a smaller share
MOVING_L_H = 3000  # of a meter that counts on between any two cycles: 10 L, a step of CJ/T 188, in 12 s


class Setup(NamedTuple):
    """One line and what its meters are asked. Lengths in bytes, preambles included."""

    title: str
    profile: str
    baudrate: int
    parity: str
    request_bytes: int
    answer_bytes: int
    step_ml: int
    address: str  # a format of the number of a meter

    @property
    def byte_s(self) -> float:
        return (10 + (self.parity != "N")) / self.baudrate

    @property
    def silence_s(self) -> float:
        return 3.5 * self.byte_s

    @property
    def timeout_ms(self) -> int:
        return profile.load(self.profile).timing.timeout_ms

    def limit_s(self, meters: int) -> float:
        """Return the least time in which the line can carry one cycle."""
        bytes_each = self.request_bytes + self.answer_bytes
        return meters * (bytes_each * self.byte_s + DELAY_MS / 1000 + self.silence_s)

    def shown_ml(self, number: int) -> int:
        """Return what a meter of the village shows."""
        return (number * 1_000_000 + 123_456) // self.step_ml * self.step_ml

    def village(self, numbers: Sequence[int], *, moving: Sequence[int] = ()) -> str:
        """Return the village file with these meters; `moving` are those that count, from `shown_ml` and from now on."""
        since = datetime.datetime.now(datetime.UTC).isoformat()
        meters = (
            f'[[meter]]\nprofile = "{self.profile}"\naddress = "{self.address.format(number)}"\n'
            f'start_m3 = "{number}.123456"\nusage = []\nanswer_delay_ms = {DELAY_MS}\n'
            f'since = {since}\ndrip_l_h = "{MOVING_L_H if number in moving else 0}"\n'
            for number in numbers
        )
        return f'[line]\nbaudrate = {self.baudrate}\nparity = "{self.parity}"\n' + "".join(meters)

    def describe(self) -> str:
        return (
            f"{self.baudrate} 8{self.parity}1, {self.profile}: request {self.request_bytes} bytes, answer"
            f" {self.answer_bytes}, the meter's delay {DELAY_MS} ms, 3.5 characters = {self.silence_s * 1000:.2f} ms"
        )


# The forward total, 64 bits in millilitres.
ADDRESS, COUNT = 0x204, 4
MODBUS = Setup("Modbus", "usw-dn15-40", 9600, "N", modbus.REQUEST_BYTES, 5 + 2 * COUNT, 1, "{}")
# Four bytes of preamble both ways, then 16 and 35. The pty carries no parity bit, but the pace of the line counts it.
CJT188 = Setup("CJ/T 188", "cjt188-water", 2400, "E", 4 + 16, 4 + 35, 10_000, "{:014d}")
_CJT188_VOLUME = slice(4 + 14, 4 + 18)  # BCD, lowest byte first, in steps of 0.01 m3

# Reads one meter, by its number, or raises.
ReadMeter = Callable[[int], int]
Peer = Callable[[str], contextlib.AbstractContextManager[ReadMeter]]


class Taken(NamedTuple):
    """What one cycle took; CPU time of the whole process."""

    seconds: float
    cpu_s: float


class Stopwatch:
    """Takes the time from its making on."""

    def __init__(self) -> None:
        self._began_s, self._began_cpu_s = time.perf_counter(), time.process_time()

    def taken(self) -> Taken:
        return Taken(time.perf_counter() - self._began_s, time.process_time() - self._began_cpu_s)


def time_peer(setup: Setup, peer: Peer, port: str, numbers: Sequence[int], cycles: int) -> list[Taken]:
    """Return how long each cycle took."""
    times = []
    with peer(port) as read:
        read(numbers[0])  # warm
        time.sleep(setup.silence_s)
        for _ in range(cycles):
            watch = Stopwatch()
            for number in numbers:
                if read(number) != setup.shown_ml(number):
                    fail(f"{peer.__name__} reads a wrong value of meter {number}")
            times.append(watch.taken())
    return times


def time_peer_with_dead(peer: Peer, port: str, numbers: Sequence[int], dead: Sequence[int], cycles: int) -> list[Taken]:
    """Return how long each cycle took where some meters never answer."""
    times = []
    with peer(port) as read:
        for _ in range(cycles):
            watch = Stopwatch()
            for number in (*numbers, *dead):
                with contextlib.suppress(Exception):  # whatever a library calls silence
                    read(number)
            times.append(watch.taken())
    return times


# -- both lines: no checks, no library but pyserial, which is what this set-up (pty, simulator, scheduler) can reach --


@contextlib.contextmanager
def bare_modbus(port: str) -> Iterator[ReadMeter]:
    with _bare(MODBUS, port) as exchange:
        yield lambda number: int.from_bytes(exchange(number)[3:-2], "big")


@contextlib.contextmanager
def bare_cjt188(port: str) -> Iterator[ReadMeter]:
    with _bare(CJT188, port) as exchange:
        yield lambda number: int(exchange(number)[_CJT188_VOLUME][::-1].hex()) * CJT188.step_ml


@contextlib.contextmanager
def _bare(setup: Setup, port: str) -> Iterator[Callable[[int], bytes]]:
    meter = profile.load(setup.profile)
    # A pty has no parity bit, and refuses to be asked for one.
    with serial.Serial(port, setup.baudrate, timeout=setup.timeout_ms / 1000, exclusive=True) as line:

        def exchange(number: int) -> bytes:
            address = meter.parse_address(setup.address.format(number))
            line.write(next(meter.protocol.dialogue(meter.spec, address)).encode())
            answer: bytes = line.read(setup.answer_bytes)
            time.sleep(setup.silence_s)
            return answer

        yield exchange


# -- Modbus only ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_minimalmodbus(port: str) -> Iterator[ReadMeter]:
    """The library that we use, without our guard."""
    with serial.Serial(port, MODBUS.baudrate, timeout=MODBUS.timeout_ms / 1000, exclusive=True) as line:
        yield lambda unit: _volume_of(minimalmodbus.Instrument(line, unit).read_registers(ADDRESS, COUNT))


@contextlib.contextmanager
def pymodbus_client(port: str) -> Iterator[ReadMeter]:
    """Its synchronous serial client, one attempt, our timeout."""
    from pymodbus.client import ModbusSerialClient

    timeout_s = MODBUS.timeout_ms / 1000
    client = ModbusSerialClient(port, baudrate=MODBUS.baudrate, parity="N", timeout=timeout_s, retries=0)
    if not client.connect():
        fail(f"pymodbus cannot open {port}")
    try:
        yield lambda unit: _volume_of(client.read_holding_registers(ADDRESS, count=COUNT, device_id=unit).registers)
    finally:
        client.close()


@contextlib.contextmanager
def libmodbus(port: str) -> Iterator[ReadMeter]:
    """The C library behind mbpoll, called through ctypes: in a loop of its own mbpoll would sleep between meters."""
    library = ctypes.CDLL(ctypes.util.find_library("modbus"))
    library.modbus_new_rtu.restype = ctypes.c_void_p
    library.modbus_new_rtu.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_char, ctypes.c_int, ctypes.c_int]
    context = ctypes.c_void_p(library.modbus_new_rtu(port.encode(), MODBUS.baudrate, b"N", 8, 1))
    if library.modbus_connect(context) != 0:
        fail(f"libmodbus cannot open {port}")
    registers = (ctypes.c_uint16 * COUNT)()

    def read(unit: int) -> int:
        library.modbus_set_slave(context, unit)
        if library.modbus_read_registers(context, ADDRESS, COUNT, registers) != COUNT:
            raise OSError(f"unit {unit} does not answer")
        return _volume_of(registers)

    try:
        yield read
    finally:
        library.modbus_close(context)
        library.modbus_free(context)


def has_libmodbus() -> bool:
    return ctypes.util.find_library("modbus") is not None


def _volume_of(registers: Sequence[int]) -> int:
    return int.from_bytes(b"".join(register.to_bytes(2, "big") for register in registers), "big")
