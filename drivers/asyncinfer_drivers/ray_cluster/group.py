"""The actors of one driver, from its ``open`` to its ``close``: one generation of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import ray
import ray.cloudpickle
from ray.exceptions import RayError, RayTaskError, TaskCancelledError

from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout, InputError
from asyncinfer_drivers._shared.sharing import host_at
from asyncinfer_drivers._shared.worker import Worker, outlast
from asyncinfer_drivers.ray_cluster.actor import Answer, Loaded, ModelActor, own_address
from asyncinfer_drivers.ray_cluster.host import Order
from asyncinfer_drivers.ray_cluster.parcel import Parcel, pack, small, unpack
from asyncinfer_drivers.ray_cluster.session import join

__all__ = ("Group", "Plan")


class Plan(NamedTuple):
    """Which actors to start, and where."""

    address: str | None
    actors: int
    #: of ``ray.remote``: ``num_cpus``, ``resources`` and so on
    options: Mapping[str, Any]
    #: seconds to wait for them
    open_timeout: float


class Group:
    """Actors that run one model, all or none: the death of one ends the group.

    What blocks is done in a thread: joining the cluster, starting and killing actors, copying
    large inputs and outputs. Each call waits for its own answer, so that none can be taken for
    another's, and ``close`` ends them all, whether the cluster still answers or not.
    """

    def __init__(self, order: Order, plan: Plan) -> None:
        self._name, self._order, self._plan = order.name, order, plan
        self._worker = Worker(self._name, at_end=self._end)
        self._leave: Callable[[], None] | None = None
        self._actors: list[Any] = []
        self._calls: Counter[int] = Counter()
        self._waiting = set[asyncio.Future[Answer | BaseException]]()
        self.opened = False
        #: what each actor said once its model was ready
        self.loaded: list[Loaded] = []
        self.warmup: Any = None
        self.max_batch = 1
        self.details: dict[str, str | float] = {}
        #: names of the hosts they are on, as a driver shares them
        self.hosts: frozenset[str] = frozenset()

    async def open(self) -> None:
        """Start the actors and load the model in each; see ``RayDriver.open``."""
        self._worker.start()
        refs = await self._worker.run(self._start)
        try:
            async with asyncio.timeout(self._plan.open_timeout):
                self.loaded = [await self._answer(ref, outlive=False) for ref in refs]
        except TimeoutError:
            text = await self._worker.run(_wanting, self._plan)
            raise DeviceTimeout(
                self._name, f"no actor was ready after {self._plan.open_timeout:g} s: {text}"
            ) from None
        first = self.loaded[0]
        self.warmup, self.details = first.warmup, {**first.details, "node": first.node}
        self.max_batch = min(loaded.max_batch for loaded in self.loaded)
        own = await self._worker.run(own_address)
        addresses = {loaded.address for loaded in self.loaded}
        self.hosts = frozenset(THIS_HOST if at == own else host_at(at) for at in addresses)
        self.opened = True

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """Run the batch in the least busy actor."""
        number = min(range(len(self._actors)), key=self._calls.__getitem__)
        self._calls[number] += 1
        try:
            ref = await self._submitted(self._actors[number], batch)
            parcel: Parcel = await self._answer(ref)
            del ref  # and with it the cluster's copy
            if small(parcel):
                return unpack(parcel)
            return await self._worker.run(unpack, parcel)
        finally:
            self._calls[number] -= 1

    async def probe(self) -> None:
        """Ask every actor to compute; ``DeviceLost`` for the first that does not."""
        for ref in [actor.probe.remote() for actor in self._actors]:
            await self._answer(ref)

    async def close(self, timeout: float) -> None:
        """End every call, kill the actors, leave the cluster."""
        self.opened = False
        lost = DeviceLost(self._name, "closed")
        for future in self._waiting:
            if not future.done():
                future.set_result(lost)
        if not await self._worker.stop(timeout):
            text = f"Ray has not answered for {timeout:g} s; its thread is left"
            raise DeviceTimeout(self._name, text)

    # ---- one call

    async def _submitted(self, actor: Any, batch: Sequence[Any]) -> Any:
        """The call's reference. Large inputs are copied into the object store, by the thread."""
        if small(batch):
            return self._submit(actor, batch)
        return await self._worker.run(self._submit, actor, batch)

    def _submit(self, actor: Any, batch: Sequence[Any]) -> Any:
        try:
            return actor.run.remote(pack(batch))
        except Exception as error:
            if isinstance(error, RayError) or not ray.is_initialized():
                raise self._lost(error) from error
            raise _unsendable(batch, error) from error

    async def _answer(self, ref: Any, *, outlive: bool = True) -> Any:
        """Wait for what an actor's method answers; raise its error, or ``DeviceLost``.

        Cancelled, it withdraws the call. One that runs cannot be interrupted and is waited for, if
        it may ``outlive`` the caller: so long the actor is busy.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer | BaseException] = loop.create_future()
        self._waiting.add(future)
        ref.future().add_done_callback(partial(_post, loop, future))
        try:
            await asyncio.wait((future,))
            outcome = future.result()
        except asyncio.CancelledError:
            ray.cancel(ref)
            if outlive:
                await outlast(future)
            raise
        finally:
            self._waiting.discard(future)
        if isinstance(outcome, Answer) and outcome.error is None:
            return outcome.value
        error = outcome if isinstance(outcome, BaseException) else outcome.error
        assert error is not None  # noqa: S101  # see above
        raise self._lost(error) if _is_rays(error) else error

    def _lost(self, error: BaseException) -> DeviceLost:
        lost = DeviceLost(self._name, _reason(error))
        lost.__cause__ = error
        return lost

    # ---- in the thread

    def _start(self) -> list[Any]:
        self._leave = join(self._name, self._plan.address)
        order = ray.put(_pickled(self._order))
        plan = self._plan
        kind: Any = ray.remote(ModelActor)
        for _ in range(plan.actors):
            try:
                actor = kind.options(max_restarts=0, **plan.options).remote()
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{self._name}: Ray refuses the actor: {error}") from error
            self._actors.append(actor)
        return [actor.load.remote(order) for actor in self._actors]

    def _end(self) -> None:
        if self._leave is None:
            return
        for actor in self._actors:
            with suppress(Exception):  # it is dead already, or the cluster is
                ray.kill(actor)
        self._actors.clear()
        self._leave()


def _post(loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], answered: Any) -> None:
    """In Ray's thread: tell the loop."""
    outcome = answered.exception() or answered.result()
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_settle, future, outcome)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if not future.done():
        future.set_result(outcome)


def _reason(error: BaseException) -> str:
    """In one line: Ray's first line says what, the sentences of its last one say why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first, *_, last = lines or [type(error).__name__] * 2 if len(lines) != 1 else lines * 2
    why = last.partition(" Some common causes")[0]
    return first if why == first else f"{first} {why}"


def _is_rays(error: BaseException) -> bool:
    """Whether it is the cluster's fault. ``RayTaskError`` is an error in a task's answer."""
    if isinstance(error, TaskCancelledError):
        return True
    return isinstance(error, RayError) and not isinstance(error, RayTaskError)


def _pickled(order: Order) -> bytes:
    dumps: Any = ray.cloudpickle.dumps  # pyright: ignore[reportPrivateImportUsage]
    try:
        return bytes(dumps(order))
    except Exception as error:
        raise ConfigError(
            f"{order.name}: the model, a step or the warm-up input cannot be sent to an actor: "
            f"{error}; give 'module:function', a file or a name"
        ) from error


def _unsendable(batch: Sequence[Any], error: Exception) -> Exception:
    """Alone it is the input's fault; in a batch, the dispatcher finds out whose."""
    if len(batch) > 1:
        return error
    kind = type(batch[0]).__name__
    return InputError(f"this {kind} cannot be sent to an actor: {str(error).splitlines()[0]}")


def _wanting(plan: Plan) -> str:
    """What the actors ask for, and what the cluster has to give."""
    keys = ("num_cpus", "num_gpus", "resources")
    asked = ", ".join(f"{key}={plan.options[key]}" for key in keys if plan.options.get(key))
    resources: Any = ray.available_resources  # it has no types
    free: dict[str, float] = resources()
    have = ", ".join(f"{key} {free[key]:g}" for key in sorted(free) if key in ("CPU", "GPU"))
    return (
        f"{plan.actors} x {asked or 'no resources'} asked for, free in the cluster: "
        f"{have or 'nothing'}; ask for less, add nodes, or raise open_timeout"
    )
