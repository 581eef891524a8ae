"""A driver of your own: a worker process that is fed JSON lines over pipes.

The device here is another Python, which takes square roots. A real one may be any program in any
language, on this host or, with ``ssh`` in front of the command, on another.

    python examples/own_driver.py
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import Sequence
from contextlib import suppress

from asyncinfer import Dispatcher, Driver
from asyncinfer.errors import DeviceLost, InputError
from asyncinfer.testing import SimulatedDriver, check_driver

#: the program on the other side: one line in, {"id": 1, "xs": [4, -1]}, and one line out,
#: {"id": 1, "ys": [2.0, {"error": "math domain error"}]}
WORKER = """
import json, math, sys
def one(x):
    try:
        return math.sqrt(x)
    except (TypeError, ValueError) as error:
        return {"error": str(error)}
for line in sys.stdin:
    call = json.loads(line)
    print(json.dumps({"id": call["id"], "ys": [one(x) for x in call["xs"]]}), flush=True)
"""


class ProcessDriver(Driver[float, float]):
    """Runs a worker program, and speaks JSON lines with it."""

    max_batch = 16

    def __init__(self, name: str, *command: str) -> None:
        self.name = name
        self.process: Process | None = None
        self._command = command
        self._ids = itertools.count()

    async def open(self) -> None:
        """Start the program."""
        try:
            self.process = await create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE)
        except OSError as error:  # the device's fault: the dispatcher tries again later
            raise DeviceLost(self.name, f"cannot be started: {error}") from error

    async def close(self) -> None:
        """End the program."""
        process, self.process = self.process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()  # whoever waits for an answer now gets DeviceLost

    async def infer(self, batch: Sequence[float]) -> list[float | InputError]:
        """Send one line, wait for the line that answers it."""
        to, back = (self.process.stdin, self.process.stdout) if self.process else (None, None)
        if to is None or back is None or to.is_closing():
            raise DeviceLost(self.name, "is not running")
        call = next(self._ids)
        to.write(json.dumps({"id": call, "xs": [*batch]}).encode() + b"\n")
        await to.drain()
        while line := await back.readline():
            answer = json.loads(line)
            if answer["id"] == call:  # else it answers a call that was cancelled
                return [InputError(y["error"]) if isinstance(y, dict) else y for y in answer["ys"]]
        raise DeviceLost(self.name, "the process ended")


def worker(name: str) -> ProcessDriver:
    """A driver with the worker program above."""
    return ProcessDriver(name, sys.executable, "-c", WORKER)


async def kill(driver: ProcessDriver) -> None:
    """Take the device away."""
    if driver.process is not None:
        driver.process.kill()


async def main() -> None:
    """Check the driver, then stream over it and another device; its process dies on the way."""
    # 1. Does it keep every promise of a driver? This belongs into its tests.
    print(
        await check_driver(
            lambda: worker("process"),
            [float(x) for x in range(20)],
            expected=math.sqrt,
            bad_inputs=[-1.0, "four"],
            cannot_open=lambda: ProcessDriver("process", "/no/such/program"),
            unplug=kill,
        )
    )

    # 2. Use it, beside another device. Its tasks move there when the process is killed, and it
    #    comes back by itself.
    process = worker("process")
    other = SimulatedDriver("other", 0.001, function=math.sqrt)
    async with Dispatcher([process, other], wait_for="all") as dispatcher:
        roots = list[float]()
        async for root in dispatcher.stream(float(x) for x in range(2000)):
            roots.append(root)
            if len(roots) == 300:
                await kill(process)
        assert roots == [math.sqrt(x) for x in range(2000)]
        print(f"\n{len(roots)} roots, all there and in order")
        for device in dispatcher.stats().devices:
            print(f"{device.name}: {device.tasks} tasks, {device.errors} errors")


if __name__ == "__main__":
    asyncio.run(main())
