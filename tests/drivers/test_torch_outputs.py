"""Each task's part of a batch's output is what the model gives that task alone, whatever it is."""

import copy
import importlib
import logging
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from asyncinfer.errors import ConfigError
from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.course import finished
from asyncinfer_drivers._torch.sizes import best_size
from asyncinfer_drivers.torch_host import TorchDriver

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.(jit|ao|quant).*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(LeafSpec|quantiz|nested).*"),
]

#: what outputs are made of does not depend on the event loop
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])

SIZE = 4


def items(count=7, *shape):
    torch.manual_seed(7)
    return list(torch.randn(count, *(shape or (SIZE,))))


class Function(nn.Module):
    """A function of its input and of that times a matrix."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(42)
        self.net = nn.Linear(SIZE, SIZE)
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(x, self.net(x))


async def served(model, batch, sizes=(3, 2, 1, 1), **options):
    """What a driver gives for the items, in batches of these sizes, and the driver's details."""
    options = {"max_batch": 4, "optimize": "none", "threads": 1, "name": "dev", **options}
    driver = TorchDriver(model, **options)
    await driver.open()
    try:
        await driver.tune()
        outputs, at = [], 0
        for size in sizes:
            outputs += await driver.infer(batch[at : at + size])
            at += size
    finally:
        await driver.close()
    return outputs, {**driver.details, "largest": driver.max_batch}


def alone(model, batch, own=lambda output: output):
    """What the model gives each item by itself; ``own`` takes the batch dimension away."""
    with torch.inference_mode():
        return [own(model(item[None])) for item in batch]


def assert_same(outputs, expected):
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        if isinstance(output, Exception):
            raise output
        assert difference(wanted, output, 4.0) == "", (wanted, output)
        assert type(output) is type(wanted)


# --- every kind of output -----------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass
class Record:
    score: Any
    more: Any = None
    name: str = "record"


@dataclass(frozen=True, slots=True)
class Frozen:
    score: Any
    twice: Any = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "twice", self.score * 2)


class Registered:
    """A class that pytree knows."""

    def __init__(self, value, kind):
        self.value, self.kind = value, kind


pytree.register_pytree_node(
    Registered,
    lambda r: ([r.value], r.kind),
    lambda values, kind: Registered(next(iter(values)), kind),
)


class Answer(OrderedDict):
    """As the outputs of transformers: a mapping with attributes that pytree knows."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


pytree.register_pytree_node(
    Answer,
    lambda answer: (list(answer.values()), list(answer)),
    lambda values, names: Answer(zip(names, values, strict=True)),
)


def first(output):
    return output[0]


def each(function):
    """The same of every value in a dict."""
    return lambda output: {key: function(value) for key, value in output.items()}


#: the output of a batch, and the part of one task in an output for it alone
KINDS = {
    "tensor": (lambda x, y: y, first),
    "one number": (lambda x, y: y.sum(1), first),
    "flags": (lambda x, y: y > 0, first),
    "bfloat16": (lambda x, y: y.bfloat16(), first),
    "complex": (lambda x, y: torch.fft.fft(y), first),
    "conjugate": (lambda x, y: torch.fft.fft(y).conj(), lambda o: o[0].resolve_conj()),
    "quantised": (lambda x, y: torch.quantize_per_tensor(y, 0.1, 0, torch.qint8), first),
    "sparse": (lambda x, y: torch.relu(y).to_sparse(), first),
    "nested": (lambda x, y: torch.nested.nested_tensor([r[r > 0] for r in y]), lambda o: o[0]),
    "jagged": (
        lambda x, y: torch.nested.nested_tensor([r[r > 0] for r in y], layout=torch.jagged),
        lambda o: o[0],
    ),
    "second axis": (lambda x, y: y.t(), lambda o: o[:, 0]),
    "square": (lambda x, y: torch.stack([y, y + 1], 1).transpose(0, 1), lambda o: o[:, 0]),
    "array": (lambda x, y: y.numpy(), first),
    "array, one number": (lambda x, y: y.sum(1).numpy(), lambda o: np.array(o[0])),
    "array, last axis": (lambda x, y: y.numpy().T, lambda o: o[:, 0]),
    "dict": (
        lambda x, y: {"a": y, 3: [y + 1, (x,)]},
        lambda o: {"a": o["a"][0], 3: [o[3][0][0], (o[3][1][0][0],)]},
    ),
    "ordered": (lambda x, y: OrderedDict(a=y), lambda o: {"a": o["a"][0]}),
    "constants": (
        lambda x, y: {"y": y, "none": None, "text": "t", "n": 3, "r": 0.1, "empty": [], "on": True},
        lambda o: {**o, "y": o["y"][0]},
    ),
    "named tuple": (
        lambda x, y: Pair(y, Pair(x, y)),
        lambda o: Pair(o[0][0], Pair(*map(first, o[1]))),
    ),
    "torch's own": (lambda x, y: y.max(1), lambda o: type(o)([o[0][0], o[1][0]])),
    "dataclass": (lambda x, y: Record(y, [x]), lambda o: Record(o.score[0], [o.more[0][0]])),
    "frozen": (lambda x, y: Frozen(y), lambda o: Frozen(o.score[0])),
    "registered": (lambda x, y: Registered(y, "k"), lambda o: Registered(o.value[0], o.kind)),
    "answer": (lambda x, y: Answer(logits=y), lambda o: Answer(logits=o.logits[0])),
    "list of rows": (lambda x, y: list(y), first),
    "tuple of rows": (lambda x, y: tuple(y), first),
    "numbers": (lambda x, y: y.sum(1).tolist(), first),
    "texts": (lambda x, y: [f"{v:.3f}" for v in y.sum(1)], first),
    "in a dict": (
        lambda x, y: {"rows": [[r] for r in y], "y": y},
        lambda o: {"rows": o["rows"][0], "y": o["y"][0]},
    ),
    "ragged": (
        lambda x, y: [{"boxes": r[r > 0], "label": int(r.argmax())} for r in y],
        first,
    ),
    "objects": (lambda x, y: [SimpleNamespace(a=r) for r in y], first),
}  # fmt: skip


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", KINDS)
@ONE_LOOP
async def test_a_batchs_output_is_divided(kind, warm, caplog):
    function, own = KINDS[kind]
    model, batch = Function(function), items()
    options = {"warmup_input": batch[3]} if warm else {}
    with caplog.at_level(logging.WARNING):
        outputs, details = await served(model, batch, **options)
    assert_same(outputs, alone(model, batch, own))
    assert details["largest"] == 4
    assert not caplog.records
    outputs, _ = await served(model, batch, sizes=[1] * 7, max_batch=1, **options)
    assert_same(outputs, alone(model, batch, own))


@pytest.mark.parametrize("kind", ["dataclass", "array", "ragged", "second axis", "answer"])
@ONE_LOOP
async def test_faster_forms_are_sought_for_all_of_them(kind):
    function, own = KINDS[kind]
    model, batch = Function(function), items()
    outputs, _ = await served(
        model, batch, warmup_input=batch[0], optimize="auto", optimize_seconds=0.2
    )
    assert_same(outputs, alone(model, batch, own))


PROGRAM = """
from dataclasses import dataclass
from typing import Any
from torch import nn

@dataclass
class Answer:
    score: Any
    turned: Any

class Everything(nn.Module):
    def forward(self, x):
        y = x * 2
        rows = [{"b": r[r > 0]} for r in y]
        return {"answer": Answer(y, y.t()), "array": y.numpy(), "rows": rows}
"""


@ONE_LOOP
async def test_in_a_process_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "every_output.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("every_output")
    batch = items()
    outputs, _ = await served(
        "every_output:Everything", batch, isolation="process", warmup_input=batch[0]
    )

    def own(o):
        answer = module.Answer(o["answer"].score[0], o["answer"].turned[:, 0])
        return {"answer": answer, "array": o["array"][0], "rows": o["rows"][0]}

    assert_same(outputs, alone(module.Everything(), batch, own))


@ONE_LOOP
async def test_outputs_own_their_memory_and_know_no_inference_mode():
    kept = torch.zeros(8, SIZE)

    def same_memory_each_time(x, y):
        view = kept[: len(x)].copy_(y)
        return {"t": view.t(), "rows": list(view), "array": view.numpy(), "one": view}

    model, batch = Function(same_memory_each_time), items()
    outputs, _ = await served(model, batch)
    expected = alone(model, batch, lambda o: o["one"][0].clone())
    for output, wanted in zip(outputs, expected, strict=True):
        for value in output.values():
            torch.testing.assert_close(torch.as_tensor(value), wanted)
            if isinstance(value, torch.Tensor):
                assert not value.is_inference()
                assert value.untyped_storage().nbytes() == value.nbytes
            else:
                assert value.base is None


# --- recurrent nets -----------------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@ONE_LOOP
async def test_recurrent_nets(kind, warm):
    torch.manual_seed(1)
    model, batch = kind(SIZE, 5, num_layers=3, batch_first=True).eval(), items(7, 6, SIZE)

    def own(output):
        hidden = output[1]
        if isinstance(hidden, tuple):
            return output[0][0], tuple(h[:, 0] for h in hidden)
        return output[0][0], hidden[:, 0]

    options = {"warmup_input": batch[0]} if warm else {}
    outputs, details = await served(model, batch, **options)
    assert_same(outputs, alone(model, batch, own))
    assert details["largest"] == 4
    outputs, _ = await served(model, batch, sizes=[1] * 7, max_batch=1, **options)
    assert_same(outputs, alone(model, batch, own))


@ONE_LOOP
async def test_a_net_that_takes_the_tasks_for_steps_in_time(caplog):
    model, batch = nn.GRU(SIZE, 5).eval(), items(7, 6, SIZE)
    outputs, details = await served(model, batch, warmup_input=batch[0])
    assert_same([o[0] for o in outputs], alone(model, batch, lambda o: o[0][0]))
    assert details["largest"] == 1
    assert details["batches"].startswith("one by one")


class Crowded(nn.Module):
    """Adds what is in the batch, where it has more than two tasks."""

    def forward(self, x):
        return x + (x.mean() if len(x) > 2 else 0)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@ONE_LOOP
async def test_what_a_later_batch_shows_is_told_too(isolation, caplog):
    options = {"max_batch": 8, "warmup_input": items()[0], "isolation": isolation}
    driver = TorchDriver(Crowded().eval(), **options)
    await driver.open()
    assert "batches" not in driver.details
    await driver.infer(items(8))
    assert "one by one: its answers depend" in driver.details["batches"]
    assert driver.details["batches"] in caplog.text
    await driver.close()


# --- what cannot be told apart ------------------------------------------------------------------


class Cache:
    """As the caches of transformers before pytree knew them."""

    def __init__(self, keys):
        self.keys = keys


class FakeGPT2(nn.Module):
    """Logits, and a cache object that no batch can be told apart in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.head = nn.Embedding(11, SIZE), nn.Linear(SIZE, 11)
        self.eval()

    def forward(self, ids):
        hidden = self.words(ids)
        return {"logits": self.head(hidden), "past_key_values": Cache(hidden)}


WHOLE = {
    "object": (lambda x, y: (y, Cache(y)), lambda o: (o[0][0], o[1])),
    "loss": (lambda x, y: {"y": y, "loss": y.mean()}, lambda o: {**o, "y": o["y"][0]}),
    "scalar": (lambda x, y: y.mean(), lambda o: o),
    "number": (lambda x, y: {"y": y, "n": len(x)}, lambda o: {"y": o["y"][0], "n": 1}),
    "pairs": (lambda x, y: {"y": y, "all": y @ y.t()}, each(first)),
    "anchors": (lambda x, y: (y, torch.ones(1, 3)), lambda o: (o[0][0], o[1][0])),
    "by number": (lambda x, y: dict(enumerate(y)), lambda o: o),
    "joined": (lambda x, y: y[y > -9], lambda o: o),
    "set": (lambda x, y: {"y": y, "s": {1}}, lambda o: {"y": o["y"][0], "s": {1}}),
}  # fmt: skip


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", WHOLE)
@ONE_LOOP
async def test_what_cannot_be_told_apart_is_computed_one_by_one(kind, warm, caplog):
    function, own = WHOLE[kind]
    model, batch = Function(function), items()
    options = {"warmup_input": batch[3]} if warm else {}
    with caplog.at_level(logging.WARNING):
        outputs, details = await served(model, batch, **options)
    assert_same(outputs, alone(model, batch, own))
    (record,) = caplog.records
    assert "dev: tasks are run one by one: the output" in record.message
    assert "uncollate" in record.message
    if warm:
        assert details["largest"] == 1
        assert details["batches"].startswith("one by one: the output")
    caplog.clear()
    outputs, _ = await served(model, batch, sizes=[1] * 7, max_batch=1, **options)
    assert_same(outputs, alone(model, batch, own))
    assert not caplog.records


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@ONE_LOOP
async def test_a_cache_that_is_an_object(warm, caplog):
    model, batch = FakeGPT2(), list(torch.arange(42).view(7, 6) * 5 % 11)
    options = {"warmup_input": batch[3]} if warm else {}
    outputs, _ = await served(model, batch, **options)
    for output, wanted in zip(outputs, alone(model, batch), strict=True):
        torch.testing.assert_close(output["logits"], wanted["logits"][0])
        torch.testing.assert_close(output["past_key_values"].keys, wanted["past_key_values"].keys)
    assert "the output['past_key_values'] is a Cache" in caplog.text


@ONE_LOOP
async def test_uncollate_can_tell_apart_what_the_driver_cannot(caplog):
    model, batch = FakeGPT2(), list(torch.arange(42).view(7, 6) * 5 % 11)

    def uncollate(output):
        pairs = zip(output["logits"], output["past_key_values"].keys, strict=True)
        return [(logits.clone(), keys.clone()) for logits, keys in pairs]

    outputs, details = await served(
        model,
        batch,
        warmup_input=batch[3],
        uncollate=uncollate,
        postprocess=lambda o: (o["logits"], o["past_key_values"].keys[0]),
    )
    expected = alone(model, batch, lambda o: (o["logits"][0], o["past_key_values"].keys[0]))
    assert_same(outputs, expected)
    assert details["largest"] == 4
    assert not caplog.records


@ONE_LOOP
async def test_a_number_that_only_later_changes(caplog):
    def found(x, y):
        return {"y": y, "found": int((x > 5).sum())}

    batch = items()
    batch[4] = batch[4] + 10
    model = Function(found)
    outputs, _ = await served(model, batch, sizes=(2, 2, 2, 1))
    assert_same(outputs, alone(model, batch, lambda o: {"y": o["y"][0], "found": o["found"]}))


@ONE_LOOP
async def test_outputs_that_are_made_in_more_than_one_way():
    model = Function(lambda x, y: (y, y + 1) if x.dim() == 2 else {"y": y.flatten(1).sum(1)})
    batch = [*items(4), *items(3, 2, SIZE)]

    def own(output):
        return {"y": output["y"][0]} if isinstance(output, dict) else tuple(map(first, output))

    outputs, details = await served(model, batch, sizes=(2, 3, 2))
    assert_same(outputs, alone(model, batch, own))
    assert details["largest"] == 4


# --- answers that depend on what else is in the batch -------------------------------------------


def quantised():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(SIZE, 16), nn.ReLU(), nn.Linear(16, SIZE)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8)


class Padded(nn.Module):
    """As ``generate``: as many words as each row wants, filled up to the longest."""

    def forward(self, x):
        wanted = (x.abs().sum(1) * 3).long() + 1
        ids = torch.arange(int(wanted.max())).expand(len(x), -1)
        return torch.where(ids < wanted[:, None], ids, -1)


MIXED = {
    "dynamically quantised": quantised,
    "statistics of the batch": lambda: nn.Sequential(
        nn.Unflatten(1, (1, SIZE)), nn.BatchNorm1d(1, track_running_stats=False)
    ).eval(),
    "attention over tasks": lambda: Function(lambda x, y: torch.softmax(y, 0)),
    "padded": Padded,
}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", MIXED)
@ONE_LOOP
async def test_answers_that_depend_on_the_others_are_not_given(kind, warm, caplog):
    model, batch = MIXED[kind](), items()
    options = {"warmup_input": batch[3]} if warm else {}
    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(model, batch, **options)
    assert_same(outputs, alone(model, batch, first))
    (record,) = caplog.records
    assert "answers depend on what else is in the batch" in record.message
    assert "max_batch=1" in record.message


@torch.library.custom_op("asyncinfer_tests::nms", mutates_args=())
def nms(boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """As torchvision's: which of the boxes are kept, the best first."""
    return scores.argsort(descending=True)[:2]


class Detector(nn.Module):
    """Scores are so alike that rounding decides; it is another one in larger batches."""

    def forward(self, x):
        scores = torch.zeros(SIZE) + (1e-8 * torch.arange(SIZE) if len(x) > 2 else 0)
        return [{"boxes": row[nms(row, scores)]} for row in x]


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@ONE_LOOP
async def test_boxes_are_not_chosen_by_the_rounding_of_a_batch(warm, caplog):
    model, batch = Detector(), items()
    options = {"warmup_input": batch[3]} if warm else {}
    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(model, batch, **options)
    assert_same(outputs, alone(model, batch, first))
    (record,) = caplog.records
    assert "which boxes it keeps can hang on rounding" in record.message
    assert "batching='trusted'" in record.message


DECIDES = {
    "equal": lambda x: torch.equal(x, x.clamp(-10, 10)),
    "allclose": lambda x: torch.allclose(x, x.clamp(-10, 10)),
    "bool": lambda x: bool((x.abs() <= 10).all()),
}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("kind", DECIDES)
@ONE_LOOP
async def test_no_task_decides_for_another(kind, warm, caplog):
    """Only one task in many is large: no sample of a batch has to have it."""
    model = Function(lambda x, y: y if DECIDES[kind](x) else y + 1)
    batch = items(40)
    batch[29] = batch[29] + 1000
    with caplog.at_level(logging.WARNING):
        options = {"warmup_input": batch[3]} if warm else {}
        outputs, _ = await served(model, batch, sizes=(4,) * 10, **options)
    assert_same(outputs, alone(model, batch, first))
    assert "decides by values of the whole batch" in caplog.text


ALIKE = {
    "equal": lambda x: torch.equal(x, x.clamp(-10, 10)),
    "all": lambda x: bool((x.abs() <= 10).all()),
    "not any": lambda x: not (x > 10).any(),
    "the largest": lambda x: x.max() <= 10 and x.amin() > -10,
    "neither": lambda x: bool(~torch.any(x > 10)),
}


@pytest.mark.parametrize("kind", ALIKE)
@ONE_LOOP
async def test_what_decides_alike_for_all_is_run_in_batches(kind, caplog):
    model = Function(lambda x, y: y if ALIKE[kind](x) else y + 1)
    _, details = await served(model, items(), warmup_input=items()[0])
    assert details["largest"] == 4
    assert not caplog.records


#: what gives a batch the answer of a usual task though another task in it would get another
SPEAKS_FOR_OTHERS = {
    "any": lambda x: bool((x > 0.5).any()),
    "not all": lambda x: not (x < 0.5).all(),
    "the largest": lambda x: x.max() > 0.5,
    "the mean": lambda x: x.mean() > 0.1,
    "the first": lambda x: x[0, 0] > 0.5,
    "a number": lambda x: float(x.max()) > 0.5,
}


@pytest.mark.parametrize("kind", SPEAKS_FOR_OTHERS)
@ONE_LOOP
async def test_no_task_decides_as_usual_for_one_that_would_not(kind, caplog):
    model = Function(lambda x, y: y if SPEAKS_FOR_OTHERS[kind](x) else y + 1)
    batch = [torch.full((SIZE,), 1.0 + n / 100) for n in range(40)]
    batch[29] = batch[29] - 1.2
    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(model, batch, sizes=(4,) * 10, warmup_input=batch[3])
    assert_same(outputs, alone(model, batch, first))
    assert "one by one" in caplog.text


class Encoder(nn.Module):
    """torch's own: it leaves out padding if all of a batch have theirs at the end, and gives 0."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.words, self.layers = nn.Embedding(9, 8), nn.TransformerEncoder(layer, 1)

    def forward(self, ids):
        return self.layers(self.words(ids), src_key_padding_mask=ids == 0)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@ONE_LOOP
async def test_one_with_padding_elsewhere_changes_nothing(caplog):
    batch = [torch.tensor([1 + n % 8, 2, 3, 0]) for n in range(40)]
    batch[29] = torch.tensor([1, 0, 3, 0])
    model = Encoder().eval()
    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(model, batch, (4,) * 10, warmup_input=batch[3])
    assert_same(outputs, alone(model, batch, first))
    assert "one by one" in caplog.text


class Limiter(nn.Module):
    """Makes what is too loud less so: all of a batch by the loudest in it."""

    def __init__(self, number=False):
        super().__init__()
        self.number = number

    def forward(self, x):
        peak = x.abs().max()
        return x / (max(float(peak), 10.0) if self.number else peak.clamp(min=10))


@pytest.mark.parametrize("number", [False, True])
@ONE_LOOP
async def test_one_that_outweighs_the_others_changes_nothing(number, caplog):
    """Only one task in many is loud, and no sample of a batch has to have it."""
    batch = items(40)
    batch[29] = batch[29] * 1000
    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(Limiter(number), batch, (4,) * 10, warmup_input=batch[3])
    assert_same(outputs, alone(Limiter(number), batch, first))
    assert "depend on what else is in the batch" in caplog.text


@ONE_LOOP
async def test_each_size_of_a_batch_is_looked_at(caplog):
    def shifted(x, y):  # a model of pictures that come in fours, taken for a model of pictures
        return y + x.roll(1, 0) if len(x) % 4 == 0 else y

    with caplog.at_level(logging.WARNING):
        outputs, _ = await served(Function(shifted), items(24), (3, 3, 3, 3, 2, 3, 3, 4))
    assert_same(outputs, alone(Function(shifted), items(24), first))
    assert "depend on what else is in the batch" in caplog.text


@ONE_LOOP
async def test_no_task_lengthens_the_loop_of_another(caplog):
    def grown(x, y):
        rows = x
        while rows.shape[1] < 12:  # as text is generated: until all have ended, filled up with 0
            ended = rows.sum(1, keepdim=True) > 20
            if ended.all():
                break
            rows = torch.cat([rows, torch.where(ended, 0.0, 2.0)], 1)
        return rows

    batch = [torch.full((SIZE,), float(n)) for n in (1, 1, 1, 4, 1, 6, 2)]
    outputs, _ = await served(Function(grown), batch)
    assert_same(outputs, alone(Function(grown), batch, first))
    assert "values of the whole batch end a loop" in caplog.text


@ONE_LOOP
async def test_a_constant_decides_nothing(caplog):
    limit = torch.tensor(3.0)
    model = Function(lambda x, y: y if bool(limit > 2) else y + 1)
    _, details = await served(model, items(), warmup_input=items()[0])
    assert details["largest"] == 4
    assert not caplog.records


@ONE_LOOP
async def test_one_by_one_the_batch_is_where_it_was_learnt_to_be():
    model = Function(lambda x, y: (torch.softmax(y, 0), y.transpose(0, 1)))
    batch = [*items(4), *items(3, 2, SIZE)]
    outputs, _ = await served(model, batch, sizes=(2, 2, 3))
    assert_same(outputs, alone(model, batch, lambda o: (o[0][0], o[1][:, 0])))


@ONE_LOOP
async def test_answers_that_depend_on_earlier_calls_are_not_taken_for_random():
    kept = [0.0]

    def drifts(x, y):
        kept[0] += 1.0
        return y + kept[0]

    with pytest.raises(ConfigError, match="keeps state between calls"):
        await served(Function(drifts), items(), warmup_input=items()[0])


@ONE_LOOP
async def test_a_user_may_insist():
    model, batch = quantised(), items()
    outputs, details = await served(model, batch, warmup_input=batch[0], batching="trusted")
    assert details["largest"] == 4
    torch.testing.assert_close(torch.stack(outputs[:3]), model(torch.stack(batch[:3])))
    with pytest.raises(ConfigError, match="batching must be 'checked' or 'trusted'"):
        TorchDriver(model, batching="yes")  # pyright: ignore[reportArgumentType]


@ONE_LOOP
async def test_random_answers_are_still_computed_together(caplog):
    model = Function(lambda x, y: y + torch.rand_like(y))
    outputs, details = await served(model, items(), warmup_input=items()[0])
    assert details["largest"] == 4
    assert not caplog.records
    for output, wanted in zip(outputs, alone(Function(lambda x, y: y), items()), strict=True):
        assert bool(((output - wanted[0]) >= 0).all())


@ONE_LOOP
async def test_learning_leaves_no_trace_in_a_model_that_keeps_something():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.eval()

        def forward(self, x):
            self.calls += 1
            return x + self.calls

    outputs, _ = await served(
        Counting(), [torch.zeros(2)] * 3, sizes=[1] * 3, max_batch=1, stateful=True
    )
    assert [float(output[0]) for output in outputs] == [1, 2, 3]


# --- batches of one size only -------------------------------------------------------------------


def exported(count, tmp_path, **shapes):
    net = Function(lambda x, y: {"y": y.relu(), "x": x})
    program = torch.export.export(net, (torch.zeros(count, SIZE),), **shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2", net


def only(count, function=lambda y: y):
    """A net for batches of one size."""

    def forward(x, y):
        if len(x) != count:
            raise ValueError(f"{count} at a time")
        return function(y)

    return Function(forward)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("max_batch", [1, 8, "auto"])
@pytest.mark.parametrize("count", [1, 3])
@ONE_LOOP
async def test_a_file_for_one_size(count, max_batch, warm, tmp_path, caplog):
    file, net = exported(count, tmp_path)
    batch = items()
    options = {"warmup_input": batch[0]} if warm else {}
    outputs, details = await served(file, batch, max_batch=max_batch, **options)
    assert_same(outputs, alone(net, batch, each(first)))
    assert details["largest"] in (1, count)
    if max_batch == 8:
        assert details["largest"] == count
        assert len([r for r in caplog.records if "tasks are run" in r.message]) == 1
        assert "batches" in details


@ONE_LOOP
async def test_a_file_for_some_sizes(tmp_path):
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("b", min=2, max=5)},)}
    file, net = exported(2, tmp_path, **shapes)
    batch = items()
    outputs, details = await served(file, batch, sizes=(5, 1, 1), max_batch=8)
    assert_same(outputs, alone(net, batch, each(first)))
    assert details["largest"] == 5


@pytest.mark.parametrize("max_batch", [1, 8, "auto"])
@pytest.mark.parametrize("count", [2, 4])
@ONE_LOOP
async def test_a_module_for_one_size(count, max_batch):
    batch = items()
    free = alone(Function(lambda x, y: (y, y.t())), batch, lambda o: (o[0][0], o[1][:, 0]))
    model = only(count, lambda y: (y, y.t()))
    outputs, details = await served(model, batch, max_batch=max_batch, warmup_input=batch[0])
    assert_same(outputs, free)
    assert details["largest"] == {1: 1, 8: count}.get(max_batch, details["largest"])
    outputs, _ = await served(model, batch, max_batch=max_batch)
    assert_same(outputs, free)


@ONE_LOOP
async def test_a_script_for_one_size():
    net = Function(lambda x, y: y.view(1, SIZE))
    script = torch.jit.trace(net, torch.zeros(1, SIZE), check_trace=False)
    batch = items()
    for max_batch in (8, "auto"):
        outputs, details = await served(script, batch, max_batch=max_batch, warmup_input=batch[0])
        assert_same(outputs, alone(net, batch, first))
        assert details["largest"] == 1


@ONE_LOOP
async def test_what_cannot_be_filled_up_is_refused():
    model = only(4, lambda y: y - y.mean(0))
    driver = TorchDriver(model, name="dev", max_batch=8, warmup_input=items()[0])
    with pytest.raises(ConfigError, match=r"dev: the model takes no single tasks.* depend on what"):
        await driver.open()
    driver = TorchDriver(model, name="dev", max_batch=8)
    await driver.open()
    for _ in range(2):
        with pytest.raises(ConfigError, match="the model takes no single tasks"):
            await driver.infer(items()[:4])
    await driver.close()


@ONE_LOOP
async def test_a_module_for_small_batches():
    def forward(x, y):
        if len(x) > 5:
            raise ValueError("5 at most")
        sizes.append(len(x))
        return y

    sizes, batch = [], items(60)
    model = Function(forward)
    outputs, details = await served(
        model, batch, sizes=[20, 20, 20], max_batch=64, warmup_input=batch[0]
    )
    assert max(sizes[-10:]) == 5
    assert details["largest"] == 64
    assert_same(outputs, alone(model, batch, first))


@ONE_LOOP
async def test_a_size_is_found_within_what_a_module_takes():
    def forward(x, y):
        if len(x) > 5:
            raise ValueError("5 at most")
        return y

    batch = items(60)
    model = Function(forward)
    outputs, details = await served(
        model, batch, sizes=[20, 20, 20], max_batch="auto", warmup_input=batch[0]
    )
    assert details["largest"] in (1, 2, 4)
    assert_same(outputs, alone(model, batch, first))


def test_a_size_that_fails_ends_the_search_for_the_best():
    def run(size):
        if size > 4:
            raise ValueError("too many")

    _, rates = finished(best_size(run, budget=1.0, longest=1.0))
    assert list(rates) == [1, 2, 4]
    _, rates = finished(best_size(lambda size: None, budget=1.0, longest=1.0, limit=3))
    assert list(rates)[:3] == [1, 2, 3]
    with pytest.raises(ValueError, match="never"):
        finished(best_size(fail, budget=1.0, longest=1.0))


def fail(size):
    raise ValueError("never")


# --- comparing ----------------------------------------------------------------------------------


def test_every_kind_can_be_compared():
    value, other = torch.arange(3.0), torch.arange(3.0) + 1
    for make in (
        lambda v: v.numpy(),
        lambda v: Record(v),
        Frozen,
        lambda v: Registered(v, "k"),
        lambda v: SimpleNamespace(v=[v]),
        lambda v: v.to_sparse(),
        lambda v: torch.complex(v, v),
        lambda v: float(v.sum()),
    ):
        assert difference(make(value), make(value.clone())) == ""
        assert difference(make(value), make(other)) != ""
    assert difference(Registered(value, "a"), Registered(value, "b")) == "another structure"
    loop = SimpleNamespace(a=value)
    loop.itself = loop
    assert difference(loop, copy.deepcopy(loop)) in ("", "another SimpleNamespace")
    assert difference(object(), object()) == "another object"
