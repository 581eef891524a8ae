"""``RayDriver``: a device that is an actor, or a group of them, on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from asyncinfer.driver import Driver, ServiceTime
from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._shared.timing import measured
from asyncinfer_drivers.ray_cluster.group import Group, Plan
from asyncinfer_drivers.ray_cluster.host import Order
from asyncinfer_drivers.ray_cluster.nodes import found
from asyncinfer_drivers.ray_cluster.session import is_here

__all__ = ("RayDriver",)


class RayDriver(Driver[Any, Any]):
    """Runs a model in actors on a Ray cluster.

    ``model`` is one of

    - what ``TorchDriver`` takes: an ``nn.Module``, a built-in model or its name, a TorchScript or
      ``.pt2`` file (its path on the nodes), a function without arguments that returns a module. It
      runs in the actor just as ``TorchDriver`` would run it there, and ``preprocess``,
      ``postprocess``, ``collate``, ``uncollate``, ``warmup_input``, ``optimize``,
      ``optimize_seconds``, ``malloc``, ``max_batch`` and ``device`` mean the same. ``threads`` is
      by default ``num_cpus``, at least 1;
    - any function of one input, or a class or a function without arguments that makes one: then
      the actor needs no torch, and only the steps and ``warmup_input`` apply;
    - ``"module:name"`` of either, imported on the node.

    It is pickled by Ray and made ready by ``open``, as are the steps. The nodes need this package
    and what the model imports, of the same versions; ``runtime_env`` is Ray's way to bring them.

    ``address`` is that of the cluster's head, ``"host:port"``. Without one, it is the program's own
    connection if it has called ``ray.init``, that of ``RAY_ADDRESS``, a cluster that ``ray start``
    has started on this host, or a local one: started by the first driver that opens, stopped by the
    last that closes. ``"local"`` always means the latter.

    ``actors`` of them are one device, which runs one call in each and by default has another on
    its way to each: ``concurrency`` is ``2 * actors``. If one dies, the device is lost: prefer
    ``ray_drivers``, which makes a device of every actor. ``num_cpus``, ``num_gpus`` and
    ``resources`` are what each actor claims. ``placement`` is ``"SPREAD"``, ``"node:ID"`` with
    Ray's id of a node, or a scheduling strategy of ``ray.util``.

    A dead actor and a lost node are ``DeviceLost``: the tasks move to other devices, and ``open``
    starts new actors. Cancelling ``infer`` withdraws a call that has not begun; one that runs
    cannot be interrupted and is waited for. ``open`` waits ``open_timeout`` seconds for the actors,
    whose resources an autoscaler may have to bring first; ``close`` waits ``close_timeout`` seconds
    for Ray, and for no call.

    Inputs and outputs beyond 64 KiB go through Ray's object store, written and read outside the
    event loop. Arrays arrive at the model, and come back, as views of shared memory that must not
    be written to; tensors have memory of their own. Ray pickles what it transports, and runs what
    it is sent: see the docs on who may reach a cluster.

    ``details`` tells what was chosen in the first actor, and ``node``, Ray's id of its node;
    ``pids`` are the actors' process ids, each on its own node. Empty until it was opened once.
    """

    #: ``asyncinfer.config`` passes the model's name: it is loaded where it runs
    model_from: ClassVar[str] = "name"

    def __init__(
        self,
        model: Any,
        *,
        name: str = "ray",
        address: str | None = None,
        actors: int = 1,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        placement: Any = None,
        runtime_env: Mapping[str, Any] | None = None,
        max_batch: int | Literal["auto"] = 1,
        concurrency: int | None = None,
        device: str | None = None,
        threads: int | None = None,
        preprocess: Callable[[Any], Any] | str | None = None,
        postprocess: Callable[[Any], Any] | str | None = None,
        collate: Callable[[Sequence[Any]], Any] | str | None = None,
        uncollate: Callable[[Any], Sequence[Any]] | str | None = None,
        warmup_input: Any = None,
        optimize: str | Sequence[str] = "auto",
        optimize_seconds: float = 3.0,
        malloc: Literal["auto", "none"] = "auto",
        open_timeout: float = 60.0,
        close_timeout: float = 10.0,
    ) -> None:
        if concurrency is None:
            concurrency = 2 * actors
        for option, value in (("actors", actors), ("concurrency", concurrency)):
            _at_least_one(option, value)
        if max_batch != "auto":
            _at_least_one("max_batch", max_batch)
        self.name = name
        #: tasks a call takes; with ``"auto"`` known once it is open
        self.max_batch = 1 if max_batch == "auto" else max_batch
        self.concurrency = concurrency
        options: dict[str, Any] = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        given = {"resources": resources, "runtime_env": runtime_env}
        options |= {key: dict(value) for key, value in given.items() if value}
        if placement is not None:
            options["scheduling_strategy"] = _strategy(name, placement)
        self._plan = Plan(address, actors, options)
        self._order = Order(
            name=name,
            model=model,
            steps=Steps.given(preprocess, postprocess, collate, uncollate),
            max_batch=None if max_batch == "auto" else max_batch,
            warmup_input=warmup_input,
            torch={
                "device": device or ("auto" if num_gpus else "cpu"),
                "threads": threads or max(1, int(num_cpus)),
                "optimize": optimize,
                "optimize_seconds": optimize_seconds,
                "malloc": malloc == "auto",
            },
        )
        self._open_timeout, self._close_timeout = open_timeout, close_timeout
        #: what was chosen when it last opened
        self.details: Mapping[str, str | float] = {}
        #: of its actors, each on its own node
        self.pids: tuple[int, ...] = ()
        self._group: Group | None = None

    @classmethod
    def code_options(cls, options: Mapping[str, Any]) -> list[str]:
        """Those options of a config that can run code: see docs/security.md.

        Ray pickles both ways, so that a cluster on another host can run code here.
        """
        keys = [] if is_here(options.get("address")) else ["address"]
        return keys + ["runtime_env"] * bool(options.get("runtime_env"))

    @classmethod
    def discover(cls) -> list[dict[str, Any]]:
        """The nodes of ``RAY_ADDRESS``'s cluster or of one on this host: ``name``, ``description``.

        The ``name`` is as ``placement`` takes it. Blocks for a second or two if there is a cluster.
        """
        return [{"name": f"node:{node.id}", "description": str(node)} for node in found()]

    @classmethod
    def leads(
        cls, configured: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Callable[[float], list[dict[str, Any]]]]:
        """What asks clusters, also the config's, for their nodes: ``asyncinfer devices``."""
        from asyncinfer_drivers.ray_cluster.discovery import leads

        return leads(configured)

    async def open(self) -> None:
        """Join the cluster, start the actors, load the model in each.

        Raises ``ConfigError`` if the model cannot be loaded or Ray refuses the options,
        ``DeviceLost`` if the cluster or an actor is gone, ``DeviceTimeout`` after ``open_timeout``.
        """
        if self._group is not None and self._group.opened:
            return
        await self.close()
        group = self._group = Group(self._order, self._plan, self._open_timeout)
        try:
            await group.open()
        except BaseException:
            await self.close()
            raise
        if self._group is not group:
            raise DeviceLost(self.name, "closed while it was opening")
        first = group.loaded[0]
        self.max_batch = min(loaded.max_batch for loaded in group.loaded)
        self.details = {**first.details, "node": first.node}
        self.pids = tuple(loaded.pid for loaded in group.loaded)

    async def close(self) -> None:
        """Kill the actors and leave the cluster. Idempotent. Calls that run get ``DeviceLost``."""
        group, self._group = self._group, None
        if group is not None:
            await group.close(self._close_timeout)

    async def infer(self, batch: Sequence[Any]) -> list[Any]:
        """Run the tasks; one output, or the exception that is that task's fault, for each."""
        return await self._opened().run(batch)

    async def calibrate(self) -> ServiceTime | None:
        """Time calls with ``warmup_input``, the way there and back included.

        Takes about a second at most, or two calls where those are longer. ``None`` without a
        ``warmup_input``.
        """
        warmup = self._opened().loaded[0].warmup
        return None if warmup is None else await measured(self.infer, warmup, self.max_batch)

    async def probe(self) -> None:
        """Have every actor compute something small once it is free; ``DeviceLost`` if one fails."""
        await self._opened().probe()

    def report(self) -> Mapping[str, Any]:
        """What ``asyncinfer run`` shows: where it ran, and what was chosen there."""
        return {"actors": self._plan.actors, **self.details}

    def _opened(self) -> Group:
        if self._group is None or not self._group.opened:
            raise DeviceLost(self.name, "not open")
        return self._group


def _strategy(name: str, placement: Any) -> Any:
    if not isinstance(placement, str):
        return placement
    if placement.startswith("node:"):
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        try:
            return NodeAffinitySchedulingStrategy(placement.removeprefix("node:"), soft=False)
        except ValueError as error:
            raise ConfigError(f"{name}: placement={placement!r}: no id of a Ray node") from error
    if placement not in ("DEFAULT", "SPREAD"):
        raise ConfigError(f"{name}: placement must be 'SPREAD' or 'node:ID', not {placement!r}")
    return placement


def _at_least_one(option: str, value: object) -> None:
    if not (isinstance(value, int) and value >= 1):
        raise ConfigError(f"{option} must be a whole number of at least 1, not {value!r}")
