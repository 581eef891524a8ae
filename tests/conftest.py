"""Rules every test runs under: which event loops it runs on, and that it leaves nothing behind.

An ``async def`` test runs once per event loop below. A plain ``def`` test, such as one that calls
``asyncinfer.testing.run_virtual``, brings its own loop and runs once.
"""

from __future__ import annotations

import asyncio
import gc
import getpass
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import settings

try:
    import uvloop
except ImportError:
    uvloop = None

pytest_plugins = ("pytester",)

if "PYTEST_XDIST_WORKER" in os.environ:  # the other processors have work of their own
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

#: seconds a thread or a child process that is already ending gets to be gone
GRACE = 2.0

#: where the system shows what is open, and shared memory
OPEN, SHARED = Path("/proc/self/fd"), Path("/dev/shm")  # noqa: S108  # nothing is put there
#: shared memory that this process has made or used: all else there is other processes'
used_memory: set[str] = set()
#: what libraries may open once and keep
HARMLESS = ("/dev/null", "/dev/urandom", "/proc/", "/sys/", sys.prefix)

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def plain_loop() -> asyncio.AbstractEventLoop:
    """asyncio's own loop."""
    loop = asyncio.new_event_loop()
    loop.slow_callback_duration = 5.0  # in debug mode: a busy machine is no news
    return loop


def eager_loop() -> asyncio.AbstractEventLoop:
    """asyncio's own loop where a task's first step runs inside create_task (Python 3.12+)."""
    loop = plain_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


def uv_loop() -> asyncio.AbstractEventLoop:
    """uvloop's loop."""
    loop = uvloop.new_event_loop()
    loop.slow_callback_duration = 5.0
    return loop


LOOPS: dict[str, LoopFactory] = {"asyncio": plain_loop}
if uvloop is not None:
    LOOPS["uvloop"] = uv_loop
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, LoopFactory]:
    """Tell pytest-asyncio to run every async test on each of these loops."""
    return LOOPS


@pytest.fixture(scope="module", autouse=True)
def collects_only_its_own_garbage() -> None:
    """Keep what other modules have made out of the way of the garbage collector.

    With torch and its compiled models, looking through all of it takes most of a second each time,
    in which an event loop stands still.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def temporary_files_of_this_process() -> Iterator[None]:
    """Give the tests a folder for temporary files that no other process's tests share.

    What libraries keep there from one run to the next stays where it was.
    """
    usual = tempfile.gettempdir()
    with (
        tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, place in (
            ("PYTEST_DEBUG_TEMPROOT", usual),
            ("RAY_TMPDIR", usual),
            ("TORCHINDUCTOR_CACHE_DIR", f"{usual}/torchinductor_{getpass.getuser()}"),
        ):
            patch.setenv(name, os.environ.get(name, place))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(scope="session", autouse=True)
def notes_shared_memory() -> Iterator[None]:
    """Note the names of shared memory: they outlive their maker, and do not tell who that was."""
    begin = SharedMemory.__init__

    def noting(self: SharedMemory, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        used_memory.add(self.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SharedMemory, "__init__", noting)
        yield


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail the test that leaves something of the operating system's, once its fixtures are gone.

    That is a thread, a process, an open file or port, one that listens, a temporary file of ours,
    or shared memory: of this process each, since other tests run at the same time.
    """
    threads, before = set(threading.enumerate()), _resources()
    yield
    deadline = time.monotonic() + GRACE
    while left := [*_watched_threads(threads), *sorted(_resources() - before)]:
        if time.monotonic() > deadline:
            pytest.fail(f"the test left behind: {left}", pytrace=False)
        gc.collect()  # the traceback of an error may still hold them
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def leaves_no_task(request: pytest.FixtureRequest, leaves_nothing_behind: None) -> None:
    """Fail the async test that leaves a task pending on its loop."""
    if pytest_asyncio.is_async_test(request.node):
        request.getfixturevalue("watch_tasks")


@pytest_asyncio.fixture
async def watch_tasks() -> AsyncIterator[None]:
    """Entered before and left after every other async fixture of the test."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # lets a cancelled task end
    if left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        pytest.fail(f"the test left pending tasks: {left}", pytrace=False)


def _watched_threads(before: set[threading.Thread]) -> list[threading.Thread]:
    return [
        thread
        for thread in threading.enumerate()
        if thread not in before and (not thread.daemon or thread.name.startswith("asyncinfer"))
    ]


def _resources() -> set[str]:
    """What this process has of the operating system, and temporary files of this package."""
    ours = Path(tempfile.gettempdir()).glob("asyncinfer*")
    return {*_children(), *_open_files(), *map(str, ours), *_shared_memory()}


def _shared_memory() -> Iterator[str]:
    """What this process has used of it and nobody has removed; what is open is found as a file."""
    return (str(SHARED / name) for name in used_memory if (SHARED / name).exists())


def _open_files() -> Iterator[str]:
    """Files, serial ports and shared memory that are open, and sockets that listen. On Linux."""
    for file in OPEN.glob("*"):
        try:
            target = os.readlink(file)  # noqa: PTH115  # a Path of it costs more
            if target.startswith("socket:") and _listens(int(file.name)):
                yield f"listening {target}"
        except OSError:  # it was closed meanwhile
            continue
        if target.startswith("/") and not target.startswith(HARMLESS):
            yield f"{target} open as {file.name}"


def _listens(number: int) -> bool:
    with socket.socket(fileno=os.dup(number)) as one:
        return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _children() -> set[str]:
    """Child processes, alive or not yet waited for, by pid and command."""
    lists = list(Path("/proc/self/task").glob("*/children"))
    if not lists:  # not Linux
        return {f"{child.pid} {child.name}" for child in multiprocessing.active_children()}
    pids = [pid for file in lists for pid in _read(file).split()]
    commands = {pid: _read(Path("/proc", pid, "cmdline")).replace("\0", " ") for pid in pids}
    return {f"{pid} {cmd}" for pid, cmd in commands.items() if "resource_tracker" not in cmd}


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return ""


@dataclass
class Ran:
    """What one command did."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        """The one object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def rows(self):
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self):
        """The one line that says what went wrong."""
        (line,) = [line for line in self.err.splitlines() if "error:" in line]
        assert "Traceback" not in self.err
        return line


@pytest.fixture
def cli(capfd):
    """The program, in-process."""
    from asyncinfer.__main__ import main  # the core's tests do without its packages

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capfd.readouterr())

    return run
