"""Nodes join and leave a cluster; programs start one, find one, and leave nothing behind."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from asyncinfer import Dispatcher, config
from asyncinfer.errors import DeviceLost
from asyncinfer_drivers.ray_cluster import RayDriver, follow
from asyncinfer_drivers.ray_cluster.session import _Connection

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

LOCAL = """
import asyncio, math, threading
from asyncinfer_drivers.ray_cluster import ray_drivers

async def main():
    one, other = ray_drivers(2, math.sqrt, address="local", num_cpus=0.1)
    await asyncio.gather(one.open(), other.open())
    await one.close()
    threads = sorted(t.name for t in threading.enumerate() if "ray" in t.name)
    print(await other.infer([4.0]), threads)
    await other.close()
    children = open(f"/proc/self/task/{threading.get_native_id()}/children").read()
    print([t.name for t in threading.enumerate()], children.split())

asyncio.run(main())
"""


def run(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(0.02)


def text(x):
    return str(x)


async def test_nodes_that_come_and_go_are_devices_that_come_and_go(cluster, by_value):
    def driver(node):
        if not node.resources.get("late"):
            return None  # the head, and the node of the other tests
        return RayDriver(text, name="late", placement=f"node:{node.id}", resources={"late": 1})

    async with Dispatcher([RayDriver(text, name="here", max_batch=4)]) as dispatcher:
        following = asyncio.create_task(follow(dispatcher, driver, interval=0.1))
        tasks = 0

        def names():
            return {device.name for device in dispatcher.stats().devices}

        options = {"num_cpus": 1, "resources": {"late": 1}, "object_store_memory": 2**27}
        node = cluster.add_node(**options)  # blocks: it wants the main thread
        await until(lambda: names() == {"here", "late"})
        stream = dispatcher.results(range(4000))
        async with stream:
            async for result in stream:
                assert (result.index, result.value) == (tasks, str(tasks))
                tasks += 1
                if tasks == 1000:
                    killing = asyncio.create_task(
                        asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
                    )
        assert tasks == 4000
        await killing
        await until(lambda: names() == {"here"})
        following.cancel()
        await asyncio.wait([following])


def test_a_cluster_of_our_own_ends_with_the_last_driver():
    done = run("-c", LOCAL)
    first, last = done.stdout.splitlines()
    assert first == "[2.0] ['asyncinfer-ray', 'asyncinfer-ray-2', 'ray_listen_error_messages']"
    assert last == "['MainThread'] []"
    assert "Traceback" not in done.stderr


def test_the_command_line_runs_a_model_on_a_cluster(cluster):
    arguments = ("-m", "asyncinfer", "run", "--model", "digits", "--devices", "ray", "--json")
    done = run(*arguments, RAY_ADDRESS=cluster.address)
    (line,) = done.stdout.splitlines()
    facts = json.loads(line)
    assert facts["devices"][0]["name"] == "ray"
    assert "Traceback" not in done.stderr
    assert "(raylet)" not in done.stderr


def test_nodes_are_found(cluster):
    found = RayDriver.discover()
    assert {facts["description"].partition(", ")[2] for facts in found} >= {"3 CPU"}
    assert all(facts["name"].startswith("node:") for facts in found)


def test_nobody_answers():
    started = time.monotonic()
    with pytest.raises(DeviceLost, match=r"no Ray cluster at 127\.0\.0\.1:1: "):
        _Connection("ray", "127.0.0.1:1")
    assert time.monotonic() - started < 30, "left to Ray, it takes a minute"


def test_an_example_config_has_a_hundred_nodes():
    devices = config.load(ROOT / "examples" / "ray.toml").devices
    drivers = [device.build() for device in devices]
    assert [driver.name for driver in drivers][::99] == ["node-1", "node-100"]


def test_two_dispatchers_share_a_stream_and_one_dies():
    done = run(ROOT / "examples" / "ray_partitions.py")
    assert re.search(r"5000 results in .* s: lost 0, doubled 0, out of order 0", done.stdout)
    assert re.search(r"handed out again: [1-9]", done.stdout)


def test_the_limits_are_measured(cluster):
    spec = importlib.util.spec_from_file_location("ray_limits", ROOT / "examples" / "ray_limits.py")
    limits = sys.modules["ray_limits"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(limits)
    ray.cloudpickle.register_pickle_by_value(limits)
    rows = asyncio.run(limits.measure([1], 0.05))
    assert [row["devices"] for row in rows] == [1, 1, 1, 1]
    assert all(row["tasks/s"] > 0 < row["Ray alone"] for row in rows)
