"""Answers of what stands before a server, and servers whose model becomes another one."""

from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from oip_server import Fault, tensor

from asyncinfer import Dispatcher
from asyncinfer.errors import AsyncInferError, ConfigError, DeviceError, InputError, ProtocolError
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.open_inference import OpenInferenceDriver
from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.faults import Kind, while_running
from asyncinfer_drivers.open_inference.grpc_transport import GrpcTransport
from asyncinfer_drivers.open_inference.http_transport import _failure

ROW = np.arange(4, dtype=np.float32)
PAGE = b"<html><body>Please log in</body></html>"


@pytest.mark.parametrize(
    ("status", "kind", "body", "error"),
    [
        (302, "text/plain", b"", DeviceError),
        (307, "text/html", PAGE, DeviceError),
        (204, "", b"", DeviceError),
        (400, "text/html", PAGE, DeviceError),
        (500, "text/html", PAGE, DeviceError),
        (520, "text/plain", b"error code: 520", DeviceError),
        (418, "application/json", b'{"error": "the model says so"}', AsyncInferError),
        (500, "text/plain", b"Internal Server Error", AsyncInferError),  # uvicorn 0.30
        (400, "application/json", b'{"error": "no"}', InputError),
        (400, "text/plain", b"no", InputError),
        (413, "text/html", PAGE, InputError),  # nginx: half of it may pass
    ],
)
def test_only_a_models_server_can_blame_a_task(status, kind, body, error):
    headers = {"Location": "/login"} if status // 100 == 3 else {}
    answer = SimpleNamespace(status=status, reason="", content_type=kind, headers=headers)
    raised = while_running("pi", _failure(answer, body))
    assert type(raised) is error
    assert "html" not in str(raised) or status == 413
    assert "/login" in str(raised) or not headers


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        ("UNKNOWN", "Received http2 header with status: 302", Kind.STRANGE),
        ("INTERNAL", "Received http2 header with status: 400", Kind.STRANGE),
        ("INTERNAL", "Received RST_STREAM with error code 2", Kind.STRANGE),
        ("UNKNOWN", "Stream removed", Kind.STRANGE),
        ("UNKNOWN", "Unexpected <class 'ValueError'>: no", Kind.FAILED),
        ("INTERNAL", "the model raised", Kind.FAILED),
    ],
)
def test_what_grpc_itself_says_blames_no_task(code, text, kind):
    transport = GrpcTransport(Address.parse("pi:1", None, False), Access(), "m", "")
    none = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(grpc.StatusCode[code], none, none, details=text)
    assert transport._failure(error).kind is kind


@pytest.mark.parametrize("url", ["grpcs://pi:1", "https://pi:1"])
async def test_a_file_that_is_no_certificate_is_named(url):
    driver = OpenInferenceDriver(url, "m", ca=__file__)
    try:
        with pytest.raises(ConfigError, match="ca, cert or key"):
            await driver.open()
    finally:
        await driver.close()


def another(server):
    """The server has another model of that name now; it refuses what the first one took."""

    def refuse(arrays):
        raise Fault("input", "unexpected inference input 'x'")

    server.inputs, server.run = [tensor("z", "FP32", [-1, 4])], refuse


async def test_a_model_that_becomes_another_one_costs_no_task(server, driver_for):
    remote = driver_for(server, name="pi", max_batch=2)
    local = SimulatedDriver("local", 0.005, function=lambda item: item * 2)
    results = []
    async with Dispatcher([remote, local]) as dispatcher:
        async for result in dispatcher.results([ROW + n for n in range(200)]):
            results.append(result)
            if len(results) == 50:
                another(server)
        lost = next(one for one in dispatcher.stats().devices if one.name == "pi")
    assert [result.error for result in results] == [None] * 200
    assert all(np.array_equal(r.value, 2 * (ROW + n)) for n, r in enumerate(results))
    assert lost.state != "ready"


async def test_a_refusal_by_another_model_is_the_devices_fault(server, opened):
    async with opened(server) as driver:
        server.faults = [("input", "no")]
        (refused,) = await driver.infer([ROW])
        assert type(refused) is InputError
        another(server)
        with pytest.raises(ProtocolError, match="another one now, with 'z' FP32"):
            await driver.infer([ROW])
        server.model = "gone"
        with pytest.raises(DeviceError):
            await driver.infer([ROW])


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("inputs", [tensor("z", "FP32", [-1, 4])]),
        ("inputs", [tensor("x", "FP32", [-1, 5])]),
        ("inputs", [tensor("x", "INT32", [-1, 4])]),
        ("inputs", [tensor("x", "FP32", [-1, 4]), tensor("z", "FP32", [-1, 4])]),
        ("inputs", [tensor("x", "FP32", [1, 4])]),
        ("outputs", [tensor("y", "FP32", [-1, 5])]),
        ("outputs", [tensor("y", "FP32", [-1, 4]), tensor("z", "FP32", [-1, 4])]),
    ],
)
async def test_another_model_is_not_opened_again(server, opened, kind, changed):
    first = getattr(server, kind)
    async with opened(server) as driver:
        await driver.close()
        setattr(server, kind, changed)
        with pytest.raises(ConfigError, match="another one now"):
            await driver.open()
        await driver.close()
        setattr(server, kind, first)
        await driver.open()
        assert len(await driver.infer([ROW])) == 1


async def test_a_tuple_keeps_its_order_when_the_server_tells_another(server, opened):
    """A server's program may hold names in a set: each start has an order of its own."""
    server.inputs = [tensor(name, "FP32", [-1, 4]) for name in "ab"]
    server.run = lambda arrays: {"y": arrays["a"] - arrays["b"]}
    async with opened(server) as driver:
        before = await driver.infer([(ROW, ROW * 3)])
        await driver.close()
        server.inputs.reverse()
        await driver.open()
        after = await driver.infer([(ROW, ROW * 3)])
    assert before[0].tolist() == after[0].tolist() == (-2 * ROW).tolist()
