"""The worker thread: where a job runs, what comes back, and what is left when it stops."""

import asyncio
import gc
import random
import subprocess
import sys
import threading
import weakref
from contextvars import ContextVar

import anyio
import pytest

from asyncinfer.errors import DeviceLost, DeviceTimeout
from asyncinfer_drivers._shared.worker import Worker, _Job

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@pytest.fixture
async def worker():
    worker = Worker("dev")
    worker.start()
    yield worker
    assert await worker.stop(5)


class Gate:
    """A job that tells when it has begun and ends when it is let."""

    def __init__(self):
        self.begun = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self.go = threading.Event()
        self.ended = False

    def __call__(self):
        self.loop.call_soon_threadsafe(self.begun.set)
        assert self.go.wait(10)
        self.ended = True
        return "through"


async def test_runs_jobs_in_order_in_one_other_thread(worker):
    ran: list[tuple[int, int]] = []
    await asyncio.gather(
        *(worker.run(lambda n=n: ran.append((n, threading.get_ident()))) for n in range(20))
    )
    assert [n for n, _ in ran] == list(range(20))
    assert len({thread for _, thread in ran}) == 1
    assert ran[0][1] != threading.get_ident()


async def test_a_worker_that_was_never_started_stops_at_once():
    worker = Worker("dev")
    assert await worker.stop(None)
    assert await worker.stop(5)
    with pytest.raises(DeviceLost, match="not open"):
        await worker.run(int)


async def test_a_worker_that_could_not_start_takes_no_calls(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    worker = Worker("dev")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            worker.start()
    with pytest.raises(DeviceLost, match="not open"):
        await worker.run(int)
    assert await worker.stop(None)


async def test_arguments_result_and_error(worker):
    assert await worker.run(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0)
    assert await worker.run(divmod, 7, 2) == (3, 1)


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt("x"), GeneratorExit(), asyncio.CancelledError()]
)
async def test_what_would_end_the_thread_or_the_loop_becomes_an_error(worker, error):
    def job():
        raise error

    with pytest.raises(RuntimeError, match=type(error).__name__) as caught:
        await worker.run(job)
    assert caught.value.__cause__ is error
    assert await worker.run(divmod, 7, 2) == (3, 1)


async def test_each_job_runs_in_its_callers_context(worker):
    async def call(name):
        WHO.set(name)
        return await worker.run(WHO.get)

    assert await asyncio.gather(*(call(n) for n in "abc")) == ["a", "b", "c"]
    assert await worker.run(WHO.get) == "nobody"


async def test_a_job_cannot_change_its_callers_context(worker):
    await worker.run(WHO.set, "job")
    assert WHO.get() == "nobody"
    assert await worker.run(WHO.get) == "nobody"


async def test_the_loop_runs_on_meanwhile(worker):
    gate = Gate()
    job = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    turns = 0
    for _ in range(100):
        await asyncio.sleep(0)
        turns += 1
    assert turns == 100
    assert not job.done()
    gate.go.set()
    assert await job == "through"


async def test_cancelling_a_running_job_waits_for_its_end(worker):
    gate = Gate()
    job = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    for _ in range(3):
        job.cancel()
        await asyncio.sleep(0)
    assert not job.done()
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert gate.ended
    assert await worker.run(divmod, 7, 2) == (3, 1)


async def test_an_anyio_scope_waits_without_spinning(worker, monkeypatch):
    gate, waits, wait = Gate(), [], asyncio.wait
    monkeypatch.setattr(asyncio, "wait", lambda futures: waits.append(1) or wait(futures))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run, gate)
            await gate.begun.wait()
            scope.cancel()
            asyncio.get_running_loop().call_later(0.005, gate.go.set)
    assert scope.cancelled_caught
    assert gate.ended
    assert len(waits) <= 2


async def test_cancelling_a_job_that_waits_drops_it_at_once(worker):
    gate = Gate()
    first = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    ran = []
    second = asyncio.create_task(worker.run(ran.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert not first.done()
    gate.go.set()
    assert await first == "through"
    await worker.run(divmod, 7, 2)
    assert ran == []


async def test_cancelling_as_the_result_arrives(worker, monkeypatch):
    """The job has been posted and its caller not resumed: nothing will be posted again."""
    post = _Job._post

    def post_and_cancel(self):
        post(self)
        job.cancel()

    monkeypatch.setattr(_Job, "_post", post_and_cancel)
    job = asyncio.create_task(worker.run(divmod, 7, 2))
    await asyncio.wait([job], timeout=5)
    assert job.cancelled()


@pytest.mark.parametrize("seed", range(5))
async def test_a_storm_of_cancellations(worker, seed):
    chance = random.Random(seed)
    tasks = [asyncio.create_task(worker.run(divmod, n, 7)) for n in range(200)]
    for task in chance.sample(tasks, 100):
        if chance.random() < 0.3:
            await asyncio.sleep(0)
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for n, outcome in enumerate(outcomes):
        assert isinstance(outcome, asyncio.CancelledError) or outcome == divmod(n, 7)
    assert sum(isinstance(outcome, tuple) for outcome in outcomes) >= 100
    assert not worker._awaited


async def test_stop_lets_the_running_job_end_and_drops_the_others():
    worker = Worker("dev")
    worker.start()
    gate = Gate()
    running = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    ran = []
    waiting = asyncio.create_task(worker.run(ran.append, 1))
    await asyncio.sleep(0)
    stops = [asyncio.create_task(worker.stop(5)) for _ in range(2)]
    await asyncio.sleep(0)
    gate.go.set()
    assert await asyncio.gather(*stops) == [True, True]
    assert await running == "through"
    with pytest.raises(DeviceLost, match="closed"):
        await waiting
    assert ran == []
    with pytest.raises(DeviceLost, match="not open"):
        await worker.run(divmod, 7, 2)
    assert await worker.stop(5)


@pytest.mark.parametrize("cancelled_too", [False, True])
async def test_a_wedged_job_is_left_behind_and_its_caller_let_go(cancelled_too):
    worker = Worker("dev")
    worker.start()
    gate = Gate()
    wedged = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    if cancelled_too:
        wedged.cancel()
        await asyncio.sleep(0)
    assert not await worker.stop(0.001)
    with pytest.raises(asyncio.CancelledError if cancelled_too else DeviceTimeout):
        await wedged
    gate.go.set()
    assert await worker.stop(5)


async def test_a_cancelled_stop_lets_the_callers_go_too():
    worker = Worker("dev")
    worker.start()
    gate = Gate()
    wedged = asyncio.create_task(worker.run(gate))
    await gate.begun.wait()
    with anyio.move_on_after(0.001):
        await worker.stop(60)
    with pytest.raises(DeviceTimeout):
        await wedged
    gate.go.set()
    assert await worker.stop(5)


async def test_calls_that_end_together_wake_the_loop_once(worker):
    loop, wakes = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe

    class Counted:
        """The loop, as the thread sees it."""

        def __getattr__(self, name):
            return getattr(loop, name)

        def call_soon_threadsafe(self, *args):
            wakes.append(1)
            return wake(*args)

    gate = Gate()
    jobs = [asyncio.create_task(worker.run(gate))]
    await gate.begun.wait()
    counted, done = Counted(), threading.Event()
    jobs += [asyncio.create_task(worker.run(divmod, n, 7)) for n in range(20)]
    jobs.append(asyncio.create_task(worker.run(done.set)))
    await asyncio.sleep(0)
    for job in worker._awaited:
        job.loop = counted
    gate.go.set()
    assert done.wait(10)  # the loop stands still meanwhile
    await asyncio.gather(*jobs)
    assert len(wakes) <= 2


async def test_a_call_can_ask_whether_it_is_wanted(worker):
    gate = Gate()
    asked = []

    def job():
        asked.append(worker.wanted())
        gate()
        asked.append(worker.wanted())

    task = asyncio.create_task(worker.run(job))
    await gate.begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    gate.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asked == [True, False]


async def test_stop_ends_a_pause():
    worker = Worker("dev")
    worker.start()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def job():
        loop.call_soon_threadsafe(begun.set)
        worker.pause(60)

    task = asyncio.create_task(worker.run(job))
    await begun.wait()
    assert await worker.stop(5)
    await task


async def test_at_end_is_called_in_the_thread():
    threads = []
    worker = Worker("dev", at_end=lambda: threads.append(threading.get_ident()))
    worker.start()
    ident = await worker.run(threading.get_ident)
    assert await worker.stop(5)
    assert threads == [ident]


async def test_keeps_neither_inputs_nor_outputs_nor_errors(worker):
    class Thing:
        pass

    thing, error = Thing(), ValueError("x")
    seen = [weakref.ref(thing)]

    def fail(thing):
        raise error

    assert await worker.run(lambda x: x, thing) is thing
    with pytest.raises(ValueError, match="x"):
        await worker.run(fail, thing)
    del thing
    error.__traceback__ = None
    await worker.run(divmod, 7, 2)
    gc.collect()
    assert seen[0]() is None


def test_a_loop_that_is_closed_when_the_job_ends():
    started, go = threading.Event(), threading.Event()
    worker = Worker("dev")
    worker.start()

    def job():
        started.set()
        go.wait(10)

    async def abandon():
        task = asyncio.get_running_loop().create_task(worker.run(job))
        await asyncio.sleep(0)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(abandon())
    started.wait(10)
    loop.close()
    task._log_destroy_pending = False
    go.set()

    async def use_on_another_loop():
        assert await worker.run(divmod, 7, 2) == (3, 1)
        assert await worker.stop(5)

    asyncio.run(use_on_another_loop())


WEDGED = """
import asyncio, threading
from asyncinfer_drivers._shared import worker
worker.EXIT_GRACE = 0.01
async def main():
    idle, wedged = worker.Worker("idle"), worker.Worker("wedged")
    idle.start(), wedged.start()
    began = threading.Event()
    def never_ends():
        began.set()
        threading.Event().wait()
    asyncio.get_running_loop().create_task(wedged.run(never_ends))
    await asyncio.sleep(0)
    began.wait()
    raise RuntimeError("program ends")
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main())
except RuntimeError as error:
    print(error)
"""


def test_a_wedged_job_does_not_keep_the_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", WEDGED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "program ends\n"
    assert done.returncode == 0
