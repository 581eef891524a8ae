"""The driver keeps every promise of a driver, over both protocols."""

import numpy as np
import pytest

from asyncinfer.testing import check_driver

ROWS = [np.full(4, n, np.float32) for n in range(-4, 8)]
BAD = [np.zeros(5, np.float32), "text", None, ["a", "b", "c", "d"], {"z": ROWS[0]}]


@pytest.mark.parametrize("options", [{}, {"max_batch": 4, "concurrency": 3}])
async def test_it_conforms(apart, driver_for, options):
    async def unplug(driver):
        await apart.restart()

    report = await check_driver(
        lambda: driver_for(apart, **options),
        ROWS,
        expected=lambda x: x * 2,
        bad_inputs=BAD,
        cannot_open=lambda: driver_for(apart, url="127.0.0.1:9"),
        unplug=unplug,
        observed=lambda call: driver_for(apart, preprocess=lambda x: (call(), x)[1], **options),
    )
    assert not report.skipped
