"""The suite real: its passes, loads and claims with made-up devices; once with torch."""

import asyncio
import math
import sys
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from asyncinfer.bench.real import (
    batching,
    memory,
    open_calls,
    stage,
    torch_loops,
    torch_stream,
    torch_turns,
)
from asyncinfer.bench.real import devices as real_devices
from asyncinfer.bench.real import suite as real
from asyncinfer.bench.real.by_hand import MicroBatcher
from asyncinfer.bench.real.devices import Opened, close_all, devices_for, open_all
from asyncinfer.bench.real.load import closed_loop, full_loop, open_loop
from asyncinfer.bench.real.passes import Case, Work, one_pass
from asyncinfer.bench.record import Outcome, Run
from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig
from asyncinfer.dispatcher import Dispatcher
from asyncinfer.driver import ServiceTime
from asyncinfer.errors import ConfigError
from asyncinfer.model import Model
from asyncinfer.testing import SimulatedDriver


async def _opened(*drivers):
    opened = [Opened(driver) for driver in drivers]
    for one in opened:
        await one.driver.open()
        await one.time()
    return opened


def _doubling(name, seconds, **options):
    return SimulatedDriver(name, seconds, function=lambda x: 2 * x, **options)


# ---- devices


async def test_a_device_stays_open_from_one_dispatcher_to_the_next():
    (device,) = await _opened(_doubling("a", 0.0, max_batch=4))
    for _ in range(2):
        async with Dispatcher([device]) as dispatcher:
            assert await dispatcher.infer(2) == 4
        assert device.driver.is_open
    await close_all([device])
    assert not device.driver.is_open


async def test_a_device_is_timed_once():
    (device,) = await _opened(_doubling("a", 0.01, batch_cost=0.02, max_batch=4))
    device.driver.service_time = 99.0
    assert await device.calibrate() == ServiceTime(0.02, 0.01)
    assert device.rate == pytest.approx(4 / 0.06)
    assert device.max_batch == 4
    assert device.batch_cost == 0.02  # what else the driver has


async def test_devices_that_do_not_open_are_left_out():
    names = ["here", "gone"]
    devices = [
        DeviceConfig("simulated", "here", {"service_time": 0.001}),
        DeviceConfig("simulated", "gone", {"service_time": 0.001, "unknown": 1}),
    ]
    opened, skipped = await open_all(devices, Model("digits", lambda: None))
    assert [one.name for one in opened] == names[:1]
    assert len(skipped) == 1
    assert skipped[0].startswith("digits on gone: ")
    await close_all(opened)


def test_named_devices_are_those_of_the_command_line():
    pytest.importorskip("torch")
    context = Context(devices=("mac_studio", "raspberry_pi", "cortex_m4", "sim:0.1"), short=True)
    found, skipped = devices_for("digits", context)
    assert [device.name for device in found] == ["mac_studio", "raspberry_pi", "cortex_m4"]
    assert skipped == ["digits on sim:0.1: runs no model"]
    found, skipped = devices_for("mtcnn", context)
    assert [device.name for device in found] == ["mac_studio", "raspberry_pi"]
    assert skipped[0] == "mtcnn on cortex_m4: its firmware runs digits"
    assert "stand-in" in real_devices.notes(found)


def test_devices_of_our_choice():
    pytest.importorskip("torch")
    names = [device.name for device in devices_for("digits", Context())[0]]
    assert names[0] == "torch-1"
    assert names[-2:] == ["raspberry_pi", "cortex_m4"]
    short = [device.name for device in devices_for("digits", Context(short=True))[0]]
    assert short == ["torch-1", "raspberry_pi", "cortex_m4"]


# ---- one pass


async def test_what_a_pass_measures():
    devices = await _opened(_doubling("fast", 0.001), _doubling("slow", 0.004))
    work = Work("numbers", [1, 2, 3, 4], targets=[2, 4, 6, 0], alone=[2, 4, 6, 8])
    run, outputs = await one_pass(Case(devices), work, 40)
    assert outputs == [2, 4, 6, 8] * 10
    assert run.case == "numbers: fast + slow"
    assert run.devices == ["fast", "slow"]
    assert run.tasks == 40
    assert run.throughput == pytest.approx(40 / run.makespan)
    assert run.figures["accuracy"] == 0.75
    assert run.figures["same_as_alone"] == 1.0
    assert sum(run.figures["tasks"].values()) == 40
    assert "bit_exact" not in run.figures
    assert set(run.utilisation) == {"fast", "slow"}
    assert 0 < run.latency_p50 <= run.latency_p95 <= run.latency_p99
    assert run.idle_seconds >= 0
    await close_all(devices)


async def test_a_board_that_compares_is_asked_how_it_went():
    class Board(SimulatedDriver):
        compared, different = 0, 0

        async def infer(self, batch):
            self.compared += len(batch)
            self.different += 3 in batch
            return batch

    devices = await _opened(Board("board", 0.0))
    run, _ = await one_pass(Case(devices), Work("m", [1, 2]), 10)
    assert (run.figures["bit_exact"], run.figures["compared"]) == (True, 10)
    run, _ = await one_pass(Case(devices), Work("m", [3]), 10)
    assert (run.figures["bit_exact"], run.figures["compared"]) == (False, 10)
    assert math.isnan(run.figures["accuracy"])


def test_the_number_of_tasks_fills_a_time():
    fast, near, slow = (Opened(SimulatedDriver(name, 1.0, max_batch=4)) for name in "abc")
    for device, each in ((fast, 0.01), (near, 0.02), (slow, 1.0)):
        device._service = ServiceTime(0.0, each)
    assert Case([fast]).tasks(1.0, 100.0) == Case([near]).tasks(1.0, 100.0) == 100
    assert Case([fast, near, slow]).tasks(1.0, 100.0) == 201
    assert Case([slow]).tasks(1.0, 100.0) == 8  # not four batches of a slow device alone
    assert Case([fast, slow]).tasks(0.01, 100.0) == 16  # four batches


# ---- a stage


def test_each_kind_alone_like_ones_together_and_all_under_two_policies():
    names = ("torch-1", "torch-2", "process-1", "process-2", "raspberry_pi")
    devices = [Opened(SimulatedDriver(name, 0.001)) for name in names]
    titles = [(case.title, case.policy) for case in stage.cases(devices)]
    together = "torch-1 + torch-2 + raspberry_pi"
    assert titles == [
        ("torch-1", "eft"),
        ("process-1", "eft"),
        ("raspberry_pi", "eft"),
        ("torch-1 + torch-2", "eft"),
        ("process-1 + process-2", "eft"),
        (together, "eft"),
        (together, "greedy"),
    ]
    assert len(stage.cases(devices[:1])) == 1


def test_answers_are_checked():
    def run(**figures):
        return Run(suite="real", case="m: a", figures=figures)

    good = [run(same_as_alone=1.0), run(same_as_alone=0.99, bit_exact=True)]
    assert [check.met for check in stage.checks(good)] == [True, True]
    bad = [run(same_as_alone=0.99), run(bit_exact=False, same_as_alone=1.0)]
    assert [check.met for check in stage.checks(bad)] == [False, False]
    assert stage.checks([]) == []


# ---- torch against bare loops


def _torch(rates, lags=(0.001, 0.001, 0.001)):
    names = (torch_loops.NAIVE, torch_loops.BEST, torch_loops.OURS)
    return [
        Run(
            suite="real",
            case="digits: torch",
            policy=name,
            throughput=rate,
            figures={"loop_lag_p99": lag, "settings": {}},
        )
        for name, rate, lag in zip(names, rates, lags, strict=True)
    ]


def test_the_torch_driver_is_checked_against_both_loops():
    assert [c.met for c in torch_loops.checks(_torch((10.0, 100.0, 95.0)))] == [True] * 3
    checks = torch_loops.checks(_torch((24.0, 100.0, 94.0), (0.0, 0.001, 0.0065)))
    assert [check.met for check in checks] == [False] * 3
    assert [check.measured for check in checks] == ["0.94 x", "3.92 x", "5.5 ms"]
    assert torch_loops.checks([]) == []


def test_the_naive_loop_is_compared_with_ours_by_way_of_the_best():
    naive, best, ours = _torch((10.0, 100.0, 190.0))
    later = [replace(best, throughput=200.0, run=2), replace(ours, run=2)]
    found = {check.claim: check.measured for check in torch_loops.checks([naive, best, *later])}
    assert found["digits: stream >= 0.95 x the best bare loop"] == "0.95 x"
    assert found["digits: stream >= 4 x the naive loop"] == "9.50 x"


def test_nothing_is_demanded_that_the_model_does_not_allow():
    tiny = torch_loops.checks(_torch((1e4, 1e5, 5e4)))
    assert [check.claim for check in tiny] == [
        "digits: stream >= 4 x the naive loop",
        "digits: p99 loop lag < 5 ms beyond that beside the best bare loop",
    ]
    heavy = torch_loops.checks(_torch((10.0, 15.0, 15.0)))
    assert heavy[0].claim == "digits: stream >= 0.95 x the best bare loop"
    assert len(heavy) == 2


def test_a_turn_is_long_enough_for_some_calls():
    assert torch_turns.long_enough(1.0, 32, 2, 4000.0) == 1.0
    assert torch_turns.long_enough(1.0, 32, 2, 100.0) == 5.12


@pytest.mark.parametrize("together", [0.0, 1e-4, 0.1, 0.5])
@pytest.mark.parametrize("calls", [2, 3, 8])
def test_the_rate_of_a_turn_is_the_same_whether_workers_finish_together_or_in_turn(calls, together):
    marks = [(10.0 + call + late, 8) for call in range(calls) for late in (together, 0.0)]
    assert torch_stream.steady(marks) == pytest.approx(16.0, rel=0.2 if calls == 2 else 0.06)
    at_once = [(10.0 + call, 16) for call in range(calls)]
    assert torch_stream.steady(at_once) == pytest.approx(16.0)


def test_a_turn_without_two_times_has_no_rate():
    for marks in ([], [(10.0, 8)], [(10.0, 8), (10.0, 8)]):
        assert math.isnan(torch_stream.steady(marks))


async def test_a_turn_of_ours_ends_with_all_devices_free():
    devices = [SimulatedDriver("a", 0.001, max_batch=4), SimulatedDriver("b", 0.02)]
    async with Dispatcher(devices, window=64) as dispatcher:
        ours = torch_stream.Ours(dispatcher)
        for _ in range(2):
            found = await ours.turn([1, 2, 3], 0.1)
            assert found.rate > 0
            assert found.late
            assert not any(device.in_flight for device in dispatcher.stats().devices)


@pytest.mark.parametrize(
    ("batch", "rate", "images"),
    [
        (4, 72.0, 8),  # one takes 0.11 s
        (8, 72.0, 8),
        (16, 3000.0, 240),
        (32, 3000.0, 256),
        (64, 3000.0, 256),
        (256, 240_000.0, 4096),  # though that takes less
    ],
)
def test_a_call_of_ours_takes_as_many_batches_as_make_it_long(batch, rate, images):
    bare = pytest.importorskip("asyncinfer_drivers.torch_loops")
    settings = bare.Settings(batch, workers=2)
    assert torch_turns.images_of_a_call(settings, rate) == images


async def test_ours_gives_models_the_batches_of_the_best_loop():
    bare = pytest.importorskip("asyncinfer_drivers.torch_loops")
    model = real_devices.with_own_steps("digits")
    settings = bare.Settings(8, optimize="none", workers=2)
    inputs = bare.inputs_of("digits", 64)
    match = torch_stream.Match("digits", "digits", model, {}, inputs, settings)
    async with AsyncExitStack() as stack:
        ours = await torch_stream.Ours.opened(match, 32, stack)
        details = [device.details for device in ours.dispatcher.stats().devices]
        assert [(d["max_batch"], d["micro_batch"]) for d in details] == [(32, 8)] * 2
        assert (await ours.turn(inputs, 0.1)).rate > 0
    run = torch_turns._run(match, torch_loops.OURS, torch_stream.Found(1.0, []), 42, 32)
    assert (run.figures["settings"]["batch"], run.figures["settings"]["micro_batch"]) == (32, 8)


def test_turns_with_the_naive_loop_and_with_ours_are_rounds_of_their_own():
    bare = pytest.importorskip("asyncinfer_drivers.torch_loops")
    match = torch_stream.Match("m", None, None, {}, [0], bare.Settings(1))
    turn = {torch_loops.BEST: lambda: torch_stream.Found(1.0, [])}
    first = torch_turns._rounds(match, turn, 2, Context())
    then = torch_turns._rounds(match, turn, 3, Context(), before=len(first))
    assert [run.run for run in (*first, *then)] == [1, 2, 3, 4, 5]


def test_a_bare_loop_tells_when_its_batches_were_done():
    pytest.importorskip("torch")
    from asyncinfer_drivers import torch_loops as bare

    settings = bare.Settings(batch=16, optimize="none", workers=2, malloc="as it is")
    loop = bare.prepared_loop("digits", bare.inputs_of("digits", 64), settings)
    for _ in range(2):
        marks = loop.run(0.1).marks
        assert {images for _, images in marks} == {16}
        assert len(marks) > 2
        assert torch_stream.steady(marks) > 0


class _Absent:
    """Finds no torch, wherever it is asked for again."""

    @staticmethod
    def find_spec(name, *_):
        if name == "asyncinfer_drivers.torch_loops":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_loops(monkeypatch):
    monkeypatch.delitem(sys.modules, "asyncinfer_drivers.torch_loops", raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Absent, *sys.meta_path])
    outcome = Outcome("real")
    torch_loops.torch_comparison("digits", Context(short=True), outcome)
    assert len(outcome.skipped) == 1
    assert outcome.skipped[0].startswith("digits against bare loops: No module")


# ---- load and batches


async def test_clients_wait_for_their_answers():
    async with Dispatcher([_doubling("a", 0.001, max_batch=8)]) as dispatcher:
        load = await closed_loop(dispatcher, [1, 2], clients=4, seconds=0.05)
    assert len(load.latencies) >= 4
    assert load.offered == load.rate > 0


async def test_arrivals_wait_for_nobody():
    async with Dispatcher([_doubling("a", 0.05)]) as dispatcher:
        load = await open_loop(dispatcher, [1], rate=200.0, seconds=0.05, seed=42)
    assert load.offered == 200.0
    latencies = load.latencies
    assert len(latencies) > 2
    assert min(latencies) >= 0.04
    assert max(latencies) > 0.08  # it waited for others: counted from the time it was to be made


async def test_a_full_load_has_so_many_calls_under_way():
    async with Dispatcher([_doubling("a", 0.01)]) as dispatcher:
        load = await full_loop(dispatcher, [1], clients=4, seconds=0.05)
    assert len(load.latencies) >= 4
    assert load.offered == load.rate


async def test_the_loop_by_hand_answers_each_call_with_its_own():
    def answer(batch):
        sizes.append(len(batch))
        return [2 * x for x in batch]

    sizes: list[int] = []
    async with MicroBatcher(answer, workers=2, most=4) as loop:
        assert await asyncio.gather(*map(loop.infer, range(20))) == [2 * x for x in range(20)]
    assert loop.batches == len(sizes)
    assert max(sizes) <= 4


def _random(load, policy, p50, p99):
    case, figures = f"calls at random: {load}", {"service": 0.001, "offered": 1.0}
    times = {"latency_p50": p50, "latency_p99": p99}
    return Run(suite="real", case=case, policy=policy, figures=figures, **times)


def test_calls_at_random_are_checked_at_80_percent():
    ours, hand = open_calls.OURS, open_calls.BY_HAND
    assert open_calls.checks([_random("50%", ours, 1.0, 1.0)]) == []
    runs = [_random("80%", ours, 0.004, 0.021), _random("80%", hand, 0.002, 0.020)]
    assert [check.met for check in open_calls.checks(runs)] == [True, False, False, True]


def _batch(load, policy, rate, latency):
    return Run(
        suite="real",
        case=f"batching: {load}",
        policy=policy,
        throughput=rate,
        latency_p50=latency,
    )


def test_adaptive_batches_are_checked_where_there_are_any():
    fixed = [
        _batch("closed loop", "batch 1", 50.0, 1.0),
        _batch("closed loop", "batch 32", 100.0, 1.0),
        _batch("open loop, 20%", "batch 1", 20.0, 0.010),
        _batch("open loop, 20%", "batch 32", 20.0, 0.020),
    ]
    assert batching.checks(fixed) == []
    ours = [
        _batch("closed loop", batching.ADAPTIVE, 96.0, 1.0),
        _batch("open loop, 20%", batching.ADAPTIVE, 20.0, 0.012),
    ]
    assert [check.met for check in batching.checks(fixed + ours)] == [True, False]


def test_adaptive_batches_are_compared_with_the_best_size_round_by_round():
    def rounds(policy, *rates):
        runs = (_batch("closed loop", policy, rate, 1.0) for rate in rates)
        return [replace(run, run=number) for number, run in enumerate(runs, 1)]

    fixed = rounds("batch 8", 60.0, 60.0, 60.0) + rounds("batch 32", 100.0, 70.0, 130.0)
    ours = rounds(batching.ADAPTIVE, 96.0, 68.0, 110.0)
    (check,) = batching.checks(fixed + ours)
    assert (check.measured, check.met) == ("0.96", True)


def test_the_latency_plot():
    figure = pytest.importorskip("matplotlib.figure")
    runs = [
        replace(_batch("open loop, 50%", policy, 1.0, 1.0), figures={"latency_samples": samples})
        for policy, samples in (("batch 1", [0.002, 0.001]), ("batch 8", [0.003]))
    ]
    ax = figure.Figure().subplots()
    batching.latencies(runs, "open loop, 50%").draw(ax)
    assert [list(line.get_xdata()) for line in ax.lines] == [[1.0, 2.0], [3.0]]


# ---- the whole


def test_nothing_can_be_run(monkeypatch):
    def broken(*_):
        raise ConfigError("driver 'torch' needs torch: pip install 'asyncinfer[torch]'")

    monkeypatch.setattr(stage, "stage", broken)
    monkeypatch.setattr(torch_loops, "torch_comparison", lambda *_: None)
    outcome = real.run(Context(short=True))
    assert outcome.skipped[0].startswith("digits: driver 'torch' needs torch")
    assert outcome.runs == outcome.checks == []


def test_memory_is_shown_by_model():
    runs = [
        Run(suite="real", case="digits: memory", policy=policy, figures={"memory_mib": mib})
        for policy, mib in (("plain loop", 300.4), ("asyncinfer run, one device", 310.0))
    ]
    table = memory.memory_table(runs)
    assert table.rows == [["digits", "300 MiB", "310 MiB"]]


def test_memory_of_this_process():
    pytest.importorskip("memory_profiler")
    assert memory.memory_now() > 1


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch on TorchScript
def test_the_short_form():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    outcome = real.run(Context(short=True, devices=("cpu", "raspberry_pi")))
    assert {line.partition(":")[0] for line in outcome.skipped} == {
        "pictures, faces, calls at random, batching, memory of runs"
    }
    passes = [run for run in outcome.runs if run.case.startswith("digits: ") and run.devices]
    assert {run.policy for run in passes} >= {"eft", "greedy"}
    for run in outcome.runs:
        assert run.throughput > 0
    for table in outcome.tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert any("stand-in" in table.note for table in outcome.tables)
    answers = next(c for c in outcome.checks if c.claim.startswith("torch devices together"))
    assert answers.met
