"""Servers that answer too much, too deep, or something else: no memory is lost, all is said."""

import gzip
import json

import numpy as np
import pytest
from aiohttp import web

from asyncinfer.errors import ConfigError, DeviceError, ProtocolError
from asyncinfer_drivers._shared.steps import Steps
from asyncinfer_drivers.open_inference import OpenInferenceDriver, http_transport
from asyncinfer_drivers.open_inference.codec import Codec
from asyncinfer_drivers.open_inference.faults import one_line
from asyncinfer_drivers.open_inference.specs import ModelSpec, TensorSpec, tensor_specs

ROW = np.ones(4, np.float32)


async def test_an_answer_beyond_the_limit_is_the_devices_fault(server, opened):
    async with opened(server, max_reply_bytes=20_000) as driver:
        (row,) = await driver.infer([ROW])
        assert list(row) == [2, 2, 2, 2]
        server.outputs = [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}]
        server.run = lambda arrays: {"y": np.zeros((1, 100_000), np.float32)}
        with pytest.raises(DeviceError, match=r"answers too much.*max_reply_bytes"):
            await driver.infer([ROW])
        server.run = lambda arrays: {"y": arrays["x"]}
        (row,) = await driver.infer([ROW])
        assert list(row) == [1, 1, 1, 1]


@pytest.mark.parametrize("size", [0, -1, "1", None])
def test_a_limit_is_a_number(size):
    with pytest.raises(ConfigError, match="max_reply_bytes must be a whole number"):
        OpenInferenceDriver("host:1", "m", max_reply_bytes=size)


@pytest.fixture
async def answering():
    """Makes a server of HTTP that answers to each path as told."""
    runners = []

    async def make(handler):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield make
    for runner in runners:
        await runner.cleanup()


def model(infer):
    """A handler with a model of one number, whose answers are ``infer``'s."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}

    async def handle(request):
        if request.path.endswith("/infer"):
            return await infer(request)
        return web.json_response({"inputs": [tensor], "outputs": [tensor]})

    return handle


async def asked(url, **options):
    driver = OpenInferenceDriver(url, "m", **options)
    try:
        await driver.open()
        return await driver.infer([ROW])
    finally:
        await driver.close()


async def test_an_endless_answer_is_left(answering):
    async def endless(request):
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(1 << 16))
        except ConnectionError:
            return response

    url = await answering(model(endless))
    with pytest.raises(DeviceError, match="answers too much"):
        await asked(url, max_reply_bytes=1 << 20)


async def test_nothing_is_unpacked(answering):
    seen = []

    async def packed(request):
        seen.append(request.headers.get("Accept-Encoding"))
        body = gzip.compress(bytes(50_000_000))
        assert len(body) < 100_000
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    url = await answering(model(packed))
    with pytest.raises(ProtocolError, match="answer is wrong"):
        await asked(url, max_reply_bytes=1 << 20)
    assert seen == ["identity"]


def reply(datatype="FP32", **more):
    return json.dumps({"outputs": [{"name": "x", "datatype": datatype, **more}]})


@pytest.mark.parametrize(
    "answer",
    [
        "[" * 100_000,
        reply(shape=[1, 4], data="@").replace('"@"', "[" * 50_000 + "]" * 50_000),
        reply(shape=[1, 4], data=[{}, 1, 2, 3]),
        reply(datatype="INT64", shape=[1, 4], data=[1, 2, 3, "@"]).replace('"@"', "1e400"),
        reply(shape=["1", {}], data=[1]),
        reply(shape=[1, 4], data=["@"]).replace('"@"', "9" * 5000),
        '{"outputs": 3}',
        '{"outputs": [3]}',
        "null",
        "\xff",
    ],
)
async def test_wrong_answers_are_the_devices_fault(answering, answer):
    async def wrong(request):
        return web.Response(body=answer.encode("latin-1"))

    with pytest.raises(ProtocolError, match="answer is wrong"):
        await asked(await answering(model(wrong)))


async def test_json_has_a_limit_of_its_own(answering, monkeypatch):
    monkeypatch.setattr(http_transport, "_JSON_BYTES", 1000)

    async def long(request):
        return web.Response(body=b'{"outputs": []' + b" " * 1000 + b"}")

    with pytest.raises(ProtocolError, match="bytes of JSON, more than 1000"):
        await asked(await answering(model(long)))


@pytest.mark.parametrize(
    "metadata",
    [
        "[]",
        "[" * 100_000,
        " " * (5 << 20),
        json.dumps({"inputs": 3}),
        json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-7]}]}),
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [Infinity]}]}',
    ],
)
async def test_wrong_metadata_is_said(answering, metadata):
    async def handle(request):
        return web.Response(text=metadata)

    with pytest.raises((DeviceError, ConfigError)):
        await asked(await answering(handle))


def test_no_zeros_are_made_of_what_a_server_claims():
    huge = TensorSpec("x", "FP32", (-1, 1 << 20, 1 << 20))
    codec = Codec("d", ModelSpec((huge,), (huge,), True, None), Steps(), None)
    assert codec.zeros(1) is None
    with pytest.raises(ConfigError, match="-1 for any"):
        tensor_specs([{"name": "x", "datatype": "FP32", "shape": [-2]}], "m")


def test_a_servers_words_do_not_command_the_terminal():
    assert one_line("bad\x1b[2J\x07 input\n\x9b") == "bad?[2J? input ?"
    assert len(one_line("word " * 1_000_000)) < 400
