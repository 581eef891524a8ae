"""What Triton, KServe and MLServer do, by small servers that do the same; each says where seen.

``make interop`` runs the driver against them as they are.
"""

import asyncio
import json
import logging

import ml_dtypes
import numpy as np
import pytest
import pytest_asyncio
import torch
import uvicorn
from oip_server import Fault, tensor

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError, DeviceError, InputError, ProtocolError, TaskError
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.open_inference import OpenInferenceDriver

ROW = np.arange(4, dtype=np.float32)
ROWS = [ROW + number for number in range(1, 321)]


async def streamed(driver, rows, **options):
    """The results, and the device's statistics."""
    async with Dispatcher([driver], **options) as dispatcher:
        results = [result async for result in dispatcher.results(rows)]
        return results, dispatcher.stats().devices[0]


def doubles(results, rows):
    pairs = zip(results, rows, strict=True)
    return all(np.array_equal(result.value, 2 * row) for result, row in pairs)


# ---- how many tasks a request may have: Triton 2.51, max_batch_size


@pytest.mark.parametrize("most", [8, 1])
async def test_a_limit_that_the_server_tells_bounds_the_batch(server, driver_for, caplog, most):
    server.max_batch_size = most
    driver = driver_for(server, name="triton", max_batch=32)
    results, device = await streamed(driver, ROWS)
    assert doubles(results, ROWS)
    assert (driver.max_batch, server.refused, max(server.sizes)) == (most, 0, most)
    assert device.errors == 0
    await driver.open()  # it says so once, not each time
    await driver.close()
    (told,) = [record.getMessage() for record in caplog.records if "tasks in one" in record.message]
    assert (
        told
        == f"triton: the server takes {most} tasks in one request, so max_batch=32 is too large"
    )


@pytest.mark.parametrize("most", [11, 8, 1])
@pytest.mark.parametrize("warmup", [None, ROW])
async def test_a_limit_that_the_server_does_not_tell_is_learnt(
    server, driver_for, caplog, most, warmup
):
    server.max_batch_size, server.tells = most, False
    driver = driver_for(server, max_batch=32, warmup_input=warmup)
    results, device = await streamed(driver, ROWS * 2)
    assert doubles(results, ROWS * 2)
    assert (driver.max_batch, device.errors, device.state) == (most, 0, "ready")
    assert server.refused <= 24
    told = [record.getMessage() for record in caplog.records if "tasks in one" in record.message]
    assert len(told) == 1
    assert f"(device '{driver.name}': the server refused the input: inference request" in told[0]


async def test_one_bad_task_is_no_limit(server, opened):
    def picky(arrays):
        if (arrays["x"] < 0).any():
            raise Fault("input", "no negative numbers")
        return {"y": arrays["x"] * 2}

    server.run, server.tells = picky, False
    async with opened(server, max_batch=8) as driver:
        try:
            outputs = await driver.infer([ROW, -1 - ROW, *[ROW] * 6])
            assert isinstance(outputs[1], InputError)
        except InputError:  # its batch is to be run one by one
            pass
        assert len(await driver.infer([ROW] * 8)) == 8
        assert (driver.max_batch, max(server.sizes)) == (8, 8)


async def test_a_fault_that_passes_is_no_limit(server, opened):
    async with opened(server, max_batch=8) as driver:
        server.faults = [("failed", "not now")]
        outputs = await driver.infer([ROW] * 8)
        assert doubles([type("R", (), {"value": output}) for output in outputs], [ROW] * 8)
        assert driver.max_batch == 8


# ---- one request fails what the server has put into one batch: Triton 2.51, dynamic_batching


class Together:
    """Runs what came within a moment in one batch, which fails as a whole."""

    def __init__(self):
        self.waiting = []

    async def infer(self, headers, sent):
        mine = asyncio.get_running_loop().create_future()
        self.waiting.append((sent["x"], mine))
        if len(self.waiting) == 1:
            await asyncio.sleep(0.002)
            batch, self.waiting = self.waiting, []
            bad = any((x < 0).any() for x, _ in batch)
            for x, future in batch:
                future.set_result(None if bad else x * 2)
        if (result := await mine) is None:
            raise Fault("failed", "Failed to process the request(s) for model 'together_0_0'")
        return {"y": result}


async def test_who_shared_a_batch_with_a_bad_one_does_not_fail(server, driver_for):
    server.infer = Together().infer
    rows = [-row if index % 20 == 3 else row for index, row in enumerate(ROWS[:57])]
    results, device = await streamed(driver_for(server, concurrency=8), rows)
    assert [result.index for result in results if result.error] == [3, 23, 43]
    assert all(r.error or np.array_equal(r.value, 2 * rows[r.index]) for r in results)
    assert device.state == "ready"


# ---- models that refuse what warms them up


@pytest.mark.parametrize("kind", ["input", "failed"])
@pytest.mark.parametrize("at_once", [1, 32])
async def test_a_model_that_refuses_zeros_is_opened(server, driver_for, kind, at_once):
    def no_zeros(arrays):
        if len(arrays["x"]) >= at_once and not arrays["x"].any():
            raise Fault(kind, "all zeros")
        return {"y": arrays["x"] * 2}

    server.run = no_zeros
    results, device = await streamed(driver_for(server, max_batch=32), ROWS)
    assert doubles(results, ROWS)
    assert device.errors == 0


async def test_a_warm_up_that_the_model_fails_at_ends_no_dispatcher(server, driver_for):
    server.always = ("failed", "no memory left")
    cold = driver_for(server, name="cold", warmup_input=ROW)
    good = SimulatedDriver("good", 0.001, function=lambda x: x * 2)
    async with Dispatcher([cold, good], wait_for="all") as dispatcher:
        assert (await dispatcher.infer(ROW) == 2 * ROW).all()
    with pytest.raises(DeviceError, match=r"the warm-up input failed: .*: no memory left"):
        await driver_for(server, warmup_input=ROW).open()


# ---- connections that end: uvicorn, under KServe 0.21, MLServer 1.7.1 and `asyncinfer serve`


def described(name):
    kinds = {kind: [tensor(x, "FP32", [-1, 4])] for kind, x in (("inputs", "x"), ("outputs", "y"))}
    return {"name": name, "versions": None, "platform": "", **kinds}


class KServe:
    """Answers as KServe 0.21 does, and raises what a model raises, as starlette does after it."""

    async def __call__(self, scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["method"] == "GET":
            name = scope["path"].split("/")[3]
            found = {"detail": "Not Found"} if scope["path"].endswith("config") else described(name)
            await answer(send, 404 if "detail" in found else 200, found)
            return
        (given,) = json.loads(body)["inputs"]
        if min(given["data"]) < 0:
            await answer(send, 500, {"error": "RuntimeError : no negative numbers"})
            raise RuntimeError("no negative numbers")
        data = [None if np.isnan(x) or x > 1e38 else 2 * x for x in given["data"]]
        one = {**tensor("y", "FP32", given["shape"]), "parameters": None, "data": data}
        said = {"model_name": "twice", "model_version": None, "id": "", "parameters": None}
        await answer(send, 200, {**said, "outputs": [one]})


async def answer(send, status, value):
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest_asyncio.fixture
async def kserve():
    """Where it listens."""
    config = uvicorn.Config(KServe(), port=0, lifespan="off", log_config=None, log_level="critical")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # it has no event for that
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_connection_closed_after_an_exception_is_no_loss(kserve, concurrency):
    rows = [-row if index % 10 == 3 else row for index, row in enumerate(ROWS[:200])]
    driver = OpenInferenceDriver(kserve, "twice", binary=False, concurrency=concurrency)
    events = []
    results, device = await streamed(driver, rows, on_event=events.append)
    assert [result.index for result in results if result.error] == list(range(3, 200, 10))
    assert all(r.error or np.array_equal(r.value, 2 * rows[r.index]) for r in results)
    assert "device.lost" not in {event.kind for event in events}
    assert device.state == "ready"


class Closing:
    """Answers one request on each connection, and ends those that bring another unanswered."""

    def __init__(self, always=False):
        self.connections, self.requests, self.always = 0, 0, always

    async def __call__(self, reader, writer):
        self.connections += 1
        first = True
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        await reader.readexactly(int(line.split(b":")[1]))
                infers = head.startswith(b"POST")
                self.requests += infers
                if infers and (self.always or not first):
                    break
                body = json.dumps(self.answer(head)).encode()
                status = b"404 Not Found" if b"/config" in head else b"200 OK"
                writer.write(
                    b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body
                )
                first = False
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    @staticmethod
    def answer(head):
        if head.startswith(b"GET"):
            return described("twice")
        return {"outputs": [{**tensor("y", "FP32", [1, 4]), "data": [0, 2, 4, 6]}]}


@pytest.mark.parametrize("always", [False, True])
async def test_what_a_reused_connection_cuts_is_sent_once_more_and_no_more(always):
    closing = Closing(always)
    listening = await asyncio.start_server(closing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    driver = OpenInferenceDriver(url, "twice", binary=False)
    await driver.open()
    try:
        if always:
            with pytest.raises(DeviceError, match="cannot be reached"):
                await driver.infer([ROW])
            assert closing.requests == 2
        else:
            for _ in range(5):
                assert (await driver.infer([ROW]))[0].tolist() == [0, 2, 4, 6]
    finally:
        await driver.close()
        listening.close()


# ---- what is written otherwise


async def test_null_is_as_good_as_absent(kserve, caplog):
    """KServe 0.21 writes ``"parameters": null``, and null for NaN and infinities, as MLServer."""
    driver = OpenInferenceDriver(kserve, "twice", binary=False, max_batch=2)
    await driver.open()
    try:
        outputs = await driver.infer([ROW, ROW + 1])
        assert [output.tolist() for output in outputs] == [[0, 2, 4, 6], [2, 4, 6, 8]]
        for _ in range(2):
            (odd,) = await driver.infer([np.float32([1, np.nan, np.inf, 2])])
            assert np.array_equal(odd, [2, np.nan, np.nan, 4], equal_nan=True)
    finally:
        await driver.close()
    assert caplog.text.count("null for numbers of output 'y'") == 1


@pytest.mark.parametrize(("datatype", "data"), [("INT32", [1, None]), ("INT32", [1, 1.5])])
async def test_what_is_no_number_of_its_type_is_a_protocol_error(opened, datatype, data):
    closing = Closing()
    closing.answer = lambda head: (
        {**described("twice"), "outputs": [tensor("y", datatype, [-1, 2])]}
        if head.startswith(b"GET")
        else {"outputs": [{**tensor("y", datatype, [1, 2]), "data": data}]}
    )
    listening = await asyncio.start_server(closing, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    driver = OpenInferenceDriver(url, "twice", binary=False)
    await driver.open()
    try:
        with pytest.raises(ProtocolError, match="the server's answer is wrong"):
            await driver.infer([ROW])
    finally:
        await driver.close()
        listening.close()


# ---- what models are like


async def test_wrong_metadata_can_be_overruled(server, driver_for, opened):
    """MLServer 1.7.1: NumpyCodec makes [N, 1] of [N], whatever the model's settings say."""
    server.outputs = [tensor("y", "FP32", [-1])]
    server.run = lambda arrays: {"y": arrays["x"].sum(1, keepdims=True)}
    said = {"outputs": [{"name": "y", "shape": [-1, 1]}], "max_batch": 2}
    async with opened(server) as driver:
        with pytest.raises(ProtocolError, match="give outputs= and overrule=True"):
            await driver.infer([ROW])
    with pytest.raises(ConfigError, match="expected output 'y'"):
        await driver_for(server, **said).open()
    async with opened(server, **said, overrule=True) as driver:
        outputs = await driver.infer([ROW, ROW + 1])
    assert [output.tolist() for output in outputs] == [[6], [10]]


@pytest.mark.parametrize("told", [True, False])
async def test_optional_inputs_may_be_left_out(server, opened, told):
    server.inputs = [tensor("a", "FP32", [-1, 4]), tensor("b", "FP32", [-1, 4])]
    server.run = lambda arrays: {"y": sum(arrays.values())}
    server.optional = ["b"] if told else []
    said = {} if told else {"inputs": [{"name": "a"}, {"name": "b", "optional": True}]}
    async with opened(server, max_batch=8, **said) as driver:
        batch = [{"a": ROW, "b": ROW}, {"a": ROW}, ROW, {"a": ROW, "b": ROW + 1}, {"b": ROW}]
        *outputs, wrong = await driver.infer(batch)
        assert len(server.sizes) == 2
        assert np.array_equal(outputs, [2 * ROW, ROW, ROW, 2 * ROW + 1])
        assert "the model's inputs are a, b (optional), not b" in str(wrong)
        absent = await driver.infer([{"a": ROW, "b": None}])  # as TorchDriver has it
        assert np.array_equal(absent, [ROW])
    if told:
        async with opened(server, inputs=[{"name": "a"}]) as driver:
            assert np.array_equal(await driver.infer([ROW]), [ROW])


@pytest.mark.parametrize("way", ["raw", "plain"])
async def test_texts_are_bytes_however_they_come(server, opened, way):
    server.inputs, server.outputs = [tensor("x", "BYTES", [-1, 1])], [tensor("y", "BYTES", [-1, 1])]
    server.run = lambda arrays: {"y": arrays["x"]}
    server.plain = way == "plain"
    async with opened(server, max_batch=2) as driver:
        outputs = await driver.infer([["h\u00e9llo"], [b"world"]])
    assert [output.tolist() for output in outputs] == [["h\u00e9llo".encode()], [b"world"]]


async def test_bytes_that_json_cannot_have_are_refused(server, opened):
    server.inputs, server.outputs = [tensor("x", "BYTES", [-1, 1])], []
    async with opened(server, binary=server.protocol == "grpc") as driver:
        server.run = lambda arrays: {"y": np.array([[arrays["x"].tolist() == [[b"\xff"]]]])}
        if server.protocol == "grpc":
            assert (await driver.infer([[b"\xff"]]))[0].item()
        else:
            with pytest.raises(InputError, match="no UTF-8 cannot go as JSON: use binary=True"):
                await driver.infer([[b"\xff"]])


SOME = np.float32([1.0, 1 / 3, -3e38, 3.4e38, 1.00390625, 1.01171875, 1e-40, 65504.7])
BIT_PATTERNS = np.array([0x7FC0, 0xFF80, 0x7F80, 0x8000, 0x0001, 0x3F81, 0xFFFF, 0x7F7F], "<u2")


@pytest.mark.parametrize("kind", [np.array, torch.tensor, np.float64, list, ml_dtypes.bfloat16])
async def test_bfloat16_both_ways(server, opened, kind):
    """Rounded to the nearest; what comes is FP32, in which a thousand ones are a thousand."""
    server.inputs, server.outputs = [tensor("x", "BF16", [-1, 8])], [tensor("y", "BF16", [-1, 8])]
    seen = []
    server.run = lambda arrays: (seen.append(arrays["x"]), {"y": arrays["x"]})[1]
    expected = SOME.astype(ml_dtypes.bfloat16)
    given = SOME.astype(kind) if isinstance(kind, type) and kind is not list else kind(SOME)
    async with opened(server, max_batch=2) as driver:
        outputs = await driver.infer([given, given])
        server.run = lambda arrays: {"y": np.tile(BIT_PATTERNS, (1, 1))}
        (patterns,) = await driver.infer([given])
    assert np.array_equal(seen[-1], np.tile(expected.view("<u2"), (2, 1)))
    for output in outputs:
        assert str(output.dtype).endswith("float32")
        assert np.array_equal(np.asarray(output), expected.astype(np.float32))
    wanted = BIT_PATTERNS.view(ml_dtypes.bfloat16).astype(np.float32)
    assert np.array_equal(np.asarray(patterns), wanted, equal_nan=True)


async def test_nan_stays_nan_in_bfloat16(server, opened):
    server.inputs, server.outputs = [tensor("x", "BF16", [-1, 4])], [tensor("y", "BF16", [-1, 4])]
    server.run = lambda arrays: {"y": arrays["x"]}
    odd = np.array([0x7FFFFFFF, 0x7F800001, 0xFFFFFFFF, 0x7F800000], "<u4").view("<f4")
    async with opened(server) as driver:
        (output,) = await driver.infer([odd])
    assert np.isnan(output).tolist() == [True, True, True, False]
    assert output[3] == np.inf


async def test_a_task_error_names_what_the_server_said(server, driver_for):
    server.always = ("failed", "no memory left")
    async with Dispatcher([driver_for(server)]) as dispatcher:
        with pytest.raises(TaskError, match="the server failed: no memory left"):
            await dispatcher.infer(ROW)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.WARNING)
