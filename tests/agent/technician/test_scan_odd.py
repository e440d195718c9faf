"""A scan meets meters that are not as most are: silent, sleepy, slow, of their own type, twins, new at 0."""

import tomllib

import msgspec
import pytest

from agent.technician import proposal, scan_plan, scan_questions, views_scanning
from agent.technician.fits import Fit, built_in, fit_of, is_decided, ranked
from agent.technician.scan_found import Found, Identifier
from agent.technician.scan_plan import Wanted
from agent.technician.scanning import Progress, Scan
from gateway.line import LineSettings
from protocols import cjt188, mbus, mbus_dialogue, modbus, profile
from protocols.mbus import Identity
from protocols.mbus_data import MbusSpec
from protocols.reading import Measurement

LINE = LineSettings(name="scan", port="p", baudrate=9600)
NUMBER = "00000805000001"
USW = modbus.ReadRequest(unit=5, function=3, address=0x204, count=4)
ABB = modbus.ReadRequest(unit=5, function=3, address=12002, count=2)


class World:
    """A port in virtual time with one talker behind it: bytes asked, bytes answered and after how long."""

    in_waiting = 0

    def __init__(self, answer, *, delay_s=0.05):
        self.now_s = 0.0
        self.sent = []
        self._answer = answer
        self._delay_s = delay_s
        self._coming = []

    def write(self, data):
        self.sent.append(bytes(data))
        answer = self._answer(bytes(data), self.now_s)
        if answer:
            self._coming.append((self.now_s + self._delay_s, answer))

    def read(self, size):
        if self._coming and self._coming[0][0] <= self.now_s:
            return self._coming.pop(0)[1]
        self.now_s += 0.02
        return b""

    def close(self):
        pass

    def pause(self, seconds):
        self.now_s += seconds

    @property
    def tools(self):
        return {"opener": lambda _: self, "monotonic": lambda: self.now_s, "pause": self.pause}


def scan(world, **wanted):
    running = Scan(["p"], Wanted(**{"baudrates": (9600,), "parities": ("N",)} | wanted), listen_s=0, **world.tools)
    return running, list(running.run())


def asked_of(data):
    return modbus.decode_request(data) if len(data) == 8 and modbus.has_crc(data) else None


def mute(data, _):
    """Answers its own registers and nothing else, not even with a refusal."""
    return modbus.encode_response(USW, [0, 0, 0x2FD6, 0xDA57]) if data == USW.encode() else None


def sleepy():
    """Loses the first request after 10 s of quiet."""
    last_s = [-99.0]

    def answer(data, now_s):
        asked = asked_of(data)
        if asked is None or asked.unit != 5:
            return None
        is_awake, last_s[0] = now_s - last_s[0] < 10, now_s
        if not is_awake:
            return None
        return modbus.encode_response(ABB, [0, 123]) if data == ABB.encode() else modbus.encode_exception(asked, 2)

    return answer


def volumes(running):
    return {one.address: [(fit.profile, fit.volume_ml) for fit in one.fits] for one in running.found}


class TestSilentModbusMeters:
    @pytest.mark.parametrize("wanted", [{}, {"units": (3, 5)}], ids=["unknown", "named"])
    def test_one_that_answers_its_own_registers_only(self, wanted):
        running, _ = scan(World(mute), protocols=("modbus",), **wanted)
        assert volumes(running) == {"5": [("usw-dn15-40", 802_609_751)]}

    def test_one_that_sleeps_through_the_first_request(self):
        running, _ = scan(World(sleepy()), protocols=("modbus",))
        assert volumes(running) == {"5": [("abb-aquamaster3", 123_000_000)]}

    def test_one_that_shares_its_line_with_one_that_talks(self):
        def answer(data, now_s):
            asked = asked_of(data)
            return modbus.encode_exception(asked, 2) if asked and asked.unit == 2 else mute(data, now_s)

        running, _ = scan(World(answer), protocols=("modbus",))
        assert set(volumes(running)) == {"2", "5"}

    def test_every_map_that_we_know_is_asked_for_and_what_sleeps_last(self):
        questions = [
            *scan_questions.modbus_questions(is_closer=False),
            *scan_questions.modbus_questions(is_closer=True),
        ]
        asked = {(one.function, one.address, one.count) for one in questions}
        assert len(asked) == len(questions)
        for known in built_in():
            if known.head.protocol == "modbus":
                assert (known.spec.function, *next(known.spec.requests())) in asked, known.name
        assert (questions[-1].address, questions[-1].count) == (ABB.address, ABB.count)

    def test_nobody_is_looked_at_closely_who_was_found_or_garbled_already(self):
        def answer(data, _):
            asked = asked_of(data)
            answers = {1: modbus.encode_exception(asked, 2), 2: b"\x02\x03\x55\x66\x77\x88"} if asked else {}
            return answers.get(asked and asked.unit)

        world = World(answer)
        running, _ = scan(world, protocols=("modbus",), units=(1, 2, 3))
        addresses = {question.address for question in scan_questions.modbus_questions(is_closer=True)}
        closely = {asked.unit for data in world.sent if (asked := asked_of(data)) and asked.address in addresses}
        assert closely == {1, 3}, "1 was read with every profile"
        assert len([told for told in running.told if "garbled" in told.words.en]) == 1

    def test_the_plan_says_how_long_the_closer_look_takes(self):
        wanted = Wanted(protocols=("modbus",), framings=("rtu",), units=(1, 2), baudrates=(9600,), parities=("N",))
        steps = [*scan_plan.quick("p", wanted), *scan_plan.second("p", wanted)]
        assert [step.is_closer for step in steps] == [False, True]
        world = World(lambda *_: None)
        list(Scan(["p"], wanted, listen_s=0, **world.tools).run())
        assert scan_plan.total_s(steps) == pytest.approx(world.now_s, rel=0.25)

    def test_many_named_units_are_not_all_looked_at_closely(self):
        (step,) = scan_plan.closer(LINE, "modbus", Wanted(units=tuple(range(1, 248))))
        assert step.addresses == tuple(map(str, range(1, scan_plan.CLOSER_UNITS_MAX + 1)))


class TestSlowMeters:
    def slow(self, data, _):
        asked = asked_of(data)
        if asked is None or asked.unit != 5:
            return None
        is_ours = data == USW.encode()
        return modbus.encode_response(asked, [0, 0, 0x2FD6, 0xDA57]) if is_ours else modbus.encode_exception(asked, 2)

    def test_a_timeout_that_is_given_holds_for_reading_and_is_proposed(self):
        running, _ = scan(World(self.slow, delay_s=0.8), protocols=("modbus",), units=(5,), timeout_ms=1500)
        assert volumes(running) == {"5": [("usw-dn15-40", 802_609_751)]}
        (meter,) = tomllib.loads(proposal.toml(running.found))["meter"]
        assert meter["timeout_ms"] == 1500

    def test_one_that_answers_while_the_next_one_is_asked_is_read_with_patience(self):
        running, _ = scan(World(self.slow, delay_s=0.8), protocols=("modbus",))
        assert volumes(running) == {"5": [("usw-dn15-40", 802_609_751)]}
        assert running.found[0].timeout_ms == 2000

    def test_the_profiles_own_time_is_not_repeated(self):
        running, _ = scan(World(self.slow), protocols=("modbus",), units=(5,), timeout_ms=300)
        assert running.found[0].timeout_ms is None
        assert "timeout_ms" not in proposal.toml(running.found)


def standard(content, *, own_type=0x10, heeds=(0x10, 0xAA), addresses=True):
    """A CJ/T 188 meter with these bytes after SER."""

    def answer(data, _):
        for _, frame in cjt188.find_frames(data):
            if frame.is_reply or frame.meter_type not in heeds or frame.address not in (NUMBER, cjt188.BROADCAST):
                continue
            if frame.control == cjt188.READ_ADDRESS and addresses:
                return cjt188.answer(frame, b"", address=NUMBER, meter_type=own_type).encode()
            if frame.control == cjt188.READ_DATA and frame.identifier == b"\x90\x1f":
                return cjt188.answer(frame, bytes.fromhex(content), address=NUMBER, meter_type=own_type).encode()
        return None

    return answer


NEW_IN_LITRES = "00 00 00 00 29 00 00 00 00 29 00 00 00 00 00 00 00 00 00"
CUBIC_METRES = "00 23 01 00 2C 00 00 00 00 2C 00 00 00 00 00 00 00 00 00"


class TestWhichProfile:
    def test_a_new_meter_at_0_is_not_taken_for_another_layout(self):
        running, _ = scan(World(standard(NEW_IN_LITRES)), protocols=("cjt188",))
        (found,) = running.found
        assert [(fit.profile, fit.volume_ml) for fit in found.fits] == [("cjt188-litres", 0), ("cjt188-litres-2", 0)]
        assert not found.is_decided, "litres or hundredths of a litre: a factor of 100, which shows at 0 alone"
        text = proposal.toml(running.found)
        assert "meter" not in tomllib.loads(text)
        assert '# # profile = "cjt188-litres"' in text
        assert '# # profile = "cjt188-litres-2"' in text
        assert "let some water run" in text

    def test_a_total_and_a_settled_field_without_a_unit_is_no_fraction_layout(self):
        content = "00 23 01 00 29 00 00 00 00 00 00 00 00 00 00 00 00 00 00"
        running, _ = scan(World(standard(content)), protocols=("cjt188",))
        assert all(fit.profile != "rd-w10" for fit in running.found[0].fits)
        assert "rd-w10" not in (tomllib.loads(proposal.toml(running.found)).get("meter") or [{}])[0].get("profile", "")

    @pytest.mark.parametrize(
        "content",
        [
            "00 23 01 00 00 00 00 00 00 00 00 00 00 01 01 11 20 00 00",  # a clock that was never set: 2011-01-01
            "00 23 01 00 00 00 00 00 00 00 00 00 00 01 01 01 20 00 00",  # 2001-01-01
            "00 23 01 00 00 00 00 00 00 00 00 00 00 01 01 01 19 00 00",  # 1901-01-01
            "00 23 01 00 00 00 00 00 00 00 20 26 11 22 04 05 10 00 00",  # high byte first, five past four
            "00 23 01 00 00 00 00 00 00 00 19 00 01 01 05 03 10 00 00",  # high byte first, never set
            "00 23 01 00 00 00 00 00 00 2C 00 00 00 01 01 11 21 00 00",  # no such century, but the settled total's unit
        ],
    )
    def test_six_bytes_of_a_date_of_seven_are_no_witness(self, content):
        """The total has a unit that no profile of ours has: as one of rd-w10 it would be a thousand times too much."""
        running, _ = scan(World(standard(content)), protocols=("cjt188",))
        (found,) = running.found
        assert (found.fits, found.is_decided) == ((), False)
        assert "the unit code of the total is 00" in found.reason
        assert "12300 with the dial" in found.reason
        assert "meter" not in tomllib.loads(proposal.toml(running.found))

    def test_a_date_of_six_bytes_that_ends_none_of_seven_is_a_witness(self):
        """Also of a meter whose two last decimals are a unit code by chance; then the dial decides."""
        content = "12 00 00 00 {} 56 00 00 00 00 23 30 45 12 11 07 26 00 00"
        running, _ = scan(World(standard(content.format("34"))), protocols=("cjt188",))
        (found,) = running.found
        assert [(fit.profile, fit.volume_ml) for fit in found.fits] == [("rd-w10", 12_005_634)]
        assert found.is_decided
        running, _ = scan(World(standard(content.format("29"))), protocols=("cjt188",))
        (found,) = running.found
        assert {fit.profile for fit in found.fits} == {"cjt188-litres", "cjt188-litres-2", "rd-w10"}
        assert not found.is_decided

    def test_what_the_answer_vouches_for_comes_first(self):
        vouched = [Fit(profile="a", volume_ml=5, certainty=1), Fit(profile="b", volume_ml=0, certainty=2)]
        assert [fit.profile for fit in ranked(vouched)] == ["b", "a"]
        assert not is_decided(vouched)

    def test_its_own_meter_is_recognised_by_its_date(self):
        known = profile.load("rd-w10")
        (exchange,) = known.cases[0].exchange
        answer = bytes.fromhex(exchange.response)
        fit = fit_of(known, Measurement(volume_ml=1_234_567_890), answer)
        assert fit.certainty == 1
        frame = cjt188.parse_frame(answer, answer.index(0x68))
        undated = msgspec.structs.replace(frame, data=frame.data[:-8] + b"\0" * 8).encode()
        assert fit_of(known, Measurement(volume_ml=1_234_567_890), undated) is None

    def test_profiles_that_read_it_in_one_way_are_decided(self):
        running, _ = scan(World(standard(CUBIC_METRES.replace("23 01", "00 00"))), protocols=("cjt188",))
        (found,) = running.found
        assert {fit.volume_ml for fit in found.fits} == {0}
        assert len(found.fits) > 1
        assert found.is_decided
        assert tomllib.loads(proposal.toml(running.found))["meter"][0]["profile"] == "cjt188-water"

    def test_modbus_maps_that_disagree_leave_the_choice_to_the_dial(self):
        fits = (Fit(profile="usw-dn15-40", volume_ml=5_000_000), Fit(profile="xintai", volume_ml=7_000_000))
        found = Found(line=LINE, protocol="modbus", address="3", fits=fits)
        text = proposal.toml([found])
        assert "meter" not in tomllib.loads(text)
        assert '# # profile = "usw-dn15-40"  # 5.000 m³' in text
        assert '# # profile = "xintai"  # 7.000 m³' in text
        assert "see the dial" in views_scanning.found_line(found).plain
        both_new = [Fit(profile="a", volume_ml=0, way="x"), Fit(profile="b", volume_ml=0, way="y")]
        assert not is_decided(both_new)
        chosen = "\n".join(
            row.removeprefix("# ").removeprefix("# ")
            for row in text.splitlines()
            if row.startswith("#") and "xintai" not in row and ("=" in row or "[[" in row)
        )
        assert tomllib.loads(chosen)["meter"][0]["profile"] == "usw-dn15-40", "what is left when the # are gone"


class TestMeterTypes:
    @pytest.mark.parametrize("heeds", [(0x11, 0xAA), (0x11,)], ids=["its own and any", "its own alone"])
    def test_a_hot_water_meter_that_heeds_only_its_own_type(self, heeds):
        running, _ = scan(World(standard(CUBIC_METRES, own_type=0x11, heeds=heeds)), protocols=("cjt188",))
        (found,) = running.found
        assert (found.fits[0].profile, found.fits[0].volume_ml) == ("cjt188-hot-water", 123_000_000)
        assert tomllib.loads(proposal.toml(running.found))["meter"][0]["profile"] == "cjt188-hot-water"

    def test_a_type_for_which_there_is_no_profile_is_named_with_what_to_do(self):
        running, _ = scan(World(standard(CUBIC_METRES, own_type=0x12, heeds=(0x12, 0xAA))), protocols=("cjt188",))
        (found,) = running.found
        assert (found.meter_type, found.fits[0].volume_ml, found.is_decided) == (0x12, 123_000_000, False)
        text = proposal.toml(running.found)
        assert "meter_type = 0x12" in text
        assert "meter" not in tomllib.loads(text)

    @pytest.mark.parametrize("own_type", [0x11, 0x12, 0xAA])
    def test_one_that_answers_with_its_type_and_heeds_10_is_read_as_ever(self, own_type):
        heeds = (0x10, own_type, 0xAA)
        running, _ = scan(World(standard(CUBIC_METRES, own_type=own_type, heeds=heeds)), protocols=("cjt188",))
        assert (running.found[0].fits[0].profile, running.found[0].meter_type) == ("cjt188-water", None)


def mbus_line(*identities, noise=False):
    """M-Bus meters that may collide: what they send is joined by AND, as on the wire. No addresses: all have 0."""

    def telegrams(identity, volume_ml):
        return lambda: [mbus_dialogue.total_telegram(MbusSpec(), identity, volume_ml)]

    slaves = [
        mbus_dialogue.Slave(identity=identity, telegrams=telegrams(identity, 1_000 * number))
        for number, identity in enumerate(identities, 1)
    ]

    def answer(data, _):
        frame = mbus.parse_frame(data)
        if frame is None or noise:
            return b"\x00\x55" if noise else None
        answers = [said for slave in slaves if (said := slave.answer(frame))]
        return bytes(map(lambda *column: column[0] if len(set(column)) == 1 else 0, *answers)) if answers else None

    return answer


def meter(number, maker=0x1111):
    return Identity(number=number, manufacturer=maker, version=1, medium=7)


class TestMbusSearch:
    def search(self, *identities, **options):
        return scan(World(mbus_line(*identities, **options), delay_s=0.01), protocols=("mbus",), timeout_ms=40)

    def test_two_makers_with_one_number_do_not_hide_the_third_meter(self):
        running, _ = self.search(meter("12345678"), meter("12345678", 0x2222), meter("98765432"))
        assert set(volumes(running)) == {"1234567811110107", "1234567822220107", "9876543211110107"}
        assert all(fits for fits in volumes(running).values())

    def test_what_cannot_be_told_apart_is_the_last_word_and_the_rest_is_found(self):
        running, events = self.search(meter("12345678"), meter("12345678"), meter("98765432"))
        assert set(volumes(running)) == {"9876543211110107"}
        assert not running.is_complete
        assert "12345678" in running.told[-1].words.en
        assert "cannot be told apart" in running.told[-1].words.en
        totals = [event.total_s - event.done_s for event in events if isinstance(event, Progress)]
        assert totals[-1] < max(totals), "the time that is left was told while it went"

    def test_a_number_with_letters_is_told_and_what_to_do(self):
        running, _ = self.search(meter("A2345678"), meter("12345678"))
        lettered = next(one for one in running.found if one.address.startswith("A"))
        assert lettered.fits == ()
        assert "letters" in lettered.reason
        assert "primary address" in proposal.toml(running.found)

    def test_a_noisy_line_ends_the_search_and_that_is_said(self):
        running, _ = self.search(noise=True)
        assert running.found == []
        assert "given up" in " ".join(told.words.en for told in running.told)
        assert not running.is_complete

    def test_a_meter_that_no_profile_reads_is_led_somewhere(self):
        found = Found(line=LINE, protocol="mbus", address="12345678", reason="mbus-water: VIF 17")
        text = proposal.toml([found])
        assert "shuiwang read --port p --profile mbus-water --address 12345678" in text
        assert "docs/mbus.md" in text
        assert "profiles new" not in text
        modbus_one = Found(line=LINE, protocol="modbus", address="3")
        assert "profiles new" in proposal.toml([modbus_one])


def test_why_no_profile_reads_it_is_the_most_telling_reason():
    """Not the silence of the last one tried."""

    def answer(data, _):
        asked = asked_of(data)
        return modbus.encode_exception(asked, 2) if asked and asked.address == USW.address else None

    found = Identifier(built_in(), **World(answer).tools).identify(LINE, "modbus", "5")
    assert found.reason.startswith("usw-dn15-40: ")
