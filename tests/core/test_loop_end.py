"""The end of the event loop: it waits for no call that never ends, left or not left."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress

import pytest
from fakes import Noting

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.testing import run_virtual


class Endless(Noting):
    """Its methods in ``where`` never end, whoever cancels them."""

    def __init__(self, *where):
        super().__init__("endless", 0.1)
        self.where = where

    async def opening(self):
        await self.hang("open")

    async def closing(self):
        await self.hang("close")

    async def work(self, batch):
        await self.hang("infer")
        return batch

    async def hang(self, where):
        while where in self.where:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1e9)


async def use(d, way):
    """Begin something that does not end."""
    if way == "call":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(d.infer(1), 1.0)
    elif way == "task":
        d.kept = asyncio.create_task(d.infer(1))
        await asyncio.sleep(1.0)
    else:
        d.kept = d.stream(range(9))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(d.kept), 1.0)


@pytest.mark.parametrize("way", ["call", "task", "stream"])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("where", [("infer",), ("infer", "close")])
def test_a_call_that_never_ends_does_not_hold_the_program(way, left, where, capsys):
    device = Endless(*where)
    timeouts = Timeouts(close=2.0, drain=1.0)

    async def main():
        d = Dispatcher([device], timeout=timeouts)
        await d.open()
        await use(d, way)
        if left:
            await d.__aexit__(None, None, None)
        return d

    d = run_virtual(main())
    assert "closed" in repr(d)
    assert device.closes == 1
    del d
    gc.collect()
    assert not capsys.readouterr().err, "nor is anything said of it at the end"


def test_what_was_not_left_is_closed_with_the_loop():
    device = Noting("a", 0.1)

    async def main():
        d = Dispatcher([device])
        await d.open()
        return d, [y async for y in d.stream(range(9))]

    d, got = run_virtual(main())
    assert got == list(range(9))
    assert (device.opens, device.closes, device.is_open) == (1, 1, False)
    assert "closed" in repr(d)


def test_an_opening_that_never_ends_does_not_hold_the_program():
    async def main():
        d = Dispatcher([Noting("a", 0.1), Endless("open")], timeout=Timeouts(close=2.0))
        await d.open()
        return await d.infer(1)

    assert run_virtual(main()) == 1


def test_tasks_that_are_all_cancelled_close_the_dispatcher(virtual):
    async def main():
        device = Noting("a", 0.1)
        async with Dispatcher([device]) as d:
            (guard,) = (t for t in asyncio.all_tasks() if t.get_name() == "asyncinfer guard")
            guard.cancel()
            await asyncio.sleep(1.0)
            assert "closed" in repr(d)
        assert device.closes == 1

    virtual(main())


def test_a_loop_that_is_closed_under_a_dispatcher_leaves_no_traceback(monkeypatch):
    unraisable = []
    monkeypatch.setattr("sys.unraisablehook", lambda args: unraisable.append(args.exc_value))
    loop = asyncio.new_event_loop()
    d = Dispatcher([Noting()])
    loop.run_until_complete(d.open())
    loop.close()  # without cancelling what runs there, as asyncio.run would
    del d, loop
    gc.collect()
    assert not unraisable
