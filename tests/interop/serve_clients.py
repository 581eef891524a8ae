"""`asyncinfer serve` with the clients of others as they are: tritonclient's, KServe's, MLServer's.

    ASYNCINFER_INTEROP=FOLDER python tests/interop/serve_clients.py

Each client has an environment of its own in that folder: ``clients`` (tritonclient 2.70),
``kserve`` and ``mlserver``. ``examples`` is ``src/python/examples`` of
triton-inference-server/client, and ``perf_analyzer`` a program; what is not
there is left out, and said to be.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "serve"))

from serve_child import child  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
HOME = Path(os.environ.get("ASYNCINFER_INTEROP") or CACHE / "asyncinfer" / "interop")

#: those that need no shared memory, no repository, no sequences and no texts
EXAMPLES = (
    "simple_http_infer_client",
    "simple_http_async_infer_client",
    "simple_http_aio_infer_client",
    "simple_http_health_metadata",
    "simple_grpc_infer_client",
    "simple_grpc_async_infer_client",
    "simple_grpc_aio_infer_client",
    "simple_grpc_health_metadata",
    "simple_grpc_custom_args_client",
    "simple_grpc_keepalive_client",
    "grpc_explicit_int_content_client",
    "grpc_explicit_int8_content_client",
)
_MODEL = """
[[device]]
driver = "torch"
name = "{name}"
[device.options]
model = "serve_nets:{kind}"
[serve.models."serve_nets:{kind}"]
name = "{name}"
inputs = [
  {{ name = "INPUT0", shape = [16], datatype = "{datatype}" }},
  {{ name = "INPUT1", shape = [16], datatype = "{datatype}" }},
]
"""
CONFIG = '[serve]\nname = "triton"\n' + "".join(
    _MODEL.format(kind=kind, name=name, datatype=datatype)
    for kind, name, datatype in (("Simple", "simple", "INT32"), ("Simple8", "simple_int8", "INT8"))
)


def ran(name: str, command: list[object], wanted: str = "") -> bool:
    """Run a client; whether it was content. Says so."""
    if not Path(str(command[0])).exists():
        print(f"{name:40} left out: there is no {command[0]}")
        return True
    text = [str(part) for part in command]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(text, capture_output=True, text=True, env=environment, timeout=120)
    good = done.returncode == 0 and wanted in done.stdout
    last = (done.stdout + done.stderr).strip().splitlines()[-1:] or [""]
    print(f"{name:40} {'right' if good else f'WRONG ({done.returncode}): {last[0]}'}", flush=True)
    return good


def examples(server) -> list[bool]:
    python, folder = HOME / "clients" / "bin" / "python", HOME / "examples"
    if not folder.exists():
        print(f"tritonclient's examples are left out: there is no {folder}")
        return []
    found = []
    for name in EXAMPLES:
        url = server.http if "http" in name else server.grpc
        found.append(ran(name, [python, folder / f"{name}.py", "-u", url]))
    return found


def perf_analyzer(server) -> list[bool]:
    program, found = HOME / "perf_analyzer", []
    for protocol, url in (("http", server.http), ("grpc", server.grpc)):
        for concurrency, batch in ((1, 1), (8, 1), (64, 1), (4, 32)):
            options = ["-m", "simple", "-u", url, "-i", protocol, "-b", batch]
            options += ["--concurrency-range", concurrency, "-p", 1000, "-s", 999]
            name = f"perf_analyzer {protocol}, {concurrency} at once, {batch} rows"
            found.append(ran(name, [program, *options], "compute infer"))
    return found


def main() -> int:
    """The exit status: 0 if all is right."""
    path = f"{FOLDER}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    with child("--allow-code", config=CONFIG, environment={"PYTHONPATH": path}) as server:
        found = [*examples(server), *perf_analyzer(server)]
        for client in ("kserve", "mlserver"):
            python, script = HOME / client / "bin" / "python", FOLDER / f"serve_{client}.py"
            ports = [re.sub(".*:", "", url) for url in (server.http, server.grpc)]
            found.append(ran(f"{client}'s client", [python, "-W", "ignore", script, *ports]))
    return int(not all(found))


if __name__ == "__main__":
    sys.exit(main())
