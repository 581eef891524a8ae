"""The suite sharing: sets of devices, devices that fail, and made-up hosts; all made up here."""

import asyncio

import pytest

from asyncinfer.bench.real.devices import Opened
from asyncinfer.bench.record import Outcome, Run
from asyncinfer.bench.report import save_plots
from asyncinfer.bench.sharing import failing, hosts, sets, suite
from asyncinfer.bench.sharing.devices import Apart, Failing, devices_here, fails_from, fails_often
from asyncinfer.bench.sharing.rates import Span, Streaming
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, parse
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver, SimulatedHost, run_virtual

MADE_UP = """
[[device]]
driver = "simulated"
name = "{}"
options = {{ service_time = {}, max_batch = 8, shares = "desk" }}
"""


@pytest.fixture
def quick(monkeypatch):
    """All of the suite in a second or two."""
    brief = Span(0.01, 0.05)
    times = sets._Times(brief, 1, 0.05, brief, 1, 1.0)
    monkeypatch.setattr(sets, "_SHORT", times)
    monkeypatch.setattr(sets, "_FULL", times)
    monkeypatch.setattr(failing, "FEW_IMAGES", 200)
    monkeypatch.setattr(failing, "BESIDE", failing.BESIDE[3:4])
    monkeypatch.setattr(hosts, "TASKS", 200)
    monkeypatch.setattr(hosts, "MOST_TASKS", 20_000)
    monkeypatch.setattr(hosts, "TIMES", (0.02, 0.03))
    monkeypatch.setattr(
        failing,
        "plain_torch",
        lambda name: DeviceConfig("simulated", name, {"service_time": 1e-5, "max_batch": 8}),
    )
    return parse(MADE_UP.format("a", 0.001) + MADE_UP.format("b", 0.002))


def complete(outcome, folder):
    for table in outcome.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert table.note
    assert len(save_plots([outcome], folder, "png")) == len(outcome.plots)
    assert all(check.measured for check in outcome.checks)


def test_the_suite(quick, tmp_path):
    outcome = suite.run(Context(config=quick, runs=2, short=True))
    assert not outcome.skipped
    complete(outcome, tmp_path)
    assert {plot.name for plot in outcome.plots} == {"sets-of-2", "hosts"}
    looked = {run.case for run in outcome.runs if run.policy == sets.LOOK}
    assert looked == {"a", "b", "a + b"}
    claims = [check.claim for check in outcome.checks]
    assert claims[0] == "a + b together >= 0.95 of the best of their sets"
    assert len(set(claims)) == len(claims)


def test_what_cannot_be_measured_is_said(quick, monkeypatch):
    def nothing(*unused):
        raise ConfigError("needs torch")

    monkeypatch.setattr(sets, "devices_here", nothing)
    outcome = suite.run(Context(config=quick, short=True))
    assert outcome.skipped == ["devices of this host: needs torch"]
    assert [check.claim for check in outcome.checks if "of their sets" in check.claim] == []


# ---- sets


def test_every_set_of_a_few_devices_and_some_of_many():
    assert sets.subsets(("a", "b", "c")) == [
        ("a",),
        ("b",),
        ("c",),
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
        ("a", "b", "c"),
    ]
    many = tuple("abcdefgh")
    assert len(sets.subsets(many[:6])) == 63
    assert len(sets.subsets(many)) == 8 + 28 + 1


def test_the_groups_are_the_first_devices_that_are_there_and_all():
    chosen = [DeviceConfig("simulated", name) for name in "abc"]
    assert sets._groups(chosen, 2, {"a", "b", "c"}) == [("a", "b"), ("a", "b", "c")]
    assert sets._groups(chosen, 2, {"a", "c"}) == [("a", "c")]
    assert sets._groups(chosen, 2, {"a"}) == []


def test_this_host_has_six_devices_of_which_four_are_torch():
    chosen, first = devices_here(Context())
    assert [device.name for device in chosen[:first]] == ["batching", "single", "slowed", "process"]
    assert [device.name for device in chosen[first:]] == ["cortex_m4", "server"]
    assert len(devices_here(Context(short=True))[0]) == 3
    assert [device.name for device in devices_here(Context(["sim:1", "cpu"]))[0]] == [
        "sim:1",
        "cpu",
    ]


def _turn(members, policy, throughput, share=None):
    figures = {"tasks": dict.fromkeys(members, 10), "rests": {}}
    if share is not None:
        figures |= {"group": 2, "share": share}
    return Run(
        suite="sharing",
        case=" + ".join(members),
        policy=policy,
        devices=members,
        throughput=throughput,
        tasks=10 * len(members),
        figures=figures,
    )


@pytest.mark.parametrize(("shares", "met"), [((0.96, 0.97, 0.5), True), ((0.94, 0.94, 2.0), False)])
def test_all_are_compared_with_the_best_set_by_the_median_of_turns(shares, met):
    runs = [_turn("ab", sets.CHOOSING, 96.0), _turn("a", sets.LOOK, 1.0), _turn("ab", sets.LOOK, 1)]
    runs += [_turn("a", sets.APART, 100.0, share) for share in shares]
    runs += [_turn("ab", sets.APART, 50.0, 1.9)]
    check = sets.check(("a", "b"), runs)
    assert check.met is met
    assert "of a; all of them at work 50/s" in check.measured


def test_a_stream_stands_still_between_its_measurements():
    async def main():
        driver = SimulatedDriver("a", 0.01)
        async with Streaming("case", "policy", [driver], range(3)) as stream:
            await stream.run(1.0)
            first = await stream.measured(Span(0.5, 2.0))
            await asyncio.sleep(1000)
            second = await stream.measured(Span(0.5, 2.0))
        assert not driver.is_open
        return first, second

    for run in run_virtual(main()):
        assert run.throughput == pytest.approx(100, rel=0.02)
        assert run.utilisation["a"] == pytest.approx(1, rel=0.02)
        assert run.figures["tasks"] == {"a": run.tasks}


def test_what_ends_a_stream_too_early_is_raised():
    async def main():
        broken = SimulatedDriver("a", 0.01, fail=lambda x: ValueError("no"))
        async with Streaming("case", "policy", [broken], range(3)) as stream:
            await stream.run(1.0)

    with pytest.raises(Exception, match="no"):
        run_virtual(main())


def test_devices_apart_share_nothing_and_stay_open():
    async def main():
        host = SimulatedHost(cores=1.0)
        drivers = [SimulatedDriver(name, 0.01, host=host) for name in "ab"]
        opened = [Opened(driver) for driver in drivers]
        for one in opened:
            await one.driver.open()
            await one.time()
        async with Streaming("", "", [Apart(one) for one in opened], [1]) as stream:
            run = await stream.measured(Span(1.0, 10.0))
        assert all(driver.is_open for driver in drivers)
        return run

    run = run_virtual(main())
    assert run.figures["rests"] == {}
    assert min(run.figures["tasks"].values()) > 0


# ---- devices that fail


async def test_some_tasks_fail_and_all_fail_at_once():
    device = Opened(SimulatedDriver("a", 0.0))
    await device.driver.open()
    broken = Failing(device, fails_from(1))
    assert list(await broken.infer([1, 2])) == [1, 2]
    with pytest.raises(RuntimeError, match="a is broken"):
        await broken.infer([1, 2])
    flaky = Failing(device, fails_often(0.5, 42))
    failed = sum(isinstance(y, RuntimeError) for y in await flaky.infer(range(1000)))
    assert 400 < failed < 600
    async with Dispatcher([flaky], retries=9) as dispatcher:
        assert [y async for y in dispatcher.stream(range(10))] == list(range(10))


def test_made_up_devices_that_fail_are_measured_beside_the_good_one(monkeypatch, tmp_path):
    monkeypatch.setattr(failing, "BESIDE", failing.BESIDE[:4])
    monkeypatch.setattr(failing, "MANY_TASKS", 64)
    outcome = Outcome("sharing")
    failing.made_up(Context(), outcome)
    complete(outcome, tmp_path)
    assert outcome.runs[-2].makespan == pytest.approx(0.98)
    assert len(outcome.tables[0].rows) == len(failing.BESIDE)
    assert outcome.checks[-1].met


# ---- made-up hosts


def test_hosts_are_drawn_as_promised():
    kinds = {kind.title: kind.plans for kind in hosts.plans(Context())}
    assert kinds["steady"] == hosts.plans(Context())[0].plans
    assert len(kinds["steady"]) == len(kinds["noisy"]) == hosts.MANY
    for plans in kinds.values():
        for plan in plans:
            assert 2 <= len(plan.times) == len(plan.wanted) <= 8
            assert plan.tasks <= hosts.MOST_TASKS
            assert plan.best.rate > 0
    (first, *_), (other, *_) = kinds["steady"], kinds["independent"]
    assert other.best.rate == pytest.approx(sum(1 / time for time in first.times))


@pytest.mark.parametrize("change", [1.0, 0.5])
def test_ratios_are_to_the_best_set(change):
    plan = hosts.Plan((0.01, 0.04), (2.0, 2.0), 2.0, 0.0, tasks=hosts.TASKS // 4, change=change)
    assert plan.best.best == (0,)
    assert plan.best.rate == pytest.approx(100)
    found = hosts.simulated(plan)
    assert 0.9 < found.second_half <= 1.001
    assert sum(found.tasks.values()) == plan.tasks


def test_the_rate_after_a_change():
    ends = [0.1 * number for number in range(1, 101)]
    assert hosts._rate(ends, 2.0, 4.0) == pytest.approx(10, rel=0.06)
    assert hosts._rate(ends, 9.0, 20.0) == pytest.approx(10, rel=0.11)
    assert hosts._rate(ends, 11.0, 20.0) != hosts._rate(ends, 11.0, 20.0)  # nan: nothing is left
