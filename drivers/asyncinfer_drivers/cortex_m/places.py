"""Where an output is in what a module returns, as the name of the output says it."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple, TypeAlias

__all__ = ("Place", "Step", "after_place", "place_of")

#: what a name begins with that says a place
_START = "output"
#: in a key, what ``repr`` writes for characters that it does not show
_HIDDEN = r"\\(?:['\"\\ntr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})"
#: ``[0]`` of a tuple, ``{3}`` of a dict that has numbers as keys, ``['boxes']`` or ``.logits``
_STEP = re.compile(
    r"\[(?P<index>\d+)\]|\{(?P<number>-?\d+)\}|\.(?P<field>\w+)"
    rf"""|\[(?P<text>'(?:[^'\\\n\r]|{_HIDDEN})*'|"(?:[^"\\\n\r]|{_HIDDEN})*")\]"""
)


class Step(NamedTuple):
    """One level of a place."""

    key: int | str
    #: whether ``key`` is a number that is a key of a dict
    in_dict: bool = False

    @property
    def is_index(self) -> bool:
        """Whether it is a place in a tuple."""
        return isinstance(self.key, int) and not self.in_dict


#: no steps: it is the result itself
Place: TypeAlias = tuple[Step, ...]


def place_of(name: str) -> Place:
    """Where the output of this name is; nowhere if the name does not say it."""
    steps, end = _read(name)
    return steps if end == len(name) else ()


def after_place(name: str) -> int:
    """Where the place ends in a name, and what is left to the host may begin."""
    return _read(name)[1]


def _read(name: str) -> tuple[Place, int]:
    if not name.startswith(_START):
        return (), 0
    steps, end = list[Step](), len(_START)
    while found := _STEP.match(name, end):
        steps.append(_step(found))
        end = found.end()
    return tuple(steps), end


def _step(found: re.Match[str]) -> Step:
    if found["index"] is not None:
        return Step(int(found["index"]))
    if found["number"] is not None:
        return Step(int(found["number"]), in_dict=True)
    if found["field"] is not None:
        return Step(found["field"])
    return Step(str(ast.literal_eval(found["text"])))
