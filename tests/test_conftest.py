"""The guards of conftest.py: each fails a test that breaks its rule, and only such a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py").read_text()

INI = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = function
"""

OFFENDERS = """
import asyncio, subprocess, sys, threading, time
import pytest, pytest_asyncio
from hypothesis import given, strategies as st

stop = threading.Event()

def start_thread(**options):
    threading.Thread(target=stop.wait, args=(30,), **options).start()

@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_leaves_a_task():
    asyncio.get_running_loop().kept = asyncio.create_task(asyncio.sleep(30))

def test_leaves_a_thread():
    start_thread()

def test_leaves_a_daemon_of_ours():
    start_thread(name="asyncinfer-worker", daemon=True)

def test_leaves_a_process():
    command = [sys.executable, "-c", "input()"]
    globals()["process"] = subprocess.Popen(command, stdin=subprocess.PIPE)

@pytest_asyncio.fixture
async def background():
    task = asyncio.create_task(asyncio.sleep(30))
    yield
    task.cancel()

@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_fixture_that_cleans_up(background):
    await asyncio.to_thread(time.sleep, 0)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await process.wait()

def test_foreign_daemon():
    start_thread(name="other", daemon=True)

@given(st.booleans())
@pytest.mark.asyncio(loop_factories=["asyncio"])
async def test_hypothesis(value):
    await asyncio.sleep(0)

def test_end():
    stop.set()
    globals()["process"].communicate(b"\\n")
"""

#: what only Linux shows
UNSEEN_OFFENDERS = """
import os, shutil, socket, tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
import pytest

kept = {}

def test_leaves_a_port():
    kept["port"] = socket.create_server(("127.0.0.1", 0))

def test_leaves_a_path_that_listens():
    kept["path"] = socket.socket(socket.AF_UNIX)
    kept["path"].bind(bytes(1) + b"asyncinfer-test-%d" % os.getpid())
    kept["path"].listen()

def test_leaves_a_file():
    kept["file"] = Path(__file__).open()

def test_leaves_a_terminal():
    kept["terminal"] = os.openpty()

def test_leaves_a_folder():
    kept["folder"] = tempfile.mkdtemp(prefix="asyncinfer-")

def test_leaves_shared_memory():
    kept["shared"] = SharedMemory(create=True, size=10)
    kept["shared"].close()

def test_leaves_memory_without_a_name():
    kept["memory"] = os.memfd_create("asyncinfer")

def test_shared_memory_of_another_process():
    kept["others"] = Path("/dev/shm", f"psm_of-another-{os.getpid()}")
    kept["others"].touch()

def test_shared_memory_that_is_removed():
    memory = SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()

@pytest.fixture
def tidy():
    with tempfile.TemporaryDirectory(prefix="asyncinfer-") as folder:
        with socket.create_server(("127.0.0.1", 0)), Path(folder, "file").open("w"):
            yield

def test_fixture_that_cleans_up(tidy):
    kept["connected"] = socket.socketpair()
    Path(tempfile.gettempdir(), "of others").mkdir()

def test_end():
    for one in (kept["port"], kept["path"], kept["file"], *kept["connected"]):
        one.close()
    for number in (*kept["terminal"], kept["memory"]):
        os.close(number)
    shutil.rmtree(kept["folder"])
    kept["shared"].unlink()
    kept["others"].unlink()
"""


def run(pytester: pytest.Pytester, source: str) -> pytest.RunResult:
    pytester.makeconftest(CONFTEST.replace("GRACE = 2.0", "GRACE = 0.1"))
    pytester.makepyfile(source)
    pytester.makeini(INI)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


def test_leftovers_fail_the_test_that_left_them(pytester: pytest.Pytester) -> None:
    result = run(pytester, OFFENDERS)
    result.assert_outcomes(passed=8, errors=4)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_a_task *",
            "the test left pending tasks: *",
            "*ERROR at teardown of test_leaves_a_thread *",
            "the test left behind: *Thread-*",
            "*ERROR at teardown of test_leaves_a_daemon_of_ours *",
            "the test left behind: *asyncinfer-worker*",
            "*ERROR at teardown of test_leaves_a_process *",
            "the test left behind: *input()*",
        ]
    )


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows what is open")
def test_so_do_those_that_only_linux_shows(pytester: pytest.Pytester) -> None:
    result = run(pytester, UNSEEN_OFFENDERS)
    result.assert_outcomes(passed=11, errors=7)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_a_port *",
            "the test left behind: *'listening socket:*",
            "*ERROR at teardown of test_leaves_a_path_that_listens *",
            "the test left behind: *'listening socket:*",
            "*ERROR at teardown of test_leaves_a_file *",
            "the test left behind: *.py open as *",
            "*ERROR at teardown of test_leaves_a_terminal *",
            "the test left behind: */dev/pt* open as *",
            "*ERROR at teardown of test_leaves_a_folder *",
            "the test left behind: */asyncinfer-*",
            "*ERROR at teardown of test_leaves_shared_memory *",
            "the test left behind: */dev/shm/*",
            "*ERROR at teardown of test_leaves_memory_without_a_name *",
            "the test left behind: */memfd:asyncinfer*",
        ]
    )


def test_async_tests_run_on_every_loop_and_plain_ones_once(pytester: pytest.Pytester) -> None:
    source = """
        import asyncio, sys, importlib.util

        seen = []

        async def test_loop():
            loop = asyncio.get_running_loop()
            eager = loop.get_task_factory() is not None
            seen.append("eager" if eager else type(loop).__module__.split(".")[0])
            assert not loop.get_debug()

        def test_once():
            expected = ["asyncio"]
            if importlib.util.find_spec("uvloop"):
                expected.append("uvloop")
            if sys.version_info >= (3, 12):
                expected.append("eager")
            assert seen == expected
    """
    result = run(pytester, source)
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] >= 2
