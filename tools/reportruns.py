"""Runs as a report needs them, read from the folders that `replay` fills."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..model.matrix import Matrix
from .runfolder import NOTED, RunFolder
from .runspec import RunSpec

Key = tuple[str, str]
"""A measure and a statistic, such as ``("AP", "AA")``."""

_COSTS = (
    "train_s",
    "score_s",
    "steps",
    "frames",
    "trained_parameters",
    "peak_memory_mb",
    "method_state_mb",
)


class ReportError(Exception):
    """What keeps a report from being made: what came, what is allowed, what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        path: its folder.
        spec: what it was told.
        hash: of that.
        manifest: SHA-256 of its tasks.
        values: its numbers by measure and statistic; what is not known has no entry. ``AP``, ``J``
            and so on have LA, AA, F, BWT, FWT, FWT_delta, mean_incremental, relative_F, and, where
            scored, A_AUC, A_last and prequential. Where test clips were dealt to groups (task-free)
            these are over groups, as a task's own are one or two, and ``tasks.AP`` and so on over
            tasks. ``empty``: how frames fare in which nothing sounds; ``costs``: its costs.
        matrices: (T, T) by measure: row after a task, column test task, NaN where not scored; or
            likewise over groups.
        anytime: (T,) each: ``clips`` learned by then, and the scores AP, J and F.
        machine: what it ran on; "" if that was not written down.
        data_id: of the data set that it learned from; "" where that has none.
    """

    path: Path
    spec: RunSpec
    hash: str
    manifest: str
    values: Mapping[Key, float]
    matrices: Mapping[str, Matrix]
    anytime: Mapping[str, Matrix]
    machine: str
    data_id: str

    @property
    def is_grouped(self) -> bool:
        """Whether its measures are over groups of test clips."""
        return any(measure.startswith("tasks.") for measure, _ in self.values)

    def examples(self) -> Mapping[str, NDArray[Any]] | None:
        """What `ClipScorer.examples` kept after the last task; None if there is nothing.

        Raises:
            ReportError: the file is broken.
        """
        found = sorted((self.path / "examples").glob("*.npz"))
        if not found:
            return None
        try:
            with np.load(found[-1], allow_pickle=False) as arrays:
                return {
                    name: arrays[name] for name in ("clips", "frames", "images", "truth", "probs")
                }
        except (OSError, ValueError, KeyError) as error:
            raise ReportError(
                f"{found[-1]} cannot be read as examples ({error}); delete {self.path} and run the "
                "evaluation again"
            ) from error


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A run that has no results.

    Attributes:
        path: its folder.
        name: for people.
        why: what is known of it.
    """

    path: Path
    name: str
    why: str


def read_runs(
    folders: Sequence[Path], progress: Callable[[int, int], None] = lambda _done, _all: None
) -> tuple[list[Run], list[Unfinished]]:
    """Read all runs below some folders, in the order of their paths.

    Args:
        folders: each is searched to its depth.
        progress: called as (read so far, of so many).

    Returns:
        The finished runs; a run that was found twice counts once. And those that have no results.

    Raises:
        ReportError: there is no run, one cannot be read, or two with one name are not the same.
    """
    found = {path.resolve(): path for folder in folders for path in _configs(folder)}
    configs = list(found.values())
    runs: dict[object, Run] = {}
    unfinished: list[Unfinished] = []
    for number, config in enumerate(configs):
        progress(number, len(configs))
        told = _read(config)
        if not {"hash", "protocol", "seed", "data"} <= told.keys():
            continue  # another program's configuration
        run = _run(config.parent, told)
        if isinstance(run, Unfinished):
            unfinished.append(run)
            continue
        twin = runs.setdefault((run.spec.folder, run.spec.category), run)
        if twin is not run:
            unfinished.append(_twice(twin, run))
    if not runs and not unfinished:
        raise ReportError(
            f"{', '.join(map(str, folders))}: no run of `atlasd evaluate` in it (a folder with "
            "config.json and metrics.json); name the folder that was its --out"
        )
    return list(runs.values()), unfinished


def _configs(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise ReportError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; name a folder that "
            "`atlasd evaluate` filled"
        )
    yield from sorted(folder.rglob("config.json"))


def _twice(first: Run, second: Run) -> Unfinished:
    if first.hash == second.hash:
        why = f"the same run as {first.path}, which is counted"
        return Unfinished(second.path, _name(second.spec), why)
    names = ", ".join(differing(first.spec, second.spec))
    raise ReportError(
        f"{first.path} and {second.path} are both {_name(first.spec)}, but differ in {names}; "
        "report them apart, or give their systems different names (`systems:` of a grid)"
    )


def differing(first: RunSpec, second: RunSpec) -> list[str]:
    """The keys in which two runs differ."""
    one, other = first.model_dump(mode="json"), second.model_dump(mode="json")
    return [key for key in one if one[key] != other[key]]


def _name(spec: RunSpec) -> str:
    network = spec.folder.parts[0]
    category = f" {spec.category}" if spec.category else ""
    return f"{spec.name} ({network}) {spec.protocol}{category}, {spec.order}, seed {spec.seed}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(
            f"{path} cannot be read as JSON ({error}); delete {path.parent} and run the evaluation "
            "again, or report on other folders"
        ) from error
    return found if isinstance(found, dict) else {}


def _run(folder: Path, told: Mapping[str, Any]) -> Run | Unfinished:
    try:
        spec = RunSpec.model_validate({k: value for k, value in told.items() if k not in NOTED})
    except ValidationError as error:
        raise ReportError(
            f"{folder / 'config.json'} is not a run of this version ({error.errors()[0]['loc']}: "
            f"{error.errors()[0]['msg']}); report with the version that made it"
        ) from error
    files = RunFolder(folder)
    if not files.metrics.exists():
        return Unfinished(folder, _name(spec), _why(files))
    metrics = _read(files.metrics)
    costs = _read(folder / "costs.json") if (folder / "costs.json").exists() else {}
    try:
        if metrics["run"]["hash"] != told["hash"]:
            raise ReportError(
                f"{files.metrics} is of run {metrics['run']['hash']}, its config.json of "
                f"{told['hash']}; delete {folder} and run the evaluation again"
            )
        return Run(
            folder,
            spec,
            str(told["hash"]),
            str(metrics["manifest"]),
            {key: value for key, value in _values(metrics, costs) if value is not None},
            {n: _floats(found["matrix"]) for n, found in _main(metrics).items()},
            {n: _floats(metrics["anytime"][n]) for n in ("clips", "AP", "J", "F")},
            str(costs.get("machine", "")),
            _data_id(told, spec.data),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(
            f"{files.metrics} is no metrics of this version ({type(error).__name__}: {error}); "
            f"delete {folder} and run the evaluation again"
        ) from error


def _data_id(told: Mapping[str, Any], path: Path) -> str:
    """As noted when the run began; runs of earlier versions: as it is now."""
    if "data_content" in told:
        return str(told["data_content"]).partition(" ")[2]
    try:
        return str(json.loads((path / "dataset.json").read_text(encoding="utf-8")).get("id", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _why(files: RunFolder) -> str:
    if files.failed.exists():
        return f"failed: {_read(files.failed).get('why', 'it is not known why')}"
    scored = len([path for path in (files.path / "frames").glob("*.csv") if path.stem.isdigit()])
    return f"not finished: {scored} tasks are scored; the same command goes on with it"


def _values(
    metrics: Mapping[str, Any], costs: Mapping[str, Any]
) -> Iterator[tuple[Key, float | None]]:
    """All single numbers of a run."""
    own = metrics["measures"] if "groups" in metrics else {}
    by_task = {f"tasks.{name}": found for name, found in own.items()}
    for name, found in {**_main(metrics), **by_task}.items():
        for statistic, value in (found["summary"] or {}).items():
            yield (name, statistic), value
    for statistic in ("A_AUC", "A_last"):
        for name, value in metrics["anytime"][statistic].items():
            yield (name, statistic), value
    for name, value in metrics.get("prequential", {}).items():
        if name != "frames":
            yield (name, "prequential"), value
    for name, value in metrics.get("empty", {}).items():
        yield ("empty", name), value
    yield from ((("costs", name), costs.get(name)) for name in _COSTS)
    if costs.get("frames"):
        yield ("costs", "ms_per_frame"), 1000 * costs["score_s"] / costs["frames"]


def _main(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Measures over groups of test clips where there are such, else over tasks; never mixed."""
    return dict(metrics.get("groups", metrics["measures"]))


def _floats(values: Iterable[Any]) -> Matrix:
    """Nested lists with None as an array with NaN."""
    return np.array(values, dtype=np.float64)
