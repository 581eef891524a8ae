"""Modules that keep something: their answers are the plain call's, or there is an error first."""

import asyncio
import copy
import functools
import importlib
import logging
import random
import threading
import warnings
import weakref
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher
from asyncinfer.driver import SupportsReset
from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer_drivers._torch.copies import NoCopy, own_copy
from asyncinfer_drivers.torch_host import TorchDriver

#: where calls of several drivers meet in the middle of ``forward``, if a barrier is set
MEETING = SimpleNamespace(barrier=None)
#: what models of this file keep in a global variable
KEPT = {"sum": 0.0}
REMEMBERS = "keeps state between calls: its answers depend on what came before"


def meet() -> None:
    if MEETING.barrier is not None:
        MEETING.barrier.wait(30)


@pytest.fixture
def meeting():
    def of(count):
        MEETING.barrier = threading.Barrier(count)

    yield of
    MEETING.barrier = None


def picture(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(net, items):
    """A loop over a copy made before anything was asked."""
    net = copy.deepcopy(net)
    with torch.inference_mode():
        return [net(item.unsqueeze(0))[0].clone() for item in items]


async def opened(net, **options):
    driver = TorchDriver(net, **{"threads": 1, "optimize": "none", "max_batch": 1, **options})
    await driver.open()
    return driver


async def ask(driver, items):
    outputs = []
    for item in items:
        (output,) = await driver.infer([item])
        if isinstance(output, Exception):
            raise output
        outputs.append(output)
    return outputs


def scripted(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # much of what people have is scripted
        return torch.jit.script(module)


def model(forward, **kept):
    """A module in evaluation mode with what is ``kept``, and that ``forward(self, x)``."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 2.0))
            for name, value in kept.items():
                if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                    self.register_buffer(name, value)
                else:
                    setattr(self, name, value)

    Model.forward = forward
    return Model().eval()


# --- several drivers of one module --------------------------------------------------------------


class Storing(nn.Module):
    """Keeps its input in different places, and reads it when others have been there."""

    def __init__(self):
        super().__init__()
        self.helper = SimpleNamespace(inputs=[])
        self.register_buffer("scratch", torch.zeros(1, 4))
        self.layer = nn.Linear(4, 4)
        self.layer.register_forward_hook(self.keep)
        self.eval()

    def keep(self, module, inputs, output):
        self.hidden = output

    def forward(self, x):
        self.x = x
        self.helper.inputs[:] = [x]
        self.scratch.copy_(x)
        self.layer(x)
        meet()
        return self.x + self.helper.inputs[0] + self.scratch + self.hidden


class Anchors(nn.Module):
    """As the heads of detectors: what belongs to a shape is made when that changes, and kept."""

    shape: tuple[int, ...] | None = None

    def forward(self, x):
        if self.shape != x.shape:
            self.anchors = torch.arange(x.numel()).view(x.shape).float()
            self.shape = x.shape
        meet()
        return (x + self.anchors).sum(dim=(1, 2)).unsqueeze(1)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("warm", [True, False])
async def test_each_driver_has_what_it_stores_to_itself(meeting, count, warm):
    net = Storing()
    inputs = [[picture(4, seed=10 * d + n) for n in range(5)] for d in range(count)]
    wanted = [plain(net, items) for items in inputs]
    warmup = {"warmup_input": torch.ones(4)} if warm else {}
    drivers = [await opened(net, name=f"d{n}", **warmup) for n in range(count)]
    if not warm:
        await asyncio.gather(*(ask(driver, [torch.zeros(4)]) for driver in drivers))
    meeting(count)
    got = await asyncio.gather(*map(ask, drivers, inputs))
    torch.testing.assert_close(got, wanted)
    assert not hasattr(net, "x")
    assert not net.helper.inputs
    assert not net.scratch.any()
    await asyncio.gather(*(driver.close() for driver in drivers))


async def test_shapes_that_are_kept(meeting):
    net = Anchors().eval()
    inputs = [picture(3, 5), picture(5, 3), picture(3, 5, seed=2), picture(5, 3, seed=2)]
    turned = [*inputs[1:], inputs[0]]
    wanted = [plain(net, inputs), plain(net, turned)]
    firsts = enumerate([inputs[0], turned[0]])  # so that both are asked as often
    drivers = [await opened(net, name=f"d{n}", warmup_input=first) for n, first in firsts]
    meeting(2)
    torch.testing.assert_close(
        await asyncio.gather(ask(drivers[0], inputs), ask(drivers[1], turned)), wanted
    )
    await asyncio.gather(*(driver.close() for driver in drivers))


class Common(nn.Module):
    """Keeps its input where all copies have it."""

    x: torch.Tensor
    inside = 0
    most = 0

    def forward(self, x):
        kind = type(self)
        kind.inside += 1
        kind.most = max(kind.most, kind.inside)
        kind.x = x
        threading.Event().wait(0.002)
        kind.inside -= 1
        return kind.x * 2


@pytest.mark.parametrize("optimize", ["auto", "freeze"])
async def test_calls_take_turns_where_something_outside_is_changed(optimize, caplog):
    class Own(Common):
        pass

    net, items = Own().eval(), [picture(4, seed=n) for n in range(10)]
    options = {"warmup_input": items[0], "optimize": optimize}
    drivers = [await opened(net, name=f"d{n}", **options) for n in range(2)]
    got = await asyncio.gather(ask(drivers[0], items), ask(drivers[1], items[::-1]))
    torch.testing.assert_close(got, [[x * 2 for x in items], [x * 2 for x in items[::-1]]])
    assert Own.most == 1
    assert "calls of such models take turns" in caplog.text
    await asyncio.gather(*(driver.close() for driver in drivers))


async def test_first_calls_that_meet_are_asked_again_in_turn(meeting):
    class Own(Common):
        def forward(self, x):
            type(self).x = x
            meet()
            MEETING.barrier = None  # only the first two meet
            return type(self).x * 2

    net = Own().eval()
    drivers = [await opened(net, name=f"d{n}") for n in range(2)]
    meeting(2)
    items = [torch.ones(4), torch.zeros(4)]
    got = await asyncio.gather(ask(drivers[0], items[:1]), ask(drivers[1], items[1:]))
    torch.testing.assert_close(got, [[items[0] * 2], [items[1] * 2]])
    await asyncio.gather(*(driver.close() for driver in drivers))


# --- copies -------------------------------------------------------------------------------------


def pointers(net):
    return [weight.data_ptr() for weight in net.parameters()]


async def test_weights_and_large_buffers_are_in_memory_once():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.LSTM(8, 8)).eval()
    net.register_buffer("table", torch.randn(600, 600))
    drivers = [await opened(net, name=f"d{n}") for n in range(2)]
    for own in [driver._session.runner.module for driver in drivers]:
        assert pointers(own) == pointers(net)
        assert own.table.data_ptr() == net.table.data_ptr()
        assert own[1].running_mean.data_ptr() != net[1].running_mean.data_ptr()
        assert own[2]._flat_weights[0] is own[2].weight_ih_l0
    await asyncio.gather(*(driver.close() for driver in drivers))


async def test_a_scripted_module_is_in_memory_once():
    net = scripted(nn.Linear(4, 4).eval())
    driver = await opened(net)
    await ask(driver, [picture(4)])
    assert pointers(driver._session.runner.module) == pointers(net)
    counting = scripted(ScriptedSum().eval())
    assert pointers(own_copy(counting)) == pointers(counting)
    await driver.close()


async def test_what_is_done_to_a_module_later_does_not_reach_the_driver():
    net, items = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).eval(), [picture(4)]
    wanted = plain(net, items)
    driver = await opened(net)
    net.train().half()
    torch.testing.assert_close(await ask(driver, items), wanted)
    await driver.close()


def clamps(self, x):
    self.scale.data.clamp_(max=1)
    return self.scale * x


def replaces(self, x):
    self.scale.data = self.scale.data.clamp(max=1)
    return self.scale * x


def fills(self, x):
    self.table[: len(x)] = x
    return self.table[: len(x)] * 2


WRITERS = {
    "weights": lambda: model(clamps),
    "other weights": lambda: model(replaces),
    "a large buffer": lambda: model(fills, table=torch.zeros(100_000, 4)),
    "an embedding": lambda: nn.Sequential(nn.Embedding(9, 4, max_norm=0.1)).eval(),
    "a scripted buffer": lambda: scripted(ScriptedTable().eval()),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("warm", [True, False])
async def test_what_a_call_writes_to_is_the_drivers_own(kind, warm):
    net = WRITERS[kind]()
    items = [torch.tensor([1, 2]), torch.tensor([3, 1])] if "emb" in kind else [picture(4)] * 2
    before, wanted = copy.deepcopy(net.state_dict()), plain(net, items)
    driver = await opened(net, **({"warmup_input": items[0]} if warm else {}))
    torch.testing.assert_close(await ask(driver, items), wanted)
    torch.testing.assert_close(dict(net.state_dict()), dict(before))
    await driver.close()


class Hooked(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer, self.kind = nn.Linear(4, 4), kind
        layer, own = self.layer, weakref.ref(self.layer)

        def closure(module, inputs, output):
            layer.seen = output

        def default(module, inputs, output, layer=layer):
            layer.seen = output

        def weak(module, inputs, output):
            own().seen = output

        def through_a_list(module, inputs, output, layers=([layer],)):
            layers[0][0].seen = output

        hooks = {
            "closure": closure,
            "wrapped": lambda *args: closure(*args),
            "default": default,
            "weak": weak,
            "list": through_a_list,
            "method": self.keep,
            "partial": functools.partial(self.with_layer, layer),
            "partial of a closure": functools.partial(lambda *args: closure(*args)),
            "cached": functools.lru_cache(closure),
        }
        self.layer.register_forward_hook(hooks[kind])
        self.eval()

    def keep(self, module, inputs, output):
        self.layer.seen = output

    @staticmethod
    def with_layer(layer, module, inputs, output):
        layer.seen = output

    def forward(self, x):
        return self.layer(x) + self.layer.seen


HOOKS = ["closure", "wrapped", "default", "weak", "list", "method"]
HOOKS += ["partial", "partial of a closure", "cached"]


@pytest.mark.parametrize("kind", HOOKS)
async def test_hooks_of_a_copy_refer_to_the_copy(kind):
    net, items = Hooked(kind), [picture(4), picture(4, seed=2)]
    driver = await opened(net)
    got = await ask(driver, items)
    assert not hasattr(net.layer, "seen")
    torch.testing.assert_close(got, [2 * net.layer(x) for x in items])
    await driver.close()


async def test_modules_that_only_a_function_holds_are_copied_too():
    inner = Storing()
    net = model(lambda self, x: self.function(x), function=lambda x: inner(x))
    wanted = plain(inner, [picture(4)])
    driver = await opened(net)
    torch.testing.assert_close(await ask(driver, [picture(4)]), wanted)
    assert not hasattr(inner, "x")
    await driver.close()


async def test_what_a_hook_was_given_by_others_stays_theirs():
    seen = []
    net = nn.Linear(4, 4).eval()
    net.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    driver = await opened(net)
    await ask(driver, [picture(4)])
    assert seen
    await driver.close()


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
    ],
)
def test_old_and_new_kinds_of_weights(wrap):
    net = wrap(nn.Linear(4, 4)).eval()
    own = own_copy(net)
    assert pointers(own) == pointers(net)
    torch.testing.assert_close(own(torch.ones(1, 4)), net(torch.ones(1, 4)))


async def test_modules_made_in_inference_mode():
    def make():
        with torch.inference_mode():
            torch.manual_seed(1)
            return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()

    for net in (make(), make):
        driver = await opened(net, warmup_input=picture(4), optimize="auto")
        torch.testing.assert_close(await ask(driver, [picture(4)]), plain(make(), [picture(4)]))
        await driver.close()


class Locked(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)
        self.lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            return super().forward(x)


UNCOPYABLE = {
    "a lock": lambda: Locked().eval(),
    "a generator": lambda: model(lambda self, x: x * self.scale, numbers=(n for n in [1])),
    "an event": lambda: model(lambda self, x: x * self.scale, event=threading.Event()),
    "an open file": lambda: model(lambda self, x: x * self.scale, file=Path(__file__).open()),  # noqa: SIM115
}


@pytest.mark.parametrize("kind", UNCOPYABLE)
async def test_what_cannot_be_copied_is_used_by_one_driver_at_a_time(kind):
    net, items = UNCOPYABLE[kind](), [picture(4)]
    first, second = TorchDriver(net, name="first"), TorchDriver(net, name="second")
    await first.open()
    with torch.no_grad():
        wanted = [net(item.unsqueeze(0))[0] for item in items]
    torch.testing.assert_close(await ask(first, items), wanted)
    with pytest.raises(ConfigError, match=r"cannot be copied .*: give a function that"):
        await second.open()
    await first.close()
    await second.open()
    torch.testing.assert_close(await ask(second, items), wanted)
    await second.close()
    if hasattr(net, "file"):
        net.file.close()


async def test_what_cannot_be_copied_and_is_in_training():
    with pytest.raises(ConfigError, match=r"it holds a _thread.lock.*eval\(\), or give a function"):
        await opened(Locked())


GLOBAL = nn.Sequential(nn.Linear(4, 4)).eval()


def by_its_name(module, inputs, output):
    GLOBAL.seen = output


def test_a_hook_that_has_the_module_by_a_global_name():
    assert own_copy(GLOBAL) is not GLOBAL
    handle = GLOBAL.register_forward_hook(by_its_name)
    with pytest.raises(NoCopy, match="global variable GLOBAL"):
        own_copy(GLOBAL)
    handle.remove()


def test_a_module_that_returns_itself_as_its_copy():
    class Single(nn.Module):
        def __deepcopy__(self, memo):
            return self

    with pytest.raises(NoCopy, match="the module itself"):
        own_copy(Single())


# --- answers that depend on what came before ----------------------------------------------------


class ScriptedSum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.total = torch.zeros(1, 4)

    def forward(self, x):
        self.total = self.total + x
        return self.total * self.weight

    @torch.jit.export
    def reset_states(self):
        self.total = torch.zeros(1, 4)


class ScriptedTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(8, 4))

    def forward(self, x):
        self.table[0].copy_(x[0])
        return self.table[:1] * 2


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.cell = nn.GRUCell(4, 4)
        self.state = None
        self.eval()

    def forward(self, x):
        self.state = self.cell(x, self.state)
        return self.state


def counts(self, x):
    self.count = getattr(self, "count", 0) + 1
    return x * self.count


def adds_to_buffer(self, x):
    self.total += x.sum()
    return x + self.total


def averages(self, x):
    self.mean.data.mul_(0.9).add_(0.1 * x.mean())
    return x - self.mean


def appends(self, x):
    self.kept.append(x)
    return sum(self.kept)


def writes_array(self, x):
    self.array += x.numpy().sum()
    return x + torch.from_numpy(self.array)


def helps(self, x):
    self.helper.total = self.helper.total + x
    return self.helper.total


def iterates(self, x):
    return x * next(self.numbers)


def counts_in_class(self, x):
    type(self).count = getattr(type(self), "count", 0) + 1
    return x * self.count


def sums_globally(self, x):
    KEPT["sum"] += float(x.sum())
    return x + KEPT["sum"]


def calls(self, x):
    return self.function(x)


def remembering():
    past = []

    def function(x):
        past.append(x)
        return sum(past)

    return function


def normalises(self, x):
    x = nn.functional.batch_norm(x, self.mean, self.var, training=True)
    return x + self.mean.unsqueeze(1)


def calls_by_name(self, x):
    return BY_NAME["sum"](x)


def sum_so_far(x):
    KEPT["sum"] += float(x.sum())
    return x + KEPT["sum"]


BY_NAME = {"sum": sum_so_far}


def spikes(self, x):
    """Says nothing for many calls, and then what they add up to."""
    self.membrane = self.membrane + x.abs().mean(0)
    return (self.membrane > 30).float().expand_as(x)


class Answer:
    """An output that only Python knows."""

    def __init__(self, tensor):
        self.tensor = tensor


def adds_in_place(self, x):
    self.total += x[0]
    return Answer(self.total)


class Total:
    __slots__ = ("total",)

    def __init__(self):
        self.total = 0


REMEMBERING = {
    "counter": lambda: model(counts),
    "buffer": lambda: model(adds_to_buffer, total=torch.zeros(4)),
    "data of a buffer": lambda: model(averages, mean=torch.zeros(4)),
    "list": lambda: model(appends, kept=[]),
    "deque": lambda: model(appends, kept=deque(maxlen=2)),
    "array": lambda: model(writes_array, array=np.zeros(4, np.float32)),
    "helper": lambda: model(helps, helper=SimpleNamespace(total=0)),
    "slots": lambda: model(helps, helper=Total()),
    "iterator": lambda: model(iterates, numbers=iter(range(1, 1000))),
    "generator": lambda: model(iterates, numbers=(n for n in range(1, 1000))),
    "class": lambda: model(counts_in_class),
    "global": lambda: model(sums_globally),
    "global, by a name of a name": lambda: model(calls_by_name),
    "closure": lambda: model(calls, function=remembering()),
    "spiking": lambda: model(spikes, membrane=torch.zeros(4)),
    "recurrent": Recurrent,
    "scripted": lambda: scripted(ScriptedSum().eval()),
    "part": lambda: nn.Sequential(nn.Linear(4, 4), Recurrent()).eval(),
    "normalised by what is seen": lambda: model(
        normalises,
        mean=torch.zeros(2),
        var=torch.ones(2),
    ),
}


def item_for(kind):
    return picture(2, 3) if "normalised" in kind else picture(4)


@pytest.mark.parametrize("kind", REMEMBERING)
async def test_with_a_warmup_input_they_are_refused_when_opened(kind):
    with pytest.raises(ConfigError, match=f"dev: the model {REMEMBERS}.*stateful=True"):
        await opened(REMEMBERING[kind](), name="dev", warmup_input=item_for(kind))


@pytest.mark.parametrize("kind", REMEMBERING)
async def test_without_one_before_the_first_answer(kind):
    driver = await opened(REMEMBERING[kind](), max_batch=2)
    for _ in range(2):
        with pytest.raises(ConfigError, match=REMEMBERS):
            await driver.infer([item_for(kind)])
    await driver.close()


class Tracks(nn.Module):
    """Keeps what it last made of a loud input, of which there are few."""

    def __init__(self, louder_than):
        super().__init__()
        self.louder_than = louder_than
        self.last = None

    def forward(self, x):
        if bool((x.abs() > self.louder_than).any()) and x.abs().max() < 50 * self.louder_than:
            self.last = x.mean()
        return x if self.last is None else x + self.last


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_what_only_a_few_inputs_leave_is_noticed_later(isolation):
    """The first call keeps nothing, and no noise like its input does."""
    driver = await opened(Tracks(10.0), warmup_input=torch.ones(4), isolation=isolation)
    quiet, loud = torch.ones(4) / 10, torch.full((4,), 20.0)
    assert torch.equal((await driver.infer([quiet]))[0], quiet)
    outcomes = [await answer(driver, item) for item in (loud, *[quiet] * 8)]
    assert REMEMBERS in outcomes[-1]
    assert REMEMBERS in await answer(driver, quiet)
    await driver.close()


async def answer(driver, item):
    """What the driver answers, or the error, as text."""
    try:
        return str(await driver.infer([item]))
    except ConfigError as error:
        return str(error)


async def test_what_a_large_input_would_leave_is_noticed_before_there_are_batches():
    """Asked with a copy: the module has kept nothing yet."""
    with pytest.raises(ConfigError, match=REMEMBERS):
        await opened(Tracks(3.0), warmup_input=torch.full((4,), 0.05), max_batch=4)


async def test_what_few_inputs_leave_may_do_no_harm():
    class Caches(nn.Module):
        def __init__(self):
            super().__init__()
            self.ones = {}

        def forward(self, x):
            return x * self.ones.setdefault(len(x[0]), torch.ones(len(x[0])))

    driver = await opened(Caches())
    for length in range(1, 9):
        assert torch.equal((await driver.infer([torch.ones(length)]))[0], torch.ones(length))
    await driver.close()


async def test_answers_that_only_python_knows():
    net = model(adds_in_place, total=torch.zeros(4))
    driver = await opened(net, uncollate=lambda o: [o.tensor], postprocess=lambda row: row)
    with pytest.raises(ConfigError, match=REMEMBERS):
        await driver.infer([picture(4)])
    await driver.close()


async def test_in_a_process_too():
    driver = TorchDriver(Recurrent(), warmup_input=picture(4), threads=1, isolation="process")
    with pytest.raises(ConfigError, match=REMEMBERS):
        await driver.open()


def caches(self, x):
    if x.shape not in self.cache:
        self.cache[x.shape] = torch.arange(x.numel()).view(x.shape)
    return x + self.cache[x.shape]


def notes(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    self.last = x
    self.scratch.copy_(x[0])
    return self.scratch.unsqueeze(0) * 2


def drops(self, x):
    self.calls = getattr(self, "calls", 0) + 1
    return nn.functional.dropout(x, 0.5, training=True)


HARMLESS = {
    "cache": lambda: model(caches, cache={}),
    "notes": lambda: model(notes, scratch=torch.zeros(4)),
    "random": lambda: model(drops),
    "random by Python": lambda: model(lambda self, x: x * random.random()),
    "random by its own": lambda: model(
        lambda self, x: x * torch.rand(4, generator=self.own), own=torch.Generator()
    ),
    "generator that is not used": lambda: model(lambda self, x: x * 2, numbers=iter([1])),
}


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("warm", [True, False])
async def test_keeping_something_is_no_fault(kind, warm):
    net, items = HARMLESS[kind](), [picture(4), picture(4, seed=2)]
    driver = await opened(net, **({"warmup_input": items[0]} if warm else {}))
    got = await ask(driver, items)
    if "random" not in kind:
        torch.testing.assert_close(got, plain(net, items))
    await driver.close()


async def test_weights_that_are_not_there_yet():
    with pytest.raises(ConfigError, match="lazy layers without weights yet: call it once"):
        await opened(nn.LazyLinear(4).eval())

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = None

        def forward(self, x):
            if self.layer is None:
                self.layer = nn.Linear(4, 4)
            return self.layer(x)

    with pytest.raises(ConfigError, match="draws weights at random in its first call"):
        await opened(Late().eval(), warmup_input=picture(4))


# --- stateful=True ------------------------------------------------------------------------------


class WithReset(Recurrent):
    def reset(self):
        self.state = None


class Forgetful(Recurrent):
    def reset(self):
        """Forgets to reset."""


STATEFUL = {
    "no method": Recurrent,
    "reset": WithReset,
    "reset_states": lambda: scripted(ScriptedSum().eval()),
    "buffer": lambda: model(adds_to_buffer, total=torch.zeros(4)),
    "iterator": lambda: model(iterates, numbers=iter(range(1, 1000))),
}


@pytest.mark.parametrize("kind", STATEFUL)
@pytest.mark.parametrize("warm", [True, False])
async def test_a_stream_begins_afresh(kind, warm):
    net = STATEFUL[kind]()
    streams = [[picture(4, seed=10 * s + n) for n in range(4)] for s in range(3)]
    wanted = [plain(net, items) for items in streams]
    options = {"stateful": True, **({"warmup_input": torch.ones(4)} if warm else {})}
    drivers = [await opened(net, name=f"d{n}", **options) for n in range(2)]
    assert all(isinstance(driver, SupportsReset) and driver.stateful for driver in drivers)

    async def stream(driver, items):
        await driver.reset()
        return await ask(driver, items)

    with torch.inference_mode():
        net(torch.ones(1, 4))  # whoever gave it uses it as well
    got = await asyncio.gather(stream(drivers[0], streams[0]), stream(drivers[1], streams[1]))
    torch.testing.assert_close([*got, await stream(drivers[0], streams[2])], wanted)
    await asyncio.gather(*(driver.close() for driver in drivers))


async def test_a_stream_in_a_process():
    items = [picture(4, seed=n) for n in range(3)]
    driver = await opened(Recurrent(), isolation="process", stateful=True)
    for _ in range(2):
        await driver.reset()
        torch.testing.assert_close(await ask(driver, items), plain(Recurrent(), items))
    await driver.close()
    with pytest.raises(DeviceLost, match="not open"):
        await driver.reset()


class NoReset(Locked):
    def forward(self, x):
        self.count = getattr(self, "count", 0) + 1
        return x * self.count


async def test_what_cannot_be_brought_back_to_its_start():
    with pytest.raises(ConfigError, match="cannot be brought back to its start"):
        await opened(Forgetful(), stateful=True, warmup_input=picture(4))
    with pytest.raises(ConfigError, match="cannot be brought back to its start"):
        await opened(model(counts_in_class), stateful=True, warmup_input=picture(4))
    with pytest.raises(ConfigError, match="has no method reset, and cannot be copied"):
        await opened(NoReset().eval(), stateful=True)


async def test_a_reset_that_fails_is_a_lost_device():
    class Broken(WithReset):
        def reset(self):
            raise OSError("no")

    driver = await opened(Broken(), stateful=True, name="dev")
    with pytest.raises(DeviceLost, match="could not be reset: OSError: no"):
        await driver.reset()
    with pytest.raises(ConfigError, match="could not be reset: OSError: no"):
        await driver.infer([picture(4)])
    await driver.close()


async def test_other_drivers_have_nothing_to_reset():
    driver = await opened(nn.Linear(4, 4).eval())
    assert driver.stateful is False
    await driver.reset()
    await driver.close()


@pytest.mark.parametrize("wrong", [{"max_batch": 2}, {"concurrency": 2}, {"optimize": "freeze"}])
def test_options_that_do_not_go_with_it(wrong):
    with pytest.raises(ConfigError, match="stateful=True runs the tasks of a stream one by one"):
        TorchDriver(Recurrent(), stateful=True, **wrong)


# --- whose fault it is --------------------------------------------------------------------------


def keeps_its_first_shape(self, x):
    if not self.kept:
        self.kept.append(torch.zeros(x.shape))
    return x + self.kept[0]


async def test_an_input_is_not_blamed_for_what_the_module_keeps():
    driver = await opened(model(keeps_its_first_shape, kept=[]))
    await ask(driver, [picture(4)])
    with pytest.raises(RuntimeError, match="it takes if it is asked nothing else before"):
        await ask(driver, [picture(5)])
    await driver.close()


async def test_an_input_is_blamed_for_what_is_its_own_fault():
    driver = await opened(nn.Linear(4, 4).eval())
    await ask(driver, [picture(4)])
    with pytest.raises(InputError, match="convert the input"):
        await ask(driver, [picture(5)])
    await driver.close()


def test_nothing_is_logged_by_a_copy(caplog):
    with caplog.at_level(logging.DEBUG):
        own_copy(Storing())
    assert not caplog.records


@pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:DeprecationWarning")
def test_the_voice_activity_of_silero_is_that_of_the_plain_loop():
    """Three recordings at once over two devices, piece by piece, each from its beginning."""
    silero = importlib.import_module("silero_vad")
    vad = silero.load_silero_vad()

    class Voice(nn.Module):
        def __init__(self):
            super().__init__()
            self.vad = silero.load_silero_vad()  # it begins as it is given

        def forward(self, pieces):
            return self.vad(pieces, 16_000)

    recordings = [picture(length * 512, seed=length) * 0.3 for length in (12, 30, 21)]
    wanted = []
    for recording in recordings:
        vad.reset_states()
        with torch.no_grad():
            wanted.append([float(vad(piece[None], 16_000)) for piece in recording.split(512)])

    async def listened(dispatcher, recording):
        return [float(voice) async for voice in dispatcher.stream(recording.split(512))]

    async def run():
        voice = Voice()
        drivers = [TorchDriver(voice, name=n, stateful=True, threads=1) for n in ("a", "b")]
        async with Dispatcher(drivers) as d:
            got = await asyncio.gather(*(listened(d, recording) for recording in recordings))
        for ours, plainly in zip(got, wanted, strict=True):
            assert ours == pytest.approx(plainly, rel=1e-4, abs=1e-6)

    asyncio.run(run())
