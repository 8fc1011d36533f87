"""What a training run is told, and where its clips are found."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from ..streams.avsbench import AVSBench, Entry, Split
from ..streams.avslayout import find_subset

Stages = Literal["all", "audio", "masks"]


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
        random: take no published weights at all, every part random: tries the whole training of a
            preset where its weights are not at hand.
        backbone: a file with the backbone's published weights, instead of fetching them.
        audio: an audio encoder (a run's ``audio.safetensors``, or a checkpoint) instead of training
            one; for presets with a published encoder its file, instead of fetching it.
        packages: folder of the Debian packages that Open-AVS is composed of: the audio encoder then
            also learns their training sounds as they are, above 8 kHz too, where the data set's
            16 kHz files are silent.
        corpus: let the audio encoder also learn from every sound that 155 Debian
            packages give (``streams/corpus.csv``, in ``packages`` or through apt), with a teacher.
        teacher: YAMNet's tflite file, to learn its scores and features besides the categories.
        seed: of everything random.
        threads: of torch; 0 leaves torch's choice. Equal results need equal threads.
        device: ``cpu``, ``cuda``, or ``auto``: a GPU where torch finds one.
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
    lr: float = 1e-3
    weight_decay: float = 5e-4
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
            words += [flag] if value is True else [flag, str(value)]
        return shlex.join(words)


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
