"""Run folders as `atlasd evaluate` leaves them, with numbers that a test chooses."""

from __future__ import annotations

import json
import math
from pathlib import Path

from atlasd.tools.runspec import RunSpec

NAN = math.nan


def write_run(
    root: Path,
    system: str = "atlas",
    protocol: str = "cil",
    seed: int = 0,
    matrix=((0.8, 0.3), (0.6, 0.7)),
    *,
    costs: dict | None = None,
    manifest: str = "m",
    finished: bool = True,
    **told,
) -> Path:
    """A run whose measures AP, J and F all have one matrix; returns its folder."""
    spec = RunSpec(**({"data": "toy", "system": system, "protocol": protocol, "seed": seed} | told))
    folder = root / spec.folder
    folder.mkdir(parents=True)
    config = {"hash": spec.hash, **spec.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config))
    if not finished:
        return folder
    T = len(matrix)
    along = [sum(row[: t + 1]) / (t + 1) for t, row in enumerate(matrix)]
    measure = {"matrix": nulls(matrix), "untrained": [0.1] * T, "summary": summary(matrix)}
    metrics = {
        "run": {"hash": spec.hash},
        "manifest": f"{manifest}{seed}",
        "measures": dict.fromkeys(("AP", "J", "F"), measure),
        "anytime": {
            "clips": [10 * (t + 1) for t in range(T)],
            **dict.fromkeys(("AP", "J", "F"), along),
            "A_AUC": dict.fromkeys(("AP", "J", "F"), sum(along) / T),
            "A_last": dict.fromkeys(("AP", "J", "F"), along[-1]),
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    known = {
        "train_s": 10.0, "score_s": 4.0, "steps": 5.0, "frames": 8.0,
        "trained_parameters": 1234.0, "peak_memory_mb": 512.0, "method_state_mb": 0.5,
        "machine": "a processor",
    }  # fmt: skip
    (folder / "costs.json").write_text(json.dumps(known | (costs or {})))
    return folder


def nulls(matrix):
    return [[None if math.isnan(value) else value for value in row] for row in matrix]


def summary(A) -> dict[str, float | None]:
    """By the definitions, in plain loops."""
    T = len(A)
    last = A[T - 1]
    diagonal = [A[k][k] for k in range(T)]
    if T == 1:
        return {"LA": diagonal[0], "AA": last[0], "F": None, "BWT": None, "FWT": None}
    return {
        "LA": sum(diagonal) / T,
        "AA": sum(last[:T]) / T,
        "F": sum(max(A[t][k] for t in range(k, T)) - last[k] for k in range(T - 1)) / (T - 1),
        "BWT": sum(last[k] - A[k][k] for k in range(T - 1)) / (T - 1),
        "FWT": sum(A[k - 1][k] for k in range(1, T)) / (T - 1),
        "mean_incremental": sum(sum(A[t][: t + 1]) / (t + 1) for t in range(T)) / T,
    }
