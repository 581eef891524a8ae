"""Servers as ``asyncinfer devices`` finds them, beside one that never answers."""

import asyncio
import socket

from serve_models import simulated

from asyncinfer.cli.discovery import look
from asyncinfer.config import DeviceConfig
from asyncinfer_drivers.open_inference import OpenInferenceDriver

KEY = "open-sesame"


async def found(*options, timeout=20.0):
    own = [DeviceConfig("open_inference", f"d{n}", one) for n, one in enumerate(options)]
    drivers = {"open_inference": OpenInferenceDriver}
    return (await asyncio.to_thread(look, drivers, own, timeout))["found"]


async def test_health_and_models(serve):
    async with serve(simulated(name="one"), simulated(name="two")) as server:
        asked = [{"url": server.url}, {"url": server.target, "model": "two"}]
        for one in await found(*asked):
            assert (one["state"], one["error"]) == ("ready", None)
            assert one["models"] == {"one": "READY", "two": "READY"}
            assert one["server"].startswith("asyncinfer ")


async def test_what_is_wrong_is_told(serve):
    async with serve(simulated(name="one"), token=KEY) as server:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        headers = {"authorization": f"Bearer {KEY}"}
        denied, unknown, gone, good = await found(
            {"url": server.target, "model": "one"},
            {"url": server.target, "model": "other", "headers": headers},
            {"url": f"http://127.0.0.1:{port}", "model": "one"},
            {"url": server.url, "model": "one", "headers": headers},
        )
        assert [one["state"] for one in (denied, unknown, gone, good)] == [
            "failed", "failed", "failed", "ready"
        ]  # fmt: skip
        assert "token" in denied["error"]
        assert "check url and model" in unknown["error"]


async def test_one_that_never_answers_does_not_hide_the_others(serve):
    with socket.create_server(("127.0.0.1", 0)) as dead:
        url = f"127.0.0.1:{dead.getsockname()[1]}"
        async with serve(simulated(name="one")) as server:
            asked = {"url": url, "model": "one"}, {"url": server.target, "model": "one"}
            silent, good = await found(*asked, timeout=3.0)
    assert (silent["state"], good["state"]) == ("silent", "ready")
