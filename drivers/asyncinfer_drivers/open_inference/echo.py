"""A server that sends every tensor back, as fast as Python can: the other end of ``measure``."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from tritonclient.grpc import service_pb2, service_pb2_grpc

__all__ = ("main",)

pb: Any = service_pb2
_LENGTH = "Inference-Header-Content-Length"
_TENSORS = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
}


class _Echo(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # untyped
    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        kinds = {
            kind: [pb.ModelMetadataResponse.TensorMetadata(**one) for one in tensors]
            for kind, tensors in _TENSORS.items()
        }
        return pb.ModelMetadataResponse(name=request.name, **kinds)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        (given,) = request.inputs
        reply = pb.ModelInferResponse(model_name=request.model_name)
        reply.outputs.add(name="y", datatype="FP32", shape=given.shape)
        reply.raw_output_contents.extend(request.raw_input_contents)
        return reply


async def _infer(request: web.Request) -> web.Response:
    body, size = await request.read(), int(request.headers[_LENGTH])
    (given,) = json.loads(body[:size])["inputs"]
    one = {**given, "name": "y"}
    text = json.dumps({"model_name": "echo", "outputs": [one]}).encode()
    return web.Response(body=text + body[size:], headers={_LENGTH: str(len(text))})


async def _metadata(request: web.Request) -> web.Response:
    return web.json_response({"name": "echo", **_TENSORS})


async def main() -> None:
    """Serve until standard input closes; print the ports, gRPC's first."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.aio.server(options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/v2/models/{name}/infer", _infer)
    app.router.add_get("/v2/models/{name}", _metadata)
    app.router.add_get("/v2/models/{name}/ready", _metadata)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(port, runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(main())
