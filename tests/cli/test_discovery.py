"""Asking all that may be there: who is dead, slow or broken harms nobody else."""

import os
import socket
import threading
import tty

import pytest

from asyncinfer.cli import devices
from asyncinfer.cli.discovery import look
from asyncinfer.config import DeviceConfig
from asyncinfer.errors import DeviceLost, DeviceTimeout

#: enough for a busy machine; only what hangs takes that long
TIMEOUT = 1.0


@pytest.fixture
def release():
    """Lets go what hangs, at the end."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    """Whatever else runs on this host."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def driver(leads):
    """A driver's class with these leads: functions, or what they return or raise."""

    def made(outcome):
        def ask(timeout):
            if isinstance(outcome, Exception):
                raise outcome
            return outcome(timeout) if callable(outcome) else outcome

        return ask

    class Asking:
        asked = None

        @classmethod
        def leads(cls, configured):
            cls.asked = configured
            return {name: made(outcome) for name, outcome in leads.items()}

    return Asking


def states(found):
    return {one["name"]: one["state"] for one in found}


def test_one_that_hangs_leaves_the_others_their_answers(release):
    hang = driver({"hung": lambda timeout: release.wait()})
    good = driver({"a": [{"model": "digits"}], "b": [{"name": "b1"}, {"name": "b2"}]})
    found = look({"hang": hang, "good": good}, (), TIMEOUT)["found"]
    assert states(found) == {"hung": "silent", "a": "ready", "b1": "ready", "b2": "ready"}
    assert "no answer within 1 s (--timeout)" in found[0]["error"]
    assert found[1] == {
        "driver": "good", "name": "a", "state": "ready", "error": None, "model": "digits"
    }  # fmt: skip


def test_all_are_asked_at_once():
    barrier = threading.Barrier(40)

    def meet(timeout):
        barrier.wait(60)
        return [{}]

    leads = {str(n): meet for n in range(20)}
    found = look({"one": driver(leads), "two": driver(leads)}, (), 60)["found"]
    assert [one["state"] for one in found] == ["ready"] * 40


def test_what_goes_wrong_is_told():
    leads = {
        "gone": DeviceLost("gone", "unplugged"),
        "late": DeviceTimeout("late", "no answer"),
        "refused": ConnectionRefusedError("refused"),
        "broken": KeyError("port"),
        "own": [{"state": "in use"}],
    }
    found = look({"any": driver(leads)}, (), TIMEOUT)["found"]
    assert [one["state"] for one in found] == ["failed", "silent", "failed", "failed", "in use"]
    errors = [one["error"] for one in found]
    assert errors[0] == "device 'gone': unplugged"
    assert errors[2:] == ["refused", "KeyError: 'port'", None]


def test_a_driver_that_cannot_say_whom_to_ask(release):
    class Stuck:
        @staticmethod
        def leads(configured):
            release.wait()

    class Broken:
        @staticmethod
        def discover():
            raise RuntimeError("no library")

    class Good:
        @staticmethod
        def discover():
            return [{"name": "cuda:0"}]

    told = look({"stuck": Stuck, "broken": Broken, "good": Good}, (), TIMEOUT)
    assert states(told["found"]) == {"-": "silent"}
    broken, good = told["host"]
    assert broken["error"] == "RuntimeError: no library"
    assert good == {"driver": "good", "name": "cuda:0"}


def test_leads_get_the_options_of_their_own_driver_and_are_not_inherited():
    base = driver({})
    own = [DeviceConfig("base", "x", {"port": 1}), DeviceConfig("other", "y", {})]
    look({"base": base, "heir": type("Heir", (base,), {})}, own, TIMEOUT)
    assert base.asked == {"x": {"port": 1}}


def test_people_see_the_same(cli, tiny, monkeypatch):
    found = [
        {"driver": "x", "name": "a", "state": "ready", "error": None, "models": {"m": "READY"}},
        {"driver": "x", "name": "b", "state": "silent", "error": "no answer"},
    ]
    monkeypatch.setattr(devices, "look", lambda *given: {"host": [], "found": found})
    out = cli("devices").out
    assert "  a  x, ready: models m READY\n" in out
    assert "  b  x, silent: no answer\n" in out


@pytest.fixture
def dead():
    """Where connections are accepted by the system, and nobody answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def silent_port():
    """A serial port at which nothing speaks."""
    master, slave = os.openpty()
    tty.setraw(slave)
    name = os.ttyname(slave)
    os.close(slave)
    yield name
    os.close(master)


def test_dead_hosts_and_silent_boards_are_listed(cli, tiny, tmp_path, dead, silent_port):
    options = {
        "grpc": ("open_inference", f"model = 'm', url = 'grpc://127.0.0.1:{dead}'"),
        "http": ("open_inference", f"model = 'm', url = 'http://127.0.0.1:{dead}'"),
        "board": ("cortex_m4", f"port = '{silent_port}'"),
        "cluster": ("ray", f"model = 'digits', address = '127.0.0.1:{dead}'"),
    }
    file = tmp_path / "devices.toml"
    file.write_text(
        "".join(
            f"[[device]]\nname = '{name}'\ndriver = '{kind}'\noptions = {{ {given} }}\n"
            for name, (kind, given) in options.items()
        )
    )
    ran = cli("devices", "--config", file, "--timeout", "1", "--json")
    assert ran.status == 0
    found = {one["name"]: one for one in ran.json["found"]}
    for name in ("grpc", "http", silent_port, f"127.0.0.1:{dead}"):
        assert found[name]["state"] == "silent", found[name]
        assert "within 1 s" in found[name]["error"]
    assert found[silent_port]["configured"] == "board"


def test_a_port_that_is_in_use_is_left_alone(silent_port, tmp_path):
    pytest.importorskip("serial")
    from asyncinfer_drivers.cortex_m import CortexM4Driver

    link = tmp_path / "board"
    link.symlink_to(silent_port)
    other = os.open(silent_port, os.O_RDWR | os.O_NOCTTY)
    try:
        own = [DeviceConfig("cortex_m4", "board", {"port": str(link)})]
        found = look({"cortex_m4": CortexM4Driver}, own, TIMEOUT)["found"]
    finally:
        os.close(other)
    assert states(found)[str(link)] == "in use"
