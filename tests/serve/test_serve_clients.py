"""tritonclient's four clients, unmodified, against a server in a process of its own."""

import queue

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException


@pytest.fixture(params=["http", "grpc"])
def client(request, digits):
    module, address = {
        "http": (triton_http, digits.http),
        "grpc": (triton_grpc, digits.grpc),
    }[request.param]
    with module.InferenceServerClient(address) as client:
        client.module, client.as_json = module, {"as_json": True} if request.param == "grpc" else {}
        yield client


def tensor(module, array, **how):
    found = module.InferInput("input", list(array.shape), "FP32")
    found.set_data_from_numpy(array, **how)
    return found


def close(answer, logits):
    np.testing.assert_allclose(answer.as_numpy("output"), logits, rtol=1e-4, atol=1e-4)


def test_health_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert client.get_server_metadata(**client.as_json)["name"] == "asyncinfer"
    metadata = client.get_model_metadata("digits", **client.as_json)
    (taken,), (given,) = metadata["inputs"], metadata["outputs"]
    assert (taken["name"], taken["datatype"], [*map(int, taken["shape"])]) == (
        "input",
        "FP32",
        [-1, 1, 8, 8],
    )
    assert [*map(int, given["shape"])] == [-1, 10]
    config = client.get_model_config("digits", **client.as_json)
    assert config.get("config", config)["input"][0]["data_type"] == "TYPE_FP32"
    index = client.get_model_repository_index(**client.as_json)
    assert (index["models"] if isinstance(index, dict) else index)[0]["state"] == "READY"


def test_a_batch_and_its_statistics(client, pictures):
    inputs, logits = pictures

    def count():
        stats = client.get_inference_statistics("digits", **client.as_json)["model_stats"][0]
        return int(stats["inference_count"]), int(stats["inference_stats"]["success"]["count"])

    before = count()
    answer = client.infer("digits", [tensor(client.module, inputs)], request_id="seven")
    close(answer, logits)
    response = answer.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "seven"
    rows, requests = count()
    assert (rows - before[0], requests - before[1]) == (64, 1)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_json_and_binary_in_every_mixture(digits, pictures, binary_in, binary_out):
    inputs, logits = pictures
    wanted = binary_out is not None and [
        triton_http.InferRequestedOutput("output", binary_data=binary_out)
    ]
    with triton_http.InferenceServerClient(digits.http) as client:
        given = [tensor(triton_http, inputs, binary_data=binary_in)]
        close(client.infer("digits", given, outputs=wanted or None), logits)


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_a_packed_request(digits, pictures, packing):
    inputs, logits = pictures
    with triton_http.InferenceServerClient(digits.http) as client:
        given = [tensor(triton_http, inputs)]
        close(client.infer("digits", given, request_compression_algorithm=packing), logits)


@pytest.mark.parametrize(
    ("name", "shape", "datatype", "version", "status"),
    [
        ("nope", (1, 1, 8, 8), "FP32", "", ("404", "NOT_FOUND")),
        ("digits", (1, 1, 8, 8), "FP32", "2", ("404", "NOT_FOUND")),
        ("digits", (1, 8, 8), "FP32", "", ("400", "INVALID_ARGUMENT")),
        ("digits", (0, 1, 8, 8), "FP32", "", ("400", "INVALID_ARGUMENT")),
        ("digits", (1, 1, 8, 8), "FP64", "", ("400", "INVALID_ARGUMENT")),
        ("digits", (1025, 1, 8, 8), "FP32", "", ("413", "RESOURCE_EXHAUSTED")),
    ],
)
def test_what_is_wrong_gets_its_code(client, name, shape, datatype, version, status):
    given = client.module.InferInput("input", list(shape), datatype)
    kind = np.float64 if datatype == "FP64" else np.float32
    given.set_data_from_numpy(np.zeros(shape, kind))
    with pytest.raises(InferenceServerException) as caught:
        client.infer(name, [given], version)
    assert caught.value.status().removeprefix("StatusCode.") in status


def test_a_message_that_is_too_large(client):
    large = np.zeros((1, 1, 8, 600_000), np.float32)  # 19 MB
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [tensor(client.module, large)])
    assert caught.value.status().removeprefix("StatusCode.") in ("413", "RESOURCE_EXHAUSTED")
    assert client.is_server_ready()


async def test_the_aio_clients(digits, pictures):
    inputs, logits = pictures
    async with triton_http_aio.InferenceServerClient(digits.http) as client:
        assert await client.is_server_ready()
        close(await client.infer("digits", [tensor(triton_http_aio, inputs)]), logits)
    async with triton_grpc_aio.InferenceServerClient(digits.grpc) as client:
        assert await client.is_model_ready("digits")
        close(await client.infer("digits", [tensor(triton_grpc_aio, inputs)]), logits)


async def test_a_stream_keeps_its_order_and_its_errors_are_one_requests_own(digits, pictures):
    inputs, logits = pictures

    async def requests():
        for number in range(60):
            name = "nope" if number % 20 == 7 else "digits"
            given = [tensor(triton_grpc_aio, inputs[number : number + 1])]
            yield {"model_name": name, "inputs": given, "request_id": str(number)}

    seen = 0
    async with triton_grpc_aio.InferenceServerClient(digits.grpc) as client:
        async for answer, error in client.stream_infer(requests()):
            if seen % 20 == 7:
                assert "nope" in str(error)
            else:
                assert answer.get_response().id == str(seen)
                close(answer, logits[seen : seen + 1])
            seen += 1
    assert seen == 60


def test_a_stream_of_the_sync_client(digits, pictures):
    inputs, logits = pictures
    answers = queue.Queue()
    with triton_grpc.InferenceServerClient(digits.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            given = [tensor(triton_grpc, inputs[number : number + 1])]
            client.async_stream_infer("digits", given)
        for number in range(20):
            answer, error = answers.get(timeout=10)
            assert error is None
            close(answer, logits[number : number + 1])
        client.stop_stream()
