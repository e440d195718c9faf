"""The owner thread: one at a time, in order, and an end."""

import asyncio
import threading
import time

import pytest

from gateway.owner import OwnerThread


@pytest.fixture
def owner():
    owner = OwnerThread("store")
    yield owner
    owner.stop()


async def test_work_runs_in_order_on_one_thread_of_that_name(owner):
    threads, done = set(), []

    def work(number):
        threads.add(threading.current_thread().name)
        time.sleep(0.001 * (5 - number))
        done.append(number)
        return number * 10

    results = await asyncio.gather(*(owner.run(lambda number=number: work(number)) for number in range(5)))
    assert results == [0, 10, 20, 30, 40]
    assert done == [0, 1, 2, 3, 4]
    assert len(threads) == 1
    assert threads.pop().startswith("store")
    assert threading.current_thread().name not in threads


async def test_what_work_raises_reaches_the_caller_and_ends_nothing(owner):
    with pytest.raises(ZeroDivisionError):
        await owner.run(lambda: 1 / 0)
    assert await owner.run(lambda: 5) == 5


async def test_work_that_has_begun_is_finished_though_its_caller_was_cancelled(owner):
    began, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def work():
        began.set()
        go_on.wait(5)
        done.set()

    caller = asyncio.create_task(owner.run(work))
    assert await asyncio.to_thread(began.wait, 5)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    go_on.set()
    await owner.run(lambda: None)
    assert done.is_set()


async def test_work_that_was_handed_over_is_done_though_its_caller_is_gone(owner):
    go_on, ran = threading.Event(), []
    first = asyncio.create_task(owner.run(lambda: go_on.wait(5)))
    second = asyncio.create_task(owner.run(lambda: ran.append(2)))
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go_on.set()
    await first
    await owner.run(lambda: None)
    assert ran == [2]


async def test_the_loop_goes_on_while_the_thread_works(owner):
    slow = asyncio.create_task(owner.run(lambda: time.sleep(0.1)))
    turns = 0
    while not slow.done():
        turns += 1
        await asyncio.sleep(0.005)
    assert turns > 3


async def test_stop_finishes_what_runs_refuses_what_waits_and_ends_the_thread():
    owner = OwnerThread("short-lived")
    done = []
    running = asyncio.create_task(owner.run(lambda: (time.sleep(0.05), done.append(1))))
    waiting = asyncio.create_task(owner.run(lambda: done.append(2)))
    await asyncio.sleep(0.01)
    await asyncio.to_thread(owner.stop)
    await running
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done == [1]
    assert not any(thread.name.startswith("short-lived") for thread in threading.enumerate())
    with pytest.raises(RuntimeError):
        await owner.run(lambda: None)
