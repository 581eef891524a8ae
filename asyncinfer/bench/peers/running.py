"""One peer while it runs: started, loaded, and ended with all that belongs to it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asyncinfer.bench.peers.client import BadReply, HttpClient
from asyncinfer.bench.peers.loads import Load, closed_loop, open_loop
from asyncinfer.bench.peers.peer import SCRIPTS, Peer
from asyncinfer.bench.peers.processes import TOKEN, Family

__all__ = ("PeerFailed", "Running", "started")

#: bytes of one reply of a script, which holds all latencies of a load
_LINE = 1 << 26
#: seconds beyond a load's own that a script's reply may take
_GRACE = 30.0
#: seconds that a peer gets to end by SIGTERM, then by SIGKILL
_TERM, _KILL = 1.0, 3.0

#: equal for all. glibc gives large tensors' memory back after each batch unless told otherwise
_SETTINGS = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": str(SCRIPTS),
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "MOSEC_ADDRESS": "127.0.0.1",
}


class PeerFailed(Exception):
    """A peer did not start, or ended while it was measured; the text is its last line."""


@dataclass
class Running:
    """A peer that answers."""

    peer: Peer
    process: asyncio.subprocess.Process
    family: Family
    #: what it printed
    log: Path
    labels: Sequence[int]
    #: sends requests to a server; ``None`` if the peer's script loads itself
    client: HttpClient | None
    #: seconds from its start to the first right answer
    startup: float = 0.0
    #: versions of its packages
    versions: dict[str, str] = field(default_factory=dict)

    async def closed_loop(self, *, in_flight: int, seconds: float) -> Load:
        """Keep that many images under way for so long. Raises ``PeerFailed``."""
        if self.client is None:
            return await self._order(seconds, load="closed", in_flight=in_flight, seconds=seconds)
        load = await closed_loop(self.client, self.labels, in_flight=in_flight, seconds=seconds)
        return self._checked(load)

    async def open_loop(self, arrivals: Sequence[float]) -> Load:
        """Images at their times. Raises ``PeerFailed``."""
        if self.client is None:
            return await self._order(max(arrivals, default=0.0), load="open", arrivals=arrivals)
        return self._checked(await open_loop(self.client, self.labels, arrivals))

    async def stream(self, tasks: int) -> Load:
        """One ordered stream, if the peer has such a thing. Raises ``PeerFailed``."""
        return await self._order(_GRACE, load="stream", tasks=tasks)

    async def message(self, patience: float) -> dict[str, Any]:
        """The script's next line. Raises ``PeerFailed``."""
        assert self.process.stdout is not None  # noqa: S101  # a pipe
        try:
            async with asyncio.timeout(patience):
                line = await self.process.stdout.readline()
        except TimeoutError:
            raise self.failed(f"silent for {patience:.0f} s") from None
        if not line:
            await self.process.wait()
            raise self.failed("ended")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self.failed(f"said {line[:80]!r}") from None
        return message

    def failed(self, what: str) -> PeerFailed:
        """The error to raise, with the exit status and the last line it printed."""
        status = self.process.returncode
        what += "" if status is None else f" with status {status}"
        return PeerFailed(f"{self.peer.name} {what}: {_last_line(self.log)}")

    async def _order(self, expected: float, **order: Any) -> Load:
        assert self.process.stdin is not None  # noqa: S101  # a pipe
        with suppress(ConnectionError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            await self.process.stdin.drain()
        return Load(**(await self.message(expected + _GRACE))["load"])

    def _checked(self, load: Load) -> Load:
        if self.process.returncode is not None:
            raise self.failed("ended")
        return load


@asynccontextmanager
async def started(peer: Peer, folder: Path) -> AsyncIterator[Running]:
    """Start a peer on the files in ``folder``, and end it and its children on every way out.

    Raises ``PeerFailed`` unless it answers within ``peer.patience``.
    """
    port, token, log = _free_port(), secrets.token_hex(8), folder / "log.txt"
    begun = time.perf_counter()
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            peer.python,
            peer.path,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=_environment(folder, port, token),
            cwd=folder,
            limit=_LINE,
            start_new_session=True,
        )
    family, farewell = Family(process.pid, token), 0.0
    try:
        requests, labels = _requests(folder, peer.request)
        client = HttpClient(port, requests) if peer.request else None
        running = Running(peer, process, family, log, labels, client)
        running.versions = (await running.message(peer.patience))["versions"]
        if client is not None:
            await _answering(running, client, begun + peer.patience)
        running.startup = time.perf_counter() - begun
        yield running
        farewell = peer.farewell
        if client is not None:
            client.close()
    finally:
        await _end(process, family, farewell)


def _environment(folder: Path, port: int, token: str) -> dict[str, str]:
    own = {
        "ASYNCINFER_PEER_FOLDER": str(folder),
        "ASYNCINFER_PEER_PORT": str(port),
        "MOSEC_PORT": str(port),
        "TMPDIR": str(folder),
        TOKEN: token,
    }
    return {**os.environ, **_SETTINGS, **own}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _requests(
    folder: Path, request: Callable[[bytes], bytes] | None
) -> tuple[list[bytes], list[int]]:
    """The images as requests, and their labels."""
    labels: list[int] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["labels"]
    data = (folder / "images.bin").read_bytes()
    size = len(data) // len(labels)
    images = [data[start : start + size] for start in range(0, len(data), size)]
    return [request(image) for image in images] if request else [], labels


async def _answering(running: Running, client: HttpClient, deadline: float) -> None:
    """Ask until the first right answer."""
    while True:
        problem = "answers wrongly"
        try:
            async with asyncio.timeout_at(_loop_time(deadline)):
                if await client(0) == running.labels[0]:
                    return
        except (OSError, BadReply, ValueError, KeyError, TimeoutError) as error:
            problem = f"does not answer ({type(error).__name__}: {error})".replace(": )", ")")
        if running.process.returncode is not None:
            raise running.failed("ended")
        if time.perf_counter() > deadline:
            raise running.failed(problem)
        await asyncio.sleep(0.05)


def _loop_time(deadline: float) -> float:
    return asyncio.get_running_loop().time() + deadline - time.perf_counter()


async def _end(process: asyncio.subprocess.Process, family: Family, farewell: float) -> None:
    """Ask, then SIGTERM, then SIGKILL; returns when none of its processes is left."""
    family.look()
    if process.stdin is not None:
        process.stdin.close()
    if await _gone(process, family, farewell):
        return
    for number, patience in ((signal.SIGTERM, _TERM), (signal.SIGKILL, _KILL)):
        family.send(number)
        if await _gone(process, family, patience):
            return


async def _gone(process: asyncio.subprocess.Process, family: Family, patience: float) -> bool:
    deadline = time.perf_counter() + patience
    while True:
        if process.returncode is not None and not family.look():
            return True
        if time.perf_counter() >= deadline:
            return False
        await asyncio.sleep(0.05)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no output")
