"""Some of the nets on the emulated board; ``make nets`` runs all. And the table of operators."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("bakenn")
pytest.importorskip("torch")

import board_judge
import board_operators
from board_nets import NETS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]

PAGE = Path(__file__).parents[2] / "docs" / "firmware.md"

needs_board = pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")),
    reason="needs arm-none-eabi-gcc and qemu-system-arm",
)


@needs_board
@pytest.mark.asyncio(loop_factories=["asyncio"])
@pytest.mark.parametrize("name", ["shufflenet_v2", "detector_dict", "frame_tagger", "gru_keywords"])
async def test_a_net_is_built_bit_exact_or_refused(name):
    net = NETS[name]
    verdict = await board_judge.judge(net)
    assert verdict.outcome == ("refused" if net.refused else "built"), verdict.said
    assert net.refused or verdict.snr_db >= 25


def test_convolutions_of_all_kinds_have_a_kernel_of_cmsis_nn():
    for name, kind in [("`Conv1d`", "convolution *"), ("`Conv2d`, 2 to 8 groups", "convolution *")]:
        assert kind in list(board_operators.steps(*board_operators.ROWS[name]))


def test_the_page_has_the_table_of_operators():
    shown = PAGE.read_text().partition(board_operators.BEGIN)[2].partition(board_operators.END)[0]
    assert shown.strip() == board_operators.table(), "python tests/nets/board_operators.py PAGE"
