"""Tasks of several tensors: by name, in order, in a container, as a program was exported."""

import numpy as np
import pytest
import torch
from torch import nn

from asyncinfer import Dispatcher
from asyncinfer.errors import InputError, TaskError
from asyncinfer_drivers._torch.calling import described
from asyncinfer_drivers.torch_host import TorchDriver

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")


class Two(nn.Module):
    """The sum and the difference; the sum may be scaled."""

    def forward(self, a, b, scale=None):
        total = a + b if scale is None else (a + b) * scale[:, None]
        return {"sum": total, "difference": a - b}


class Dict(nn.Module):
    def forward(self, both: dict[str, torch.Tensor]):
        return both["a"] + 2 * both["b"]


class Plain(nn.Module):
    def forward(self, both):
        return both["a"] + 2 * both["b"]


class Pair(nn.Module):
    def forward(self, both: tuple[torch.Tensor, torch.Tensor]):
        return both[0] + 2 * both[1]


class Anything(nn.Module):
    def forward(self, *tensors, **named):
        return sum(tensors) + sum(named.values())


class Only(nn.Module):
    """By position and by name only."""

    def forward(self, a, /, *, b):
        return a + 2 * b


ROWS = [(torch.full((4,), float(i)), torch.full((4,), 10.0 * i)) for i in range(20)]
NAMED = [{"a": a, "b": b} for a, b in ROWS]
SECOND = [a + 2 * b for a, b in ROWS]


async def answers(model, tasks, **options):
    async with Dispatcher([TorchDriver(model, **options)]) as dispatcher:
        return [output async for output in dispatcher.stream(tasks)]


@pytest.mark.parametrize("tasks", [NAMED, ROWS], ids=["named", "in order"])
@pytest.mark.parametrize("max_batch", [1, 8, "auto"])
async def test_each_input_is_batched(tasks, max_batch):
    for (a, b), output in zip(ROWS, await answers(Two(), tasks, max_batch=max_batch), strict=True):
        assert torch.equal(output["sum"], a + b)
        assert torch.equal(output["difference"], a - b)


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        (Dict(), NAMED),
        (Plain(), NAMED),
        (Pair(), ROWS),
        (Only(), NAMED),
        (lambda: torch.jit.script(Dict()), NAMED),
        (lambda: torch.jit.script(Pair()), ROWS),
    ],
    ids=["dict", "unknown", "tuple", "only", "script of a dict", "script of a tuple"],
)
async def test_however_the_model_takes_them(model, tasks):
    outputs = await answers(model, tasks, max_batch=4, warmup_input=tasks[3])
    assert all(map(torch.equal, outputs, SECOND))


async def test_what_the_signature_does_not_tell():
    outputs = await answers(Anything(), NAMED, max_batch=4)
    assert all(torch.equal(out, a + b) for out, (a, b) in zip(outputs, ROWS, strict=True))
    outputs = await answers(Anything(), [(a, b, a) for a, b in ROWS], max_batch=4)
    assert all(torch.equal(out, 2 * a + b) for out, (a, b) in zip(outputs, ROWS, strict=True))


async def test_what_is_optional_may_be_left_out_of_some_tasks_and_none_gets_anothers():
    tasks = [
        {"a": a, "b": b} | ({"scale": torch.tensor(float(at))} if at % 3 else {"scale": None})
        for at, (a, b) in enumerate(ROWS)
    ]
    for at, output in enumerate(await answers(Two(), tasks, max_batch=8)):
        a, b = ROWS[at]
        assert torch.equal(output["sum"], (a + b) * (at if at % 3 else 1))


async def test_inputs_of_several_shapes_and_dtypes_in_one_stream():
    tasks = [
        {"a": np.full(1 + at % 3, at, np.float32), "b": np.full(1 + at % 3, at, np.int64)}
        for at in range(30)
    ]
    for at, output in enumerate(await answers(Two(), tasks, max_batch=8)):
        assert output["sum"].tolist() == [2.0 * at] * (1 + at % 3)


BATCH = torch.export.Dim("batch", min=1, max=64)
PAIR = torch.ones(2, 4), torch.ones(2, 4)


def exported(model, arguments, keywords, shapes, folder):
    program = torch.export.export(model, arguments, keywords, dynamic_shapes=shapes)
    path = folder / "model.pt2"
    torch.export.save(program, path)
    return str(path)


DYNAMIC = {0: BATCH}
BOTH = {"a": DYNAMIC, "b": DYNAMIC}
NAMED_PAIR = dict(zip("ab", PAIR, strict=True))
EXPORTED = {
    "by position": (Two(), PAIR, {}, BOTH, NAMED),
    "by name": (Two(), (), NAMED_PAIR, BOTH, NAMED),
    "in a dict": (Dict(), (NAMED_PAIR,), {}, (BOTH,), NAMED),
    "in a tuple": (Pair(), (PAIR,), {}, ((DYNAMIC, DYNAMIC),), ROWS),
}


@pytest.mark.parametrize("kind", EXPORTED)
async def test_an_exported_program_as_it_was_exported(kind, tmp_path):
    *given, tasks = EXPORTED[kind]
    path = exported(*given, tmp_path)
    outputs = await answers(path, tasks, max_batch=8)
    sums = [a + b for a, b in ROWS] if kind.startswith("by") else SECOND
    for wanted, output in zip(sums, outputs, strict=True):
        assert torch.equal(output["sum"] if kind.startswith("by") else output, wanted)
    names = ["input0", "input1"] if kind == "in a tuple" else ["a", "b"]
    facts = {"optional": False, "alone": False, "dtype": "float32", "shape": (4,), "sizes": (4,)}
    assert described(path) == [{"name": name, **facts} for name in names]


async def test_a_tuple_model_by_the_names_that_its_description_gives():
    tasks = [{"input0": a, "input1": b} for a, b in ROWS]
    assert all(map(torch.equal, await answers(Pair(), tasks, max_batch=4), SECOND))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"a": PAIR[0][0]}, "lacks b: the model's inputs are called a, b, scale"),
        ({"a": PAIR[0][0], "b": PAIR[0][0], "c": PAIR[0][0]}, "has c: the model's inputs"),
        ((PAIR[0][0],), "it lacks b"),
        ((PAIR[0][0],) * 4, "takes 3 tensors at most, not 4"),
        ({}, "no inputs"),
        ({"a": "text", "b": PAIR[0][0]}, "input 'a': no tensor can be made of this str"),
        (PAIR[0][0], "takes several tensors for one task: give each task as a mapping"),
    ],
)
async def test_what_a_model_does_not_take_is_told_and_costs_no_neighbour(task, text):
    async with Dispatcher([TorchDriver(Two(), max_batch=4)]) as dispatcher:
        stream = dispatcher.stream([NAMED[1], task, NAMED[2]], return_exceptions=True)
        first, wrong, last = [output async for output in stream]
    assert isinstance(wrong, TaskError)
    assert isinstance(wrong.causes[-1], InputError | TypeError)
    assert text in str(wrong)
    assert torch.equal(first["sum"], ROWS[1][0] + ROWS[1][1])
    assert torch.equal(last["sum"], ROWS[2][0] + ROWS[2][1])


async def test_a_dict_that_a_tensor_is_wanted_for():
    class Tensor(nn.Module):
        def forward(self, x: torch.Tensor):
            return x

    with pytest.raises(TaskError, match="lacks x: the model's inputs are called x"):
        await answers(Tensor(), NAMED[:1])


async def test_numbers_in_a_tuple_are_still_one_tensor():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    (output,) = await answers(Double(), [(1.0, 2.0)])
    assert output.tolist() == [2.0, 4.0]
    (output,) = await answers(Double(), [(np.ones(2), np.ones(2))])
    assert output.shape == (2, 2)


async def test_mappings_that_preprocess_and_collate_make():
    outputs = await answers(
        Two(), ROWS, max_batch=4, preprocess=lambda row: {"a": row[0], "b": row[1]}
    )
    assert all(torch.equal(o["sum"], a + b) for o, (a, b) in zip(outputs, ROWS, strict=True))

    def collate(rows):
        return {name: torch.stack([row[name] for row in rows]) for name in "ab"}

    steps = {"preprocess": dict, "collate": collate}
    outputs = await answers(Two(), NAMED, max_batch=4, **steps)
    assert all(torch.equal(o["sum"], a + b) for o, (a, b) in zip(outputs, ROWS, strict=True))


async def test_answers_that_depend_on_the_batch_are_found_with_several_inputs_too():
    class Mean(nn.Module):
        def forward(self, a, b):
            return a - b.mean(0, keepdim=True)

    outputs = await answers(Mean(), ROWS, max_batch=8)
    assert all(torch.equal(o, a - b) for o, (a, b) in zip(outputs, ROWS, strict=True))


@pytest.mark.slow
async def test_several_inputs_in_a_process(tmp_path):
    path = exported(*EXPORTED["by position"][:4], tmp_path)
    outputs = await answers(path, NAMED, max_batch=8, isolation="process")
    assert all(torch.equal(o["sum"], a + b) for o, (a, b) in zip(outputs, ROWS, strict=True))
