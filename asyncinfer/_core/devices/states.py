"""The states of a device, and from which to which it may go."""

from __future__ import annotations

from collections.abc import Mapping

from asyncinfer.stats import DeviceState

__all__ = ("TRANSITIONS", "IllegalTransition", "check")


#: where a device may go from each state, and at first. Ready and busy are one state here: a device
#: that is ready shows as busy while it runs something.
TRANSITIONS: Mapping[DeviceState | None, frozenset[DeviceState]] = {
    None: frozenset({DeviceState.OPENING, DeviceState.DRAINING}),
    DeviceState.OPENING: frozenset(
        {DeviceState.READY, DeviceState.SUSPECT, DeviceState.LOST, DeviceState.DRAINING}
    ),
    DeviceState.READY: frozenset({DeviceState.SUSPECT, DeviceState.LOST, DeviceState.DRAINING}),
    DeviceState.SUSPECT: frozenset({DeviceState.READY, DeviceState.LOST, DeviceState.DRAINING}),
    DeviceState.LOST: frozenset({DeviceState.BACKING_OFF, DeviceState.DRAINING}),
    DeviceState.BACKING_OFF: frozenset({DeviceState.OPENING, DeviceState.DRAINING}),
    DeviceState.DRAINING: frozenset({DeviceState.REMOVED}),
    DeviceState.REMOVED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A fault in this package: a device went where it cannot go from its state."""


def check(device: str, before: DeviceState | None, state: DeviceState) -> None:
    """Raise ``IllegalTransition`` unless the table has this transition."""
    if state not in TRANSITIONS[before]:
        raise IllegalTransition(f"device {device!r} cannot go from {before or 'new'} to {state}")
