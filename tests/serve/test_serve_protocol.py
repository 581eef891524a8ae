"""The published protocol, walked: every method, parameter, version, id and choice of outputs."""

import grpc
import httpx
import numpy as np
import pytest
from serve_models import simulated
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

INFER = "/v2/models/m/infer"
VERSIONED = "/v2/models/m/versions/1/infer"
#: of the protocol as KServe publishes it, and Triton's that are served
METHODS = {
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "ModelStreamInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex",
}  # fmt: skip
#: fields that the published OpenAPI document wants of each answer
REQUIRED = {
    "/v2": {"name", "version", "extensions"},
    "/v2/health/live": {"live"},
    "/v2/health/ready": {"ready"},
    "/v2/models/m": {"name", "versions", "platform", "inputs", "outputs"},
    "/v2/models/m/versions/1": {"name", "versions", "platform", "inputs", "outputs"},
    "/v2/models/m/ready": {"name", "ready"},
    "/v2/models/m/versions/1/ready": {"name", "ready"},
}


def body(**more):
    tensor = {"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    return {"inputs": [tensor | more.pop("tensor", {})], **more}


def message(**more):
    found = pb.ModelInferRequest(model_name="m", **more)
    found.inputs.add(name="input", datatype="FP32", shape=[1, 2])
    found.raw_input_contents.append(np.array([1, 2], np.float32).tobytes())
    return found


def several():
    return simulated(function=lambda x: {"one": x, "two": x + x, "three": 3 * x})


def client(core):
    return httpx.AsyncClient(base_url=core.url, timeout=10, trust_env=False)


async def test_every_method_of_the_service_is_served_or_said_not_to_be(serve):
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    async with serve() as core, grpc.aio.insecure_channel(core.target) as channel:
        found = set()
        for method in service.methods:
            make = channel.stream_stream if method.client_streaming else channel.unary_unary
            call = make(f"/{service.full_name}/{method.name}")
            try:
                if method.client_streaming:
                    assert [answer async for answer in call(iter(()))] == []
                else:
                    await call(b"")
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
            found.add(method.name)
    assert found == METHODS


async def test_answers_have_what_the_document_wants(serve):
    async with serve() as core, client(core) as http:
        for path, fields in REQUIRED.items():
            answer = await http.get(path)
            assert answer.status_code == 200
            assert fields <= answer.json().keys()
        for path in (INFER, VERSIONED):
            answer = (await http.post(path, json=body(id="ä"))).json()
            assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "ä")
        assert "id" not in (await http.post(INFER, json=body())).json()


@pytest.mark.parametrize("value", [True, 7, -1, 2**62, 0.5, "text", "", None, [1], {"a": 1}])
async def test_parameters_of_all_kinds_that_mean_nothing_here(serve, value):
    given = {"parameters": {"custom": value}}
    async with serve() as core, client(core) as http:
        asked = body(**given, tensor=given, outputs=[{"name": "output", **given}])
        answer = await http.post(INFER, json=asked)
        assert answer.json()["outputs"][0]["data"] == [2, 4]


@pytest.mark.parametrize(
    "absent", [{}, {"parameters": None, "outputs": None, "id": None}, {"outputs": []}]
)
async def test_null_and_absent_are_alike(serve, absent):
    async with serve() as core, client(core) as http:
        asked = body(**absent, tensor={"parameters": None} if absent else {})
        assert (await http.post(INFER, json=asked)).json()["outputs"][0]["data"] == [2, 4]


async def test_parameters_of_all_kinds_over_grpc(serve):
    choices = pb.InferParameter.DESCRIPTOR.oneofs_by_name["parameter_choice"].fields
    values = {"bool_param": True, "string_param": "text", "double_param": 0.5}
    async with serve() as core, grpc.aio.insecure_channel(core.target) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for choice in choices:
            asked = message(id="7", model_version="1")
            output = asked.outputs.add(name="output")
            for holder in (asked, asked.inputs[0], output):
                setattr(holder.parameters["custom"], choice.name, values.get(choice.name, 7))
            answer = await stub.ModelInfer(asked)
            assert (answer.id, answer.model_name, answer.model_version) == ("7", "m", "1")
            assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == [2, 4]


@pytest.mark.parametrize("names", [["two"], ["three", "one"], ["one", "two", "three"]])
async def test_outputs_that_are_asked_for_in_their_order(serve, names):
    async with serve(several()) as core, client(core) as http:
        asked = body(outputs=[{"name": name} for name in names])
        answer = (await http.post(INFER, json=asked)).json()
        assert [output["name"] for output in answer["outputs"]] == names
        async with grpc.aio.insecure_channel(core.target) as channel:
            wanted = message()
            for name in names:
                wanted.outputs.add(name=name)
            answer = await service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(wanted)
            assert [output.name for output in answer.outputs] == names


@pytest.mark.parametrize("version", ["2", "latest", "-1"])
async def test_versions_and_models_that_there_are_not(serve, version):
    async with serve() as core, client(core) as http:
        for path in (f"/v2/models/m/versions/{version}", "/v2/models/other"):
            for answer in (await http.get(path), await http.post(f"{path}/infer", json=body())):
                assert answer.status_code == 404
                assert answer.json()["error"].startswith("Request for unknown model:")
        async with grpc.aio.insecure_channel(core.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(message(model_version=version))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            for name, wanted in (("other", ""), ("m", version)):  # as Triton answers it
                asked = pb.ModelReadyRequest(name=name, version=wanted)
                assert not (await stub.ModelReady(asked)).ready
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="m", version="1"))).ready


async def test_statistics_count_each_stage_alike_and_only_grow(serve):
    async with serve(simulated(seconds=0.001)) as core, client(core) as http:
        before = {}
        for count in (1, 6):
            for _ in range(count):
                await http.post(INFER, json=body())
            await http.post(INFER, json=body(outputs=[{"name": "nope"}]))
            (stats,) = (await http.get("/v2/models/m/stats")).json()["model_stats"]
            found = stats["inference_stats"]
            stages = ("queue", "compute_input", "compute_infer", "compute_output")
            assert {found[name]["count"] for name in ("success", *stages)} == {
                before.get("success", {"count": 0})["count"] + count
            }
            assert sum(found[name]["ns"] for name in stages) <= found["success"]["ns"] + len(stages)
            assert all(found[name]["ns"] >= value["ns"] for name, value in before.items())
            assert found["fail"]["count"] == before.get("fail", {"count": 0})["count"] + 1
            before = found
        assert before["compute_infer"]["ns"] > 0
        async with grpc.aio.insecure_channel(core.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="m"))).model_stats
            assert stats.inference_stats.queue.count == stats.inference_stats.success.count == 7
