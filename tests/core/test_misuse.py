"""What a program may do wrong: it is told, or mended, and no stream waits for ever."""

from __future__ import annotations

import asyncio
import logging

import pytest
from fakes import Unusual

from asyncinfer import Dispatcher
from asyncinfer.errors import ClosedError, ConfigError
from asyncinfer.scheduling import Grant
from asyncinfer.testing import SimulatedDriver


class Answers:
    """A policy with one answer to everything."""

    reserves = True

    def __init__(self, answer):
        self.answer = answer

    def pull(self, device, pool):
        return self.answer


@pytest.mark.parametrize(
    "answer", [Grant("a", 1), Grant(0.5, 1), Grant(0, -1), Grant(None, None), (0, 1), "all", True]
)
def test_a_policy_that_answers_nonsense_is_replaced(virtual, caplog, answer):
    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)], policy=Answers(answer)) as d:
            return [y async for y in d.stream(range(5))]

    with caplog.at_level(logging.ERROR):
        assert virtual(run()) == list(range(5))
    assert "going on with plain pull" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, Unusual])
def test_a_policy_that_raises_is_replaced(virtual, caplog, error):
    class Raises(Answers):
        def pull(self, device, pool):
            raise self.answer

    async def run():
        async with Dispatcher([SimulatedDriver("a", 0.1)], policy=Raises(error)) as d:
            return [y async for y in d.stream(range(5))]

    with caplog.at_level(logging.ERROR):
        assert virtual(run()) == list(range(5))
    assert "going on with plain pull" in caplog.text


@pytest.mark.parametrize("policy", [5, object(), None, len])
def test_what_is_no_policy_is_refused(policy):
    with pytest.raises(ConfigError, match="is no policy"):
        Dispatcher([SimulatedDriver("a", 0.1)], policy=policy)


def test_a_dispatcher_is_entered_once_at_a_time(virtual):
    class Slow(SimulatedDriver):
        opened = 0

        async def open(self):
            self.opened += 1
            await asyncio.sleep(5.0)
            await super().open()

    async def run():
        driver = Slow("a", 0.1)
        d = Dispatcher([driver])
        first, second = await asyncio.gather(d.__aenter__(), d.__aenter__(), return_exceptions=True)
        assert first is d
        assert isinstance(second, ClosedError)
        assert driver.opened == 1
        assert await d.infer(3) == 3
        await d.__aexit__(None, None, None)

    virtual(run())
