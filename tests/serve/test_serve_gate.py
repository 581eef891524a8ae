"""Who waits for room in the server, and when those behind get it."""

import asyncio

from asyncinfer.serve.gate import Gate
from asyncinfer.serve.limits import Limits


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
