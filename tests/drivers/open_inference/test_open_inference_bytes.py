"""What is sent for arrays of every kind, and replies that begin like the one before."""

import itertools

import numpy as np
import pytest
from oip_server import tensor
from tritonclient.grpc import service_pb2 as pb

from asyncinfer_drivers.open_inference.access import Access, Address
from asyncinfer_drivers.open_inference.grpc_transport import GrpcTransport
from asyncinfer_drivers.open_inference.tensors import Message

GRID = np.arange(12, dtype=np.float32).reshape(3, 4)
INPUTS = {
    "as it is": GRID,
    "of columns": np.asfortranarray(GRID),
    "a part": np.repeat(GRID, 2, axis=1)[:, ::2],
    "of another type": np.asfortranarray(GRID.astype(np.float64)),
    "a list": GRID.tolist(),
}


@pytest.mark.parametrize("kind", INPUTS)
async def test_arrays_arrive_as_they_are(server, opened, kind):
    shape = [-1, 3, 4]
    server.inputs, server.outputs = [tensor("x", "FP32", shape)], [tensor("y", "FP32", shape)]
    async with opened(server, max_batch=2) as driver:
        outputs = await driver.infer([GRID, INPUTS[kind]])
    assert [output.tolist() for output in outputs] == [(2 * GRID).tolist()] * 2


def reply(*tensors, name="m", extra=b""):
    """Bytes of a reply: names, and raw contents of each."""
    message = pb.ModelInferResponse(model_name=name)
    for one, raw in tensors:
        message.outputs.add(name=one, datatype="UINT8", shape=[1, len(raw)])
        message.raw_output_contents.append(raw)
    return message.SerializeToString() + extra


def test_replies_that_begin_alike_are_told_apart():
    transport = GrpcTransport(Address.parse("h:1", "grpc", False), Access(), "m", "")
    typed = pb.ModelInferResponse()
    typed.outputs.add(name="y", datatype="UINT8", shape=[1, 1]).contents.uint_contents.append(5)
    after = pb.ModelInferResponse(model_version="two").SerializeToString()
    replies = [
        reply(("y", b"abc")),
        reply(("y", b"def")),
        reply(("y", b"defg")),
        reply(("z", b"defg")),
        reply(("y", b"abc"), name="other"),
        reply(("y", b"abc"), ("z", b"def")),
        reply(("y", b"abc"), extra=after),
        reply(("y", b"a" * 300)),
        reply(("y", b"")),
        typed.SerializeToString(),
    ]
    for one, other in itertools.product(replies, repeat=2):
        for data in (one, one, other, one):
            found = transport.decode(Message(data))
            message = pb.ModelInferResponse.FromString(data)
            raws = [*message.raw_output_contents] or [None]
            assert [(*got[:4], list(got.values)) for got in found] == [
                (out.name, out.datatype, tuple(out.shape), raw, out.contents.uint_contents)
                for out, raw in zip(message.outputs, raws, strict=True)
            ]
