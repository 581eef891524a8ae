"""A config from elsewhere: it runs no code unless that is allowed, and has its limits."""

import sys

import pytest

from asyncinfer import config
from asyncinfer.config import device as device_config
from asyncinfer.config import file as config_file
from asyncinfer.config import permission
from asyncinfer.errors import ConfigError


def table(options, driver="torch"):
    lines = "\n".join(f"{key} = {value}" for key, value in options.items())
    return f"[[device]]\ndriver = '{driver}'\nname = 'x'\n[device.options]\n{lines}\n"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that tells when it is imported."""
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "trap:make"
    assert "trap" not in sys.modules


CODE = [
    ("model", "trap:make"),
    ("model", "net.pt"),
    ("model", "net.pt2"),
    ("model", "net.ts"),
    ("model", "net.pth"),
    ("model", "net.torchscript"),
    ("model", "some/folder/net"),
    ("model", "C:\\net"),
    ("preprocess", "trap:before"),
    ("postprocess", "trap:after"),
    ("collate", "trap:all"),
    ("uncollate", "trap:each"),
]


@pytest.mark.parametrize(("key", "value"), CODE)
def test_code_in_a_config_is_refused(trap, key, value):
    text = table({"model": "'digits'", key: f"'{value}'"})
    with pytest.raises(ConfigError, match=r"--allow-code.*allow_code=True") as caught:
        config.parse(text, "from-the-net.toml")
    message = str(caught.value)
    assert message.startswith(f"from-the-net.toml: [[device]] 1 'x', options: {key!r} ")
    assert "\n" not in message


@pytest.mark.parametrize(("key", "value"), CODE)
def test_code_in_a_config_may_be_allowed(tmp_path, key, value):
    text = table({"model": "'digits'", key: f"'{value}'"})
    (tmp_path / "own.toml").write_text(text)
    found = config.load(tmp_path / "own.toml", allow_code=True)
    assert found.devices[0].options[key] == value
    assert config.parse(text, allow_code=True).devices[0].options == found.devices[0].options
    with pytest.raises(ConfigError, match="can run code"):
        config.load(tmp_path / "own.toml")


def test_allowed_code_is_run(monkeypatch):
    class Negating:
        def __init__(self, *, name, model=None, preprocess=None):
            self.preprocess = preprocess

    monkeypatch.setattr(device_config, "load_driver", lambda name: Negating)
    text = table({"preprocess": "'operator:neg'"})
    (device,) = config.parse(text, allow_code=True).devices
    assert device.build().preprocess(3) == -3


@pytest.mark.parametrize("model", ["digits", "mtcnn", "no-such-model", "v1.5"])
def test_names_of_models_are_no_code(model):
    (device,) = config.parse(table({"model": f"'{model}'"})).devices
    assert device.model == model


def test_what_runs_elsewhere_may_have_any_name():
    pytest.importorskip("numpy")
    text = table({"model": "'org/net:3'", "url": "'host:1'"}, "open_inference")
    assert config.parse(text).devices[0].model == "org/net:3"


def test_a_driver_that_cannot_say_is_not_trusted(monkeypatch):
    def missing(name):
        raise ConfigError(f"{name} cannot be imported")

    monkeypatch.setattr(permission, "load_driver", missing)
    with pytest.raises(ConfigError, match="'model' names what can run code"):
        permission.refuse_code("open_inference", {"model": "a:b"}, "here")


def test_a_driver_says_what_else_can_run_code(monkeypatch):
    class Shell:
        def __init__(self, *, name, command="true"):
            self.name = name

        @classmethod
        def code_options(cls, options):
            return ["command"] if "command" in options else []

    monkeypatch.setattr(device_config, "load_driver", lambda name: Shell)
    (device,) = config.parse(table({"command": "'rm -r /'"}), "c.toml").devices
    for use in (device.check, device.build):
        with pytest.raises(ConfigError, match=r"'x', options: 'command' names .* 'rm -r /'"):
            use()
    assert config.parse(table({"command": "'ls'"}), allow_code=True).devices[0].build().name == "x"
    assert config.parse(table({})).devices[0].build().name == "x"


def test_what_a_program_makes_itself_may_name_code():
    assert config.DeviceConfig("torch", "x", {"model": "own:net"}).allow_code
    assert all(device.allow_code for device in config.select(["cpu", "sim:1"]))


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 10_000])
def test_toml_that_is_made_to_hurt(text):
    with pytest.raises(ConfigError, match="c: not valid TOML"):
        config.parse(text, "c")


def test_a_config_has_a_size(tmp_path):
    file = tmp_path / "large.toml"
    file.write_text("#" * config_file.MAX_BYTES)
    assert config.load(file).devices == ()
    file.write_text("#" * (config_file.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1,048,576 bytes"):
        config.load(file)
    with pytest.raises(ConfigError, match="larger than"):
        config.load("/dev/zero")


def test_a_config_has_so_many_devices():
    text = "[[device]]\ndriver = 'simulated'\nname = 'a'\ncount = {}\n"
    most = config_file.MAX_DEVICES
    assert len(config.parse(text.format(most)).devices) == most
    for many in (config_file.MAX_DEVICES + 1, 10**15):
        with pytest.raises(ConfigError, match=r"more than 10,000"):
            config.parse(text.format(many))
    both = text.format(6000) + text.format(6000).replace("'a'", "'b'")
    with pytest.raises(ConfigError, match="more than 10,000 devices"):
        config.parse(both)
