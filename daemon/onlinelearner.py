"""The network that learns: it predicts labeled clips, learns them, and keeps what it knew.

One object serves the live learner, and whatever replays its journal: the steps are those of
`model.training.Trainer`, as in the offline evaluator's stream. It knows no spool, no clock and no
process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.adapting import Parts, adapted, hold_base, make_room
from ..model.baseimportance import BaseImportance
from ..model.consolidator import consolidator_of
from ..model.method import Batch, MethodError
from ..model.methods import load as load_method
from ..model.metrics import frame_iou
from ..model.network import Network
from ..model.taskloss import task_loss
from ..model.teacher import Teacher, answer
from ..model.training import Part, Settings, Trainer, TrainingError, undivided
from ..streams.clips import LabeledClip
from .clipbatch import batches_of, labels_of

_ENDLESS = 1 << 40
"""Steps of the one epoch that a stream is."""


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How clips are learned.

    Attributes:
        method: of `model.methods`, or several joined by ``+``.
        options: the method's.
        parts: what moves; see `model.adapting`.
        lr: AdamW's rate.
        weight_decay: AdamW's.
        clip_norm: largest norm of the whole gradient; 0 leaves it as it is.
        frames: most frames of a step.
        passes: over the frames of a batch of clips.
        class_weight: of the class term of the loss (Eq. 10).
        consolidate: on a ``plateau`` of the loss, or ``every:N`` steps.
        seed: of the method's random numbers.
    """

    method: str = "atlas"
    options: Mapping[str, bool | int | float | str] = field(
        default_factory=dict[str, bool | int | float | str]
    )
    parts: Parts = "adapters"
    lr: float = 1e-3
    weight_decay: float = 5e-4
    clip_norm: float = 1.0
    frames: int = 8
    passes: int = 2
    class_weight: float = 0.5
    consolidate: str = "plateau"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Best:
    """Earlier weights that later ones are compared with: what trains of them, by name."""

    version: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LearnState:
    """All that a learner depends on besides its base and its settings.

    Attributes:
        tensors: by name.
        manifest: what JSON can hold.
        best: the best weights so far, for whoever judges; None: these are, or nobody says.
    """

    tensors: Mapping[str, Tensor]
    manifest: Mapping[str, Any]
    best: Best | None = None


class OnlineLearner:
    """A network in the middle of a stream.

    Args:
        base: the deployed network. It stays as it is; its frozen parts are shared, and stop asking
            for gradients.
        settings: how to learn.
        state: where another learner on the same base stood, which may have learned at another
            rate; None begins at the base.
        importance: of the base's weights, for methods that hold a base; None: nothing is held.
        part: entered for each part of the work that computes on the device.
        beat: called after each clip that was read, each batch that was scored and each step.

    Attributes:
        network: as learned so far, in `eval()` between two calls.
        trainer: its loop.

    Raises:
        MethodError: there is no such method, it works only where boundaries are told, or the state
            was learned with another base held.
        TrainingError: the state belongs to another network or other settings.
    """

    def __init__(
        self,
        base: Network,
        settings: LearnSettings,
        state: LearnState | None = None,
        importance: BaseImportance | None = None,
        part: Part = undivided,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self._part, self._beat = part, beat
        self.network = adapted(base, settings.parts)
        method = load_method(settings.method, dict(settings.options))
        if method.needs_boundaries:
            raise MethodError(
                f"{settings.method} works only where boundaries are told, and a live stream tells "
                "none; choose atlas, finetune, si, mas or another that needs none"
            )
        if method.mixes_clips:
            raise MethodError(
                f"{settings.method} mixes sounds, and a live stream's are encoded before it sees "
                "them; set the option by which it mixes otherwise (panda: sound=replace)"
            )
        if importance is not None:
            hold_base(method, importance)
        if state is not None:
            self.network.grow(state.manifest["categories"])
        method.weigh_classes(settings.class_weight)
        method.prepare(self.network)
        method.begin(None)
        self._steps_before = 0  # earlier versions counted anew where the head grew
        self.trainer = Trainer(
            self.network,
            task_loss(self.network, settings.class_weight),
            Settings(
                epochs=1,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
            ),
            _ENDLESS,
            method=method,
            consolidator=consolidator_of(settings.consolidate),
            seed=settings.seed,
            part=part,
        )
        if state is not None:
            self._steps_before = state.manifest["steps_before"]
            told = {**state.manifest["trainer"], "settings": asdict(self.trainer.settings)}
            self.trainer.load_state(state.tensors, told, "the learned state")

    @property
    def categories(self) -> tuple[str, ...]:
        """What the class head knows."""
        return tuple(self.network.preset.categories)

    @property
    def steps(self) -> int:
        """Optimizer steps since the base."""
        return self._steps_before + self.trainer.step_count

    @property
    def consolidations(self) -> int:
        """How often the method kept what was learned: on plateaus, by count, by order."""
        return self.trainer.consolidations

    def batches(self, clips: Sequence[LabeledClip]) -> list[Batch]:
        """Clips as this network takes them; see `clipbatch.batches_of`."""
        return batches_of(clips, self.network, self.settings.frames, self._beat, self._part)

    def as_it_is(self) -> Teacher:
        """The network at this moment, to be asked later; only what trains is copied."""
        return Teacher(self.network)

    def score(
        self, batches: Sequence[Batch], network: Network | None = None
    ) -> NDArray[np.float64]:
        """J of each frame, float64 (n,), at the network's size; see `model.metrics.frame_iou`.

        Args:
            batches: what to predict.
            network: what predicts; None: this one.
        """
        chosen = network or self.network
        found: list[NDArray[np.float64]] = []
        for batch in batches:
            with self._part("score"):
                found.append(frame_scores(chosen, [batch]))
            self._beat()
        return np.concatenate(found)

    def learn(self, clips: Sequence[LabeledClip], batches: Sequence[Batch], seed: int) -> float:
        """Learn clips, once; new classes among them get a row of the head.

        Args:
            clips: at least one.
            batches: of these clips, see `batches`.
            seed: of everything random in it.

        Returns:
            The mean of the task's loss over the steps.

        Raises:
            TrainingError: a loss or gradient was not finite. What was learned of these clips
                before stays; go back to an earlier `state`.
        """
        torch.manual_seed(seed)
        make_room(self.network, self.trainer, (clip.category for clip in clips))
        sizes = [len(batch["labels"]) for batch in batches]
        labels = labels_of(clips, self.network).split(sizes)
        known = [{**batch, "labels": those} for batch, those in zip(batches, labels, strict=True)]
        losses: list[float] = []
        self.network.train()
        try:
            for batch in known * self.settings.passes:
                losses.append(self.trainer.step(batch)["loss"])
                self._beat()
        finally:
            self.network.eval()
        return float(np.mean(losses))

    def consolidate(self) -> None:
        """Keep what was learned now, plateau or not."""
        self.trainer.consolidate()

    def state(self) -> LearnState:
        """What to go on from; a copy."""
        tensors, manifest = self.trainer.state()
        with self._part("state"):
            kept = {name: value.detach().cpu().clone() for name, value in tensors.items()}
        told = {
            "trainer": manifest,
            "categories": list(self.categories),
            "steps_before": self._steps_before,
        }
        return LearnState(kept, told)

    def serving(self) -> dict[str, Tensor]:
        """The tensors of the serving form (see `Network.for_serving`) that learning can move.

        LoRA is merged from the pristine base, so that versions do not drift. What is merged is
        tried on a picture and a sound before anyone serves it.

        Raises:
            TrainingError: what it says of them is not finite.
        """
        with self._part("serving"):
            served = self.network.for_serving()
            _rehearse(served)
            state = served.state_dict()
            return {name: state[name].cpu().contiguous() for name in self._served_names()}

    def _served_names(self) -> list[str]:
        moving = (name for name, p in self.network.named_parameters() if p.requires_grad)
        merged = (
            f"{name.partition('.pairs.')[0]}.weight" if ".lora_" in name else name
            for name in moving
        )
        return list(dict.fromkeys(merged))


@torch.no_grad()
def frame_scores(network: Network, batches: Sequence[Batch]) -> NDArray[np.float64]:
    """J of each frame, float64 (n,), at the network's size; see `model.metrics.frame_iou`."""
    device = next(network.parameters()).device
    found: list[NDArray[np.float64]] = []
    for batch in batches:
        out = answer(network, {name: value.to(device) for name, value in batch.items()})
        pred = (out.mask_logits > 0).cpu().numpy()
        found.append(frame_iou(pred, batch["masks"].numpy().astype(np.bool_)))
    return np.concatenate(found)


@torch.no_grad()
def _rehearse(served: Network) -> None:
    """Let a serving form say something of noise, whose random numbers are not those of learning."""
    preset, device = served.preset, next(served.parameters()).device
    source = torch.Generator().manual_seed(0)
    images = torch.rand(1, preset.image_px, preset.image_px, 3, generator=source)
    n_samples = round(preset.window_s * preset.sample_rate_hz)
    sound = 0.2 * torch.rand(1, n_samples, generator=source) - 0.1
    frames = served.normalise((255 * images).to(torch.uint8).to(device))
    out = served(frames, served.log_mel(sound.to(device)))
    said = [out.mask_logits, *([] if out.class_logits is None else [out.class_logits])]
    if not all(bool(each.isfinite().all()) for each in said):
        raise TrainingError("what was learned says nothing finite in the form that is served")
