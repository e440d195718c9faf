"""Reading meters: what counts as an answer, and thousands of exchanges with meters that do everything wrong."""

import functools
import os
import random
from collections import Counter
from typing import ClassVar

import pytest
from partners.dialogue import make_reader
from partners.faulty_meters import BASE_ML, RATES, FaultyMeters
from partners.virtual_line import VirtualClock, VirtualPort, skip_real_pauses, virtual_line

from gateway import meters as meters_module
from gateway import modbus_master
from gateway.line import BABBLE_S_MAX, BURST_GRACE_S, HOLD_OFF_S_MAX
from gateway.meters import DECOY_PAUSE_S, OUTSTANDING_MAX, OUTSTANDING_S_MAX, PROBATION_S, MeterReader
from protocols import modbus
from protocols.errors import Garbled, MeterError, MeterFault, MeterRefused, NoResponse, PortLost, WrongAnswer

# One village is read so many times; SHUIWANG_FUZZ_READS=1000000 makes a night of it.
VILLAGE_READS = 700
SEEDS = range(int(os.environ.get("SHUIWANG_FUZZ_READS", "2800")) // VILLAGE_READS)
TIMEOUT_MS = 100
RETRIES = 2


@pytest.fixture(autouse=True)
def virtual_time(monkeypatch):
    skip_real_pauses(monkeypatch)


# -- thousands of exchanges -------------------------------------------------------------------------------------------


class Village:
    """Meters of both kinds on one faulty line, and a judge that knows when every value was measured."""

    PROFILES: ClassVar = {1: "counter", 2: "counter", 3: "two-blocks", 4: "two-blocks"}

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.port = VirtualPort(VirtualClock())
        self.meters = FaultyMeters(
            self.port, self.dice, units=self.PROFILES, timeout_s=TIMEOUT_MS / 1000, refusing={2, 3}, mute={4}
        )
        self.line = virtual_line(self.port)
        self.readers = {
            unit: make_reader(profile, str(unit), timeout_ms=TIMEOUT_MS, retries=RETRIES)
            for unit, profile in self.PROFILES.items()
        }
        self.outcomes = Counter()
        self.wrong = []
        self.longest_s = 0.0

    def read(self, unit, read=None):
        """Read a meter once; return whether that brought a value. What is wrong about the value goes to `wrong`."""
        clock = self.port.clock
        began_s = clock.now_s
        try:
            volume_ml = (read or (lambda: self.readers[unit].read(self.line).volume_ml))()
        except MeterError as error:
            self.outcomes[error.reason] += 1
            return False
        finally:
            self.longest_s = max(self.longest_s, clock.now_s - began_s)
        self.outcomes["value"] += 1
        measured_s = self.meters.measured_s(unit, volume_ml)
        if not began_s - 0.001 <= measured_s <= clock.now_s:
            self.wrong.append((unit, volume_ml, began_s - measured_s))
        return True

    def live(self, reads, **options):
        for _ in range(reads):
            self.meters.echo = self.dice.random() < 0.1
            self.read(self.dice.choice(list(self.PROFILES)), **options)
            # Polls come in rows and at intervals.
            if self.dice.random() < 0.3:
                self.port.clock.pause(self.dice.choice([0.01, 0.2, 0.5, 1, 2, 5, 60, 300]))


@functools.cache
def lived(seed):
    """A village after all its reads; told in one line."""
    village = Village(seed)
    village.live(VILLAGE_READS)
    faults, outcomes = dict(village.meters.tally), dict(village.outcomes)
    print(f"seed {seed}: {village.meters.requests} requests, faults {faults}, outcomes {outcomes}")
    return village


@pytest.mark.parametrize("seed", SEEDS)
def test_no_fault_ever_becomes_a_value(seed):
    village = lived(seed)
    assert not village.wrong, f"seed {seed}: (unit, volume, older than the read by s) {village.wrong[:5]}"
    assert sum(village.outcomes.values()) == VILLAGE_READS, "every read is accounted for"
    assert village.outcomes["value"] > 0.05 * VILLAGE_READS, "values still come"
    # No read is a hang: every attempt asks for a bounded number of answers, each within its bounds.
    exchange_s = TIMEOUT_MS / 1000 + min(TIMEOUT_MS / 1000, HOLD_OFF_S_MAX) + BURST_GRACE_S + 0.1
    assert village.longest_s < (1 + RETRIES) * 2 * (OUTSTANDING_MAX + 1) * exchange_s + BABBLE_S_MAX
    # When the faults end, every meter is read again.
    village.meters.faulty = village.meters.echo = False
    village.port.clock.pause(10)
    for unit in village.PROFILES:
        assert village.read(unit), unit
    assert not village.wrong
    assert village.port.clock.now_s * 1000 < BASE_ML, "a value no longer tells its meter"


def test_every_fault_was_tried_and_every_outcome_seen():
    villages = [lived(seed) for seed in range(4)]
    faults = {*RATES, "late constantly", "one behind for ever"}
    assert set().union(*(village.meters.tally for village in villages)) == faults
    outcomes = {"value", "no_response", "garbled", "wrong_answer", "refused", "port_lost"}
    assert set().union(*(village.outcomes for village in villages)) == outcomes


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
        village.read(unit, read=lambda unit=unit: careless(unit))
    assert len(village.wrong) > 5


@pytest.mark.parametrize("guard", ["_fresh_answer", "_prove_in_step", "_answers_decoy"])
def test_every_part_of_the_guard_is_needed(guard, monkeypatch):
    """Without one of them the judge finds wrong values, so the test above can fail."""
    if guard == "_fresh_answer":
        one_answer = lambda self, line, request: modbus_master.exchange(line, request, timeout_ms=self._timeout_ms)
        monkeypatch.setattr(MeterReader, guard, one_answer)
    elif guard == "_prove_in_step":
        monkeypatch.setattr(MeterReader, guard, lambda self, line, asked: self._outstanding.clear())
    else:
        monkeypatch.setattr(MeterReader, guard, lambda self, line, asked: True)
    wrong = []
    for seed in range(10):
        village = Village(seed)
        village.live(700)
        wrong += village.wrong
        if wrong:
            break
    assert wrong


# -- what counts ------------------------------------------------------------------------------------------------------


class Script:
    """Answers to requests, one after the other: a volume, None for silence, bytes, or an exception code as a str."""

    def __init__(self, *answers, **options):
        self.port = VirtualPort(VirtualClock())
        self.line = virtual_line(self.port)
        self.reader = make_reader("counter", "17", timeout_ms=TIMEOUT_MS, **options)
        self.requests = 0
        self.decoys = 0
        self.at_decoy = lambda request: modbus.encode_response(request, [0xFFFF])
        self._answers = list(answers)
        self._take = modbus.RequestReader()
        self.port.on_write = self._answer

    def _answer(self, data):
        request = self._take.feed(data)
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
            self.port.arrive(self.port.clock.now_s + 0.02, answer)

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
        request = self._take.feed(data)
        if request.count == 1:
            self.decoys += 1
            answer = self.at_decoy(request)
        else:
            answer = modbus.encode_response(request, [0, self.volume])
        if self._held:
            self.port.arrive(self.port.clock.now_s + 0.02, self._held)
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
    assert forgiven(lambda request: modbus.encode_exception(request, code))[0] == 2


def test_a_meter_that_is_silent_to_the_decoy_still_gives_values_and_is_seldom_asked_it():
    requests, script = forgiven(lambda request: None)
    assert requests == 3, "the failure and the decoy are outstanding"
    assert script.decoys == 1
    script.port.clock.pause(DECOY_PAUSE_S)
    script.read()
    assert script.decoys == 2


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
