"""`atlasd train`: trains a preset on data in AVSBench's layout and on the toy world.

Two stages. ``audio`` trains the small audio encoder of `atlas-lite` as a tagger of the training
sounds (other presets bring a published encoder and skip this). ``masks`` freezes it and trains
LoRA, neck, conditioning, fusion, decoder and head on pictures that meet several sounds each.
Validation selects what is kept; the test splits are never read.

A run's folder holds ``options.json``, for each stage its state (``audio-state.safetensors``,
``masks-state.safetensors``), the encoder (``audio.safetensors``), TensorBoard's events
(``events/``) and the result, the checkpoint folder ``best``.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..model import checkpoints
from ..model.atlas import Atlas
from ..model.audio import AudioCnn, AudioTagger
from ..model.presets import PRESETS, build
from ..model.pretrained import check_tensors
from ..model.training import Settings, Trainer, fit
from ..streams import catalogue
from ..streams.avsbench import AVSBench, Entry, Split
from ..streams.avslayout import find_subset
from ..streams.packages import obtain
from ..streams.sounds import training_takes
from ..streams.toyworld import CATEGORIES as TOY_CATEGORIES
from ..streams.toyworld import write_dataset
from .maskfeed import (
    Casting,
    MaskFeed,
    Scene,
    cached_features,
    cast_items,
    encoder_key,
    mask_objective,
    predicted,
    read_scenes,
)
from .overlay import blend
from .score import Scored, encode_voices, score
from .soundfeed import Recording, SoundFeed, make_pool, tagging_accuracy, tagging_loss
from .tagger import Yamnet
from .trainlog import TrainLog

Stages = Literal["all", "audio", "masks"]
_AUDIO = "audio."
_SHOWN = 6
"""Pictures drawn for TensorBoard."""


class TrainError(Exception):
    """Training cannot start: what came, what is allowed, what to do."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `atlasd train` is told.

    Attributes:
        out: the run's folder.
        preset: the network.
        data: a data set in AVSBench's layout (S4, MS3 or both), or None for the toy world alone.
        toy: clips of the toy world to train on besides; made in ``out``, in a few seconds each
            hundred.
        resume: go on with the run in ``out``, with the same options.
        stages: ``all``, or one alone.
        audio: an audio encoder (a run's ``audio.safetensors``, or a checkpoint) instead of training
            one.
        packages: folder of the Debian packages that Open-AVS is composed of: the audio encoder then
            also learns their training sounds as they are, above 8 kHz too, where the data set's
            16 kHz files are silent.
        teacher: YAMNet's tflite file, to learn its scores besides the categories.
        seed: of everything random.
        threads: of torch; 0 leaves torch's choice. Equal results need equal threads.
        epochs: of the ``masks`` stage.
        passes: over the clips in each of these epochs; validation follows each epoch.
        batch: pictures a step.
        sounds: sounds a picture meets at once.
        variants: variations of each clip's sounds that are kept encoded.
        lr: learning rate of the ``masks`` stage.
        weight_decay: of both stages.
        audio_epochs: of the ``audio`` stage.
        audio_steps: steps in each of these.
        audio_windows: varied windows of sound that it learns from.
        audio_batch: windows a step.
        audio_lr: its learning rate.
        bfloat16: forward passes in bfloat16 where it is safe: faster, on processors that have it.
    """

    out: Path
    preset: str = "atlas-lite"
    data: Path | None = None
    toy: int = 0
    resume: bool = False
    stages: Stages = "all"
    audio: Path | None = None
    packages: Path | None = None
    teacher: Path | None = None
    seed: int = 0
    threads: int = 0
    epochs: int = 30
    passes: int = 1
    batch: int = 16
    sounds: int = 3
    variants: int = 4
    lr: float = 1e-3
    weight_decay: float = 5e-4
    audio_epochs: int = 10
    audio_steps: int = 200
    audio_windows: int = 16_000
    audio_batch: int = 64
    audio_lr: float = 2e-3
    bfloat16: bool = False

    def command(self) -> str:
        """The command line that gives these options."""
        words = ["atlasd", "train"]
        defaults = TrainOptions(self.out)
        for name, value in asdict(self).items():
            if name == "resume" or (name != "out" and value == getattr(defaults, name)):
                continue
            flag = "--" + name.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
        return shlex.join(words)


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
    if options.data is None and not options.toy:
        raise TrainError("there is nothing to train on: give --data DIR, --toy N, or both")
    for name in ("epochs", "passes", "batch", "sounds", "variants", "audio_epochs", "audio_steps"):
        if getattr(options, name) < 1:
            raise TrainError(f"--{name.replace('_', '-')} is {getattr(options, name)}; 1 or more")
    if options.toy < 0:
        raise TrainError(f"--toy is {options.toy}; 0 or more clips")
    if options.stages == "audio" and options.audio is not None:
        raise TrainError("--stages audio trains an encoder; --audio brings one: choose one of both")


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


def _entries(roots: Sequence[Path], split: Split) -> list[list[Entry]]:
    """The clips of a split, subset by subset."""
    found = [
        AVSBench(root, subset, labels="all").clips(split)
        for root in roots
        for subset in ("s4", "ms3")
        if find_subset(root, subset) is not None
    ]
    if not any(found):
        raise TrainError(f"no {split} clips in {', '.join(map(str, roots))}")
    return found


def _encoder_file(options: TrainOptions) -> Path | None:
    """An encoder that is there already: named, or left by the audio stage of this run."""
    if options.audio is not None:
        return options.audio
    own = options.out / "audio.safetensors"
    return own if options.resume and own.exists() else None


def _network(options: TrainOptions) -> Atlas:
    """What training starts from, with the encoder that is there already, if one is."""
    spec = PRESETS.get(options.preset)
    ours = spec is not None and spec.audio_file is None
    network = build(
        options.preset,
        trained=False,
        seed=options.seed,
        audio_weights=None if ours else options.audio,
    )
    file = _encoder_file(options)
    if ours and file is not None:
        _load_encoder(network.audio, file)
    return network


def _load_encoder(encoder: nn.Module, path: Path) -> None:
    """Take an audio encoder of ours out of a file or a checkpoint."""
    tensors = checkpoints.read(path).tensors if path.is_dir() else checkpoints.read_tensors(path)[0]
    state = {n.removeprefix(_AUDIO): t for n, t in tensors.items() if n.startswith(_AUDIO)}
    check_tensors(state, encoder.state_dict(), str(path))
    encoder.load_state_dict(state)


def _needs_audio_stage(options: TrainOptions, network: Atlas) -> bool:
    if options.stages == "masks" or not isinstance(network.audio, AudioCnn):
        return False
    return _encoder_file(options) is None


def train_audio(
    options: TrainOptions, network: Atlas, roots: Sequence[Path], log: TrainLog
) -> None:
    """Train the network's audio encoder as a tagger and leave it in ``audio.safetensors``."""
    preset = network.preset
    rate_hz = preset.sample_rate_hz
    window = round(preset.window_s * rate_hz)
    learned = _recordings(_entries(roots, "train"), rate_hz)
    if options.packages is not None:
        learned += _takes(options.packages, rate_hz, options.seed)
    held = _recordings(_entries(roots, "val"), rate_hz)
    categories = sorted({name for recording in learned for name in recording.categories})
    log.note(f"audio: {len(learned)} sounds of {len(categories)} categories")
    bar = log.task("windows of sound", options.audio_windows)
    yamnet = Yamnet(options.teacher) if options.teacher is not None else None
    pool = make_pool(
        learned,
        categories,
        network.log_mel,
        windows=options.audio_windows,
        window_samples=window,
        sample_rate_hz=rate_hz,
        seed=options.seed,
        teacher=(lambda wave: yamnet.scores(wave, rate_hz)) if yamnet is not None else None,
        progress=bar.advance,
    )
    # Training begins from the seed, whatever encoder ships.
    torch.manual_seed(options.seed)
    encoder = preset.audio()
    assert isinstance(encoder, AudioCnn)  # noqa: S101  the caller looked
    tagger = AudioTagger(encoder, pool.n_tags)
    settings = Settings(
        epochs=options.audio_epochs,
        lr=options.audio_lr,
        weight_decay=options.weight_decay,
        warmup_steps=min(50, options.audio_steps),
        final_lr=0.01,
        clip_norm=5.0,
        average=0.99,
        bfloat16=options.bfloat16,
    )
    trainer = Trainer(tagger, tagging_loss(tagger), settings, options.audio_steps, options.out)
    state = options.out / "audio-state.safetensors"
    if options.resume and state.exists():
        trainer.restore(state)
    feed = SoundFeed(pool, options.audio_batch, options.audio_steps, options.seed, preset.window_s)
    bar = log.task("audio encoder", settings.epochs * options.audio_steps, trainer.step_count)

    def on_step(step: int, scalars: Mapping[str, float]) -> None:
        bar.advance(f"loss {scalars['loss']:.2f}")
        if step % log.every == 0:
            log.scalars("audio", scalars, step)

    def validate() -> float:
        accuracy = tagging_accuracy(tagger, held, categories, network.log_mel, window)
        log.scalars("audio", {"accuracy": accuracy}, trainer.step_count)
        log.note(f"audio epoch {trainer.epoch}: {accuracy:.3f} of the val windows told right")
        return accuracy

    best = options.out / "audio.safetensors"

    def keep(_score: float) -> None:
        tensors = {_AUDIO + name: value for name, value in encoder.state_dict().items()}
        checkpoints.write_tensors(best, tensors, {})

    fit(trainer, feed, state=state, validate=validate, keep=keep, on_step=on_step)
    _load_encoder(encoder, best)
    network.audio = encoder.requires_grad_(requires_grad=False).eval()


def _recordings(subsets: Sequence[Sequence[Entry]], rate_hz: int) -> list[Recording]:
    """The sounds of clips in which one known category sounds throughout."""
    return [
        Recording(entry.name, entry.sound(rate_hz), entry.categories)
        for entries in subsets
        for entry in entries
        if entry.folder.subset == "s4" and entry.kind != "negative" and len(entry.categories) == 1
    ]


def _takes(packages: Path, rate_hz: int, seed: int) -> list[Recording]:
    """Open-AVS's training sounds, before any clip is composed of them."""
    kinds = ("sound", "gm_program", "soundfont")
    items = [i for i in catalogue.load() if i.kind in kinds and "train" in i.splits]
    found = obtain(catalogue.wanted(items), packages)
    takes = training_takes(items, found, sample_rate_hz=rate_hz, seed=seed)
    return [Recording(take.name, take.samples, (take.category,)) for take in takes]


def train_masks(
    options: TrainOptions, network: Atlas, roots: Sequence[Path], log: TrainLog
) -> Path:
    """Train everything but the frozen parts, and return the folder of the best checkpoint."""
    scenes = _scenes(_entries(roots, "train"), network, log, "train")
    held = _scenes(_entries(roots, "val"), network, log, "val")
    feed = _mask_feed(options, network, scenes, log)
    heard = encode_voices(network, held)
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
    trainer = Trainer(network, mask_objective(network), settings, feed.steps, options.out)
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
            step=trainer.step_count,
            metrics={name: round(value, 4) for name, value in last.items() if np.isfinite(value)},
            notes=_notes(options, roots, time.monotonic() - began),
        )

    fit(trainer, feed, state=state, validate=validate, keep=keep, on_step=on_step, save_every=200)
    return options.out / "best"


def _scenes(
    subsets: Sequence[Sequence[Entry]], network: Atlas, log: TrainLog, name: str
) -> list[Scene]:
    bar = log.task(f"reading {name} clips", sum(map(len, subsets)))
    preset = network.preset
    scenes: list[Scene] = []
    for entries in subsets:
        scenes += read_scenes(entries, preset.image_px, preset.sample_rate_hz, bar.advance)
    return scenes


def _mask_feed(
    options: TrainOptions, network: Atlas, scenes: Sequence[Scene], log: TrainLog
) -> MaskFeed:
    preset = network.preset
    batch = min(options.batch, len(scenes))
    casting = Casting(
        scenes,
        preset.categories,
        sounds=options.sounds,
        sample_rate_hz=preset.sample_rate_hz,
        window_s=preset.window_s,
    )
    bar = log.task("encoding sounds", options.variants * len(scenes))
    items, encode = cast_items(
        casting, network, variants=options.variants, seed=options.seed, progress=bar.advance
    )
    key = {
        "encoder": encoder_key(network),
        "data": f"{options.data} toy {options.toy} seed {options.seed}",
        "items": f"{len(scenes)} scenes, {options.variants} variants, {options.sounds} sounds",
    }
    features = cached_features(options.out / "sounds.safetensors", key, encode)
    return MaskFeed(
        scenes, items, features, batch_size=batch, passes=options.passes, seed=options.seed
    )


def _line(epoch: int, result: Scored) -> str:
    s = result.summary()
    return (
        f"epoch {epoch}: val J {s['J']:.3f} (with an object {s['J_object']:.3f}, without "
        f"{s['J_empty']:.3f}), F {s['F']:.3f}, swaps told {s['swaps']:.2f}, quiet {s['quiet']:.2f}"
    )


def _pictures(
    network: Atlas, scenes: Sequence[Scene], heard: Sequence[Any]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A strip: pictures with the true mask above, with the predicted one below."""
    columns: list[np.ndarray[Any, np.dtype[np.uint8]]] = []
    step = max(1, len(scenes) // _SHOWN)
    for scene, audio in list(zip(scenes, heard, strict=True))[::step][:_SHOWN]:
        probs = predicted(network, scene, audio, [0])[0, 0]
        true = blend(scene.frames[0], scene.voices[0].masks[0].astype(np.bool_))
        columns.append(np.concatenate([true, blend(scene.frames[0], probs > 0.5)]))
    return np.concatenate(columns, axis=1)


def _notes(options: TrainOptions, roots: Sequence[Path], seconds: float) -> dict[str, str]:
    """Where the weights come from, for their manifest."""
    ids: list[str] = []
    for root in roots:
        manifest = root / "dataset.json"
        known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        ids.append(str(known.get("id", root.name)))
    return {
        "command": options.command(),
        "data": ", ".join(ids),
        "seed": str(options.seed),
        "threads": str(torch.get_num_threads()),
        "seconds": str(round(seconds)),
    }
