"""Where the parts are worked on: on the cores here, or on the machines of a Dask cluster. It is the same function.

Results come in the order of the parts, whoever is done first, and a bounded number of parts is under way: memory does
not grow with their number, and the outcome does not depend on the cores.
"""

import collections
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final

from agent.backtest.problems import InputProblem, require
from agent.backtest.splitting import Part
from agent.backtest.work import Job, PartResult, work_on

AHEAD: Final = 4  # parts under way for each core
CLUSTER_WAIT_S: Final = 30


def run_here(parts: Sequence[Part], job: Job, *, jobs: int) -> Iterator[PartResult]:
    """Work on the parts with so many processes. Raises InputProblem."""
    if jobs == 1 or len(parts) == 1:
        for part in parts:
            yield work_on(part, job)
        return
    # Spawned, not forked: a fork copies locks of libraries that are held by threads it does not copy.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=context, initializer=_end_on_ctrl_c) as pool:
        try:
            yield from _in_order(parts, lambda part: pool.submit(work_on, part, job), ahead=AHEAD * jobs)
        except BrokenProcessPool:
            raise InputProblem(
                "a process was killed, most likely for want of memory: fewer at once need less, --jobs 1 the least"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_on_cluster(parts: Sequence[Part], job: Job, *, address: str, jobs: int) -> Iterator[PartResult]:
    """Work on the parts with Dask: `local` starts a cluster of `jobs` processes, else the address of a scheduler.

    The machines of a cluster must see the files, and the spill folder, under the same names. Raises InputProblem.
    """
    require("distributed", "--cluster")
    import distributed

    cluster: Any = None
    client: Any = None
    try:
        if address == "local":
            cluster = distributed.LocalCluster(
                n_workers=jobs, threads_per_worker=1, dashboard_address=":0", silence_logs=50
            )
        try:
            client = distributed.Client(cluster or address, timeout=CLUSTER_WAIT_S)
        except (OSError, ValueError) as error:
            raise InputProblem(f"--cluster {address}: no scheduler answers: {error}") from error
        cores = max(1, sum(client.ncores().values()))
        yield from _in_order(parts, lambda part: client.submit(work_on, part, job, pure=False), ahead=AHEAD * cores)
    finally:
        for opened in (client, cluster):
            if opened is not None:
                opened.close()


def _end_on_ctrl_c() -> None:
    """Let Ctrl-C end a process at once and in silence: the one that the person sees says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _in_order(parts: Sequence[Part], submit: Callable[[Part], Any], *, ahead: int) -> Iterator[PartResult]:
    under_way: collections.deque[Any] = collections.deque()
    for part in parts:
        under_way.append(submit(part))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()
