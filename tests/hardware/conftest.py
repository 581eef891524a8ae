"""The digits firmware, built once, for tests on the emulated board; or why they are skipped."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for chaos_jobs


@pytest.fixture(scope="session")
def firmware():
    """The digits firmware."""
    pytest.importorskip("torch")
    from asyncinfer_drivers.cortex_m.emulated_driver import missing

    if reason := missing():
        pytest.skip(reason)
    from asyncinfer_drivers.cortex_m.build import build_firmware

    return build_firmware("digits", "digits")


@pytest.fixture(scope="session")
def samples(firmware):
    """All digits as the board takes them, int8."""
    from asyncinfer_drivers.cortex_m.tensors import InputCodec
    from asyncinfer_drivers.models.digits import MODEL

    encode = InputCodec(firmware.input).encode
    data = b"".join(encode(MODEL.preprocess(item)) for item in MODEL.inputs().items)
    return np.frombuffer(data, np.int8).reshape(-1, *firmware.input.shape)


@pytest.fixture(scope="session")
def answers(firmware, samples):
    """What the compiler's integer reference makes of them."""
    return firmware.reference(samples)
