"""The devices that real models run on, opened once for all that is measured on them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from asyncinfer.bench.suite import Context
from asyncinfer.config import DeviceConfig, select
from asyncinfer.driver import Driver, ServiceTime, SupportsCalibrate
from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.model import Model, resolve
from asyncinfer.registry import load_driver

__all__ = (
    "Opened",
    "close_all",
    "devices_for",
    "notes",
    "open_all",
    "supports",
    "torch_device",
    "with_own_steps",
)

#: tasks a call: pictures of different sizes are run one by one anyway
_BATCHES = {"efficientnet_lite0": 4, "mtcnn": 1, "digits": 64}

#: forms of the models on devices of our choice: the same on all, and found without trying
_FORMS = {"efficientnet_lite0": "channels_last+freeze", "digits": "freeze"}
_BOARDS = ("cortex_m4", "cortex_m4_emulated")
#: drivers that run torch, here or in a second process
_TORCH = ("torch", "open_inference_local")


class Opened(Driver[Any, Any]):
    """A device that stays open: each dispatcher that is given it finds it ready and timed."""

    def __init__(self, driver: Driver[Any, Any]) -> None:
        self.driver = driver
        self.name = driver.name
        self._service: ServiceTime | None = None

    def __getattr__(self, name: str) -> Any:
        """What else the driver has."""
        return getattr(self.driver, name)

    @property
    def max_batch(self) -> int:  # type: ignore[override]  # the driver may change it
        """The driver's."""
        return self.driver.max_batch

    @property
    def concurrency(self) -> int:  # type: ignore[override]
        """The driver's."""
        return self.driver.concurrency

    @property
    def shares(self) -> Any:
        """The driver's."""
        return self.driver.shares  # type: ignore[attr-defined]

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        """The driver's."""
        return await self.driver.infer(batch)

    async def calibrate(self) -> ServiceTime | None:
        """What the driver said when it was opened."""
        return self._service

    @property
    def rate(self) -> float:
        """Tasks a second of full batches, as calibrated."""
        if self._service is None:
            return 1.0
        size = self.max_batch
        return size / max(1e-9, self._service.of(size))

    async def time(self) -> None:
        """Have the open driver find what is fastest, if it seeks that, and be timed."""
        if (tune := getattr(self.driver, "tune", None)) is not None:
            await tune()
        if isinstance(self.driver, SupportsCalibrate):
            self._service = await self.driver.calibrate()


def with_own_steps(name: str) -> Model:
    """A built-in model with its own steps only: its inputs are in memory, none is a file's path."""
    model = resolve(name)
    own = model.builtin
    if own is None:
        return model
    collate = getattr(own, "collate", None)
    return replace(model, preprocess=own.preprocess, collate=collate)


def torch_device(name: str, **options: Any) -> DeviceConfig:
    """A torch device on this host's CPU with one thread, and those options that its driver has."""
    wanted = {"device": "cpu", "threads": 1, **options}
    known = {key: value for key, value in wanted.items() if supports(key)}
    return DeviceConfig("torch", name, known, note="this host, one thread")


def supports(option: str) -> bool:
    """Whether the torch driver here has that option."""
    return option in inspect.signature(load_driver("torch")).parameters


def devices_for(model: str, context: Context) -> tuple[list[DeviceConfig], list[str]]:
    """What was asked for, or a set of this host's; and a line for each that cannot run it."""
    if context.devices or context.config.devices:
        found = select(context.devices, context.config)
    else:
        found = _default(context)
    given: dict[str, Any] = {"max_batch": _BATCHES.get(model, 1)}
    if supports("optimize") and (context.short or not (context.devices or context.config.devices)):
        given["optimize"] = "none" if context.short else _FORMS.get(model, "none")
    kept, skipped = list[DeviceConfig](), list[str]()
    for device in found:
        if device.driver in _BOARDS and model != "digits":
            skipped.append(f"{model} on {device.name}: its firmware runs digits")
        elif device.driver == "simulated":
            skipped.append(f"{model} on {device.name}: runs no model")
        elif device.driver in _TORCH:
            kept.append(replace(device, options={**given, **device.options}))
        else:
            kept.append(device)
    return kept, skipped


def _default(context: Context) -> list[DeviceConfig]:
    """Torch in two threads and in two processes, a server that stands for a Pi, and the board."""
    found = [torch_device("torch-1")]
    if not context.short:
        found.append(torch_device("torch-2"))
        if supports("isolation"):
            found += [torch_device(f"process-{n}", isolation="process") for n in (1, 2)]
    return [*found, *select(("raspberry_pi", "cortex_m4"), None)]


def notes(devices: Sequence[DeviceConfig]) -> str:
    """What people should know of them."""
    return "; ".join(f"{device.name}: {device.note}" for device in devices if device.note)


async def open_all(devices: Sequence[DeviceConfig], model: Model) -> tuple[list[Opened], list[str]]:
    """The devices, each opened and timed; and a line for each that could not be."""
    made, skipped = list[Opened](), list[str]()
    for device in devices:
        try:
            made.append(Opened(device.build(model)))
        except ConfigError as error:
            skipped.append(f"{model.name} on {device.name}: {error}")
    opened = await asyncio.gather(*(one.driver.open() for one in made), return_exceptions=True)
    ready: list[Opened] = []
    for one, failure in zip(made, opened, strict=True):
        if failure is None:
            await one.time()  # one after another, so that they do not disturb each other
            ready.append(one)
            continue
        await one.driver.close()
        if not isinstance(failure, AsyncInferError):
            raise failure
        skipped.append(f"{model.name} on {one.name}: {failure}")
    return ready, skipped


async def close_all(opened: Sequence[Opened]) -> None:
    """Close every device, whatever another says."""
    await asyncio.gather(*(one.driver.close() for one in opened))
