"""What is found out in a chaos run: about the tasks, the devices' returns, and the throughput."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from asyncinfer._core.devices.breaker import FIRST_PAUSE, LONGEST_PAUSE

__all__ = ("Episode", "Lives", "Tasks", "processor_seconds")


class Tasks:
    """Each has to end once, in order, with the right answer."""

    def __init__(self, right):
        self._right = right
        self._seen = set()
        self._last = -1
        self.submitted = self.delivered = 0
        self.misordered = self.wrong = self.failed = 0
        self.first_error = ""
        self.by_device = Counter()

    def take(self, result):
        self.delivered += 1
        self._seen.add(result.index)
        self.misordered += result.index <= self._last
        self._last = max(self._last, result.index)
        self.by_device[result.device] += 1
        if result.error is not None:
            self.failed += 1
            self.first_error = self.first_error or f"{result.error!r} {result.error.causes}"
        elif result.value != self._right(result.index, result.device):
            self.wrong += 1

    def facts(self):
        return {
            "tasks": self.submitted,
            "lost": self.submitted - len(self._seen),
            "doubled": self.delivered - len(self._seen),
            "misordered": self.misordered,
            "wrong": self.wrong,
            "failed": self.failed,
        }


@dataclass
class Episode:
    """One fault, from when it struck until the device had answered again; loop's seconds."""

    kind: str
    device: str
    struck: float
    #: documented seconds until it is noticed, where those count
    noticed: float
    #: tasks finished and results delivered before it
    before: tuple[int, int]
    #: when the device could have been back
    over: float = 0.0
    back: float = 0.0
    #: tasks finished and results delivered meanwhile, and what is expected of the other devices
    finished: int = 0
    delivered: int = 0
    healthy: float = 0.0
    #: the device's failures that counted when it was held off
    failures: int = 1
    #: twice the documented seconds from its end to the return
    bound: float = 0.0
    #: calls that failed on the device, and losses of it
    troubles: int = 0
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def seconds(self):
        """From the fault's end to the device's return."""
        return max(0.0, self.back - self.over)


class Lives:
    """Hears what devices do: how long they take to open and to close, and when they answer."""

    def __init__(self):
        self.dispatcher = None
        self.episode = None
        self.finished = 0
        self._since = {}
        self._opening, self._closing = defaultdict(list), defaultdict(list)

    def __call__(self, event):
        episode, kind, device = self.episode, event.kind, event.device
        if kind == "task.finished":
            self.finished += 1
            if episode and device == episode.device:
                self._answered(episode, event)
            return
        if episode and device == episode.device:
            episode.troubles += kind in ("task.retried", "device.lost")
        took = event.time - self._since.get(device, event.time)
        if event.before == "opening" and kind in ("device.ready", "device.suspect"):
            self._opening[device].append(took)
        if event.before == "lost" and kind == "device.backing_off":
            self._closing[device].append(took)
            if episode and device == episode.device:
                (found,) = (one for one in self.dispatcher.stats().devices if one.name == device)
                episode.failures = max(1, found.failures)
        if kind.startswith("device."):
            self._since[device] = event.time

    def _answered(self, episode, event):
        if event.started >= episode.struck and episode.over and event.time >= episode.over:
            episode.back = episode.back or event.time
            episode.answered.set()

    def bound(self, episode):
        """Twice what docs/devices.md says: close + pause + open + one task."""
        close = statistics.median(self._closing[episode.device] or [0.0])
        opening = statistics.median(self._opening[episode.device])
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (episode.failures - 1))
        (device,) = (d for d in self.dispatcher.stats().devices if d.name == episode.device)
        return 2 * (episode.noticed + close + pause + opening + device.latency)


def processor_seconds():
    """Seconds that the processors of this host have worked."""
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _idle, _wait, *interrupts = map(int, fields[:8])
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")
