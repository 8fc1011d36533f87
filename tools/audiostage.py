"""The first stage of training: the audio encoder, as a tagger of the training sounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..model import checkpoints
from ..model.audio import AudioCnn, AudioTagger
from ..model.epochs import fit
from ..model.network import Network
from ..model.pretrained import check_tensors
from ..model.training import Settings, Trainer
from ..streams import catalogue, corpus
from ..streams.avsbench import Entry
from ..streams.packages import obtain
from ..streams.sounds import training_takes
from .soundfeed import Labeled, Recording, SoundFeed, make_pool, tagging_accuracy, tagging_loss
from .tagger import Yamnet
from .trainlog import TrainLog
from .trainoptions import TrainOptions, read_corpus, read_entries

MOST_OF_A_PACKAGE = 300
"""Sounds of the corpus that one package gives at most: a handful of packages hold half of all
sounds, most of it speech."""

_AUDIO = "audio."


def train_audio(
    options: TrainOptions, network: Network, roots: Sequence[Path], log: TrainLog
) -> None:
    """Train the network's audio encoder as a tagger and leave it in ``audio.safetensors``."""
    preset = network.preset
    rate_hz = preset.sample_rate_hz
    window = round(preset.window_s * rate_hz)
    learned: list[Recording] = [*_clips(read_entries(roots, "train"), rate_hz)]
    if options.packages is not None:
        learned += _takes(options.packages, rate_hz, options.seed)
    held = _clips(read_entries(roots, "val"), rate_hz)
    categories = sorted({name for recording in learned for name in recording.categories})
    log.note(f"audio: {len(learned)} sounds of {len(categories)} categories")
    if options.corpus:
        learned += [_Unlabeled(s) for s in _spread(read_corpus(options, rate_hz, log).sounds)]
    bar = log.task("windows of sound", options.audio_windows)
    pool = make_pool(
        learned,
        categories,
        network.log_mel,
        windows=options.audio_windows,
        window_samples=window,
        sample_rate_hz=rate_hz,
        seed=options.seed,
        teacher=Yamnet(options.teacher) if options.teacher is not None else None,
        progress=bar.advance,
    )
    # Training begins from the seed, whatever encoder ships.
    torch.manual_seed(options.seed)
    encoder = preset.audio()
    assert isinstance(encoder, AudioCnn)  # noqa: S101  the caller looked
    tagger = AudioTagger(encoder, pool.n_tags).to(options.torch_device())
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

    best = options.out / "audio-best.safetensors"

    def keep(_score: float) -> None:
        tensors = {_AUDIO + name: value for name, value in encoder.state_dict().items()}
        checkpoints.write_tensors(best, tensors, {})

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
    best.replace(options.out / "audio.safetensors")
    load_encoder(encoder.cpu(), options.out / "audio.safetensors")
    network.audio = encoder.requires_grad_(requires_grad=False).eval()


def _clips(subsets: Sequence[Sequence[Entry]], rate_hz: int) -> list[Labeled]:
    """The sounds of clips in which one known category sounds throughout."""
    return [
        Labeled(entry.sound(rate_hz), entry.categories)
        for entries in subsets
        for entry in entries
        if entry.folder.subset == "s4" and entry.kind != "negative" and len(entry.categories) == 1
    ]


def _takes(packages: Path, rate_hz: int, seed: int) -> list[Labeled]:
    """Open-AVS's training sounds, before any clip is composed of them."""
    items = [i for i in catalogue.load() if i.kind in catalogue.SOUND_KINDS and "train" in i.splits]
    found = obtain(catalogue.wanted(items), packages)
    takes = training_takes(items, found, sample_rate_hz=rate_hz, seed=seed)
    return [Labeled(take.samples, (take.category,)) for take in takes]


@dataclass(frozen=True, slots=True)
class _Unlabeled:
    """A sound of the corpus, read from disk each time."""

    excerpt: corpus.Excerpt
    categories: tuple[str, ...] = ()

    @property
    def samples(self) -> NDArray[np.float32]:
        return self.excerpt.samples


def _spread(sounds: Sequence[corpus.Excerpt]) -> list[corpus.Excerpt]:
    """At most `MOST_OF_A_PACKAGE` sounds of each package, spread evenly over what it has."""
    by_package: dict[str, list[corpus.Excerpt]] = {}
    for sound in sounds:
        by_package.setdefault(sound.name.partition(":")[0], []).append(sound)
    return [
        own[i]
        for own in by_package.values()
        for i in np.unique(np.linspace(0, len(own) - 1, MOST_OF_A_PACKAGE).astype(int))
    ]


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Take an audio encoder of ours out of a file or a checkpoint."""
    tensors = checkpoints.read(path).tensors if path.is_dir() else checkpoints.read_tensors(path)[0]
    state = {n.removeprefix(_AUDIO): t for n, t in tensors.items() if n.startswith(_AUDIO)}
    check_tensors(state, encoder.state_dict(), str(path))
    encoder.load_state_dict(state)
