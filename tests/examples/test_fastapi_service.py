"""The FastAPI example: answers, errors, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
import sys
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from asyncinfer import Dispatcher
from asyncinfer.errors import DeviceLost
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.models import digits

FILE = Path(__file__).resolve().parents[2] / "examples" / "fastapi_service.py"
ONE = digits.example().tolist()
BAD = [[1, 2], [3, 4]]


@pytest.fixture(scope="module")
def service():
    spec = importlib.util.spec_from_file_location("example_fastapi_service", FILE)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def client(service):
    """In process, with the example's own devices."""
    transport = httpx.ASGITransport(service.app)
    async with (
        service.app.router.lifespan_context(service.app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


async def test_one_image(client):
    answer = await client.post("/infer", json={"image": ONE})
    assert (answer.status_code, answer.json()) == (200, {"digit": 1})


async def test_a_wrong_shape_is_422_with_the_typed_error_in_one_line(client):
    answer = await client.post("/infer", json={"image": BAD})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert "a digit is an 8x8 array, not one of shape [2, 2]" in error
    assert "\n" not in error
    assert (await client.post("/infer", json={"image": ONE})).json() == {"digit": 1}


async def test_what_is_no_image_is_422(client):
    assert (await client.post("/infer", json={"image": "seven"})).status_code == 422


async def test_many_images_come_in_order_with_the_bad_one_in_its_place(client):
    images = [ONE] * 10 + [BAD] + [ONE] * 10
    answer = await client.post("/stream", json={"images": images})
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(21))
    assert [line.get("digit") for line in lines] == [1] * 10 + [None] + [1] * 10
    assert "8x8" in lines[10]["error"]


async def test_many_clients_at_once(client):
    requests = [client.post("/infer", json={"image": ONE}) for _ in range(50)]
    answers = await asyncio.gather(*requests)
    assert [answer.json() for answer in answers] == [{"digit": 1}] * 50


async def test_stats_are_valid_json(client):
    before = (await client.get("/stats")).json()
    assert before["finished"] == 0
    await client.post("/infer", json={"image": ONE})
    after = (await client.get("/stats")).json()
    assert after["finished"] == 1
    assert {device["name"] for device in after["devices"]} == {"cpu-1", "cpu-2"}


async def test_health(client):
    ready = {"cpu-1": "ready", "cpu-2": "ready"}
    async with asyncio.timeout(60):  # it serves with the first device that is up
        while (answer := await client.get("/health")).json()["devices"] != ready:
            assert answer.json()["up"]
            await asyncio.sleep(0.05)
    assert answer.status_code == 200
    assert answer.json() == {"up": True, "devices": ready}


# ---- other devices behind the same application


@asynccontextmanager
async def served(service, dispatcher):
    """The application on a real server, with devices of the test's choice."""
    service.app.state.dispatcher = dispatcher
    config = uvicorn.Config(service.app, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        try:
            async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await serving


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing to wait for from outside
            await asyncio.sleep(0.005)


async def test_a_real_server_streams_while_it_computes(service):
    device = SimulatedDriver("device", 0.005, function=lambda image: int(image[0][0]))
    images = [[[n]] for n in range(20)]
    async with (
        Dispatcher([device], window=2, queue_size=1) as dispatcher,
        served(service, dispatcher) as client,
        client.stream("POST", "/stream", json={"images": images}) as answer,
    ):
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["digit"] == 0
        assert dispatcher.stats().finished < 20
        assert [json.loads(line)["digit"] async for line in lines] == list(range(1, 20))


async def test_a_client_that_leaves_frees_its_task(service):
    async with (
        Dispatcher([SimulatedDriver("slow", 3600.0)]) as dispatcher,
        served(service, dispatcher) as client,
    ):
        asking = asyncio.create_task(client.post("/infer", json={"image": ONE}))
        await until(lambda: dispatcher.stats().running == 1)
        asking.cancel()
        await until(lambda: dispatcher.stats().running == 0)
        assert dispatcher.stats().waiting == dispatcher.stats().queue_depth == 0


async def test_a_client_that_leaves_a_stream_frees_its_tasks(service):
    def first_fast(image):
        device.service_time = 3600.0
        return 0

    device = SimulatedDriver("slow", 0.001, function=first_fast)
    async with (
        Dispatcher([device], window=2, queue_size=1) as dispatcher,
        served(service, dispatcher) as client,
    ):
        images = [[[n]] for n in range(100)]
        async with (
            client.stream("POST", "/stream", json={"images": images}) as answer,
            aclosing(answer.aiter_lines()) as lines,  # the client leaves as soon as nobody holds it
        ):
            assert json.loads(await anext(lines))["index"] == 0
            await until(lambda: dispatcher.stats().running == 1)
        await until(lambda: dispatcher.stats().running == 0)
        assert dispatcher.stats().waiting == dispatcher.stats().queue_depth == 0


class Unplugged(SimulatedDriver):
    """Is gone from the first task on."""

    gone = False

    async def open(self):
        if self.gone:
            raise DeviceLost(self.name, "not there")
        await super().open()

    async def infer(self, batch):
        self.gone = True
        raise DeviceLost(self.name, "unplugged")


async def test_no_device_is_503_and_unhealthy(service):
    service.app.state.dispatcher = Dispatcher([Unplugged("gone", 0.001)], timeout=0.05)
    transport = httpx.ASGITransport(service.app)
    async with (
        service.app.state.dispatcher,
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        answer = await client.post("/infer", json={"image": ONE})
        assert answer.status_code in (503, 504)
        await until(lambda: service.app.state.dispatcher.stats().devices[0].state == "backing_off")
        assert (await client.get("/health")).status_code == 503


async def test_after_shutdown_requests_are_refused(service):
    service.app.state.dispatcher = Dispatcher([SimulatedDriver("device", 0.001)])
    async with service.app.state.dispatcher:
        pass
    transport = httpx.ASGITransport(service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        assert (await client.post("/infer", json={"image": ONE})).status_code == 503
