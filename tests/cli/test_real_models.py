"""The command line with real models on real devices of this host."""

import warnings

import pytest

torch = pytest.importorskip("torch")
numpy = pytest.importorskip("numpy")

from PIL import Image  # noqa: E402

from asyncinfer.cli.inputs import read_picture  # noqa: E402
from asyncinfer.config import DeviceConfig  # noqa: E402
from asyncinfer.errors import InputError  # noqa: E402
from asyncinfer.model import resolve  # noqa: E402

pytestmark = [
    pytest.mark.models,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch on TorchScript
]


def test_digits_on_two_devices(cli):
    facts = cli("run", "--model", "digits", "--devices", "cpu", "cpu", "--json").json
    assert facts["tasks"] == 1797
    assert facts["in_order"] is True
    assert facts["accuracy"] > 0.95
    assert {device["name"] for device in facts["devices"]} == {"cpu", "cpu-2"}


def test_a_file_that_is_no_picture(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (300, 300), "white").save("good.png")
    (tmp_path / "bad.png").write_text("no picture")
    files = ["good.png", "bad.png", "gone.png", "good.png"]
    ran = cli("run", *files, "--model", "efficientnet_lite0", "--devices", "cpu")
    assert ran.status == 1
    assert [row["input"] for row in ran.rows] == files
    good, bad, gone, again = ran.rows
    assert good["output"] == again["output"] is not None
    assert bad["error"].startswith("bad.png: ")
    assert gone["error"].startswith("gone.png: ")
    assert "2 failed" in ran.err


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """A TorchScript file that adds up each input, in the working directory."""
    monkeypatch.chdir(tmp_path)

    class Sum(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1).sum(1, keepdim=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Sum().eval(), torch.zeros(2, 3)).save("sum.pt")
    return tmp_path


def test_a_model_file_and_an_array(cli, scripted):
    numpy.save("rows.npy", numpy.arange(12, dtype=numpy.float32).reshape(4, 3))
    ran = cli("run", "rows.npy", "--model", "sum.pt", "--devices", "cpu")
    assert [row["output"] for row in ran.rows] == [[3.0], [12.0], [21.0], [30.0]]


def test_pictures_for_a_model_without_steps(cli, scripted):
    Image.new("RGB", (3, 2), "white").save("white.png")
    ran = cli("run", "white.png", "--model", "sum.pt", "--devices", "cpu")
    assert ran.rows[0]["output"] == [18.0]


def test_a_module_that_makes_a_model(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text("import torch\nmake = torch.nn.Identity\n")
    numpy.save("rows.npy", numpy.ones((2, 2), dtype=numpy.float32))
    ran = cli("run", "rows.npy", "--model", "own_net:make", "--devices", "cpu")
    assert [row["output"] for row in ran.rows] == [[1.0, 1.0], [1.0, 1.0]]


def test_a_file_that_is_no_model(cli, tmp_path):
    (tmp_path / "net.pt2").write_text("no model")
    ran = cli("run", "--model", tmp_path / "net.pt2", "--devices", "cpu", "--inputs", "digits")
    assert ran.status == 2
    assert "net.pt2" in ran.error


def test_a_device_that_is_not_here(cli):
    if torch.cuda.is_available():
        pytest.skip("it is here")
    ran = cli("run", "--model", "digits", "--devices", "cuda")
    assert ran.status == 2
    assert "'cuda' is not available; here: " in ran.error


def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (10_000, 5_001)).save(path)
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match="more than 50,000,000 pixels"):
        read_picture(path)


OWN_STEPS = """
import torch
from torch import nn

class Mean(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3))[:, None]

class Model:
    name = "own"

    def preprocess(self, picture):
        return torch.as_tensor(picture) * 2 + 1

    def postprocess(self, row):
        return {"value": float(row)}

    def build(self):
        return Mean().eval()
"""

APART = """
[[device]]
driver = "torch"
name = "apart"
options = { isolation = "process", threads = 1 }
"""


@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_factory_s_own_steps_are_kept(cli, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Image.new("RGB", (8, 8), (51, 51, 51)).save("grey.png")  # 0.2 of white
    (tmp_path / "own_steps.py").write_text(OWN_STEPS)
    (tmp_path / "apart.toml").write_text(APART)
    devices = ["--devices", "cpu"] if where == "thread" else ["--config", "apart.toml"]
    ran = cli("run", "grey.png", "--model", "own_steps:Model", *devices)
    assert ran.status == 0
    assert ran.rows[0]["output"] == {"value": pytest.approx(1.4)}


def test_a_process_loads_its_model_itself():
    config = DeviceConfig("torch", "apart", {"isolation": "process"})
    model = resolve("digits")
    driver = config.build(model)
    assert "loaded" not in vars(model)
    assert driver._options.model == model.load
