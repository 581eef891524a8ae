"""What ``torch.export`` says of a module: its operators, its layers' names, its results.

An operator at the end that the board cannot do, as argmax, is left to the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncinfer_drivers.cortex_m.builder.rewriting.names import VIEWS, operator_name
from asyncinfer_drivers.cortex_m.builder.rewriting.refusal import Refusal, refuse

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

__all__ = ("Program", "Result", "export")

_NO_PLACE = "write it without the underscore, as a new tensor"

#: norms by their defaults for power, axes and whether these are kept
_NORMS: Mapping[str, Sequence[Any]] = {
    "aten.linalg_vector_norm.default": (2, None, False),
    "aten.norm.ScalarOpt_dim": (2, None, False),
    "aten.linalg_norm.default": (None, None, False),
}
#: operators that may be left to the host if only the result depends on them
_ON_HOST = frozenset(
    {
        "aten.log_softmax.int",
        "aten.softmax.int",
        "aten.argmax.default",
        "aten.argmin.default",
        "aten.max.dim",
        "aten.min.dim",
        "aten.topk.default",
        "aten.sort.default",
        "aten.argsort.default",
        "aten.gt.Scalar",
        "aten.ge.Scalar",
        "aten.lt.Scalar",
        "aten.le.Scalar",
        *_NORMS,
    }
)


#: of ``max`` and ``min``: what ``amax`` and ``argmax`` have
_PARTS = {"values": "a", "indices": "arg"}


@dataclass(frozen=True)
class Result:
    """One tensor of what the module returns."""

    #: where it is in that: ``""``, ``"[0]"``, ``"['boxes']"``, ``"{3}"`` with a number as key
    path: str
    #: what the board computes for it
    node: fx.Node
    #: what the host has to do with that, the first thing first
    host: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """An exported module."""

    exported: torch.export.ExportedProgram
    nodes: Sequence[fx.Node]
    #: parameters, buffers and constants by the names of their nodes
    constants: Mapping[str, torch.Tensor]
    #: the one input
    input: fx.Node
    results: tuple[Result, ...]

    @property
    def narrow(self) -> torch.dtype | None:
        """A type with fewer bits than float32 that it computes in; ``None`` if there is none."""
        import torch

        made = (node.meta.get("val") for node in self.nodes)
        kinds = (getattr(value, "dtype", None) for value in made)
        return next((kind for kind in kinds if kind in (torch.float16, torch.bfloat16)), None)

    def board_part(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """In float, what the board should compute: a result each, as torch lays it out."""
        import torch
        from torch import fx

        interpreter = fx.Interpreter(self.exported.graph_module)
        interpreter.garbage_collect_values = False
        given = [self.constants.get(n.name, sample) for n in self.nodes if n.op == "placeholder"]
        with torch.inference_mode():
            interpreter.run(*given)
        return tuple(interpreter.env[result.node].detach() for result in self.results)


def export(module: nn.Module, example: torch.Tensor) -> Program:
    """Export ``module``; raises what ``torch.export`` raises."""
    import torch

    from asyncinfer_drivers._torch.exported import EXPORTING

    with EXPORTING, torch.no_grad():
        # without running bytecode, which takes seconds and refuses more
        exported = torch.export.export(module, (example,), strict=False)
    for node in list(exported.graph.nodes):
        if _in_place(node):
            _make_functional(node)
    nodes = tuple(exported.graph.nodes)
    constants = _constants(exported)
    given = [n for n in nodes if n.op == "placeholder" and n.name not in constants]
    return Program(exported, nodes, constants, given[0], _results(exported))


def _in_place(node: fx.Node) -> bool:
    _, _, name = str(node.target).rpartition("aten.")
    changes = name.partition(".")[0].endswith("_")
    return node.op == "call_function" and changes and f"aten.{name}" not in VIEWS


def _make_functional(node: fx.Node) -> None:
    """Have what comes after it read its result instead of the tensor that it changes."""
    import torch

    changed: Any = node.args[0]
    places = {other: at for at, other in enumerate(node.graph.nodes)}
    later = [user for user in changed.users if places[user] > places[node]]
    for alias in _aliases(changed) - {changed}:
        if any(places[user] > places[node] for user in alias.users):
            raise refuse(node, "changes a tensor that is read in another form too", _NO_PLACE)
    for user in later:
        user.replace_input_with(changed, node)
    packet, _, overload = str(node.target).removeprefix("aten.").partition(".")
    made = getattr(torch.ops.aten, packet.removesuffix("_"), None)
    if made is None or overload not in made.overloads():
        raise refuse(node, remedy=_NO_PLACE)
    node.target = getattr(made, overload)


def _aliases(node: fx.Node) -> set[fx.Node]:
    """``node`` and what may be the same memory."""
    found, todo = set[Any](), [node]
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += [user for user in one.users if _may_alias(user)]
            todo += one.all_input_nodes[:1] if _may_alias(one) else []
    return found


def _may_alias(node: fx.Node) -> bool:
    name = operator_name(node)
    return node.op == "call_function" and (name == "getitem" or name in VIEWS)


def _constants(exported: torch.export.ExportedProgram) -> Mapping[str, torch.Tensor]:
    found = dict[str, Any]()
    for spec in exported.graph_signature.input_specs:
        if spec.kind.name in ("PARAMETER", "BUFFER"):
            target = str(spec.target)
            stored = exported.state_dict.get(target, exported.constants.get(target))
            found[spec.arg.name] = stored
        elif spec.kind.name == "CONSTANT_TENSOR":
            found[spec.arg.name] = exported.constants[str(spec.target)]
    return {name: tensor.detach() for name, tensor in found.items()}


def _results(exported: torch.export.ExportedProgram) -> tuple[Result, ...]:
    from torch.utils import _pytree as pytree

    specs = exported.graph_signature.output_specs
    returned: Any = exported.graph.output_node().args[0]
    tree: Any = exported.call_spec.out_spec
    user = [node for node, spec in zip(returned, specs, strict=True) if _is_user(spec)]
    structure: Any = pytree.tree_unflatten(list(range(len(user))), tree)
    leaves = pytree.tree_flatten_with_path(structure)[0]
    return tuple(_result(_place(path), user[at]) for path, at in leaves)


def _place(path: Sequence[Any]) -> str:
    """Where a result is, as drivers read it: a dict's numbers look unlike a tuple's places."""
    from torch.utils import _pytree as pytree

    steps = list[str]()
    for step in path:
        key = step.key if isinstance(step, pytree.MappingKey) else None
        if isinstance(key, str):
            steps.append(f"[{key!r}]")
        elif isinstance(key, int) and not isinstance(key, bool):
            steps.append(f"{{{key}}}")
        elif key is None and not isinstance(step, pytree.MappingKey):
            steps.append(str(step))
        else:
            raise Refusal(f"a dict that it returns has the key {key!r}: take text as keys")
    return "".join(steps)


def _is_user(spec: Any) -> bool:
    return bool(spec.kind.name == "USER_OUTPUT")


def _result(path: str, node: Any) -> Result:
    """Take off the end of the chain to ``node`` what is left to the host."""
    from torch import fx

    if not isinstance(node, fx.Node):
        place = f" at {path}" if path else ""
        raise Refusal(f"it returns {node!r}{place}, no tensor: leave it out of the results")
    chain = [node]
    while _fits_host(chain[-1]) and (before := _before(chain[-1])) is not None:
        chain.append(before)
    places = [at for at, link in enumerate(chain[:-1]) if _left_to_host(link)]
    if not places:
        return Result(path, node, ())
    start = chain[places[-1] + 1]
    steps = tuple(_text(link) for link in reversed(chain[: places[-1] + 1]))
    return Result(path, start, _joined(steps))


def _joined(steps: Sequence[str]) -> tuple[str, ...]:
    """With what ``max`` and ``min`` have two results of as an operator for each."""
    found = list[str]()
    for step in steps:
        if found and step in _PARTS and found[-1].startswith(("max(", "min(")):
            found[-1] = _PARTS[step] + found[-1]
        elif found and step in _PARTS and found[-1].startswith(("topk(", "sort(")):
            found[-1] = found[-1].replace("(", f"_{step}(", 1)
        else:
            found.append(step)
    return tuple(found)


def _before(node: fx.Node) -> fx.Node | None:
    from torch import fx

    first = node.args[0] if node.op == "call_function" and node.args else None
    return first if isinstance(first, fx.Node) and first.op == "call_function" else None


def _fits_host(node: fx.Node) -> bool:
    return _left_to_host(node) or operator_name(node) in {"getitem", *VIEWS}


def _left_to_host(node: fx.Node) -> bool:
    name = operator_name(node)
    if name in ("aten.max.dim", "aten.min.dim"):  # the largest itself the board can tell
        return any(operator_name(user) == "getitem" and user.args[1] for user in node.users)
    if name == "aten.div.Tensor":  # normalized to length 1
        return _normalization(node) is not None
    if name == "aten.softmax.int":
        tensor = node.meta["val"]
        return bool(tensor.shape[node.args[1]] != tensor.numel())
    return name in _ON_HOST


def _normalization(node: fx.Node) -> str | None:
    """A tensor that is divided by its own norm, held off zero and expanded; as text."""
    least: Any = 0.0
    norm: Any = node.args[1]
    names = ("aten.expand.default", "aten.expand_as.default", "aten.clamp_min.default")
    while getattr(norm, "op", "") == "call_function" and operator_name(norm) in names:
        least = norm.args[1] if "clamp_min" in operator_name(norm) else least
        norm = norm.args[0]
    if getattr(norm, "op", "") != "call_function" or operator_name(norm) not in _NORMS:
        return None
    power, axis, kept = _norm_of(norm)
    if norm.args[0] is not node.args[0]:
        return None
    return f"normalize({power}, {axis}, {least})" if kept and axis is not None else "normalize"


def _norm_of(node: fx.Node) -> tuple[Any, Any, Any]:
    """Power, the one axis, and whether it is kept."""
    given = [*node.args[1:], *_NORMS[operator_name(node)][len(node.args) - 1 :]]
    power, axes, kept = given[:3]
    axis = axes[0] if isinstance(axes, Sequence) and len(axes) == 1 else None
    return 2 if power is None else power, axis, kept


def _text(node: fx.Node) -> str:
    """For the report: ``log_softmax(1)``."""
    name = operator_name(node)
    if name == "getitem":
        return {0: "values", 1: "indices"}.get(int(str(node.args[1])), str(node))
    if name == "aten.div.Tensor":
        return str(_normalization(node))
    if name in _NORMS and _norm_of(node)[1] is not None:
        return f"vector_norm({', '.join(map(str, _norm_of(node)))})"
    args = ", ".join(str(arg) for arg in node.args[1:] if arg is not None)
    return f"{name.split('.')[1]}({args})"
