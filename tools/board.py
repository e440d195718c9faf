"""Runs the portable core, as it lies in the repository, on MicroPython for a Cortex-M3 with 32-bit floats, in qemu.

    python tools/board.py FIRMWARE SCRIPT [ARGUMENT ...]

FIRMWARE is what `tools/board_micropython.sh` builds. SCRIPT sees the repository's portable files under the folder
`/repository`, and its arguments in `sys.argv`; what it prints is printed. Ends with 1 where it raises.
"""

import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

REPOSITORY = Path(__file__).parents[1]
PORTABLE = tuple(
    f"agent/{name}.py"
    for name in ("__init__", *(f"detection/{name}" for name in ("__init__", "window", "limit", "register", "watch")))
)
MACHINE = "mps2-an385"
START_S = 60.0  # on a busy machine; it takes two
CHUNK = 1024  # characters in one line to the board: its line is kept on its heap, beside the file

# A file system in the board's memory. The modules are imported from it as they would be from flash.
FILES = """
import io, os, sys, vfs
class Files:
    def __init__(self): self.texts = {}
    def mount(self, readonly, mkfs): pass
    def umount(self): pass
    def stat(self, path):
        path = path.strip("/")
        if path in self.texts: return (0x8000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        if any(name.startswith(path + "/") for name in self.texts): return (0x4000, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        raise OSError(2)
    def open(self, path, mode): return io.BytesIO(self.texts[path.strip("/")])
_files = Files()
vfs.mount(_files, "/repository")
"""


class BoardError(Exception):
    """The board raised what it prints, or says nothing."""


class Board:
    """An emulated board with the portable files on it; a context, at whose end it is switched off."""

    def __init__(self, firmware: Path) -> None:
        """Start it. Raise BoardError where it does not come up."""
        options = (
            "-semihosting",
            *("-display", "none", "-monitor", "none", "-serial", "stdio"),
            "-kernel",
            str(firmware),
        )
        command = ("qemu-system-arm", "-machine", MACHINE, *options)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        try:
            self._until(b">>> ", timeout_s=START_S)
            self._write(b"\x01")  # from here on it echoes nothing
            self._until(b"CTRL-B to exit\r\n>", timeout_s=START_S)
            self.run(FILES)
            for name in PORTABLE:
                self._put(name, (REPOSITORY / name).read_bytes())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Switch it off."""
        self._process.kill()
        self._process.communicate()

    def run(self, script: str, *arguments: str, timeout_s: float = 600.0) -> str:
        """Return what a script prints on the board. Raise BoardError on what it raises, and when it takes too long.

        What it leaves behind stays on the board's heap of 140 KB: a long script wants a board of its own.
        """
        if arguments:
            script = f"import sys\nsys.argv[:] = {['', *arguments]!r}\n{script}"
        self._write(script.encode() + b"\x04")
        self._until(b"OK", timeout_s=START_S)
        printed = self._until(b"\x04", timeout_s=timeout_s)
        raised = self._until(b"\x04", timeout_s=START_S)
        self._until(b">", timeout_s=START_S)
        if raised:
            raise BoardError(_text(printed + raised))
        return _text(printed)

    def _put(self, name: str, content: bytes) -> None:
        self.run("_parts = bytearray()")
        for start in range(0, len(content), CHUNK):
            self.run(f"_parts.extend({content[start : start + CHUNK]!r})")
        self.run(f"_files.texts[{name!r}] = bytes(_parts)\ndel _parts")

    def _write(self, data: bytes) -> None:
        sink = _pipe(self._process.stdin)
        while data:  # the emulated serial port takes a byte at a time; nothing is printed before the end
            data = data[sink.write(data) :]

    def _until(self, end: bytes, *, timeout_s: float) -> bytes:
        """Return what the board says before `end`."""
        source, said = _pipe(self._process.stdout), bytearray()
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(source, selectors.EVENT_READ)
            while not said.endswith(end):
                if not selector.select(max(deadline - time.monotonic(), 0)):
                    raise BoardError(f"nothing more for {timeout_s:.0f} s after: {_text(bytes(said))[-200:]}")
                byte = os.read(source.fileno(), 1)
                if not byte:
                    raise BoardError(f"the emulator has ended with {self._process.wait()}: {_text(bytes(said))[-200:]}")
                said += byte
        return bytes(said[: -len(end)])


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def _text(said: bytes) -> str:
    return said.decode().replace("\r\n", "\n")


def main() -> int:
    """Run one script."""
    if len(sys.argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    firmware, script, *arguments = sys.argv[1:]
    try:
        with Board(Path(firmware)) as board:
            print(board.run(Path(script).read_text(encoding="utf-8"), *arguments, timeout_s=3600), end="")
    except BoardError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
