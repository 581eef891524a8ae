"""Models without torch, for servers on a test's own event loop."""

import asyncio

import numpy as np

from asyncinfer.serve.served import Served
from asyncinfer.testing import SimulatedDriver


def simulated(name="m", *, seconds=0.0, shape=(2,), dtype=np.float32, function=None, **options):
    """A model that doubles its input, or computes ``function``."""
    double = function or (lambda x: x + x)
    driver = SimulatedDriver("sim", seconds, max_batch=8, function=double, **options)
    return Served(name, [driver], {}, np.zeros(shape, dtype), shape)


def slow_down(core, seconds=5.0):
    """From now on a row takes so long."""
    for driver in core.models["m"].drivers:
        driver.service_time = seconds


async def until(condition):
    """Wait until it holds; the test's own time limit is the limit."""
    while not condition():  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0.005)
