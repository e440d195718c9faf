"""The simulated village on its port: read by masters that we did not write, at the pace of a line."""

import asyncio
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import minimalmodbus
import pytest
import serial

from gateway import simulator
from gateway.clock import FastClock, SystemClock
from gateway.simulator import Shown, Village, run
from gateway.usage import VillageError
from gateway.village_file import parse
from protocols import modbus, profile, registers

ROOT = Path(__file__).parents[2]
PROFILES = {"usw-dn15-40": 17, "xintai": 18, "tuf-2000": 19}
START_ML = 802_609_000
QUERY = modbus.ReadRequest(unit=17, function=3, address=0x204, count=4)


def village_text(line="", rest="", names=tuple(PROFILES)):
    return f"[line]\n{line}\n" + "".join(
        f'[[meter]]\nid = "{name}"\nprofile = "{name}"\naddress = "{PROFILES[name]}"\n'
        f'start_m3 = "802.609"\nusage = []\n{rest}\n'
        for name in names
    )


def village(line="", rest="", names=tuple(PROFILES), clock=None, **changes):
    return Village(parse(village_text(line, rest, names), where="test"), clock=clock or SystemClock(), **changes)


def open_port(port, baudrate=9600):
    return serial.Serial(port, baudrate=baudrate, timeout=1.0, exclusive=True)


def ask(port, query, wait_s=None):
    port.timeout = 1.0 if wait_s is None else wait_s
    port.write(query.encode())
    return port.read(query.response_bytes)


def volume_of(name, read_block):
    """Decode what a foreign master has read, block by block, with the profile."""
    spec = profile.load(name).spec
    values = {}
    for block in spec.read:
        values |= dict(enumerate(read_block(block.address, block.count), block.address))
    return registers.measure(spec, values).volume_ml


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def by_mbpoll(port, unit, address, count):
    done = subprocess.run(
        ["mbpoll", "-m", "rtu", "-a", str(unit), "-b", "9600", "-P", "none", "-0", "-1", "-t", "4:hex",
         "-r", str(address), "-c", str(count), port],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    values = [int(value, 16) for value in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]{4})", done.stdout, re.MULTILINE)]
    assert len(values) == count
    return values


@pytest.mark.skipif(not shutil.which("mbpoll"), reason="mbpoll is not installed")
@pytest.mark.parametrize("name", PROFILES)
def test_mbpoll_reads_every_profile(name):
    with village() as meters:
        volume_ml = volume_of(name, lambda address, count: by_mbpoll(meters.port, PROFILES[name], address, count))
        assert volume_ml == START_ML
        assert [shown.volume_ml for shown in meters.showed(name)] == [START_ML]


@pytest.mark.skipif(not shutil.which("mbpoll"), reason="mbpoll is not installed")
def test_mbpoll_hears_a_refusal():
    with village(rest="fault = [{ kind = 'exception', code = 2 }]") as meters, pytest.raises(AssertionError) as said:
        by_mbpoll(meters.port, 17, 0x204, 4)
    assert "Illegal data address" in str(said.value)


@pytest.mark.parametrize("name", PROFILES)
def test_minimalmodbus_reads_every_profile(name):
    with village() as meters, open_port(meters.port) as port:
        instrument = minimalmodbus.Instrument(port, PROFILES[name])
        assert volume_of(name, instrument.read_registers) == START_ML
        assert [shown.volume_ml for shown in meters.showed(name)] == [START_ML]


def test_minimalmodbus_gets_no_answer_from_a_dead_meter():
    with village(rest="fault = [{ kind = 'dead' }]") as meters, open_port(meters.port) as port:
        instrument = minimalmodbus.Instrument(port, 17)
        with pytest.raises(minimalmodbus.NoResponseError):
            instrument.read_registers(0x204, 4)
        assert (meters.counts("usw-dn15-40").requests, meters.counts("usw-dn15-40").answers) == (1, 0)


def test_every_reading_is_in_the_log_of_what_was_shown():
    """A fast clock and a running tap: every answer differs, and the log says which answer said what."""
    now_ms = time.time_ns() // 1_000_000
    clock = FastClock(rate=3600, real_origin_ms=now_ms, shown_origin_ms=now_ms)
    with village(rest='drip_l_h = "10"', names=["usw-dn15-40"], clock=clock) as meters, open_port(meters.port) as port:
        read = []
        for _ in range(20):
            values = modbus.decode_response(ask(port, QUERY))
            read.append(registers.measure(profile.load("usw-dn15-40").spec, registers.registers_of(QUERY, values)))
            # The entry is there before the last byte can be read.
            assert [shown.volume_ml for shown in meters.showed("usw-dn15-40")] == [one.volume_ml for one in read]
        assert sorted({one.volume_ml for one in read}) == [one.volume_ml for one in read]
        moments = [shown.wall_ms for shown in meters.showed("usw-dn15-40")]
        assert moments == sorted(moments)
        assert moments[-1] <= clock.now().wall_ms


def test_the_log_is_bounded_and_says_so(monkeypatch):
    monkeypatch.setattr(simulator, "SHOWN_MAX", 2)
    line = "baudrate = 115200"
    with village(line, "answer_delay_ms = 0", ["usw-dn15-40"]) as meters, open_port(meters.port, 115200) as port:
        for _ in range(5):
            ask(port, QUERY)
        assert (len(meters.showed("usw-dn15-40")), meters.counts("usw-dn15-40").forgotten) == (2, 3)
        assert isinstance(meters.showed("usw-dn15-40")[0], Shown)


@pytest.mark.parametrize(("parity", "stop_bits", "bits"), [("N", 1, 10), ("E", 1, 11), ("O", 2, 12)])
def test_the_last_byte_is_never_early(parity, stop_bits, bits):
    line = f"baudrate = 2400\nparity = '{parity}'\nstop_bits = {stop_bits}"
    with village(line, "answer_delay_ms = 12") as meters, open_port(meters.port, 2400) as port:
        for _ in range(3):
            begin_s = time.monotonic()
            assert len(ask(port, QUERY)) == QUERY.response_bytes
            took_s = time.monotonic() - begin_s
            assert took_s >= (8 + QUERY.response_bytes) * bits / 2400 + 0.012


def test_sixty_meters_back_to_back_keep_the_line_busy(capsys):
    """The simulator must not be the bottleneck: what it adds to the physical time is printed."""
    text = "".join(
        f'[[meter]]\nprofile = "usw-dn15-40"\naddress = "{unit}"\nstart_m3 = "{unit}"\n'
        'usage = ["06:30 8 L in 10 min", "12:00 15 L"]\nvary_percent = 30\nvary_min = 25\n'
        for unit in range(1, 61)
    )
    silence_s = 3.5 * 10 / 9600
    physical_s = ((8 + QUERY.response_bytes) * 10 / 9600 + 0.005 + silence_s) * 60
    with Village(parse(text, where="test"), clock=SystemClock()) as meters, open_port(meters.port) as port:
        cpu_s, begin_s = _thread_cpu_s(), time.monotonic()
        for unit in range(1, 61):
            answer = ask(port, modbus.ReadRequest(unit=unit, function=3, address=0x204, count=4))
            assert modbus.has_crc(answer)
            assert answer[0] == unit
            time.sleep(silence_s)
        took_s, cpu_s = time.monotonic() - begin_s, _thread_cpu_s() - cpu_s
        assert [meters.counts(meter).answers for meter in meters.meters] == [1] * 60
        assert meters.collisions == 0
    with capsys.disabled():
        share = physical_s / took_s
        print(f"\n60 meters at 9600 baud: {share:.1%} of the physical limit; CPU with the client {cpu_s / took_s:.1%}")
    assert took_s >= physical_s
    assert took_s < 3 * physical_s, "a loaded machine may be late, but not that late"


def _thread_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def test_idle_it_uses_no_cpu():
    with village() as meters:
        with open_port(meters.port) as port:
            ask(port, QUERY)
        before_s = _thread_cpu_s()
        time.sleep(0.5)
        assert _thread_cpu_s() - before_s < 0.02


def test_clients_come_and_go():
    with village() as meters:
        for _ in range(5):
            with open_port(meters.port) as port:
                assert modbus.has_crc(ask(port, QUERY))
        raw = os.open(meters.port, os.O_RDWR | os.O_NOCTTY)  # without any settings of its own
        os.write(raw, QUERY.encode())
        answer = b""
        while len(answer) < QUERY.response_bytes:
            answer += os.read(raw, 100)
        assert modbus.has_crc(answer)
        os.write(raw, QUERY.encode()[:3])
        os.close(raw)
        time.sleep(0.1)  # half a request stays behind; the pause ends it
        with open_port(meters.port) as port:
            assert modbus.has_crc(ask(port, QUERY))


def test_a_request_with_a_pause_within_is_none():
    with village() as meters, open_port(meters.port) as port:
        port.write(QUERY.encode()[:5])
        time.sleep(0.1)
        port.write(QUERY.encode()[5:])
        port.timeout = 0.1
        assert port.read(1) == b""
        assert modbus.has_crc(ask(port, QUERY))


def test_nothing_that_is_written_comes_back_unless_there_is_an_echo():
    with village() as meters, open_port(meters.port) as port:
        assert ask(port, modbus.ReadRequest(unit=99, function=3, address=0, count=1), wait_s=0.1) == b""
        port.write(b"\x03\x04\x11\x13\x1a\n\r" * 3)  # what a terminal would act on
        assert port.read(1) == b""
        assert modbus.has_crc(ask(port, QUERY))
    with village("echo = true") as meters, open_port(meters.port) as port:
        port.write(QUERY.encode())
        both = port.read(8 + QUERY.response_bytes)
        assert both[:8] == QUERY.encode()
        assert modbus.has_crc(both[8:])


def test_another_speed_is_not_understood(caplog):
    with village() as meters:
        with open_port(meters.port, baudrate=19200) as port:
            assert ask(port, QUERY, wait_s=0.2) == b""
            assert ask(port, QUERY, wait_s=0.1) == b""
        assert meters.bytes_at_wrong_speed == 16
        assert [record.message.split()[0] for record in caplog.records] == ["port_speed_wrong"]
        with open_port(meters.port, baudrate=9600) as port:
            assert modbus.has_crc(ask(port, QUERY))


def test_a_request_into_an_answer_collides():
    with village("baudrate = 300") as meters, open_port(meters.port, baudrate=300) as port:
        port.write(QUERY.encode())
        first = port.read(3)  # the other ten take a third of a second
        port.write(QUERY.encode())
        rest = port.read(QUERY.response_bytes - 3)
        port.timeout = 0.1
        assert port.read(1) == b""
        assert len(first + rest) == QUERY.response_bytes
        assert not modbus.has_crc(first + rest)
        assert (meters.collisions, meters.counts("usw-dn15-40").collided) == (1, 1)
        assert meters.showed("usw-dn15-40") == []
        assert modbus.has_crc(ask(port, QUERY))


def test_bytes_that_nobody_reads_are_lost_and_nothing_blocks():
    """The kernel's buffers of a pty hold some 68 KiB."""
    rest = "answer_delay_ms = 0\nfault = [{ kind = 'noise', before = 100, after = 100 }]"
    with village("baudrate = 1000000", rest, ["usw-dn15-40"]) as meters:
        raw = os.open(meters.port, os.O_RDWR | os.O_NOCTTY)
        deadline_s = time.monotonic() + 10
        while not meters.bytes_dropped and time.monotonic() < deadline_s:
            os.write(raw, QUERY.encode())
            time.sleep(0.003)
        os.close(raw)
        assert meters.bytes_dropped > 0
        time.sleep(0.05)
        with open_port(meters.port, baudrate=1_000_000) as port:  # opening it throws away what waited
            port.write(QUERY.encode())
            assert len(port.read(200 + QUERY.response_bytes)) == 200 + QUERY.response_bytes


def test_a_flood_of_requests_stays_bounded():
    with village("baudrate = 300") as meters, open_port(meters.port, baudrate=300) as port:
        port.write_timeout = 0.2
        with pytest.raises(serial.SerialTimeoutException):
            for _ in range(10_000):  # 80 kB; at 300 baud the line takes 30 bytes a second
                port.write(QUERY.encode())
        assert meters.counts("usw-dn15-40").requests <= 4096 // 8 + 1


def test_the_seed_decides_which_answers_are_struck():
    def struck():
        line, fault = "baudrate = 115200", "fault = [{ kind = 'exception', code = 6, rate = 0.5 }]"
        with village(line, fault, chance=random.Random(3)) as meters, open_port(meters.port, 115200) as port:
            refused = []
            for _ in range(20):
                port.write(QUERY.encode())
                head = port.read(modbus.EXCEPTION_BYTES)
                refused.append(head[1] == 0x83)
                if not refused[-1]:
                    port.read(QUERY.response_bytes - len(head))
            return refused

    first = struck()
    assert 0 < sum(first) < 20
    assert struck() == first


def test_the_link_is_stable_and_removed(tmp_path):
    link = tmp_path / "port"
    link.symlink_to("/dev/null")  # left behind by one that was killed
    with village(f'link = "{link}"') as meters:
        assert meters.port == str(link)
        assert str(link.readlink()).startswith("/dev/pts/")
        with open_port(str(link)) as port:
            assert modbus.has_crc(ask(port, QUERY))
        assert names_in(tmp_path) == ["port"]
    assert names_in(tmp_path) == []


def test_a_link_that_somebody_else_took_over_stays(tmp_path):
    link = tmp_path / "port"
    with village(f'link = "{link}"'):
        link.unlink()
        link.symlink_to("/dev/null")
    assert link.is_symlink()


def test_never_replaces_anything_but_a_link(tmp_path):
    link = tmp_path / "port"
    link.write_text("precious")
    before = open_files()
    with pytest.raises(VillageError, match="something else is there"):
        village(f'link = "{link}"').start()
    with pytest.raises(VillageError, match="cannot be made"):
        village(f'link = "{tmp_path}/no/port"').start()
    assert link.read_text() == "precious"
    assert open_files() == before, "a failed start leaves no file open"


def test_a_protocol_that_cannot_be_simulated_is_named(monkeypatch):
    monkeypatch.setattr(simulator, "RESPONDERS", {})
    with pytest.raises(VillageError, match="meter usw-dn15-40: profile: speaks modbus, which cannot be simulated"):
        village()


def stopping_clock():
    """Stands in for any bug of ours on the village's thread: the clock fails when it is asked a second time."""
    moments = [SystemClock().now()]
    return types.SimpleNamespace(now=moments.pop)


def test_what_ends_the_thread_is_raised_by_stop():
    meters = village(clock=stopping_clock())
    with open_port(meters.start()) as port:
        port.write(QUERY.encode())
        assert port.read(1) == b""
    with pytest.raises(IndexError):
        meters.stop()
    meters.stop()  # once more does nothing


@pytest.fixture
def village_file(tmp_path):
    file = tmp_path / "village.toml"
    file.write_text(village_text('link = "port"'))
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_answers_until_it_is_told_to_end(village_file, number):
    ready = asyncio.Queue()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(run(village_file, SystemClock(), on_ready=ready.put_nowait))
        path = await ready.get()
        assert Path(path) == village_file.parent / "port"

        def read():
            with open_port(path) as port:
                return ask(port, QUERY)

        assert modbus.has_crc(await asyncio.to_thread(read))
        os.kill(os.getpid(), number)
    assert running.exception() is None
    assert not Path(path).is_symlink()


async def test_run_can_be_cancelled(village_file):
    ready = asyncio.Event()
    running = asyncio.create_task(run(village_file, SystemClock(), on_ready=lambda port: ready.set()))
    await ready.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert names_in(village_file.parent) == ["village.toml"]


async def test_run_raises_what_ended_the_village(village_file):
    path = asyncio.Queue()
    running = asyncio.create_task(run(village_file, stopping_clock(), on_ready=path.put_nowait))
    with open_port(await path.get()) as port:
        port.write(QUERY.encode())
        with pytest.raises(IndexError):
            await running
    assert names_in(village_file.parent) == ["village.toml"]


def test_a_process_of_its_own_ends_cleanly(village_file):
    program = (
        "import asyncio, sys; from pathlib import Path\n"
        "from gateway.clock import SystemClock; from gateway.simulator import run\n"
        "asyncio.run(run(Path(sys.argv[1]), SystemClock(), on_ready=lambda port: print(port, flush=True)))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(village_file)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        with open_port(process.stdout.readline().strip()) as port:
            assert modbus.has_crc(ask(port, QUERY))
        process.terminate()
        assert process.communicate(timeout=10) == ("", "")
        assert process.returncode == 0
    assert names_in(village_file.parent) == ["village.toml"]
