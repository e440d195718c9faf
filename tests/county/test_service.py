"""The parts of the service that need no broker: waiting, and ending."""

import asyncio

from county import service
from county.service import BACKOFF_S_FIRST, BACKOFF_S_MAX, Backoff


def test_the_ceiling_of_the_wait_doubles_up_to_its_limit_and_begins_again_after_success():
    backoff = Backoff(limit_s=BACKOFF_S_MAX, choose=lambda least, most: most)
    assert [backoff.next_s() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_s() == BACKOFF_S_FIRST


def test_the_jitter_is_full():
    bounds = []
    backoff = Backoff(limit_s=BACKOFF_S_MAX, choose=lambda least, most: bounds.append((least, most)) or 0.0)
    assert backoff.next_s() == 0.0
    assert bounds == [(0.0, BACKOFF_S_FIRST)]


def test_a_thousand_failures_are_no_overflow():
    backoff = Backoff(limit_s=BACKOFF_S_MAX)
    assert all(0 <= backoff.next_s() <= BACKOFF_S_MAX for _ in range(5000))


async def test_a_task_that_loses_a_cancellation_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(service, "_CANCEL_AGAIN_S", 0.01)
    cancellations = 0

    async def deaf():
        nonlocal cancellations
        while cancellations < 3:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancellations += 1
        await asyncio.sleep(60)

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await service._cancel(task)
    assert (cancellations, task.cancelled()) == (3, True)


async def test_cancelling_what_has_ended_does_nothing():
    task = asyncio.create_task(asyncio.sleep(0))
    await task
    await service._cancel(task)
    assert not task.cancelled()
