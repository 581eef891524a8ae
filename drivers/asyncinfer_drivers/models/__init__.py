"""Built-in models by name, as ``asyncinfer.registry`` finds them.

Nothing is imported until a name is asked for, and torch not until a model is built.
"""

from __future__ import annotations

from asyncinfer.registry import MODELS as GROUP
from asyncinfer.registry import import_object
from asyncinfer.registry import load_model as load
from asyncinfer.registry import model_names as names

__all__ = ("GROUP", "import_object", "load", "names")
