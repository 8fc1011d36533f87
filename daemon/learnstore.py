"""What was learned, on disk: one folder a checkpoint, whole or not there.

``learned/000000000012/`` holds what the learner is after batch 12 of the journal:
``weights.safetensors``, a checkpoint like any other (`atlasd segment --set model.weights=...`), and
``state.safetensors``, what learning goes on from, with the best weights before where those are
others. The folder appears under its name by one rename,
after all in it is on disk.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..model import checkpoints
from ..model.checkpoints import read_metadata, read_tensors, tensor_hash, write_tensors
from ..model.network import Network
from ..model.pretrained import WeightsError
from .onlinelearner import Best, LearnState
from .places import make_private

WEIGHTS, STATE = "weights.safetensors", "state.safetensors"
FORMAT: Final = 1
_DIGITS = 12
_DAMAGED = ".damaged"
_BEST = "best."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tally:
    """Of a stream so far.

    Attributes:
        clips: learned.
        score_sum: of J over its frames, each predicted before it was learned.
        frames: that were.
    """

    clips: int = 0
    score_sum: float = 0.0
    frames: int = 0

    def plus(self, clips: int, scores: NDArray[np.float64]) -> Tally:
        """With more clips, and the J of their frames."""
        return Tally(
            self.clips + clips, self.score_sum + float(scores.sum()), self.frames + len(scores)
        )

    @property
    def mean(self) -> float | None:
        """Mean J, the area under the curve of scores at any time; None before the first frame."""
        return self.score_sum / self.frames if self.frames else None


@dataclass(frozen=True, slots=True)
class Learned:
    """What a checkpoint says of itself.

    Attributes:
        version: names the weights.
        parent: the version before it; empty: the base.
        base: content of the base's tensors, which all was learned on.
        method: that learned it.
        cursor: number of the last batch in it, 0 for the base itself.
        tally: of the stream up to there.
        made_ns: when, nanoseconds since 1970.
        lineage: of the checkpoints that began together; see `spool`.
    """

    version: str
    parent: str
    base: str
    method: str
    cursor: int
    tally: Tally = field(default_factory=Tally)
    made_ns: int = 0
    lineage: str = ""

    def is_same_as(self, other: Learned) -> bool:
        """Whether both name the same weights, learned from the same clips."""
        return (self.version, self.lineage) == (other.version, other.lineage)


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that can be read: what it says, and where it lies."""

    learned: Learned
    folder: Path

    @property
    def weights(self) -> Path:
        """Its weights, a checkpoint like any other."""
        return self.folder / WEIGHTS


class LearnStore:
    """Checkpoints of one learner, the latest few kept; no other process may write there.

    Args:
        folder: made, for its owner alone, when the first is written.
        keep: how many, at least 1.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder: Final = folder
        self._keep = keep

    def write(self, learned: Learned, network: Network, state: LearnState) -> Kept:
        """Keep a state; the oldest beyond `keep` are deleted.

        The same checkpoint, where it is there and whole, stays as it is.

        Raises:
            OSError: it cannot be written, as where the disk is full; those before it are as they
                were.
        """
        final = self.folder / f"{learned.cursor:0{_DIGITS}d}"
        part = self.folder / f".{final.name}.part"
        for left in self.folder.glob(".*.part"):  # by a learner that was killed
            shutil.rmtree(left, ignore_errors=True)
        there = self._whole(final)
        if there is not None and there[0].learned.is_same_as(learned):
            return there[0]
        try:
            make_private(part)
            checkpoints.save(
                network,
                part / WEIGHTS,
                version=learned.version,
                parent=learned.parent,
                notes={"method": learned.method, "batch": str(learned.cursor)},
            )
            tensors = _with_best(state)
            told = {
                "format": FORMAT,
                "learned": asdict(learned),
                "state": state.manifest,
                "best": state.best and state.best.version,
                "content": tensor_hash(tensors),
            }
            write_tensors(part / STATE, tensors, {"manifest": json.dumps(told)})
            shutil.rmtree(final, ignore_errors=True)
            part.rename(final)
            _sync(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        for old in self._folders()[: -self._keep]:
            shutil.rmtree(old, ignore_errors=True)
        return Kept(learned, final)

    def newest(self) -> tuple[Kept, LearnState] | None:
        """The newest checkpoint that is whole; what is not is told in the log, and passed over."""
        for folder in reversed(self._folders()):
            if (whole := self._whole(folder)) is not None:
                return whole
        return None

    def find(self, version: str) -> tuple[Kept, LearnState] | None:
        """The checkpoint of a version, None where it is not kept or is damaged."""
        for kept in self.all():
            if kept.learned.version == version:
                return self._whole(kept.folder)
        return None

    def all(self) -> list[Kept]:
        """Those that are kept and can be read, oldest first; tensors are not looked at."""
        return list(self._listed())

    def forget_after(self, cursor: int) -> None:
        """Delete the checkpoints of later batches."""
        for folder in self._folders():
            if int(folder.name) > cursor:
                shutil.rmtree(folder)
        _sync(self.folder)

    def put_away_after(self, cursor: int) -> list[Path]:
        """Rename the checkpoints of later batches, which are damaged, and let people look at them.

        Those that were put away before are deleted.

        Returns:
            Where they lie now.
        """
        late = [folder for folder in self._folders() if int(folder.name) > cursor]
        for old in self.folder.glob("*" + _DAMAGED) if late else ():
            shutil.rmtree(old)
        return [folder.rename(folder.with_name(folder.name + _DAMAGED)) for folder in late]

    def forget_before(self, cursor: int) -> None:
        """Delete the checkpoints of earlier batches."""
        for folder in self._folders():
            if int(folder.name) < cursor:
                shutil.rmtree(folder)
        _sync(self.folder)

    def _listed(self) -> Iterator[Kept]:
        for folder in self._folders():
            try:
                learned, _ = _parsed(read_metadata(folder / STATE))
                yield Kept(learned, folder)
            except (WeightsError, OSError, ValueError, KeyError, TypeError):
                continue

    def _whole(self, folder: Path) -> tuple[Kept, LearnState] | None:
        """What lies there, None where nothing does; what is damaged is told in the log."""
        if not folder.exists():
            return None
        try:
            return self._read(folder)
        except (WeightsError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is damaged and passed over: %s", folder, error)
            return None

    def _read(self, folder: Path) -> tuple[Kept, LearnState]:
        tensors, metadata = read_tensors(folder / STATE)
        learned, told = _parsed(metadata)
        if tensor_hash(tensors) != told["content"]:
            raise WeightsError(f"{folder / STATE}: the tensors are not those that were written")
        checkpoints.read(folder / WEIGHTS)
        return Kept(learned, folder), _state_of(tensors, told)

    def _folders(self) -> list[Path]:
        found = self.folder.glob("[0-9]" * _DIGITS)
        return sorted(path for path in found if path.is_dir())


def _with_best(state: LearnState) -> dict[str, Tensor]:
    best = state.best.tensors if state.best is not None else {}
    return {**state.tensors, **{_BEST + name: tensor for name, tensor in best.items()}}


def _state_of(tensors: dict[str, Tensor], told: dict[str, Any]) -> LearnState:
    version = told.get("best")
    best = {n.removeprefix(_BEST): t for n, t in tensors.items() if n.startswith(_BEST)}
    own = {n: t for n, t in tensors.items() if not n.startswith(_BEST)}
    return LearnState(own, told["state"], None if version is None else Best(version, best))


def _parsed(metadata: dict[str, str]) -> tuple[Learned, dict[str, Any]]:
    told = json.loads(metadata["manifest"])
    if told["format"] != FORMAT:
        raise WeightsError(f"its format is {told['format']}; this program reads {FORMAT}")
    said: dict[str, Any] = dict(told["learned"])
    tally = Tally(**said.pop("tally"))
    return Learned(**said, tally=tally), told


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
