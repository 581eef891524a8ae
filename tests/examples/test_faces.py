"""examples/faces.py: own pictures, machine-readable output, and pictures that cannot be read."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torch")

from asyncinfer_drivers.models import mtcnn  # noqa: E402
from asyncinfer_drivers.models._images import bundled  # noqa: E402

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/faces.py"
ASTRONAUT = bundled("skimage", "data/astronaut.png")

pytestmark = [pytest.mark.models, pytest.mark.slow]


def run(*arguments, folder) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLE, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )


def test_json_is_one_object_in_order_and_nothing_is_saved(tmp_path):
    done = run("--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    pictures = json.loads(line)["pictures"]
    assert {p["picture"]: len(p["faces"]) for p in pictures} == {
        "astronaut.png": 1, "camera.png": 1, "chelsea.png": 0, "coffee.png": 0,
        "rocket.jpg": 0, "china.jpg": 0, "flower.jpg": 0,
    }  # fmt: skip
    assert [p["picture"] for p in pictures][:2] == ["astronaut.png", "camera.png"]
    assert {p["device"] for p in pictures} == {"one", "two"}
    assert list(tmp_path.iterdir()) == []


def test_one_picture_that_cannot_be_read_does_not_stop_the_others(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    done = run("text.png", "gone.png", ASTRONAUT, "--save", "found", folder=tmp_path)
    assert done.returncode == 1
    text, gone, astronaut, box = done.stdout.splitlines()
    assert text == "text.png: not an image that can be read"
    assert gone == "gone.png: no such file"
    assert astronaut == f"{ASTRONAUT}: 1 found"
    assert box.startswith("  [1")
    assert done.stderr == "2 of 3 pictures could not be read\n"
    (saved,) = (tmp_path / "found").iterdir()
    assert saved.name == "astronaut-faces.png"
    with Image.open(saved) as framed, Image.open(ASTRONAUT) as plain:
        assert framed.size == plain.size
        assert framed.tobytes() != plain.tobytes()


def test_without_the_weights_it_says_what_to_install(monkeypatch):
    def without_weights(package, file):
        return None if package == "facenet_pytorch" else bundled(package, file)

    monkeypatch.setattr(mtcnn, "bundled", without_weights)
    monkeypatch.setattr(sys, "argv", ["faces.py"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    message = str(caught.value.code)
    assert message.startswith("faces.py: ")
    assert message.endswith("pip install --no-deps facenet-pytorch==2.6.0")
    assert "\n" not in message
