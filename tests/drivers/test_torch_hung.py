"""A module that sleeps for ever from one of its calls on, in a thread that nobody can end."""

import asyncio
import itertools
import threading

import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.torch_host import TorchDriver

CALLS = itertools.count()
#: set when all threads may end
GATE = threading.Event()
#: how many calls go well
WELL = 60


class Sleeps(nn.Module):
    """Doubles its input, and never returns from its n-th call on."""

    def forward(self, x):
        if next(CALLS) >= WELL:
            GATE.wait()
        return x * 2


@pytest.fixture
def gate():
    """The threads of this test; they end with it."""
    global CALLS
    CALLS = itertools.count()
    GATE.clear()
    before = set(threading.enumerate())
    yield GATE
    GATE.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10.0)


@pytest.mark.parametrize("max_batch", [1, 8])
async def test_a_call_that_never_returns_holds_up_nobody(gate, max_batch):
    """With default settings. Its device is lost, and opened again beside the thread."""
    lost, again = [], asyncio.Event()

    def hook(event):
        if event.kind == "device.lost":
            lost.append(event)
        elif event.kind == "device.opening" and lost:
            again.set()

    hung = TorchDriver(Sleeps(), name="hung", max_batch=max_batch, close_timeout=0.5)
    other = SimulatedDriver("other", 0.002, function=lambda x: x * 2)
    inputs = list(torch.arange(1500.0).reshape(-1, 1))
    limits = Timeouts(close=1.0)
    drivers = [hung, other]
    async with (
        asyncio.timeout(100),
        Dispatcher(drivers, window=256, timeout=limits, on_event=hook) as dispatcher,
    ):
        done = 0
        async for output in dispatcher.stream(inputs):
            assert output == 2 * done
            done += 1
        assert done == len(inputs)
        assert dispatcher.ready
        assert dispatcher.stats().failed == 0
        await again.wait()
        gate.set()
    assert "no answer for" in str(lost[0].error)
