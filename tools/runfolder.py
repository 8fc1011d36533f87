"""A run's folder: what it was told, what it went through, what it scored.

``config.json`` and ``manifest.json`` say what the run is, ``start.json`` which trained weights it
goes on from, if it does. ``boundary.safetensors`` holds the run
after its latest finished task, ``state.safetensors`` the training of the task after it.
``frames/NNN.csv`` has a line for each frame that was scored after task NNN (``untrained.csv``:
before any), ``frames/NNN.json`` the F curves of its cells, ``examples/NNN.npz`` some pictures with
their masks, ``prequential.csv`` the frames of a
stream before they were learned. ``metrics.json`` follows from these alone; ``costs.json`` is kept
apart, as no two runs cost the same, and while the run goes on holds what it has cost so far. A run
that cannot go on leaves ``failed.json``, and ``failed.log`` where the fault may be the program's.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import math
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..streams.avslayout import DatasetError, find_subset
from .filestamps import content_of
from .leftovers import sweep
from .runspec import RunSpec

UNTRAINED = -1
"""The task number of scores before any task."""

_GROUPS = "groups"
NOTED = ("hash", "data_at", "data_content")
"""What stands in ``config.json`` besides the `RunSpec`."""
_ASIDE = {*NOTED, "device", "system"}
"""What of a configuration does not say which run it is; see `RunSpec.hash`."""
_log = logging.getLogger(__name__)


class RunError(Exception):
    """A run that cannot begin or go on: why, what to do."""


@dataclass(frozen=True, slots=True)
class FrameRow:
    """One scored frame.

    Attributes:
        task: after which task, `UNTRAINED` before any.
        test_task: to which task's test clips it belongs.
        clip: the clip's id.
        frame: 0 to 4.
        J: AVSBench's, also of an empty truth.
        F_at: F at 0.5; NaN where the truth is empty, as AP, AUPR and F_max.
        marked: share of pixels in the predicted mask.
        Dice: 1 where truth and mask are empty.
        AP: Eq. 11.
        AUPR: under the precision-recall curve.
        F_max: Eq. 12, of this frame alone.
        class_right: 1 or 0: whether the class was told right among all seen so far; NaN: no class.
        class_right_told: likewise among those of the clip's task.
    """

    task: int
    test_task: int
    clip: str
    frame: int
    J: float
    F_at: float
    marked: float
    Dice: float
    AP: float
    AUPR: float
    F_max: float
    class_right: float
    class_right_told: float

    @property
    def is_empty(self) -> bool:
        """Whether nothing in view sounds."""
        return math.isnan(self.F_at)


class Curve(NamedTuple):
    """What pools to F over several sets of frames; see `metrics.f_measure_pooled`.

    Attributes:
        sum: of the F curves (255) of the frames with an object.
        objects: how many these are.
        batches: `metrics.best_of_batches` of four clips each, as AVSBench's test takes them; None:
            not kept, as by earlier versions.
        pairs: of two clips each; likewise.
        singles: of one clip each; likewise.
    """

    sum: list[float]
    objects: int
    batches: list[float] | None = None
    pairs: list[float] | None = None
    singles: list[float] | None = None


class RunFolder:
    """The files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "manifest.json"
        self.boundary = path / "boundary.safetensors"
        self.state = path / "state.safetensors"
        self.metrics = path / "metrics.json"
        self.failed = path / "failed.json"
        self.log = path / "failed.log"
        self.costs = path / "costs.json"
        self._config = path / "config.json"

    @contextmanager
    def alone(self) -> Generator[None]:
        """Let no other process make this run meanwhile; the folder is made where it lacks.

        A file system that has no such locks (some on networks) lets others in.

        Raises:
            RunError: another process makes it.
            OSError: the folder cannot be made.
        """
        if not self.path.exists():
            self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"another process makes the run in {self.path}; once that has ended, what it "
                    "left is gone on from"
                ) from error
            except OSError as error:
                _log.warning("%s cannot be locked (%s); start no second evaluate", self.path, error)
            yield
        finally:
            os.close(descriptor)

    def owner(self, spec: RunSpec) -> RunSpec | None:
        """This run as the folder names it; None: the folder is nobody's yet. Nothing is written.

        One data set can be named in two ways, relative to here and from the root; the run keeps the
        name, and with it the hash, that it began with. A data set that is not there now is not
        compared with the one that was, nor one of which an earlier version kept no note.

        Raises:
            RunError: it holds another run, or what is no run, or was learned from another data set
                that lay where this one does.
        """
        if not self._config.exists():
            if self.path.is_file() or (self.path.is_dir() and self._strangers()):
                raise RunError(f"{self.path} holds other files and no run; name another folder")
            return None
        try:
            found = json.loads(self._config.read_text(encoding="utf-8"))
            recorded = str(found["hash"])
            named = spec.model_copy(update={"data": Path(found["data"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self._config} cannot be read as a run's configuration ({error!r}); name another "
                "folder, or delete this one"
            ) from error
        there = Path(found.get("data_at", named.data))
        renamed = named.hash == recorded and there.resolve() == spec.data.resolve()
        if spec.hash == recorded or renamed:
            self._check_content(spec, str(found.get("data_content", "")))
            return spec if spec.hash == recorded else named
        raise RunError(
            f"{self.path} holds results of another configuration; it differs in "
            f"{', '.join(_differing(spec, found)) or 'keys of another version'}: name another "
            "folder, or delete this one"
        )

    def claim(self, spec: RunSpec) -> RunSpec:
        """Make the folder this run's, or make sure that it is, and rid it of unfinished writes.

        Returns:
            The run as the folder names it; see `owner`.

        Raises:
            RunError: it holds another run, or cannot be written.
        """
        named = self.owner(spec)
        if self.path.is_dir():
            sweep(list(self.path.glob(".*.part")) + list(self.path.glob("*/.*.part")))
        if named is None:
            told = {"hash": spec.hash, "data_at": str(spec.data.resolve())}
            told["data_content"] = _content(spec)
            write_json(self._config, {**told, **spec.model_dump(mode="json")})
        return named or spec

    def begin_from(self, content: str, version: str, source: str) -> None:
        """Note the trained weights that the run goes on from, or make sure that they are the same.

        Args:
            content: SHA-256 of their tensors.
            version: names them.
            source: where they came from.

        Raises:
            RunError: the run began from others, or the note cannot be read or written.
        """
        path = self.path / "start.json"
        if not path.exists():
            write_json(path, {"content": content, "version": version, "source": source})
            return
        try:
            there: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
            began = there["content"], there["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{path} cannot be read ({error!r}); delete the run's folder") from error
        if began[0] != content:
            raise RunError(
                f"{self.path} began from weights {began[1]} ({began[0][:12]}), and {source} holds "
                f"{version} ({content[:12]}) now: put those back, or name another folder"
            )

    def _check_content(self, spec: RunSpec, began: str) -> None:
        now = _content(spec)
        if began and now and began != now:
            before, holds = (one.partition(" ")[2] or one[:12] for one in (began, now))
            raise RunError(
                f"{self.path} learned from {before}, and {spec.data} holds {holds} now, or its "
                "table changed: put that one back, name another folder, or delete this one"
            )

    def _strangers(self) -> list[Path]:
        there = self.path.iterdir()
        return [p for p in there if not (p.name.startswith(".") and p.suffix == ".part")]

    def frames_file(self, task: int) -> Path:
        """The frames that were scored after a task."""
        name = "untrained" if task == UNTRAINED else f"{task:03d}"
        return self.path / "frames" / f"{name}.csv"

    def is_scored(self, task: int) -> bool:
        """Whether all of a task's scores are there."""
        return self.frames_file(task).exists()

    def write_frames(
        self,
        task: int,
        rows: Iterable[FrameRow],
        curves: Mapping[int, Curve],
        groups: Sequence[Curve] = (),
    ) -> None:
        """Write the scores after a task; ``curves`` by test task, ``groups`` by group of clips."""
        path = self.frames_file(task)
        told: dict[str, object] = {str(k): list(curve) for k, curve in curves.items()}
        if groups:
            told[_GROUPS] = [list(curve) for curve in groups]
        write_json(path.with_suffix(".json"), told)
        write_text(path, to_csv(rows, FrameRow))

    def write_examples(self, task: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Write what a person would look at after a task; see `ClipScorer.examples`."""
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)  # pyright: ignore[reportArgumentType]
        write_bytes(self.path / "examples" / f"{task:03d}.npz", data.getvalue())

    def read_frames(self, task: int) -> tuple[list[FrameRow], dict[int, Curve]]:
        """What `write_frames` wrote."""
        path = self.frames_file(task)
        curves = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        by_task = {int(k): Curve(*curve) for k, curve in curves.items() if k != _GROUPS}
        return read_csv(path, FrameRow), by_task

    def read_groups(self, task: int) -> list[Curve]:
        """The curves of `write_frames` by group; none where they were not kept."""
        path = self.frames_file(task).with_suffix(".json")
        told = json.loads(path.read_text(encoding="utf-8"))
        return [Curve(*curve) for curve in told.get(_GROUPS, [])]


def _content(spec: RunSpec) -> str:
    """`content_of` the run's data; "" where it is not there."""
    with suppress(DatasetError, OSError):
        folder = find_subset(spec.data, spec.subset)
        return content_of(spec.data, folder) if folder else ""
    return ""


def _differing(spec: RunSpec, found: Mapping[str, Any]) -> list[str]:
    """The keys in which a configuration on disk is another than a run's, defaults filled in."""
    with suppress(ValidationError):
        own = {key: value for key, value in found.items() if key in RunSpec.model_fields}
        found = RunSpec.model_validate(own).model_dump(mode="json")
    told = spec.model_dump(mode="json")
    keys = [key for key in (*told, *(k for k in found if k not in told)) if key not in _ASIDE]
    return [key for key in keys if told.get(key) != found.get(key)]


def to_csv(rows: Iterable[Any], kind: type) -> str:
    """Dataclasses as CSV; numbers are written so that they are read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    writer.writerows(astuple(row) for row in rows)
    return text.getvalue()


def read_csv(path: Path, kind: type[Any]) -> list[Any]:
    """What `to_csv` wrote.

    Raises:
        RunError: the file is something else.
    """
    types = {field.name: field.type for field in fields(kind)}
    of = {"int": int, "float": float, "str": str}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                kind(**{name: of[str(types[name])](value) for name, value in row.items()})
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} cannot be read as scores ({error}); delete the run") from error


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; NaN must have become None."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: under another name, synced, then renamed.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Inside, what the system says against writing a file is told with its name and a remedy.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written ({error}); free space or mend the folder, then run the "
            "same command again: it goes on where it was"
        ) from error
