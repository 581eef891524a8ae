"""MLServer's runtime of the models of ``servers.py``: what one does is told by its name."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse


class Named(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        inputs = {one.name: self._array(one) for one in payload.inputs}
        arrays = getattr(self, "_" + self.name)(**inputs)
        outputs = [self._tensor(name, array) for name, array in arrays.items()]
        return InferenceResponse(model_name=self.name, outputs=outputs)

    def _array(self, tensor):
        codec = StringCodec if tensor.datatype == "BYTES" else NumpyCodec
        return codec.decode_input(tensor)

    def _tensor(self, name, array):
        codec = StringCodec if isinstance(array, list) else NumpyCodec
        return codec.encode_output(name, array)

    def _twice(self, x):
        return {"y": x * 2}

    def _picky(self, x):
        if (x < -100).any():
            raise InferenceError("numbers below -100")
        if (x < 0).any():
            raise RuntimeError("no negative numbers")
        return {"y": x * 2}

    def _wants(self, x):
        if (x == 0).all():
            raise RuntimeError("all zeros")
        return {"y": x * 2}

    def _two(self, a, b=None):
        return {"sum": a if b is None else a + b, "first": a}

    def _text(self, x):
        return {"y": x}

    def _odd(self, x):
        return {"y": np.tile(np.float32([np.nan, np.inf, -np.inf, 1]), (len(x), 1))}

    def _flat(self, x):
        """What it answers has one dimension, which NumpyCodec makes two."""
        return {"y": x.sum(1)}
