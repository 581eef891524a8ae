"""``asyncinfer devices`` on an emulated board."""

import asyncio
import json
import sys

import pytest

from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_factories=["asyncio"])]


async def test_a_board_on_a_pty_says_who_it_is(firmware, tmp_path):
    config = tmp_path / "devices.toml"
    async with EmulatedCortexM4(firmware.elf) as board:
        port = board.port
        config.write_text(
            f"[[device]]\ndriver = 'cortex_m4'\nname = 'board'\noptions = {{ port = '{port}' }}"
        )
        command = ("-m", "asyncinfer", "devices", "--json", "--timeout", "20", "--config", config)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *map(str, command), stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
    assert process.returncode == 0
    (found,) = [one for one in json.loads(out)["found"] if one["name"] == port]
    assert (found["state"], found["configured"], found["error"]) == ("ready", "board", None)
    assert found["model"].startswith("digits-")
    assert found["output_shape"] == [10]
