"""MLServer's own client against a server: HTTP_PORT GRPC_PORT; its environment runs it."""

import sys
import urllib.request

import grpc
import numpy as np
from mlserver.codecs import NumpyCodec
from mlserver.grpc import converters
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, InferenceResponse

A, B = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.int32)


def check(answer):
    outputs = {one.name: NumpyCodec.decode_output(one) for one in answer.outputs}
    np.testing.assert_array_equal(outputs["OUTPUT0"], A + B)
    np.testing.assert_array_equal(outputs["OUTPUT1"], A - B)


http, port = sys.argv[1:]
pairs = {"INPUT0": A, "INPUT1": B}
asked = InferenceRequest(inputs=[NumpyCodec.encode_input(*pair) for pair in pairs.items()])
sent = urllib.request.Request(
    f"http://127.0.0.1:{http}/v2/models/simple/infer",
    asked.model_dump_json().encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(sent) as answer:  # noqa: S310  # our own server
    check(InferenceResponse.model_validate_json(answer.read()))
with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
    stub = GRPCInferenceServiceStub(channel)
    for raw in (False, True):
        message = converters.ModelInferRequestConverter.from_types(
            asked, model_name="simple", model_version=None, use_raw=raw
        )
        check(converters.ModelInferResponseConverter.to_types(stub.ModelInfer(message)))
print("right")
