"""The lock on a data folder: one agent, however it ends."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway.lock import PATIENCE_S, AlreadyLocked, FolderLock, is_locked

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys; from pathlib import Path; from gateway.lock import FolderLock;"
    " lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)


def test_a_folder_is_locked_once(tmp_path):
    pauses = []
    lock = FolderLock(tmp_path)
    with pytest.raises(AlreadyLocked, match=str(tmp_path)):
        FolderLock(tmp_path, pause=pauses.append)
    assert sum(pauses) <= PATIENCE_S
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_the_lock_of_a_process_ends_with_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        assert is_locked(tmp_path)
        with pytest.raises(AlreadyLocked):
            FolderLock(tmp_path, pause=lambda _: None)
        holder.kill()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path).release()


def test_asking_makes_no_file_and_holds_no_lock(tmp_path):
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == [], "`sudo shuiwang status` must not leave a file that the agent cannot open"
    FolderLock(tmp_path).release()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path, pause=lambda _: pytest.fail("nobody holds it")).release()


def test_an_agent_that_starts_while_somebody_asks_does_not_give_up(tmp_path):
    asker = FolderLock(tmp_path)
    agent = FolderLock(tmp_path, pause=lambda _: asker.release())
    assert is_locked(tmp_path)
    agent.release()


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        FolderLock(tmp_path / "nowhere")


def test_the_lock_is_not_inherited(tmp_path):
    lock = FolderLock(tmp_path)
    child = subprocess.Popen(["sleep", "30"])
    lock.release()
    try:
        assert not is_locked(tmp_path)
    finally:
        child.kill()
        child.wait()


def test_two_agents_that_start_together_are_one(tmp_path):
    held, refused = [], []

    def start():
        try:
            held.append(FolderLock(tmp_path))
        except AlreadyLocked as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    held[0].release()
