"""Face detection: its nets, its arithmetic, and faces found in pictures of every kind."""

import dataclasses
import functools
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers import models
from asyncinfer_drivers.models import _images, mtcnn, mtcnn_cascade
from asyncinfer_drivers.models._images import bundled
from asyncinfer_drivers.models.mtcnn import MODEL, Face, Truth
from asyncinfer_drivers.models.mtcnn_boxes import (
    cut,
    moved,
    overlaps,
    squared,
    suppress,
    table_of,
)
from asyncinfer_drivers.models.mtcnn_cascade import COLUMNS, levels, reduced
from asyncinfer_drivers.models.mtcnn_nets import ONet, PNet, RNet
from asyncinfer_drivers.torch_host import TorchDriver

ROOT = Path(__file__).resolve().parents[2]


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.fixture(scope="module")
def net():
    """Alone on one thread: on a busy machine two of torch's own wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield mtcnn.build()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pictures():
    """The model's own, by name."""
    data = MODEL.inputs()
    return dict(zip(data.names, data.items, strict=True))


def faces(net, item):
    with torch.inference_mode():
        return mtcnn.postprocess(net(mtcnn.preprocess(item)[None])[0])


async def run_all(items, **options):
    driver = TorchDriver(MODEL, **options)
    await driver.open()
    outputs = []
    for start in range(0, len(items), driver.max_batch):
        outputs += await driver.infer(items[start : start + driver.max_batch])
    await driver.close()
    return outputs


# --- nets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("net", "weights"), [(PNet, 6632), (RNet, 100_178), (ONet, 389_040)])
def test_nets_have_the_weights_of_the_paper(net, weights):
    assert sum(p.numel() for p in net().parameters()) == weights


@pytest.mark.parametrize(
    ("size", "grid"), [((12, 12), (1, 1)), ((13, 14), (2, 2)), ((12, 40), (1, 15))]
)
def test_pnet_slides(size, grid):
    face, shift = PNet()(torch.rand(1, 3, *size))
    assert face.shape == grid
    assert shift.shape == (*grid, 4)
    assert (face > 0).all()
    assert (face < 1).all()


@pytest.mark.parametrize(("net", "points"), [(RNet, 0), (ONet, 5)])
def test_the_others_look_at_windows(net, points):
    face, shift, landmarks = net()(torch.rand(7, 3, net.SIDE, net.SIDE))
    assert (face.shape, shift.shape, landmarks.shape) == ((7,), (7, 4), (7, points, 2))


# --- boxes --------------------------------------------------------------------------------------


def test_overlaps():
    boxes = tensor([0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 4, 4], [5, 5, 6, 6], [2, 2, 2, 2])
    expected = tensor([1, 1 / 7, 1 / 4, 0, 0], [1 / 7, 1, 1 / 4, 0, 0])
    torch.testing.assert_close(overlaps(boxes[:2], boxes), expected)
    inside = overlaps(boxes[:1], boxes[1:3], of_smaller=True)
    torch.testing.assert_close(inside, tensor([1 / 4, 1]))


def test_suppression_by_hand():
    boxes = tensor([0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [5, 0, 15, 10], [2, 2, 4, 4])
    scores = torch.tensor([0.8, 0.9, 0.5, 0.7, 0.95])
    assert suppress(boxes, scores, 0.5).tolist() == [4, 1, 3, 2]
    assert suppress(boxes, scores, 0.3).tolist() == [4, 1, 2]
    assert suppress(boxes, scores, 0.3, of_smaller=True).tolist() == [4, 3, 2]
    assert suppress(boxes[:0], scores[:0], 0.5).tolist() == []


def test_what_is_suppressed_suppresses_nothing():
    chain = torch.stack([torch.tensor([4.0 * i, 0, 4.0 * i + 10, 10]) for i in range(9)])
    scores = torch.linspace(1, 0.5, 9)
    assert suppress(chain, scores, 0.4).tolist() == [0, 2, 4, 6, 8]


def test_the_first_of_equals_stays():
    boxes = tensor([0, 0, 4, 4]).repeat(5, 1)
    assert suppress(boxes, torch.ones(5), 0.5).tolist() == [0]


def slow_suppress(boxes, scores, limit, of_smaller):
    """One by one, in fractions."""
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if overlap(boxes[best], boxes[i], of_smaller) <= limit]
    return kept


def overlap(one, other, of_smaller):
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (one, other)]
    whole = min(areas) if of_smaller else sum(areas) - width * height
    return width * height / whole


BOX = st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(
    st.lists(st.tuples(BOX, st.integers(0, 5)), max_size=30),
    st.sampled_from([0.0, 0.3, 0.49, 0.71, 1.0]),
    st.booleans(),
)
def test_suppression_is_that_of_the_slow_loop(scored, limit, of_smaller):
    boxes, scores = [box for box, _ in scored], [score for _, score in scored]
    quick = suppress(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        limit,
        of_smaller=of_smaller,
    )
    assert quick.tolist() == slow_suppress(boxes, scores, limit, of_smaller)


def test_moved_and_squared():
    boxes = tensor([10, 20, 30, 60])
    assert moved(boxes, tensor([0.1, 0.1, -0.1, 0.5])).tolist() == [[12, 24, 28, 80]]
    assert squared(boxes).tolist() == [[0, 20, 40, 60]]
    assert squared(tensor([1.2, 1.2, 1.3, 1.4], [3, 9, 2, 1])).tolist() == [
        [0, 0, 1, 1],
        [2, 4, 3, 5],
    ]


@given(
    st.integers(1, 9), st.integers(1, 9), st.tuples(*[st.integers(-6, 12)] * 2),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4),
)  # fmt: skip
def test_cutting_averages_pixels(height, width, corner, rows, columns, tall, wide):
    rng = np.random.default_rng(42)
    picture = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
    x, y = corner
    black = np.zeros((3, 40, 40))
    black[:, 10 : 10 + height, 10 : 10 + width] = picture
    window = black[:, y + 10 : y + 10 + rows * tall, x + 10 : x + 10 + columns * wide]
    expected = window.reshape(3, rows, tall, columns, wide).mean((2, 4))
    box = tensor([x, y, x + columns * wide, y + rows * tall])
    pixels = cut(table_of(torch.from_numpy(picture)), box, rows, columns)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels[0].numpy(), expected, atol=1e-3)


def test_cutting_takes_parts_of_pixels():
    table = table_of(torch.tensor([0, 100], dtype=torch.uint8).expand(3, 1, 2))
    box = tensor([0.5, 0.25, 1.5, 0.75])
    assert cut(table, box, 1, 1).flatten().tolist() == [50, 50, 50]
    assert cut(table, box, 1, 2)[0, 0].tolist() == [[0, 100]]


def test_levels():
    assert levels(20, 30, 0.6) == [(12, 18)]
    sizes = levels(400, 600, 0.6)
    assert sizes[0] == (240, 360)
    assert [round(b[0] / a[0], 1) for a, b in itertools.pairwise(sizes)] == [0.7] * 8
    assert min(sizes[-1]) >= 12
    assert levels(11, 600, 1.0) == []


def test_reducing_averages_squares_and_cuts_off_the_rest():
    picture = torch.arange(3 * 7 * 8, dtype=torch.uint8).reshape(3, 7, 8)
    assert reduced(picture, 1) is picture
    small = reduced(picture, 3)
    assert small.shape == (3, 2, 2)
    assert small[1, 1, 1] == picture[1, 3:6, 3:6].float().mean()
    tall = torch.randint(0, 255, (3, 999, 4), dtype=torch.uint8)
    whole = torch.nn.functional.avg_pool2d(tall.float(), 2)
    torch.testing.assert_close(reduced(tall, 2), whole)


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.models
@pytest.mark.asyncio(loop_factories=["asyncio"])  # it takes seconds
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_the_right_faces_are_found(max_batch):
    data = MODEL.inputs()
    found = dict(zip(data.names, await run_all(list(data.items), max_batch=max_batch), strict=True))
    (face,) = found["astronaut.png"]
    assert face.box == pytest.approx((181, 62, 268, 172), abs=4)
    assert face.probability > 0.99
    left_eye, right_eye, nose, *mouth = face.landmarks
    assert left_eye == pytest.approx((204, 102), abs=4)
    assert right_eye == pytest.approx((247, 104), abs=4)
    assert nose == pytest.approx((225, 130), abs=4)
    assert [y for _, y in mouth] == pytest.approx([141, 142], abs=6)
    assert len(found["camera.png"]) == 1
    for name in ("china.jpg", "coffee.png", "chelsea.png", "flower.jpg", "rocket.jpg"):
        assert found[name] == []
    assert list(found.values()) == list(data.targets)


@pytest.mark.models
def test_faces_are_told_from_what_is_none(net):
    """100 faces and 100 other patches of Labeled Faces in the Wild, 25x25 pixels, grey."""
    patches = np.load(bundled("skimage", "data/lfw_subset.npy"))
    found = [bool(faces(net, enlarged(patch))) for patch in patches]
    assert sum(found[:100]) >= 97
    assert sum(found[100:]) == 0


def enlarged(patch):
    image = Image.fromarray((patch * 255).astype(np.uint8)).resize((100, 100))
    return np.pad(np.asarray(image), 20, mode="edge")


@pytest.mark.models
def test_the_same_again_whatever_else_is_in_the_batch(net, pictures):
    astronaut, camera = (mtcnn.preprocess(pictures[n]) for n in ("astronaut.png", "camera.png"))
    empty = torch.zeros_like(astronaut)
    twice = torch.cat([astronaut, astronaut], 1)[:, 100:612]
    batch = [empty, astronaut, twice, camera]
    with torch.inference_mode():
        alone = [net(picture[None])[0] for picture in batch]
        together = net(torch.stack(batch))
    most = max(len(rows) for rows in alone)
    assert together.shape == (4, most, COLUMNS)
    for rows, padded in zip(alone, together, strict=True):
        torch.testing.assert_close(padded[: len(rows)], rows, rtol=0, atol=0)
        assert padded[len(rows) :].isnan().all()
        assert mtcnn.postprocess(padded) == mtcnn.postprocess(rows)
    assert mtcnn.postprocess(together[0]) == []


@pytest.mark.models
def test_pictures_of_every_kind(net, pictures, tmp_path):
    array = pictures["astronaut.png"]
    image = Image.fromarray(array)
    image.save(tmp_path / "x.png")
    expected = faces(net, array)
    with_alpha = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    for same in (
        image,
        tmp_path / "x.png",
        with_alpha,
        image.convert("RGBA"),
        array[:, ::-1][:, ::-1],
    ):
        assert faces(net, same) == expected
    for near in (image.convert("L"), np.asarray(image.convert("L")), image.convert("P")):
        assert faces(net, near) == Truth(tuple(face.box for face in expected))


@pytest.mark.models
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (19, 300), (20, 20), (21, 400)])
@pytest.mark.parametrize("value", [0, 255])
def test_tiny_and_plain_pictures_have_no_face(net, size, value):
    assert faces(net, np.full(size, value, np.uint8)) == []


@pytest.mark.models
def test_a_face_at_the_border_stays_inside(net, pictures):
    array = pictures["astronaut.png"][80:170, 185:262]
    for face in faces(net, array):
        x1, y1, x2, y2 = face.box
        assert 0 <= x1 < x2 <= array.shape[1]
        assert 0 <= y1 < y2 <= array.shape[0]


@pytest.mark.models
def test_large_pictures_are_reduced(net, pictures, monkeypatch):
    array = pictures["astronaut.png"]
    (face,) = faces(net, array)
    doubled = array.repeat(2, 0).repeat(2, 1)
    monkeypatch.setattr(mtcnn_cascade, "_PIXELS", 512 * 512)
    (large,) = faces(net, doubled)
    assert large.box == pytest.approx([2 * x for x in face.box], abs=0.2)
    assert large.landmarks[2] == pytest.approx([2 * x for x in face.landmarks[2]], abs=0.2)
    assert large.probability == face.probability


@pytest.fixture
def looked_at(net):
    """How many windows were given to R-Net and to O-Net, call by call."""
    counts = {"rnet": [], "onet": []}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, inputs, __, calls=calls: calls.append(len(inputs[0]))
        )
        for name, calls in counts.items()
    ]
    yield counts
    for hook in hooks:
        hook.remove()


@pytest.mark.models
def test_the_example_keeps_all_three_nets_busy(net, looked_at):
    faces(net, MODEL.example())
    assert sum(looked_at["rnet"]) >= 5
    assert sum(looked_at["onet"]) >= 1


@pytest.mark.models
def test_only_so_many_windows_are_looked_at(net, pictures, looked_at, monkeypatch):
    faces(net, pictures["china.jpg"])
    (unbounded,) = looked_at["rnet"]
    assert unbounded > 30
    monkeypatch.setattr(mtcnn_cascade, "_WINDOWS", 20)
    monkeypatch.setattr(mtcnn_cascade, "_CHUNK", 3)
    faces(net, pictures["china.jpg"])
    assert 3 < sum(looked_at["rnet"][1:]) <= 20
    assert max(looked_at["rnet"][1:]) == 3


@pytest.mark.models
def test_the_smallest_face_can_be_chosen(net, pictures):
    chosen = dataclasses.replace(MODEL, build=functools.partial(mtcnn.build, min_face=300))
    assert faces(chosen.build(), pictures["astronaut.png"]) == []
    assert len(faces(net, pictures["astronaut.png"])) == 1


@pytest.mark.models
def test_it_cannot_be_traced_and_its_nets_can(net):
    example = mtcnn.preprocess(MODEL.example())[None]
    with pytest.raises(RuntimeError, match="depends on what it finds: it cannot be traced"):
        trace(net, example)
    windows = torch.rand(3, 3, 24, 24)
    torch.testing.assert_close(trace(net.rnet, windows[:2])(windows)[0], net.rnet(windows).face)


def trace(module, example):
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        return torch.jit.trace(module, example)


# --- what may go wrong --------------------------------------------------------------------------


@pytest.mark.models
async def test_what_is_no_picture_fails_alone(pictures, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    items = [
        pictures["astronaut.png"],
        "astronaut.png",
        tmp_path / "gone.png",
        np.zeros((30, 30, 3)),
        tmp_path / "text.png",
        np.zeros((0, 30, 3), np.uint8),
        pictures["astronaut.png"],
    ]
    first, *bad, last = await run_all(items, max_batch=len(items))
    assert len(first) == 1
    assert first == last
    assert [type(error) for error in bad] == [InputError] * 5
    messages = ("not str", "no such file", "not float64", "not an image", r"[0, 30, 3]")
    for error, message in zip(bad, messages, strict=True):
        assert message in str(error)


def test_pictures_that_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(_images, "MAX_PIXELS", 99)
    monkeypatch.setattr(mtcnn, "MAX_PIXELS", 99)
    picture = np.zeros((10, 10), np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    for item in (picture, Image.fromarray(picture), tmp_path / "x.png"):
        with pytest.raises(InputError, match="more than 99 pixels"):
            mtcnn.preprocess(item)
    with pytest.raises(InputError, match=r"x\.png: more than 99 pixels"):
        MODEL.decode(tmp_path / "x.png")


async def test_missing_weights_have_a_remedy(monkeypatch):
    monkeypatch.setattr(mtcnn, "bundled", lambda package, file: None)
    remedy = r"not installed: pip install --no-deps facenet-pytorch==2\.6\.0$"
    with pytest.raises(ConfigError, match=remedy):
        mtcnn.build()
    with pytest.raises(ConfigError, match=remedy):
        await TorchDriver("mtcnn").open()
    with pytest.raises(ConfigError, match="no pictures: pip install"):
        mtcnn.inputs()


def test_the_remedy_installs_what_the_project_is_tested_with():
    requirement = mtcnn.INSTALL.split()[-1]
    assert requirement in (ROOT / "constraints.txt").read_text().splitlines()
    assert f"--no-deps {requirement.partition('==')[0]}" in (ROOT / "Makefile").read_text()


@pytest.mark.models
def test_the_package_of_the_weights_is_not_imported():
    code = (
        "import sys; from asyncinfer_drivers.models import mtcnn; mtcnn.build();"
        "print([name for name in sys.modules if 'facenet' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- as a built-in model ------------------------------------------------------------------------


def test_it_is_registered():
    assert models.load("mtcnn") is MODEL


def test_its_inputs_go_together(pictures):
    data = MODEL.inputs()
    assert len(pictures) == len(data.names) == len(data.items) == len(data.targets) == 7
    assert mtcnn.preprocess(data.items[0]).shape == (3, 512, 512)
    assert mtcnn.preprocess(MODEL.example()).dtype == torch.uint8


def test_what_counts_as_right():
    def face(*box):
        return Face(box, 0.9, ())

    truth = Truth(((0, 0, 10, 10), (20, 0, 30, 10)))
    assert truth == [face(0, 0, 10, 10), face(20, 0, 30, 10)]
    assert [face(21, 0, 31, 10), face(0, 0, 10, 8)] == truth
    assert truth != [face(0, 0, 10, 10)]
    assert truth != [face(0, 0, 10, 10), face(0, 0, 10, 10)]
    assert truth != [face(0, 0, 10, 10), face(25, 0, 35, 10)]
    assert Truth(()) == []
    assert Truth(()) != [face(0, 0, 1, 1)]
    assert truth != None  # noqa: E711  # what a failed task has for a result
    assert truth != 7
