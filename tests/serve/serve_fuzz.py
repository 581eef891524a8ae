"""Requests that are wrong in every way, over HTTP and gRPC.

    python tests/serve/serve_fuzz.py --requests 20000

Prints one JSON object; the exit status is 0 if the server answered all of them without a fault of
its own, is well, and has not grown.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import socket
import sys
import time

import grpc
import numpy as np
import tritonclient.http
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from serve_child import child
from serve_fuzz_input import http, messages, mutated

#: what is sent of one example: itself, and it with its bytes changed
VARIANTS = 24
#: bytes the server may grow by, once it is warm
GROWTH = 64 << 20
#: of requests, before which growth is not looked at
WARM = 0.1
FAULTS = {500, 501, 502, "no answer"}


class Http:
    """One connection, over which requests are sent without waiting for answers."""

    def __init__(self, address):
        self.address = address
        self.socket = None
        self.statuses = collections.Counter()

    def send(self, requests, last=False):
        """Send them, and count the answers' status; a connection may end after a bad one.

        After the ``last`` ones the server is told that nothing more will come: their heads may
        promise more.
        """
        if self.socket is None:
            host, port = self.address.split(":")
            self.socket = socket.create_connection((host, int(port)), timeout=30)
            self.file = self.socket.makefile("rb")
        try:
            self.socket.sendall(b"".join(requests))
            if last:
                self.socket.shutdown(socket.SHUT_WR)
            for _ in requests:
                self.statuses[self._answer()] += 1
        except (ConnectionError, EOFError):
            self.statuses["closed"] += 1
            self.close()
        except TimeoutError:
            self.statuses["no answer"] += 1
            self.close()

    def close(self):
        if self.socket is not None:
            self.file.close()
            self.socket.close()
            self.socket = None

    def _answer(self):
        line = self.file.readline()
        if not line:
            raise EOFError
        length = 0
        while (header := self.file.readline().strip().lower()) != b"":
            name, _, value = header.partition(b":")
            if name == b"content-length":
                length = int(value)
        self.file.read(length)
        return int(line.split()[1])


class Fuzzer:
    """Sends until there have been enough requests."""

    def __init__(self, server, requests, number):
        self.server, self.requests = server, requests
        self.random = random.Random(number)
        self.sent = 0
        self.http = Http(server.http)
        self.codes = collections.Counter()
        self.started = self.warm = server.memory

    def run(self):
        with grpc.insecure_channel(self.server.grpc) as channel:
            method = "/inference.GRPCInferenceService/ModelInfer"
            self.call = channel.unary_unary(method, lambda data: data, lambda data: data)
            number = 0
            while self.sent < self.requests:
                number += 1
                self._round(number)
        self.http.close()

    def _round(self, number):
        @seed(self.random.randrange(2**32))
        @settings(
            max_examples=100,
            phases=[Phase.generate],
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(http, messages(), st.booleans())
        def send(request, message, chunked):
            if self.sent >= self.requests:
                return
            if self.sent <= WARM * self.requests:
                self.warm = self.server.memory
            self._send_http(*request, chunked)
            self._send_grpc(message)

        send()

    def _send_http(self, head, body, chunked):
        bodies = [body, *(mutated(body, self.random) for _ in range(VARIANTS - 1))]
        self.http.send([packed(head, data, chunked) for data in bodies])
        self.sent += len(bodies)
        if self.random.random() < 0.05:  # the head too; such a connection is of no use afterwards
            self.http.close()
            whole = packed(head, body, chunked)
            changed = mutated(whole[:200], self.random) + whole[200:]
            self.http.send([changed + b"\r\n\r\n"], last=True)
            self.http.close()
            self.sent += 1

    def _send_grpc(self, message):
        calls = [
            self.call.future(data, timeout=30)
            for data in (message, *(mutated(message, self.random) for _ in range(VARIANTS // 2)))
        ]
        self.codes.update(call.code().name for call in calls)
        self.sent += len(calls)

    def facts(self):
        growth = self.server.memory - self.warm
        alive = self.server.process.poll() is None
        faults = sum(self.http.statuses[status] for status in FAULTS)
        faults += self.codes["INTERNAL"] + self.codes["UNKNOWN"]
        log = "Traceback" in self.server.errors
        return {
            "requests": self.sent,
            "http": {str(status): n for status, n in sorted(self.http.statuses.items(), key=str)},
            "grpc": dict(sorted(self.codes.items())),
            "faults": faults,
            "tracebacks": log,
            "memory_mb": round(self.server.memory / 1e6),
            "growth_mb": round(growth / 1e6, 1),
            "good": alive and not faults and not log and growth < GROWTH and works(self.server),
        }


def packed(head, body, chunked):
    """A whole request; in chunks if wanted."""
    if not chunked:
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    chunks = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces)
    return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks + b"0\r\n\r\n"


def works(server):
    """Whether a good request gets a good answer."""
    with tritonclient.http.InferenceServerClient(server.http) as client:
        tensor = tritonclient.http.InferInput("input", [1, 1, 8, 8], "FP32")
        tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
        return client.infer("digits", [tensor]).as_numpy("output").shape == (1, 10)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    with child("--model", "digits", "--devices", "cpu") as server:
        fuzzer = Fuzzer(server, options.requests, options.seed)
        started = time.monotonic()
        fuzzer.run()
        facts = fuzzer.facts() | {"seconds": round(time.monotonic() - started, 1)}
        if not facts["good"]:
            print(server.errors[-4000:], file=sys.stderr)
    print(json.dumps(facts))
    return 0 if facts["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
