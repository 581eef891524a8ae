"""What is fastest is sought between calls: nothing waits for it, and no answer changes."""

import asyncio
import itertools
import logging
import threading

import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher
from asyncinfer_drivers._shared.between import Between
from asyncinfer_drivers._torch import tuning
from asyncinfer_drivers._torch.course import Course, finished
from asyncinfer_drivers._torch.optimize import Choice
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.threads import Crew
from asyncinfer_drivers._torch.tuning import Tuning, Wide
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.torch_host import TorchDriver

# --- between calls ------------------------------------------------------------------------------


class Idle:
    """A thread's queue and what it does between calls, on a clock of its own."""

    def __init__(self, steps, calls=(), takes=1.0):
        self.now, self.left, self.calls, self.takes = 0.0, steps, list(calls), takes
        self.began, self.worked = [], 0.0
        self.between = Between(self, lambda: self.now)

    @property
    def waiting(self):
        return self.left > 0

    def step(self):
        self.began.append(round(self.now, 3))
        self.now += self.takes
        self.left -= 1
        return True

    def came(self, seconds):
        """A call at each time of ``calls``."""
        if self.calls and self.calls[0] <= self.now + seconds:
            self.now = max(self.now, self.calls[0])
            return True
        self.now += seconds
        return False

    def fill(self, ended=lambda: False):
        self.between.fill(self.came, ended)


def test_the_first_call_does_not_wait_for_a_step():
    idle = Idle(5, calls=[0.1])
    idle.fill()
    assert (idle.began, idle.now) == ([], 0.1)


def test_an_idle_thread_takes_all_steps():
    idle = Idle(3)
    idle.fill()
    assert idle.began == [0.2, 1.4, 2.6]
    assert not idle.between.needed


def test_a_busy_thread_gives_half_of_its_time():
    idle = Idle(1000, calls=itertools.repeat(0.0, 1), takes=0.3)
    spent = 0.0
    for _ in range(100):  # the next call is there at once
        idle.calls = [idle.now]
        before = idle.now
        idle.fill()
        spent += idle.now - before
        idle.now += 0.1
        idle.worked += 0.1
    assert 9.0 < spent < 10.5


def test_what_has_ended_takes_no_step():
    idle = Idle(5)
    idle.fill(ended=lambda: True)
    assert idle.began == []


# --- steps --------------------------------------------------------------------------------------


def test_steps_in_inference_mode_and_jobs_beside():
    seen = []

    def steps():
        seen.append(torch.is_inference_mode_enabled())
        yield None
        seen.append((yield threading.current_thread))
        with pytest.raises(ZeroDivisionError):
            yield lambda: 1 / 0
        return "done"

    assert finished(steps()) == "done"
    course = Course(steps())
    while not course.over:
        course.step()
        assert not torch.is_inference_mode_enabled()
    assert course.value == "done"
    assert seen[:2] == [True, threading.main_thread()]
    assert seen[2] is True
    assert seen[3] is not threading.main_thread()


def test_closing_waits_for_what_runs_beside():
    go, ended = threading.Event(), []

    def steps():
        try:
            yield lambda: (go.wait(10), ended.append("job"))
        finally:
            ended.append("steps")

    course = Course(steps())
    assert course.step()
    assert not course.step()
    go.set()
    course.close()
    assert ended == ["job", "steps"]


# --- threads ------------------------------------------------------------------------------------


class Due:
    def __init__(self, threads, most):
        self.threads, self.most = threads, most


def test_a_number_of_threads_holds_as_long_as_the_share():
    due = Due(7, 8)
    crew = Crew(due)
    assert (crew.threads, crew.others) == (7, [1, 8])
    crew.choose(8)
    assert (crew.threads, crew.others) == (8, [1, 7])
    due.threads = due.most = 4
    assert (crew.threads, crew.others) == (4, [])
    assert Crew(Due(1, 1)).others == []


@pytest.mark.parametrize(
    ("seconds", "threads", "form"),
    [
        ({"form": (1.0, 0.5), "module": (2.0, 1.5)}, 2, "form"),
        ({"form": (1.0, 0.95), "module": (2.0, 1.5)}, 1, "form"),
        ({"form": (1.0, 1.2), "module": (1.2, 0.8)}, 2, "module"),
    ],
)
def test_threads_and_form_are_compared_together(monkeypatch, seconds, threads, form):
    module, fast = nn.Identity(), nn.Identity()
    names = {module: "module", fast: "form"}
    monkeypatch.setattr(
        Tuning,
        "_timed",
        lambda self, forward, threads, sample: seconds[names[forward]][threads - 1],
    )
    options = TorchOptions(module, max_batch=4)
    crew, told = Crew(Due(1, 2)), {}
    runner = Runner("cpu", module, torch.device("cpu"), options.steps, crew, 1.0, lambda s: None)
    runner.forward = fast
    one = Tuning(
        options, runner, None, crew, tell=told.update, sized=lambda n: None, wanted=lambda: True
    )
    finished(one._find_threads(torch.zeros(3)))
    assert crew.threads == threads
    assert names[runner.forward] == form
    assert told.get("threads", 1) == threads


# --- tasks of different shapes ------------------------------------------------------------------


def test_calls_are_wider_where_shapes_differ():
    wide, most = Wide(0.25), 8
    for _ in range(20):
        wide.learn(most, 1, 0.001)
        most = wide.most(8, most)
    assert most == 8
    for _ in range(20):
        wide.learn(most, 6, 0.001)
        most = wide.most(8, most)
    assert 40 <= most <= 50
    for _ in range(40):
        wide.learn(most, 6, most * 0.025)  # no longer than twice what others may take
        most = wide.most(8, most)
    assert 18 <= most <= 25


def test_groups_of_one_shape_are_divided():
    sizes = []

    class Noting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x * 2

    options = TorchOptions(nn.Identity())
    runner = Runner("cpu", Noting(), torch.device("cpu"), options.steps, None, 1.0, lambda s: None)
    tasks = [torch.full((n % 2 + 1,), float(n)) for n in range(10)]
    runner.run(tasks)
    runner.part = 2
    sizes.clear()
    outputs = runner.run(tasks)
    assert all(torch.equal(o, 2 * t) for o, t in zip(outputs, tasks, strict=True))
    assert max(sizes) == 2
    assert runner.shapes == 2


# --- the driver ---------------------------------------------------------------------------------


def labels(items):
    with torch.inference_mode():
        return digits.uncollate(digits.build()(digits.collate(items)))


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_it_begins_plain_and_answers_the_same_all_along(isolation):
    driver = TorchDriver("digits", isolation=isolation, threads=1)
    items = list(digits.inputs().items) * 3
    async with Dispatcher([driver]) as dispatcher:
        assert driver.max_batch == 1
        assert driver.details["optimize"] == "none yet"
        assert [label async for label in dispatcher.stream(items)] == labels(items)
        await driver.tune()
        assert driver.max_batch > 1
        assert driver.details["optimize"] != "none yet"
        assert driver.details["isolation"] == isolation
        assert driver.details["max_batch"] == driver.max_batch
        before = dispatcher.stats().devices[0].batches
        assert [label async for label in dispatcher.stream(items)] == labels(items)
        assert dispatcher.stats().devices[0].batches - before < len(items) / 2
    assert driver.details["optimize"] != "none yet"


async def test_the_first_inputs_serve_and_the_users_steps_are_not_called_for_it():
    calls = []

    def preprocess(x):
        calls.append(x)
        return torch.full((4,), float(x))

    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).eval()
    driver = TorchDriver(net, preprocess=preprocess, postprocess=lambda row: row.argmax().item())
    await driver.open()
    await driver.tune()  # with nothing to try
    first = await driver.infer([5])
    await driver.tune()
    assert driver.max_batch > 1
    assert await driver.infer([5]) == first
    assert calls == [5, 5]
    await driver.close()


class Counting(nn.Module):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return x


async def test_what_changes_something_outside_is_left_as_it_is():
    driver = TorchDriver(Counting().eval())
    await driver.open()
    for _ in range(3):
        await driver.infer([torch.ones(2)])
    await driver.tune()
    before = Counting.calls
    await driver.infer([torch.ones(2)])
    assert Counting.calls == before + 1
    assert driver.max_batch == 1
    assert driver.details["optimize"].startswith("none: it changes something outside")
    await driver.close()


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_closing_ends_the_search(isolation):
    driver = TorchDriver("digits", isolation=isolation)
    for _ in range(2):
        await driver.open()
        await driver.infer([digits.example()])
        await driver.close()


async def test_a_search_that_fails_does_no_harm(monkeypatch, caplog):
    def steps(self, plans):
        yield None
        raise RuntimeError("out of luck")

    monkeypatch.setattr(tuning.Search, "steps", steps)
    driver = TorchDriver("digits", max_batch=2)
    with caplog.at_level(logging.WARNING):
        await driver.open()
        await driver.tune()
        assert await driver.infer([digits.example()]) == labels([digits.example()])
        await driver.close()
    assert "sought no further: RuntimeError: out of luck" in caplog.text


async def test_calls_go_on_beside_a_search(monkeypatch):
    go, asked = threading.Event(), threading.Event()

    def steps(self, plans):
        yield lambda: (asked.set(), go.wait(10))
        return Choice(self.module)

    monkeypatch.setattr(tuning.Search, "steps", steps)
    driver = TorchDriver("digits", max_batch=1)
    await driver.open()
    while not asked.is_set():
        await driver.infer([digits.example()])
        await asyncio.sleep(0)
    for _ in range(5):
        assert await driver.infer([digits.example()]) == labels([digits.example()])
    go.set()
    await driver.tune()
    await driver.close()
