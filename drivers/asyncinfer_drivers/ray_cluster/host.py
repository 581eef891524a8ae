"""What an actor runs: a torch model as ``TorchDriver`` would, or any function of one input."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from asyncinfer.errors import AsyncInferError, ConfigError
from asyncinfer.registry import import_object, is_model_file
from asyncinfer_drivers._shared.session import Host
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers._shared.worker import Worker, as_exception

__all__ = ("Order", "host_of")


class Order(NamedTuple):
    """What a driver tells its actors to run."""

    name: str
    model: Any
    steps: Steps
    max_batch: int | Literal["auto"]
    warmup_input: Any
    #: for torch models: more of ``TorchOptions``
    torch: Mapping[str, Any]


def host_of(order: Order) -> Host:
    """The host for what ``model`` turns out to be; see ``RayDriver``. May take long."""
    model = order.model
    if isinstance(model, str) and ":" in model and not is_model_file(model):
        model = import_object(model)
    if callable(model) and not _is_torch(model):
        if not _is_factory(model):
            return _Plain(order, model)
        model = _made(order.name, model)
        if callable(model) and not _is_torch(model):
            return _Plain(order, model)
    return _torch_host(order._replace(model=model))


def _is_torch(model: Any) -> bool:
    """Whether torch's machinery takes it as it is: a module, or a built-in model."""
    torch = sys.modules.get("torch")
    module = torch is not None and isinstance(model, torch.nn.Module)
    return module or (hasattr(model, "build") and not isinstance(model, type))


def _is_factory(function: Callable[..., Any]) -> bool:
    """Whether it makes the model: a class, or a function that can do without arguments."""
    if isinstance(function, type):
        return True
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):  # ValueError: written in C, without a signature
        return False
    return True


def _made(name: str, factory: Callable[[], Any]) -> Any:
    try:
        return factory()
    except AsyncInferError:
        raise
    except Exception as error:
        what = getattr(factory, "__qualname__", repr(factory))
        text = f"model {what} failed: {type(error).__name__}: {error}"
        raise ConfigError(f"{name}: {text}") from error


def _torch_host(order: Order) -> Host:
    try:
        from asyncinfer_drivers._torch.hosts import TunedHost
        from asyncinfer_drivers._torch.options import TorchOptions
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{order.name}: model {_short(order.model)} is for torch, which this node of the "
            f"cluster lacks ({error}): install asyncinfer[torch] there, or give runtime_env"
        ) from error
    options = TorchOptions(
        order.model,
        name=order.name,
        max_batch=order.max_batch,
        warmup_input=order.warmup_input,
        **order.steps._asdict(),
        **order.torch,
    )
    return TunedHost(options)


def _short(model: Any) -> str:
    return repr(model) if isinstance(model, str | Path) else type(model).__name__


class _Plain:
    """A function of one input, or of what ``collate`` makes of a batch, in a thread."""

    def __init__(self, order: Order, function: Callable[[Any], Any]) -> None:
        self._name, self._function = order.name, function
        self._steps = order.steps.imported()
        self._worker = Worker(order.name)
        self.warmup = order.warmup_input
        self.max_batch = 1 if order.max_batch == "auto" else order.max_batch
        self.details: dict[str, str | float] = {"max_batch": self.max_batch}

    async def open(self) -> None:
        """See ``Host``."""
        self._worker.start()
        if self.warmup is not None:
            (output,) = await self.run([self.warmup])
            if isinstance(output, Exception):
                raise ConfigError(f"{self._name}: the warm-up input failed: {output}") from output

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """See ``Host``."""
        return await self._worker.run(self._run, batch)

    async def probe(self) -> None:
        """See ``Host``: its thread is free."""
        await self._worker.run(int)

    def _run(self, batch: Sequence[Any]) -> list[Any]:
        if self._steps.collate is not None and self._steps.uncollate is not None:
            try:
                outputs = list(self._steps.uncollate(self._function(self._steps.collate(batch))))
                if len(outputs) == len(batch):
                    return outputs
            except Exception:  # noqa: S110  # the steps for one task say whose fault it is
                pass
        return [self._one(item) for item in batch]

    def _one(self, item: Any) -> Any:
        before, after = self._steps.preprocess, self._steps.postprocess
        try:
            output = self._function(item if before is None else before(item))
            return output if after is None else after(output)
        except BaseException as error:
            return as_exception(error)
