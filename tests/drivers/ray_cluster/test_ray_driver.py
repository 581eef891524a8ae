"""The Ray driver keeps every promise of a driver, on a cluster of real nodes."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from asyncinfer import Dispatcher
from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout, InputError
from asyncinfer.testing import check_driver
from asyncinfer_drivers.ray_cluster import RayDriver, ray_drivers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.usefixtures("cluster", "by_value"),
]


async def kill(driver):
    for pid in driver.pids:
        os.kill(pid, signal.SIGKILL)


def echo(x):
    return x


class Counting:
    """Takes its time, and says how often it was called and where."""

    def __init__(self):
        self.calls = 0

    def __call__(self, seconds):
        self.calls += 1
        time.sleep(seconds)
        return self.calls, os.getpid()


class OwnError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def refuse(x):
    if x == 3:
        raise OwnError(1, 2)
    return lambda: x


def test_it_conforms():
    """On one event loop: it opens an actor thirty times. The other tests run on each."""

    def driver(model=math.sqrt, **options):
        return RayDriver(model, max_batch=3, **options)

    async def check():
        return await check_driver(
            driver,
            [4.0, 9.0, 16.0, 25.0],
            expected=math.sqrt,
            bad_inputs=[-1.0, "four", threading.Lock()],
            cannot_open=lambda: driver("no_such_module:model"),
            unplug=kill,
        )

    report = asyncio.run(check())
    assert {*report.skipped.values()} == {"needs observed="}


async def test_a_stream_survives_the_death_of_actors():
    drivers = ray_drivers(2, echo, max_batch=4, shares=())  # so that none rests
    first = set[int]()
    async with Dispatcher(drivers, wait_for="all") as dispatcher:
        got = list[int]()
        async for x in dispatcher.stream(range(1500)):
            got.append(x)
            if len(got) == 200:
                first = {*drivers[0].pids}
                await kill(drivers[0])
        assert got == list(range(1500))
        async with asyncio.timeout(20):
            while {*drivers[0].pids} == first:  # noqa: ASYNC110  # until it has another actor
                await asyncio.sleep(0.02)
        assert [x async for x in dispatcher.stream(range(400))] == list(range(400))
        stats = {device.name: device for device in dispatcher.stats().devices}
        assert stats["ray-1"].errors >= 1
        assert stats["ray-2"].errors == 0


async def test_calls_of_a_group_go_to_the_least_busy_actor():
    driver = RayDriver(Counting, actors=2, num_cpus=0.5)
    assert driver.concurrency == 4
    await driver.open()
    try:
        assert len({*driver.pids}) == 2
        assert driver.shares == {THIS_HOST}  # whichever of the nodes they are on
        answers = await asyncio.gather(*(driver.infer([0.1]) for _ in range(4)))
        assert {pid for ((_, pid),) in answers} == {*driver.pids}
        assert {calls for ((calls, _),) in answers} == {1, 2}
    finally:
        await driver.close()


async def test_cancelling_withdraws_what_has_not_begun_and_outlasts_what_has():
    driver = RayDriver(Counting)
    await driver.open()
    try:
        await driver.infer([0.0])
        running = asyncio.create_task(driver.infer([2.0]))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(driver.infer([60.0]))
        await asyncio.sleep(0.1)
        for call in (running, waiting):
            call.cancel()
        await asyncio.wait([running, waiting], timeout=20)
        assert running.cancelled()
        assert waiting.cancelled()
        ((calls, _),) = await driver.infer([0.0])
        assert calls == 3  # the second one was the cancelled call that ran
    finally:
        await driver.close()


async def test_closing_ends_a_call_that_hangs():
    driver = RayDriver(Counting)
    await driver.open()
    call = asyncio.create_task(driver.infer([60.0]))
    await asyncio.sleep(0.1)
    await driver.close()
    with pytest.raises(DeviceLost, match="closed"):
        await asyncio.wait_for(call, 5)


async def test_large_arrays_come_back_as_views_and_tensors_as_their_own():
    array = np.random.default_rng(42).random((3, 256, 256), np.float32)
    driver = RayDriver(echo, max_batch=4)
    await driver.open()
    try:
        for output in await driver.infer([array, array + 1]):
            assert not output.flags.writeable  # it is in the object store
            assert np.array_equal(output, array + (output[0, 0, 0] > 1))
        (tensor,) = await driver.infer([torch.from_numpy(array)])
        tensor += 1
        assert np.array_equal(tensor.numpy(), array + 1)
    finally:
        await driver.close()


async def test_faults_of_tasks_and_outputs_that_cannot_travel():
    driver = RayDriver(refuse, max_batch=4)
    await driver.open()
    try:
        outputs = await driver.infer([1, 3, 2])
        assert outputs[0]() == 1
        assert isinstance(outputs[1], Exception)
        assert "1 2" in str(outputs[1])
        assert outputs[2]() == 2
        with pytest.raises(InputError, match="this lock cannot be sent to an actor"):
            await driver.infer([threading.Lock()])
        await driver.probe()
    finally:
        await driver.close()


@pytest.mark.parametrize(
    ("model", "options", "error", "text"),
    [
        (echo, {"address": "127.0.0.1:1"}, ConfigError, "one Ray cluster"),
        (threading.Lock().acquire, {}, ConfigError, "cannot be sent to an actor"),
        ("no_such:thing", {}, ConfigError, "cannot import 'no_such:thing'"),
        (echo, {"warmup_input": 1, "postprocess": "math:sin"}, None, ""),
        (math.sqrt, {"warmup_input": -1}, ConfigError, "the warm-up input failed"),
        (echo, {"num_cpus": 64, "open_timeout": 1}, DeviceTimeout, "num_cpus=64 asked for"),
        (echo, {"placement": "node:" + "e" * 56}, DeviceLost, "not alive|node"),
    ],
    ids=lambda value: None,
)
async def test_opening_says_what_is_wrong(model, options, error, text):
    driver = RayDriver(model, **options)
    if error is None:
        await driver.open()
        assert await driver.infer([0.0]) == [0.0]
        await driver.close()
        return
    with pytest.raises(error, match=text):
        await driver.open()
    await driver.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"actors": 0}, "actors must be a whole number of at least 1, not 0"),
        ({"max_batch": 0}, "max_batch must be"),
        ({"placement": "node:me"}, "placement='node:me': no id of a Ray node"),
        ({"placement": "somewhere"}, "placement must be 'SPREAD' or 'node:ID'"),
        ({"collate": list}, "collate needs preprocess"),
    ],
)
def test_mistakes_are_found_before_opening(options, text):
    with pytest.raises(ConfigError, match=text):
        RayDriver(echo, **options)
