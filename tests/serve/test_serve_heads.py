"""What requests have in common is looked at once: answers are each request's own."""

import asyncio
import json

import grpc
import httpx
import numpy as np
import pytest
from serve_models import simulated, until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

INFER = "/v2/models/m/infer"


def posted(array, **more):
    """Body and headers of a request with the tensor as bytes, its answer too."""
    tensor = {"name": "input", "shape": list(array.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": array.nbytes}
    more = {"parameters": {"binary_data_output": True}} | more
    head = json.dumps({"inputs": [tensor], **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return {"content": head + array.tobytes(), "headers": headers}


def values(answer):
    length = int(answer.headers["Inference-Header-Content-Length"])
    head, tail = json.loads(answer.content[:length]), answer.content[length:]
    return head, np.frombuffer(tail, "<f4").reshape(head["outputs"][0]["shape"])


def message(array, **more):
    made = pb.ModelInferRequest(**{"model_name": "m"} | more)
    made.inputs.add(name="input", datatype="FP32", shape=array.shape)
    made.raw_input_contents.append(array.tobytes())
    return made


async def test_requests_with_the_same_json_over_http(serve):
    async with serve() as core, httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
        for number in range(3):
            for rows in (1, 2):
                array = np.full((rows, 2), number, np.float32)
                _, got = values(await http.post(INFER, **posted(array)))
                np.testing.assert_array_equal(got, 2 * array)
                head, got = values(await http.post(INFER, **posted(array, id=str(number))))
                assert head["id"] == str(number)
                np.testing.assert_array_equal(got, 2 * array)


async def test_the_same_json_before_too_few_bytes_or_too_many(serve):
    async with serve() as core, httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
        request = posted(np.ones((1, 2), np.float32))
        assert (await http.post(INFER, **request)).status_code == 200
        for content in (request["content"][:-1], request["content"] + b"\0"):
            answer = await http.post(INFER, **request | {"content": content})
            assert answer.status_code == 400


async def test_messages_that_begin_alike_over_grpc(serve):
    models = simulated(), simulated("n", function=lambda x: -x)
    async with serve(*models) as core, grpc.aio.insecure_channel(core.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for number in range(3):
            for more in ({}, {"id": "a"}, {"id": "b"}, {"model_name": "n"}):
                array = np.full((1, 2), number, np.float32)
                answer = await stub.ModelInfer(message(array, **more))
                assert answer.model_name == more.get("model_name", "m")
                assert answer.id == more.get("id", "")
                got = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(1, 2)
                wanted = -array if answer.model_name == "n" else 2 * array
                np.testing.assert_array_equal(got, wanted)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ModelInfer(message(array, model_name="k"))  # as long as the others
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_body_that_comes_in_many_pieces(serve):
    async with serve(simulated(shape=(100_000,))) as core:
        array = np.arange(300_000, dtype=np.float32).reshape(3, -1)
        async with httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
            _, got = values(await http.post(INFER, **posted(array)))
            np.testing.assert_array_equal(got, 2 * array)
            content = posted(array)["content"]

            async def pieces():
                for at in range(0, len(content), 70_000):
                    yield content[at : at + 70_000]

            _, got = values(await http.post(INFER, **posted(array) | {"content": pieces()}))
            np.testing.assert_array_equal(got, 2 * array)
        assert core.gate.bytes == core.gate.requests == 0


async def test_a_client_that_goes_in_the_middle_of_a_large_body(serve):
    async with serve() as core:
        port = int(core.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n".encode())
        writer.write(bytes(300_000))
        await until(lambda: core.gate.requests)
        writer.close()
        await until(lambda: not core.gate.requests)
        assert core.gate.bytes == 0
