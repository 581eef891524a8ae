"""KServe's model server with the models of ``servers.py``: HTTP_PORT GRPC_PORT."""

import sys

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer


class Named(Model):
    """What it does is told by its name."""

    def __init__(self, name, inputs, outputs):
        super().__init__(name)
        self.said = inputs, outputs
        self.ready = True

    async def get_input_types(self):
        return self.said[0]

    async def get_output_types(self):
        return self.said[1]

    async def predict(self, payload, headers=None, response_headers=None):
        arrays = {one.name: one.as_numpy() for one in payload.inputs}
        outputs = []
        for name, array in getattr(self, self.name)(**arrays).items():
            kind = "BYTES" if array.dtype.kind in "OSU" else "FP32"
            one = InferOutput(name, list(array.shape), kind)
            one.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            outputs.append(one)
        return InferResponse(
            payload.id or "",
            self.name,
            outputs,
            use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )

    def twice(self, x):
        return {"y": x * 2}

    def picky(self, x):
        if (x < 0).any():
            raise RuntimeError("no negative numbers")
        return {"y": x * 2}

    def wants(self, x):
        if (x == 0).all():
            raise RuntimeError("all zeros")
        return {"y": x * 2}

    def two(self, a, b=None):
        return {"sum": a if b is None else a + b, "first": a}

    def text(self, x):
        return {"y": x}

    def odd(self, x):
        return {"y": np.tile(np.float32([np.nan, np.inf, -np.inf, 1]), (len(x), 1))}


def tensor(name, datatype="FP32", shape=(-1, 4)):
    return {"name": name, "datatype": datatype, "shape": list(shape)}


if __name__ == "__main__":
    one = [tensor("x")], [tensor("y")]
    models = [Named(name, *one) for name in ("twice", "picky", "wants", "odd")]
    models.append(Named("two", [tensor("a"), tensor("b")], [tensor("sum"), tensor("first")]))
    texts = [[tensor(name, "BYTES", (-1, 1))] for name in "xy"]
    models.append(Named("text", *texts))
    http, grpc = map(int, sys.argv[1:])
    ModelServer(http_port=http, grpc_port=grpc, workers=1).start(models)
