"""The play itself: start the processes, cut the network, mend it, and look until the story is over.

simulate ══ pty ══ run ◀─▶ [ network: cut at 04:45, mended at 06:35 ] ◀─▶ broker ◀── receive ──▶ county.db
                    └▶ shuiwang.db
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from agent.demo import scene, visit
from agent.demo.checks import Check, check_all
from agent.demo.network import Network
from agent.demo.observer import Link, Observer, View
from agent.demo.processes import Child, Children, ProcessFailed
from agent.demo.story import is_over
from gateway import village_file
from gateway.clock import FastClock
from protocols.contract import Transition
from protocols.errors import ShuiwangError

# Between two looks; the picture moves as often.
_LOOK_S: Final = 0.15
# How long the last readings may take to be acknowledged: after an unluckily long wait before the gateway called again
# (a quarter of a minute once in a hundred plays), some 200 messages have to go.
_SETTLE_S: Final = 60.0


class DemoFailed(ShuiwangError):
    """Something that must not happen; the text says what, with the end of a log where one helps."""


class Interrupted(ShuiwangError):
    """Somebody wanted it to end."""


class Play:
    """One performance. `view` is what was seen last, `step` says what is being done."""

    def __init__(self, folder: Path, *, watch: Callable[["Play"], object]) -> None:
        self.view = View(now_ms=scene.OPENS_MS)
        self.step = "starting"
        self.checks: list[Check] = []
        self.took_s = 0.0
        self._folder = folder
        self._watch = watch
        self._link = Link()
        self._broker_port = 0
        self._is_visited = False

    async def run(self) -> None:
        """Play to the end and judge it. Raises DemoFailed; whatever happens, no process is left."""
        began_s = time.monotonic()
        children = Children(self._folder)
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(children.close)
                network, clock = await self._set_up(children, stack)
                observer = Observer(
                    data_dir=self._folder / "gateway", county_db=self._folder / "county.db", clock=clock
                )
                stack.callback(observer.close)
                await self._perform(children, network, observer)
                self.step = "stopping the processes"
                codes = await children.stop()
                self.checks = [
                    *check_all(self.view, village_file.load(self._folder / "village.toml")),
                    _ended_cleanly(codes),
                ]
        except ProcessFailed as failure:
            raise DemoFailed(str(failure)) from failure
        finally:
            self.took_s = time.monotonic() - began_s

    async def _set_up(self, children: Children, stack: contextlib.AsyncExitStack) -> tuple[Network, FastClock]:
        """Start everything; the village's clock begins when its time is needed."""
        self.step = "starting the broker"
        broker = await children.start("broker", "agent.demo.broker")
        self._broker_port = broker_port = int(await _first_line(broker))
        network = Network(broker_port=broker_port)
        stack.push_async_callback(network.close)
        await network.mend()
        configuration = scene.write_configuration(self._folder, broker_port=network.port)
        village = scene.write_village(self._folder)

        self.step = "starting the county's receiver"
        county = await children.start(
            "county",
            "county.cli",
            ["receive", "--broker", f"mqtt://127.0.0.1:{broker_port}", "--db", self._folder / "county.db"],
        )
        # Who comes before it has subscribed speaks into the void, and is heard only at the first repetition.
        await county.says("broker_connected")

        clock = scene.start_clock()
        self.step = "starting the simulated meters"
        meters = await children.start("meters", "agent.cli", ["simulate", village, "--fast-clock", str(clock)])
        await meters.says(str(self._folder / "line"))
        self.step = "starting the agent"
        agent = await children.start("agent", "agent.cli", ["run", "-c", configuration, "--fast-clock", str(clock)])
        await agent.says("agent_started")
        return network, clock

    async def _perform(self, children: Children, network: Network, observer: Observer) -> None:
        """Look again and again, cut and mend the network at its times, until the story is over and settled."""
        self.step = "watching the village"
        is_over_at_s: float | None = None
        while True:
            children.check()
            self.view = observer.look(self._link)
            self._watch(self)
            await self._play_weather(network)
            await self._play_visit()
            if self.view.link.back_ms is not None and is_over(self.view):
                is_over_at_s = is_over_at_s or time.monotonic()
                self.step = "waiting until the county has acknowledged everything"
                if self.view.is_settled:
                    return
                if time.monotonic() - is_over_at_s > _SETTLE_S:
                    raise DemoFailed(f"{self.view.waiting} messages still wait after {_SETTLE_S:.0f} s")
            elif self.view.now_ms > scene.VISITOR_MS + 12 * scene.HOUR_MS and not self.view.waiting:
                raise DemoFailed("everything has arrived, and yet no alert was raised, became red and ended")
            await asyncio.sleep(_LOOK_S)

    async def _play_weather(self, network: Network) -> None:
        now_ms, link = self.view.now_ms, self._link
        if link.away_ms is None and now_ms >= scene.NETWORK_AWAY_MS:
            self._link = msgspec.structs.replace(link, is_up=False, away_ms=now_ms)
            await network.cut()
        elif link.away_ms is not None and link.back_ms is None and now_ms >= scene.NETWORK_BACK_MS:
            self._link = msgspec.structs.replace(link, is_up=True, back_ms=now_ms)
            await network.mend()

    async def _play_visit(self) -> None:
        """Let the county say that somebody was at the door, once it knows that the alert is red."""
        red = next((step for step in self.view.steps if step.transition == Transition.ESCALATED), None)
        if self._is_visited or red is None or self.view.now_ms < scene.VISITOR_MS:
            return
        self._is_visited = True
        try:
            await visit.report(red.id, now_ms=self.view.now_ms, broker_port=self._broker_port)
        except TimeoutError:
            raise DemoFailed("the gateway did not reply to the county's command") from None


def _ended_cleanly(codes: dict[str, int | None]) -> Check:
    return Check(
        "所有进程都正常退出",
        "Every process ended as it was told",
        holds=all(code == 0 for code in codes.values()),
        figures=", ".join(f"{name} {code}" for name, code in codes.items()),
    )


async def _first_line(child: Child) -> str:
    """Return the first line that a process prints. Raises ProcessFailed."""
    return await child.says("")
