"""`shuiwang valve`: one command, once, only in words; then what the meter says, and never more than it says."""

import itertools
import re

import msgspec
import pytest
from partners.virtual_line import VirtualClock, VirtualPort

from agent.technician import valve_record, valve_words
from agent.technician.reading import Plan
from agent.technician.valve import LOOK_EVERY_S, ValveStation
from agent.technician.valve_words import Action
from gateway.clock import SystemClock
from gateway.line import LineSettings
from protocols import cjt188, cjt188_data, cjt188_dialogue, profile
from protocols.cjt188_data import Cjt188Spec, Valve
from protocols.cjt188_dialogue import Position

METER = "00002020120218"
CLOSED, OPEN = Position.CLOSED, Position.OPEN
SPEC = profile.load("cjt188-water-valve").spec


def plan_of(*, name="cjt188-water-valve", spec=None, address=METER, retries=1, **timing):
    loaded = profile.load(name)
    if timing:
        loaded = msgspec.structs.replace(loaded, timing=profile.Timing(**timing))
    if spec is not None:
        loaded = msgspec.structs.replace(loaded, spec=spec)
    return Plan(
        meter="m-001",
        line=LineSettings(name="line", port="/dev/virtual", baudrate=9600),
        profile=loaded,
        address=loaded.parse_address(address),
        address_text=address,
        timeout_ms=200,
        retries=retries,
    )


class Meter:
    """A meter in virtual time. `lose` says which of its answers (counted from 0) never come; -1: to commands."""

    def __init__(self, clock, *, spec=SPEC, moves_s=5.0, lose=(), status=None):
        self.clock = clock
        self.port = VirtualPort(clock)
        self.port.on_write = self.hear
        self.spec, self.moves_s, self.lose, self.status = spec, moves_s, set(lose), status
        self.is_closed, self._arrives = False, None
        self.heard = []
        self.rewrite = lambda request, answer: answer

    @property
    def commands(self):
        return [frame for frame in self.heard if frame.control not in (0x01, 0x03)]

    def hear(self, data):
        ((_, request),) = cjt188.find_frames(data)
        number = len(self.heard)
        self.heard.append(request)
        if self._arrives and self.clock.now_s >= self._arrives[0]:
            self.is_closed, self._arrives = self._arrives[1], None
        asked = cjt188_dialogue.valve_asked(self.spec, request)
        if asked is not None:
            self._arrives = (self.clock.now_s + self.moves_s, not asked)
        status = cjt188_data.status_of(self.spec, ("valve_closed",) if self.is_closed else ())
        answer = cjt188_dialogue.respond(
            self.spec,
            request,
            address=METER,
            totals_ml={cjt188_data.CURRENT: 12_340_000},
            status=self.status or status,
        )
        answer = self.rewrite(request, answer)
        if answer and number not in self.lose and not (asked is not None and -1 in self.lose):
            self.port.arrive(self.clock.now_s + 0.06, answer)


def station_of(meter, plan=None, **options):
    return ValveStation(
        plan or plan_of(spec=meter.spec),
        **options,
        clock=SystemClock(),
        opener=meter.port.open,
        monotonic=meter.clock.monotonic,
        pause=meter.clock.pause,
    )


def move(target=CLOSED, *, limit_s=60.0, plan=None, **how):
    meter = Meter(VirtualClock(), **how)
    return station_of(meter, plan).move(target, limit_s=limit_s), meter


class TestMove:
    @pytest.mark.parametrize(("target", "code"), [(CLOSED, 0x99), (OPEN, 0x55)])
    def test_it_is_read_sent_once_and_read_until_it_is_there(self, target, code):
        report, meter = move(target)
        assert [frame.control for frame in meter.heard[:3]] == [0x01, 0x04, 0x01]
        (command,) = meter.commands
        assert command.address == METER
        assert command.data[:2] == b"\xa0\x17"
        assert command.data[3:] == bytes([code])
        assert report.before.position is OPEN
        assert report.before.volume_ml == 12_340_000
        assert (report.is_sent, report.is_confirmed, report.position) == (True, True, target)
        assert report.command.status == b"\0\0"
        looks = len(report.after)
        assert looks == (5 if target is CLOSED else 2), "5 s of movement, a look every 2 s, and one to make sure"

    def test_every_request_has_its_own_number(self):
        _, meter = move()
        serials = [frame.serial for frame in meter.heard]
        assert serials == [(serials[0] + number) % 256 for number in range(len(serials))]

    def test_the_first_number_is_left_to_chance(self):
        """The process before us began with one of its own; a late answer to it must not fit ours."""
        numbers = set()
        for _ in range(8):
            _, meter = move()
            numbers.add(meter.heard[0].serial)
        assert len(numbers) > 1

    @pytest.mark.parametrize("asked", ["reading", "command"])
    def test_a_late_answer_to_the_process_before_is_not_taken(self, asked):
        """It asked the same, began at 00 and was stopped; its answer comes in time for our request, ours never."""
        meter = Meter(VirtualClock(), moves_s=1e9)
        late = Meter(VirtualClock(), status=cjt188_data.status_of(SPEC, ("valve_closed",)))
        predecessor = station_of(late, chance=lambda: 0.0)
        predecessor.move(CLOSED, limit_s=0)
        answered = {
            request.control: cjt188_dialogue.respond(
                SPEC, request, address=METER, totals_ml={cjt188_data.CURRENT: 99_000_000}, status=late.status
            )
            for request in late.heard[:2]
        }
        assert [request.serial for request in late.heard[:2]] == [0, 1]
        wanted = 0x01 if asked == "reading" else 0x04
        meter.rewrite = lambda request, answer: answered[wanted] if request.control == wanted else answer
        report = station_of(meter, chance=lambda: 0.5).move(CLOSED, limit_s=0)
        if asked == "reading":
            assert report.before.error.reason == "wrong_answer"
            assert report.command is None
        else:
            assert (report.command.reason, report.command.status) == ("wrong_answer", None)
        assert meter.heard[0].serial == 0x80
        assert not report.is_confirmed

    def test_without_any_answer_nothing_is_sent(self):
        report, meter = move(lose=range(100))
        assert [frame.control for frame in meter.heard] == [0x01, 0x01]
        assert (report.command, report.after, report.is_sent, report.is_confirmed) == (None, (), False, False)
        assert report.before.error.reason == "no_response"
        assert "Is the meter powered?" in valve_words.check_next(report)[0].en

    def test_a_command_without_answer_is_not_repeated_but_looked_after(self):
        report, meter = move(lose=[-1])
        assert len(meter.commands) == 1
        assert (report.command.reason, report.command.status) == ("no_response", None)
        assert (report.is_sent, report.is_confirmed) == (True, True)

    @pytest.mark.parametrize("lost", [*range(8), (0, 1), (2, 3), (2, 3, 4, 5), tuple(range(2, 100)), tuple(range(100))])
    def test_whichever_answer_is_lost_there_is_one_command_at_most(self, lost):
        numbers = lost if isinstance(lost, tuple) else (lost,)
        report, meter = move(lose=numbers, limit_s=20)
        assert len(meter.commands) == report.is_sent <= 1
        assert report.is_confirmed == (report.is_sent and meter.is_closed and report.after[-1].error is None)

    def test_silence_after_the_command_is_not_confirmed(self):
        report, meter = move(lose=range(1, 1000), limit_s=20)
        assert len(meter.commands) == 1
        assert (report.is_sent, report.is_confirmed, report.position) == (True, False, Position.UNKNOWN)
        assert {look.error.reason for look in report.after} == {"no_response"}
        assert valve_words.check_next(report)[0] == valve_words.GO_AND_LOOK

    def test_a_valve_that_stays_is_not_confirmed_when_the_time_is_up(self):
        report, meter = move(moves_s=1e9, limit_s=10)
        assert (report.is_confirmed, report.position) == (False, OPEN)
        assert 10 <= (report.took_ms - report.command.at_ms) / 1000 < 10 + LOOK_EVERY_S
        assert len(meter.commands) == 1

    def test_no_time_to_wait_is_still_one_look(self):
        report, _ = move(limit_s=0)
        assert len(report.after) == 1
        assert not report.is_confirmed

    @pytest.mark.parametrize("limit_s", [0, 20])
    def test_one_reading_confirms_nothing_two_in_a_row_do(self, limit_s):
        """A frame that noise has turned into one that says closed: 1 in 256 passes the checksum."""
        meter = Meter(VirtualClock(), moves_s=1e9)

        def rewrite(request, answer):
            false = cjt188_dialogue.respond(
                SPEC, request, address=METER, totals_ml={cjt188_data.CURRENT: 12_340_000}, status=b"\1\0"
            )
            return false if len(meter.heard) == 3 else answer

        meter.rewrite = rewrite
        report = station_of(meter).move(CLOSED, limit_s=limit_s)
        assert [look.position for look in report.after[:2]] == [CLOSED, OPEN]
        assert (report.is_confirmed, report.position) == (False, OPEN)

    def test_a_second_reading_that_fails_confirms_nothing(self):
        report, meter = move(moves_s=0, limit_s=0, lose=range(3, 100))
        assert [look.position for look in report.after] == [CLOSED, Position.UNKNOWN]
        assert (report.is_confirmed, len(meter.commands)) == (False, 1)

    def test_the_command_is_noted_before_it_goes_out(self):
        meter, noted = Meter(VirtualClock()), []
        station = station_of(meter)
        station.move(CLOSED, limit_s=9, note=lambda frame: noted.append((frame, len(meter.commands))))
        ((frame, sent_before),) = noted
        assert (frame, sent_before) == (station._command_bytes, 0)

    def test_a_meter_that_refuses_is_looked_at_once(self):
        meter = Meter(VirtualClock())
        meter.rewrite = lambda request, answer: (
            answer
            if request.control == 0x01
            else cjt188.refusal(request, b"\4\0", address=METER, meter_type=0x10).encode()
        )
        report = station_of(meter).move(CLOSED, limit_s=60)
        assert (report.command.reason, report.is_sent, report.is_confirmed) == ("refused", True, False)
        assert len(report.after) == 1
        assert len(meter.commands) == 1
        assert any("refused" in words.en for words in valve_words.check_next(report))

    @pytest.mark.parametrize("change", ["address", "serial", "flip", "early_read"])
    def test_an_answer_that_is_not_to_this_command_is_none(self, change):
        """Another meter's, a late one, a damaged one, the answer to a reading: none says that the command was taken."""

        def rewrite(request, answer):
            if request.control == 0x01:
                return answer
            if change == "flip":
                return answer[:-3] + bytes([answer[-3] ^ 1]) + answer[-2:]
            ((_, frame),) = cjt188.find_frames(answer)
            other = {
                "address": {"address": "00002020120219"},
                "serial": {"data": frame.data[:2] + bytes([frame.data[2] - 1]) + frame.data[3:]},
                "early_read": {"control": 0x81, "data": b"\x90\x1f" + frame.data[2:]},
            }[change]
            return msgspec.structs.replace(frame, **other).encode()

        meter = Meter(VirtualClock(), moves_s=1e9)
        meter.rewrite = rewrite
        report = station_of(meter).move(CLOSED, limit_s=5)
        assert report.command.reason == ("garbled" if change == "flip" else "wrong_answer")
        assert report.command.status is None
        assert len(meter.commands) == 1
        assert not report.is_confirmed

    def test_the_answer_alone_confirms_nothing(self):
        """Its status may be what the meter intends; a reading must say so."""
        meter = Meter(VirtualClock(), moves_s=1e9)
        meter.rewrite = lambda request, answer: (
            answer
            if request.control == 0x01
            else cjt188.answer(request, b"\1\xff", address=METER, meter_type=0x10).encode()
        )
        report = station_of(meter).move(CLOSED, limit_s=5)
        assert report.command.status == b"\1\xff"
        assert (report.position, report.is_confirmed) == (OPEN, False)

    def test_where_readings_have_no_status_the_answer_is_all_there_is(self):
        spec = Cjt188Spec(layout="short", status=SPEC.status, valve=SPEC.valve)
        report, _ = move(spec=spec, status=b"\1\xff")
        assert report.after[0].status is None
        assert len(report.after) == 1, "further readings would not tell either"
        assert report.is_confirmed
        assert not move(OPEN, spec=spec, status=b"\1\xff")[0].is_confirmed

    @pytest.mark.parametrize(
        ("status", "position"), [(b"\xff\xff", Position.UNKNOWN), (b"\2\0", Position.FAULT), (b"\3\0", Position.FAULT)]
    )
    def test_a_status_that_is_empty_or_a_fault_confirms_nothing(self, status, position):
        for target in (OPEN, CLOSED):
            report, meter = move(target, status=status, limit_s=8)
            assert (report.position, report.is_confirmed) == (position, False)
            assert len(meter.commands) == 1

    def test_a_profile_without_the_bit_cannot_confirm(self):
        spec = Cjt188Spec(valve=Valve(open=0x55, close=0x99))
        report, meter = move(spec=spec)
        assert (report.position, report.is_confirmed) == (Position.UNKNOWN, False)
        assert len(meter.commands) == 1

    def test_the_port_that_goes_away_with_the_command(self):
        meter = Meter(VirtualClock())
        meter.rewrite = lambda request, answer: (
            answer if request.control == 0x01 else meter.port.go_away(meter.clock.now_s, 1e9)
        )
        report = station_of(meter).move(CLOSED, limit_s=5)
        assert (report.command.reason, report.is_sent, report.is_confirmed) == ("port_lost", True, False)
        assert len(meter.commands) == 1

    def test_the_port_that_was_gone_before_sent_nothing(self):
        meter = Meter(VirtualClock())

        def after_the_look(stage, look, elapsed_s):
            if stage == "command":
                meter.port.go_away(meter.clock.now_s, 1e9)

        report = station_of(meter).move(CLOSED, limit_s=5, progress=after_the_look)
        assert (report.command.reason, report.is_sent) == ("port_lost", False)
        assert meter.commands == []
        assert report.after == ()

    def test_a_babbling_line_may_have_carried_the_command(self):
        """The record of the wire is full: what it no longer holds is not taken for never sent."""
        meter = Meter(VirtualClock(), lose=[-1])
        station = station_of(meter)

        def fill(stage, look, elapsed_s):
            if stage == "command":
                while not station._line._trace.bytes_forgotten:
                    station._line._trace.add("rx", bytes(8))

        report = station.move(CLOSED, limit_s=60, progress=fill)
        assert len(meter.commands) == 1
        assert not any(b"\xa0\x17" in frame.data for frame in report.frames)
        assert report.is_sent

    @pytest.mark.parametrize("at", ["command", "watch"])
    def test_ctrl_c_after_the_command_still_tells_what_was_sent(self, at):
        meter = Meter(VirtualClock())

        def interrupt(*_):
            raise KeyboardInterrupt

        def progress(stage, look, elapsed_s):
            if stage == at == "watch":
                raise KeyboardInterrupt

        if at == "command":
            meter.rewrite = lambda request, answer: answer if request.control == 0x01 else interrupt()
        station = station_of(meter)
        report = station.move(CLOSED, limit_s=60, progress=progress)
        assert (report.is_interrupted, report.is_sent, report.is_confirmed) == (True, True, False)
        assert report.command.reason == ("interrupted" if at == "command" else None)
        assert station.has_begun

    def test_ctrl_c_before_the_command_ends_it(self):
        meter = Meter(VirtualClock())

        def progress(stage, look, elapsed_s):
            raise KeyboardInterrupt

        station = station_of(meter)
        with pytest.raises(KeyboardInterrupt):
            station.move(CLOSED, limit_s=60, progress=progress)
        assert not station.has_begun
        assert meter.heard == []

    @pytest.mark.parametrize("sleeps_after_ms", [0, 1000])
    def test_a_meter_that_sleeps_is_woken_by_reading_and_never_by_the_command(self, sleeps_after_ms):
        plan = plan_of(wake_up=profile.WakeUp(sleeps_after_ms=sleeps_after_ms, takes_ms=400))
        meter = Meter(VirtualClock())
        awake_until = [float("-inf")]

        def rewrite(request, answer):
            is_awake = meter.clock.now_s <= awake_until[0]
            awake_until[0] = meter.clock.now_s + max(2.0, sleeps_after_ms / 1000)
            return answer if is_awake else b""

        meter.rewrite = rewrite
        report = station_of(meter, plan).move(CLOSED, limit_s=60)
        assert len(meter.commands) == 1
        assert meter.heard[0].control == 0x01
        assert report.is_confirmed

    def test_the_line_is_silent_before_each_request_as_the_profile_says(self):
        meter, times = Meter(VirtualClock()), []
        hear = meter.port.on_write
        meter.port.on_write = lambda data: (times.append(meter.clock.now_s), hear(data))
        station_of(meter, plan_of(turnaround_ms=700)).move(CLOSED, limit_s=0)
        assert all(later - earlier >= 0.7 for earlier, later in itertools.pairwise(times))
        assert len(times) == 3

    def test_while_the_order_is_probed_the_one_that_was_understood_is_sent(self):
        low = msgspec.structs.replace(SPEC, di_order=cjt188_data.DiOrder.LOW_FIRST)
        probing = plan_of(spec=msgspec.structs.replace(SPEC, di_order=cjt188_data.DiOrder.PROBE))
        report, meter = move(spec=low, plan=probing)
        (command,) = meter.commands
        assert command.identifier == b"\x17\xa0"
        assert report.is_confirmed


class TestWords:
    @pytest.mark.parametrize(
        "text",
        [
            f"close {METER}",
            f"  Close   {METER}\n",
            f"CLOSE{METER}",
            f"关阀 {METER}",
            f"关阀{METER}",
            "关阀　００００２０２０１２０２１８",  # as a Chinese input method types it
        ],
    )
    def test_those_that_name_what_will_happen(self, text):
        assert valve_words.says_so(text, plan_of(), Action.CLOSE)
        assert not valve_words.says_so(text, plan_of(), Action.OPEN)
        assert not valve_words.says_so(text, plan_of(address="00002020120219"), Action.CLOSE)

    @pytest.mark.parametrize(
        "text",
        ["", "y", "yes", "close", METER, f"open {METER}", f"开阀 {METER}", f"close {METER[1:]}", f"close {METER}0",
         f"closed {METER}", "close 2020120218", f"close {METER} now", f"close m-001 {METER}"],
    )  # fmt: skip
    def test_nothing_less_and_nothing_else(self, text):
        assert not valve_words.says_so(text, plan_of(), Action.CLOSE)

    def test_behind_a_modem_it_is_the_number_of_the_label(self):
        loaded = plan_of(address=f"0005:{METER}")
        assert valve_words.phrases(loaded, Action.CLOSE) == (f"close {METER}", f"关阀 {METER}")

    def test_closing_says_what_it_means_for_the_home(self):
        said = " ".join(words.en for words in valve_words.WARNINGS[Action.CLOSE])
        assert "all water" in said
        assert "live here alone" in said
        assert "low-usage alert" in said

    @pytest.mark.parametrize(
        ("name", "address", "actions", "words"),
        [
            ("cjt188-water", METER, "open close status", "names no"),
            ("cjt188-short", METER, "open close status", "names no"),
            ("usw-dn15-40", "17", "open close status", "CJ/T 188 meters only"),
            ("mbus-water", "5", "open close status", "CJ/T 188 meters only"),
            ("cjt188-water-valve", "A" * 14, "open close", "is every meter"),
        ],
    )
    def test_what_stands_in_the_way_and_what_to_do(self, name, address, actions, words):
        for action in Action:
            found = valve_words.obstacle(plan_of(name=name, address=address), action)
            assert (found is not None) == (action in actions.split())
            if found:
                assert words in found[0].en
                assert found[0].zh
                assert found[1]

    @pytest.mark.parametrize("name", ["cjt188-water-valve", "cjt188-water-valve-2a"])
    def test_nothing_stands_in_the_way_of_those_that_name_it(self, name):
        assert not any(valve_words.obstacle(plan_of(name=name), action) for action in Action)


class TestRecord:
    def test_a_line_for_each_event(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("SUDO_USER", "zhang\nroot")
        caplog.set_level("INFO")
        record = valve_record.ValveRecord(tmp_path, clock=SystemClock(), always={"meter": "m-001"})
        record.write("valve_asked")
        record.write("valve_moved", position="closed")
        first, second = map(msgspec.json.decode, (tmp_path / "valve.jsonl").read_bytes().splitlines())
        assert (first["event"], first["meter"], second["position"]) == ("valve_asked", "m-001", "closed")
        assert "(sudo zhang\nroot)" in first["by"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", first["at"])
        assert all("\n" not in line.getMessage() for line in caplog.records), "what a person typed is quoted"
        assert 'valve_moved by="' in caplog.text

    def test_the_file_has_a_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(valve_record, "FILE_BYTES_MAX", 1000)
        record = valve_record.ValveRecord(tmp_path, clock=SystemClock(), always={})
        for number in range(100):
            record.write("valve_asked", number=number)
        lines = [
            msgspec.json.decode(line)["number"]
            for name in ("valve.jsonl.1", "valve.jsonl")
            for line in (tmp_path / name).read_bytes().splitlines()
        ]
        assert lines == list(range(100))[-len(lines) :]
        assert len(lines) >= 9
        assert {file.name for file in tmp_path.iterdir()} == {"valve.jsonl", "valve.jsonl.1"}

    def test_without_a_folder_the_log_line_is_all(self, tmp_path):
        for folder in (None, tmp_path / "nowhere"):
            valve_record.ValveRecord(folder, clock=SystemClock(), always={}).write("valve_asked")
        assert list(tmp_path.iterdir()) == []
