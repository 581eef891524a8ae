"""Four times as much as a server can do, for a while, over HTTP and gRPC.

    python tests/serve/serve_overload.py --seconds 60

The server's devices are simulated, so that the load is known. Prints one JSON object; the exit
status is 0 if the server stayed within its memory, refused the rest with the right status, answered
all it accepted, and recovered at once. The event loop's lag is the server's own measurement; what a
bare event loop is late by meanwhile, in a process of its own, is the machine's and is allowed for.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import re
import sys
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import grpc
import httpx
import numpy as np
from serve_child import child
from tritonclient.grpc import service_pb2

#: rows a second: one device, a call of 32 rows takes 64 ms
CAPACITY = 500
CONFIG = """
[serve]
max_rows = 512
max_requests = 128

[[device]]
driver = "simulated"
name = "slow"

[device.options]
service_time = 0.002
max_batch = 32
"""
LOAD = 4
ROWS = 8
#: bytes the server may grow by under load
GROWTH = 64 << 20
#: the event loop may be late by so many seconds, for all but this share of its looks at the clock
LAG, LATE = 0.01, 0.01
#: seconds within which requests are accepted again
RECOVERY = 1.0
#: of the capacity, that is answered under load
GOODPUT = 0.8

X = np.random.default_rng(42).random((ROWS, 1, 8, 8), dtype=np.float32)


class Load:
    """Sends at a steady rate, whatever becomes of what was sent."""

    def __init__(self, server):
        self.server = server
        self.outcomes = collections.Counter()
        self.wrong = 0
        self.latencies = []

    async def run(self, seconds, client, channel):
        every = ROWS / (LOAD * CAPACITY)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(seconds / every)):
                due = started + number * every
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                one = self._http(client) if number % 2 else self._grpc(channel)
                group.create_task(one)
        return time.perf_counter() - started

    async def _http(self, client):
        head = json.dumps(
            {
                "parameters": {"binary_data_output": True},
                "inputs": [
                    {
                        "name": "input",
                        "datatype": "FP32",
                        "shape": list(X.shape),
                        "parameters": {"binary_data_size": X.nbytes},
                    }
                ],
            }
        ).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        started = time.perf_counter()
        try:
            answer = await client.post(
                "/v2/models/digits/infer", content=head + X.tobytes(), headers=headers
            )
        except httpx.HTTPError as error:
            self.outcomes[f"http {type(error).__name__}"] += 1
            return
        self.outcomes[f"http {answer.status_code}"] += 1
        if answer.status_code == 200:
            self._answered(started, answer.content[-X.nbytes :] == X.tobytes())

    async def _grpc(self, call):
        request = service_pb2.ModelInferRequest(model_name="digits")
        request.inputs.add(name="input", datatype="FP32", shape=X.shape)
        request.raw_input_contents.append(X.tobytes())
        started = time.perf_counter()
        try:
            data = await call(request.SerializeToString())
        except grpc.aio.AioRpcError as error:
            self.outcomes[f"grpc {error.code().name}"] += 1
            return
        answer = service_pb2.ModelInferResponse.FromString(data)
        self.outcomes["grpc OK"] += 1
        self._answered(started, answer.raw_output_contents[0] == X.tobytes())

    def _answered(self, started, right):
        self.wrong += not right
        self.latencies.append(time.perf_counter() - started)


async def measure(server, seconds):
    """Load it, and see whether it accepts a request right afterwards."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(
            base_url=f"http://{server.http}", limits=limits, timeout=30, trust_env=False
        ) as client,
        grpc.aio.insecure_channel(server.grpc) as channel,
    ):
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        await Load(server).run(1, client, call)  # warm
        load, memory = Load(server), server.memory
        before = await lag(client)
        peaks = []
        peak = asyncio.create_task(watch(server, peaks))
        bare = await asyncio.create_subprocess_exec(
            sys.executable, Path(__file__).with_name("serve_ticker.py"), stdin=PIPE, stdout=PIPE
        )
        elapsed = await load.run(seconds, client, call)
        ticks = json.loads((await bare.communicate(b""))[0])
        peak.cancel()
        after = await lag(client)
        recovered = await recovery(client, load)
        ready = (await client.get("/v2/health/ready")).status_code == 200
    grown = max(peaks, default=memory) - memory
    answered = load.outcomes["http 200"] + load.outcomes["grpc OK"]
    machine = ticks["late"] / ticks["looks"]
    return judged(
        load, grown, answered * ROWS / elapsed, (before, after, machine), recovered, ready
    )


async def watch(server, peaks):
    """Look at its memory, until cancelled."""
    while True:
        peaks.append(server.memory)
        await asyncio.sleep(0.1)


async def recovery(client, load):
    """Seconds until a request is accepted."""
    started = time.perf_counter()
    while time.perf_counter() - started < 30:
        accepted = load.outcomes["http 200"]
        await load._http(client)
        if load.outcomes["http 200"] > accepted:
            break
    return time.perf_counter() - started


async def lag(client):
    """Looks at the event loop's clock so far: by the upper bound of their lag, and in all."""
    text = (await client.get("/metrics")).text
    found = re.findall(r'event_loop_lag_seconds_bucket\{le="([^"]+)"\} ([\d.e+]+)', text)
    return {float(bound): float(count) for bound, count in found}


def judged(load, grown, goodput, lags, recovered, ready):
    before, after, machine = lags
    looks = after[float("inf")] - before[float("inf")]
    counts = {bound: after[bound] - before[bound] for bound in after}
    p99 = min(bound for bound, count in counts.items() if count >= 0.99 * looks)
    late = 1 - counts[LAG] / looks
    allowed = {"http 200", "http 429", "grpc OK", "grpc RESOURCE_EXHAUSTED"}
    ordered = sorted(load.latencies)
    checks = {
        "memory": grown < GROWTH,
        "answers_right": not load.wrong,
        "goodput": goodput >= GOODPUT * CAPACITY,
        "refusals_right": set(load.outcomes) <= allowed,
        "refused": load.outcomes["http 429"] > 0 and load.outcomes["grpc RESOURCE_EXHAUSTED"] > 0,
        "recovered": recovered < RECOVERY and ready,
        "lag": late <= LATE + machine,
    }
    return {
        "outcomes": dict(sorted(load.outcomes.items())),
        "rows_per_second": round(goodput, 1),
        "capacity": CAPACITY,
        "latency_p99": round(ordered[int(0.99 * len(ordered))], 3) if ordered else None,
        "growth_mb": round(grown / 1e6, 1),
        "lag_p99_at_most": p99,
        "late_share": round(late, 5),
        "late_share_bare": round(machine, 5),
        "recovery_seconds": round(recovered, 3),
        "checks": checks,
        "good": all(checks.values()),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with child("--model", "digits", config=CONFIG) as server:
        facts = asyncio.run(measure(server, options.seconds))
        facts["clean"] = server.end()[0] == 0 and "Traceback" not in server.errors
    print(json.dumps(facts))
    return 0 if facts["good"] and facts["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
