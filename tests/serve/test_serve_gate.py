"""Who waits for room in the server, and when those behind get it."""

import asyncio

import pytest

from asyncinfer.serve.errors import TimedOut, Unavailable
from asyncinfer.serve.gate import Gate
from asyncinfer.serve.limits import Limits
from asyncinfer.testing import run_virtual


async def waiting(gate, count):
    task = asyncio.create_task(gate.room(count))
    await asyncio.sleep(0)
    return task


async def test_who_stops_waiting_lets_those_behind_pass():
    gate = Gate(Limits(max_total_bytes=100))
    await gate.room(40)
    large, small = await waiting(gate, 80), await waiting(gate, 50)
    assert not gate.fits(1)
    large.cancel()
    await asyncio.wait([large])
    await small
    assert gate.bytes == 90
    assert gate.fits(10)


async def test_room_that_was_given_too_late_is_given_back():
    gate = Gate(Limits(max_total_bytes=100))
    await gate.room(100)
    late, next_one = await waiting(gate, 60), await waiting(gate, 90)
    gate.give_back(100)
    assert gate.bytes == 60
    late.cancel()
    await asyncio.wait([late])
    await next_one
    assert gate.bytes == 90


async def received(gate):
    """How long it was waited for a client that sends nothing, and what ended it."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises((TimedOut, Unavailable)) as caught:
        async with gate.receiving():
            await asyncio.Event().wait()
    return loop.time() - began, caught.type


def test_half_a_request_has_a_moment_left_when_the_server_ends():
    async def program():
        gate = Gate(Limits(receive_timeout=60))
        gate.closed = None
        assert await received(gate) == (60, TimedOut)
        receiving = asyncio.create_task(received(gate))
        await asyncio.sleep(10)
        gate.close("ending")
        assert await receiving == (11, Unavailable)
        nearly = Gate(Limits(receive_timeout=60))
        receiving = asyncio.create_task(received(nearly))
        await asyncio.sleep(59.5)
        nearly.close("ending")
        assert (await receiving)[0] == 60, "and no longer than it had"

    run_virtual(program())
