"""Learning how long a device takes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer._core.devices.speed import Estimator
from asyncinfer.driver import ServiceTime

seconds = st.floats(1e-6, 1e3)


def fed(samples, line=None):
    estimator = Estimator()
    if line is not None:
        estimator.start_from(line)
    for batch, duration in samples:
        estimator.learn(batch, duration)
    return estimator


def test_nothing_is_known_at_first():
    assert math.isnan(Estimator().expect(1))
    assert Estimator().deviation == 0


def test_a_calibration_is_the_truth_until_the_first_call():
    assert fed([], ServiceTime(0.5, 0.1)).expect(4) == pytest.approx(0.9)
    assert fed([(1, 3.0)], ServiceTime(0.0, 0.1)).expect(1) == pytest.approx(3.0)


@given(duration=seconds, batch=st.integers(1, 64))
@settings(derandomize=True)
def test_a_constant_is_learnt_at_once(duration, batch):
    assert fed([(batch, duration)]).expect(batch) == pytest.approx(duration)
    estimator = fed([(batch, duration)] * 20)
    assert estimator.expect(batch) == pytest.approx(duration)
    assert estimator.deviation == pytest.approx(0, abs=1e-6)


@given(
    cost=st.floats(0.001, 10),
    each=st.floats(0.001, 10),
    sizes=st.lists(st.integers(1, 32), min_size=12, max_size=40),
)
@settings(derandomize=True)
def test_a_line_is_learnt_from_batches_of_different_sizes(cost, each, sizes):
    sizes = [1, 32, *sizes]
    line = ServiceTime(cost, each)
    estimator = fed([(n, line.of(n)) for n in sizes], line)
    for n in (1, 8, 32):
        assert estimator.expect(n) == pytest.approx(line.of(n), rel=0.02)


def test_equal_batches_keep_the_proportions_of_the_calibration():
    estimator = fed([(8, 4.0)] * 10, ServiceTime(1.0, 0.125))
    assert estimator.expect(8) == pytest.approx(4.0)
    assert estimator.expect(1) == pytest.approx(2 * 1.125)


def test_one_outlier_is_damped_and_two_are_a_new_truth():
    estimator = fed([(1, 0.1)] * 20)
    estimator.learn(1, 50.0)
    assert estimator.expect(1) < 0.2
    estimator.learn(1, 50.0)
    assert estimator.expect(1) == pytest.approx(50.0)
    for _ in range(2):
        estimator.learn(1, 0.001)
    assert estimator.expect(1) == pytest.approx(0.001)


def test_outliers_on_either_side_in_turn_are_none():
    estimator = fed([(1, 1.0)] * 20)
    for outlier in (50.0, 0.01, 50.0, 0.01):
        estimator.learn(1, outlier)
        assert 0.2 < estimator.expect(1) < 2.5


@given(st.lists(st.tuples(st.integers(1, 64), seconds), min_size=1, max_size=60))
@settings(derandomize=True, max_examples=200)
def test_whatever_it_is_told_it_says_something_sensible(samples):
    estimator = fed(samples)
    times = [estimator.expect(n) for n in (1, 2, 8, 64)]
    assert all(math.isfinite(t) and t > 0 for t in times)
    assert times == sorted(times), "more never takes less"
    assert 0 <= estimator.deviation <= 1


def test_noise_averages_out_and_shows_as_deviation():
    rng = random.Random(42)
    estimator = fed([(1, rng.lognormvariate(-0.045, 0.3)) for _ in range(500)])
    assert estimator.expect(1) == pytest.approx(1.0, rel=0.35)
    assert 0.1 < estimator.deviation < 0.5


def test_a_call_of_no_time_is_possible():
    estimator = fed([(1, 0.0)] * 5, ServiceTime(0.0, 0.0))
    assert 0 < estimator.expect(1) < 1e-6
