"""Which torch device is taken, and how the host's cores are shared."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch import threads as module
from asyncinfer_drivers._torch.device import (
    available,
    choose,
    describe,
    is_device_fault,
    synchronize,
)
from asyncinfer_drivers._torch.threads import CoreShare, bind, quota, usable_cores
from asyncinfer_drivers.torch_host import TorchDriver


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "chosen"),
    [
        ("cpu", 2, True, "cpu"),
        ("auto", 0, False, "cpu"),
        ("auto", 0, True, "mps"),
        ("auto", 2, True, "cuda:0"),
        ("cuda", 1, False, "cuda:0"),
        ("cuda:1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
    ],
)
def test_choice(wanted, cuda, mps, chosen):
    assert choose(wanted, cuda, mps) == chosen


@pytest.mark.parametrize(
    ("wanted", "cuda", "mps", "message"),
    [
        ("cuda", 0, False, "'cuda' is not available; here: cpu$"),
        ("cuda:2", 2, False, "'cuda:2' is not available; here: cuda:0, cuda:1, cpu$"),
        ("mps", 1, False, "'mps' is not available; here: cuda:0, cpu$"),
        ("tpu", 1, True, "unknown torch device 'tpu'; known: cpu, cuda, cuda:N, mps, auto$"),
        ("", 1, True, "unknown torch device ''"),
        (0, 1, True, "unknown torch device 0"),
    ],
)
def test_no_choice(wanted, cuda, mps, message):
    with pytest.raises(ConfigError, match=message):
        choose(wanted, cuda, mps)


def test_this_host_is_described_as_it_can_be_chosen():
    found = TorchDriver.discover()
    assert [device["name"] for device in found][-1] == "cpu"
    assert all(choose(device["name"], *available()) == device["name"] for device in found)
    assert str(usable_cores()) in found[-1]["description"]


def test_every_kind_of_device_is_described(monkeypatch):
    card = SimpleNamespace(name="a card", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    assert [tuple(device.values()) for device in describe(2, True, 1)] == [
        ("cuda:0", "a card, 8 GiB"),
        ("cuda:1", "a card, 8 GiB"),
        ("mps", "Apple GPU"),
        ("cpu", "torch may use 1 core"),
    ]


def test_what_is_available_can_be_chosen():
    assert choose("auto", *available())


def test_synchronizes_accelerators_only(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronize(torch.device(name))
    assert calls == ["cuda:1", "mps"]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (torch.cuda.OutOfMemoryError("x"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 B"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error: only said so"), False),
    ],
)
def test_device_faults(error, fault):
    assert is_device_fault(error) is fault


def test_full_memory_is_a_device_fault():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_device_fault(caught.value)


# --- cores --------------------------------------------------------------------------------------


@pytest.fixture
def shares():
    joined = []

    def make(fixed, cores=8):
        share = CoreShare(fixed, cores)
        share.join()
        joined.append(share)
        return share

    yield make
    for share in joined:
        share.leave()


def test_cores_are_divided_among_who_is_there(shares):
    first = shares(None)
    assert first.threads == 8
    second, third = shares(None), shares(None)
    assert [share.threads for share in (first, second, third)] == [2, 2, 2]
    fixed = shares(3)
    assert fixed.threads == 3
    assert first.threads == 1
    fixed.leave()
    second.leave()
    second.leave()
    assert first.threads == 4


def test_everyone_gets_a_core(shares):
    crowd = [shares(None, cores=2) for _ in range(5)]
    assert [share.threads for share in crowd] == [1] * 5
    assert shares(16, cores=2).threads == 16
    assert crowd[0].threads == 1


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("250000 100000\n", 2), ("50000 100000", 1), ("", None), ("a b", None)],
)
def test_a_containers_quota(tmp_path, text, cores):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert quota(file) == cores
    assert quota(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("default", "affinity", "granted", "usable"),
    [(6, 4, None, 3), (6, 4, 3, 2), (2, 8, None, 1), (1, 8, None, 1), (8, 8, 1, 1)],
)
def test_usable_cores_leave_one_to_the_loop(monkeypatch, default, affinity, granted, usable):
    monkeypatch.setattr(torch, "get_num_threads", lambda: default)
    monkeypatch.setattr(module, "quota", lambda file: granted)
    cores = set(range(affinity))
    monkeypatch.setattr(module, "os", SimpleNamespace(sched_getaffinity=lambda pid: cores))
    assert usable_cores() == usable


def test_usable_cores_where_affinity_is_unknown(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(module, "os", SimpleNamespace())
    monkeypatch.setattr(module, "quota", lambda file: None)
    assert usable_cores() == 7


class Threads(nn.Module):
    """Returns the number of intra-op threads its calls see."""

    def __init__(self):
        super().__init__()
        self.eval()

    def forward(self, x):
        torch.exp(torch.zeros(100_000))  # a parallel region, as a model has
        return torch.full((len(x),), torch.get_num_threads())


async def seen(driver) -> int:
    (count,) = await driver.infer([0.0])
    return int(count)


def in_new_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_binds_itself_only():
    ours, default = torch.get_num_threads(), in_new_thread(torch.get_num_threads)
    steps = [threading.Barrier(2) for _ in range(2)]
    counts = {}

    def thread(count):
        bind(count)
        steps[0].wait(10)
        torch.exp(torch.zeros(100_000))
        counts[count] = [torch.get_num_threads()]
        steps[1].wait(10)
        bind(count + 2)
        counts[count].append(torch.get_num_threads())

    pair = [threading.Thread(target=thread, args=(count,)) for count in (1, 2)]
    for each in pair:
        each.start()
    for each in pair:
        each.join()
    assert counts == {1: [1, 3], 2: [2, 4]}
    assert torch.get_num_threads() == ours
    assert in_new_thread(torch.get_num_threads) == default


async def test_two_drivers_with_threads_of_their_own(monkeypatch):
    monkeypatch.setattr("asyncinfer_drivers._torch.engine.usable_cores", lambda: 4)
    ours, net = torch.get_num_threads(), Threads()
    one, three, rest = (TorchDriver(net, threads=n, optimize="none") for n in (1, 3, None))
    drivers = [one, three, rest]
    await asyncio.gather(*(driver.open() for driver in drivers))
    for _ in range(3):
        assert await asyncio.gather(*map(seen, drivers)) == [1, 3, 1]
    await three.close()
    assert await seen(rest) == 3
    await one.close()
    assert await seen(rest) == 4
    assert torch.get_num_threads() == ours
    await rest.close()


async def test_an_accelerator_takes_no_cores(monkeypatch):
    driver = TorchDriver(Threads())
    monkeypatch.setattr("asyncinfer_drivers._torch.engine.choose", lambda *args: "meta")
    await driver.open()
    assert not CoreShare._open
    await driver.close()
