"""What a board leaves to the host, by the names of its outputs."""

import numpy as np
import pytest

from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.host_steps import known, named, split
from asyncinfer_drivers.cortex_m.results import ResultCodec
from asyncinfer_drivers.cortex_m.specs import TensorSpec

LOGITS = np.array([[3, -5, 7], [0, 9, -2]], np.int8)


def spec(name, shape=(3,)):
    return TensorSpec(name, Datatype.INT8, shape, 0.5, 0)


def found(*names, **options):
    codec = ResultCodec([spec(name) for name in names], **options)
    data = np.concatenate([LOGITS] * len(names), axis=1).tobytes()
    return codec.decode(data, 2), codec.shape


def test_argmax_is_pytorchs():
    results, shape = found("output | argmax(1)")
    assert shape == ()
    assert [int(each) for each in results] == [2, 1]
    assert results[0].shape == ()
    assert results[0].dtype == np.int64


def test_log_softmax_then_a_comparison():
    (one, _), shape = found("output | log_softmax(-1) | gt(-1.0)")
    assert shape == (3,)
    assert one.tolist() == [False, False, True]
    (one, _), _ = found("output | log_softmax(1)")
    assert np.exp(one).sum() == pytest.approx(1)


def test_in_a_dict_beside_what_the_board_computed():
    (one, _), shape = found("output['scores']", "output['label'] | argmax(1)")
    assert shape == ((3,), ())
    assert one["scores"].tolist() == [1.5, -2.5, 3.5]
    assert one["label"] == 2


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("argmax(1)", lambda image: image.argmax(0)),
        ("argmax(-1, True)", lambda image: image.argmax(2, keepdims=True).transpose(1, 2, 0)),
        ("amax(2)", lambda image: image.max(1)),
        ("gt(0.0)", lambda image: (image > 0).transpose(1, 2, 0)),
    ],
)
def test_axes_are_pytorchs_where_results_are_in_the_boards_order(step, wanted):
    numbers = np.random.default_rng(42).integers(-128, 128, (3, 5, 2)).astype(np.int8)
    board = TensorSpec(f"output | {step}", Datatype.INT8, (3, 5, 2), 1.0, 0, (1, 2, 0))
    codec = ResultCodec([board], channels_first=False)
    (one,) = codec.decode(numbers.tobytes(), 1)
    right = wanted(numbers.transpose(2, 0, 1))
    assert one.tolist() == right.tolist()
    assert codec.shape == right.shape


def test_keys_may_look_like_steps():
    name = named("output['a | argmax(1)']", ("argmax(1)",))
    assert split(name) == ("output['a | argmax(1)']", ("argmax(1)",))
    (one, _), _ = found(name, "output['b']")
    assert one["a | argmax(1)"] == 2


def test_raw_bytes_are_the_boards():
    (one, _), shape = found("output | argmax(1)", raw=True)
    assert shape == (3,)
    assert one.tolist() == LOGITS[0].tolist()


def test_names_are_taken_apart_as_they_were_put_together():
    assert split(named("output[0]", ("argmax(1)",))) == ("output[0]", ("argmax(1)",))
    assert split("scores") == ("scores", ())


@pytest.mark.parametrize(
    ("steps", "rank", "can"),
    [
        ((), 1, True),
        (("argmax(1)",), 1, True),
        (("argmax()",), 2, True),
        (("argmax(0)",), 1, False),  # the batch
        (("argmax(1, True)",), 1, True),
        (("argmax(1, True)", "argmax(1)"), 1, True),
        (("argmax(True)",), 1, False),  # the batch is kept too
        (("amax(1)",), 1, True),
        (("amax()",), 1, False),
        (("softmax(1, True)",), 1, False),
        (("gt(0)", "to(torch.float32)"), 1, True),
        (("gt(0)", "to(torch.float64)"), 1, False),
        (("log_softmax(1)", "argmax(1)"), 1, True),
        (("argmax(1)", "argmax(1)"), 1, False),
        (("log_softmax()",), 1, False),
        (("normalize",), 1, False),
        (("normalize(2.0, 1, 1e-12)",), 1, True),
        (("normalize(2.0, 0, 1e-12)",), 1, False),
        (("normalize(2.0, 1)",), 1, False),
        (("topk_values(2)",), 1, True),
        (("topk(2)",), 1, False),  # of both results it is not said which
        (("sort_indices(0, True)",), 1, False),
        (("select(1, 2)", "squeeze(1)"), 2, True),
        (("select(1, 2)", "argmax(1)"), 1, False),
        (("select(1)",), 1, False),
        (("select(1, x)",), 1, False),
        (("unsqueeze(2)",), 1, True),
        (("unsqueeze(0)",), 1, False),
        (("permute(0, 2, 1)",), 2, False),
        (("to()",), 1, False),
        (("gt(x)",), 1, False),
    ],
)
def test_what_a_driver_can_do(steps, rank, can):
    assert known(steps, rank) is can


IMAGES = np.random.default_rng(42).integers(-4, 4, (3, 5, 2)).astype(np.int8)


@pytest.mark.parametrize(
    ("steps", "function"),
    [
        ("topk_values(2, 1)", lambda x: x.topk(2, 1).values),
        ("topk_values(2, -2, False)", lambda x: x.topk(2, -2, largest=False).values),
        (
            "topk_indices(2, 1)",
            lambda x: x.sort(dim=1, descending=True, stable=True).indices[:, :2],
        ),
        ("sort_values(2, True)", lambda x: x.sort(2, descending=True).values),
        ("sort_indices(2)", lambda x: x.sort(dim=2, stable=True).indices),
        ("argsort(1, True)", lambda x: x.argsort(dim=1, descending=True, stable=True)),
        ("vector_norm(2, 1, False)", lambda x: x.norm(dim=1)),
        ("vector_norm(1, -1, True)", lambda x: x.norm(p=1, dim=-1, keepdim=True)),
        ("normalize(2.0, 1, 1e-12)", lambda x: x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)),
        ("normalize(inf, 3, 0.5)", lambda x: x / x.abs().amax(3, keepdim=True).clamp_min(0.5)),
        ("softmax(1) | select(1, -2)", lambda x: x.softmax(1)[:, -2]),
        ("argmax(1, True) | squeeze(1)", lambda x: x.argmax(1, keepdim=True).squeeze(1)),
        ("argmax(2) | squeeze(1)", lambda x: x.argmax(2).squeeze(1)),
        ("argmax(1) | unsqueeze(-1)", lambda x: x.argmax(1).unsqueeze(-1)),
    ],
)
def test_steps_are_pytorchs(steps, function):
    torch = pytest.importorskip("torch")
    board = TensorSpec(f"output | {steps}", Datatype.INT8, IMAGES.shape, 0.5, 0, ())
    codec = ResultCodec([board])
    (one,) = codec.decode(IMAGES.tobytes(), 1)
    right = function(torch.from_numpy(IMAGES).float()[None] / 2)[0].numpy()
    assert one.dtype == right.dtype
    assert codec.shape == right.shape
    np.testing.assert_allclose(one, right, rtol=1e-6)
