"""MLPerf Tiny's four nets on the emulated boards: sizes, instructions, and whether bit-exact.

    python tests/hardware/tiny.py --boards stm32f405 mps2_an386 --samples 256
    python tests/hardware/tiny.py --calibration  # beside the INT8 compiler's own, in seconds of CPU

Prints a table in Markdown, beside what others have published; the exit status is 0 if every output
was the integer reference's. Instructions are QEMU's count, of 2^0 ns each: they are no cycles.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tiny_nets import NETS, Net

from asyncinfer_drivers.cortex_m import frames
from asyncinfer_drivers.cortex_m.build import BOARDS, Firmware, build_firmware
from asyncinfer_drivers.cortex_m.builder.adapted import load_bakenn, quantize_graph
from asyncinfer_drivers.cortex_m.builder.compile import capture
from asyncinfer_drivers.cortex_m.emulated import BOARDS as EMULATED
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4
from asyncinfer_drivers.cortex_m.link import Link
from asyncinfer_drivers.cortex_m.ports import connector
from asyncinfer_drivers.cortex_m.timing import Timing
from asyncinfer_drivers.cortex_m.transport import SerialOptions

#: inferences per second of others on a NUCLEO-L4R5ZI at 120 MHz: the median throughput in
#: closed/.../performance/results.txt of https://github.com/mlcommons/tiny_results_v0.5 (TensorFlow
#: Lite Micro 2.3.1, the reference submission) and ..._v1.0 (OctoML: microTVM with CMSIS-NN;
#: STMicroelectronics: X-CUBE-AI 7.3)
PUBLISHED = {
    "kws": (5.497, 10.019, 13.323),
    "vww": (1.665, 3.320, 4.339),
    "ic": (1.420, 2.567, 4.407),
    "ad": (99.487, 116.212, 131.950),
}
#: their clock
PUBLISHED_HZ = 120e6


@dataclass(frozen=True)
class Outcome:
    """What one firmware did in QEMU."""

    bit_exact: bool
    instructions: int


def build(net: Net, board: str, samples: int, *, emulated: bool = False) -> Firmware:
    """The firmware of ``net``."""
    module = net.module()
    module.name = net.name
    return build_firmware(module, net.inputs(samples), board=board, emulated=emulated)


async def emulate(firmware: Firmware, count: int) -> Outcome:
    """Run random inputs on the emulated board, and compare each output with the reference."""
    shape = (count, *firmware.input.shape)
    inputs = np.random.default_rng(42).integers(-128, 128, size=shape, dtype=np.int8)
    async with EmulatedCortexM4(firmware.elf, board=firmware.board, icount=0) as board:
        connect = connector("board", board.port, SerialOptions(baudrate=115_200))
        link = Link("board", connect, Timing())
        try:
            await link.open()
            answers = await asyncio.gather(*(_infer(link, sample) for sample in inputs))
        finally:
            await link.close()
    expected = firmware.reference(inputs)
    got = b"".join(answer.data for answer in answers)
    hz = link.board.tick_hz if link.board else 1
    ticks = sum(answer.ticks for answer in answers) / count
    return Outcome(got == expected.tobytes(), round(ticks / hz * 1e9))


def _infer(link: Link, sample: np.ndarray[Any, np.dtype[np.int8]]) -> asyncio.Future[Any]:
    return link.start(partial(frames.Infer, count=1, data=sample.tobytes()), 1)


def row(net: Net, board: str, firmware: Firmware, outcome: Outcome | None) -> list[str]:
    """One line of the table."""
    snr = firmware.precision.snr_db if firmware.precision else 0.0
    cells = [net.name, board, f"{firmware.flash_bytes:,}", f"{firmware.ram_bytes:,}"]
    cells += [f"{firmware.arena_bytes:,}", layout(firmware), f"{snr:.0f} dB"]
    if outcome is None:
        return [*cells, "not emulated", ""]
    return [*cells, "yes" if outcome.bit_exact else "NO", f"{outcome.instructions / 1e6:.2f} M"]


def layout(firmware: Firmware) -> str:
    """Requests in flight, and what lies in the second memory."""
    places = f", {' and '.join(firmware.in_ccm)} in CCM" if firmware.in_ccm else ""
    return f"{firmware.frames_in_flight} x {firmware.max_samples}{places}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    head = (
        "net",
        "board",
        "flash",
        "RAM",
        "arena",
        "in flight",
        "SNR",
        "bit-exact",
        "instructions",
    )
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def published() -> str:
    """What others need, in millions of cycles of their board."""
    head = ("net", "TFLM 2.3.1", "microTVM, CMSIS-NN", "X-CUBE-AI 7.3")
    lines: list[Sequence[str]] = [head, ["---"] * len(head)]
    for name, rates in PUBLISHED.items():
        lines.append([name, *(f"{PUBLISHED_HZ / rate / 1e6:.2f} M" for rate in rates)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure(net: Net, board: str, samples: int, count: int) -> tuple[list[list[str]], bool]:
    """Rows for one net on one board, and whether they were bit-exact."""
    made = build(net, board, samples)
    if board not in EMULATED:
        return [row(net, board, made, None)], True
    rows = [row(net, board, made, None)] if made.in_ccm else []
    if made.in_ccm:
        made = build(net, board, samples, emulated=True)
    outcome = asyncio.run(emulate(made, count))
    return [*rows, row(net, board, made, outcome)], outcome.bit_exact


def calibrate(net: Net, samples: int, few: int) -> bool:
    """Print how long calibration takes beside the compiler's own, and a whole build."""
    inputs, module = net.inputs(samples), net.module()
    graph = capture(module, inputs[:1], net.name)
    spent = []
    reports = []
    for quantize in (load_bakenn().quantize_float_graph_with_report, quantize_graph):
        began = time.process_time()
        single = (sample[None] for sample in inputs[:few])
        reports.append(quantize(graph, single, options=None, name="net").report)
        spent.append(time.process_time() - began)
    ranges = [[(e.name, e.minimum, e.maximum) for e in report.edges] for report in reports]
    print(f"{net.name}, {few} inputs: {spent[0]:.1f} s by the compiler, {spent[1]:.3f} s here")
    print(f"{spent[0] / spent[1]:.0f} times less, ranges equal: {ranges[0] == ranges[1]}")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        build(net, "stm32f405", samples)
    print(f"whole build with {samples} inputs: {time.perf_counter() - began:.1f} s")
    return ranges[0] == ranges[1]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--boards", nargs="+", default=list(BOARDS), choices=list(BOARDS))
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--samples", type=int, default=256, help="to calibrate with")
    parser.add_argument("--inferences", type=int, default=8)
    parser.add_argument("--calibration", action="store_true", help="measure ResNet-8's instead")
    options = parser.parse_args()
    if options.calibration:
        return not calibrate(NETS["ic"], options.samples, 2)
    rows, right = list[list[str]](), True
    for net in map(NETS.__getitem__, options.nets):
        for board in options.boards:
            began = time.perf_counter()
            made, exact = measure(net, board, options.samples, options.inferences)
            rows += made
            right &= exact
            print(f"{net.name} {board}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    print(table(rows), published(), sep="\n\n")
    return not right


if __name__ == "__main__":
    sys.exit(main())
