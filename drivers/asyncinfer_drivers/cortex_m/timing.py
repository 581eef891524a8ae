"""How long to wait for an answer: the link's times, and the adaptive timeout of RFC 6298."""

from __future__ import annotations

from dataclasses import dataclass

from asyncinfer_drivers._shared.checking import check

__all__ = ("Estimator", "Timing")


@dataclass(frozen=True)
class Timing:
    """Times of the link, in seconds."""

    #: between two HELLOs while nobody answers: what is sent to a board that boots is lost
    hello: float = 0.25
    #: until ``open`` gives up
    open: float = 10.0
    #: added to what an answer is expected to take; covers a busy host
    slack: float = 0.05
    #: expected for a request before anything was measured
    first: float = 3.0
    #: longest wait that doubling leads to, once something was measured
    longest: float = 5.0
    #: before a request that found the device BUSY is sent again; doubled each time
    busy: float = 0.005
    #: timeouts in a row, with nothing heard from the device, until it counts as lost
    timeouts: int = 6
    #: times one request is sent before it fails, though the device answers others
    attempts: int = 40
    #: until ``close`` gives up waiting for the port to be free
    close: float = 2.0

    def __post_init__(self) -> None:
        check(type(self), vars(self), "timing")


class Estimator:
    """Seconds an answer takes, smoothed, and their mean deviation, for each sample asked for."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._mean: float | None = None
        self._deviation = 0.0
        #: the wait is multiplied by this; doubled by each timeout in a row
        self._backoff = 1

    def add(self, seconds: float, samples: int) -> None:
        """Learn from the answer to a request that was sent once."""
        each = seconds / max(1, samples)
        if self._mean is None:
            self._mean, self._deviation = each, each / 2
        else:
            self._deviation += (abs(self._mean - each) - self._deviation) / 4
            self._mean += (each - self._mean) / 8

    def at_least(self, seconds: float, samples: int) -> None:
        """Learn from an answer of which only the least it took is known."""
        each = seconds / max(1, samples)
        if self._mean is None:
            self.add(seconds, samples)
        else:
            self._mean = max(self._mean, each)

    @property
    def measured(self) -> bool:
        """Whether anything is known."""
        return self._mean is not None

    def forget(self) -> None:
        """What was learned seems wrong."""
        self._mean = None

    def heard(self) -> None:
        """The board is there: no more doubling."""
        self._backoff = 1

    def timed_out(self) -> None:
        """Wait twice as long the next time."""
        self._backoff = min(2 * self._backoff, 1024)

    def wait(self, samples: int) -> float:
        """Seconds to wait for an answer while ``samples`` are being worked on."""
        if self._mean is None:  # however slow it is: an answer can be waited for, and then is known
            return (self._timing.first + self._timing.slack) * self._backoff
        each = self._mean + 4 * self._deviation
        once = each * max(1, samples) + self._timing.slack
        return min(once * self._backoff, max(once, self._timing.longest))
