"""The program in-process, and a tiny model that needs neither torch nor files."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from asyncinfer import config, model
from asyncinfer.__main__ import main
from asyncinfer.cli import inputs as cli_inputs
from asyncinfer.errors import InputError
from asyncinfer.testing import SimulatedDriver


@dataclass
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def rows(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self):
        """The one line that says what went wrong."""
        (line,) = [line for line in self.err.splitlines() if "error:" in line]
        assert "Traceback" not in self.err
        return line


@pytest.fixture
def cli(capfd):
    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capfd.readouterr())

    return run


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
    ):
        super().__init__(name, 0.001 * slowdown, max_batch=max_batch)
        self.model, self.before, self.after = model, preprocess, postprocess

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
    """A built-in model that doubles numbers, run by a driver called torch."""
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
    load = config.load_driver
    monkeypatch.setattr(config, "load_driver", lambda n: Runner if n == "torch" else load(n))
    return found


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """Three files of numbers with a bad one between, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.txt": "1", "b.txt": "word", "c.txt": "3"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path
