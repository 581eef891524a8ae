"""gRPC without a client's help: what is no message, typed contents, streams, limits, tokens."""

import asyncio

import grpc
import numpy as np
import pytest
from serve_models import simulated, slow_down, until
from tritonclient.grpc import service_pb2, service_pb2_grpc

CODE = grpc.StatusCode


def request(rows=((1.0, 2.0),), name="m", **more):
    array = np.asarray(rows, np.float32)
    message = service_pb2.ModelInferRequest(model_name=name, **more)
    message.inputs.add(name="input", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


def values(response):
    return np.frombuffer(response.raw_output_contents[0], "<f4").tolist()


def stub(channel):
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def code_of(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_raw_and_typed_contents(serve):
    async with serve() as core, grpc.aio.insecure_channel(core.target) as channel:
        assert values(await stub(channel).ModelInfer(request())) == [2, 4]
        typed = request()
        del typed.raw_input_contents[:]
        typed.inputs[0].contents.fp32_contents.extend([3, 4])
        assert values(await stub(channel).ModelInfer(typed)) == [6, 8]
        typed.inputs[0].contents.int_contents.append(1)
        assert await code_of(stub(channel).ModelInfer(typed)) is CODE.INVALID_ARGUMENT


@pytest.mark.parametrize("data", [b"", b"\xff" * 20, b"\x0a\x01", b"\x0a\x02\xff\xfe"])
async def test_what_is_no_request_is_the_clients_error(serve, data):
    async with serve() as core, grpc.aio.insecure_channel(core.target) as channel:
        for method in ("ModelInfer", "ModelMetadata"):
            call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            assert await code_of(call(data)) in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND)
        unknown = channel.unary_unary("/inference.GRPCInferenceService/Nope")
        assert await code_of(unknown(data)) is CODE.UNIMPLEMENTED


async def test_limits(serve):
    limits = {"max_request_bytes": 20_000, "max_rows": 2}
    slow = simulated(seconds=0.05)
    async with serve(slow, **limits) as core, grpc.aio.insecure_channel(core.target) as channel:
        large = stub(channel).ModelInfer(request(np.zeros((5000, 2))))
        assert await code_of(large) is CODE.RESOURCE_EXHAUSTED
        calls = [stub(channel).ModelInfer(request()) for _ in range(6)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [error.code() for error in outcomes if isinstance(error, grpc.aio.AioRpcError)]
        assert refused == [CODE.RESOURCE_EXHAUSTED] * 4
        assert values(await stub(channel).ModelInfer(request())) == [2, 4]
        assert core.gate.bytes == core.gate.rows == core.gate.requests == 0


async def test_a_call_that_is_cancelled_or_late_withdraws_its_tasks(serve):
    async with serve() as core, grpc.aio.insecure_channel(core.target) as channel:
        slow_down(core)
        rows = np.zeros((20, 2))
        call = stub(channel).ModelInfer(request(rows))
        await until(lambda: core.gate.rows == 20)
        call.cancel()
        await until(lambda: not core.gate.requests)
        late = stub(channel).ModelInfer(request(rows), timeout=0.05)
        assert await code_of(late) is CODE.DEADLINE_EXCEEDED
        await until(lambda: not core.gate.requests)
        assert core.models["m"].dispatcher.stats().waiting == 0


async def test_a_stream_is_read_no_further_than_it_may(serve):
    slow = simulated(seconds=0.001)
    read = 0

    async def requests():
        nonlocal read
        for number in range(200):
            read += 1
            yield request([[number, 0]], name="m" if number % 50 else "nope", id=str(number))

    async with (
        serve(slow, max_stream_requests=4) as core,
        grpc.aio.insecure_channel(core.target) as channel,
    ):
        seen = 0
        async for answer in stub(channel).ModelStreamInfer(requests()):
            assert core.gate.requests <= 6  # 4, one that waits to be the fifth, one that ends
            assert answer.infer_response.id == str(seen)
            if seen % 50:
                assert values(answer.infer_response) == [2 * seen, 0]
            else:
                assert "nope" in answer.error_message
            seen += 1
        assert seen == 200


async def test_streams_are_counted_and_end_with_their_client(serve):
    async with serve(max_streams=1) as core, grpc.aio.insecure_channel(core.target) as channel:
        slow_down(core)
        first = stub(channel).ModelStreamInfer()
        await first.write(request())
        await until(lambda: core.gate.requests)
        second = stub(channel).ModelStreamInfer()
        assert await code_of(second.read()) is CODE.RESOURCE_EXHAUSTED
        first.cancel()
        await until(lambda: not (core.gate.streams or core.gate.requests))
        assert core.gate.bytes == 0


async def test_a_token_is_needed_but_for_health(serve):
    async with serve(token="t" * 16) as core, grpc.aio.insecure_channel(core.target) as channel:
        api = stub(channel)
        assert (await api.ServerReady(service_pb2.ServerReadyRequest())).ready
        assert await code_of(api.ModelInfer(request())) is CODE.UNAUTHENTICATED
        metadata = service_pb2.ServerMetadataRequest()
        assert await code_of(api.ServerMetadata(metadata)) is CODE.UNAUTHENTICATED
        right = (("authorization", f"Bearer {'t' * 16}"),)
        assert values(await api.ModelInfer(request(), metadata=right)) == [2, 4]
