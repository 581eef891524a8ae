"""Steps for whole batches: the same outputs as one by one, and faults in their place."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer.model import Decoding
from asyncinfer_drivers._shared.options import StepOptions
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._torch.runner import Runner
from asyncinfer_drivers.models import digits, imagenet
from asyncinfer_drivers.torch_host import TorchDriver


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def runner(module, steps, micro_batch=None) -> Runner:
    cpu = torch.device("cpu")
    return Runner("dev", module, cpu, steps, None, 1.0, lambda seconds: None, micro_batch)


def shown(output):
    """What two outputs are compared by."""
    return (type(output), str(output)) if isinstance(output, BaseException) else output


def count_calls(function, calls):
    def counted(*args):
        calls.append(function.__name__)
        return function(*args)

    return counted


# --- digits -------------------------------------------------------------------------------------

PICTURES = list(digits.inputs().items[:40])
NET = digits.build()

GOOD = st.one_of(
    st.sampled_from(PICTURES),
    st.sampled_from([picture.tolist() for picture in PICTURES]),
    st.sampled_from([picture.astype(np.uint8) for picture in PICTURES]),
    st.sampled_from([torch.from_numpy(picture) for picture in PICTURES]),
)
BAD = st.sampled_from(
    [None, "seven", 7, [], [[1, 2], [3]], np.zeros((3, 3)), np.zeros(64), np.zeros((1, 8, 8)),
     np.zeros((8, 1)), np.full((8, 8), "x"), [["1"] * 8] * 7, {"a": 1}, object(), 10**400]
)  # fmt: skip


@given(st.lists(st.one_of(GOOD, GOOD, BAD), min_size=1, max_size=9))
def test_digits_whole_or_one_by_one(batch):
    """Good and bad items in any places: the same outputs, types and texts of errors."""
    model = digits.MODEL
    one = Steps(model.preprocess, model.postprocess)
    whole = one._replace(collate=model.collate, uncollate=model.uncollate)
    outputs = runner(NET, whole).run(batch)
    assert list(map(shown, outputs)) == list(map(shown, runner(NET, one).run(batch)))
    for item, output in zip(batch, outputs, strict=True):
        try:
            digits.preprocess(item)
        except InputError:
            assert isinstance(output, InputError)
        else:
            assert type(output) is int


@given(st.lists(st.one_of(GOOD, GOOD, BAD), max_size=9), st.integers(1, 10))
def test_digits_at_once_or_in_parts(batch, micro_batch):
    model = digits.MODEL
    steps = Steps(model.preprocess, model.postprocess, model.collate, model.uncollate)
    outputs = runner(NET, steps, micro_batch).run(batch)
    assert list(map(shown, outputs)) == list(map(shown, runner(NET, steps).run(batch)))


@given(st.lists(st.one_of(GOOD, GOOD, GOOD, BAD), min_size=1, max_size=5))
def test_digits_collate_takes_what_preprocess_takes(batch):
    """One tensor, bit by bit that of the items preprocessed and stacked; else an InputError."""
    try:
        expected = torch.stack([digits.preprocess(item) for item in batch])
    except InputError:
        with pytest.raises(InputError):
            digits.collate(batch)
    else:
        torch.testing.assert_close(digits.collate(batch), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("model", "classes"), [(digits.MODEL, 10), (imagenet.MODEL, 1000)])
def test_uncollate_gives_what_postprocess_gives(model, classes):
    torch.manual_seed(3)
    logits = torch.randn(50, classes).round(decimals=1)  # with ties
    assert model.uncollate(logits) == [model.postprocess(row) for row in logits]


def test_a_good_batch_needs_no_step_for_one_task():
    def never(item):
        raise AssertionError

    steps = Steps(never, never, digits.collate, digits.uncollate)
    assert runner(NET, steps).run(PICTURES[:10]) == list(range(10))


def test_files_among_the_items(tmp_path):
    steps = Steps(digits.preprocess, digits.postprocess, digits.collate, digits.uncollate)
    good, gone = runner(NET, steps).run([PICTURES[3], tmp_path / "gone.png"])
    assert good == 3
    assert isinstance(gone, InputError)
    assert "no such file" in str(gone)


def test_the_built_in_model_brings_them():
    steps = digits.MODEL.collate, digits.MODEL.uncollate
    assert steps == (digits.collate, digits.uncollate)


# --- steps that fail ----------------------------------------------------------------------------


def number(item):
    return torch.tensor(float(item))


def label(row):
    if row < 0:
        raise ValueError(f"negative: {row:g}")
    return f"{row:g}"


def collate(items):
    return torch.tensor([float(item) for item in items])


def uncollate(output):
    return [label(value) for value in output.tolist()]


STEPS = Steps(number, label, collate, uncollate)
TWICE = Function(lambda x: x * 2)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", ["text", "-1"], ids=["collate", "uncollate"])
def test_the_culprit_alone_fails(place, bad):
    batch = ["1", "2"]
    batch.insert(place, bad)
    outputs = runner(TWICE, STEPS).run(batch)
    error = outputs.pop(place)
    assert type(error) is ValueError
    assert outputs == ["2", "4"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda items: torch.zeros(len(items) + 1),
        lambda items: torch.tensor(1.0),
        lambda items: None,
        lambda items: 1 / 0,
        sys.exit,
    ],
    ids=["longer", "no dimension", "no tensor", "raises", "exits"],
)
@pytest.mark.parametrize("step", ["collate", "uncollate"])
def test_a_wrong_step_for_batches_costs_nothing_but_time(caplog, step, wrong):
    broken = runner(TWICE, STEPS._replace(**{step: wrong}))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert broken.run(["1", "2", "3"]) == ["2", "4", "6"]
    (record,) = caplog.records
    assert f"dev: {step} failed" in record.message


def test_an_input_error_is_no_news(caplog):
    with caplog.at_level(logging.WARNING):
        runner(NET, Steps(digits.preprocess, None, digits.collate)).run([None, PICTURES[0]])
    assert not caplog.records


def test_a_model_that_raises_is_run_again_with_one_task_each():
    def picky(x):
        x += 1  # its own copy: seen neither by the caller nor by the next attempt
        if (x > 3).any():
            raise ValueError("too large")
        return x

    items = [torch.tensor(float(n)) for n in range(4)]
    steps = Steps(number, label, collate, uncollate)
    *outputs, error = runner(Function(picky), steps).run(items)
    assert outputs == ["1", "2", "3"]
    assert str(error) == "too large"
    assert [item.item() for item in items] == [0, 1, 2, 3]


@pytest.mark.parametrize("step", ["collate", "uncollate", "postprocess"])
def test_the_accelerators_errors_are_the_devices(step):
    def fails(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    steps = Steps(number, label)._replace(**{step: fails})
    with pytest.raises(DeviceLost, match="'dev': CUDA out of memory"):
        runner(TWICE, steps).run(["1", "2"])


# --- which steps are used -----------------------------------------------------------------------


@pytest.mark.parametrize("step", ["collate", "uncollate"])
def test_each_needs_the_step_for_one_task(step):
    with pytest.raises(ConfigError, match=f"{step} needs p"):
        TorchDriver(TWICE, **{step: collate})


async def test_given_to_the_driver():
    calls = []
    given = {
        name: count_calls(getattr(STEPS, name), calls)
        for name in ("preprocess", "postprocess", "collate", "uncollate")
    }
    driver = TorchDriver(TWICE, max_batch=3, **given)
    await driver.open()
    assert await driver.infer(["1", "2", "3"]) == ["2", "4", "6"]
    assert calls == ["collate", "uncollate"]
    assert await driver.infer([]) == []
    await driver.close()


def test_own_steps_replace_those_of_the_model_on_their_side():
    own = Steps(preprocess=number)
    assert own.over(STEPS) == (number, label, None, uncollate)
    assert Steps(postprocess=label).over(STEPS) == (number, label, collate, None)
    assert Steps().over(STEPS) == STEPS


def test_a_step_that_only_decodes_goes_before_the_model_s_own():
    decoding = Decoding(Path.read_text)
    both = Steps(decoding).over(STEPS)
    assert both == (Decoding(Path.read_text, number), label, None, uncollate)
    assert Steps(decoding).over(Steps()) == Steps(decoding)
    whole = Steps(Decoding(Path.read_text, number), collate=collate)
    assert whole.over(STEPS) == (whole.preprocess, label, collate, uncollate)


def test_by_name():
    steps = StepOptions(preprocess="builtins:float", collate="builtins:list").steps.imported()
    assert steps == (float, None, list, None)


# --- in parts -----------------------------------------------------------------------------------


async def test_a_call_with_more_than_the_model_takes_at_once():
    sizes = []

    def forward(x):
        sizes.append(len(x))
        return x * 2

    items = [torch.tensor(float(n)) for n in range(10)]
    driver = TorchDriver(Function(forward), max_batch=10, micro_batch=4)
    await driver.open()
    await driver.infer(items[:4])  # is told apart by further calls: it changes a list of ours
    sizes.clear()
    assert await driver.infer(items) == [2 * n for n in range(10)]
    sizes.clear()  # it has also learnt from the first calls
    driver._session.runner.division._next_check = 2048
    assert await driver.infer(items) == [2 * n for n in range(10)]
    assert sizes == [4, 4, 2]
    assert driver.details["micro_batch"] == 4
    await driver.close()


async def test_the_form_is_sought_for_what_the_model_takes_at_once():
    sizes = set()

    def forward(x):
        sizes.add(len(x))
        return x * 2

    given = {"max_batch": 64, "warmup_input": torch.ones(1, 2, 2), "optimize": "channels_last"}
    driver = TorchDriver(Function(forward), micro_batch=4, **given)
    await driver.open()
    await driver.close()
    assert max(sizes) == 4


@pytest.mark.parametrize("micro_batch", [0, -1, 2.5, "auto"])
def test_it_is_a_number_of_tasks(micro_batch):
    with pytest.raises(ConfigError, match="micro_batch must be a whole number"):
        TorchDriver(TWICE, micro_batch=micro_batch)


def test_a_device_that_fails_in_a_part_fails_all_of_them():
    def fails(x):
        if x[0] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    with pytest.raises(DeviceLost, match="'dev': CUDA out of memory"):
        runner(Function(fails), Steps(number), 2).run([0, 1, 2])
