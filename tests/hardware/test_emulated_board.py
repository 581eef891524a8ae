"""The driver and the dispatcher on the real firmware, in QEMU."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError, DeviceError
from asyncinfer.testing import SimulatedDriver, check_driver
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.emulated_driver import EmulatedCortexM4Driver
from asyncinfer_drivers.cortex_m.proxy import Faults

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: for what does not depend on the event loop and takes seconds
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


def driver_of(board, **options):
    return CortexM4Driver(board.port, raw=True, **{"max_batch": 16, **options})


async def run(dispatcher, samples, answers, disturb=None):
    """Stream all samples and check each result; ``disturb(n)`` is awaited after the n-th."""
    done = 0
    async for result in dispatcher.results(samples):
        assert result.index == done
        assert (result.unwrap() == answers[done]).all()
        done += 1
        if disturb is not None:
            await disturb(done)
    assert done == len(samples)


@ONE_LOOP
async def test_all_digits_are_bit_exact(firmware, samples, answers):
    async with (
        EmulatedCortexM4(firmware.elf) as board,
        Dispatcher([driver_of(board)]) as dispatcher,
    ):
        await run(dispatcher, samples, answers)


@ONE_LOOP
async def test_the_second_board(samples, answers, firmware):
    from asyncinfer_drivers.cortex_m.build import build_firmware

    other = build_firmware("digits", "digits", board="mps2_an386")
    for file in (other.elf, other.bin):
        with pytest.raises(ConfigError, match="built for board 'mps2_an386'"):
            await EmulatedCortexM4(file).start()
    async with (
        EmulatedCortexM4(other.elf, board="mps2_an386") as board,
        Dispatcher([driver_of(board)]) as dispatcher,
    ):
        await run(dispatcher, samples[:200], answers)


@pytest.mark.parametrize("what", ["kill", "freeze", "reset", "cut"])
async def test_a_stream_survives(what, firmware, samples, answers):
    async with EmulatedCortexM4(firmware.elf, faults=Faults()) as board:

        async def disturb(done):
            if done == 100:
                await asyncio.gather(trouble(board, what))

        async with Dispatcher([driver_of(board)], window=64, retries=20) as dispatcher:
            await run(dispatcher, samples[:400], answers, disturb)


async def test_a_stopped_board_holds_up_nobody(firmware, samples, answers):
    """With default settings; the other device computes what the board should."""

    def reference(sample):
        return firmware.reference(sample[None])[0]

    async with EmulatedCortexM4(firmware.elf) as board:

        async def disturb(done):
            if done == 100:
                board.stop()

        drivers = [driver_of(board), SimulatedDriver("other", 0.002, function=reference)]
        async with asyncio.timeout(100), Dispatcher(drivers, window=64) as dispatcher:
            await run(dispatcher, samples[:600], answers, disturb)
            assert dispatcher.stats().devices[0].state != "ready"
            assert dispatcher.ready


async def trouble(board, what):
    if what == "kill":
        await board.kill()
        await asyncio.sleep(0.2)
        await board.start()
    elif what == "freeze":
        board.stop()
        await asyncio.sleep(0.5)
        board.cont()
    elif what == "reset":
        await board.reset()
    else:
        await board.cut()
        await asyncio.sleep(0.2)
        board.replug()


@ONE_LOOP
async def test_a_faulty_line_changes_no_result(firmware, samples, answers):
    async with EmulatedCortexM4(firmware.elf, faults=Faults.mixed(0.001)) as board:
        driver = driver_of(board, max_batch=1, concurrency=4)
        async with Dispatcher([driver], retries=20) as dispatcher:
            await run(dispatcher, samples[:400], answers)
        assert sum(board.proxy.counts.values()) > 10


@ONE_LOOP
async def test_boots_are_counted_through_resets_only(firmware):
    async with EmulatedCortexM4(firmware.elf) as board:
        driver = driver_of(board)
        await driver.open()
        first = driver.board.boot_counter
        assert (await driver.reset()).boot_counter == first + 1
        assert (await driver.stats()).device.boots == first + 1
        await driver.close()


async def test_the_promises_of_a_driver(firmware, samples, answers):
    def make(**options):
        return EmulatedCortexM4Driver(raw=True, max_batch=8, **options)

    by_bytes = {sample.tobytes(): answer for sample, answer in zip(samples, answers, strict=True)}
    await check_driver(
        make,
        list(samples[:20]),
        expected=lambda sample: by_bytes[sample.tobytes()],
        equal=lambda a, b: np.array_equal(a, b),
        bad_inputs=["text", np.zeros((3, 3))],
        cannot_open=lambda: make(elf="/no/such.elf"),
        unplug=lambda driver: driver.emulated.kill(),
        observed=lambda see: make(preprocess=lambda x: (see(), x)[1]),
        max_block=0.5,
    )


@ONE_LOOP
async def test_its_report(firmware, samples, answers):
    driver = EmulatedCortexM4Driver(raw=True)
    assert driver.report()["bit_exact"] is None
    async with Dispatcher([driver]) as dispatcher:
        await run(dispatcher, samples[:50], answers)
    report = driver.report()
    assert report["emulated"] is True
    assert report["bit_exact"] is True
    assert report["compared"] >= 50
    assert report["flash_bytes"] > 10_000
    assert report["ram_bytes"] > 5_000
    assert "arm_convolve_wrapper_s8" in report["kernels"]


async def test_a_dead_board_is_lost_and_comes_back(firmware, samples):
    driver = EmulatedCortexM4Driver(raw=True)
    await driver.open()
    await driver.emulated.kill()
    with pytest.raises(DeviceError):
        await driver.infer(samples[:1])
    await driver.close()
    await driver.open()
    assert len(await driver.infer(samples[:1])) == 1
    await driver.close()


async def test_what_cannot_be_emulated(firmware, monkeypatch):
    with pytest.raises(ConfigError, match="no emulator for board 'x'"):
        EmulatedCortexM4(firmware.elf, board="x")
    with pytest.raises(ConfigError, match="no such firmware"):
        await EmulatedCortexM4("/no/such.elf").start()
    async with EmulatedCortexM4(firmware.elf) as board:
        with pytest.raises(ConfigError, match="can be cut"):
            await board.cut()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"needs qemu-system-arm: apt-get install"):
        await EmulatedCortexM4(firmware.elf).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_no_board_outlives_a_killed_program(firmware, tmp_path):
    code = (
        "import asyncio, os, signal\n"
        "from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4\n"
        "async def main():\n"
        f"    board = EmulatedCortexM4({os.fspath(firmware.elf)!r})\n"
        "    await board.start()\n"
        "    print(board._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    env = os.environ | {"TMPDIR": str(tmp_path)}  # which nobody is left to tidy up
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert ran.returncode == -signal.SIGKILL
    for _ in range(200):
        if not _runs(int(ran.stdout)):
            return
        time.sleep(0.02)
    pytest.fail("QEMU still runs")


def _runs(pid):
    try:
        return b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@ONE_LOOP
async def test_a_short_soak(firmware, samples, answers):
    spec = importlib.util.spec_from_file_location("soak", Path(__file__).with_name("soak.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    soak = module.Soak(
        firmware.elf, samples, answers, inferences=600, faults=0.001, resets=150, cuts=2
    )
    assert await soak.run(), soak.facts(0)
