"""The order of axes: a driver takes and returns PyTorch's, whatever the board's memory has."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.discovery import leads
from asyncinfer_drivers.cortex_m.specs import TensorSpec
from asyncinfer_drivers.cortex_m.tensors import InputCodec, OutputCodec

LAST = {3: (1, 2, 0), 2: (1, 0), 1: ()}


def tensor(*shape, axes=(), name="x"):
    """A tensor of a board, whose numbers are their own values."""
    return TensorSpec(name, Datatype.INT8, shape, 1.0, 0, axes)


def last(*shape):
    """What PyTorch has in this shape, channels last on the board; -128 to 127 in torch's order."""
    moved = tuple(shape[axis] for axis in LAST[len(shape)] or (0,))
    return tensor(*moved, axes=LAST[len(shape)])


def numbers(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) % 256 - 128


def sent(spec, item, **options):
    """The numbers that the board gets, one after another."""
    return np.frombuffer(InputCodec(spec, **options).encode(item), np.int8).tolist()


# Conv1d square and not, images, 1xN images, RGB-like ones whose shape tells nothing, vectors
SHAPES = [
    (6, 20),
    (16, 16),
    (3, 8, 8),
    (8, 8, 8),
    (3, 3, 3),
    (3, 1, 3),
    (3, 3, 1),
    (1, 3, 3),
    (2, 1, 7),
    (1, 1, 1),
    (9,),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_input_in_pytorchs_shape_is_laid_out_as_the_board_has_it(shape):
    item, spec = numbers(*shape), last(*shape)
    assert spec.torch_shape == shape
    right = np.moveaxis(item, 0, -1).ravel().astype(int).tolist()
    assert sent(spec, item) == sent(spec, item, channels_first=True) == right
    assert sent(spec, item.tolist()) == right
    # numbers that lie differently in this computer's memory
    assert sent(spec, np.asfortranarray(item)) == right
    assert sent(spec, np.moveaxis(item, 0, -1), channels_first=False) == right
    assert sent(spec, np.moveaxis(item, 0, -1), raw=True) == right


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_come_back_in_pytorchs_shape(shape):
    item, spec = numbers(*shape), last(*shape)
    data = np.moveaxis(np.stack([item, -1 - item]), 1, -1).astype(np.int8).tobytes()
    for options in ({}, {"channels_first": True}, {"raw": True, "channels_first": True}):
        codec = OutputCodec(spec, **options)
        one, other = codec.decode(data, 2)
        assert codec.shape == one.shape == shape
        assert np.array_equal(one, item)
        assert np.array_equal(other, -1 - item)
        assert one.flags.c_contiguous
        assert one.flags.owndata
    for options in ({"channels_first": False}, {"raw": True}):
        (own,) = OutputCodec(spec, **options).decode(data[: spec.size], 1)
        assert own.shape == spec.shape
        assert np.array_equal(own, np.moveaxis(item, 0, -1))


@given(st.data(), st.lists(st.integers(1, 4), max_size=5))
def test_any_order_there_and_back(data, sizes):
    axes = tuple(data.draw(st.permutations(range(len(sizes)))))
    spec = tensor(*sizes, axes=axes)
    item = numbers(*spec.torch_shape)
    sample = InputCodec(spec).encode(item)
    lying = np.frombuffer(sample, np.int8).reshape(sizes)
    assert np.array_equal(lying, item.transpose(axes))
    assert np.array_equal(OutputCodec(spec).decode(sample, 1)[0], item)


@pytest.mark.parametrize(
    ("shape", "given", "text"),
    [
        ((3, 8, 8), (1, 3, 8, 8), "leave out the batch dimension"),
        ((9,), (1, 9), "leave out the batch dimension"),
        ((6, 20), (1, 6, 20), "leave out the batch dimension"),
        ((3, 8, 8), (8, 8, 3), r"takes \[3, 8, 8\].* channels_first=False"),
        ((6, 20), (20, 6), "channels_first=False"),
        ((3, 1, 3), (1, 3, 3), "channels_first=False"),
        ((3, 1, 3), (3, 3), "either order"),
        ((3, 3, 1), (3, 3), "either order"),
        ((3, 8, 8), (2, 8, 8), r"shape \[2, 8, 8\], the model takes \[3, 8, 8\]$"),
        ((3, 8, 8), (192,), "takes"),
        ((3, 1, 5), (5, 3), "takes"),
        ((1, 6, 6), (6, 1, 6), "takes"),
        ((9,), (9, 1), "takes"),
        ((9,), (), "takes"),
    ],
)
def test_no_other_shape_is_guessed_at(shape, given, text):
    with pytest.raises(InputError, match=text):
        InputCodec(last(*shape)).encode(np.zeros(given))


@pytest.mark.parametrize(
    ("shape", "given"),
    [((1, 8, 8), (8, 8)), ((1, 8, 8), (8, 8, 1)), ((1, 9), (9,)), ((9, 1), (9,))],
)
def test_where_the_order_does_not_matter_ones_at_the_ends_do_not(shape, given):
    item = numbers(*shape)
    assert sent(last(*shape), item.reshape(given)) == sent(last(*shape), item)


def test_the_board_sees_pytorchs_order_through_the_driver(virtual, board, driver):
    seen = []

    def keep(sample):
        seen.append(np.frombuffer(sample, np.int8).reshape(2, 2, 3))
        return sample

    image = last(3, 2, 2)
    peer = board(spec=replace(board().spec, inputs=(image,), outputs=(image,)), compute=keep)
    item = numbers(3, 2, 2)
    (output,) = virtual(opened(driver(peer, input_shape=[3, 2, 2], output_shape=[3, 2, 2]), item))
    assert np.array_equal(seen[-1], np.moveaxis(item, 0, -1))
    assert output.shape == (3, 2, 2)
    assert np.array_equal(output, item)
    (batch,) = virtual(opened(driver(peer), item[None]))
    assert isinstance(batch, InputError)
    with pytest.raises(ConfigError, match=r"input_shape \(3, 2, 2\), not \(2, 2, 3\)"):
        virtual(opened(driver(peer, input_shape=[2, 2, 3]), item))


def opened(driver, item):
    async def run():
        try:
            await driver.open()
            await driver.calibrate()
            return await driver.infer([item])
        finally:
            await driver.close()

    return run()


# ---- boards of protocol 1: nobody says which order is PyTorch's


def old(*shape):
    return tensor(*shape, axes=None)


def old_board(board, given, made):
    """A board of protocol 1 that returns a sample of its input's numbers."""
    limits = {"protocol": 1, "max_samples": 1, "receive_buffer": 1024}
    spec = replace(board().spec, inputs=(given,), outputs=(made,), **limits)
    return board(spec=spec, compute=lambda sample: sample[: made.size])


@pytest.mark.parametrize("own", [(2, 3, 4), (20, 6), (1, 3, 2), (1, 3, 3), (4, 4, 1), (5,)])
def test_the_shape_tells_where_it_can(virtual, board, driver, own):
    item = numbers(*own)
    peer = old_board(board, old(*own), old(4))
    first = np.moveaxis(item, -1, 0)
    for taken in (item, first):
        (output,) = virtual(opened(driver(peer), taken))
        assert output.tolist() == item.ravel()[:4].tolist()


@pytest.mark.parametrize("own", [(3, 3, 3), (16, 16), (8, 8, 8)])
def test_where_it_cannot_it_has_to_be_said(virtual, board, driver, own):
    item = numbers(*own)
    peer = old_board(board, old(*own), old(4))
    with pytest.raises(ConfigError, match=r"^cortex_m4: .* input .* build it anew, or say channel"):
        virtual(opened(driver(peer), item))
    for said, lying in ((True, np.moveaxis(item, 0, -1)), (False, item)):
        (output,) = virtual(opened(driver(peer, channels_first=said), item))
        assert output.tolist() == lying.ravel()[:4].tolist()
    (output,) = virtual(opened(driver(peer, raw=True), item.astype(np.int8)))
    assert output.tolist() == item.ravel()[:4].tolist()


@pytest.mark.parametrize("made", [(2, 2, 3), (4, 2), (2, 2, 2), (2, 2, 1)])
def test_outputs_of_several_axes_have_to_be_said(virtual, board, driver, made):
    peer = old_board(board, old(12), old(*made))
    item = numbers(12)
    own = item[: np.prod(made)].reshape(made)
    with pytest.raises(ConfigError, match="channels of its output"):
        virtual(opened(driver(peer), item))
    for said, right in ((True, np.moveaxis(own, -1, 0)), (False, own)):
        (output,) = virtual(opened(driver(peer, channels_first=said), item))
        assert output.shape == right.shape
        assert np.array_equal(output, right)


def test_an_old_board_that_nobody_has_explained_is_listed(board, monkeypatch):
    ports = pytest.importorskip("serial.tools.list_ports")
    found = SimpleNamespace(device="/dev/some", hwid="n/a")
    monkeypatch.setattr(ports, "comports", lambda: [found])
    peer = old_board(board, old(3, 3, 3), old(2, 2, 2))

    def make(port, **options):
        return CortexM4Driver(peer.connect, **options)

    looks = leads(make, {})
    (listed,) = looks["/dev/some"](5.0)
    assert (listed["input_shape"], listed["output_shape"]) == ([3, 3, 3], [2, 2, 2])
    # where somebody has configured it, what is missing is said
    looks = leads(make, {"x": {"port": "tcp://h:1"}})
    with pytest.raises(ConfigError, match="channels_first"):
        looks["tcp://h:1"](5.0)


def test_every_shape_of_an_old_board_is_right_or_refused():
    for own in itertools.product((1, 2, 3), repeat=3):
        first = (own[2], *own[:2])
        item = numbers(*own)
        for taken, lying in ((own, item), (first, np.moveaxis(item, -1, 0))):
            codec = None
            try:
                codec = InputCodec(old(*own))
                found = codec.encode(lying)
            except (ConfigError, InputError):
                assert codec is None  # only where both shapes are the same
                assert own == first
            else:
                assert taken in codec.shapes
                assert np.frombuffer(found, np.int8).tolist() == item.ravel().tolist()


def test_complex_numbers_do_not_lose_their_imaginary_part():
    with pytest.raises(InputError, match="complex"):
        InputCodec(last(9)).encode(np.ones(9) + 1j)


@pytest.mark.parametrize("options", [{}, {"raw": True}])
def test_a_single_number_is_an_array_without_axes(options):
    spec = TensorSpec("output", Datatype.INT8, (), 0.5, 0)
    one, two = OutputCodec(spec, **options).decode(bytes([2, 4]), 2)
    assert isinstance(one, np.ndarray)
    assert (one.shape, float(two)) == ((), 4.0 if options else 2.0)
