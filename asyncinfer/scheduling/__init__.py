"""Which waiting task a device pulls: the earliest-finish-time rule, and what it is compared with.

A policy is asked whenever a device is free. It answers with a :class:`Grant` - how many waiting
tasks to skip and how many to take - or ``None`` to let the device rest until something changes.
To write another one, implement :class:`Policy` and pass an instance as ``Dispatcher(policy=...)``.
"""

from __future__ import annotations

from asyncinfer.errors import ConfigError
from asyncinfer.scheduling.baselines import Greedy as Greedy
from asyncinfer.scheduling.baselines import LockStep as LockStep
from asyncinfer.scheduling.baselines import Serial as Serial
from asyncinfer.scheduling.baselines import Static as Static
from asyncinfer.scheduling.census import Census as Census
from asyncinfer.scheduling.earliest_finish import EarliestFinish as EarliestFinish
from asyncinfer.scheduling.policy import ALL_REST as ALL_REST
from asyncinfer.scheduling.policy import Grant as Grant
from asyncinfer.scheduling.policy import Policy as Policy
from asyncinfer.scheduling.policy import PoolView as PoolView
from asyncinfer.scheduling.policy import WorkerView as WorkerView

__all__ = (
    "ALL_REST",
    "Census",
    "EarliestFinish",
    "Grant",
    "Greedy",
    "LockStep",
    "Policy",
    "PoolView",
    "Serial",
    "Static",
    "WorkerView",
    "policy_named",
)

_POLICIES: dict[str, type[Policy]] = {
    "eft": EarliestFinish,
    "greedy": Greedy,
    "static": Static,
    "sync": LockStep,
    "serial": Serial,
}


def policy_named(policy: str | Policy) -> Policy:
    """A new policy of that name, or the given object itself. Raises ``ConfigError``."""
    if not isinstance(policy, str):
        if not (callable(getattr(policy, "pull", None)) and hasattr(policy, "reserves")):
            raise ConfigError(f"{policy!r} is no policy: it needs pull(device, pool) and reserves")
        return policy
    if policy not in _POLICIES:
        known = ", ".join(_POLICIES)
        raise ConfigError(f"unknown policy {policy!r}: choose one of {known}")
    return _POLICIES[policy]()
