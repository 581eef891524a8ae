"""Memory follows the window, not the number of tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, resource, sys
from asyncinfer import Dispatcher, Timeouts
from asyncinfer.testing import SimulatedDriver

async def main(tasks, timeout):
    drivers = [SimulatedDriver(f"d{i}", 0.0) for i in range(3)]
    async with Dispatcher(drivers, window=512, queue_size=512, timeout=timeout) as d:
        count = 0
        async for y in d.stream(bytearray(200) for _ in range(tasks)):
            count += 1
        assert count == tasks

timeout = Timeouts(total=1e6, queue=1e6) if sys.argv[2] == "limits" else None
asyncio.run(main(int(sys.argv[1]), timeout))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / (1024 if sys.platform != "darwin" else 2**20))
"""


def peak(tasks, limits=""):
    """Megabytes a fresh process needs at most to stream so many tasks."""
    command = [sys.executable, "-c", PROGRAM, str(tasks), limits]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return float(done.stdout)


@pytest.mark.slow
def test_a_million_tasks_need_no_more_than_ten_thousand():
    assert peak(1_000_000) <= peak(10_000) + 20


@pytest.mark.slow
def test_nor_with_time_limits():
    assert peak(200_000, "limits") <= peak(10_000, "limits") + 10


# ---- with failures of every kind

HYGIENE = """
import sys
sys.path.insert(0, {folder!r})
import hygiene
from asyncinfer._core.dispatch.outcomes import Outcomes
from asyncinfer._core.tasks.lane import Lane

kept = []

def keep(owner, name):
    whole = getattr(owner, name)
    def function(self, *arguments, **options):
        kept.append(arguments)
        return whole(self, *arguments, **options)
    setattr(owner, name, function)

{planted}
sys.exit(hygiene.main(["--tasks", "100000"]))
"""


def hygiene(planted=""):
    """The exit status, and what is told, of a hundred thousand tasks with a bug in the core."""
    program = HYGIENE.format(folder=str(Path(__file__).parent), planted=planted)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not done.stderr
    (line,) = done.stdout.splitlines()
    return done.returncode, json.loads(line)


@pytest.mark.slow
def test_tasks_that_fail_leave_nothing():
    status, facts = hygiene()
    assert (status, facts["well"]) == (0, True), facts
    assert facts["tasks"] == 100_000
    assert 0.008 < facts["failed"] / facts["tasks"] < 0.011
    assert min(facts["lost"], facts["retried"], facts["copies"], *facts["errors"].values()) > 20
    assert facts["left_tasks"] == facts["left_threads"] == facts["left_files"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("planted", ['keep(Outcomes, "_fail_for_good")', 'keep(Lane, "discard")'])
def test_a_leak_of_any_of_them_is_found(planted):
    status, facts = hygiene(planted)
    assert (status, facts["well"]) == (1, False)
