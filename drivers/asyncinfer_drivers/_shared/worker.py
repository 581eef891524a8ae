"""A thread of its own for a driver whose calls block.

The event loop's default executor is not used: it is shared, bounded, and a thread is picked for
each call anew, while libraries such as torch keep settings per thread.
"""

from __future__ import annotations

import asyncio
import atexit
import pickle
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, ParamSpec, TypeVar

from anyio import CancelScope

from asyncinfer.errors import DeviceLost, DeviceTimeout
from asyncinfer_drivers._shared.between import Between

__all__ = ("EXIT_GRACE", "Worker", "as_exception", "outlast", "portable")

T = TypeVar("T")
P = ParamSpec("P")

#: seconds all workers together get to end when the interpreter exits
EXIT_GRACE = 2.0


class Worker:
    """Runs blocking functions one after another in one thread; coroutines await them.

    One event loop uses it at a time. The thread is a daemon: a call that never returns, which
    nothing can interrupt, does not keep the program from exiting. At exit all workers are told to
    stop and are given ``EXIT_GRACE`` seconds, so that an idle or nearly finished thread ends
    properly.

    Calls that end before the loop has woken up are posted to it together: a wake-up is a system
    call, and the dearest part of a short call.

    ``device`` names the device in errors and the thread in debuggers; ``at_end`` is called in the
    thread when it ends. ``between`` is what it does between calls.
    """

    def __init__(
        self,
        device: str,
        at_end: Callable[[], None] | None = None,
        between: Between | None = None,
    ) -> None:
        self._device = device
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._awaited: set[_Job[Any]] = set()
        self._stopping = threading.Event()
        self._ended: Future[None] = Future()
        self._ended.set_running_or_notify_cancel()  # so that nobody who waits for it can cancel it
        self._outbox = _Outbox()
        self._thread = threading.Thread(
            target=_work,
            args=(device, self._jobs, self._outbox, self._stopping, self._ended, at_end, between),
            name=f"asyncinfer-{device}",
            daemon=True,
        )

    @property
    def alive(self) -> bool:
        """Whether ``run`` may be called."""
        return self._outbox.open and not self._stopping.is_set()

    def going(self) -> bool:
        """Whether it is not stopped yet. A step between calls may ask."""
        return not self._stopping.is_set()

    def wanted(self) -> bool:
        """In a call: whether somebody still waits for it. A long one may ask between steps."""
        job = self._outbox.running
        return not self._stopping.is_set() and (job is None or not job.done.cancelled())

    def start(self) -> None:
        """Start the thread."""
        self._outbox.open = True
        try:
            self._thread.start()
        except BaseException:  # there are too many threads, say
            self._outbox.open = False
            raise
        _running.add(self)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in the thread, in the caller's ``contextvars`` context.

        What it raises is raised here; what is no ``Exception`` (``SystemExit``) as a
        ``RuntimeError`` caused by it. Raises ``DeviceLost`` if the worker is stopped before the
        call begins.

        A cancelled call that has not begun never will. One that runs cannot be interrupted: it is
        waited for, and then ``CancelledError`` is raised.
        """
        if not self.alive:
            raise DeviceLost(self._device, "not open")
        call = partial(copy_context().run, function, *args, **kwargs)
        loop = asyncio.get_running_loop()
        job: _Job[T] = _Job(call, loop, loop.create_future())
        self._awaited.add(job)
        self._jobs.put(job)
        try:
            await job.done
        except asyncio.CancelledError:
            if not job.claim():
                await outlast(job.when_posted())
            raise
        finally:
            self._awaited.discard(job)
        return job.outcome()

    def pause(self, seconds: float) -> None:
        """Sleep in the worker thread, but not beyond ``stop``."""
        self._stopping.wait(seconds)

    async def stop(self, timeout: float | None = None) -> bool:
        """Drop the calls that wait, let the running one end, end the thread.

        Returns whether the thread is gone. After ``timeout`` seconds, or when cancelled, it is
        left behind, to end by itself once the running call returns; who awaits that call gets
        ``DeviceTimeout``. May be called again, and by several tasks.
        """
        self._stopping.set()
        self._jobs.put(None)
        if self._thread.ident is None:  # it was never started: nothing runs, and nothing will
            return True
        try:
            await asyncio.wait_for(asyncio.wrap_future(self._ended), timeout)
        except TimeoutError:
            return False
        finally:
            self._outbox.deliver()
            for job in self._awaited:
                job.abandon(DeviceTimeout(self._device, "closed while it was computing"))
        self._thread.join()  # it has nothing left to do
        return True


class _Job(Generic[T]):
    """One call: handed to the thread, and posted back to the loop that awaits it."""

    def __init__(
        self,
        function: Callable[[], T],
        loop: asyncio.AbstractEventLoop,
        done: asyncio.Future[None],
    ) -> None:
        self.function: Callable[[], T] | None = function
        self.loop = loop
        self.done = done
        self._posted = False
        self._finished: asyncio.Future[None] | None = None
        self._unclaimed = [None]
        self._value: T
        self._error: Exception | None = None

    def claim(self) -> bool:
        """True for the first who asks: the thread that runs it, or the caller that drops it."""
        try:
            self._unclaimed.pop()  # atomic, and cheaper than a lock
        except IndexError:
            return False
        return True

    def when_posted(self) -> asyncio.Future[None]:
        """Done when the thread has finished this job, even though ``done`` was cancelled."""
        finished = self.loop.create_future()
        if self._posted:
            finished.set_result(None)
        self._finished = finished
        return finished

    def outcome(self) -> T:
        """The value, or raise the error. Once only, so that the error's frames are not kept."""
        if self._error is None:
            return self._value
        try:
            raise self._error
        finally:
            self._error = None

    def work(self, lost: Exception | None) -> None:
        """Run it in the calling thread, or fail it with ``lost``."""
        function, self.function = self.function, None
        if lost is not None or function is None:
            self._error = lost
            return
        try:
            self._value = function()
        except BaseException as error:
            self._error = as_exception(error)

    def abandon(self, error: Exception) -> None:
        """On the loop: wake who waits for it, though the thread still runs it."""
        if not self._posted and not self.loop.is_closed():
            self._error = error
            self._post()

    def _post(self) -> None:
        self._posted = True
        for future in (self.done, self._finished):
            if future is not None and not future.done():
                future.set_result(None)


class _Outbox:
    """Finished jobs on their way from the thread to the loop, which is woken once for all in it."""

    def __init__(self) -> None:
        #: whether the thread runs; asking the thread itself takes a lock
        self.open = False
        #: the job the thread is at
        self.running: _Job[Any] | None = None
        self._finished: deque[_Job[Any]] = deque()
        #: the loop that has been asked to ``deliver`` and has not begun to
        self._woken: asyncio.AbstractEventLoop | None = None

    def put(self, job: _Job[Any]) -> None:
        """In the thread: have the job posted to its loop."""
        loop = job.loop
        # first: `deliver` resets `_woken` before it takes what is here, so that no job is missed
        self._finished.append(job)
        if self._woken is loop:
            return
        self._woken = loop
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(self.deliver)

    def deliver(self) -> None:
        """On the loop: wake who waits for the finished jobs."""
        self._woken = None
        finished = self._finished
        while finished:
            job = finished.popleft()
            if not job.loop.is_closed():
                job._post()


def as_exception(error: BaseException) -> Exception:
    """``error`` itself, or a ``RuntimeError`` for what would end the thread or the event loop."""
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__} was raised: {_said(error)}")
    wrapped.__cause__ = error
    return wrapped


def portable(error: Exception) -> Exception:
    """``error`` if it can be sent to another process, else a ``RuntimeError`` that tells of it."""
    try:
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own
        if type(copied) is type(error) and str(copied) == str(error):
            return error
    except BaseException:  # whatever its class does, it is no fault of this process
        copied = None
    told = RuntimeError(f"{type(error).__name__}: {_said(error)}")
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as another:
        return f"its text cannot be made ({type(another).__name__})"


async def outlast(finished: asyncio.Future[Any]) -> None:
    """Wait for ``finished`` in a cancelled task, however often that is cancelled again."""
    with CancelScope(shield=True):  # else an anyio scope would cancel this wait over and over
        while not finished.done():
            try:
                await asyncio.wait((finished,))
            except asyncio.CancelledError:
                continue  # the caller raises one


def _work(
    device: str,
    jobs: SimpleQueue[_Job[Any] | None],
    outbox: _Outbox,
    stopping: threading.Event,
    ended: Future[None],
    at_end: Callable[[], None] | None,
    between: Between | None,
) -> None:
    try:
        while (job := _next(jobs, stopping, between)) is not None:
            if job.claim():
                outbox.running = job
                job.work(DeviceLost(device, "closed") if stopping.is_set() else None)
                outbox.running = None
                outbox.put(job)
            del job  # and with it the inputs and outputs
        if at_end is not None:
            at_end()
    finally:
        outbox.open = False
        ended.set_result(None)


def _next(
    jobs: SimpleQueue[_Job[Any] | None], stopping: threading.Event, between: Between | None
) -> _Job[Any] | None:
    """The next job, when it is there and its turn has come."""
    if between is None or not between.needed:
        return jobs.get()
    found: list[_Job[Any] | None] = []

    def came(seconds: float) -> bool:
        if not found:
            with suppress(Empty):
                found.append(jobs.get(timeout=seconds))
        return bool(found)

    between.fill(came, stopping.is_set)
    return found[0] if found else jobs.get()


_running: weakref.WeakSet[Worker] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    deadline = time.monotonic() + EXIT_GRACE
    workers = list(_running)
    for worker in workers:
        worker._stopping.set()
        worker._jobs.put(None)
    for worker in workers:
        worker._thread.join(max(0.0, deadline - time.monotonic()))
