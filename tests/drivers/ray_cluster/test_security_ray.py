"""A config's Ray options that can run code; no cluster is needed."""

import pytest

from asyncinfer import config
from asyncinfer.errors import ConfigError


def device(options, **how):
    text = f"[[device]]\ndriver = 'ray'\n[device.options]\nmodel = 'digits'\n{options}\n"
    return config.parse(text, "c.toml", **how).devices[0]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ("address = '10.0.0.9:6379'", "address"),
        ("address = 'head:6379'", "address"),
        ("address = 'ray://127.0.0.1:1'", "address"),
        ("address = '127.0.0.1.example.org:6379'", "address"),
        ("address = 'auto'\nruntime_env = {pip = ['x']}", "runtime_env"),
        ("model = 'a:b'".replace("model", "preprocess"), "preprocess"),
    ],
)
def test_clusters_elsewhere_and_environments_can_run_code(options, key):
    with pytest.raises(ConfigError, match=f"options: '{key}' names what can run code"):
        device(options).check()
    device(options, allow_code=True).check()


@pytest.mark.parametrize(
    "address", ["auto", "local", "127.0.0.1:6379", "[::1]:6379", "localhost:1"]
)
def test_a_cluster_of_this_host_is_its_own(address):
    device(f"address = '{address}'").check()
    device("num_cpus = 1").check()
