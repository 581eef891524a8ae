"""The driver against the firmware's C, run here under AddressSanitizer and UBSan."""

import asyncio
import shutil

import numpy as np
import pytest

from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.timing import Timing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("arm-none-eabi-gcc"), reason="needs arm-none-eabi-gcc"),
    pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc"),
]


@pytest.fixture(scope="module")
def firmware(tmp_path_factory):
    """The digits firmware, and its program for this computer."""
    pytest.importorskip("bakenn")
    from asyncinfer_drivers.cortex_m.build import build_firmware
    from asyncinfer_drivers.cortex_m.builder.host import build_host_program

    built = build_firmware("digits", "digits")
    return built, build_host_program(built, tmp_path_factory.mktemp("host") / "firmware")


@pytest.fixture
def firmware_line(firmware, board):
    """Makes a ``Connect`` to a new process of the firmware, over a line of that name."""

    def make(quality):
        wrap = board(quality).wrap

        async def connect(receiver):
            class Process(asyncio.SubprocessProtocol):
                def connection_made(self, transport):
                    self.down = wrap(self)
                    self.up = wrap(Up)
                    self.process = transport

                def pipe_data_received(self, fd, data):
                    assert fd == 1, data.decode()
                    self.up.write(data)

                def connection_lost(self, error):
                    receiver.connection_lost(error)

                def write(self, data):
                    pipe = self.process.get_pipe_transport(0)
                    if not pipe.is_closing():
                        pipe.write(data)

                def abort(self):
                    self.process.close()

            class Up:
                write = staticmethod(receiver.data_received)

            loop = asyncio.get_running_loop()
            _, process = await loop.subprocess_exec(Process, str(firmware[1]))
            return process.down

        return connect

    return make


@pytest.mark.parametrize("quality", ["perfect", "bytewise", "lossy", "delayed", "doubling"])
async def test_digits_are_bit_exact_over_every_line(firmware, firmware_line, quality):
    built, _ = firmware
    chance = np.random.default_rng(42)
    samples = chance.integers(-128, 128, (200, *built.input.shape), np.int8)
    timing = Timing(hello=0.1, slack=0.02, first=0.2, longest=0.2, timeouts=20)
    driver = CortexM4Driver(
        firmware_line(quality), raw=True, max_batch=8, model="digits", timing=timing
    )
    await driver.open()
    try:
        two = asyncio.Semaphore(2)

        async def infer(part):
            async with two:
                return await driver.infer(list(part))

        parts = await asyncio.gather(*map(infer, np.split(samples, 25)))
        stats = await driver.stats()
    finally:
        await driver.close()
    outputs = np.array([output for part in parts for output in part])
    assert np.array_equal(outputs, built.reference(samples))
    assert stats.samples == 200
    assert (stats.link.resent > 0) == (quality == "lossy")


async def test_a_reset_in_the_middle_costs_nothing(firmware, firmware_line):
    built, _ = firmware
    samples = np.random.default_rng(1).integers(-128, 128, (40, *built.input.shape), np.int8)
    driver = CortexM4Driver(firmware_line("perfect"), raw=True)
    await driver.open()
    try:
        calls = [asyncio.create_task(driver.infer(list(p))) for p in np.split(samples, 10)]
        await asyncio.sleep(0)
        before = driver.board.boot_counter
        board = await driver.reset()
        outputs = np.concatenate([await call for call in calls])
    finally:
        await driver.close()
    assert board.boot_counter == before + 1
    assert np.array_equal(outputs, built.reference(samples))
