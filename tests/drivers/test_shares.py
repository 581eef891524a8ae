"""What the drivers here say that their devices share: their defaults, and what they are told."""

import os
import pickle
import pty
import socket

import pytest

from asyncinfer import config
from asyncinfer.driver import THIS_HOST
from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.sharing import host_at

HERE = ("localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]", "::")
OWN = socket.gethostname()


@pytest.mark.parametrize("address", [*HERE, "::ffff:127.0.0.1", OWN, f"{OWN}.local"])
def test_this_host_has_one_name(address):
    assert host_at(address) == THIS_HOST


@pytest.mark.parametrize("address", ["10.0.0.7", "fe80::7", "pi.lan", "localhost.example.com"])
def test_another_host_has_its_address(address):
    assert host_at(address) == f"host:{address}"
    assert host_at(f"[{address.upper()}]") == f"host:{address}"


@pytest.mark.parametrize(
    ("device", "shares"),
    [
        ("cpu", {THIS_HOST}),
        ("auto", {THIS_HOST}),
        ("cuda", {THIS_HOST, "cuda:0"}),
        ("cuda:1", {THIS_HOST, "cuda:1"}),
        ("mps", {THIS_HOST, "mps"}),
    ],
)
def test_a_torch_device_shares_this_host_and_itself(device, shares):
    torch_host = pytest.importorskip("asyncinfer_drivers.torch_host")
    for isolation in "thread", "process":
        assert torch_host.TorchDriver(len, device=device, isolation=isolation).shares == shares


async def test_what_auto_is_turns_out_when_it_opens():
    torch = pytest.importorskip("torch")
    from asyncinfer_drivers.torch_host import TorchDriver

    driver = TorchDriver(torch.nn.Identity, device="auto")
    assert driver.shares == {THIS_HOST}
    await driver.open()
    try:
        chosen = driver.details["device"]
        assert driver.shares == {THIS_HOST} | ({chosen} - {"cpu"})
    finally:
        await driver.close()


def test_it_is_told_otherwise():
    torch_host = pytest.importorskip("asyncinfer_drivers.torch_host")
    driver = torch_host.TorchDriver(len, shares=["a", "b"])
    assert driver.shares == {"a", "b"}
    driver.shares = "c"
    assert driver.shares == {"c"}
    driver.shares = ()
    assert driver.shares == frozenset()
    driver.shares = None
    assert driver.shares == {THIS_HOST}
    with pytest.raises(ConfigError, match="device 'cpu': shares must be a list of names"):
        driver.shares = 3
    with pytest.raises(ConfigError, match="device 'cpu': shares must be a list of names"):
        torch_host.TorchDriver(len, shares=[3])
    pickle.dumps(torch_host.TorchOptions(len, shares=["a"]))  # it goes to a process of its own


@pytest.mark.parametrize(
    ("url", "shares"),
    [
        ("localhost:8001", {THIS_HOST}),
        ("http://[::1]:8000", {THIS_HOST}),
        ("http://Pi.lan:8000/some/path", {"host:pi.lan"}),
        ("grpc://10.0.0.7:8001", {"host:10.0.0.7"}),
        ("[fe80::7]:8001", {"host:fe80::7"}),
    ],
)
def test_a_server_shares_its_host(url, shares):
    open_inference = pytest.importorskip("asyncinfer_drivers.open_inference")
    assert open_inference.OpenInferenceDriver(url, "model").shares == shares
    assert open_inference.OpenInferenceDriver(url, "model", shares="a").shares == {"a"}


def test_a_server_of_our_own_shares_this_host():
    local = pytest.importorskip("asyncinfer_drivers.open_inference.local")
    assert local.LocalServerDriver("digits").shares == {THIS_HOST}
    assert local.LocalServerDriver("digits", shares=[]).shares == frozenset()


@pytest.mark.parametrize(
    ("port", "shares"),
    [
        ("/dev/ttyACM0", frozenset()),
        ("serialx:///dev/ttyACM0", frozenset()),
        ("COM3", frozenset()),
        ("tcp://localhost:5000", {THIS_HOST}),
        ("tcp://10.0.0.7:5000", frozenset()),
        (lambda receiver: None, frozenset()),
    ],
)
def test_a_board_shares_nothing_unless_it_is_emulated_here(port, shares):
    cortex_m = pytest.importorskip("asyncinfer_drivers.cortex_m")
    assert cortex_m.CortexM4Driver(port).shares == shares
    assert cortex_m.CortexM4Driver(port, shares="hub").shares == {"hub"}


def test_an_emulated_board_shares_this_host(tmp_path):
    cortex_m = pytest.importorskip("asyncinfer_drivers.cortex_m")
    emulated = pytest.importorskip("asyncinfer_drivers.cortex_m.emulated_driver")
    assert emulated.EmulatedCortexM4Driver().shares == {THIS_HOST}
    assert emulated.EmulatedCortexM4Driver(shares=[]).shares == frozenset()
    ends = pty.openpty()
    (link := tmp_path / "board").symlink_to(os.ttyname(ends[1]))
    assert cortex_m.CortexM4Driver(str(link)).shares == {THIS_HOST}
    for end in ends:
        os.close(end)


def test_a_ray_actor_shares_what_is_known_once_it_is_open():
    ray_cluster = pytest.importorskip("asyncinfer_drivers.ray_cluster")
    assert ray_cluster.RayDriver(len).shares == frozenset()
    assert ray_cluster.RayDriver(len, shares="a").shares == {"a"}


def test_a_config_says_it_of_those_too():
    pytest.importorskip("torch")
    table = '[[device]]\ndriver = "torch"\n{}\noptions = {{ model = "digits"{} }}'
    told = {"": {THIS_HOST}, "shares = []": frozenset(), 'shares = "a"': {"a"}}
    for beside, shares in told.items():
        (device,) = config.parse(table.format(beside, "")).devices
        assert device.build().shares == shares
    (device,) = config.parse(table.format("", ', shares = "a"')).devices
    assert device.build().shares == {"a"}
