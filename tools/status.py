"""``atlasd status``: what a daemon says of its stream and of the labels that it was given."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table

from ..daemon.client import subscribe
from ..daemon.fields import to_map
from ..daemon.infos import IntakeInfo, LadderInfo, LearnerInfo
from ..daemon.messages import Hello, Status

_LATENCIES = ("total_p50", "total_p95", "total_p99", "infer_p50")


def status(
    endpoint: str,
    *,
    stream: str | None = None,
    as_json: bool = False,
    timeout_s: float = 5.0,
    output: TextIO | None = None,
) -> Status:
    """Ask a daemon's bus once, and show the answer.

    Args:
        endpoint: the daemon's bus, ``tcp://HOST:PORT`` or ``ipc:///PATH``.
        stream: one stream; None for the first that is heard of.
        as_json: one JSON object (see `to_json`) instead of a table.
        timeout_s: give up after so long without a status.
        output: where to write; standard output by default.

    Returns:
        What came.

    Raises:
        client.SilenceError: nothing came within `timeout_s`.
        endpoints.EndpointError: the endpoint is malformed.
    """
    target = output or sys.stdout
    with subscribe(endpoint, stream, kinds=(Status,), timeout_s=timeout_s) as messages:
        came = next(messages)
        hello = messages.hello.get(came.stream)
    if as_json:
        target.write(json.dumps(to_json(came, hello), separators=(",", ":")) + "\n")
    else:
        Console(file=target).print(_table(came, hello))
    return came


def to_json(came: Status, hello: Hello | None) -> dict[str, Any]:
    """A status as what JSON can hold.

    The keys are those of docs/protocol.md, and ``model``, ``classes`` and ``source`` of the hello
    (None before one was heard); of the latest mask only its place: ``epoch, seq, pts_ns``.
    """
    entries = to_map(came)
    mask = came.mask
    entries["mask"] = mask and {"epoch": mask.epoch, "seq": mask.seq, "pts_ns": mask.pts_ns}
    said = {} if hello is None else to_map(hello)
    return {**entries, **{key: said.get(key) for key in ("model", "classes", "source")}}


def _table(came: Status, hello: Hello | None) -> Table:
    table = Table(title=f"stream {came.stream}", show_header=False, title_justify="left")
    rows: dict[str, str] = {"state": f"{came.state} {came.detail}".strip()}
    if hello is not None:
        rows["model"] = f"{hello.model.preset} {hello.model.version}"
    rows["masks"] = f"{came.masks}, {came.fps:.1f} a second, epoch {came.epoch}"
    rows["subscribers"] = str(came.subscribers)
    rows["drops"] = _listed(came.drops)
    shown = [f"{k} {came.lat_ms[k]:.1f}" for k in _LATENCIES if k in came.lat_ms]
    rows["latency, ms"] = ", ".join(shown) or "none yet"
    rows |= _ladder_rows(came.ladder)
    rows |= _intake_rows(came.intake)
    rows |= _learner_rows(came.learner)
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _ladder_rows(ladder: LadderInfo | None) -> dict[str, str]:
    if ladder is None:
        return {}
    rows = {"deadline": f"{ladder.deadline_ms:g} ms, now at rung {ladder.rung}"}
    for number, rung in enumerate(ladder.rungs):
        rows[f"rung {number}"] = f"{rung.px} px, p95 {rung.p95_ms:.1f} ms, {rung.frames} frames"
    return rows


def _intake_rows(intake: IntakeInfo | None) -> dict[str, str]:
    if intake is None:
        return {"labels": "not taken (intake.enabled is false)"}
    rows = {
        "labels": f"{intake.state} at {intake.endpoint} {intake.detail}".strip(),
        "clips": _listed(intake.clips),
        "kept": f"{intake.held} clips, {intake.bytes / 1e6:.1f} MB",
    }
    if intake.oldest_s is not None:
        rows["oldest waits"] = f"{intake.oldest_s:.0f} s"
    rows["batches"] = f"{intake.batches}, {intake.aside} set aside"
    for number, reason in (intake.reasons or {}).items():
        rows[f"batch {number}"] = f"set aside: {reason} (atlasd release or discard {number})"
    rows["granted since the start"] = _listed(intake.answered)
    rows["refused since the start"] = _listed(intake.refused)
    size = intake.replay_bytes / 1e6
    rows["can be referred to"] = f"{intake.replay_frames} frames, {size:.1f} MB"
    return rows


def _learner_rows(learner: LearnerInfo | None) -> dict[str, str]:
    if learner is None:
        return {"learner": "none (learner.enabled is false)"}
    rows = {"learner": f"{learner.state}, {learner.method} {learner.detail}".strip()}
    rows["learned, ever"] = (
        f"{learner.clips} clips in {learner.steps} steps, held on to {learner.consolidations} times"
    )
    newest = f"{learner.version}, batch {learner.batch}" if learner.version else "none yet"
    judged = f", batch {learner.candidate} waits for its judgement" if learner.candidate else ""
    rows["accepted"] = newest + judged
    rows["kept on disk"] = f"batch {learner.checkpoint}"
    if learner.score is not None and learner.a_auc is not None:
        rows["J before learning"] = f"{learner.score:.3f} lately, {learner.a_auc:.3f} ever"
    rows["since the daemon's start"] = f"{learner.restarts} restarts of the learner"
    rows["since the learner's"] = f"{learner.refused} batches refused"
    return rows


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) or "none"
