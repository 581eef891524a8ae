"""A microcontroller at the other end of a serial line.

Nothing heavy is imported before ``CortexM4Driver`` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncinfer_drivers.cortex_m.driver import CortexM4Driver

__all__ = ("CortexM4Driver",)


def __getattr__(name: str) -> Any:
    if name != "CortexM4Driver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asyncinfer_drivers.cortex_m.driver import CortexM4Driver

    return CortexM4Driver
