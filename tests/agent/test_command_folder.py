"""Commands as files: taken whole, answered once, kept while they cannot be done, and never in the service's way."""

import asyncio
import errno
import os
import stat

import pytest

from agent import command_folder
from agent.command_folder import AT_HAND_MAX, COMMAND_BYTES_MAX, LOOK_S, REPLIES_MAX, RETRY_LOOKS, CommandFolder
from gateway.ulid import new_ulid
from protocols import contract
from protocols.contract import AbsenceCommand, PresentCommand, Refusal, Reply

NOW_MS = 1_795_293_540_000


def command(number=1, wall_ms=NOW_MS):
    return PresentCommand(
        schema=contract.COMMAND_SCHEMA,
        id=new_ulid(wall_ms, random_bits=lambda _: number),
        deadline=contract.instant(NOW_MS),
        meter="m-001",
    )


def away(number=1, meter="m-001"):
    return AbsenceCommand(
        schema=contract.COMMAND_SCHEMA,
        id=new_ulid(NOW_MS, random_bits=lambda _: number),
        deadline=contract.instant(NOW_MS),
        meter=meter,
        until=contract.instant(NOW_MS + 86_400_000),
        declared_by="technician",
    )


def reply(command_id, reason=None):
    text = {"zh": "好", "en": "ok"}
    return Reply(
        schema=contract.REPLY_SCHEMA,
        id=command_id,
        at=contract.instant(NOW_MS),
        done=reason is None,
        reason=reason,
        text=text,
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(command_folder, "SLOW_S", 0.05)


class Clock:
    """Lets the folder look again when the test says so."""

    def __init__(self):
        self.slept_s = 0.0
        self._looks = asyncio.Semaphore(0)
        self._resting = asyncio.Event()

    async def sleep(self, seconds):
        self.slept_s += seconds
        self._resting.set()
        await self._looks.acquire()

    async def look(self, times=1):
        for _ in range(times):
            await asyncio.wait_for(self._resting.wait(), 5)
            self._resting.clear()
            self._looks.release()
        await asyncio.wait_for(self._resting.wait(), 5)
        await asyncio.sleep(0.03)  # what was begun at this look has its own threads


class Service:
    """Answers what `answers` says, and remembers what it was asked."""

    def __init__(self, folder):
        self.clock = Clock()
        self.asked = []
        self.answer = lambda payload: reply(command_id) if (command_id := contract.decode_command_id(payload)) else None
        self.folder = CommandFolder(folder, clock=self.clock)

    async def handle(self, payload):
        self.asked.append(payload)
        answer = self.answer(payload)
        return await answer if asyncio.iscoroutine(answer) else answer

    async def __aenter__(self):
        self._task = asyncio.create_task(self.folder.run(self.handle))
        await self.clock.look()
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def files(folder):
    return sorted(path.name for path in (folder / "commands").iterdir())


async def test_a_command_is_answered_and_gone(tmp_path):
    async with Service(tmp_path) as service:
        path = command_folder.send(tmp_path, command())
        assert path.read_bytes() == contract.encode(command())
        assert command_folder.reply_to(tmp_path, command()) is None
        await service.clock.look()
        assert command_folder.reply_to(tmp_path, command()) == reply(command().id)
        assert files(tmp_path) == [f"{command().id}.reply.json"]
        await service.clock.look(3)
        assert len(service.asked) == 1
        assert LOOK_S <= 1, "somebody waits at a terminal"


async def test_what_was_put_there_while_the_service_was_stopped_is_done_at_its_start_in_order(tmp_path):
    for number in (3, 1, 2):
        command_folder.send(tmp_path, command(number))
    assert command_folder.waiting(tmp_path) == [contract.encode(command(number)) for number in (1, 2, 3)]
    async with Service(tmp_path) as service:
        assert service.asked == [contract.encode(command(number)) for number in (1, 2, 3)]
    assert command_folder.waiting(tmp_path) == []


@pytest.mark.parametrize("reason", [Refusal.CLOCK_UNSYNCED, Refusal.FAILED, Refusal.BUSY])
async def test_what_cannot_be_done_now_is_kept_and_tried_again_but_not_all_the_time(tmp_path, reason):
    async with Service(tmp_path) as service:
        genuine, service.answer = service.answer, lambda _: reply(command().id, reason.value)
        await service.clock.look(RETRY_LOOKS)  # so that it comes between two attempts
        command_folder.send(tmp_path, command())
        await service.clock.look(3)
        told = command_folder.reply_to(tmp_path, command())
        assert told.reason == reason.value, "whoever waits is told"
        for language, said in {"zh": "好命令已保存", "en": "ok The command is kept"}.items():
            assert told.text[language].startswith(said)
        assert len(service.asked) == 1
        assert len(command_folder.waiting(tmp_path)) == 1
        await service.clock.look(RETRY_LOOKS)
        assert len(service.asked) == 2
        service.answer = genuine
        await service.clock.look(RETRY_LOOKS)
        assert command_folder.reply_to(tmp_path, command()).done
        assert files(tmp_path) == [f"{command().id}.reply.json"]


async def test_who_is_back_is_not_away_again_because_of_an_absence_that_waited(tmp_path):
    """The clock is not synced: `add` waits, `end` is done. Once it is, nobody may look away from who is at home."""
    waits = [away(1), away(2, meter="m-002"), away(4)]

    def unsynced(payload):
        asked = contract.decode(contract.Leaf.COMMAND, payload)
        if isinstance(asked, PresentCommand):
            left = [contract.decode(contract.Leaf.COMMAND, one).id for one in command_folder.waiting(tmp_path)]
            # Before the rest is done: were the power to fail now, a later start must not find the absence either.
            assert left == [waits[1].id, asked.id, waits[2].id]
        return reply(asked.id, "clock_unsynced" if isinstance(asked, AbsenceCommand) else None)

    async with Service(tmp_path) as service:
        genuine, service.answer = service.answer, unsynced
        command_folder.send(tmp_path, waits[0])
        command_folder.send(tmp_path, waits[1])
        await service.clock.look(2)
        command_folder.send(tmp_path, command(3))
        command_folder.send(tmp_path, waits[2])
        await service.clock.look(2)
        assert command_folder.reply_to(tmp_path, command(3)).done
        service.answer = genuine
        asked = len(service.asked)
        await service.clock.look(RETRY_LOOKS)
        assert service.asked[asked:] == [contract.encode(one) for one in waits[1:]], "of others, or declared since"
        assert not command_folder.reply_to(tmp_path, waits[0]).done


def ids_waiting(folder):
    return [contract.decode_command_id(payload) for payload in command_folder.waiting(folder)]


def test_who_is_back_by_a_clock_that_was_set_back_withdraws_what_waits(tmp_path):
    """The power failed between the two, and the box has no clock of its own."""
    command_folder.send(tmp_path, away(1))
    command_folder.send(tmp_path, away(2, meter="m-002"))
    back = command(3, wall_ms=NOW_MS - 3 * 3_600_000)
    command_folder.send(tmp_path, back)
    assert ids_waiting(tmp_path) == [back.id, away(2).id]


@pytest.mark.parametrize("later", [away(5), away(0)], ids=["clock goes on", "clock set back"])
async def test_what_is_declared_after_somebody_said_to_be_back_stays(tmp_path, later):
    """The service was stopped meanwhile, and being back is not done at the first attempt."""
    service, attempts = Service(tmp_path), iter(["failed", None])

    async def answer(payload):
        asked = contract.decode(contract.Leaf.COMMAND, payload)
        if isinstance(asked, AbsenceCommand):
            return reply(asked.id, "clock_unsynced")
        await service.folder.withdraw(asked)  # as `Commands` does
        return reply(asked.id, next(attempts))

    service.answer = answer
    for one in (away(2), command(3), later):
        command_folder.send(tmp_path, one)
    async with service:
        await service.clock.look(2 * RETRY_LOOKS)
        assert command_folder.reply_to(tmp_path, command(3)).done
        assert ids_waiting(tmp_path) == [later.id]


async def test_who_is_back_as_the_county_knows_withdraws_all_that_waits_of_the_home(tmp_path):
    async with Service(tmp_path) as service:
        await service.folder.withdraw(command(0))  # before anybody put anything there
        service.answer = lambda payload: reply(contract.decode_command_id(payload), "clock_unsynced")
        for waits in (away(1), away(2, meter="m-002"), away(3)):
            command_folder.send(tmp_path, waits)
        await service.clock.look(2)
        await service.folder.withdraw(command(2))
        assert ids_waiting(tmp_path) == [away(2).id]


async def test_what_is_being_declared_while_the_county_says_otherwise_is_declared_first(tmp_path):
    """So that it stands when it is ended, and does not outlive that."""
    hold = asyncio.Event()

    async def slow(payload):
        await hold.wait()
        return reply(away().id)

    async with Service(tmp_path) as service:
        service.answer = slow
        command_folder.send(tmp_path, away())
        await service.clock.look()
        withdrawing = asyncio.create_task(service.folder.withdraw(command(2)))
        await asyncio.sleep(0.05)
        assert not withdrawing.done()
        hold.set()
        await asyncio.wait_for(withdrawing, 5)
        assert command_folder.reply_to(tmp_path, away()).done
        assert ids_waiting(tmp_path) == []


def fail_to_open(monkeypatch, name, number):
    genuine = os.open

    def failing(path, *flags, **options):
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number))
        return genuine(path, *flags, **options)

    monkeypatch.setattr(command_folder.os, "open", failing)


async def test_an_absence_that_cannot_be_read_just_now_keeps_no_other_from_being_withdrawn(tmp_path, monkeypatch):
    command_folder.send(tmp_path, away(1))
    command_folder.send(tmp_path, away(2))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        fail_to_open(patch, f"{away(1).id}.json", errno.EMFILE)
        command_folder.send(tmp_path, command(3))
    assert ids_waiting(tmp_path) == [away(1).id, command(3).id], "and that somebody is back is there to be done"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
async def test_a_command_that_cannot_be_read_just_now_is_read_another_time(tmp_path, monkeypatch, caplog, number):
    async with Service(tmp_path) as service:
        command_folder.send(tmp_path, command())
        with monkeypatch.context() as patch:
            fail_to_open(patch, f"{command().id}.json", number)
            await service.clock.look(2)
        assert service.asked == []
        assert os.strerror(number) in caplog.text
        await service.clock.look(RETRY_LOOKS)
        assert command_folder.reply_to(tmp_path, command()).done


async def test_a_link_to_a_command_is_none(tmp_path):
    """Whoever may write here must not have the service read for him what he may not read."""
    folder, elsewhere = tmp_path / "commands", tmp_path / "elsewhere.json"
    folder.mkdir()
    elsewhere.write_bytes(contract.encode(command()))
    (folder / f"{command().id}.json").symlink_to(elsewhere)
    async with Service(tmp_path) as service:
        assert service.asked == [b""]
        assert elsewhere.exists()


async def test_a_refusal_for_good_is_answered_once(tmp_path):
    async with Service(tmp_path) as service:
        service.answer = lambda _: reply(command().id, "late")
        command_folder.send(tmp_path, command())
        await service.clock.look()
        assert command_folder.reply_to(tmp_path, command()) == reply(command().id, "late")
        assert command_folder.waiting(tmp_path) == []


async def test_what_is_no_command_is_told_and_deleted(tmp_path, caplog):
    folder = tmp_path / "commands"
    folder.mkdir()
    (folder / "empty.json").touch()
    (folder / "long.json").write_bytes(b"x" * (COMMAND_BYTES_MAX + 10))
    (folder / f"{command(2).id}.json").write_bytes(contract.encode(command(1)))  # under another's name
    (folder / "folder.json").mkdir()
    (folder / "secret.json").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.json")
    os.mknod(folder / "socket.json", stat.S_IFSOCK | 0o600)
    (folder / "notes.txt").touch()
    (folder / ".draft.json").touch()
    async with Service(tmp_path) as service:
        await service.clock.look(RETRY_LOOKS)
        assert all(len(payload) <= COMMAND_BYTES_MAX + 1 for payload in service.asked)
        assert [name for name in files(tmp_path) if not name.startswith(".")] == ["notes.txt"]
        assert caplog.text.count("command_file_invalid") >= 6
        command_folder.send(tmp_path, command(3))
        await service.clock.look()
        assert command_folder.reply_to(tmp_path, command(3)).done, "and it goes on"


async def test_a_slow_command_holds_no_other_up(tmp_path):
    hold = asyncio.Event()

    async def slow(payload):
        await hold.wait()
        return reply(command(1).id)

    async with Service(tmp_path) as service:
        genuine = service.answer
        service.answer = lambda payload: slow(payload) if payload == contract.encode(command(1)) else genuine(payload)
        command_folder.send(tmp_path, command(1))
        command_folder.send(tmp_path, command(2))
        await service.clock.look(2)
        assert command_folder.reply_to(tmp_path, command(1)) is None
        assert command_folder.reply_to(tmp_path, command(2)).done
        assert len(service.asked) == 2, "what is under way is not asked again"
        hold.set()
        await asyncio.sleep(0.05)
        assert command_folder.reply_to(tmp_path, command(1)).done


async def test_so_many_at_once_and_no_more(tmp_path):
    hold = asyncio.Event()

    async def slow(payload):
        await hold.wait()
        return reply(contract.decode(contract.Leaf.COMMAND, payload).id)

    async with Service(tmp_path) as service:
        service.answer = slow
        for number in range(AT_HAND_MAX + 5):
            command_folder.send(tmp_path, command(number))
        await service.clock.look(2)
        assert len(service.asked) == AT_HAND_MAX
        hold.set()
        await service.clock.look(2)
        assert len(service.asked) == AT_HAND_MAX + 5


async def test_a_command_that_was_answered_while_the_folder_was_looked_at_is_not_asked_again(tmp_path, monkeypatch):
    genuine = command_folder._found
    gone = command(2).id

    def found_late(folder):
        return [*genuine(folder), gone]

    monkeypatch.setattr(command_folder, "_found", found_late)
    async with Service(tmp_path) as service:
        command_folder.send(tmp_path, command(1))
        await service.clock.look(2)
        assert [contract.decode_command_id(payload) for payload in service.asked] == [command(1).id]


async def test_old_replies_go(tmp_path):
    folder = tmp_path / "commands"
    folder.mkdir()
    for number in range(REPLIES_MAX + 20):
        (folder / f"0{number:04}.reply.json").touch()
    async with Service(tmp_path) as service:
        command_folder.send(tmp_path, command())
        await service.clock.look()
        left = files(tmp_path)
        assert len(left) == REPLIES_MAX
        assert left[-1] == f"{command().id}.reply.json"


async def test_a_folder_that_cannot_be_used_is_said_once_and_looked_at_again(tmp_path, caplog):
    (tmp_path / "commands").write_text("a file in its place")
    async with Service(tmp_path) as service:
        await service.clock.look(3)
        assert caplog.text.count("command_folder_unusable") == 1
        (tmp_path / "commands").unlink()
        command_folder.send(tmp_path, command())
        await service.clock.look()
        assert command_folder.reply_to(tmp_path, command()).done


async def test_a_reply_that_cannot_be_written_is_tried_again(tmp_path, monkeypatch, caplog):
    genuine = command_folder._put

    def full(folder, name, payload, **options):
        if name.endswith(".reply.json"):
            raise OSError(28, "No space left on device")
        return genuine(folder, name, payload, **options)

    async with Service(tmp_path) as service:
        command_folder.send(tmp_path, command())
        monkeypatch.setattr(command_folder, "_put", full)
        await service.clock.look()
        assert "No space left" in caplog.text
        assert len(command_folder.waiting(tmp_path)) == 1
        monkeypatch.setattr(command_folder, "_put", genuine)
        await service.clock.look(RETRY_LOOKS)
        assert command_folder.reply_to(tmp_path, command()).done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
def test_what_root_puts_there_belongs_to_the_service(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    path = command_folder.send(tmp_path, command())
    assert (path.stat().st_uid, path.parent.stat().st_uid, path.stat().st_gid) == (12345, 12345, 12345)


def test_nothing_is_put_where_a_link_in_place_of_the_folder_points_to(tmp_path):
    """Root asks, and the folder is the service user's: it must not choose where root writes and what it gives away."""
    data_dir, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data_dir.mkdir()
    elsewhere.mkdir()
    if os.geteuid() == 0:
        os.chown(data_dir, 12345, 12345)
    (data_dir / "commands").symlink_to(elsewhere)
    with pytest.raises(OSError, match="commands"):
        command_folder.send(data_dir, command())
    assert list(elsewhere.iterdir()) == []
    assert elsewhere.stat().st_uid == os.geteuid()


def test_nothing_is_written_through_a_link_in_place_of_the_draft(tmp_path):
    (tmp_path / "commands").mkdir()
    (tmp_path / "victim").write_text("untouched")
    (tmp_path / "commands" / f".{command().id}.json.new").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=command().id):
        command_folder.send(tmp_path, command())
    assert (tmp_path / "victim").read_text() == "untouched"
