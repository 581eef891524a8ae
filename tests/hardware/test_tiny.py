"""MLPerf Tiny: the published nets, and bit-exact on the emulated board (all: `make tiny`)."""

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bakenn")

from tiny import build, emulate  # noqa: E402
from tiny_nets import NETS  # noqa: E402
from torch import nn  # noqa: E402

from asyncinfer.errors import ConfigError  # noqa: E402
from asyncinfer_drivers.cortex_m.build import build_firmware  # noqa: E402
from asyncinfer_drivers.cortex_m.emulated import EmulatedCortexM4  # noqa: E402
from asyncinfer_drivers.cortex_m.emulated_driver import missing  # noqa: E402
from asyncinfer_drivers.cortex_m.emulated_memory import lacking_memory  # noqa: E402

needs_tools = pytest.mark.skipif(missing() is not None, reason=str(missing()))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("default"),  # torch.export of this release warns about itself
]

#: for what does not depend on the event loop and takes seconds
ONE_LOOP = pytest.mark.asyncio(loop_factories=["asyncio"])


@pytest.mark.parametrize("name", NETS)
def test_the_nets_have_the_published_count_of_parameters(name):
    module = NETS[name].make()
    numbers = [*module.parameters(), *module.buffers()]
    assert sum(part.numel() for part in numbers if part.ndim) == NETS[name].parameters


@needs_tools
@ONE_LOOP
@pytest.mark.parametrize("name", ["kws", "ad"])
async def test_bit_exact_on_the_emulated_board(name):
    made = build(NETS[name], "stm32f405", 8)
    outcome = await emulate(made, 4)
    assert outcome.bit_exact
    assert outcome.instructions > 100_000
    assert {"kws": "arm_convolve_s8", "ad": "arm_fully_connected_s8"}[name] in made.kernels
    assert (
        "portable.conv2d" not in (made.generated / "model" / "bknn_model_memory.json").read_text()
    )


def odd():
    """Pads with more at the end, in each of CMSIS-NN's convolutions."""
    torch.manual_seed(42)
    return nn.Sequential(
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, 2), nn.ReLU()),
        *(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3, 2, groups=8), nn.ReLU()),
        *(nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(8, 8, 4, groups=8), nn.ReLU()),
        *(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(8, 16, (2, 5), groups=8), nn.ReLU()),
        *(nn.ZeroPad2d((0, 1, 0, 0)), nn.Conv2d(16, 4, (1, 2))),
    )


@needs_tools
@ONE_LOOP
async def test_more_padding_at_the_end_is_bit_exact(tmp_path):
    inputs = torch.rand(4, 3, 14, 15, generator=torch.Generator().manual_seed(42)).numpy()
    made = build_firmware(odd(), inputs, output=tmp_path)
    kernels = {"arm_depthwise_conv_3x3_s8", "arm_depthwise_conv_s8_opt", "arm_depthwise_conv_s8"}
    assert kernels | {"arm_convolve_s8"} <= set(made.kernels)
    assert (await emulate(made, 8)).bit_exact


@needs_tools
@ONE_LOOP
async def test_a_firmware_that_needs_more_memory_than_qemu_has_is_refused(tmp_path):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 1, 1), nn.AvgPool2d(8), nn.Flatten())
            self.last = nn.Linear(512, 2)

        def forward(self, picture):
            return self.last(self.layers(picture))

    made = build_firmware(Wide(), torch.rand(2, 1, 256, 128).numpy(), output=tmp_path)
    assert made.in_ccm == ("arena",)
    lacks = lacking_memory(made.elf, shutil.which("qemu-system-arm"), "netduinoplus2")
    if lacks is None:
        pytest.skip("this QEMU has the core-coupled memory")
    with pytest.raises(ConfigError, match=r"core-coupled memory, .* build it with --emulated"):
        await EmulatedCortexM4(made.elf).start()
