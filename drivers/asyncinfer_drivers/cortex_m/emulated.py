"""A Cortex-M4 board in QEMU: its port, and what can happen to it.

    async with EmulatedCortexM4("digits.elf") as board:
        async with Dispatcher([CortexM4Driver(board.port)]) as dispatcher:
            ...

The firmware is the one of the real board, bit for bit in its results. Its speed is this host's:
QEMU is no model of the chip's timing.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer_drivers._shared.checking import check
from asyncinfer_drivers.cortex_m.emulated_memory import lacking_memory
from asyncinfer_drivers.cortex_m.image import check_image
from asyncinfer_drivers.cortex_m.program import Program
from asyncinfer_drivers.cortex_m.proxy import Faults, SerialProxy

__all__ = ("BOARDS", "EmulatedCortexM4", "missing_emulator")

#: QEMU's machine for each board of the firmware
BOARDS = {"stm32f405": "netduinoplus2", "mps2_an386": "mps2-an386"}

_QEMU = "qemu-system-arm"
_REMEDY = "apt-get install qemu-system-arm (Debian, Ubuntu) or brew install qemu"
#: of its ``-icount``, which can also write files
_ICOUNT = re.compile(r"(shift=)?(auto|\d{1,2})(,(align|sleep)=(on|off))*")
_PTY = re.compile(rb"redirected to (\S+)")
#: seconds QEMU gets to start
_START = 20.0


def missing_emulator() -> str | None:
    """What to install so that boards can be emulated; ``None`` if all is there."""
    if shutil.which(_QEMU):
        return None
    return f"the emulated board needs {_QEMU}: {_REMEDY}"


class EmulatedCortexM4:
    """Runs a firmware in QEMU while ``async with`` lasts; no process outlives it.

    :param elf: the firmware.
    :param board: one of ``BOARDS``.
    :param baudrate: paces the line as a real one of this speed; ``None``: as fast as QEMU reads.
    :param faults: what happens to bytes on the line. With a baud rate or faults, the line can be
        cut and plugged in again.
    :param icount: counts instructions: ``3`` for one each 2**3 ns, or QEMU's
        ``shift=N,align=on,sleep=off``. Time on the board then is what its instructions take,
        and the same in each run.
    """

    def __init__(
        self,
        elf: str | Path,
        *,
        board: str = "stm32f405",
        baudrate: int | None = None,
        faults: Faults | None = None,
        icount: int | str | None = None,
    ) -> None:
        if board not in BOARDS:
            raise ConfigError(f"no emulator for board {board!r}; known: {', '.join(BOARDS)}")
        if icount is not None and not _ICOUNT.fullmatch(str(icount)):
            raise ConfigError(f"icount {icount!r}: write a number, or QEMU's shift=N,align=on")
        line = {"baudrate": baudrate, "faults": faults}
        check(EmulatedCortexM4.__init__, line, f"emulated {board}")
        self.elf, self.board, self.icount = Path(elf), board, icount
        self.baudrate, self.faults = baudrate, faults
        #: the line in between, while the board runs and if there is one
        self.proxy: SerialProxy | None = None
        self._process: Program | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def port(self) -> str:
        """What a driver opens: the same name however often the board starts."""
        return str(self._path("port"))

    @property
    def running(self) -> bool:
        """Whether QEMU runs, stopped or not."""
        return self._process is not None and self._process.running

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Power the board on; again after ``kill``. ``ConfigError`` says what is missing."""
        if self.running:
            return
        if missing := missing_emulator():
            raise ConfigError(missing)
        if not self.elf.is_file():
            raise ConfigError(f"no such firmware: {self.elf}")
        check_image(self.elf, self.board)
        lacking = await asyncio.to_thread(lacking_memory, self.elf, _QEMU, BOARDS[self.board])
        if lacking is not None:
            raise ConfigError(lacking)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(
                prefix="asyncinfer-", ignore_cleanup_errors=True
            )
        await self.kill()
        if self.baudrate is None and self.faults is None:
            await self._start_direct()
        else:
            await self._start_proxied()

    async def close(self) -> None:
        """Power off and leave nothing behind. Idempotent."""
        closing = asyncio.ensure_future(self._close())
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            await closing
            raise

    async def _close(self) -> None:
        await self.kill()
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.cleanup()

    async def kill(self) -> None:
        """Take the power away: the port hangs up. ``start`` powers on again."""
        process, self._process = self._process, None
        if process is not None:
            await process.kill()
        proxy, self.proxy = self.proxy, None
        if proxy is not None:
            await proxy.close()
        if self._folder is not None:
            self._path("port").unlink(missing_ok=True)

    async def wait(self) -> None:
        """Wait until QEMU ends by itself."""
        await self._running().wait()

    def stop(self) -> None:
        """Freeze the board: silence, but the port stays."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen board go on."""
        self._signal(signal.SIGCONT)

    async def reset(self) -> None:
        """Press the reset button: memory that survives a reset does."""
        self._running()
        reader, writer = await asyncio.open_unix_connection(self._path("monitor"))
        try:
            await reader.readuntil(b"(qemu) ")
            writer.write(b"system_reset\n")
            await reader.readuntil(b"(qemu) ")
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def cut(self) -> None:
        """Pull the plug of the line; the board goes on."""
        await self._line().cut()

    def replug(self) -> None:
        """Plug the line in again, at the same name."""
        self._line().replug()

    async def _start_direct(self) -> None:
        process = self._run("pty")
        self._path("port").symlink_to(await self._pseudo_terminal(process))

    async def _start_proxied(self) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path("line")))
            listener.listen(1)
            listener.setblocking(False)
            process = self._run(f"unix:{_option(self._path('line'))}")
            board = await self._accept(listener, process)
        self._path("line").unlink()
        self.proxy = SerialProxy(
            self._path("port"), board, baudrate=self.baudrate, faults=self.faults
        )
        self.proxy.replug()

    def _run(self, serial: str) -> Program:
        self._path("monitor").unlink(missing_ok=True)
        arguments = [_QEMU, "-M", BOARDS[self.board], "-nodefaults", "-display", "none"]
        arguments += ["-kernel", str(self.elf), "-serial", serial]
        arguments += ["-monitor", f"unix:{_option(self._path('monitor'))},server=on,wait=off"]
        if self.icount is not None:
            shift = f"shift={self.icount}" if isinstance(self.icount, int) else self.icount
            arguments += ["-icount", shift]
        self._process = Program(f"emulated {self.board}", arguments)
        return self._process

    async def _pseudo_terminal(self, process: Program) -> str:
        """The name QEMU gives to its end of the line."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_START):
                if name := await process.find(_PTY):
                    return name.decode()
        raise await self._failed(process)

    async def _accept(self, listener: socket.socket, process: Program) -> socket.socket:
        """QEMU's connection to ``listener``."""
        loop = asyncio.get_running_loop()
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        ended = asyncio.ensure_future(process.wait())
        try:
            await asyncio.wait(
                (accepting, ended), timeout=_START, return_when=asyncio.FIRST_COMPLETED
            )
            if accepting.done():
                return accepting.result()[0]
        finally:
            accepting.cancel()
            ended.cancel()
        raise await self._failed(process)

    async def _failed(self, process: Program) -> DeviceLost:
        await process.kill()
        text = " ".join(process.said.decode(errors="replace").split()) or "it said nothing"
        return DeviceLost(f"emulated {self.board}", f"{_QEMU} did not start: {text}")

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise DeviceLost(f"emulated {self.board}", "is not running")
        return Path(self._folder.name, name)

    def _running(self) -> Program:
        if self._process is None or not self._process.running:
            raise DeviceLost(f"emulated {self.board}", "is not running")
        return self._process

    def _signal(self, number: signal.Signals) -> None:
        self._running().signal(number)

    def _line(self) -> SerialProxy:
        self._running()
        if self.proxy is None:
            raise ConfigError(
                "only a line with a baud rate or faults can be cut: pass faults=Faults()"
            )
        return self.proxy


def _option(path: Path) -> str:
    """A path among QEMU's options, which a comma separates."""
    return str(path).replace(",", ",,")
