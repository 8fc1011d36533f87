"""The stream experiment's base: a network that knows the old classes alone."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.progress import Progress

from ..model import baseimportance, checkpoints
from ..model.epochs import fit
from ..model.presets import build
from ..model.taskloss import task_loss
from ..model.training import Settings, Trainer
from .clipfeed import ClipFeed
from .clipstore import ClipStore
from .diskcache import DiskCache
from .studyplan import StudyOptions, StudyPlan

_BATCH = 16
_LR = 3e-3
_VARIANTS = 4
_EXAMPLES = 200


def train_base(
    options: StudyOptions, plan: StudyPlan, seed: int, folder: Path, bar: Progress
) -> Path:
    """Train a network on the old classes, and keep it with what its weights are worth.

    Args:
        options: how long, and on what.
        plan: the clips.
        seed: of its random parts and of the batches.
        folder: of the base; one that is there is taken as it is.
        bar: shows how far it is.

    Returns:
        The checkpoint, a folder.
    """
    path = folder / "base"
    if (path / baseimportance.FILE).exists():
        return path
    network = build(
        options.preset,
        trained=False,
        seed=seed,
        vary={"image_px": options.image_px},
        categories=plan.old,
    )
    store = ClipStore(
        options.data, "s4", network, DiskCache(options.out / "cache", 4 << 30), seed=seed
    )
    rows = {name: row for row, name in enumerate(plan.old)}
    labels = {
        clip: rows[plan.entries[clip].category or ""]
        for clip in plan.base
        if plan.entries[clip].kind != "negative"
    }
    feed = ClipFeed(store, plan.base, labels, batch=_BATCH, seed=(seed,), variants=_VARIANTS)
    torch.manual_seed(seed)
    trainer = Trainer(
        network,
        task_loss(network, 0.5),
        Settings(epochs=options.base_epochs, lr=_LR, final_lr=0.1),
        feed.steps,
        folder,
    )
    total = options.base_epochs * feed.steps
    task = bar.add_task(f"seed {seed}: base on {len(plan.old)} classes", total=total)
    fit(trainer, feed, on_step=lambda step, _: bar.update(task, completed=step))
    network.eval()
    network.trained = True
    checkpoints.save(network, path, notes={"classes": ", ".join(plan.old), "seed": str(seed)})
    plain = ClipFeed(store, plan.base, labels, batch=_BATCH, seed=(seed,))
    found = baseimportance.measure(network, plain(0, 0), _EXAMPLES)
    baseimportance.write(path, network, found, examples=_EXAMPLES)
    return path
