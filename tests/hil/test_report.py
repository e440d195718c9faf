"""The list of meters and the report are right before anybody stands in a pit with them."""

import subprocess
import sys
from pathlib import Path

import pytest
from hil import bench as benches
from hil import report as reports
from partners.overheard_line import village

EXAMPLE = Path(__file__).with_name("meters.example.toml")
FOLDER = Path(__file__).parent


def test_the_example_list_is_one():
    meters, line = benches.read_list(EXAMPLE)
    assert [meter.profile for meter in meters] == ["cjt188-water", "cjt188-water"]
    assert line == {"baudrate": 2400, "parity": "E", "stop_bits": 1}
    assert benches.millilitres(meters[0].expected_m3) == 123_450_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "meter"),
        ("meter = []", "lists no"),
        ('[[meter]]\nprofile = "usw-dn15-40"', "address"),
        ('[[meter]]\nprofile = "nope"\naddress = "1"', "meter 1: there is no profile 'nope'"),
        ('[[meter]]\nprofile = "usw-dn15-40"\naddress = "999"', "meter 1"),
        ('[[meter]]\nprofile = "usw-dn15-40"\naddress = "1"\nexpected_m3 = "12,5"', "12,5"),
        ('[[meter]]\nprofile = "usw-dn15-40"\naddress = "1"\nexpectd_m3 = "1"', "expectd_m3"),
        ('[line]\nspeed = 1\n[[meter]]\nprofile = "usw-dn15-40"\naddress = "1"', "speed"),
        ("][", "meters.toml"),
    ],
)
def test_a_wrong_list_says_what_is_wrong(tmp_path, text, says):
    file = tmp_path / "meters.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(benches.WrongList, match=says):
        benches.read_list(file)


def bench_with(*results):
    meters = [benches.Expected(profile="usw-dn15-40", address="17", expected_m3="1", name="a|b")]
    bench = benches.Bench("/dev/ttyUSB0", {"baudrate": 9600}, meters, is_simulated=False)
    bench.results = list(results)
    return bench


@pytest.mark.parametrize(
    ("outcome", "verdict"), [("passed", " ACCEPTED"), ("failed", "NOT ACCEPTED"), ("skipped", " ACCEPTED")]
)
def test_the_verdict_is_that_of_the_checks(outcome, verdict):
    result = benches.Result(check="value", meter="a|b", outcome=outcome, detail="one\ntwo")
    text = reports.render(bench_with(result), wall_ms=0)
    assert text.splitlines()[0].endswith(verdict)
    assert "a\\|b" in text
    assert "one two" in text
    assert "真实水表 real meters" in text


def test_a_report_without_checks_accepts_nothing():
    assert "NOT ACCEPTED" in reports.render(bench_with(), wall_ms=0)


def acceptance(*arguments):
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(FOLDER / "test_acceptance.py"),
        "-q",
        "-p",
        "no:randomly",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=55, check=False, cwd=FOLDER.parents[1])


@pytest.mark.e2e
def test_the_suite_on_a_port_with_a_list_files_a_report(tmp_path):
    """The way a technician runs it; the meters on the port are simulated, which the suite does not know."""
    listed, report = tmp_path / "meters.toml", tmp_path / "report.md"
    listed.write_text(
        '[[meter]]\nprofile = "usw-dn15-40"\naddress = "17"\nexpected_m3 = "802.6"\nname = "east"\n'
        '[[meter]]\nprofile = "usw-dn15-40"\naddress = "18"\nexpected_m3 = "5"\nname = "west"\n',
        encoding="utf-8",
    )
    with village(("usw-dn15-40", "17", "802.609751"), ("usw-dn15-40", "18", "6.5")) as meters:
        done = acceptance("--hil-port", meters.port, "--hil-meters", str(listed), "--hil-report", str(report),
                          "--hil-reads", "3", "-k", "not quiet")  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    text = report.read_text(encoding="utf-8")
    assert text.startswith("# 水表验收报告 Acceptance report: 未通过 NOT ACCEPTED")
    assert "| east | 802.609751 | 802.6 | 3 / 3 |" in text
    assert "reads 6.500000 m³, the dial shows 5" in text or "difference 差 +1500.000 L" in text
    assert text.count("✘ 未通过 FAILED") == 1
    assert "– 未做 not done" in text, "nobody was there to unplug the adapter"


@pytest.mark.parametrize("arguments", [["--hil-port", "/dev/ttyUSB0"], ["--hil-port", "p", "--hil-meters", "absent"]])
def test_half_a_command_line_says_what_is_missing(arguments):
    done = acceptance(*arguments)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
