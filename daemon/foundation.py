"""What the learners of one stream are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..model.baseimportance import BaseImportance
from ..model.checkpoints import tensor_hash, tensors_of
from ..model.network import Network
from ..model.training import Part
from .learnstore import Learned
from .onlinelearner import LearnSettings, LearnState, OnlineLearner


class LeavingError(Exception):
    """What is at work is left as it is, since the learner is to leave."""


class Foundation:
    """A deployed network, and how it is to learn: the same from the first learner to the last.

    Args:
        base: the deployed network; see `OnlineLearner`.
        settings: how to learn.
        importance: of the base's weights; see `OnlineLearner`.
        part: entered for each part of the work that computes on the device.
        beat: called after each clip, score, step and checkpoint, as a sign that learning goes on;
            it may raise a `LeavingError`.

    Attributes:
        beat: as given.
        window_s: seconds of sound that the base hears with a frame.
        learned: what a checkpoint of the base itself says: nothing is learned.
    """

    def __init__(
        self,
        base: Network,
        settings: LearnSettings,
        importance: BaseImportance | None,
        part: Part,
        beat: Callable[[], None],
    ) -> None:
        self._base, self._settings = base, settings
        self._importance, self._part = importance, part
        self.beat: Final = beat
        self.window_s: Final = base.preset.window_s
        self.learned: Final = Learned(
            version=base.version,
            parent="",
            base=tensor_hash(tensors_of(base)),
            method=settings.method,
            cursor=0,
        )

    def learner(self, state: LearnState | None) -> OnlineLearner:
        """A learner that goes on from a state; None: from the base.

        Raises:
            MethodError, TrainingError: see `OnlineLearner`.
        """
        return OnlineLearner(
            self._base, self._settings, state, self._importance, self._part, self.beat
        )
