"""Options of drivers: records whose fields the constructors take as keywords."""

import dataclasses
import inspect
from importlib.metadata import entry_points

import pytest

from asyncinfer.config import DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import StepOptions, at_least_one, takes, values

#: registered name -> its record of options
RECORDS = {
    "torch": "TorchOptions",
    "ray": "RayOptions",
    "open_inference": "OpenInferenceOptions",
    "open_inference_local": "LocalServerOptions",
    "cortex_m4": "CortexM4Options",
    "cortex_m4_emulated": "EmulatedCortexM4Options",
}


@pytest.fixture(params=RECORDS)
def registered(request):
    """A driver and the record of its options, both from its public module."""
    (entry,) = entry_points(group="asyncinfer.drivers", name=request.param)
    module = pytest.importorskip(entry.module)
    return getattr(module, entry.attr), getattr(module, RECORDS[request.param])


def commented(record):
    """Names of those fields of a class itself that have a comment above them."""
    lines = [line.strip() for line in inspect.getsource(record).splitlines()]
    names = [line.partition(":")[0] for line in lines]
    return {name for name, before in zip(names[1:], lines, strict=False) if before[:2] == "#:"}


def test_a_constructor_takes_the_fields(registered):
    driver, options = registered
    assert inspect.signature(driver).parameters == inspect.signature(options).parameters


def test_all_but_the_first_are_keywords(registered):
    driver, _ = registered
    kinds = {p.name: p.kind for p in inspect.signature(driver).parameters.values()}
    plain = [name for name in kinds if kinds[name] is not inspect.Parameter.KEYWORD_ONLY]
    assert plain in ([], ["model"], ["port"], ["url", "model"])


def test_each_option_is_described(registered):
    _, options = registered
    told = set().union(*(commented(base) for base in options.__mro__[:-1]))
    assert {field.name for field in dataclasses.fields(options)} <= told


def test_a_misspelt_option_is_an_error_in_python(registered):
    driver, _ = registered
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_bach'"):
        driver("x", max_bach=3)


@pytest.mark.parametrize("name", RECORDS)
def test_a_misspelt_option_is_an_error_in_a_config(name):
    if name == "ray":
        pytest.importorskip("ray")
    device = DeviceConfig(name, "x", {"max_bach": 3})
    with pytest.raises(ConfigError, match="unknown key 'max_bach'; did you mean 'max_batch'"):
        device.check()


def test_a_subclass_has_the_signature_it_says():
    @dataclasses.dataclass(frozen=True)
    class Options:
        size: int = 1

    class Own:
        @takes(Options)
        def __init__(self, options):
            self.size = options.size

    class Wider(Own):
        def __init__(self, **options):
            super().__init__(**options)

    assert (Own().size, Own(2).size, Own(size=3).size, Wider(size=4).size) == (1, 2, 3, 4)
    (parameter,) = inspect.signature(Wider).parameters.values()
    assert parameter.kind is inspect.Parameter.VAR_KEYWORD


def test_a_group_is_handed_on():
    options = StepOptions(preprocess=int, warmup_input=1)
    given = {"preprocess": int, "warmup_input": 1}
    rest = dict.fromkeys(("postprocess", "collate", "uncollate"))
    assert values(options, StepOptions) == rest | given


@pytest.mark.parametrize("value", [0, -1, 1.5, "2"])
def test_a_number_is_whole_and_from_one(value):
    @dataclasses.dataclass
    class Options:
        count: object = None
        size: object = 1

    at_least_one(Options(), "count", "size")
    at_least_one(Options(2, 2), "count", "size")
    with pytest.raises(ConfigError, match="count must be a whole number of at least 1"):
        at_least_one(Options(count=value), "count", "size")
    with pytest.raises(ConfigError, match="size must be a whole number of at least 1, not None"):
        at_least_one(Options(size=None), "count", "size")
