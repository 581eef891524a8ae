"""Simpler policies to compare with: the literature's plain pull, and its own baselines."""

from __future__ import annotations

from asyncinfer.scheduling.policy import Grant, PoolView, WorkerView

__all__ = ("Greedy", "LockStep", "Serial", "Static")


class Greedy:
    """The literature's plain pull: a free device takes the first waiting task."""

    reserves = True

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks."""
        return Grant(0, min(device.batch_limit, pool.waiting))


class Static:
    """An equal split made beforehand: of n devices, number j gets the tasks j, j+n, j+2n ..."""

    reserves = False

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first waiting task that belongs to the device."""
        devices = pool.devices
        mine = devices.index(device)
        for offset in range(pool.waiting):
            if pool.index(offset) % len(devices) == mine:
                return Grant(offset, 1)
        return None


class LockStep:
    """Synchronous rounds: every device takes one batch, and all wait for the slowest."""

    reserves = False

    def __init__(self) -> None:
        self._served: set[int] = set()

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks, once a round."""
        if not any(other.in_flight for other in pool.devices):
            self._served.clear()
        if device.position in self._served:
            return None
        self._served.add(device.position)
        return Grant(0, min(device.batch_limit, pool.waiting))


class Serial:
    """One call at a time, all of them on the first device."""

    reserves = False

    def pull(self, device: WorkerView, pool: PoolView) -> Grant | None:
        """The first tasks, for the first device."""
        if device is not pool.devices[0] or device.in_flight:
            return None
        return Grant(0, min(device.batch_limit, pool.waiting))
