"""An engine in a process of its own: its crash is a lost device, and what hangs can be ended."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.spawn import get_preparation_data
from typing import Any

from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers._torch.channel import Channel
from asyncinfer_drivers._torch.child import Order
from asyncinfer_drivers._torch.engine import claim
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.threads import CoreShare
from asyncinfer_drivers._torch.wire import Area, packed

__all__ = ("ProcessHost",)

logger = logging.getLogger("asyncinfer.torch")

#: what the new process runs; its arguments are the files' numbers, then the module search path
_PROGRAM = """\
import sys
*files, path = sys.argv[1:]
sys.path[:] = path.split(chr(31))
from asyncinfer_drivers._torch.child import main
main(*map(int, files))
"""
#: seconds that a process which was told to end gets before it is killed
_EXIT_SECONDS = 1.0
#: what pickling raises
_UNPICKLABLE = (pickle.PicklingError, TypeError, AttributeError, ValueError)


class ProcessHost:
    """An engine in a process; see ``Host``. One thread waits for its answers.

    The process is started by that thread and ends with it: on Linux the system sees to that, and
    everywhere a pipe that closes with this program.
    """

    def __init__(self, options: TorchOptions) -> None:
        if os.name != "posix":
            raise ConfigError("isolation='process' needs Linux or macOS")
        self._options = options
        self._name = options.called
        self._share: CoreShare | None = None
        self._child: _Child | None = None
        self._lost: DeviceLost | None = None
        self.worker = Worker(self._name, at_end=self._end)
        self.opened = False
        self.warmup: Any = None
        self.max_batch = 1
        self.details: dict[str, str | float] = {}

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._child is None else self._child.process.pid

    async def open(self) -> None:
        """Start the process, load the model; ``ConfigError`` for what cannot be pickled."""
        self.worker.start()
        self.warmup, self.max_batch, details = await self.worker.run(self._load)
        self.details = {**details, "isolation": "process"}
        self.opened = True

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """As ``Runner.run``; an input that cannot be pickled is an ``InputError``."""
        return await self.worker.run(self._run, batch)

    async def probe(self) -> None:
        """As ``Runner.probe``."""
        await self.worker.run(self._ask, "probe", None)

    async def close(self, timeout: float) -> None:
        """End the process: when its call has ended, or after ``timeout`` seconds."""
        try:
            ended = await self.worker.stop(timeout)
        except BaseException:  # cancelled: then at once
            self._kill()
            raise
        if not ended:
            self._kill()
            await self.worker.stop(None)

    # ---- in the thread

    def _load(self) -> Any:
        order = self._order()
        self._child = _Child()
        return self._ask("load", order, self.worker.wanted)

    def _order(self) -> Order:
        try:
            pickled = pickle.dumps(self._options)
        except _UNPICKLABLE as error:
            raise ConfigError(
                f"{self._name}: isolation='process' cannot send the model, a step or the warm-up "
                f"input to its process: {error}; give 'module:function', a file or a name"
            ) from error
        self._share = claim(self._options)
        program: dict[str, Any] = {}
        if b"__main__" in pickled:
            whole = get_preparation_data(self._name)
            program = {key: whole[key] for key in whole if key.startswith("init_main")}
        threads = None if self._share is None else self._share.threads
        return Order(pickled, program, threads, logger.getEffectiveLevel())

    def _run(self, batch: Sequence[Any]) -> list[Any]:
        threads = self._share.threads if self._share else 1
        try:
            answers: list[Any] = self._ask("run", (threads, packed(batch)))
            return answers
        except _UNPICKLABLE:
            outputs = [_unsendable(item) for item in batch]
        good = [item for item, output in zip(batch, outputs, strict=True) if output is None]
        rest = iter(self._ask("run", (threads, packed(good))))
        return [next(rest) if output is None else output for output in outputs]

    def _ask(self, what: str, argument: Any, wanted: Callable[[], bool] | None = None) -> Any:
        """Ask the process and wait for its answer."""
        child = self._child
        if child is None or self._lost is not None:
            raise self._lost or DeviceLost(self._name, "not open")
        try:
            child.channel.send(what, argument)
            answer = child.channel.receive(wanted)
        except ConnectionError:
            answer = None
        if answer is None:
            self._lost = DeviceLost(self._name, f"its process {child.end()}")
            raise self._lost
        well, value, log = answer
        for level, text in log:
            logger.log(level, "%s", text)
        if not well:
            raise value
        return value

    def _kill(self) -> None:
        if self._child is not None:
            self._child.process.kill()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        if self._share is not None:
            self._share.leave()


class _Child:
    """A running process and the line to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        areas = Area(), Area()
        given = theirs.fileno(), lifeline, areas[0].fd, areas[1].fd
        self.channel = Channel(ours, areas[1], areas[0])
        self._said = ""
        path = "\x1f".join(sys.path)  # no path has that character
        try:
            self.process = subprocess.Popen(  # noqa: S603  # our own program
                [
                    sys.executable, *_interpreter_flags(), "-c", _PROGRAM,
                    *map(str, given), str(os.getpid()), path,
                ],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            self.channel.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)

    def end(self) -> str:
        """See that it has ended, and say how. Idempotent."""
        if self._said:
            return self._said
        self.channel.close()
        try:
            self.process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._lifeline)
        code = self.process.returncode
        self._said = f"ended with exit status {code}"
        if code < 0:
            with suppress(ValueError):
                self._said = f"was ended by {signal.Signals(-code).name}"
        return self._said


def _interpreter_flags() -> list[str]:
    flags: Any = getattr(subprocess, "_args_from_interpreter_flags", None)
    return [] if flags is None else flags()


def _unsendable(item: Any) -> InputError | None:
    try:
        pickle.dumps(item)
    except Exception as error:
        refused = InputError(
            f"this {type(item).__name__} cannot be sent to the driver's process: {error}"
        )
        refused.__cause__ = error
        return refused
    return None
