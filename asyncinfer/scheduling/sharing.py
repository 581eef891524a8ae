"""Which of the devices that share a resource take part: the set that does most together."""

from __future__ import annotations

import math
import random
from collections import Counter

from asyncinfer.scheduling.slowdown import Calls, Member, Model, Table, bits, speed_of
from asyncinfer.scheduling.visits import Visits

__all__ = ("Group",)

#: guesses that are drawn each time besides the most probable one
SAMPLES = 2
#: demand of a device that has not run beside others yet: it is given the benefit of the doubt
HOPED_DEMAND = 0.15
#: a set must promise this many times the present set's rate to be tried
GAIN = 1.004
#: a set that has not run as a whole for so many times as long as measuring it should take is left
PATIENT = 4.0
#: and not chosen again for so many times as long as it was tried in vain; twice that the next time
IN_VAIN = 10.0
#: a set on trial has to be better than the best one by so many standard deviations, if these come
#: from a host that changes
DOUBTS = 1.0
#: shortest time for which a set works before the next one is chosen, in seconds
SHORTEST_VISIT = 0.03
#: shortest time between looks that find the same set best, in seconds, as each holds the loop
#: up for some milliseconds; it grows like the calls do, and no further than ``LOOK_PAUSE``
LOOK_SPACING = 0.15
#: precision to which a set's speed is measured before the next is looked for
PRECISION = 0.03
#: for so many seconds after a set was chosen short calls do not count: the caches are cold
WARMING = 0.03
#: of calls that are shorter than this, in seconds, one in so many is looked at while no set is on
#: trial: looking takes some hundredths of a millisecond
BRIEF, EVERY = 0.002, 7
#: fewest and most calls for that
FEWEST_CALLS, MOST_CALLS = 3, 200
#: a trial ends early if its set is slower than another by this many standard deviations of both;
#: that is tested first after so many calls
CERTAIN, FIRST_TEST = 2.5, 4
#: after a set was confirmed, the next look is taken after so many times the calls
PATIENCE = 1.35
#: most calls between two looks
LONGEST_PATIENCE = 1000
#: sets whose measurements are kept, the latest used ones
SETS_KEPT = 24
#: and no more seconds than this, unless calls are very long
LOOK_PAUSE = 1.0
#: in a group of more devices, not all sets are compared, but those that differ by one or two
#: devices, and the most efficient ones; and fewer samples are drawn
ALL_SETS = 10
#: a trial should be worth its cost within the time worked so far, or within this many times the
#: slowest device's time for a call
HORIZON = 20
#: what trials may cost once a set was found best: see ``_worth``
BUDGET = 1.0
#: how far the moving mean of a set's calls must be off: by this many of its standard deviations,
#: and by this at least
DRIFT_DEVIATIONS, DRIFT_LEAST = 4.5, 0.06
#: it goes over so many seconds at least, or as many times the slowest device's time for a call
DRIFT_SECONDS, DRIFT_TIMES = 0.3, 25
#: after a drift no other counts for so many seconds at least; one that comes within so many times
#: the last pause after it doubles the pause
STEADY, SOON = 0.25, 8
#: if no call ends for this long, in seconds, and so many times the slowest device's call, there was
#: nothing to do
LEAST_IDLE, IDLE = 0.5, 4.0
#: part of the rate that may be spent on trying resting devices again
PROBE_COST = 0.01
#: they are tried again no sooner than after this many times the slowest device's time for a call
PROBE_PAUSE = 30
#: a resting device that could add less than this part of the rate is not tried again
PROBE_WORTH = 0.03
#: the demands that bring a host to its limit so that one can see it
PROBE_LOAD = 1.15
#: precision to which the speed is measured then, as only large changes are looked for
PROBE_PRECISION = 0.09


class Group:
    """Devices that share something, and which of them are to take part.

    Devices of one host slow each other down, so that some of them may do more without the others.
    Which set does most cannot be told from how long each takes alone. So sets are tried while they
    work: the calls of each set are measured, a :class:`~asyncinfer.scheduling.slowdown.Model` is
    fitted to all that was measured, and the set that should do most by it is tried next, until the
    set that does most is the one that has been measured.

    The fitted figures are uncertain, and the set that looks best may only be the best known. So
    each look also asks models fitted to disturbed presumptions and measurements, each of them a
    sample of what the figures may be, and the most hopeful answer counts. This is ensemble sampling
    (Lu and Van Roy, NeurIPS 2017), an approximation of the sampling by Thompson (Biometrika, 1933).
    A set's own measurements outweigh what the model says of it, so a wrong model costs trials but
    does not decide. A trial that would cost more than it may bring is not made.

    Once a set is confirmed, looks become rarer. All measurements are discarded when the calls of
    the set drift, which an exponentially weighted moving mean tells (Roberts, Technometrics, 1959),
    or when a resting device that is tried again now and then fares otherwise than expected.
    """

    def __init__(self, seed: str) -> None:
        #: the devices that are to take part, one bit for each
        self.chosen = 0
        #: the devices that could
        self.available = 0
        #: the set that was found best when that was last looked at; 0 before
        self.confirmed = 0
        #: the most probable model
        self.model = Model([])
        self._chance = random.Random(seed)
        self._table: Table = {}
        self._running = 0
        #: counts the changes of ``_running``
        self._version = 0
        #: the devices whose last call was short
        self._brief = 0
        #: how many of each device's short calls were not told, while no set was on trial
        self._passed_over: list[int] = []
        #: the devices that were measured beside others
        self._met = 0
        self._visits = Visits()
        #: the set that the present visit is to
        self._visited = 0
        #: calls of the chosen set until the next look, and calls so far
        self._needed, self._got = FEWEST_CALLS, 0
        #: calls meanwhile beside which not all of the set ran
        self._missed = 0
        #: sets that did not come to run as a whole, and until when they are not chosen again
        self._avoided: dict[int, float] = {}
        #: how often each of them did not
        self._in_vain: Counter[int] = Counter()
        #: what ran instead of the chosen set, by calls
        self._instead: Counter[int] = Counter()
        #: when the set was chosen; when the measurements began
        self._since, self._started = 0.0, math.inf
        #: when a device that is not of the set was last seen to run still
        self._cleared = -math.inf
        #: before this time short calls of the set do not count
        self._warm_at = -math.inf
        #: tasks that were done since the set was chosen
        self._done = 0.0
        #: when a call ended last
        self._ended = math.inf
        #: when a call of the whole set was counted last
        self._counted = -math.inf
        #: whether a set was found best since then; what trials have cost from that time on, in
        #: seconds of its work
        self._searched, self._spent = False, 0.0
        #: seconds between looks just now
        self._spacing = LOOK_SPACING
        #: before this time no look is taken; when it is due in any case
        self._not_before = -math.inf
        self._look_at = math.inf
        #: no drift counts before this time; how long that was the last time
        self._steady_until, self._steady = -math.inf, 0.0
        #: the set that a resting device is tried beside; 0 otherwise
        self._probed_from = 0
        #: how often that was done
        self._probes = 0
        #: when one is tried next; what its speed should be, and by which measurements
        self._probe_at, self._expected = math.inf, 1.0
        self._measured_before: dict[int, Calls] = {}
        #: when the look was due that the probe has put off
        self._look_due = math.inf

    # ---- what is told

    def add(self, member: Member) -> int:
        """Let a device be considered; return its place."""
        self.model.members.append(member)
        self._passed_over.append(0)
        self._fit()
        return len(self.model.members) - 1

    def replace(self, place: int, member: Member) -> None:
        """A device is not what it was, as its batches have changed: forget how it ran."""
        before, self.model.members[place] = self.model.members[place], member
        if math.isnan(before.alone) and not any(place in calls for calls in self._table.values()):
            member.alone = before.alone  # it is only presumed
            member.least = before.least * min(1.0, before.batch / member.batch)
        mine = 1 << place
        self._table = {
            devices: calls for devices, calls in self._table.items() if not devices & mine
        }
        self._met &= ~mine
        self._needed, self._got = FEWEST_CALLS, 0
        self._fit()

    def offer(self, available: int, now: float) -> None:
        """Say which devices could take part from now on."""
        if available == self.available:
            return
        self._started = min(self._started, now)
        new, self.available = available & ~self._met, available
        self.confirmed &= available
        if self._probed_from & ~available:
            self._probed_from = 0
        if self.chosen & ~available or not self.chosen or new:
            self._probed_from = 0
            self._choose(now)

    def run(self, devices: int) -> None:
        """Say which devices run from now on."""
        if devices != self._running:
            self._running = devices
            self._version += 1

    def begin(self, place: int) -> int | None:
        """A call begins, beside those said to run; give the answer back when it ends.

        With ``None`` the call need not be told: while nothing is tried, a part of short ones does.
        """
        if self.settled and self._brief >> place & 1:
            self._passed_over[place] += 1
            if self._passed_over[place] % EVERY:
                return None
        return self._version

    def end(self, place: int, begun: int, seconds: float, now: float) -> None:
        """A call ends that took ``seconds`` a task; this may change ``chosen``.

        It counts if the same devices ran from its beginning to its end.
        """
        self._leave_out_idle_time(now)
        self.glimpse(place, seconds)
        self._done += self.model.members[place].batch
        brief = seconds * self.model.members[place].batch < BRIEF
        self._brief = self._brief & ~(1 << place) | brief << place
        cold = brief and now < self._warm_at
        if begun != self._version or cold or not seconds > 0:
            self._wait_no_longer(now)
            return
        running, visits = self._running, self._visits
        measured = self._table.pop(running, {})
        self._table[running] = measured  # the latest used last
        calls = measured.setdefault(place, Calls())
        calls.enter(visits.count, visits.most)
        log = math.log(seconds)
        visits.call(place, log, calls.off(log))
        slower = visits.level if running != self.confirmed else 0.0
        calls.add(seconds * math.exp(-slower), visits.weight)
        if running != self.chosen:
            self._wait_no_longer(now)
        elif visits.stay >= visits.memory and self._drifts() and now >= self._steady_until:
            self._forget(now)
        else:
            self._count(now)

    def glimpse(self, place: int, seconds: float) -> None:
        """Note a call that took ``seconds`` a task, as one of the usual size takes no less.

        Those beside it may have slowed it down, by as many times as there were.
        """
        member = self.model.members[place]
        if seconds > 0:
            member.least = min(member.least, seconds / max(1, self._running.bit_count()))

    def _leave_out_idle_time(self, now: float) -> None:
        """Put off all that was due at some time by as long as there was nothing to do."""
        idle, self._ended = now - self._ended, now
        if idle <= LEAST_IDLE:
            return
        self._visits.end(of_the_best=self._visited == self.confirmed)
        self._warm_at = now + WARMING  # the caches are cold again
        idle -= IDLE * self._slowest
        if idle <= LEAST_IDLE:
            return
        self._since += idle
        self._not_before += idle
        self._started += idle
        self._counted += idle
        self._look_at += idle
        self._look_due += idle
        self._probe_at += idle
        self._steady_until += idle

    @property
    def settled(self) -> bool:
        """Whether the set that was found best works, and none is on trial."""
        return self.chosen == self.confirmed and not self._probed_from

    @property
    def sigma(self) -> float:
        """Standard deviation of the logarithm of a call's time."""
        return self._visits.sigma

    @property
    def _slowest(self) -> float:
        """Seconds that a call of the slowest device takes alone; 0 if there is none."""
        return max(map(self.model.call, bits(self.available)), default=0.0)

    # ---- when to look for a better set

    def _count(self, now: float) -> None:
        """Count a call of the chosen set, and look for a better one when it is time."""
        self._got += 1
        self._counted = now
        if now >= self._probe_at and self._got > FEWEST_CALLS:
            self._probe(now)
        elif now < self._not_before:
            return
        elif self._got >= self._needed or now >= self._look_at or self._is_hopeless():
            self._look(now)

    def _is_hopeless(self) -> bool:
        """Whether the set on trial is certainly slower than another one that was measured.

        It is asked after 4, 8, 16 ... calls, as in a group sequential test.
        """
        on_trial = self.chosen != self.confirmed and not self._probed_from
        if not on_trial or self._got < FIRST_TEST or self._got & (self._got - 1):
            return False
        most = self._bound(self.chosen, CERTAIN)
        return any(self._bound(devices, -CERTAIN) > most for devices in self._table)

    def _bound(self, devices: int, deviations: float) -> float:
        """The measured rate of a set, and so many of its standard deviations more."""
        number, logs = self.model.sums(self._table[devices])
        doubt = deviations * self.sigma / math.sqrt(number)
        return math.exp(logs / number + doubt) * self.model.nominal(devices)

    def _wait_no_longer(self, now: float) -> None:
        """Leave the chosen set if it does not come to run as a whole.

        A slow device may rest though it is chosen, as the earliest-finish rule gives it nothing.
        """
        others = self._running & ~self.chosen
        if others and now < self._since + PATIENT * self._slowest:
            self._cleared = now  # they are still to end, and may hold up an ordered stream
            return
        if not self.chosen & ~self._running:  # only others are still to end
            return
        self._missed += 1
        self._instead[self._running & self.available] += 1
        patience = self._patience()
        since = max(self._since, self._cleared)
        if now > max(since, self._counted) + patience:
            self._leave(now)
        elif now > since + patience and not self.settled:
            self._look(now)  # it runs as a whole now and then: that has to do

    def _patience(self) -> float:
        """Seconds within which the chosen set should have been measured."""
        if not self.chosen:
            return math.inf
        return max(
            2 * SHORTEST_VISIT, PATIENT * self._seconds_of_trial(self.chosen, from_none=True)
        )

    def _leave(self, now: float) -> None:
        """Do not choose this set for some time, as it did not run as a whole.

        Where there is none to go back to, that is chosen which ran most often instead.
        """
        chosen, back = self.chosen, self._probed_from or self.confirmed
        self._in_vain[chosen] += 1
        pause = max(PROBE_PAUSE * self._slowest, IN_VAIN * (now - self._since))
        self._avoided[chosen] = now + pause * 2 ** self._in_vain[chosen]
        self._probed_from = 0
        if back in {0, chosen}:
            others = [ran for ran in self._instead if ran not in {0, chosen}]
            back = max(others, key=self._instead.__getitem__, default=0)
        if back in {0, chosen}:
            self._counted = now
            self._choose(now)
        else:
            self._take(back, now)

    def _look(self, now: float) -> None:
        if self._missed > max(FIRST_TEST, self._got):
            self._leave(now)
        elif self._probed_from:
            self._end_probe(now)
        else:
            self._choose(now)

    # ---- looking for a better set

    def _choose(self, now: float) -> None:
        """Choose the set that may do most, or the present one if none may do more."""
        if not self._table or not self.available:
            self._take(self._first(), now)
            return
        if self.chosen in self._table and self.chosen.bit_count() > 1:
            self._met |= self.chosen
        self._fit()
        if self._is_doubtful():
            self._take(self.confirmed, now)
            return
        present = 0.0 if self.chosen & ~self.available else self.model.rate(self.chosen)
        best, most = self.chosen, present * GAIN
        for devices, rate in self._hopes(most).items():
            if self._avoided.get(devices, now) > now:
                continue
            if rate > most and (not present or self._worth(devices, rate / present, now)):
                best, most = devices, rate
        if best == self.chosen:
            self.confirmed, self._searched = best, True
            self._visits.end(of_the_best=True, stays=True)
            self._remember()
            self._missed = 0
            self._instead.clear()
            self._not_before = now + self._spacing
            self._spacing = min(LOOK_PAUSE, self._spacing * PATIENCE)
            self._got, self._needed = 0, min(LONGEST_PATIENCE, int(self._needed * PATIENCE) + 1)
            self._look_at = now + self._pause(now)
            self._plan_probe(now)
        else:
            self._take(best, now)

    def _is_doubtful(self) -> bool:
        """Whether the set on trial may look better than the best one only as the host changes.

        Then it has to do so again. On a host that does not change this is never so.
        """
        best, chosen = self.confirmed, self.chosen
        measured = best in self._table and chosen in self._table
        if not measured or chosen == best or not self._visits.variance:
            return False
        number = max(self.model.sums(self._table[chosen])[0], 1e-3)
        doubt = math.exp(-DOUBTS * self.sigma / math.sqrt(number))
        return self.model.rate(chosen) * doubt < self.model.rate(best)

    def _pause(self, now: float) -> float:
        """Seconds after which another look is taken, however few calls there were."""
        return max(LOOK_PAUSE, HORIZON * self._slowest, (now - self._started) / 50)

    def _fit(self) -> None:
        self.model.fit(self._table, self.sigma, self._chance)

    def _first(self) -> int:
        """The set to begin with: the quickest device, as nobody knows yet who slows down whom.

        In a large group it is all of them, as it would take too long to add one after the other.
        """
        if self.available.bit_count() > ALL_SETS:
            return self.available
        alone = self.model.alone
        quickest = min(bits(self.available), key=lambda place: alone[place], default=None)
        return 0 if quickest is None else 1 << quickest

    def _take(self, devices: int, now: float) -> None:
        """Have ``devices`` take part from now on, and measure them."""
        if self._searched and self.chosen and self.confirmed not in {0, self.chosen}:
            worth = self._done / self.model.rate(self.confirmed)
            self._spent += max(0.0, now - self._since - worth)
        self._visits.end(of_the_best=self._visited == self.confirmed)
        self.chosen = self._visited = devices
        self._since, self._cleared, self._done = now, now, 0.0
        self._warm_at = now + WARMING if self._brief & devices else now
        self._not_before = self._warm_at + SHORTEST_VISIT
        self._probe_at = self._look_at = math.inf
        self._got, self._needed, self._missed = 0, self._calls_needed(), 0
        self._remember()
        self._instead.clear()
        while len(self._table) > SETS_KEPT:
            del self._table[next(iter(self._table))]

    def _hopes(self, least: float) -> dict[int, float]:
        """For each set that is considered, the highest rate that any of the models gives it.

        Those that could not do ``least`` even if nobody slowed down another are left out.
        """
        hopes = self._hopes_alone(least)
        if self.model.nominal(self.available) <= least:
            return hopes
        samples = SAMPLES if len(self.model.members) <= ALL_SETS else 1
        models = [
            self._hopeful(self.model),
            *(self.model.sample(self._table, self.sigma, self._chance) for _ in range(samples)),
        ]
        sets = self._candidates()
        most = _rates(
            Model(models[0].members, [0.0] * len(models[0].alone), models[0].alone, 0.0), sets
        )
        for model in models:
            for devices, rate, limit in zip(sets, _rates(model, sets), most, strict=True):
                if limit > least and rate > hopes.get(devices, 0.0):
                    hopes[devices] = rate
        return hopes

    def _hopes_alone(self, least: float) -> dict[int, float]:
        """Each device by itself, once, whatever the models say, if it may do more than ``least``.

        One that was not calibrated may have been slow only because of those beside it: by itself it
        may do as many times as much as there were devices.
        """
        hopes = dict[int, float]()
        alone = sum([ran for ran in self._table if ran.bit_count() == 1])
        if self.available.bit_count() > ALL_SETS:
            return hopes
        for place in bits(self.available & ~alone):
            rate = self.model.nominal(1 << place)
            if math.isnan(self.model.members[place].alone):
                beside = [ran.bit_count() for ran, calls in self._table.items() if place in calls]
                rate *= min(beside, default=1)
            if rate > least:
                hopes[1 << place] = rate
        return hopes

    def _hopeful(self, model: Model) -> Model:
        """The model with the benefit of the doubt for devices that never ran beside others."""
        demands = [
            demand if self._met >> place & 1 else min(demand, HOPED_DEMAND)
            for place, demand in enumerate(model.demands)
        ]
        return Model(model.members, demands, model.alone, model.contention, model.table)

    def _candidates(self) -> list[int]:
        """The sets to compare: all of them, or in a large group those near to the present one."""
        places = list(bits(self.available))
        if len(places) <= ALL_SETS:
            sets = [0]
            for place in places:
                sets += [devices | 1 << place for devices in sets]
            return sets[1:]
        near = {self.chosen ^ 1 << place for place in places}
        near |= {devices ^ 1 << self._chance.choice(places) for devices in list(near)}
        near.add(self.available)
        near.update(self._by_efficiency(places))
        return [devices & self.available for devices in near if devices & self.available]

    def _by_efficiency(self, places: list[int]) -> list[int]:
        """The sets of those that do most for what they take, from one device to all."""
        model = self.model
        places.sort(key=lambda place: model.alone[place] * model.demands[place])
        sets, devices = [], 0
        for place in places:
            devices |= 1 << place
            sets.append(devices)
        return sets

    def _worth(self, devices: int, gain: float, now: float) -> bool:
        """Whether the hoped ``gain`` outweighs what the trial costs if the model is right.

        Once a set was found best, trials may also cost no more than the square root of the time
        worked, in units of the slowest device's call: so their part of it becomes ever smaller.
        """
        cost = self._lost(devices, self._seconds_of_trial(devices))
        slowest = self._slowest
        worked = now - self._started
        if self._searched and self._spent + cost > BUDGET * math.sqrt(slowest * worked):
            return False
        return (gain - 1) * max(worked, HORIZON * slowest) >= cost

    def _seconds_of_trial(
        self, devices: int, precision: float = PRECISION, *, from_none: bool = False
    ) -> float:
        """How long it takes to measure a set, and to get rid of it again."""
        model = self.model
        present = 0 if from_none else self.chosen
        new = [model.call(place) for place in bits(devices & ~present)]
        calls = sum([model.members[at].concurrency / model.call(at) for at in bits(devices)])
        seconds = max([*new, self._calls_needed(precision) / calls]) / model.speed(devices)
        return max(seconds, SHORTEST_VISIT)

    def _remember(self) -> None:
        """Set over how many calls the moving mean of the chosen set goes."""
        model, chosen, calls = self.model, self.chosen, 0.0
        for place in bits(chosen):
            seconds = model.call(place)
            every = EVERY if self.settled and self._brief >> place & 1 else 1
            calls += model.members[place].concurrency / seconds / every
        seconds = min(DRIFT_SECONDS, DRIFT_TIMES * self._slowest)
        self._visits.remember(seconds * calls * model.speed(chosen))

    def _lost(self, devices: int, seconds: float) -> float:
        """Seconds of the chosen set's work that are lost while ``devices`` run for so long."""
        return max(0.0, 1 - self.model.rate(devices) / self.model.rate(self.chosen)) * seconds

    def _calls_needed(self, precision: float = PRECISION) -> int:
        """How many calls it takes to measure the speed of a set."""
        return int(min(MOST_CALLS, max(FEWEST_CALLS, (self.sigma / precision) ** 2)))

    # ---- noticing that things have changed

    def _drifts(self) -> bool:
        """Whether the calls of the chosen set have become slower or faster."""
        visits = self._visits
        if abs(visits.recent) <= DRIFT_LEAST:
            return False
        number = sum([calls.number for calls in self._table[self.chosen].values()])
        variance = visits.by_chance + visits.variance + self.sigma**2 / number
        return abs(visits.recent) > DRIFT_DEVIATIONS * math.sqrt(variance)

    def _forget(self, now: float) -> None:
        """Things have changed: measure anew, with what was found as the presumption."""
        model = self.model
        for place, member in enumerate(model.members):
            member.demand = math.log(model.demands[place])
            by_itself = self._table.get(1 << place, {}).get(place)
            if math.isnan(member.alone) and by_itself is not None:
                member.alone = by_itself.mean
        self._believe_for_longer(now)
        self._table = {}
        self._visits.forget()
        self._started, self._searched, self._spent = now, False, 0.0
        self._spacing = LOOK_SPACING
        self._probed_from = 0
        self._take(self.chosen, now)

    def _believe_for_longer(self, now: float) -> None:
        """Each drift that follows another one soon has to wait twice as long before it counts.

        A host that others use as well changes all the time, and a search takes its time too.
        """
        soon = now - self._steady_until < SOON * self._steady
        self._steady = max(STEADY, HORIZON * self._slowest, 2 * self._steady if soon else 0.0)
        self._steady_until = now + self._steady

    def _plan_probe(self, now: float) -> None:
        """Set the time at which a resting device is tried again, unless it is set."""
        place = self._worth_probing(now) if self._probe_at == math.inf else None
        if place is None:
            return
        self._probe_at = now + max(PROBE_PAUSE * self._slowest, self._cost(place) / PROBE_COST)

    def _cost(self, place: int) -> float:
        """What it costs to try a resting device for one call: seconds of the chosen set's work."""
        devices = self.chosen | 1 << place
        return self._lost(devices, self._seconds_of_trial(devices, PROBE_PRECISION))

    def _worth_probing(self, now: float) -> int | None:
        """The resting device whose trial would tell whether the host has more to give.

        It is the cheapest of those that bring the host to its limit, if there are any; and the next
        of them each other time. Devices that could not add much are left alone.
        """
        model, chosen = self.model, self.chosen
        least = PROBE_WORTH * model.rate(chosen)
        able = [
            place
            for place in bits(self.available & ~chosen)
            if model.nominal(1 << place) > least
            and self._avoided.get(chosen | 1 << place, now) <= now
        ]
        taken = sum([model.demands[place] for place in bits(chosen)])

        def costs(place: int) -> tuple[float, float]:
            return max(0.0, PROBE_LOAD - taken - model.demands[place]), self._cost(place)

        able.sort(key=costs)
        return able[self._probes % min(2, len(able))] if able else None

    def _probe(self, now: float) -> None:
        """Try a resting device beside the chosen ones."""
        place = self._worth_probing(now)
        if place is None:
            self._probe_at = math.inf
            return
        self._probes += 1
        self._probed_from, self._look_due = self.chosen, self._look_at
        devices = self.chosen | 1 << place
        self._expected = self.model.blended(devices, self.model.speed(devices))
        self._measured_before = self._table.pop(devices, {})
        self._take(devices, now)
        self._needed = self._calls_needed(PROBE_PRECISION)

    def _end_probe(self, now: float) -> None:
        """Go back to the set before the probe, and look anew if this one fared otherwise."""
        devices, before = self.chosen, self._measured_before
        measured = self._table.get(devices, {})
        self.chosen, self._probed_from = self._probed_from, 0
        if self._fared_otherwise(measured, before):
            self._forget(now)  # and measure the set that was best once more, before any other
            self._table[devices] = measured
            return
        if before:
            kept = self._table.setdefault(devices, {})
            for place, calls in before.items():
                kept.setdefault(place, Calls()).merge(calls)
        self._take(self.chosen, now)
        self._needed = LONGEST_PATIENCE
        self._look_at = min(self._look_due, now + self._pause(now))  # however often one is made
        self._plan_probe(now)

    def _fared_otherwise(self, measured: dict[int, Calls], before: dict[int, Calls]) -> bool:
        """Whether a probe's measurements differ from what was expected by those before it."""
        number, logs = self.model.sums(measured)
        known, _ = self.model.sums(before)
        if not number:
            return False
        doubt = self.sigma * math.sqrt(1 / number + 1 / (1 + known))
        least = DRIFT_LEAST if known else 2 * DRIFT_LEAST
        off = abs(logs / number - math.log(self._expected))
        return off > max(least, DRIFT_DEVIATIONS * doubt)


def _rates(model: Model, sets: list[int]) -> list[float]:
    """``model.rate`` of each set; much faster where all smaller sets come before larger ones."""
    demands, contention = model.demands, model.contention
    nominal = [model.nominal(1 << place) for place in range(len(demands))]
    sums: dict[int, tuple[float, float, int]] = {0: (0.0, 0.0, 0)}
    rates = []
    for devices in sets:
        rest = devices & (devices - 1)
        known = sums.get(rest)
        if known is None:
            rates.append(model.rate(devices))
            continue
        place = (devices ^ rest).bit_length() - 1
        total, rate, number = known
        total, rate, number = total + demands[place], rate + nominal[place], number + 1
        sums[devices] = total, rate, number
        speed = speed_of(total, contention, number)
        measured = devices in model.table
        rates.append(model.measured_rate(devices, speed) if measured else speed * rate)
    return rates
