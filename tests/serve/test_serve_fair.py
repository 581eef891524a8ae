"""Clients take turns, whatever the others have sent; and a request may say that it is urgent."""

import asyncio
import sys

import grpc
import httpx
import numpy as np
import pytest
from serve_models import simulated, until
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from asyncinfer.serve.claims import client_at, client_of_peer, request_priority
from asyncinfer.serve.errors import BadRequest

#: what one device runs at once, and the seconds that takes
BATCH, SECONDS = 8, 0.06


def model():
    """One that notes the first number of each row, batch by batch."""
    served = simulated(seconds=SECONDS / BATCH)
    (driver,), batches = served.drivers, []
    infer = driver.infer

    async def noting(batch):
        batches.append([int(row[0]) for row in batch])
        return await infer(batch)

    driver.infer = noting
    return served, batches


def message(mark, rows=1, **parameters):
    found = pb.ModelInferRequest(model_name="m")
    found.inputs.add(name="input", datatype="FP32", shape=[rows, 2])
    found.raw_input_contents.append(np.full((rows, 2), mark, np.float32).tobytes())
    for name, value in parameters.items():
        found.parameters[name].int64_param = value
    return found


def body(mark, rows=1, **parameters):
    data = [float(mark)] * 2 * rows
    tensor = {"name": "input", "shape": [rows, 2], "datatype": "FP32", "data": data}
    return {"inputs": [tensor], "parameters": parameters}


class Http:
    """One client, with as many connections as it has requests."""

    def __init__(self, core, address=None):
        transport = httpx.AsyncHTTPTransport(
            local_address=address, limits=httpx.Limits(max_connections=None)
        )
        self.client = httpx.AsyncClient(base_url=core.url, transport=transport, timeout=10)

    async def infer(self, mark, rows=1, **parameters):
        answer = await self.client.post("/v2/models/m/infer", json=body(mark, rows, **parameters))
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == [2.0 * mark] * 2 * rows

    async def close(self):
        await self.client.aclose()


class Rpc:
    """One client, with one connection."""

    def __init__(self, core):
        alone = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(core.target, options=alone)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    async def infer(self, mark, rows=1, **parameters):
        answer = await self.stub.ModelInfer(message(mark, rows, **parameters))
        data = np.frombuffer(answer.raw_output_contents[0], np.float32)
        assert data.tolist() == [2.0 * mark] * 2 * rows

    async def close(self):
        await self.channel.close()


async def waited(core, batches, many, one, requests, rows, **parameters):
    """How many batches a row waited for behind many of somebody else; the one that ran included."""
    dispatcher, came = core.models["m"].dispatcher, {}
    infer = dispatcher.infer

    async def noting(row, **claim):
        came[int(row[0])] = len(batches)
        return await infer(row, **claim)

    dispatcher.infer = noting
    sent = [asyncio.create_task(many.infer(1, rows)) for _ in range(requests)]

    def busy():
        for each in sent:
            if each.done():
                each.result()  # raises what went wrong
        return core.gate.rows > requests * rows / 2 and len(batches) > 2

    await until(busy)
    longest = 0
    for mark in range(2, 6):
        await one.infer(mark, **parameters)
        (at,) = (at for at, batch in enumerate(batches) if mark in batch)
        longest = max(longest, at - came[mark] + 1)
    for each in sent:
        each.cancel()
    await asyncio.wait(sent)
    await many.close()
    await one.close()
    await until(lambda: core.gate.requests == 0)
    return longest


@pytest.mark.parametrize(
    ("kind", "requests"), [(Rpc, (1, 1000)), (Http, (1, 1000)), (Rpc, (250, 4)), (Rpc, (250, 3))]
)
async def test_one_row_waits_for_two_batches_behind_a_thousand_of_another(serve, kind, requests):
    served, batches = model()
    async with serve(served) as core:
        assert await waited(core, batches, kind(core), Http(core), *requests) <= 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this host")
async def test_many_connections_of_one_host_are_one_client(serve):
    served, batches = model()
    async with serve(served) as core:
        many, one = Http(core), Http(core, "127.0.0.2")
        assert await waited(core, batches, many, one, 200, 1) <= 2


@pytest.mark.parametrize("kind", [Rpc, Http])
async def test_an_urgent_request_is_next_though_its_client_has_sent_many(serve, kind):
    served, batches = model()
    async with serve(served) as core:
        many = kind(core)
        assert await waited(core, batches, many, kind(core), 100, 2, priority=1) <= 2


@pytest.mark.parametrize("kind", [Rpc, Http])
async def test_requests_that_are_alike_but_for_their_priority(serve, kind):
    """Each has its own, whatever the server remembers of the requests before."""
    served, _ = model()
    asked, infer = [], None
    async with serve(served) as core:
        dispatcher = core.models["m"].dispatcher
        infer = dispatcher.infer

        async def noting(x, **claim):
            asked.append(claim["priority"])
            return await infer(x, **claim)

        dispatcher.infer = noting
        client = kind(core)
        for priority in (1, 1, 2, 0, 2, 5, 5, 9, 1):
            await client.infer(3, priority=priority)
        await client.infer(3)
        await client.close()
    assert asked == [1, 1, 2, 0, 2, 5, 5, 5, 1, 0]


@pytest.mark.parametrize("priority", [-1, "1", 1.5, True])
async def test_a_priority_that_makes_no_sense_is_the_clients_error(serve, priority):
    served, _ = model()
    async with serve(served) as core, httpx.AsyncClient(base_url=core.url) as client:
        answer = await client.post("/v2/models/m/infer", json=body(1, priority=priority))
        assert answer.status_code == 400
        assert "'priority'" in answer.json()["error"]
        rpc = Rpc(core)
        wrong = message(1)
        wrong.parameters["priority"].string_param = str(priority)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.stub.ModelInfer(wrong)
        await rpc.close()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_what_identifies_a_client():
    assert client_at(("10.0.0.1", 52144)) == ("10.0.0.1", "52144")
    assert client_at(None) is None
    assert client_of_peer("ipv4:10.0.0.1:52144") == ("10.0.0.1", "grpc 52144")
    assert client_of_peer("ipv6:%5B::1%5D:52144") == ("::1", "grpc 52144")
    assert client_of_peer("ipv6:[::1]:52144") == ("::1", "grpc 52144")
    assert client_of_peer("unix:") is None


def test_priorities_of_the_protocol():
    assert [request_priority({"priority": n}) for n in (0, 1, 5, 6, 1 << 60)] == [0, 1, 5, 5, 5]
    assert request_priority({}) == 0
    with pytest.raises(BadRequest):
        request_priority({"priority": -1})
