"""The dispatcher: owns the drivers, runs tasks on them, and gives the results back in order."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterable, Awaitable, Hashable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from operator import attrgetter
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from asyncinfer._core.devices.attributes import attributes_of, mixed
from asyncinfer._core.engine import Engine
from asyncinfer._core.snapshot import snapshot
from asyncinfer._core.tasks.recorder import logger
from asyncinfer._core.tasks.spans import Span
from asyncinfer._core.tasks.turns import PLAIN, Claim
from asyncinfer.driver import Driver
from asyncinfer.errors import ClosedError, ConfigError, TaskError
from asyncinfer.events import EventHook
from asyncinfer.options import Hedge, Timeouts
from asyncinfer.result import Result
from asyncinfer.scheduling import Policy, policy_named
from asyncinfer.stats import DispatcherStats
from asyncinfer.stream import Stream

__all__ = ("Dispatcher",)

InT = TypeVar("InT")
OutT = TypeVar("OutT")


class Dispatcher(Generic[InT, OutT]):
    """Runs tasks on all its devices at once, each at its own pace, and gives results in order.

    ::

        async with Dispatcher([TorchDriver(model), CortexM4Driver("/dev/ttyACM0")]) as dispatcher:
            label = await dispatcher.infer(image)
            async for label in dispatcher.stream(images):
                ...

    :param drivers: one per device; their names must differ.
    :param policy: which task a free device pulls: ``"eft"`` (earliest finish time, the default),
        the baselines ``"greedy"``, ``"static"``, ``"sync"`` and ``"serial"``, or a
        :class:`~asyncinfer.scheduling.Policy` object for this dispatcher alone.
    :param window: a task may start only if its index is below that of the next result to deliver
        plus ``window``; per stream. It bounds the reorder buffer.
    :param queue_size: how many tasks of a stream are read ahead of its window.
    :param queue_bytes: how many bytes of a stream's inputs are read before devices are given them,
        in the window or ahead of it; the last input read may go beyond. Tensors, arrays, bytes,
        texts, pictures, and mappings, tuples and lists of them count what they hold, anything else
        1,000 bytes, and each task 100 more. ``None``: as many as ``queue_size`` allows; so it is
        for a list or tuple, which holds its inputs anyway.
    :param retries: how often a failed task is run again before it fails for good.
    :param timeout: seconds from the call of ``infer`` to its result; of a stream's task from its
        start, or from its turn to start. Or :class:`Timeouts` for each limit by name.
    :param hedge: ``True`` or ``"auto"`` runs a copy of an overdue task on another device if that
        ends sooner; the first result wins. A :class:`Hedge` says when that is done. With ``None``,
        the default, it never is.
    :param on_event: called with every :class:`~asyncinfer.events.Event`, on the event loop.
    :param wait_for: what entering waits for: the ``"first"`` device to be up, the others join as
        they come up; or until ``"all"`` are up or have failed.

    Entering the dispatcher opens all devices at once. Those that fail are opened again later, in
    the background; if all fail with a ``DeviceError``, it is raised. Any other error, such as a
    ``ConfigError``, is raised if it comes while entering waits. Leaving the dispatcher normally
    drains it; leaving it by an exception cancels what is not finished. It may be entered again.

    Raises ``ConfigError`` for arguments that make no sense.
    """

    def __init__(
        self,
        drivers: Iterable[Driver[InT, OutT]],
        *,
        policy: str | Policy = "eft",
        window: int = 1024,
        queue_size: int = 1024,
        queue_bytes: int | None = 512 * 2**20,
        retries: int = 2,
        timeout: float | Timeouts | None = None,
        hedge: Hedge | Literal["auto"] | bool | None = None,
        on_event: EventHook | None = None,
        wait_for: Literal["first", "all"] = "first",
    ) -> None:
        self._drivers = _list_of(drivers)
        self._policy = policy
        self._window = _at_least(1, "window", window)
        self._queue_size = _at_least(1, "queue_size", queue_size)
        self._queue_bytes = (
            math.inf if queue_bytes is None else _at_least(1, "queue_bytes", queue_bytes)
        )
        self._retries = _at_least(0, "retries", retries)
        self._timeouts = Timeouts.of(timeout)
        self._hedge = Hedge.of(hedge)
        self._on_event = _hook(on_event)
        self._wait_for_all = _wait_for_all(wait_for)
        self._engine: Engine | None = None
        #: the engine while its devices are being opened
        self._opening: Engine | None = None
        policy_named(policy)
        _check_drivers(self._drivers)

    # ---- opening and closing

    async def __aenter__(self) -> Dispatcher[InT, OutT]:
        if self._opening is not None or (self._engine is not None and self._engine.running):
            raise ClosedError("the dispatcher is open already: enter it once at a time")
        _check_drivers(self._drivers)
        engine = Engine(
            policy=policy_named(self._policy),
            window=self._window,
            queue_size=self._queue_size,
            queue_bytes=self._queue_bytes,
            retries=self._retries,
            timeouts=self._timeouts,
            hedge=self._hedge,
            on_event=self._on_event,
        )
        self._opening = engine
        try:
            async with AsyncExitStack() as undo:
                undo.push_async_callback(engine.close)
                await engine.open(self._drivers, wait_for_all=self._wait_for_all)
                undo.pop_all()
        finally:
            self._opening = None
        self._engine = engine
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                await self.drain(self._timeouts.drain)
        except TimeoutError:
            logger.warning("not drained within %s s: cancelling the rest", self._timeouts.drain)
        finally:
            await self.close()

    async def open(self) -> None:
        """Open the devices, as entering does, where there can be no ``async with``.

        What is opened so is ended by :meth:`drain`, if accepted tasks are to be finished, and
        :meth:`close`.
        """
        await self.__aenter__()

    async def drain(self, timeout: float | None = None) -> None:
        """Accept no more tasks, and wait until the accepted ones have ended. Idempotent.

        Sources are read no further, and results stay ready for their consumers. Raises
        ``TimeoutError`` after ``timeout`` seconds; the tasks are not stopped by that. A dispatcher
        that is still opening is closed: entering it raises ``ClosedError``.
        """
        if self._opening is not None:
            await self._opening.close()
        elif self._engine is not None:
            await self._engine.drain(timeout)

    async def close(self) -> None:
        """Cancel what is not finished and close all devices. Idempotent.

        Waiting callers get ``ClosedError``. It takes ``Timeouts.close`` at most; a driver whose
        calls do not end by then is named in the log, in a ``device.wedged`` event and in ``stats``.
        A dispatcher that is still opening opens no further: entering it raises ``ClosedError``.
        """
        if self._opening is not None:
            await self._opening.close()
        elif self._engine is not None:
            await self._engine.close()

    # ---- work

    async def infer(
        self, x: InT, *, share: float = 1.0, priority: int = 0, client: Hashable | None = None
    ) -> OutT:
        """Run one task and return its output, or raise its ``TaskError``.

        Waits while ``window + queue_size`` calls of the same ``share``, ``priority`` and ``client``
        wait for a device. Cancelling the call withdraws the task.

        :param share: the part of the devices that these calls together have beside each stream and
            the other calls of their priority, while all of them have tasks waiting: 0.001 to 1000.
        :param priority: 1 (most urgent) to 5; 0, the default, stands for 3. Each level gets 4 tasks
            for each one of the next less urgent level, while both have some; so none waits for
            ever.
        :param client: whose call it is, any hashable value. All calls and streams of one client and
            share have that share together. A tuple, of 16 parts at most, is read from the whole to
            the part, as in ``(host, connection)``: connections of one host take turns within the
            host's share.

        Raises ``ClosedError`` if the dispatcher is not open, ``ConfigError`` for arguments that
        make no sense.
        """
        engine, claim = self._engine, PLAIN
        future: asyncio.Future[OutT] | None
        if not (client is None and share == 1.0 and share is not True and priority == 0):
            claim = Claim.of(share, priority, client)  # as the fewest have
        future = None if engine is None else engine.short.enter(x, claim)
        if engine is None or future is None:
            call: Awaitable[OutT] = self._open_engine().call(x, claim)
            del x  # an error that is kept holds this frame
            return await call
        del x
        try:
            return await future
        except asyncio.CancelledError:
            engine.short.gone(future)
            raise
        finally:
            del future

    @overload
    def stream(
        self,
        xs: Iterable[InT] | AsyncIterable[InT],
        *,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        share: float = 1.0,
        priority: int = 0,
        client: Hashable | None = None,
    ) -> Stream[OutT]: ...

    @overload
    def stream(
        self,
        xs: Iterable[InT] | AsyncIterable[InT],
        *,
        ordered: bool = True,
        return_exceptions: bool,
        share: float = 1.0,
        priority: int = 0,
        client: Hashable | None = None,
    ) -> Stream[OutT | TaskError]: ...

    def stream(
        self,
        xs: Iterable[InT] | AsyncIterable[InT],
        *,
        ordered: bool = True,
        return_exceptions: bool = False,
        share: float = 1.0,
        priority: int = 0,
        client: Hashable | None = None,
    ) -> Stream[Any]:
        """Run every input of ``xs`` and iterate over the outputs.

        :param xs: an iterable or async iterable, finite or endless. It is read at most
            ``queue_size`` ahead of the window, and ``queue_bytes`` ahead of the devices. A
            generator is closed when the stream ends early.
        :param ordered: in the order of the inputs; ``False`` gives them as they are finished.
        :param return_exceptions: yield the ``TaskError`` of a failed task instead of raising it.
        :param share: the part of the devices that the stream has beside the other streams and the
            calls of its priority, while all of them have tasks waiting: 0.001 to 1000.
        :param priority: 1 (most urgent) to 5, or 0 for 3, as for :meth:`infer`.
        :param client: whose stream it is, as for :meth:`infer`.

        Stateful devices are given to streams as these come, whatever their share and priority. An
        error raised by ``xs`` itself is raised after the outputs of what it had given. Raises
        ``ClosedError`` if the dispatcher is not open, ``TypeError`` if ``xs`` is not iterable.
        """
        return Stream(
            self._open_engine(),
            _iterable(xs),
            ordered=ordered,
            raises=not return_exceptions,
            items=attrgetter("outputs"),
            claim=Claim.of(share, priority, client),
        )

    def results(
        self,
        xs: Iterable[InT] | AsyncIterable[InT],
        *,
        ordered: bool = True,
        share: float = 1.0,
        priority: int = 0,
        client: Hashable | None = None,
    ) -> Stream[Result[OutT]]:
        """Like :meth:`stream`, but iterate over :class:`Result` records, failed tasks included."""
        engine = self._open_engine()

        def results(span: Span) -> Iterator[Result[OutT]]:
            failed = span.error is not None
            for index, value in enumerate(span.outputs, span.first):
                yield Result(
                    index,
                    None if failed else value,
                    span.error,
                    span.run.device,
                    span.attempts,
                    span.submitted,
                    span.run.started,
                    span.run.finished,
                    engine.clock(),
                )

        return Stream(
            engine,
            _iterable(xs),
            ordered=ordered,
            raises=False,
            items=results,
            claim=Claim.of(share, priority, client),
        )

    # ---- devices

    async def add(self, driver: Driver[InT, OutT]) -> None:
        """Open one more device; it takes part as soon as it is up.

        Raises ``ConfigError`` if the name is taken, ``ClosedError`` if the dispatcher is not open,
        or what opening the driver raises.
        """
        await self._open_engine().supervisor.add(driver)

    async def remove(self, name: str, *, drain: bool = True) -> None:
        """Close a device and forget it.

        With ``drain`` the device finishes what it runs; without, its tasks go to other devices.
        Raises ``ConfigError`` if there is no such device.
        """
        await self._open_engine().supervisor.remove(name, drain=drain)

    def stats(self) -> DispatcherStats:
        """A snapshot of counters and times since the dispatcher was opened.

        Raises ``ClosedError`` if it never was.
        """
        if self._engine is None:
            raise ClosedError("the dispatcher was never opened: enter it with `async with`")
        return snapshot(self._engine)

    @property
    def ready(self) -> bool:
        """Whether it is open, and some device has answered or could: for a health check.

        A device does not count while it is down; nor once it fell silent for far too long, timed
        out or was given up by all who waited for it, and that for 3 seconds altogether and for 20
        times as long as a call takes, or is back on trial, until it answers. Then it counts again
        after 30 seconds without work, so that a task can show whether it is well.
        """
        return self._engine is not None and self._engine.ready

    def __repr__(self) -> str:
        engine = self._engine
        if self._opening is not None:
            state = "opening"
        elif engine is None:
            state = "not open"
        elif engine.accepting:
            state = "open"
        else:
            state = "closing" if engine.running else "closed"
        devices = engine.roster.devices if engine is not None else ()
        told = ", ".join(f"{one.name} {one.state}" for one in devices)
        told = told or ", ".join(attributes_of(driver).name for driver in self._drivers)
        return f"<Dispatcher {state}: {told or 'no devices'}>"

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ClosedError("the dispatcher is not open: enter it with `async with`")
        self._engine.check_open()
        return self._engine


def _list_of(drivers: Iterable[Driver[InT, OutT]]) -> list[Driver[InT, OutT]]:
    if isinstance(drivers, str) or not isinstance(drivers, Iterable):
        raise ConfigError(f"drivers must be a list of drivers, one per device, not {drivers!r}")
    return list(drivers)


def _hook(on_event: EventHook | None) -> EventHook | None:
    if on_event is not None and not callable(on_event):
        raise ConfigError(f"on_event must be a function or None, not {on_event!r}")
    if inspect.iscoroutinefunction(on_event):
        text = "on_event is called, not awaited: let a plain function start what is to be awaited"
        raise ConfigError(text)
    return on_event


def _check_drivers(drivers: Sequence[Driver[InT, OutT]]) -> None:
    seen: set[str] = set()
    said = [attributes_of(driver) for driver in drivers]
    for one in said:
        if one.name in seen:
            raise ConfigError(f"two devices are called {one.name!r}: names must differ")
        if one.stateful is not said[0].stateful:
            raise mixed(one.name, stateful=one.stateful)
        seen.add(one.name)


def _wait_for_all(wait_for: object) -> bool:
    if wait_for not in ("first", "all"):
        raise ConfigError(f"wait_for must be 'first' or 'all', not {wait_for!r}")
    return wait_for == "all"


def _iterable(xs: Iterable[InT] | AsyncIterable[InT]) -> Iterable[InT] | AsyncIterable[InT]:
    if not isinstance(xs, AsyncIterable):
        iter(xs)  # raises TypeError, naming the type
    return xs


def _at_least(least: int, name: str, value: float) -> int:
    if value == math.inf:
        return 2**62
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} must be a whole number of {least} or more, not {value!r}")
    return value
