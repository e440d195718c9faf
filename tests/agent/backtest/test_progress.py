import io

from agent.backtest.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def said(stream, *, until_s, step_s=0.1):
    now = 0.0
    progress = Progress(stream, now_s=lambda: now)
    while now < until_s:
        progress.say(f"{now:.1f}")
        now += step_s
    progress.close()
    return stream.getvalue()


def test_what_is_quick_says_nothing():
    assert said(io.StringIO(), until_s=1.9) == ""
    assert said(Terminal(), until_s=1.9) == ""


def test_a_log_gets_a_line_now_and_then():
    lines = said(io.StringIO(), until_s=35).splitlines()
    assert len(lines) == 4
    assert all("\x1b" not in line for line in lines)


def test_a_terminal_gets_one_line_that_goes_away():
    text = said(Terminal(), until_s=5)
    assert "\n" not in text
    assert text.endswith("\r\x1b[2K")
