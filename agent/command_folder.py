"""Commands as files: what somebody on this machine asks of the running service, or of the next start.

    <data_dir>/commands/ID.json          a command of the contract; put there by rename, so it is whole
    <data_dir>/commands/ID.reply.json    what the service answered

A command is deleted once it is answered for good. One that could not be done just now (a clock that is not synced, a
full disk) stays and is tried again until its deadline. The oldest replies go where there are too many.

Whoever says that a home is lived in again withdraws its absences that wait here: they must not make us look away once
the clock is right. Which came first no clock can say: a power cut may have set it back between the two. Said here,
`send` withdraws them before it puts that word there, so what lies beside it came later, and stays. Said by the county,
they are withdrawn when it is answered, just as an absence that stands is ended then.

Both ends are here: `CommandFolder` for the service, `send` and `reply_to` for the command line.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from agent.command_texts import kept
from gateway.clock import Clock
from protocols import contract
from protocols.contract import AbsenceCommand, Command, PresentCommand, Refusal, Reply
from protocols.errors import ContractError

log = logging.getLogger(__name__)

FOLDER_NAME: Final = "commands"
# Somebody waits for the reply at a terminal.
LOOK_S: Final = 0.5
RETRY_LOOKS: Final = 20  # 10 s between two attempts at what could not be done
AT_HAND_MAX: Final = 16
SLOW_S: Final = 2.0
# The longest command is a visit's result, under 4 KiB.
COMMAND_BYTES_MAX: Final = 16 * 1024
REPLIES_MAX: Final = 200
_SUFFIX: Final = ".json"
_REPLY_SUFFIX: Final = ".reply.json"
_LATER: Final = frozenset({Refusal.CLOCK_UNSYNCED, Refusal.FAILED, Refusal.BUSY})
# What opening a link, a socket, a folder or another's file says; anything else may pass (no handles, no memory).
_NO_COMMAND: Final = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EACCES})

Handle = Callable[[bytes], Awaitable[Reply | None]]


class CommandFolder:
    """The service's end."""

    def __init__(self, data_dir: Path, *, clock: Clock) -> None:
        self._folder = data_dir / FOLDER_NAME
        self._clock = clock
        self._at_hand: dict[str, asyncio.Task[None]] = {}
        self._later: set[str] = set()
        self._failing = False

    async def run(self, handle: Handle) -> NoReturn:
        """Answer what lies in the folder, for ever. `handle` never raises."""
        async with asyncio.TaskGroup() as tasks:
            for look in itertools.count():
                if look % RETRY_LOOKS == 0:
                    self._later.clear()
                try:
                    found = await asyncio.to_thread(_found, self._folder)
                    self._note(None)
                except OSError as error:
                    self._note(error)
                    found = []
                due = [one for one in found if one not in self._later | self._at_hand.keys()]
                for command_id in due[: AT_HAND_MAX - len(self._at_hand)]:
                    task = tasks.create_task(self._take(command_id, handle), name=f"command-file-{command_id}")
                    self._at_hand[command_id] = task
                    # In their order: somebody goes away, then is back. But one that waits for a meter holds up none.
                    await asyncio.wait({task}, timeout=SLOW_S)
                await self._clock.sleep(LOOK_S)
        raise AssertionError("counting never ends")

    async def withdraw(self, command: PresentCommand) -> None:
        """Delete a home's absences that wait here, where somebody said elsewhere that it is lived in. Raises OSError.

        One that is being answered just then is answered on return.
        """
        if command.id in self._at_hand:
            return  # it was said here: `send` has done it, and what waits now came later
        try:
            withdrawn = await asyncio.to_thread(_withdraw, self._folder, command)
        except FileNotFoundError:
            return  # nobody has ever put anything there
        if begun := [self._at_hand[command_id] for command_id in withdrawn if command_id in self._at_hand]:
            await asyncio.wait(begun)

    async def _take(self, command_id: str, handle: Handle) -> None:
        try:
            if not await self._answer(command_id, handle):
                self._later.add(command_id)
        except OSError as error:
            self._later.add(command_id)
            self._note(error)
        finally:
            del self._at_hand[command_id]

    async def _answer(self, command_id: str, handle: Handle) -> bool:
        """Answer one command; tell whether that was for good. Raises OSError."""
        payload = await asyncio.to_thread(_read, self._folder / f"{command_id}{_SUFFIX}")
        if payload is None:
            return True  # answered or withdrawn since the folder was looked at
        reply = await handle(payload)
        if reply is None or reply.id != command_id:
            log.warning("command_file_invalid file=%s%s: it holds no command of that id; deleted", command_id, _SUFFIX)
        else:
            is_kept = reply.reason in _LATER
            if is_kept and reply.text:
                reply = msgspec.structs.replace(reply, text=kept(reply.text))
            await asyncio.to_thread(_put, self._folder, f"{command_id}{_REPLY_SUFFIX}", contract.encode(reply))
            if is_kept:
                return False
        await asyncio.to_thread(_tidy, self._folder, command_id)
        return True

    def _note(self, error: OSError | None) -> None:
        if error is not None and not self._failing:
            log.error("command_folder_unusable folder=%s: %s; `shuiwang absence` cannot reach us", self._folder, error)
        self._failing = error is not None


def send(data_dir: Path, command: Command) -> Path:
    """Put a command into the folder, for the user whose data_dir it is; return where it lies. Raises OSError.

    That somebody is back withdraws what waits here of the home, and is put there even where that fails.
    """
    folder = data_dir / FOLDER_NAME
    owner = data_dir.stat()
    folder.mkdir(mode=0o750, exist_ok=True)
    try:
        if isinstance(command, PresentCommand):
            _withdraw(folder, command)
    finally:
        path = _put(folder, f"{command.id}{_SUFFIX}", contract.encode(command), owner=owner)
    return path


def reply_to(data_dir: Path, command: Command) -> Reply | None:
    """Return what the service answered, None where it has not yet. Raises OSError or ContractError."""
    try:
        payload = (data_dir / FOLDER_NAME / f"{command.id}{_REPLY_SUFFIX}").read_bytes()
    except FileNotFoundError:
        return None
    reply = contract.decode(contract.Leaf.REPLY, payload)
    assert isinstance(reply, Reply)
    return reply


def waiting(data_dir: Path) -> list[bytes]:
    """Return the commands that nobody has answered yet. Raises OSError."""
    folder = data_dir / FOLDER_NAME
    payloads = (_read(folder / f"{command_id}{_SUFFIX}") for command_id in _found(folder))
    return [payload for payload in payloads if payload is not None]


def _found(folder: Path | int) -> list[str]:
    """Return the ids of the commands in a folder, in the order in which they were made: ULIDs sort so."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - pathlib knows no folder by its handle
    except FileNotFoundError:
        return []
    return sorted(
        name.removesuffix(_SUFFIX)
        for name in names
        if name.endswith(_SUFFIX) and not name.endswith(_REPLY_SUFFIX) and not name.startswith(".")
    )


def _read(path: Path | str, *, place: int | None = None) -> bytes | None:
    """Return the beginning of a file; None for one that is gone, b"" for what is none or not for us to read.

    Raises OSError where it may be read another time: what could not be read is not known to be no command.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _NO_COMMAND:
            raise
        log.warning("command_file_unreadable file=%s: %s", path, error)
        return b""
    try:
        return os.read(handle, COMMAND_BYTES_MAX + 1) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
    finally:
        os.close(handle)


def _decoded(payload: bytes) -> Command | None:
    """Return the command in a file, None where it holds none."""
    try:
        command = contract.decode(contract.Leaf.COMMAND, payload)
    except ContractError:
        return None
    assert isinstance(command, Command)
    return command


def _withdraw(folder: Path, command: PresentCommand) -> list[str]:
    """Delete the absences of a home that wait in a folder; return their ids.

    Raises OSError where one could not be read or deleted, once the others are.
    """
    withdrawn: list[str] = []
    failed: OSError | None = None
    with _opened(folder) as place:
        for command_id in _found(place):
            name = f"{command_id}{_SUFFIX}"
            try:
                waits = _decoded(_read(name, place=place) or b"")
                if isinstance(waits, AbsenceCommand) and waits.meter == command.meter:
                    os.unlink(name, dir_fd=place)
                    withdrawn.append(command_id)
                    log.info("command_withdrawn id=%s meter=%s: somebody is back", command_id, command.meter)
            except FileNotFoundError:
                continue  # answered just now
            except OSError as error:
                failed = error
    if failed is not None:
        raise failed
    return withdrawn


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open a folder. Raises OSError.

    No link is followed: the folder is the service user's, and root must not write or delete where that user has it
    point to.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield place
    finally:
        os.close(place)


def _put(folder: Path, name: str, payload: bytes, *, owner: os.stat_result | None = None) -> Path:
    """Write a file so that it is there whole or not at all, a power cut included; root gives it and the folder away."""
    draft = f".{name}.new"
    with _opened(folder) as place:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(draft, flags, 0o640, dir_fd=place), "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
            for handle in (place, file.fileno()):
                _give(handle, owner)
        os.rename(draft, name, src_dir_fd=place, dst_dir_fd=place)
        os.fsync(place)
    return folder / name


def _give(handle: int, owner: os.stat_result | None) -> None:
    """Let root's file belong to the service's user, who answers it and deletes it."""
    if owner is not None and os.geteuid() == 0 and os.fstat(handle).st_uid != owner.st_uid:
        os.fchown(handle, owner.st_uid, owner.st_gid)


def _tidy(folder: Path, command_id: str) -> None:
    """Delete a command that is answered, and the oldest replies where there are too many."""
    path = folder / f"{command_id}{_SUFFIX}"
    if path.is_dir() and not path.is_symlink():
        path.rename(folder / f".{path.name}.no-file")  # somebody's mistake; it must not be asked for ever
    else:
        path.unlink(missing_ok=True)
    replies = sorted(folder.glob(f"*{_REPLY_SUFFIX}"))
    for reply in replies[:-REPLIES_MAX]:
        reply.unlink(missing_ok=True)
