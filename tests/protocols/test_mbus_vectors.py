"""The libmbus corpus (../shared/vectors/mbus), read in place: value, refusal, bit flips, cuts, pyMeterBus beside us."""

import itertools
import re
import xml.etree.ElementTree as ET
from decimal import Decimal
from pathlib import Path

import meterbus
import pytest

from protocols import mbus, mbus_data
from protocols.errors import Garbled, MeterError, MeterFault, MeterRefused, NoResponse, WrongAnswer
from protocols.mbus import Identity
from protocols.mbus_data import MbusSpec

FOLDER = Path(__file__).parents[3] / "shared/vectors/mbus"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="../shared/vectors is not beside this checkout")

EVERY_STEP = tuple(f"1{power}" for power in range(8))
WATER = MbusSpec(vif=EVERY_STEP)
ANYTHING = MbusSpec(vif=EVERY_STEP, media=())
# libmbus writes units in words; "m " and "my " stand for 10^-3 and 10^-6.
STEP_ML = {"m ": 10**3, "my ": 1, "1e-1  ": 10**5, "1e-2  ": 10**4, "1e-4  ": 10**2, " ": 10**6}


def frames(folder):
    return sorted((FOLDER / folder).glob("*.hex"), key=lambda file: file.stem)


def named(file):
    return file.stem


def data_of(file):
    return bytes.fromhex(file.read_text(encoding="utf-8"))


class Expected:
    """What libmbus makes of a telegram."""

    def __init__(self, file):
        tree = ET.parse(file.with_suffix(".xml")).getroot()
        self.slave = {item.tag: item.text for item in tree.find("SlaveInformation")}
        self.records = [{item.tag: item.text for item in record} for record in tree.findall("DataRecord")]
        self.is_water = "ater" in self.slave["Medium"]

    def totals_ml(self):
        """The volumes of storage 0 without tariff or device. libmbus shows no VIFE, so there may be several."""
        found = []
        for record in self.records:
            unit = re.fullmatch(r"Volume \((.*)m\^3\)", record.get("Unit") or "")
            place = (
                record["Function"],
                record.get("StorageNumber"),
                record.get("Tariff", "0"),
                record.get("Device", "0"),
            )
            if unit and place == ("Instantaneous value", "0", "0", "0"):
                found.append(int(Decimal(record["Value"]) * STEP_ML[unit[1]]))
            if "StorageNumber" not in record and record.get("Unit") == "l":  # fixed structure
                found.append(int(record["Value"]) * 1000)
        return found


TELEGRAMS = frames("test-frames")
# None of them is of a water meter.
REFUSED = {
    "example_data_01": r"may be encrypted \(mode 22\)",  # B627 where others have 0000
    "example_binary16_lvar": "variable length F0",
}
WATER_TELEGRAMS = [file for file in TELEGRAMS if Expected(file).is_water]


def request_for(frame):
    return mbus.request_data(5 if frame.is_request else frame.address, frame_count_bit=True)


def measured(data, *, spec=WATER, bytewise=False):
    """The volume that bytes from the line come to, by reader and decoder; raises what they raise."""
    frame = mbus.parse_frame(data)
    return hear(request_for(frame or mbus.Frame(control=8, address=5)), data, spec=spec, bytewise=bytewise)


def hear(request, data, *, spec=WATER, bytewise=False):
    reader, found = request.reader(), None
    for chunk in [bytes([byte]) for byte in data] if bytewise else [data]:
        found = found or reader.feed(chunk)
    if found is None:
        reader.close()
    return mbus_data.measurement_of(spec, [mbus_data.decode(spec, mbus.parse_frame(found))]).volume_ml


def test_all_of_them_are_tested():
    counts = [len(frames(folder)) for folder in ("test-frames", "error-frames", "unsupported-frames")]
    assert counts == [56, 20, 7]
    assert len(WATER_TELEGRAMS) == 10
    assert sum(bool(Expected(file).totals_ml()) for file in WATER_TELEGRAMS) == 9


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("file", WATER_TELEGRAMS, ids=named)
def test_a_water_telegram_shows_what_is_expected(file, bytewise):
    expected = Expected(file).totals_ml()
    if file.stem == "manual_frame7":  # a fabrication number and nothing else
        assert expected == []
        with pytest.raises(MeterFault, match=r"volumes in the telegram: none$"):
            measured(data_of(file), bytewise=bytewise)
    else:
        # Where libmbus lists several, the first is the total: the others have VIFEs (7F of the maker, 28 pulse weight).
        assert measured(data_of(file), bytewise=bytewise) == expected[0]


@pytest.mark.parametrize("file", [file for file in TELEGRAMS if file not in WATER_TELEGRAMS], ids=named)
def test_no_telegram_of_another_medium_is_water(file):
    with pytest.raises(MeterFault):
        measured(data_of(file))


@pytest.mark.parametrize("file", TELEGRAMS, ids=named)
def test_what_is_a_total_in_any_medium_is_what_libmbus_says(file):
    """Gas and heat meters have volumes too: the same arithmetic, on many more frames."""
    expected = Expected(file).totals_ml()
    if not expected or file.stem in REFUSED:
        with pytest.raises(MeterFault):
            measured(data_of(file), spec=ANYTHING)
    else:
        # libmbus gives six digits of a number that has a factor.
        assert measured(data_of(file), spec=ANYTHING) == pytest.approx(expected[0], rel=1e-5)


def test_a_telegram_whose_configuration_word_is_filled_with_ones_is_plain():
    """FFFF where others have 0000; behind it whole records of a heat meter, which libmbus and pyMeterBus read too."""
    (file,) = [file for file in TELEGRAMS if file.stem == "amt_calec_mb"]
    telegram = mbus_data.decode(ANYTHING, mbus.parse_frame(data_of(file)))
    assert len(telegram.records) == len([record for record in Expected(file).records if record["Value"]])
    with pytest.raises(MeterFault, match=r"measures 04 \(heat\)"):
        measured(data_of(file))


@pytest.mark.parametrize("file", TELEGRAMS, ids=named)
def test_the_header_is_what_libmbus_says(file):
    frame, expected = mbus.parse_frame(data_of(file)), Expected(file).slave
    if file.stem in REFUSED:
        with pytest.raises(MeterFault, match=REFUSED[file.stem]):
            mbus_data.decode(WATER, frame)
        return
    telegram = mbus_data.decode(WATER, frame)
    assert telegram.identity.number.lstrip("0") == expected["Id"].lstrip("0")
    assert telegram.access == int(expected["AccessNumber"])
    assert telegram.status == int(expected["Status"], 16)
    if frame.ci not in mbus.FIXED:
        assert telegram.identity.manufacturer_name == expected["Manufacturer"]
        assert telegram.identity.version == int(expected["Version"])


@pytest.mark.parametrize("file", TELEGRAMS, ids=named)
def test_the_records_are_those_of_pymeterbus(file):
    frame = mbus.parse_frame(data_of(file))
    if file.stem in REFUSED:
        return  # see above
    if frame.ci in mbus.FIXED:
        with pytest.raises(meterbus.MBusFrameDecodeError):
            meterbus.load(data_of(file))
        return
    telegram, theirs = mbus_data.decode(WATER, frame), meterbus.load(data_of(file)).records
    # It keeps what follows 0F and 1F as a record, and drops records without a value.
    theirs = [record for record in theirs if record.dib.parts[0] not in (0x0F, 0x1F)]
    ours = [record for record in telegram.records if record.value]
    assert [bytes(record.vib.parts) for record in theirs] == [record.vib for record in ours]
    assert [bytes(record.dataField.parts) for record in theirs] == [record.value for record in ours]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("folder", ["error-frames", "unsupported-frames"])
def test_damaged_and_unsupported_frames_end_in_our_own_errors(folder, bytewise):
    outcomes = {}
    for file in frames(folder):
        if file.stem == "manual_frame1":  # "68" lost its first digit: no bytes
            with pytest.raises(ValueError, match="non-hexadecimal"):
                data_of(file)
            continue
        with pytest.raises((Garbled, WrongAnswer, MeterFault, MeterRefused)) as caught:
            measured(data_of(file), spec=ANYTHING, bytewise=bytewise)
        outcomes[file.stem] = caught.type
    refused = {name for name, kind in outcomes.items() if kind is MeterRefused}
    if folder == "error-frames":
        assert refused == {
            "application_busy",
            "buffer_too_long",
            "error",
            "premature_end_of_record",
            "too_many_difes",
            "too_many_readouts",
            "too_many_records",
            "too_many_vifes",
            "unimplemented_ci",
            "unspecified_error",
        }
        assert set(outcomes.values()) == {MeterRefused, MeterFault}
    else:
        assert outcomes["invalid_length"] is Garbled
        assert outcomes["invalid_length2"] is outcomes["svm_f22_telegram2"] is MeterFault


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("file", WATER_TELEGRAMS, ids=named)
class TestDamage:
    def test_every_single_bit_flip_is_refused(self, file, bytewise):
        data = data_of(file)
        request = request_for(mbus.parse_frame(data))
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises((Garbled, WrongAnswer)):
                hear(request, bytes(damaged), bytewise=bytewise)

    def test_every_cut_is_refused(self, file, bytewise):
        data = data_of(file)
        request = request_for(mbus.parse_frame(data))
        for length in range(len(data)):
            with pytest.raises((NoResponse, Garbled)):
                hear(request, data[:length], bytewise=bytewise)
            if length:
                with pytest.raises((NoResponse, Garbled, WrongAnswer)):
                    hear(request, data[length:], bytewise=bytewise)


@pytest.mark.parametrize("file", WATER_TELEGRAMS, ids=named)
def test_a_telegram_whose_end_is_missing_and_whose_checksum_is_right_is_a_fault(file):
    """What a meter that runs out of buffer sends: the sum sees nothing, the records do."""
    frame = mbus.parse_frame(data_of(file))
    records = mbus_data.decode(WATER, frame).records
    for length in range(len(frame.data)):
        cut = mbus.Frame(control=frame.control, address=frame.address, ci=frame.ci, data=frame.data[:length])
        try:
            volume_ml = measured(cut.encode())
        except MeterError:
            continue
        # Only a cut between two records, or within the maker's own data, leaves a telegram that is whole.
        kept = mbus_data.decode(WATER, cut).records
        assert kept == records[: len(kept)]
        assert volume_ml == Expected(file).totals_ml()[0]


def test_what_eight_bits_of_sum_cannot_see():
    """Every pair of flipped bits: how many leave a sound frame, how many of those change the volume (docs/mbus.md)."""
    file = FOLDER / "test-frames/els_falcon.hex"
    data = data_of(file)
    request, right = request_for(mbus.parse_frame(data)), Expected(file).totals_ml()[0]
    passed = wrong = pairs = 0
    for first, second in itertools.combinations(range(8 * len(data)), 2):
        pairs += 1
        damaged = bytearray(data)
        damaged[first // 8] ^= 1 << first % 8
        damaged[second // 8] ^= 1 << second % 8
        if mbus.parse_frame(damaged) is None:
            continue
        passed += 1
        try:
            wrong += hear(request, bytes(damaged)) != right
        except MeterError:
            pass
    assert (pairs, passed, wrong) == (204_480, 11_641, 985)


def test_an_identity_selects_its_own_telegram_only():
    for file in WATER_TELEGRAMS:
        frame = mbus.parse_frame(data_of(file))
        mine = Identity(number=frame.identity.number)
        other = Identity(number=f"{(int(mine.number) + 1) % 10**8:08d}")
        for identity, fits in ((mine, True), (other, False)):
            request = mbus.request_data(mbus.SELECTED, frame_count_bit=True, identity=identity)
            assert (request.mismatch(frame) is None) is fits
