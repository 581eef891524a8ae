"""Runs a schedule from beginning to end."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dst import inside
from dst.clock import WatchedLoop
from dst.schedule import Schedule
from dst.world import FOREVER, World

__all__ = ("Outcome", "Run", "run")


@dataclass
class Outcome:
    """What a run came to: broken promises, and all that happened."""

    broken: list[str]
    trace: list[tuple[Any, ...]]


class Run:
    """A world on an event loop of its own; what goes wrong outside of it is written down too."""

    def __init__(self, schedule: Schedule) -> None:
        self.world: World
        self.broken: list[str] = []
        self._schedule = schedule
        self._loop = WatchedLoop()
        self._loop.set_exception_handler(self._unseen)
        self._logs = _Logs(self.broken)
        self._collects = gc.isenabled()
        gc.disable()  # or it would be a matter of chance when a forgotten stream ends
        self.go(self._make())

    async def _make(self) -> None:
        self.world = World(self._schedule)

    def go(self, coro: Coroutine[Any, Any, None]) -> None:
        """Let things happen until ``coro`` ends."""
        try:
            with self._logs:
                self._loop.run_until_complete(coro)
        except (Exception, asyncio.CancelledError) as error:
            self.broken += self.world.ledger.wrongs
            self.world.ledger.wrongs = []
            self.broken.append(f"run: {type(error).__name__}: {error}{_where(error)}")
            engine = inside.engine_of(self.world.dispatcher)
            self.broken.append(f"state: {inside.described(engine)}")

    def end(self) -> Outcome:
        """Close the loop, whatever is left on it."""
        outcome = Outcome(self.world.ledger.wrongs + self.broken, self.world.ledger.trace)
        loop = self._loop
        loop.before_moving = lambda: None
        loop.set_exception_handler(lambda _, what: None)
        loop.turns = 0
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with suppress(Exception):  # the run was broken before
            loop.run_until_complete(self._rest())
        loop.close()
        if self._collects:
            gc.enable()
        return outcome

    async def _rest(self) -> None:
        self.world.heal()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=FOREVER)
        await asyncio.get_running_loop().shutdown_asyncgens()

    def _unseen(self, _: asyncio.AbstractEventLoop, what: dict[str, Any]) -> None:
        error = what.get("exception")
        self.broken.append(f"unseen: {what.get('message')}: {error!r}{_where(error)}")


def run(schedule: Schedule) -> Outcome:
    """Run one schedule from beginning to end."""
    whole = Run(schedule)
    whole.go(whole.world())
    return whole.end()


def _where(error: BaseException | None) -> str:
    """Where an error was raised."""
    at = error.__traceback__ if error is not None else None
    while at and at.tb_next:
        at = at.tb_next
    return f" in {at.tb_frame.f_code.co_qualname} line {at.tb_lineno}" if at else ""


class _Logs(logging.Handler):
    """What the dispatcher logs as an error is a broken promise; the rest is not printed."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.broken = broken
        self.logger = logging.getLogger("asyncinfer")

    def emit(self, record: logging.LogRecord) -> None:
        self.broken.append(f"log: {record.getMessage()} {record.exc_info}")

    def __enter__(self) -> None:
        self.before = self.logger.level, self.logger.propagate
        self.logger.setLevel(logging.ERROR)
        self.logger.propagate = False
        self.logger.addHandler(self)

    def __exit__(self, *exc_info: object) -> None:
        self.logger.removeHandler(self)
        self.logger.level, self.logger.propagate = self.before
