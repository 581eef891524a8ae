"""A small server of the Open Inference Protocol, with faults at will.

In a process of its own, ``python oip_server.py grpc PORT``: it restarts on each line of input.
"""

import asyncio
import json
import socket
import ssl
import sys

import grpc
import grpc.aio
import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from asyncinfer_drivers.open_inference.tensors import DATATYPES

STATUS = {  # what a fault is called over gRPC and over HTTP
    "input": (grpc.StatusCode.INVALID_ARGUMENT, 400),
    "busy": (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    "lost": (grpc.StatusCode.UNAVAILABLE, 503),
    "denied": (grpc.StatusCode.UNAUTHENTICATED, 401),
    "unknown": (grpc.StatusCode.NOT_FOUND, 404),
    "timeout": (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
    "failed": (grpc.StatusCode.INTERNAL, 500),
}


class Fault(Exception):
    """What the server answers instead."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.grpc, self.http = STATUS[kind]


def arrived(raw, datatype):
    """The array of raw contents; texts with their lengths, BF16 as bit patterns."""
    if datatype == "BF16":
        return np.frombuffer(raw, "<u2")
    if datatype != "BYTES":
        return np.frombuffer(raw, DATATYPES[datatype])
    return np.array(deserialize_bytes_tensor(raw), object)


def leaving(array):
    if array.dtype == object:
        return serialize_byte_tensor(array).item()
    return array.tobytes()


def tensor(name, datatype, shape):
    return {"name": name, "datatype": datatype, "shape": shape}


class Server:
    """Doubles what it gets, on one port; speaks gRPC or HTTP."""

    def __init__(self, protocol, tls=None):
        self.protocol = protocol
        self.tls = tls
        self.model = "twice"
        self.inputs = [tensor("x", "FP32", [-1, 4])]
        self.outputs = [tensor("y", "FP32", [-1, 4])]
        self.run = lambda arrays: {"y": arrays["x"] * 2}
        self.delay = 0.0
        #: one is taken for each request, or all get the same
        self.faults = []
        self.always = None
        #: more tasks in a request are refused, in Triton's words; whether it tells of that
        self.max_batch_size, self.tells = None, True
        #: names of inputs that may be left out
        self.optional = []
        #: more requests than that at once get the fault ``full``
        self.most_at_once, self.full, self.refused = 1000, None, 0
        self.ready = True
        #: typed contents over gRPC, JSON over HTTP
        self.plain = False
        self.headers = []
        self.sizes = []
        self.running = self.most = self.cancelled = self.answered = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"127.0.0.1:{self.port}"
        self._stop = None

    async def start(self):
        self._stop = await (self._start_grpc if self.protocol == "grpc" else self._start_http)()

    async def stop(self):
        stop, self._stop = self._stop, None
        if stop:
            await stop()

    async def restart(self):
        await self.stop()
        await self.start()

    async def infer(self, headers, sent):
        """The arrays for those sent; keeps count of what happens."""
        self.headers.append(headers)
        if self.faults or self.always:
            raise Fault(*(self.faults.pop(0) if self.faults else self.always))
        if self.running >= self.most_at_once:
            self.refused += 1
            raise Fault(*self.full)
        most = self.max_batch_size
        if most and len(next(iter(sent.values()))) > most:
            self.refused += 1
            raise Fault("input", f"inference request batch-size must be <= {most} for 'twice'")
        self.sizes.append(len(next(iter(sent.values()))))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        self.answered += 1
        return self.run(sent)

    def described(self, name):
        if name != self.model:
            raise Fault("unknown", f"no model {name}")
        return {"name": name, "inputs": self.inputs, "outputs": self.outputs}

    def datatype(self, name, array):
        said = next((o["datatype"] for o in self.outputs if o["name"] == name), None)
        kinds = {dtype: kind for kind, dtype in DATATYPES.items()}
        return said if said in ("BYTES", "BF16") else kinds[array.dtype]

    # ---- gRPC

    async def _start_grpc(self):
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(self), server)
        if self.tls:
            server.add_secure_port(
                self.url,
                grpc.ssl_server_credentials(
                    [(self.tls["key"].read_bytes(), self.tls["cert"].read_bytes())],
                    self.tls["ca"].read_bytes(),
                    require_client_auth=True,
                ),
            )
        else:
            server.add_insecure_port(self.url)
        await server.start()
        return lambda: server.stop(None)

    # ---- HTTP

    async def _start_http(self):
        app = web.Application(client_max_size=1 << 30, handler_args={"handler_cancellation": True})
        app.router.add_get("/v2/models/{name}", self._http_metadata)
        app.router.add_get("/v2/models/{name}/ready", self._http_ready)
        app.router.add_get("/v2/models/{name}/config", self._http_config)
        app.router.add_post("/v2/models/{name}/infer", self._http_infer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await runner.setup()
        context = None
        if self.tls:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.tls["ca"])
            context.load_cert_chain(self.tls["cert"], self.tls["key"])
            context.verify_mode = ssl.CERT_REQUIRED
        await web.TCPSite(runner, "127.0.0.1", self.port, ssl_context=context).start()
        return runner.cleanup

    async def _http_metadata(self, request):
        try:
            return web.json_response(self.described(request.match_info["name"]))
        except Fault as fault:
            return web.json_response({"error": str(fault)}, status=fault.http)

    async def _http_ready(self, request):
        return web.json_response({}, status=200 if self.ready else 503)

    async def _http_config(self, request):
        if not self.tells:
            return web.json_response({"detail": "Not Found"}, status=404)
        named = [
            {"name": one["name"], "optional": one["name"] in self.optional} for one in self.inputs
        ]
        return web.json_response({"max_batch_size": self.max_batch_size or 0, "input": named})

    async def _http_infer(self, request):
        body = await request.read()
        size = int(request.headers.get("Inference-Header-Content-Length", len(body)))
        head, at, arrays = json.loads(body[:size]), size, {}
        for one in head["inputs"]:
            if "data" in one:
                array = np.array(one["data"], DATATYPES[one["datatype"]])
            else:
                end = at + one["parameters"]["binary_data_size"]
                array, at = arrived(body[at:end], one["datatype"]), end
            arrays[one["name"]] = array.reshape(one["shape"])
        try:
            results = await self.infer(dict(request.headers), arrays)
        except Fault as fault:
            return web.json_response({"error": str(fault)}, status=fault.http)
        outputs, raw = [], b""
        for name, array in results.items():
            one = tensor(name, self.datatype(name, array), list(array.shape))
            if self.plain:
                values = array.ravel().tolist()
                one["data"] = [x.decode() if isinstance(x, bytes) else x for x in values]
            else:
                data = leaving(array)
                one["parameters"] = {"binary_data_size": len(data)}
                raw += data
            outputs.append(one)
        text = json.dumps({"outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))} if raw else {}
        return web.Response(body=text + raw, headers=headers)


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, server):
        self.server = server

    async def ModelMetadata(self, request, context):  # noqa: N802
        try:
            found = self.server.described(request.name)
        except Fault as fault:
            await context.abort(fault.grpc, str(fault))
        kinds = {
            kind: [pb.ModelMetadataResponse.TensorMetadata(**one) for one in found[kind]]
            for kind in ("inputs", "outputs")
        }
        return pb.ModelMetadataResponse(name=found["name"], **kinds)

    async def ModelConfig(self, request, context):  # noqa: N802
        if not self.server.tells:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not implemented!")
        reply = pb.ModelConfigResponse()
        reply.config.max_batch_size = self.server.max_batch_size or 0
        for one in self.server.inputs:
            optional = one["name"] in self.server.optional
            reply.config.input.add(name=one["name"], optional=optional)
        return reply

    async def ModelReady(self, request, context):  # noqa: N802
        return pb.ModelReadyResponse(ready=self.server.ready)

    async def ModelInfer(self, request, context):  # noqa: N802
        arrays = {
            one.name: arrived(raw, one.datatype).reshape(list(one.shape))
            for one, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            results = await self.server.infer(dict(context.invocation_metadata()), arrays)
        except Fault as fault:
            await context.abort(fault.grpc, str(fault))
        reply = pb.ModelInferResponse(model_name=request.model_name)
        for name, array in results.items():
            kind = self.server.datatype(name, array)
            one = reply.outputs.add(name=name, datatype=kind, shape=array.shape)
            if self.server.plain and kind == "BYTES":
                one.contents.bytes_contents.extend(array.flat)
            elif self.server.plain:
                one.contents.fp32_contents.extend(array.ravel().tolist())
            else:
                reply.raw_output_contents.append(leaving(array))
        return reply


async def main(protocol, port):
    server = Server(protocol)
    server.port, server.url = int(port), f"127.0.0.1:{port}"
    await server.start()
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        await server.restart()
        print("ready", flush=True)
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
