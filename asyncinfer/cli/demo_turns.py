"""How the demo measures: each device alone and all together, in turns, in open dispatchers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import cycle
from typing import Any

from asyncinfer.bench.real.devices import Opened
from asyncinfer.cli.demo_stage import Outcome, Stage
from asyncinfer.cli.timeline import Timeline
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.events import Event
from asyncinfer.stats import DeviceStats

__all__ = ("Show", "Team", "measure")

#: turns, each with a pass of all together and one of each device alone.
#: The least and the largest of five figures enclose their median in 94 cases of 100
TURNS = 5
#: seconds: all work together so long before they are measured, at least and at most, and go on
#: for so long after the last change of which take part
LEAST, MOST, CALM = 2.5, 8.0, 2.0
#: and seconds for the calls that are left behind then to end
LEFT_BEHIND = 0.3

Show = Callable[[int, Any], None]


class Team:
    """Some devices under a dispatcher that stays open from pass to pass."""

    def __init__(self, drivers: Sequence[Opened]) -> None:
        self.names = [driver.name for driver in drivers]
        self.dispatcher = Dispatcher(drivers, on_event=self._on_event, wait_for="all")
        self._timeline = Timeline(self.names)
        #: the last event of each device that told whether it rests
        self._rests: dict[str, Event] = {}
        self._changed = 0.0

    def _on_event(self, event: Event) -> None:
        if event.kind in ("device.rests", "device.takes_part"):
            self._rests[event.device] = event
            self._changed = time.monotonic()
        self._timeline(event)

    async def settle(self, items: Sequence[Any], distinct: int, show: Show | None) -> None:
        """Work until which devices rest has stopped changing, or long enough; show one round."""
        begin = time.monotonic()
        async with self.dispatcher.results(cycle(items)) as results:
            async for result in results:
                if result.index < distinct:
                    (show or _nothing)(result.index, result.unwrap())
                elif self._is_calm(begin):
                    break
        await asyncio.sleep(LEFT_BEHIND)

    def _is_calm(self, begin: float) -> bool:
        now = time.monotonic()
        return now > begin + MOST or now > max(begin + LEAST, self._changed + CALM)

    async def work(self, items: Sequence[Any]) -> Outcome:
        """One pass over the inputs."""
        outcome = Outcome(Timeline(self.names))
        for event in self._rests.values():
            outcome.timeline(event)
        self._timeline = outcome.timeline
        before = self.dispatcher.stats().devices
        async for result in self.dispatcher.results(items):
            outcome.take(result)
        after = self.dispatcher.stats().devices
        outcome.devices = [_since(*pair) for pair in zip(before, after, strict=True)]
        return outcome


def _nothing(index: int, value: Any) -> None:
    del index, value


def _since(before: DeviceStats, after: DeviceStats) -> DeviceStats:
    """What a device did in between."""
    tasks, busy = after.tasks - before.tasks, after.busy_seconds - before.busy_seconds
    return replace(after, tasks=tasks, busy_seconds=busy)


async def measure(stage: Stage, opened: Sequence[Opened], show: Show | None) -> None:
    """Let all together settle, then have them and each device alone take turns.

    So whatever else this host does meanwhile meets all of them alike. The slowed device, which
    cannot be the best one, has one turn alone, with a part of the inputs.
    """
    async with AsyncExitStack() as stack:
        together, *alone = [Team(opened), *(Team([driver]) for driver in opened)]
        for team in (together, *alone):
            await stack.enter_async_context(team.dispatcher)
        await together.settle(stage.items, stage.distinct, show)
        for turn in range(TURNS):
            teams = [team for team in alone if not (turn and stage.slowdown(team.names[0]) > 1)]
            for team in [*teams, together] if turn % 2 else [together, *teams]:
                await _pass(stage, team)


async def _pass(stage: Stage, team: Team) -> None:
    if len(team.names) > 1:
        stage.together.append(await team.work(stage.items))
        return
    (name,) = team.names
    outcome = await team.work(stage.items[: stage.tasks_alone(name)])
    stage.alone.setdefault(name, []).append(outcome)
