"""One operator with its arguments by name, and the table of rules for operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncinfer_drivers.cortex_m.builder.rewriting.names import layer_name
from asyncinfer_drivers.cortex_m.builder.rewriting.net import Held
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import Refusal, refuse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import fx

    from asyncinfer_drivers.cortex_m.builder.rewriting.net import Net

__all__ = ("RULES", "Call", "Rule", "pair", "rule")


@dataclass(frozen=True)
class Call:
    """An operator of the exported graph."""

    node: fx.Node
    #: tensors of the net as ``Held``, tensors of known numbers as torch has them
    given: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """The argument of this name in the operator's schema."""
        return self.given.get(name)

    @property
    def label(self) -> str:
        """What its operations are called."""
        return str(self.node.name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its result, as torch has it."""
        return tuple(self.node.meta["val"].shape)

    @property
    def helds(self) -> list[Held]:
        """Its tensors that are not known beforehand."""
        return [value for value in self.given.values() if isinstance(value, Held)]

    @property
    def alone(self) -> bool:
        """Whether nothing else reads its first tensor."""
        first = self.node.args[0]
        return len(getattr(first, "users", ())) == 1

    def numbers(self, name: str) -> NDArray[np.float32] | None:
        """A tensor of known numbers; ``None`` if there is none."""
        tensor = self[name]
        if tensor is None:
            return None
        if isinstance(tensor, Held):
            raise self.refuse(f"has a {name} that is computed")
        array: NDArray[np.float32] = tensor.detach().float().numpy()
        return array

    def weights(self, name: str) -> NDArray[np.float32]:
        """As ``numbers``, of a tensor that is always there."""
        array = self.numbers(name)
        if array is None:
            raise self.refuse(f"has no {name}")
        return array

    def source(self, name: str) -> str:
        """What a weight is called in reports."""
        layer = layer_name(self.node)
        return f"{layer}.{name}" if layer else f"{self.label}.{name}"

    def refuse(self, reason: str, remedy: str = "") -> Refusal:
        """The error for it."""
        return refuse(self.node, reason, remedy)


Rule: TypeAlias = "Callable[[Net, Call], Any]"

#: what to do with an operator, by its name
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Put the function below it into ``RULES`` under these names, of ``aten``."""

    def put(made: Rule) -> Rule:
        RULES.update({f"aten.{name}": made for name in names})
        return made

    return put


def pair(value: Any, flat: bool = False, first: int = 1) -> tuple[int, int]:
    """For height and width; ``flat``: for one axis only, and the height gets ``first``."""
    items: Sequence[int] = [value] if isinstance(value, int) else list(value)
    if flat:
        return first, int(items[0])
    return int(items[0]), int(items[-1])
