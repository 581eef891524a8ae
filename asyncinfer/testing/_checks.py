"""The promises of a driver, and how each is checked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from asyncinfer.driver import shared_names
from asyncinfer.errors import ConfigError
from asyncinfer.testing._case import DEVICE_FAULTS, Broken, Case, shown
from asyncinfer.testing._lifecycle import (
    again,
    calibrated,
    close_any_time,
    closed,
    failed_open,
    unplugged,
)

__all__ = ("CHECKS", "Check")

_CALLER: ContextVar[str] = ContextVar("check_driver_caller")


def _always(case: Case) -> str:
    return ""


@dataclass(frozen=True)
class Check:
    """One promise of a driver, and how to check it."""

    #: the promise, in words
    promise: str
    #: checks it; raises ``Broken`` if the driver does not keep it
    run: Callable[[Case], Awaitable[None]]
    #: returns why the promise cannot be checked; empty if it can
    skip: Callable[[Case], str] = _always


async def facts(case: Case) -> None:
    """Look at the driver's name, its ``max_batch``, ``concurrency`` and ``shares``."""
    driver = case.factory()
    name = getattr(driver, "name", None)
    if not isinstance(name, str) or not name:
        raise Broken(f"name is {name!r}")
    for fact in ("max_batch", "concurrency"):
        value = getattr(driver, fact, 1)
        if not isinstance(value, int) or value < 1:
            raise Broken(f"{fact} is {value!r}")
    try:
        shared_names(getattr(driver, "shares", ()), "its attribute")
    except ConfigError as error:
        raise Broken(str(error)) from error


async def alone(case: Case) -> None:
    """Run each input alone. Without ``expected``, these outputs are the right ones from now on."""
    clock = asyncio.get_running_loop().time
    async with case.opened() as driver:
        for index, x in enumerate(case.inputs):
            started = clock()
            outcome = await case.attempt(driver, "infer", [x])
            case.seconds = clock() - started
            (output,) = case.counted(1, outcome)
            if len(case.outputs) < len(case.inputs):
                case.outputs.append(output)
            case.judge([index], [output])
    _ = case.pair


async def batches(case: Case) -> None:
    """Run batches of many sizes, each with other inputs."""
    indexes = itertools.cycle(range(len(case.inputs)))
    async with case.opened() as driver:
        for size in sizes(getattr(driver, "max_batch", 1)):
            await case.infer(driver, [*itertools.islice(indexes, size)])


def sizes(most: int) -> Iterator[int]:
    """The batch sizes to try: all up to 8, then powers of two, and the largest two."""
    powers = (2**n for n in itertools.takewhile(lambda n: 2**n < most, itertools.count(4)))
    yield from sorted({*range(1, min(most, 8) + 1), *powers, max(1, most - 1), most})


async def at_once(case: Case) -> None:
    """Make ``concurrency`` calls at once, with single tasks and then with full batches."""
    indexes = itertools.cycle(range(len(case.inputs)))
    async with case.opened() as driver:
        concurrency = getattr(driver, "concurrency", 1)
        for size in (1, getattr(driver, "max_batch", 1)):
            parts = [[*itertools.islice(indexes, size)] for _ in range(concurrency)]
            calls = [case.start(driver, "infer", case.batch(part)) for part in parts]
            try:
                for part, call in zip(parts, calls, strict=True):
                    case.judge(part, await case.outcome(call))
            finally:
                for call in calls:
                    call.cancel()


async def context(case: Case) -> None:
    """Check that a function which the driver calls in ``infer`` sees the caller's context."""
    seen = list[str]()
    if case.observed is None:
        return
    driver = case.observed(lambda: seen.append(_CALLER.get("nobody")))
    try:
        await case.do(driver, "open")
        for who in ("one caller", "another caller"):
            seen.clear()
            token = _CALLER.set(who)
            call = case.start(driver, "infer", [case.inputs[0]])
            _CALLER.reset(token)
            await case.outcome(call)
            if set(seen) != {who}:
                raise Broken(f"called by {who!r}, it ran for {seen or 'nobody: it did not call'}")
    finally:
        await case.attempt(driver, "close")


async def bad_input(case: Case) -> None:
    """Run bad inputs, alone and beside a good one: only they fail, and later calls succeed."""
    one, other = case.pair
    async with case.opened() as driver:
        for bad in case.bad_inputs:
            outcome = await case.attempt(driver, "infer", [bad])
            _is_refused(bad, outcome, case)
            await case.infer(driver, [one])
            if getattr(driver, "max_batch", 1) < 2:
                continue
            batch = [bad, case.inputs[other]]
            outcome = await case.attempt(driver, "infer", batch)
            _is_refused(bad, outcome, case, other)
            await case.infer(driver, [one, other])


def _is_refused(bad: object, outcome: object, case: Case, *beside: int) -> None:
    """Check that a bad input, first in its batch, was refused by an error of its own.

    The error may be raised for the whole batch, or stand in the input's place beside right outputs
    for the inputs at the indexes ``beside``.
    """
    if isinstance(outcome, DEVICE_FAULTS) or not isinstance(outcome, Exception | list | tuple):
        raise Broken(f"the bad input {shown(bad)} gave {shown(outcome)}: not the task's own error")
    if isinstance(outcome, Exception):
        return
    in_place, *rest = case.counted(1 + len(beside), outcome)
    if not isinstance(in_place, Exception):
        raise Broken(f"the bad input {shown(bad)} gave {shown(in_place)}: no exception")
    if rest:
        case.judge(beside, rest)


async def cancelled(case: Case) -> None:
    """Cancel a call at several moments. The next call must get its own answer each time."""
    one, other = case.pair
    async with case.opened() as driver:
        for part in (None, 0.0, 0.25, 0.5):
            call = case.start(driver, "infer", case.batch([one]))
            if part is not None:
                await asyncio.sleep(part * case.seconds)
            call.cancel()
            await case.outcome(call)
            await case.infer(driver, [other])
        if getattr(driver, "concurrency", 1) > 1:
            first, second = (case.start(driver, "infer", case.batch([i])) for i in (one, other))
            await asyncio.sleep(0)
            first.cancel()
            case.judge([other], await case.outcome(second))
            await case.outcome(first)
            await case.infer(driver, [one])


def _needs(option: str) -> Callable[[Case], str]:
    return lambda case: "" if getattr(case, option) else f"needs {option}="


CHECKS = (
    Check("name is a non-empty string, max_batch and concurrency are 1 or more", facts),
    Check("infer returns the right output for one input", alone),
    Check("infer returns one output per input, in the batch's order", batches),
    Check("up to `concurrency` calls run at once and keep their results apart", at_once),
    Check("infer runs in the caller's contextvars context", context, _needs("observed")),
    Check("a bad input fails alone, the device stays usable", bad_input, _needs("bad_inputs")),
    Check("cancelling infer leaves the device usable", cancelled),
    Check("infer and probe raise DeviceError while closed", closed),
    Check("close may be called at any time, and open works again", close_any_time),
    Check("open raises DeviceError or ConfigError", failed_open, _needs("cannot_open")),
    Check("a lost device is a DeviceError, and open works again", unplugged, _needs("unplug")),
    Check("calibrate and probe do what they say", calibrated),
    Check("open and close can be repeated and leave no file open", again),
)
