"""`asyncinfer serve` as a process of its own, for tests and for the programs beside them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

#: seconds a server may take until it is ready
STARTING = 60.0


class Child:
    """A server that runs, and what it has printed."""

    def __init__(self, process, facts, folder):
        self.process, self.facts, self.folder = process, facts, folder
        self.http = f"127.0.0.1:{facts['http_port']}"
        self.grpc = f"127.0.0.1:{facts['grpc_port']}"

    @property
    def errors(self):
        """Its standard error so far."""
        return (self.folder / "stderr").read_text()

    @property
    def memory(self):
        """Bytes it has in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def end(self, number=signal.SIGTERM):
        """Tell it to end; its status and the object on its standard output, if there is one."""
        self.process.send_signal(number)
        status = self.process.wait(STARTING)
        printed = (self.folder / "stdout").read_text()
        return status, json.loads(printed) if printed else None


@contextmanager
def child(*arguments, config=None, environment=None):
    """A server on free ports; it is killed if it still runs at the end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ports = folder / "ports.json"
        command = [sys.executable, "-m", "asyncinfer", "serve", "--json", "--ports-file", ports]
        command += ["--http-port", "0", "--grpc-port", "0", *arguments]
        if config is not None:
            (folder / "config.toml").write_text(config)
            command += ["--config", folder / "config.toml"]
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
            )
        try:
            yield Child(process, _facts(process, ports, folder), folder)
        finally:
            process.kill()
            process.wait()


def _facts(process, ports, folder):
    deadline = time.monotonic() + STARTING
    while not ports.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no server: {(folder / 'stderr').read_text()}")
        time.sleep(0.02)
    return json.loads(ports.read_text())
