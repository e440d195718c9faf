"""What the duty officer reads."""

import datetime
import io
import json
import typing

import pytest
from rich.console import Console
from samples import COUNTY, EPISODE, GATEWAY, NOW, alert, away

from county.display import (
    DO_TEXT,
    ENDING_TEXT,
    KIND_TEXT,
    LEVEL_TEXT,
    RESULT_TEXT,
    STATE_TEXT,
    TRANSITION_TEXT,
    Display,
    describe,
    evidence_text,
    local_time,
    printable,
)
from county.events import (
    AbsenceChange,
    AlertStep,
    CommandAnswered,
    GatewayChange,
    MessageSetAside,
    MessagesSkipped,
    ReadingsDropped,
)
from protocols.contract import AlertState, Command, Daily, Ending, Kind, Level, Result, Stream, Transition

SHANGHAI = datetime.timezone(datetime.timedelta(hours=8))
PLACE = {"county": COUNTY, "gateway": GATEWAY, "received_at": NOW}


def step(state="open", *, level="yellow", historical=False, standing=False, **changes):
    body = alert(1, state, level=level, **changes).alert
    return AlertStep(**PLACE, alert=body, historical=historical, standing=standing)


def text(event):
    return describe(event, timezone=SHANGHAI).plain


def test_an_open_alert_says_who_what_since_when_and_why():
    assert text(step()) == (
        "2026-11-22 04:40  黄 YELLOW  新警 OPEN  用水过少 low usage  m-001 @ g-1 (shenxian)  自 since 2026-11-21 16:39"
        "  |  12.0 h 用水 used 0–43.1 L, 阈值 limit 100 L, 最后用水 last use 2026-11-21 16:05–16:10"
    )


def test_escalated_cleared_historical_and_standing_are_marked():
    assert "红 RED  升级 ESCALATED" in text(step("escalated", level="red"))
    assert "解除 CLEARED" in text(step("cleared"))
    assert "[历史 historical] " in text(step(historical=True))
    assert "[未解除 still open] " in text(step(standing=True))
    assert "historical" not in text(step())


def test_an_alert_without_meter_is_about_the_gateway():
    assert "网关 gateway @ g-1" in text(step(meter=None, kind=Kind.STORAGE_DEGRADED, evidence={}))


def test_every_word_of_the_contract_has_its_text():
    assert (set(KIND_TEXT), set(STATE_TEXT), set(LEVEL_TEXT)) == (set(Kind), set(AlertState), set(Level))
    assert (set(TRANSITION_TEXT), set(ENDING_TEXT), set(RESULT_TEXT)) == (set(Transition), set(Ending), set(Result))
    assert set(DO_TEXT) == {command.__struct_config__.tag for command in typing.get_args(Command)}


def test_the_words_of_a_step_stand_in_place_of_its_figures():
    words = {"zh": "请上门查看。", "en": "Please go and see.", "fr": "…"}
    line = text(step("escalated", level="red", text=words, transition=Transition.ESCALATED))
    assert line.endswith("  |  请上门查看。 Please go and see.")
    assert "用水 used" not in line
    assert "再次提醒 REMINDED" in text(step("escalated", level="red", transition=Transition.REMINDED))


def test_an_absence_has_a_line_with_its_end_and_what_ended_it():
    line = text(AbsenceChange(**PLACE, absence=away()))
    assert "m-001 @ g-1 (shenxian)  外出 away  2026-11-22 04:39 – 2026-12-02 04:39" in line
    ended = away(ended_at="2026-11-22T01:00:00.000Z", ended_by=Ending.USE)
    assert "已结束 ended 2026-11-22 09:00: 已用水 water was used" in text(AbsenceChange(**PLACE, absence=ended))
    quiet = away(daily=Daily(start="22:00", end="06:00"))
    assert "安静时段 quiet hours 22:00-06:00" in text(AbsenceChange(**PLACE, absence=quiet))


def test_an_answer_has_a_line_with_what_was_asked_and_what_became_of_it():
    answered = CommandAnswered(
        **PLACE,
        id="1" * 26,
        done=True,
        do="resolve",
        alert=EPISODE,
        result="fine",
        text={"zh": "已记录", "en": "noted"},
    )
    assert f"上门结果 resolve fine 已执行 done  {EPISODE} @ g-1 (shenxian)  已记录 noted" in text(answered)
    refused = CommandAnswered(**PLACE, id="1" * 26, done=False, reason="late", text={"en": "too \x1b[31mlate"})
    line = text(refused)
    assert "命令 command 未执行 NOT DONE (late)  " + "1" * 26 in line
    assert "\x1b" not in line


def test_gateways_tombstones_gaps_and_what_was_set_aside_have_their_lines():
    assert "网关离线 GATEWAY OFFLINE  g-1 (shenxian)  power" in text(
        GatewayChange(**PLACE, online=False, reason="power")
    )
    back = text(GatewayChange(**PLACE, online=True, agent="shuiwang 0.1.0", meters=6, new_store=True))
    assert "gateway online  g-1 (shenxian)  shuiwang 0.1.0, 6 块表 meters" in back
    assert "NEW STORE" in back
    dropped = ReadingsDropped(**PLACE, readings=60, start="2026-11-02T03:00:00.000Z", end="2026-11-02T03:55:00.000Z")
    assert "60 条 readings, 2026-11-02 11:00 – 2026-11-02 11:55" in text(dropped)
    assert "telemetry 1–4" in text(MessagesSkipped(**PLACE, stream=Stream.TELEMETRY, first=1, last=4))
    set_aside = MessageSetAside(county="", gateway="", received_at=NOW, topic="other/topic", reason="why", count=3)
    assert "NOT UNDERSTOOD  other/topic  ×3: why" in text(set_aside)


@pytest.mark.parametrize("nasty", ["\x1b[2J", "a\nb", "\r", "\x07", "\u202e", "\x9b31m", "[bold]x[/bold]"])
def test_what_a_gateway_sends_cannot_steer_the_terminal(nasty):
    for event in (
        GatewayChange(**PLACE, online=False, reason=nasty),
        step(evidence={nasty: nasty}),
        MessageSetAside(**PLACE, topic=nasty, reason=nasty, count=1),
    ):
        stream = io.StringIO()
        Display(Console(file=stream, width=40), json=False, timezone=SHANGHAI).show(event)
        (line,) = stream.getvalue().splitlines()
        assert line.isprintable()
        assert printable(nasty) in line


def test_a_line_is_never_wrapped_or_coloured_where_nobody_watches():
    stream = io.StringIO()
    Display(Console(file=stream, width=20), json=False, timezone=SHANGHAI).show(step(level="red"))
    assert stream.getvalue() == text(step(level="red")) + "\n"


def test_a_terminal_gets_colours():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", width=20, no_color=False)
    Display(console, json=False).show(step(level="red"))
    assert "\x1b[1;31m" in stream.getvalue()


def test_json_is_one_complete_object_a_line():
    stream = io.StringIO()
    display = Display(Console(file=stream, width=20), json=True)
    display.show(step(evidence={"text": "a\nb"}))
    display.show(GatewayChange(**PLACE, online=False, reason="power"))
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["gateway"], first["alert"]["id"]) == ("alert", GATEWAY, EPISODE)
    assert (second["event"], second["online"], second["reason"]) == ("gateway", False, "power")


def test_evidence_that_is_not_the_low_usage_rule_is_shown_with_the_units_of_its_names():
    evidence = {"leak_ml": 1500, "back_ml": -30, "since_at": "2026-11-21T08:10:00.000Z", "days": 3, "on": True}
    assert evidence_text(evidence, timezone=SHANGHAI) == (
        "leak 1.5 L, back -0.03 L, since_at 2026-11-21 16:10, days 3, on True"
    )
    assert len(evidence_text({"x": "y" * 5000})) == 240


def test_a_time_that_is_none_stays_as_it_is():
    assert local_time("soon") == "soon"
