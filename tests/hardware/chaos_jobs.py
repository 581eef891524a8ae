"""Jobs of ``asyncinfer run --resume`` beside the stream: Ctrl-C at any moment, and a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

__all__ = ("Jobs",)

TASKS = 400
#: bytes of the small disk, and of what is on it: room for some rows, not for all
DISK, FILLED = 128 << 10, 100 << 10
#: how a process may end that gets Ctrl-C: before it listens, while it runs, or after it
ENDS = (-signal.SIGINT, 130, 0)


def before_us(said):
    """Whether Python's own start was interrupted, with status 1: no code of ours has run."""
    told = "KeyboardInterrupt" in said or "Fatal Python error: init_" in said
    return told and "asyncinfer" not in said


class Jobs:
    """Both of them, again and again until told to stop; each time the file has to be right."""

    def __init__(self, chance, note):
        self._chance, self._note = chance, note
        self.interrupted = self.disk_full = self.complete = 0
        self.problems = []
        self.over = asyncio.Event()

    async def run(self):
        for job in itertools.cycle((self._with_interrupts, self._with_a_full_disk)):
            if self.over.is_set():
                return
            await self._in_folder(job)

    async def _in_folder(self, job):
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            np.save(Path(folder, "x.npy"), np.arange(TASKS))
            await job(Path(folder))

    async def _with_interrupts(self, folder):
        output = folder / "rows.jsonl"
        while True:
            after = None if self.over.is_set() else self._chance.uniform(0.0, 4.0)
            status, said = await self._started(folder, output, after)
            if status not in ENDS and not before_us(said):
                self._wrong(f"a run with Ctrl-C ended with {status}: {said}")
                return
            if status == 0:
                break
            self.interrupted += 1
        self._check(output)

    async def _with_a_full_disk(self, folder):
        with _small_disk(folder / "disk") as (disk, limit):
            output, filler = disk / "rows.jsonl", disk / "filler"
            filler.write_bytes(bytes(FILLED))
            status, said = await self._started(folder, output, None, limit)
            told = [line for line in said.splitlines() if "error" in line]
            if status != 1 or len(told) != 1 or str(output) not in told[0]:
                self._wrong(f"a run on a full disk ended with {status}: {said!r}")
            filler.unlink()
            status, said = await self._started(folder, output, None)
            if status:
                self._wrong(f"with room on the disk a run ended with {status}: {said}")
            self._check(output)
            self.disk_full += 1

    async def _started(self, folder, output, after, limit=()):
        """Run it, with Ctrl-C after some seconds; its exit status and what it said."""
        command = ["-m", "asyncinfer", "run", "x.npy", "--resume", "--json"]
        command += ["--output", str(output), "--devices", "sim:0.01", "sim:0.03"]
        process = await asyncio.create_subprocess_exec(
            "nice", *limit, sys.executable, *command,
            cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            talking = asyncio.ensure_future(process.communicate())
            if after is not None:
                await asyncio.wait((talking,), timeout=after)
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGINT)
            _, said = await asyncio.wait_for(talking, 60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        return process.returncode, said.decode()

    def _check(self, output):
        found = [json.loads(line) for line in output.read_text().splitlines()]
        self.complete += 1
        if [(row["index"], row["output"]) for row in found] != [(n, n) for n in range(TASKS)]:
            self._wrong(f"{output.name}: {len(found)} rows, not each of {TASKS} once in order")
        self._note(f"a file is complete: {len(found)} rows")

    def _wrong(self, text):
        self.problems.append(text)
        self._note(text)


@contextmanager
def _small_disk(folder):
    """A folder with little room; without the right to mount one, a limit to put before a run."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "asyncinfer-chaos", str(folder)]
    with ExitStack() as stack:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        if mounted:
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        yield folder, () if mounted else ("prlimit", f"--fsize={DISK - FILLED}")
