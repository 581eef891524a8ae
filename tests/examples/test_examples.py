"""Every example runs as it stands, ends by itself, and says what it promises to say."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: how each is run here, and what its output must match
RUNS = {
    "batching.py": (["--tasks", "200"], r"GPU, CPU, MCU +32 +\d+"),
    "camera.py": (["--frames", "20"], r"recording \d+ frames/s, 0 skipped.*\nlive .* skipped"),
    "dispatch_cost.py": (["--tasks", "2000", "--rounds", "1", "--json"], r'"asyncinfer": '),
    "embed.py": (["--seconds", "0.3"], r"time is up: \d+ answered, 8 refused, 0 failed"),
    "faces.py": ([], r"astronaut\.png: 1 found\n  \[1\d\d, \d\d, 26\d, 17\d\] p=\d\.\d+\n"),
    "fastapi_service.py": ([], r"200 \{\"digit\":3\}"),
    "hedging.py": (["--tasks", "4000"], r"hold p99 is \d\d\.\d times lower"),
    "own_driver.py": ([], r"2000 roots, all there and in order"),
    "policies.py": (["--plot", "slow.png"], r"1000 +0\.025 +1\.000"),
}

#: run by tests/drivers/ray_cluster: each needs a Ray cluster
ELSEWHERE = {"ray_limits.py", "ray_partitions.py"}

#: those that need pretrained weights
PRETRAINED = {"faces.py"}


def start(example: str, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, EXAMPLES / example, *arguments]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(example: str, *arguments: str, cwd: Path | None = None) -> str:
    with start(example, *arguments, cwd=cwd) as process:
        output, errors = process.communicate(timeout=100)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output


def load(example: str):
    name = f"example_{example.removesuffix('.py')}"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / example)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_examples_are_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted({*RUNS, *ELSEWHERE})


@pytest.mark.slow
@pytest.mark.parametrize(
    "example",
    [pytest.param(name, marks=[pytest.mark.models] * (name in PRETRAINED)) for name in RUNS],
)
def test_it_runs(example: str, tmp_path: Path) -> None:
    arguments, pattern = RUNS[example]
    assert re.search(pattern, run(example, *arguments, cwd=tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_embed_finishes_what_it_accepted_when_told_to_stop(number: signal.Signals) -> None:
    with start("embed.py", "--seconds", "60") as process:
        assert process.stdout.readline() == "serving\n"
        os.kill(process.pid, number)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{number.name}: " in output
    assert "0 failed" in output


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_own_driver_conforms_on_every_event_loop(loop: str) -> None:
    """In a process of its own: uvloop forks, which stops a process for long if it is large."""
    pytest.importorskip(loop)
    code = (
        f"import asyncio, runpy, {loop}\n"
        f"main = runpy.run_path({str(EXAMPLES / 'own_driver.py')!r})['main']\n"
        f"asyncio.Runner(loop_factory={loop}.new_event_loop).run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2000 roots" in done.stdout


def test_own_driver_fits_into_forty_lines() -> None:
    source = (EXAMPLES / "own_driver.py").read_text()
    body = source[source.index("class ProcessDriver") : source.index("\n\n\ndef worker")]
    assert len(body.splitlines()) < 40


def test_a_slow_device_hurts_the_plain_pull_and_not_ours() -> None:
    policies = load("policies.py")
    factors = (1, 10, 100, 1000)
    assert min(policies.compare("eft", factors, 500)) >= 0.99
    greedy = policies.compare("greedy", factors, 500)
    assert greedy[-1] < 0.05
    assert greedy == sorted(greedy, reverse=True)
