"""`shuiwang history`: a remembered total was said twice alike, a missing one has its reason, and only reads go out."""

import datetime
import io
import re

import msgspec
import pytest
from partners.virtual_line import VirtualClock, VirtualPort
from rich.cells import cell_len
from rich.console import Console

from agent.technician import history_words, views_history
from agent.technician.history import SILENT_MAX, HistoryStation
from agent.technician.history_records import USUAL, UnknownRecord, kind_of, older, parse_records, settlements_ago
from agent.technician.reading import Plan
from gateway.clock import SystemClock
from gateway.line import LineSettings
from protocols import cjt188, cjt188_data, cjt188_dialogue, profile
from protocols.errors import UsageError

METER, OTHER, ANY = "00002020120218", "00000805000001", "A" * 14
NOW, MONTHS = 0x901F, range(0xD120, 0xD12C)
# 130.45 m3 today; each month before it used one cubic metre more than the one after.
TOTALS = {NOW: 130_450_000} | {month: 127_000_000 - sum(range(n + 1)) * 1_000_000 for n, month in enumerate(MONTHS)}


def plan_of(name="cjt188-water", *, address=METER, retries=1, **timing):
    loaded = profile.load(name)
    if timing:
        loaded = msgspec.structs.replace(loaded, timing=profile.Timing(**timing))
    return Plan(
        meter="m-001",
        line=LineSettings(name="line", port="/dev/virtual", baudrate=2400, parity="E"),
        profile=loaded,
        address=loaded.parse_address(address),
        address_text=address,
        timeout_ms=1000,
        retries=retries,
    )


class Meter:
    """A meter in virtual time. `rewrite` is given the number of the request from 0, the request and the answer."""

    def __init__(self, totals, *, name="cjt188-water", rewrite=lambda number, request, answer: answer):
        self.clock = VirtualClock()
        self.port = VirtualPort(self.clock)
        self.port.on_write = self.hear
        self.spec, self.totals, self.rewrite = profile.load(name).spec, totals, rewrite
        self.heard = []

    def hear(self, data):
        ((_, request),) = cjt188.find_frames(data)
        number = len(self.heard)
        self.heard.append(request)
        answer = cjt188_dialogue.respond(self.spec, request, address=METER, totals_ml=self.totals)
        answer = self.rewrite(number, request, answer)
        if answer:
            on_the_wire_s = (len(data) + len(answer)) * 11 / 2400
            self.port.arrive(self.clock.now_s + on_the_wire_s + 0.05, answer)

    @property
    def asked(self):
        """The identifiers that were asked for, in order."""
        return [int.from_bytes(frame.identifier, "big") for frame in self.heard]


def read(totals=TOTALS, identifiers=USUAL, *, plan=None, progress=None, **how):
    meter = Meter(totals, **how)
    station = HistoryStation(
        plan or plan_of(how.get("name", "cjt188-water")),
        clock=SystemClock(),
        opener=meter.port.open,
        monotonic=meter.clock.monotonic,
        pause=meter.clock.pause,
        chance=lambda: 0.5,
    )
    return station.read(identifiers, **({"progress": progress} if progress else {})), meter


def rewritten(change, *, of=None, where=lambda number: True):
    """A `rewrite` that changes the content of answers to one identifier; the checksum is right."""

    def rewrite(number, request, answer):
        is_wanted = of is None or int.from_bytes(request.identifier, "big") == of
        if answer is None or not is_wanted or not where(number):
            return answer
        ((at, frame),) = cjt188.find_frames(answer)
        content = change(frame.content)
        return answer[:at] + msgspec.structs.replace(frame, data=frame.data[:3] + content).encode()

    return rewrite


def silent_to(*identifiers):
    return lambda _, request, answer: None if int.from_bytes(request.identifier, "big") in identifiers else answer


def totals_of(report):
    return {entry.identifier: entry.total_ml for entry in report.entries}


def entry_of(report, identifier):
    (found,) = [entry for entry in report.entries if entry.identifier == identifier]
    return found


class TestReading:
    def test_every_total_is_asked_twice_and_what_was_used_between_is_exact(self):
        report, meter = read()
        assert totals_of(report) == TOTALS
        assert meter.asked == [identifier for identifier in USUAL for _ in range(2)]
        assert {frame.control for frame in meter.heard} == {cjt188.READ_DATA}
        uses = [report.use_of(entry) for entry in report.entries]
        assert [use.volume_ml for use in uses[:-1]] == [3_450_000, *(n * 1_000_000 for n in range(1, 12))]
        assert all(use.is_next for use in uses[:-1])
        assert uses[-1] is None, "the meter keeps no older one"
        assert report.error is None
        assert report.remembers
        assert 6 < report.took_ms / 1000 < 12, "thirteen totals at 2400 bit/s, said twice"

    def test_requests_are_numbered_from_a_chance_number_on(self):
        _, meter = read(identifiers=(NOW, 0xD120))
        assert [frame.serial for frame in meter.heard] == [0x80, 0x81, 0x82, 0x83]

    def test_the_frames_of_each_record_are_its_proof(self):
        report, _ = read(identifiers=(0xD120, 0xD121))
        for entry in report.entries:
            assert [frame.mark for frame in entry.frames] == [">>", "<<"] * 2
            said = [next(cjt188.find_frames(frame.data))[1] for frame in entry.frames]
            assert {int.from_bytes(frame.identifier, "big") for frame in said} == {entry.identifier}
        assert len(report.frames) == 8

    def test_a_refused_month_is_missing_and_the_others_are_not(self):
        totals = {key: value for key, value in TOTALS.items() if key != 0xD123}
        report, meter = read(totals)
        assert totals_of(report) == {**TOTALS, 0xD123: None}
        refused = entry_of(report, 0xD123)
        assert (refused.reason, refused.is_asked) == ("refused", True)
        assert meter.asked.count(0xD123) == 1, "a refusal is not repeated"
        use = report.use_of(entry_of(report, 0xD122))
        assert (use.volume_ml, use.since, use.is_next) == (3_000_000 + 4_000_000, 0xD124, False)
        assert report.use_of(refused) is None
        assert history_words.check_next(report) == []

    @pytest.mark.parametrize("filling", [b"\xff" * 5, b"\x99" * 4 + b"\x2c"], ids=["FF", "99"])
    def test_a_month_that_the_meter_leaves_empty_is_not_0(self, filling):
        report, _ = read(rewrite=rewritten(lambda _: filling, of=0xD12B))
        assert totals_of(report) == {**TOTALS, 0xD12B: None}
        assert entry_of(report, 0xD12B).reason == "empty"
        assert "FF or 99" in history_words.why(report, entry_of(report, 0xD12B))

    def test_a_total_of_0_that_the_meter_says_is_told(self):
        report, _ = read({**TOTALS, 0xD12B: 0})
        assert totals_of(report)[0xD12B] == 0
        assert report.use_of(entry_of(report, 0xD12A)).volume_ml == TOTALS[0xD12A]

    def test_records_are_told_as_they_come(self):
        told = []
        read(identifiers=(NOW, 0xD120), progress=lambda *what: told.append(what))
        assert told == [(NOW, 0), (0xD120, 1)]

    def test_only_what_is_wanted_is_asked(self):
        report, meter = read({0xD200: 5_000_000, 0xD201: 4_000_000}, (0xD201, 0xD200))
        assert meter.asked == [0xD201, 0xD201, 0xD200, 0xD200]
        assert report.use_of(report.entries[1]).volume_ml == 1_000_000
        assert report.remembers

    def test_a_current_total_alone_is_no_memory_unless_it_is_all_that_was_wanted(self):
        only_now = {NOW: TOTALS[NOW]}
        assert not read(only_now)[0].remembers
        assert read(only_now, (NOW,))[0].remembers


class TestDamage:
    @pytest.mark.parametrize("number", range(26))
    @pytest.mark.parametrize("kind", ["flipped", "lost", "other digits", "no digits", "torn"])
    def test_whichever_answer_is_damaged_nothing_else_is_believed(self, kind, number):
        def rewrite(at, request, answer):
            if at != number:
                return answer
            if kind in {"other digits", "no digits"}:
                change = {"other digits": b"\x11", "no digits": b"\xab"}[kind]
                return rewritten(lambda content: change + content[1:])(at, request, answer)
            flipped = answer[:20] + bytes((answer[20] ^ 4,)) + answer[21:]
            return {"flipped": flipped, "lost": None, "torn": answer[:-6]}[kind]

        report, meter = read(rewrite=rewrite)
        assert totals_of(report) == TOTALS
        # Digits in place of digits pass: two more answers where the second one is damaged, for two in a row must agree.
        assert len(meter.heard) == 26 + (1 if kind != "other digits" or number % 2 == 0 else 2)

    def test_a_line_that_never_says_the_same_twice_gives_no_value(self):
        totals = iter(range(1, 99))
        rewrite = rewritten(lambda content: bytes((next(totals) % 10,)) + content[1:], of=0xD121)
        report, meter = read(rewrite=rewrite)
        damaged = entry_of(report, 0xD121)
        assert (damaged.total_ml, damaged.reason) == (None, "garbled")
        assert "no two alike" in str(damaged.error)
        assert meter.asked.count(0xD121) == 5
        assert entry_of(report, 0xD122).total_ml == TOTALS[0xD122]

    def test_a_unit_that_the_profile_does_not_name_is_a_fault_of_that_month(self):
        report, meter = read(rewrite=rewritten(lambda content: content[:4] + b"\x2b", of=0xD121))
        assert entry_of(report, 0xD121).reason == "meter_fault"
        assert "the unit code of the past total is 2B" in str(entry_of(report, 0xD121).error)
        assert meter.asked.count(0xD121) == 2, "asked again, because damage says the same"
        assert entry_of(report, 0xD122).total_ml is not None

    def test_a_late_answer_is_never_taken_for_the_next_month(self):
        """The meter answers each request for D120 after its timeout: the number of the request tells them apart."""
        meter = Meter(TOTALS)
        hear = meter.hear

        def late(data):
            ((_, request),) = cjt188.find_frames(data)
            if request.identifier == b"\xd1\x20":
                answer = cjt188_dialogue.respond(meter.spec, request, address=METER, totals_ml=TOTALS)
                meter.heard.append(request)
                meter.port.arrive(meter.clock.now_s + 2.4, answer)
            else:
                hear(data)

        meter.port.on_write = late
        station = HistoryStation(
            plan_of(),
            clock=SystemClock(),
            opener=meter.port.open,
            monotonic=meter.clock.monotonic,
            pause=meter.clock.pause,
        )
        report = station.read(USUAL)
        assert totals_of(report) == {**TOTALS, 0xD120: None}

    def test_a_current_total_that_turns_counts_when_it_lies_between_two(self):
        """This one counts hundredths of a litre: while water runs no two answers are alike."""
        meter_ml = iter(range(130_450_000, 130_460_000, 370))
        meter = Meter({}, name="cjt188-litres-2")
        meter.rewrite = lambda number, request, answer: cjt188_dialogue.respond(
            meter.spec, request, address=METER, totals_ml={NOW: next(meter_ml), 0xD120: 127_000_000}
        )
        station = HistoryStation(
            plan_of("cjt188-litres-2"),
            clock=SystemClock(),
            opener=meter.port.open,
            monotonic=meter.clock.monotonic,
            pause=meter.clock.pause,
        )
        report = station.read((NOW, 0xD120))
        assert [entry.total_ml for entry in report.entries] == [130_450_370, 127_000_000]
        assert meter.asked == [NOW, NOW, NOW, 0xD120, 0xD120]

    @pytest.mark.parametrize(
        "contents",
        [
            ["01", "02", "03", "04", "05"],
            # 1 m3 lies between two polls of a home; no water runs that fast between two answers.
            ["00 00 00 01", "01 00 00 02", "02 00 00 03", "03 00 00 04", "04 00 00 05"],
        ],
        ids=["another status each time", "leaps"],
    )
    def test_a_current_total_that_leaps_or_changes_its_status_does_not_turn(self, contents):
        said = iter([bytes.fromhex(text) for text in contents])
        statuses = iter(range(5))

        def change(content):
            digits = next(said)
            status = bytes((next(statuses), 0)) if len(digits) == 1 else content[-2:]
            return digits + content[len(digits) : -2] + status

        report, _ = read(identifiers=(NOW,), rewrite=rewritten(change, of=NOW))
        assert report.entries[0].reason == "garbled"

    def test_a_settled_total_that_turns_is_not_believed(self):
        shown = iter([1, 2, 3, 4, 5])
        rewrite = rewritten(lambda content: bytes((next(shown),)) + content[1:], of=0xD120)
        assert entry_of(read(rewrite=rewrite)[0], 0xD120).reason == "garbled"


class TestSilence:
    def test_a_dead_meter_costs_its_attempts_and_nothing_more(self):
        report, meter = read(rewrite=lambda *_: None)
        assert meter.asked == [NOW, NOW]
        assert [entry.reason for entry in report.entries] == ["no_response"] + ["not_asked"] * 12
        assert report.error.reason == "no_response"
        assert not report.remembers
        assert any("powered" in words.en for words in history_words.check_next(report))

    def test_one_month_without_answer_does_not_stop_the_rest(self):
        report, meter = read(rewrite=silent_to(0xD124))
        assert totals_of(report) == {**TOTALS, 0xD124: None}
        assert entry_of(report, 0xD124).reason == "no_response"
        assert meter.asked.count(0xD124) == 2
        assert report.error is None

    def test_a_meter_that_is_silent_to_what_it_does_not_know_is_not_asked_for_all_of_it(self):
        report, meter = read(rewrite=silent_to(*range(0xD123, 0xD12C)))
        reasons = [entry.reason for entry in report.entries]
        assert reasons == [None] * 4 + ["no_response"] * SILENT_MAX + ["not_asked"] * 6
        assert meter.asked[8:] == [0xD123, 0xD123, 0xD124, 0xD125], "repeated once, while it had just answered"
        assert report.remembers
        assert history_words.check_next(report) == [], "the line is fine: nothing is to be done about it"

    def test_without_retries_a_record_is_asked_once(self):
        report, meter = read(plan=plan_of(retries=0), rewrite=silent_to(0xD121))
        assert meter.asked.count(0xD121) == 1
        assert entry_of(report, 0xD121).reason == "no_response"

    def test_a_port_that_goes_away_leaves_what_was_said_and_ends_it(self):
        meter = Meter(TOTALS)
        meter.port.go_away(3.0, 1e9)
        station = HistoryStation(
            plan_of(),
            clock=SystemClock(),
            opener=meter.port.open,
            monotonic=meter.clock.monotonic,
            pause=meter.clock.pause,
        )
        report = station.read(USUAL)
        said = [entry for entry in report.entries if entry.total_ml is not None]
        assert 2 <= len(said) < 12
        assert all(entry.total_ml == TOTALS[entry.identifier] for entry in said)
        assert report.entries[len(said)].reason == "port_lost"
        assert {entry.reason for entry in report.entries[len(said) + 1 :]} == {"not_asked"}
        assert report.error.reason == "port_lost"

    @pytest.mark.parametrize("number", range(9))
    def test_ctrl_c_keeps_what_was_said(self, number):
        def stop(at, _, answer):
            if at == number:
                raise KeyboardInterrupt
            return answer

        report, _ = read(rewrite=stop)
        assert report.is_interrupted
        done = number // 2
        assert [entry.is_asked for entry in report.entries] == [True] * done + [False] * (13 - done)
        assert len(report.frames) == 2 * number + 1, "what was sent last is told too"

    def test_a_meter_that_refuses_all_of_it_keeps_none(self):
        report, _ = read({NOW: TOTALS[NOW]})
        assert [entry.reason for entry in report.entries] == [None] + ["refused"] * 12
        told = [words.en for words in history_words.check_next(report)]
        assert any("D200-D20B" in text for text in told)
        assert not any("1f90" in text for text in told), "who told today's total understands the order of the bytes"

    def test_a_meter_that_refuses_today_as_well_may_want_the_bytes_in_the_other_order(self):
        report, _ = read({})
        assert {entry.reason for entry in report.entries} == {"refused"}
        assert any("cjt188-water-1f90" in words.en for words in history_words.check_next(report))


class TestAddress:
    def test_whatever_meter_is_on_the_line_says_who_it_is_and_is_asked_by_that_name(self):
        plan = plan_of(address=ANY)
        report, meter = read(plan=plan)
        assert [frame.control for frame in meter.heard[:3]] == [cjt188.READ_ADDRESS] * 2 + [cjt188.READ_DATA]
        assert [frame.address for frame in meter.heard] == [ANY, ANY] + [METER] * 26
        assert report.answered_by == METER
        assert totals_of(report) == TOTALS
        assert len(report.address_frames) == 4
        assert plan.address.address == ANY

    def test_two_names_are_no_name(self):
        other = iter([OTHER, METER] * 9)

        def rewrite(_, request, answer):
            if request.control != cjt188.READ_ADDRESS:
                return answer
            return cjt188.answer(request, b"", address=next(other), meter_type=0x10).encode()

        report, meter = read(plan=plan_of(address=ANY), rewrite=rewrite)
        assert report.error.reason == "garbled"
        assert report.answered_by is None
        assert {frame.control for frame in meter.heard} == {cjt188.READ_ADDRESS}
        assert {entry.reason for entry in report.entries} == {"not_asked"}
        assert "single meter" in history_words.check_next(report)[0].en

    def test_a_meter_that_does_not_tell_is_asked_nothing_more(self):
        report, meter = read(
            plan=plan_of(address=ANY),
            rewrite=lambda _, request, answer: cjt188.refusal(
                request, b"\x02\0", address=METER, meter_type=0x10
            ).encode(),
        )
        assert len(meter.heard) == 1
        assert report.error.reason == "refused"

    @pytest.mark.parametrize("address", [METER, ANY])
    def test_the_order_that_a_probing_profile_found_is_kept(self, address):
        report, meter = read(plan=plan_of("cjt188-water-probe", address=address), name="cjt188-water-1f90")
        assert totals_of(report) == TOTALS
        high_first = [frame for frame in meter.heard if frame.identifier[0] in (0x81, 0x90, 0xD1)]
        assert len(high_first) <= 2

    def test_a_meter_that_sleeps_is_woken_once(self):
        plan = plan_of(wake_up=profile.WakeUp(sleeps_after_ms=5000, takes_ms=200))
        report, meter = read(plan=plan, rewrite=lambda number, _, answer: None if number == 0 else answer)
        assert totals_of(report) == TOTALS
        assert len(meter.heard) == 27
        assert meter.heard[0] == meter.heard[1]


class TestRecords:
    def test_what_is_known_is_what_the_protocol_reads(self):
        spec = profile.load("cjt188-water").spec
        for identifier in range(0x10000):
            try:
                cjt188_data.layout_of(spec, identifier)
            except UsageError:
                assert kind_of(identifier) is None, f"{identifier:04X}"
            else:
                assert kind_of(identifier) is not None, f"{identifier:04X}"
                assert history_words.name_of(identifier).zh

    @pytest.mark.parametrize(
        ("text", "identifiers"),
        [
            ("D120", (0xD120,)),
            ("901F,D120-D12B", USUAL),
            ("d12b..d12b, D120 D120", (0xD12B, 0xD120)),
            ("0xD2FF，D300；d4ff、D300", (0xD2FF, 0xD300, 0xD4FF)),
            ("D200-D20B", tuple(range(0xD200, 0xD20C))),
        ],
    )
    def test_they_are_named_in_any_usual_way(self, text, identifiers):
        assert parse_records(text) == identifiers

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("", "not of the form"),
            ("D12", "not of the form"),
            ("D1200", "not of the form"),
            ("D120-", "not of the form"),
            ("month", "not of the form"),
            ("A017", "A017 holds no total"),
            ("810A", "810A holds no total"),
            ("D120-D12C", "D12C holds no total"),
            ("D12B-D120", "goes up within one kind"),
            ("D2FF-D300", "goes up within one kind"),
            ("901F-D120", "goes up within one kind"),
        ],
    )
    def test_what_is_none_is_refused_with_those_that_are(self, text, word):
        with pytest.raises(UnknownRecord, match=word) as told:
            parse_records(text)
        for known in ("D120-D12B (months 月结算)", "D400-D4FF"):
            assert known in str(told.value)

    def test_what_is_older(self):
        assert next(older(NOW)) == 0xD120
        assert list(older(0xD12A)) == [0xD12B]
        assert list(older(0xD12B)) == []
        assert list(older(0xD2FE)) == [0xD2FF]
        assert list(older(0xD300)) == []
        assert [settlements_ago(identifier) for identifier in (NOW, 0xD120, 0xD12B, 0xD200, 0xD300)] == [
            None,
            1,
            12,
            1,
            None,
        ]


CLOCK = bytes.fromhex("20261122200607")[::-1]


def with_clock(moment):
    """A `rewrite` in which the current reading has the meter's clock; at 20 s it could be read from either end."""
    moment = moment.replace(second=7)
    clock = bytes.fromhex(f"{moment:%Y%m%d%H%M%S}")[::-1]
    return rewritten(lambda content: content[:10] + clock + content[17:], of=NOW)


def shown(report, *, with_frames=False, width=100):
    text = io.StringIO()
    views_history.show(report, Console(file=text, width=width, highlight=False), with_frames=with_frames)
    return text.getvalue()


def row(text, identifier):
    """The row of a record in the table, without its name."""
    (found,) = [line for line in text.splitlines() if re.search(rf"\S +{identifier}  ", line.rstrip())]
    return found[found.index(identifier) :].split()


class TestView:
    def test_each_month_has_its_total_its_use_and_a_bar_to_compare(self):
        text = shown(read()[0])
        assert row(text, "901F") == ["901F", "130.45", "3.45", "██████▎"]
        assert row(text, "D120") == ["D120", "127.00", "1.00", "█▉"]
        assert row(text, "D12A") == ["D12A", "72.00", "11.00", "█" * views_history.BAR_CELLS]
        assert row(text, "D12B") == ["D12B", "61.00", "—"]
        for words in ("now 当前", "1 month ago 上1月", "12 months ago 上12月", "total 总量 m³", "use 用水 m³"):
            assert words in text
        assert "13 of 13, each said twice alike 两次读数一致" in text
        assert ">>" not in text

    def test_it_fits_a_terminal_of_80_columns(self):
        totals = {key: value for key, value in TOTALS.items() if key != 0xD123} | {0xD126: 999_999_000_000}
        text = shown(read(totals)[0], width=80)
        assert all(cell_len(line.rstrip()) <= 80 for line in text.splitlines())
        assert "…" not in text
        assert len([line for line in text.splitlines() if re.search("  D12[0-9AB]  ", line)]) == 12, "a line for each"

    @pytest.mark.parametrize(
        ("rewrite", "words"),
        [
            (
                rewritten(lambda _: b"\xff" * 5, of=0xD122),
                ["empty 表内为空", "D122: filled with FF or 99", "全填 FF 或 99"],
            ),
            (silent_to(0xD122), ["no answer 无应答", "D122: no answer (1000 ms)"]),
            (silent_to(*range(0xD122, 0xD12C)), ["not asked 未问", "3 in a row without an answer", "连续 3 项无应答"]),
        ],
    )
    def test_what_is_missing_says_why_in_both_languages(self, rewrite, words):
        text = shown(read(rewrite=rewrite)[0])
        assert [word for word in words if word not in text] == []
        assert row(text, "D122")[1] == "—"
        assert "0.00" not in row(text, "D122")

    def test_months_that_are_missing_for_one_reason_are_told_once(self):
        totals = {key: value for key, value in TOTALS.items() if key not in {0xD122, 0xD124, 0xD125, 0xD126}}
        text = shown(read(totals)[0], width=120)
        assert "refused 表拒绝 D122, D124-D126: abnormal answer, control C1" in text

    @pytest.mark.parametrize(
        ("address", "words"),
        [
            (METER, ["901F: no answer (1000 ms)", "当前总量读不到", "水表有电吗"]),
            (ANY, ["810A: no answer (1000 ms)", "问不到表号", "single meter", "只适用于线上仅有一块表"]),
        ],
        ids=["named", "any"],
    )
    def test_a_meter_that_says_nothing_has_no_table_but_frames_and_advice(self, address, words):
        text = shown(read(plan=plan_of(address=address), rewrite=lambda *_: None)[0])
        assert [word for word in words if word not in text] == []
        assert "0 of 13" in text
        assert "m³" not in text
        assert text.count(">>") == 2

    def test_a_gap_is_bridged_by_name(self):
        report, _ = read({key: value for key, value in TOTALS.items() if key != 0xD121})
        assert row(shown(report), "D120") == ["D120", "127.00", "3.00", "since", "自", "D122"]

    def test_a_total_that_fell_is_no_use(self):
        text = shown(read({**TOTALS, 0xD121: 990_000_000})[0])
        assert row(text, "D120") == ["D120", "127.00", "-863.00", "!", "fell", "变小"]
        assert "meter replaced or reset?" in text
        assert "换过表" in text

    def test_the_clock_of_the_meter_beside_ours(self):
        now = datetime.datetime.now(datetime.UTC).astimezone()
        text = shown(read(rewrite=with_clock(now))[0])
        assert f"clock 表时钟   {now:%Y-%m-%d %H:%M}:07   here 本机 " in text
        assert "off by more than a day" not in text
        off = shown(read(rewrite=with_clock(datetime.datetime(2014, 3, 1, 8, 0)))[0])
        assert "2014-03-01 08:00:07" in off
        assert "off by more than a day" in off
        assert "the meter has none 表没有时钟" in shown(read()[0])

    def test_the_status_of_the_current_reading(self):
        report, _ = read(
            plan=plan_of("cjt188-water-valve"), rewrite=rewritten(lambda content: content[:-2] + b"\x03\0", of=NOW)
        )
        assert "ST 03 00  ! valve fault 阀门异常" in shown(report)

    def test_the_settled_total_of_the_current_reading_is_compared_with_d120(self):
        same = rewritten(lambda content: content[:5] + bytes.fromhex("00270100 2C") + content[10:], of=NOW)
        assert "127.00 m³, as 901F says 901F 所报  = D120" in shown(read(rewrite=same)[0])
        assert "0.00 m³, as 901F says 901F 所报  ≠ D120" in shown(read()[0])
        assert "901F 所报\n" in re.sub(" +\n", "\n", shown(read(identifiers=(NOW,))[0]))

    @pytest.mark.parametrize("settled", ["00270100 00", "0A270100 2C"])
    def test_a_settled_total_that_cannot_be_read_costs_nothing_but_itself(self, settled):
        odd = rewritten(lambda content: content[:5] + bytes.fromhex(settled) + content[10:], of=NOW)
        report, meter = read(rewrite=odd)
        assert totals_of(report) == TOTALS
        assert meter.asked[:3] == [NOW, NOW, 0xD120]
        text = shown(report)
        assert "settled 结算日" in text
        assert "what 901F says of the settlement day cannot be read" in text
        record, *months = told(report)["records"]
        assert (record["total_ml"], record["settled_ml"]) == (130_450_000, None)
        assert ("unit code of the settled total is 00" in record["settled_fault"]) == settled.endswith("00")
        assert all(month["settled_fault"] is None for month in months)

    def test_a_meter_that_never_settled_sends_nobody_to_its_right_layout(self):
        never = rewritten(lambda _: bytes(5), of=0xD120)
        report, _ = read(identifiers=(NOW, 0xD120), rewrite=never)
        text = " ".join(shown(report).split())
        assert "never settled has none there" in text
        assert "Leave `layout` as it is" in text
        assert "total:4" not in text

    def test_junk_that_changes_in_its_place_does_not_hide_the_total(self):
        junk = iter(range(0xA0, 0xFF))
        odd = rewritten(lambda content: content[:5] + bytes((next(junk),)) + content[6:], of=NOW)
        report, meter = read(identifiers=(NOW,), rewrite=odd)
        assert totals_of(report) == {NOW: 130_450_000}
        assert meter.asked == [NOW, NOW]

    def test_one_that_is_damaged_once_is_asked_again(self):
        odd = rewritten(lambda content: content[:5] + b"\xaa" + content[6:], of=NOW, where=lambda number: number == 0)
        report, meter = read(identifiers=(NOW,), rewrite=odd)
        assert meter.asked == [NOW] * 3
        assert told(report)["records"][0]["settled_fault"] is None

    def test_a_freeze_says_when_and_what_flowed(self):
        content = CLOCK + bytes.fromhex("00270100 2C 25010000 35 341200 000000")
        report, _ = read({0xD300: 0}, (0xD300,), rewrite=rewritten(lambda _: content))
        text = shown(report)
        assert "timed freeze 定时冻结" in text
        assert row(text, "D300") == ["D300", "127.00", "—", "2026-11-22", "20:06:07", "12.5", "L/h", "12.34", "°C"]
        assert report.use_of(report.entries[0]) is None

    def test_the_frames_are_shown_under_their_record(self):
        text = shown(read(identifiers=(0xD120,), plan=plan_of(address=ANY))[0], with_frames=True)
        assert "the meter on this line 线上的表: 00002020120218" in text
        lines = [line.strip() for line in text.splitlines()]
        assert lines.index("810A") < lines.index("D120")
        proof = lines[lines.index("810A") :]
        assert [line[6:8] for line in proof] == ["", ">>", "<<", ">>", "<<", "", ">>", "<<", ">>", "<<"]

    @pytest.mark.parametrize(
        ("volume_ml", "most_ml", "bar"),
        [
            (0, 8, ""),
            (-5, 8, ""),
            (1, 10**9, "▏"),
            (8, 8, "█" * 20),
            (4, 8, "█" * 10),
            (1, 0, ""),
            (31, 80, "███████▊"),
        ],
    )
    def test_bars(self, volume_ml, most_ml, bar):
        assert views_history.bar(volume_ml, most_ml=most_ml) == bar


RECORD_KEYS = {
    *("identifier", "kind", "settlements_ago", "total_ml", "total_m3", "confirmed", "use_ml", "use_since", "reason"),
    *(
        "error",
        "settled_ml",
        "settled_fault",
        "status",
        "flags",
        "clock",
        "clock_state",
        "flow_l_h",
        "temperature_c",
        "pressure",
    ),
    *("at_ms", "took_ms", "frames"),
}
KEYS = {
    *("meter", "port", "line", "profile", "protocol", "address", "answered_by", "read_at", "took_ms", "step_ml"),
    *("interrupted", "clock", "records", "address_frames", "error", "check_next"),
}


def told(report):
    return msgspec.json.decode(msgspec.json.encode(views_history.as_json(report)))


class TestJson:
    @pytest.mark.parametrize("rewrite", [lambda number, request, answer: answer, lambda *_: None, silent_to(0xD121)])
    def test_it_has_the_same_keys_whatever_happened(self, rewrite):
        json = told(read(rewrite=rewrite)[0])
        assert set(json) == KEYS
        assert {frozenset(record) for record in json["records"]} == {frozenset(RECORD_KEYS)}
        assert [record["identifier"] for record in json["records"]] == [f"{identifier:04X}" for identifier in USUAL]
        for record in json["records"]:
            assert record["confirmed"] == (record["total_ml"] is not None) == (record["reason"] is None)

    def test_a_month(self):
        _, record, *_ = told(read()[0])["records"]
        assert len(record.pop("frames")) == 4
        assert record.pop("took_ms") > 400
        assert record.pop("at_ms") > 0
        assert record == {
            "identifier": "D120",
            "kind": "settled_month",
            "settlements_ago": 1,
            "total_ml": 127_000_000,
            "total_m3": "127.00",
            "confirmed": True,
            "use_ml": 1_000_000,
            "use_since": "D121",
            "reason": None,
            "error": None,
            "settled_ml": None,
            "settled_fault": None,
            "status": None,
            "flags": [],
            "clock": None,
            "clock_state": None,
            "flow_l_h": None,
            "temperature_c": None,
            "pressure": None,
        }

    def test_an_empty_one_was_said_but_is_no_total(self):
        record = told(read(identifiers=(0xD120,), rewrite=rewritten(lambda _: b"\xff" * 5))[0])["records"][0]
        assert (record["total_ml"], record["total_m3"], record["reason"], record["error"]) == (
            None,
            None,
            "empty",
            None,
        )

    def test_the_clock_and_how_far_it_is_ahead(self):
        now = datetime.datetime.now(datetime.UTC).astimezone()
        clock = told(read(rewrite=with_clock(now + datetime.timedelta(days=2)))[0])["clock"]
        assert clock["state"] == "set"
        assert abs(clock["ahead_s"] - 2 * 86_400) < 120
        assert told(read()[0])["clock"] == {**told(read()[0])["clock"], "state": "absent", "meter": None}
