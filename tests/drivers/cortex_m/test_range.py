"""Inputs beyond what the board was calibrated for: they are cut off, and the user hears of it."""

import numpy as np
import pytest

from asyncinfer_drivers.cortex_m.constants import Datatype
from asyncinfer_drivers.cortex_m.options import CortexM4Options
from asyncinfer_drivers.cortex_m.specs import TensorSpec
from asyncinfer_drivers.cortex_m.steps import Steps
from asyncinfer_drivers.cortex_m.tensors import InputCodec

#: from -1.28 to 1.27
SPEC = TensorSpec("input", Datatype.INT8, (2,), 0.01, 0, ())


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ([1.27, -1.28], 0),
        ([1.5, 0], 0),  # by less than a tenth: as calibration inputs leave it
        ([1.6, 0], 1),
        ([0, -9], 1),
        ([np.inf, 0], 1),
    ],
)
def test_inputs_far_beyond_the_range_are_counted(given, cut):
    codec = InputCodec(SPEC)
    assert codec.range == pytest.approx((-1.28, 1.27))
    codec.encode(np.array(given, np.float32))
    assert codec.cut_off == cut


def test_raw_numbers_are_not_judged():
    codec = InputCodec(SPEC, raw=True)
    codec.encode(np.array([127, -128], np.int8))
    assert codec.cut_off == 0


async def test_the_user_is_warned_once_with_both_ranges(caplog):
    steps = Steps(CortexM4Options(port="unused", name="board"))
    steps._codecs = (InputCodec(SPEC), None)  # as ``fit`` has it for a board
    for _ in range(3):
        await steps.before([np.array([0, 250.0]), np.array([0, 1.0])])
    (record,) = caplog.records
    assert "board: an input has 250, and the board takes -1.28 to 1.27" in record.getMessage()
    assert "Scale inputs" in record.getMessage()
    assert steps.cut_off == 3
