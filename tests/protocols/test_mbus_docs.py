"""docs/mbus.md says what the code does: its example is a profile, and every key, unit, flag and profile is there."""

import re
from pathlib import Path

import msgspec

from protocols import mbus_data, mbus_dialogue, profile
from protocols.mbus_data import MbusSpec
from protocols.mbus_records import Record

TEXT = (Path(__file__).parents[2] / "docs/mbus.md").read_text(encoding="utf-8")


def test_the_example_is_a_profile():
    (example,) = re.findall("```toml\n(.*?)```", TEXT, re.DOTALL)
    loaded = profile.parse(example, where="docs/mbus.md")
    assert loaded.cases[0].volume_ml == 1_234_567_000


def test_keys_flags_and_profiles_are_listed():
    words = [field.name for field in msgspec.structs.fields(MbusSpec)]
    words += [flag for flag in (*mbus_data.APPLICATION_FLAGS, *mbus_data.STATUS_FLAGS.values()) if flag]
    words += [name for name in profile.built_in_names() if profile.load(name).head.protocol == "mbus"]
    assert [word for word in words if f"`{word}`" not in TEXT] == []


def test_units_are_those_of_the_code():
    rows = re.findall(r"[|] (1[0-7]|FB1[01]) [|] (\d+) (mL|L|m³) (?=[|])", TEXT)
    shown = {vif: int(number) * {"mL": 1, "L": 10**3, "m³": 10**6}[unit] for vif, number, unit in rows}
    assert len(shown) == 10
    for vif, step_ml in shown.items():
        record = Record(function=0, storage=0, tariff=0, subunit=0, coding=0, vib=bytes.fromhex(vif), value=b"")
        assert record.step_ml == step_ml
        assert msgspec.convert({"vif": [vif]}, MbusSpec).vif == (vif,)


def test_the_addresses_are_addresses():
    addresses = re.findall('`address = "(.*?)"`', TEXT)
    assert len(addresses) == 3
    for address in addresses:
        assert str(mbus_dialogue.parse_address(address)) == address


def test_the_limit_of_telegrams():
    assert f"at most {mbus_dialogue.TELEGRAMS_MAX} are fetched" in TEXT
