"""One thread that owns one blocking resource (a serial port, the database); everybody else sends it work."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class OwnerThread:
    """Runs work one at a time, in the order it was asked for, on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[[], T]) -> T:
        """Return what `work` returns on the thread, or raise what it raises.

        A caller that is cancelled no longer waits, but the work is done all the same: what was handed over is not lost.
        """
        future = asyncio.get_running_loop().run_in_executor(self._executor, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_forget_outcome)
            raise

    def stop(self) -> None:
        """Finish the work under way, drop what nobody waits for any more, end the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _forget_outcome(future: "asyncio.Future[Any]") -> None:
    """Take note of an error that nobody waits for, so that asyncio does not report it as lost."""
    if not future.cancelled():
        future.exception()
