"""Reading meters: what counts as an answer, and thousands of exchanges with meters that do everything wrong."""

import contextlib
import functools

import pytest
from partners import faulty_village
from partners.dialogue import SPECS, make_reader
from partners.faulty_meters import RATES, SERIAL_ONLY, SHORT_CHECKSUM_ONLY, Cjt188Meter, MbusMeter, Register
from partners.faulty_village import MODBUS, READS, RETRIES, TIMEOUT_MS, Village
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line

from gateway import meters as meters_module
from gateway import modbus_master
from gateway.line import BABBLE_S_MAX, BURST_GRACE_S, HOLD_OFF_S_MAX
from gateway.meters import (
    ANSWERS_MAX,
    DECOY_PAUSE_S,
    OUTSTANDING_MAX,
    OUTSTANDING_S_MAX,
    PROBATION_S,
    MeterReader,
)
from protocols import mbus, modbus, modbus_ascii, modbus_tcp
from protocols.errors import Garbled, MeterError, MeterFault, MeterRefused, NoResponse, PortLost, WrongAnswer
from protocols.reading import Measurement

# `make fuzz` reads hundreds of villages.
SEEDS = range(1, 9)


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch):
    skip_real_pauses(monkeypatch)


# -- thousands of exchanges -------------------------------------------------------------------------------------------


@functools.cache
def lived(seed):
    """A village after all its reads; told in one line."""
    village = Village(seed)
    village.live(READS)
    print(f"seed {seed}: {village.meters.requests}, faults {village.meters.tally}, outcomes {village.outcomes}")
    return village


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault_ever_becomes_a_value(seed):
    village = lived(seed)
    assert not village.wrong, f"seed {seed}: (meter, volume, it showed from, to) {village.wrong[:5]}"
    assert sum(village.outcomes.values()) == READS, "every read is accounted for"
    for protocol in village.meters.requests:
        came = sum(count for (of, _), count in village.outcomes.items() if of == protocol)
        assert village.outcomes[protocol, "value"] > 0.02 * came, "values still come"
    # No read is a hang: every attempt asks for a bounded number of answers, each within its bounds.
    longest_frame_s = mbus.FRAME_BYTES_MAX * village.line.settings.byte_s
    exchange_s = TIMEOUT_MS / 1000 + min(TIMEOUT_MS / 1000, HOLD_OFF_S_MAX) + longest_frame_s + BURST_GRACE_S + 0.1
    assert village.longest_s < (ANSWERS_MAX + RETRIES) * 2 * (OUTSTANDING_MAX + 1) * exchange_s + BABBLE_S_MAX
    # When the faults end, every meter is read again.
    village.meters.faulty = village.meters.echo = False
    village.port.clock.pause(10)
    for address in village.addresses:
        assert village.read(address), address
    assert not village.wrong


def test_every_fault_was_tried_and_every_outcome_seen():
    villages = [lived(seed) for seed in SEEDS]
    outcomes = {"value", "no_response", "garbled", "wrong_answer", "refused", "port_lost"}
    faults = {*RATES, "late constantly", "one behind for ever"}
    short = {"damage with a right checksum"}
    for protocol, wanted in (
        ("Modbus", faults - SHORT_CHECKSUM_ONLY),
        ("Modbus TCP", faults - SHORT_CHECKSUM_ONLY - SERIAL_ONLY),
        ("Modbus ASCII", faults | short),
        ("CJ/T 188", faults | short),
        ("M-Bus", faults | short),
    ):
        came = {fault for village in villages for of, fault in village.meters.tally if of == protocol}
        assert came == wanted, protocol
        seen = {reason for village in villages for of, reason in village.outcomes if of == protocol}
        assert seen >= outcomes - ({"garbled"} if protocol == "Modbus TCP" else set()), protocol


def test_the_judge_convicts_a_master_without_the_guard():
    """The same meters, and a master as they are usually written: drop what is there, ask, take what fits."""
    village = Village(1)
    line, port = village.line, village.port
    line._ensure_open(0)

    def careless(unit):
        request = modbus.ReadRequest(unit=unit, function=3, address=0, count=2)
        for _ in range(1 + RETRIES):
            try:
                port.read(port.in_waiting)
                registers = modbus.decode_response(line._ask(request, TIMEOUT_MS / 1000))
                return registers[0] << 16 | registers[1]
            except OSError as error:
                raise PortLost from error
            except MeterError as error:
                failure = error
        raise failure

    for _ in range(300):
        unit = village.dice.choice([1, 2])
        village.read(str(unit), read=lambda unit=unit: careless(unit))
    assert len(village.wrong) > 5


@pytest.mark.parametrize("guard", ["_fresh_answer", "_prove_in_step", "_answers_decoy", "_has_short_checksum"])
def test_every_part_of_the_guard_is_needed(guard, monkeypatch):
    """Without one of them the judge finds wrong values, so the test above can fail."""
    addresses = MODBUS
    if guard == "_fresh_answer":
        one_answer = lambda self, line, request: modbus_master.exchange(line, request, timeout_ms=self._timeout_ms)
        monkeypatch.setattr(MeterReader, guard, one_answer)
    elif guard == "_prove_in_step":
        monkeypatch.setattr(MeterReader, guard, lambda self, line, asked: self._outstanding.clear())
    elif guard == "_answers_decoy":
        monkeypatch.setattr(MeterReader, guard, lambda self, line, asked: True)
    else:
        monkeypatch.setattr(MeterReader, guard, lambda self, line: False)
        addresses = None
    for seed in range(40):
        village = Village(seed)
        village.live(700, addresses=addresses)
        if village.wrong:
            return
    pytest.fail("no wrong value")


@pytest.mark.parametrize("part", ["a new process", "exceptions"])
def test_starts_and_exceptions_have_to_be_counted(part, monkeypatch):
    if part == "a new process":
        in_step = lambda *arguments, **options: make_reader(*arguments, **options | {"new": False})
        monkeypatch.setattr(faulty_village, "make_reader", in_step)
    else:
        monkeypatch.setattr(meters_module, "_leaves_open", lambda query, frame: False)
    for seed in range(40):
        village = Village(seed)
        village.live(700)
        if village.wrong:
            return
    pytest.fail("no wrong value")


# -- what counts ------------------------------------------------------------------------------------------------------


class Script:
    """Answers to requests, one after the other: a volume, None for silence, bytes, or an exception code as a str."""

    def __init__(self, *answers, framing="rtu", **options):
        self.port = VirtualPort(VirtualClock())
        self.line = virtual_line(self.port, framing=framing)
        self.reader = make_reader("counter", "17", timeout_ms=TIMEOUT_MS, **options)
        self.requests = 0
        self.decoys = 0
        self.at_decoy = lambda request: modbus.encode_response(request, [0xFFFF])
        self._answers = list(answers)
        self.port.on_write = self._answer

    def _take(self, data):
        if self.line.settings.framing == "tcp":
            self._transaction = int.from_bytes(data[:2], "big")
            data = modbus_tcp.rtu_frame(data)
        return modbus.decode_request(data)

    def _send(self, answer):
        """An RTU frame; a TCP gateway passes it on under the transaction of the last request, whosever it is."""
        if self.line.settings.framing == "tcp":
            answer = modbus_tcp.encode_frame(answer[:-2], transaction=self._transaction)
        self.port.arrive(self.port.clock.now_s + 0.02, answer)

    def _answer(self, data):
        request = self._take(data)
        if request.count == 1:
            self.decoys += 1
            answer = self.at_decoy(request)
        else:
            self.requests += 1
            answer = self._answers.pop(0)
        if isinstance(answer, int):
            answer = modbus.encode_response(request, [answer >> 16, answer & 0xFFFF])
        elif isinstance(answer, str):
            answer = modbus.encode_exception(request, int(answer))
        if answer is not None:
            self._send(answer)

    def read(self):
        return self.reader.read(self.line).volume_ml

    def fails(self, error):
        with pytest.raises(error):
            self.read()


def test_a_meter_in_step_is_asked_once():
    script = Script(1, 2, 3)
    assert [script.read() for _ in range(3)] == [1, 2, 3]
    assert script.requests == 3


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_repeats_are_bounded_and_fewer_after_a_failed_read(retries):
    script = Script(*[None] * 20, retries=retries)
    script.fails(NoResponse)
    assert script.requests == 1 + retries
    script.fails(NoResponse)
    assert script.requests == 2 + retries


def test_after_n_failures_the_answer_after_n_others_counts():
    script = Script(None, None, 1, 2, 3, 4, retries=1)
    script.fails(NoResponse)
    assert script.read() == 3
    script.port.clock.pause(PROBATION_S)
    assert script.read() == 4, "in step again: one answer is enough"


def test_failures_are_not_forgiven_at_once():
    """A meter that hung answers in bursts; the next one may come after the line was found silent."""
    script = Script(None, 1, 2, 3, 4, 5, 6)
    script.fails(NoResponse)
    assert script.read() == 2
    assert script.read() == 4
    script.port.clock.pause(PROBATION_S)
    assert script.read() == 5


def test_failures_are_forgiven_by_time_but_for_the_last():
    script = Script(*[None] * 5, 1, 2, 3)
    for _ in range(5):
        script.fails(NoResponse)
    script.port.clock.pause(OUTSTANDING_S_MAX + 1)
    assert script.read() == 2
    script.port.clock.pause(PROBATION_S)
    assert script.read() == 3


def test_of_the_old_failures_one_stays_beside_the_new_ones():
    """A serial server may hold an answer back for ever, and a meter be late besides."""
    script = Script(None, None, None, 1, 2, 3)
    for _ in range(2):
        script.fails(NoResponse)
    script.port.clock.pause(OUTSTANDING_S_MAX + 1)
    script.fails(NoResponse)
    assert script.read() == 3


def test_failures_without_end_ask_for_a_bounded_number_of_answers():
    script = Script(*[None] * 100, *range(100))
    for _ in range(100):
        script.fails(NoResponse)
    script.requests = 0
    script.read()
    assert script.requests <= OUTSTANDING_MAX + 1


def test_a_refusal_is_not_repeated_and_leaves_the_meter_one_that_answers():
    script = Script("2", None, 1, 2, retries=1)
    script.fails(MeterRefused)
    assert script.requests == 1
    assert script.read() == 2


def test_an_answer_without_a_volume_is_not_repeated():
    script = Script(None, None, None, retries=1)
    unit = [modbus.encode_response(modbus.ReadRequest(unit=17, function=3, address=0, count=2), [0, 7])]
    unit += [modbus.encode_response(modbus.ReadRequest(unit=17, function=3, address=16, count=2), [0, 9])]
    script.reader = make_reader("two-blocks", "17", timeout_ms=TIMEOUT_MS, retries=1)
    script._answers = unit
    script.fails(MeterFault)
    assert script.requests == 2


@pytest.mark.parametrize(
    ("answer", "error"), [(b"\x55" * 9, Garbled), (modbus.add_crc(b"\x12\x03\x02\0\0"), WrongAnswer)]
)
def test_bytes_that_are_no_answer_count_as_a_failure(answer, error):
    script = Script(answer, 1, 2)
    script.fails(error)
    assert script.read() == 2


def test_an_outage_of_the_port_asks_for_a_second_answer():
    script = Script(1, 2, 3, 4)
    assert script.read() == 1
    script.port.go_away(script.port.clock.now_s, script.port.clock.now_s + 1)
    for _ in range(5):
        script.fails(PortLost)
    script.port.clock.pause(2)
    assert script.read() == 3
    script.port.clock.pause(PROBATION_S)
    assert script.read() == 4


def test_an_outage_while_failures_wait_to_be_forgiven_is_a_failure():
    script = Script(None, 1, 2, 3, 4, 5, 6)
    script.fails(NoResponse)
    assert script.read() == 2
    script.port.go_away(script.port.clock.now_s, script.port.clock.now_s + 1)
    script.fails(PortLost)
    script.port.clock.pause(PROBATION_S)
    assert script.read() == 5, "the first failure, and the request that may have left"


# -- the decoy --------------------------------------------------------------------------------------------------------


class OneBehind(Script):
    """A serial server that, after its first request, holds each answer back until the next request comes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.volume = 0
        self.at_decoy = lambda request: modbus.encode_response(request, [0xFFFF])
        self._held = None

    def _answer(self, data):
        self.volume += 1
        request = self._take(data)
        if request.count == 1:
            self.decoys += 1
            answer = self.at_decoy(request)
        else:
            answer = modbus.encode_response(request, [0, self.volume])
        if self._held:
            self._send(self._held)
        self._held = answer


@pytest.mark.parametrize("poll_every_s", [10, 60, 300])
@pytest.mark.parametrize("at_decoy", ["answers", "refuses", "is silent"])
def test_a_server_that_holds_one_answer_back_for_ever_never_gives_an_old_value(poll_every_s, at_decoy):
    script = OneBehind(retries=1)
    if at_decoy == "refuses":
        script.at_decoy = lambda request: modbus.encode_exception(request, modbus.ILLEGAL_DATA_ADDRESS)
    if at_decoy == "is silent":
        script.at_decoy = lambda request: None
    for _ in range(30):
        before = script.volume
        try:
            assert script.read() > before, "measured in this read"
        except MeterError:
            pass
        script.port.clock.pause(poll_every_s)
    assert script.decoys > 0


def test_what_is_one_behind_is_said():
    script = OneBehind(retries=1)
    with pytest.raises(WrongAnswer, match="behind"):
        script.read()


def forgiven(at_decoy, **options):
    """How often a meter is asked at the second read after one failure, and the script."""
    script = Script(None, *range(1, 20), **options)
    script.at_decoy = at_decoy
    script.fails(NoResponse)
    script.read()
    script.port.clock.pause(PROBATION_S)
    script.requests = 0
    script.read()
    return script.requests, script


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_meter_that_refuses_the_decoy_is_in_step(code):
    assert forgiven(lambda request: modbus.encode_exception(request, code))[0] == 1


@pytest.mark.parametrize("code", [4, 5, 6, 8, 10, 11])
def test_an_exception_that_any_request_may_bring_proves_nothing(code):
    requests, script = forgiven(lambda request: modbus.encode_exception(request, code))
    assert requests == 3, "the failure and the decoy are outstanding"
    assert script.decoys == 1, "it is not repeated before its own answer can no longer come"


@pytest.mark.parametrize("framing", ["rtu", "tcp"])
@pytest.mark.parametrize(("code", "asked"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (10, 2), (11, 2)])
def test_after_an_exception_that_the_request_does_not_explain_its_answer_may_still_come(framing, code, asked):
    script = Script(str(code), 1, 2, framing=framing)
    script.fails(MeterRefused)
    assert script.read() == asked


@pytest.mark.parametrize("framing", ["rtu", "tcp"])
def test_a_busy_meter_is_not_asked_again_at_once(framing):
    script = Script(None, "6", 1, 2, 3, framing=framing)
    script.fails(NoResponse)
    script.fails(MeterRefused)
    assert script.requests == 2
    assert script.read() == 3


@pytest.mark.parametrize("framing", ["rtu", "tcp"])
def test_a_new_process_asks_twice_and_sends_the_decoy_once(framing):
    script = Script(1, 2, 3, 4, new=True, framing=framing)
    assert script.read() == 2
    assert script.decoys == 1
    script.port.clock.pause(PROBATION_S)
    assert [script.read(), script.read()] == [3, 4]
    assert (script.decoys, script.requests) == (1, 4)


@pytest.mark.parametrize("framing", ["rtu", "tcp"])
def test_a_gateway_that_was_behind_before_we_started_gives_no_value(framing):
    script = OneBehind(new=True, framing=framing, retries=1)
    script._held = modbus.encode_response(modbus.ReadRequest(unit=17, function=3, address=0, count=2), [0, 0])
    for _ in range(10):
        with pytest.raises(MeterError):
            script.read()
        script.port.clock.pause(60)


def test_a_meter_that_is_silent_to_the_decoy_still_gives_values_and_is_seldom_asked_it():
    requests, script = forgiven(lambda request: None)
    assert requests == 3, "the failure and the decoy are outstanding"
    assert script.decoys == 1
    script.port.clock.pause(DECOY_PAUSE_S)
    script.read()
    assert script.decoys == 2


def test_a_meter_that_is_never_heard_after_a_decoy_costs_one_short_exchange_more():
    script = Script(*[5] * 1000, new=True)
    script.at_decoy = lambda request: None
    clock = script.port.clock
    took_s = []
    for _ in range(288):
        began_s = clock.now_s
        assert script.read() == 5
        took_s.append(clock.now_s - began_s)
        clock.pause(300)
    assert script.requests == 2 * 288, "what may be held back costs a request, always"
    assert script.decoys <= 10
    assert sorted(took_s)[288 * 9 // 10] < 0.1, "and nothing is listened for"


def test_a_decoy_is_tried_every_day_however_often_it_was_not_answered():
    script = Script(*[5] * 1000, new=True)
    script.at_decoy = lambda request: None
    decoys_by_day = []
    for _ in range(10):
        before = script.decoys
        for _ in range(24):
            script.read()
            script.port.clock.pause(3600)
        decoys_by_day.append(script.decoys - before)
    assert sum(decoys_by_day[3:]) >= 6


def test_a_decoy_that_was_answered_ends_the_putting_off():
    script = Script(*[5] * 100, new=True)
    silent, answers = (lambda request: None), script.at_decoy
    script.at_decoy = silent
    for _ in range(10):
        script.read()
        script.port.clock.pause(300)
    script.at_decoy = answers
    for _ in range(15):
        script.read()
        script.port.clock.pause(300)
    requests = script.requests
    script.read()
    assert script.requests == requests + 1, "it is in step"
    script._answers.insert(0, None)
    script.fails(NoResponse)
    script.at_decoy = silent
    for decoys in (1, 2):
        before = script.decoys
        script.port.clock.pause(DECOY_PAUSE_S)
        script.read()
        assert script.decoys == before + 1, f"decoy {decoys} after the failure is not put off"


def test_after_a_new_failure_the_next_decoy_is_not_put_off_for_long():
    script = Script(*[5] * 36, None, *[5] * 10, new=True)
    script.at_decoy = lambda request: None
    for _ in range(18):  # the next decoy would be due in an hour
        script.read()
        script.port.clock.pause(300)
    decoys = script.decoys
    script.fails(NoResponse)
    script.port.clock.pause(DECOY_PAUSE_S)
    script.read()
    assert script.decoys == decoys + 1


def test_something_after_the_answer_to_the_decoy_proves_nothing():
    script = Script(None, 1, 2)
    arrive = script.port.arrive
    late = modbus.encode_response(modbus.ReadRequest(unit=17, function=3, address=0, count=2), [0, 1])

    def answer_twice(request):
        arrive(script.port.clock.now_s + 0.09, late)
        return modbus.encode_response(request, [7])

    script.at_decoy = answer_twice
    script.fails(NoResponse)
    script.fails(WrongAnswer)


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [([2], 1), ([4], 2), ([4, 2], 1), ([1], None), ([1, 2], None), ([1, 3], 2), ([14], 2), ([2, 3, 1, 5], 4)],
)
def test_a_decoy_is_a_part_of_what_is_read_and_as_long_as_no_query(counts, wanted):
    asked = [modbus.ReadRequest(unit=1, function=4, address=100 * n, count=count) for n, count in enumerate(counts)]
    decoy = meters_module._decoy(asked)
    assert (decoy and decoy.count) == wanted
    if decoy:
        assert (decoy.unit, decoy.function) == (1, 4)
        assert any(query.address == decoy.address and query.count > decoy.count for query in asked)


# -- two answers that agree -------------------------------------------------------------------------------------------


class OtherLine:
    """A CJ/T 188 or M-Bus meter that shows the given totals, one after the other, however damaged."""

    def __init__(self, protocol, totals, *, last_ml=None, retries=0):
        self.port = VirtualPort(VirtualClock())
        self.line = virtual_line(self.port)
        self.asked = 0
        register = Register()
        register.at = lambda now_s: self.totals.pop(0)
        self.totals = list(totals)
        if protocol == "cjt188":
            self.meter = Cjt188Meter("00000805000001", register, SPECS["cjt188"][1]())
            self.reader = make_reader("cjt188", "00000805000001", last_ml=last_ml, retries=retries)
        else:
            self.meter = MbusMeter("00000005", register, SPECS["mbus"][1](), primary=5)
            self.reader = make_reader("mbus", "5", last_ml=last_ml, retries=retries)
        self.port.on_write = self._answer

    def _answer(self, data):
        request = self.meter.hear(data)
        self.asked += getattr(request, "function", None) != mbus.RESET_LINK
        if None in self.totals[:1]:
            self.totals.pop(0)
            return
        self.port.arrive(self.port.clock.now_s + 0.02, self.meter.answer(request, 0))

    def read(self):
        return self.reader.read(self.line).volume_ml


@pytest.mark.parametrize("protocol", ["cjt188", "mbus"])
@pytest.mark.parametrize(
    ("last_ml", "totals", "volume_ml"),
    [
        (7, [7], 7),
        (7, [8, 8], 8),
        (None, [8, 8], 8),
        (7, [9000, 7, 7], 7),
        (7, [7000, 9, 9], 9),
        (7, [9, 7000, 7000], 7000),
        (7, [9, 7000, 9, 9], 9),
        (7, [9, 1, 9, 9], 9),
        (7, [8, 9, 10], 9),
        (7, [10, 9, 8], 9),
        (7, [8, 58, 108], 58),
        (7, [8, 58, 109, 109], 109),
        (7, [8, 9000, 9, 9], 9),
        (7, [8, 9000, 9, 10, 11], 10),
        (7, [8, 9000, 9, 8000, 10], None),
        (7, [5, 5], 5),
    ],
)
def test_a_total_counts_when_it_was_said_twice_or_lies_between_two_others(protocol, last_ml, totals, volume_ml):
    litres = [total * 10_000 for total in totals]
    line = OtherLine(protocol, litres, last_ml=last_ml and last_ml * 10_000)
    if volume_ml is None:
        with pytest.raises(Garbled, match="5 answers, no two alike"):
            line.read()
    else:
        assert line.read() == volume_ml * 10_000
    assert line.asked == len(totals)


@pytest.mark.parametrize("protocol", ["cjt188", "mbus"])
def test_what_was_heard_once_confirms_what_is_heard_in_the_next_poll(protocol):
    line = OtherLine(protocol, [80_000, None, 80_000])
    if protocol == "mbus":
        line.totals = [80_000]
        answer, line.port.on_write = line._answer, lambda data: line.totals and answer(data)
        with pytest.raises(NoResponse):
            line.read()
        line.totals = [80_000, 80_000]  # after a failure the telegram is asked for once more, with FCB turned
    else:
        with pytest.raises(NoResponse):
            line.read()
    assert line.read() == 80_000


@pytest.mark.parametrize("changed", range(3))
@pytest.mark.parametrize("by_ml", [-(10**9), -100, -1, 0, 1, 100, 10**9])
@pytest.mark.parametrize("right", [(100, 100, 100), (100, 101, 102), (100, 101, 350), (350, 101, 100), (100, 100, 101)])
def test_what_lies_between_was_shown_meanwhile_whichever_of_three_is_damaged(right, changed, by_ml):
    totals = [*right]
    totals[changed] += by_ml
    between = meters_module._between([Measurement(volume_ml=total) for total in totals])
    assert between or by_ml
    assert between is None or min(right) <= between.volume_ml <= max(right)


@pytest.mark.parametrize(
    ("totals", "turns"),
    [
        ((1, 2, 3), True),
        ((3, 2, 1), True),
        ((1, 1, 1), True),
        ((0, 500_000, 1_000_000), True),
        ((0, 500_000, 1_000_001), False),
        ((1, 3, 2), False),
        ((2, 1, 3), False),
        ((1, 2), False),
        ((1, 2, 3, 4), False),
        ((), False),
    ],
)
def test_three_totals_of_a_register_that_turns(totals, turns):
    """The one rule of the service and of `shuiwang history`."""
    assert meters_module.is_turning(totals) is turns


def test_a_flag_stands_that_most_answers_have():
    low, wet = "battery_low", "empty_pipe"
    answers = [
        Measurement(volume_ml=1, flags=(low,), harmless=(low,)),
        Measurement(volume_ml=2, flags=(low, wet), harmless=(low,)),
        Measurement(volume_ml=3),
    ]
    assert meters_module._between(answers) == Measurement(volume_ml=2, flags=(low,), harmless=(low,))


@pytest.mark.parametrize(("framing", "asked"), [("rtu", 1), ("ascii", 2)])
def test_of_modbus_only_the_checksum_of_ascii_is_doubted(framing, asked):
    port = VirtualPort(VirtualClock())
    requests = []

    def answer(data):
        requests.append(data)
        frame = modbus.encode_response(modbus.ReadRequest(unit=17, function=3, address=0, count=2), [0, 7])
        frame = modbus_ascii.encode_frame(frame[:-2]) if framing == "ascii" else frame
        port.arrive(port.clock.now_s + 0.02, frame)

    port.on_write = answer
    assert make_reader("counter", "17").read(virtual_line(port, framing=framing)).volume_ml == 7
    assert len(requests) == asked


# -- M-Bus, behind ----------------------------------------------------------------------------------------------------


class MbusBehind:
    """An M-Bus meter whose answers come so many requests late. Its total is the number of the poll, in litres."""

    def __init__(self, behind):
        self.port = VirtualPort(VirtualClock())
        self.line = virtual_line(self.port)
        self.reader = make_reader("mbus", "5", retries=1)
        self.poll = 0
        register = Register()
        register.at = lambda now_s: self.poll * 1000
        self.meter = MbusMeter("00000005", register, SPECS["mbus"][1](), primary=5)
        self._held = [None] * behind
        self.port.on_write = self._answer

    def _answer(self, data):
        self._held.append(self.meter.answer(self.meter.hear(data), 0))
        if answer := self._held.pop(0):
            self.port.arrive(self.port.clock.now_s + 0.02, answer)

    def values(self, polls):
        """Return (poll, litres) of every value that came."""
        came = []
        for self.poll in range(1, polls):
            with contextlib.suppress(MeterError):
                came.append((self.poll, self.reader.read(self.line).volume_ml // 1000))
            self.port.clock.pause(1)
        return came


@pytest.mark.parametrize("behind", range(6))
def test_an_m_bus_meter_that_is_behind_never_gives_an_old_total(behind):
    values = MbusBehind(behind).values(60)
    assert values == ([(poll, poll) for poll in range(1, 60)] if behind == 0 else [])


def test_one_reset_before_the_data_would_believe_a_meter_that_is_two_behind(monkeypatch):
    monkeypatch.setattr(meters_module, "_is_named_in_answer", lambda query: True)
    values = [value for behind in range(2, 6) for value in MbusBehind(behind).values(60)]
    assert any(poll != total_l for poll, total_l in values)
