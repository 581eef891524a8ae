"""How many tasks a server takes in one request, where it does not say."""

from __future__ import annotations

__all__ = ("Sizes",)


class Sizes:
    """Learns from requests that were refused whole while all their parts were taken."""

    def __init__(self, most: int) -> None:
        #: tasks to put into one request, at most
        self.most = most
        #: tasks of the largest request that was taken
        self.taken = 0
        self._refused = most + 1
        self._learnt = False

    def took(self, tasks: int) -> None:
        """A request with so many tasks was answered."""
        if tasks > self.taken:
            self.taken = tasks
            if self._learnt:
                self.most = max(self.most, (tasks + self._refused) // 2)

    def too_large(self, tasks: int) -> bool:
        """A request was refused as it had so many tasks; whether that is the first time.

        Sizes between this one and the largest that was taken are tried next, half-way.
        """
        first, self._learnt = not self._learnt, True
        self._refused = min(self._refused, tasks)
        self.most = max(1, (self.taken + self._refused) // 2)
        return first
