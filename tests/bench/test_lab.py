"""Cases that are run side by side, in processes of their own."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import active_children

import pytest

from asyncinfer.bench.rows import COLUMNS, row_of
from asyncinfer.bench.simulated import ablation
from asyncinfer.bench.simulated import lab as labs
from asyncinfer.bench.simulated.lab import Lab
from asyncinfer.bench.simulated.simulation import Plan, Throttle
from asyncinfer.bench.suite import Context
from asyncinfer.errors import ConfigError

TIMES = (0.01, 0.02, 0.04)
SOME = Plan(TIMES, 20)
#: the first takes longest, so that it is not the first to end
PLANS = (
    Plan(TIMES, 2000, estimate=10.0),
    replace(SOME, noise=0.3, seed=7),
    replace(SOME, arrivals=50.0),
    replace(SOME, throttle=Throttle(0, 4.0, 0.1), hedge=True),
)
#: found wrong only where it is run
WRONG = Plan((-1.0,), 20)


def ask(lab):
    for number, plan in enumerate(PLANS, 1):
        for policy in labs.POLICIES[:2]:
            lab.run(f"case {number}", replace(plan, policy=policy), run=number, extra=number)
    return lab.finished().runs


def cells(run):
    """Its row, without what is of the process it was run in."""
    row = dict(zip(COLUMNS, row_of(run), strict=True))
    assert row.pop("peak_rss")
    return row


def test_rows_are_the_same_in_the_same_order_wherever_cases_are_run(monkeypatch):
    monkeypatch.setattr(labs, "AHEAD", 3)
    told = []
    with Lab("ablation", Context(progress=told.append), workers=2) as lab:
        pooled = ask(lab)
        assert len(active_children()) == 2
    alone = Lab("ablation", Context())
    assert [*map(cells, pooled)] == [*map(cells, ask(alone))]
    assert told == [f"{run.case}: {run.policy}" for run in pooled]
    one, other = (each.cases[0].observed for each in (lab, alone))
    assert (one.latencies, one.holds) == (other.latencies, other.holds)


def test_what_goes_by_real_time_or_is_watched_is_run_here():
    events = []
    with Lab("paper", Context(), workers=2) as lab:
        real = lab.run("real time", Plan((0.001,), 5), virtual=False)
        watched = lab.run("watched", SOME, on_event=events.append)
        assert real.result.done()
        assert watched.result.done()
        assert active_children() == []
    assert events
    assert [run.figures["clock"] for run in lab.finished().runs] == ["real", "virtual"]


def test_one_worker_is_this_process():
    with Lab("ablation", Context(), workers=1) as lab:
        assert lab.run("here", SOME).result.done()
        assert active_children() == []


def test_an_error_arrives_as_it_was_raised_and_nothing_is_left():
    with pytest.raises(ConfigError) as here:
        Lab("ablation", Context()).run("wrong", WRONG)
    with Lab("ablation", Context(), workers=2) as lab:
        lab.run("right", SOME)
        lab.run("wrong", WRONG)
        with pytest.raises(ConfigError) as there:
            lab.finished()
    assert str(there.value) == str(here.value)
    assert active_children() == []


def test_a_suite_that_fails_leaves_no_process(monkeypatch):
    def broken(lab):
        lab.run("a case", SOME)
        raise ValueError("of the suite")

    monkeypatch.setattr(ablation, "machine", lambda: {"usable_cores": 2})
    monkeypatch.setattr(ablation.sweeps, "windows", broken)
    with pytest.raises(ValueError, match="of the suite"):
        ablation.run(Context(short=True))
    assert active_children() == []


def test_a_worker_that_dies_is_told():
    with Lab("ablation", Context(), workers=2) as lab:
        endless = lab.run("endless", Plan(TIMES, 10**9))
        for child in active_children():
            child.kill()
        with pytest.raises(BrokenProcessPool):
            _ = endless.observed


SCRIPT = """
import os
import signal
from asyncinfer.bench.simulated.lab import Lab
from asyncinfer.bench.simulated.simulation import Plan
from asyncinfer.bench.suite import Context

if __name__ == "__main__":
    # a shell that starts the tests in its background has Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Lab("ablation", Context(), workers=2) as lab:
        lab.run("short", Plan((0.01,), 10))
        begun = set()
        while len(begun) < 2:
            asked = [lab._pool.submit(os.getpid) for _ in range(10)]
            begun |= {each.result() for each in asked}
        endless = lab.run("endless", Plan((0.01,), 10**9))
        print("runs", flush=True)
        endless.observed
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no groups of processes")
@pytest.mark.parametrize("everyone", [True, False], ids=["Ctrl-C", "the parent is killed"])
def test_no_worker_outlives_the_command(tmp_path, everyone):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "runs\n"
            if everyone:
                os.killpg(process.pid, signal.SIGINT)
            else:
                process.kill()
            _, told = process.communicate(timeout=60)  # until nobody has the pipes any more
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert told.count("Traceback") == (1 if everyone else 0)
    assert process.returncode == (-signal.SIGINT if everyone else -signal.SIGKILL)
