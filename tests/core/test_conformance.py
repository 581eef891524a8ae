"""The conformance suite passes good drivers, and catches a bad one for every promise."""

import asyncio
import contextvars
import gc
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from asyncinfer import Driver
from asyncinfer.driver import ServiceTime
from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer.testing import (
    ConformanceError,
    DeadlockError,
    Report,
    SimulatedDriver,
    _watch,
    check_driver,
    run_virtual,
)

INPUTS = [1, 2, 3, 4, 5]
BAD = -1


def double(x: int) -> int:
    return 2 * x


class Good(Driver[int, int]):
    """Keeps every promise; the bad drivers below change one thing each."""

    name = "good"
    max_batch = 4
    concurrency = 2

    def __init__(self):
        self.is_open = False

    async def open(self):
        await asyncio.sleep(0.001)
        self.is_open = True

    async def close(self):
        self.is_open = False

    async def infer(self, batch):
        if not self.is_open:
            raise DeviceLost(self.name, "is not open")
        await asyncio.sleep(0.001)
        return [self.one(x) for x in batch]

    def one(self, x):
        return InputError("negative") if x == BAD else double(x)

    async def probe(self):
        if not self.is_open:
            raise DeviceLost(self.name, "is not open")

    async def calibrate(self):
        return ServiceTime(0.001, 0.0)


class NoPort(Good):
    async def open(self):
        raise DeviceLost(self.name, "no such port")


async def lose(driver):
    driver.is_open = False


class Calling(Good):
    def __init__(self, function):
        super().__init__()
        self.function = function

    async def infer(self, batch):
        self.function()
        return await super().infer(batch)


EVERYTHING = {
    "expected": double,
    "bad_inputs": [BAD],
    "cannot_open": NoPort,
    "unplug": lose,
    "observed": Calling,
}


async def check(factory, **options) -> Report:
    return await check_driver(factory, INPUTS, **{**EVERYTHING, **options})


# ---- good drivers


async def test_a_good_driver_keeps_every_promise():
    report = await check(Good)
    assert not report.skipped
    assert len(report.kept) == 15
    assert report.driver == "good"
    assert 0 <= report.longest_block < 0.1


def test_in_virtual_time_only_blocking_is_not_measured():
    report = run_virtual(check(Good))
    assert [*report.skipped] == ["nothing blocks the event loop"]
    assert math.isnan(report.longest_block)


def test_the_report_lists_what_was_skipped_and_why():
    report = run_virtual(check_driver(Good, INPUTS))
    assert len(report.skipped) == 5
    text = str(report)
    assert "driver 'good'" in text
    assert "kept     cancelling infer leaves the device usable" in text
    assert "skipped  a bad input fails alone, the device stays usable: needs bad_inputs=" in text


def a_simulated_driver(**options):
    return SimulatedDriver("sim", 0.5, function=double, **options)


def refuse(x: int) -> object:
    return InputError("negative") if x == BAD else None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch": 20, "batch_cost": 0.1},
        {"concurrency": 3, "noise": 0.3},
        {"fail": refuse, "max_batch": 4},
    ],
)
def test_the_simulated_driver_conforms(options):
    report = run_virtual(
        check_driver(
            lambda: a_simulated_driver(**options),
            INPUTS,
            expected=double,
            bad_inputs=[BAD] if "fail" in options else [],
            observed=lambda call: SimulatedDriver("o", 0.5, function=lambda x: call()),
        )
    )
    needs = {"needs cannot_open=", "needs unplug=", "needs an event loop in real time"}
    assert {*report.skipped.values()} - {"needs bad_inputs="} == needs


async def test_the_simulated_driver_conforms_in_real_time():
    await check_driver(lambda: SimulatedDriver("sim", 0.001, max_batch=3), INPUTS)


async def test_a_driver_that_needs_no_opening_conforms():
    class Instant(Driver[int, int]):
        name = "instant"

        async def infer(self, batch):
            return [double(x) for x in batch]

    await check_driver(Instant, INPUTS, expected=double)


async def test_an_object_with_nothing_but_infer_conforms():
    class Bare:
        name = "bare"

        async def infer(self, batch):
            return [double(x) for x in batch]

    await check_driver(Bare, INPUTS, expected=double)


async def test_threads_of_the_loops_own_executor_are_no_leftovers():
    class InExecutor(Good):
        async def infer(self, batch):
            await super().infer(batch)
            return await asyncio.to_thread(lambda: [self.one(x) for x in batch])

    await check(InExecutor)


def test_inputs_must_tell_outputs_apart():
    with pytest.raises(ValueError, match="two different outputs"):
        run_virtual(check_driver(Good, [1, 1, 1]))
    with pytest.raises(ValueError, match="two different outputs"):
        run_virtual(check_driver(Good, []))


def test_an_error_that_is_close_enough_can_be_accepted():
    class Rounding(Good):
        async def infer(self, batch):
            return [y + 1e-10 * len(batch) for y in await super().infer(batch)]

    with pytest.raises(ConformanceError):
        run_virtual(check_driver(Rounding, INPUTS))
    run_virtual(check_driver(Rounding, INPUTS, equal=math.isclose))


async def test_cancelling_the_check_closes_the_driver():
    drivers = []

    def factory():
        drivers.append(Good())
        return drivers[-1]

    checking = asyncio.create_task(check(factory))
    while not any(driver.is_open for driver in drivers):  # noqa: ASYNC110
        await asyncio.sleep(0)
    checking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await checking
    assert not any(driver.is_open for driver in drivers)


# ---- bad drivers: the promise, what is seen, and the driver that breaks it

BROKEN = []


def breaks(promise, seen, **options):
    def note(driver):
        BROKEN.append(pytest.param(driver, promise, seen, options, id=driver.__name__))
        return driver

    return note


@breaks("name is", "name is ''")
class Nameless(Good):
    name = ""


@breaks("name is", "max_batch is 0")
class NoBatch(Good):
    max_batch = 0


@breaks("name is", "concurrency is None")
class NoConcurrency(Good):
    concurrency = None


@breaks("right output for one", "at place 0 came 3, not 2 for input 0")
class Wrong(Good):
    def one(self, x):
        return 2 * x + 1


@breaks("right output for one", "raised ValueError('broken')")
class Raises(Good):
    async def infer(self, batch):
        raise ValueError("broken")


@breaks("right output for one", "raised CancelledError")
class CancelsItself(Good):
    async def infer(self, batch):
        raise asyncio.CancelledError


@breaks("right output for one", "returned None, which is no sequence")
class ReturnsNothing(Good):
    async def infer(self, batch):
        pass


@breaks("right output for one", "generator")
class ReturnsGenerator(Good):
    async def infer(self, batch):
        return (double(x) for x in batch)


@breaks("right output for one", "TypeError")
class NotACoroutine(Good):
    def infer(self, batch):
        return [double(x) for x in batch]


@breaks("right output for one", "open raised OSError")
class CannotOpen(Good):
    async def open(self):
        raise OSError("no such file")


@breaks("right output for one", "infer did not end within 30 s")
class NeverAnswers(Good):
    async def infer(self, batch):
        await asyncio.Event().wait()


@breaks("in the batch's order", "at place 0 came 6 (the output for input 2), not 4 for input 1")
class Reversed(Good):
    async def infer(self, batch):
        return (await super().infer(batch))[::-1]


@breaks("in the batch's order", "infer of a batch of 4 returned 3 outputs")
class LosesTheLast(Good):
    async def infer(self, batch):
        return (await super().infer(batch))[:3]


@breaks("keep their results apart", "infer of a batch of 1: at place 0 came 4")
class MixesUp(Good):
    async def infer(self, batch):
        self.batch = batch
        await asyncio.sleep(0.001)
        return await super().infer(self.batch)


@breaks("keep their results apart", "raised RuntimeError('busy')")
class OneAtATime(Good):
    busy = False

    async def infer(self, batch):
        if self.busy:
            raise RuntimeError("busy")
        self.busy = True
        try:
            return await super().infer(batch)
        finally:
            self.busy = False


class ForgetsContext(Calling):
    async def infer(self, batch):
        contextvars.Context().run(self.function)
        return await Good.infer(self, batch)


@breaks("contextvars", "called by 'one caller', it ran for ['nobody']", observed=ForgetsContext)
class OfForgetsContext(Good):
    pass


@breaks("contextvars", "it did not call", observed=lambda call: Good())
class OfNeverCalls(Good):
    pass


@breaks("bad input", "gave DeviceLost")
class BlamesTheDevice(Good):
    def one(self, x):
        if x == BAD:
            raise DeviceLost(self.name, "crashed")
        return double(x)


@breaks("bad input", "the bad input -1 gave -2: no exception")
class TakesAnything(Good):
    def one(self, x):
        return double(x)


@breaks("bad input", "the bad input -1 gave -2: no exception")
class TakesAnythingInABatch(Good):
    async def infer(self, batch):
        outputs = await super().infer(batch)
        return outputs if len(batch) == 1 else [double(x) for x in batch]


@breaks("bad input", "input 1 failed with InputError('negative')")
class BlamesTheNeighbour(Good):
    async def infer(self, batch):
        outputs = await super().infer(batch)
        error = next((y for y in outputs if isinstance(y, Exception)), None)
        return [error] * len(batch) if error else outputs


@breaks("bad input", "raised RuntimeError('still broken')")
class StaysBroken(Good):
    broken = False

    async def infer(self, batch):
        if self.broken:
            raise RuntimeError("still broken")
        self.broken = BAD in batch
        return await super().infer(batch)


@breaks("cancelling", "came 2 (the output for input 0), not 4 for input 1")
class AnswersLate(Good):
    def __init__(self):
        super().__init__()
        self.answers = asyncio.Queue()

    async def infer(self, batch):
        outputs = await super().infer([])
        self.answers.put_nowait([self.one(x) for x in batch])
        await asyncio.sleep(0.002)
        return outputs + self.answers.get_nowait()


@breaks("cancelling", "infer did not end")
class KeepsItsLock(Good):
    def __init__(self):
        super().__init__()
        self.lock = asyncio.Lock()

    async def infer(self, batch):
        await self.lock.acquire()
        outputs = await super().infer(batch)
        self.lock.release()
        return outputs


@breaks("cancelling", "raised CancelledError")
class CancelsTheNeighbour(Good):
    def __init__(self):
        super().__init__()
        self.calls = set()

    async def infer(self, batch):
        self.calls.add(asyncio.current_task())
        try:
            return await super().infer(batch)
        except asyncio.CancelledError:
            for call in self.calls - {asyncio.current_task()}:
                call.cancel()
            raise
        finally:
            self.calls.discard(asyncio.current_task())


@breaks("while closed", "infer before open raised AttributeError")
class NoPortYet(Good):
    async def infer(self, batch):
        if not self.is_open:
            raise AttributeError("port")
        return await super().infer(batch)


@breaks("while closed", "infer did not end within 30 s")
class WaitsForOpen(Good):
    async def infer(self, batch):
        while not self.is_open:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return await super().infer(batch)


@breaks("while closed", "probe before open raised KeyError")
class ProbesNothing(Good):
    async def probe(self):
        if not self.is_open:
            raise KeyError("port")


@breaks("close may be called", "close raised RuntimeError('not open')")
class CloseUnopened(Good):
    async def close(self):
        if not self.is_open:
            raise RuntimeError("not open")
        await super().close()


@breaks("close may be called", "open raised DeviceLost")
class OpensOnce(Good):
    opened = False

    async def open(self):
        if self.opened:
            raise DeviceLost(self.name, "cannot be opened again")
        await super().open()
        self.opened = True


@breaks("close may be called", "close did not end")
class HalfOpen(Good):
    opening = False

    async def open(self):
        self.opening = True
        await super().open()
        self.opening = False

    async def close(self):
        while self.opening:  # noqa: ASYNC110
            await asyncio.sleep(1)
        await super().close()


@breaks("close may be called", "infer did not end")
class ForgetsTheCall(Good):
    async def infer(self, batch):
        outputs = await super().infer(batch)
        if not self.is_open:
            await asyncio.Event().wait()
        return outputs


class RaisesOSError(Good):
    async def open(self):
        raise OSError("no such port")


@breaks("open raises DeviceError or ConfigError", "OSError", cannot_open=RaisesOSError)
class OfRaisesOSError(Good):
    pass


@breaks("open raises DeviceError or ConfigError", "open gave None", cannot_open=Good)
class OfOpensAnyway(Good):
    pass


class FailsToClose(NoPort):
    async def close(self):
        raise AttributeError("port")


@breaks("open raises DeviceError or ConfigError", "close raised", cannot_open=FailsToClose)
class OfFailsToClose(Good):
    pass


class NoModel(Good):
    async def open(self):
        raise ConfigError("no such model")


def test_a_config_error_is_a_good_reason_not_to_open():
    run_virtual(check(Good, cannot_open=NoModel))


class Pluggable(Good):
    plugged = True

    async def open(self):
        await super().open()
        self.plugged = True


async def pull_plug(driver):
    driver.plugged = False


@breaks("a lost device", "infer did not end", unplug=pull_plug)
class WaitsForItsDevice(Pluggable):
    async def infer(self, batch):
        while not self.plugged:  # noqa: ASYNC110
            await asyncio.sleep(1)
        return await super().infer(batch)


@breaks("a lost device", "the next call raised ValueError('garbage')", unplug=pull_plug)
class TalksToNobody(Pluggable):
    async def infer(self, batch):
        if not self.plugged:
            raise ValueError("garbage")
        return await super().infer(batch)


@breaks("a lost device", "raised ConnectionResetError", unplug=pull_plug)
class StaysUnplugged(Pluggable):
    async def open(self):
        await Good.open(self)

    async def infer(self, batch):
        if not self.plugged:
            raise ConnectionResetError("reset by peer")
        return await super().infer(batch)


@breaks("calibrate", "calibrate returned 0.001, not a ServiceTime")
class CalibratesToANumber(Good):
    async def calibrate(self):
        return 0.001


@breaks("calibrate", "not a ServiceTime of 0 or more")
class CalibratesToNan(Good):
    async def calibrate(self):
        return ServiceTime(math.nan, 0.1)


@breaks("calibrate", "probe raised DeviceLost")
class NeverHealthy(Good):
    async def probe(self):
        raise DeviceLost(self.name, "does not answer")


@breaks("leaves no asyncio task", "asyncio task 'poll'")
class LeavesTask(Good):
    async def open(self):
        await super().open()
        self.poll = asyncio.create_task(asyncio.sleep(1e6), name="poll")


@pytest.mark.parametrize(("driver", "promise", "seen", "options"), BROKEN)
def test_a_broken_promise_is_caught(driver, promise, seen, options):
    with pytest.raises(ConformanceError) as caught:
        run_virtual(check(driver, **options))
    assert promise in caught.value.promise
    assert seen in caught.value.seen
    assert str(caught.value).startswith(f"driver '{driver.name}': {caught.value.promise}: ")


def test_the_drivers_own_exception_is_the_cause():
    with pytest.raises(ConformanceError) as caught:
        run_virtual(check(Raises))
    assert repr(caught.value.__cause__) == "ValueError('broken')"


def test_a_deadlock_is_no_broken_promise_but_shows():
    class Stuck(Good):
        async def close(self):
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    continue

    with pytest.raises((ConformanceError, DeadlockError)):
        run_virtual(check(Stuck))


# ---- what only shows in real time


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(_watch, "_LOOKS", 3)


async def caught(factory) -> ConformanceError:
    with pytest.raises(ConformanceError) as error:
        await check(factory)
    return error.value


async def test_a_thread_left_behind_is_caught(impatient):
    stop = threading.Event()

    class LeavesThread(Good):
        async def open(self):
            await super().open()
            threading.Thread(target=stop.wait, name="poller", daemon=True).start()

    try:
        error = await caught(LeavesThread)
    finally:
        stop.set()
    assert "leaves no asyncio task, thread" in error.promise
    assert "thread 'poller'" in error.seen


async def test_a_process_left_behind_is_caught(impatient):
    started = []

    class LeavesProcess(Good):
        async def open(self):
            await super().open()
            command = [sys.executable, "-c", "input()"]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE))  # noqa: ASYNC220

    try:
        error = await caught(LeavesProcess)
    finally:
        for process in started:
            process.communicate()
    assert "leaves no asyncio task, thread or process" in error.promise
    assert f"process {started[0].pid} " in error.seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_a_file_left_open_is_caught():
    opened = []

    class LeavesFile(Good):
        async def open(self):
            await super().open()
            opened.append(os.open(os.devnull, os.O_RDONLY))

    try:
        error = await caught(LeavesFile)
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert "leave no file open" in error.promise
    assert error.seen == "3 more files are open after 3 times"


@pytest.mark.parametrize("method", ["open", "close", "infer"])
async def test_blocking_the_event_loop_is_caught(method):
    class Blocks(Good):
        pass

    async def block(self, *args):
        time.sleep(0.01)  # noqa: ASYNC251
        return await getattr(Good, method)(self, *args)

    setattr(Blocks, method, block)
    with pytest.raises(ConformanceError, match=r"it stood still for 0\.0") as error:
        await check(Blocks, max_block=0.005)
    assert error.value.promise == "nothing blocks the event loop"


def sleep():
    time.sleep(0.2)


def compute():
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        sum(range(1000))


@pytest.mark.parametrize("block", [sleep, compute])
def test_a_fifth_of_a_second_is_always_caught(block):
    class Blocks(Good):
        async def open(self):
            block()
            await super().open()

    with pytest.raises(ConformanceError, match=r"it stood still for 0\.[1-9]"):
        asyncio.run(check(Blocks))


async def stood_still(something):
    with _watch.Ticker() as ticker:
        await asyncio.sleep(0.01)
        something()
        await asyncio.sleep(0.01)
    return ticker.worst


def collect_slowly():
    def slow(phase, info):
        if phase == "stop":
            time.sleep(0.2)

    gc.callbacks.insert(0, slow)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(slow)


async def test_collecting_garbage_is_not_taken_for_blocking():
    assert await stood_still(collect_slowly) < 0.15
    assert not any(isinstance(getattr(c, "__self__", None), _watch.Ticker) for c in gc.callbacks)


async def test_waiting_for_a_processor_is_not_taken_for_blocking(monkeypatch):
    """As where the system says that the thread was ready to run while it was not run."""
    waited, more = _watch._waited, 0.0

    def wait():
        nonlocal more
        time.sleep(0.2)
        more += 0.2

    monkeypatch.setattr(_watch, "_waited", lambda: waited() + more)
    assert await stood_still(wait) < 0.15
    assert await stood_still(sleep) > 0.15


@pytest.mark.skipif(not Path("/proc/thread-self/schedstat").exists(), reason="needs Linux")
def test_the_system_says_how_long_a_thread_waited():
    start, before = time.monotonic(), _watch._waited()
    sleep()
    waited = _watch._waited() - before
    # who sleeps does not wait; of a virtual machine the two clocks differ by some milliseconds
    assert 0 <= waited < time.monotonic() - start - 0.1
