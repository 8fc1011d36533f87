"""A labeler that never gives up: it puts clips without a pause, each until it is granted."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Self

from ..daemon.labelclient import LabelClient, LabelRefusedError, NoAnswerError
from ..daemon.labels import PutClip

_ANSWER_S = 1.0
_PAUSE_S = 0.1
_AGAIN = 0.2


class Labeler:
    """Puts clips from a thread of its own; some that were granted are put once more.

    Args:
        endpoint: the daemon's intake; it may die and come back.
        clips: are put in turn, each time under a new id.
        is_full: whether to wait for the learner; called from the labeler's thread.
        seed: of what is put once more.

    Attributes:
        granted: ids that were granted, and for each its place in `clips`.
        refused: answers that were refusals, by code; such a clip is put again.
    """

    def __init__(
        self,
        endpoint: str,
        clips: Sequence[PutClip],
        is_full: Callable[[], bool],
        seed: int = 0,
    ) -> None:
        self.granted: dict[str, int] = {}
        self.refused: Counter[str] = Counter()
        self._endpoint, self._clips, self._is_full = endpoint, clips, is_full
        self._rng = random.Random(seed)
        self._finishing, self._gone = threading.Event(), threading.Event()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="labeler")
        self._work = self._threads.submit(self._run)

    def finish(self) -> None:
        """Put no further clip, once the one at hand is granted.

        Raises:
            WireError: an answer was none.
        """
        self._finishing.set()
        self._work.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finishing.set()
        self._gone.set()
        self._threads.shutdown()

    def _run(self) -> None:
        with LabelClient(self._endpoint, timeout_s=_ANSWER_S, attempts=1) as client:
            while not self._finishing.wait(_PAUSE_S):
                if self._is_full():
                    continue
                number = len(self.granted)
                place = number % len(self._clips)
                clip_id = f"clip-{number:06d}"
                if self._put(client, clip_id, place):
                    self.granted[clip_id] = place
                if self._rng.random() < _AGAIN and self.granted:
                    clip_id = self._rng.choice(list(self.granted))
                    self._put(client, clip_id, self.granted[clip_id])

    def _put(self, client: LabelClient, clip_id: str, place: int) -> bool:
        """Put a clip until it is granted; False where the labeler has to go before."""
        clip = replace(self._clips[place], id=clip_id)
        while not self._gone.is_set():
            try:
                client.put(clip)
            except NoAnswerError:
                continue
            except LabelRefusedError as error:
                self.refused[error.code] += 1
                self._gone.wait(_ANSWER_S)
                continue
            return True
        return False
