"""The power may fail at any instant: what a commit returned from is there, whole, in order, and the file is sound.

A few hundred cuts in every run; `make powercut`, or SHUIWANG_POWER_CUTS=20000, for a night of them.
"""

import bisect
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from partners import episodes, power_cut, store_writer

from gateway.store import Store, StoreDamaged
from gateway.store_recovery import open_store
from gateway.ulid import new_ulid
from protocols.contract import Stream

CUTS = int(os.environ.get("SHUIWANG_POWER_CUTS", "250"))
STEPS = 40
ROOT = Path(__file__).parents[2]


def everything(store):
    return (
        store.epoch,
        list(store.history()),
        store.open_episodes(),
        [store.status(stream) for stream in Stream],
        [store.outgoing(stream, 0, 10_000) for stream in Stream],
        store.learned(),
        list(store.hourly()),
        store.absences(),
        [store.command_reply(episodes.episode_id(number)) for number in range(STEPS)],
    )


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """What the store holds after 0, 1, 2 ... steps, when nothing fails."""
    store = store_writer.open_store(tmp_path_factory.mktemp("reference") / "s.db")
    found = [everything(store)]
    for work in store_writer.steps(STEPS):
        work(store)
        found.append(everything(store))
    store.close()
    return found


def record(tmp_path, synchronous):
    folder = tmp_path / "disk"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, store_writer.__file__, str(folder / "s.db"), synchronous, str(STEPS)]
    return power_cut.record(folder, command, environment=environment)


def explore(events, states, folder, *, cuts, seed):
    """Cut the power at some instants; return what became of the store, counted."""
    dice = random.Random(seed)
    opened_at = events.index(("said", "opened\n"))
    instants = sorted(dice.randrange(opened_at, len(events)) for _ in range(cuts))
    outcomes = Counter()
    disk, done = power_cut.Disk(), 0
    for number, event in enumerate(events):
        disk.take(event)
        done += event == ("said", "done\n")
        for _ in range(bisect.bisect_right(instants, number) - bisect.bisect_left(instants, number)):
            outcomes[judge(disk.cut(dice), states, done, folder)] += 1
    assert done == len(states) - 1
    return outcomes


def judge(files, states, done, folder):
    """Open what is left after `done` steps returned: it must hold them, and may hold the one under way."""
    for file in folder.iterdir():
        file.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        store = Store(folder / "s.db", reserve_bytes=0)
    except StoreDamaged:
        return "damaged"
    try:
        found = everything(store)
    finally:
        store.close()
    if found == states[done]:
        return "as it was"
    if done + 1 < len(states) and found == states[done + 1]:
        return "with the step under way"
    return "lost" if found in states[:done] else "mixed"


def test_no_power_cut_loses_what_was_committed(tmp_path, states):
    events = record(tmp_path, "full")
    folder = tmp_path / "after"
    folder.mkdir()
    kinds = Counter(kind for kind, *_ in events)
    outcomes = explore(events, states, folder, cuts=CUTS, seed=CUTS)
    print(f"{CUTS} power cuts among {dict(kinds)}: {dict(outcomes)}")
    assert set(outcomes) == {"as it was", "with the step under way"}
    written = Counter(event[1] for event in events if event[0] == "write")
    assert written["s.db"] > 50, "the WAL was never copied back: the weak moment was not tried"
    assert written["s.db-wal"] > 200


def test_a_power_cut_while_the_store_is_made_leaves_one_that_can_be_made(tmp_path):
    """The first start of a box, cut at every instant: the next start has a store, whatever the first one left."""
    events = record(tmp_path, "full")
    folder = tmp_path / "after"
    folder.mkdir()
    dice, disk = random.Random(1), power_cut.Disk()
    outcomes = Counter()
    for event in events[: events.index(("said", "opened\n"))]:
        disk.take(event)
        for file in folder.iterdir():
            file.unlink()
        for name, data in disk.cut(dice).items():
            (folder / name).write_bytes(data)
        store, salvage = open_store(folder / "s.db", new_id=lambda: new_ulid(1_790_000_000_000))
        outcomes["sound" if salvage is None else "set aside"] += 1
        store.commit([], [episodes.step(1)])
        store.close()
    assert outcomes["sound"] > 10, outcomes


@pytest.mark.parametrize("synchronous", ["normal", "off"])
def test_the_cuts_convict_a_store_that_does_not_sync(tmp_path, states, synchronous):
    events = record(tmp_path, synchronous)
    folder = tmp_path / "after"
    folder.mkdir()
    assert explore(events, states, folder, cuts=100, seed=1)["lost"] > 10
