"""``LocalServerDriver``: a second process on this host that stands for another host."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from asyncinfer.errors import ConfigError, DeviceError, DeviceLost, DeviceTimeout
from asyncinfer.registry import load_model, model_names
from asyncinfer_drivers._shared.options import StepOptions, takes, values
from asyncinfer_drivers._shared.process import dies_with_us
from asyncinfer_drivers._shared.sharing import SharingOptions
from asyncinfer_drivers.open_inference.access import Address
from asyncinfer_drivers.open_inference.driver import OpenInferenceDriver
from asyncinfer_drivers.open_inference.faults import one_line
from asyncinfer_drivers.open_inference.session import Limits

__all__ = ("LocalServerDriver", "LocalServerOptions")

_HOST = "127.0.0.1"
#: files of the server
_CONFIG, _PORTS, _LOG = "serve.toml", "ports.json", "log"
#: seconds between two checks whether the server is ready
_POLL_SECONDS = 0.02
#: exit status of ``asyncinfer`` for wrong arguments or a wrong config
_MISUSED = 2


@dataclass(frozen=True, kw_only=True)
class LocalServerOptions(Limits, StepOptions, SharingOptions):
    """What ``LocalServerDriver`` takes."""

    #: a built-in model, a ``.pt2`` file or ``module:factory``. Only the model runs there: the steps
    #: around it run here, as for any server
    model: str = field(kw_only=False)
    #: the device's name
    name: str = "local server"
    #: ``"grpc"`` or ``"http"``
    protocol: str = "grpc"
    #: how many times longer than this host the server takes for a call
    slowdown: float = 1.0
    #: that the server computes with
    threads: int = 1
    #: as for ``TorchOptions``
    optimize: str = "none"
    #: tasks that go in one request at most
    max_batch: int = 1
    #: requests under way at once
    concurrency: int = 1
    #: of one input, without the batch, -1 for any size; a built-in model has its own
    input_shape: Sequence[int] | None = None
    #: seconds until the server must be ready
    start_timeout: float = 60.0


class LocalServerDriver(OpenInferenceDriver):
    """An ``OpenInferenceDriver`` with a server of its own on this host, from ``open`` to ``close``.

    ``open`` starts ``asyncinfer serve`` on ports that are free, with one torch device, and waits
    until it is ready; opening again after it died starts another one. It ends with ``close``, and
    with this process. Its arguments are the fields of ``LocalServerOptions``.
    """

    #: ``asyncinfer.config`` passes the model's name
    model_from: ClassVar[str] = "name"

    @takes(LocalServerOptions)
    def __init__(self, options: LocalServerOptions) -> None:
        name, model, shape = options.name, options.model, options.input_shape
        super().__init__(
            f"{_HOST}:1",
            model,
            name=name,
            protocol=options.protocol,
            max_batch=options.max_batch,
            concurrency=options.concurrency,
            **values(options, StepOptions),
            **values(options, SharingOptions),
            **values(options, Limits),
        )
        if shape is None:
            if model not in model_names():
                raise ConfigError(f"{name}: the input of {model!r} is not known: give input_shape")
            shape = getattr(load_model(model), "shape", None)
        self._table = {
            "device": "cpu",
            "model": model,
            "threads": options.threads,
            "slowdown": float(options.slowdown),
            "optimize": options.optimize,
            "max_batch": options.max_batch,
        }
        self._input_shape = shape
        self._start_timeout = options.start_timeout
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: asyncio.subprocess.Process | None = None
        #: what the server said when it was ready: ``pid``, ports; empty while there is none
        self.server: Mapping[str, Any] = {}

    async def open(self) -> None:
        """Start the server, unless it runs, and connect to it.

        Raises ``ConfigError`` with the server's own words if it cannot serve the model.
        """
        if self._process is not None and self._process.returncode is None and self.server:
            return await super().open()
        await self.close()
        try:
            await self._start()
            await super().open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Disconnect, and end the server. Idempotent."""
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        self.server = {}
        ending = asyncio.ensure_future(_end(process, folder))
        try:
            await super().close()
        finally:
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                await ending
                raise

    async def _start(self) -> None:
        folder = self._folder = tempfile.TemporaryDirectory(prefix="asyncinfer-serve-")
        files = Path(folder.name)
        log = self._prepared(files)
        command = [sys.executable, "-m", "asyncinfer", "serve", "--host", _HOST]
        command += ["--http-port", "0", "--grpc-port", "0"]
        command += ["--config", str(files / _CONFIG), "--ports-file", str(files / _PORTS)]
        command += ["--allow-code"]  # what this driver was given may be run
        try:
            process = await asyncio.create_subprocess_exec(
                *dies_with_us(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this program
            )
        finally:
            os.close(log)
        if self._folder is not folder:
            await _end(process, None)
            raise DeviceLost(self.name, "closed while it was opening")
        self._process = process
        server = await self._ready(process, files)
        port = server[f"{self._address.protocol}_port"]
        self._address = Address.parse(f"{_HOST}:{port}", self._address.protocol, False)
        self._model = server["models"][0], ""
        self.server = server

    async def _ready(self, process: asyncio.subprocess.Process, files: Path) -> Mapping[str, Any]:
        """Wait for the file with the ports, which the server writes as a whole."""
        deadline = time.monotonic() + self._start_timeout
        while self._process is process and time.monotonic() < deadline:
            if (server := _said(files)) is not None:
                return server
            if process.returncode is not None:
                raise self._not_started(process.returncode, files)
            await asyncio.sleep(_POLL_SECONDS)
        if self._process is not process:
            raise DeviceLost(self.name, "closed while it was opening")
        text = f"its server is not ready after {self._start_timeout:g} s"
        raise DeviceTimeout(self.name, text)

    def _not_started(self, status: int, files: Path) -> ConfigError | DeviceError:
        lines = (files / _LOG).read_text(errors="replace").strip().splitlines()
        said = one_line(lines[-1] if lines else "it said nothing").removeprefix("error: ")
        if status == _MISUSED:
            return ConfigError(f"{self.name}: {said}")
        return DeviceLost(self.name, f"its server ended with exit status {status}: {said}")

    def _prepared(self, files: Path) -> int:
        """Write the server's config; return the open log."""
        (files / _CONFIG).write_text(self._config(), encoding="utf-8")
        return os.open(files / _LOG, os.O_WRONLY | os.O_CREAT, 0o600)

    def _config(self) -> str:
        """A TOML file; a JSON text or number is one in TOML too."""
        lines = ["[[device]]", 'driver = "torch"', f"name = {json.dumps(self.name)}"]
        lines += ["[device.options]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self._table.items()]
        if self._input_shape is not None:
            lines.append(f"[serve.models.{json.dumps(self._table['model'])}]")
            lines.append(f"shape = {json.dumps(list(self._input_shape))}")
        return "\n".join(lines) + "\n"


def _said(files: Path) -> Mapping[str, Any] | None:
    """Where the server listens, once it has said so."""
    try:
        server: Mapping[str, Any] = json.loads((files / _PORTS).read_bytes())
    except FileNotFoundError:
        return None
    return server


async def _end(
    process: asyncio.subprocess.Process | None, folder: tempfile.TemporaryDirectory[str] | None
) -> None:
    """Kill the process, wait for it, remove its files."""
    if process is not None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if folder is not None:
        folder.cleanup()
