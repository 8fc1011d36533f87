"""``atlasd doctor``: whether this machine, and what is configured, can do the work.

Each check runs in a process of its own, with a deadline: a driver or library that hangs or crashes
is a finding like any other.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Final, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..daemon.config import DEFAULT_FILE, Config, ConfigError, load_config
from .findings import Case, Finding

DEADLINE_S: Final = 30.0
"""Seconds after which a check is taken for hung."""

CHECKS: Final[Mapping[str, str]] = {
    "cameras": ".devicechecks",
    "microphones": ".devicechecks",
    "codecs": ".mediachecks",
    "protocols": ".mediachecks",
    "torch": ".machinechecks",
    "onnxruntime": ".machinechecks",
    "weights": ".configchecks",
    "ports": ".configchecks",
    "disk": ".configchecks",
    "secrets": ".configchecks",
    "clock": ".machinechecks",
    "memory": ".machinechecks",
    "files": ".machinechecks",
}
"""Each check with the module, of this package, whose function of that name makes it."""

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
_AT_ONCE = 4
_TAIL_CHARACTERS = 300


def doctor(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    as_json: bool = False,
    deadline_s: float = DEADLINE_S,
    checks: Mapping[str, str] | None = None,
    console: Console | None = None,
) -> list[Finding]:
    """Examine the machine and the configuration, and show what was found.

    Args:
        path: the configuration's file; None: ./config.yaml where it exists.
        overrides: ``section.key=value``.
        as_json: one JSON object, ``{"findings": [...]}``, instead of a table.
        deadline_s: for each check.
        checks: instead of `CHECKS`.
        console: where to print, or None for standard output.

    Returns:
        The findings, in the order of the checks.
    """
    case, findings = _read(path, overrides)
    modules = CHECKS if checks is None else checks
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(
            lambda name: _checked(name, modules[name], case, deadline_s), modules
        ):
            findings += found
    if as_json:
        said = json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=2)
        (console or Console()).print(said, markup=False, highlight=False, soft_wrap=True)
    else:
        (console or Console()).print(_table(findings))
    return findings


def _read(path: Path | None, overrides: Sequence[str]) -> tuple[Case, list[Finding]]:
    path = DEFAULT_FILE if path is None and DEFAULT_FILE.exists() else path
    try:
        config = load_config(path, environ=os.environ, overrides=overrides)
    except ConfigError as error:
        remedy = "correct it; the other checks take the defaults (atlasd config check)"
        return Case(Config(), path), [Finding("config", "fail", str(error), remedy)]
    where = f"{path}" if path else "no file; the defaults"
    return Case(config, path), [Finding("config", "ok", where)]


def _checked(name: str, module: str, case: Case, deadline_s: float) -> list[Finding]:
    """Make a check in a process; what becomes of that process is a finding too."""
    asked = {
        "config": case.config.model_dump(mode="json"),
        "path": None if case.path is None else str(case.path),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, module, name],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        found = f"the check did not end within {deadline_s:g} s: a driver or library hangs"
        remedy = "restart the device or its server; on a very busy machine, give it more --timeout"
        return [Finding(name, "fail", found, remedy)]
    if done.returncode == 0:
        return [Finding(**each) for each in json.loads(done.stdout)]
    code = done.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    last = done.stderr.strip()[-_TAIL_CHARACTERS:]
    found = f"the check {how}{': ' if last else ''}{last}"
    return [Finding(name, "fail", found, "reinstall what it names, or report it with this text")]


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("check", "", "found", "what to do", show_lines=True)
    last = ""
    for finding in findings:
        colour = _COLOURS[finding.status]
        name = "" if finding.check == last else finding.check
        status = Text(finding.status, style=colour)
        table.add_row(name, status, Text(finding.found), Text(finding.remedy))
        last = finding.check
    worst = [f"{n} {s}" for s in ("fail", "warn") if (n := _count(findings, s))]
    table.caption = ", ".join(worst) or "all is well"
    return table


def _count(findings: Sequence[Finding], status: str) -> int:
    return sum(finding.status == status for finding in findings)


def _child(module: str, name: str) -> None:
    """Make one check. What libraries print goes to stderr, so that stdout holds the findings."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.read())
    path = None if asked["path"] is None else Path(asked["path"])
    case = Case(Config.model_validate(asked["config"]), path)
    package = __spec__.parent if __spec__ else None
    found = importlib.import_module(module, package)
    check = cast("Callable[[Case], list[Finding]]", getattr(found, name))
    with answer:
        json.dump([asdict(finding) for finding in check(case)], answer)


if __name__ == "__main__":
    _child(*sys.argv[1:])
