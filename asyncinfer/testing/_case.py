"""A driver under test: how to call it with a time limit, and how to judge its answers."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from asyncinfer.driver import Driver
from asyncinfer.errors import DeviceError

__all__ = ("DEVICE_FAULTS", "AnyDriver", "Broken", "Case", "same", "shown")

AnyDriver: TypeAlias = Driver[Any, Any]

#: errors that the dispatcher takes for a fault of the device
DEVICE_FAULTS = (DeviceError, ConnectionError, EOFError)


class Broken(Exception):
    """A promise is broken; the text says what was seen."""


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal by ``==``; arrays and tensors, in all their elements."""
    equal = one == other
    return bool(equal.all() if hasattr(equal, "all") else equal)


def shown(value: object) -> str:
    """A value in short, for messages; an exception with its type."""
    return reprlib.repr(value) if not isinstance(value, BaseException) else repr(value)[:300]


@dataclass
class Case:
    """What ``check_driver`` was given, and how to use it."""

    factory: Callable[[], AnyDriver]
    inputs: Sequence[Any]
    equal: Callable[[Any, Any], bool]
    bad_inputs: Sequence[Any]
    cannot_open: Callable[[], AnyDriver] | None
    unplug: Callable[[Any], Awaitable[object]] | None
    observed: Callable[[Callable[[], object]], AnyDriver] | None
    timeout: float
    #: the right output of each input
    outputs: list[Any] = field(default_factory=list)
    #: seconds that a call with one input took
    seconds: float = 0.0

    # ---- calling the driver

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[AnyDriver]:
        """A context with a new, open driver, which is closed at its end."""
        driver = self.factory()
        try:
            await self.do(driver, "open")
            yield driver
        except BaseException:
            await self.attempt(driver, "close")
            raise
        await self.do(driver, "close")

    def start(self, driver: AnyDriver, method: str, *args: Any) -> asyncio.Task[Any]:
        """Begin to call ``method``. A driver without ``open`` or ``close`` succeeds at once."""

        async def call() -> Any:
            if method in ("open", "close") and not hasattr(driver, method):
                return None
            return await getattr(driver, method)(*args)

        task = asyncio.create_task(call(), name=method)
        # the error is looked at here, so that asyncio does not report it if nobody else does
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def outcome(self, call: asyncio.Task[Any]) -> Any:
        """What the call returns, or the exception it raises. It must end within the timeout."""
        try:
            done, _ = await asyncio.wait([call], timeout=self.timeout)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if not done:
            call.cancel()
            await asyncio.wait([call], timeout=1.0)
            raise Broken(f"{call.get_name()} did not end within {self.timeout:g} s")
        if call.cancelled():
            return asyncio.CancelledError("cancelled")
        return call.exception() or call.result()

    async def attempt(self, driver: AnyDriver, method: str, *args: Any) -> Any:
        """Call ``method``, and return what it returns, or the exception it raises."""
        return await self.outcome(self.start(driver, method, *args))

    async def do(self, driver: AnyDriver, method: str, *args: Any) -> Any:
        """Call ``method``, and return what it returns. It must not raise."""
        outcome = await self.attempt(driver, method, *args)
        if isinstance(outcome, BaseException):
            raise Broken(f"{method} raised {shown(outcome)}") from outcome
        return outcome

    # ---- judging its answers

    def batch(self, indexes: Sequence[int]) -> list[Any]:
        """The inputs at these indexes."""
        return [self.inputs[index] for index in indexes]

    async def infer(self, driver: AnyDriver, indexes: Sequence[int]) -> None:
        """Run the inputs at ``indexes`` as one batch. The answer must be right."""
        self.judge(indexes, await self.attempt(driver, "infer", self.batch(indexes)))

    def judge(self, indexes: Sequence[int], outcome: Any) -> None:
        """Check that ``outcome`` is the right outputs for the inputs at ``indexes``, in order."""
        where = f"infer of a batch of {len(indexes)}"
        for position, output in enumerate(self.counted(len(indexes), outcome)):
            index = indexes[position]
            if isinstance(output, BaseException):
                raise Broken(f"{where}: input {index} failed with {shown(output)}") from output
            if not self.equal(output, self.outputs[index]):
                raise Broken(
                    f"{where}: at place {position} came {shown(output)}{self._whose(output)}, "
                    f"not {shown(self.outputs[index])} for input {index}"
                )

    def counted(self, count: int, outcome: Any) -> list[Any]:
        """The outputs of a batch of ``count`` inputs. There must be as many outputs."""
        where = f"infer of a batch of {count}"
        if isinstance(outcome, BaseException):
            raise Broken(f"{where} raised {shown(outcome)}") from outcome
        try:
            outputs = list(outcome)
        except TypeError as error:
            raise Broken(f"{where} returned {shown(outcome)}, which is no sequence") from error
        if len(outputs) != count or not hasattr(outcome, "__len__"):
            raise Broken(f"{where} returned {len(outputs)} outputs in a {type(outcome).__name__}")
        return outputs

    def _whose(self, output: Any) -> str:
        for index, right in enumerate(self.outputs):
            if self.equal(output, right):
                return f" (the output for input {index})"
        return ""

    def failed(self, outcome: Any, *, where: str) -> None:
        """Check the outcome of a call without a device: an error must be a fault of the device."""
        if isinstance(outcome, BaseException) and not isinstance(outcome, DEVICE_FAULTS):
            raise Broken(f"{where} raised {shown(outcome)}, which is no DeviceError") from outcome

    @property
    def pair(self) -> tuple[int, int]:
        """The indexes of two inputs whose outputs differ."""
        for index, output in enumerate(self.outputs):
            if not self.equal(output, self.outputs[0]):
                return 0, index
        raise ValueError("check_driver needs inputs with at least two different outputs")
