"""``atlasd doctor``: whether this machine, and what is configured, can do the work.

Each check runs in a process of its own, with a deadline: a driver or library that hangs or crashes
is a finding like any other. The processes are forked off one that has imported what all need, which
halves the time that the whole takes.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
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
    context = _context()
    answer, end = context.Pipe(duplex=False)
    with tempfile.NamedTemporaryFile(prefix="atlasd-doctor-") as log, answer:
        words = (module, name, case.config.model_dump_json(), case.path, log.name, end)
        child = context.Process(target=_examine, args=words, daemon=True)
        child.start()
        end.close()
        try:
            findings = _answer(name, answer, deadline_s)
        except EOFError:
            child.join()
            last = log.read().decode("utf-8", "replace").strip()[-_TAIL_CHARACTERS:]
            return [_death(name, child.exitcode or 0, last)]
        finally:
            child.kill()
            child.join()
    return findings


def _context() -> ForkServerContext | SpawnContext:
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _answer(name: str, answer: Connection, deadline_s: float) -> list[Finding]:
    """What a check found, or that it did not end. EOFError: its process ended without a word."""
    if not answer.poll(deadline_s):
        found = f"the check did not end within {deadline_s:g} s: a driver or library hangs"
        remedy = "restart the device or its server; on a very busy machine, give it more --timeout"
        return [Finding(name, "fail", found, remedy)]
    return [Finding(**each) for each in json.loads(answer.recv_bytes())]


def _death(name: str, code: int, last: str) -> Finding:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    found = f"the check {how}{': ' if last else ''}{last}"
    return Finding(name, "fail", found, "reinstall what it names, or report it with this text")


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


def _examine(
    module: str, name: str, config: str, path: Path | None, log: str, end: Connection
) -> None:
    """Make one check, in its process; what it and its libraries print goes to the log."""
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    case = Case(Config.model_validate_json(config), path)
    check = cast(
        "Callable[[Case], list[Finding]]",
        getattr(importlib.import_module(module, __package__), name),
    )
    end.send_bytes(json.dumps([asdict(finding) for finding in check(case)]).encode())
    os._exit(0)  # a library that hangs at its end has done its work
