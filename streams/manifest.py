"""A protocol as data: what is asked for, and the tasks that it came to, on disk with their hash.

A `Protocol` says what somebody wants; a `Manifest` says clip by clip what is learned when and what
is scored, so that a run can be repeated on it whatever this program draws by then.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

FORMAT = 1
DOMAINS = 7

Name = Literal["til", "cil", "dil", "dil-per-category", "task-free"]
Order = Literal["random", "similarity"]
Remainder = Literal["refuse", "drop", "keep"]
Grouping = Literal["paper", "groups", "whole"]

_SPLITS = {"til": "11-2", "cil": "11-2", "task-free": "31-5"}
_REMAINDERS: dict[str, Remainder] = {"til": "refuse", "cil": "refuse", "task-free": "drop"}
_SPLIT = re.compile(r"([1-9][0-9]{0,5})-([1-9][0-9]{0,5})")


class ProtocolError(ValueError):
    """What was asked for, or a manifest, that cannot be: all that is wrong with it.

    Attributes:
        lines: one for each fault: what came, what is allowed, what to do.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class Protocol:
    """What somebody asks for. All faults are told at once, before any data is read.

    The protocols are those of the paper (arXiv 2603.08967, Tables 1 and 2), its gaps filled as
    stated at each; see `protocols.make_manifests`.

    Attributes:
        name: ``til`` and ``cil`` bring new classes with each task (the stream is the same; in
            ``til`` the task is told at test time); ``dil`` brings one domain after the other over
            one set of classes; ``dil-per-category`` brings the clips of each category in chunks,
            one manifest a category; ``task-free`` brings clips in chunks and tells no task.
        split: ``B-I``, from 1: B classes (``task-free``: clips) in the first task, I in each later
            one. "": the paper's, 11-2 or 31-5. The two of ``dil`` have none.
        order: ``random``, as in the paper, or ``similarity``: neighbours are similar by features.
        seed: of all draws, from 0.
        tasks: how many, from 1; the rest is left over. None: ``til``, ``cil`` all that the split
            makes; ``task-free`` likewise, but of 31-5 at most the paper's 50 (296 clips would make
            54) unless ``remainder`` says that all are used; the two of ``dil`` 7.
        remainder: what becomes of classes or clips that do not fill a task: ``refuse``, ``drop``
            (they are listed as left over) or ``keep`` (in a last, smaller task). None: ``til`` and
            ``cil`` refuse, ``task-free`` drops. The two of ``dil`` have none.
        disjoint_percent: i-Blurry's N, 0 to 100: classes (without tasks of classes: clips) that
            keep sharp boundaries.
        blurry_percent: i-Blurry's M, 0 to 100: clips of the others whose slots are permuted.
        soft_clips: how far, in clips, each boundary is softened to either side; from 0.
            See `blur.blur` and `blur.soften`.

    Raises:
        ProtocolError: one of these is not as stated.
    """

    name: Name
    split: str = ""
    order: Order = "random"
    seed: int = 0
    tasks: int | None = None
    remainder: Remainder | None = None
    disjoint_percent: float = 50.0
    blurry_percent: float = 0.0
    soft_clips: int = 0

    def __post_init__(self) -> None:
        if faults := list(self._faults()):
            raise ProtocolError(faults)
        fixed = self.name in _SPLITS
        values = {
            "split": self.split or _SPLITS.get(self.name, ""),
            "tasks": self.tasks if self.tasks or fixed else DOMAINS,
            "remainder": self.remainder or _REMAINDERS.get(self.name),
            "disjoint_percent": float(self.disjoint_percent),  # 50 and 50.0 have one hash
            "blurry_percent": float(self.blurry_percent),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def by_class(self) -> bool:
        """Whether tasks bring new classes."""
        return self.name in {"til", "cil"}

    @property
    def needs_features(self) -> bool:
        """Whether clips must be compared."""
        return self.name == "dil" or self.order == "similarity"

    def _faults(self) -> Iterable[str]:
        choices = (
            ("protocol", self.name, get_args(Name)),
            ("order", self.order, get_args(Order)),
            ("remainder", self.remainder, (None, *get_args(Remainder))),
        )
        for what, value, allowed in choices:
            if value not in allowed:
                yield f"{what} is {value!r}; allowed are {', '.join(map(str, allowed))}"
        if self.split and not _SPLIT.fullmatch(self.split):
            yield (
                f"split is {self.split!r}; it must be 'B-I', two whole numbers from 1: B in the "
                "first task, I in each later one, as in 11-2"
            )
        if self.name in {"dil", "dil-per-category"}:
            for what, value in (("split", self.split), ("remainder", self.remainder)):
                if value:
                    yield f"{what} is {value!r}; {self.name} has none, its number of tasks says all"
        lowest = (
            ("seed", self.seed, 0),
            ("tasks", self.tasks, 1),
            ("soft_clips", self.soft_clips, 0),
        )
        for what, number, least in lowest:
            if number is not None and number < least:
                yield f"{what} is {number}; it must be at least {least}"
        percents = (
            ("disjoint_percent (N)", self.disjoint_percent),
            ("blurry_percent (M)", self.blurry_percent),
        )
        for what, percent in percents:
            if not 0 <= percent <= 100:
                yield f"{what} is {percent}; it must be 0 to 100"


@dataclass(frozen=True, slots=True)
class Task:
    """One segment of the stream.

    Attributes:
        index: from 0.
        name: for people.
        train: ids of its clips in the order in which they come.
        test: ids of the clips that it is tested on, at least one.
        val: ids of the clips that select; there may be none.
        classes: names of those that are new: in ``til`` and ``cil`` the task's own (clips of others
            may have come in where boundaries are blurred); in both ``dil`` all in the first task
            and none later, as the label set does not change; in ``task-free`` none.
        domain: in ``dil`` the number of its cluster, else None.
    """

    index: int
    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    val: tuple[str, ...]
    classes: tuple[str, ...]
    domain: int | None = None


@dataclass(frozen=True, slots=True)
class ScoreGroup:
    """Test clips that are scored together.

    Attributes:
        grouping: ``paper`` has one group a task, the task's own test clips; ``whole`` is all of
            them at once; ``groups``, in ``task-free``, is 10 groups of about equal size, since
            single clips make noise.
        tasks: the tasks that it belongs to.
        clips: ids.
    """

    grouping: Grouping
    tasks: tuple[int, ...]
    clips: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """A training clip that a blurry or soft boundary drew.

    Attributes:
        clip: its id.
        home: the task that it belongs to.
        task: the task that it comes in; may be its home.
    """

    clip: str
    home: int
    task: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tasks of a protocol, clip by clip.

    Attributes:
        protocol: what was asked for, defaults filled in.
        source: id or path of the data set, as the caller named it.
        tasks: in order.
        left_over: ids of training clips in no task.
        classes: all that the tasks bring, in the order of their coming (both ``dil`` and
            ``task-free``: sorted); none where the data set names none.
        score_groups: see `ScoreGroup`.
        drawn: the training clips that blurry and soft boundaries drew, in the stream's order.
        category: in ``dil-per-category`` the one that this is about, else "".

    Raises:
        ProtocolError: a training clip twice, a task without training or test clips, or a task out
            of order.
    """

    protocol: Protocol
    source: str
    tasks: tuple[Task, ...]
    left_over: tuple[str, ...]
    classes: tuple[str, ...]
    score_groups: tuple[ScoreGroup, ...]
    drawn: tuple[Move, ...] = ()
    category: str = ""

    def __post_init__(self) -> None:
        counts = Counter((*self.left_over, *(clip for task in self.tasks for clip in task.train)))
        faults = [f"training clip {clip!r} comes {n} times" for clip, n in counts.items() if n > 1]
        for place, task in enumerate(self.tasks):
            if task.index != place:
                faults.append(f"task {task.index} stands at place {place}")
            faults += [
                f"task {place} has no {what} clips"
                for what, clips in (("training", task.train), ("test", task.test))
                if not clips
            ]
        if faults:
            raise ProtocolError(faults)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Training clips of each task."""
        return tuple(len(task.train) for task in self.tasks)

    @property
    def moved(self) -> tuple[Move, ...]:
        """The drawn clips that come in another task than their own."""
        return tuple(move for move in self.drawn if move.home != move.task)

    @property
    def sha256(self) -> str:
        """SHA-256 of all of it, as hexadecimal digits."""
        return _hash(self._document())

    def groups(self, grouping: Grouping) -> tuple[ScoreGroup, ...]:
        """The groups of one grouping, in the order of their tasks; none where it has none."""
        return tuple(group for group in self.score_groups if group.grouping == grouping)

    def write(self, path: Path) -> None:
        """Writes JSON, so that the file is whole or not there; folders are made.

        Raises:
            OSError: it cannot be written.
        """
        document = {**self._document(), "sha256": self.sha256}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(document, file, ensure_ascii=False, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads what `write` wrote.

        Raises:
            ProtocolError: it cannot be read, is of another format, or was changed.
        """
        try:
            document: object = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ProtocolError([f"{path}: cannot be read as a manifest ({error})"]) from error
        if not isinstance(document, dict) or "format" not in document:
            raise ProtocolError([f"{path}: is JSON, but no manifest of a protocol"])
        if document["format"] != FORMAT:
            raise ProtocolError(
                [f"{path}: is of format {document['format']!r}; this program reads {FORMAT}"]
            )
        named, found = document.pop("sha256", None), _hash(document)
        if named != found:
            raise ProtocolError(
                [
                    f"{path}: was changed after it was written: it names SHA-256 {named}, its "
                    f"content has {found}; restore it, or make the manifest anew"
                ]
            )
        del document["format"]
        try:
            return TypeAdapter(cls).validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            raise ProtocolError([f"{path}: is no whole manifest ({error})"]) from error

    def _document(self) -> dict[str, object]:
        return {"format": FORMAT, **asdict(self)}


def describe(manifest: Manifest) -> list[dict[str, str | int]]:
    """A manifest as a table, a row a task.

    Returns:
        Rows of ``task`` (from 0), ``name``, ``new_classes`` (joined by commas), ``train``, ``val``,
        ``test`` (numbers of clips) and ``moved`` (training clips that belong to another task).
    """
    moved = Counter(move.task for move in manifest.moved)
    return [
        {
            "task": task.index,
            "name": task.name,
            "new_classes": ", ".join(task.classes),
            "train": len(task.train),
            "val": len(task.val),
            "test": len(task.test),
            "moved": moved[task.index],
        }
        for task in manifest.tasks
    ]


def _hash(document: dict[str, object]) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode()).hexdigest()
