"""Which devices are trusted with tasks: failures that follow a device, told from tasks' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from asyncinfer._core.devices.device import Device
from asyncinfer._core.devices.record import Record
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.spans import Span
from asyncinfer.errors import DeviceError

__all__ = ("Trust",)

#: results in a row, on trial, after which a distrusted device is trusted again
WELL_AGAIN = 8
#: longest pause between two trials, in seconds
LONGEST_PAUSE = 30.0
#: seconds for which distrusted devices wait for a trusted one that was lost and is opened again
GRACE = 1.0
#: seconds for which a device of unknown speed is taken to be working on its first call
PATIENCE = 10.0
#: two moments closer than this are the same, in seconds
SAME_MOMENT = 1e-6


class Trust:
    """Judges devices by what becomes of the tasks that failed on them, and holds some back.

    A device is *distrusted* once its share of faults is very probably above ``TOLERATED``, or it
    has failed ``BROKEN`` tasks in a row and one of them worked elsewhere. One that has failed
    ``IN_A_ROW`` is held back too, but nothing is said of it yet: its inputs may be bad.

    What is held back gets one task on trial now and then, and the next one at once if that works.
    It is held back only while another device is up that is not, and answers: ``healthy``.
    """

    def __init__(self, roster: Roster, clock: Callable[[], float]) -> None:
        self._roster = roster
        self._clock = clock
        #: the devices that are distrusted, or have failed several tasks in a row
        self.questionable: dict[Device, None] = {}
        self._healthy_at = -math.inf

    # ---- evidence

    def worked(self, device: Device, spans: list[Span]) -> None:
        """The device brought results of ``spans``."""
        for span in spans:
            if span.causes:
                self._worked_after_all(span)
        if not device.record.spotless:
            self.answered(device, sum(span.count for span in spans))

    def answered(self, device: Device, tasks: int) -> None:
        """The device brought results of so many tasks that had not failed before."""
        record = device.record
        if record.spotless:
            return
        record.result(tasks)
        if record.distrusted and record.well_in_a_row >= WELL_AGAIN:
            record.forgive()
            device.tell_trust(self._clock(), f"{WELL_AGAIN} tasks in a row worked")
        if device in self.questionable:
            record.trial_at = self._clock()

    def lost(self, device: Device, error: BaseException) -> bool:
        """The device is lost with all it runs; return whether it was in standing.

        One of the tasks may have caused that, so a device that has done nothing yet is, too.
        """
        in_standing = device.record.clean
        device.record.loss(error, sum(burst.running for burst in device.bursts))
        self.failed(device)
        return in_standing

    def failed(self, device: Device | None, *, mixed: bool = False) -> bool:
        """A task failed on the device; return whether that was in standing.

        Of tasks that failed together this is told once. ``mixed`` says whether the same call
        brought results of other tasks.
        """
        if device is None or self._roster.stateful:
            return True
        record = device.record
        in_standing = record.in_standing
        record.failure(device.tasks - device.errors, mixed=mixed)
        if record.questionable:
            self._hold_back(device)
        return in_standing

    def believes(self, name: str, tried: Iterable[str], *, mixed: bool) -> bool:
        """Whether an input is bad because the device says so, as no other is to be asked.

        ``tried`` names the devices that the task has failed on before.
        """
        device = self._roster.named(name)
        if device is None or device.record.refusal(device.tasks - device.errors, mixed=mixed):
            return True
        return not self.healthy(self._clock(), but=(name, *tried))

    def distrusts(self, names: Iterable[str]) -> bool:
        """Whether all devices of these names are distrusted."""
        return all(record.distrusted for record in self._records(names))

    def proven(self, names: Iterable[str]) -> bool:
        """Whether all devices of these names have failed more by their own fault than not."""
        return all(
            record.distrusted or record.faults > record.own for record in self._records(names)
        )

    def _records(self, names: Iterable[str]) -> list[Record]:
        devices = [self._roster.named(name) for name in names]
        return [device.record for device in devices if device is not None]

    def _worked_after_all(self, task: Span) -> None:
        """A task that had failed has a result: the devices it failed on are to blame."""
        for name, cause in zip(task.devices, task.causes, strict=True):
            device = self._roster.named(name)
            if device is not None:
                self.blame(device, cause)

    def blame(self, device: Device, cause: BaseException) -> None:
        """What failed on the device by ``cause`` works elsewhere."""
        record = device.record
        record.fault(cause)
        if not record.distrusted and record.worse:
            record.distrusted = True
            record.well_in_a_row = 0
            self._hold_back(device)
            text = f"{record.total_faults} tasks failed here and worked elsewhere"
            device.tell_trust(self._clock(), text)

    def gave_up(self, task: Span) -> None:
        """A task failed for good: where it failed on several devices it was its own fault."""
        devices = [self._roster.named(name) for name in dict.fromkeys(task.devices)]
        causes = dict(zip(task.devices, task.causes, strict=True))
        lost = isinstance(task.causes[-1], DeviceError)
        for device in devices:
            if device is None:
                continue
            if any(other and not other.record.distrusted for other in devices if other != device):
                device.record.own_fault(causes[device.name])
            elif not lost and self.healthy(self._clock(), but=task.devices):
                device.record.uncleared += 1
                device.record.spotless = False

    def _hold_back(self, device: Device) -> None:
        """Hold the device back, and try it again later: the later the more often that failed."""
        record = device.record
        if device not in self.questionable:
            self.questionable[device] = None
            record.trial_at = self._clock() + record.pause
        elif record.trial_at - self._clock() <= SAME_MOMENT:
            record.pause = min(2 * record.pause, LONGEST_PAUSE)
            record.trial_at = self._clock() + record.pause

    def blames(self, device: Device) -> bool:
        """Whether a call with several tasks that fails on the device is taken to be its fault."""
        record = device.record
        return record.questionable or record.faults >= record.own

    # ---- who may take what

    def healthy(self, now: float, but: Iterable[str] = ()) -> list[Device]:
        """The devices that are up, trusted, and answer, those named in ``but`` excepted."""
        return [
            device
            for device in self._roster.up
            if device.up
            and device not in self.questionable
            and device.name not in but
            and _answers(device, now)
        ]

    def others_for_batches(self, device: Device, now: float) -> list[Device]:
        """The healthy devices besides this one that take several tasks in a call."""
        others = self.healthy(now, (device.name,))
        return [other for other in others if other.max_batch > 1 and not other.suspect]

    def may_spare(self, task: Span) -> bool:
        """Whether a device is up that could do what the last one failed.

        Of two that have not done anything yet neither is better than the other.
        """
        others = self.healthy(self._clock(), but=task.devices)
        device = self._roster.named(task.devices[-1])
        if device is not None and not device.record.answered and device.record.in_a_row < 2:
            return any(other.record.answered for other in others)
        return bool(others)

    def surest(self, now: float, but: Iterable[str]) -> list[Device]:
        """Of the healthy devices those that deserve a last attempt most."""
        healthy = self.healthy(now, but)
        proven = [device for device in healthy if device.record.in_standing]
        return proven or [d for d in healthy if not d.record.in_a_row] or healthy

    def review(self, now: float) -> bool:
        """Decide anew which devices are held back; called before tasks are assigned.

        Returns whether there are others than before.
        """
        healthy = bool(self.healthy(now))
        if healthy:
            self._healthy_at = now
        left = self._healthy_at + GRACE - now
        waits = healthy or (left > SAME_MOMENT and self._coming_back())
        changed = False
        for device in list(self.questionable):
            if not device.record.questionable or device not in self._roster.members:
                del self.questionable[device]
            held = device in self.questionable and waits
            changed = changed or held != device.held
            device.hold(held)
        return changed

    def _coming_back(self) -> bool:
        """Whether a device that is trusted is being opened again."""
        return any(
            not device.up and device.returning and device not in self.questionable
            for device in self._roster.members
        )

    def on_trial(self, now: float) -> list[Device]:
        """The devices held back that are due to be tried, and idle."""
        return [
            device
            for device in self.questionable
            if device.held
            and device.up
            and not device.bursts
            and device.record.trial_at - now <= SAME_MOMENT
        ]

    def due_in(self, now: float) -> float:
        """Seconds until who is held back may change by time alone, or a trial is due."""
        trials = [d.record.trial_at for d in self.questionable if d.held and not d.bursts]
        moments = [*trials, self._healthy_at + GRACE]
        return min((at - now for at in moments if at - now > SAME_MOMENT), default=math.inf)


def _answers(device: Device, now: float) -> bool:
    """Whether the device is free, or its calls do not take far too long."""
    if device.free or not device.bursts:
        return True
    if math.isnan(device.latency):
        return now - min(burst.call_began for burst in device.bursts) < PATIENCE
    return not (device.suspect and device.stuck(now))
