"""Kill ``asyncinfer run --resume`` at random moments; its file must end complete all the same.

``python tests/cli/kill_resume.py --kills 50`` prints one JSON object; exit status 1 if a row is
lost, doubled or out of order.
"""

import argparse
import contextlib
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DEVICES = ("sim:0.001", "sim:0.003", "sim:0.02")


def job(folder, suffix, tasks):
    np.save(folder / "x.npy", np.arange(tasks))
    command = [sys.executable, "-m", "asyncinfer", "run", "x.npy", "--resume", "--json"]
    return [*command, "--output", f"rows{suffix}", "--devices", *DEVICES]


def killed(command, folder, after):
    """Start it, kill it some seconds after it has begun to write; whether it was still running."""
    output = folder / command[command.index("--output") + 1]
    before = output.stat().st_size if output.exists() else 0
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if output.exists() and output.stat().st_size > before:
                break
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        running = process.poll() is None
        if running:
            os.kill(process.pid, signal.SIGKILL)
    finally:
        _, said = process.communicate()
    if not running and process.returncode:
        raise SystemExit(said.decode())
    return running


def rows(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{**row, "index": int(row["index"])} for row in csv.DictReader(file)]
    return [json.loads(line) for line in path.read_text().splitlines()]


def attack(kills, tasks, suffix, seed):
    """Kill it so often, let it end, and tell what the file holds."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = job(folder, suffix, tasks)
        done = 0
        for _ in range(kills):
            done += killed(command, folder, chance.uniform(0.0, 0.08))
        last = subprocess.run(command, cwd=folder, capture_output=True, check=True)
        found = rows(folder / f"rows{suffix}")
        indices = [row["index"] for row in found]
        return {
            "kills": done,
            "rows": len(found),
            "lost": len(set(range(tasks)) - set(indices)),
            "doubled": len(indices) - len(set(indices)),
            "misordered": sum(a > b for a, b in itertools.pairwise(indices)),
            "wrong": sum(int(row["output"]) != row["index"] for row in found),
            "left_for_the_last_run": json.loads(last.stdout)["tasks"],
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=6000)
    parser.add_argument("--suffix", choices=(".jsonl", ".csv"), default=".jsonl")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    found = attack(given.kills, given.tasks, given.suffix, given.seed)
    print(json.dumps(found))
    whole = found["rows"] == given.tasks and found["kills"] == given.kills
    return not whole or any(found[kind] for kind in ("lost", "doubled", "misordered", "wrong"))


if __name__ == "__main__":
    sys.exit(main())
