"""The TOML file, the device names that always work, and what they are built into."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from asyncinfer import config, model
from asyncinfer.config import device as device_config
from asyncinfer.config import names
from asyncinfer.errors import ConfigError, InputError
from asyncinfer.options import Hedge, Timeouts
from asyncinfer.testing import SimulatedDriver

GOOD = """
[dispatcher]
policy = "greedy"
window = 64
timeout = 2

[[device]]
driver = "simulated"
name = "slow"

[device.options]
service_time = 0.5
max_batch = 4

[[device]]
driver = "torch"
"""


class FakeTorch:
    """Takes what the torch driver takes."""

    def __init__(
        self,
        model,
        *,
        name,
        device="cpu",
        threads=None,
        slowdown=1.0,
        preprocess=None,
        postprocess=None,
        warmup_input=None,
        collate=None,
        uncollate=None,
    ):
        if threads == 0:
            raise ValueError("threads must be at least 1")
        vars(self).update(locals())


@pytest.fixture
def torch(monkeypatch):
    load = device_config.load_driver
    found = {"torch": FakeTorch}
    monkeypatch.setattr(device_config, "load_driver", lambda name: found.get(name) or load(name))


@pytest.fixture
def tiny(monkeypatch):
    """A built-in model called tiny."""
    found = SimpleNamespace(
        name="tiny",
        description="doubles",
        preprocess=lambda x: ("pre", x),
        postprocess=lambda x: ("post", x),
        build=lambda: object(),
        inputs=lambda: SimpleNamespace(names=["a"], items=[7], targets=None),
        decode=lambda path: f"decoded {path}",
        example=lambda: 7,
    )
    monkeypatch.setattr(model, "model_names", lambda: ["tiny"])
    monkeypatch.setattr(model, "load_model", lambda name: found)
    return found


def test_a_good_file(tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(GOOD)
    found = config.load(file)
    assert found.dispatcher == {
        "policy": "greedy",
        "window": 64,
        "timeout": Timeouts(total=2),
    }
    assert [(d.driver, d.name) for d in found.devices] == [
        ("simulated", "slow"),
        ("torch", "torch"),
    ]
    driver = found.devices[0].build()
    assert isinstance(driver, SimulatedDriver)
    assert (driver.name, driver.service_time, driver.max_batch) == ("slow", 0.5, 4)


def test_time_limits_by_name():
    found = config.parse("[dispatcher.timeout]\nrun = 2.5\nqueue = 1\n")
    assert found.dispatcher == {"timeout": Timeouts(run=2.5, queue=1)}
    found = config.parse('[dispatcher.timeout]\nrun = "auto"\ntotal = 1\n')
    assert found.dispatcher == {"timeout": Timeouts(total=1)}


@pytest.mark.parametrize(
    ("text", "hedge"),
    [
        ("hedge = true", Hedge()),
        ("hedge = false", None),
        ("hedge = {}", Hedge()),
        ("hedge = {quantile = 0.5, budget = 0.1}", Hedge(quantile=0.5, budget=0.1)),
    ],
)
def test_copies_of_overdue_tasks(text, hedge):
    parsed = config.parse(f"[dispatcher]\nwindow = 3\n{text}\n")
    assert parsed.dispatcher == {"window": 3, "hedge": hedge}


def device(body):
    return f"[[device]]\ndriver = 'simulated'\nname = 'x'\n{body}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[devcie]]\n", r"c\.toml: unknown key 'devcie'; did you mean 'device'\?"),
        ("[device]\ndriver='torch'\n", r"c\.toml: each device .* write \[\[device\]\]"),
        ("device = [1]\n", r"write \[\[device\]\]"),
        ("[[device]]\nname='x'\n", r"\[\[device\]\] 1: 'driver' is missing; known: .*torch"),
        ("[[device]]\ndriver='torhc'\n", r"\[\[device\]\] 1: unknown driver 'torhc'; did you mean"),
        ("[[device]]\ndriver=3\n", r"'driver' must be a text, not 3"),
        (device("option = 3\n"), r"\[\[device\]\] 1: unknown key 'option'; did you mean 'options'"),
        (device("options = 3\n"), r"'options' must be a table"),
        (device("options = {name='y'}\n"), r"'name' belongs beside 'driver'"),
        (device("") + device(""), r"two devices are called 'x'"),
        (
            "[dispatcher]\nwindw = 3\n",
            r"\[dispatcher\]: unknown key 'windw'; did you mean 'window'",
        ),
        ("[dispatcher]\nwindow = 0\n", r"\[dispatcher\]: 'window' must be a whole number from 1"),
        ("[dispatcher]\nretries = true\n", r"'retries' must be a whole number from 0, not True"),
        ("[dispatcher]\ntimeout = -1\n", r"'timeout' must be seconds above 0"),
        ("[dispatcher.timeout]\nrunn = 1\n", r"timeout: unknown key 'runn'; did you mean 'run'"),
        ('[dispatcher.timeout]\nopen = "auto"\n', r"timeout: 'open' must be seconds above 0"),
        ("[dispatcher.timeout]\nrun = 0\n", r"timeout: 'run' must be seconds above 0, not 0"),
        ("[dispatcher]\nhedge = 1\n", r"'hedge' must be true, false or a table, not 1"),
        ("[dispatcher.hedge]\nbugdet = 1\n", r"hedge: unknown key 'bugdet'; did you mean 'budget'"),
        (
            "[dispatcher.hedge]\nbudget = 2\n",
            r"\[dispatcher\], hedge: budget must be more than 0 and at most 1, not 2",
        ),
        ("[dispatcher]\npolicy = 1\n", r"'policy' must be a text"),
        ("dispatcher = 1\n", r"\[dispatcher\] must be a table"),
        ("[[device\n", r"c\.toml: not valid TOML: .*line 1"),
    ],
)
def test_mistakes_in_a_file(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config.parse(text, "c.toml")
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read config .*none\.toml: No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        config.load(tmp_path / "binary.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("max_bach = 3", r"1 'x', options: unknown key 'max_bach'; did you mean 'max_batch'"),
        ("max_batch = 3", r"1 'x': driver 'simulated': missing a required arg.*'service_time'"),
        ("service_time = 'fast'", r"1 'x': driver 'simulated': .*"),
        ("service_time = -1.0", r"service_time must be 0 or more"),
    ],
)
def test_mistakes_in_options(options, message):
    found = config.parse(device(f"[device.options]\n{options}\n"), "c.toml")
    with pytest.raises(ConfigError, match=message):
        found.devices[0].build()


def test_names_that_always_work(torch):
    names = ["cpu", "auto", "mac_studio", "raspberry_pi", "sim:0.5", "cpu", "cuda:1", "cpu"]
    found = config.select(names)
    assert [d.name for d in found] == [*names[:5], "cpu-2", "cuda:1", "cpu-3"]
    assert found[0].options == {"device": "cpu"}
    assert found[2].options == {"device": "auto"}
    assert found[6].options == {"device": "cuda:1"}
    assert found[4].build().service_time == 0.5


def test_raspberry_pi_is_a_stated_stand_in_unless_configured():
    (pi,) = config.select(["raspberry_pi"])
    assert "stand-in" in pi.note
    assert (pi.options["threads"], pi.options["slowdown"]) == (1, names.STAND_IN_SLOWDOWN)
    own = config.parse(device("").replace("'x'", "'raspberry_pi'"))
    (pi,) = config.select(["raspberry_pi"], own)
    assert (pi.driver, pi.note) == ("simulated", "")


def test_cortex_m4_is_emulated_and_says_so_unless_configured():
    (board,) = config.select(["cortex_m4"])
    assert (board.driver, board.name) == ("cortex_m4_emulated", "cortex_m4")
    assert "emulated" in board.note
    own = config.parse(device("").replace("'x'", "'cortex_m4'"))
    (board,) = config.select(["cortex_m4"], own)
    assert (board.driver, board.note) == ("simulated", "")


@pytest.mark.parametrize(("how", "given"), [("name", "some"), ("device", None)])
def test_a_driver_may_take_its_model_by_name_or_have_it(monkeypatch, how, given):
    class Own:
        model_from = how

        def __init__(self, name, model=None, preprocess=None):
            self.model, self.preprocess = model, preprocess

    monkeypatch.setattr(device_config, "load_driver", lambda name: Own)
    some = model.Model("some", lambda: pytest.fail("loaded"), preprocess=abs)
    built = config.DeviceConfig("x", "x").build(some)
    assert (built.model, built.preprocess) == (given, abs)
    pytest.importorskip("numpy")  # of the digits model's warm-up input
    expecting = config.DeviceConfig("x", "x", {"model": "digits"}).build(some)
    assert expecting.model == "digits"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpuu", r"unknown device 'cpuu'; did you mean 'cpu'\? known: .*raspberry_pi"),
        ("sim:", "write sim:SECONDS"),
        ("sim:fast", "write sim:SECONDS"),
        ("sim:-1", "write sim:SECONDS"),
        ("sim:inf", "write sim:SECONDS"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ConfigError, match=message):
        config.select([name])


def test_no_names_mean_the_config_or_auto():
    assert [d.name for d in config.select([])] == ["auto"]
    assert [d.name for d in config.select([], config.parse(GOOD))] == ["slow", "torch"]


def test_a_driver_that_runs_models_gets_the_model_and_its_steps(torch, tiny):
    (found,) = config.select(["cpu"])
    chosen = model.resolve("tiny")
    driver = found.build(chosen)
    assert driver.model is chosen.loaded
    assert driver.warmup_input == 7
    assert driver.preprocess(Path("cat.png")) == ("pre", "decoded cat.png")
    assert driver.preprocess(3) == ("pre", 3)
    assert driver.postprocess(3) == ("post", 3)


def test_steps_for_batches_go_with_those_for_one_task(torch, tiny):
    (found,) = config.select(["cpu"])
    driver = found.build(model.resolve("tiny"))
    assert driver.collate is driver.uncollate is None
    tiny.collate, tiny.uncollate = lambda xs: ("all", xs), lambda ys: ("each", ys)
    driver = found.build(model.resolve("tiny"))
    inputs = [3, Path("cat.png"), model.Deferred(tiny.inputs(), 0)]
    assert driver.collate(inputs) == ("all", [3, "decoded cat.png", 7])
    assert driver.uncollate(4) == ("each", 4)
    own = config.DeviceConfig("torch", "x", {"preprocess": "operator:neg"})
    driver = own.build(model.resolve("tiny"))
    assert (driver.preprocess(3), driver.collate, driver.uncollate(4)) == (-3, None, ("each", 4))
    own = config.DeviceConfig("torch", "x", {"postprocess": "operator:neg"})
    driver = own.build(model.resolve("tiny"))
    assert (driver.postprocess(3), driver.uncollate) == (-3, None)
    assert driver.collate([3]) == ("all", [3])


def test_a_file_that_cannot_be_read_is_an_input_error(tiny):
    def decode(path):
        if path.name == "gone":
            raise FileNotFoundError(2, "No such file", "gone")
        if path.name == "odd":
            raise InputError("odd: no picture")
        raise ValueError("truncated")

    tiny.decode = decode
    preprocess = model.resolve("tiny").preprocess
    for name, message in [
        ("gone", "gone: No such file"),
        ("odd", "odd: no picture"),
        ("cut", "cut: truncated"),
    ]:
        with pytest.raises(InputError, match=f"^{message}$"):
            preprocess(Path(name))


def test_options_win_over_the_command_line(torch, tiny, tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"")
    options = {"model": str(tmp_path / "net.pt2"), "postprocess": "operator:neg"}
    found = config.DeviceConfig("torch", "x", options)
    driver = found.build(model.resolve("tiny"))
    assert driver.model == str(tmp_path / "net.pt2")
    assert driver.postprocess(3) == -3
    assert driver.preprocess(3) == ("pre", 3)
    assert found.build().preprocess is None


def test_a_model_is_needed(torch):
    (found,) = config.select(["cpu"])
    with pytest.raises(ConfigError, match=r"'cpu'.*missing .*'model'; give --model"):
        found.build()


def test_what_a_constructor_refuses_is_a_config_error(torch, tiny):
    found = config.DeviceConfig("torch", "x", {"threads": 0}, "here")
    with pytest.raises(ConfigError, match="here: driver 'torch': threads must be at least 1"):
        found.build(model.resolve("tiny"))


def test_a_driver_that_takes_anything_is_not_checked(monkeypatch):
    monkeypatch.setattr(device_config, "load_driver", lambda name: lambda **options: options)
    found = config.DeviceConfig("any", "x", {"whatever": 1})
    assert found.build() == {"name": "x", "whatever": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tinny", r"unknown model 'tinny'; did you mean 'tiny'\? known: tiny, or a file"),
        ("nowhere/net.pt2", r"no such model file: nowhere/net\.pt2"),
        ("no_such_module_x:make", r"cannot import 'no_such_module_x:make': No module named"),
        ("math:make", r"cannot import 'math:make': .*no attribute 'make'"),
        (":make", "cannot import ':make'"),
        ("math:pi", "'math:pi' is no function or class"),
    ],
)
def test_bad_models(tiny, text, message):
    with pytest.raises(ConfigError, match=message):
        model.resolve(text)


def test_model_from_a_factory(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(
        "class Net:\n    @classmethod\n    def make(cls): return cls()\ndef bad(): return 1 / 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    made = model.resolve("own_nets:Net.make")
    assert made.loaded is made.loaded
    assert made.inputs is made.preprocess is made.postprocess is None
    with pytest.raises(ConfigError, match="'own_nets:bad' failed: ZeroDivisionError: division"):
        _ = model.resolve("own_nets:bad").loaded


def test_a_built_in_model_that_is_not_whole(tiny):
    del tiny.decode
    with pytest.raises(ConfigError, match="model 'tiny' is not complete: it lacks decode"):
        model.resolve("tiny")


def test_a_table_may_stand_for_many_devices() -> None:
    text = '[[device]]\ndriver = "simulated"\nname = "node"\ncount = 100\n'
    devices = config.parse(text).devices
    assert [devices[0].name, devices[99].name, len(devices)] == ["node-1", "node-100", 100]
    with pytest.raises(ConfigError, match=r"'count' must be a whole number from 1, not 0"):
        config.parse(text.replace("100", "0"))
