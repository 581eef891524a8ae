"""A tiny model that needs neither torch nor files, for the program in-process."""

from types import SimpleNamespace

import pytest

from asyncinfer import model
from asyncinfer.cli import inputs as cli_inputs
from asyncinfer.config import device as device_config
from asyncinfer.errors import InputError
from asyncinfer.testing import SimulatedDriver


class Runner(SimulatedDriver):
    """Runs a Python function as its model, in no time; takes what the torch driver takes."""

    def __init__(
        self,
        model,
        *,
        name,
        device="cpu",
        threads=None,
        slowdown=1.0,
        max_batch=1,
        preprocess=None,
        postprocess=None,
        warmup_input=None,
        isolation="thread",
    ):
        super().__init__(name, 0.001 * slowdown, max_batch=max_batch)
        self.model = model() if isolation == "process" else model  # there it is made anew
        self.before, self.after = preprocess, postprocess

    async def infer(self, batch):
        await super().infer(batch)
        return [self._run(x) for x in batch]

    def _run(self, x):
        try:
            return self.after(self.model(self.before(x)))
        except Exception as error:
            return error


def decode(path):
    text = path.read_text()
    if not text.strip().isdigit():
        raise InputError(f"{path}: no number")
    return int(text)


@pytest.fixture
def tiny(monkeypatch):
    """A built-in model that doubles numbers, run by a driver called torch, or in its place."""
    items = list(range(20))
    found = SimpleNamespace(
        name="tiny",
        description="doubles",
        preprocess=lambda x: x + 0,
        postprocess=lambda x: x,
        build=lambda: lambda x: 2 * x,
        inputs=lambda: SimpleNamespace(
            names=[f"n{i}" for i in items], items=items, targets=[2 * i for i in items]
        ),
        decode=decode,
        example=lambda: 7,
    )
    names = ["empty", "tiny"]
    monkeypatch.setattr(model, "model_names", lambda: names)
    monkeypatch.setattr(cli_inputs, "model_names", lambda: names)
    monkeypatch.setattr(model, "load_model", lambda name: found)
    load, ours = device_config.load_driver, ("torch", "open_inference_local")
    monkeypatch.setattr(device_config, "load_driver", lambda n: Runner if n in ours else load(n))
    return found


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """Three files of numbers with a bad one between, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.txt": "1", "b.txt": "word", "c.txt": "3"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path
