"""Drivers and models by name: found lazily, and errors that say what to do."""

import importlib
import importlib.metadata
import sys

import pytest

from asyncinfer import registry
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Put a distribution with these entry points and modules on the path."""

    def install(entries, modules, requires=()):
        info = tmp_path / "thirdparty-1.0.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {line}" for line in requires]
        head = ["Metadata-Version: 2.1", "Name: thirdparty", "Version: 1.0"]
        (info / "METADATA").write_text("\n".join([*head, *lines, ""]))
        (info / "entry_points.txt").write_text(entries)
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()

    return install


def test_own_drivers_are_registered():
    assert {"simulated", "torch"} <= set(registry.driver_names())
    assert {"digits", "efficientnet_lite0"} <= set(registry.model_names())
    assert registry.load_driver("simulated") is SimulatedDriver


def test_unknown_driver_names_the_nearest():
    with pytest.raises(
        ConfigError, match=r"unknown driver 'torhc'; did you mean 'torch'\? known: "
    ):
        registry.load_driver("torhc")


def test_unknown_model_without_a_near_one():
    with pytest.raises(ConfigError, match=r"unknown model 'zzz'; known: .*digits"):
        registry.load_model("zzz")


def test_third_party_driver(installed):
    installed("[asyncinfer.drivers]\nmine = mine_ok:make\n", {"mine_ok": "def make(): return 1\n"})
    assert registry.load_driver("mine")() == 1


@pytest.mark.parametrize(
    ("requires", "command"),
    [
        (['no-such-lib>=1; extra == "heavy"'], r"pip install 'thirdparty\[heavy\]'"),
        (["No_Such.Lib ; python_version > '3' and extra == 'far'"], r"'thirdparty\[far\]'"),
        (
            ['no-such-lib; extra == "aa"', 'no-such-lib; extra == "far"'],
            r"pip install 'thirdparty\[far\]'",
        ),
        ([], "pip install no_such_lib$"),
    ],
)
def test_missing_dependency_names_the_extra(installed, requires, command):
    installed(
        "[asyncinfer.drivers]\nfar = mine_far:make\n",
        {"mine_far": "import no_such_lib.part\n"},
        requires,
    )
    with pytest.raises(ConfigError, match=f"driver 'far' needs no_such_lib: .*{command}"):
        registry.load_driver("far")


@pytest.mark.parametrize(
    ("target", "text"),
    [("mine_gone:make", "No module named 'mine_gone'"), ("mine_bad:nothing", "'nothing'")],
)
def test_broken_entry_point(installed, target, text):
    installed(f"[asyncinfer.drivers]\nbad = {target}\n", {"mine_bad": "make = 3\n"})
    with pytest.raises(ConfigError, match=f"driver 'bad' cannot be imported: .*{text}"):
        registry.load_driver("bad")


def test_entry_point_that_is_no_driver(installed):
    installed("[asyncinfer.drivers]\nodd = mine_odd:make\n", {"mine_odd": "make = 3\n"})
    with pytest.raises(ConfigError, match="no class or function: 3"):
        registry.load_driver("odd")


def test_remedy_knows_import_names():
    own = importlib.metadata.distribution("asyncinfer")
    assert registry.remedy("typer", dist=own) == "pip install 'asyncinfer[cli]'"
    assert registry.remedy("PIL", dist=own) == "pip install 'asyncinfer[models]'"
    assert registry.remedy("yaml") == "pip install yaml"
