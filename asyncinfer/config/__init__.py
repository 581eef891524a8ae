"""Devices by name, and the one TOML file that describes them.

    [dispatcher]
    policy = "eft"
    window = 512

    [[device]]
    driver = "torch"
    name = "fast"

    [device.options]
    device = "cpu"
    max_batch = 32

Nothing is opened here and no driver is imported until ``DeviceConfig.build``. A file may name
code, a module to import or a model's file, only if its reader says so: see ``load``.
"""

from __future__ import annotations

from asyncinfer.config.device import DeviceConfig as DeviceConfig
from asyncinfer.config.file import Config as Config
from asyncinfer.config.file import load as load
from asyncinfer.config.file import parse as parse
from asyncinfer.config.names import select as select

__all__ = ("Config", "DeviceConfig", "load", "parse", "select")
