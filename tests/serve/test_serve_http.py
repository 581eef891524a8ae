"""HTTP without a client's help: bodies that are wrong, outputs, limits, tokens, disconnection."""

import asyncio
import gzip
import json
import socket

import httpx
import numpy as np
import pytest
from serve_models import simulated, slow_down, until

from asyncinfer import Dispatcher
from asyncinfer.errors import ConfigError
from asyncinfer.serve.http.server import _Gathered
from asyncinfer.serve.tensors import TensorSpec, from_values
from asyncinfer.testing import SimulatedDriver
from asyncinfer_drivers.open_inference import OpenInferenceDriver

INFER = "/v2/models/m/infer"


def body(data=(1.0, 2.0), shape=(1, 2), datatype="FP32", **more):
    tensor = {"name": "input", "shape": list(shape), "datatype": datatype, "data": data}
    return {"inputs": [tensor], **more}


def client(core, **options):
    return httpx.AsyncClient(base_url=core.url, timeout=10, trust_env=False, **options)


async def test_json_in_json_out(serve):
    async with serve() as core, client(core) as http:
        answer = await http.post(INFER, json=body([[1, 2], [3, 4.5]], (2, 2), id="x"))
        assert answer.status_code == 200
        assert answer.json() == {
            "model_name": "m",
            "model_version": "1",
            "id": "x",
            "outputs": [
                {"name": "output", "datatype": "FP32", "shape": [2, 2], "data": [2, 4, 6, 9]}
            ],
        }
        versioned = await http.post("/v2/models/m/versions/1/infer", json=body())
        assert versioned.json()["outputs"][0]["data"] == [2, 4]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (body([1.0]), "1 values"),
        (body([1.0, "2"]), "type str"),
        (body([1.0, None]), "type NoneType"),
        (body([1.0, True]), "type bool"),
        (body([1.0, 1e39]), "range"),
        (body([1.0, 10**400]), "range"),
        (body([[1.0], [2.0, 3.0]], (2, 2)), "nested"),
        (body(shape=(2,)), "shape"),
        (body(shape=(-1, 2)), "shape"),
        (body(shape=(True, 2)), "shape"),
        (body(shape=(2**62, 2)), "values"),
        (body(datatype="BYTES"), "FP32, not 'BYTES'"),
        (body(datatype=7), "FP32, not 7"),
        (body(outputs=[{"name": "nope"}]), "no output 'nope'"),
        (body(outputs=[{"name": "output"}, {"name": "output"}]), "once"),
        (body(outputs=[{"name": "output", "parameters": {"classification": 1}}]), "not supported"),
        (body(parameters={"timeout": "soon"}), "type int"),
        (body(id=3), "'id'"),
        ({"inputs": []}, "takes one input"),
        ({"inputs": body()["inputs"] * 2}, "takes one input"),
        ({"inputs": {}}, "array"),
        ([], "object"),
        ({"inputs": [{**body()["inputs"][0], "parameters": {"binary_data_size": 8}}]}, "absent"),
    ],
)
async def test_a_wrong_body_is_told_what_is_wrong(serve, wrong, text):
    async with serve() as core, client(core) as http:
        answer = await http.post(INFER, json=wrong)
        assert answer.status_code == 400
        assert text in answer.json()["error"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"NaN", b"\xff\xfe", b"[" * 100_000, b'{"inputs": ' + b"9" * 5000 + b"}"]
)
async def test_what_is_no_json(serve, content):
    async with serve() as core, client(core) as http:
        answer = await http.post(INFER, content=content)
        assert answer.status_code == 400
        assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "1e1", "0"])
async def test_a_wrong_length_of_the_json(serve, length):
    async with serve() as core, client(core) as http:
        headers = {"Inference-Header-Content-Length": length}
        answer = await http.post(INFER, content=json.dumps(body()), headers=headers)
        assert answer.status_code == 400


async def test_numbers_json_has_not(serve):
    odd = np.array([np.nan, np.inf, -np.inf, 0.5], np.float32)
    async with serve(simulated(shape=(4,), function=lambda x: x)) as core, client(core) as http:
        sent = json.dumps(body([1.0] * 4, (1, 4))).replace("1.0, 1.0, 1.0, 1.0", _ODD)
        assert _ODD in sent, "and such are taken, too"
        answer = await http.post(INFER, content=sent)
        assert '"data": [null,Infinity,-Infinity,0.5]' in answer.text
        values = answer.json()["outputs"][0]["data"]
        np.testing.assert_array_equal(np.array(values, np.float32), odd)
        as_bytes = sent[:-1] + ', "parameters": {"binary_data_output": true}}'
        answer = await http.post(INFER, content=as_bytes)
        length = int(answer.headers["inference-header-content-length"])
        np.testing.assert_array_equal(np.frombuffer(answer.content[length:], "<f4"), odd)


_ODD = "NaN, Infinity, -Infinity, 0.5"


async def test_several_outputs_by_name_and_the_subset_asked_for(serve):
    two = simulated(function=lambda x: {"double": 2 * x, "sum": x.sum(keepdims=True)})
    async with serve(two) as core, client(core) as http:
        names = [output["name"] for output in (await http.get("/v2/models/m")).json()["outputs"]]
        assert names == ["double", "sum"]
        answer = await http.post(
            INFER,
            json=body(
                outputs=[
                    {"name": "sum", "parameters": {"binary_data": True}},
                    {"name": "double"},
                ]
            ),
        )
        length = int(answer.headers["inference-header-content-length"])
        described = json.loads(answer.content[:length])["outputs"]
        assert described[0]["parameters"] == {"binary_data_size": 4}
        assert described[1]["data"] == [2, 4]
        assert np.frombuffer(answer.content[length:], "<f4").tolist() == [3]


async def test_an_output_that_is_none_is_left_out(serve):
    some = simulated(function=lambda x: {"loss": None, "logits": 2 * x})
    async with serve(some) as core, client(core) as http:
        names = [output["name"] for output in (await http.get("/v2/models/m")).json()["outputs"]]
        assert names == ["logits"]
        answer = await http.post(INFER, json=body([[1, 2], [3, 4]], (2, 2)))
        assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (None, "'output' is None"),
        ([None], "'output0' is None"),
        ({}, "output is None"),
        ({"boxes": [[1, 2], [3]]}, "'boxes', a list, is no tensor"),
        ({"boxes": {"a": 1}}, "'boxes' holds more than numbers"),
        (object(), "'output' holds more than numbers"),
    ],
)
async def test_outputs_that_are_no_tensors_are_told_at_the_start(serve, output, name):
    strange = simulated(function=lambda x: output)
    with pytest.raises(ConfigError, match=f"model 'm' cannot be served: output {name}.* a module"):
        async with serve(strange):
            pass


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (None, "output 'output' is None"),
        ([[1.0, 2.0], [3.0]], "'output' of model 'm' is missing for this input, and was FP32"),
        ({"other": np.float32(1)}, "'output' of model 'm' is missing for this input"),
        (np.array([1.5]), "'output' of model 'm' is of the dtype float64 for this input, and was"),
    ],
)
async def test_outputs_unlike_those_of_the_example_are_told(serve, output, text):
    changing = simulated(function=lambda x: output if x.any() else x)
    async with serve(changing) as core, client(core) as http:
        for rows in (body(), body([[1, 2], [3, 4]], (2, 2))):
            answer = await http.post(INFER, json=rows)
            assert answer.status_code == 500
            assert text in answer.json()["error"]
            assert "put a module around the model" in answer.json()["error"]


async def test_sizes_that_depend_on_the_numbers_become_any_size(serve):
    """An example of zeros tells no size; a driver that believed it would lose its device."""
    changing = simulated(
        function=lambda x: {"a": x, "boxes": np.ones((int(x[0]), 4)), "c": np.ones(int(x[0]) + 1)}
    )
    async with serve(changing) as core, client(core) as http:
        shapes = []
        for first in (0.0, 3.0):
            assert (await http.post(INFER, json=body([first, 1.0]))).status_code == 200
            told = (await http.get("/v2/models/m")).json()["outputs"]
            shapes.append([one["shape"] for one in told])
        driver = OpenInferenceDriver(core.url, "m", max_batch=4)
        async with Dispatcher([driver]) as dispatcher:
            items = [np.float32([n % 5, n]) for n in range(40)]
            results = [result async for result in dispatcher.stream(items)]
            assert dispatcher.stats().devices[0].errors == 0
    assert shapes == [[[-1, 2], [-1, -1, 4], [-1, 1]], [[-1, 2], [-1, -1, 4], [-1, -1]]]
    assert [len(result["c"]) for result in results] == [n % 5 + 1 for n in range(40)]
    assert [len(result["boxes"]) for result in results] == [n % 5 for n in range(40)]


async def test_rows_whose_outputs_differ_in_shape(serve):
    changing = simulated(function=lambda x: {"a": x, "boxes": np.zeros(int(x[0]), np.float32)})
    async with serve(changing) as core, client(core) as http:
        answer = await http.post(INFER, json=body([[1, 2], [3, 4]], (2, 2)))
        assert answer.status_code == 500
        assert "output 'boxes' differs in shape" in answer.json()["error"]
        assert (await http.post(INFER, json=body([[3, 4]]))).status_code == 200


@pytest.mark.parametrize(
    ("dtype", "datatype", "data"),
    [("?", "BOOL", [True, False]), ("u1", "UINT8", [0, 255]), ("<i8", "INT64", [-(2**63), 7])],
)
async def test_other_datatypes_come_back_as_they_were_sent(serve, dtype, datatype, data):
    same = simulated(dtype=dtype, function=lambda x: x)
    async with serve(same) as core, client(core) as http:
        answer = await http.post(INFER, json=body(data, datatype=datatype))
        assert answer.json()["outputs"][0]["data"] == data
        wrong = await http.post(INFER, json=body([0, 2**70], datatype=datatype))
        assert wrong.status_code == 400


async def test_paths_and_methods_that_are_not_there(serve):
    async with serve() as core, client(core) as http:
        for path, status in (("/", 404), ("/v2/models/x", 404), ("/v2/models/m/versions/2", 404)):
            answer = await http.get(path)
            assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert (await http.get(INFER)).status_code == 405
        described = (await http.get("/openapi.json")).json()
        assert "/v2/models/{model}/infer" in described["paths"]


@pytest.mark.parametrize("more", [b"junk", gzip.compress(b" ", mtime=0)], ids=["junk", "gzip"])
async def test_a_packed_body_is_one_stream(serve, more):
    packed = {"Content-Encoding": "gzip"}
    async with serve() as core, client(core) as http:
        content = gzip.compress(json.dumps(body()).encode())
        assert (await http.post(INFER, content=content, headers=packed)).status_code == 200
        answer = await http.post(INFER, content=content + more, headers=packed)
    assert answer.status_code == 400
    assert "more than one" in answer.json()["error"]


def test_the_largest_numbers_in_their_shortest_text():
    """As Rust, C++ and numpy write a float32: read as a float64 it is a little more than that."""
    values = json.loads("[3.4028235e38, -3.4028235e+38]")
    array = from_values(values, TensorSpec("x", "FP32", (2,)), (1, 2))
    largest = np.finfo(np.float32).max
    assert array.tolist() == [[largest, -largest]]


async def test_an_answer_to_a_client_that_has_gone_is_dropped():
    class Gone:
        def is_closing(self):
            return True

        def write(self, data):  # as uvloop's transports do
            raise RuntimeError("the handler is closed")

    wrong = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: wrong.append(context))
    _Gathered(Gone(), loop).write(b"an answer")
    await asyncio.sleep(0)
    assert wrong == []


async def chunks(size, count):
    for _ in range(count):
        yield b" " * size


async def test_large_bodies_are_refused_however_they_come(serve):
    async with serve(max_request_bytes=10_000, max_json_bytes=5_000) as core, client(core) as http:
        for content in (b" " * 10_001, chunks(1000, 11), b" " * 5_001):
            answer = await http.post(INFER, content=content)
            assert answer.status_code == 413
        bomb = gzip.compress(b" " * 1_000_000)
        answer = await http.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 413
        assert (await http.post(INFER, json=body())).status_code == 200
        assert core.gate.bytes == core.gate.rows == core.gate.requests == 0


async def test_headers_without_end_are_refused(serve):
    async with serve(max_header_bytes=2000) as core:
        reader, writer = await asyncio.open_connection(*core.url[7:].split(":"))
        writer.write(b"GET /v2 HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert (await reader.read()).startswith(b"HTTP/1.1 431 ")
        writer.close()
        await writer.wait_closed()


async def test_a_full_server_refuses_and_recovers(serve):
    slow = simulated(seconds=0.05)
    async with serve(slow, max_rows=4) as core, client(core) as http:
        sent = [http.post(INFER, json=body()) for _ in range(12)]
        answers = await asyncio.gather(*sent)
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200] * 4 + [429] * 8
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert (await http.post(INFER, json=body())).status_code == 200


async def test_more_rows_than_a_request_may_have(serve):
    async with serve(max_batch=3) as core, client(core) as http:
        assert (await http.post(INFER, json=body([0.0] * 8, (4, 2)))).status_code == 413
        assert (await http.post(INFER, json=body([0.0] * 6, (3, 2)))).status_code == 200


async def test_a_request_out_of_time(serve):
    async with serve() as core, client(core) as http:
        slow_down(core)
        answer = await http.post(INFER, json=body(parameters={"timeout": 20_000}))
        assert answer.status_code == 504
        assert core.gate.rows == 0


async def test_a_client_that_goes_away_takes_its_tasks_along(serve):
    async with serve() as core:
        slow_down(core)
        with socket.create_connection(core.url[7:].split(":")) as connection:
            content = json.dumps(body([0.0] * 40, (20, 2))).encode()
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            await until(lambda: core.gate.rows == 20)
        await until(lambda: not core.gate.requests)
        stats = core.models["m"].dispatcher.stats()
        assert stats.queue_depth == stats.waiting == 0


async def test_a_token_is_needed_but_for_health(serve):
    async with serve(token="t" * 16) as core, client(core) as http:
        assert (await http.get("/v2/health/ready")).status_code == 200
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "t" * 16}):
            for path in ("/v2", "/metrics", "/v2/models/m"):
                assert (await http.get(path, headers=headers)).status_code == 401
            answer = await http.post(INFER, json=body(), headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        right = {"Authorization": f"Bearer {'t' * 16}"}
        assert (await http.post(INFER, json=body(), headers=right)).status_code == 200


async def test_metrics_count_what_happened(serve):
    async with serve() as core, client(core) as http:
        await http.post(INFER, json=body([0.0] * 6, (3, 2)))
        await http.post(INFER, json=body(datatype="FP64"))
        lines = (await http.get("/metrics")).text.splitlines()
        for line in (
            'asyncinfer_requests_total{model="m",outcome="ok",protocol="http"} 1.0',
            'asyncinfer_requests_total{model="m",outcome="BadRequest",protocol="http"} 1.0',
            'asyncinfer_rows_total{model="m"} 3.0',
            'asyncinfer_device_tasks_total{device="sim",model="m"} 4.0',
            'asyncinfer_device_up{device="sim",model="m"} 1.0',
            "asyncinfer_requests_in_work 0.0",
        ):
            assert line in lines


async def test_a_model_that_raises_is_no_bad_request(serve):
    """So a dispatcher that has the server as a device, and another one, tries there."""
    broken = simulated(function=lambda x: 1 / 0 if x.any() else x)
    async with serve(broken) as core, client(core) as http:
        answer = await http.post(INFER, json=body())
        assert answer.status_code == 500
        assert "ZeroDivisionError" in answer.json()["error"]
        remote = OpenInferenceDriver(core.url, model="m", protocol="http", name="remote")
        good = SimulatedDriver("good", 0.002, function=lambda x: x * 2)
        inputs = [np.full(2, i + 1, np.float32) for i in range(200)]
        async with Dispatcher([remote, good]) as dispatcher:
            outputs = [y async for y in dispatcher.stream(inputs)]
            assert dispatcher.stats().devices[0].faults > 0
        assert [float(y[0]) for y in outputs] == [2.0 * (i + 1) for i in range(200)]
