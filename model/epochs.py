"""The training loop over epochs: validation selects what is kept, the state is left behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .training import Feed, Trainer, TrainingError


def fit(
    trainer: Trainer,
    feed: Feed,
    *,
    save: Callable[[], None] | None = None,
    validate: Callable[[], float] | None = None,
    keep: Callable[[float], None] | None = None,
    on_step: Callable[[int, Mapping[str, float]], None] | None = None,
    save_every_s: float = 60.0,
    save_epochs: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train until all epochs are done, from wherever the trainer stands.

    Args:
        trainer: fresh or restored.
        feed: gives the batches.
        save: called between two steps, or after validation, to leave the run's state behind,
            whenever ``save_every_s`` have passed since it was, or since the beginning. What is left
            at the end is the caller's.
        validate: called after every epoch with the averaged weights in place and the network in
            ``eval()``; gives a score, higher is better, NaN never is the best.
        keep: called with the score, under the same conditions, whenever it is the best so far.
        on_step: told the number of steps made and the step's scalars.
        save_every_s: seconds from 0. A state may take gigabytes, an epoch a second.
        save_epochs: save after every epoch too: where they are long, and validated.
        clock: tells seconds.

    Raises:
        TrainingError: if a loss or gradient is not finite, or a feed gives fewer batches than
            the trainer was told.
    """
    saved = clock()

    def save_if_due(*, at_once: bool = False) -> None:
        nonlocal saved
        if save is not None and (at_once or clock() - saved >= save_every_s):
            save()
            saved = clock()

    while not trainer.finished:
        epoch = trainer.epoch
        trainer.network.train()
        for batch in feed(epoch, trainer.step_in_epoch):
            scalars = trainer.step(batch)
            if on_step is not None:
                on_step(trainer.step_count, scalars)
            if trainer.epoch > epoch:
                break
            save_if_due()
        if trainer.epoch == epoch:
            raise TrainingError(
                f"the feed of epoch {epoch} ended after {trainer.step_in_epoch} batches; "
                f"{trainer.steps_per_epoch} were promised"
            )
        if validate is not None:
            _select(trainer, validate, keep)
        save_if_due(at_once=save_epochs)


def _select(
    trainer: Trainer, validate: Callable[[], float], keep: Callable[[float], None] | None
) -> None:
    trainer.network.eval()
    with trainer.averaged():
        score = validate()
        if score > trainer.best:
            trainer.best = score
            if keep is not None:
                keep(score)
