"""What real hosts do that simple models of them do not: short calls, noise, sets never formed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from asyncinfer.scheduling.sharing import EVERY, WARMING, Group
from asyncinfer.scheduling.slowdown import Calls, Member
from asyncinfer.scheduling.visits import Visits


class Bench:
    """A group of devices whose calls take what ``seconds`` says of a place and of who runs."""

    def __init__(
        self, alone: list[float], seconds: Callable[[int, int, float], float], noise: float = 0.0
    ) -> None:
        self.group = Group("devices")
        for each in alone:
            self.group.add(Member(each))
        self.alone, self.seconds, self.noise = alone, seconds, noise
        self.chance = random.Random(7)
        self.now = 0.0
        self.ends: dict[int, tuple[float, float, int | None]] = {}
        #: devices to which no work is given though they are chosen
        self.left_out = 0
        #: seconds that each set ran
        self.ran: dict[int, float] = {}
        self.told = self.calls = 0
        self.group.offer((1 << len(alone)) - 1, 0.0)

    def work(self, seconds: float) -> None:
        """Let all that are chosen work for so long."""
        until = self.now + seconds
        while self.now < until:
            self._begin()
            place = min(self.ends, key=lambda at: self.ends[at])
            end, began, begun = self.ends.pop(place)
            running = sum(1 << at for at in [place, *self.ends])
            self.ran[running] = self.ran.get(running, 0.0) + end - self.now
            self.now = end
            self.calls += 1
            if begun is not None:
                self.told += 1
                self.group.end(place, begun, end - began, end)

    def _begin(self) -> None:
        chosen = self.group.chosen & ~self.left_out
        new = [at for at in range(len(self.alone)) if chosen >> at & 1 and at not in self.ends]
        running = sum(1 << at for at in [*new, *self.ends])
        self.group.run(running)
        for at in new:
            took = self.seconds(at, running, self.now)
            took *= self.chance.lognormvariate(-(self.noise**2) / 2, self.noise)
            self.ends[at] = self.now + took, self.now, self.group.begin(at)


def test_a_set_that_does_not_run_as_a_whole_is_left():
    """The earliest-finish rule may give a slow device nothing though it is chosen."""
    bench = Bench([0.001, 0.003], lambda at, running, now: (0.001, 0.003)[at])
    bench.left_out = 0b10
    bench.work(5.0)
    # each time it is tried in vain it is left alone for twice as long
    assert bench.group._in_vain[0b11] <= 8
    assert bench.group.confirmed == 0b01


def test_a_part_of_short_calls_is_looked_at_once_the_set_is_found():
    bench = Bench([0.0005, 0.0008], lambda at, running, now: (0.0005, 0.0008)[at])
    bench.work(2.0)
    assert bench.group.settled
    told, calls = bench.told, bench.calls
    bench.work(1.0)
    assert bench.told - told <= (bench.calls - calls) / EVERY + 2


def test_long_calls_are_all_looked_at():
    bench = Bench([0.005, 0.008], lambda at, running, now: (0.005, 0.008)[at])
    bench.work(4.0)
    assert bench.told == bench.calls


def test_caches_that_are_cold_at_first_do_not_hide_the_better_set():
    """Short calls are slow for some time after a device begins to take part."""
    began = {"both": -math.inf, "running": 0.0}

    def seconds(at: int, running: int, now: float) -> float:
        if running != began["running"]:
            began["running"], began["both"] = running, now
        cold = 1.8 if running == 0b11 and now < began["both"] + 0.8 * WARMING else 1.0
        return 0.0005 * cold * (1.5 if running == 0b11 else 1.0)

    bench = Bench([0.0005, 0.0005], seconds)
    bench.work(4.0)
    assert bench.group.confirmed == 0b11  # 4,000 calls a second together, 2,000 alone, as 1.5 < 2


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_host_that_becomes_slower_for_two_is_noticed(noise):
    """It is noticed across looks, each of which ends a visit."""
    changed = 20.0

    def seconds(at: int, running: int, now: float) -> float:
        beside = 3.0 if now > changed else 1.1
        return (0.004, 0.006)[at] * (beside if running == 0b11 else 1.0)

    bench = Bench([0.004, 0.006], seconds, noise)
    bench.work(changed)
    assert bench.group.confirmed == 0b11
    bench.ran.clear()
    bench.work(10.0)
    assert bench.group.confirmed == 0b01
    assert bench.ran[0b11] < 3.0


def test_trials_cost_little_of_the_time():
    """Also of sets whose real speed the model does not foresee."""

    def seconds(at: int, running: int, now: float) -> float:
        odd = 4.0 if running in {0b011, 0b111, 0b110} else 1.0
        return (0.0005, 0.0006, 0.009)[at] * odd

    bench = Bench([0.0005, 0.0006, 0.009], seconds, noise=0.25)
    bench.work(4.0)
    bench.ran.clear()
    bench.work(10.0)
    best = max(bench.ran, key=bench.ran.__getitem__)
    assert bench.ran[best] > 0.9 * sum(bench.ran.values())


def test_first_calls_do_not_outweigh_all_visits_after_them():
    """A hundred calls of one visit tell no more than the visit, once visits differ."""
    calls, visits = Calls(), Visits()
    for visit, level in enumerate([1.0, *[0.7] * 9]):
        for _ in range(100):
            calls.enter(visits.count, visits.most)
            visits.call(0, math.log(level), calls.off(math.log(level)))
            calls.add(level, visits.weight)
        assert visits.count == visit
        visits.end(of_the_best=True)
    assert calls.mean == pytest.approx(0.73, abs=0.04)


def test_noise_alone_is_not_taken_for_drift():
    """Calls are compared with the mean of logarithms, as they vary in logarithms."""
    chance, calls, visits = random.Random(3), Calls(), Visits()
    visits.remember(500)
    for _ in range(5000):
        seconds = chance.lognormvariate(0.0, 0.5)
        calls.enter(visits.count, visits.most)
        visits.call(0, math.log(seconds), calls.off(math.log(seconds)))
        calls.add(seconds, visits.weight)
    assert abs(visits.recent) < 0.06


def test_calls_after_a_time_without_work_are_not_taken_for_drift():
    """The caches are cold then."""
    cold = [0.0]

    def seconds(at: int, running: int, now: float) -> float:
        return 0.0005 * (2.0 if now < cold[0] + 0.8 * WARMING else 1.0)

    bench = Bench([0.0005, 0.0005], seconds)
    bench.work(3.0)
    measured = dict(bench.group._table)
    for _ in range(20):
        bench.now += 2.0
        bench.ends.clear()
        cold[0] = bench.now
        bench.work(0.3)
    assert bench.group.confirmed == 0b11
    assert bench.group._started < 1.0 + 20 * 2.0 - 0.3  # put off by pauses only, not begun anew
    assert measured.keys() <= bench.group._table.keys()


def test_sets_may_be_chosen_twice_at_one_moment():
    """As when two devices go at once: the first choice has had no time to do anything."""
    bench = Bench([0.005, 0.008], lambda at, running, now: (0.005, 0.008)[at])
    bench.work(4.0)
    spent = bench.group._spent
    bench.group._take(0b01, bench.now)
    bench.group._take(0b10, bench.now)
    assert bench.group._spent == spent
