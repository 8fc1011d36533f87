"""A learner in service to be put through its paces: its spool, its store, its clocks, its clips."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import contextmanager
from pathlib import Path

import torch
from atlasd.daemon.labelclips import write_clip
from atlasd.daemon.labels import pack_stored
from atlasd.daemon.learning import Learning
from atlasd.daemon.learnstore import LearnStore
from atlasd.daemon.notices import Happening, LearningRules, Publication
from atlasd.daemon.onlinelearner import LearnSettings
from atlasd.daemon.spool import Spool
from atlasd.streams.clips import LabeledClip
from atlasd.streams.toyworld import make_clip
from served import tiny_network

NS = 1_000_000_000
SETTINGS = LearnSettings(method="atlas", lr=3e-3, passes=1, frames=8)
RULES = LearningRules(clips=2, wait_s=5, canary_drop=0.1, canary_wait_s=7, checkpoint_s=0)


def toy(seed: int, category: str = "bell") -> LabeledClip:
    made = make_clip(seed, size_px=64, kind="plain").labeled_clip()
    return dataclasses.replace(made, category=category, clip_id=f"clip-{seed}")


def short_toy(seed: int, category: str = "bell") -> LabeledClip:
    """Two frames, which are learned in no time."""
    made = toy(seed, category)
    clip = dataclasses.replace(made.clip, samples=made.clip.samples[:2])
    return dataclasses.replace(made, clip=clip, masks=made.masks[:2])


def inverted(clip: LabeledClip) -> LabeledClip:
    return dataclasses.replace(clip, masks=1 - clip.masks, clip_id=f"{clip.clip_id}-inverted")


def base():
    return tiny_network()


class Bench:
    """A learner with its spool, its store and clocks that stand still."""

    def __init__(
        self,
        folder: Path,
        settings=SETTINGS,
        rules=RULES,
        network=None,
        importance=None,
        max_clips=10_000,
        **more,
    ):
        self.more = more
        self.importance = importance
        self.folder, self.settings, self.rules = folder, settings, rules
        self.network = network or base()
        self.time_ns = 0
        self.spool = Spool(folder / "spool", max_clips=max_clips, clock=lambda: self.time_ns)
        self.told: list[Publication | Happening] = []
        self.begin()

    def begin(self):
        """As a new process does."""
        self.store = LearnStore(self.folder / "learned", keep=3)
        self.learning = Learning(
            self.network,
            self.settings,
            self.rules,
            self.spool,
            self.store,
            self.told.append,
            importance=self.importance,
            clock=lambda: self.time_ns,
            now=lambda: self.time_ns,
            **self.more,
        )
        return self.learning

    def put(self, *clips: LabeledClip):
        for clip in clips:
            self.spool.append(clip.clip_id, pack_stored(write_clip(clip)))

    def turns(self) -> int:
        return sum(1 for _ in itertools.takewhile(lambda _: self.learning.turn(), range(1000)))

    def wait(self, seconds: float):
        self.time_ns += round(seconds * NS)

    @property
    def publications(self) -> list[Publication]:
        return [n for n in self.told if isinstance(n, Publication)]

    @property
    def kinds(self) -> list[str]:
        return [n.kind for n in self.told if isinstance(n, Happening)]

    def notice(self, kind: str) -> Happening:
        """The latest of its kind."""
        return next(n for n in reversed(self.told) if isinstance(n, Happening) and n.kind == kind)

    def states(self):
        return self.spool.status().clips


def taught(bench: Bench, clips: int) -> Bench:
    """Two clips a batch; the last one waits to be judged after it is learned: it is not kept."""
    bench.put(*(short_toy(k) for k in range(clips)))
    bench.turns()
    bench.learning.checkpoint()
    return bench


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(BaseException):
    """The process ends here; nothing that it would still do happens."""


class Part:
    """Enters parts of the work, and fails in a chosen one."""

    def __init__(self, where: str = "forward"):
        self.where = where
        self.log: list[str] = []
        self.fails: BaseException | None = None

    @contextmanager
    def __call__(self, name: str):
        self.log.append(name)
        if self.fails is not None and name == self.where:
            raise self.fails
        yield
