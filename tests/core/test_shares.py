"""What a device shares with others: said by its driver, by a program, or by a config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import inside
import pytest

from asyncinfer import Dispatcher, Driver, config
from asyncinfer.driver import THIS_HOST, shared_names
from asyncinfer.errors import ConfigError
from asyncinfer.testing import ConformanceError, SimulatedDriver, SimulatedHost, check_driver


class Plain:
    """A driver that is no ``Driver``, and says nothing but what it must."""

    name, max_batch, concurrency = "plain", 1, 1

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        return batch


class Own(Driver[Any, Any]):
    name = "own"

    async def infer(self, batch: Sequence[Any]) -> Sequence[Any]:
        return batch


def known_of(driver: Any, virtual: Any) -> frozenset[str]:
    """What the dispatcher knows once the device is open."""

    async def main() -> frozenset[str]:
        async with Dispatcher([driver]) as dispatcher:
            (device,) = inside.devices(dispatcher)
            return device.shares

    return virtual(main())


def test_a_driver_of_ones_own_shares_nothing_unless_it_says_so(virtual):
    assert known_of(Plain(), virtual) == known_of(Own(), virtual) == Driver.shares == frozenset()
    own = Own()
    own.shares = THIS_HOST
    assert known_of(own, virtual) == {THIS_HOST}
    Plain.shares = ["usb", "usb", "bus"]
    assert known_of(Plain(), virtual) == {"usb", "bus"}
    Plain.shares = None
    assert known_of(Plain(), virtual) == frozenset()


def test_simulated_devices_share_their_host(virtual):
    host = SimulatedHost(name="pi")
    assert known_of(SimulatedDriver("a", 0.1), virtual) == frozenset()
    assert known_of(SimulatedDriver("a", 0.1, host=host), virtual) == {"pi"}
    assert known_of(SimulatedDriver("a", 0.1, host=host, shares="bus"), virtual) == {"bus"}
    assert known_of(SimulatedDriver("a", 0.1, host=host, shares=[]), virtual) == frozenset()


def test_what_is_known_once_it_is_open_counts(virtual):
    class Late(Own):
        shares = frozenset()

        async def open(self) -> None:
            self.shares = ("found", *self.shares)

    assert known_of(Late(), virtual) == {"found"}


@pytest.mark.parametrize(
    "right", ["a", ["a"], ("a", " a "), {"a"}, frozenset("a"), {"a": 1}.keys()]
)
def test_one_text_is_one_name(right):
    assert shared_names(right, "here") == {"a"}
    assert shared_names("cpu bus", "here") == {"cpu bus"}
    assert shared_names([], "here") == frozenset()


WRONG = [
    3,
    True,
    "",
    " ",
    [""],
    [3],
    ["a", None],
    b"a",
    {"a": "b"},
    pytest.param(iter("a"), id="an iterator"),
    [["a"]],
]


@pytest.mark.parametrize(
    "wrong", WRONG, ids=[f"{type(value).__name__}{at}" for at, value in enumerate(WRONG)]
)
def test_anything_else_is_refused_with_what_to_write(wrong):
    remedy = r"device 'x': shares must be a list of names, such as \['host:localhost'\]"
    with pytest.raises(ConfigError, match=remedy):
        SimulatedDriver("x", 0.1, shares=wrong)
    driver = SimulatedDriver("x", 0.1)
    driver.shares = wrong
    with pytest.raises(ConfigError, match=remedy):
        Dispatcher([driver])


async def test_the_conformance_suite_looks_at_it():
    def driver() -> Own:
        own = Own()
        own.shares = 3
        return own

    with pytest.raises(ConformanceError, match=r"shares must be a list of names.*not 3"):
        await check_driver(driver, [1, 2])


TABLE = """
[[device]]
driver = "simulated"
{}
options = {{ service_time = 0.1{} }}
"""


@pytest.mark.parametrize(
    ("beside", "option", "shares"),
    [
        ("", "", frozenset()),
        ('shares = "host:localhost"', "", {THIS_HOST}),
        ('shares = ["a", "b"]', "", {"a", "b"}),
        ("", ', shares = ["a", "b"]', {"a", "b"}),
        ("shares = []", ', shares = "a"', frozenset()),
    ],
)
def test_a_config_says_it_of_any_device(beside, option, shares):
    (device,) = config.parse(TABLE.format(beside, option)).devices
    assert device.build().shares == shares


def test_a_config_says_it_of_each_of_many():
    devices = config.parse(TABLE.format('count = 2\nshares = "a"', "")).devices
    assert [device.build().shares for device in devices] == [{"a"}, {"a"}]


@pytest.mark.parametrize("wrong", ["3", '""', '["a", 3]', "{ a = 1 }"])
def test_a_wrong_value_in_a_config_is_said_with_its_place(wrong):
    with pytest.raises(
        ConfigError, match=r"devices.toml: \[\[device\]\] 1 'simulated': shares must"
    ):
        config.parse(TABLE.format(f"shares = {wrong}", ""), "devices.toml")
    (device,) = config.parse(TABLE.format("", f", shares = {wrong}")).devices
    with pytest.raises(ConfigError, match="device 'simulated': shares must"):
        device.build()


def test_a_driver_that_does_not_let_it_be_set_is_named(monkeypatch):
    class Fixed(Own):
        shares = property(lambda self: frozenset())

        def __init__(self, *, name: str, service_time: float) -> None: ...

    monkeypatch.setattr("asyncinfer.config.device.load_driver", lambda name: Fixed)
    (device,) = config.parse(TABLE.format('shares = "a"', "")).devices
    with pytest.raises(ConfigError, match="'simulated' does not let 'shares' be set: "):
        device.build()
