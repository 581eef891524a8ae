"""What a config file may not name unless its reader allows it: code that would be run.

The names of drivers and of built-in models are those of installed packages. All else that
could bring code, a module to import or a model's file, has to be allowed: ``--allow-code``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from asyncinfer.errors import ConfigError
from asyncinfer.model import MODEL_FILES
from asyncinfer.registry import DriverFactory, load_driver

__all__ = ("STEPS", "refuse_code", "refuse_declared")

#: options of a device that name functions to import, ``module:function``
STEPS = ("preprocess", "postprocess", "collate", "uncollate")

#: where a driver's ``model`` is a name at the other end, and nothing is loaded here
_ELSEWHERE = ("device", "server")
_REMEDY = "if you trust it, give --allow-code, in a program allow_code=True"


def refuse_code(driver: str, options: Mapping[str, Any], where: str) -> None:
    """Raise ``ConfigError`` if the options of a device name a module or a model's file.

    The driver is imported only where it has to say whether its ``model`` is loaded here.
    """
    steps = [key for key in STEPS if isinstance(options.get(key), str)]
    model = options.get("model")
    if isinstance(model, str) and _brings_code(model) and _loads_models(driver):
        steps.append("model")
    _refuse(steps, options, where)


def refuse_declared(factory: DriverFactory, options: Mapping[str, Any], where: str) -> None:
    """The same for what the driver itself says: the keys that its ``code_options`` returns."""
    declared = getattr(factory, "code_options", None)
    if declared is not None:
        _refuse(declared(options), options, where)


def _refuse(keys: Iterable[str], options: Mapping[str, Any], where: str) -> None:
    for key in keys:
        raise ConfigError(
            f"{where}, options: {key!r} names what can run code, {str(options[key])[:80]!r}, "
            f"and this config may not: {_REMEDY}"
        )


def _brings_code(model: str) -> bool:
    """Whether it is a file or ``module:factory``, not the name of an installed model."""
    return model.endswith(MODEL_FILES) or any(mark in model for mark in ":/\\")


def _loads_models(driver: str) -> bool:
    try:
        factory = load_driver(driver)
    except ConfigError:  # who cannot say is not trusted
        return True
    return getattr(factory, "model_from", "module") not in _ELSEWHERE
