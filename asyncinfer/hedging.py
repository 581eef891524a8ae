"""When a copy of an overdue task may be run: the ``hedge`` argument of a dispatcher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from asyncinfer.errors import ConfigError

__all__ = ("Hedge",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedge:
    """When a copy of an overdue task may be run elsewhere. Raises ``ConfigError``."""

    #: a call is overdue once it has taken longer, for what was expected, than this part of the
    #: device's last 128 calls
    quantile: float = 0.95
    #: busy seconds of copies / busy seconds of all calls, at most
    budget: float = 0.03
    #: seconds by which a call must be overdue at least
    least: float = 0.001

    def __post_init__(self) -> None:
        for name, most in (("quantile", 1.0), ("budget", 1.0), ("least", math.inf)):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 < value <= most):
                upper = "" if most == math.inf else f" and at most {most:g}"
                raise ConfigError(f"hedge: {name} must be more than 0{upper}, not {value!r}")

    @classmethod
    def of(cls, value: object) -> Hedge | None:
        """What the ``hedge`` argument stands for."""
        if value is None or value is False:
            return None
        if value is True or value == "auto":
            return cls()
        if isinstance(value, Hedge):
            return value
        raise ConfigError(f"hedge must be None, True, 'auto' or a Hedge, not {value!r}")
