"""Opening, draining and closing a dispatcher: what still comes, what is cancelled, what is left."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest
from fakes import Doored, Noting, Wedged, now

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import ClosedError, ConfigError


async def later(seconds, call):
    await asyncio.sleep(seconds)
    await call()


def test_leaving_normally_finishes_what_was_accepted(virtual):
    async def run():
        async with Dispatcher([Noting("a", 1.0)]) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(5)]
            stream = d.stream(range(3))
            first = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.5)
        assert now() == 8
        assert await asyncio.gather(*calls) == list(range(5))
        assert await first == 0
        assert [y async for y in stream] == [1, 2]

    virtual(run())


def test_leaving_by_an_exception_cancels(virtual):
    async def run():
        calls = []

        async def body():
            async with Dispatcher([Noting("a", 1.0)]) as d:
                calls.append(asyncio.create_task(d.infer(1)))
                await asyncio.sleep(0.5)
                raise KeyError

        with pytest.raises(KeyError):
            await body()
        assert now() == 0.5
        with pytest.raises(ClosedError, match="closed before this was finished"):
            await calls[0]

    virtual(run())


def test_leaving_gives_up_draining_after_its_timeout(virtual, caplog):
    async def run():
        async with Dispatcher([Noting("a", 1e5)], timeout=Timeouts(drain=3.0)) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0)
        assert now() == 3
        with pytest.raises(ClosedError):
            await call

    virtual(run())
    assert "not drained within 3.0 s" in caplog.text


@pytest.mark.parametrize("is_async", [True, False])
def test_draining_reads_no_further_and_delivers_what_was_accepted(virtual, is_async):
    async def run():
        read = []

        def source():
            for x in range(10**6):
                read.append(x)
                yield x

        async def async_source():
            for x in source():
                yield x
                await asyncio.sleep(0)

        async with Dispatcher([Noting("a", 1.0)], window=4, queue_size=3) as d:
            stream = d.stream(async_source() if is_async else source())
            assert await anext(stream) == 0
            await d.drain()
            accepted = len(read)
            assert accepted <= 1 + 4 + 3
            assert now() == accepted
            got = [await anext(stream) for _ in range(accepted - 1)]
            assert got == list(range(1, accepted))
            with pytest.raises(ClosedError, match="before the source was read to its end"):
                await anext(stream)
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert len(read) == accepted

    virtual(run())


def test_draining_with_a_deadline_leaves_the_tasks_running(virtual):
    async def run():
        async with Dispatcher([Noting("a", 5.0)]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0)
            for _ in range(2):
                with pytest.raises(TimeoutError):
                    await d.drain(timeout=1.0)
            assert not call.done()
            await d.drain()
            assert (await call, now()) == (1, 5.0)

    virtual(run())


def test_draining_and_closing_any_number_of_times_at_once(virtual):
    async def run():
        a = Noting("a", 1.0)
        async with Dispatcher([a]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(0)
            await asyncio.gather(*(d.drain() for _ in range(5)))
            assert await call == 1
            await d.drain()
            await asyncio.gather(d.close(), d.close(), d.drain())
            await d.close()
        assert now() == 1.0
        assert not a.is_open

    virtual(run())


def test_closing_ends_a_drain_in_another_task(virtual):
    async def run():
        async with Dispatcher([Noting("a", 100.0)]) as d:
            call = asyncio.create_task(d.infer(1))
            await asyncio.sleep(1)
            drains = [asyncio.create_task(d.drain()) for _ in range(3)]
            await asyncio.sleep(1)
            await d.close()
            await asyncio.gather(*drains)
            with pytest.raises(ClosedError):
                await call
            assert now() == 2

    virtual(run())


def test_closing_wakes_everyone(virtual):
    """Consumers, callers on a device, callers in the queue and callers before the queue."""

    async def run():
        async with Dispatcher([Noting("a", 100.0)], window=1, queue_size=1) as d:

            async def consume():
                return [y async for y in d.stream(range(10))]

            waiting = [asyncio.create_task(d.infer(x)) for x in range(5)]
            waiting += [asyncio.create_task(consume()) for _ in range(2)]
            await asyncio.sleep(1)
            await d.close()
            done, pending = await asyncio.wait(waiting, timeout=0.001)
            assert not pending
            assert {type(task.exception()) for task in done} == {ClosedError}

    virtual(run())


def test_draining_lets_callers_before_the_queue_know(virtual):
    async def run():
        async with Dispatcher([Noting("a", 1.0)], window=1, queue_size=2) as d:
            calls = [asyncio.create_task(d.infer(x)) for x in range(8)]
            await asyncio.sleep(0.5)
            await d.drain()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            accepted = [end for end in ends if isinstance(end, int)]
            assert 3 <= len(accepted) <= 4
            assert all(isinstance(end, ClosedError) for end in ends[len(accepted) :])
            assert now() == len(accepted)

    virtual(run())


def test_nothing_is_accepted_before_and_after(virtual):
    async def run():
        d = Dispatcher([Noting("a", 1.0)])
        for when in ("not open", "closed"):
            for use in (d.infer(1), d.add(Noting("b", 1.0)), d.remove("a")):
                with pytest.raises(ClosedError, match=when):
                    await use
            for method in (d.stream, d.results):
                with pytest.raises(ClosedError, match=when):
                    method([1])
            await d.drain()
            await d.close()
            if when == "not open":
                with pytest.raises(ClosedError, match="never opened"):
                    d.stats()
                async with d:
                    await d.infer(1)
        assert d.stats().finished == 1

    virtual(run())


def test_a_stream_made_before_draining_and_read_after(virtual):
    async def run():
        async with Dispatcher([Noting("a", 1.0)]) as d:
            stream = d.stream(range(3))
            await d.drain()
            for _ in range(3):
                with pytest.raises(ClosedError):
                    await anext(stream)
            await stream.aclose()

    virtual(run())


def test_it_may_be_entered_again_but_once_at_a_time(virtual):
    async def run():
        a = Noting("a", 1.0)
        d = Dispatcher([a])
        for _ in range(3):
            async with d:
                with pytest.raises(ClosedError, match="open already"):
                    await d.__aenter__()
                assert [y async for y in d.stream(range(3))] == [0, 1, 2]
                assert d.stats().finished == 3
            assert not a.is_open
        assert a.closes == 3

    virtual(run())


@pytest.mark.parametrize("turns", [*range(8), None])
@pytest.mark.parametrize("how", ["close", "drain"])
def test_closing_while_it_opens_ends_the_opening(virtual, how, turns):
    async def run():
        hangs = [] if turns is not None else [1e6]
        quick, slow = Noting("quick", 1.0), Doored("slow", 1.0, hangs)
        d = Dispatcher([quick, slow], timeout=Timeouts(open=None))
        entering = asyncio.create_task(d.__aenter__())
        await asyncio.sleep(0)
        for _ in range(turns or 0):
            await asyncio.sleep(0)
        if turns is None:
            await asyncio.sleep(5.0)
        opened = entering.done()
        await getattr(d, how)()
        if opened:  # there was nothing to wait for, so it is open and may be closed
            await d.close()
        else:
            with pytest.raises(ClosedError, match="while"):
                await entering
        assert now() == (5.0 if turns is None else 0.0)
        assert (quick.is_open, slow.is_open) == (False, False)
        async with d:
            assert await d.infer(1) == 1

    virtual(run())


def test_closing_while_it_opens_does_not_wait_for_a_driver_that_does_not_hear(virtual):
    async def run():
        deaf = Wedged("deaf", "open")
        d = Dispatcher([deaf], timeout=Timeouts(open=None, close=2.0))
        entering = asyncio.create_task(d.__aenter__())
        await asyncio.sleep(1.0)
        await d.close()
        with pytest.raises(ClosedError):
            await entering
        assert now() <= 3.0
        await deaf.release()
        assert not deaf.is_open

    virtual(run())


def test_cancelling_the_body_closes_everything(virtual):
    async def run():
        a = Noting("a", 1.0)

        async def body():
            async with Dispatcher([a]) as d:
                async for _ in d.stream(iter(int, 1)):
                    pass

        task = asyncio.create_task(body())
        await asyncio.sleep(3.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (a.is_open, now()) == (False, 3.5)

    virtual(run())


@pytest.mark.parametrize("close", [True, False])
def test_closing_from_another_task_while_streams_run(virtual, close):
    async def run():
        async with Dispatcher([Noting("a", 0.1), Noting("b", 0.17)], window=10) as d:
            ending = asyncio.create_task(later(3.0, d.close if close else d.drain))
            seen = 0

            async def consume():
                nonlocal seen
                async for _ in d.stream(iter(int, 1)):
                    seen += 1

            with pytest.raises(ClosedError):
                await consume()
            await ending
            assert seen > 40

    virtual(run())


async def test_nothing_is_left_on_real_loops():
    """Tasks are watched by a fixture; threads, drivers and inputs here."""

    class Input:
        pass

    inputs = [Input() for _ in range(50)]
    alive = [weakref.ref(x) for x in inputs]
    threads = threading.active_count()
    drivers = [Noting("a", 0.0, function=id), Noting("b", 0.001, function=id)]
    async with Dispatcher(drivers) as d:
        await d.infer(inputs[0])
        async for _ in d.stream(iter(inputs)):
            break
        inputs.clear()
    for driver in drivers:
        driver.forget()
    assert [driver.closes for driver in drivers] == [1, 1]
    assert threading.active_count() == threads
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(x() for x in alive)


async def test_a_dispatcher_may_live_in_several_loops_in_turn():
    d = Dispatcher([Noting("a", 0.0)])
    async with d:
        assert await d.infer(1) == 1
    loop = asyncio.get_running_loop()

    def elsewhere():
        async def use():
            async with d:
                return await d.infer(2)

        return asyncio.run(use())

    assert await loop.run_in_executor(None, elsewhere) == 2


def test_making_one_needs_no_loop_and_starts_nothing():
    d = Dispatcher([Noting("a", 1.0)])
    with pytest.raises(ConfigError):
        Dispatcher([Noting("a", 1.0), Noting("a", 1.0)])
    del d
