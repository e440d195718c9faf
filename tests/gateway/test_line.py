"""The line guard: the fault table as golden dialogues in virtual time, then real ptys and sockets."""

import contextlib
import itertools
import os
import pty
import re
import select
import socket
import termios
import threading
import time
from pathlib import Path

import pytest
from partners.dialogue import make_reader, play
from partners.rfc2217_server import Rfc2217Server
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line

from gateway import line as line_module
from gateway.line import (
    BABBLE_S_MAX,
    BURST_GRACE_S,
    GLITCH_BYTES_MAX,
    HOLD_OFF_S_MAX,
    READ_S,
    REOPEN_S_MAX,
    STALL_S_MAX,
    Line,
    LineSettings,
)
from protocols import mbus, modbus
from protocols.errors import Garbled, NoResponse, PortLost

FOLDER = Path(__file__).parent / "dialogues"
DIALOGUES = sorted(FOLDER.glob("*/*.txt"))
REQUEST = modbus.ReadRequest(unit=17, function=3, address=0, count=2)
ANSWER = modbus.encode_response(REQUEST, [0, 7])


# -- the fault table --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", DIALOGUES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_dialogue(file, monkeypatch):
    skip_real_pauses(monkeypatch)
    script = file.read_text(encoding="utf-8")
    went = play(script)
    if os.environ.get("UPDATE_DIALOGUES"):
        file.write_text(went, encoding="utf-8")
    assert went == script


def test_the_fault_table_is_complete():
    """Every fault is played in every protocol in which it can happen, or the table says why it cannot."""
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]+\| ([a-z0-9-]+) \| (yes|-.*) \| (yes|-.*) \| (yes|-.*) \|$", table, re.MULTILINE)
    promised = set()
    for fault, *cells in rows:
        for protocol, cell in zip(("modbus", "cjt188", "mbus"), cells, strict=True):
            assert cell == "yes" or re.fullmatch(r"- \(.{6,}\)", cell), f"{fault}, {protocol}: {cell}"
            promised |= {(protocol, fault)} if cell == "yes" else set()
    assert len(rows) > 35
    assert promised == {(file.parent.name, file.stem) for file in DIALOGUES if file.parent.name != "mixed"}


@pytest.mark.parametrize(
    "file",
    [file for file in DIALOGUES if file.parent.name != "modbus"],
    ids=lambda file: f"{file.parent.name}-{file.stem}",
)
def test_no_dialogue_shows_a_total_that_was_late_or_damaged(file):
    """Whoever has a dialogue written anew cannot wave a wrong value through: such totals differ from the last one."""
    text = file.read_text(encoding="utf-8")
    known = {"7", *re.findall(r"last_ml=(\d+)", text)}
    moving = {"moved-since-the-last-poll", "confirmation-lost", "first-reading", "moving-register", "never-forgets"}
    if file.stem in moving:
        known |= {"8000", "9000", "1230000", "1240000", "1250000"}
    assert set(re.findall(r"== \w+: (\d+) mL", text)) <= known


# -- times ------------------------------------------------------------------------------------------------------------


def opened(*, timeout_ms=100, **settings):
    """A virtual line that has answered once, so that nothing of the opening is left."""
    port = VirtualPort(VirtualClock())
    line = virtual_line(port, **settings)
    port.on_write = lambda data: port.arrive(port.clock.now_s + 0.02, ANSWER)
    assert line.exchange(REQUEST, timeout_ms=timeout_ms) == ANSWER
    port.on_write = lambda data: None
    return port, line


def duration_s(port, action, error=None):
    began_s = port.clock.now_s
    with pytest.raises(error) if error else contextlib.nullcontext():
        action()
    return port.clock.now_s - began_s


@pytest.mark.parametrize("timeout_ms", [10, 100, 500, 10_000])
def test_a_silent_meter_costs_its_timeout_and_then_the_hold_off(timeout_ms):
    port, line = opened()
    wire_s = len(REQUEST.encode()) * line.settings.byte_s + line.settings.silence_s
    ask = lambda: line.exchange(REQUEST, timeout_ms=timeout_ms)
    assert duration_s(port, ask, NoResponse) == pytest.approx(timeout_ms / 1000 + wire_s, abs=READ_S + 1e-6)
    port.on_write = lambda data: port.arrive(port.clock.now_s + 0.005, ANSWER)
    assert duration_s(port, ask) == pytest.approx(min(timeout_ms / 1000, HOLD_OFF_S_MAX) + 0.005, abs=READ_S)


@pytest.mark.parametrize("baudrate", [300, 1200, 9600, 115200])
def test_a_device_that_never_stops_sending_holds_up_an_exchange_for_a_bounded_time(baudrate):
    port, line = opened(baudrate=baudrate)
    began_s = port.clock.now_s
    for number in range(int(30 / line.settings.byte_s / 4)):
        port.arrive(began_s + 4 * number * line.settings.byte_s, b"\x55" * 4)
    longest_s = (8 + 9) * line.settings.byte_s + 0.1 + BURST_GRACE_S + BABBLE_S_MAX + 3 * READ_S
    for _ in range(5):
        assert duration_s(port, lambda: line.exchange(REQUEST, timeout_ms=100), Garbled) < longest_s


@pytest.mark.parametrize(("stall_s", "is_whole"), [(STALL_S_MAX - 0.01, True), (STALL_S_MAX + READ_S + 0.01, False)])
def test_a_long_answer_may_stall_for_so_long_and_no_longer(stall_s, is_whole):
    """Whoever waits for the longest M-Bus telegram after each damaged one stands still for more than a second."""
    port, line = opened(baudrate=2400)
    request = mbus.request_data(5, frame_count_bit=True)
    telegram = mbus.Frame(control=8, address=5, ci=0x72, data=bytes(20)).encode()
    late_s = len(request.encode()) * line.settings.byte_s + 0.09

    def answer(data):
        port.arrive(port.clock.now_s + late_s, telegram[:9])
        port.arrive(port.clock.now_s + late_s + stall_s, telegram[9:])

    port.on_write = answer
    if is_whole:
        assert line.exchange(request, timeout_ms=100) == telegram
    else:
        assert duration_s(port, lambda: line.exchange(request, timeout_ms=100), Garbled) < 0.5


def test_the_time_of_a_byte_and_of_the_silence_between_frames():
    assert LineSettings(name="b", port="p", baudrate=9600).byte_s == pytest.approx(10 / 9600)
    assert LineSettings(name="b", port="p", baudrate=2400, parity="E").byte_s == pytest.approx(11 / 2400)
    assert LineSettings(name="b", port="p", baudrate=2400, parity="E", stop_bits=2).byte_s == pytest.approx(12 / 2400)
    assert LineSettings(name="b", port="p", baudrate=9600).silence_s == pytest.approx(38.5 / 9600)
    assert LineSettings(name="b", port="p", baudrate=115200).silence_s == pytest.approx(0.00175)


def test_a_port_that_stays_away_is_tried_at_doubling_intervals():
    port = VirtualPort(VirtualClock())
    port.go_away(0, 1e9)
    tries = []

    def open_port(settings):
        tries.append(port.clock.now_s)
        return port.open(settings)

    line = Line(
        LineSettings(name="b", port="p"), opener=open_port, monotonic=port.clock.monotonic, pause=port.clock.pause
    )
    while port.clock.now_s < 200:
        with pytest.raises(PortLost, match="p"):
            line.exchange(REQUEST, timeout_ms=100)
        port.clock.pause(0.01)
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries)]
    wanted = [0.5, 1, 2, 4, 8, 16]
    assert gaps == pytest.approx(wanted + [REOPEN_S_MAX] * (len(gaps) - len(wanted)), abs=0.02)


def test_a_port_that_opens_and_fails_at_once_is_not_hammered():
    """An adapter with a broken cable opens well and fails at every write: the wait must still grow."""
    port = VirtualPort(VirtualClock())
    opens = []

    def open_port(settings):
        opens.append(port.clock.now_s)
        return port.open(settings)

    def fail(data):
        raise OSError(5, "Input/output error")

    port.on_write = fail
    line = Line(
        LineSettings(name="b", port="p"), opener=open_port, monotonic=port.clock.monotonic, pause=port.clock.pause
    )
    while port.clock.now_s < 100:
        with pytest.raises(PortLost):
            line.exchange(REQUEST, timeout_ms=100)
        port.clock.pause(0.05)
    assert len(opens) < 10


def test_closing_twice_and_a_close_that_fails_are_no_error():
    port, line = opened()
    port.close = lambda: (_ for _ in ()).throw(OSError("gone"))
    line.close()
    line.close()


@pytest.mark.parametrize("error", [OSError("no"), ValueError("bad URL"), NotImplementedError("cannot")])
def test_whatever_opening_raises_is_a_lost_port(error):
    def refuse(_):
        raise error

    with pytest.raises(PortLost):
        Line(LineSettings(name="b", port="p"), opener=refuse).exchange(REQUEST, timeout_ms=10)


@pytest.mark.parametrize("data", [ANSWER, b"\x55" * 2000, b"\x11", ANSWER[:-1] + b"\x00"])
@pytest.mark.parametrize("after_s", [0.03, 0.09, 0.2])
def test_whatever_comes_that_nobody_asked_for_is_heard(data, after_s):
    port, line = opened()
    port.arrive(port.clock.now_s + after_s, data)
    assert line.hears_anything(REQUEST, timeout_ms=100)
    port.clock.pause(0.1)
    line._settle()
    assert not line.hears_anything(REQUEST, timeout_ms=100)


@pytest.mark.parametrize(("count", "is_heard"), [(1, False), (GLITCH_BYTES_MAX, False), (GLITCH_BYTES_MAX + 1, True)])
def test_the_few_bytes_of_a_transceiver_that_lets_the_line_go_are_no_answer(count, is_heard):
    """They stand directly behind every answer of such a line: it would never be silent."""
    port, line = opened()
    port.arrive(port.clock.now_s + 0.003, b"\0" * count)
    assert line.hears_anything(REQUEST, timeout_ms=100) is is_heard


def test_a_port_that_is_lost_while_listening_is_a_lost_port():
    port, line = opened()
    port.go_away(port.clock.now_s + 0.05, port.clock.now_s + 10)
    with pytest.raises(PortLost):
        line.hears_anything(REQUEST, timeout_ms=100)


# -- real ports -------------------------------------------------------------------------------------------------------


class PtyMeter:
    """A meter on the far end of a pty: `script` turns a request into a list of (pause before, bytes)."""

    def __init__(self, script):
        self.fd, self._near = pty.openpty()
        self.port = os.ttyname(self._near)
        os.set_blocking(self.fd, False)
        self._script = script
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        reader = modbus.RequestReader()
        while True:
            ready, _, _ = select.select([self.fd, self._end], [], [])
            if self._end in ready:
                return
            try:
                request = reader.feed(os.read(self.fd, 256))
            except OSError:
                return
            for pause_s, data in self._script(request) if request else ():
                time.sleep(pause_s)
                os.write(self.fd, data)

    def unplug(self):
        """Close the far end; everything at the near end fails from then on."""
        os.write(self._ended, b"x")
        self._thread.join()
        os.close(self.fd)

    def close(self):
        with contextlib.suppress(OSError):
            self.unplug()
        for fd in (self._near, self._end, self._ended):
            os.close(fd)


@contextlib.contextmanager
def pty_line(script, **settings):
    meter = PtyMeter(script)
    line = Line(LineSettings(name="rs485-1", port=meter.port, **settings))
    try:
        yield meter, line
    finally:
        line.close()
        meter.close()


@pytest.mark.parametrize("parity", ["N", "E", "O"])
def test_a_pty_is_opened_with_every_parity_again_and_again(parity):
    """A pty has no parity bit, and tcsetattr refuses to set one: termios.error, which is no OSError."""
    with pty_line(lambda request: [(0, ANSWER)], parity=parity) as (_, line):
        for _ in range(3):
            assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
            line.close()


@pytest.mark.parametrize("parity", ["N", "E", "O"])
def test_a_byte_with_wrong_parity_is_not_passed_on_as_if_it_were_right(parity, monkeypatch):
    """A pty has no parity bit, but it keeps the flag that tells a real port to check it; pyserial clears it."""
    opener = line_module.serial.serial_for_url
    monkeypatch.setattr(
        line_module.serial, "serial_for_url", lambda *_, **options: opener(*_, **options | {"parity": "N"})
    )
    with pty_line(lambda request: [], parity=parity) as (meter, _):
        port = line_module.open_port(LineSettings(name="b", port=meter.port, parity=parity))
        is_checked = bool(termios.tcgetattr(port.fileno())[0] & termios.INPCK)
        port.close()
    assert is_checked is (parity != "N")


def test_a_real_terminal_that_refuses_its_settings_is_a_lost_port(monkeypatch):
    def refuse(*_, **__):
        raise line_module.termios.error(22, "Invalid argument")

    monkeypatch.setattr(line_module.serial, "serial_for_url", refuse)
    for port, parity in (("/dev/ttyS1", "E"), ("/dev/pts/0", "N")):
        with pytest.raises(PortLost, match="Invalid argument"):
            Line(LineSettings(name="b", port=port, parity=parity)).exchange(REQUEST, timeout_ms=10)


def test_a_link_to_a_pty_is_a_pty(tmp_path):
    with pty_line(lambda request: [(0, ANSWER)]) as (meter, _):
        link = tmp_path / "meters"
        link.symlink_to(meter.port)
        line = Line(LineSettings(name="b", port=str(link), parity="E"))
        assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
        line.close()


def test_a_late_answer_on_a_real_pty_is_no_value():
    volumes = iter(range(100))

    def late(request):
        return [(0.2, modbus.encode_response(request, [0, next(volumes)]))]

    with pty_line(late) as (_, line):
        reader = make_reader("counter", "17", timeout_ms=50, retries=2)
        for _ in range(2):
            with pytest.raises(line_module.MeterError):
                reader.read(line)


def test_a_stall_in_the_answer_on_a_real_pty():
    with pty_line(lambda request: [(0.01, ANSWER[:4]), (0.06, ANSWER[4:])]) as (_, line):
        assert line.exchange(REQUEST, timeout_ms=300) == ANSWER


def test_a_pty_that_goes_away_is_a_lost_port_and_never_a_hang():
    with pty_line(lambda request: [(0, ANSWER)]) as (meter, line):
        assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
        meter.unplug()
        began_s = time.monotonic()
        for _ in range(3):
            with pytest.raises(PortLost):
                line.exchange(REQUEST, timeout_ms=300)
        assert time.monotonic() - began_s < 1


def test_one_line_belongs_to_one_program():
    with pty_line(lambda request: [(0, ANSWER)]) as (meter, line):
        line.exchange(REQUEST, timeout_ms=300)
        with pytest.raises(PortLost, match="lock"):
            Line(LineSettings(name="b", port=meter.port)).exchange(REQUEST, timeout_ms=100)


def test_a_file_that_is_no_terminal_is_a_lost_port(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(PortLost):
        Line(LineSettings(name="b", port=str(file))).exchange(REQUEST, timeout_ms=100)


class SerialServer:
    """A serial device server: TCP in, a meter behind it."""

    def __init__(self, port=0):
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(10)
        self.port = self._listener.getsockname()[1]
        self.connections = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._answer, args=[connection]).start()

    def _answer(self, connection):
        with contextlib.suppress(OSError):
            while connection.recv(256):
                connection.sendall(ANSWER)

    def drop(self):
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections.clear()

    def close(self):
        self.drop()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


def test_a_serial_server_is_a_line_as_well_and_is_found_again():
    server = SerialServer()
    line = Line(LineSettings(name="b", port=f"socket://127.0.0.1:{server.port}"))
    assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
    server.drop()
    with pytest.raises(PortLost):
        line.exchange(REQUEST, timeout_ms=300)
    time.sleep(line_module.REOPEN_S_MIN)
    assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
    server.close()
    with pytest.raises(PortLost):
        line.exchange(REQUEST, timeout_ms=300)
    line.close()


# pyserial 3.5 starts its reader thread with names that Python 3.10 has deprecated.
@pytest.mark.filterwarnings("ignore:set(Daemon|Name).*:DeprecationWarning")
def test_an_rfc_2217_serial_server_is_a_line_as_well_and_is_found_again():
    with contextlib.closing(PtyMeter(lambda request: [(0.01, ANSWER)])) as meter, Rfc2217Server(meter.port) as server:
        line = Line(LineSettings(name="b", port=server.url.replace("rfc", "RFC"), baudrate=2400))
        with contextlib.closing(line):
            assert line.exchange(REQUEST, timeout_ms=300) == ANSWER
            server.drop()
            time.sleep(0.1)
            with pytest.raises(PortLost):
                line.exchange(REQUEST, timeout_ms=300)
            time.sleep(line_module.REOPEN_S_MIN)
            assert line.exchange(REQUEST, timeout_ms=300) == ANSWER


@pytest.mark.parametrize("port", ["nonsense://x", "socket://127.0.0.1:1", "/dev/no-such-port", "socket://x?y=z"])
def test_a_port_that_cannot_be_is_a_lost_port(port):
    with pytest.raises(PortLost, match=r"nonsense|socket|no-such-port"):
        Line(LineSettings(name="b", port=port)).exchange(REQUEST, timeout_ms=100)
