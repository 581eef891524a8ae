"""Real devices that can be struck: a server, the nodes of a Ray cluster, and a model for these."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from urllib.request import urlopen

import ray
import torch
from ray.cluster_utils import Cluster

from asyncinfer.model import builtin
from asyncinfer_drivers._shared.process import dies_with_us
from asyncinfer_drivers.ray_cluster.session import join


class Digits:
    """The model in a Ray actor, with a pause in each call."""

    def __init__(self, pause=0.01):
        self.model = builtin("digits")
        self.module = self.model.build().eval()
        self.pause = pause

    def __call__(self, image):
        time.sleep(self.pause)
        with torch.inference_mode():
            row = self.module(torch.as_tensor(self.model.preprocess(image)).unsqueeze(0))[0]
        return self.model.postprocess(row)


def labels(model, images):
    """What the model answers for each image."""
    module = model.build().eval()
    with torch.inference_mode():
        rows = [torch.as_tensor(model.preprocess(image)) for image in images]
        return [model.postprocess(row) for row in module(torch.stack(rows))]


class Server:
    """``asyncinfer serve`` as a process of its own, on ports that stay the same."""

    def __init__(self, slowdown):
        self.http, self.grpc = free_ports(2)
        self.slowdown = slowdown
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.kill()

    def start(self):
        config = (
            '[[device]]\ndriver = "torch"\n'
            f"[device.options]\nslowdown = {self.slowdown}\nthreads = 1\n"
        )
        ports = ["--http-port", str(self.http), "--grpc-port", str(self.grpc)]
        command = [sys.executable, "-m", "asyncinfer", "serve", "--model", "digits", *ports]
        self.process = subprocess.Popen(
            dies_with_us([*command, "--config", "/dev/stdin"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this program
        )
        self.process.stdin.write(config.encode())
        self.process.stdin.close()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def ready(self):
        """Whether its model is open; blocks for a moment."""
        try:
            with urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Nodes:
    """A Ray cluster on this host: a head without work, and two nodes."""

    def __enter__(self):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        os.environ["RAY_TMPDIR"] = self._folder.name
        self._node = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        health = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000}
        head = {"num_cpus": 0, "_system_config": health}
        self.cluster = Cluster(initialize_head=True, head_node_args=head | self._node)
        self.nodes = []
        for _ in range(2):
            self.add()
        self.cluster._shutdown_at_exit = False  # that takes the main thread; they end with the head
        self.leave = join("nodes", self.cluster.address)
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        return self

    def add(self):
        """One more node; blocks."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, **self._node))

    def remove(self, node):
        """Kill all processes of a node; blocks."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def __exit__(self, *error):
        self.leave()
        self.cluster.shutdown()
        del os.environ["RAY_TMPDIR"]
        self._folder.cleanup()
