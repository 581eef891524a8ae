"""The driver against a board in memory, on the virtual clock: right, in order, once."""

import asyncio
import logging
import threading
from dataclasses import replace

import numpy as np
import pytest

from asyncinfer import Dispatcher
from asyncinfer.errors import (
    AsyncInferError,
    ConfigError,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    InputError,
    ProtocolError,
)
from asyncinfer_drivers.cortex_m import CortexM4Driver, frames
from asyncinfer_drivers.cortex_m.constants import Datatype, LogLevel
from asyncinfer_drivers.cortex_m.specs import TensorSpec

OUTPUT = TensorSpec("scores", Datatype.INT8, (3,), 0.25, 10)
QUALITIES = ["perfect", "bytewise", "lossy", "damaging", "delayed", "doubling"]


def picture(seed):
    return np.random.default_rng(seed).uniform(-70, 70, (2, 2)).round(1)


def opened(driver, use):
    async def run():
        try:
            await driver.open()
            return await use(driver)
        finally:
            await driver.close()

    return run()


@pytest.mark.parametrize("quality", QUALITIES)
def test_every_output_is_right_and_in_its_place(virtual, board, driver, answer, quality):
    peer = board(quality, frame_seconds=0.001, sample_seconds=0.0005)
    pictures = [picture(seed) for seed in range(400)]

    async def use(driver):
        parts = [pictures[at : at + 8] for at in range(0, 400, 8)]
        two = asyncio.Semaphore(2)

        async def infer(part):
            async with two:
                return await driver.infer(part)

        return await asyncio.gather(*map(infer, parts)), await driver.stats()

    answers, stats = virtual(opened(driver(peer, max_batch=8), use))
    outputs = [output for part in answers for output in part]
    assert [list(output) for output in outputs] == [answer(p) for p in pictures]
    assert all(output.dtype == np.float32 for output in outputs)
    assert stats.samples == 400
    assert stats.device.inferences >= 400
    assert (stats.link.timeouts > 0) == (quality in ("lossy", "damaging"))
    if quality == "perfect":
        # the first requests are of one sample: how long they take tells how long to wait for more
        assert stats.compute_seconds == pytest.approx(102 * 0.001 + 400 * 0.0005)
        assert stats.link.busy == stats.link.late == stats.link.bad_frames == 0


def test_raw_numbers_go_and_come_unchanged(virtual, peer, driver):
    sample = np.array([[-128, 127], [0, 5]], np.int8)

    async def use(driver):
        return await driver.infer([sample, sample.tolist(), sample + 0.5, sample.astype(int) * 2])

    one, listed, fraction, large = virtual(opened(driver(peer, raw=True), use))
    assert one.dtype == np.int8
    assert one.tolist() == listed.tolist() == [4, 123, 125]
    assert isinstance(fraction, InputError)
    assert isinstance(large, InputError)


def test_a_bad_input_fails_in_its_place(virtual, peer, driver, answer):
    good = picture(1)
    bad = [np.zeros((3, 3)), "text", None, [[1.0, float("nan")], [0.0, 0.0]], [[1], [1, 2]]]

    async def use(driver):
        return await driver.infer([good, *bad, good])

    first, *refused, last = virtual(opened(driver(peer), use))
    assert all(isinstance(error, InputError) for error in refused), refused
    assert first.tolist() == last.tolist() == answer(good)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"model": "other"}, "model 'tiny', not 'other'"),
        ({"input_shape": [1, 2, 2]}, r"input_shape \(2, 2, 1\), not \(1, 2, 2\)"),
        ({"output_shape": (4,)}, "output_shape"),
    ],
)
def test_another_model_than_expected_is_refused(virtual, peer, driver, option, text):
    with pytest.raises(ConfigError, match=text):
        virtual(opened(driver(peer, **option), None))


def test_the_expected_model_is_accepted(virtual, peer, driver):
    wanted = {"model": "tiny", "input_shape": [2, 2, 1], "output_shape": [3]}

    async def use(driver):
        return driver.board

    assert virtual(opened(driver(peer, **wanted), use)) == peer.spec


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"protocol": 3}, "speaks protocol 3, this up to 2: install a newer"),
        ({"receive_buffer": 15}, "not one input fits"),
        ({"max_samples": 0}, "not one input fits"),
        ({"inputs": ()}, "0 inputs"),
    ],
)
def test_a_board_that_cannot_serve_is_refused(virtual, board, driver, change, text):
    with pytest.raises(ConfigError, match=text):
        virtual(opened(driver(board(spec=replace(board().spec, **change))), None))


@pytest.mark.parametrize("option", ["baudrate", "max_batch", "concurrency"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_options_are_checked(option, value):
    with pytest.raises(ConfigError, match=option):
        CortexM4Driver("/dev/ttyACM0", **{option: value})


@pytest.mark.parametrize(
    "port", ["", 5, "serialx://", "socket://host:1", "tcp://host", "tcp://host:x"]
)
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(ConfigError, match="port"):
        CortexM4Driver(port)


def test_nobody_answers_hello(virtual, board, driver):
    with pytest.raises(DeviceTimeout, match="HELLO within 10 s"):
        virtual(opened(driver(board(hung=True)), None))


def test_hello_is_repeated_until_the_board_has_booted(virtual, board, driver):
    peer = board(boot_seconds=3.1)

    async def use(driver):
        return asyncio.get_running_loop().time()

    async def run():
        peer.reset()
        return await opened(driver(peer), use)

    assert virtual(run()) < 3.2


def test_calls_survive_a_reset(virtual, board, driver, answer):
    peer = board(frame_seconds=0.1, boot_seconds=0.2)

    async def use(driver):
        calls = [asyncio.create_task(driver.infer([picture(n)])) for n in range(3)]
        await asyncio.sleep(0.15)
        peer.reset()
        return [(await call)[0].tolist() for call in calls], (await driver.stats()).link

    outputs, link = virtual(opened(driver(peer), use))
    assert outputs == [answer(picture(n)) for n in range(3)]
    assert link.boots == 1
    assert link.timeouts == 0


def test_a_reset_whose_banner_is_lost_costs_a_timeout(virtual, board, driver, answer):
    peer = board(frame_seconds=0.1)

    async def use(driver):
        await driver.infer([picture(0)])
        call = asyncio.create_task(driver.infer([picture(1)]))
        await asyncio.sleep(0.05)
        peer.stop()  # all that it knew is gone
        return (await call)[0].tolist(), (await driver.stats()).link

    output, link = virtual(opened(driver(peer), use))
    assert output == answer(picture(1))
    assert (link.boots, link.timeouts) == (0, 1)


def test_reset_waits_for_the_boot(virtual, board, driver, answer):
    peer = board(frame_seconds=0.1, boot_seconds=0.5)

    async def use(driver):
        call = asyncio.create_task(driver.infer([picture(0)]))
        await asyncio.sleep(0)
        spec = await driver.reset()
        return spec.boot_counter, (await call)[0].tolist()

    assert virtual(opened(driver(peer), use)) == (8, answer(picture(0)))


def test_another_program_after_a_reset_is_found_out(virtual, peer, driver):
    async def use(driver):
        peer.spec = replace(peer.spec, model="other")
        peer.reset()
        await asyncio.sleep(0.1)
        await driver.infer([picture(0)])

    with pytest.raises(ProtocolError, match="other"):
        virtual(opened(driver(peer, model="tiny"), use))


#: changes that leave shapes and datatypes as they are
OTHERS = {
    "model": {"model": "other"},
    "firmware": {"firmware": "asyncinfer 2"},
    "board": {"board": "mps2_an386"},
    "scale": {"outputs": (replace(OUTPUT, scale=0.5),)},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("option", [{}, {"model": "tiny"}, {"model": "tiny", "any_program": True}])
@pytest.mark.parametrize("close", [False, True])
def test_a_board_that_comes_back_with_another_program(
    virtual, peer, driver, answer, change, option, close
):
    before = peer.spec
    refused = not option.get("any_program") or "model" in change

    async def use(driver):
        await driver.infer([picture(0)])
        peer.spec = replace(peer.spec, **change)
        if close:
            await driver.close()
        else:
            peer.unplug()
            await asyncio.sleep(0.1)
        for _ in range(2 if refused else 0):
            with pytest.raises(ProtocolError, match="came back"):
                await (driver.open() if close else driver.infer([picture(1)]))
        if refused:
            peer.spec = before  # somebody plugs in the right one
        if close:
            await driver.open()
        return (await driver.infer([picture(1)]))[0].tolist()

    found = virtual(opened(driver(peer, **option), use))
    doubled = not refused and "outputs" in change
    assert found == [number * (1 + doubled) for number in answer(picture(1))]


def test_tasks_move_from_a_board_with_another_program(virtual, board, driver, answer):
    """It is the device's fault, and costs no task its attempts."""
    peer, other = board(frame_seconds=0.01), board(frame_seconds=0.01)

    async def go():
        drivers = [
            driver(one, name=name, model="tiny", max_batch=1)
            for one, name in ((peer, "one"), (other, "two"))
        ]
        found = []
        async with Dispatcher(drivers, retries=0, wait_for="all") as dispatcher:
            async for result in dispatcher.results([picture(n) for n in range(100)]):
                if result.index == 20:
                    peer.spec = replace(peer.spec, model="other")
                    peer.unplug()
                found.append(result)
            await asyncio.sleep(5)
            return found, dispatcher.stats().devices[0]

    found, device = virtual(go())
    failed = [result for result in found if result.error is not None]
    assert all("connection lost" in str(result.error) for result in failed)
    assert len(failed) <= 3  # those that it had when it was unplugged
    assert [r.value.tolist() for r in found if not r.error] == [
        answer(picture(r.index)) for r in found if not r.error
    ]
    assert device.state in ("lost", "backing_off", "opening")


def test_a_silent_board_is_lost_and_comes_back(virtual, peer, driver, answer):
    async def use(driver):
        await driver.infer([picture(0)])
        peer.hung = True
        started = asyncio.get_running_loop().time()
        with pytest.raises(DeviceLost, match="6 timeouts"):
            await driver.infer([picture(0)])
        took = asyncio.get_running_loop().time() - started
        with pytest.raises(DeviceTimeout, match="HELLO"):
            await driver.infer([picture(0)])
        peer.hung = False
        return took, (await driver.infer([picture(1)]))[0].tolist()

    took, output = virtual(opened(driver(peer), use))
    assert took < 5
    assert output == answer(picture(1))


def test_a_port_that_goes_and_comes_back(virtual, board, driver, answer):
    peer = board(frame_seconds=0.1)

    async def use(driver):
        call = asyncio.create_task(driver.infer([picture(0)]))
        await asyncio.sleep(0.01)
        peer.unplugged = True
        peer.unplug()
        with pytest.raises(DeviceLost, match="connection lost"):
            await call
        with pytest.raises(DeviceLost, match="no such port"):
            await driver.infer([picture(0)])
        peer.unplugged = False
        return (await driver.infer([picture(1)]))[0].tolist()

    assert virtual(opened(driver(peer), use)) == answer(picture(1))


def test_a_failing_model_fails_its_task_alone(virtual, board, driver, answer):
    honest = board().compute
    bad = honest(bytes([0xFD] * 4))  # zeros

    def compute(sample):
        if honest(sample) == bad:
            raise ValueError("no zeros")
        return honest(sample)

    async def use(driver):
        return await driver.infer([picture(0), np.zeros((2, 2)), picture(1)])

    one, failed, other = virtual(opened(driver(board(compute=compute)), use))
    assert [one.tolist(), other.tolist()] == [answer(picture(0)), answer(picture(1))]
    assert isinstance(failed, AsyncInferError)
    assert not isinstance(failed, DeviceError)
    assert "MODEL_FAILED (1): no zeros" in str(failed)


def test_answers_of_the_wrong_length_break_the_protocol(virtual, board, driver):
    async def use(driver):
        await driver.infer([picture(0)])

    with pytest.raises(ProtocolError, match="wrong in length"):
        virtual(opened(driver(board(compute=lambda sample: b"12")), use))


def test_a_busy_board_is_asked_again(virtual, board, driver, answer):
    peer = board(frame_seconds=0.05)

    async def use(driver):
        peer.spec = replace(peer.spec, frames_in_flight=1)  # less than it said
        calls = [driver.infer([picture(n)]) for n in range(6)]
        outputs = [output.tolist() for (output,) in await asyncio.gather(*calls)]
        return outputs, (await driver.stats()).link

    outputs, link = virtual(opened(driver(peer), use))
    assert outputs == [answer(picture(n)) for n in range(6)]
    assert link.busy > 0
    assert link.timeouts == 0


def test_a_cancelled_call_leaves_the_next_its_own_answer(virtual, board, driver, answer):
    peer = board("delayed", frame_seconds=0.1)

    async def use(driver):
        for steps in (0, 0.001, 0.05, 0.104, 0.106):
            call = asyncio.create_task(driver.infer([picture(0)]))
            await asyncio.sleep(steps)
            call.cancel()
            (output,) = await driver.infer([picture(1)])
            assert output.tolist() == answer(picture(1))

    virtual(opened(driver(peer), use))


def test_calibration_finds_the_line(virtual, board, driver):
    peer = board(frame_seconds=0.02, sample_seconds=0.005)
    line = virtual(opened(driver(peer), lambda driver: driver.calibrate()))
    assert line == pytest.approx((0.02, 0.005))


def test_calibrating_a_slow_board_takes_two_calls(virtual, board, driver):
    peer = board(sample_seconds=2.0)

    async def use(driver):
        return await driver.calibrate(), peer.stats.inferences

    line, inferences = virtual(opened(driver(peer), use))
    assert line == (0.0, 2.0)
    assert inferences < 8


def test_probe_and_logs(virtual, peer, driver, caplog):
    caplog.set_level(logging.DEBUG, "asyncinfer.cortex_m")

    async def use(driver):
        peer.log(LogLevel.WARNING, "warm")
        await driver.probe()
        peer.hung = True
        with pytest.raises(DeviceLost):
            await driver.probe()

    virtual(opened(driver(peer), use))
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(30, "cortex_m4: warm")]


def test_torch_tensors_come_back_for_torch_tensors(virtual, peer, driver, answer):
    torch = pytest.importorskip("torch")

    async def use(driver):
        return await driver.infer([torch.from_numpy(picture(0)), picture(0)])

    tensor, array = virtual(opened(driver(peer), use))
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == array.tolist() == answer(picture(0))


def test_an_error_that_answers_nothing_is_logged(virtual, peer, driver, caplog):
    async def use(driver):
        peer.send(frames.Error(0, 99, 3, "too hot"))
        await driver.probe()

    virtual(opened(driver(peer), use))
    assert [record.getMessage() for record in caplog.records] == ["cortex_m4: 99 (3): too hot"]


def test_a_board_that_repeats_itself_does_not_flood_the_log(virtual, peer, driver, caplog):
    async def use(driver):
        for _ in range(1000):
            peer.send(frames.Error(0, 99, 3, "too hot"))
        for n in range(1000):
            peer.log(LogLevel.WARNING, f"{n} degrees")
        await asyncio.sleep(100)
        peer.log(LogLevel.WARNING, "cool")
        peer.log(LogLevel.WARNING, "cool")
        await asyncio.sleep(100)
        peer.log(LogLevel.WARNING, "cool")
        await driver.probe()

    virtual(opened(driver(peer), use))
    said = [record.getMessage().removeprefix("cortex_m4: ") for record in caplog.records]
    assert said[:4] == ["99 (3): too hot"] + [f"99 (3): too hot ({10**n} times)" for n in (1, 2, 3)]
    assert said[4:20] == [f"{n} degrees" for n in range(16)]
    assert said[20:] == ["984 more messages were left out", "cool", "cool"]


async def test_the_steps_run_in_a_thread_and_fail_alone(peer, driver, answer, fast):
    threads = set()

    def before(item):
        threads.add(threading.current_thread().name)
        if item is None:
            raise ValueError("nothing to see")
        return picture(item)

    def after(array):
        threads.add(threading.current_thread().name)
        if array.tolist() == answer(picture(2)):
            raise KeyError("two")
        return array.tolist()

    device = driver(peer, preprocess=before, postprocess=after, timing=fast)
    await device.open()
    outputs = await device.infer([1, None, 2, 3])
    await device.close()
    with pytest.raises(DeviceLost, match="not open"):
        await device.infer([1])
    assert [outputs[0], outputs[3]] == [answer(picture(1)), answer(picture(3))]
    assert isinstance(outputs[1], ValueError)
    assert isinstance(outputs[2], KeyError)
    assert threads == {"asyncinfer-cortex_m4"}


async def test_calls_that_find_the_link_lost_open_one_new_link(board, driver, answer, fast):
    peer = board("delayed")
    device = driver(peer, timing=fast)
    await device.open()
    peer.unplug()
    await asyncio.sleep(0.005)
    outputs = await asyncio.gather(*(device.infer([picture(n)]) for n in range(4)))
    await device.close()
    assert [output.tolist() for (output,) in outputs] == [answer(picture(n)) for n in range(4)]


async def test_close_ends_an_open_that_waits_for_the_board(board, driver):
    device = driver(board(hung=True))
    opening = asyncio.create_task(device.open())
    await asyncio.sleep(0.005)
    await device.close()
    with pytest.raises(DeviceLost, match="closed"):
        await opening
    assert device.board is None
