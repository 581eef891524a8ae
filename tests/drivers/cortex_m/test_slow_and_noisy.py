"""Boards that compute for long, and lines that damage long frames, on the virtual clock."""

import asyncio
import random
from dataclasses import replace

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.peer import FirmwarePeer
from asyncinfer_drivers.cortex_m.specs import BoardSpec, TensorSpec

#: keyword spotting by a DS-CNN, as the builder lays it out
KEYWORDS = BoardSpec(
    "stm32f405",
    "asyncinfer 1",
    "dscnn",
    (TensorSpec("input", Datatype.INT8, (49, 10, 1), 1.0, 0),),
    (TensorSpec("output", Datatype.INT8, (12,), 1.0, 0),),
    frames_in_flight=4,
    max_samples=4,
    boot_counter=1,
    receive_buffer=1976,
    tick_hz=1_000_000,
)
#: seconds of one byte at 115,200 baud
BYTE = 10 / 115_200


class Noisy:
    """One direction of a line with a speed, which damages one byte in ``one_in``."""

    def __init__(self, end, one_in, seed):
        self._end, self._one_in = end, one_in
        self._random = random.Random(seed)
        self._free = 0.0

    def write(self, data):
        loop = asyncio.get_running_loop()
        self._free = max(self._free, loop.time()) + len(data) * BYTE
        arrived = bytes(map(self._damaged, data))
        loop.call_at(self._free, self._end.write, arrived)

    def _damaged(self, byte):
        hit = self._one_in and not self._random.randrange(self._one_in)
        return byte ^ 1 << self._random.randrange(8) if hit else byte

    def abort(self):
        self._end.abort()


def keyword_board(one_in, **options):
    seeds = iter(range(42, 1000))
    return FirmwarePeer(
        KEYWORDS,
        lambda sample: sample[:12],
        wrap=lambda end: Noisy(end, one_in, next(seeds)),
        **options,
    )


def windows(count):
    return [np.random.default_rng(n).integers(-128, 128, (49, 10, 1)) for n in range(count)]


def seconds_for(virtual, driver, peer, count, **options):
    """Of virtual time, for so many samples through a dispatcher, all right and in order."""

    async def go():
        device = driver(peer, raw=True, **options)
        async with Dispatcher([device], timeout=None, retries=100) as dispatcher:
            start = asyncio.get_running_loop().time()
            outputs = [output async for output in dispatcher.stream(windows(count))]
            took = asyncio.get_running_loop().time() - start
        peer.stop()
        pairs = zip(outputs, windows(count), strict=True)
        assert all((output == window.ravel()[:12]).all() for output, window in pairs)
        return took

    return virtual(go())


@pytest.mark.parametrize("one_in", [1_000, 3_000])
def test_a_noisy_line_gets_short_frames(virtual, driver, one_in):
    """As quick as one who knows that single samples are best there."""
    free = seconds_for(virtual, driver, keyword_board(one_in, sample_seconds=0.1), 200)
    single = seconds_for(virtual, driver, single_only(one_in), 200)
    assert free < 1.2 * single


def single_only(one_in):
    peer = keyword_board(one_in, sample_seconds=0.1)
    peer.spec = replace(peer.spec, max_samples=1)
    return peer


def test_a_good_line_keeps_long_frames(virtual, driver):
    async def go():
        peer = keyword_board(0, sample_seconds=0.01)
        device = driver(peer, raw=True)
        await device.open()
        await device.infer(windows(16))
        sent = peer.stats.frames_received
        await device.infer(windows(16))
        sent = peer.stats.frames_received - sent
        await device.close()
        return sent

    assert virtual(go()) == 4


def test_what_was_learned_outlives_a_lost_connection(virtual, driver):
    """The first request of a new link needs no trial."""
    peer = keyword_board(0, sample_seconds=0.01)

    async def go():
        device = driver(peer, raw=True)
        await device.open()
        await device.infer(windows(16))
        peer.unplug()
        await asyncio.sleep(0.1)
        before = peer.stats.frames_received
        await device.infer(windows(16))
        await device.close()
        return peer.stats.frames_received - before

    assert virtual(go()) == 1 + 4  # HELLO


@pytest.mark.parametrize("seconds", [7.5, 25.0, 50.0])
def test_a_slow_model_is_waited_for(virtual, driver, seconds):
    """By a dispatcher, in the time that the board needs and two calls to measure it."""
    peer = keyword_board(0, sample_seconds=seconds)
    took = seconds_for(virtual, driver, peer, 5)
    assert took < 6 * seconds
    assert peer.stats.inferences <= 6 + 2


@pytest.mark.parametrize("seconds", [7.5, 60.0])
def test_a_slow_model_alone(virtual, driver, seconds):
    """A driver used alone, with whole batches and nothing measured."""
    peer = keyword_board(0, sample_seconds=seconds)

    async def go():
        device = driver(peer, raw=True)
        await device.open()
        parts = await asyncio.gather(device.infer(windows(16)), device.infer(windows(16)))
        stats = await device.stats()
        await device.close()
        return parts, stats

    parts, stats = virtual(go())
    assert [len(part) for part in parts] == [16, 16]
    assert peer.stats.inferences == 32
    assert stats.link.resent == 0
