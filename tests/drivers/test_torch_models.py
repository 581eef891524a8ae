"""What may be given as a model, and what happens to it."""

import asyncio
import copy
import pickle
import re
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from asyncinfer.errors import ConfigError, InputError
from asyncinfer_drivers._torch.load import load
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.torch_host import TorchDriver

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


@pytest.fixture(scope="module")
def expected():
    """Inputs and what the bare net makes of them."""
    data = digits.inputs()
    items = [digits.preprocess(item) for item in data.items[:12]]
    net = digits.build()
    with torch.inference_mode():
        outputs = [net(item.unsqueeze(0))[0].clone() for item in items]
    assert len({tuple(output.tolist()) for output in outputs}) == len(items)
    return items, outputs


async def check(model, expected, **options):
    items, outputs = expected
    driver = TorchDriver(model, max_batch=4, **options)
    await driver.open()
    try:
        got = [row for n in range(0, 12, 4) for row in await driver.infer(items[n : n + 4])]
    finally:
        await driver.close()
    torch.testing.assert_close(got, outputs)


class NoFlags(nn.Module):
    """Not changed by evaluation mode: shows in its output whether it is training."""

    def forward(self, x):
        return x + (1 if self.training else 0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The digits net as files of each kind."""
    folder = tmp_path_factory.mktemp("models")
    net, example = digits.build(), torch.zeros(2, 1, 8, 8)
    torch.jit.trace(net, example).save(folder / "traced.pt")
    torch.jit.script(net.train()).save(folder / "training.ts")
    batch = torch.export.Dim("batch")
    program = torch.export.export(net.eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "any.pt2")
    torch.export.save(torch.export.export(net, (example[:1],)), folder / "one.pt2")
    torch.save(net.state_dict(), folder / "weights.pt")
    (folder / "text.pt").write_text("no model")
    with zipfile.ZipFile(folder / "other.pt2", "w") as archive:
        archive.writestr("a", "b")
    (folder / "script.pt2").write_bytes((folder / "traced.pt").read_bytes())
    (folder / "export.pt").write_bytes((folder / "any.pt2").read_bytes())
    torch.save({"step": 1, "model": net.state_dict()}, folder / "checkpoint.pth")
    torch.save(net, folder / "whole.pth")
    for name, saved in (("old_weights.pth", net.state_dict()), ("old_whole.pth", net)):
        torch.save(saved, folder / name, _use_new_zipfile_serialization=False)
    (folder / "evil.pth").write_bytes(pickle.dumps(Evil(folder / "was_run")))
    for name, start in STARTS.items():
        (folder / name).write_bytes(start + bytes(100))
    (folder / "empty.pt").write_bytes(b"")
    (folder / "half.pt").write_bytes((folder / "traced.pt").read_bytes()[:-300])
    (folder / "half.pt2").write_bytes((folder / "any.pt2").read_bytes()[:-300])
    changed(folder / "any.pt2", folder / "newer.pt2", b'"major": ', b'"major": 9')
    changed(folder / "any.pt2", folder / "gpu.pt2", b'"type": "cpu"', b'"type": "cuda"')
    with zipfile.ZipFile(folder / "compiled.pt2", "w") as archive:
        archive.writestr("compiled/archive_format", "pt2")
        archive.writestr("compiled/data/aotinductor/model/x.so", "")
    (folder / "folder.pt").mkdir()
    return folder


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.write_text, (self.file, "run")


#: how files of others begin
STARTS = {
    "x.safetensors": b"\x10\0\0\0\0\0\0\0{}",
    "x.onnx": b"\x08\x08\x12\x07pytorch",
    "x.tflite": b"\x1c\0\0\0TFL3",
    "x.h5": b"\x89HDF\r\n\x1a\n",
    "x.gguf": b"GGUF",
}


def changed(source, target, old, new):
    """A copy of an archive with something else in its descriptions."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copied:
        for name in archive.namelist():
            content = archive.read(name)
            copied.writestr(name, content.replace(old, new) if name.endswith("json") else content)


@pytest.mark.parametrize(
    "name", ["traced.pt", "training.ts", "any.pt2", "one.pt2", "script.pt2", "export.pt"]
)
async def test_files(files, expected, name):
    await check(files / name, expected)


async def test_a_file_by_its_name(files, expected, monkeypatch):
    await check(str(files / "any.pt2"), expected)
    monkeypatch.chdir(files)
    await check("traced.pt", expected)


@pytest.mark.parametrize("name", ["traced.pt", "any.pt2"])
async def test_several_drivers_load_one_file_at_once(files, name):
    drivers = [TorchDriver(files / name, name=f"d{number}") for number in range(4)]
    try:
        await asyncio.gather(*(driver.open() for driver in drivers))
    finally:
        await asyncio.gather(*(driver.close() for driver in drivers))


async def test_an_exported_program_as_a_module(files, expected):
    await check(torch.export.load(files / "any.pt2").module(), expected)


WEIGHTS = r"weights alone, without their module: give 'module:function' instead.*load_state_dict"
RUNS = r"is a pickled object of the class \S+, which runs whatever is in it .* torch.export.save"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pt2", "no such model file: .*none.pt2$"),
        ("folder.pt", "is a folder, not a model's file: give"),
        ("net.py:build", "name the module as Python imports it, as in 'package.module:function'"),
        ("text.pt", "text.pt is neither a TorchScript nor a .pt2 file: export"),
        ("other.pt2", "other.pt2 is neither a TorchScript nor a .pt2 file: export"),
        ("weights.pt", WEIGHTS),
        ("checkpoint.pth", WEIGHTS),
        ("old_weights.pth", WEIGHTS),
        ("whole.pth", RUNS),
        ("old_whole.pth", RUNS),
        ("evil.pth", RUNS),
        ("x.safetensors", r"weights alone \(safetensors\): give .*safetensors.torch.load_file"),
        ("x.onnx", "is an ONNX model, which torch does not run: export .*torch.export.save"),
        ("x.tflite", "is a TensorFlow Lite file"),
        ("x.h5", "is a Keras or HDF5 file"),
        ("x.gguf", "is a GGUF file"),
        ("empty.pt", "is empty: save the model again"),
        ("half.pt", "is damaged or incomplete: copy or download it again"),
        ("half.pt2", "is damaged or incomplete: copy or download it again"),
        (
            "newer.pt2",
            r"cannot load|can load: .*schema version .*; it was written by torch .* again",
        ),
        ("gpu.pt2", r"was exported on a GPU, and there is none: export it on the CPU, .*\.cpu\(\)"),
        ("compiled.pt2", "is an AOTInductor package.* with optimize='aot' and isolation='process'"),
    ],
)
async def test_files_that_are_no_models(files, name, message, caplog):
    driver = TorchDriver(files / name, name="dev")
    with pytest.raises(ConfigError, match=f"^dev: .*({message})") as caught:
        await driver.open()
    assert "\n" not in str(caught.value)
    assert "Traceback" not in caplog.text
    assert not (files / "was_run").exists()
    await driver.close()


async def test_factories(expected):
    await check(digits.build, expected)
    await check("asyncinfer_drivers.models.digits:build", expected)
    await check(lambda: digits.build().train(), expected)


async def test_built_in_models(expected):
    items, outputs = digits.inputs().items[:12], [int(o.argmax()) for o in expected[1]]
    for model in ("digits", digits.MODEL, lambda: digits.MODEL):
        driver = TorchDriver(model, max_batch=12)
        await driver.open()
        assert await driver.infer(items) == outputs
        assert await driver.calibrate() is not None
        await driver.close()


async def test_own_steps_go_before_those_of_a_built_in_model(expected):
    steps = {"preprocess": lambda x: x, "postprocess": lambda x: x}
    await check("digits", expected, warmup_input=torch.zeros(1, 8, 8), **steps)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("digit", "unknown model 'digit'; did you mean 'digits'\\? known: .*digits"),
        ("no.such:thing", "cannot import 'no.such:thing'"),
        ("math:thing", "cannot import 'math:thing'"),
        ("math:pi", "model is a float: give an nn.Module"),
        (lambda: 1, "model is a int: give an nn.Module"),
        (lambda x: x, r"<lambda> needs arguments \(x\): .* into the forward of an nn.Module"),
        (nn.Linear, r"Linear needs arguments \(in_features, out_features\): call it yourself"),
        ("google/vit", "no such model file: google/vit; if it is the name of a model on a hub"),
        ("bert-base", "unknown model 'bert-base'; .* if it is the name of a model on a hub, give"),
        (lambda: 1 / 0, "model .*<lambda> failed: ZeroDivisionError: division by zero"),
        (None, "model is a NoneType"),
    ],
)
async def test_no_models(model, message):
    driver = TorchDriver(model)
    with pytest.raises(ConfigError, match=message):
        await driver.open()


async def test_a_model_that_cannot_be_copied():
    class Stuck(nn.Module):
        def __deepcopy__(self, memo):
            raise TypeError("cannot copy a socket")

    driver = TorchDriver(Stuck(), name="dev")
    with pytest.raises(ConfigError, match=r"cannot be copied .*a socket.*: put it in evaluation"):
        await driver.open()


class Masked(nn.Module):
    """Takes two tensors for one task."""

    def forward(self, x, mask):
        return x * mask


@pytest.mark.parametrize(
    ("model", "item", "message"),
    [
        (nn.Conv2d(3, 2, 3), torch.zeros(1, 3, 8, 8), r"batch's, give it without, as \[3, 8, 8\]"),
        (Masked(), torch.zeros(3), "takes several tensors for one task: give each task"),
        (
            lambda: torch.jit.script(Masked()),
            torch.zeros(3),
            "takes several tensors for one task: give each task",
        ),
        (Masked(), [torch.zeros(3), torch.zeros(3)], "several tensors of one task are given as"),
        (nn.Identity(), [torch.zeros(3, 8), torch.zeros(3, 9)], "several tensors of one task are"),
        (nn.Identity(), [[1, 2], [3]], "equally long: pad them in a preprocess, or .* in collate"),
    ],
)
async def test_inputs_that_a_model_does_not_take(model, item, message):
    driver = TorchDriver(model, max_batch=2)
    await driver.open()
    for output in await driver.infer([item, item]):
        assert isinstance(output, InputError)
        assert re.search(message, str(output))
    await driver.close()
    driver = TorchDriver(model, name="dev", warmup_input=item)
    with pytest.raises(ConfigError, match=f"^dev: the warm-up input failed: .*{message}"):
        await driver.open()


async def test_the_batch_dimension_where_it_is_known_not_to_belong():
    driver = TorchDriver(nn.Conv2d(1, 2, 3).eval(), warmup_input=torch.zeros(1, 8, 8))
    await driver.open()
    (batch,) = await driver.infer([torch.zeros(1, 1, 8, 8)])
    assert "inputs are given without the batch dimension, as [1, 8, 8]" in str(batch)
    (small,) = await driver.infer([torch.zeros(1, 1, 1)])
    assert "it has accepted [1, 8, 8] float32: convert the input" in str(small)
    await driver.close()


# --- a module that others hold too --------------------------------------------------------------


def test_a_module_in_evaluation_mode_is_shared():
    net = digits.build()
    assert load(net, CPU).module is load(net, CPU).module is net


@pytest.mark.parametrize("part", ["whole", "one layer"])
def test_a_module_in_training_is_copied_and_stays_as_it_is(part):
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    (net if part == "whole" else net[1]).train()
    before = copy.deepcopy(net.state_dict())
    loaded = load(net, CPU).module
    assert loaded is not net
    assert not any(each.training for each in loaded.modules())
    assert net[1].training
    assert net.training is (part == "whole")
    torch.testing.assert_close(dict(net.state_dict()), dict(before))
    assert loaded[0].weight.data_ptr() != net[0].weight.data_ptr()


def test_a_module_elsewhere_is_copied_and_stays_there():
    net = digits.build()
    moved = load(net, torch.device("meta")).module
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    assert {p.device.type for p in moved.parameters()} == {"meta"}


async def test_a_driver_never_trains():
    net = NoFlags()
    driver = TorchDriver(net)
    await driver.open()
    assert await driver.infer([1.0]) == [1]
    await driver.close()
    assert net.training


async def test_drivers_that_share_one_module_at_the_same_time(expected):
    items, outputs = expected
    net = digits.build()
    drivers = [TorchDriver(net, name=f"d{n}", threads=1, max_batch=4) for n in range(3)]
    await asyncio.gather(*(driver.open() for driver in drivers))
    modules = [driver._session.runner.module for driver in drivers]
    assert len({net, *modules}) == 4
    weights = [[w.data_ptr() for w in each.parameters()] for each in (net, *modules)]
    assert weights == [weights[0]] * 4

    async def run(driver):
        return [row for n in [*range(0, 12, 4)] * 5 for row in await driver.infer(items[n : n + 4])]

    for got in await asyncio.gather(*map(run, drivers)):
        torch.testing.assert_close(got, outputs * 5)
    await asyncio.gather(*(driver.close() for driver in drivers))


def test_paths_of_home_directories(files, monkeypatch):
    monkeypatch.setenv("HOME", str(files))
    assert load(Path("~/traced.pt"), CPU).module


async def test_a_part_in_training_mode_of_a_model_that_is_not_is_told(caplog):
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    module[1].train()
    driver = TorchDriver(module, device="cpu")
    await driver.open()
    await driver.close()
    assert "1 is in training mode in a model that is not" in caplog.text


class Writes(nn.Module):
    """Writes to its input."""

    def forward(self, x):
        return x.mul_(2)


async def test_a_collate_that_gives_the_callers_own_tensor_costs_it_nothing():
    steps = {"preprocess": lambda x: x, "postprocess": lambda x: x, "uncollate": list}

    def collate(tasks):
        return tasks[0][None] if len(tasks) == 1 else torch.stack(tasks)

    driver = TorchDriver(Writes(), device="cpu", max_batch=4, collate=collate, **steps)
    mine = torch.ones(3)
    await driver.open()
    for _ in range(3):
        (answer,) = await driver.infer([mine])
        assert answer.tolist() == [2, 2, 2]
    await driver.close()
    assert mine.tolist() == [1, 1, 1]
