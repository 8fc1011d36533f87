"""The loop over a run's tasks: learn one, write what the rest depends on, score.

A run that is interrupted goes on: at each task's end everything that the rest depends on is written
(`RunFolder.boundary`), within a task the trainer's state.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.adapting import batch_seed, make_room
from ..model.checkpoints import read_tensors, write_tensors
from ..model.consolidator import consolidator_of
from ..model.epochs import fit
from ..model.method import Batch, Method, SegmentData
from ..model.network import Network
from ..model.presets import PRESETS
from ..model.training import Settings, Trainer
from ..streams.manifest import Manifest, Task
from .clipfeed import Arrival, ClipFeed
from .clipscore import ClipScorer, PrequentialRow
from .clipstore import ClipStore
from .machine import machine, peak_memory_mb
from .runfolder import (
    UNTRAINED,
    Curve,
    FrameRow,
    RunError,
    RunFolder,
    read_csv,
    to_csv,
    write_json,
    write_text,
    writing,
)
from .runnetwork import loss_of
from .runspec import RunSpec

Progress = Callable[[str, float], None]
"""Called as (what is being done, share of the run that is done)."""

_EXAMPLES = 8
"""Tasks of which a test clip is kept to look at."""


@dataclass(frozen=True, slots=True)
class TaskSegment:
    """What a method is told of a task; see `method.Segment`."""

    index: int
    classes: tuple[int, ...]
    known: int


class TaskLoop:
    """A run in memory."""

    def __init__(
        self,
        spec: RunSpec,
        files: RunFolder,
        network: Network,
        method: Method,
        store: ClipStore,
        manifest: Manifest,
        progress: Progress,
        save_s: float,
    ) -> None:
        self.spec, self.files, self.network = spec, files, network
        self.method, self.store, self.manifest = method, store, manifest
        self.tasks = manifest.tasks[: spec.tasks or None]
        self.shown = self.tasks[:: -(-len(self.tasks) // _EXAMPLES)]
        self.progress = progress
        self.save_s = save_s
        self.labeled = spec.subset == "s4"
        untold = spec.schedule == "stream" and spec.consolidate != "oracle"
        self.as_daemon = untold and (self.labeled or bool(spec.start))
        self.groups = 0
        self.seen = self._classes_after_tasks()
        self.rows = self._rows()
        self.scorer = ClipScorer(network, method, store, spec)
        method.weigh_classes(spec.class_weight)
        method.prepare(network)
        self.moving = {n for n, p in network.named_parameters() if p.requires_grad}
        self.trainer: Trainer | None = None
        self.costs: dict[str, float] = {"train_s": 0.0, "score_s": 0.0, "steps": 0.0, "frames": 0.0}
        self.began = time.monotonic()

    def to_the_end(self) -> None:
        """Learn and score all tasks that are left."""
        self._recall_costs()
        if not self.files.is_scored(UNTRAINED):
            self._score(UNTRAINED)
        for task in self.tasks[self._restore() :]:
            self._learn(task)
        for task in self.tasks:
            if not self.files.is_scored(task.index):
                raise RunError(f"{self.files.path}: scores after task {task.index} are missing")
        trained = sum(p.numel() for n, p in self.network.named_parameters() if n in self.moving)
        self.costs |= {
            "trained_parameters": float(trained),
            "peak_memory_mb": peak_memory_mb(self.spec.device),
            "method_state_mb": _megabytes(self.method.state_dict()),
        }
        if self.trainer is not None and self.spec.consolidate != "oracle":
            self.costs["consolidations"] = float(self.trainer.consolidations)
        told = {**self.costs, "machine": machine(self.spec.device)}
        write_json(self.files.costs, told)

    def _classes_after_tasks(self) -> list[tuple[str, ...]]:
        """The head's classes after each task, in the order in which they come.

        Where boundaries are blurred, a class may come in before its own task. Where nobody tells
        boundaries, each comes with the first clip of it, as the daemon's do.
        """
        seen = list(self.network.preset.categories)
        after: list[tuple[str, ...]] = []
        for task in self.tasks:
            here = tuple(filter(None, map(self._category, task.train)))
            if self.labeled:
                names = here if self.as_daemon else (*task.classes, *here)
                seen += [name for name in dict.fromkeys(names) if name not in seen]
            after.append(tuple(seen))
        return after

    def _category(self, clip: str) -> str | None:
        """The class that makes room for itself; a daemon is told none of a clip without a sound."""
        entry = self.store.entries[clip]
        untold = self.as_daemon and entry.kind == "negative"
        return entry.category if self.labeled and not untold else None

    def _rows(self) -> dict[str, int]:
        """Rows of the head by class; a class that no clip brings in comes after all others."""
        late = self.manifest.classes if self.as_daemon and self.labeled else ()
        return {name: row for row, name in enumerate(dict.fromkeys((*self.seen[-1], *late)))}

    # -- learning -----------------------------------------------------------------------------

    def _learn(self, task: Task) -> None:
        self._begin(task)
        feed = self._feed(task)
        data = SegmentData(feed, self.spec.device)
        self.began = time.monotonic()
        told = self.spec.consolidate == "oracle"
        trains = any(p.requires_grad for p in self.network.parameters())
        if trains or not told:  # untold, a frozen network's method learns from the steps
            self._train(task, feed)
        elif self.spec.schedule == "stream":
            self._watch(task, feed)
        if told:
            self.method.consolidate(data)
        data.close()
        self.network.eval()
        self._count_time()
        self._save(task)
        self._score(task.index)

    def _begin(self, task: Task) -> None:
        """Make room for the task's classes, adapt the decoder, and tell the method.

        Where nobody tells boundaries there is no room before a class comes; see `_arrive`.
        """
        torch.manual_seed(_seed(self.spec.seed, task.index))
        known = len(self.network.preset.categories)
        if not self.as_daemon:
            self._grow(self.seen[task.index])
        self._adapt(task.index)
        told = self.spec.consolidate == "oracle"
        self.method.begin(self._segment(task, known) if told else None)

    def _grow(self, categories: Sequence[str]) -> None:
        if categories:
            self.network.grow(categories)
            self.network.to(self.spec.device)
            self._move_head()

    def _move_head(self) -> None:
        self.moving |= {n for n, _ in self.network.named_parameters() if n.startswith("head.")}

    def _arrive(self, trainer: Trainer, group: int, clips: Sequence[str]) -> None:
        """Before clips are learned together: what the live learner does before a batch of them."""
        torch.manual_seed(batch_seed(self.spec.seed, self.groups + group))
        make_room(self.network, trainer, map(self._category, clips))
        self._check_rows(self.network.preset.categories)
        self._move_head()

    def _check_rows(self, categories: Sequence[str]) -> None:
        """Refuse a head whose rows are not those that clips are labeled with."""
        if any(self.rows.get(name) != row for row, name in enumerate(categories)):
            raise RunError(
                f"{self.files.path}: the head's classes are {', '.join(categories)}, and clips are "
                f"labeled by {', '.join(self.rows)}: a clip lacks its mask; see `atlasd dataset "
                f"check {self.spec.data}`"
            )

    def _adapt(self, index: int) -> None:
        """Before the second task, put LoRA on the decoder if the run says so.

        The moment matters: LoRA is drawn from the task's seed after the class head's new rows.
        """
        spec, network = self.spec, self.network
        if spec.decoder == "full" or index == 0 or network.decoder_adapted:
            return
        network.adapt_decoder(PRESETS[spec.network].vary(spec.vary).lora_rank)
        self.moving |= {n for n, _ in network.named_parameters() if n.startswith("decoder.")}

    def _segment(self, task: Task, known: int = 0) -> TaskSegment:
        names = task.classes if self.spec.protocol in ("til", "cil") else self.manifest.classes
        rows = tuple(self.rows[name] for name in names) if self.labeled else ()
        return TaskSegment(task.index, rows, known)

    def _feed(self, task: Task) -> ClipFeed:
        spec = self.spec
        entries = self.store.entries
        labels = {
            clip: self.rows[entries[clip].category or ""]
            for clip in task.train
            if self.labeled and entries[clip].kind != "negative"
        }
        arrival = Arrival(spec.together, spec.passes, self.as_daemon)
        return ClipFeed(
            self.store,
            task.train,
            labels,
            batch=spec.batch,
            seed=(spec.seed, task.index),
            variants=spec.variants,
            clip_frames=self.network.clip_frames,
            raw_sounds=self.method.mixes_clips,
            arrival=arrival if spec.schedule == "stream" else None,
        )

    def _train(self, task: Task, feed: ClipFeed) -> None:
        notes: dict[str, int | str] = {"task": task.index}
        if self.trainer is None or self.spec.consolidate == "oracle":
            self.trainer = self._trainer(feed.steps, notes)
        else:
            self.trainer.next_part(feed.steps, notes)
        trainer = self.trainer
        rows = self._resume(trainer, feed)
        total = trainer.settings.epochs * trainer.steps_per_epoch
        streaming = self.spec.schedule == "stream"

        def batches(epoch: int, first: int) -> Iterator[Batch]:
            for step, batch in enumerate(feed(epoch, first), first):
                if streaming and feed.is_new(step):
                    rows.extend(self.scorer.prequential(batch, task.index, step))
                if self.as_daemon and (come := feed.come(step)):
                    self._arrive(trainer, *come)
                yield batch

        def on_step(step: int, scalars: Mapping[str, float]) -> None:
            self.costs["steps"] += 1
            self._tell(f"task {task.index + 1}: loss {scalars['loss']:.3f}", task, step / total)

        def save() -> None:
            if streaming:  # before the state that has learned them; what is too much is dropped
                self._write_prequential(rows)
            self._count_time()
            with writing(self.files.state):
                trainer.save(self.files.state)

        fit(trainer, batches, save=save, on_step=on_step, save_every_s=self.save_s)
        if streaming:
            self._write_prequential(rows)
        self.groups += feed.groups

    def _count_time(self) -> None:
        """Note what learning has cost so far, so that it is known if the run is cut short."""
        now = time.monotonic()
        self.costs["train_s"] += now - self.began
        self.began = now
        write_json(self.files.costs, self.costs)

    def _recall_costs(self, before: Mapping[str, float] | None = None) -> None:
        """Go on counting where an interrupted run was, or else where its last boundary was."""
        held = dict(before or {})
        with suppress(OSError, ValueError):
            held |= json.loads(self.files.costs.read_text(encoding="utf-8"))
        self.costs |= {name: float(held[name]) for name in self.costs if name in held}

    def _trainer(self, steps: int, notes: Mapping[str, int | str]) -> Trainer:
        spec = self.spec
        settings = Settings(
            epochs=1 if spec.schedule == "stream" else spec.epochs,
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            clip_norm=spec.clip_norm,
            bfloat16=spec.bfloat16,
        )
        return Trainer(
            self.network,
            loss_of(spec, self.network),
            settings,
            steps,
            self.files.path,
            method=self.method,
            consolidator=consolidator_of(spec.consolidate),
            seed=_seed(spec.seed, "method"),
            notes=notes,
        )

    def _resume(self, trainer: Trainer, feed: ClipFeed) -> list[PrequentialRow]:
        """Go on with a task that was begun; the frames of its stream that were predicted before."""
        made = trainer.steps_in(self.files.state)
        if made is None:
            return self._prequential_before(trainer.notes["task"], 0)
        if self.as_daemon:
            for come in filter(None, map(feed.come, range(made))):
                self._arrive(trainer, *come)
        trainer.restore(self.files.state)
        return self._prequential_before(trainer.notes["task"], trainer.step_count)

    def _watch(self, task: Task, feed: ClipFeed) -> None:
        """Score a stream's part that a frozen network passes through as it is."""
        rows = self._prequential_before(task.index, 0)
        for step, batch in enumerate(feed(0, 0)):
            if feed.is_new(step):
                rows.extend(self.scorer.prequential(batch, task.index, step))
        self._write_prequential(rows)

    def _prequential_before(self, task: int | str, step: int) -> list[PrequentialRow]:
        path = self.files.path / "prequential.csv"
        rows: list[PrequentialRow] = read_csv(path, PrequentialRow) if path.exists() else []
        return [row for row in rows if (row.task, row.step) < (int(task), step)]

    def _write_prequential(self, rows: Sequence[PrequentialRow]) -> None:
        write_text(self.files.path / "prequential.csv", to_csv(rows, PrequentialRow))

    # -- boundaries ---------------------------------------------------------------------------

    def _save(self, task: Task) -> None:
        """Write all that the tasks after this one depend on."""
        tensors = {
            f"network.{name}": p.detach()
            for name, p in self.network.named_parameters()
            if name in self.moving
        }
        manifest: dict[str, Any] = {}
        if self.trainer is not None and self.spec.consolidate != "oracle":
            held, manifest = self.trainer.state()
            tensors |= {f"trainer.{name}": value for name, value in held.items()}
        else:
            tensors |= {f"method.{n}": value for n, value in self.method.state_dict().items()}
        told = {
            "task": task.index,
            "categories": list(self.network.preset.categories),
            "groups": self.groups,
            "costs": self.costs,
            "trainer": manifest,
        }
        with writing(self.files.boundary):
            write_tensors(self.files.boundary, tensors, {"boundary": json.dumps(told)})

    def _restore(self) -> int:
        """Go on after the last boundary; return the next task's number."""
        if not self.files.boundary.exists():
            return 0
        tensors, metadata = read_tensors(self.files.boundary)
        told = json.loads(metadata["boundary"])
        if self.as_daemon and "groups" not in told:
            raise RunError(
                f"{self.files.boundary} is of an earlier version, which made room for classes at "
                "a task's start; delete the run's folder and make it again"
            )
        self._grow(told["categories"])
        self._adapt(told["task"])
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, value in _under("network.", tensors).items():
                own[name].copy_(value)
        self.groups = told.get("groups", 0)  # states of before lack it, and do not need it
        self._recall_costs(told["costs"])
        task = self.tasks[told["task"]]
        if held := told["trainer"]:  # before the method may freeze what the trainer knows
            self.trainer = self._trainer(held["steps_per_epoch"], held["notes"])
            self.trainer.load_state(_under("trainer.", tensors), held, str(self.files.boundary))
        else:
            self.method.load_state_dict(_under("method.", tensors))
        self.network.eval()
        if not self.files.is_scored(task.index):
            self._score(task.index)
        return task.index + 1

    # -- scores -------------------------------------------------------------------------------

    def _score(self, after: int) -> None:
        began = time.monotonic()
        everything = after == UNTRAINED or self.spec.protocol == "task-free"
        last = len(self.tasks) if everything else after + 2
        rows: list[FrameRow] = []
        curves: dict[int, NDArray[np.float64]] = {}
        for task in self.tasks[:last]:
            clips = task.test if self.spec.score == "test" else task.val
            found, curves[task.index] = self.scorer.score(
                clips, after, task.index, self._segment(task), self.rows
            )
            rows += found
            self._tell(f"scoring after task {after + 1}", self.tasks[max(after, 0)], 1.0)
        if after != UNTRAINED:
            shown = [task for task in self.shown if task.index <= after]
            clips = [self._example(task) for task in shown]
            segments = [self._segment(task) for task in shown]
            self.files.write_examples(after, self.scorer.examples(clips, segments))
        pooled = {task: self.scorer.pooled(own) for task, own in curves.items()}
        groups = self._pooled_groups(rows, np.concatenate(list(curves.values())))
        self.files.write_frames(after, rows, pooled, groups)
        self.costs["score_s"] += time.monotonic() - began
        self.costs["frames"] += len(rows)
        write_json(self.files.costs, self.costs)

    def _pooled_groups(self, rows: Sequence[FrameRow], curves: NDArray[np.float64]) -> list[Curve]:
        """Curves of F over the groups of test clips that the manifest deals, if all are scored."""
        if self.spec.tasks or self.spec.score != "test":
            return []
        at: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            at.setdefault(row.clip, []).append(number)
        return [
            self.scorer.pooled(curves[[number for clip in group.clips for number in at[clip]]])
            for group in self.manifest.groups("groups")
        ]

    def _example(self, task: Task) -> str:
        """The first test clip in which something sounds, if there is one."""
        sounding = (c for c in task.test if self.store.entries[c].kind != "negative")
        return next(sounding, task.test[0])

    def _tell(self, what: str, task: Task, share: float) -> None:
        sizes = [len(t.train) for t in self.tasks]
        done = sum(sizes[: task.index]) + share * sizes[task.index]
        self.progress(what, done / sum(sizes))


def _seed(*parts: object) -> int:
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "little")


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: t for key, t in tensors.items() if key.startswith(prefix)}


def _megabytes(state: Mapping[str, Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in state.values()) / 2**20
