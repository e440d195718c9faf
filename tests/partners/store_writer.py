"""Works with a store and says after every step that it is done. Arguments: PATH SYNCHRONOUS STEPS."""

import os
import sys
from pathlib import Path

from partners.episodes import episode_id, step
from partners.memories import absence, learned, reply
from readings import shows

from gateway.store import Store
from protocols.contract import AlertState, Stream


def steps(count):
    """What is done to the store, one transaction each."""
    for number in range(1, count + 1):
        readings = [shows(f"m-{meter:03}", number, number) for meter in range(10)]
        states = [learned(f"m-{number % 10:03}", bytes([number]) * 2000)]
        yield lambda store, readings=readings, number=number, states=states: store.commit(
            readings, [step(number)], states
        )
        if number % 3 == 0:
            up_to = {Stream.TELEMETRY: number - 2, Stream.ALERT: number - 1}
            yield lambda store, up_to=up_to, number=number: store.acknowledge(up_to, wall_ms=number)
        if number % 7 == 0:
            yield lambda store, number=number: store.put_absence(absence(number))
            yield lambda store, number=number: store.remember_command(reply(number), body=b"{}", wall_ms=number)
        if number % 10 == 0:
            cleared = step(number - 5, AlertState.CLEARED)
            yield lambda store, cleared=cleared: store.commit([], [cleared])


def open_store(path, *, synchronous="full"):
    """A store that copies its WAL back often, for this is the moment to cut the power."""
    store = Store(path, new_epoch=episode_id(0), reserve_bytes=0)
    store._db.execute("pragma wal_autocheckpoint = 25")
    store._db.execute(f"pragma synchronous = {synchronous}")
    return store


if __name__ == "__main__":
    store = open_store(Path(sys.argv[1]), synchronous=sys.argv[2])
    os.write(1, b"opened\n")
    for work in steps(int(sys.argv[3])):
        work(store)
        os.write(1, b"done\n")
    os._exit(0)  # no clean end: that would copy the WAL back
