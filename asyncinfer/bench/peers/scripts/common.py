"""What the scripts beside this file share. They run in the peers' own environments, by path.

The process that measures gives them a folder (model, images, labels) and a port by environment
variables, and commands by lines of JSON on standard input. End of input means: stop.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["ASYNCINFER_PEER_FOLDER"])
PORT = int(os.environ["ASYNCINFER_PEER_PORT"])
META: dict[str, Any] = json.loads((FOLDER / "meta.json").read_text(encoding="utf-8"))

LABELS: list[int] = META["labels"]
SHAPE: tuple[int, ...] = tuple(META["shape"])
#: processes, threads or replicas that compute, one core each, and the largest batch
WORKERS: int = META["workers"]
BATCH: int = META["batch"]


def _loads() -> Any:
    """The module with the loads: the same file that the measuring process uses."""
    file = Path(__file__).parents[1] / "loads.py"
    spec = importlib.util.spec_from_file_location("asyncinfer_peer_loads", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


loads = _loads()


@functools.cache
def images() -> list[bytes]:
    """The images as they travel: raw bytes, in the order of their labels."""
    data = (FOLDER / "images.bin").read_bytes()
    size = len(data) // len(LABELS)
    return [data[start : start + size] for start in range(0, len(data), size)]


@functools.cache
def model() -> Callable[[Any], Any]:
    """The model, loaded once a process: uint8 ``[n, *SHAPE]`` to labels ``[n]``; one thread."""
    import torch

    torch.set_num_threads(1)
    net = torch.jit.load(str(FOLDER / "model.pt")).eval()
    with torch.inference_mode():
        for size in (1, BATCH, 1, BATCH, 1, BATCH):
            net(torch.zeros((size, *SHAPE), dtype=torch.uint8))
    return net


def predict(batch: Sequence[bytes]) -> list[int]:
    """The labels of images, computed together."""
    import torch

    inputs = torch.frombuffer(bytearray(b"".join(batch)), dtype=torch.uint8)
    with torch.inference_mode():
        return model()(inputs.view(-1, *SHAPE)).tolist()


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    return {package: importlib.metadata.version(package) for package in packages}


class Commands:
    """The lines of the measuring process. What libraries print goes to standard error instead."""

    def __init__(self) -> None:
        self._orders = os.fdopen(os.dup(0), encoding="utf-8")
        self._replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)  # else a forked child waits for the lock of sys.stdin, held here
        os.close(nothing)

    def reply(self, **message: Any) -> None:
        """Send one line."""
        json.dump(message, self._replies)
        self._replies.write("\n")
        self._replies.flush()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for line in self._orders:
            yield json.loads(line)

    def stop_at_end(self) -> None:
        """End this process, and its group, once the measuring process is gone or says so."""
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        for _ in self:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(3)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(0, signal.SIGKILL)
