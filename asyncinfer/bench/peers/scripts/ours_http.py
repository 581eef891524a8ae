"""asyncinfer behind a minimal Starlette endpoint; raw bytes as the request's body."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from common import PORT, WORKERS, Commands, versions
from own_devices import devices
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from asyncinfer import Dispatcher


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the devices before the first request.

    What exists by then lives on: left to the garbage collector, torch's objects, well over 100,000,
    would be looked through again and again, with a pause of 0.1 s and more.
    """
    drivers = devices(WORKERS)
    async with Dispatcher(drivers, wait_for="all") as app.state.dispatcher:
        for driver in drivers:
            await driver.tune()
        gc.collect()
        gc.freeze()
        yield


async def label(request: Request) -> JSONResponse:
    """One image, one label."""
    image = await request.body()
    return JSONResponse({"label": await request.app.state.dispatcher.infer(image)})


if __name__ == "__main__":
    commands = Commands()
    commands.reply(versions=versions("asyncinfer", "torch", "uvicorn"))
    commands.stop_at_end()
    app = Starlette(routes=[Route("/", label, methods=["POST"])], lifespan=lifespan)
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning", access_log=False)
