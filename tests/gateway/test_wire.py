"""The simulated line: no byte before its time, and two senders at once garble each other."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import PAUSE_CHARACTERS, SCHEDULER_ALLOWANCE_S, Answer, Wire

BYTE_S = 10 / 9600
REQUEST, FRAME = b"\x11\x03\x02\x04\x00\x04\x06\xe0", bytes(range(13))


def answer(frame=FRAME, **changes):
    return Answer(**{"meter": "a", "frame": frame, "delay_s": 0.005, "wall_ms": 1, "volume_ml": 2} | changes)


def new_wire(**changes):
    return Wire(**{"byte_s": BYTE_S, "echo": False, "chance": random.Random(1)} | changes)


def drain(wire):
    """Deliver burst by burst, as the owner of a wire does; return (time, byte) pairs and the answers."""
    seen, answers = [], []
    while (next_s := wire.next_s) is not None:
        delivery = wire.due(now_s=next_s)
        assert delivery.data, "woken for nothing"
        seen += [(next_s, byte) for byte in delivery.data]
        answers += delivery.answers
    return seen, answers


@given(
    st.floats(0, 1e7), st.binary(min_size=1, max_size=20), st.binary(min_size=1, max_size=260), st.floats(0, 1),
    st.sampled_from([300, 2400, 9600, 115200, 1_000_000]), st.integers(10, 12),
)  # fmt: skip
def test_no_byte_before_its_time(begin_s, request_bytes, frame, delay_s, baudrate, bits):
    byte_s = bits / baudrate
    wire = new_wire(byte_s=byte_s)
    assert wire.receive(request_bytes, now_s=begin_s)
    wire.send(answer(frame, delay_s=delay_s))
    seen, answers = drain(wire)
    assert bytes(byte for _, byte in seen) == frame
    answer_begin_s = begin_s + len(request_bytes) * byte_s + delay_s
    for index, (at_s, _) in enumerate(seen, 1):
        assert at_s - (answer_begin_s + index * byte_s) > -1e-8
    assert seen[-1][0] == pytest.approx(answer_begin_s + len(frame) * byte_s)
    assert [whole for _, whole in answers] == [True]
    assert wire.collisions == 0


@given(st.lists(st.floats(0, 0.01), max_size=40))
def test_asked_at_any_moment_it_gives_what_is_due(pauses):
    wire, now_s, got = new_wire(), 0.0, b""
    wire.receive(REQUEST, now_s=0.0)
    wire.send(answer())
    begin_s = len(REQUEST) * BYTE_S + 0.005
    for pause_s in pauses:
        now_s += pause_s
        got += wire.due(now_s=now_s).data
        assert len(got) <= max(0.0, (now_s - begin_s) / BYTE_S + 1e-5)
    assert (got + wire.due(now_s=9).data) == FRAME
    assert wire.next_s is None


def test_a_request_during_the_answer_is_lost_with_the_rest_of_it():
    wire = new_wire()
    wire.receive(REQUEST, now_s=0.0)
    wire.send(answer())
    half_s = len(REQUEST) * BYTE_S + 0.005 + 6.5 * BYTE_S
    first = wire.due(now_s=half_s)
    assert first.data == FRAME[:6]
    assert not wire.receive(REQUEST, now_s=half_s)
    seen, answers = drain(wire)
    rest = bytes(byte for _, byte in seen)
    assert len(rest) == 7
    assert all(got != sent for got, sent in zip(rest, FRAME[6:], strict=True))
    assert answers == [(answer(), False)]
    assert wire.collisions == 1


def test_a_request_while_the_meter_thinks_collides_only_if_it_is_still_on_the_line():
    for delay_s, heard in ((0.001, False), (0.05, True)):
        wire = new_wire()
        wire.receive(REQUEST, now_s=0.0)
        wire.send(answer(delay_s=delay_s))
        assert wire.receive(REQUEST, now_s=0.0) is heard, "sent behind the first, it ends 8.3 ms after it"


def test_two_answers_at_once_garble_each_other():
    wire = new_wire()
    wire.receive(REQUEST, now_s=0.0)
    wire.send(answer(meter="a"))
    wire.send(answer(meter="b", delay_s=0.01))
    seen, answers = drain(wire)
    assert [(given.meter, whole) for given, whole in answers] == [("a", False), ("b", False)]
    assert FRAME not in bytes(byte for _, byte in seen)


def test_the_next_request_after_the_answer_is_heard():
    wire = new_wire()
    wire.receive(REQUEST, now_s=0.0)
    wire.send(answer())
    seen, _ = drain(wire)
    assert wire.receive(REQUEST, now_s=seen[-1][0])
    assert wire.collisions == 0


def test_noise_takes_its_time_and_is_no_part_of_the_answer():
    wire = new_wire()
    wire.receive(REQUEST, now_s=0.0)
    wire.send(answer(before=b"\xaa\xbb", after=b"\xcc"))
    frame_end_s = len(REQUEST) * BYTE_S + 0.005 + 15 * BYTE_S
    assert wire.due(now_s=frame_end_s - 1e-6).answers == []
    assert [whole for _, whole in wire.due(now_s=frame_end_s).answers] == [True]
    assert not wire.receive(REQUEST, now_s=frame_end_s), "the noise behind the frame still occupies the line"
    assert wire.due(now_s=9).data != b"\xcc"


def test_an_echo_comes_at_the_pace_of_the_line_and_collides_with_nothing():
    wire = new_wire(echo=True)
    assert wire.receive(REQUEST, now_s=0.0)
    wire.send(answer())
    assert wire.due(now_s=3.5 * BYTE_S).data == REQUEST[:3]
    seen, answers = drain(wire)
    assert bytes(byte for _, byte in seen) == REQUEST[3:] + FRAME
    assert [whole for _, whole in answers] == [True]


def test_a_request_in_two_parts_is_one_stretch():
    wire = new_wire()
    wire.receive(REQUEST[:4], now_s=0.0)
    wire.receive(REQUEST[4:], now_s=0.001)
    assert wire.free_s == pytest.approx(8 * BYTE_S)


def test_a_pause_ends_a_frame():
    wire = new_wire()
    assert wire.paused(now_s=0.0), "before the first byte"
    wire.receive(REQUEST, now_s=1.0)
    limit_s = 1.0 + (len(REQUEST) + PAUSE_CHARACTERS) * BYTE_S + SCHEDULER_ALLOWANCE_S
    assert (wire.paused(now_s=limit_s - 1e-6), wire.paused(now_s=limit_s + 1e-6)) == (False, True)
