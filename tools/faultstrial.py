"""A daemon under load that is killed in turn with its learner, and what was seen meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from ..daemon.config import Config, load_config
from ..daemon.journal import read_journal
from ..daemon.labelclient import LabelClient, LabelRefusedError, NoAnswerError
from ..daemon.labelclips import write_clip
from ..daemon.orders import Order
from ..daemon.places import spool_folder
from ..daemon.spooled import ClipState
from ..model import checkpoints
from ..model.presets import WeightsError, build
from ..streams.toyworld import make_clip
from .film import write_film
from .labeler import Labeler
from .livedaemon import DaemonError, LiveDaemon

Victim = Literal["learner", "daemon"]

_CLIPS, _CLIP_PX = 24, 64
_BACKLOG = 8
"""Clips that may be pending; the labeler waits for the learner then."""
_EAGER = 0.25
"""Share of kills that do not wait until all is at work again: they hit it while it starts."""
_ORDERED = 0.5
"""Share of the learner's kills before which a person orders to consolidate."""
_SPREAD_S = 4.0
_ORDER_S = 90.0
_SETTLED_S = 1800.0
_PAUSE_S = 0.5


def trial_config(preset: str, threads: int, folder: Path) -> Config:
    """A daemon that learns small batches, and keeps what it learned every second.

    Args:
        preset: of its network; one without shipped weights gets random ones.
        threads: of the learner.
        folder: for its film, its weights, its sockets, its spool and its checkpoints.
    """
    weights = _weights(preset, folder)
    return load_config(
        overrides=[
            f"source.uri={write_film(folder / 'film.mkv')}",
            f"model.preset={preset}",
            *([] if weights is None else [f"model.weights={weights}"]),
            "model.device=cpu",
            "model.threads=1",
            f"publish.endpoint=ipc://{folder}/bus",
            "publish.wait_for_subscriber_s=0",
            "publish.status_interval_s=0.2",
            "intake.enabled=true",
            f"intake.endpoint=ipc://{folder}/labels",
            f"intake.spool={folder / 'spool'}",
            "learner.enabled=true",
            f"learner.threads={threads}",
            "learner.max_restarts=1000",
            "learner.clips=2",
            "learner.wait_s=1",
            "learner.canary_wait_s=1",
            "learner.checkpoint_s=1",
        ]
    )


def _weights(preset: str, folder: Path) -> Path | None:
    """Random weights that claim to be trained, where none ship."""
    try:
        network = build(preset)
    except WeightsError:
        network = build(preset, trained=False, pretrained=False)
    if network.trained:
        return None
    network.trained = True
    path = folder / f"{preset}.safetensors"
    checkpoints.save(network, path)
    return path


class Trial:
    """A daemon under load, killed in turn with its learner, and what was seen meanwhile.

    Args:
        config: of the daemon, see `trial_config`.
        folder: gets its log.
        seed: of the order and the moments of kills.

    Attributes:
        clips: that the labeler puts in turn.
        kills: so far, by victim.
        granted: ids of clips that the daemon acknowledged, and for each its place in `clips`.
        refused: answers that were refusals, by code.
        deaths: of the learner that nobody ordered.
        first_mask_s: seconds from the start of a daemon after a kill to its first mask.
        learner_back_s: seconds from the learner's kill until it was at work again.
    """

    def __init__(self, config: Config, folder: Path, seed: int) -> None:
        self._config, self._folder, self._seed = config, folder, seed
        self._rng = random.Random(seed)
        self._daemon: LiveDaemon | None = None
        self.clips = tuple(
            write_clip(make_clip(k, size_px=_CLIP_PX, kind="plain").labeled_clip())
            for k in range(_CLIPS)
        )
        self.kills: Counter[Victim] = Counter()
        self.granted: Mapping[str, int] = {}
        self.refused: Mapping[str, int] = {}
        self.deaths = 0
        self.first_mask_s: list[float] = []
        self.learner_back_s: list[float] = []

    def run(self, kills: int, advance: Callable[[Victim], None]) -> None:
        """Kill both as often as told, then let all be learned, and end the daemon.

        Args:
            kills: of each.
            advance: called after each.

        Raises:
            DaemonError: the daemon ended by itself, or the learner was given up or does not come
                back.
        """
        endpoint = self._config.intake.endpoint
        with Labeler(endpoint, self.clips, self._is_full, self._seed) as labeler:
            self.granted, self.refused = labeler.granted, labeler.refused
            for life, learners in enumerate(_lives(kills, self._rng)):
                with LiveDaemon(self._config, self._folder) as daemon:
                    self._daemon = daemon
                    daemon.until(lambda d=daemon: d.first_mask_s is not None, "showing a mask")
                    for _ in range(learners):
                        self._await_moment(daemon)
                        daemon.until(lambda d=daemon: d.learner_is_up, "learning")
                        self._order_consolidation()
                        daemon.kill_learner()
                        self._count("learner", advance)
                    if life < kills:
                        self._await_moment(daemon)
                        daemon.kill()
                        self._count("daemon", advance)
                    else:
                        labeler.finish()
                        self._settle(daemon)
                        daemon.leave()
                self._note(daemon, is_restart=life > 0)

    def _is_full(self) -> bool:
        clips = None if self._daemon is None else self._daemon.clips
        return clips is None or clips.get("pending", 0) >= _BACKLOG

    def _order_consolidation(self) -> None:
        """Now and then, shortly before a kill: carried out once, or refused as the learner died."""
        if self._rng.random() < _ORDERED:
            with (
                LabelClient(self._config.intake.endpoint, timeout_s=_ORDER_S, attempts=1) as client,
                suppress(LabelRefusedError, NoAnswerError),
            ):
                client.order(Order(order="consolidate"))

    def _await_moment(self, daemon: LiveDaemon) -> None:
        """Let some seconds pass, mostly of work, at times of its beginning."""
        if self._rng.random() >= _EAGER:
            daemon.until(lambda: daemon.is_at_work, "at work")
        daemon.listen(self._rng.uniform(0.0, _SPREAD_S))

    def _count(self, victim: Victim, advance: Callable[[Victim], None]) -> None:
        self.kills[victim] += 1
        advance(victim)

    def _settle(self, daemon: LiveDaemon) -> None:
        """Wait until no clip waits and all are kept, but the last ones, which none judges."""
        folder = spool_folder(self._config)
        states: Counter[ClipState] = Counter()
        with LabelClient(self._config.intake.endpoint, timeout_s=_ORDER_S, attempts=1) as client:
            until = time.monotonic() + _SETTLED_S
            while time.monotonic() < until:
                daemon.until(lambda: daemon.is_at_work, "at work")
                journal = read_journal(folder)
                states = Counter(journal.clips.values())
                if not states["pending"] and states["journaled"] <= len(journal.unjudged()):
                    return
                if not states["pending"]:
                    with suppress(LabelRefusedError, NoAnswerError):  # it is asked again
                        client.order(Order(order="checkpoint"))
                daemon.listen(_PAUSE_S)
        raise DaemonError(f"not all clips were learned within {_SETTLED_S:g} s: {dict(states)}")

    def _note(self, daemon: LiveDaemon, is_restart: bool) -> None:
        self.deaths += daemon.deaths
        self.learner_back_s += daemon.learner_back_s
        if is_restart and daemon.first_mask_s is not None:
            self.first_mask_s.append(daemon.first_mask_s)


def _lives(kills: int, rng: random.Random) -> list[int]:
    """How often the learner is killed in each life of the daemon; the last one is not killed."""
    victims: list[Victim] = ["learner", "daemon"] * kills
    rng.shuffle(victims)
    lives = [0]
    for victim in victims:
        if victim == "learner":
            lives[-1] += 1
        else:
            lives.append(0)
    return lives
