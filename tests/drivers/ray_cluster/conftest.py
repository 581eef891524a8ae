"""One Ray cluster for all tests here: a head without CPUs and, to begin with, one node."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import pytest

ray = pytest.importorskip("ray")

from ray.cluster_utils import Cluster  # noqa: E402

from asyncinfer_drivers.ray_cluster.session import join  # noqa: E402

#: what runs on uvloop too; starting actors takes its time
BOTH_LOOPS = ("survives", "cancelling", "closing")


@pytest.hookimpl(tryfirst=True)
def pytest_asyncio_loop_factories(item):
    """Most tests here run on one event loop."""
    if any(word in item.name for word in BOTH_LOOPS):
        return None
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture(scope="session")
def cluster():
    """Nodes can be added and removed. This process is connected to it, as a program may be."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    before = {key: os.environ.get(key) for key in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    health = {"health_check_period_ms": 300, "health_check_timeout_ms": 2000}
    head = {"num_cpus": 0, "_system_config": health, **node}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=3, **node)
    leave = join("tests", cluster.address)
    yield cluster
    leave()
    cluster.shutdown()
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


@pytest.fixture
def by_value(request):
    """Actors cannot import the test's module: its functions are sent whole."""
    module = sys.modules[request.module.__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)
