"""How many requests are under way, and when one is made again: on the virtual clock."""

import asyncio
import math

import pytest

from asyncinfer.errors import AsyncInferError, DeviceError, DeviceLost
from asyncinfer.testing import run_virtual
from asyncinfer_drivers.open_inference.faults import Failure, Kind
from asyncinfer_drivers.open_inference.flow import Flow
from asyncinfer_drivers.open_inference.http_transport import _seconds
from asyncinfer_drivers.open_inference.session import Limits, Session
from asyncinfer_drivers.open_inference.tensors import Message


class Queue:
    """A server that computes ``at_once`` requests, lets ``room`` more wait, and refuses others."""

    def __init__(self, at_once=1, room=1, seconds=0.01, wait=0.0, kind=Kind.BUSY):
        self.at_once, self.room, self.seconds = asyncio.Semaphore(at_once), at_once + room, seconds
        self.wait, self.kind = wait, kind
        self.here = self.refused = self.most = self.asked = 0
        self.is_ready = True
        self.times = []

    async def infer(self, request, timeout):
        self.times.append(asyncio.get_running_loop().time())
        if self.here >= self.room:
            self.refused += 1
            raise Failure(self.kind, "Exceeds maximum queue size", self.wait)
        self.here += 1
        self.most = max(self.most, self.here)
        try:
            async with self.at_once:
                await asyncio.sleep(self.seconds)
        finally:
            self.here -= 1
        return request

    async def ready(self, timeout):
        self.asked += 1
        return self.is_ready

    async def close(self):
        pass


def with_session(use, make, **limits):
    """Runs ``use(session, transport)`` with a session that has no thread to wait for."""

    async def run():
        session = Session("pi", Limits(**limits))
        session._transport = transport = make()
        try:
            return await use(session, transport)
        finally:
            session._worker._stopping.set()
            session._worker._jobs.put(None)

    return run_virtual(run())


async def stream(session, tasks, concurrency):
    """Seconds for that many requests."""
    began, left = asyncio.get_running_loop().time(), iter(range(tasks))

    async def call():
        for task in left:
            assert await session.reply(Message(b"%d" % task)) == Message(b"%d" % task)

    await asyncio.gather(*(call() for _ in range(concurrency)))
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("kind", [Kind.BUSY, Kind.UNAVAILABLE])
@pytest.mark.parametrize(("at_once", "room"), [(1, 0), (1, 1), (1, 6), (4, 0), (4, 2), (12, 0)])
def test_a_full_queue_is_kept_busy_and_seldom_asked_in_vain(at_once, room, kind):
    async def use(session, queue):
        return await stream(session, 2000, 16), queue

    seconds, queue = with_session(use, lambda: Queue(at_once, room, kind=kind))
    assert queue.most == at_once + room
    assert seconds <= 1.1 * 2000 * 0.01 / at_once
    assert queue.refused <= 16 + 2000 / 20
    assert queue.asked <= queue.refused


def test_a_server_with_more_room_again_gets_more():
    async def use(session, queue):
        queue.room = 2
        await stream(session, 100, 16)
        queue.room = math.inf
        queue.at_once = asyncio.Semaphore(16)
        queue.most = 0
        seconds = await stream(session, 4000, 16)
        return seconds, queue.most

    seconds, most = with_session(use, lambda: Queue(2, 0))
    assert most == 16
    assert seconds < 2.5 * 4000 * 0.01 / 16


@pytest.mark.parametrize("wait", [0.5, 1.5, 7.0])
def test_a_server_that_says_when_is_left_alone_until_then(wait):
    async def use(session, queue):
        queue.room = 0
        call = asyncio.create_task(session.reply(Message(b"")))
        await asyncio.sleep(wait / 2)
        queue.room = 1
        await call
        return queue.times

    first, second = with_session(use, lambda: Queue(wait=wait))
    assert second - first >= wait


def test_others_go_on_while_one_waits_as_long_as_it_was_told():
    async def use(session, queue):
        return await stream(session, 1000, 8)

    assert with_session(use, lambda: Queue(2, 1, wait=1.0)) <= 1.1 * (1000 * 0.01 / 2 + 1)


@pytest.mark.parametrize(("wait", "ends"), [(0.0, 2.0), (1.5, 3.0), (61.0, 0.0)])
def test_patience_has_an_end(wait, ends):
    async def use(session, queue):
        queue.room = 0
        with pytest.raises(DeviceError, match="is overloaded: Exceeds maximum queue size"):
            await session.reply(Message(b""))
        return asyncio.get_running_loop().time()

    ended = with_session(use, lambda: Queue(wait=wait), queue_timeout=2.0)
    assert ends - 0.25 <= ended <= ends


def test_a_server_that_is_not_ready_is_lost_at_once():
    async def use(session, queue):
        queue.room, queue.is_ready = 0, False
        with pytest.raises(DeviceLost, match="is unavailable"):
            await asyncio.gather(*(session.reply(Message(b"")) for _ in range(8)))
        return queue.asked, asyncio.get_running_loop().time()

    asked, now = with_session(use, lambda: Queue(kind=Kind.UNAVAILABLE))
    assert (asked, now) == (1, 0.0)


def test_closing_ends_those_that_wait():
    async def use(session, queue):
        queue.room = 1
        calls = [asyncio.create_task(session.reply(Message(b""))) for _ in range(6)]
        await asyncio.sleep(0.005)
        session._closed = True
        session._closing.set()
        session._flow.close()
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = with_session(use, lambda: Queue(seconds=1.0, wait=30.0))
    assert sum(isinstance(one, DeviceLost) for one in ended) == 5


def test_cancelling_one_that_waits_leaves_the_others_their_turn():
    async def use(session, queue):
        calls = [asyncio.create_task(session.reply(Message(b""))) for _ in range(8)]
        await asyncio.sleep(0.001)
        for call in calls[2:5]:
            call.cancel()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert session._flow.running == 0
        return [type(one).__name__ for one in ended]

    kinds = with_session(use, lambda: Queue(1, 1))
    assert kinds == ["Message"] * 2 + ["CancelledError"] * 3 + ["Message"] * 3


class Mixing(Queue):
    """Fails at all that is there together with a bad request."""

    def __init__(self):
        super().__init__(at_once=8, room=0)
        self.bodies, self.failed = [], 0

    async def infer(self, request, timeout):
        self.bodies.append(request.body)
        await asyncio.sleep(0.01)
        bad = b"bad" in self.bodies
        await asyncio.sleep(0)
        self.bodies.remove(request.body)
        if bad:
            self.failed += 1
            raise Failure(Kind.FAILED, "for all")
        return request


def test_who_was_there_with_a_bad_one_is_asked_again_alone():
    async def use(session, server):
        bodies = [b"bad" if n % 7 == 3 else b"%d" % n for n in range(28)]
        replies = (session.reply(Message(body)) for body in bodies)
        first = await asyncio.gather(*replies, return_exceptions=True)
        assert [type(one) is AsyncInferError for one in first] == [b == b"bad" for b in bodies]
        failed = server.failed
        await asyncio.gather(session.reply(Message(b"1")), session.reply(Message(b"bad")),
                             return_exceptions=True)  # fmt: skip
        return server.failed - failed

    assert with_session(use, Mixing) == 2  # that one is known: it is not made alone again


def test_refused_ones_come_first():
    async def run():
        flow, order = Flow(), []
        await flow.enter()
        await flow.enter()
        flow.refused(0.0)

        async def waits(name, **how):
            await flow.enter(**how)
            order.append(name)
            flow.leave()

        tasks = [asyncio.create_task(waits(name)) for name in "ab"]
        await asyncio.sleep(0)
        flow.leave()
        tasks.append(asyncio.create_task(waits("again", again=True)))
        tasks.append(asyncio.create_task(waits("alone", again=True, alone=True)))
        await asyncio.sleep(0)
        flow.leave()
        await asyncio.gather(*tasks)
        return order

    assert run_virtual(run()) == ["alone", "again", "a", "b"]


@pytest.mark.parametrize(
    ("told", "seconds"),
    [("", 0), ("1", 1), ("120", 120), ("soon", 0), ("-3", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)
def test_what_retry_after_says(told, seconds):
    assert _seconds(told) == seconds


def test_a_date_to_come_is_waited_for():
    assert _seconds("Fri, 31 Dec 2999 23:59:59 GMT") > 1e9
