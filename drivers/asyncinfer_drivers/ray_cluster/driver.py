"""``RayDriver``: a device that is an actor, or a group of them, on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import takes
from asyncinfer_drivers._shared.session import HostDriver
from asyncinfer_drivers.ray_cluster.group import Group, Plan
from asyncinfer_drivers.ray_cluster.host import Order
from asyncinfer_drivers.ray_cluster.nodes import found
from asyncinfer_drivers.ray_cluster.options import RayOptions as RayOptions
from asyncinfer_drivers.ray_cluster.session import is_here

__all__ = ("RayDriver", "RayOptions")


class RayDriver(HostDriver[Group]):
    """Runs a model in actors on a Ray cluster.

    Its arguments are the fields of ``RayOptions``, which says what each means. ``model`` is one of

    - what ``TorchDriver`` takes: an ``nn.Module``, a built-in model or its name, a TorchScript or
      ``.pt2`` file (its path on the nodes), a function without arguments that returns a module. It
      runs in the actor just as ``TorchDriver`` would run it there;
    - any function of one input, or a class or a function without arguments that makes one: then
      the actor needs no torch, and only the steps and ``warmup_input`` apply;
    - ``"module:name"`` of either, imported on the node.

    It is pickled by Ray and made ready by ``open``, as are the steps. The nodes need this package
    and what the model imports, of the same versions; ``runtime_env`` is Ray's way to bring them.

    ``open`` raises ``ConfigError`` if the model cannot be loaded or Ray refuses the options,
    ``DeviceLost`` if the cluster or an actor is gone, ``DeviceTimeout`` after ``open_timeout``. A
    dead actor and a lost node are ``DeviceLost``: the tasks move to other devices, and ``open``
    starts new actors. Cancelling ``infer`` withdraws a call that has not begun; one that runs
    cannot be interrupted and is waited for. ``close`` kills the actors and leaves the cluster;
    calls that run get ``DeviceLost``.

    Inputs and outputs beyond 64 KiB go through Ray's object store, written and read outside the
    event loop. Arrays arrive at the model, and come back, as views of shared memory that must not
    be written to; tensors have memory of their own. Ray pickles what it transports, and runs what
    it is sent: see the docs on who may reach a cluster.

    ``details`` tells what was chosen in the first actor, and ``node``, Ray's id of its node;
    ``pids`` are the actors' process ids, each on its own node. Empty until it was opened once.
    """

    #: ``asyncinfer.config`` passes the model's name: it is loaded where it runs
    model_from: ClassVar[str] = "name"

    @takes(RayOptions)
    def __init__(self, options: RayOptions) -> None:
        self.name = options.name
        #: tasks a call takes; with ``"auto"`` known once it is open
        self.max_batch = 1 if options.max_batch == "auto" else options.max_batch
        self.concurrency = options.concurrency or 2 * options.actors
        self._plan = _plan(options)
        self._order = _order(options)
        self._close_timeout = options.close_timeout
        #: what was chosen when it last opened
        self.details = {}
        #: of its actors, each on its own node
        self.pids: tuple[int, ...] = ()
        self._hosts: frozenset[str] = frozenset()
        self.shares = options.shares

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

    def _new_session(self) -> Group:
        return Group(self._order, self._plan)

    async def _open(self, session: Group) -> None:
        await super()._open(session)
        self.pids = tuple(loaded.pid for loaded in session.loaded)
        self._hosts = session.hosts

    def _usually_shared(self) -> frozenset[str]:
        return self._hosts

    def report(self) -> Mapping[str, Any]:
        """What ``asyncinfer run`` shows: where it ran, and what was chosen there."""
        return {"actors": self._plan.actors, **self.details}


def _order(options: RayOptions) -> Order:
    """What each actor runs."""
    return Order(
        name=options.name,
        model=options.model,
        steps=options.steps,
        max_batch=options.max_batch,
        warmup_input=options.warmup_input,
        torch={
            "device": options.device or ("auto" if options.num_gpus else "cpu"),
            "threads": options.threads or max(1, int(options.num_cpus)),
            "optimize": options.optimize,
            "optimize_seconds": options.optimize_seconds,
            "malloc": options.malloc,
        },
    )


def _plan(options: RayOptions) -> Plan:
    """Which actors there are."""
    given: dict[str, Any] = {"num_cpus": options.num_cpus, "num_gpus": options.num_gpus}
    tables = {"resources": options.resources, "runtime_env": options.runtime_env}
    given |= {key: dict(value) for key, value in tables.items() if value}
    if options.placement is not None:
        given["scheduling_strategy"] = _strategy(options.name, options.placement)
    return Plan(options.address, options.actors, given, options.open_timeout)


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
