"""A module that sleeps for ever from one of its calls on, in a thread that nobody can end."""

import asyncio
import threading

import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.torch_host import TorchDriver

#: set when the module sleeps from now on, in whichever call: what tries forms calls it as well
SLEEP = threading.Event()
#: set when all threads may end
GATE = threading.Event()
#: how many calls with tasks go well
WELL = 30
#: tasks that come after the device is lost
MORE = 200


class Sleeps(nn.Module):
    """Doubles its input, and never returns once it sleeps."""

    def forward(self, x):
        if SLEEP.is_set():
            GATE.wait()
        return x * 2


@pytest.fixture
def gate():
    """The threads of this test; they end with it."""
    SLEEP.clear()
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

    def numbers():
        count, end = 0, None
        while end is None or count < end:
            yield torch.tensor([float(count)])
            count += 1
            if lost and end is None:
                end = count + MORE

    hung = TorchDriver(Sleeps(), name="hung", max_batch=max_batch, close_timeout=0.5)
    other = SimulatedDriver("other", 0.002, function=lambda x: x * 2)
    limits = Timeouts(close=1.0)
    drivers = [hung, other]
    async with (
        asyncio.timeout(100),
        Dispatcher(drivers, window=256, timeout=limits, on_event=hook) as dispatcher,
    ):
        done = 0
        async for output in dispatcher.stream(numbers()):
            assert output == 2 * done
            done += 1
            if not SLEEP.is_set() and dispatcher.stats().devices[0].batches >= WELL:
                SLEEP.set()
        assert lost
        assert dispatcher.ready
        assert dispatcher.stats().failed == 0
        await again.wait()
        gate.set()
    assert "no answer for" in str(lost[0].error)
