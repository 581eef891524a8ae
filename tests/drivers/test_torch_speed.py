"""Batch size, malloc and the bare loops: what is decided, never how long anything takes."""

import ctypes
import itertools
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError
from asyncinfer_drivers import torch_loops
from asyncinfer_drivers._torch import engine, malloc
from asyncinfer_drivers._torch.course import finished
from asyncinfer_drivers._torch.sizes import LIMIT, best_size, memory_left
from asyncinfer_drivers._torch.threads import bind
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.models.small_net import build as small_net
from asyncinfer_drivers.models.small_net import images
from asyncinfer_drivers.torch_host import TorchDriver

# --- the batch size -----------------------------------------------------------------------------


class Machine:
    """Calls of known length on a clock of its own."""

    def __init__(self, seconds):
        self.now, self.seconds, self.sizes = 0.0, seconds, []

    def run(self, size):
        self.now += self.seconds(size)
        self.sizes.append(size)

    def best(self, **options):
        options = {"budget": 100.0, "longest": 100.0, **options}
        clock = self.clock
        return finished(best_size(self.run, clock=clock, timer=clock, **options))[0]

    def clock(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        (lambda n: 1e-3 + 1e-6 * n, LIMIT),
        (lambda n: 1e-2 * n, 1),
        (lambda n: 1e-2 * max(n, 8), 8),
        (lambda n: 1e-2 * n if n < 16 else 10.0, 1),
        (lambda n: 1e-2 * n * (1.03 if n < 4 else 1.0), 4),
        (lambda n: 1e-2 * n * (1.01 if n < 4 else 1.0), 1),
        (lambda n: 2e-5 * n, 128),  # handing a call over costs more than most of its tasks
    ],
)
def test_the_smallest_size_with_about_the_best_rate(seconds, size):
    assert Machine(seconds).best() == size


def test_sizes_are_compared_in_turns():
    """The machine was twice as fast for one of them only, when each was tried by itself."""
    machine = Machine(lambda n: 1e-2 * n * (1.0 if machine.sizes[-4:].count(n) < 4 else 0.95))
    assert machine.best() == 1


def test_a_call_that_takes_longer_than_expected_does_not_count():
    machine = Machine(lambda n: 0.1 if n < 3 else 0.3)
    assert machine.best(longest=0.25) == 2
    assert max(machine.sizes) == 4


def test_it_stops_where_larger_is_not_better():
    machine = Machine(lambda n: 1e-3 * n * n)
    assert machine.best() == 1
    assert max(machine.sizes) == 8


def test_it_obeys_its_limits():
    machine = Machine(lambda n: 0.1 + 1e-9 * n)
    assert machine.best(budget=1.3) == 2
    assert machine.now <= 1.3
    assert Machine(lambda n: 1e-3 * n + 0.01).best(longest=0.03) == 18
    assert Machine(lambda n: 1e-3 * n + 0.1).best(longest=0.01) == 1
    assert Machine(lambda n: 1e-3).best(wanted=lambda: False) == 1
    left = iter([8_000, 8_000, 8_000, 7_900, 7_900, 3_000])
    assert Machine(lambda n: 1e-3).best(memory=lambda: next(left)) == 4


@pytest.mark.parametrize(
    ("text", "left"),
    [("MemTotal: 9 kB\nMemAvailable:   12 kB\n", 12_288), ("", None), ("MemAvailable: x", None)],
)
def test_memory(tmp_path, text, left):
    file = tmp_path / "meminfo"
    file.write_text(text)
    assert memory_left(file) == left
    assert memory_left(tmp_path / "none") is None


async def test_the_dispatcher_uses_the_size_that_was_found():
    driver = TorchDriver("digits", max_batch="auto", threads=1)
    assert driver.max_batch == 1
    items = list(digits.inputs().items[:200])
    async with Dispatcher([driver]) as dispatcher:
        await driver.tune()
        assert driver.max_batch > 1
        assert [label async for label in dispatcher.stream(items)] == bare_labels(items)
        (stats,) = dispatcher.stats().devices
        assert stats.batches < len(items)
        assert stats.details["max_batch"] == driver.max_batch
        assert stats.details["threads"] == 1


async def test_without_an_input_it_is_one():
    driver = TorchDriver(digits.build(), max_batch="auto")
    await driver.open()
    await driver.close()
    assert driver.max_batch == driver.details["max_batch"] == 1


def bare_labels(items):
    with torch.inference_mode():
        return digits.uncollate(digits.build()(digits.collate(items)))


@pytest.mark.parametrize("options", [{"malloc": "more"}, {"isolation": "fork"}, {"max_batch": "a"}])
def test_wrong_options(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be"):
        TorchDriver("digits", **options)


def test_facts_for_the_scheduler():
    driver = TorchDriver("digits", max_wait=0.01, latency_target=0.5)
    assert (driver.max_wait, driver.latency_target) == (0.01, 0.5)


# --- malloc -------------------------------------------------------------------------------------


class Libc:
    """Notes what malloc is told."""

    def __init__(self, takes=1 << 40):
        self.takes, self.told = takes, []
        self.pieces, self.threads, self._numbers = {}, set(), itertools.count(1)

    def malloc(self, size):
        self.threads.add(threading.current_thread())
        piece = next(self._numbers)
        self.pieces[piece] = size
        return piece

    def realloc(self, piece, size):
        assert size < self.pieces[piece]
        self.pieces[piece] = size
        return piece

    def free(self, piece):
        del self.pieces[piece]

    def mallopt(self, what, value):
        if value <= self.takes:
            self.told.append((what, value))
        return int(value <= self.takes)

    def malloc_trim(self, pad):
        self.told.append("trim")


@pytest.fixture
def libc(monkeypatch):
    libc = Libc()
    monkeypatch.setattr(malloc, "_glibc", lambda: libc)
    monkeypatch.setattr(engine, "_AT_ONCE", 0)  # what is tried while it opens trims too
    return libc


async def test_raised_with_the_first_driver_and_restored_with_the_last(libc):
    one, two = TorchDriver("digits", name="one"), TorchDriver("digits", name="two")
    none = TorchDriver("digits", malloc="none")
    await none.open()
    assert libc.told == []
    await one.open()
    await two.open()
    raised = [(-3, 1 << 30), (-1, 1 << 30)]
    assert libc.told == raised
    assert (one.details["malloc"], none.details["malloc"]) == ("raised", "as it is")
    await one.close()
    assert libc.told == raised
    await two.close()
    await two.close()
    assert libc.told == [*raised, (-3, 1 << 17), (-1, 1 << 17), "trim"]
    await none.close()


async def test_a_driver_that_fails_to_open_restores_it(libc):
    driver = TorchDriver("/no/such.pt2")
    with pytest.raises(ConfigError):
        await driver.open()
    assert libc.told[-1] == "trim"
    assert libc.pieces == {}


async def test_the_thread_of_each_driver_keeps_some_bytes_of_its_heaps(libc):
    one, two = TorchDriver("digits", name="one"), TorchDriver("digits", name="two")
    await one.open()
    kept = len(libc.pieces)
    assert kept > 1
    assert set(libc.pieces.values()) == {4096}
    await two.open()
    assert len(libc.pieces) == 2 * kept
    assert len(libc.threads) == 2
    assert threading.main_thread() not in libc.threads
    await one.close()
    assert len(libc.pieces) == kept
    await two.close()
    assert libc.pieces == {}


FAULTS = """
import ctypes, resource, sys, threading
from asyncinfer_drivers._torch import malloc

def call(libc):
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    tensors = [libc.malloc(20 << 20) for _ in range(5)]
    for tensor in tensors:
        ctypes.memset(tensor, 1, 20 << 20)
    for tensor in tensors:
        libc.free(tensor)
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

def work():
    malloc.hold()
    kept = malloc.keep_heaps() if sys.argv[1] == "kept" else []
    print([call(malloc._glibc()) for _ in range(4)][-1])
    malloc.free(kept)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the faults of a thread")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.skipif(sys.maxsize < 2**32, reason="heaps are smaller there")
def test_a_thread_that_keeps_its_heaps_has_no_page_faults():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("kept", "not kept")
    }
    assert faults["kept"] < 100
    assert faults["not kept"] > 10 * faults["kept"]


def test_an_old_release_gets_what_it_takes(monkeypatch):
    libc = Libc(takes=32 << 20)
    monkeypatch.setattr(malloc, "_glibc", lambda: libc)
    libc.takes = 32 << 20
    assert not malloc.hold()  # the trim threshold was refused
    assert libc.told == [(-3, 32 << 20)]


def test_the_environment_and_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert malloc._glibc() is None
    assert not malloc.hold()
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1"))
    assert malloc._glibc() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_real_one():
    assert malloc.hold()
    malloc.release()
    assert ctypes.CDLL(None).mallopt(-1, 1 << 17)


# --- bare loops ---------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Loops that do no more than they must."""
    for name, value in (
        ("_EACH", 0.0),
        ("_SEARCH", 0.05),
        ("_TURNS", 1),
        ("BATCHES", (1, 4)),
        ("FORMS", ("none",)),
    ):
        monkeypatch.setattr(torch_loops, name, value)


def test_rates_of_digits(quick):
    rates = torch_loops.loop_rates("digits", count=20, seconds=0.01)
    assert rates["naive"] > 0
    assert rates["best"] > 0
    assert torch_loops.Settings(**rates["best_settings"])


@pytest.mark.parametrize("workers", [1, 2])
def test_both_loops_give_the_same(quick, workers):
    inputs = list(digits.inputs().items[:30])
    naive = torch_loops.naive_loop("digits", inputs, threads=1)
    best = torch_loops.best_loop("digits", inputs, torch_loops.Settings(8, "freeze", workers))
    assert naive.outputs == best.outputs == bare_labels(inputs)


def test_a_loop_that_fails_says_so():
    with pytest.raises(RuntimeError):
        torch_loops.best_loop(
            small_net_of_seed(), [torch.zeros(3)], torch_loops.Settings(1, "none", 2)
        )


def test_the_small_net_tells_inputs_apart():
    with torch.inference_mode():
        classes = small_net_of_seed()(torch.stack(images(16))).argmax(1)
    assert len(set(classes.tolist())) > 4


def small_net_of_seed():
    """With one intra-op thread: more get into each other's way on a busy machine."""
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(1, initializer=bind, initargs=(1,)) as thread:
        net = thread.submit(small_net).result()
    assert torch.equal(before, torch.random.get_rng_state())
    return net
