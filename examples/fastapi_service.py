"""An HTTP service: one image in, one digit out; or many images in, digits out as they are ready.

pip install 'asyncinfer[models]' fastapi uvicorn httpx
python examples/fastapi_service.py            # starts, asks itself a few things, stops
python examples/fastapi_service.py --serve    # keeps serving, until Ctrl-C

POST /infer    {"image": [[8 rows of 8 numbers, 0 to 16]]}        -> {"digit": 3}
POST /stream   {"images": [image, ...]}  -> one line of JSON each, in order
GET  /stats    GET /health
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from asyncinfer import Dispatcher, Result, Timeouts
from asyncinfer.errors import ClosedError, DeadlineExceeded, NoDeviceError, TaskError
from asyncinfer_drivers.torch_host import TorchDriver

T = TypeVar("T")

Image = list[list[float]]


class OneImage(BaseModel):
    """What /infer takes."""

    image: Image


class Images(BaseModel):
    """What /stream takes."""

    images: list[Image]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the devices before the first request; after the last one finish, and close them."""
    devices = [
        TorchDriver("digits", name="cpu-1", threads=1, max_batch=16),
        TorchDriver("digits", name="cpu-2", threads=1),
    ]
    timeouts = Timeouts(total=10, drain=5)
    async with Dispatcher[Image, int](devices, timeout=timeouts) as app.state.dispatcher:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/infer")
async def infer(body: OneImage, request: Request) -> dict[str, int]:
    """One image. Requests of many clients share the devices fairly."""
    return {"digit": await while_connected(request, pool(request).infer(body.image))}


@app.post("/stream")
async def stream(body: Images, request: Request) -> StreamingResponse:
    """Many images: NDJSON, in order. If the client goes away, the rest is not computed."""

    async def lines() -> AsyncIterator[str]:
        async with pool(request).results(body.images) as results:
            async for result in results:
                yield json.dumps(line(result)) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@app.get("/stats")
async def stats(request: Request) -> dict[str, Any]:
    """Counters and times, per device and in all."""
    return dataclasses.asdict(pool(request).stats())


@app.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 while at least one device answers, or might."""
    states = {device.name: device.state for device in pool(request).stats().devices}
    up = pool(request).ready
    return JSONResponse({"up": up, "devices": states}, 200 if up else 503)


@app.exception_handler(TaskError)
async def task_failed(request: Request, error: TaskError) -> JSONResponse:
    """The image's fault (422), or nobody had time for it (504) or was there to run it (503)."""
    status = 422
    if isinstance(error, DeadlineExceeded):
        status = 503 if isinstance(error, NoDeviceError) else 504
    return JSONResponse({"error": str(error)}, status)


@app.exception_handler(ClosedError)
async def shutting_down(request: Request, error: ClosedError) -> JSONResponse:
    """The service ends: this request came too late."""
    return JSONResponse({"error": str(error)}, 503)


def pool(request: Request) -> Dispatcher[Image, int]:
    """The dispatcher of this application."""
    dispatcher: Dispatcher[Image, int] = request.app.state.dispatcher
    return dispatcher


def line(result: Result[int]) -> dict[str, Any]:
    """One line of /stream."""
    if result.error is not None:
        return {"index": result.index, "error": str(result.error)}
    return {"index": result.index, "digit": result.value, "device": result.device}


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, but cancel it when the client goes away: its task is withdrawn."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(disconnected())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HTTPException(499, "the client closed the connection")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


# ---- run directly: serve, or be one's own client


async def ask_itself() -> None:
    """Start on a free port of this host, send some requests, print the answers, stop."""
    import httpx
    from sklearn.datasets import load_digits

    pixels, _ = load_digits(return_X_y=True)
    images = pixels[:5].reshape(-1, 8, 8).tolist()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base, timeout=10, trust_env=False) as client:
            print("GET  /health", (await client.get("/health")).text)
            answer = await client.post("/infer", json={"image": images[3]})
            print("POST /infer ", answer.status_code, answer.text)
            answer = await client.post("/infer", json={"image": [[1, 2], [3, 4]]})
            print("POST /infer ", answer.status_code, answer.text)
            async with client.stream("POST", "/stream", json={"images": images}) as lines:
                async for text in lines.aiter_lines():
                    print("POST /stream", text)
            facts = (await client.get("/stats")).json()
            print("GET  /stats ", facts["finished"], "finished,", facts["failed"], "failed")
        server.should_exit = True
        await serving


def main() -> None:
    """Serve for good, or ask oneself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    if options.serve:
        uvicorn.run(app, host="127.0.0.1", port=options.port)
    else:
        asyncio.run(ask_itself())


if __name__ == "__main__":
    main()
