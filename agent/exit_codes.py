"""What the exit code of every `shuiwang` command means. Scripts and systemd rely on it: codes are never reused."""

import enum
from typing import Self


class ExitCode(enum.IntEnum):
    """The outcome of a command. `meaning` says it in a sentence for the documentation and `--help`."""

    meaning: str

    OK = 0, "All went well."
    BUG = 1, "Something happened that shuiwang does not foresee: a bug. The traceback on stderr belongs in a report."
    USAGE = 2, "The command line is wrong: unknown command or option, or an argument that makes no sense."
    CONFIGURATION = 3, "The configuration or a meter profile is wrong. Each problem is listed with its line."
    ALREADY_RUNNING = 4, "Another agent runs on this data_dir; two would send the same numbers twice."
    STORE = 5, "The store under data_dir cannot be opened or written: disk, permissions, or a newer version's file."
    PORT = 6, "A serial port cannot be opened: no such device, no permission, or another program holds it."
    BROKER = 7, "The broker cannot be reached, or it refuses the connection."
    DEMO_FAILED = 8, "The demo ran, but an alert did not arrive as it must."
    NO_READING = 9, "The port is fine, but no meter gave a reading, or the given frames hold none."
    DIFFERENT = 10, "A capture was replayed and comes out otherwise than it was recorded."
    VALVE_UNCONFIRMED = 11, "A valve was told to move, and the meter does not say that it is where it was sent."
    NOT_DONE = 12, "The service refused what it was asked, or has not answered yet; the text says which and why."
    INTERRUPTED = 130, "Ctrl-C ended it before its end, as any program (128 + SIGINT); what was printed is not all."
    OUTPUT_CLOSED = 141, "Whoever read the output went away, such as `| head` (128 + SIGPIPE); not a word is said."

    def __new__(cls, code: int, meaning: str) -> Self:
        """Make a member that is the number `code` and carries its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member
