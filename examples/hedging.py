"""What copies of overdue tasks gain, where one device stalls now and then: in virtual time.

Four devices of 10 ms a task; one of them takes 20 times as long for 1 task in 100. The same ordered
stream without and with ``hedge=True``.

    python examples/hedging.py [--tasks 20000] [--stalls 0.01] [--factor 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from typing import Any

from asyncinfer import Dispatcher
from asyncinfer.stats import percentile
from asyncinfer.testing import SimulatedDriver, run_virtual

SECONDS = 0.01
DEVICES = 4


class Stalling(SimulatedDriver):
    """Takes ``factor`` times as long now and then."""

    def __init__(self, name: str, seconds: float, chance: float, factor: float) -> None:
        super().__init__(name, seconds)
        self._chance, self._factor, self._usual = chance, factor, seconds
        self._dice = random.Random(42)

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        """Sleep for the usual time, or for much longer."""
        stalls = self._dice.random() < self._chance
        self.service_time = self._usual * (self._factor if stalls else 1.0)
        return await super().infer(batch)


async def run(tasks: int, chance: float, factor: float, *, hedge: bool) -> dict[str, float]:
    """One stream; what it shows."""
    names = [f"device {n}" for n in range(1, DEVICES)]
    steady = [SimulatedDriver(name, SECONDS) for name in names]
    holds: list[float] = []
    drivers = [Stalling("stalls", SECONDS, chance, factor), *steady]
    async with Dispatcher(drivers, hedge=hedge) as dispatcher:
        async for result in dispatcher.results(range(tasks)):
            assert result.value == len(holds), "out of order"
            holds.append(result.delivered - result.finished)
        stats = dispatcher.stats()
    busy = sum(device.busy_seconds for device in stats.devices)
    return {
        "hold_p99": percentile(holds, 0.99),
        "hold_max": max(holds),
        "makespan": stats.elapsed,
        "copies": stats.hedging.started,
        "won": stats.hedging.won,
        "lost": stats.hedging.lost,
        "extra_work": stats.hedging.seconds / busy,
    }


def main() -> None:
    """Run both, print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--stalls", type=float, default=0.01)
    parser.add_argument("--factor", type=float, default=20.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    how = options.tasks, options.stalls, options.factor
    runs = {hedge: run_virtual(run(*how, hedge=hedge)) for hedge in (False, True)}
    if options.json:
        print(json.dumps({"without": runs[False], "with": runs[True]}))
        return
    for hedge, figures in runs.items():
        print(
            f"{'with' if hedge else 'without':7}  hold p99 {figures['hold_p99'] * 1000:6.1f} ms, "
            f"longest {figures['hold_max'] * 1000:6.1f} ms, makespan {figures['makespan']:.2f} s, "
            f"{figures['copies']:.0f} copies ({figures['won']:.0f} won), "
            f"{figures['extra_work']:.2%} extra work"
        )
    gain = runs[False]["hold_p99"] / max(runs[True]["hold_p99"], 1e-9)
    print(f"hold p99 is {gain:.1f} times lower")


if __name__ == "__main__":
    main()
