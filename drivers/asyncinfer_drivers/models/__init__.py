"""Built-in models, found by name through the entry-point group ``asyncinfer.models``.

Nothing is imported until a name is asked for, and torch not until a model is built.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from asyncinfer.errors import ConfigError

__all__ = ("GROUP", "import_object", "load", "names")

GROUP = "asyncinfer.models"


def names() -> list[str]:
    """Names of all installed models, sorted."""
    return sorted(entry_points(group=GROUP).names)


def load(name: str) -> Any:
    """The model registered as ``name``; ``ConfigError`` names the nearest one if there is none."""
    for entry in entry_points(group=GROUP, name=name):
        return import_object(entry.value)
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"unknown model {name!r}; {hint}known: {', '.join(names()) or 'none'}")


def import_object(text: str) -> Any:
    """The object that ``module:attribute`` names; ``ConfigError`` says what is wrong with it."""
    module, _, attribute = text.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot import {text!r}: {error}") from error
    return found
