"""The commands that measure: that they measure; how much is no matter for tests."""

import pytest

from asyncinfer_drivers.cortex_m import measure

pytestmark = pytest.mark.slow


@pytest.mark.asyncio(loop_factories=["asyncio"])  # it takes seconds
async def test_each_gives_a_ratio(firmware):
    facts = await measure.link(firmware.elf, inferences=64)
    assert 0 < facts["link_efficiency"] <= 1.1
    assert len(facts["turns"]) == 64 // 8
    assert facts["of_limit"] > 0
    facts = await measure.overhead(firmware.elf, pings=5)
    assert facts["overhead"] > 0
    facts = await measure.compute(firmware.elf, icount="shift=5", inferences=5)
    assert facts["compute_utilisation"] > 0
