"""Servers as they are: Triton, KServe and MLServer, each in an environment of its own.

Each runs the models named in ``MODELS``, as far as it can: see ``*_model*.py`` for what they do.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
#: where the environments are
HOME = Path(os.environ.get("ASYNCINFER_INTEROP") or CACHE / "asyncinfer" / "interop")

#: what is installed into each; seen to work together
REQUIREMENTS = {
    "triton": ["--no-deps", "nvidia-pytriton==0.7.0"],
    "kserve": ["kserve==0.21.0"],
    "mlserver": ["mlserver==1.7.1", "uvloop<0.22"],  # with a later one its workers die
}

_FITS = """
import glob, importlib.util, sys
library = glob.glob(f"{sys.base_prefix}/lib/libpython3.{sys.version_info[1]}.so*")
sys.exit(bool(importlib.util.find_spec("numpy")) or not library)
"""
_ABOUT = "import sys; print(sys.base_prefix, *sys.version_info[:2])"
_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {most}
{inputs}
{outputs}
instance_group [{{ kind: KIND_CPU count: 1 }}]
{extra}
"""
_QUEUE = """dynamic_batching {
  max_queue_delay_microseconds: %d
  default_queue_policy { max_queue_size: %d }
}"""


def python_for() -> str:
    """A Python in which all of them run: 3.10 to 3.12, with libpython and without numpy.

    Triton's models find the numpy of that Python before their own, and need one below 2.
    """
    asked = os.environ.get("ASYNCINFER_INTEROP_PYTHON")
    folders = [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep)]
    folders += sorted(Path.home().glob(".pyenv/versions/*/bin"))
    names = ("python3.12", "python3.11", "python3.10")
    for found in [asked] if asked else [folder / name for name in names for folder in folders]:
        run = (
            subprocess.run([found, "-c", _FITS], capture_output=True)
            if Path(found).exists()
            else None
        )
        if run is not None and run.returncode == 0:
            return str(found)
    raise SystemExit(
        "no Python 3.10 to 3.12 with libpython and without numpy: ASYNCINFER_INTEROP_PYTHON="
    )


def install(name: str, python: str) -> Path:
    """The environment of one server; made if it is not there."""
    home = HOME / name
    done = home / "installed"
    if not done.exists():
        subprocess.run([python, "-m", "venv", "--clear", home], check=True)
        pip = [home / "bin" / "python", "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *REQUIREMENTS[name]], check=True)
        if name == "triton":  # its backend looks beside itself; with numpy 2 its outputs are empty
            target = ["--target", _triton(home) / "backends/python"]
            subprocess.run([*pip, "--no-deps", *target, "numpy<2"], check=True)
        done.touch()
    return home


def _triton(home: Path) -> Path:
    (found,) = home.glob("lib/python*/site-packages/pytriton/tritonserver")
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Running:
    """A server in a process of its own, ready or dead."""

    #: the name of its environment
    name = ""
    models: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.home, self.folder = HOME / self.name, folder
        self.http, self.grpc, self.more = free_port(), free_port(), free_port()
        self.log = folder / f"{self.name}.log"
        self.prepare()
        self.start()

    def prepare(self) -> None:
        """Write what the server reads."""

    def command(self) -> list[Any]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {"PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def url(self, protocol: str) -> str:
        return f"127.0.0.1:{self.grpc if protocol == 'grpc' else self.http}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | self.environment()
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env=env,
            )
        deadline = time.monotonic() + 90
        while not all(map(self._ready, self.models)):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.1)

    def _ready(self, model: str) -> bool:
        try:
            url = f"http://127.0.0.1:{self.http}/v2/models/{model}/ready"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Triton(Running):
    """Triton 2.51 with models of its Python backend."""

    name = "triton"
    models = (
        "twice",
        "free",
        "whole",
        "picky",
        "together",
        "wants",
        "work",
        "full",
        "two",
        "text",
        "half",
        "odd",
    )

    def prepare(self) -> None:
        plain = [("x", "FP32", 4, False)], [("y", "FP32", 4)]
        self._model("twice", 8, *plain)
        self._model("free", 8, [("x", "FP32", -1, False)], [("y", "FP32", -1)])
        self._model("whole", 0, *plain)
        self._model("picky", 8, *plain)
        self._model("wants", 8, *plain)
        self._model("odd", 8, *plain)
        self._model("work", 8, *plain)
        self._model("together", 8, *plain, _QUEUE % (2000, 0))
        self._model("full", 1, *plain, _QUEUE % (0, 2))
        self._model(
            "two",
            8,
            [("a", "FP32", 4, False), ("b", "FP32", 4, True)],
            [("sum", "FP32", 4), ("first", "FP32", 4)],
        )
        self._model("text", 8, [("x", "STRING", 1, False)], [("y", "STRING", 1)])
        self._model("half", 8, [("x", "BF16", 4, False)], [("y", "BF16", 4)])

    def _model(self, name, most, inputs, outputs, extra=""):
        def tensor(name, kind, size, optional=False):
            may = " optional: true" if optional else ""
            return f'{{ name: "{name}" data_type: TYPE_{kind} dims: [{size}]{may} }}'

        folder = self.folder / "models" / name
        (folder / "1").mkdir(parents=True)
        shutil.copy(FOLDER / "triton_model.py", folder / "1" / "model.py")
        kinds = {
            kind: f"{kind[:-1]} [{', '.join(tensor(*one) for one in many)}]"
            for kind, many in (("inputs", inputs), ("outputs", outputs))
        }
        text = _CONFIG.format(name=name, most=most, extra=extra, **kinds)
        (folder / "config.pbtxt").write_text(text)

    def environment(self) -> dict[str, str]:
        python = subprocess.run(
            [self.home / "bin" / "python", "-c", _ABOUT], capture_output=True, text=True, check=True
        )  # fmt: skip
        base, *version = python.stdout.split()
        server = _triton(self.home)
        stub = server / "python_backend_stubs" / ".".join(version) / "triton_python_backend_stub"
        if not (server / "backends" / "python" / stub.name).exists():
            shutil.copy(stub, server / "backends" / "python")
        libraries = [f"{base}/lib", str(server.parents[1] / "nvidia_pytriton.libs")]
        return {**super().environment(), "LD_LIBRARY_PATH": os.pathsep.join(libraries)}

    def command(self) -> list[Any]:
        server = _triton(self.home)
        return [
            server / "bin" / "tritonserver",
            *("--model-repository", self.folder / "models"),
            *("--backend-directory", server / "backends"),
            *("--http-port", str(self.http), "--grpc-port", str(self.grpc)),
            *("--allow-metrics", "0", "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"),
        ]


class KServe(Running):
    """KServe's Python model server, 0.21."""

    name = "kserve"
    models = ("twice", "picky", "wants", "two", "text", "odd")

    def command(self) -> list[Any]:
        server = FOLDER / "kserve_server.py"
        return [self.home / "bin" / "python", server, str(self.http), str(self.grpc)]


class MLServer(Running):
    """MLServer 1.7.1, without workers."""

    name = "mlserver"
    models = ("twice", "picky", "wants", "two", "text", "odd", "flat")

    def prepare(self) -> None:
        ports = {"http_port": self.http, "grpc_port": self.grpc, "metrics_port": self.more}
        settings = {"host": "127.0.0.1", "parallel_workers": 0, **ports}
        (self.folder / "settings.json").write_text(json.dumps(settings))
        shutil.copy(FOLDER / "mlserver_models.py", self.folder)
        for name in self.models:
            (self.folder / name).mkdir()
            text = json.dumps(self._described(name))
            (self.folder / name / "model-settings.json").write_text(text)

    def _described(self, name: str) -> dict[str, Any]:
        def tensors(*names: str, datatype: str = "FP32", shape: tuple[int, ...] = (-1, 4)) -> Any:
            return [{"name": name, "datatype": datatype, "shape": shape} for name in names]

        kinds = {"inputs": tensors("x"), "outputs": tensors("y")}
        match name:
            case "two":
                kinds = {"inputs": tensors("a", "b"), "outputs": tensors("sum", "first")}
            case "text":
                kinds = {
                    "inputs": tensors("x", datatype="BYTES", shape=(-1, 1)),
                    "outputs": tensors("y", datatype="BYTES", shape=(-1, 1)),
                }
            case "flat":
                kinds["outputs"] = tensors("y", shape=(-1,))
        return {"name": name, "implementation": "mlserver_models.Named", **kinds}

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.folder)}

    def command(self) -> list[Any]:
        return [self.home / "bin" / "mlserver", "start", self.folder]


SERVERS: dict[str, type[Running]] = {one.name: one for one in (Triton, KServe, MLServer)}
