"""Which torch device to use, and which errors are its own."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import torch

from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError

__all__ = (
    "available",
    "check_name",
    "choose",
    "describe",
    "is_device_fault",
    "shared_by",
    "synchronize",
    "timer",
)

_NAME = re.compile(r"cpu|mps|auto|cuda(:\d+)?")

#: parts of messages that are raised as a bare RuntimeError, many by older releases only
_FAULTS = re.compile(
    r"CUDA error|CUDA driver error|CUDA out of memory|cuDNN error|CUBLAS_STATUS_"
    r"|HIP error|HIP out of memory|MPS backend out of memory"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"
)


def check_name(wanted: str) -> None:
    """Raise ``ConfigError`` unless ``wanted`` is spelt as ``choose`` takes it."""
    if not isinstance(wanted, str) or not _NAME.fullmatch(wanted):
        raise ConfigError(f"unknown torch device {wanted!r}; known: cpu, cuda, cuda:N, mps, auto")


def choose(wanted: str, cuda: int, mps: bool) -> str:
    """The torch device for ``wanted``, on a host with ``cuda`` CUDA devices and perhaps MPS.

    ``"auto"`` is the first of CUDA, MPS and CPU that is there; ``"cuda"`` is ``"cuda:0"``.
    Raises ``ConfigError`` that says what is there.
    """
    check_name(wanted)
    have = [*(f"cuda:{index}" for index in range(cuda)), *(["mps"] if mps else []), "cpu"]
    if wanted == "auto":
        return have[0]
    name = "cuda:0" if wanted == "cuda" else wanted
    if name not in have:
        raise ConfigError(f"torch device {wanted!r} is not available; here: {', '.join(have)}")
    return name


def shared_by(device: str) -> frozenset[str]:
    """What a torch device shares: its host, which feeds it, and itself if it is no CPU.

    Which device ``"auto"`` is turns out when it is opened.
    """
    itself = "cuda:0" if device == "cuda" else device
    return frozenset((THIS_HOST,) if itself in ("cpu", "auto") else (THIS_HOST, itself))


def available() -> tuple[int, bool]:
    """Number of CUDA devices, and whether MPS works: the arguments of ``choose``."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return cuda, torch.backends.mps.is_available()


def describe(cuda: int, mps: bool, cores: int) -> list[dict[str, Any]]:
    """What there is to choose from: the ``name`` of each device, and what it is."""
    found: list[dict[str, Any]] = []
    for index in range(cuda):
        facts = torch.cuda.get_device_properties(index)
        memory = f"{facts.total_memory / 2**30:.0f} GiB"
        found.append({"name": f"cuda:{index}", "description": f"{facts.name}, {memory}"})
    if mps:
        found.append({"name": "mps", "description": "Apple GPU"})
    cpu = f"torch may use {cores} core" + ("" if cores == 1 else "s")
    return [*found, {"name": "cpu", "description": cpu}]


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timer(device: torch.device) -> Callable[[], float]:
    """The clock for calls: on a CPU the thread's own processor time, undisturbed by others."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


def is_device_fault(error: BaseException) -> bool:
    """Whether ``error`` says that the device failed or is full, rather than that the input is bad.

    A task that asks for too much each time costs three devices, and is poison then.
    """
    types: list[type[BaseException]] = [torch.cuda.OutOfMemoryError]
    if accelerator := getattr(torch, "AcceleratorError", None):  # torch 2.8
        types.append(accelerator)
    if isinstance(error, tuple(types)):
        return True
    return isinstance(error, RuntimeError) and _FAULTS.search(str(error)) is not None
