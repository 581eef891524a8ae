"""Options of drivers: records whose fields the constructors take as keywords."""

import dataclasses
import inspect
import math
import re
import types
from importlib.metadata import entry_points
from typing import Any, get_args, get_type_hints

import pytest

from asyncinfer.config import DeviceConfig
from asyncinfer.errors import ConfigError
from asyncinfer_drivers._shared.options import StepOptions, takes, values

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
    text = f"^{driver.__name__} has no option 'max_bach': did you mean 'max_batch'"
    with pytest.raises(ConfigError, match=text):
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


#: what is no value of any option of these types
WRONG = {int: [0, 1.5, "2", True, math.nan], float: ["x", -1, math.nan, math.inf, True]}


def wrong_values(hint):
    """Values that an option of this type does not take."""
    parts = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if Any in parts:
        return []
    if float in parts:
        return WRONG[float]
    return WRONG[int] if int in parts else [object(), 0.5]


def test_every_option_is_checked(registered):
    """A value of another type, or one that no call could keep, names option, device and value."""
    driver, options = registered
    first = [p.name for p in inspect.signature(driver).parameters.values() if p.default is p.empty]
    given = dict(zip(first, ("x:1", "y"), strict=False)) | {"name": "dev"}
    tried = 0
    for name, hint in get_type_hints(options).items():
        for value in wrong_values(hint):
            if name in ("name", "icount", "elf") or (name == "model" and "model" in first[:1]):
                continue
            with pytest.raises(ConfigError) as caught:
                driver(**given | {name: value})
            text = str(caught.value)
            assert f"device 'dev': {name} must be" in text, (name, value, text)
            assert text.endswith(f"not {value!r}"), (name, value, text)
            tried += 1
    assert tried > 20


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"slowdown": 0.5}, "device 'cpu': slowdown must be a number of at least 1, not 0.5"),
        ({"preprocess": 3}, "preprocess must be a function or a text, not 3"),
        ({"isolation": "proces"}, "isolation must be 'thread' or 'process', not 'proces'"),
        ({"max_batch": "x"}, "max_batch must be a whole number of at least 1 or 'auto', not 'x'"),
        ({"optimize": ["fuse", 3]}, "optimize must be a text or a list of texts, not"),
        ({"collate": len, "name": "a"}, "device 'a': collate needs preprocess"),
    ],
)
def test_a_wrong_value_says_what_is_right(wrong, text):
    torch_host = pytest.importorskip("asyncinfer_drivers.torch_host")
    with pytest.raises(ConfigError, match=re.escape(text)):
        torch_host.TorchDriver("digits", **wrong)


def test_what_is_missing_or_too_much_is_told_as_the_drivers_own(registered):
    driver, _ = registered
    with pytest.raises(ConfigError, match=f"{driver.__name__}: too many positional arguments"):
        driver("x", "y", "z")


@pytest.mark.parametrize(
    "wrong", [{"hello": -1}, {"timeouts": 0}, {"slack": math.nan}, {"attempts": True}]
)
def test_the_times_of_a_line_are_checked(wrong):
    timing = pytest.importorskip("asyncinfer_drivers.cortex_m.timing").Timing
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"timing: {name} must be"):
        timing(**wrong)


@pytest.mark.parametrize("wrong", [{"flip": 2.0}, {"drop": -0.1}, {"pause": "x"}])
def test_the_faults_of_a_line_are_checked(wrong):
    proxy = pytest.importorskip("asyncinfer_drivers.cortex_m.proxy")
    with pytest.raises(ConfigError, match="faults: "):
        proxy.Faults(**wrong)
