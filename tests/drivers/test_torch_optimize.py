"""Faster forms of a model: the model's own answers, or none of it."""

import asyncio
import copy
import logging
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers._torch import aot, engine, optimize, tuning
from asyncinfer_drivers._torch.branches import Watched
from asyncinfer_drivers._torch.compare import changed, difference, probes, state
from asyncinfer_drivers._torch.guard import Guarded
from asyncinfer_drivers._torch.judge import Judge
from asyncinfer_drivers._torch.optimize import Choice, Search, plans_of
from asyncinfer_drivers._torch.threads import bind
from asyncinfer_drivers._torch.variants import STEPS
from asyncinfer_drivers.models import digits, imagenet
from asyncinfer_drivers.models.small_net import build as small_net
from asyncinfer_drivers.models.small_net import images
from asyncinfer_drivers.torch_host import TorchDriver, TorchOptions

PLANS = ["fuse", "channels_last", "freeze", "freeze+onednn", "fuse+channels_last+freeze"]

#: for what does not depend on the event loop and takes seconds
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.fixture(scope="module")
def net():
    return in_thread(small_net)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's cache, and nothing found there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def found(module, item, optimize="auto", batch=4, budget=2.0, **options) -> Choice:
    """A search in a thread of its own, as in a driver, with one intra-op thread."""
    search = Search("dev", module, item, batch, budget, aot.Cache.of_user(batch, 1), **options)
    return in_thread(search.run, plans_of(optimize))


def in_thread(function, *args):
    with ThreadPoolExecutor(1, initializer=bind, initargs=(1,)) as thread:
        return thread.submit(function, *args).result()


def conv(*layers) -> nn.Module:
    torch.manual_seed(42)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *layers).eval()


class Calls(nn.Module):
    """A convolution, and a function of the module, its input and the convolution's output."""

    def __init__(self, function):
        super().__init__()
        self.net = conv()
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(self, x, self.net(x))


PICTURE = torch.linspace(-1, 1, 64).view(1, 8, 8)

# --- the same answers ---------------------------------------------------------------------------


@pytest.mark.parametrize("optimize", PLANS)
def test_every_plan_gives_the_nets_answers(net, optimize):
    before = copy.deepcopy(net.state_dict())
    choice = found(net, images(1)[0], optimize)
    assert str(choice) == optimize
    assert not choice.refused
    inputs = torch.stack(images(7))
    with torch.inference_mode():
        assert difference(net(inputs), choice.forward(inputs)) == ""
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(part.training for part in net.modules())


def test_auto_takes_the_fastest(net):
    choice = found(net, images(1)[0], budget=30.0)
    assert choice.plan
    assert choice.gain > 1
    timed = {*choice.refused.values()} - {"no time was left"}  # for some, on a busy machine
    assert all("times as fast" in reason for reason in timed)


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "structure",
    [lambda y: {"a": y, "b": [y.mean((1, 2, 3))]}, lambda y: Pair(y, y + 1), lambda y: [y]],
    ids=["dict", "namedtuple", "list"],
)
def test_structured_outputs(structure):
    model = Calls(lambda self, x, y: structure(y))
    choice = found(model, PICTURE, "freeze")
    assert str(choice) == "freeze"
    with torch.inference_mode():
        wanted, got = model(PICTURE[None]), choice.forward(PICTURE[None])
    assert type(got) is type(wanted)
    assert difference(wanted, got) == ""


def test_dropout_in_evaluation_mode():
    assert found(conv(nn.Dropout(0.5), nn.Flatten()), PICTURE, "freeze").plan


def test_words_are_numbers_within_a_vocabulary():
    model = nn.Sequential(nn.Embedding(5, 8), nn.Flatten(), nn.Linear(24, 2)).eval()
    choice = found(model, torch.tensor([4, 0, 2]), "freeze")
    assert choice.plan
    assert not choice.refused


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.timeout(400)
@ONE_LOOP
@pytest.mark.parametrize("optimize", ["channels_last+freeze", "freeze+onednn"])
async def test_efficientnet(optimize):
    pictures = list(imagenet.inputs().items)
    plain = TorchDriver("efficientnet_lite0", max_batch=4, optimize="none")
    fast = TorchDriver("efficientnet_lite0", max_batch=4, optimize=optimize, optimize_seconds=60)
    answers = []
    for driver in (plain, fast):
        await driver.open()
        answers.append([await driver.infer(pictures[n : n + 4]) for n in (0, 4)])
        await driver.close()
    assert answers[0] == answers[1]
    assert "daisy" in answers[0][1]
    assert fast.details["optimize"] == optimize


# --- refusals -----------------------------------------------------------------------------------


def counted(self, x, y):
    self.count = getattr(self, "count", 0) + 1
    return y + self.count


def remembered(self, x, y):
    self.__dict__.setdefault("seen", []).append(1)
    return y


def buffered(self, x, y):
    self.net[1].running_mean.add_(1)
    return y


REFUSED = {
    "sums": lambda self, x, y: y if x.sum() > 0 else y + 1,
    "sizes": lambda self, x, y: y if len(x) < 2 else y + 1,
    "item": lambda self, x, y: y + float(x.max()),
    "numpy": lambda self, x, y: y + torch.from_numpy(x.numpy()).sum(),
    "random": lambda self, x, y: y + torch.rand(1),
    "dropout": lambda self, x, y: nn.functional.dropout(y, 0.5, training=True),
    "counts": counted,
    "remembers": remembered,
    "buffers": buffered,
    "notes": lambda self, x, y: (y, "text"),
}


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_a_graph_of_what_is_no_graph_is_refused(function):
    choice = found(Calls(function), PICTURE, "freeze")
    assert choice.plan == ()
    assert choice.refused
    assert "freeze" not in found(Calls(function), PICTURE).plan


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_an_answer_that_differs_is_refused(monkeypatch):
    """Control flow that the tracer cannot see."""
    monkeypatch.setattr("asyncinfer_drivers._torch.graph.TracerWarning", UserWarning)
    monkeypatch.setattr("asyncinfer_drivers._torch.graph._TO_NUMBERS", frozenset())
    monkeypatch.setattr("asyncinfer_drivers._torch.judge.watched", lambda *_: Watched())
    choice = found(Calls(REFUSED["sums"]), PICTURE + 1, "freeze")
    assert "off by" in choice.refused["freeze",]


def test_the_filter_for_warnings_is_as_before():
    import warnings

    before = list(warnings.filters)
    found(Calls(REFUSED["sums"]), PICTURE, "freeze")
    assert warnings.filters == before


def test_what_cannot_be_fused_or_has_no_channels():
    assert "channels_last" in str(
        found(nn.Linear(4, 2).eval(), torch.ones(4), "channels_last").refused
    )
    refused = found(nn.Linear(4, 2).eval(), torch.ones(4), "fuse").refused
    assert "no batch normalisation" in str(refused)


def test_a_search_obeys_its_budget_and_its_caller(net):
    item = images(1)[0]
    assert not found(net, item, budget=1e-6).plan
    assert not found(net, item, wanted=lambda: False).plan


@pytest.mark.parametrize(("cost", "plan"), [(1.2, ()), (0.8, ("freeze",))])
def test_a_host_that_becomes_faster_meanwhile_does_not_make_a_form_look_faster(
    monkeypatch, cost, plan
):
    """Its speed doubles with every form that is made: the forms' times beside each other count."""
    now, speed = 0.0, 1.0

    class Takes(nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds = seconds

        def forward(self, x):
            nonlocal now
            now += self.seconds / speed
            return x * 2

    def make(plan, *_):
        nonlocal speed
        speed *= 2
        return Takes(cost if plan == ("freeze",) else 1.0)

    monkeypatch.setattr(optimize, "make", make)
    monkeypatch.setattr(optimize, "timer", lambda device: lambda: now)
    choice = found(Takes(1.0).eval(), torch.ones(2), budget=50.0)
    assert choice.plan == plan
    assert choice.gain == pytest.approx(1 / cost if plan else 1.0)


@pytest.mark.parametrize(("call", "making", "tried"), [(0.5, 30, 5), (0.5, 70, 2), (2.0, 30, 1)])
def test_what_is_made_beside_calls_has_a_budget_of_its_own(monkeypatch, call, making, tried):
    """50 s for calls, and 200 s for what goes on beside them."""
    now = 0.0

    class Takes(nn.Module):
        def forward(self, x):
            nonlocal now
            now += call
            return x * 2

    def make(plan, *_):
        nonlocal now
        now += making
        return lambda x: Takes()(x)

    monkeypatch.setattr(optimize, "make", make)
    monkeypatch.setattr(optimize, "timer", lambda device: lambda: now)
    monkeypatch.setattr(Judge, "unfit", lambda self: "")
    monkeypatch.setattr(Judge, "check", lambda self, forward: None)
    choice = found(Takes().eval(), torch.ones(2), budget=50.0, clock=lambda: now)
    assert [*choice.refused.values()].count("1.00 times as fast") == tried
    assert [*choice.refused.values()].count("no time was left") == 5 - tried


# --- at run time --------------------------------------------------------------------------------


def guarded(module, fast, item):
    return Guarded("dev", module, Choice(fast, ("freeze",)), item)


def test_a_batch_size_is_compared_when_it_first_comes(caplog):
    calls = []

    def fast(x):
        calls.append(len(x))
        return x * 2 if len(x) < 4 else x * 3

    run = guarded(lambda x: x * 2, fast, torch.zeros(2))
    for size in (1, 1, 3, 3):
        assert torch.equal(run(torch.ones(size, 2)), torch.full((size, 2), 2.0))
    assert calls == [1, 1, 3, 3]
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(torch.ones(4, 2)), torch.full((4, 2), 2.0))
    assert "dropped" in caplog.text
    assert not run.fast
    run(torch.ones(1, 2))
    assert calls == [1, 1, 3, 3, 4]


@pytest.mark.parametrize("wrong_row", [0, 8, 15])
def test_of_a_large_batch_three_rows_are_compared(wrong_row):
    sizes = []

    def model(x):
        sizes.append(len(x))
        return {"y": x * 2, "n": [x.sum(1)]}

    def fast(x):
        y = x * 2
        if len(x) == 16:
            y[wrong_row] += 1
        return {"y": y, "n": [x.sum(1)]}

    run = guarded(model, fast, torch.zeros(2))
    items = torch.arange(64.0).reshape(32, 2)
    for size in (32, 5):
        assert torch.equal(run(items[:size])["y"], items[:size] * 2)
    assert sizes == [3, 3]
    assert run.fast
    assert torch.equal(run(items[:16])["y"], items[:16] * 2)
    assert sizes == [3, 3, 3, 16]
    assert not run.fast


def test_real_inputs_are_compared_first_and_ever_more_rarely_then():
    calls = {"model": 0, "due": []}

    def model(x):
        calls["model"] += 1
        return x * 2

    item = torch.zeros(2)
    run = guarded(model, lambda x: x * 2, item)
    for _ in range(10):
        run(item[None])  # as when the driver times its calls
    assert calls["model"] == 1
    for call in range(11, 1000):
        before = calls["model"]
        run(torch.full((1, 2), float(call)))
        if calls["model"] > before:
            calls["due"].append(call)
    assert calls["due"] == [11, 12, 13, 14, 28, 56, 112, 224, 448, 896]


def test_in_the_long_run_a_form_that_is_wrong_in_one_row_is_dropped(caplog):
    def fast(x):
        y = x * 2
        y[5] += 1
        return y

    run = guarded(lambda x: x * 2, fast, torch.zeros(2))
    with caplog.at_level(logging.WARNING):
        for call in range(100):
            run(torch.full((9, 2), float(call + 1)))
    assert not run.fast
    assert caplog.text.count("dropped") == 1


def test_a_model_that_looks_at_the_whole_batch_is_compared_as_a_whole():
    run = guarded(lambda x: x - x.mean(0), lambda x: x - x.mean(0), torch.zeros(2))
    items = torch.arange(20.0).reshape(10, 2)
    assert torch.equal(run(items), items - items.mean(0))
    assert run.fast


@pytest.mark.parametrize("size", [2, 10])
def test_an_input_that_the_model_refuses_is_not_the_forms_fault(size):
    def refuse(x):
        if (x < 0).any():
            raise ValueError("negative")
        return x + 1

    run = guarded(refuse, refuse, torch.zeros(2))
    with pytest.raises(ValueError, match="negative"):
        run(-torch.ones(size, 2))
    assert run.fast
    assert torch.equal(run(torch.ones(size, 2)), torch.full((size, 2), 2.0))
    assert run.fast


def test_a_model_that_refuses_three_rows_is_compared_as_a_whole():
    def even(x):
        if len(x) % 2:
            raise ValueError("odd")
        return x + 1

    run = guarded(even, lambda x: x + 1, torch.zeros(2))
    assert torch.equal(run(torch.ones(8, 2)), torch.full((8, 2), 2.0))
    assert run.fast


def test_other_shapes_and_dtypes_go_to_the_model():
    run = guarded(lambda x: x + 1, lambda x: pytest.fail("not checked"), torch.zeros(2))
    assert run(torch.zeros(1, 3)).tolist() == [[1, 1, 1]]
    assert run(torch.zeros(1, 2, dtype=torch.float64)).dtype == torch.float64
    assert run.fast


@pytest.mark.parametrize("good_calls", [0, 2])
def test_a_form_that_raises_is_dropped(good_calls):
    calls = []

    def fast(x):
        calls.append(1)
        if len(calls) > good_calls:
            raise RuntimeError("broken")
        return x + 1

    run = guarded(lambda x: x + 1, fast, torch.zeros(2))
    for _ in range(4):
        assert run(torch.zeros(1, 2)).tolist() == [[1, 1]]
    assert len(calls) == good_calls + 1


# --- the tolerance ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ([1.0, 2.0], [1.0, 2.0001], ""),
        ([1.0, 2.0], [1.0, 2.01], "off by"),
        ([[1.0, 1.00001]], [[1.00001, 1.0]], ""),  # a tie by the tolerance
        ([[float("nan"), 1.0]], [[float("nan"), 1.0]], ""),
        ([[float("inf"), 1.0]], [[0.0, 1.0]], "off by"),
        ([1, 2], [1, 3], "other values"),
        ([1.0], [[1.0]], "not"),
    ],
)
def test_difference(old, new, text):
    got = difference(torch.tensor(old), torch.tensor(new))
    assert (text in got) if text else got == ""


def test_another_class_is_a_difference_within_the_tolerance_too():
    old, new = torch.tensor([[100.0, 0.0, 0.0021]]), torch.tensor([[100.0, 0.0, 0.0]])
    assert difference(old, new)
    rows = torch.zeros(2, 3)
    rows[:, 1] = 1e-3
    assert difference(rows, rows.clone()) == ""


def test_other_structures_and_values_differ():
    one = torch.ones(1)
    assert difference({"a": one}, {"b": one})
    assert difference((one, "x"), (one, "y"))
    assert difference((one, "x"), (one.clone(), "x")) == ""


@pytest.mark.parametrize(
    "item",
    [PICTURE, torch.ones(3, 4), torch.tensor([1, 5, 2]), torch.tensor(2.5), torch.ones(2, 0)],
)
def test_probes_are_alike_and_different(item):
    others = probes(item)
    assert all(other.shape == item.shape and other.dtype == item.dtype for other in others)
    if item.dtype.is_floating_point and item.numel():
        assert not any(torch.equal(item, other) for other in others[1:])
    else:
        assert all(torch.equal(item.sort().values, other.sort().values) for other in others)


def test_state_sees_what_changes_in_place():
    model = Calls(lambda self, x, y: y)
    model.seen, model.box = {"a": [1]}, nn.Module()
    before = state(model)
    assert not changed(before, state(model))
    model.seen["a"].append(2)
    assert changed(before, state(model))


# --- through the driver -------------------------------------------------------------------------


async def opened(model, **options) -> TorchDriver:
    driver = TorchDriver(model, **options)
    await driver.open()
    return driver


@pytest.mark.parametrize("optimize", ["auto", "freeze", ["onednn", "freeze"], "none"])
async def test_digits_by_a_driver(optimize):
    driver = await opened("digits", optimize=optimize, max_batch=8)
    pictures, targets = digits.inputs().items[:40], list(range(10)) * 4
    outputs = [o for n in range(0, 40, 8) for o in await driver.infer(pictures[n : n + 8])]
    await driver.tune()
    outputs[8:] = [o for n in range(8, 40, 8) for o in await driver.infer(pictures[n : n + 8])]
    await driver.close()
    net = digits.build()
    with torch.inference_mode():
        assert outputs == digits.uncollate(net(digits.collate(pictures)))
    assert outputs[:10] == targets[:10]
    assert driver.details["isolation"] == "thread"
    assert (driver.details["optimize"] == "none") == (
        optimize == "none" or "gain" not in driver.details
    )


async def test_the_users_module_stays_as_it_is(net):
    before = {name: value.data_ptr() for name, value in net.state_dict().items()}
    driver = await opened(net, warmup_input=images(1)[0], max_batch=2)
    await driver.close()
    assert {name: value.data_ptr() for name, value in net.state_dict().items()} == before


async def test_a_refused_name_is_told_and_the_model_runs(caplog):
    model = Calls(lambda self, x, y: y.mean((1, 2, 3)) if x.sum() > 0 else x.sum((1, 2, 3)))
    with caplog.at_level(logging.WARNING):
        driver = await opened(model, optimize="freeze", warmup_input=PICTURE, max_batch=2)
    assert "not optimised with freeze: control flow" in caplog.text
    assert "control flow" in driver.details["refused"]
    (positive,), (negative,) = await driver.infer([PICTURE + 1]), await driver.infer([PICTURE - 1])
    await driver.close()
    with torch.inference_mode():
        assert positive == model((PICTURE + 1)[None])[0]
        assert negative == model((PICTURE - 1)[None])[0]


async def test_without_an_input_the_first_that_is_answered_serves():
    driver = await opened(conv())
    assert driver.details["optimize"] == "none yet"
    await driver.tune()
    assert driver.details["optimize"] == "none yet"
    (refused,) = await driver.infer(["no tensor"])
    assert isinstance(refused, InputError)
    await driver.tune()
    assert driver.details["optimize"] == "none yet"
    await driver.infer([PICTURE])
    await driver.tune()
    await driver.close()
    assert driver.details["optimize"] != "none yet"
    with pytest.raises(ConfigError, match="optimize needs a warmup_input"):
        await opened(conv(), optimize="freeze")


@pytest.mark.parametrize("optimize", ["quick", "freeze+quick", [], ["freeze", "quick"], ""])
def test_unknown_names(optimize):
    with pytest.raises(ConfigError, match="optimize: unknown"):
        TorchDriver("digits", optimize=optimize)


def test_names_in_any_order():
    assert plans_of("freeze+fuse") == plans_of(["freeze", "fuse"]) == (("fuse", "freeze"),)
    assert plans_of("auto") is None
    assert set(STEPS) > {"fuse", "freeze"}


@pytest.mark.parametrize("ended_by", ["cancelling", "closing"])
async def test_a_search_ends_when_it_is_no_longer_wanted(monkeypatch, ended_by):
    begun, go, asked = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def steps(self, plans):
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(10)
        asked.append(self.wanted())
        yield None
        return Choice(self.module)

    monkeypatch.setattr(tuning.Search, "steps", steps)
    monkeypatch.setattr(engine, "_AT_ONCE", 0)  # it is sought between calls
    driver = await opened("digits", max_batch=1)
    work = asyncio.create_task(driver.tune() if ended_by == "cancelling" else asyncio.sleep(0))
    await begun.wait()
    work.cancel()
    closing = asyncio.create_task(driver.close() if ended_by == "closing" else asyncio.sleep(0))
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([work, closing])
    await driver.close()
    assert asked == [False]


# --- compiled -----------------------------------------------------------------------------------


def test_where_compiled_models_are_kept(tmp_path):
    cache = aot.Cache.of_user(4, 1)
    assert cache.folder == tmp_path / "asyncinfer" / "torch"
    one, other = conv(), conv()
    example = PICTURE.expand(4, 1, 8, 8)
    name = aot._file(one, example, cache)
    assert name == aot._file(other, example, cache)
    with torch.no_grad():
        other[0].bias[0] += 1
    names = {
        name,
        aot._file(other, example, cache),
        aot._file(one, example.double(), cache),
        aot._file(one, example[..., 1:], cache),
        aot._file(one, example, aot.Cache.of_user(4, 2)),
        aot._file(Calls(lambda self, x, y: y), example, cache),
        aot._file(Calls(lambda self, x, y: y + 1), example, cache),
    }
    assert len(names) == 7
    other = Calls(lambda self, x, y: y)
    name = aot._file(other, example, cache)
    other.limit = 6.0
    assert aot._file(other, example, cache) != name
    assert not aot.cached(one, example, cache)


def test_a_compiler_is_needed(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    assert not aot.possible()
    choice = found(conv(), PICTURE, "aot")
    assert "compiler" in choice.refused["aot",]


@pytest.mark.parametrize("isolated", [True, False])
def test_nothing_is_compiled_for_a_thread_beside_an_event_loop(monkeypatch, isolated):
    tried = []
    monkeypatch.setattr(aot, "possible", lambda: True)
    monkeypatch.setattr(optimize, "make", lambda plan, module, *_: tried.append(plan) or module)
    options = TorchOptions(
        conv(), warmup_input=PICTURE, optimize_seconds=60.0,
        isolation="process" if isolated else "thread",
    )  # fmt: skip
    one = engine.Engine(options, None, pause=lambda seconds: None, wanted=lambda: True)
    in_thread(lambda: [one.load(), one.tune(), one.release()])
    assert (("aot",) in tried) == isolated
    assert len(tried) >= 5


@pytest.mark.parametrize(
    ("max_batch", "micro_batch", "batch"),
    [(512, None, 512), (512, 300, 300), (4, 8, 4), ("auto", None, 256), ("auto", 8, 8)],
)
def test_a_form_is_for_the_largest_batch_that_the_model_gets(
    monkeypatch, max_batch, micro_batch, batch
):
    sought = []

    def steps(self, plans):
        sought.append((self.batch, self.cache.max_batch))
        yield None
        return Choice(self.module)

    monkeypatch.setattr(tuning.Search, "steps", steps)
    options = TorchOptions(
        conv(), max_batch=max_batch, micro_batch=micro_batch, warmup_input=PICTURE,
        isolation="process",
    )  # fmt: skip
    one = engine.Engine(options, None, pause=lambda seconds: None, wanted=lambda: True)
    in_thread(lambda: [one.load(), one.tune(), one.release()])
    assert sought == [(batch, batch)]


def test_a_thread_refuses_what_is_compiled():
    for names in ("aot", "fuse+aot", ["channels_last", "aot"]):
        with pytest.raises(ConfigError, match="set isolation='process'"):
            TorchDriver(conv(), warmup_input=PICTURE, optimize=names)


@pytest.mark.slow
@ONE_LOOP
@pytest.mark.timeout(600)
@pytest.mark.skipif(not aot.possible(), reason="needs a C++ compiler")
async def test_a_process_runs_what_is_compiled():
    options = {"optimize": "aot", "isolation": "process", "max_batch": 4}
    driver = await opened("digits", **options)
    pictures = digits.inputs().items[:10]
    outputs = [o for n in range(0, 10, 4) for o in await driver.infer(pictures[n : n + 4])]
    assert driver.details["optimize"] == "aot"
    await driver.close()
    assert outputs == list(range(10))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not aot.possible(), reason="needs a C++ compiler")
def test_a_compiled_model_is_right_and_kept(tmp_path):
    model = conv(nn.Flatten(), nn.Linear(144, 3))
    choice = found(model, PICTURE, "aot")
    assert str(choice) == "aot"
    inputs = torch.randn(3, 1, 8, 8)
    with torch.inference_mode():
        assert difference(model(inputs), choice.forward(inputs)) == ""
    (file,) = (tmp_path / "asyncinfer" / "torch").iterdir()
    changed_at = file.stat().st_mtime_ns
    assert found(model, PICTURE, "aot").plan == ("aot",)
    assert file.stat().st_mtime_ns == changed_at


@pytest.mark.parametrize("plan", ["fuse", "freeze", "freeze+onednn", "fuse+channels_last"])
def test_calls_in_other_threads_go_on_while_a_form_is_made(plan):
    net, done, errors = small_net(), threading.Event(), []

    def call():
        with torch.inference_mode():
            while not done.is_set():
                try:
                    net(torch.ones(1, 3, 64, 64))
                except Exception as error:
                    errors.append(error)
                    return

    thread = threading.Thread(target=call)
    thread.start()
    try:
        for _ in range(3):
            found(net, torch.rand(3, 64, 64), plan)
    finally:
        done.set()
        thread.join()
    assert not errors
