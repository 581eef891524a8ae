"""Drivers, built-in models and other objects by name, and what to install where one is missing.

A distribution adds a driver with ``[project.entry-points."asyncinfer.drivers"]`` and a model with
``[project.entry-points."asyncinfer.models"]``. Nothing is imported until a name is asked for.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import (
    Distribution,
    EntryPoint,
    PackageNotFoundError,
    distribution,
    entry_points,
)
from typing import Any, TypeAlias

from asyncinfer.driver import Driver
from asyncinfer.errors import ConfigError

__all__ = (
    "DRIVERS",
    "MODELS",
    "MODEL_FILES",
    "DriverFactory",
    "did_you_mean",
    "driver_names",
    "import_object",
    "is_model_file",
    "load_driver",
    "load_model",
    "model_names",
    "needed_for",
    "optional",
    "remedy",
)

#: the entry-point group of drivers
DRIVERS = "asyncinfer.drivers"
#: the entry-point group of built-in models
MODELS = "asyncinfer.models"

#: suffixes of files that hold a whole model: ``torch.export`` (``.pt2``) and TorchScript
MODEL_FILES = (".pt2", ".pt", ".ts", ".pth", ".torchscript")

#: what an entry point of a driver names: a class, or a function that makes a driver
DriverFactory: TypeAlias = Callable[..., Driver[Any, Any]]

_REQUIREMENT = re.compile(
    r"\s*(?P<name>[\w.-]+)[^;]*(?:;.*extra\s*==\s*['\"](?P<extra>[^'\"]+)['\"])?"
)

#: from the name of a package in ``import`` to its name for pip, where the two differ
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "serial": "pyserial",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}


def driver_names() -> list[str]:
    """Names of all registered drivers, sorted; none is imported."""
    return sorted(entry_points(group=DRIVERS).names)


def model_names() -> list[str]:
    """Names of all built-in models, sorted; none is imported."""
    return sorted(entry_points(group=MODELS).names)


def load_driver(name: str) -> DriverFactory:
    """Import the driver called ``name``. A ``ConfigError`` says what to do if that fails."""
    factory = _load(DRIVERS, "driver", name)
    if not callable(factory):
        raise ConfigError(f"driver {name!r}: its entry point is no class or function: {factory!r}")
    return factory  # type: ignore[no-any-return]  # the entry point's promise


def load_model(name: str) -> Any:
    """Import the built-in model called ``name``. A ``ConfigError`` says what to do if that fails.

    ``asyncinfer.model.builtin`` does the same, and returns the model typed and checked.
    """
    return _load(MODELS, "model", name)


def is_model_file(text: str) -> bool:
    """Whether ``text`` is the path of a model's file rather than the name of a model."""
    return text.endswith(MODEL_FILES) or "/" in text or "\\" in text


def import_object(text: str) -> Any:
    """Import what ``module:attribute`` names; ``ConfigError`` says which half is wrong."""
    module, _, attribute = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot import {text!r}: {error}") from error
    return found


def optional(module: str, purpose: str) -> Any:
    """Import a package that only ``purpose`` needs; ``ConfigError`` says how to install it."""
    with needed_for(purpose):
        return importlib.import_module(module)


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Around imports that only ``purpose`` needs; ``ConfigError`` says what to install for them."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name:
            raise ConfigError(f"{purpose}: {error}") from error
        missing = error.name.partition(".")[0]
        try:
            own = distribution("asyncinfer")
        except PackageNotFoundError:
            own = None
        raise ConfigError(f"{purpose} needs {missing}: {remedy(missing, dist=own)}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, and all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(names) if names else 'none'}"


def remedy(module: str, *, dist: Distribution | None = None, prefer: str = "") -> str:
    """The ``pip install`` command for the package that has ``module``.

    If an extra of ``dist`` brings the package, that is installed: the one called ``prefer``, else
    the smallest.
    """
    project = _DISTRIBUTIONS.get(module, module)
    extras = _extras(dist) if dist else {}
    fitting = [extra for extra, projects in extras.items() if _normalised(project) in projects]
    if dist is None or not fitting:
        return f"pip install {project}"
    extra = min(fitting, key=lambda extra: (extra != prefer, len(extras[extra])))
    return f"pip install '{dist.name}[{extra}]'"


def _load(group: str, kind: str, name: str) -> Any:
    entry = _find(group, kind, name)
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing == entry.module.partition(".")[0]:
            raise ConfigError(f"{kind} {name!r} cannot be imported: {error}") from error
        command = remedy(missing, dist=entry.dist, prefer=name)
        raise ConfigError(f"{kind} {name!r} needs {missing}: {command}") from error
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{kind} {name!r} cannot be imported: {error}") from error


def _find(group: str, kind: str, name: str) -> EntryPoint:
    found = entry_points(group=group, name=name)
    for entry in found:
        return entry
    known = entry_points(group=group).names
    raise ConfigError(f"unknown {kind} {name!r}; {did_you_mean(name, known)}")


def _extras(dist: Distribution) -> dict[str, set[str]]:
    """The projects that each extra of a distribution brings."""
    extras: dict[str, set[str]] = {}
    for line in dist.requires or ():
        match = _REQUIREMENT.match(line)
        if match and match["extra"]:
            extras.setdefault(match["extra"], set()).add(_normalised(match["name"]))
    return extras


def _normalised(project: str) -> str:
    return re.sub(r"[-_.]+", "-", project).lower()
