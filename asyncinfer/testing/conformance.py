"""The driver conformance suite: checks every promise of ``asyncinfer.Driver`` on a driver."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from asyncinfer.driver import Driver
from asyncinfer.testing._case import Broken, Case, same
from asyncinfer.testing._checks import CHECKS, Check
from asyncinfer.testing._watch import LeftRunning, Ticker, is_virtual

__all__ = ("ConformanceError", "Report", "check_driver")

InT = TypeVar("InT")
OutT = TypeVar("OutT")

NEVER_BLOCKS = "nothing blocks the event loop"
NOTHING_LEFT = "close leaves no asyncio task, thread or process"
#: how often a check is made before the driver is said to block: a busy machine can look like that
_TRIES = 3


class ConformanceError(AssertionError):
    """A driver broke a promise.

    ``driver`` is its name, ``promise`` the promise, ``seen`` what happened instead.
    """

    def __init__(self, driver: str, promise: str, seen: str) -> None:
        super().__init__(driver, promise, seen)
        self.driver = driver
        self.promise = promise
        self.seen = seen

    def __str__(self) -> str:
        return f"driver {self.driver!r}: {self.promise}: {self.seen}"


@dataclass(frozen=True)
class Report:
    """What was checked. Printing it gives one line per promise."""

    #: the driver's name
    driver: str
    #: the promises it kept
    kept: tuple[str, ...]
    #: the promises that were not checked, with the reason
    skipped: Mapping[str, str]
    #: the longest time the event loop stood still, in seconds; ``nan`` in virtual time
    longest_block: float

    def __str__(self) -> str:
        kept = [f"  kept     {promise}" for promise in self.kept]
        skipped = [f"  skipped  {promise}: {why}" for promise, why in self.skipped.items()]
        return "\n".join([f"driver {self.driver!r}", *kept, *skipped])


async def check_driver(
    factory: Callable[[], Driver[InT, OutT]],
    inputs: Sequence[InT],
    *,
    expected: Callable[[InT], OutT] | None = None,
    equal: Callable[[Any, Any], bool] = same,
    bad_inputs: Sequence[Any] = (),
    cannot_open: Callable[[], Driver[InT, OutT]] | None = None,
    unplug: Callable[[Any], Awaitable[object]] | None = None,
    observed: Callable[[Callable[[], object]], Driver[InT, OutT]] | None = None,
    timeout: float = 30.0,
    max_block: float = 0.1,
) -> Report:
    """Check every promise a driver makes; raise ``ConformanceError`` at the first one broken.

    :param factory: makes a new, closed driver for the same device. No two are open at once.
    :param inputs: good inputs that lead to different outputs; better more than ``max_batch``.
    :param expected: the right output of an input. By default what the driver itself answers when
        given that input alone: then wrong outputs go unseen, but no mix-up does.
    :param equal: compares two outputs; by default ``==``, in all elements of arrays and tensors.
        Pass one with a tolerance where the batch size changes the last digits.
    :param bad_inputs: inputs the driver must refuse, each by an error of its own.
    :param cannot_open: makes a driver whose ``open`` must fail, such as one for a missing port.
    :param unplug: takes the device away from an open driver, as by killing its process.
    :param observed: given a function, makes a driver that calls it during ``infer``, say as its
        ``preprocess``. This shows which ``contextvars`` context the work runs in.
    :param timeout: seconds any single call may take, on the event loop's clock.
    :param max_block: seconds the event loop may stand still, without those that Python took to
        collect garbage or, on Linux, waited for a processor.

    A promise that cannot be checked without an argument that is not given is skipped, and named in
    the report. Call this where nothing else goes on: it watches all asyncio tasks, threads and
    child processes. In virtual time, it is not measured whether the event loop stands still.
    """
    case = Case(factory, inputs, equal, bad_inputs, cannot_open, unplug, observed, timeout)
    if expected is not None:
        case.outputs = [expected(x) for x in inputs]
    name = str(getattr(factory(), "name", "?"))
    skipped = {check.promise: reason for check in CHECKS if (reason := check.skip(case))}
    checks = [check for check in CHECKS if check.promise not in skipped]
    longest = 0.0
    for check in checks:
        longest = max(longest, await _unblocked(name, check, case, max_block))
    kept = [*(check.promise for check in checks), NOTHING_LEFT]
    if is_virtual(asyncio.get_running_loop()):
        skipped[NEVER_BLOCKS] = "needs an event loop in real time"
        return Report(name, tuple(kept), skipped, math.nan)
    return Report(name, (*kept, NEVER_BLOCKS), skipped, longest)


async def _unblocked(name: str, check: Check, case: Case, limit: float) -> float:
    """Run the check, again if the event loop stood still; return the seconds it stood still."""
    blocks = list[float]()
    while len(blocks) < _TRIES:
        blocks.append(await _run(name, check, case))
        if blocks[-1] <= limit:
            return blocks[-1]
    seen = f"it stood still for {min(blocks):.3g} s while checking: {check.promise}"
    raise ConformanceError(name, NEVER_BLOCKS, seen)


async def _run(name: str, check: Check, case: Case) -> float:
    """Run the check once; return the longest time the event loop stood still, in seconds.

    Nothing that the driver has started may be left afterwards.
    """
    before = LeftRunning()
    with Ticker() as ticker:
        try:
            await check.run(case)
        except Broken as broken:
            raise ConformanceError(name, check.promise, str(broken)) from broken.__cause__
    if left := await before.wait_none():
        raise ConformanceError(name, NOTHING_LEFT, f"{left} left after checking: {check.promise}")
    return ticker.worst
