"""``asyncinfer simulate``: the figures of the design, and its outputs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncinfer.bench.simulated.hosts import Place
from asyncinfer.bench.simulated.simulation import Plan, simulate
from asyncinfer.testing import SimulatedHost

THREE = ["0.005", "0.1", "1.0"]
PAPER = ["1.2", "1.5", "1.1", "2.0", "1.8", "1.3", "1.7", "1.4"]


@pytest.mark.parametrize(
    ("times", "tasks", "window", "greedy", "eft"),
    [
        (THREE, 100, 100, 2.083, 1.000),
        (THREE, 1000, 1000, 1.054, 1.000),
        (THREE, 10000, 100, 2.089, 1.005),
        (["0.01", "0.02", "0.04", "0.08"], 100, 100, 1.037, 1.000),
        (PAPER, 1000, 100, 1.000, 1.000),
    ],
)
def test_table_of_the_design(cli, times, tasks, window, greedy, eft):
    given = ["simulate", "--service-times", *times, "--tasks", tasks, "--window", window, "--json"]
    plain, ours = cli(*given, "--policy", "greedy").json, cli(*given).json
    assert plain["ratio"] == pytest.approx(greedy, abs=1e-3)
    assert ours["ratio"] == pytest.approx(eft, abs=1e-3)
    assert ours["mean_hold"] <= 0.001 * max(map(float, times))
    assert ours["in_order"] is plain["in_order"] is True


def test_json_has_what_is_promised(cli):
    facts = cli("simulate", "--service-times", *THREE, "--tasks", 300, "--json").json
    promised = {"makespan", "optimum", "ratio", "utilisation", "mean_hold", "max_reorder"}
    extra = {"policy", "window", "window_needed", "windowed_optimum", "throughput", "devices"}
    assert promised | extra <= facts.keys()
    assert facts["makespan"] == pytest.approx(facts["ratio"] * facts["optimum"])
    assert sum(device["tasks"] for device in facts["devices"]) == 300
    assert 0 < facts["utilisation"] <= 1


@pytest.mark.parametrize("policy", ["static", "sync", "serial"])
def test_the_baselines_are_worse(cli, policy):
    given = ["simulate", "--service-times", *THREE, "--tasks", 60, "--policy", policy, "--json"]
    facts = cli(*given).json
    assert facts["policy"] == policy
    assert facts["ratio"] > 1.03


def test_noise_is_the_same_for_the_same_seed(cli):
    given = ["simulate", "--service-times", *PAPER, "--noise", 0.3, "--json", "--seed"]
    one, same, other = (cli(*given, seed).json["makespan"] for seed in (1, 1, 2))
    assert one == same != other


@settings(max_examples=25)
@given(
    st.lists(st.floats(0.01, 2.0), min_size=1, max_size=5),
    st.integers(1, 200),
    st.sampled_from(["eft", "greedy"]),
)
def test_no_policy_beats_the_optimum(times, tasks, policy):
    plan = Plan(times, tasks, 64, policy=policy)
    observed = simulate(plan)
    assert observed.makespan / plan.optimum >= 1 - 1e-9
    assert observed.tasks == tasks


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.floats(0.01, 2.0), st.floats(0, 2.0)), min_size=1, max_size=5),
    st.integers(1, 100),
    st.floats(0.5, 4),
    st.floats(0, 0.2),
)
def test_no_schedule_of_devices_that_share_a_host_beats_the_optimum(devices, tasks, cores, extra):
    host = SimulatedHost(cores, extra)
    places = [Place(host, wanted) for _, wanted in devices[1:]]
    plan = Plan([t for t, _ in devices], tasks, 64, places=[None, *places])
    assert simulate(plan).makespan / plan.optimum >= 1 - 1e-9


def test_the_best_of_a_host_alone_reach_the_optimum(cli):
    """Two of three do most: 136 tasks/s, where the first alone does 100, and all three 47."""
    host = ["--host", "pi:2:0.1", "--tasks", 2000, "--json", "--service-times"]
    facts = cli("simulate", *host, "0.01@pi", "0.02@pi", "0.05@pi:4").json
    (pi,) = facts["hosts"]
    assert (pi["name"], pi["cores"], pi["contention"]) == ("pi", 2, 0.1)
    assert pi["devices"] == ["1: 10 ms@pi", "2: 20 ms@pi", "3: 50 ms@pi"]
    assert pi["best"] == pi["devices"][:2]
    assert pi["rate"] == pytest.approx(150 / 1.1) == facts["total_rate"]
    assert pi["rate_of_all"] == pytest.approx(170 / 3 / 1.2)
    assert facts["optimum"] == pytest.approx(2000 / pi["rate"])
    alone = cli("simulate", *host, "0.01@pi", "0.02@pi").json
    assert alone["ratio"] == pytest.approx(1, abs=1e-3)
    assert alone["formulas"] == {}


def test_devices_on_hosts_and_others_do_what_they_do_alone(cli):
    given = ["--service-times", "0.01@one", "0.04@two:0.5", "0.1", "--host", "one:1", "two:1:0.2"]
    facts = cli("simulate", *given, "--json").json
    assert [host["rate"] for host in facts["hosts"]] == pytest.approx([100, 25])
    assert facts["total_rate"] == pytest.approx(135)
    assert facts["ratio"] == pytest.approx(1, abs=5e-3)
    assert "host one      most by 1 of 1: 1: 10 ms@one: 100 tasks/s" in cli("simulate", *given).out


def test_people_see_a_chart(cli):
    ran = cli("simulate", "--service-times", *THREE, "--tasks", 300, "--window", 100)
    assert "1: 5 ms   │██" in ran.out
    assert "makespan" in ran.out
    assert "every device takes part from 211" in ran.out


def test_plot(cli, tmp_path):
    picture = tmp_path / "chart.png"
    ran = cli("simulate", "--service-times", *THREE, "--tasks", 400, "--plot", picture, "--json")
    assert json.loads(ran.out)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--service-times 0.1 0", "--service-times: give seconds above 0, not 0.0"),
        ("--service-times nan", "--service-times: give seconds above 0, not nan"),
        ("--service-times 0.1 --tasks 0", "--tasks"),
        ("--service-times 0.1 --window 0", "--window"),
        ("--service-times 0.1 --policy best", "unknown policy 'best': choose one of eft"),
        ("--service-times 0,1", "--service-times 0,1: write seconds, or seconds@HOST"),
        ("--service-times 0.1@pi", "0.1@pi: unknown host 'pi'; add --host pi:CORES"),
        ("--service-times 0.1@pii --host pi:2", "host 'pii'; did you mean 'pi'? known: pi"),
        ("--service-times 0.1@pi:x --host pi:2", "0.1@pi:x: write seconds, or seconds@HOST"),
        ("--service-times 0.1@pi:-1 --host pi:2", "0.1@pi:-1: give cores from 0, not -1"),
        ("--service-times 0.1 --host pi:2", "--host pi: no device is on it: write --service-times"),
        ("--service-times 0.1@pi --host pi", "--host pi: write NAME:CORES, or NAME:CORES:CONT"),
        ("--service-times 0.1@pi --host pi:0", "host 'pi': cores must be above 0, not 0.0"),
        ("--service-times 0.1@pi --host pi:2:-1", "host 'pi': contention must be 0 or more"),
        ("--service-times 0.1@pi --host pi:2 pi:3", "there is a host 'pi' already"),
        ("--service-times 0.1@pi --host pi:2 --spread 9", "leave out --host, or --spread"),
        ("--service-times" + " 0.1@pi" * 17 + " --host pi:2", "has 17 devices, more than 16"),
        ("--service-times 0.1 --plot x.xyz", "x.xyz: write a picture as .png"),
        ("--service-times 0.1 --plot /no/such/x.png", "no such folder: /no/such"),
    ],
)
def test_bad_input(cli, arguments, message):
    ran = cli("simulate", *arguments.split())
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.error
