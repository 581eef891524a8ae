"""Asks OSV which of the packages installed here have known vulnerabilities.

The exit status is 0 if there are none, 1 if there are, and 3 if that could not be found out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

VULNERABLE, UNKNOWN = 1, 3
#: seconds for one answer of the service, and for all
_ANSWER, _ALL = 5, 300
_COMMAND = [
    *(sys.executable, "-m", "pip_audit", "--local", "--skip-editable"),
    *("--vulnerability-service", "osv", "--format", "json", "--desc", "off"),
    *("--progress-spinner", "off", "--timeout", str(_ANSWER)),
]


def main() -> int:
    """Run pip-audit; print what came of it."""
    try:
        done = subprocess.run(  # noqa: S603  # our own command
            _COMMAND, capture_output=True, text=True, check=False, timeout=_ALL
        )
    except subprocess.TimeoutExpired:
        status, lines = unknown(f"no answer within {_ALL} s")
    else:
        status, lines = verdict(done.stdout, done.stderr)
    print("\n".join(lines))
    return status


def verdict(report: str, errors: str) -> tuple[int, list[str]]:
    """The exit status, and what to say, for what pip-audit wrote."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = errors.strip().splitlines() or ["pip-audit said nothing"]
        return unknown(said[-1])
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return unknown("no package is known to the service")
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {_fixed(found)}"
        for package in asked
        for found in package["vulns"]
    ]
    lines += [
        f"{package['name']} could not be audited: {package['skip_reason']}"
        for package in packages
        if "skip_reason" in package
    ]
    bad = sum(bool(package["vulns"]) for package in asked)
    lines.append(f"{len(asked)} packages audited, {bad} with known vulnerabilities")
    return VULNERABLE if bad else 0, lines


def unknown(why: str) -> tuple[int, list[str]]:
    """The exit status, and what to say, if there is no answer."""
    return UNKNOWN, [f"could not be audited: {why[:300]}"]


def _fixed(found: dict[str, Any]) -> str:
    return ", ".join(found.get("fix_versions") or ()) or "no version yet"


if __name__ == "__main__":
    sys.exit(main())
