"""The demo's processes: started, watched, ended. Each writes into a log of its own."""

import asyncio
import contextlib
import ctypes
import ctypes.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from protocols.errors import ShuiwangError

START_S: Final = 30.0
STOP_S: Final = 8.0
_LOOK_S: Final = 0.05
_TAIL_LINES: Final = 12
_ROOT: Final = Path(__file__).resolve().parents[2]  # where this very package was imported from
_LIBC: Final = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
_PR_SET_PDEATHSIG: Final = 1  # <sys/prctl.h>


class ProcessFailed(ShuiwangError):
    """A process ended before its time, or did not get ready; the text holds the end of its log."""


class Child:
    """One process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def exit_code(self) -> int | None:
        """What it ended with; None while it runs."""
        return self._process.returncode

    async def says(self, text: str) -> str:
        """Wait until a line of its log holds `text`, and return that line. Raises ProcessFailed."""
        try:
            async with asyncio.timeout(START_S):
                while True:
                    for line in self._lines():
                        if text in line:
                            return line
                    self.check()
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise ProcessFailed(f"{self.name} was not ready within {START_S:.0f} s. {self.tail()}") from None

    def check(self) -> None:
        """Raise ProcessFailed if it has ended."""
        if self.exit_code is not None:
            raise ProcessFailed(f"{self.name} ended early with exit code {self.exit_code}. {self.tail()}")

    def tail(self) -> str:
        """Return the end of its log, as a sentence and indented lines."""
        lines = self._lines()[-_TAIL_LINES:]
        return f"The end of {self.log}:\n" + "".join(f"    {line}\n" for line in lines or ["(empty)"])

    async def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL if it does not listen."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return await self._process.wait()

    def _lines(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


class Children:
    """All of them; leaving the context ends those that still run, at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[Child] = []

    async def start(self, name: str, module: str, arguments: Sequence[str | Path] = ()) -> Child:
        """Start a Python module of ours as a process."""
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # not whatever is called `agent` in the folder that the user happens to be in
                "-m",
                module,
                *map(str, arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # Ctrl-C is for the demo, which ends them in order
                preexec_fn=_die_with_parent,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Raise ProcessFailed if one has ended."""
        for child in self._children:
            child.check()

    async def stop(self) -> dict[str, int | None]:
        """End them, those that were started last first; return their exit codes."""
        for child in reversed(self._children):
            await child.stop()
        return {child.name: child.exit_code for child in self._children}

    async def close(self) -> None:
        """End at once whatever still runs."""
        for child in self._children:
            if child.exit_code is None:
                child.kill()
        for child in self._children:
            await child.wait()


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the demo is gone, however that came about."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
