"""The harness of the suite ``peers``, against real processes of our own."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from asyncinfer.bench.peers import client, environments, loads, report, running
from asyncinfer.bench.peers import suite as peers
from asyncinfer.bench.peers.peer import OURS, OURS_HTTP, PEERS, Peer, raw
from asyncinfer.bench.peers.plan import Measured, Plan, Session
from asyncinfer.bench.peers.running import PeerFailed, Running, started
from asyncinfer.bench.record import Outcome
from asyncinfer.bench.suite import Context

pytestmark = pytest.mark.skipif(os.name != "posix", reason="process groups")

FAKE = Path(__file__).with_name("fake_peer.py")
SERVER = Peer("fake server", FAKE, request=raw, patience=20, farewell=0.3, fast=True)
OWN = Peer("fake pool", FAKE, patience=20, farewell=0.3)
LINUX = sys.platform == "linux"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of four bytes."""
    (tmp_path / "images.bin").write_bytes(b"".join(bytes([n] * 4) for n in range(10)))
    meta = {"name": "fake", "shape": [4], "labels": [*range(10)], "workers": 2, "batch": 4}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch):
    """Say how the fake peer behaves; endings do not take long."""
    monkeypatch.setattr(running, "_TERM", 0.3)
    return lambda words: monkeypatch.setenv("FAKE_PEER", words)


async def closed(peer: Running, seconds: float = 0.2) -> loads.Load:
    return await peer.closed_loop(in_flight=8, seconds=seconds)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


# ---- loads


def test_latency_counts_from_the_intended_start() -> None:
    assert loads.from_intended(1.0, 1.75) == 0.75


def test_open_loop_does_not_let_a_client_off_that_stood_still() -> None:
    """Requests fall due all the while, and their wait counts though they were not even sent."""

    async def call(number: int) -> int:
        if number == 0:
            time.sleep(0.2)  # noqa: ASYNC251  # requests 1 to 9 start late
        return number

    async def main() -> loads.Load:
        return await loads.open_loop(call, range(10), [0.02 * n for n in range(10)])

    load = asyncio.run(main())
    assert load.finished == 10
    assert load.latencies[1] > 0.1  # due at 20 ms, started at 200 ms
    assert load.latencies[1] > load.latencies[8]
    assert max(load.lags) > 0.1


def test_poisson_arrivals_repeat_with_the_seed_and_have_the_rate() -> None:
    arrivals = loads.poisson(100.0, 50.0, 42)
    assert arrivals == loads.poisson(100.0, 50.0, 42) != loads.poisson(100.0, 50.0, 43)
    assert arrivals == sorted(arrivals)
    assert len(arrivals) == pytest.approx(5000, rel=0.05)


async def test_open_loop_gives_up_on_what_is_never_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loads, "_GRACE", 0.05)

    async def call(number: int) -> int:
        if number == 1:
            await asyncio.sleep(3600)
        return number

    load = await loads.open_loop(call, range(3), [0.0, 0.0, 0.0])
    assert (load.finished, load.errors) == (2, 1)
    assert "no answer" in load.first_error


async def test_closed_loop_keeps_so_many_in_flight_and_counts_failures() -> None:
    now, most = 0, 0

    async def call(number: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001)
        now -= 1
        if number == 3:
            raise OSError("gone")
        return number if number != 4 else -1

    load = await loads.closed_loop(call, range(8), in_flight=5, seconds=0.1)
    assert most == 5
    assert load.finished == len(load.latencies) > 0
    assert load.errors > 0
    assert load.first_error in ("OSError: gone", "answered -1, expected 4")


# ---- the HTTP client


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", (200, b"ab")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab", None),
        (b"HTTP/1.1 200 OK\r\nContent-Le", None),
        (b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", (500, b"")),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
            (200, b"abc"),
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n", None),
    ],
)
def test_replies(reply: bytes, expected: tuple[int, bytes] | None) -> None:
    assert client._parse(reply) == expected


def test_a_reply_of_unknown_length_is_refused() -> None:
    with pytest.raises(ValueError, match="200"):
        client._parse(b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nab")


# ---- processes


async def test_a_server_is_loaded_and_ended(folder: Path) -> None:
    async with started(SERVER, folder) as peer:
        load = await closed(peer)
        opened = await peer.open_loop(loads.poisson(200, 0.2, 42))
        assert peer.versions == {"fake": "1.0"}
        assert peer.startup > 0
        if LINUX:
            assert peer.family.peak_rss() > 1e6
            assert peer.family.cpu_seconds() >= 0
        pid = peer.process.pid
    assert load.errors == opened.errors == 0
    assert load.finished > 50
    assert opened.finished == len(opened.lags) > 10
    assert not alive(pid)


def test_a_peer_that_loads_itself(folder: Path, behave) -> None:
    behave("own")

    async def main() -> list[loads.Load]:
        async with started(OWN, folder) as peer:
            return [await closed(peer), await peer.open_loop([0.0, 0.01]), await peer.stream(25)]

    closed_loop, opened, streamed = asyncio.run(main())
    assert closed_loop.finished > 10
    assert opened.finished == 2
    assert (streamed.finished, streamed.throughput) == (25, 50)


def test_a_killed_server_is_reported_and_gone(folder: Path, behave) -> None:
    behave("dies helper")
    seen: set[int] = set()

    async def main() -> None:
        async with started(SERVER, folder) as peer:
            seen.update(peer.family.look())
            await closed(peer)

    with pytest.raises(PeerFailed, match=r"fake server ended with status -9: what libraries print"):
        asyncio.run(main())
    if LINUX:
        assert len(seen) == 2
    assert not any(map(alive, seen))


@pytest.mark.skipif(not LINUX, reason="helpers are found in /proc")
def test_a_helper_in_a_session_of_its_own_is_ended_too(folder: Path, behave) -> None:
    behave("helper")

    async def main() -> set[int]:
        async with started(SERVER, folder) as peer:
            return peer.family.look()

    family = asyncio.run(main())
    assert len(family) == 2
    assert not any(map(alive, family))


def test_a_server_that_will_not_stop_is_killed(folder: Path, behave) -> None:
    behave("stubborn")

    async def main() -> int:
        async with started(SERVER, folder) as peer:
            return peer.process.pid

    assert not alive(asyncio.run(main()))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ("fails", "ended with status 1: the fake peer has no such model"),
        ("silent", "silent for"),
    ],
)
def test_a_peer_that_does_not_start(folder: Path, behave, words: str, match: str) -> None:
    behave(words)

    async def main() -> None:
        patience = 1.0 if words == "silent" else 20.0
        async with started(Peer("fake", FAKE, request=raw, patience=patience), folder):
            pytest.fail("it started")

    with pytest.raises(PeerFailed, match=match):
        asyncio.run(main())


def test_wrong_answers_are_errors(folder: Path, behave) -> None:
    behave("lies")

    async def main() -> loads.Load:
        async with started(SERVER, folder) as peer:
            return await closed(peer)

    load = asyncio.run(main())
    assert load.errors > load.finished
    assert "expected" in load.first_error


async def test_a_cancelled_measurement_leaves_no_process(folder: Path) -> None:
    runs = asyncio.get_running_loop().create_future()

    async def main() -> None:
        async with started(SERVER, folder) as peer:
            runs.set_result(peer.process.pid)
            await closed(peer, 60)

    task = asyncio.create_task(main())
    pid = await runs
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)


def test_a_peer_ends_by_itself_when_the_measuring_process_is_killed(folder: Path) -> None:
    code = (
        "import asyncio, os\nfrom pathlib import Path\n"
        "from asyncinfer.bench.peers.running import started\n"
        "from asyncinfer.bench.peers.peer import Peer, raw\n"
        "async def main():\n"
        f"    async with started(Peer('fake', Path({str(FAKE)!r}), request=raw),"
        f" Path({str(folder)!r})) as peer:\n"
        "        print(peer.process.pid, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    pid, deadline = int(done.stdout), time.monotonic() + 5
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


# ---- rounds and report


PLAN = Plan(("fake",), 2, 0.05, 0.1, 0.1, 0.1, budget=60, seed=42)


def test_rounds_over_peers_in_turns(folder: Path, behave) -> None:
    behave("")
    said: list[str] = []
    other = Peer("other", FAKE, request=raw, patience=20)
    session = Session(PLAN, [SERVER, other], said.append)
    asyncio.run(session.run({"fake": folder}))
    assert [line.partition(": ")[2] for line in said] == [
        "fake server",
        "other",
        "other",
        "fake server",
    ]
    loads_of_other = [(one.round, one.load) for one in session.measured if one.peer == "other"]
    assert loads_of_other[:5] == [
        (1, "closed"),
        (1, "20%"),
        (1, "50%"),
        (1, "80%"),
        (1, "95%"),
    ]
    assert {one.load for one in session.measured} >= {"equal 1"}
    assert not session.skipped
    tables = report.tables(session.measured, [SERVER, other], "note")
    assert [table.title.split(": ")[-1] for table in tables] == [
        "closed loop, 64 in flight",
        "open loop",
        "Settings",
    ]
    rows = report.rows(session.measured, 42)
    assert {row.policy for row in rows} == {"fake server", "other"}
    assert all(row.throughput > 0 and row.latency_p99 >= row.latency_p50 for row in rows)


def test_a_failing_peer_is_skipped_with_its_reason_and_the_others_go_on(
    folder: Path, behave
) -> None:
    behave("dies")
    session = Session(PLAN, [SERVER], lambda text: None)
    asyncio.run(session.run({"fake": folder}))
    assert session.measured == []
    assert session.skipped == [
        "fake: fake server ended with status -9: what libraries print is no reply"
    ]


def test_rounds_stop_when_the_time_is_used_up(folder: Path, behave) -> None:
    behave("")
    plan = Plan(("fake",), 9, 0.05, 0.05, 0.0, 0.0, budget=0.01, seed=42)
    session = Session(plan, [SERVER], lambda text: None)
    asyncio.run(session.run({"fake": folder}))
    assert {one.round for one in session.measured} == {1}
    assert "rounds 2 to 9" in session.skipped[0]


def measured(peer: str, throughput: float, load: str = "closed", turn: int = 1) -> Measured:
    count = int(throughput)
    result = loads.Load(1.0, count, [0.001] * count)
    return Measured(peer, "digits", load, turn, result, 1.0)


def test_the_check_compares_what_ran_in_the_same_round() -> None:
    speeds = {1: (300, 290), 2: (200, 190), 3: (100, 99), 4: (100, 310)}
    ones = [measured(OURS.name, ours, turn=turn) for turn, (ours, _) in speeds.items()]
    ones += [measured("mosec", theirs, turn=turn) for turn, (_, theirs) in speeds.items()]
    (check,) = report.checks(ones, [OURS, *PEERS])
    assert check.met, "the medians of all rounds are 150 and 240"
    assert "1.02 times, the median of rounds" in check.measured
    (behind,) = report.checks([one for one in ones if one.round in (1, 4)], [OURS, *PEERS])
    assert not behind.met


def test_the_check_counts_in_process_and_says_the_figure_behind_http() -> None:
    every = [OURS, OURS_HTTP, *PEERS]
    ones = [measured(OURS.name, 300), measured(OURS_HTTP.name, 100), measured("mosec", 200)]
    (check,) = report.checks(ones, every)
    assert check.met
    assert "300/s in process" in check.measured
    assert "mosec with 200/s: 1.50 times" in check.measured
    assert "100/s behind HTTP" in check.measured
    assert check.why == "behind HTTP itself, asyncinfer is slower than mosec"
    (lost,) = report.checks([measured(OURS.name, 100), measured("Dask", 200)], every)
    assert not lost.met
    assert report.checks([measured(OURS.name, 100)], every) == []
    (unmeasured,) = report.checks([measured("Dask", 200)], every)
    assert not unmeasured.met


def test_the_plot_draws_every_peer() -> None:
    (plot,) = report.plots([measured("mosec", 200), measured(OURS.name, 300)])
    drawn: list[list[object]] = []
    axes = SimpleNamespace(
        barh=lambda names, rates, color: drawn.append([names, rates]), set_xlabel=lambda text: None
    )
    plot.draw(axes)
    assert drawn == [[["mosec", OURS.name], [200, 300]]]


# ---- environments


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASYNCINFER_PEERS", str(tmp_path))
    return tmp_path


def test_absent_environments_are_skipped_with_the_command(empty_home: Path) -> None:
    outcome = Outcome("peers")
    found = peers._installed(Context(), outcome)
    assert {peer.name for peer in found} <= {OURS.name, OURS_HTTP.name}
    assert "mosec is not installed: python -m asyncinfer.bench.peers mosec" in outcome.skipped
    assert sum("python -m asyncinfer.bench.peers" in line for line in outcome.skipped) == len(PEERS)


def test_without_torch_nothing_is_measured(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments.importlib.util, "find_spec", lambda name: None)
    outcome = peers.run(Context(short=True))
    assert outcome.runs == []
    assert "asyncinfer: pip install torch" in outcome.skipped


def test_installing(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def fake_run(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        (empty_home / "mosec").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(environments.subprocess, "run", fake_run)
    assert peers.main(["mosec"]) == 0
    assert [*environments.BASE, "mosec==0.9.8"] == commands[1][-3:]
    assert environments.missing(PEERS[0]) == ""
    assert peers.main(["mosec"]) == 0
    assert len(commands) == 2
    assert "mosec: is there" in capsys.readouterr().out


def test_what_cannot_be_installed_is_said_in_one_line(
    empty_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main(["nginx"]) == 1
    assert "unknown environment 'nginx'" in capsys.readouterr().err
    failed = SimpleNamespace(returncode=1, stdout="", stderr="long\nERROR: no such version\n")
    monkeypatch.setattr(environments.subprocess, "run", lambda command, **options: failed)
    assert peers.main(["ray"]) == 1
    assert "ray cannot be installed: ERROR: no such version" in capsys.readouterr().err
    assert environments.missing(PEERS[2])


@pytest.mark.slow
@pytest.mark.models
def test_the_short_form_measures_asyncinfer(empty_home: Path) -> None:
    pytest.importorskip("torch")
    said: list[str] = []
    outcome = peers.run(Context(short=True, progress=said.append))
    assert said[0] == "digits: writing the model and its images"
    assert {run.policy for run in outcome.runs} >= {OURS.name}
    assert all(run.figures["errors"] == 0 for run in outcome.runs)
    assert outcome.checks == []
    assert math.isfinite(outcome.runs[0].latency_p99)
