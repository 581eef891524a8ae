"""What a torch driver finds between its calls is known though no call follows."""

import asyncio

import pytest
import torch
from torch import nn

from asyncinfer_drivers.torch_host import TorchDriver


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_batches_that_are_found_at_rest_are_told_without_another_call(isolation):
    """A device that rests beside others gets no call, and would stay what it was at the first."""
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU()).eval()
    driver = TorchDriver(net, isolation=isolation, optimize="none")
    await driver.open()
    try:
        await driver.infer([torch.zeros(64)])
        async with asyncio.timeout(30):
            while driver.max_batch == 1:  # noqa: ASYNC110  # nothing tells of it
                await asyncio.sleep(0.05)
        assert driver.details["max_batch"] == driver.max_batch
    finally:
        await driver.close()
    assert driver.max_batch > 1
