"""Simulated cases: plans, live sources, throttled devices, and the checks made of them."""

import statistics
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer import theory
from asyncinfer.bench.simulated import checks
from asyncinfer.bench.simulated.changes import throttled_optimum
from asyncinfer.bench.simulated.lab import Case, Lab
from asyncinfer.bench.simulated.simulation import Plan, Throttle, observe, simulate
from asyncinfer.bench.simulated.sweeps import spread
from asyncinfer.bench.suite import Context
from asyncinfer.errors import TaskError
from asyncinfer.testing import SimulatedDriver, run_virtual

TIMES = (0.01, 0.02, 0.04)


def test_a_run_says_what_was_seen():
    plan = Plan(TIMES, 70, names=["a", "b", "c"])
    observed = simulate(plan)
    run = observed.run("paper", "a case", plan, run=3, extra=1)
    assert (run.suite, run.case, run.run, run.tasks) == ("paper", "a case", 3, 70)
    assert run.ratio == pytest.approx(1.0)
    assert run.optimum == theory.optimum_makespan(TIMES, 70)
    assert run.throughput == pytest.approx(70 / run.makespan)
    assert run.latency_p50 <= run.latency_p95 <= run.latency_p99
    assert list(run.utilisation) == ["a", "b", "c"]
    assert run.idle_seconds == pytest.approx(3 * run.makespan * (1 - run.utilisation_mean))
    assert run.figures["extra"] == 1
    assert run.peak_rss > 1e6


def test_real_time_takes_its_time():
    observed = simulate(Plan((0.001, 0.002), 20), virtual=False)
    assert observed.tasks == 20
    assert observed.makespan >= theory.optimum_makespan((0.001, 0.002), 20)


def test_a_live_source_is_measured_from_the_intended_start():
    crowded = Plan([0.1], 100, 4, queue_size=4, arrivals=20.0)
    observed = simulate(crowded)
    # arrivals take 5 s, the work 10 s: the last ones wait for about half of it
    assert max(observed.latencies) > 3.0
    assert max(observed.responses) == pytest.approx(0.1)
    assert observed.makespan > 9.0


def test_a_failed_task_ends_the_run():
    driver = SimulatedDriver("one", 0.1, fail=lambda x: ValueError("bad") if x == 3 else None)
    with pytest.raises(TaskError):
        run_virtual(observe([driver], range(5)))


@settings(max_examples=20)
@given(
    st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5),
    st.integers(1, 60),
    st.floats(1.0, 8.0),
    st.sampled_from(["eft", "greedy", "serial"]),
)
def test_no_policy_beats_the_throttled_optimum(times, tasks, factor, policy):
    throttle = Throttle(0, factor, theory.optimum_makespan(times, tasks) / 2)
    best = throttled_optimum(times, tasks, throttle)
    assert best >= theory.optimum_makespan(times, tasks) - 1e-9
    observed = simulate(Plan(times, tasks, policy=policy, throttle=throttle))
    assert observed.makespan >= best - 1e-9


@pytest.mark.parametrize("part", [0, 0.5, 1, 2])
def test_spread_keeps_the_rate(part):
    times = spread(8, part, rate=100.0)
    assert statistics.pstdev(times) / statistics.fmean(times) == pytest.approx(part, abs=1e-6)
    assert theory.total_rate(times) == pytest.approx(100)


def case(name="some", ratio=1.0, hold=0.0, policy="eft", **plan):
    plan = Plan(TIMES, plan.pop("tasks", 1000), policy=policy, **plan)
    seen = SimpleNamespace(makespan=ratio * plan.optimum, hold_mean=hold * max(TIMES))
    return Case(name, plan, done(seen))


def done(seen):
    """The result of a run that has ended."""
    future = Future()
    future.set_result((seen, None))
    return future


def test_makespan_limits_go_by_the_window():
    assert theory.window_needed(TIMES) == 7
    good = checks.makespan_checks([case(ratio=1.009, window=100), case(ratio=1.2, noise=0.3)])
    assert [check.met for check in good] == [True, True]
    assert "1.0090" in good[0].measured
    bad = checks.makespan_checks([case("one", 1.001), case("two", 1.011), case("three", 1.003)])
    assert bad[0].met is False
    assert "1.0110 (worst of 3: two" in bad[0].measured


def test_a_window_that_order_cannot_fill_is_held_against_what_order_can():
    plan = Plan((0.001, *[0.2] * 10), 1000, 100)  # in order the ten slow devices rest
    assert plan.windowed_optimum > 1.02 * plan.optimum
    met = []
    for ratio in (1.019, 1.021):
        seen = SimpleNamespace(makespan=ratio * plan.windowed_optimum, hold_mean=0.0)
        check = checks.makespan_checks([Case("ten rest", plan, done(seen))])[-1]
        assert "windowed optimum" in check.claim
        met.append(check.met)
    assert met == [True, False]


def test_hold_counts_where_the_plain_pull_holds():
    much, little = case("much", hold=0.5, policy="greedy"), case("little", policy="greedy")
    assert checks.hold_check([much, little, case("much"), case("little", hold=0.2)]).met
    assert not checks.hold_check([much, case("much", hold=0.011)]).met


def test_noise_counts_from_a_thousand_tasks():
    few, many = case(ratio=1.5, noise=0.3, tasks=100), case(ratio=1.09, noise=0.3)
    assert checks.noise_check([few, many]).met
    assert not checks.noise_check([case(ratio=1.11, noise=0.3)]).met


def test_worst_of_lows_and_of_nothing():
    low = checks.worst("claim", {"a": 1.0, "b": 0.98}, 0.99, least=True)
    assert (low.met, low.measured) == (False, "0.9800 (worst of 2: b)")
    assert checks.worst("claim", {}, 1.0).met


def test_a_lab_keeps_rows_and_tables():
    told = []
    lab = Lab("ablation", Context(short=True, progress=told.append))
    results = lab.sweep("windows", {"10": Plan(TIMES, 50, 10), "20": Plan(TIMES, 50, 20)})
    assert {name: list(cases) for name, cases in results.items()} == {
        "10": ["eft", "greedy"],
        "20": ["eft", "greedy"],
    }
    (table,) = lab.outcome.tables
    assert [len(row) for row in table.rows] == [len(table.columns)] * 2
    assert "virtual clock" in table.note
    assert len(lab.finished().runs) == len(told) == 4
