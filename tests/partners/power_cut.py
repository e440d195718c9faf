"""Power cuts for a program that writes files: what it does is recorded by strace, then every instant can be the last.

The disk model: what a file's fsync or fdatasync returned from is on the disk. Of what was written since, any part may
be: each write, cut to length and creation on its own, in any order, a write perhaps up to some sector of 512 bytes.
Names that are deleted come back unless something was synced since. Memory that is mapped (SQLite's -shm) is gone.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SECTOR = 512
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")


def record(folder, command, *, environment):
    """Run a command; return its events: (kind, file, ...) of files in `folder`, and ("said", text) of its output."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed (make test installs it)")
    trace = Path(folder).with_suffix(".trace")
    calls = "openat,pwrite64,write,fdatasync,fsync,ftruncate,unlink,rename,close"
    options = ["-f", "-xx", "-s", "1000000", "-e", f"trace={calls}", "-o", trace]
    done = subprocess.run(
        [strace, *options, *command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    with trace.open(encoding="ascii", errors="replace") as lines:
        return list(_events(lines, str(folder)))


def _events(lines, folder):
    files = {}
    for line in lines:
        match = _CALL.match(line)
        if not match:
            continue
        call, arguments, result = match[1], match[2], int(match[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x..)*)"', arguments)]
        numbers = [int(number) for number in re.findall(r"(?:^|, )(\d+)(?=,|$)", arguments)]
        if call == "openat" and result >= 0:
            name = texts[0].decode(errors="replace")
            files.pop(result, None)
            if name.startswith(f"{folder}/"):
                files[result] = name.removeprefix(f"{folder}/")
                yield "create", files[result]
        elif call == "close":
            files.pop(numbers[0], None)
        elif call == "write" and numbers[0] == 1:
            yield "said", texts[0].decode()
        elif call == "unlink" and texts[0].decode(errors="replace").startswith(f"{folder}/"):
            yield "unlink", texts[0].decode().removeprefix(f"{folder}/")
        elif numbers and numbers[0] in files and result >= 0:
            name = files[numbers[0]]
            if call == "pwrite64":
                yield "write", name, numbers[-1], texts[0]
            elif call in ("fsync", "fdatasync"):
                yield "sync", name
            elif call == "ftruncate":
                yield "truncate", name, numbers[-1]


class Disk:
    """What is on the disk for sure, and what may be."""

    def __init__(self):
        self._durable = {}
        self._pending = []

    def take(self, event):
        """Let an event happen."""
        if event[0] == "sync":
            mine = [other for other in self._pending if other[1] == event[1] or other[0] == "unlink"]
            self._pending = [other for other in self._pending if other not in mine]
            for other in mine:
                _apply(self._durable, other)
        elif event[0] != "said":
            self._pending.append(event)

    def cut(self, dice):
        """Return what is found after the power came back: the contents of files by name."""
        found = {name: bytearray(data) for name, data in self._durable.items()}
        luck = dice.choice([0, 0.5, 0.9, 1])
        for kind, name, *rest in self._pending:
            if dice.random() >= luck:
                continue
            if kind == "write" and dice.random() < 0.3:
                sectors = dice.randrange(len(rest[1]) // SECTOR + 1)
                rest[1] = rest[1][: sectors * SECTOR]
            _apply(found, (kind, name, *rest))
        return {name: bytes(data) for name, data in found.items() if not name.endswith("-shm")}


def _apply(files, event):
    kind, name, *rest = event
    if kind == "unlink":
        files.pop(name, None)
        return
    data = files.setdefault(name, bytearray())
    if kind == "write":
        offset, written = rest
        data.extend(bytes(max(0, offset + len(written) - len(data))))
        data[offset : offset + len(written)] = written
    elif kind == "truncate":
        del data[rest[0] :]
        data.extend(bytes(rest[0] - len(data)))
