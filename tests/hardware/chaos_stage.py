"""The real devices of a chaos run, and what they stand on."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial

import numpy as np
from chaos_model import Paced
from parts import Digits, Nodes, Server, labels
from test_remote_host import HomeNetwork

from asyncinfer.config import DeviceConfig
from asyncinfer.model import builtin, resolve
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.build import build_firmware
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.proxy import Faults
from asyncinfer_drivers.cortex_m.tensors import InputCodec
from asyncinfer_drivers.ray_cluster import RayDriver, follow
from asyncinfer_drivers.torch_host import TorchDriver

HOST, WORKER, BOARD, REMOTE, ACTOR, NODE = (
    "cpu", "worker", "cortex_m4", "raspberry_pi", "ray-1", "ray-2",
)  # fmt: skip
#: seconds of a call, slept: six devices do not fill two processors
PAUSE = 0.04
#: what devices say that they share: one that rests would not show that it is back
NOTHING = ()
#: of the board's line, which makes up its pace
BAUD = 19_200
#: seconds each way to the server
DELAY = 0.015
#: seconds between two looks at the cluster's nodes, as ``follow`` has them by default
LOOK = 1.0


class Stage:
    """All devices, from ``async with`` on; without ``nodes``, no Ray."""

    def __init__(self, nodes: Nodes | None):
        self.nodes = nodes
        self.model = builtin("digits")
        self.images = list(self.model.inputs().items)
        self.labels = labels(self.model, self.images)
        firmware = build_firmware("digits", "digits")
        self._codec = InputCodec(firmware.input)
        samples = np.stack([self._sample(image) for image in self.images])
        rows = firmware.reference(samples).reshape(len(samples), -1)
        #: the compiler's own for the board's int8 numbers
        self.rows = [tuple(row) for row in rows.tolist()]
        self.server = Server(slowdown=5)
        self.network = HomeNetwork("127.0.0.1", self.server.grpc, delay=DELAY, stalls=0)
        self.board = EmulatedCortexM4(firmware.elf, baudrate=BAUD, faults=Faults())
        self.where = {}

    @property
    def names(self):
        return [HOST, WORKER, BOARD, REMOTE, *([ACTOR, NODE] if self.nodes else [])]

    def right(self, index, device):
        """The answer of ``device`` to the task ``index``."""
        return (self.rows if device == BOARD else self.labels)[index % len(self.images)]

    async def __aenter__(self):
        async with AsyncExitStack() as stack:
            stack.enter_context(self.server)
            await self.network.plug()
            stack.push_async_callback(self.network.cut)
            await stack.enter_async_context(self.board)
            while not await asyncio.to_thread(self.server.ready):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error):
        await self._stack.aclose()

    # ---- the drivers

    def drivers(self):
        """Those that are there from the beginning."""
        steps = {"preprocess": self.model.preprocess, "postprocess": self.model.postprocess}
        # a call for each image, so that the pace stays the pause's
        plain = {"threads": 1, "optimize": "none", "max_batch": 1, "shares": NOTHING}
        torch = {"warmup_input": self.images[0], **plain, **steps}
        # without `malloc` it asks the system for memory again in each call
        apart = {"isolation": "process", "malloc": "none"}
        self.worker = TorchDriver(Paced(PAUSE), name=WORKER, **apart, **torch)
        board = CortexM4Driver(
            self.board.port,
            name=BOARD,
            baudrate=BAUD,
            max_batch=1,
            shares=NOTHING,
            raw=True,
            preprocess=self._sample,
            postprocess=lambda row: tuple(row.reshape(-1).tolist()),
        )
        server = {
            "url": f"127.0.0.1:{self.network.port}",
            "model": "digits",
            "concurrency": 1,
            "connect_timeout": 2.0,
            "shares": NOTHING,
        }
        remote = DeviceConfig("open_inference", REMOTE, server).build(resolve("digits"))
        return [TorchDriver(Paced(PAUSE), name=HOST, **torch), self.worker, board, remote]

    def _sample(self, image):
        data = self._codec.encode(self.model.preprocess(image))
        return np.frombuffer(data, np.int8).reshape(self._codec.spec.shape)

    async def follow(self, dispatcher):
        """A device for each node, as nodes come and go."""
        await follow(dispatcher, self._actor, address=self.nodes.cluster.address, interval=LOOK)

    def _actor(self, node):
        if not node.resources.get("CPU"):
            return None  # the head
        there = {one.node_id for one in self.nodes.nodes} - {node.id}
        taken = {name for name, driver in self.where.items() if driver.place in there}
        name = ACTOR if ACTOR not in taken else NODE
        driver = RayDriver(
            partial(Digits, PAUSE),
            name=name,
            address=self.nodes.cluster.address,
            placement=f"node:{node.id}",
            shares=NOTHING,
        )
        driver.place = node.id
        self.where[name] = driver
        return driver
