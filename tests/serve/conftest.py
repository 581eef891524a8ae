"""Servers: one in a process of its own for a module, others on the test's own event loop."""

import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for serve_child

from serve_child import child
from serve_models import simulated

from asyncinfer.serve.limits import Limits
from asyncinfer.serve.run import Address, serving
from asyncinfer.serve.security import Security


@pytest.fixture(scope="session")
def digits():
    """A server of the digits model, as users start it."""
    with child("--model", "digits", "--devices", "cpu", "cpu") as server:
        yield server


@pytest.fixture(scope="session")
def pictures():
    """Digits as the model takes them, and its own logits."""
    import torch

    from asyncinfer_drivers.models.digits import MODEL

    inputs = torch.stack([MODEL.preprocess(item) for item in MODEL.inputs().items[:64]])
    with torch.inference_mode():
        return inputs.numpy(), MODEL.build()(inputs).numpy()


@pytest.fixture
def serve():
    """``serve(models..., **limits)``: a server on free ports, inside ``async with``."""

    @asynccontextmanager
    async def start(*models, token="", **limits):
        address = Address(http_port=0, grpc_port=0, security=Security(token=token))
        async with serving(models or [simulated()], address, Limits(**limits)) as server:
            server.core.url = f"http://127.0.0.1:{server.http_port}"
            server.core.target = f"127.0.0.1:{server.grpc_port}"
            yield server.core

    return start
