"""The whole server: both transports over one core, from its start to its drained end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncinfer.errors import ConfigError
from asyncinfer.serve.core import Core
from asyncinfer.serve.http.routes import application
from asyncinfer.serve.http.server import HttpServer
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.rpc.server import RpcServer
from asyncinfer.serve.security import Security
from asyncinfer.serve.served import Served
from asyncinfer.serve.setup import limits_of, models_of, name_of

__all__ = ("Address", "Server", "limits_of", "models_of", "name_of", "run", "serving")

#: seconds a transport may take to end once nothing is in work
_GRACE = 1.0
#: seconds between two looks of a thread at whether it should let another one run: the models'
#: threads ask for their turn after each operation, and the event loop does not sleep under load
_SWITCH = 0.0002


@dataclass(frozen=True)
class Address:
    """Where to listen; port 0 stands for a free one."""

    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    security: Security = field(default_factory=Security)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    core: Core
    host: str
    http_port: int
    grpc_port: int

    def facts(self) -> dict[str, Any]:
        """Where it listens and what it serves."""
        return {
            "pid": os.getpid(),
            "host": self.host,
            "http_port": self.http_port,
            "grpc_port": self.grpc_port,
            "models": list(self.core.models),
        }


@asynccontextmanager
async def serving(
    models: Iterable[Served],
    address: Address,
    limits: Limits | None = None,
    *,
    name: str = "asyncinfer",
) -> AsyncIterator[Server]:
    """A server that listens inside, and is not ready before its models are open.

    Leaving it ends what is in work: call ``core.drain`` first to let it finish.
    """
    core = Core(models, limits or Limits(), name)
    async with AsyncExitStack() as stack:
        lag = asyncio.create_task(core.metrics.watch_lag(), name="asyncinfer lag")
        stack.push_async_callback(_ended, lag)
        listening = stack.enter_context(_listen(address.host, address.http_port))
        app = application(core, address.security)
        http = HttpServer(app, listening, core.limits, address.security)
        stack.push_async_callback(http.stop)
        await http.start()
        rpc = RpcServer(core, address.security)
        stack.push_async_callback(rpc.stop, _GRACE)
        grpc_port = await rpc.start(address.host, address.grpc_port)
        await stack.enter_async_context(core)
        yield Server(core, address.host, listening.getsockname()[1], grpc_port)


async def run(
    models: Iterable[Served],
    address: Address,
    limits: Limits,
    *,
    drain_timeout: float,
    ports_file: Path | None = None,
    name: str = "asyncinfer",
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends it at once."""
    sys.setswitchinterval(_SWITCH)  # the models' threads hold up the event loop less
    signals = _Signals()
    with signals:
        try:
            async with serving(models, address, limits, name=name) as server:
                _tell(server, ports_file)
                await signals.first()
                print("draining", file=sys.stderr, flush=True)
                drained = await _drained(server.core, drain_timeout, signals)
                return server.facts() | server.core.totals() | {"drained": drained}
        except asyncio.CancelledError:
            if not signals.count:
                raise
            return {"models": [], "requests": 0, "failed": 0, "rows": 0, "drained": True}


class _Signals:
    """SIGTERM and SIGINT, which cancel the task that waits for none of them yet."""

    def __init__(self) -> None:
        self.count = 0
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._events = (asyncio.Event(), asyncio.Event())

    async def first(self) -> None:
        """Wait for the first; until then it is no reason to stop whatever was going on."""
        self._task = None
        await self._events[0].wait()

    async def second(self) -> None:
        """Wait for the second."""
        await self._events[1].wait()

    def _note(self) -> None:
        self.count += 1
        for event in self._events[: self.count]:
            event.set()
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note)

    def __exit__(self, *exc_info: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _tell(server: Server, ports_file: Path | None) -> None:
    """Say that the server is ready: to people, and to who waits for the file."""
    names = ", ".join(server.core.models)
    host = f"[{server.host}]" if ":" in server.host else server.host
    where = f"http {host}:{server.http_port} and grpc {host}:{server.grpc_port}"
    print(f"serving {names} on {where}", file=sys.stderr, flush=True)
    if ports_file is not None:
        _write(ports_file, json.dumps(server.facts()))


async def _drained(core: Core, timeout: float, signals: _Signals) -> bool:
    """Whether all accepted work was finished in time, and before a second signal."""
    draining = asyncio.create_task(core.drain(timeout))
    impatient = asyncio.create_task(signals.second())
    await asyncio.wait((draining, impatient), return_when=asyncio.FIRST_COMPLETED)
    drained = draining.done() and draining.result()
    await _ended(draining)
    await _ended(impatient)
    return drained


async def _ended(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} for HTTP: {error.strerror or error}; "
            "choose another --http-port, or 0 for a free one"
        ) from error


def _write(path: Path, text: str) -> None:
    """Write the file as a whole: who finds it finds all of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)
