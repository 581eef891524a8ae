"""Models of several inputs: by name over either protocol, what is optional, what is wrong."""

import json
import os
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from serve_child import child
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException

from asyncinfer.config import parse
from asyncinfer.errors import ConfigError
from asyncinfer.serve.limits import Limits
from asyncinfer.serve.run import models_of
from asyncinfer.serve.served import Served
from asyncinfer.testing import SimulatedDriver

INFER = "/v2/models/m/infer"
A = np.arange(8, dtype=np.float32).reshape(2, 4)
B = np.array([[1], [2]], np.int32)


def add(task):
    """Both, and as many times the first as the third says."""
    first = task["a"] * task.get("times", np.float32(1))
    return {"sum": first + task["b"].astype(np.float32), "a": task["a"]}


def two():
    """``a`` of four numbers, ``b`` of one, and ``times``, which may be left out."""
    example = {"a": A[0], "b": B[0], "times": np.ones(1, np.float32)}
    shape = {"a": (4,), "b": (1,), "times": (1,)}
    driver = SimulatedDriver("sim", 0.0, max_batch=8, function=add)
    return Served("m", [driver], {}, example, shape, optional=frozenset({"times"}))


def client(core):
    return httpx.AsyncClient(base_url=core.url, timeout=10, trust_env=False)


def tensor(name, array, **more):
    kinds = {"f": "FP32", "i": "INT32"}
    facts = {"name": name, "shape": list(array.shape), "datatype": kinds[array.dtype.kind]}
    return facts | (more or {"data": array.ravel().tolist()})


async def test_the_metadata_names_all(serve):
    async with serve(two()) as core, client(core) as http:
        told = (await http.get("/v2/models/m")).json()
        assert [(i["name"], i["datatype"], i["shape"]) for i in told["inputs"]] == [
            ("a", "FP32", [-1, 4]),
            ("b", "INT32", [-1, 1]),
            ("times", "FP32", [-1, 1]),
        ]
        config = (await http.get("/v2/models/m/config")).json()
        assert [one.get("optional", False) for one in config["input"]] == [False, False, True]


async def test_json_bytes_and_both_in_any_order(serve):
    async with serve(two()) as core, client(core) as http:
        wanted = (A + B).ravel().tolist()
        plain = {"inputs": [tensor("b", B), tensor("a", A)]}
        answer = (await http.post(INFER, json=plain)).json()
        assert answer["outputs"][0]["data"] == wanted
        assert answer["outputs"][1]["data"] == A.ravel().tolist()
        times = np.array([[2], [3]], np.float32)
        more = {"inputs": [*plain["inputs"], tensor("times", times)]}
        answer = (await http.post(INFER, json=more)).json()
        assert answer["outputs"][0]["data"] == (A * times + B).ravel().tolist()
        size = {"binary_data_size": 8}, {"binary_data_size": 32}
        inputs = [tensor("b", B, parameters=size[0]), tensor("a", A, parameters=size[1])]
        head = json.dumps({"inputs": inputs}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        body = head + B.tobytes() + A.tobytes()
        answer = (await http.post(INFER, content=body, headers=length)).json()
        assert answer["outputs"][0]["data"] == wanted
        mixed = [tensor("a", A), tensor("b", B, parameters=size[0])]
        head = json.dumps({"inputs": mixed}).encode()
        length = {"Inference-Header-Content-Length": str(len(head))}
        answer = await http.post(INFER, content=head + B.tobytes(), headers=length)
        assert answer.json()["outputs"][0]["data"] == wanted
        short = await http.post(INFER, content=head + B.tobytes() + b"x", headers=length)
        assert short.status_code == 400


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([tensor("a", A)], "takes the inputs 'a'; 'b'; 'times', which may be left out"),
        ([tensor("a", A), tensor("b", B), tensor("c", B)], "takes the inputs"),
        ([tensor("a", A), tensor("b", B), tensor("b", B)], "takes the inputs"),
        ([tensor("a", A), tensor("b", B[:1])], "as many rows each, and have: 'a' 2, 'b' 1"),
        ([tensor("a", A), tensor("b", B.astype(np.float32))], "'b' is INT32, not 'FP32'"),
        ([tensor("a", A[:, :3]), tensor("b", B)], "'a' has the shape"),
        ([], "takes the inputs"),
    ],
)
async def test_what_is_wrong_is_told(serve, inputs, text):
    async with serve(two()) as core, client(core) as http:
        answer = await http.post(INFER, json={"inputs": inputs})
        assert answer.status_code == 400
        assert text in answer.json()["error"]


async def test_over_grpc_raw_and_not(serve):
    async with serve(two()) as core, triton.InferenceServerClient(core.target) as grpc:
        inputs = []
        for name, array, kind in (("b", B, "INT32"), ("a", A, "FP32")):
            one = triton.InferInput(name, array.shape, kind)
            one.set_data_from_numpy(array)
            inputs.append(one)
        result = await grpc.infer("m", inputs)
        np.testing.assert_array_equal(result.as_numpy("sum"), A + B)
        with pytest.raises(InferenceServerException, match="takes the inputs"):
            await grpc.infer("m", inputs[:1])
        message = pb.ModelInferRequest(model_name="m")
        a = message.inputs.add(name="a", datatype="FP32", shape=[2, 4])
        b = message.inputs.add(name="b", datatype="INT32", shape=[2, 1])
        a.contents.fp32_contents.extend([*A.ravel()[:-1].tolist(), float("nan")])
        b.contents.int_contents.extend(B.ravel().tolist())
        answer = await grpc._client_stub.ModelInfer(message)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_array_equal(got[:-1], (A + B).ravel()[:-1])
        assert np.isnan(got[-1])
        # MLServer's client, with use_raw=True, leaves an empty ``contents`` beside what is raw
        for one, array in ((a, A), (b, B)):
            one.contents.SetInParent()
            one.contents.Clear()
            message.raw_input_contents.append(array.tobytes())
        assert a.HasField("contents")
        answer = await grpc._client_stub.ModelInfer(message)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32)
        np.testing.assert_array_equal(got, (A + B).ravel())


def served(text, model="serve_nets:Two"):
    config = parse(
        f'[[device]]\ndriver = "torch"\n[device.options]\nmodel = "{model}"\n{text}',
        allow_code=True,
    )
    (found,) = models_of(config, config.devices, None, Limits())
    return found


INPUTS = '[[serve.models."serve_nets:Two".inputs]]\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"takes several inputs, a, b, scale \(optional\): give each a table"),
        (f'{INPUTS}name = "a"', "give its shape"),
        (f"{INPUTS}shape = [4]", "needs a name"),
        (f'{INPUTS}name = "a"\nshape = [4]\nsize = 4', "unknown key 'size' of an input"),
        (f'{INPUTS}name = "a"\nshape = [4]\ndatatype = "BF16"', "cannot be served"),
        (f'{INPUTS}name = "a"\nshape = [4]\noptional = 1', "must be true or false"),
        (f'{INPUTS}name = "a"\nshape = [4]\noptional = true', "at least must not be optional"),
        (f'{INPUTS}name = "a"\nshape = [4]\n' * 2, "same name"),
    ],
)
def test_a_config_that_does_not_say_enough(text, message):
    with pytest.raises(ConfigError, match=message):
        served(text)


def test_inputs_are_told_in_the_models_order():
    """A client's tuple is in that order, as a ``TorchDriver``'s of the same model beside it."""
    names = ("scale", "b", "a")
    text = "".join(f'{INPUTS}name = "{name}"\nshape = [4]\n' for name in names)
    assert list(served(text).example) == ["a", "b", "scale"]
    other = text.replace('"a"', '"of_another"')
    assert list(served(other).example) == ["scale", "b", "of_another"]


def test_an_exported_program_tells_all_of_it(tmp_path):
    import torch
    from serve_nets import Two

    batch = {0: torch.export.Dim("batch", max=64)}
    given = {"a": torch.ones(2, 4), "b": torch.ones(2, 4, dtype=torch.int64)}
    program = torch.export.export(Two(), (), given, dynamic_shapes={"a": batch, "b": batch})
    torch.export.save(program, tmp_path / "two.pt2")
    found = served("", tmp_path / "two.pt2")
    assert {name: (array.dtype, array.shape) for name, array in found.example.items()} == {
        "a": (np.float32, (4,)),
        "b": (np.int64, (4,)),
    }


CONFIG = """
[[device]]
driver = "torch"
name = "cpu"
[device.options]
model = "serve_nets:Two"
[serve.models."serve_nets:Two"]
name = "two"
inputs = [
  { name = "a", shape = [-1] },
  { name = "b", shape = [-1], datatype = "INT32" },
  { name = "scale", shape = [], optional = true },
]
"""


@pytest.mark.slow
def test_a_torch_model_with_its_config():
    path = f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with child("--allow-code", config=CONFIG, environment={"PYTHONPATH": path}) as server:
        a, b = A[:, :3], np.repeat(B, 3, 1)
        body = {"inputs": [tensor("a", a), tensor("b", b)]}
        url = f"http://{server.http}/v2/models/two"
        answer = httpx.post(f"{url}/infer", json=body, trust_env=False).json()
        assert answer["outputs"][0]["data"] == (a + b).ravel().tolist()
        body["inputs"].append(tensor("scale", np.array([2, 3], np.float32)))
        answer = httpx.post(f"{url}/infer", json=body, trust_env=False).json()
        scale = np.array([[2], [3]], np.float32)
        assert answer["outputs"][0]["data"] == ((a + b) * scale).ravel().tolist()
        assert server.end()[0] == 0
