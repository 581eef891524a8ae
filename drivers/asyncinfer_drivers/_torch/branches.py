"""Whether a model's Python code looks at the values it computes: then no graph can stand for it.

A graph holds what one call did. Another input may take another way, and a graph would take the
old one without a word. So one call of the model is watched: as long as nothing of what it computes
reaches Python, Python can decide nothing by it, and every other input of that shape goes the
same way.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from asyncinfer_drivers._torch.inputs import asked, parts

__all__ = ("Decisions", "Reasons", "Watched", "watched")

#: operations that raise for some values and not for others, so that ``except`` is a branch
_MAY_RAISE = frozenset(
    ("_assert_async", "_linalg_check_errors", "_linalg_svd", "cholesky", "linalg_eig",
     "linalg_lstsq")
)  # fmt: skip
#: parts of the names of operations that are said to be random and are not where nothing is trained
_NOT_RANDOM = ("attention", "sdp", "rrelu", "lstm", "gru", "rnn")
#: what torch's functions return that tells nothing about values
_TELLS_NOTHING = (
    torch.Tensor, torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format,
    torch.finfo, torch.iinfo, types.NoneType, types.NotImplementedType,
)  # fmt: skip
#: functions that return numbers which are the same for all values
_OF_SHAPES = frozenset(
    ("__hash__", "__iter__", "__len__", "can_cast", "dense_dim", "dim", "dim_order",
     "element_size", "get_device", "has_names", "is_coalesced", "is_complex", "is_conj",
     "is_contiguous", "is_distributed", "is_floating_point", "is_inference", "is_neg",
     "is_nonzero_static", "is_pinned", "is_same_size", "is_set_to", "is_shared", "is_signed",
     "ndimension", "nelement", "numel", "result_type", "size", "sparse_dim", "storage_offset",
     "stride", "type")
)  # fmt: skip
#: functions that hand values to Python code and return tensors
_CALLS_BACK = frozenset(("apply_", "map_", "map2_"))
#: parts of the names of those that depend on where in memory a value is
_OF_MEMORY = ("storage", "data_ptr", "as_strided", "dlpack", "__reduce")
#: functions that hand over memory; torch's modes do not see them
_MEMORY = frozenset(
    function
    for name in ("_to_dlpack", "_to_dlpack_versioned")
    if (function := getattr(torch._C, name, None)) is not None
)


class Watched(NamedTuple):
    """What a model's call was seen to do, in words; ``""`` if nothing."""

    #: what lets Python code decide by values
    values: str = ""
    #: what looks at memory, which another layout puts in another order
    memory: str = ""
    #: what Python decides by that is computed of the input, which may be a whole batch
    decides: str = ""
    #: what chooses among things by scores: rounding alone, which a batch changes, can choose others
    chooses: str = ""


#: parts of the names of operations and functions that answer yes or no; what hands over numbers may
#: do so for the output
_DECIDE = ("aten.equal", "is_nonzero", "allclose", "__bool__")
#: a part of the names of operations that keep the best of the boxes that overlap
_CHOOSE = "nms"


class _Seen(list[str]):
    """What was seen, and which tensors were computed from the input."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.decides = self.chooses = ""
        self._computed = WeakIdKeyDictionary()
        for tensor in parts(given):
            self._computed[tensor] = True

    def follow(self, func: Any, args: Any, result: Any = None, *, decided: bool = False) -> None:
        """Note what is computed from the input, and if ``func`` decides by it."""
        tensors = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]
        if not any(tensor in self._computed for tensor in tensors):
            return
        name = resolve_name(func) or str(func)
        if not self.decides and (decided or any(part in name for part in _DECIDE)):
            self.decides = name
        if not self.chooses and _CHOOSE in name:
            self.chooses = name
        written = tensors if getattr(getattr(func, "_schema", None), "is_mutable", False) else ()
        for leaf in (*pytree.tree_leaves(result), *written):
            if isinstance(leaf, torch.Tensor):
                self._computed[leaf] = True


def watched(module: Callable[[torch.Tensor], Any], example: torch.Tensor) -> Watched:
    """What ``module`` does with ``example`` that a graph or another layout would not do again.

    One call, in this thread. What code outside of torch reads from memory that it got before is
    not seen; a difference of the answers may show it.
    """
    given = example.clone()
    seen = _Seen(given)
    drawn = _drawn()
    try:
        with _modes(seen), _profiled(seen.append):
            asked(module, given)
    except Exception as error:
        seen.append(f"it cannot be watched ({type(error).__name__})")
    if _drawn() != drawn:
        seen.append("random numbers of numpy or Python")
    memory = [name for name in seen if any(part in name for part in _OF_MEMORY)]
    return Watched(
        f"control flow: it looks at values ({seen[0]})" if seen else "",
        f"it looks at memory ({memory[0]})" if memory else "",
        seen.decides,
        seen.chooses,
    )


@contextmanager
def _modes(seen: _Seen) -> Iterator[None]:
    # in inference mode, compound operations would pass as one and hide what is in them
    with torch.inference_mode(False), torch.no_grad(), _Functions(seen), _Operations(seen):
        yield


def _drawn() -> tuple[Any, ...]:
    """How far Python's and numpy's own generators are."""
    numpy_state: Any = np.random.get_state(legacy=True)
    return random.getstate(), numpy_state[1][0], *numpy_state[2:]


class Decisions(TorchFunctionMode):
    """Notes each yes and no that Python code gets of a model's values."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[bool] = []
        self._places: list[tuple[types.CodeType, int]] = []

    @property
    def loops(self) -> bool:
        """Whether one line got more than one: it may be what ends a loop."""
        return len(set(self._places)) < len(self._places)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        decided = _decided(getattr(func, "__name__", ""), result)
        if decided:
            frame = sys._getframe(1)
            self.taken.append(result)
            self._places.append((frame.f_code, frame.f_lineno))
        self.note(func, args, result, decided=decided)
        return result

    def note(self, func: Any, args: Any, result: Any, *, decided: bool) -> None:
        """Learn more from a call."""


#: functions that make one number of a whole tensor, to which each part has its say
_OF_ALL = frozenset(("all", "any", "max", "amax", "min", "amin"))
#: what makes a yes or a no of such a number
_OF_ONE = frozenset(("gt", "ge", "lt", "le", "logical_not", "bitwise_not"))
#: names of operators that mean a function
_OPERATORS = {"__gt__": "gt", "__ge__": "ge", "__lt__": "lt", "__le__": "le",
              "__invert__": "bitwise_not"}  # fmt: skip


class Reasons(Decisions):
    """The same, and whether each yes or no is one of all parts of a batch together.

    So is what ``all`` and ``any`` say, and no part can change it unseen but to what is usual, as
    where a mask is left out if it is full. Whether the mean is large, or the first number, says
    nothing of the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hold = True
        self._made: Any = WeakIdKeyDictionary()  # has no types

    def note(self, func: Any, args: Any, result: Any, *, decided: bool) -> None:
        """Learn from a call what the number that it made tells, or whether its yes or no holds."""
        name = getattr(func, "__name__", "")
        name = _OPERATORS.get(name, name)
        made = bool(args) and isinstance(args[0], torch.Tensor) and args[0] in self._made
        if decided:
            self.hold = self.hold and (made or name in ("equal", "allclose"))
        elif isinstance(result, torch.Tensor) and result.ndim == 0:
            plain = not any(isinstance(other, torch.Tensor) for other in args[1:])
            if plain and name in (_OF_ONE if made else _OF_ALL):
                self._made[result] = True


class _Operations(TorchDispatchMode):
    """Notes operations whose outcome Python code gets to know; all of torch's pass here."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler for this, which takes a second

    def __init__(self, seen: _Seen) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _tells(func, args):
            self._seen.append(str(func))
        with _noted(self._seen, func):
            result = func(*args, **(kwargs or {}))
        self._seen.follow(func, (args, kwargs), result)
        return result


class _Functions(TorchFunctionMode):
    """Notes functions that hand values to Python; it sees those that are no operations too."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with _noted(self._seen, func):
            result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _CALLS_BACK or not (_of_shape(name, result) or _is_mute(result)):
            self._seen.append(resolve_name(func) or name or str(func))
            self._seen.follow(func, (args, kwargs), decided=_decided(name, result))
        return result


@contextmanager
def _noted(seen: list[str], func: Any) -> Iterator[None]:
    """Note an error: the model that catches it has a branch."""
    try:
        yield
    except Exception as error:
        seen.append(f"{resolve_name(func) or func} raised {type(error).__name__}")
        raise


def _tells(func: Any, args: tuple[Any, ...]) -> bool:
    tags = getattr(func, "tags", ())
    name = func._schema.name.partition("::")[2] if hasattr(func, "_schema") else str(func)
    if name in _MAY_RAISE or torch.Tag.data_dependent_output in tags:
        return True
    if torch.Tag.nondeterministic_seeded in tags:
        return not any(part in name for part in _NOT_RANDOM)
    if name == "as_strided":
        return True
    if name == "index":  # by numbers, its output has a shape that they do not change
        return any(getattr(at, "dtype", None) in (torch.bool, torch.uint8) for at in args[1])
    return torch.Tag.dynamic_output_shape in tags


def _of_shape(name: str, result: Any) -> bool:
    if name == "__get__":  # a property
        return isinstance(result, bool | int | str) or callable(result)
    return name in _OF_SHAPES


def _decided(name: str, result: Any) -> bool:
    """Whether it is a yes or a no that depends on values."""
    return isinstance(result, bool) and not _of_shape(name, result)


def _is_mute(result: Any) -> bool:
    """Whether no value can be learned from it."""
    if isinstance(result, _TELLS_NOTHING):
        return True
    return isinstance(result, list | tuple) and all(map(_is_mute, result))


@contextmanager
def _profiled(note: Callable[[str], None]) -> Iterator[None]:
    """Note calls of functions in C that no mode sees, unless a profiler has the hook."""

    def hook(frame: types.FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function in _MEMORY:
            note(function.__name__)

    if sys.getprofile() is not None:
        yield
        return
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(None)
