"""The second stage of training: everything but the frozen parts, on masks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..model import checkpoints
from ..model.audio import AudioFeatures
from ..model.epochs import fit
from ..model.network import Network
from ..model.presets import load
from ..model.training import Settings, Trainer
from ..streams import corpus
from ..streams.avsbench import Entry
from .importancestage import data_id, measure_importance
from .maskfeed import (
    Casting,
    MaskFeed,
    cached_features,
    cast_items,
    encoder_key,
    mask_objective,
)
from .overlay import blend
from .score import Scored, encode_voices, score
from .trainlog import TrainLog
from .trainoptions import TrainOptions, read_corpus, read_entries
from .voices import Scene, predicted, read_scenes

_SHOWN = 6
"""Pictures drawn for TensorBoard."""


def train_masks(
    options: TrainOptions, network: Network, roots: Sequence[Path], log: TrainLog
) -> Path:
    """Train everything but the frozen parts, and return the folder of the best checkpoint."""
    scenes = _scenes(read_entries(roots, "train"), network, log, "train")
    held = _scenes(read_entries(roots, "val"), network, log, "val")
    feed = _mask_feed(options, network, scenes, log)
    heard = encode_voices(network, held)
    network.to(options.torch_device())
    parent = network.version if options.start is not None else ""
    for name, part in network.named_children():  # a part that the network lacks is kept anyway
        if name in options.keep:
            part.requires_grad_(requires_grad=False)
    settings = Settings(
        epochs=options.epochs,
        lr=options.lr,
        weight_decay=options.weight_decay,
        warmup_steps=min(100, feed.steps),
        final_lr=0.01,
        clip_norm=1.0,
        average=0.998,
        bfloat16=options.bfloat16,
    )
    objective = mask_objective(
        network, dice_weight=options.dice_weight, class_weight=options.class_weight
    )
    trainer = Trainer(network, objective, settings, feed.steps, options.out)
    state = options.out / "masks-state.safetensors"
    if options.resume and state.exists():
        trainer.restore(state)
    bar = log.task("masks", settings.epochs * feed.steps, trainer.step_count)
    began = time.monotonic()
    network.trained = True
    last: dict[str, float] = {}

    def on_step(step: int, scalars: Mapping[str, float]) -> None:
        bar.advance(f"loss {scalars['loss']:.3f}")
        if step % log.every == 0:
            log.scalars("masks", scalars, step)

    def validate() -> float:
        result = score(network, held, heard, rotate=True)
        last.clear()
        last.update(result.summary())
        log.scalars("val", last, trainer.step_count)
        log.picture("val", _pictures(network, held, heard), trainer.step_count)
        log.note(_line(trainer.epoch, result))
        return last["J"]

    def keep(_score: float) -> None:
        checkpoints.save(
            network,
            options.out / "best",
            parent=parent,
            step=trainer.step_count,
            metrics={name: round(value, 4) for name, value in last.items() if np.isfinite(value)},
            notes=_notes(options, roots, time.monotonic() - began),
        )

    def save() -> None:
        trainer.save(state)

    fit(
        trainer,
        feed,
        save=save,
        validate=validate,
        keep=keep,
        on_step=on_step,
        save_epochs=True,
    )
    best = options.out / "best"
    if options.importance:
        _weigh(options, best, roots, log)
    return best


def _weigh(options: TrainOptions, best: Path, roots: Sequence[Path], log: TrainLog) -> None:
    """Measure what the kept weights are worth, and write it beside them."""
    network = load(best, backbone_weights=options.backbone, audio_weights=options.audio)
    bar = log.task("importance", options.importance)
    measure_importance(
        network.to(options.torch_device()),
        best,
        roots,
        examples=options.importance,
        seed=options.seed,
        command=options.command(),
        progress=bar.advance,
    )


def _scenes(
    subsets: Sequence[Sequence[Entry]], network: Network, log: TrainLog, name: str
) -> list[Scene]:
    bar = log.task(f"reading {name} clips", sum(map(len, subsets)))
    preset = network.preset
    scenes: list[Scene] = []
    for entries in subsets:
        scenes += read_scenes(entries, preset.image_px, preset.sample_rate_hz, bar.advance)
    return scenes


def _mask_feed(
    options: TrainOptions, network: Network, scenes: Sequence[Scene], log: TrainLog
) -> MaskFeed:
    preset = network.preset
    strangers = (
        corpus.spoken(read_corpus(options, preset.sample_rate_hz, log).sounds)
        if options.corpus
        else []
    )
    batch = min(options.batch, len(scenes))
    casting = Casting(
        scenes,
        preset.categories,
        sounds=options.sounds,
        sample_rate_hz=preset.sample_rate_hz,
        window_s=preset.window_s,
        strangers=strangers,
    )
    bar = log.task("encoding sounds", options.variants * len(scenes))
    items, encode = cast_items(
        casting, network, variants=options.variants, seed=options.seed, progress=bar.advance
    )
    key = {
        "encoder": encoder_key(network),
        "data": f"{options.data} toy {options.toy} seed {options.seed}",
        "items": f"{len(scenes)} scenes, {options.variants} variants, {options.sounds} sounds, "
        f"{len(strangers)} strangers",
    }
    features = cached_features(options.out / "sounds.safetensors", key, encode)
    return MaskFeed(
        scenes,
        items,
        features,
        batch_size=batch,
        passes=options.passes,
        seed=options.seed,
        blended_share=options.blend,
        thinned_share=options.thin,
    )


def _line(epoch: int, result: Scored) -> str:
    s = result.summary()
    return (
        f"epoch {epoch}: val J {s['J']:.3f} (with an object {s['J_object']:.3f}, without "
        f"{s['J_empty']:.3f}), F {s['F']:.3f}, swaps told {s['swaps']:.2f}, quiet {s['quiet']:.2f}"
    )


def _pictures(
    network: Network, scenes: Sequence[Scene], heard: Sequence[AudioFeatures]
) -> NDArray[np.uint8]:
    """A strip: pictures with the true mask above, with the predicted one below."""
    columns: list[NDArray[np.uint8]] = []
    step = max(1, len(scenes) // _SHOWN)
    for scene, audio in list(zip(scenes, heard, strict=True))[::step][:_SHOWN]:
        probs = predicted(network, scene, audio, [0])[0, 0]
        true = blend(scene.frames[0], scene.voices[0].masks[0].astype(np.bool_))
        columns.append(np.concatenate([true, blend(scene.frames[0], probs > 0.5)]))
    return np.concatenate(columns, axis=1)


def _notes(options: TrainOptions, roots: Sequence[Path], seconds: float) -> dict[str, str]:
    """Where the weights come from, for their manifest."""
    return {
        "command": options.command(),
        "data": ", ".join(map(data_id, roots)),
        "seed": str(options.seed),
        "threads": str(torch.get_num_threads()),
        "seconds": str(round(seconds)),
    }
