"""How much devices that share a resource slow each other down: a model, and its fit to calls."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

__all__ = ("Calls", "Member", "Model", "Table", "bits", "speed_of")

#: the share of the host that one device's call is presumed to want, before anything is known
USUAL_DEMAND = 0.3
#: sigma of the natural logarithm of that presumption
DEMAND_SIGMA = 1.0
#: sigma of the natural logarithm of what a calibration says of a call's time alone
ALONE_SIGMA = 0.15
#: sigma of the contention that is presumed, which is 0 or more
CONTENTION_SIGMA = 0.1
#: the contention that fits begin with
FIRST_CONTENTION = 0.02
#: range in which demands and contention are looked for
LEAST_DEMAND, MOST_DEMAND, MOST_CONTENTION = 0.005, 4.0, 0.5
#: rounds of the fit, each of which adjusts every figure once
ROUNDS = 2
#: with more devices than this, one round from one beginning must do
FEW = 12
#: steps of the grid on which one figure is looked for, and how often the step is then halved
GRID, HALVINGS = 8, 6
#: most joint steps of a round; they end when a step makes the figures no more probable than this
STEPS, NO_BETTER = 6, 0.01
#: most calls of one device beside one set of others that count, so that no single set rules all
MOST_CALLS = 400.0
#: a set of calls that is off by more than this (natural logarithm) is off by this
OUTLIER = 1.0


def bits(members: int) -> Iterable[int]:
    """The places of the members in a set that is written as a whole number, one bit for each."""
    while members:
        low = members & -members
        yield low.bit_length() - 1
        members ^= low


def speed_of(demand: float, contention: float, devices: int) -> float:
    """The fraction of its speed alone at which each of so many devices runs: see ``Model``."""
    shared = 1 / demand if demand > 1 else 1.0
    return shared / (1 + contention * max(0, devices - 1))


@dataclass(slots=True)
class Calls:
    """The calls of one device while the same set of devices ran."""

    number: float = 0.0
    #: sum of seconds a task: what is done in a time depends on their mean, not on a typical one
    seconds: float = 0.0
    #: sum of natural logarithms of seconds a task
    log_seconds: float = 0.0
    #: visits to the set in which these calls were made, and the last of them
    visits: int = 0
    visit: int = -1

    @property
    def logs(self) -> float:
        """As many times the natural logarithm of the mean as there were calls."""
        return self.number * math.log(self.seconds / self.number) if self.number else 0.0

    @property
    def mean(self) -> float:
        """Mean of the seconds a task."""
        return self.seconds / self.number

    def off(self, log: float) -> float:
        """How far the natural logarithm of a call's seconds a task is off those so far."""
        return log - self.log_seconds / self.number if self.number else 0.0

    def enter(self, visit: int, most: float) -> None:
        """The calls that follow are those of this visit; earlier ones may count for ``most``."""
        if self.visit == visit:
            return
        allowed = most * self.visits
        if self.number > allowed:
            part = allowed / self.number
            self.number, self.seconds = allowed, part * self.seconds
            self.log_seconds *= part
        self.visit = visit
        self.visits += 1

    def add(self, seconds: float, weight: float = 1.0) -> None:
        """Count a call, as so many independent ones; what is far off is taken as less so."""
        if self.number:
            off = min(max(math.log(seconds / self.mean), -OUTLIER), OUTLIER)
            seconds = self.mean * math.exp(off)
        self.number += weight
        self.seconds += weight * seconds
        self.log_seconds += weight * math.log(seconds)

    def merge(self, others: Calls) -> None:
        """Count these as well."""
        self.number += others.number
        self.seconds += others.seconds
        self.log_seconds += others.log_seconds
        self.visits += others.visits


@dataclass(slots=True)
class Member:
    """What is known beforehand of one device of the group."""

    #: seconds a task alone, by its calibration; ``nan`` if it has none
    alone: float
    #: calls that it runs at once
    concurrency: int = 1
    #: tasks in one of its calls
    batch: float = 1.0
    #: natural logarithm of the share of the host that it is presumed to want
    demand: float = math.log(USUAL_DEMAND)
    #: fewest seconds a task that it may take alone, by its calls that do not count; infinite if
    #: there are none
    least: float = math.inf


#: for each set of devices that ran together, the calls of each
Table = dict[int, dict[int, Calls]]


@dataclass(slots=True)
class Model:
    """Processor sharing with contention: one guess of its figures, fitted to what was measured.

    While a set of devices runs, each call proceeds at the same fraction of its speed alone::

        speed = min(1, 1 / sum of the demands) / (1 + contention * (devices - 1))

    The first factor is egalitarian processor sharing (Kleinrock, Queueing Systems II, 1976, ch. 4),
    where a demand is the share of the host that a call wants. The second is the linear term of
    Gunther's scalability law (Guerrilla Capacity Planning, 2007), for what has no shares: caches,
    memory, the interpreter's lock. ``fit`` maximises the posterior of all figures by coordinates.
    """

    members: list[Member]
    demands: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    contention: float = FIRST_CONTENTION
    #: what it was fitted to
    table: Table = field(default_factory=dict)

    def speed(self, devices: int) -> float:
        """The fraction of their speed at which ``devices`` run together, by the law alone."""
        demands = self.demands
        total = sum([demands[place] for place in bits(devices)])
        return speed_of(total, self.contention, devices.bit_count())

    def rate(self, devices: int) -> float:
        """Tasks a second of ``devices`` together: by the law, and by what was measured of them."""
        speed = self.speed(devices)
        if devices in self.table:
            return self.measured_rate(devices, speed)
        return speed * self.nominal(devices)

    def measured_rate(self, devices: int, speed: float) -> float:
        """The sum of what each did, where the law's ``speed`` counts like one call of each.

        The law has one speed for all. Real devices are slowed unlike: one that makes many short
        calls waits more for the interpreter than one that makes few long ones.
        """
        measured, together = self.table[devices], self.blended(devices, speed)
        rate = 0.0
        for place in bits(devices):
            expected, calls = self.alone[place] / together, measured.get(place)
            if calls is not None:
                logs = math.log(expected) + calls.logs
                expected = math.exp(logs / (1 + calls.number))
            rate += self.members[place].concurrency / expected
        return rate

    def nominal(self, devices: int) -> float:
        """Tasks a second that ``devices`` would do if none slowed down another."""
        alone, members = self.alone, self.members
        return sum([members[place].concurrency / alone[place] for place in bits(devices)])

    def call(self, place: int) -> float:
        """Seconds of a call of one device, if none slowed it down."""
        return self.alone[place] * self.members[place].batch

    def blended(self, devices: int, speed: float) -> float:
        """The law's ``speed``, counted like one call beside those that were measured."""
        measured = self.table.get(devices)
        if not measured:
            return speed
        number, logs = self.sums(measured)
        return math.exp((math.log(speed) + logs) / (1 + number))

    def sums(self, measured: dict[int, Calls]) -> tuple[float, float]:
        """How many calls there were, and the sum of the logarithms of their speeds."""
        number = logs = 0.0
        for place, calls in measured.items():
            number += calls.number
            logs += calls.number * math.log(self.alone[place]) - calls.logs
        return number, logs

    def fit(self, table: Table, sigma: float, chance: random.Random) -> None:
        """Adjust all figures to ``table``, whose logarithms of times vary by ``sigma``.

        Slowness by too little to share and slowness by contention look alike at first, and the fit
        may end with the wrong one of them; so it is made from two beginnings.
        """
        presumed = [member.demand for member in self.members]
        self.table = table
        costs = []
        other = chance.uniform(0, 2 * CONTENTION_SIGMA)
        for contention in (FIRST_CONTENTION, other)[: 1 + (len(presumed) <= FEW)]:
            cost = self._fit_from(contention, presumed, sigma)
            costs.append((cost, self.demands, self.alone, self.contention))
        _, self.demands, self.alone, self.contention = min(costs, key=lambda found: found[0])

    def sample(self, table: Table, sigma: float, chance: random.Random) -> Model:
        """Another model of these devices: a sample of what its figures may be.

        It is fitted to presumptions and measurements that are disturbed as much as they are
        uncertain.
        """
        model = Model(self.members)
        model.table = _disturbed(table, sigma, chance)
        presumed = [chance.gauss(member.demand, DEMAND_SIGMA) for member in self.members]
        model._fit_from(chance.uniform(0, 2 * CONTENTION_SIGMA), presumed, sigma)
        return model

    def _fit_from(self, contention: float, presumed: list[float], sigma: float) -> float:
        """Fit all figures, beginning with this contention; return how improbable they are."""
        self.demands = [math.exp(demand) for demand in presumed]
        self.contention = contention
        known = [member.alone for member in self.members]
        self.alone = [self._first_guess(place, known[place]) for place in range(len(known))]
        for _ in range(ROUNDS if len(known) <= FEW else 1):
            sets = self._slownesses()
            for place, demand in enumerate(presumed):
                self._fit_demand(place, demand, sets, sigma)
            self._fit_contention(sets, sigma)
            self._refine(presumed, sets, sigma)
            self._fit_alone(known, sigma)
        return self._slopes(presumed, self._slownesses(), sigma)[0]

    def _refine(
        self, presumed: list[float], sets: list[tuple[int, float, float]], sigma: float
    ) -> None:
        """Adjust demands and contention together, where one alone could not get any further.

        This is the method of Levenberg and Marquardt (SIAM Journal, 1963).
        """
        damping = 1e-3
        least, gradient, curvature = self._slopes(presumed, sets, sigma)
        for _ in range(STEPS):
            step = _solved(curvature, gradient, damping)
            before = self.demands, self.contention
            *demands, crowd = step
            self.demands = [
                min(MOST_DEMAND, max(LEAST_DEMAND, demand * math.exp(max(-1.0, min(1.0, by)))))
                for demand, by in zip(self.demands, demands, strict=True)
            ]
            self.contention = min(MOST_CONTENTION, max(0.0, self.contention + crowd))
            cost, next_gradient, next_curvature = self._slopes(presumed, sets, sigma)
            if cost < least:
                done = least - cost < NO_BETTER
                least, gradient, curvature = cost, next_gradient, next_curvature
                damping /= 10
                if done:
                    break
            else:
                self.demands, self.contention = before
                damping *= 30

    def _slopes(
        self, presumed: list[float], sets: list[tuple[int, float, float]], sigma: float
    ) -> tuple[float, list[float], list[list[float]]]:
        """How improbable the figures are, and where that becomes less, by Gauss and Newton."""
        demands, contention, number = self.demands, self.contention, len(presumed)
        trust = 1 / DEMAND_SIGMA**2
        curvature = [[0.0] * (number + 1) for _ in range(number + 1)]
        gradient = [0.0] * (number + 1)
        cost = 0.0
        for place, demand in enumerate(presumed):
            off = demand - math.log(demands[place])
            cost += off * off * trust
            gradient[place] = off * trust
            curvature[place][place] = trust
        trust = 1 / CONTENTION_SIGMA**2
        cost += contention * contention * trust
        gradient[number] = -contention * trust
        curvature[number][number] = trust
        for devices, weight, slow in sets:
            places = list(bits(devices))
            total = sum([demands[place] for place in places])
            others = len(places) - 1
            off = slow - math.log1p(contention * others) - (math.log(total) if total > 1 else 0.0)
            trust = weight / (sigma * sigma)
            cost += trust * min(off * off, OUTLIER)
            if off * off > OUTLIER:
                continue
            row = [(place, demands[place] / total) for place in places] if total > 1 else []
            row.append((number, others / (1 + contention * others)))
            for place, slope in row:
                weighted = trust * slope
                gradient[place] += weighted * off
                line = curvature[place]
                for other, also in row:
                    line[other] += weighted * also
        return cost, gradient, curvature

    def _first_guess(self, place: int, known: float) -> float:
        """Seconds a task alone: calibrated, or the shortest that was measured.

        Of a device that nothing is known of yet, those of the quickest other one: it may be as
        quick, and only a trial can show that, unless calls that do not count have shown it is not.
        """
        if known == known:
            return known
        own = self._quickest_seen(place)
        if own < math.inf:
            return own
        others = (
            m.alone if m.alone == m.alone else self._quickest_seen(at)
            for at, m in enumerate(self.members)
        )
        quickest, least = min(others), self.members[place].least
        if least == math.inf:
            return quickest if quickest < math.inf else 1.0
        return max(quickest, least) if quickest < math.inf else least

    def _quickest_seen(self, place: int) -> float:
        """The shortest seconds a task of one device that were measured; infinite if none were."""
        seen = [calls[place] for calls in self.table.values() if place in calls]
        return math.exp(min([calls.logs / calls.number for calls in seen], default=math.inf))

    def _slownesses(self) -> list[tuple[int, float, float]]:
        """For each set that was measured: its weight, and the logarithm of how slow it is."""
        sets = []
        logs = [math.log(seconds) for seconds in self.alone]
        for devices, measured in self.table.items():
            weight = total = 0.0
            for place, calls in measured.items():
                number = min(calls.number, MOST_CALLS)
                weight += number
                total += number * (calls.logs / calls.number - logs[place])
            sets.append((devices, weight, total / weight))
        return sets

    def _fit_demand(
        self, place: int, presumed: float, sets: list[tuple[int, float, float]], sigma: float
    ) -> None:
        """Look for the most probable demand of one device, the other figures being as they are."""
        mine = 1 << place
        near = []
        for devices, weight, slow in sets:
            if devices & mine:
                others = sum([self.demands[other] for other in bits(devices ^ mine)])
                crowd = math.log1p(self.contention * (devices.bit_count() - 1))
                near.append((weight / (2 * sigma * sigma), slow - crowd, others))
        if not near:
            return

        def cost(demand: float) -> float:
            wanted, cost = math.exp(demand), (demand - presumed) ** 2 / (2 * DEMAND_SIGMA**2)
            for weight, slow, others in near:
                total = others + wanted
                off = slow - (math.log(total) if total > 1 else 0.0)
                cost += weight * min(off * off, OUTLIER)
            return cost

        low, high = math.log(LEAST_DEMAND), math.log(MOST_DEMAND)
        self.demands[place] = math.exp(_least(cost, low, high, math.log(self.demands[place])))

    def _fit_contention(self, sets: list[tuple[int, float, float]], sigma: float) -> None:
        """Look for the most probable contention, the other figures being as they are."""
        near = []
        for devices, weight, slow in sets:
            total = sum([self.demands[place] for place in bits(devices)])
            shared = math.log(total) if total > 1 else 0.0
            near.append((weight / (2 * sigma * sigma), slow - shared, devices.bit_count() - 1))

        def cost(contention: float) -> float:
            cost = contention * contention / (2 * CONTENTION_SIGMA**2)
            for weight, slow, others in near:
                off = slow - math.log1p(contention * others)
                cost += weight * min(off * off, OUTLIER)
            return cost

        self.contention = _least(cost, 0.0, MOST_CONTENTION, self.contention)

    def _fit_alone(self, known: list[float], sigma: float) -> None:
        """Set each device's time alone to the mean of what its calibration and its calls say."""
        sums: dict[int, tuple[float, float]] = {}
        for devices, measured in self.table.items():
            faster = math.log(self.speed(devices))
            for place, calls in measured.items():
                number = min(calls.number, MOST_CALLS)
                weight, total = sums.get(place, (0.0, 0.0))
                total += number * (calls.logs / calls.number + faster)
                sums[place] = (weight + number, total)
        for place, (weight, total) in sums.items():
            if known[place] == known[place]:
                trust = (sigma / ALONE_SIGMA) ** 2
                weight, total = weight + trust, total + trust * math.log(known[place])
            self.alone[place] = math.exp(total / weight)


def _disturbed(table: Table, sigma: float, chance: random.Random) -> Table:
    """``table`` as it might have been measured as well."""
    return {
        devices: {
            place: Calls(
                calls.number,
                calls.seconds
                * math.exp(min(OUTLIER, sigma / math.sqrt(calls.number)) * chance.gauss(0, 1)),
            )
            for place, calls in measured.items()
        }
        for devices, measured in table.items()
    }


def _solved(matrix: list[list[float]], wanted: list[float], damping: float) -> list[float]:
    """Solve ``matrix x = wanted``, its diagonal enlarged by ``damping``, by Cholesky's method."""
    size = len(wanted)
    lower: list[list[float]] = []
    solution = list(wanted)
    for row in range(size):
        line = matrix[row][: row + 1]
        line[row] *= 1 + damping
        for column in range(row + 1):
            above = lower[column] if column < row else line
            value = line[column] - sum([line[at] * above[at] for at in range(column)])
            line[column] = value / above[column] if column < row else math.sqrt(max(value, 1e-12))
        lower.append(line)
        solution[row] -= sum([line[at] * solution[at] for at in range(row)])
        solution[row] /= line[row]
    for row in reversed(range(size)):
        solution[row] -= sum([lower[at][row] * solution[at] for at in range(row + 1, size)])
        solution[row] /= lower[row][row]
    return solution


def _least(cost: Callable[[float], float], low: float, high: float, start: float) -> float:
    """Where ``cost`` is least: on a grid first, and then nearer and nearer."""
    step = (high - low) / GRID
    best = min(max(start, low), high)
    least = cost(best)
    for number in range(GRID + 1):
        at = low + number * step
        there = cost(at)
        if there < least:
            best, least = at, there
    for _ in range(HALVINGS):
        step /= 2
        for at in (best - step, best + step):
            if low <= at <= high:
                there = cost(at)
                if there < least:
                    best, least = at, there
                    break
    return best
