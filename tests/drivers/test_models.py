"""The built-in models: right answers on their own inputs, and on files that may be anything."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers import models
from asyncinfer_drivers.models import _images, digits, imagenet, train_digits
from asyncinfer_drivers.models._base import Files, need
from asyncinfer_drivers.torch_host import TorchDriver

BOTH = pytest.mark.parametrize("model", [digits.MODEL, imagenet.MODEL], ids=lambda m: m.name)

#: for what does not depend on the event loop and takes seconds
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


async def run_all(model, **options):
    """What the torch driver makes of the model's own inputs, in batches."""
    items, outputs = model.inputs().items, []
    driver = TorchDriver(model, **options)
    await driver.open()
    for start in range(0, len(items), driver.max_batch):
        outputs += await driver.infer(items[start : start + driver.max_batch])
    await driver.close()
    return outputs


def test_are_registered_under_their_names():
    assert {"digits", "efficientnet_lite0"} <= set(models.names())
    assert models.load("digits") is digits.MODEL
    assert models.load("efficientnet_lite0") is imagenet.MODEL
    with pytest.raises(ConfigError, match="unknown model 'efficientnet'; did you mean 'eff"):
        models.load("efficientnet")


def test_looking_at_them_imports_nothing_heavy():
    code = (
        "import sys, asyncinfer_drivers.models as m; [m.load(n).description for n in m.names()];"
        "print({'torch', 'numpy', 'sklearn', 'skimage', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@BOTH
def test_each_has_an_example_that_fits(model):
    one = model.preprocess(model.example())
    assert one.dtype == torch.float32
    first = model.preprocess(model.inputs().items[0])
    assert one.shape == first.shape


@BOTH
def test_each_input_set_goes_together(model):
    inputs = model.inputs()
    assert len(inputs.names) == len(inputs.items) == len(set(inputs.names))
    assert inputs.targets is None or len(inputs.targets) == len(inputs.items)


@pytest.mark.parametrize(
    "path", ["asyncinfer_drivers.models.digits", "asyncinfer_drivers.models.imagenet"]
)
def test_a_missing_package_has_a_remedy(monkeypatch, path, tmp_path):
    for name in ("sklearn", "sklearn.datasets", "PIL.Image", "efficientnet_lite_pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    remedy = r"is not installed: pip install 'asyncinfer\[models\]'$"
    with pytest.raises(ConfigError, match=remedy):
        digits.inputs()
    with pytest.raises(ConfigError, match=remedy):
        imagenet.build()
    with pytest.raises(ConfigError, match=remedy):
        sys.modules[path].decode(tmp_path)
    with pytest.raises(ConfigError, match=r"^no_such_package is not installed"):
        need("no_such_package")


# --- digits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch", [1, 64])
async def test_digits_are_right(max_batch):
    targets = digits.MODEL.inputs().targets
    outputs = await run_all(digits.MODEL, max_batch=max_batch)
    assert len(outputs) == 1797
    assert all(type(output) is int for output in outputs)
    assert sum(map(int.__eq__, outputs, targets)) / 1797 > 0.99


@pytest.mark.parametrize("there", [True, False])
def test_digits_are_those_of_scikit_learn(monkeypatch, there):
    if not there:
        monkeypatch.setattr(digits, "bundled", lambda package, file: None)
    own, theirs = digits.inputs(), load_digits()
    assert np.array_equal(own.items, theirs.images)
    assert own.items[0].dtype == theirs.images.dtype
    assert own.targets == theirs.target.tolist()


def test_digits_held_out():
    training, held_out = train_digits.split()
    assert (len(training.digits), len(held_out.digits)) == (1348, 449)
    assert train_digits.accuracy(digits.build(), held_out) > 0.97


def test_digits_is_small_and_plain():
    net = digits.build()
    assert sum(p.numel() for p in net.parameters()) == 3818
    assert not net.training
    assert {type(layer).__name__ for layer in net} == {
        "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear",
    }  # fmt: skip
    assert digits.WEIGHTS.stat().st_size < 20_000


def test_training_is_repeatable_and_learns():
    training, held_out = train_digits.split()
    threads = torch.get_num_threads()
    try:
        nets = [train_digits.train(training, epochs=4) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    first, second = (net.state_dict() for net in nets)
    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)
    assert train_digits.accuracy(nets[0], held_out) > 0.9


def test_training_writes_what_build_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_digits, "train", lambda part: digits.build())
    train_digits.main(tmp_path / "weights.npz")
    assert "held-out accuracy 99." in capsys.readouterr().out
    assert (tmp_path / "weights.npz").read_bytes() == digits.WEIGHTS.read_bytes()


@pytest.mark.parametrize("light_paper", [False, True])
@pytest.mark.parametrize("index", [0, 7, 13])
def test_digits_from_files(tmp_path, index, light_paper):
    data = digits.inputs()
    ink = np.kron(data.items[index] / 16 * 255, np.ones((9, 9))).astype(np.uint8)
    file = tmp_path / "digit.png"
    Image.fromarray(255 - ink if light_paper else ink).save(file)
    full_ink = data.items[index] / data.items[index].max() * 16
    assert digits.decode(file) == pytest.approx(full_ink, abs=0.2)
    logits = digits.build()(digits.preprocess(file).unsqueeze(0))[0]
    assert digits.postprocess(logits) == data.targets[index]


def test_an_empty_page_is_no_error(tmp_path):
    Image.new("L", (30, 30), 0).save(tmp_path / "black.png")
    assert digits.decode(tmp_path / "black.png").max() == 0


@pytest.mark.parametrize("item", [np.zeros((3, 3)), "seven", None, [[1, 2], [3]], np.zeros(64)])
def test_what_is_no_digit(item):
    with pytest.raises(InputError, match="a digit is an 8x8 array"):
        digits.preprocess(item)


# --- ImageNet -----------------------------------------------------------------------------------


def test_labels():
    labels = imagenet.labels()
    assert len(labels) == len(set(labels)) == 1000
    known = {0: "tench", 207: "golden retriever", 282: "tiger cat", 504: "coffee mug",
             817: "sports car", 967: "espresso", 985: "daisy", 999: "toilet tissue"}  # fmt: skip
    assert {index: labels[index] for index in known} == known
    assert all(label == label.strip() and label.isascii() for label in labels)


@pytest.mark.models
@ONE_LOOP
@pytest.mark.parametrize("max_batch", [1, 4])
async def test_pictures_get_the_right_names(max_batch):
    names = imagenet.MODEL.inputs().names
    outputs = dict(zip(names, await run_all(imagenet.MODEL, max_batch=max_batch), strict=True))
    assert outputs["flower.jpg"] == "daisy"
    assert outputs["coffee.png"] == "espresso"
    assert outputs["chelsea.png"] == "tiger cat"
    assert len(outputs) == 7
    assert set(outputs.values()) < set(imagenet.labels())


@pytest.mark.models
@ONE_LOOP
async def test_the_driver_gives_what_a_bare_loop_gives():
    data, net = imagenet.MODEL.inputs(), imagenet.build()
    with torch.inference_mode():
        expected = [net(imagenet.preprocess(item).unsqueeze(0))[0] for item in data.items]
    outputs = await run_all(imagenet.MODEL, max_batch=3, postprocess=lambda row: row)
    for output, logits in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, logits, rtol=1e-3, atol=1e-3)
    assert len({tuple(output.tolist()) for output in outputs}) == len(outputs)


def gradient(height=300, width=400):
    """A picture with a different value everywhere: uint8 [h, w, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=2).astype(np.uint8)


def test_preprocess_crops_the_centre_and_scales():
    flat = np.full((300, 500, 3), 255, dtype=np.uint8)
    flat[:, :100] = 0  # beyond the crop
    tensor = imagenet.preprocess(flat)
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    assert tensor.unique().tolist() == [1.0]
    dark = imagenet.preprocess(np.zeros((256, 256), dtype=np.uint8))
    assert dark.unique().tolist() == [-127 / 128]
    exact = gradient(256, 256)
    centre = (exact[16:240, 16:240].transpose(2, 0, 1).astype(np.float32) - 127) / 128
    np.testing.assert_allclose(imagenet.preprocess(exact).numpy(), centre)


def test_preprocess_takes_pictures_of_every_kind(tmp_path):
    array = gradient()
    image = Image.fromarray(array)
    image.save(tmp_path / "x.png")
    expected = imagenet.preprocess(array)
    for same in (image, tmp_path / "x.png", np.dstack([array, np.full((300, 400), 255, np.uint8)])):
        torch.testing.assert_close(imagenet.preprocess(same), expected)
    grey = imagenet.preprocess(array[:, :, 0])
    torch.testing.assert_close(grey[0], grey[2])
    torch.testing.assert_close(grey[0], expected[0])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("cat.jpg", "a picture is a PIL image, a Path or an array, not str"),
        (np.zeros((4, 4, 3)), r"uint8 array .* not float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"not uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \[0, 4, 3\]"),
        (np.zeros(4, np.uint8), r"not uint8 \[4\]"),
    ],
)
def test_what_is_no_picture(item, message):
    with pytest.raises(InputError, match=message):
        imagenet.preprocess(item)


# --- files --------------------------------------------------------------------------------------


def test_modes_become_rgb(tmp_path):
    red = Image.new("RGB", (20, 10), (250, 0, 0))
    kinds = {
        "rgb.png": red,
        "palette.png": red.convert("P", palette=Image.Palette.ADAPTIVE),
        "cmyk.jpg": red.convert("CMYK"),
        "rgba.png": red.convert("RGBA"),
        "cmyk.tif": red.convert("CMYK"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        array = imagenet.decode(tmp_path / name)
        assert (array.shape, array.dtype) == ((10, 20, 3), np.uint8), name
        assert np.abs(array.astype(int) - [250, 0, 0]).max() <= 6, name


def test_what_is_transparent_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert imagenet.decode(tmp_path / "clear.png").min() == 255
    Image.new("LA", (4, 4), (9, 0)).save(tmp_path / "grey.png")
    assert imagenet.decode(tmp_path / "grey.png").min() == 255


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert np.unique(imagenet.decode(tmp_path / "deep.png")).tolist() == [128]


def test_a_turned_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert imagenet.decode(tmp_path / "turned.jpg").shape == (20, 10, 3)


def broken_png(folder):
    file = folder / "x.png"
    Image.fromarray(gradient()).save(file)
    file.write_bytes(file.read_bytes()[:500])


def text(folder):
    (folder / "x.png").write_text("no picture")


def directory(folder):
    (folder / "x.png").mkdir()


@BOTH
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such file"),
        (text, "not an image that can be read"),
        (broken_png, "cannot be read as an image: "),
        (directory, "cannot be read as an image: "),
    ],
)
def test_files_that_are_no_pictures(model, tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(InputError, match=rf"x\.png: {message}") as caught:
        model.decode(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def test_pictures_that_are_too_large_are_not_decoded(tmp_path, monkeypatch):
    file = tmp_path / "bomb.png"
    Image.new("1", (1000, 1000)).save(file)
    monkeypatch.setattr(_images, "MAX_PIXELS", 999_999)
    with pytest.raises(InputError, match=r"bomb\.png: more than 999,999 pixels"):
        imagenet.decode(file)
    for limit in (900_000, 400_000):  # PIL's own limit: a warning above it, an error above twice
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=r"bomb\.png: more than 999,999 pixels"):
            imagenet.decode(file)


def test_pictures_are_read_when_asked_for(tmp_path):
    read = []
    files = Files([tmp_path / name for name in "abc"], lambda path: read.append(path.name))
    assert len(files) == 3
    assert read == []
    assert len(files[1:]) == 2
    assert read == []
    list(files[1:])
    assert read == ["b", "c"]
    with pytest.raises(IndexError):
        files[3]


def test_without_pictures(monkeypatch):
    monkeypatch.setattr(imagenet, "_PICTURES", [("no_such_package", "x.png"), ("PIL", "x.png")])
    with pytest.raises(ConfigError, match=r"no pictures: pip install 'asyncinfer\[models\]'"):
        imagenet.inputs()
