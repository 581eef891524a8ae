"""The peers' virtual environments: one each, with pinned versions, made on demand."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence

from asyncinfer.bench.peers.peer import PEERS, Peer, home
from asyncinfer.errors import ConfigError

__all__ = ("BASE", "environments", "install", "missing")

#: what all of them hold: the releases that asyncinfer is tested with (constraints.txt)
BASE = ("torch==2.13.0", "numpy==2.4.6")

_PIP = ("-m", "pip", "install", "-qq", "--disable-pip-version-check", "--progress-bar", "off")


def environments() -> dict[str, tuple[str, ...]]:
    """Name of each environment, and what is installed into it."""
    return {peer.environment: BASE + peer.requirements for peer in PEERS}


def missing(peer: Peer) -> str:
    """What keeps a peer from being measured here, with the command to mend it; empty if nothing."""
    absent = [module for module in peer.modules if importlib.util.find_spec(module) is None]
    if absent:
        return f"{peer.name}: pip install {' '.join(absent)}"
    if peer.environment and not _ready(peer.environment):
        command = f"python -m asyncinfer.bench.peers {peer.environment}"
        return f"{peer.name} is not installed: {command}"
    return ""


def install(names: Sequence[str], say: Callable[[str], None]) -> None:
    """Make the environments of these names, all if there are none. What is there is kept.

    Raises ``ConfigError`` for unknown names, and for the first one that pip cannot install.
    """
    known = environments()
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ConfigError(f"unknown environment {unknown[0]!r}: choose of {', '.join(known)}")
    for name in names or known:
        if _ready(name):
            say(f"{name}: is there ({home() / name})")
        else:
            say(f"{name}: installing {', '.join(known[name])} into {home() / name}")
            _make(name, known[name])


def _ready(name: str) -> bool:
    """The stamp holds what was installed: another pin makes another environment."""
    stamp = home() / name / "installed.txt"
    return stamp.is_file() and stamp.read_text().split() == list(environments()[name])


def _make(name: str, requirements: Sequence[str]) -> None:
    folder = home() / name
    shutil.rmtree(folder, ignore_errors=True)
    python = str(folder / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [python, *_PIP, *requirements],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own command
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
            raise ConfigError(f"{name} cannot be installed: {last[0]}")
    (folder / "installed.txt").write_text("\n".join(requirements))
