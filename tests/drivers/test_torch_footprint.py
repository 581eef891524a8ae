"""What a driver's tries leave in memory."""

import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from asyncinfer_drivers._torch.footprint import too_large, weights
from asyncinfer_drivers.torch_host import TorchDriver


def test_weights_are_parameters_and_buffers():
    assert weights(nn.Linear(7, 8)) == 4 * (7 * 8 + 8)
    assert weights(nn.BatchNorm1d(8)) == 4 * (4 * 8) + 8


@pytest.mark.parametrize(("side", "large"), [(8000, False), (9000, True)])
def test_which_models_are_too_large(side, large):
    assert bool(too_large(nn.Linear(side, side, device="meta"))) == large


class Large(nn.Module):
    """Whose weights are not used, so that they take address space only."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
        self.rest = nn.Parameter(torch.empty(80 << 20), requires_grad=False)

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("max_batch", [1, "auto"])
async def test_a_large_model_is_used_as_it_is_unless_a_form_is_named(max_batch):
    torch.manual_seed(42)
    model, task = Large().eval(), torch.randn(8)
    driver = TorchDriver(model, max_batch=max_batch, warmup_input=task)
    await driver.open()
    await driver.tune()
    assert str(driver.details["optimize"]).startswith("none: its weights take 320 MiB")
    assert torch.equal((await driver.infer([task]))[0], model(task))
    await driver.close()


FREED = """
import ctypes
from asyncinfer_drivers._torch import malloc

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 >> 10

libc = malloc._glibc()
malloc.hold()
piece, last = libc.malloc(200 << 20), libc.malloc(1 << 20)
ctypes.memset(piece, 1, 200 << 20)
used = resident()
libc.free(piece)
kept = resident()
malloc.trim()
print(used - kept, kept - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what is resident")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_given_back_when_told():
    at_once, when_told = map(int, subprocess.check_output([sys.executable, "-c", FREED]).split())
    assert at_once < 20
    assert when_told > 180
