"""From the start to the drained end: readiness, draining, signals, what is refused at the start."""

import asyncio
import signal
import socket
import threading

import grpc
import httpx
import pytest
import torch
from serve_child import child
from serve_models import simulated, slow_down, until
from torch import nn
from tritonclient.grpc import service_pb2, service_pb2_grpc

from asyncinfer.errors import ConfigError, DeviceLost
from asyncinfer.serve.run import Address, serving
from asyncinfer.testing import SimulatedDriver

BODY = {"inputs": [{"name": "input", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
INFER = "/v2/models/m/infer"


async def test_alive_but_not_ready_until_the_models_are_open():
    opening, go_on = asyncio.Event(), asyncio.Event()
    served = simulated()

    async def open_slowly():
        opening.set()
        await go_on.wait()
        served.drivers[0].is_open = True

    served.drivers[0].open = open_slowly
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    starting = serving([served], Address(http_port=port, grpc_port=0))
    entering = asyncio.ensure_future(starting.__aenter__())
    await opening.wait()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
        assert (await http.get("/v2/health/live")).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 503
        refused = await http.post(INFER, json=BODY)
        assert (refused.status_code, refused.json()) == (503, {"error": "the server is starting"})
        for path in ("/v2/models/m", "/v2/models/m/ready"):  # it is not said to be unknown
            assert (await http.get(path)).status_code == 503
        go_on.set()
        await entering
        assert (await http.get("/v2/health/ready")).status_code == 200
    await starting.__aexit__(None, None, None)


async def test_ready_with_the_first_device():
    served, late = simulated(), SimulatedDriver("late", 0.001)
    late.open = asyncio.Event().wait
    served.drivers = [late, *served.drivers]
    address = Address(http_port=0, grpc_port=0)
    async with asyncio.timeout(20), serving([served], address) as server:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{server.http_port}", trust_env=False
        ) as http:
            assert (await http.get("/v2/health/ready")).status_code == 200
            assert (await http.post(INFER, json=BODY)).status_code == 200
        assert [str(device.state) for device in served.stats.devices] == ["opening", "ready"]


async def test_draining_finishes_what_was_accepted_and_refuses_the_rest(serve):
    async with serve() as core, httpx.AsyncClient(base_url=core.url, trust_env=False) as http:
        slow_down(core, 0.1)
        accepted = asyncio.ensure_future(http.post(INFER, json=BODY))
        await until(lambda: core.gate.rows)
        draining = asyncio.ensure_future(core.drain(10))
        await asyncio.sleep(0)
        assert (await http.get("/v2/health/ready")).status_code == 503
        assert (await http.get("/v2/health/live")).status_code == 200
        refused = await http.post(INFER, json=BODY)
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]
        async with grpc.aio.insecure_channel(core.target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert not (await stub.ServerReady(service_pb2.ServerReadyRequest())).ready
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.ModelInfer(service_pb2.ModelInferRequest(model_name="m"))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert (await accepted).json()["outputs"][0]["data"] == [2, 4]
        assert await draining


async def test_what_is_not_drained_in_time_is_told_so(serve):
    async with httpx.AsyncClient(trust_env=False) as http:
        async with serve() as core:
            slow_down(core)
            stuck = asyncio.ensure_future(http.post(f"{core.url}{INFER}", json=BODY))
            await until(lambda: core.gate.rows)
            assert not await core.drain(0.01)
        assert (await stuck).status_code == 503


async def test_an_idle_stream_does_not_hold_up_the_end(serve):
    async with serve() as core:
        channel = grpc.aio.insecure_channel(core.target)
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()
        await stream.write(service_pb2.ModelInferRequest(model_name="nope"))
        assert "nope" in (await stream.read()).error_message
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await channel.close()


async def test_not_ready_while_no_device_is_up(serve):
    async with serve() as core, httpx.AsyncClient(base_url=core.url, trust_env=False) as http:

        async def lost(batch=None):
            raise DeviceLost("sim", "gone")

        core.models["m"].drivers[0].infer = core.models["m"].drivers[0].open = lost
        answer = await http.post(INFER, json={**BODY, "parameters": {"timeout": 100_000}})
        assert answer.status_code in (503, 504)
        await asyncio.sleep(0.11)  # a snapshot of the devices is good for so long
        assert (await http.get("/v2/health/ready")).status_code == 503
        assert (await http.get("/v2/models/m/ready")).status_code == 503


async def test_a_port_that_is_taken_is_named(serve):
    async with serve() as core:
        for where in ("http", "grpc"):
            ports = {"http_port": 0, "grpc_port": 0}
            port = (core.url if where == "http" else core.target).rpartition(":")[2]
            ports[f"{where}_port"] = int(port)
            with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
                async with serving([simulated()], Address(**ports)):
                    pytest.fail("two servers on one port")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--host", "0.0.0.0"], "--token-file, --tls-cert and --tls-key, or --insecure"),  # noqa: S104
        (["--tls-cert", "x.pem"], "TLS needs both"),
        (["--token-file", "/nowhere"], "cannot read the token"),
        (["--devices", "sim:1"], "give --model"),
        (["--model", "nope", "--devices", "sim:1"], "unknown model 'nope'"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(cli, arguments, text):
    ran = cli("serve", "--http-port", 0, "--grpc-port", 0, *arguments)
    assert ran.status == 2
    assert text in ran.error


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("[serve]\nmax_row = 3", "unknown key 'max_row'; did you mean 'max_rows'"),
        ("[serve]\nmax_rows = 0", "'max_rows' must be a whole number above 0"),
        ("[serve.models.digit]\nname='x'", "no device has 'digit'"),
        ("[serve.models.digits]\nname='a/b'", "cannot be served as 'a/b'"),
        ("[serve.models.digits]\nshape=[8,8]", "takes [1, 8, 8], not [8, 8]"),
        ("[serve.models.digits]\ndatatype='BF16'", "for bfloat16, FP32"),
        ("[serve.models.digits]\ndatatype=[1]", "'datatype' is [1], which cannot be served"),
    ],
)
def test_a_wrong_table_is_told_in_one_line(cli, tmp_path, table, text):
    config = tmp_path / "serve.toml"
    config.write_text(f"{table}\n")
    ran = cli("serve", "--config", config, "--model", "digits", "--devices", "sim:1")
    assert ran.status == 2
    assert text in ran.error


def test_a_file_for_batches_of_one_size_is_served(tmp_path):
    net = nn.Linear(3, 2).eval()
    for count in (1, 2):
        file = tmp_path / f"of{count}.pt2"
        torch.export.save(torch.export.export(net, (torch.zeros(count, 3),)), file)
        config = f'[serve.models."{file}"]\nname = "net"\nshape = [3]'
        rows = torch.arange(15.0).reshape(5, 3)
        tensor = {"name": "input", "datatype": "FP32", "shape": [5, 3], "data": rows.tolist()}
        with child("--model", file, "--devices", "cpu", config=config) as server:
            url = f"http://{server.http}/v2/models/net/infer"
            answer = httpx.post(url, json={"inputs": [tensor]}, trust_env=False, timeout=20)
        (output,) = answer.json()["outputs"]
        got = torch.tensor(output["data"]).reshape(output["shape"])
        torch.testing.assert_close(got, net(rows).detach())


def test_sigterm_drains_a_process(pictures):
    inputs, _ = pictures
    body = {
        "inputs": [
            {
                "name": "input",
                "datatype": "FP32",
                "shape": [1, 1, 8, 8],
                "data": inputs[0].ravel().tolist(),
            }
        ]
    }
    answers = []
    config = '[serve.models.digits]\nname = "slow"'
    with child("--model", "digits", "--devices", "sim:0.3", config=config) as server:
        url = f"http://{server.http}/v2/models/slow"
        with httpx.Client(trust_env=False, timeout=20) as http:

            def ask():
                answers.append(http.post(f"{url}/infer", json=body))

            asking = threading.Thread(target=ask)
            asking.start()
            while (
                "asyncinfer_rows_in_work 1.0" not in http.get(f"http://{server.http}/metrics").text
            ):
                pass
            status, facts = server.end(signal.SIGTERM)
            asking.join()
        assert status == 0
        assert (facts["drained"], facts["rows"], facts["models"]) == (True, 1, ["slow"])
        assert answers[0].status_code == 200
        assert "Traceback" not in server.errors


async def test_not_ready_while_every_request_times_out(serve):
    async with (
        serve(simulated(seconds=0.01), request_timeout=0.3) as core,
        httpx.AsyncClient(base_url=core.url, trust_env=False) as http,
    ):
        assert (await http.post(INFER, json=BODY)).status_code == 200
        slow_down(core, 1e4)
        for _ in range(2):
            assert (await http.post(INFER, json=BODY)).status_code == 504
            assert (await http.get("/v2/health/ready")).status_code == 200, "it may be slow"
        async with asyncio.timeout(60):
            while (await http.get("/v2/health/ready")).status_code == 200:
                assert (await http.post(INFER, json=BODY)).status_code == 504
        for path in ("/v2/health/ready", "/v2/models/m/ready"):
            assert (await http.get(path)).status_code == 503
        index = (await http.post("/v2/repository/index", json={})).json()
        assert (index[0]["state"], index[0]["reason"]) == ("UNAVAILABLE", "no device answers")
        slow_down(core, 0.01)
        assert (await http.post(INFER, json=BODY)).status_code == 200
        assert (await http.get("/v2/health/ready")).status_code == 200
