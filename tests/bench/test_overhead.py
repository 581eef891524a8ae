"""The suite overhead: that it measures what it says; how much is no matter for tests."""

import asyncio
import math

import pytest

from asyncinfer.bench.overhead import calls, streams, threads
from asyncinfer.bench.overhead import suite as overhead
from asyncinfer.bench.overhead.trials import Trial, compared, in_turns, measure, ratio
from asyncinfer.bench.record import Run
from asyncinfer.bench.suite import Context

LOOPS = {"asyncio": asyncio.new_event_loop}
SHORT = Context(short=True, runs=1)


@pytest.mark.parametrize("trial", streams.STREAMS, ids=lambda trial: trial.name)
async def test_each_stream_is_whole_and_in_order(trial):
    if trial.module:
        pytest.importorskip(trial.module)
    await trial.work(300)  # raises AssertionError otherwise


@pytest.mark.parametrize("trial", calls.CALLS, ids=lambda trial: trial.name)
async def test_each_call_gets_its_own_answer(trial):
    await trial.work(300)


@pytest.mark.parametrize("way", threads.SECTIONS)
async def test_each_way_into_a_thread_and_back(way):
    trials = threads.trials(way)
    assert [trial.name for trial in trials[:2]] == [threads.BARE, "asyncinfer's Worker"]
    for trial in trials:
        if trial.name != "anyio.to_thread":  # keeps its threads for a while
            await trial.work(130)


async def test_a_result_out_of_place_is_noticed():
    async def swapped():
        for x in (0, 2, 1):
            yield x

    with pytest.raises(AssertionError, match="2 came in the place of 1"):
        await streams.check_order(swapped(), 3)
    with pytest.raises(AssertionError, match="3 results for 4 tasks"):
        await streams.check_order(_count(3), 4)


async def _count(n):
    for x in range(n):
        yield x


def test_cases_take_turns_and_the_warm_up_is_dropped():
    order = []

    def case(name):
        def run():
            order.append(name)
            return f"{name}{order.count(name)}"

        return run

    measured = in_turns({"a": case("a"), "b": case("b")}, 2)
    assert measured == {"a": ["a2", "a3"], "b": ["b2", "b3"]}
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert in_turns({"a": case("a")}, 5, warm_up=0, limit=0.0) == {"a": ["a4"]}  # at least one


def test_rows_of_a_section():
    async def work(tasks):
        return {"lag": 0.25}

    trials = [Trial("one", work, 2000), Trial("other", work, 2000, "no_such_package")]
    runs, skipped = measure("things", trials, LOOPS, Context(runs=3))
    assert skipped == ["other: no_such_package is not installed"]
    assert [run.run for run in runs] == [1, 2, 3]
    assert {(run.suite, run.case, run.policy) for run in runs} == {
        ("overhead", "things, asyncio", "one")
    }
    for run in runs:
        assert run.tasks == 2000
        assert run.throughput == pytest.approx(2000 / run.makespan)
        assert run.figures == {"loop": "asyncio", "max_batch": 1, "lag": 0.25}


def _runs(rates, case="stream, uvloop"):
    return [
        Run(suite="overhead", case=case, policy=policy, throughput=rate, run=number)
        for policy, values in rates.items()
        for number, rate in enumerate(values, 1)
    ]


def test_ratios_are_medians_of_the_rounds():
    runs = _runs({"a": [10.0, 30.0, 20.0], "b": [10.0, 10.0, 99.0]})
    assert ratio(runs, "stream, uvloop", "a", "b") == 1.0
    assert math.isnan(ratio(runs, "stream, uvloop", "a", "c"))
    table = compared("title", runs, "b")
    assert table.columns == ["", "uvloop, tasks/s"]
    assert table.rows == [["a", "20 (10-30) x1"], ["b", "10 (10-99) x1"]]


def test_checks_say_whether_claims_hold():
    hand, ours, batched = "asyncio.Queue by hand", "asyncinfer", "asyncinfer, max_batch 64"
    runs = _runs({hand: [100.0], ours: [100.0], batched: [199.0], "aiostream ordered map": [5.0]})
    checks = overhead.checks(runs)
    assert [check.met for check in checks] == [True, False, True]
    assert [check.measured for check in checks] == ["1.00 x", "1.99 x", "20.00 x"]
    assert checks[1].why == "199 against 100 tasks/s"


def test_claims_that_were_not_measured_are_not_checked():
    assert overhead.checks(_runs({"asyncinfer": [1.0]})) == []
    assert overhead.checks(_runs({"asyncinfer": [1.0]}, "stream, asyncio")) == []


def test_lag_is_checked_on_each_loop():
    runs = [
        Run(suite="overhead", case=f"loop lag, {loop}", policy=policy, figures={"lag_p99": lag})
        for loop, ours in (("asyncio", 0.004), ("uvloop", 0.007))
        for policy, lag in (("asyncio.Queue by hand", 0.001), ("asyncinfer", ours))
    ]
    assert [check.met for check in overhead.checks(runs)] == [True, False]


@pytest.mark.slow
def test_the_short_form():
    told = []
    outcome = overhead.run(Context(short=True, runs=1, progress=told.append))
    assert outcome.suite == "overhead"
    assert outcome.seconds > 0
    assert len(outcome.tables) == 7
    assert len(told) == 6
    assert {table.title for table in outcome.tables} >= {"Memory per waiting task"}
    for table in outcome.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    for run in outcome.runs:
        assert run.suite == "overhead"
        if run.case != "memory per task":
            assert run.throughput > 0
    held = {run.policy for run in outcome.runs if run.case == "memory per task"}
    assert held == {"asyncio.Queue by hand", "asyncinfer"}


def test_the_plot(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    runs = _runs({"a": [10.0, 30.0], "b": [10.0, 10.0]})
    plot = overhead.bars(runs, {"uvloop": asyncio.new_event_loop})
    ax = figure.Figure().subplots()
    plot.draw(ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
