"""What a training run is told, and where its clips are found."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from ..model.losses import CLASS_WEIGHT
from ..streams import corpus
from ..streams.avsbench import AVSBench, Entry, Split
from ..streams.avslayout import find_subset
from .trainlog import TrainLog

PARTS = ("visual", "conditioning", "fusion", "decoder", "head")
"""What trains in the ``masks`` stage; ``visual`` is LoRA and the neck."""

Stages = Literal["all", "audio", "masks"]


class TrainError(Exception):
    """Training cannot start: what came, what is allowed, what to do."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What `atlasd train` is told.

    Attributes:
        out: the run's folder.
        preset: the network.
        start: a checkpoint to begin from, with its audio encoder, instead of untrained parts.
        keep: parts of the network that stay as they are in the ``masks`` stage, of `PARTS`.
        vary: what is to be other than in the preset, each ``name=value`` (see `Preset.vary`).
        data: a data set in AVSBench's layout (S4, MS3 or both), or None for the toy world alone.
        toy: clips of the toy world to train on besides; made in ``out``, in a few seconds each
            hundred.
        resume: go on with the run in ``out``, with the same options.
        stages: ``all``, or one alone.
        random: take no published weights at all, every part random: tries the whole training of a
            preset where its weights are not at hand.
        backbone: a file with the backbone's published weights, instead of fetching them.
        audio: an audio encoder (a run's ``audio.safetensors``, or a checkpoint) instead of training
            one; for presets with a published encoder its file, instead of fetching it.
        packages: folder of the Debian packages that Open-AVS is composed of: the audio encoder then
            also learns their training sounds as they are, above 8 kHz too, where the data set's
            16 kHz files are silent.
        corpus: let the audio encoder also learn from every sound that 155 Debian
            packages give (``streams/corpus.csv``, in ``packages`` or through apt), with a teacher;
            and the ``masks`` stage, that nothing in view sounds while people speak.
        teacher: YAMNet's tflite file, to learn its scores and features besides the categories.
        seed: of everything random.
        threads: of torch; 0 leaves torch's choice. Equal results need equal threads.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where torch finds one.
        epochs: of the ``masks`` stage.
        passes: over the clips in each of these epochs; validation follows each epoch.
        batch: pictures a step.
        sounds: sounds a picture meets at once.
        variants: variations of each clip's sounds that are kept encoded.
        blend: share of the sounds of one thing that are blended with another recording of its
            category in the ``masks`` stage.
        thin: share of the channels of a sound's features that are dropped in a batch.
        lr: learning rate of the ``masks`` stage.
        dice_weight: of the Dice term of its loss.
        class_weight: of the class term (the paper's λ_cls).
        weight_decay: of both stages.
        importance: pictures on which the importances of the kept weights are measured, which a
            learner holds them by (`model/baseimportance.py`); 0: none are written.
        audio_epochs: of the ``audio`` stage.
        audio_steps: steps in each of these.
        audio_windows: varied windows of sound that it learns from.
        audio_batch: windows a step.
        audio_lr: its learning rate.
        bfloat16: forward passes in bfloat16 where it is safe: faster, on processors that have it.
    """

    out: Path
    preset: str = "atlas-lite"
    start: Path | None = None
    keep: tuple[str, ...] = ()
    vary: tuple[str, ...] = ()
    data: Path | None = None
    toy: int = 0
    resume: bool = False
    stages: Stages = "all"
    random: bool = False
    backbone: Path | None = None
    audio: Path | None = None
    packages: Path | None = None
    corpus: bool = False
    teacher: Path | None = None
    seed: int = 0
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    epochs: int = 30
    passes: int = 1
    batch: int = 16
    sounds: int = 3
    variants: int = 4
    blend: float = 0.0
    thin: float = 0.3
    lr: float = 1e-3
    dice_weight: float = 1.0
    class_weight: float = CLASS_WEIGHT
    weight_decay: float = 5e-4
    importance: int = 300
    audio_epochs: int = 10
    audio_steps: int = 200
    audio_windows: int = 16_000
    audio_batch: int = 64
    audio_lr: float = 2e-3
    bfloat16: bool = False

    def torch_device(self) -> torch.device:
        """Where to train."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def command(self) -> str:
        """The command line that gives these options."""
        words = ["atlasd", "train"]
        defaults = TrainOptions(self.out)
        for name, value in asdict(self).items():
            if name == "resume" or (name != "out" and value == getattr(defaults, name)):
                continue
            flag = "--" + name.replace("_", "-")
            if value is True:
                words += [flag]
            else:
                for one in value if isinstance(value, tuple) else (value,):
                    words += [flag, str(one)]
        return shlex.join(words)

    def variation(self) -> dict[str, int]:
        """``vary`` by name.

        Raises:
            TrainError: one of them is no ``name=value`` with a whole number.
        """
        found: dict[str, int] = {}
        for one in self.vary:
            name, _, value = one.partition("=")
            if not value.isdecimal():
                raise TrainError(f"--vary {one}: name=value is needed, the value a whole number")
            found[name] = int(value)
        return found


def read_corpus(options: TrainOptions, sample_rate_hz: int, log: TrainLog) -> corpus.Corpus:
    """Every sound that Debian packages give, but what Open-AVS holds out.

    What was skipped and what was held out stands in the run's ``corpus.json``.
    """
    found = corpus.sounds(options.packages, sample_rate_hz=sample_rate_hz, seed=options.seed)
    path = options.out / "corpus.json"
    told = {"id": found.id, "skipped": found.skipped, "excluded": found.excluded}
    path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    log.note(
        f"corpus {found.id}: {len(found.sounds)} sounds, {found.minutes:.0f} minutes; "
        f"{len(found.skipped)} files or packages skipped, {len(found.excluded)} held out: {path}"
    )
    return found


def read_entries(roots: Sequence[Path], split: Split) -> list[list[Entry]]:
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
