"""What one writes by hand to batch calls: a queue of inputs and futures, and a thread a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

__all__ = ("MicroBatcher",)


class MicroBatcher:
    """Each worker takes what is queued, up to ``most``, and has it answered in its thread."""

    def __init__(
        self, answer: Callable[[Sequence[Any]], Sequence[Any]], *, workers: int, most: int
    ) -> None:
        self._answer = answer
        self._most = most
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []
        #: calls of ``answer``, and the seconds they took
        self.batches, self.seconds = 0, 0.0

    async def __aenter__(self) -> MicroBatcher:
        self._queue: asyncio.Queue[tuple[Any, asyncio.Future[Any]]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(self._workers)
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self._threads.shutdown()

    async def infer(self, x: Any) -> Any:
        """One answer."""
        future = self._loop.create_future()
        self._queue.put_nowait((x, future))
        return await future

    async def _work(self) -> None:
        queue = self._queue
        while True:
            taken = [await queue.get()]
            while len(taken) < self._most and not queue.empty():
                taken.append(queue.get_nowait())
            began = time.perf_counter()
            inputs = [x for x, _ in taken]
            outputs = await self._loop.run_in_executor(self._threads, self._answer, inputs)
            self.seconds += time.perf_counter() - began
            self.batches += 1
            for (_, future), output in zip(taken, outputs, strict=True):
                if not future.done():
                    future.set_result(output)
