"""The zoo sees a wrong answer, and runs a few models that need torch alone. `make zoo`: all."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import judge
import page
import pytest
import torch

RUN = Path(__file__).parent / "run.py"


@dataclass
class Pair:
    rows: torch.Tensor
    word: str


ROWS = torch.arange(6.0).reshape(1, 6)


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        (ROWS, ROWS[0]),
        (ROWS, ROWS.numpy()[0]),
        (ROWS, ROWS * (1 + 1e-5)),
        (Pair(ROWS, "a"), {"rows": ROWS[0], "word": "a", "cache": None}),
        ([ROWS, (ROWS,)], (ROWS[0], ROWS[0])),
        (ROWS / 0, ROWS[0] / 0),
    ],
)
def test_the_same_answer_in_another_container_is_equal(wanted, got):
    assert judge.unlike(wanted, got, 1e-3) == ""


@pytest.mark.parametrize(
    ("wanted", "got"),
    [
        (ROWS, ROWS[0] + 0.1),
        (ROWS, ROWS.repeat(2, 1)),
        (ROWS, ROWS[0].long()),
        (ROWS, ROWS[0] / 0),
        (Pair(ROWS, "a"), Pair(ROWS[0], "b")),
        ([ROWS, ROWS], [ROWS[0]]),
        ("a", ["a", "b"]),
    ],
)
def test_another_answer_is_different(wanted, got):
    assert judge.unlike(wanted, got, 1e-3) != ""


def test_models_run_beside_their_plain_calls():
    names = ["group norm", "packed lstm", "samples", "complex"]
    command = [sys.executable, str(RUN), "--quick", "--isolation", "thread", "--models", *names]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=100)
    assert done.stdout.splitlines()[-1].endswith("equal 12 refused 0 different 0"), done.stdout


def test_the_page_has_ten_models():
    text = page.PAGE.read_text()
    assert text.count("\n## ") == 10
    assert text.count("```python\n") == 10
    assert text.count("# not run: ") == len(page.BLOCK.findall(text))
