"""AVSBench's network: TPAVI between a pyramid of maps and a RefineNet-like decoder.

Zhou et al., "Audio-Visual Segmentation" (arXiv 2207.05042), from the paper and the sizes of the
authors' code. What is other here:

- The sound is the embedding of this project's frozen audio encoder (PANN), as in every network that
  the ATLAS paper compares, not VGGish's.
- The backbone is frozen but for LoRA. The authors train it, without LoRA: that is `lora_rank` 0 and
  `unfreeze_backbone`.
- W_z ends in GroupNorm instead of BatchNorm (see `tpavi`). The rest has no BatchNorm either way.
- The coarsest stage of the decoder has one residual unit: its other one is never used there.
- It learns by the loss that all systems here have, at one rate for all, unless it is asked to learn
  by the authors' own (`avsbenchloss`).
- A class head reads the coarsest map after TPAVI, and a fresh mask is mostly empty, as in ATLAS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from .audio import AudioFeatures
from .neck import Neck
from .network import Network, Output, Preset
from .pyramid import PyramidEncoder
from .refinenet import RefineDecoder
from .tpavi import Tpavi


class Stage(NamedTuple):
    """What TPAVI makes of one of the backbone's maps.

    Attributes:
        maps: (B, D, h, w), what the decoder is given.
        sounds: (B, D), the sound of each picture in the channels of the maps.
    """

    maps: Tensor
    sounds: Tensor


class AvsBench(Network):
    """The network. `clip_frames` consecutive frames of a clip attend to their sounds together."""

    def __init__(self, preset: AvsBenchPreset) -> None:
        """Builds all parts with random weights; `build` and `load` are how users get one."""
        super().__init__(preset)
        visual, dim = self.visual, preset.dim
        assert isinstance(visual, PyramidEncoder)  # noqa: S101  as the preset makes it
        stages = visual.map_dims
        self.necks = nn.ModuleList(Neck(channels, dim) for channels in stages)
        self.fusion = nn.ModuleList(Tpavi(self.audio.embedding_dim, dim) for _ in stages)
        self.decoder = RefineDecoder(dim)
        self._complete(dim)

    def forward_features(self, frames: Tensor, audio: AudioFeatures) -> Output:
        """`forward` with sound that is encoded already; see `Network`.

        Raises:
            ValueError: the pictures are no whole clips, or not each has the same number of sounds.
        """
        n_sounds = len(audio.embedding)
        maps = self._see(frames, n_sounds)
        K = n_sounds // len(frames)
        said = [self._hear(maps, audio.embedding[k::K], frames.shape[-2:])[0] for k in range(K)]
        if K == 1:
            return said[0]
        masks, classes, fused = zip(*said, strict=True)
        return Output(
            torch.stack(masks, dim=1).flatten(0, 1),
            None if self.head is None else torch.stack(classes, dim=1).flatten(0, 1),
            torch.stack(fused, dim=1).flatten(0, 1),
        )

    def forward_stages(
        self, frames: Tensor, audio: AudioFeatures
    ) -> tuple[Output, tuple[Stage, ...]]:
        """`forward_features` of pictures with one sound each, and the stages that it went through.

        Returns:
            What the network says, and its stages from stride 4 to 32.

        Raises:
            ValueError: the pictures are no whole clips, or not each has one sound.
        """
        if len(audio.embedding) != len(frames):
            raise ValueError(
                f"got {len(frames)} frames and {len(audio.embedding)} sounds; each needs one"
            )
        maps = self._see(frames, len(frames))
        out, heard = self._hear(maps, audio.embedding, frames.shape[-2:])
        sounds = (cast(Tpavi, tpavi).align(audio.embedding) for tpavi in self.fusion)
        return out, tuple(map(Stage, heard, sounds))

    def _see(self, frames: Tensor, n_sounds: int) -> list[Tensor]:
        """The backbone's maps in the decoder's channels, (B, D, h, w) each."""
        B, T = len(frames), self.clip_frames
        if B % T or n_sounds % B or not n_sounds:
            raise ValueError(
                f"got {B} frames and {n_sounds} sounds; clips of {T} consecutive frames are needed "
                "(clip_frames), and the same number of sounds for each frame"
            )
        return [neck(x) for neck, x in zip(self.necks, self.visual(frames), strict=True)]

    def _hear(
        self, maps: Sequence[Tensor], embedding: Tensor, size: torch.Size
    ) -> tuple[Output, tuple[Tensor, ...]]:
        """What maps (B, D, h, w) say with one sound (B, De) for each picture, and they after it."""
        heard = tuple(
            tpavi(x, embedding, self.clip_frames)
            for tpavi, x in zip(self.fusion, maps, strict=True)
        )
        fused = heard[-1].permute(0, 2, 3, 1)  # (B, h, w, D)
        classes = self.head(fused) if self.head is not None else None
        return Output(self.decoder(heard, size), classes, fused), heard


@dataclass(frozen=True, slots=True)
class AvsBenchPreset(Preset):
    """An AVSBench by name.

    Attributes:
        visual: as `Preset`'s, of four maps.
        dim: channels of each map from the neck on; the authors have 256.
        clip_frames: 5, the authors'.
    """

    variable: ClassVar[Mapping[str, Sequence[int]]] = {
        **Preset.variable,
        "dim": (32, 64, 128, 256),
        "clip_frames": range(1, 65),
    }

    visual: Callable[[int], PyramidEncoder]
    dim: int = 256
    clip_frames: int = 5

    def network(self) -> AvsBench:
        """The network with random weights."""
        return AvsBench(self)
