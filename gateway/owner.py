"""One thread that owns one blocking resource (a serial port, the database); everybody else sends it work."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class OwnerThread:
    """Runs work one at a time, in the order it was asked for, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on the thread, or raise what it raises.

        A cancelled caller does not stop work that has begun: the resource stays consistent.
        """
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def stop(self) -> None:
        """Finish the work under way, refuse the rest, end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)
