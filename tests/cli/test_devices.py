"""``asyncinfer devices``."""

from asyncinfer import registry
from asyncinfer.cli import devices
from asyncinfer.errors import ConfigError
from asyncinfer.testing import SimulatedDriver


def test_lists_what_is_there(cli, tiny):
    facts = cli("devices", "--json").json
    assert {"simulated", "torch"} <= {driver["name"] for driver in facts["drivers"]}
    assert facts["config"] == []
    names = {name["name"]: name for name in facts["names"]}
    assert names["cpu"]["driver"] == "torch"
    assert "stand-in" in names["raspberry_pi"]["note"]


def test_people_see_the_same(cli, tiny):
    ran = cli("devices")
    assert ran.status == 0
    assert "Names for --devices" in ran.out


def test_drivers_may_discover(cli, tiny, monkeypatch):
    class Discovering(SimulatedDriver):
        @classmethod
        def discover(cls):
            return [{"name": "cuda:0", "memory": "8 GB", "note": None}]

    monkeypatch.setattr(devices, "driver_names", lambda: ["simulated"])
    monkeypatch.setattr(devices, "load_driver", lambda name: Discovering)
    host = {"driver": "simulated", "name": "cuda:0", "memory": "8 GB", "note": None}
    assert cli("devices", "--json").json["host"] == [host]
    assert "cuda:0  memory 8 GB\n" in cli("devices").out


def test_a_missing_package_is_told(cli, tiny, monkeypatch):
    def fail(name):
        raise ConfigError(f"driver {name!r} needs torch: pip install 'asyncinfer[torch]'")

    monkeypatch.setattr(devices, "load_driver", fail)
    ran = cli("devices", "--json")
    assert ran.status == 0
    assert all("pip install" in driver["error"] for driver in ran.json["drivers"])
    assert registry.driver_names()


def test_a_config_with_a_typo_fails(cli, tiny, tmp_path):
    file = tmp_path / "devices.toml"
    file.write_text(
        "[[device]]\ndriver = 'torch'\nname = 'good'\n"
        "[[device]]\ndriver = 'torch'\nname = 'bad'\n[device.options]\nmax_bach = 3\n"
    )
    ran = cli("devices", "--config", file, "--json")
    assert ran.status == 1
    good, bad = ran.json["config"]
    assert good["error"] is None
    assert "did you mean 'max_batch'" in bad["error"]


def test_bad_config(cli, tmp_path):
    ran = cli("devices", "--config", tmp_path / "none.toml")
    assert (ran.status, ran.out) == (2, "")
    assert "cannot read config" in ran.error
