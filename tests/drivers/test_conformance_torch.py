"""The torch driver keeps every promise of a driver, with a shipped model and with a module."""

import time

import pytest
import torch
from torch import nn

from asyncinfer.testing import check_driver
from asyncinfer_drivers.models import digits
from asyncinfer_drivers.torch_host import TorchDriver

STROKES = [torch.zeros(8, 8), *(torch.eye(8).roll(n, 0) * 16 for n in range(0, 8, 2))]


def net() -> nn.Module:
    torch.manual_seed(42)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("options", [{}, {"max_batch": 4}, {"max_batch": 2, "concurrency": 2}])
async def test_the_digits_model_conforms(options):
    model = digits.build()

    def expected(picture):
        with torch.inference_mode():
            return digits.postprocess(model(digits.preprocess(picture).unsqueeze(0))[0])

    pictures = [digits.example(), *(stroke.numpy() for stroke in STROKES)]
    report = await check_driver(
        lambda: TorchDriver("digits", threads=1, **options),
        pictures,
        expected=expected,
        bad_inputs=[torch.zeros(3, 3), "seven", None],
        cannot_open=lambda: TorchDriver("/no/such/model.pt2"),
    )
    assert {*report.skipped.values()} == {"needs observed=", "needs unplug="}


async def test_a_module_conforms():
    module = net()

    def expected(x):
        with torch.inference_mode():
            return module(x.unsqueeze(0))[0]

    report = await check_driver(
        lambda: TorchDriver(module, threads=1, max_batch=3, concurrency=2),
        [*torch.randn(7, 4, generator=torch.Generator().manual_seed(42))],
        expected=expected,
        equal=torch.allclose,
        bad_inputs=[torch.zeros(5), object()],
        cannot_open=lambda: TorchDriver(module, warmup_input=torch.zeros(9)),
        observed=lambda call: TorchDriver(module, preprocess=lambda x: (x, call())[0]),
    )
    assert {*report.skipped.values()} == {"needs unplug="}


async def test_a_slow_device_conforms():
    await check_driver(
        lambda: TorchDriver(net, threads=1, preprocess=slowly, max_batch=2),
        [torch.full((4,), float(n)) for n in range(3)],
        equal=torch.allclose,
    )


def slowly(x):
    time.sleep(0.002)
    return x
