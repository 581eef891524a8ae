"""What is fastest is sought between calls: nothing waits for it, and no answer changes."""

import asyncio
import itertools
import logging
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher
from asyncinfer_drivers._shared.between import Between
from asyncinfer_drivers._torch import engine, optimize, tuning
from asyncinfer_drivers._torch.course import Course, finished
from asyncinfer_drivers._torch.optimize import Choice
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.paired import compared
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.threads import Crew
from asyncinfer_drivers._torch.tuning import Tuning, Wide
from asyncinfer_drivers._torch.variants import Refused
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


def test_a_thread_that_has_become_idle_takes_one_step_after_the_other():
    """A device that rests may be found faster soon, and then takes part."""
    idle = Idle(3)
    idle.worked = 1.0
    idle.between._spent = 2.0  # it had its part of the time while there were calls
    idle.fill()
    assert idle.began == [0.02, 1.02, 2.02]


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


def chosen(monkeypatch, module, form):
    """The threads and the form that are found where one thread of two is due.

    Each takes so many seconds a call with one thread, and with two.
    """
    now, threads = 0.0, 1

    def bind(number):
        nonlocal threads
        threads = number

    class Takes(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            nonlocal now
            now += self.seconds[threads - 1]
            return x * 2

    def make(plan, *_):
        if plan != ("freeze",):
            raise Refused("not this one")
        return Takes(form)

    for part in (tuning, optimize):
        monkeypatch.setattr(part, "timer", lambda device: lambda: now)
    monkeypatch.setattr(tuning, "bind", bind)
    monkeypatch.setattr(optimize, "make", make)
    plain = Takes(module).eval()
    options = TorchOptions(plain, max_batch=4, optimize_seconds=100.0)
    crew, told = Crew(Due(1, 2)), {}
    runner = Runner("cpu", plain, torch.device("cpu"), options.steps, crew, 1.0, lambda s: None)
    runner.first = torch.zeros(3)
    own = SimpleNamespace(module=plain, settled=True, fresh=lambda: plain)
    one = Tuning(
        options, runner, own, crew, tell=told.update, sized=lambda n: None, wanted=lambda: True
    )
    one.begin()
    one.finish()
    assert told.get("threads", 1) == crew.threads == threads
    assert (told["optimize"] == "none") == (runner.forward is plain)
    return crew.threads, told["optimize"]


@pytest.mark.parametrize(
    ("module", "form", "found"),
    [
        ((1.0, 0.6), (0.97, 0.5), (2, "freeze")),  # it gains with two threads only
        ((1.0, 0.6), (0.9, 0.6), (2, "none")),
        ((1.0, 0.95), (0.9, 0.7), (2, "freeze")),
        ((2.0, 1.5), (1.0, 0.95), (1, "freeze")),
        ((1.2, 0.8), (1.0, 1.2), (2, "none")),
    ],
)
def test_forms_are_compared_with_the_threads_they_will_have(monkeypatch, module, form, found):
    assert chosen(monkeypatch, module, form) == found


# --- calls in turns -----------------------------------------------------------------------------


def in_turns(ratios, *, enough=lambda: False):
    """What comes of pairs with these ratios where more than 1.05 is asked for; and their number."""
    ratios, calls = [99.0, *ratios], itertools.count()
    asked = [0]

    def call(ratio):
        asked[0] = next(calls) // 2
        return ratios[asked[0]] if ratio else 1.0

    found = finished(compared(lambda: call(False), lambda: call(True), least=1.05, enough=enough))
    return found, asked[0]


@pytest.mark.parametrize(
    ("ratios", "found"),
    [
        ([1.2] * 40, (1.2, 5)),
        ([1.0] * 40, (1.0, 5)),
        ([1.2, 1.2, 0.5, *[1.2] * 40], (1.2, 9)),
        ([1.1, 1.0] * 20, (1.05, 40)),
        ([1.1, 1.0, 1.1, 1.1, 1.0, *[1.1] * 40], (1.1, 12)),
    ],
)
def test_calls_take_turns_until_it_is_clear(ratios, found):
    assert in_turns(ratios) == pytest.approx(found)


def test_calls_take_turns_no_longer_than_there_is_time():
    assert in_turns([1.1, 1.0] * 20, enough=lambda: True) == (1.1, 3)


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
async def test_it_answers_the_same_all_along(isolation):
    driver = TorchDriver("digits", isolation=isolation, threads=1)
    items = list(digits.inputs().items) * 3
    async with Dispatcher([driver]) as dispatcher:
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


async def test_a_small_model_is_tried_while_its_driver_opens(monkeypatch):
    monkeypatch.setattr(engine, "_SMALL", 60)
    monkeypatch.setattr(engine, "_AT_ONCE", 60)
    driver = TorchDriver("digits", threads=1)
    await driver.open()
    assert driver.max_batch > 1
    assert driver.details["optimize"] != "none yet"
    await driver.close()


async def test_a_larger_one_begins_plain(monkeypatch):
    monkeypatch.setattr(engine, "_SMALL", 0)
    driver = TorchDriver("digits", threads=1)
    await driver.open()
    assert driver.max_batch == 1
    assert driver.details["optimize"] == "none yet"
    await driver.close()


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
