"""Checks of `atlasd doctor`: what the configuration names: weights, ports, folders, secrets."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..daemon.config import IntakeConfig, PublishConfig
from ..streams.addresses import redacted
from .findings import Case, Finding

LEAST_MB, ENOUGH_MB = 100, 1000
"""Free space of the state's disk below which nothing can be kept, and below which it is close."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
_LISTENS = "0A"


def weights(case: Case) -> list[Finding]:
    """The weights that are served: there, whole, trained, of the configured preset."""
    from ..model.checkpoints import SHIPPED, read
    from ..model.pretrained import WeightsError

    model = case.config.model
    findings: list[Finding] = []
    path = model.weights or SHIPPED / model.preset
    if model.weights is None and not path.is_dir():
        remedy = f"train some (atlasd train --preset {model.preset}) and name them: model.weights"
        found = f"no trained weights of {model.preset} ship with this program"
        return [Finding("weights", "fail", found, remedy)]
    try:
        manifest = read(path).manifest
    except WeightsError as error:
        return [
            Finding("weights", "fail", str(error), "correct model.weights, or fetch them again")
        ]
    told = f"{manifest.preset} {manifest.version} at {path}, checksum good"
    if manifest.preset != model.preset:
        remedy = f"set model.preset to {manifest.preset}, or name other weights"
        findings.append(
            Finding("weights", "fail", f"{told}; model.preset is {model.preset}", remedy)
        )
    elif not manifest.trained:
        remedy = f"train them: atlasd train --preset {model.preset} --out DIR"
        findings.append(Finding("weights", "fail", f"{told}, but never trained", remedy))
    else:
        findings.append(Finding("weights", "ok", told))
    for key in ("backbone_weights", "audio_weights"):
        named: Path | None = getattr(model, key)
        if named is not None and not named.exists():
            found = f"model.{key}: {named} is not there"
            findings.append(Finding("weights", "fail", found, "correct the path"))
    return findings


def ports(case: Case) -> list[Finding]:
    """Whether the addresses can be bound, or who has them."""
    from ..daemon.endpoints import EndpointError, check, check_private

    asked: dict[str, PublishConfig | IntakeConfig] = {"publish": case.config.publish}
    if case.config.intake.enabled:
        asked["intake"] = case.config.intake
    findings: list[Finding] = []
    for name, section in asked.items():
        try:
            check(section.endpoint)
            if not section.insecure:
                check_private(section.endpoint)
        except EndpointError as error:
            findings.append(Finding("ports", "fail", str(error), f"correct {name}.endpoint"))
            continue
        findings.append(_address(f"{name}.endpoint", section.endpoint))
    return findings


def _address(name: str, endpoint: str) -> Finding:
    if endpoint.startswith("ipc://"):
        return _ipc(name, endpoint)
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    host = {"*": "0.0.0.0"}.get(host, host.strip("[]"))  # noqa: S104 (what ZeroMQ means by it)
    if port in {"*", "0"}:
        return Finding("ports", "ok", f"{name} {endpoint}: a free one is taken")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return _taken(name, endpoint, int(port))
            remedy = f"choose another {name}"
            return Finding("ports", "fail", f"{name} {endpoint}: {error.strerror}", remedy)
    return Finding("ports", "ok", f"{name} {endpoint} is free")


def _ipc(name: str, endpoint: str) -> Finding:
    path = Path(endpoint.removeprefix("ipc://"))
    with socket.socket(socket.AF_UNIX) as probe:
        if path.exists() and probe.connect_ex(str(path)) == 0:
            remedy = f"stop that program, or choose another {name}"
            return Finding("ports", "warn", f"{name} {endpoint} is in use", remedy)
    folder = next(each for each in path.absolute().parents if each.exists())
    if os.access(folder, os.W_OK):
        return Finding("ports", "ok", f"{name} {endpoint} is free")
    return Finding("ports", "fail", f"{folder} cannot be written to", f"choose another {name}")


def _taken(name: str, endpoint: str, port: int) -> Finding:
    """An address in use; by a daemon that runs, all is as it should be."""
    holders = list(_holders(port))
    told = ", ".join(f"process {pid}: {command}" for pid, command in holders) or "another user"
    found = f"{name} {endpoint} is in use by {told}"
    if any("atlasd" in command for _, command in holders):
        remedy = f"to run a second daemon, give it another {name}"
        return Finding("ports", "warn", found, remedy)
    remedy = f"stop that program, or choose another {name}"
    return Finding("ports", "fail", found, remedy)


def _holders(port: int) -> Iterator[tuple[int, str]]:
    """Processes that listen at a TCP port, as far as this user may see."""
    inodes = set(_listening(port))
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(f"socket:[{inode}]" in _open_files(folder) for inode in inodes):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                yield int(folder.name), b" ".join(words).decode("utf-8", "replace")[:120].strip()


def _open_files(process: Path) -> set[str]:
    links: set[str] = set()
    for each in (process / "fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            links.add(str(each.readlink()))
    return links


def _listening(port: int) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def disk(case: Case) -> list[Finding]:
    """Room for what outlives the daemon, and whether it may be written."""
    from ..daemon.places import spool_folder

    folder = spool_folder(case.config).absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free_mb = shutil.disk_usage(there).free >> 20
    found = f"{folder}: {free_mb} MB free"
    if not os.access(there, os.W_OK | os.X_OK):
        remedy = "set intake.spool to a folder of your own"
        status = "fail" if case.config.intake.enabled else "warn"
        return [Finding("disk", status, f"{there} cannot be written to", remedy)]
    if free_mb < LEAST_MB:
        return [Finding("disk", "fail", found, "free some, or set intake.spool to another disk")]
    intake = case.config.intake
    if free_mb < ENOUGH_MB or (intake.enabled and free_mb < intake.max_mb):
        remedy = f"free some, or lower intake.max_mb (now {intake.max_mb})"
        return [Finding("disk", "warn", found, remedy)]
    return [Finding("disk", "ok", found)]


def secrets(case: Case) -> list[Finding]:
    """Whether others can read passwords in addresses, or the labels and what was learned."""
    from ..daemon.places import learned_folder, spool_folder

    findings: list[Finding] = []
    if case.path is not None and case.path.exists():
        addresses = _ADDRESS.findall(case.path.read_text(errors="replace"))
        holds = any(redacted(address) != address for address in addresses)
        if holds and _is_open(case.path):
            found = f"{case.path} holds a password, and others can read it"
            findings.append(Finding("secrets", "fail", found, f"chmod 600 {case.path}"))
    for folder in {spool_folder(case.config), learned_folder(case.config)}:
        if folder.exists() and _is_open(folder):
            found = f"others can read {folder}: labels and weights"
            findings.append(Finding("secrets", "warn", found, f"chmod 700 {folder}"))
    return findings or [Finding("secrets", "ok", "nothing that others can read")]


def _is_open(path: Path) -> bool:
    return path.stat().st_mode & 0o077 != 0
