"""Has devices rest that share something with others, where these do more without them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from asyncinfer._core.devices.device import Burst, Device
from asyncinfer._core.devices.roster import Roster
from asyncinfer._core.tasks.recorder import logger
from asyncinfer._text import rate
from asyncinfer.scheduling.sharing import Group
from asyncinfer.scheduling.slowdown import Member

__all__ = ("Sharers",)

#: calls count whose batch differs by no more than this factor from the device's usual one
ALIKE = 1.25
#: after this many calls in a row with other batches, these are its usual ones
CALLS_OF_OTHER_SIZE = 8
#: after a rest so many calls do not count, as caches and threads are cold, if they are shorter than
#: this, in seconds
FIRST_CALLS, LONG_CALL = 2, 0.02
#: a device's first calls of all do not count if they are shorter than this, in seconds: memory is
#: taken, and whatever else has begun with it is still about. Of a device that nothing is known of,
#: one call does not count in any case
LONG_FIRST_CALL = 0.5


class Sharers:
    """Tells each group of devices that share something what runs, and follows what it chooses.

    Devices are in one group if they share something, or each shares something with a third one. A
    device that shares nothing with any other is in none, and costs nothing here.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._parties: list[_Party] = []
        #: the group of each device that is in one
        self._party_of: dict[Device, _Party] = {}
        #: how often devices had come and gone when the groups were made
        self._as_of = 0

    @property
    def any(self) -> bool:
        """Whether any devices share something."""
        return bool(self._parties)

    def look(self, now: float) -> None:
        """Before a pass: take in which devices are there, and follow what the groups choose."""
        if self._as_of != self._roster.comings_and_goings:
            self._as_of = self._roster.comings_and_goings
            self._make_groups(list(self._roster.members))
        for party in self._parties:
            try:
                party.look(now)
            except Exception:
                self._give_up(party)

    def passed(self, bursts: Iterable[Burst], saturated: bool) -> None:
        """After a pass, which gave ``bursts``; ``saturated`` says whether tasks still wait."""
        for party in self._parties:
            party.note_running()
        if self._parties:
            for burst in bursts:
                mine = self._party_of.get(burst.device)
                if mine is not None:
                    mine.begin(burst, saturated)
            for party in self._parties:
                party.forget_free()

    def ended(self, burst: Burst, calls: int) -> None:
        """The ``calls`` of ``burst`` have brought results."""
        party = self._party_of.get(burst.device)
        if party is not None:
            try:
                party.ended(burst, calls)
            except Exception:
                self._give_up(party)

    def _give_up(self, party: _Party) -> None:
        """An error in working out the best set must cost no task: then all devices take part."""
        logger.exception("which devices share best cannot be worked out: all of them take part")
        party.disband()
        self._parties = [other for other in self._parties if other is not party]
        for device in party.devices:
            self._party_of.pop(device, None)

    def _make_groups(self, devices: list[Device]) -> None:
        """Find out which devices share something; groups that are as they were are kept."""
        before = {frozenset(party.devices): party for party in self._parties}
        self._parties = []
        for together in _connected(devices):
            party = before.pop(frozenset(together), None)
            self._parties.append(party or self._grown(together, before) or _Party(together))
        for party in before.values():
            party.disband()
        parties, self._party_of = self._party_of, {}
        for party in self._parties:
            for device in party.devices:
                self._party_of[device] = party
                if parties.get(device) is not party:
                    for burst in device.bursts:  # it began beside other devices
                        burst.beside = None

    @staticmethod
    def _grown(together: list[Device], before: dict[frozenset[Device], _Party]) -> _Party | None:
        """The group of before that has only grown, or shrunk, to be ``together``."""
        for devices, party in list(before.items()):
            if devices.issubset(together) or devices.issuperset(together):
                del before[devices]
                party.devices = together
                return party
        return None


class _Seat:
    """What a group knows of one device."""

    __slots__ = (
        "_others",
        "batch",
        "cold",
        "first_calls",
        "freed",
        "limit",
        "long_call",
        "mine",
        "place",
    )

    def __init__(self, place: int, batch: float, *, cold: bool) -> None:
        self.place = place
        #: its bit in sets of devices
        self.mine = 1 << place
        #: its usual number of tasks in a call
        self.batch = batch
        #: most tasks that a call could have when the last one began
        self.limit = batch
        #: calls after a rest that do not count yet, if they are shorter than ``long_call``
        self.first_calls, self.long_call = FIRST_CALLS, LONG_FIRST_CALL
        #: whether its next call is the first of all of a device that nothing is known of: that does
        #: not count however long it is, as it may be long only because everything is cold
        self.cold = cold
        #: when calls have ended after which no pass was made yet
        self.freed: list[float] = []
        self._others = 0

    def is_usual(self, batch: float) -> bool:
        """Whether a call with ``batch`` tasks is like the device's usual ones."""
        usual = self.batch <= ALIKE * batch and batch <= ALIKE * self.batch
        if usual:
            self._others = 0
        return usual

    def is_other_size(self) -> bool:
        """Note a call of another size; return whether these have become the usual ones."""
        self._others += 1
        if self._others < CALLS_OF_OTHER_SIZE:
            return False
        self._others = 0
        return True


class _Party:
    """A group, and its devices."""

    def __init__(self, devices: list[Device]) -> None:
        self.devices = devices
        self.group = Group(",".join(device.name for device in devices))
        self.seats: dict[Device, _Seat] = {}
        #: the confirmed set that was told outside
        self._told = 0
        #: the sets that were followed: those chosen, and those available
        self._followed = (0, 0)

    def look(self, now: float) -> None:
        """Tell the group which devices are there, and follow what it chooses."""
        available = 0
        for device in self.devices:
            seat = self.seats.get(device) or self._admit(device)
            if seat is None or not device.up or device.suspect or device.held:
                continue
            available |= seat.mine
            if device.aside:
                device.reread_max_batch()  # it may have found that out by now
                if device.batch_limit != seat.limit:
                    self._take_in(device, seat, device.batch_limit)
        self.group.offer(available, now)
        self._follow()

    def note_running(self) -> None:
        """Tell the group which devices run."""
        seats = self.seats.items()
        self.group.run(sum([seat.mine for device, seat in seats if device.bursts]))

    def _admit(self, device: Device) -> _Seat | None:
        """Let the group know of a device once it is up, as its speed may be known then."""
        if not device.up:
            return None
        member = _member(device, device.batch_limit)
        place = self.group.add(member)
        cold = math.isnan(member.alone) and not device.batches
        seat = self.seats[device] = _Seat(place, device.batch_limit, cold=cold)
        return seat

    def begin(self, burst: Burst, saturated: bool) -> None:
        """Tell the group that calls begin, if tasks still wait: only then it matters how long.

        A device that the loop left without a call for a while, as it was busy with others, takes
        that much longer for its next one: what is compared is what a set gets done.
        """
        seat = self.seats[burst.device]
        seat.limit = burst.device.batch_limit
        freed = seat.freed.pop(0) if seat.freed else None
        if saturated:
            burst.beside, burst.freed = self.group.begin(seat.place), freed

    def forget_free(self) -> None:
        """What is free after a pass was given nothing: that is no delay by the loop."""
        for seat in self.seats.values():
            seat.freed.clear()

    def ended(self, burst: Burst, calls: int) -> None:
        """Tell the group of calls that have brought results, and follow what it chooses."""
        seat, begun = self.seats.get(burst.device), burst.beside
        if seat is None:  # it was begun before the device came here
            return
        tasks, now = burst.tasks_run, burst.call_began
        seat.freed.append(now)
        if begun is None:
            return
        cold, seat.cold = seat.cold, False
        if seat.first_calls and (now - burst.began) / calls < seat.long_call:
            seat.first_calls -= 1
        elif not cold and seat.is_usual(tasks / calls):
            began = burst.began if burst.freed is None else burst.freed
            self.group.end(seat.place, begun, (now - began) / tasks, now)
        elif not cold:
            if tasks / calls < seat.batch:
                self.group.glimpse(seat.place, (now - burst.began) / calls / seat.batch)
            if seat.is_other_size():
                self._take_in(burst.device, seat, tasks / calls)
        self._follow()

    def _take_in(self, device: Device, seat: _Seat, batch: float) -> None:
        """The device's calls are of another size from now on."""
        before, seat.batch, seat.limit = seat.batch, batch, device.batch_limit
        estimator, alone = device.estimator, self.group.model.members[seat.place].alone
        if estimator.known:  # calls are slowed now, but alike whatever their size
            alone *= estimator.expect(batch) / batch
            alone /= estimator.expect(before) / before
        self.group.replace(seat.place, Member(alone, device.concurrency, batch))

    def _follow(self) -> None:
        """Hold the devices that are not chosen, and say which of them rest."""
        group = self.group
        if self._followed != (group.chosen, group.available):
            self._followed = group.chosen, group.available
            for device, seat in self.seats.items():
                aside = bool(group.available & ~group.chosen & seat.mine)
                if device.aside and not aside:
                    seat.first_calls, seat.long_call = FIRST_CALLS, LONG_CALL
                device.put_aside(aside)
        if self._told != group.confirmed:
            self._told = group.confirmed
            self._tell()

    def _tell(self) -> None:
        """Say which devices rest, with the rates, or that they take part again."""
        group, model, confirmed = self.group, self.group.model, self.group.confirmed
        for device, seat in self.seats.items():
            if not confirmed or confirmed & seat.mine or not group.available & seat.mine:
                device.take_part()
                continue
            without, beside = model.rate(confirmed), model.rate(confirmed | seat.mine)
            device.rest(f"{rate(beside)} tasks/s with it, {rate(without)} without")

    def disband(self) -> None:
        """Let all devices take part: the group is no more."""
        for device in self.seats:
            device.put_aside(False)
            device.take_part()


def _member(device: Device, batch: float) -> Member:
    """What is known of the device beforehand: its time alone if it was calibrated."""
    estimator = device.estimator
    alone = math.nan
    if estimator.known and not estimator.samples:
        alone = estimator.expect(batch) / batch
    return Member(alone, device.concurrency, batch)


def _connected(devices: list[Device]) -> list[list[Device]]:
    """The groups of two or more devices that share something, directly or through others."""
    groups: list[tuple[set[str], list[Device]]] = []
    for device in devices:
        names, together = set(device.shares), [device]
        if not names or device.stateful:
            continue
        for group in [group for group in groups if not names.isdisjoint(group[0])]:
            groups.remove(group)
            names |= group[0]
            together = [*group[1], *together]
        groups.append((names, together))
    return [together for _, together in groups if len(together) > 1]
