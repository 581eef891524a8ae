"""What is public is listed, exists and is documented; the contract's names are all there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import asyncinfer
import asyncinfer_drivers

PARAMETERS = {
    "Dispatcher.__init__": {
        "drivers": inspect.Parameter.empty,
        "policy": "eft",
        "window": 1024,
        "queue_size": 1024,
        "retries": 2,
        "timeout": None,
        "hedge": None,
        "on_event": None,
    },
    "Dispatcher.stream": {
        "xs": inspect.Parameter.empty,
        "ordered": True,
        "return_exceptions": False,
    },
    "Dispatcher.results": {"xs": inspect.Parameter.empty, "ordered": True},
    "Dispatcher.add": {"driver": inspect.Parameter.empty},
    "Dispatcher.remove": {"name": inspect.Parameter.empty, "drain": True},
    "Dispatcher.drain": {"timeout": None},
    "Dispatcher.close": {},
    "Dispatcher.stats": {},
    "testing.SimulatedDriver.__init__": {
        "name": inspect.Parameter.empty,
        "service_time": inspect.Parameter.empty,
        "noise": 0.0,
        "seed": 42,
        "batch_cost": 0.0,
        "max_batch": 1,
        "fail": None,
        "function": None,
        "host": None,
        "cores": 1.0,
    },
    "testing.SimulatedHost.__init__": {"cores": 2.0, "contention": 0.0, "name": "host"},
}


def public_modules() -> list[str]:
    """Every module of both packages whose path has no part with a leading underscore."""
    found = []
    for package in (asyncinfer, asyncinfer_drivers):
        walk = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
        found += [package.__name__, *(module.name for module in walk)]
    return sorted(name for name in found if "._" not in name)


@pytest.fixture(params=public_modules())
def module(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def listed(module: ModuleType) -> tuple[str, ...]:
    """Its ``__all__``; a package that is nothing but a docstring needs none."""
    own = [name for name, value in vars(module).items() if not isinstance(value, ModuleType)]
    return getattr(module, "__all__", [name for name in own if name[0] != "_"] or ())


def test_all_is_a_tuple_of_existing_names(module: ModuleType) -> None:
    names = listed(module)
    assert isinstance(names, tuple), "no __all__, or not a tuple"
    assert [name for name in names if not hasattr(module, name)] == []
    assert len(set(names)) == len(names)


def test_public_names_have_a_docstring(module: ModuleType) -> None:
    named = {module.__name__: module} | {name: getattr(module, name) for name in listed(module)}
    documentable = (ModuleType, type)
    silent = [
        name
        for name, value in named.items()
        if (isinstance(value, documentable) or inspect.isroutine(value)) and not value.__doc__
    ]
    assert silent == []


def test_contract_names_import() -> None:
    from asyncinfer import Dispatcher, Driver, Result
    from asyncinfer.errors import (
        AsyncInferError,
        ConfigError,
        DeviceError,
        DeviceLost,
        DeviceTimeout,
        ProtocolError,
        TaskError,
    )
    from asyncinfer.testing import SimulatedDriver, run_virtual
    from asyncinfer_drivers.torch_host import TorchDriver

    assert {DeviceLost, DeviceTimeout, ProtocolError} <= set(DeviceError.__subclasses__())
    assert {DeviceError, TaskError, ConfigError} <= set(AsyncInferError.__subclasses__())
    assert {"Dispatcher", "Driver", "Result"} <= set(asyncinfer.__all__)
    assert (Driver.max_batch, Driver.concurrency) == (1, 1)
    fields = {field.name for field in dataclasses.fields(Result)}
    assert fields >= {
        *("index", "value", "error", "device", "attempts"),
        *("submitted", "started", "finished", "delivered"),
    }
    assert all(map(callable, (Dispatcher, SimulatedDriver, TorchDriver, run_virtual)))


@pytest.mark.parametrize("path", PARAMETERS)
def test_contract_parameters(path: str) -> None:
    *modules, owner, method = path.split(".")
    target = getattr(importlib.import_module(".".join(["asyncinfer", *modules])), owner)
    signature = inspect.signature(getattr(target, method))
    actual = {name: parameter.default for name, parameter in signature.parameters.items()}
    expected = PARAMETERS[path]
    assert {name: actual.get(name, "missing") for name in expected} == expected
    extra = [name for name in actual if name not in expected and name != "self"]
    required = [name for name in extra if actual[name] is inspect.Parameter.empty]
    assert required == []


def test_infer_takes_one_task() -> None:
    inspect.signature(asyncinfer.Dispatcher.infer).bind("self", "the task")


def test_device_errors_name_the_device_and_task_errors_the_task() -> None:
    from asyncinfer.errors import DeviceLost, TaskError

    assert DeviceLost("board").device == "board"
    error = TaskError(7, 3, (ValueError("odd"),))
    assert (error.index, error.attempts, len(error.causes)) == (7, 3, 1)
