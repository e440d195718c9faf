"""Every capture in this folder's `captures` comes out as it was recorded.

A capture is made with `shuiwang record` at a real line, and is a test as soon as it lies here. Say in its first line
which meter it is of, where and when (no person's name or address), and what is special about it.
"""

from pathlib import Path

import pytest

from agent.technician import capture, replaying

CAPTURES = sorted((Path(__file__).parent / "captures").glob("*.txt"))


@pytest.mark.parametrize("file", CAPTURES, ids=lambda file: file.stem)
def test_a_capture_comes_out_as_recorded(file):
    result = replaying.replay(capture.load(file))
    assert result.compared, "a capture without outcomes proves nothing"
    assert [outcome for outcome in result.outcomes if outcome.is_same is False] == []


def test_there_are_captures():
    assert CAPTURES
