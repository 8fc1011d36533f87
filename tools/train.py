"""`atlasd train`: trains a preset on data in AVSBench's layout and on the toy world.

Two stages. ``audio`` trains the small audio encoder of `atlas-lite` as a tagger of the training
sounds (other presets bring a published encoder and skip this). ``masks`` freezes it and trains
LoRA, neck, conditioning, fusion, decoder and head on pictures that meet several sounds each.
Validation selects what is kept; the test splits are never read. At the end the importances of what
was kept are measured on training clips and written beside it, for those who go on learning.

A run's folder holds ``options.json``, for each stage its state (``audio-state.safetensors``,
``masks-state.safetensors``), the encoder (``audio.safetensors``), what became of the corpus
(``corpus.json``), TensorBoard's events (``events/``) and the result, the folder ``best``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..model.audio import AudioCnn
from ..model.network import Network
from ..model.presets import PRESETS, build
from ..streams.toyworld import CATEGORIES as TOY_CATEGORIES
from ..streams.toyworld import write_dataset
from .audiostage import load_encoder, train_audio
from .maskstage import train_masks
from .trainlog import TrainLog
from .trainoptions import PARTS, TrainError, TrainOptions

__all__ = ["TrainError", "TrainOptions", "train"]


def train(options: TrainOptions) -> Path:
    """Train, and return the folder of the best checkpoint (after ``audio`` alone: its file).

    Raises:
        TrainError: the options contradict each other, or ``out`` holds another run.
        TrainingError: a loss was not finite, or the state to resume does not fit.
        DatasetError: the data cannot be read.
        WeightsError: published weights cannot be had.
    """
    _check(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    _begin(options)
    roots = _roots(options)
    network = _network(options)
    with TrainLog(options.out / "events") as log:
        if _needs_audio_stage(options, network):
            train_audio(options, network, roots, log)
        if options.stages == "audio":
            return options.out / "audio.safetensors"
        return train_masks(options, network, roots, log)


def _check(options: TrainOptions) -> None:
    _check_numbers(options)
    if options.data is None and not options.toy:
        raise TrainError("there is nothing to train on: give --data DIR, --toy N, or both")
    if options.start is not None and (options.audio is not None or options.stages == "audio"):
        raise TrainError("--start brings its audio encoder: leave --audio and --stages audio out")
    if options.random and (options.backbone is not None or options.start is not None):
        raise TrainError("--random takes no weights; --backbone and --start bring some: choose one")
    brought = options.audio is not None or options.start is not None
    trains_encoder = options.stages != "masks" and not brought
    if options.corpus and trains_encoder and options.teacher is None:
        raise TrainError("--corpus brings sounds without names; --teacher FILE tells what they are")
    if options.stages == "audio" and options.audio is not None:
        raise TrainError("--stages audio trains an encoder; --audio brings one: choose one of both")
    if unknown := [part for part in options.keep if part not in PARTS]:
        raise TrainError(f"--keep {unknown[0]}: the parts are {', '.join(PARTS)}")
    if options.preset in PRESETS:
        try:
            PRESETS[options.preset].vary(options.variation())
        except ValueError as error:
            raise TrainError(f"--vary: {error}") from error


def _check_numbers(options: TrainOptions) -> None:
    for name in ("epochs", "passes", "batch", "sounds", "variants", "audio_epochs", "audio_steps"):
        if getattr(options, name) < 1:
            raise TrainError(f"--{name.replace('_', '-')} is {getattr(options, name)}; 1 or more")
    if options.toy < 0:
        raise TrainError(f"--toy is {options.toy}; 0 or more clips")
    if options.importance < 0:
        raise TrainError(f"--importance is {options.importance}; 0 or more pictures")
    if not 0 <= options.blend <= 1:
        raise TrainError(f"--blend is {options.blend}; a share from 0 to 1 is needed")
    if not 0 <= options.thin < 1:
        raise TrainError(f"--thin is {options.thin}; a share from 0 to below 1 is needed")


def _begin(options: TrainOptions) -> None:
    """Claim the run's folder, or make sure that it holds the run to resume."""
    path = options.out / "options.json"
    own: dict[str, Any] = json.loads(json.dumps(asdict(options), default=str))
    own.pop("resume")
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not options.resume:
            raise TrainError(f"{options.out} holds a run; resume it (--resume) or name another")
        other = [k for k in own if own[k] != found.get(k) and k != "stages"]
        if other:
            raise TrainError(
                f"{options.out} holds a run with other options ({', '.join(other)}); "
                "resume with the same, or name another folder"
            )
    elif options.resume:
        raise TrainError(f"{options.out} holds no run to resume; leave --resume out to begin one")
    options.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def _roots(options: TrainOptions) -> list[Path]:
    """The data sets' folders; the toy world is made on first use."""
    roots = [options.data] if options.data is not None else []
    if options.toy:
        toy = options.out / "toy"
        if not (toy / "dataset.json").exists():
            # A fifth of the training clips in MS3's form; for validation an eighth of all.
            s4 = max(1, round(0.8 * options.toy / len(TOY_CATEGORIES)))
            ms3 = round(0.2 * options.toy)
            write_dataset(
                toy,
                {"train": s4, "val": max(1, s4 // 8)},
                options.seed,
                ms3_counts={"train": ms3, "val": ms3 // 8},
            )
        roots.append(toy)
    return roots


def _encoder_file(options: TrainOptions) -> Path | None:
    """An encoder that is there already: named, or left by the audio stage of this run."""
    if options.audio is not None:
        return options.audio
    own = options.out / "audio.safetensors"
    return own if options.resume and own.exists() else None


def _network(options: TrainOptions) -> Network:
    """What training starts from, with the encoder that is there already, if one is."""
    if options.start is not None:
        return build(
            options.preset,
            weights=options.start,
            backbone_weights=options.backbone,
            vary=options.variation(),
        )
    spec = PRESETS.get(options.preset)
    ours = spec is not None and spec.audio_file is None
    network = build(
        options.preset,
        trained=False,
        pretrained=not options.random,
        seed=options.seed,
        backbone_weights=options.backbone,
        audio_weights=None if ours else options.audio,
        vary=options.variation(),
    )
    file = _encoder_file(options)
    if ours and file is not None:
        load_encoder(network.audio, file)
    return network


def _needs_audio_stage(options: TrainOptions, network: Network) -> bool:
    if (
        options.start is not None
        or options.stages == "masks"
        or not isinstance(network.audio, AudioCnn)
    ):
        return False
    return _encoder_file(options) is None
