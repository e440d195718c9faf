"""docs/cjt188.md says what the code does: its example is a profile, and every key, unit and status name is there."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from protocols import cjt188_data, flags, profile
from protocols.cjt188_data import Cjt188Spec

TEXT = (Path(__file__).parents[2] / "docs/cjt188.md").read_text(encoding="utf-8")
EXAMPLES = re.findall("```toml\n(.*?)```", TEXT, re.DOTALL)


def test_the_example_is_a_profile():
    loaded = profile.parse(EXAMPLES[0], where="docs/cjt188.md")
    measurement = loaded.protocol.decode_case(
        loaded.spec, [(bytes.fromhex(e.request), bytes.fromhex(e.response)) for e in loaded.cases[0].exchange]
    )
    assert measurement.flags == ("battery_low",)


def test_the_layouts_are_those_of_the_code():
    shown = [tuple(tomllib.loads(line)["layout"]) for line in EXAMPLES[1].splitlines()]
    assert shown == [cjt188_data.LAYOUTS["standard"], cjt188_data.LAYOUTS["rd-w10"]]


@pytest.mark.parametrize("word", sorted(flags.USUAL_EFFECT))
def test_status_names_are_listed(word):
    assert f"`{word}`" in TEXT


def test_keys_profiles_and_units_are_listed():
    rows = set(re.findall("^[|] `([a-z_]+)` [|]", TEXT, re.MULTILINE))
    assert {field.name for field in msgspec.structs.fields(Cjt188Spec)} <= rows
    for name in profile.built_in_names():
        if profile.load(name).head.protocol == "cjt188":
            assert f"`{name}`" in TEXT
    units = set(re.findall("[|] (2[0-9A-F]) [|]", TEXT))
    assert units == set(cjt188_data.UNIT_ML)
