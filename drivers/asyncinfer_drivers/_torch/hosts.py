"""Where an engine runs: in a thread of this process, or in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncinfer.errors import DeviceLost, DeviceTimeout
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers._torch.engine import Engine, claim
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.threads import CoreShare

__all__ = ("ThreadHost",)


class ThreadHost:
    """An engine in a thread of this process."""

    def __init__(self, options: TorchOptions) -> None:
        self._options = options
        self._name = options.called
        self._share: CoreShare | None = None
        self._engine: Engine | None = None
        self.worker = Worker(self._name, at_end=self._release)
        self.opened = False
        self.warmup: Any = None
        self.max_batch = 1
        self.details: dict[str, str | float] = {}

    @property
    def runner(self) -> Runner:
        """The engine's, while it is open."""
        if self._engine is None or self._engine.runner is None:
            raise DeviceLost(self._name, "not open")
        return self._engine.runner

    async def open(self) -> None:
        """See ``Host``."""
        self.worker.start()
        engine = await self.worker.run(self._load)
        self.warmup, self.max_batch = engine.warmup, engine.max_batch
        self.details = {**engine.details, "isolation": "thread"}
        self.opened = True

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """See ``Host``."""
        return await self.worker.run(self.runner.run, batch)

    async def probe(self) -> None:
        """See ``Host``."""
        await self.worker.run(self.runner.probe)

    async def reset(self) -> None:
        """Begin a new stream; ``DeviceLost`` if the model fails to."""
        engine = self._engine
        if engine is None or engine.runner is None:
            raise DeviceLost(self._name, "not open")
        await self.worker.run(engine.reset)

    async def close(self, timeout: float) -> None:
        """See ``Host``. A call that runs cannot be ended: its thread is left to end with it."""
        if not await self.worker.stop(timeout):
            text = f"still computing after {timeout:g} s; its thread is left"
            raise DeviceTimeout(self._name, text)

    def _load(self) -> Engine:
        self._share = claim(self._options)
        self._engine = Engine(
            self._options, self._share, pause=self.worker.pause, wanted=self.worker.wanted
        )
        self._engine.load()
        return self._engine

    def _release(self) -> None:
        """Freeing a large model takes milliseconds: not on the event loop."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.release()
        if self._share is not None:
            self._share.leave()
