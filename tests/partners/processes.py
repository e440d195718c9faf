"""Programs that a test runs beside itself: started, watched, and never left behind."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def free_port():
    """A TCP port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find(program):
    """The path of a program of the system; the test skips where it is not installed."""
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed (make test installs it)")
    return path


def wait_until(condition, *, timeout_s=15.0, what="it"):
    """Return what `condition` returns as soon as that is true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {timeout_s:.0f} s")


class Running:
    """A process whose output goes to a file."""

    def __init__(self, log, *command, **options):
        self.log = Path(log)
        self.command = [str(part) for part in command]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=subprocess.STDOUT, **options)

    @property
    def text(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, pattern, *, timeout_s=15.0):
        """Wait until a line matches; fail with the log when the process ends before."""

        def seen():
            match = re.search(pattern, self.text, re.MULTILINE)
            assert match or self.process.poll() is None, f"{self.command} ended: {self.text}"
            return match

        return wait_until(seen, timeout_s=timeout_s, what=f"{pattern!r} in the log of {self.command[0]}")

    def kill(self):
        """As a power cut would: no goodbye."""
        self.process.kill()
        self.process.wait()

    def stop(self, *, timeout_s=15.0):
        """Ask it to end; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.command} does not end on SIGTERM: {self.text[-2000:]}") from None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()


def shuiwang(*arguments):
    """The command line of our own program in this interpreter."""
    return [sys.executable, "-m", "agent.cli", *map(str, arguments)]


def run_shuiwang(*arguments, **options):
    """Run our own program to its end, with nobody who types; return what it printed and its exit code."""
    usual = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 55, "cwd": REPOSITORY}
    return subprocess.run(shuiwang(*arguments), check=False, **usual | options)


@contextlib.contextmanager
def pty_pair(folder):
    """Two ptys that are one line; yields both ends."""
    ends = folder / "near", folder / "far"
    with Running(folder / "socat.log", find("socat"), *(f"pty,raw,echo=0,link={end}" for end in ends)):
        wait_until(lambda: all(end.exists() for end in ends), what="the pty pair")
        yield ends


class ModbusLine:
    """A pty line (socat) with USW meters on it that pymodbus serves."""

    def __init__(self, folder, *units):
        self._stack = contextlib.ExitStack()
        self.port, far_end = self._stack.enter_context(pty_pair(folder))
        self.served_file = folder / "served.log"
        server = Path(__file__).with_name("pymodbus_line.py")
        self._meters = Running(
            folder / "pymodbus.log", sys.executable, server, far_end, self.served_file, *units, stdin=subprocess.PIPE
        )
        self._stack.enter_context(self._meters).wait_for("^ready$")

    def show(self, unit, volume_ml):
        """Set a meter's register."""
        self._meters.process.stdin.write(f"{unit} {volume_ml}\n".encode())
        self._meters.process.stdin.flush()

    def served(self):
        """What every answer said, in order: (unit, volume_ml)."""
        lines = self.served_file.read_text(encoding="ascii").splitlines()
        return [tuple(map(int, line.split())) for line in lines]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._meters.process.stdin.close()
        self._stack.close()
