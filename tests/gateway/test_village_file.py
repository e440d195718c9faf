"""The village file: what it means, and that every mistake is named with file, key and what would be right."""

import datetime
import re
import tomllib
import zoneinfo
from pathlib import Path

import pytest

from gateway.usage import Interval, VillageError, wall_ms_of
from gateway.village_faults import AnyFault, Dead, FlippedBit
from gateway.village_file import _RIGHT, LineTable, load, parse

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "village.example.toml"
METER = '[[meter]]\nprofile = "usw-dn15-40"\naddress = "17"\n'
HOME = METER + "usage = []\n"


def test_the_example_is_a_village():
    plan = load(EXAMPLE)
    assert [(meter.id, meter.profile.name, meter.address) for meter in plan.meters] == [
        ("m-001", "usw-dn15-40", 17),
        ("m-002", "xintai", 18),
        ("m-003", "tuf-2000", 19),
    ]
    assert {type(fault) for meter in plan.meters for _, fault in meter.faults} == set(AnyFault.__args__)


def test_the_example_shows_every_key():
    shown = set(re.findall(r"^(?:# )?(\w+) = ", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    assert shown == set(_RIGHT) - {"line", "meter", "fault"}


def test_what_the_example_comments_out_is_what_holds_without_it():
    text = EXAMPLE.read_text(encoding="utf-8")
    defaults = re.sub(r"^# ((?!link|csv|drip_)\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert len(tomllib.loads(defaults)["line"]) == 4
    for short, long in zip(load(EXAMPLE).meters, parse(defaults, where="defaults").meters, strict=True):
        assert (short.answer_delay_s, short.address) == (long.answer_delay_s, long.address)
        at_ms = wall_ms_of(datetime.datetime(2026, 11, 22), timezone=zoneinfo.ZoneInfo("UTC"))
        assert short.register.volume_ml(at_ms) == long.register.volume_ml(at_ms)
    assert parse(defaults, where="defaults").line == load(EXAMPLE).line == LineTable()


def test_the_handbook_explains_every_key():
    handbook = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    assert [key for key in _RIGHT if f"`{key}`" not in handbook and f"{key}]" not in handbook] == []


def test_times_are_local_to_the_village():
    plan = parse(
        'timezone = "Europe/Madrid"\n' + HOME + "[[meter.fault]]\nkind = 'dead'\nfrom = 2026-07-01T12:00:00\n"
        "to = 2026-07-01T12:00:00Z\n[[meter.fault]]\nkind = 'flip_bit'\nrate = 0.5\n",
        where="v",
    )
    (interval, dead), (always, flip) = plan.meters[0].faults
    assert (interval.end_ms - interval.start_ms, always) == (2 * 3_600_000, Interval())
    assert isinstance(dead, Dead)
    assert isinstance(flip, FlippedBit)
    assert flip.rate == 0.5


@pytest.mark.parametrize(
    ("baudrate", "parity", "stop_bits", "bits"),
    [(9600, "N", 1, 10), (2400, "E", 1, 11), (19200, "N", 2, 11), (300, "O", 2, 12)]
)  # fmt: skip
def test_a_byte_takes_its_bits(baudrate, parity, stop_bits, bits):
    assert LineTable(baudrate=baudrate, parity=parity, stop_bits=stop_bits).byte_s == bits / baudrate


def test_neighbours_with_the_same_routine_have_their_own_days():
    home = '[[meter]]\nprofile = "usw-dn15-40"\naddress = "{}"\nusage = ["12:00 9 L"]\nvary_percent = 50\n{}\n'

    def shown(text):
        at_ms = wall_ms_of(datetime.datetime(2026, 2, 1), timezone=zoneinfo.ZoneInfo("Asia/Shanghai"))
        return [meter.register.volume_ml(at_ms) for meter in parse(text, where="v").meters]

    three = shown(home.format(1, "") + home.format(2, "") + home.format(3, "seed = 7"))
    assert len(set(three)) == 3
    assert shown("seed = 7\n" + home.format(3, "")) == three[2:], "a meter's seed stands in for the file's"
    assert shown(home.format(1, "since = 2026-01-31T00:00:00"))[0] < 14_000


def test_volumes_are_exact():
    plan = parse(HOME + 'start_m3 = "999999999.123456"\ndrip_l_h = "0.001"\n', where="v")
    assert plan.meters[0].register.volume_ml(0) == 999_999_999_123_456


def test_paths_count_from_the_file(tmp_path):
    (tmp_path / "readings.csv").write_text("timestamp,litres\n2026-01-01T06:30,8\n")
    (tmp_path / "own.toml").write_text((ROOT / "protocols/profiles/xintai.toml").read_text(encoding="utf-8"))
    file = tmp_path / "village.toml"
    file.write_text('[line]\nlink = "port"\n[[meter]]\nprofile = "./own.toml"\naddress = "5"\ncsv = "readings.csv"\n')
    plan = load(file)
    assert plan.link == tmp_path / "port"
    assert plan.meters[0].profile.name == "xintai"
    assert plan.meters[0].register.volume_ml(10**13) == 8000


def test_totals_of_settlement_days_are_exact_and_may_be_missing():
    home = '[[meter]]\nprofile = "cjt188-water"\naddress = "00000805000001"\nusage = []\n'
    (meter,) = parse(home + 'settled_m3 = ["12.34", "empty", "refused", "0"]\n', where="v").meters
    assert meter.settled_ml == {0xD120: 12_340_000, 0xD121: None, 0xD123: 0}
    assert parse(home, where="v").meters[0].settled_ml == {}


CJT188 = '[[meter]]\nprofile = "cjt188-water"\naddress = "00000805000001"\nusage = []\n'
MISTAKES = [
    (HOME + "settled_m3 = ['1']\n", "v: meter 1: settled_m3: CJ/T 188 meters alone"),
    (CJT188 + "settled_m3 = ['none']\n", 'v: meter 1: settled_m3 1: .*"empty", "refused"'),
    (CJT188 + "settled_m3 = [1.5]\n", 'v: meter 1: settled_m3 1: Expected `str`.*"empty", "refused"'),
    (CJT188 + "settled_m3 = ['0.0000001']\n", "v: meter 1: settled_m3: 0.0000001 is finer than a millilitre"),
    (CJT188 + f"settled_m3 = {['1'] * 13}\n", "v: meter 1: settled_m3: .*up to twelve"),
    (
        CJT188.replace("cjt188-water", "rd-w10") + "settled_m3 = ['1']\n",
        "v: meter 1: settled_m3: how rd-w10 shows past totals is not known; right would be to leave it out",
    ),
    ("[[meter", "v: "),
    ("", "v: meter: .*at least one table"),
    ("meter = []", "v: meter: .*at least one table"),
    ("meter = 7", "v: meter: .*at least one table"),
    ("meter = [7]", "v: meter 1: Expected `object`"),
    ("line = 7\n" + HOME, "v: line: .*a table"),
    ("[lines]\n" + HOME, "v: lines: there is no such key; right would be line"),
    ("[line]\nbaud = 9600\n" + HOME, "v: line: baud: there is no such key; right would be baudrate"),
    ("[line]\nbaudrate = 0\n" + HOME, "v: line: baudrate: .*300 to 1000000"),
    ("[line]\nparity = 'X'\n" + HOME, 'v: line: parity: .*"N", "E" or "O"'),
    ("timezone = 'Mars/Olympus'\n" + HOME, "v: timezone: 'Mars/Olympus' is unknown; .*Asia/Shanghai"),
    ("timezone = '../etc'\n" + HOME, "v: timezone: '../etc' is unknown"),
    ("timezone = ''\n" + HOME, "v: timezone: '' is unknown"),
    (HOME + "adress = '18'\n", "v: meter 1: adress: there is no such key; right would be address"),
    (HOME + "zzz = 1\n", "v: meter 1: zzz: there is no such key; known are profile, address"),
    (HOME + HOME.replace("address", "#"), 'v: meter 2: address: .*missing.*such as "17"'),
    (HOME.replace('"17"', "17"), 'v: meter 1: address: Expected `str`.*such as "17"'),
    (HOME.replace('"17"', '"248"'), "v: meter 1: address: '248': .*\"1\" to \"247\""),
    (HOME.replace("usw", "usx"), "v: meter 1: profile: .*known are"),
    (HOME + HOME, "v: meter 2: id: '17' is taken"),
    (HOME + HOME + "id = 'b'\n", "v: meter 2: address: '17' is taken"),
    (HOME + "start_m3 = 1.5\n", 'v: meter 1: start_m3: .*in quotes, such as "123.456"'),
    (HOME + "start_m3 = '-1'\n", "v: meter 1: start_m3: .*exact decimal"),
    (HOME + "start_m3 = '0.0000001'\n", "v: meter 1: start_m3: .*at most 6 decimals"),
    (HOME + "start_m3 = '1000000001'\n", "v: meter 1: start_m3: .*at most 1000000000 m3"),
    (HOME + "drip_l_h = '0.0001'\n", "v: meter 1: drip_l_h: .*at most 3 decimals"),
    (HOME + "answer_delay_ms = -1\n", "v: meter 1: answer_delay_ms: .*0 to 10000"),
    (HOME + "vary_percent = 91\n", "v: meter 1: vary_percent: .*0 to 90"),
    (HOME + "vary_min = 181\n", "v: meter 1: vary_min: .*0 to 180"),
    (HOME + "since = 2026-11-21\n", "v: meter 1: since: .*2026-11-21T20:30:00"),
    (HOME + "silent_from = 2026-11-21T20:30:00\nsilent_to = 2026-11-21T20:30:00\n", "v: meter 1: silent_to: .*a later"),
    (METER, r"v: meter 1: give either usage \(a list of draws .*or csv"),
    (HOME + "csv = 'a.csv'\n", "v: meter 1: give either"),
    (METER + "csv = 'a.csv'\nvary_min = 1\n", "v: meter 1: vary_min: goes with usage, not with csv"),
    (METER + "csv = 'gone.csv'\n", r"gone\.csv: cannot be read"),
    (METER + "usage = ['6:30 8 L']\n", "v: meter 1: usage: '6:30 8 L' is no draw"),
    (METER + "usage = [8]\n", "v: meter 1: usage 1: .*a list of draws"),
    (HOME + "fault = [{ kind = 'deaf' }]\n", "v: meter 1: fault 1.*Invalid value 'deaf'.*\"dead\""),
    (HOME + "fault = [{ form = 1 }]\n", "v: meter 1: fault 1: kind: .*missing"),
    (HOME + "fault = [{ kind = 'dead', form = 1 }]\n", "v: meter 1: fault 1: form: .*right would be from"),
    (HOME + "fault = [{ kind = 'late' }]\n", "v: meter 1: fault 1: late_ms: .*missing.*1 to 60000"),
    (HOME + "fault = [{ kind = 'dead', rate = 0 }]\n", "v: meter 1: fault 1: rate: .*more than 0.0"),
    (HOME + "fault = [{ kind = 'dead', rate = 1.01 }]\n", "v: meter 1: fault 1: rate: .*at most 1.0"),
    (HOME + "fault = [{ kind = 'wrong_unit', address = 'x' }]\n", "v: meter 1: fault: address: 'x'"),
    (HOME + "fault = [7]\n", "v: meter 1: fault 1: Expected"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "problem"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_is_named(text, problem):
    with pytest.raises(VillageError) as caught:
        parse(text, where="v")
    assert re.search(problem, str(caught.value)), str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(VillageError, match=r"gone\.toml: cannot be read"):
        load(tmp_path / "gone.toml")
