"""What several commands take on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = (
    "AllowCode",
    "Config",
    "Devices",
    "Json",
    "Model",
    "Policy",
    "WaitFor",
    "Window",
    "expand",
)

#: options that take one value or more: ``--devices cpu cpu sim:1``
SEVERAL = ("--devices", "--host", "--inputs", "--service-times", "--suite")

Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with [[device]] tables.", show_default=False),
]
AllowCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        help="The config may name code to run: modules, files of models. Only if you trust it.",
    ),
]
Devices: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--devices",
        help="One or more of: cpu, auto, cuda[:N], mps, mac_studio, raspberry_pi, cortex_m4, "
        "sim:SECONDS, or names from the config. Default: all of the config's, or auto.",
        show_default=False,
    ),
]
Model: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A built-in model, a .pt2 or TorchScript file, or module:factory.",
        show_default=False,
    ),
]
Policy: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--policy", help="eft (default), greedy, static, sync or serial.", show_default=False
    ),
]
WaitFor: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--wait-for",
        help="Begin with the first device that is up (default), or once all were tried: all.",
        show_default=False,
    ),
]
Window: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--window",
        min=1,
        help="A task starts only this near to the next one to deliver.",
        show_default=False,
    ),
]


def expand(arguments: Sequence[str]) -> list[str]:
    """Repeat the flags of ``SEVERAL`` before each of their values, as the parser needs it.

    Values end at the next option; ``--`` ends them before positional arguments.
    """
    expanded: list[str] = []
    flag, fresh = "", False
    for position, argument in enumerate(arguments):
        if argument == "--":
            return [*expanded, *arguments[position:]]
        if argument.startswith("-") and not _is_value(argument):
            flag, fresh = (argument, True) if argument in SEVERAL else ("", False)
        elif argument == "-" and flag != "--inputs":
            flag = ""  # standard input is no device
        elif flag and not fresh:
            expanded.append(flag)
        else:
            fresh = False
        expanded.append(argument)
    return expanded


def _is_value(argument: str) -> bool:
    """Whether it is a value in spite of its dash: standard input, or a negative number."""
    return argument == "-" or argument[1:2].isdigit() or argument[1:2] == "."
