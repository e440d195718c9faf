"""Modbus in every framing, over ptys and TCP, with masters and servers that we did not write; sleepers and unit 0."""

import contextlib
import itertools
import os
import pty
import random
import re
import select
import socket
import subprocess
import threading
import time
from typing import NamedTuple

import msgspec
import pytest
from partners.processes import find, free_port, pty_pair
from partners.pymodbus_meters import serving
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line
from pymodbus import FramerType
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from gateway import modbus_master
from gateway.clock import SystemClock
from gateway.line import READ_S, Line, LineSettings
from gateway.meters import MeterReader
from gateway.simulator import Village
from gateway.village_file import parse
from protocols import modbus, modbus_ascii, modbus_tcp, profile, registers
from protocols.errors import MeterError, MeterRefused, NoResponse, WrongAnswer

UNIT = 17
FIRST, COUNT = 1000, 300
MODBUS_PROFILES = [name for name in profile.built_in_names() if profile.load(name).head.protocol == "modbus"]


class Transport(NamedTuple):
    """How bytes travel: `framing` as we say it, `framer` as pymodbus says it."""

    framing: str
    framer: FramerType
    is_tcp: bool


TRANSPORTS = {
    "rtu on a pty": Transport("rtu", FramerType.RTU, False),
    "ascii on a pty": Transport("ascii", FramerType.ASCII, False),
    "tcp": Transport("tcp", FramerType.SOCKET, True),
    "rtu over tcp": Transport("rtu", FramerType.RTU, True),
    "ascii over tcp": Transport("ascii", FramerType.ASCII, True),
}
EVERY_TRANSPORT = pytest.mark.parametrize("transport", TRANSPORTS.values(), ids=TRANSPORTS)


def content(seed=1):
    chance = random.Random(seed)
    return [chance.randrange(0x10000) for _ in range(COUNT)]


def some_requests(number=25):
    chance = random.Random(2)
    for _ in range(number):
        count = chance.choice([1, 2, 4, 60, 125])
        address = chance.randrange(FIRST, FIRST + COUNT - count + 1)
        yield modbus.ReadRequest(unit=UNIT, function=chance.choice([3, 4]), address=address, count=count)


@contextlib.contextmanager
def opened(port, framing, **settings):
    line = Line(LineSettings(name="b", port=str(port), framing=framing, baudrate=115200, **settings))
    try:
        yield line
    finally:
        line.close()


@contextlib.contextmanager
def pymodbus_server(transport, folder):
    """A server of pymodbus on a thread of its own; yields the port at which our master finds it."""
    device = SimDevice(id=UNIT, simdata=[SimData(address=FIRST, values=content(), datatype=DataType.REGISTERS)])
    if transport.is_tcp:
        number = free_port()
        with serving(lambda: ModbusTcpServer(device, framer=transport.framer, address=("127.0.0.1", number))):
            yield f"socket://127.0.0.1:{number}"
    else:
        with (
            pty_pair(folder) as (near, far),
            serving(lambda: ModbusSerialServer(device, framer=transport.framer, port=str(far), baudrate=115200)),
        ):
            yield near


class OurServer:
    """A meter made of our frames, on a pty or a TCP port. `answer` turns a request into registers or an exception."""

    def __init__(self, transport, answer, *, delay_s=lambda: 0.0):
        self._transport = transport
        self._answer = answer
        self._delay_s = delay_s
        self.requests = 0
        if transport.is_tcp:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.number = self._listener.getsockname()[1]
            self.port = f"socket://127.0.0.1:{self.number}"
        else:
            self._fd, self._near = pty.openpty()
            self.port = os.ttyname(self._near)
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        os.write(self._ended, b"x")
        self._thread.join()
        for fd in (self._end, self._ended, *(() if self._transport.is_tcp else (self._fd, self._near))):
            os.close(fd)
        if self._transport.is_tcp:
            self._listener.close()

    def _serve(self):
        if not self._transport.is_tcp:
            self._talk(self._fd)
            return
        while self._end not in select.select([self._listener, self._end], [], [])[0]:
            connection, _ = self._listener.accept()
            with connection:
                self._talk(connection.fileno())

    def _talk(self, fd):
        buffer = b""
        while self._end not in select.select([fd, self._end], [], [])[0]:
            try:
                data = os.read(fd, 4096)
            except OSError:
                return
            if not data:
                return
            buffer += data
            while (found := self._request(buffer)) is not None:
                request, frame_of, buffer = found
                self.requests += 1
                time.sleep(self._delay_s())
                os.write(fd, frame_of(self._body(request)))

    def _request(self, buffer):
        """Return the first request in bytes, how its answer is framed, and the bytes behind it."""
        if self._transport.framing == "rtu" and len(buffer) >= 8:
            assert modbus.has_crc(buffer[:8])
            return modbus.decode_request(buffer[:8]), modbus.add_crc, buffer[8:]
        if self._transport.framing == "ascii" and b"\r\n" in buffer:
            frame, _, rest = buffer.partition(b"\r\n")
            body = modbus_ascii.decode_frame(frame + b"\r\n")
            return modbus.decode_request(modbus.add_crc(body)), modbus_ascii.encode_frame, rest
        if self._transport.framing == "tcp" and len(buffer) >= 12:
            assert buffer[2:6] == b"\0\0\0\x06"
            frame_of = lambda body: modbus_tcp.encode_frame(body, transaction=int.from_bytes(buffer[:2], "big"))
            return modbus.decode_request(modbus.add_crc(buffer[6:12])), frame_of, buffer[12:]
        return None

    def _body(self, request):
        values = self._answer(request)
        if isinstance(values, int):
            return modbus.encode_exception(request, values)[:-2]
        return modbus.encode_response(request, values)[:-2]


def from_content(request):
    start = request.address - FIRST
    if start < 0 or start + request.count > COUNT:
        return modbus.ILLEGAL_DATA_ADDRESS
    return content()[start : start + request.count]


@pytest.fixture
def virtual_time(monkeypatch):
    skip_real_pauses(monkeypatch)


# -- against other implementations ------------------------------------------------------------------------------------


@EVERY_TRANSPORT
def test_our_master_reads_what_pymodbus_serves(transport, tmp_path):
    with pymodbus_server(transport, tmp_path) as port, opened(port, transport.framing) as line:
        for request in some_requests():
            frame = modbus_master.exchange(line, request, timeout_ms=1000)
            assert modbus.decode_response(frame) == from_content(request), vars(request)
        beyond = modbus.ReadRequest(unit=UNIT, function=3, address=FIRST + COUNT, count=2)
        with pytest.raises(MeterRefused, match="illegal data address"):
            modbus.decode_response(modbus_master.exchange(line, beyond, timeout_ms=1000))


@EVERY_TRANSPORT
def test_pymodbus_reads_what_our_frames_serve(transport):
    with OurServer(transport, from_content) as server:
        if transport.is_tcp:
            client = ModbusTcpClient("127.0.0.1", port=server.number, framer=transport.framer, timeout=2)
        else:
            client = ModbusSerialClient(server.port, framer=transport.framer, baudrate=115200, timeout=2)
        assert client.connect()
        try:
            for request in some_requests():
                read = client.read_holding_registers if request.function == 3 else client.read_input_registers
                result = read(request.address, count=request.count, device_id=UNIT)
                assert result.registers == from_content(request)
            result = client.read_holding_registers(0, count=1, device_id=UNIT)
            assert (result.isError(), result.exception_code) == (True, modbus.ILLEGAL_DATA_ADDRESS)
        finally:
            client.close()


def by_mbpoll(*where, unit, function, address, count):
    kind = {3: "4:hex", 4: "3:hex"}[function]
    command = [find("mbpoll"), "-a", unit, "-0", "-1", "-t", kind, "-r", address, "-c", count, *where]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [int(value, 16) for value in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]{4})", done.stdout, re.MULTILINE)]


def test_mbpoll_reads_what_our_frames_serve_over_tcp():
    with OurServer(TRANSPORTS["tcp"], from_content) as server:
        for request in some_requests(5):
            values = by_mbpoll(
                *("-m", "tcp", "-p", server.number, "127.0.0.1"),
                **{key: getattr(request, key) for key in ("unit", "function", "address", "count")},
            )
            assert values == from_content(request)


# -- every meter ------------------------------------------------------------------------------------------------------


def volume_for(meter):
    """A volume that the meter can show to the last digit."""
    return 123_456_000_000 // meter.head.step_ml * meter.head.step_ml % 10_000_000_000


def reader_of(meter, unit=UNIT, **change):
    keys = {"timeout_ms": 300, "retries": 1}
    return MeterReader(profile=meter, address=unit, **(keys | change))


def village_of(name, volume_ml):
    text = f'[line]\nbaudrate = 115200\n[[meter]]\nid = "m"\nprofile = "{name}"\naddress = "{UNIT}"\nusage = []\n'
    return Village(parse(text + f'start_m3 = "{volume_ml / 1_000_000:f}"\n', where="test"), clock=SystemClock())


def test_there_are_ten_of_them():
    assert len(MODBUS_PROFILES) == 10


@pytest.mark.parametrize("name", MODBUS_PROFILES)
def test_mbpoll_reads_every_profile(name):
    meter = profile.load(name)
    with village_of(name, volume_for(meter)) as village:
        line = ("-m", "rtu", "-b", 115200, "-P", "none", village.port)
        values = {}
        for address, count in meter.spec.requests():
            block = by_mbpoll(*line, unit=UNIT, function=meter.spec.function, address=address, count=count)
            values |= dict(enumerate(block, address))
    assert registers.measure(meter.spec, values).volume_ml == volume_for(meter)


@pytest.mark.parametrize("name", MODBUS_PROFILES)
def test_we_read_every_profile_from_the_simulated_village(name):
    meter = profile.load(name)
    with village_of(name, volume_for(meter)) as village, opened(village.port, "rtu") as line:
        measurement = reader_of(meter).read(line)
    assert (measurement.volume_ml, measurement.flags) == (volume_for(meter), ())


@pytest.mark.parametrize("transport", [TRANSPORTS["tcp"], TRANSPORTS["ascii over tcp"]], ids=["tcp", "ascii"])
@pytest.mark.parametrize("name", MODBUS_PROFILES)
def test_we_read_every_profile_in_the_other_framings(name, transport):
    meter = profile.load(name)
    held = registers.simulate(meter.spec, volume_for(meter))
    answer = lambda request: [held[address] for address in range(request.address, request.address + request.count)]
    with OurServer(transport, answer) as server, opened(server.port, transport.framing) as line:
        assert reader_of(meter).read(line).volume_ml == volume_for(meter)


def test_seven_data_bits_and_parity_of_the_ascii_standard():
    """A pty cannot have them, as little as a parity; it is opened all the same, because simulators live on ptys."""
    with (
        OurServer(TRANSPORTS["ascii on a pty"], from_content) as server,
        opened(server.port, "ascii", data_bits=7, parity="E") as line,
    ):
        assert line.settings.byte_s == pytest.approx(10 / 115200)
        for request in some_requests(3):
            frame = modbus_master.exchange(line, request, timeout_ms=500)
            assert modbus.decode_response(frame) == from_content(request)


def test_every_refusal_in_ascii_is_returned_as_its_frame():
    """minimalmodbus waits for a whole answer, and takes exception 5 for no error."""
    with (
        OurServer(TRANSPORTS["ascii on a pty"], lambda request: request.address) as server,
        opened(server.port, "ascii") as line,
    ):
        modbus_master.exchange(line, modbus.ReadRequest(unit=UNIT, function=3, address=1, count=9), timeout_ms=100)
        for code in (1, 2, 5, 11, 200):
            request = modbus.ReadRequest(unit=UNIT, function=3, address=code, count=9)
            began_s = time.monotonic()
            assert modbus_master.exchange(line, request, timeout_ms=5000) == modbus.encode_exception(request, code)
            assert time.monotonic() - began_s < 2


# -- late answers over TCP --------------------------------------------------------------------------------------------


def test_a_late_answer_over_tcp_is_never_a_value():
    """The transaction drops it here; what it does not tell, the meter behind a gateway, is counted and asked twice."""
    totals, delays = iter(range(1, 100)), itertools.chain([0.0, 0.25], itertools.repeat(0.0))
    meter = profile.load("usw-dn15-40")
    answer = lambda request: [0, 0, 0, next(totals)][-request.count :]
    with (
        OurServer(TRANSPORTS["tcp"], answer, delay_s=lambda: next(delays)) as server,
        opened(server.port, "tcp") as line,
    ):
        reader = reader_of(meter, timeout_ms=100, retries=0, is_in_step=True)
        assert reader.read(line).volume_ml == 1
        with pytest.raises(NoResponse):
            reader.read(line)
        assert reader.read(line).volume_ml == 4, "the second of two"
        assert server.requests == 5, "and the decoy"


def test_a_late_answer_that_comes_while_the_next_waits_is_dropped():
    port, line = virtual(framing="tcp")
    sent = []

    def answer_one_behind(data):
        sent.append(data)
        if len(sent) > 1:
            port.arrive(port.clock.now_s + 0.01, tcp_answer(sent[-2], [0, 0, 0, 1]))
        if len(sent) >= 3:
            port.arrive(port.clock.now_s + 0.02, tcp_answer(data, [0, 0, 0, 3]))

    port.on_write = answer_one_behind
    reader = reader_of(profile.load("usw-dn15-40"), timeout_ms=100, retries=0, is_in_step=True)
    with pytest.raises(NoResponse):
        reader.read(line)
    with pytest.raises(WrongAnswer, match="only the answer to transaction"):
        reader.read(line)
    assert reader.read(line).volume_ml == 3
    assert len(sent) == 6, "two failures, three answers, the decoy"


def test_no_two_requests_share_a_transaction():
    sent = [modbus_master._FRAMINGS["tcp"].query(next(some_requests(1))).encode()[:2] for _ in range(1000)]
    assert len(set(sent)) == 1000


# -- sleepers, slow ones, and any unit --------------------------------------------------------------------------------


def virtual(**settings):
    port = VirtualPort(VirtualClock())
    return port, virtual_line(port, **settings)


def tcp_answer(request_frame, values):
    request = modbus.decode_request(modbus.add_crc(request_frame[6:]))
    body = modbus.encode_response(request, values[-request.count :])[:-2]
    return modbus_tcp.encode_frame(body, transaction=int.from_bytes(request_frame[:2], "big"))


class Sleeper:
    """An AquaMaster 3: asleep after 10 s without characters, deaf for up to 1 s after the first that wake it."""

    def __init__(self, *, wakes_in_s=0.9, answers_in_s=0.1):
        self.port, self.line = virtual()
        self.port.on_write = self.hear
        self.meter = profile.load("abb-aquamaster3")
        self.reader = MeterReader(profile=self.meter, address=1, timeout_ms=1000, retries=1)
        self.total_m3 = 5
        self.lost = self.heard = 0
        self._wakes_in_s, self._answers_in_s = wakes_in_s, answers_in_s
        self._last_s = self._awake_s = float("-inf")

    def hear(self, data):
        now_s = self.port.clock.now_s
        if now_s - self._last_s > 10:
            self._awake_s = now_s + self._wakes_in_s
        self._last_s = now_s
        if now_s < self._awake_s:
            self.lost += 1
            return
        self.heard += 1
        request = modbus.decode_request(data)
        self.port.arrive(
            now_s + self._answers_in_s, modbus.encode_response(request, [0, self.total_m3][: request.count])
        )


@pytest.mark.usefixtures("virtual_time")
class TestSleeper:
    @pytest.mark.parametrize("wakes_in_s", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("answers_in_s", [0.05, 0.8])
    def test_every_read_after_a_pause_succeeds(self, wakes_in_s, answers_in_s):
        sleeper = Sleeper(wakes_in_s=wakes_in_s, answers_in_s=answers_in_s)
        for total_m3 in range(5, 10):
            sleeper.total_m3 = total_m3
            assert sleeper.reader.read(sleeper.line).volume_ml == total_m3 * 1_000_000
            sleeper.port.clock.pause(300)
        assert sleeper.lost == (0 if wakes_in_s == 0 else 5)

    def test_the_second_request_waits_until_the_meter_is_awake(self):
        sleeper = Sleeper(wakes_in_s=1.0)
        sent_s = []
        hear = sleeper.hear
        sleeper.port.on_write = lambda data: (sent_s.append(sleeper.port.clock.now_s), hear(data))
        sleeper.reader.read(sleeper.line)
        assert 1.0 <= sent_s[1] - sent_s[0] < 1.1 + 3 * READ_S

    def test_a_meter_that_answered_lately_is_not_woken(self):
        sleeper = Sleeper()
        sleeper.reader.read(sleeper.line)
        before = sleeper.heard
        sleeper.port.clock.pause(5)
        sleeper.reader.read(sleeper.line)
        assert sleeper.heard == before + 1

    def test_without_the_profile_saying_so_it_is_missed(self):
        """The test above can fail: a meter read as if it never slept costs a failure each time."""
        sleeper = Sleeper()
        awake = msgspec.structs.replace(sleeper.meter, timing=profile.Timing(timeout_ms=1000))
        with pytest.raises(MeterError):
            MeterReader(profile=awake, address=1, timeout_ms=1000, retries=0).read(sleeper.line)

    def test_an_answer_to_the_first_request_that_comes_late_is_no_value(self):
        """It wakes slowly and answers the first request after all: an old total must not pass for a new one."""
        sleeper = Sleeper(wakes_in_s=0.0, answers_in_s=1.15)
        values = []
        for total_m3 in range(5, 25):
            sleeper.total_m3 = total_m3
            with contextlib.suppress(MeterError):
                values.append((total_m3, sleeper.reader.read(sleeper.line).volume_ml // 1_000_000))
            sleeper.port.clock.pause(300)
        assert all(shown == told for shown, told in values)


@pytest.mark.usefixtures("virtual_time")
def test_turnaround_is_the_silence_before_each_request():
    tuf = profile.load("tuf-2000")
    slow = msgspec.structs.replace(tuf, timing=profile.Timing(turnaround_ms=250))
    for meter, pause_s in ((tuf, 0.0), (slow, 0.25)):
        port, line = virtual()
        held = registers.simulate(meter.spec, 1_000_000)
        sent_s, last_s = [], []

        def answer(data, port=port, held=held, sent_s=sent_s, last_s=last_s):
            request = modbus.decode_request(data)
            sent_s.append(port.clock.now_s)
            values = [held[request.address + i] for i in range(request.count)]
            last_s.append(port.clock.now_s + 0.03)
            port.arrive(last_s[-1], modbus.encode_response(request, values))

        port.on_write = answer
        assert reader_of(meter, is_in_step=True).read(line).volume_ml == 1_000_000
        assert len(sent_s) == 2
        assert pause_s <= sent_s[1] - last_s[0] < pause_s + 2 * READ_S


@pytest.mark.usefixtures("virtual_time")
def test_a_meter_alone_on_its_line_answers_to_unit_0():
    port, line = virtual()
    meter = profile.load("usw-dn15-40")

    def answer(data):
        request = modbus.decode_request(data)
        assert request.unit == modbus.ANY_UNIT
        own = modbus.ReadRequest(unit=17, function=3, address=request.address, count=request.count)
        port.arrive(port.clock.now_s + 0.02, modbus.encode_response(own, [0, 0, 1, 0xF089]))

    port.on_write = answer
    assert reader_of(meter, meter.parse_address("0"), is_in_step=True).read(line).volume_ml == 127_113
