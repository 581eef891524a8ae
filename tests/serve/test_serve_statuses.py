"""Whose fault an answer says it is, to a client and to a pool that has another device."""

import asyncio

import grpc
import httpx
import numpy as np
import pytest
from serve_models import simulated
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from asyncinfer import Dispatcher
from asyncinfer.errors import (
    ClosedError,
    DeadlineExceeded,
    DeviceLost,
    InputError,
    NoDeviceError,
    PoisonTask,
    QueueTimeout,
    TaskError,
)
from asyncinfer.serve.errors import ANSWERS, Internal, as_answer
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.open_inference import OpenInferenceDriver

INFER = "/v2/models/m/infer"
BODY = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        # what the server itself has found nothing wrong with is no bad request
        (TaskError(0, 3, [ValueError("the model raised")]), 500, "INTERNAL"),
        (TaskError(0, 1, [InputError("the model refused it")]), 500, "INTERNAL"),
        (PoisonTask(0, 3, [DeviceLost("a")] * 3), 500, "INTERNAL"),
        (RuntimeError("a fault of ours"), 500, "INTERNAL"),
        (TaskError(0, 3, [DeviceLost("a")]), 503, "UNAVAILABLE"),
        (NoDeviceError(0, 0), 503, "UNAVAILABLE"),
        (ClosedError("closed"), 503, "UNAVAILABLE"),
        (QueueTimeout(0, 0), 429, "RESOURCE_EXHAUSTED"),
        (DeadlineExceeded(0, 1), 504, "DEADLINE_EXCEEDED"),
        (TimeoutError(), 504, "DEADLINE_EXCEEDED"),
    ],
)
def test_one_table(error, status, code):
    assert ANSWERS[type(as_answer(error))] == (status, code)


def test_what_the_server_does_not_know_is_not_told():
    assert isinstance(as_answer(KeyError("secret")), Internal)
    assert "secret" not in str(as_answer(KeyError("secret")))


def refuse(x):
    raise InputError("the model refused an input of [2]")


def raise_for_some(x):
    if x[0] % 2:
        raise ValueError("no odd numbers")
    return x + x


def fails(function):
    """A model that does as ``function`` says, but for its example, which is zeros."""
    return simulated(function=lambda x: function(x) if x.any() else x)


@pytest.mark.parametrize("function", [refuse, raise_for_some])
async def test_a_model_that_fails_over_both_protocols(serve, function):
    async with serve(fails(function)) as core:
        async with httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
            assert (await http.post(INFER, json=BODY)).status_code == 500
        async with grpc.aio.insecure_channel(core.target) as channel:
            message = pb.ModelInferRequest(model_name="m")
            message.inputs.add(name="input", datatype="FP32", shape=[1, 2])
            message.raw_input_contents.append(np.ones(2, np.float32).tobytes())
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
            assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("function", [refuse, raise_for_some])
async def test_a_broken_server_beside_a_good_device_costs_no_task(serve, function, protocol):
    async with serve(fails(function)) as core:
        url = core.url if protocol == "http" else f"grpc://{core.target}"
        remote = OpenInferenceDriver(url, model="m", name="remote")
        good = SimulatedDriver("good", 0.002, function=lambda x: x + x)
        rows = [np.full(2, at, np.float32) for at in range(1, 201)]
        async with Dispatcher([good, remote], wait_for="all") as dispatcher:
            outputs = [output async for output in dispatcher.stream(rows)]
            errors = {device.name: device.errors for device in dispatcher.stats().devices}
    for row, output in zip(rows, outputs, strict=True):
        np.testing.assert_array_equal(np.asarray(output), row + row)
    assert errors["remote"] > 0, "it was asked"


async def test_half_a_request_does_not_hold_up_the_end(serve):
    async with serve(receive_timeout=60) as core:
        host, port = core.target.split(":")[0], int(core.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode()
        )
        while not core.gate.requests:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.005)
        async with grpc.aio.insecure_channel(core.target) as channel:
            call = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")()
            while core.gate.requests < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert await core.drain(30)
            assert b" 503 " in await reader.readline()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        writer.close()


#: what Triton 2.51 answers, and KServe 0.21 and MLServer 1.7.1 where they see the fault at all; for
#: too few values Triton has 500 over HTTP
SEEN = {
    "the model raises": ({"data": [1.0, 2.0]}, "m", 500, "INTERNAL"),
    "unknown model": ({}, "nope", 404, "NOT_FOUND"),
    "unknown version": ({}, "m/versions/9", 404, "NOT_FOUND"),
    "wrong datatype": ({"datatype": "FP64"}, "m", 400, "INVALID_ARGUMENT"),
    "wrong shape": ({"shape": [1, 3], "data": [1.0] * 3}, "m", 400, "INVALID_ARGUMENT"),
    "too few values": ({"data": [1.0]}, "m", 400, "INVALID_ARGUMENT"),
    "wrong name": ({"name": "zz"}, "m", 400, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("fault", SEEN)
async def test_the_same_answers_as_others(serve, fault):
    changed, path, status, code = SEEN[fault]
    given = BODY["inputs"][0] | changed
    async with serve(fails(refuse)) as core:
        async with httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
            answer = await http.post(f"/v2/models/{path}/infer", json={"inputs": [given]})
            assert answer.status_code == status
        model, _, version = path.partition("/versions/")
        message = pb.ModelInferRequest(model_name=model, model_version=version)
        message.inputs.add(name=given["name"], datatype=given["datatype"], shape=given["shape"])
        message.raw_input_contents.append(np.array(given["data"], np.float32).tobytes())
        async with grpc.aio.insecure_channel(core.target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message)
            assert caught.value.code().name == code
