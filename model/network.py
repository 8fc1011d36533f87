"""What every network here is: two frozen encoders, and parts that train between them and masks."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from .audio import PANN_32K, AudioCnn, AudioFeatures, Cnn14, FrontEnd, LogMel
from .folding import fold_batch_norm
from .fusion import ClassHead
from .lora import inject, lora_maps, merge, scale_to
from .pretrained import PublishedFile, WeightsError
from .pyramid import GridEncoder, PyramidEncoder
from .visual import LoraSpec, VitEncoder

UNTRAINED = "untrained"

VisualEncoder = VitEncoder | GridEncoder | PyramidEncoder
Rgb = tuple[float, float, float]


class Output(NamedTuple):
    """What the network says of a picture and its sound.

    Attributes:
        mask_logits: (B, H, W) at the input's resolution; above 0 is more likely sounding than not.
        class_logits: (B, C), or None where the network has no class head.
        fused: (B, h, w, D), the fused tokens that both were made of; None where nobody kept them.
    """

    mask_logits: Tensor
    class_logits: Tensor | None
    fused: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A network by name: its parts and the input that it was made for.

    Attributes:
        name: what users call it.
        visual: makes the visual encoder, with random weights and LoRA of the rank that it is given.
        audio: makes the audio encoder, with random weights.
        backbone_file: the published weights of the visual backbone; None: there are none.
        audio_file: the published weights of the audio encoder; None: they ship with the network.
        audio_of: the preset that an audio encoder of ours ships with; empty: this one.
        mean: of pictures scaled to 0..1, one for all channels or one for each.
        std: likewise.
        image_px: side of the square input.
        window_s: seconds of sound that belong to a frame.
        front_end: the log-mel spectrogram.
        categories: names of the class head's outputs; none: no class head.
        lora_rank: r of each pair; 0: the backbone stays as it is.
        lora_alpha: each pair is scaled by alpha / r.
        clip_frames: consecutive frames that the network sees together; 1: each by itself.
        varied: what `vary` changed, by name.
    """

    variable: ClassVar[Mapping[str, Sequence[int]]] = {
        "image_px": range(64, 1025, 32),
        "lora_rank": range(65),
        "lora_alpha": range(1, 257),
    }
    """What `vary` can change, and to what."""

    name: str
    visual: Callable[[int], VisualEncoder]
    audio: Callable[[], Cnn14 | AudioCnn]
    backbone_file: PublishedFile | None = None
    audio_file: PublishedFile | None = None
    audio_of: str = ""
    mean: float | Rgb = 0.5
    std: float | Rgb = 0.5
    image_px: int = 224
    window_s: float = 1.0
    front_end: FrontEnd = PANN_32K
    categories: tuple[str, ...] = ()
    lora_rank: int = 8
    lora_alpha: int = 16
    clip_frames: int = 1
    varied: tuple[tuple[str, int], ...] = ()

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the sound that the network takes."""
        return self.front_end.sample_rate_hz

    def network(self) -> Network:
        """The network with random weights."""
        raise NotImplementedError

    def vary(self, changes: Mapping[str, int]) -> Self:
        """The same network with something else in it: what ablations compare.

        Args:
            changes: values by name, of `variable`; what is on or off is 1 or 0.

        Raises:
            ValueError: a name is unknown or a value out of its bounds.
        """
        fields: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in self.variable:
                raise ValueError(f"{name!r} cannot be varied; {', '.join(self.variable)} can")
            allowed = self.variable[name]
            if value not in allowed:
                among = (
                    f"one of {', '.join(map(str, allowed))}"
                    if len(allowed) < 5
                    else f"{allowed[0]} to {allowed[-1]} in steps of {allowed[1] - allowed[0]}"
                )
                raise ValueError(f"{name} is {value}; it must be {among}")
            fields[name] = type(getattr(self, name))(value)
        varied = tuple(sorted((dict(self.varied) | dict(changes)).items()))
        return replace(self, **fields, varied=varied)

    def classify(self, categories: Sequence[str]) -> Self:
        """The same network with other classes; none: without a class head.

        Raises:
            ValueError: a name stands there twice.
        """
        twice = sorted({name for name in categories if list(categories).count(name) > 1})
        if twice:
            raise ValueError(f"categories name {', '.join(twice)} more than once; once is needed")
        return replace(self, categories=tuple(categories))


class Network(nn.Module):
    """A network; who inherits adds what lies between the encoders and the class head.

    The visual backbone (but for LoRA) and the audio encoder are frozen: they ask for no gradients
    and stay in `eval()` whatever `train()` is told.

    Attributes:
        preset: what it was built from.
        version: names the weights; `untrained` before training.
        trained: whether the decoder was trained.
        published: the frozen parts (`backbone`, `audio`) that hold published weights; checkpoints
            leave these out.
        head: names what sounds; None: there are no classes.
    """

    def __init__(self, preset: Preset) -> None:
        """Builds the encoders with random weights; `build` and `load` are how users get one."""
        super().__init__()
        self.preset = preset
        self.version = UNTRAINED
        self.trained = False
        self.published: frozenset[str] = frozenset()
        self.log_mel = LogMel(preset.front_end)
        self.visual = preset.visual(preset.lora_rank)
        scale_to(self.visual, preset.lora_alpha)
        self.audio = preset.audio().requires_grad_(requires_grad=False)
        self.head: ClassHead | None = None

    def _complete(self, fused_dim: int) -> None:
        """What remains once all other parts are there: the class head, and freezing.

        Args:
            fused_dim: size of a token of `Output.fused`.
        """
        self._fused_dim = fused_dim
        if self.preset.categories:
            self.head = ClassHead(fused_dim, len(self.preset.categories))
        for name, parameter in self.visual.backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        self.train(mode=False)

    @property
    def clip_frames(self) -> int:
        """Consecutive frames that are seen together; no weight depends on it."""
        return self.preset.clip_frames

    @clip_frames.setter
    def clip_frames(self, frames: int) -> None:
        self.preset = self.preset.vary({"clip_frames": frames})

    def train(self, mode: bool = True) -> Self:
        """Sets the trainable parts' mode; frozen parts stay in `eval()`."""
        super().train(mode)
        self.visual.backbone.eval()
        self.audio.eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """All but the frozen encoders' (and LoRA); none after `for_serving`."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def unfreeze_backbone(self) -> None:
        """Lets the whole visual backbone train; checkpoints then hold it.

        It stays in `eval()`: where it has BatchNorm, scales and shifts move, statistics do not.
        """
        self.visual.backbone.requires_grad_(requires_grad=True)
        self.published -= {"backbone"}

    @property
    def decoder_adapted(self) -> bool:
        """Whether `adapt_decoder` was called."""
        return bool(lora_maps(self.get_submodule("decoder")))

    def adapt_decoder(self, rank: int) -> None:
        """Freezes the decoder as it is and puts LoRA on each of its convolutions, which trains.

        Ours; the paper trains the whole decoder throughout. All that was learned stays: kernels,
        biases, and the scales and shifts of GroupNorm.

        Args:
            rank: r; alpha is the preset's.

        Raises:
            ValueError: it was done before, or the rank is 0.
        """
        if self.decoder_adapted or rank < 1:
            raise ValueError(f"rank is {rank}; a decoder is adapted once, with a rank of 1 or more")
        decoder = self.get_submodule("decoder").requires_grad_(requires_grad=False)
        found = [path for path, m in decoder.named_modules() if isinstance(m, nn.Conv2d)]
        inject(decoder, *LoraSpec("|".join(map(re.escape, found)), rank, self.preset.lora_alpha))

    def grow(self, categories: Sequence[str]) -> None:
        """Makes room for more classes; what is known of the others stays as it is.

        Args:
            categories: all names afterwards; those that are there now come first, in their order.

        Raises:
            ValueError: they do not, or a name stands there twice.
        """
        known = self.preset.categories
        if tuple(categories[: len(known)]) != known:
            raise ValueError(
                f"categories are {', '.join(categories) or 'none'}; they must begin with those "
                f"that are there: {', '.join(known)}"
            )
        self.preset = self.preset.classify(categories)
        if len(categories) == len(known):
            return
        if self.head is None:
            like = next(self.audio.parameters())
            self.head = ClassHead(self._fused_dim, len(categories)).to(like)
        else:
            self.head.grow(len(categories))

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures to network input.

        Args:
            images: uint8 (B, H, W, 3) RGB.

        Returns:
            float32 (B, 3, H, W), a view of the same memory order (channels last).
        """
        mean, std = self.preset.mean, self.preset.std
        x = images.permute(0, 3, 1, 2).float()
        if isinstance(mean, float) and isinstance(std, float):
            return x.mul_(1.0 / (255.0 * std)).sub_(mean / std)
        center, spread = (x.new_tensor(v).reshape(-1, 1, 1) for v in (mean, std))
        return x.div_(255.0).sub_(center).div_(spread)

    def encode_audio(self, log_mel: Tensor) -> AudioFeatures:
        """Features of log-mel spectrograms (B, 1, T, 64), without gradients."""
        with torch.no_grad():
            return self.audio(log_mel)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Output:
        """Segments what sounds.

        Args:
            frames: (B, 3, H, W), as `normalise` gives them; consecutive ones of a clip stand one
                after the other.
            log_mel: (B, 1, T, 64), as `log_mel` gives them.

        Returns:
            Mask logits (B, H, W) and class logits (B, C) or None.
        """
        return self.forward_features(frames, self.encode_audio(log_mel))

    def forward_features(self, frames: Tensor, audio: AudioFeatures) -> Output:
        """`forward` with sound that is encoded already.

        Args:
            frames: (B, 3, H, W), as `normalise` gives them.
            audio: features of B·K sounds, the K of each picture one after the other.

        Returns:
            Mask logits (B·K, H, W) and class logits (B·K, C) or None.
        """
        raise NotImplementedError

    def require_trained(self) -> None:
        """Refuses to serve a network whose decoder was never trained.

        Raises:
            WeightsError: it was not; the text names the command that trains.
        """
        if not self.trained:
            raise WeightsError(
                f"this {self.preset.name} was never trained: its masks would mean nothing; train "
                f"it with `atlasd train --preset {self.preset.name}`, or name trained weights"
            )

    def for_serving(self) -> Self:
        """A copy for inference: LoRA merged, BatchNorm folded, channels last, no gradients.

        Its mask logits equal this network's to 1e-4.

        Raises:
            WeightsError: it sees several frames together, and frames are served one by one.
        """
        if self.clip_frames > 1:
            raise WeightsError(
                f"this {self.preset.name} sees {self.clip_frames} frames of a clip together, and "
                "frames are served one by one; set its clip_frames to 1 (the weights stay as they "
                "are), or train it so with `--vary clip_frames=1`"
            )
        served = copy.deepcopy(self).eval().requires_grad_(requires_grad=False)
        merge(served)
        fold_batch_norm(served.visual.backbone)
        fold_batch_norm(served.audio)
        return served.to(memory_format=torch.channels_last)
