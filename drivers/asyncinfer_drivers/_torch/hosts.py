"""Where an engine runs: in a thread of this process, or in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncinfer.errors import DeviceLost, DeviceTimeout
from asyncinfer_drivers._shared.between import Between
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers._torch.engine import Engine, EngineChores, claim
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers._torch.threads import CoreShare

__all__ = ("ThreadHost", "TunedHost")


class ThreadHost:
    """An engine in a thread of this process."""

    def __init__(self, options: TorchOptions) -> None:
        self._options = options
        self._name = options.called
        self._share: CoreShare | None = None
        self._engine: Engine | None = None
        self.worker = Worker(
            self._name, at_end=self._release, between=Between(EngineChores(lambda: self._engine))
        )
        self.opened = False
        self.warmup: Any = None

    @property
    def engine(self) -> Engine:
        """What runs the model, while it is open."""
        if self._engine is None or self._engine.runner is None:
            raise DeviceLost(self._name, "not open")
        return self._engine

    @property
    def runner(self) -> Runner:
        """The engine's, while it is open."""
        runner = self.engine.runner
        assert runner is not None  # noqa: S101  # it was asked for
        return runner

    @property
    def max_batch(self) -> int:
        """See ``Host``."""
        return 1 if self._engine is None else self._engine.max_batch

    @property
    def details(self) -> dict[str, str | float]:
        """See ``Host``."""
        return {**(self._engine.details if self._engine else {}), "isolation": "thread"}

    async def open(self) -> None:
        """See ``Host``."""
        self.worker.start()
        engine = await self.worker.run(self._load)
        self.warmup = engine.warmup
        self.opened = True

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """See ``Host``."""
        real = not batch or batch[0] is not self.warmup
        return await self.worker.run(self.engine.run, batch, real=real)

    async def tune(self) -> None:
        """See ``TorchDriver.tune``."""
        await self.worker.run(self.engine.tune)

    async def probe(self) -> None:
        """See ``Host``."""
        await self.worker.run(self.runner.probe)

    async def reset(self) -> None:
        """Begin a new stream; ``DeviceLost`` if the model fails to."""
        await self.worker.run(self.engine.reset)

    async def close(self, timeout: float) -> None:
        """See ``Host``. A call that runs cannot be ended: its thread is left to end with it."""
        if not await self.worker.stop(timeout):
            text = f"still computing after {timeout:g} s; its thread is left"
            raise DeviceTimeout(self._name, text)

    # ---- in the thread

    def _load(self) -> Engine:
        self._share = claim(self._options)
        self._engine = Engine(
            self._options,
            self._share,
            pause=self.worker.pause,
            wanted=self.worker.wanted,
            going=self.worker.going,
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


class TunedHost(ThreadHost):
    """One that is open when all that a warm-up input shows is found.

    For an actor, which tells its driver only once how large batches are.
    """

    async def open(self) -> None:
        """See ``Host``."""
        await super().open()
        await self.tune()
