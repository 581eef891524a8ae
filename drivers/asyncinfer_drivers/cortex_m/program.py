"""A program beside this one, started and awaited in a thread so that the event loop goes on."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress

from asyncinfer_drivers._shared.process import dies_with_us

__all__ = ("Program",)

#: most bytes kept of what it says
_KEPT_BYTES = 65_536


class Program:
    """Runs a command with a thread of its own, from its start to its end.

    Starting a process takes long where this one is large. The kernel ends the program with the
    thread that started it, so that thread stays.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        #: what it has said, as far as that is kept
        self.said = b""
        self._command = dies_with_us(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted = False
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._end: asyncio.Future[None] = self._loop.create_future()
        threading.Thread(target=self._live, name=f"asyncinfer {name}", daemon=True).start()

    @property
    def running(self) -> bool:
        """Whether it has not ended, stopped or not."""
        return not self._end.done()

    @property
    def pid(self) -> int | None:
        """Its number, once it has been started."""
        return None if self._process is None else self._process.pid

    async def find(self, pattern: re.Pattern[bytes]) -> bytes | None:
        """Wait until it has said a line that matches; return the first group, or that it ended."""
        while True:
            self._news.clear()
            if found := pattern.search(self.said):
                return found[1]
            if not self.running:
                return None
            await self._news.wait()

    async def wait(self) -> None:
        """Wait until it ends by itself. Raises ``OSError`` if it could not be started."""
        await asyncio.shield(self._end)

    async def kill(self) -> None:
        """End it, and wait for that."""
        with self._lock:
            self._unwanted = True
            if self._process is not None:
                self._process.kill()
        with suppress(OSError):
            await self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        with self._lock:
            if self._process is not None:
                self._process.send_signal(number)

    # ---- in the thread

    def _live(self) -> None:
        error: OSError | None = None
        try:
            with subprocess.Popen(  # noqa: S603  # what our own driver asks for
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this program
            ) as process:
                with self._lock:
                    self._process = process
                    if self._unwanted:
                        process.kill()
                for line in process.stdout or ():
                    self._tell(line)
        except OSError as caught:
            error = caught
        self._tell(b"", ended=True, error=error)

    def _tell(self, line: bytes, *, ended: bool = False, error: OSError | None = None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know
            self._loop.call_soon_threadsafe(self._hear, line, ended, error)

    def _hear(self, line: bytes, ended: bool, error: OSError | None) -> None:
        self.said = (self.said + line)[:_KEPT_BYTES]
        if ended and error is None:
            self._end.set_result(None)
        elif error is not None:
            self._end.set_exception(error)
            self._end.exception()  # marks an error as seen, should nobody wait
        self._news.set()
