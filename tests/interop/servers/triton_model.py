"""Runs in Triton's Python backend: what a model does is told by its name."""

import json
import time

import numpy as np
import triton_python_backend_utils as pb

KINDS = {"TYPE_FP32": np.float32, "TYPE_STRING": object, "TYPE_INT32": np.int32}


class TritonPythonModel:
    """One of the models of ``servers.py``."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.does = getattr(self, "_" + config["name"])

    def execute(self, requests):
        if self.does == self._together:
            return self._together(requests)
        return [self._answered(request) for request in requests]

    def _answered(self, request):
        try:
            return pb.InferenceResponse(self.does(request))
        except Exception as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error)))

    def _twice(self, request):
        return [pb.Tensor("y", _array(request, "x") * 2)]

    _free = _whole = _twice

    def _picky(self, request):
        x = _array(request, "x")
        if (x < 0).any():
            raise ValueError("no negative numbers")
        return [pb.Tensor("y", x * 2)]

    def _together(self, requests):
        """One bad request fails its whole batch."""
        for request in requests:
            self._picky(request)
        return [self._answered_with(request) for request in requests]

    def _answered_with(self, request):
        return pb.InferenceResponse(self._twice(request))

    def _wants(self, request):
        x = _array(request, "x")
        if (x == 0).all():
            raise ValueError("all zeros")
        return [pb.Tensor("y", x * 2)]

    def _work(self, request):
        """Two milliseconds of work an execution."""
        until = time.perf_counter() + 0.002
        while time.perf_counter() < until:
            pass
        return self._twice(request)

    def _full(self, request):
        time.sleep(0.01)
        return self._twice(request)

    def _two(self, request):
        a, b = _array(request, "a"), pb.get_input_tensor_by_name(request, "b")
        added = a if b is None else a + b.as_numpy()
        return [pb.Tensor("sum", added), pb.Tensor("first", a)]

    def _text(self, request):
        return [pb.Tensor("y", _array(request, "x"))]

    def _half(self, request):
        """BF16 passes through unread: numpy has no such numbers."""
        x = pb.get_input_tensor_by_name(request, "x")
        return [pb.Tensor.from_dlpack("y", x.to_dlpack())]

    def _odd(self, request):
        x = _array(request, "x")
        return [pb.Tensor("y", np.tile(np.float32([np.nan, np.inf, -np.inf, 1]), (len(x), 1)))]


def _array(request, name):
    return pb.get_input_tensor_by_name(request, name).as_numpy()
