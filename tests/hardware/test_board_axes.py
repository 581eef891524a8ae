"""PyTorch's shapes at an emulated board, where there are as many channels as steps."""

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer_drivers.cortex_m.emulated_driver import EmulatedCortexM4Driver, missing

torch = pytest.importorskip("torch")

from asyncinfer_drivers.torch_host import TorchDriver  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.asyncio(loop_factories=["asyncio"]),
    # torch.export of this release warns about its own internals
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


async def test_square_sequences_at_an_emulated_board_are_pytorchs():
    torch.manual_seed(42)
    net = torch.nn.Sequential(
        torch.nn.Conv1d(8, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv1d(8, 8, 3, padding=1)
    ).eval()
    inputs = np.random.default_rng(42).normal(size=(12, 8, 8)).astype(np.float32)
    with torch.inference_mode():
        right = net(torch.from_numpy(inputs)).numpy()
    board = EmulatedCortexM4Driver(model=net, calibration=inputs, name="board")
    drivers = [board, TorchDriver(net, name="torch", optimize="none")]
    async with Dispatcher(drivers, policy="static", wait_for="all") as dispatcher:
        results = [result async for result in dispatcher.results(list(inputs))]
    assert {result.device for result in results} == {"board", "torch"}
    assert board.report()["bit_exact"] is True
    for result in results:
        assert result.value.shape == (8, 8)
        assert np.abs(np.asarray(result.value) - right[result.index]).max() < 0.1
