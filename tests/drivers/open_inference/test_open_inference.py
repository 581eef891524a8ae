"""What a server says, what is sent to it and what comes back, over both protocols."""

import asyncio
import logging
import threading

import numpy as np
import pytest
import torch
from oip_server import Server, tensor

from asyncinfer.errors import ConfigError, InputError, ProtocolError
from asyncinfer_drivers.open_inference import OpenInferenceDriver, tensors

ROW = np.arange(4, dtype=np.float32)


def expects(**spec):
    return [{"name": "x", **spec}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": [{"name": "z"}]}, "the model has inputs 'x' FP32"),
        ({"inputs": expects(datatype="INT64")}, r"expected input 'x' INT64 any shape, .*'x' FP32"),
        ({"inputs": expects(shape=[-1, 1, 8, 8])}, r"expected input 'x' of any type \[-1, 1, 8, 8"),
        ({"outputs": [{"name": "logits"}]}, "expected output 'logits' .*, the model has 'y' FP32"),
        ({"outputs": [tensor("y", "FP64", [-1, 4])]}, "expected output 'y' FP64"),
        (
            {"warmup_input": np.zeros(3)},
            r"warm-up input failed: input 'x' has shape \[3\], .*\[4\]",
        ),
        ({"batched": False, "max_batch": 2}, "takes 1 input a request, not max_batch=2"),
    ],
)
async def test_another_model_than_expected_is_a_config_error(server, driver_for, options, message):
    driver = driver_for(server, **options)
    with pytest.raises(ConfigError, match=message):
        await driver.open()


async def test_what_is_expected_may_be_said_in_part(server, opened):
    expected = {"inputs": expects(datatype="FP32", shape=[-1, -1]), "outputs": [{"name": "y"}]}
    async with opened(server, **expected) as driver:
        assert driver.spec.inputs[0].shape == (-1, -1)
        assert (await driver.infer([ROW]))[0].tolist() == [0, 2, 4, 6]


async def test_a_model_the_server_does_not_have(server, driver_for):
    server.model = "another"
    with pytest.raises(ConfigError, match="the server does not have that: no model twice"):
        await driver_for(server).open()


async def test_a_server_that_says_nothing_of_its_model(server, driver_for, opened):
    said, server.inputs = server.inputs, []
    with pytest.raises(ConfigError, match="does not say what inputs the model has: give inputs="):
        await driver_for(server).open()
    async with opened(server, inputs=said) as driver:
        assert (await driver.infer([ROW]))[0].tolist() == [0, 2, 4, 6]


async def test_metadata_that_is_wrong_about_the_dtype(server, driver_for, opened):
    server.outputs = [tensor("y", "INT64", [-1, 4])]
    async with opened(server) as driver:
        with pytest.raises(ProtocolError, match=r"output 'y' FP32 .* came as 'y' INT64"):
            await driver.infer([ROW])
    with pytest.raises(ConfigError, match=r"the warm-up input failed: .* came as 'y' INT64"):
        await driver_for(server, warmup_input=ROW).open()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda a: {"y": a["x"][1:]}, r"output 'y' FP32 \[1, 4\] for 2 inputs"),
        (lambda a: {"y": a["x"].repeat(2, 0)}, r"\[4, 4\] for 2 inputs"),
        (lambda a: {"y": a["x"][:, :3]}, r"\[2, 3\] came as 'y' FP32 \[-1, 4\] was expected"),
        (lambda a: {"z": a["x"]}, "output 'y' is missing"),
        (lambda a: {}, "output 'y' is missing"),
    ],
)
async def test_an_answer_that_is_none(server, opened, answer, message):
    server.run = answer
    async with opened(server, max_batch=2) as driver:
        with pytest.raises(ProtocolError, match=message):
            await driver.infer([ROW, ROW])
        server.run = lambda a: {"y": a["x"]}
        assert len(await driver.infer([ROW, ROW])) == 2


@pytest.mark.parametrize(
    "given",
    [
        ROW,
        ROW.astype(np.float64),
        ROW.astype(np.int16),
        np.asfortranarray(np.tile(ROW, (4, 1)))[0],
        [0, 1, 2, 3],
        (0.0, 1.0, 2.0, 3.0),
        {"x": ROW},
        torch.arange(4, dtype=torch.float64, requires_grad=True),
        torch.arange(4, dtype=torch.bfloat16),
    ],
)
async def test_whatever_holds_the_numbers(server, opened, given):
    async with opened(server) as driver:
        (output,) = await driver.infer([given])
    assert type(output) is (torch.Tensor if isinstance(given, torch.Tensor) else np.ndarray)
    assert output.tolist() == [0, 2, 4, 6]
    output[0] = 1  # it is the caller's


@pytest.mark.parametrize("given", [[0.5, 1, 2, 3], [300, 0, 0, 0], [-1, 0, 0, 0], ["a"] * 4])
async def test_numbers_that_would_change_are_refused(server, opened, given):
    server.inputs, server.outputs = [tensor("x", "UINT8", [-1, 4])], []
    async with opened(server) as driver:
        good = await driver.infer([[1, 2, 3, 4]])
        (error,) = await driver.infer([given])
    assert good[0].dtype == np.uint8
    assert isinstance(error, InputError)
    assert "the model takes UINT8" in str(error)


@pytest.mark.parametrize(
    ("given", "datatype"),
    [
        (np.int64([300]), "INT8"),
        ([2**40], "INT32"),
        (torch.tensor([-(2**31) - 1]), "INT32"),
        (np.uint64([2**63]), "INT64"),
        (np.uint16([256]), "UINT8"),
        (np.float64([1e300]), "FP32"),
        (np.float32([-7e4]), "FP16"),
        ([70000], "FP16"),
    ],
)
def test_numbers_too_large_for_their_own_kind_are_refused(given, datatype):
    with pytest.raises(InputError, match=f"the model takes {datatype}"):
        tensors.to_array(given, datatype, "x")


def test_numbers_of_a_larger_kind_are_taken_if_they_fit():
    assert tensors.to_array([2**31 - 1, -1], "INT32", "x").tolist() == [2**31 - 1, -1]
    odd = tensors.to_array([np.inf, -np.inf, np.nan, 0.1], "FP16", "x")
    assert np.array_equal(odd, np.float16([np.inf, -np.inf, np.nan, 0.1]), equal_nan=True)


async def test_a_batch_is_one_request_of_what_fits_together(server, opened):
    server.inputs = [tensor("x", "FP32", [-1, -1])]
    server.outputs = [tensor("y", "FP32", [-1, -1])]
    batch = [ROW, ROW[:2], [None], ROW + 1]
    async with opened(server, max_batch=4) as driver:
        outputs = await driver.infer(batch)
    assert server.sizes == [2, 1]
    assert isinstance(outputs[2], InputError)
    assert [outputs[n].tolist() for n in (0, 1, 3)] == [[0, 2, 4, 6], [0, 2], [2, 4, 6, 8]]


async def test_a_model_without_a_batch_dimension(server, opened):
    server.inputs, server.outputs = [tensor("x", "FP32", [2, 2])], [tensor("y", "FP32", [2, 2])]
    async with opened(server) as driver:
        assert not driver.spec.batched
        (output,) = await driver.infer([[[1, 2], [3, 4]]])
        (error,) = await driver.infer([[1, 2]])
    assert output.tolist() == [[2, 4], [6, 8]]
    assert "has shape [2], the model takes [2, 2]" in str(error)


async def test_a_fixed_batch_of_one(server, opened):
    server.inputs, server.outputs = [tensor("x", "FP32", [1, 4])], [tensor("y", "FP32", [1, 4])]
    async with opened(server, batched=True) as driver:
        assert (await driver.infer([ROW]))[0].tolist() == [0, 2, 4, 6]


async def test_several_inputs_and_outputs(server, opened):
    server.inputs.append(tensor("n", "INT64", [-1]))
    server.outputs.append(tensor("half", "FP32", [-1, 4]))
    server.run = lambda a: {"y": a["x"] + a["n"][:, None].astype("f4"), "half": a["x"] / 2}
    async with opened(server, max_batch=2) as driver:
        one, other = await driver.infer([{"x": ROW, "n": 1}, (ROW, 2)])
        (missing,), (alone,) = [await driver.infer([x]) for x in ({"x": ROW}, ROW)]
    assert (one["y"].tolist(), other["y"].tolist()) == ([1, 2, 3, 4], [2, 3, 4, 5])
    assert other["half"].tolist() == [0, 0.5, 1, 1.5]
    assert "the model's inputs are x, n, not x" in str(missing)
    assert "2 inputs: give a mapping" in str(alone)
    async with opened(server, outputs=[{"name": "half"}]) as driver:
        (output,) = await driver.infer([(ROW, 1)])
    assert output.tolist() == [0, 0.5, 1, 1.5]


async def test_contents_that_are_not_raw(server, opened):
    server.plain = True
    async with opened(server, max_batch=2, binary=server.protocol == "grpc") as driver:
        outputs = await driver.infer([ROW, ROW + 1])
    assert [output.tolist() for output in outputs] == [[0, 2, 4, 6], [2, 4, 6, 8]]


async def test_steps_run_in_a_thread_of_the_drivers_own(server, opened, caplog):
    caplog.set_level(logging.WARNING)
    seen = set()

    def step(do):
        def run(x):
            seen.add(threading.current_thread().name)
            return do(x)

        return run

    def only_good(xs):
        return np.full((len(xs), 4), xs, np.float32)

    steps = {
        "preprocess": step(lambda x: np.full(4, x, np.float32)),
        "postprocess": step(lambda y: float(y.sum())),
        "collate": step(lambda xs: only_good(np.array(xs)[:, None])),
        "uncollate": step(lambda y: y.sum(1).tolist()),
    }
    async with opened(server, name="pi", max_batch=3, **steps) as driver:
        assert await driver.infer([1, 2, 3]) == [8.0, 16.0, 24.0]
        one, error, other = await driver.infer([1, "no number", 3])
    assert (one, other) == (8.0, 24.0)
    assert isinstance(error, ValueError)
    assert seen == {"asyncinfer-pi"}
    assert server.sizes == [3, 2]
    assert "pi: collate failed, which costs time" in caplog.text


async def test_calibration_with_an_input_with_zeros_or_not_at_all(server, opened):
    async with opened(server, max_batch=8, warmup_input=ROW) as driver:
        before = len(server.sizes)
        assert (await driver.calibrate()).of(1) > 0
    assert before == 1
    assert set(server.sizes) == {1, 8}
    async with opened(server, preprocess=lambda x: x[:9]) as driver:
        assert (await driver.calibrate()).of(1) > 0
    server.inputs = server.outputs = [tensor("x", "FP32", [-1, -1])]
    async with opened(server) as driver:
        assert await driver.calibrate() is None


async def test_as_many_requests_at_once_as_it_is_given(server, opened):
    server.delay = 0.02
    async with opened(server, concurrency=5) as driver:
        outputs = await asyncio.gather(*(driver.infer([ROW + n]) for n in range(5)))
    assert server.most == 5
    assert [int(output[0][0]) for output in outputs] == [0, 2, 4, 6, 8]


async def test_large_tensors(server, opened):
    server.inputs = server.outputs = [tensor("x", "FP32", [-1, 500_000])]
    server.run = lambda arrays: arrays
    rows = [np.full(500_000, n, np.float32) for n in range(2)]
    async with opened(server, max_batch=2) as driver:
        outputs = await driver.infer(rows)
    assert all(np.array_equal(*pair) for pair in zip(rows, outputs, strict=True))


async def test_texts(opened):
    server = Server("http")
    server.inputs, server.outputs = [tensor("x", "BYTES", [-1])], [tensor("y", "BYTES", [-1])]
    server.run = lambda a: {"y": a["x"]}
    await server.start()
    async with opened(server, max_batch=2, binary=False) as driver:
        outputs = await driver.infer(["h\u00e9llo", "world"])
    await server.stop()
    assert outputs == ["h\u00e9llo".encode(), b"world"]


def test_texts_as_bytes():
    array = tensors.to_array([["a", "h\u00e9"], [b"", b"\xff"]], "BYTES", "x")
    raw = b"".join(tensors.given("x", "BYTES", array.shape, [array]).parts)
    assert raw[:5] == b"\x01\0\0\0a"
    back = tensors.from_received(tensors.Received("x", "BYTES", (2, 2), raw))
    assert back.tolist() == [[b"a", "h\u00e9".encode()], [b"", b"\xff"]]
    with pytest.raises(ValueError, match="ends too early"):
        tensors.from_received(tensors.Received("x", "BYTES", (1,), raw[:4]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "tcp"}, "protocol must be 'grpc' or 'http'"),
        ({"url": "http://pi:80", "protocol": "grpc"}, "is not for protocol 'grpc'"),
        ({"url": "ftp://pi:80"}, "one of grpc, grpcs, http, https"),
        ({"url": "pi"}, "write host:port"),
        ({"url": "pi:port"}, "write host:port"),
        ({"url": 7}, "url must be a text, not 7"),
        ({"url": "grpc://pi:1", "ca": "ca.pem"}, "without TLS: write grpcs://"),
        ({"model": ""}, "model is the name"),
        ({"max_batch": 0}, "max_batch must be a whole number"),
        ({"run_timeout": 0}, "run_timeout must be a number above 0"),
        ({"token_env": "A", "token_file": "b"}, "not both"),
        ({"cert": "c.pem"}, "cert and key are given together"),
        ({"inputs": [{"shape": [1]}]}, "each is a table with name, datatype and shape"),
        ({"inputs": [{"name": "x", "dtype": "FP32"}]}, "unknown key 'dtype'"),
        ({"outputs": [{"name": "y", "datatype": "float"}]}, "'float' is none of BOOL"),
        ({"collate": list}, "collate needs preprocess"),
    ],
)
def test_options_that_cannot_be(options, message):
    given = {"url": "127.0.0.1:1", "model": "twice", **options}
    with pytest.raises(ConfigError, match=message):
        OpenInferenceDriver(**given)
