"""Inferences over a line that flips, drops and doubles bytes, through resets and cuts.

    python tests/hardware/soak.py --inferences 100000

Prints one JSON object; the exit status is 0 if every result was correct, in order, and came once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time

from asyncinfer import Dispatcher
from asyncinfer_drivers.cortex_m import CortexM4Driver
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.proxy import Faults

#: seconds the line stays cut
CUT = 0.3


class Soak:
    """One run: what is sent, what is done to the board meanwhile, and what came back."""

    def __init__(self, elf, inputs, expected, *, inferences, faults, resets, cuts):
        self.inputs, self.expected, self.inferences = inputs, expected, inferences
        self.board = EmulatedCortexM4(elf, faults=Faults.mixed(faults))
        self.resets = set(range(resets, inferences, resets)) if resets else set()
        self.cuts = {inferences * n // (cuts + 1) for n in range(1, cuts + 1)}
        self.wrong = self.unordered = self.done = 0
        self.counts = {}

    async def run(self):
        async with self.board:
            driver = CortexM4Driver(
                self.board.port, name="cortex_m4", max_batch=1, concurrency=4, raw=True
            )
            async with Dispatcher([driver], window=64, retries=100) as dispatcher:
                await self._stream(dispatcher)
            self.counts = dict(self.board.proxy.counts)
        return self.wrong == self.unordered == 0 and self.done == self.inferences

    async def _stream(self, dispatcher):
        items = itertools.islice(itertools.cycle(self.inputs), self.inferences)
        async for result in dispatcher.results(items):
            right = self.expected[self.done % len(self.expected)]
            self.unordered += result.index != self.done
            self.wrong += result.error is not None or not (result.value == right).all()
            self.done += 1
            await self._disturb()

    async def _disturb(self):
        if self.done in self.resets:
            await self.board.reset()
        if self.done in self.cuts:
            await self.board.cut()
            await asyncio.sleep(CUT)
            self.board.replug()

    def facts(self, seconds):
        return {
            "inferences": self.done,
            "correct": self.done - self.wrong,
            "in_order": self.unordered == 0,
            "resets": len(self.resets),
            "cuts": len(self.cuts),
            "faults": self.counts,
            "seconds": round(seconds, 1),
        }


def digits():
    """The digits firmware, all digits as the board takes them, and its compiler's answers."""
    import numpy as np

    from asyncinfer_drivers.cortex_m.build import build_firmware
    from asyncinfer_drivers.cortex_m.tensors import InputCodec
    from asyncinfer_drivers.models.digits import MODEL

    firmware = build_firmware("digits", "digits")
    encode = InputCodec(firmware.input).encode
    data = b"".join(encode(MODEL.preprocess(item)) for item in MODEL.inputs().items)
    inputs = np.frombuffer(data, np.int8).reshape(-1, *firmware.input.shape)
    return firmware.elf, inputs, firmware.reference(inputs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inferences", type=int, default=100_000)
    parser.add_argument("--faults", type=float, default=0.001, help="share of bytes")
    parser.add_argument("--resets", type=int, default=5_000, help="inferences between two")
    parser.add_argument("--cuts", type=int, default=10)
    options = vars(parser.parse_args())
    soak = Soak(*digits(), **options)
    start = time.monotonic()
    good = asyncio.run(soak.run())
    print(json.dumps(soak.facts(time.monotonic() - start)))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
