"""What makes a model fit: pads that cost nothing, a dense arena, both memories, a third board."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncinfer.errors import ConfigError

bakenn = pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from asyncinfer_drivers.cortex_m.build import BOARDS, build_firmware  # noqa: E402
from asyncinfer_drivers.cortex_m.builder import adapted, pads, toolchain  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.compile import capture  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.emulated import build_emulated  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.layout import BUFFERS, Layout, plan_layout  # noqa: E402

needs_gcc = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc"
)
# torch.export of this release warns about its own internals
pytestmark = pytest.mark.filterwarnings("default")

BOARD = BOARDS["stm32f405"]


def numbers(*shape):
    return np.random.default_rng(42).normal(size=shape).astype(np.float32)


# ---- pads


def padded(pad, kernel=3, **options):
    torch.manual_seed(42)
    return nn.Sequential(nn.ZeroPad2d(pad), nn.Conv2d(4, 4, kernel, **options), nn.ReLU())


def operators(module, shape=(4, 9, 8)):
    graph = capture(module.eval(), numbers(1, *shape), "net").graph
    return graph, [type(op).__name__ for op in graph.ops]


@pytest.mark.parametrize(
    ("pad", "options"),
    [
        ((0, 1, 0, 1), {"stride": 2}),
        ((1, 1, 1, 1), {"groups": 4}),
        ((1, 2, 1, 2), {"kernel": 4}),
        ((0, 1, 0, 0), {"padding": (1, 0)}),
    ],
)
def test_a_pad_becomes_the_convolutions_own(pad, options):
    module, inputs = padded(pad, **options), numbers(1, 4, 9, 8)
    graph, kinds = operators(module)
    assert "FloatPad2DOp" not in kinds
    found = adapted.evaluate(graph, inputs)[graph.outputs[0]]
    with torch.no_grad():
        np.testing.assert_allclose(found, module(torch.from_numpy(inputs)), atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        padded((2, 0, 0, 0)),  # more at the beginning
        padded((0, 2, 0, 0)),  # two more at the end
        padded((1, 2, 0, 0)),  # CMSIS-NN's 3x3 kernel would read beyond the end
        nn.Sequential(nn.ZeroPad2d(1), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ZeroPad2d(1)),
    ],
)
def test_other_pads_stay(module):
    assert "FloatPad2DOp" in operators(module)[1]


class Twice(nn.Module):
    """Two readers of one pad."""

    def __init__(self, second):
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))
        self.first, self.second = nn.Conv2d(4, 4, 3), second

    def forward(self, picture):
        around = self.pad(picture)
        return self.first(around) + self.second(around)


def test_a_pad_goes_only_if_all_its_readers_can_do_it():
    assert "FloatPad2DOp" not in operators(Twice(nn.Conv2d(4, 4, 3)))[1]
    assert "FloatPad2DOp" in operators(Twice(nn.AvgPool2d(3, 1)))[1]


@pytest.mark.parametrize("kernel", [(3, 3), (4, 10)])
def test_which_padding_cmsis_nn_can_do(kernel):
    assert pads.centred((1, 1, 1, 1), kernel)
    assert pads.centred((0, 1, 0, 1), kernel)
    assert pads.centred((1, 2, 1, 2), kernel) == (kernel == (4, 10))
    assert not pads.centred((1, 0, 0, 0), kernel)
    assert not pads.centred((0, 2, 0, 0), kernel)


# ---- the arena


def bottleneck():
    # bakenn's own places: a gap below the widest tensor that nothing fits into
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU()),
        *(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )


def test_the_arena_has_no_gaps(tmp_path):
    graph = capture(bottleneck().eval(), numbers(1, 2, 16, 16), "net").graph
    inputs = list(numbers(2, 1, 2, 16, 16))
    quantized = adapted.quantize_graph(graph, inputs, bakenn.PTQOptions(), "net").graph
    theirs = bakenn.compile(quantized, tmp_path / "theirs", model_name="net").plan
    mine = adapted.generate(
        quantized, tmp_path / "mine", "net", None, bakenn.CBackendOptions()
    ).plan
    assert theirs.arena_size == (4 + 4 + 8) * 256
    assert mine.arena_size == (4 + 8) * 256
    codes = np.random.default_rng(42).integers(-128, 128, (1, 16, 16, 2)).astype(np.int8)
    right = bakenn.run_reference_trace(theirs, codes)
    found = bakenn.run_reference_trace(mine, codes)
    np.testing.assert_array_equal(found[mine.outputs[0]], right[theirs.outputs[0]])


# ---- the layout


def need(layout, arena, source, target):
    """Bytes in RAM and in the second memory, counted anew."""
    body = max(layout.max_samples * source, 64) + 12
    sizes = {
        "arena": arena,
        "queue": layout.frames_in_flight * (body + body // 254 + 3),
        "request": body + layout.max_samples * target + 1024,
    }
    inside = sum(sizes[name] for name in layout.in_ccm)
    return sum(sizes.values()) - inside + 8192, inside


sizes = st.integers(1, 140_000)


@given(sizes, sizes, st.integers(1, 3000), st.sampled_from(list(BOARDS)))
def test_what_is_planned_fits_and_what_is_refused_does_not(arena, source, target, name):
    board = BOARDS[name]
    try:
        layout = plan_layout(board, arena, 0, source, target)
    except ConfigError as error:
        over = int(re.search(r"([\d,]+) B too many", str(error))[1].replace(",", ""))
        assert over > 0
        places = [()] + [(name,) for name in BUFFERS] + [("arena", "queue"), ("queue", "request")]
        for place in places if board.ccm else [()]:
            ram, ccm = need(Layout(1, 1, place), arena, source, target)
            assert ram > board.ram or ccm > board.ccm
    else:
        ram, ccm = need(layout, arena, source, target)
        assert ram <= board.ram
        assert ccm <= board.ccm


def test_person_detection_on_the_stm32f405():
    planned = plan_layout(BOARD, 59_904, 221_000, 27_648, 2)
    assert planned == Layout(2, 1, ("arena",))
    assert str(planned) == "2 requests of up to 1 in flight, arena in the CCM"
    emulated = plan_layout(replace(BOARD, ccm=0), 59_904, 221_000, 27_648, 2)
    assert str(emulated) == "1 request of up to 1 in flight, all in RAM"


def test_a_large_arena_leaves_the_second_memory_to_the_requests():
    assert plan_layout(BOARD, 90_000, 0, 27_648, 2) == Layout(2, 1, ("queue",))
    assert plan_layout(BOARD, 110_000, 0, 27_648, 2) == Layout(1, 1, ("queue", "request"))


def test_what_only_the_second_memory_makes_fit_is_refused_for_the_emulator():
    with pytest.raises(ConfigError, match=r"the emulated stm32f405, which lacks its CCM"):
        plan_layout(replace(BOARD, ccm=0), 90_000, 0, 27_648, 2)


# ---- the boards


def wide():
    torch.manual_seed(42)
    layers = nn.Conv2d(1, 1, 3, padding=1), nn.AvgPool2d(128), nn.Flatten(), nn.Linear(2, 2)
    return nn.Sequential(*layers)


def memory_map(elf):
    """Address and size of each section that lies in the board's memory."""
    text = toolchain.run([toolchain.arm("size"), "-A", "-d", elf])
    found = {
        name: (int(at), int(size))
        for name, size, at in re.findall(r"^(\.\w+) +(\d+) +(\d+)$", text, re.M)
    }
    return {name: place for name, place in found.items() if place[0]}


@needs_gcc
def test_a_firmware_in_both_memories(tmp_path):
    made = build_firmware(wide(), numbers(4, 1, 256, 128), output=tmp_path)
    assert made.in_ccm == ("arena",)
    places = memory_map(made.elf)
    assert places[".arena"] == (0x10000000, made.arena_bytes)
    for name in (".queue", ".request"):
        start, size = places[name]
        assert 0x20000000 <= start < start + size <= 0x20020000
    emulated = build_emulated(wide(), numbers(4, 1, 256, 128))
    assert (emulated.in_ccm, emulated.frames_in_flight) == ((), 1)
    assert memory_map(emulated.elf)[".arena"][0] > 0x20000000


@needs_gcc
def test_the_memory_map_of_a_board_that_qemu_does_not_know():
    made = build_firmware(wide(), numbers(4, 1, 256, 128), board="nucleo_l4r5zi")
    assert (made.in_ccm, made.frames_in_flight) == ((), 4)
    image = np.frombuffer(made.bin.read_bytes()[:4096], "<u4")
    places = memory_map(made.elf)
    assert image[0] == places[".stack"][0] + places[".stack"][1]
    assert {int(image[1]) >> 20, int(image[16 + 70]) >> 20} == {0x080}  # reset, LPUART1
    assert all(image[16 : 16 + 70] == 0)
    for name, (start, size) in places.items():
        limit = (0x08000000, 2 << 20) if name in (".text", ".ARM") else (0x20000000, 640 << 10)
        assert limit[0] <= start <= start + size <= sum(limit), name
