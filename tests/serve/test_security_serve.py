"""Messages that are begun and never ended take no more memory than the limits say."""

import asyncio

import grpc.aio
from serve_flood import Flood
from tritonclient.grpc import service_pb2 as pb

MIB = 1 << 20
CALLS = 24
#: bytes that HTTP/2 lets each call send before anybody asks
WINDOW = 65535


async def of_each(flooded, *methods):
    """Each with a server of its own, at once: they only wait for nothing more to come."""
    async with asyncio.TaskGroup() as group:
        for method in methods:
            group.create_task(flooded(method), name=method)


async def test_health_takes_no_messages(serve):
    async def flooded(method):
        async with serve(max_request_bytes=MIB, max_total_bytes=2 * MIB) as core:
            flood = Flood(method, CALLS, MIB)
            await flood.run(int(core.target.rpartition(":")[2]), 1.0)
        assert flood.ended == set(flood.taken)
        assert sum(flood.taken.values()) <= CALLS * WINDOW

    await of_each(flooded, "ServerLive", "ServerReady")


async def test_calls_take_only_what_there_is_room_for(serve):
    async def flooded(method):
        async with serve(max_request_bytes=MIB, max_total_bytes=2 * MIB) as core:
            flood = Flood(method, CALLS, MIB)
            flooding = asyncio.create_task(flood.run(int(core.target.rpartition(":")[2]), 2.0))
            await asyncio.sleep(1.0)
            assert core.gate.bytes <= 2 * MIB
            async with grpc.aio.insecure_channel(core.target) as channel:
                live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                answer = await live(pb.ServerLiveRequest().SerializeToString(), timeout=10)
            assert pb.ServerLiveResponse.FromString(answer).live
            await flooding
        # of two calls the message, of the others what nobody has asked for
        assert MIB < sum(flood.taken.values()) <= 2 * (MIB + WINDOW) + (CALLS - 2) * WINDOW

    await of_each(flooded, "ServerMetadata", "ModelMetadata", "ModelReady", "ModelInfer")
