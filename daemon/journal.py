"""The spool's journal, read back: what became of each clip, and a replay of what was learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..model.baseimportance import BaseImportance
from ..model.network import Network
from .labelclips import load
from .onlinelearner import LearnSettings, OnlineLearner
from .spooled import ClipState
from .spoolfile import FILE_NAME, SpoolFile


@dataclass(frozen=True, slots=True)
class Entry:
    """A batch of the journal.

    Attributes:
        number: from 1.
        seed: of everything random in learning it.
        state: ``journaled``: it is learned, or comes next; ``past``: it was learned in checkpoints
            that are not those of now, see `Spool.rebase`; the others were set aside, and then
            perhaps released or discarded.
        ids: of its clips, in their order; none: a person's order to consolidate.
    """

    number: int
    seed: int
    state: Literal["journaled", "past", "quarantined", "released", "discarded"]
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Journal:
    """What a spool knows, as of one moment.

    Attributes:
        clips: the state of each, by id, in the order in which they were stored.
        batches: all of them, in their order.
    """

    clips: Mapping[str, ClipState]
    batches: tuple[Entry, ...]

    def learned(self, cursor: int) -> tuple[Entry, ...]:
        """The batches that are in the weights of a checkpoint with this cursor."""
        return tuple(b for b in self.batches if b.state == "journaled" and b.number <= cursor)

    def unjudged(self) -> tuple[str, ...]:
        """Ids of the clips of the last batch with clips, where it was not learned for good yet.

        The canary judges it by the next clips; until then it is learned again after each death.
        """
        held = [b for b in self.batches if b.state == "journaled" and b.ids]
        last = held[-1].ids if held else ()
        return tuple(clip_id for clip_id in last if self.clips[clip_id] == "journaled")


def read_journal(folder: Path) -> Journal:
    """Read the journal of the spool in a folder; others may write to it meanwhile.

    Raises:
        StorageError: it cannot be read.
        CorruptError: it is damaged or of another format.
    """
    file = SpoolFile(folder / FILE_NAME)
    try:
        with file.transaction(reading=True):
            clips = file.connection.execute("SELECT id, state FROM clips ORDER BY sequence")
            states: dict[str, ClipState] = dict(clips.fetchall())
            ids: dict[int, list[str]] = {}
            for number, clip_id in file.connection.execute(
                "SELECT batch, id FROM members JOIN clips USING (sequence) ORDER BY batch, place"
            ):
                ids.setdefault(number, []).append(clip_id)
            batches = tuple(
                Entry(number, seed, state, tuple(ids.get(number, ())))
                for number, seed, state in file.connection.execute(
                    "SELECT number, seed, state FROM batches ORDER BY number"
                )
            )
    finally:
        file.close()
    return Journal(states, batches)


def replay(
    base: Network,
    settings: LearnSettings,
    batches: Iterable[Entry],
    payload: Callable[[str], bytes],
    importance: BaseImportance | None = None,
) -> OnlineLearner:
    """Learn batches again, as a learner does that is never killed and refuses nothing.

    It consolidates where a person ordered that.

    A batch that was set aside left no trace in the weights, as its learner went back; so the
    batches of `Journal.learned` give the weights of that checkpoint, to the last bit with the same
    machine and threads (`torch.set_num_threads`).

    Args:
        base: the deployed network; see `OnlineLearner`.
        settings: those that the batches were learned with.
        batches: in their order.
        payload: of a clip, by its id, as it lay in the spool.
        importance: of the base's weights, where the learner held it.

    Raises:
        LabelError: a payload cannot be read.
        MethodError: the method cannot be had.
        TrainingError: a loss or gradient was not finite.
    """
    learner = OnlineLearner(base, settings, importance=importance)
    for batch in batches:
        if not batch.ids:
            learner.consolidate()
            continue
        clips = [load(payload(clip_id), base.preset.window_s) for clip_id in batch.ids]
        learner.learn(clips, learner.batches(clips), batch.seed)
    return learner
