"""An engine in a process of its own: its crash is a lost device, and what hangs can be ended."""

from __future__ import annotations

import copy
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from asyncinfer.errors import ConfigError, DeviceLost, InputError
from asyncinfer_drivers._shared.between import Between
from asyncinfer_drivers._shared.worker import Worker
from asyncinfer_drivers._torch.channel import Channel, Unloadable
from asyncinfer_drivers._torch.child import Order
from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.engine import Engine, claim
from asyncinfer_drivers._torch.mainprogram import described, importing
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.threads import CoreShare
from asyncinfer_drivers._torch.wire import Area, Pickled, packed

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
#: an answer here may differ from one there by this many times what a faster form may
_SLACK = 4.0
#: options that are sent to the process, and what is to be given instead of what cannot be
_SENT = {
    "preprocess": "name it as 'module:function'",
    "postprocess": "name it as 'module:function'",
    "collate": "name it as 'module:function'",
    "uncollate": "name it as 'module:function'",
    "warmup_input": "give plain data: tensors, arrays, numbers, text, lists or dicts",
    "model": "give 'module:function' that makes it, a .pt2 or TorchScript file of it, or a name",
}


class ProcessHost:
    """An engine in a process; see ``Host``. One thread waits for its answers.

    The process is started by that thread and ends with it: on Linux the system sees to that, and
    everywhere a pipe that closes with this program.
    """

    def __init__(self, options: TorchOptions) -> None:
        if os.name != "posix":
            raise ConfigError("isolation='process' needs Linux or macOS")
        if importing():
            raise ConfigError(
                f"{options.called}: a driver with isolation='process' is opened while its process "
                "imports the main program: put what runs under if __name__ == '__main__':"
            )
        self._options = options
        self._name = options.called
        self._share: CoreShare | None = None
        self._child: _Child | None = None
        self._lost: DeviceLost | None = None
        #: whether the module's answers there were seen to be those it gives here, as far as needed
        self._proven = False
        #: how they were seen to differ
        self._unlike = ""
        #: whether the process may still find something, as far as known
        self._seeking = False
        self.worker = Worker(self._name, at_end=self._end, between=Between(_Inquiry(self)))
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
        self.warmup = await self.worker.run(self._load)
        self.opened = True

    async def run(self, batch: Sequence[Any]) -> list[Any]:
        """As ``Runner.run``; an input that cannot be pickled is an ``InputError``."""
        return await self.worker.run(self._run if self._proven else self._run_proving, batch)

    async def probe(self) -> None:
        """As ``Runner.probe``."""
        await self.worker.run(self._ask, "probe", None)

    async def reset(self) -> None:
        """As ``Engine.reset``."""
        await self.worker.run(self._ask, "reset", None)

    async def tune(self) -> None:
        """See ``TorchDriver.tune``."""
        await self.worker.run(self._ask, "tune", None)

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

    @property
    def seeking(self) -> bool:
        """Whether the process may still find something faster between its calls."""
        return self._seeking and self._lost is None

    def inquire(self) -> None:
        """Ask what it has found: a device at rest gets no call whose answer would tell."""
        more = False
        with suppress(Exception):  # the next call is told what is wrong
            more = self._ask("inquire", None)
        self._seeking = more

    def _load(self) -> Any:
        request = self._request()
        self._share = claim(self._options)
        child = self._child = _Child()
        self._ask("prepare", Order(described(), self._due(), logger.getEffectiveLevel()))
        try:
            loaded = self._exchange(request, self.worker.wanted)
        except Unloadable as error:
            raise ConfigError(
                f"{self._name}: isolation='process' cannot make the model, a step or the warm-up "
                f"input in its process: {error}"
            ) from error
        child.channel.forget_sent()
        options = self._options
        sent = isinstance(options.model, nn.Module) and not options.stateful
        self._proven = (
            not sent or self._share is None
        )  # on an accelerator it takes as much memory again
        if loaded is not None and not self._proven:
            self._prove(loaded, self._run([loaded]))
        return loaded

    def _run_proving(self, batch: Sequence[Any]) -> list[Any]:
        """Run the first real inputs, as there is no warm-up input, and compare one's answer."""
        if self._unlike:
            raise self._lost_in_pickling()
        answers = self._run(batch)
        pairs = zip(batch, answers, strict=True)
        good = ((item, answer) for item, answer in pairs if not isinstance(answer, BaseException))
        for item, answer in good:
            item = copy.deepcopy(item)  # the steps may change it
            self._prove(item, [answer] if len(batch) == 1 else self._run([item]))
            break
        return answers

    def _prove(self, item: Any, theirs: list[Any]) -> None:
        """Raise ``ConfigError`` if a module answers otherwise in its process than it does here.

        Some note in the process that makes them what they can do, and pickling leaves that out.
        """
        options = self._options
        here = Engine(
            replace(options, optimize="none", malloc="none", max_batch=1, slowdown=1.0),
            self._share,
            pause=self.worker.pause,
            wanted=self.worker.wanted,
        )
        try:
            here.load()
            assert here.runner is not None  # noqa: S101  # it was loaded
            ours = here.runner.run([item])
            text = difference(ours, theirs, _SLACK)
            again = here.runner.run([item]) if text else ours
        finally:
            here.release()
        self._proven = not text or bool(difference(ours, again))
        if not self._proven:
            self._unlike = text
            raise self._lost_in_pickling()

    def _lost_in_pickling(self) -> ConfigError:
        return ConfigError(
            f"{self._name}: the model answers otherwise in its process than here ({self._unlike}), "
            "as something is lost when it is pickled: give a function that makes it, or "
            "'module:function'"
        )

    def _request(self) -> Pickled:
        """The request to load; ``ConfigError`` names the option that cannot be sent."""
        try:
            return Pickled.of(("load", self._options), views=True)
        except Exception as error:
            name = next((name for name in _SENT if not self._sendable(name)), "model")
            raise ConfigError(
                f"{self._name}: isolation='process' cannot send its {name} to its process: "
                f"{_first_line(error)}; {_SENT[name]}"
            ) from error

    def _sendable(self, option: str) -> bool:
        try:
            Pickled.of(getattr(self._options, option))
        except Exception:
            return False
        return True

    def _run(self, batch: Sequence[Any]) -> list[Any]:
        try:
            request = self._batch(batch)
        except Exception:
            return self._run_sendable(batch)
        try:
            answers: list[Any] = self._exchange(request)
            return answers
        except Unloadable as error:
            if len(batch) > 1:
                return [self._run([item])[0] for item in batch]
            return [InputError(f"the input or output cannot pass between the processes: {error}")]

    def _run_sendable(self, batch: Sequence[Any]) -> list[Any]:
        """Run what can be pickled; an error in the place of the rest."""
        outputs = [_unsendable(item) for item in batch]
        good = [item for item, output in zip(batch, outputs, strict=True) if output is None]
        rest = iter(self._run(good) if good else ())
        return [next(rest) if output is None else output for output in outputs]

    def _batch(self, batch: Sequence[Any]) -> Pickled:
        real = not batch or batch[0] is not self.warmup
        return Pickled.of(("run", (self._due(), real, packed(batch))))

    def _due(self) -> tuple[int, int] | None:
        """The threads it is due, and as many as they may be."""
        return None if self._share is None else (self._share.threads, self._share.most)

    def _ask(self, what: str, argument: Any) -> Any:
        """Ask the process and wait for its answer."""
        return self._exchange(Pickled.of((what, argument)))

    def _exchange(self, request: Pickled, wanted: Callable[[], bool] | None = None) -> Any:
        child = self._child
        if child is None or self._lost is not None:
            raise self._lost or DeviceLost(self._name, "not open")
        try:
            child.channel.post(request)
            answer = child.channel.receive(wanted)
        except ConnectionError:
            answer = None
        except MemoryError as error:
            raise DeviceLost(self._name, str(error)) from error
        if answer is None:
            self._lost = DeviceLost(self._name, f"its process {child.end()}")
            raise self._lost
        well, value, log, news = answer
        self._seeking = True
        if news is not None:
            self.max_batch, details = news
            self.details = {**details, "isolation": "process"}
        for level, text in log:
            logger.log(level, "%s", text)
        if not well:
            raise DeviceLost(self._name, str(value)) if isinstance(value, MemoryError) else value
        return value

    def _kill(self) -> None:
        if self._child is not None:
            self._child.process.kill()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
        if self._share is not None:
            self._share.leave()


class _Inquiry:
    """Asks a process now and then what it has found, while that has no calls."""

    #: it is nobody's time but the process's: so there is a pause of 0.2 s before each question
    worked = 0.0

    def __init__(self, host: ProcessHost) -> None:
        self._host = host

    @property
    def waiting(self) -> bool:
        """Whether the process still seeks."""
        return self._host.seeking

    def step(self) -> bool:
        """Ask; that is no work after which the next step should follow at once."""
        self._host.inquire()
        return False


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
        Pickled.of(item)
    except Exception as error:
        refused = InputError(
            f"this {type(item).__name__} cannot be sent to the driver's process: "
            f"{_first_line(error)}; {_SENT['warmup_input']}"
        )
        refused.__cause__ = error
        return refused
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
