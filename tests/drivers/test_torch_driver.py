"""The torch driver on this host's CPU: same outputs as a bare loop, faults in their place."""

import asyncio
import gc
import logging
import threading
import traceback
import weakref
from collections import namedtuple
from contextvars import ContextVar

import numpy as np
import pytest
import torch
from torch import nn

from asyncinfer.driver import ServiceTime, SupportsCalibrate, SupportsProbe
from asyncinfer.errors import ConfigError, DeviceLost, DeviceTimeout, InputError
from asyncinfer_drivers._shared.timing import line
from asyncinfer_drivers._torch import engine
from asyncinfer_drivers._torch.threads import CoreShare
from asyncinfer_drivers.torch_host import TorchDriver

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def small_net() -> nn.Module:
    torch.manual_seed(42)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).eval()


def inputs(count: int) -> list[torch.Tensor]:
    torch.manual_seed(7)
    return list(torch.randn(count, 4))


def eager(net: nn.Module, items) -> list[torch.Tensor]:
    """The bare loop: one call for each item, on this thread."""
    with torch.inference_mode():
        outputs = [net(item.unsqueeze(0))[0].clone() for item in items]
    assert len({tuple(output.tolist()) for output in outputs}) == len(
        items
    )  # else it shows nothing
    return outputs


class Function(nn.Module):
    """A module that calls a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(x)


def raises(error: BaseException):
    def function(*args, **options):
        raise error

    return function


@pytest.fixture
async def opened():
    """Opens drivers, and closes them after the test."""
    drivers: list[TorchDriver] = []

    async def make(*args, **options) -> TorchDriver:
        driver = TorchDriver(*args, **options)
        drivers.append(driver)
        await driver.open()
        return driver

    yield make
    for driver in drivers:
        await driver.close()


# --- outputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 8])
async def test_gives_what_a_bare_loop_gives(opened, size):
    net, items = small_net(), inputs(24)
    driver = await opened(net, max_batch=8)
    outputs = []
    for start in range(0, len(items), size):
        outputs += await driver.infer(items[start : start + size])
    for output, expected in zip(outputs, eager(net, items), strict=True):
        torch.testing.assert_close(output, expected)


async def test_takes_tensors_arrays_numbers_and_lists(opened):
    driver = await opened(Function(lambda x: x * 2), max_batch=8)
    frozen = np.arange(3.0)
    frozen.setflags(write=False)
    batch = [
        torch.tensor([1, 2]), np.arange(3.0), frozen, frozen[::-1], [1.5, 2], [[1, 2]], 3, 2.5,
    ]  # fmt: skip
    outputs = await driver.infer(batch)
    for item, output in zip(batch, outputs, strict=True):
        np.testing.assert_array_equal(output.numpy(), np.asarray(item) * 2)
    assert outputs[1].dtype == torch.float64
    assert outputs[4].dtype == torch.float32
    assert await driver.infer([]) == []


async def test_outputs_are_plain_tensors_of_their_own(opened):
    kept = torch.zeros(8, 4)

    def same_buffer_each_time(x):
        return kept[: len(x)].copy_(x)

    driver = await opened(Function(same_buffer_each_time), max_batch=8)
    items = inputs(3)
    originals = [item.clone() for item in items]
    (first,) = await driver.infer(items[:1])
    second, third = await driver.infer(items[1:])
    second += 1
    torch.testing.assert_close(first, originals[0])
    torch.testing.assert_close(third, originals[2])
    assert not first.requires_grad
    assert not first.is_inference()
    assert first.untyped_storage().nbytes() == first.nbytes


async def test_inputs_are_not_changed(opened):
    driver = await opened(nn.ReLU(inplace=True).eval(), max_batch=2)
    array, tensor = np.array([-1.0, 1.0]), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    await driver.infer([array])
    await driver.infer([array, tensor])
    assert array.tolist() == tensor.tolist() == [-1, 1]


Pair = namedtuple("Pair", "left right")


async def test_each_task_gets_its_rows_of_a_structure(opened):
    def structure(x):
        return {"pair": Pair(x, (x + 1, [x + 2])), "note": "same", "none": ()}

    driver = await opened(Function(structure), max_batch=4)
    for row, x in zip(await driver.infer([1.0, 5.0]), [1.0, 5.0], strict=True):
        assert row == {"pair": Pair(x, (x + 1, [x + 2])), "note": "same", "none": ()}
        assert isinstance(row["pair"], Pair)


async def test_preprocess_and_postprocess_run_in_the_thread(opened):
    threads = []

    def preprocess(text):
        threads.append(threading.get_ident())
        return np.array([float(text)])

    def postprocess(row):
        threads.append(threading.get_ident())
        return f"{row.item():g}"

    driver = await opened(
        Function(lambda x: x * 2), preprocess=preprocess, postprocess=postprocess, max_batch=2
    )
    assert await driver.infer(["1", "2"]) == ["2", "4"]
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()


def test_steps_by_name(monkeypatch):
    async def run():
        driver = TorchDriver(
            nn.Identity().eval(), preprocess="builtins:float", postprocess="builtins:int"
        )
        await driver.open()
        try:
            return await driver.infer(["3.5"])
        finally:
            await driver.close()

    assert asyncio.run(run()) == [3]


async def test_runs_in_inference_mode_and_the_callers_context(opened):
    seen = []

    def look(x):
        seen.append((torch.is_inference_mode_enabled(), WHO.get()))
        return x

    driver = await opened(Function(look), concurrency=3)

    async def call(name):
        WHO.set(name)
        await driver.infer([1.0])

    await asyncio.gather(*map(call, "abc"))
    assert [*dict.fromkeys(seen)] == [(True, "a"), (True, "b"), (True, "c")]
    assert not torch.is_inference_mode_enabled()


# --- faults of one task -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (torch.zeros(5), r"\[5\] float32"),
        (torch.zeros(4, dtype=torch.float64), r"\[4\] float64"),
        (np.zeros((2, 4, 4), dtype=np.int64), r"\[2, 4, 4\] int64"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 3])
async def test_a_wrong_shape_or_dtype_fails_alone(opened, bad, shown, place):
    net, items = small_net(), inputs(3)
    driver = await opened(net, max_batch=4)
    outputs = await driver.infer([*items[:place], bad, *items[place:]])
    error = outputs.pop(place)
    assert isinstance(error, InputError)
    with pytest.raises(InputError, match=rf"refused .* {shown}, .* \[4\] float32: .*preprocess"):
        raise error
    for output, expected in zip(outputs, eager(net, items), strict=True):
        torch.testing.assert_close(output, expected)


async def test_the_first_task_may_be_the_wrong_one(opened):
    driver = await opened(small_net(), warmup_input=[0.0] * 4)
    (error,) = await driver.infer([torch.zeros(5)])
    assert isinstance(error, InputError)


async def test_without_an_accepted_shape_it_is_the_models_error(opened):
    driver = await opened(small_net())
    (error,) = await driver.infer([torch.zeros(5)])
    assert type(error) is RuntimeError


async def test_a_model_that_takes_any_shape_gets_them_all(opened):
    driver = await opened(Function(lambda x: x.flatten(1).sum(1)), max_batch=4)
    batch = [torch.ones(n % 3 + 1, 2) for n in range(4)]
    assert await driver.infer(batch) == [2, 4, 6, 2]


async def test_what_is_no_tensor(opened):
    driver = await opened(Function(lambda x: x + 1), max_batch=5)
    batch = [1.0, "text", [[1.0], [1.0, 2.0]], np.array([object()]), None]
    one, *errors = await driver.infer(batch)
    assert one == 2
    for item, error in zip(batch[1:], errors, strict=True):
        assert isinstance(error, InputError)
        assert type(item).__name__ in str(error)
        assert "\n" not in str(error)


class Picky(ValueError):
    """The user's own error."""


def picky(value):
    if value < 0:
        raise Picky(value)
    return value


def picky_batch(x):
    if (x < 0).any():
        raise Picky(x)
    return x


@pytest.mark.parametrize(
    "options",
    [
        {"model": nn.Identity().eval(), "preprocess": picky},
        {"model": nn.Identity().eval(), "postprocess": picky},
        {"model": Function(picky_batch)},
    ],
    ids=["preprocess", "postprocess", "model"],
)
@pytest.mark.parametrize("size", [1, 5])
async def test_an_error_of_ones_own_stands_in_its_place(opened, options, size):
    driver = await opened(**options, max_batch=size)
    outputs = []
    for start in range(0, 5, size):
        outputs += await driver.infer([1.0, -2.0, 3.0, -4.0, 5.0][start : start + size])
    assert outputs[::2] == [1, 3, 5]
    assert [type(output) for output in outputs[1::2]] == [Picky, Picky]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()])
async def test_whatever_the_model_raises(opened, error):
    driver = await opened(Function(raises(error)), max_batch=2)
    for output in await driver.infer([1.0, 2.0]):
        assert isinstance(output, RuntimeError | StopIteration)
    assert not driver._session.worker._stopping.is_set()


async def test_a_model_that_takes_no_batches_is_run_one_by_one(opened, caplog):
    def one_only(x):
        if len(x) > 1:
            raise ValueError("one at a time")
        return x + 1

    driver = await opened(Function(one_only), name="dev", max_batch=4)
    with caplog.at_level(logging.WARNING):
        assert await driver.infer([1.0, 2.0, 3.0]) == [2, 3, 4]
        assert await driver.infer([1.0, 2.0]) == [2, 3]
    (record,) = caplog.records
    assert "dev: tasks are run one by one: the model takes no batches" in record.message
    assert "max_batch=1" in record.message


async def test_a_kept_error_keeps_neither_model_nor_batch(opened):
    net = Function(picky_batch)
    driver = await opened(net, max_batch=2)
    items = [torch.tensor(1.0), torch.tensor(-1.0)]
    seen = [weakref.ref(net), *map(weakref.ref, items)]
    _, error = await driver.infer(items)
    await driver.close()
    del net, items, driver._options
    gc.collect()
    assert [ref() for ref in seen] == [None] * 3
    assert isinstance(error, Picky)
    assert "in picky_batch\n    raise Picky(x)\n" in "".join(traceback.format_exception(error))


# --- faults of the device -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
@pytest.mark.parametrize("where", ["preprocess", "model", "postprocess"])
async def test_the_accelerators_errors_are_the_devices(opened, error, where):
    steps = {"model": nn.Identity().eval(), where: raises(error)}
    if where == "model":
        steps["model"] = Function(raises(error))
    driver = await opened(**steps, name="gpu", max_batch=2)
    with pytest.raises(DeviceLost, match=r"'gpu': (CUDA|cuDNN|MPS)") as caught:
        await driver.infer([1.0, 2.0])
    assert caught.value.__cause__ is error
    assert "\n" not in str(caught.value)


async def test_a_module_that_cannot_be_put_on_the_device_for_lack_of_memory():
    driver = TorchDriver(raises(torch.OutOfMemoryError("CUDA out of memory")), name="gpu")
    with pytest.raises(DeviceLost, match="out of memory"):
        await driver.open()


async def test_probe(opened, monkeypatch):
    driver = await opened(small_net(), name="dev")
    assert isinstance(driver, SupportsProbe)
    await driver.probe()
    monkeypatch.setattr(torch, "ones", raises(RuntimeError("driver shutting down")))
    with pytest.raises(DeviceLost, match="'dev': failed its probe: driver shutting down"):
        await driver.probe()


# --- opening, closing, cancelling ---------------------------------------------------------------


async def test_opens_and_closes_again_and_again():
    net, items = small_net(), inputs(2)
    driver = TorchDriver(net, name="dev", max_batch=2)
    await driver.close()
    with pytest.raises(DeviceLost, match="not open"):
        await driver.infer(items)
    for _ in range(3):
        await driver.open()
        await driver.open()
        torch.testing.assert_close(await driver.infer(items), eager(net, items))
        await driver.close()
        await driver.close()
        assert not [t for t in threading.enumerate() if t.name == "asyncinfer-dev"]
        assert not CoreShare._open
        with pytest.raises(DeviceLost, match="not open"):
            await driver.infer(items)
        with pytest.raises(DeviceLost, match="not open"):
            await driver.calibrate()
        with pytest.raises(DeviceLost, match="not open"):
            await driver.probe()


async def test_closing_releases_the_model():
    made = []

    def factory():
        net = small_net()
        made.append(weakref.ref(net))
        return net

    driver = TorchDriver(factory)
    await driver.open()
    assert made[0]() is not None
    await driver.close()
    assert made[0]() is None
    await driver.open()
    assert len(made) == 2
    await driver.close()


async def test_loads_and_runs_in_its_thread_while_the_loop_turns():
    begun, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def block(x=None):
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(10)
        return nn.Identity() if x is None else x

    async def while_blocked(coroutine):
        begun.clear()
        go.clear()
        task = asyncio.create_task(coroutine)
        await begun.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
        return await task

    driver = TorchDriver(block)
    await while_blocked(driver.open())
    await driver.close()
    driver = TorchDriver(Function(block))
    await driver.open()
    assert await while_blocked(driver.infer([1.0])) == [1]
    await driver.close()


@pytest.fixture
def gated():
    """A model that says when it has begun and waits until it is let."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.begun = asyncio.Event()
            self.loop = asyncio.get_running_loop()
            self.go = threading.Event()
            self.eval()

        def __deepcopy__(self, memo):
            return self  # a loop cannot be copied

        def forward(self, x):
            self.loop.call_soon_threadsafe(self.begun.set)
            assert self.go.wait(10)
            return x

    return Gated


async def test_cancelling_leaves_the_driver_usable(opened, gated):
    model = gated()
    driver = await opened(model, concurrency=2)
    running = asyncio.create_task(driver.infer([1.0]))
    waiting = asyncio.create_task(driver.infer([2.0]))
    await model.begun.wait()
    running.cancel()
    waiting.cancel()
    await asyncio.sleep(0)
    assert waiting.done()
    assert not running.done()
    model.go.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await driver.infer([3.0]) == [3]


async def test_closing_waits_for_the_running_call(gated):
    model = gated()
    driver = TorchDriver(model)
    await driver.open()
    running = asyncio.create_task(driver.infer([1.0]))
    await model.begun.wait()
    closing = asyncio.create_task(driver.close())
    await asyncio.sleep(0)
    model.go.set()
    await closing
    assert await running == [1]


async def test_a_call_that_does_not_end_is_left_behind(gated):
    model = gated()
    driver = TorchDriver(model, name="dev", close_timeout=0.001)
    await driver.open()
    worker = driver._session.worker
    running = asyncio.create_task(driver.infer([1.0]))
    await model.begun.wait()
    with pytest.raises(DeviceTimeout, match=r"'dev': still computing after 0\.001 s"):
        await driver.close()
    with pytest.raises(DeviceTimeout):
        await running
    await driver.open()  # in a new thread
    model.go.set()
    assert await driver.infer([2.0]) == [2]
    assert await worker.stop(5)
    driver._close_timeout = 5
    await driver.close()


async def test_closing_while_opening(gated):
    model = gated()
    driver = TorchDriver(model, warmup_input=1.0)
    opening = asyncio.create_task(driver.open())
    await model.begun.wait()
    closing = asyncio.create_task(driver.close())
    await asyncio.sleep(0)
    model.go.set()
    await closing
    with pytest.raises(DeviceLost, match="while it was opening"):
        await opening


async def test_cancelling_open_leaves_nothing(gated):
    model = gated()
    driver = TorchDriver(model, warmup_input=1.0)
    opening = asyncio.create_task(driver.open())
    await model.begun.wait()
    opening.cancel()
    await asyncio.sleep(0)
    model.go.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert driver._session is None
    assert not CoreShare._open


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown torch device 'gpu'; known: cpu, cuda"),
        ({"device": "cuda:x"}, "unknown torch device"),
        ({"threads": 0}, "threads must be a whole number of at least 1, not 0"),
        ({"max_batch": 1.5}, "max_batch must be"),
        ({"concurrency": "2"}, "concurrency must be"),
        ({"slowdown": 0.5}, "slowdown must be a number of at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        TorchDriver(small_net(), **options)


def test_names():
    assert TorchDriver("digits").name == "cpu"
    assert TorchDriver("digits", device="cuda:1").name == "cuda:1"
    assert TorchDriver("digits", name="fast").name == "fast"


async def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(engine, "available", lambda: (0, False))
    driver = TorchDriver(small_net(), device="cuda:1")
    with pytest.raises(ConfigError, match="'cuda:1' is not available; here: cpu"):
        await driver.open()
    await driver.close()


async def test_auto_is_the_best_there_is(opened):
    driver = await opened(small_net(), device="auto")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
    assert driver._session.runner.device.type == best


async def test_a_warm_up_input_that_fails(opened):
    driver = TorchDriver(small_net(), name="dev", warmup_input=torch.zeros(5))
    with pytest.raises(ConfigError, match="dev: the warm-up input failed: mat1 and mat2"):
        await driver.open()


async def test_slowdown_sleeps_in_proportion(opened):
    naps = []
    driver = await opened(small_net(), slowdown=3.0)
    driver._session.runner.pause = naps.append
    await driver.infer(inputs(1))
    (nap,) = naps
    assert nap > 0


# --- calibration --------------------------------------------------------------------------------


def test_line():
    assert line(3.0, 5, 11.0) == ServiceTime(1.0, 2.0)
    assert line(2.0, 3, 1.0) == ServiceTime(2.0, 0.0)  # noise: a batch is never faster
    assert line(1.0, 4, 8.0) == ServiceTime(0.0, 2.0)  # batches cost more than they save


async def test_calibrates_with_an_input(opened):
    driver = await opened(small_net(), max_batch=4, warmup_input=[0.0] * 4)
    assert isinstance(driver, SupportsCalibrate)
    time = await driver.calibrate()
    assert time.per_batch >= 0
    assert time.per_task >= 0
    assert time.of(4) >= time.of(1) > 0


async def test_calibrates_not_without(opened):
    assert await (await opened(small_net())).calibrate() is None


@pytest.mark.parametrize(
    ("per_batch", "per_task", "max_batch", "calls"),
    [
        (0.0, 0.001, 1, [1] * 6),
        (0.001, 0.002, 8, [1] * 6 + [8] * 6),
        (0.0, 0.15, 8, [1] * 3 + [2] * 2),  # batches of 2 are the largest that fit
        (0.0, 3.0, 8, [1]),  # one call takes longer than allowed
    ],
)
async def test_calibration_finds_the_line_within_a_second(
    monkeypatch, opened, per_batch, per_task, max_batch, calls
):
    sizes, clock = [], [0.0]
    driver = await opened(small_net(), max_batch=max_batch, warmup_input=[0.0] * 4)

    async def infer(batch):
        sizes.append(len(batch))
        clock[0] += per_batch + per_task * len(batch)

    monkeypatch.setattr(driver, "infer", infer)
    monkeypatch.setattr("asyncinfer_drivers._shared.timing.time.perf_counter", lambda: clock[0])
    time = await driver.calibrate()
    assert sizes == calls
    assert time.of(1) == pytest.approx(per_batch + per_task)
    if max_batch > 1:
        assert time == pytest.approx((per_batch, per_task))
    assert clock[0] < 1.5 or calls == [1]
