"""Tasks that run a driver's code: the end of the event loop must not wait for them."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ("quiet", "set_apart")


def set_apart(task: asyncio.Task[Any]) -> None:
    """Have ``asyncio.run`` neither cancel ``task`` at its end nor wait for it.

    It waits without a limit, and a driver's call may never end, whoever cancels it. The engine ends
    such tasks, within its close timeout. ``asyncio.all_tasks`` has them no more.
    """
    asyncio.tasks._unregister_task(task)  # documented, under "Extending"


def quiet(task: asyncio.Task[Any]) -> None:
    """Have it be no news that ``task`` is still there when its event loop is not."""
    setattr(task, "_log_destroy_pending", False)  # noqa: B010  # as asyncio does in places
