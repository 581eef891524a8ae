"""KServe's own client against a server: HTTP_PORT GRPC_PORT; its environment runs it."""

import asyncio
import sys

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

A, B = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.int32)


def request(binary):
    inputs = []
    for name, array in (("INPUT0", A), ("INPUT1", B)):
        one = InferInput(name, list(array.shape), "INT32")
        one.set_data_from_numpy(array, binary_data=binary)
        inputs.append(one)
    return InferRequest("simple", inputs)


def check(answer):
    outputs = {one.name: one.as_numpy() for one in answer.outputs}
    np.testing.assert_array_equal(outputs["OUTPUT0"].reshape(A.shape), A + B)
    np.testing.assert_array_equal(outputs["OUTPUT1"].reshape(A.shape), A - B)


async def main(http, grpc):
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    base = f"http://127.0.0.1:{http}"
    for binary in (False, True):
        check(await rest.infer(base, request(binary), model_name="simple"))
    assert await rest.is_server_ready(base)
    assert await rest.is_server_live(base)
    assert await rest.is_model_ready(base, "simple")
    client = InferenceGRPCClient(f"127.0.0.1:{grpc}")
    for binary in (False, True):
        check(await client.infer(request(binary)))
    assert await client.is_server_ready()
    assert await client.is_model_ready("simple")
    await client.close()
    await rest.close()


asyncio.run(main(*sys.argv[1:]))
print("right")
