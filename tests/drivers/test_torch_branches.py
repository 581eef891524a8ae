"""Models whose Python code goes another way for another input: each form follows, or is refused."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from asyncinfer_drivers._torch import aot
from asyncinfer_drivers._torch.compare import difference
from asyncinfer_drivers._torch.optimize import Choice, Search, plans_of
from asyncinfer_drivers._torch.threads import bind
from asyncinfer_drivers.torch_host import TorchDriver

PLANS = ["fuse", "channels_last", "freeze", "freeze+onednn", "fuse+channels_last+freeze"]

#: all within -1 and 1
PICTURE = torch.linspace(-1, 1, 64).view(1, 8, 8)
#: which way each goes: the warm-up's, the other one
INPUTS = [PICTURE, PICTURE * 20, PICTURE.flip(2) * 0.5, PICTURE * 30 + 5]


def in_thread(function, *args):
    with ThreadPoolExecutor(1, initializer=bind, initargs=(1,)) as thread:
        return thread.submit(function, *args).result()


def found(module, optimize, item=PICTURE) -> Choice:
    search = Search("dev", module, item, 1, 0.2, aot.Cache.of_user(1, 1))
    return in_thread(search.run, plans_of(optimize))


def answers(forward, *items):
    with torch.inference_mode():
        return [forward(item[None]) for item in items]


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(42)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.function = function
        self.eval()

    def forward(self, x):
        return self.net(self.function(x))


# --- inference mode -----------------------------------------------------------------------------


def made_in_inference_mode(train=False):
    with torch.inference_mode():
        return Calls(lambda x: x).train(train)


@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("factory", [False, True])
async def test_a_model_made_in_inference_mode_opens_and_runs(factory, train):
    given = (lambda: made_in_inference_mode(train)) if factory else made_in_inference_mode(train)
    with torch.inference_mode():
        wanted = list(made_in_inference_mode()(torch.stack(INPUTS[1:3])))
    for plan in ("auto", "none", *PLANS):
        driver = TorchDriver(
            given, warmup_input=PICTURE, optimize=plan, optimize_seconds=0.1, max_batch=2
        )
        await driver.open()
        got = await driver.infer(INPUTS[1:3])
        await driver.close()
        assert difference(wanted, got) == ""
        assert plan in ("auto", driver.details["optimize"])


# --- what is left -------------------------------------------------------------------------------

#: opens and closes a model of 10 MB, and prints the process's memory in MB after each round
ROUNDS = """
import asyncio, torch
from torch import nn
from asyncinfer_drivers.torch_host import TorchDriver

layers = [part for _ in range(4) for part in (nn.Conv2d(256, 256, 3), nn.BatchNorm2d(256))]
net, item = nn.Sequential(*layers, nn.Flatten()).eval(), torch.randn(256, 9, 9)

async def main():
    for _ in range(6):
        for optimize in ("freeze", "freeze+onednn"):
            driver = TorchDriver(net, warmup_input=item, optimize=optimize, optimize_seconds=0.1)
            await driver.open()
            assert driver.details["optimize"] == optimize, driver.details
            await driver.close()
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * 4096 / 1e6)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_form_goes_with_its_driver():
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS], capture_output=True, text=True, check=True
    )
    sizes = [float(line) for line in done.stdout.split()]
    assert len(sizes) == 6
    assert sizes[-1] - sizes[1] < 20, sizes  # each round kept 20 MB and more


def test_what_was_tried_is_freed():
    model = Calls(lambda x: x)
    in_thread(found, model, "freeze")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is torch.jit.RecursiveScriptModule]
