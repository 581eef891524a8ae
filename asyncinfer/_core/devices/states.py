"""The states of a device, and from which to which it may go."""

from __future__ import annotations

from collections.abc import Mapping

from asyncinfer.stats import DeviceState

__all__ = ("TRANSITIONS", "IllegalTransition", "check")


#: the states that may follow each state; ``None`` stands for a new device. Ready and busy are one
#: state here: a ready device is shown as busy while it runs something.
TRANSITIONS: Mapping[DeviceState | None, frozenset[DeviceState]] = {
    None: frozenset({DeviceState.OPENING, DeviceState.DRAINING}),
    DeviceState.OPENING: frozenset(
        {
            DeviceState.READY,
            DeviceState.SUSPECT,
            DeviceState.DISTRUSTED,
            DeviceState.LOST,
            DeviceState.DRAINING,
        }
    ),
    DeviceState.READY: frozenset(
        {
            DeviceState.SUSPECT,
            DeviceState.DISTRUSTED,
            DeviceState.LOST,
            DeviceState.DRAINING,
        }
    ),
    DeviceState.SUSPECT: frozenset(
        {DeviceState.READY, DeviceState.DISTRUSTED, DeviceState.LOST, DeviceState.DRAINING}
    ),
    DeviceState.DISTRUSTED: frozenset(
        {DeviceState.READY, DeviceState.SUSPECT, DeviceState.LOST, DeviceState.DRAINING}
    ),
    DeviceState.LOST: frozenset({DeviceState.BACKING_OFF, DeviceState.DRAINING}),
    DeviceState.BACKING_OFF: frozenset({DeviceState.OPENING, DeviceState.DRAINING}),
    DeviceState.DRAINING: frozenset({DeviceState.REMOVED}),
    DeviceState.REMOVED: frozenset(),
}


class IllegalTransition(RuntimeError):
    """A bug in this package: a device was to change into a state that cannot follow its own."""


def check(device: str, before: DeviceState | None, state: DeviceState) -> None:
    """Raise ``IllegalTransition`` unless the table has this transition."""
    if state not in TRANSITIONS[before]:
        raise IllegalTransition(f"device {device!r} cannot go from {before or 'new'} to {state}")
