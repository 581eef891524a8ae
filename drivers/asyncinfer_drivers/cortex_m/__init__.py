"""A microcontroller at the other end of a serial line.

Nothing heavy is imported before ``CortexM4Driver`` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncinfer_drivers.cortex_m.driver import CortexM4Driver as CortexM4Driver
    from asyncinfer_drivers.cortex_m.driver import CortexM4Options as CortexM4Options

__all__ = ("CortexM4Driver", "CortexM4Options")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asyncinfer_drivers.cortex_m import driver

    return getattr(driver, name)
