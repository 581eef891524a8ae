"""Inside an application that has its own life cycle: start, serve, change devices, shut down.

The application below starts a dispatcher in one task and stops it in another, calls it from many
tasks at once, plugs devices in and out meanwhile, and on SIGTERM or Ctrl-C finishes what it has
accepted before it ends.

    python examples/embed.py [--seconds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from contextlib import AsyncExitStack

from asyncinfer import Dispatcher, Timeouts
from asyncinfer.errors import ClosedError
from asyncinfer.testing import SimulatedDriver


class Application:
    """Has ``start`` and ``stop``, where a script would write ``async with``."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.dispatcher = Dispatcher[str, str](
            [SimulatedDriver("one", 0.005, function=str.upper)],
            timeout=Timeouts(total=5.0, drain=2.0),
        )
        self.answered = 0
        self.refused = 0

    async def start(self) -> None:
        """Open the devices. If that fails, nothing is left open."""
        await self._stack.enter_async_context(self.dispatcher)

    async def stop(self) -> None:
        """Accept no more, finish what was accepted (for 2 s at most), close the devices."""
        await self._stack.aclose()

    async def handle(self, request: str) -> str | None:
        """One request of some protocol."""
        try:
            answer = await self.dispatcher.infer(request)
        except ClosedError:  # shutting down: what was accepted before is still answered
            self.refused += 1
            return None
        self.answered += 1
        return answer


async def client(app: Application, name: str) -> None:
    """Sends one request after the other until it is refused."""
    while await app.handle(f"hello from {name}") is not None:
        pass


async def change_devices(app: Application) -> None:
    """Plug another device in, and the first one out, while requests are running."""
    await app.dispatcher.add(SimulatedDriver("two", 0.003, function=str.upper))
    print("devices:", [device.name for device in app.dispatcher.stats().devices])
    await asyncio.sleep(0.1)
    await app.dispatcher.remove("one")  # after what it runs
    print("devices:", [device.name for device in app.dispatcher.stats().devices])


async def wait_for_signal(seconds: float) -> str:
    """Return at SIGTERM, at Ctrl-C, or after ``seconds``."""
    came = asyncio.Queue[str]()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, came.put_nowait, number.name)
    print("serving", flush=True)
    try:
        return await asyncio.wait_for(came.get(), seconds)
    except TimeoutError:
        return "time is up"


async def main() -> None:
    """Serve eight clients until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0)
    seconds = parser.parse_args().seconds
    app = Application()
    await app.start()
    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(client(app, f"client {number}"))
        changing = group.create_task(change_devices(app))
        reason = await wait_for_signal(seconds)
        changing.cancel()
        await app.stop()
    stats = app.dispatcher.stats()
    print(f"{reason}: {app.answered} answered, {app.refused} refused, {stats.failed} failed")
    assert app.answered == stats.submitted  # what was accepted was answered


if __name__ == "__main__":
    asyncio.run(main())
