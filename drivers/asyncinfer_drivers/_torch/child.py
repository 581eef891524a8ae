"""The process of a driver with ``isolation="process"``: an engine that is told what to do.

It ends when its parent closes the line between them, and with its parent however that ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from asyncinfer_drivers._shared.between import Between
from asyncinfer_drivers._shared.worker import as_exception, portable
from asyncinfer_drivers._torch.channel import Channel, Unloadable
from asyncinfer_drivers._torch.engine import Engine, EngineChores
from asyncinfer_drivers._torch.mainprogram import MAIN, MainProgram
from asyncinfer_drivers._torch.options import TorchOptions
from asyncinfer_drivers._torch.wire import Area, Pickled, packed

__all__ = ("Order", "main")

#: prctl(2): the signal to get when the thread that started this process ends
_PR_SET_PDEATHSIG = 1


class Order(NamedTuple):
    """What to know before loading."""

    #: where to find what the main program has defined, as ``multiprocessing`` puts it
    program: dict[str, Any]
    #: intra-op threads, and as many as they may be; ``None`` on an accelerator
    threads: tuple[int, int] | None
    #: of the log
    level: int


def main(line: int, lifeline: int, inbox: int, outbox: int, parent: int) -> NoReturn:
    """Serve the parent; the arguments are open files and the parent's process id."""
    _die_with(parent, lifeline)
    os.dup2(2, 1)  # what a model prints goes to standard error: standard output is the program's
    status = 1
    try:
        with suppress(ConnectionError), socket.socket(fileno=line) as connection:
            _serve(Channel(connection, Area(inbox), Area(outbox)))
        status = 0
    except BaseException:
        traceback.print_exc()  # the parent can only say that this process has ended
    finally:
        sys.stderr.flush()
        os._exit(status)  # there is nothing to tidy up, and torch's threads would take their time


def _die_with(parent: int, lifeline: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent was gone before that was set
        os._exit(1)

    def watch() -> None:
        os.read(lifeline, 1)  # nothing is ever written: it ends with the parent
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(channel: Channel) -> None:
    server = _Server(channel)
    while True:
        if server.between.needed:
            server.between.fill(channel.ready, lambda: not channel.open())
        if not _exchange(channel, server):
            return


def _exchange(channel: Channel, server: _Server) -> bool:
    """Answer one request, and keep nothing of it; whether there was one."""
    try:
        request = channel.receive()
    except Unloadable as error:
        well, answer = False, error
    else:
        if request is None:
            return False
        well, answer = server.answer(*request)
    news, log = server.news(), server.log.taken()
    try:
        pickled = Pickled.of((well, answer, log, news))
    except Exception as error:
        pickled = Pickled.of((*_unsendable(well, answer, error), log, news))
    try:
        channel.post(pickled)
    except MemoryError as error:
        channel.send(False, error, [], None)
    return True


def _unsendable(well: bool, answer: Any, error: Exception) -> tuple[bool, Any]:
    """An answer that cannot be pickled, with an error instead of each part that is to blame."""
    if not isinstance(answer, list):
        return False, RuntimeError(f"the answer cannot leave its process: {error}")
    return well, [_sendable(output) for output in answer]


def _sendable(output: Any) -> Any:
    """The output, or why it cannot be sent."""
    try:
        Pickled.of(output)
    except Exception as error:
        name, why = type(output).__name__, f"{type(error).__name__}: {error}"
        return TypeError(
            f"an output of type {name} cannot leave its process: return plain data ({why[:300]})"
        )
    return output


class _Share:
    """This driver's share of the cores, as its parent says with each batch."""

    threads = 1
    most = 1

    def take(self, due: tuple[int, int]) -> None:
        """What the parent says."""
        self.threads, self.most = due


class _Server:
    """Does what it is asked: each ``_do_x`` answers a request ``x``. Tries things between them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._main = MainProgram({})
        self._share: _Share | None = None
        self._engine: Engine | None = None
        #: what it does while no request is there
        self.between = Between(EngineChores(lambda: self._engine))
        #: what the parent knows of the engine
        self._known: tuple[int, dict[str, str | float]] | None = None
        self.log = _Log()
        logger = logging.getLogger("asyncinfer.torch")
        logger.addHandler(self.log)
        logger.propagate = False

    def answer(self, what: str, argument: Any) -> tuple[bool, Any]:
        """True and the value, or false and the error."""
        try:
            return True, getattr(self, f"_do_{what}")(argument)
        except BaseException as error:
            return False, portable(as_exception(error))

    def news(self) -> tuple[int, dict[str, str | float]] | None:
        """The engine's size of batches and details, if they are no longer what they were."""
        if self._engine is None or self._engine.runner is None:
            return None
        now = self._engine.max_batch, self._engine.details
        if now == self._known:
            return None
        self._known = now
        return now

    def _do_prepare(self, order: Order) -> None:
        logging.getLogger("asyncinfer.torch").setLevel(order.level)
        self._main = MainProgram(order.program)
        self._channel.main = self._main.find
        if order.threads is not None:
            self._share = _Share()
            self._share.take(order.threads)

    def _do_inquire(self, _: None) -> bool:
        """Whether there is more to find out; ``news`` tells what was found."""
        return self.between.needed

    def _do_load(self, options: TorchOptions) -> Any:
        self._channel.forget_received()  # the model
        if any(_of_main(option) for option in (options.model, *options.steps)):
            self._main.load()
        engine = self._engine = Engine(
            options,
            self._share,
            pause=time.sleep,
            wanted=self._channel.open,
            going=self._channel.open,
        )
        engine.load()
        return engine.warmup

    def _do_run(self, argument: tuple[tuple[int, int] | None, bool, Sequence[Any]]) -> Any:
        due, real, batch = argument
        if self._share is not None and due is not None:
            self._share.take(due)
        outputs = self._loaded().run(batch, real=real)
        return packed([portable(o) if isinstance(o, Exception) else o for o in outputs])

    def _do_tune(self, argument: None) -> None:
        self._loaded().tune()

    def _do_reset(self, argument: None) -> None:
        self._loaded().reset()

    def _do_probe(self, argument: None) -> None:
        runner = self._loaded().runner
        assert runner is not None  # noqa: S101  # it was loaded
        runner.probe()

    def _loaded(self) -> Engine:
        assert self._engine is not None  # noqa: S101  # the parent loads first
        return self._engine


def _of_main(option: Any) -> bool:
    """Whether it is the name of something that the main program has defined."""
    return isinstance(option, str) and option.partition(":")[0] in MAIN


class _Log(logging.Handler):
    """Keeps what is logged, for the parent to log."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        """What was logged since the last time."""
        records, self._records = self._records, []
        return records
