"""Tests on the virtual clock, which fail on whatever they leave behind."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from asyncinfer.testing import run_virtual

sys.path.insert(0, str(Path(__file__).parent))  # for fakes and inside

#: virtual seconds after which a test is taken to hang
FOREVER = 1e6

Virtual = Callable[..., Any]


@pytest.fixture(scope="session")
def virtual() -> Virtual:
    """Run a coroutine on the virtual clock and return its result.

    Fails if it hangs, if a callback or an asyncio task fails unseen, and if a task or a timer is
    left at the end.
    """
    return run_checked


def run_checked(coro: Coroutine[Any, Any, Any]) -> Any:
    unseen: list[str] = []

    async def checked() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, what: unseen.append(_shown(what)))
        async with asyncio.timeout(FOREVER):
            result = await coro
        await asyncio.sleep(0)  # lets a cancelled task end
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []
        return result

    result = run_virtual(checked())
    if unseen:
        pytest.fail(f"went wrong unseen: {unseen}", pytrace=False)
    return result


def _shown(what: dict[str, Any]) -> str:
    error = what.get("exception")
    at = error.__traceback__ if error else None
    while at and at.tb_next:
        at = at.tb_next
    where = f" in {at.tb_frame.f_code.co_qualname} line {at.tb_lineno}" if at else ""
    return f"{what.get('message')}: {error!r}{where}"
