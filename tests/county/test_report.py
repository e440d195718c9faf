"""`show`: what the database holds, while the receiver writes."""

import datetime
import io
import time
import zoneinfo

import msgspec
import pytest
from rich.console import Console
from samples import (
    COUNTY,
    EPISODE,
    EPOCH,
    GATEWAY,
    LATER_EPOCH,
    NOW,
    alert,
    away,
    birth,
    incoming,
    raw,
    reading,
    reply,
    resolve,
    telemetry,
)

from county.errors import DatabaseError
from county.report import print_report, read_report
from protocols.contract import Daily, Ending, Leaf

SHANGHAI = datetime.timezone(datetime.timedelta(hours=8))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "county.db"


def test_a_report_on_a_live_database(receiver, file):
    receiver.receive([incoming(birth()), incoming(alert(1)), incoming(alert(2, "cleared"))])
    receiver.receive(
        [incoming(alert(3, episode="0" * 26, level="red")), incoming(telemetry(1)), incoming(telemetry(3))]
    )
    receiver.receive([raw(Leaf.ALERT, b"?"), incoming(birth(epoch=LATER_EPOCH, oldest_alert=4))])
    report = read_report(file)
    (open_alert,) = report.alerts
    assert (open_alert.id, open_alert.level, open_alert.earlier_store) == ("0" * 26, "red", True)
    assert open_alert.evidence == alert(3).alert.evidence
    (gateway,) = report.gateways
    assert (gateway.county, gateway.gateway, gateway.online, gateway.last_seen_at) == (COUNTY, GATEWAY, True, NOW)
    assert [(one.epoch, one.stream, one.up_to, one.waiting) for one in gateway.streams] == [
        (EPOCH, "alert", 3, 0),
        (EPOCH, "telemetry", 1, 1),
        (LATER_EPOCH, "alert", 3, 0),
        (LATER_EPOCH, "telemetry", 0, 0),
    ]
    assert [(one.meter, one.readings, one.missing) for one in report.meters] == [("m-001", 2, 0), ("m-002", 0, 2)]
    assert report.meters[0].newest_at == reading(3).at
    assert (report.set_aside, report.messages_skipped, report.readings_dropped) == (1, 3, 0)
    receiver.receive([incoming(alert(5, "cleared", episode="0" * 26))])
    assert read_report(file).alerts == ()


def test_red_alerts_come_first_then_the_longest_open(receiver, file):
    receiver.receive(
        [
            incoming(alert(1, episode="1" * 26, since="2026-11-21T02:00:00.000Z")),
            incoming(alert(2, episode="2" * 26, since="2026-11-21T01:00:00.000Z")),
            incoming(alert(3, episode="3" * 26, level="red", since="2026-11-21T03:00:00.000Z")),
        ]
    )
    assert [one.id[0] for one in read_report(file).alerts] == ["3", "2", "1"]


def test_people_get_tables_and_programs_json(receiver, file):
    receiver.receive([incoming(birth()), incoming(alert(1)), incoming(telemetry(1))])
    report = read_report(file)
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200), timezone=SHANGHAI)
    for piece in ("m-001 @ g-1 (shenxian)", "2026-11-22 04:40", "在线 online", "alert 1; telemetry 1", "用水过少"):
        assert piece in stream.getvalue()
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report
    assert report.alerts[0].id == EPISODE


def test_an_alert_says_since_when_it_stands_when_it_was_told_and_by_which_clocks(receiver, file):
    """The words of a gateway tell the time of its village; here it must be plain whose time is meant."""
    step = alert(1, since="2026-11-21T16:00:00.000Z", at="2026-11-21T19:00:00.000Z")
    receiver.receive([incoming(birth()), incoming(step)])
    report = read_report(file)
    shown = {}
    for name in ("Asia/Shanghai", "America/St_Johns"):
        stream = io.StringIO()
        print_report(report, Console(file=stream, width=240), timezone=zoneinfo.ZoneInfo(name))
        shown[name] = stream.getvalue()
    shanghai, st_johns = shown["Asia/Shanghai"], shown["America/St_Johns"]
    assert "2026-11-22 00:00" in shanghai
    assert "2026-11-22 03:00" in shanghai
    assert "2026-11-21 12:30" in st_johns
    assert "2026-11-21 15:30" in st_johns
    for text, zone in ((shanghai, "Asia/Shanghai"), (st_johns, "America/St_Johns")):
        assert f"times of {zone}" in text
        assert "自 since" in text
        assert "告知 told at" in text


@pytest.mark.parametrize(("machine", "offset"), [("Asia/Shanghai", "+08:00"), ("America/St_Johns", "-03:30")])
def test_the_machine_s_own_zone_is_named_by_its_offset(receiver, file, monkeypatch, machine, offset):
    monkeypatch.setenv("TZ", machine)
    time.tzset()
    try:
        receiver.receive([incoming(birth()), incoming(alert(1, since="2026-11-21T16:00:00.000Z"))])
        stream = io.StringIO()
        print_report(read_report(file), Console(file=stream, width=240), timezone=None)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert f"times of this machine UTC{offset};" in stream.getvalue()


def test_reading_a_report_changes_nothing_and_makes_no_file(tmp_path, file, receiver):
    missing = tmp_path / "missing.db"
    with pytest.raises(DatabaseError, match=r"no such file.*receive"):
        read_report(missing)
    assert not missing.exists()
    empty = tmp_path / "empty.db"
    empty.write_bytes(b"")
    with pytest.raises(DatabaseError, match="no such table"):
        read_report(empty)
    assert empty.read_bytes() == b""


def test_who_is_away_what_was_asked_and_what_was_found(receiver, file):
    ended = away("m-003", ended_at=NOW, ended_by=Ending.USE)
    quiet = away("m-002", daily=Daily(start="22:00", end="06:00"))
    words = {"zh": "请上门查看。", "en": "Please go and see."}
    receiver.receive([incoming(birth(absences=(ended, away(), quiet))), incoming(alert(1, level="red", text=words))])
    receiver.receive([incoming(resolve(1, result="helped", why="fell in the yard")), incoming(reply(1))])
    receiver.receive([incoming(resolve(2, alert_id="0" * 26)), incoming(reply(2, "unknown_alert"))])
    receiver.receive([incoming(resolve(3))])
    report = read_report(file)
    assert [one.absence for one in report.away] == [away(), quiet, ended], "those that stand first"
    found = {one.id[-1]: one for one in report.asked}
    assert (found["1"].meter, found["1"].alert_kind, found["1"].result, found["1"].why, found["1"].done) == (
        "m-001",
        "low_usage",
        "helped",
        "fell in the yard",
        True,
    )
    assert (found["2"].done, found["2"].reason, found["2"].meter) == (False, "unknown_alert", None)
    assert found["3"].done is None
    assert report.alerts[0].text == words
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=200), timezone=SHANGHAI)
    for piece in (
        "请上门查看。 Please go and see.",
        "外出 away",
        "安静时段 quiet hours 22:00-06:00",
        "已用水 water was used",
        "已救助 helped; fell in the yard; 已执行 done",
        "未执行 NOT DONE: unknown_alert",
        "等待答复 no reply yet",
    ):
        assert piece in stream.getvalue(), stream.getvalue()


def test_of_what_was_asked_the_newest_are_shown(receiver, file, monkeypatch):
    monkeypatch.setattr("county.report.ASKED_MAX", 3)
    for number in range(5):
        at = f"2026-11-22T00:00:0{number}.000Z"
        receiver.receive([incoming(resolve(number), received_at=at)])
    assert [one.id[-1] for one in read_report(file).asked] == ["4", "3", "2"]
