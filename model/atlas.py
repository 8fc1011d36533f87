"""ATLAS: picture and sound in, the mask of what sounds out.

The modules are those of "Can You Hear, Localize, and Segment Continually?" (arXiv 2603.08967), in
its order: visual encoder, audio encoder, conditioning, fusion, decoder, class head.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .audio import PANN_32K, AudioCnn, AudioFeatures, Cnn14, FrontEnd, LogMel
from .decoder import Decoder
from .folding import fold_batch_norm
from .fusion import ClassHead, Conditioning, Fusion
from .lora import merge
from .pretrained import PublishedFile, WeightsError
from .visual import CnnEncoder, VitEncoder

UNTRAINED = "untrained"

VARIABLE: dict[str, Sequence[int]] = {
    "image_px": range(64, 1025, 32),
    "lora_rank": range(65),
    "heads": (1, 2, 4, 8),
    "conditioning": (0, 1),
    "skips": (0, 1),
}
"""What `Preset.vary` can change, and to what."""


class Output(NamedTuple):
    """What the network says of a picture and its sound.

    Attributes:
        mask_logits: (B, H, W) at the input's resolution; above 0 is more likely sounding than not.
        class_logits: (B, C), or None where the network has no class head.
    """

    mask_logits: Tensor
    class_logits: Tensor | None


@dataclass(frozen=True, slots=True)
class Preset:
    """A network by name: its parts and the input that it was made for.

    Attributes:
        name: what users call it.
        visual: makes the visual encoder, with random weights and LoRA of the rank that it is given.
        audio: makes the audio encoder, with random weights.
        backbone_file: the published weights of the visual backbone; None: there are none.
        audio_file: the published weights of the audio encoder; None: they ship with the network.
        mean: of pictures scaled to 0..1, one for all channels.
        std: likewise.
        image_px: side of the square input.
        window_s: seconds of sound that belong to a frame.
        front_end: the log-mel spectrogram.
        categories: names of the class head's outputs; none: no class head.
        heads: attention heads of the fusion.
        hidden_dim: of the conditioning's MLP.
        decoder_widths: channels of the decoder at strides 16, 8 and 4.
        lora_rank: r of each pair; 0: the backbone stays as it is.
        conditioning: whether sound modulates the visual tokens before the fusion.
        skips: whether the decoder sees the visual encoder's earlier maps.
        varied: what `vary` changed, by name.
    """

    name: str
    visual: Callable[[int], VitEncoder | CnnEncoder]
    audio: Callable[[], Cnn14 | AudioCnn]
    backbone_file: PublishedFile | None = None
    audio_file: PublishedFile | None = None
    mean: float = 0.5
    std: float = 0.5
    image_px: int = 224
    window_s: float = 1.0
    front_end: FrontEnd = PANN_32K
    categories: tuple[str, ...] = ()
    heads: int = 1
    hidden_dim: int = 256
    decoder_widths: tuple[int, int, int] = (128, 64, 32)
    lora_rank: int = 8
    conditioning: bool = True
    skips: bool = True
    varied: tuple[tuple[str, int], ...] = ()

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the sound that the network takes."""
        return self.front_end.sample_rate_hz

    def vary(self, changes: Mapping[str, int]) -> Preset:
        """The same network with something else in it: what ablations compare.

        Args:
            changes: values by name, of `VARIABLE`; what is on or off is 1 or 0.

        Raises:
            ValueError: a name is unknown or a value out of its bounds.
        """
        fields: dict[str, Any] = {}
        for name, value in changes.items():
            if name not in VARIABLE:
                raise ValueError(f"{name!r} cannot be varied; {', '.join(VARIABLE)} can")
            allowed = VARIABLE[name]
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


class Atlas(nn.Module):
    """The network.

    The visual backbone (but for LoRA) and the audio encoder are frozen: they ask for no gradients
    and stay in `eval()` whatever `train()` is told.

    Attributes:
        preset: what it was built from.
        version: names the weights; `untrained` before training.
        trained: whether the decoder was trained.
        published: the frozen parts (`backbone`, `audio`) that hold published weights; checkpoints
            leave these out.
    """

    def __init__(self, preset: Preset) -> None:
        """Builds all parts with random weights; `build` and `load` are how users get one."""
        super().__init__()
        self.preset = preset
        self.version = UNTRAINED
        self.trained = False
        self.published: frozenset[str] = frozenset()
        self.log_mel = LogMel(preset.front_end)
        self.visual = preset.visual(preset.lora_rank)
        self.audio = preset.audio().requires_grad_(requires_grad=False)
        dim = self.visual.token_dim
        self.conditioning = (
            Conditioning(self.audio.embedding_dim, dim, preset.hidden_dim)
            if preset.conditioning
            else None
        )
        self.fusion = Fusion(self.audio.token_dim, dim, preset.heads)
        skip_dims = self.visual.skip_dims if preset.skips else ()
        self.decoder = Decoder(dim, preset.decoder_widths, skip_dims)
        self.head = ClassHead(dim, len(preset.categories)) if preset.categories else None
        for name, parameter in self.visual.backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        self.train(mode=False)

    def train(self, mode: bool = True) -> Atlas:
        """Sets the trainable parts' mode; frozen parts stay in `eval()`."""
        super().train(mode)
        self.visual.backbone.eval()
        self.audio.eval()
        return self

    def trainable_parameters(self) -> list[nn.Parameter]:
        """LoRA, neck, conditioning, fusion, decoder and head; none after `for_serving`."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def normalise(self, images: Tensor) -> Tensor:
        """Pictures to network input.

        Args:
            images: uint8 (B, H, W, 3) RGB.

        Returns:
            float32 (B, 3, H, W), a view of the same memory order (channels last).
        """
        scale = 1.0 / (255.0 * self.preset.std)
        x = images.permute(0, 3, 1, 2).float()
        return x.mul_(scale).sub_(self.preset.mean / self.preset.std)

    def encode_audio(self, log_mel: Tensor) -> AudioFeatures:
        """Features of log-mel spectrograms (B, 1, T, 64), without gradients."""
        with torch.no_grad():
            return self.audio(log_mel)

    def forward(self, frames: Tensor, log_mel: Tensor) -> Output:
        """Segments what sounds.

        Args:
            frames: (B, 3, H, W), as `normalise` gives them.
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
        tokens, skips = self.visual(frames)
        K = len(audio.embedding) // len(frames)
        if K > 1:
            tokens = tokens.repeat_interleave(K, dim=0)
            skips = tuple(skip.repeat_interleave(K, dim=0) for skip in skips)
        if self.conditioning is not None:
            tokens = self.conditioning(tokens, audio.embedding)
        fused = self.fusion(tokens, audio.tokens)  # (B, h, w, D)
        masks = self.decoder(fused, skips, frames.shape[-2:])
        return Output(masks, self.head(fused) if self.head is not None else None)

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

    def for_serving(self) -> Atlas:
        """A copy for inference: LoRA merged, BatchNorm folded, channels last, no gradients.

        Its mask logits equal this network's to 1e-4.
        """
        served = copy.deepcopy(self).eval().requires_grad_(requires_grad=False)
        merge(served.visual.backbone)
        fold_batch_norm(served.visual.backbone)
        fold_batch_norm(served.audio)
        return served.to(memory_format=torch.channels_last)
