"""Building firmware: what comes out, and what is refused before anything is compiled."""

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from asyncinfer.errors import ConfigError, InputError
from asyncinfer.registry import model_names

pytest.importorskip("bakenn")
torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from asyncinfer_drivers.cortex_m.build import BOARDS, build_firmware  # noqa: E402
from asyncinfer_drivers.cortex_m.builder import pipeline, toolchain  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.firmware import Firmware  # noqa: E402
from asyncinfer_drivers.cortex_m.builder.layout import plan_layout  # noqa: E402

needs_gcc = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="needs arm-none-eabi-gcc"
)
# torch.export of this release warns about its own internals
pytestmark = [pytest.mark.filterwarnings("default"), needs_gcc]

BOARD = BOARDS["stm32f405"]


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return build_firmware("digits", "digits")


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2))


def pictures(count=3):
    return np.random.default_rng(42).normal(size=(count, 3, 16, 16)).astype(np.float32)


def test_digits_fit_with_cmsis_nn_and_lose_no_point(digits):
    assert {"arm_convolve_wrapper_s8", "arm_max_pool_s8", "arm_fully_connected_s8"} <= set(
        digits.kernels
    )
    assert digits.flash_bytes < 32 * 1024
    assert digits.ram_bytes < 32 * 1024
    assert 500 < digits.arena_bytes < 4096
    assert digits.float_accuracy > 0.96
    assert abs(digits.float_accuracy - digits.int8_accuracy) < 0.01


def test_claimed_kernels_are_linked(digits):
    listed = subprocess.run(
        [toolchain.arm("nm"), digits.elf], capture_output=True, text=True, check=True
    ).stdout
    assert digits.kernels
    assert all(f" {name}\n" in listed for name in digits.kernels)
    assert "malloc" not in listed


def test_the_image_begins_with_the_vectors(digits):
    stack, reset = np.frombuffer(digits.bin.read_bytes()[:8], "<u4")
    assert 0x20000000 < stack <= 0x20020000
    assert 0x08000000 < reset < 0x08100000
    assert reset & 1  # thumb


def test_it_is_built_once(digits):
    again = build_firmware("digits", "digits")
    assert again == digits
    assert Firmware.load(digits.directory) == digits


def test_a_model_that_others_register_is_built_by_its_content(tmp_path, monkeypatch):
    made = tmp_path / "mine-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (made / "entry_points.txt").write_text("[asyncinfer.models]\nmine = mine:MODEL\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "mine" in model_names()
    assert (pipeline._is_own("digits"), pipeline._is_own("mine")) == (True, False)


def test_few_calibration_inputs_are_warned_of(caplog):
    for count in (8, 7):
        build_firmware(small(), pictures(count), board="mps2_an386")
    (warned,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "calibrated on 7 inputs: what others make larger is cut off" in warned


def test_the_reference_takes_only_its_shape(digits):
    assert digits.reference(np.zeros((2, 8, 8, 1), np.int8)).shape == (2, 10)
    with pytest.raises(InputError, match="int8"):
        digits.reference(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(InputError, match="8, 8, 1"):
        digits.reference(np.zeros((2, 8, 8), np.int8))


def test_a_pt2_file_and_a_npy_file(tmp_path):
    program = torch.export.export(small().eval(), (torch.zeros(1, 3, 16, 16),))
    torch.export.save(program, tmp_path / "tiny.pt2")
    np.save(tmp_path / "inputs.npy", pictures())
    firmware = build_firmware(
        str(tmp_path / "tiny.pt2"), str(tmp_path / "inputs.npy"), output=tmp_path / "out"
    )
    assert firmware.model_id.startswith("tiny-")
    assert firmware.input.shape == (16, 16, 3)  # channels last
    assert firmware.float_accuracy is firmware.int8_accuracy is None
    assert firmware.elf.parent == tmp_path / "out"


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (
            nn.GroupNorm(2, 8),
            r"aten\.group_norm\.default of layer '1' is not supported: .*BatchNorm",
        ),
        (nn.AdaptiveAvgPool2d(3), r"aten\.adaptive_avg_pool2d\.default of layer '1' .* divide"),
    ],
)
def test_an_operator_that_is_not_supported_is_named(tmp_path, layer, operator):
    with pytest.raises(ConfigError, match=operator):
        build_firmware(nn.Sequential(small(), layer), pictures(), output=tmp_path)
    assert not list(tmp_path.rglob("*.o"))


def test_too_many_weights_for_the_flash(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 1500))
    with pytest.raises(ConfigError, match=r"constants .* flash of stm32f405: [\d,]+ B too many"):
        build_firmware(model, pictures(), output=tmp_path)


def test_which_buffer_does_not_fit():
    with pytest.raises(ConfigError, match=r"arena \(200,000 B\).* too many"):
        plan_layout(BOARD, 200_000, 1000, 64, 10)
    with pytest.raises(ConfigError, match=r"request buffers .* 40,000 bytes|request buffers"):
        plan_layout(BOARD, 100_000, 1000, 40_000, 10)


def test_layout_gives_up_samples_then_requests_and_uses_the_second_memory():
    assert (plan_layout(BOARD, 2000, 0, 64, 10).max_samples) == 32
    assert plan_layout(BOARD, 60_000, 0, 3072, 10).frames_in_flight == 4
    assert plan_layout(BOARD, 60_000, 0, 30_000, 10).in_ccm == ("arena",)
    assert plan_layout(BOARD, 1000, 0, 30_000, 10).frames_in_flight == 2


@pytest.mark.parametrize(
    ("model", "calibration", "message"),
    [
        (small(), np.ones((3, 4)), "does not take calibration inputs"),
        (small(), np.zeros((0, 3, 16, 16)), "at least one"),
        (small(), np.full((1, 3, 16, 16), np.nan), "not finite"),
        ("digits", "nowhere.npy", "nowhere.npy"),
        ("digits", "digit", "digits"),
        ("model.pt", "digits", "pt2"),
    ],
)
def test_what_cannot_be_built_is_one_line(tmp_path, model, calibration, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_firmware(model, calibration, output=tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_board():
    with pytest.raises(ConfigError, match="stm32f405, mps2_an386"):
        build_firmware("digits", "digits", board="uno")


def test_a_missing_compiler_comes_with_its_remedy(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="apt-get install gcc-arm-none-eabi"):
        build_firmware("digits", "digits")


def test_a_record_that_was_written_before_does_not_know_the_axes(digits, tmp_path):
    copied = replace(digits, directory=tmp_path)
    copied.save()
    assert Firmware.load(tmp_path).input == digits.input
    assert digits.input.torch_shape == (1, 8, 8)
    record = json.loads((tmp_path / "firmware.json").read_text())
    record["output"] = record.pop("outputs")[0]
    for name in ("input", "output"):
        del record[name]["axes"]
    (tmp_path / "firmware.json").write_text(json.dumps(record))
    assert Firmware.load(tmp_path).input == replace(digits.input, axes=None)
