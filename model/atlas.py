"""ATLAS: picture and sound in, the mask of what sounds out.

The modules are those of "Can You Hear, Localize, and Segment Continually?" (arXiv 2603.08967), in
its order: visual encoder, audio encoder, conditioning, fusion, decoder, class head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .audio import AudioFeatures
from .decoder import Decoder
from .fusion import Conditioning, Fusion
from .network import Network, Output, Preset
from .pyramid import GridEncoder
from .visual import VitEncoder

__all__ = ["Atlas", "AtlasPreset", "Output", "Preset"]


class Atlas(Network):
    """The network: sound modulates visual tokens, then they attend to it."""

    def __init__(self, preset: AtlasPreset) -> None:
        """Builds all parts with random weights; `build` and `load` are how users get one."""
        super().__init__(preset)
        visual, audio = self.visual, self.audio
        assert isinstance(visual, VitEncoder | GridEncoder)  # noqa: S101  as the preset makes them
        dim = visual.token_dim
        self.conditioning = (
            Conditioning(audio.embedding_dim, dim, preset.hidden_dim)
            if preset.conditioning
            else None
        )
        self.fusion = Fusion(audio.token_dim, dim, preset.heads)
        skip_dims = visual.skip_dims if preset.skips else ()
        self.decoder = Decoder(dim, preset.decoder_widths, skip_dims)
        self._complete(dim)

    def forward_features(self, frames: Tensor, audio: AudioFeatures) -> Output:
        """`forward` with sound that is encoded already; see `Network`."""
        tokens, skips = self.visual(frames)
        K = len(audio.embedding) // len(frames)
        if K > 1:
            tokens = tokens.repeat_interleave(K, dim=0)
            skips = tuple(skip.repeat_interleave(K, dim=0) for skip in skips)
        if self.conditioning is not None:
            tokens = self.conditioning(tokens, audio.embedding)
        fused = self.fusion(tokens, audio.tokens)  # (B, h, w, D)
        masks = self.decoder(fused, skips, frames.shape[-2:])
        classes = self.head(fused) if self.head is not None else None
        return Output(masks, classes, fused)


@dataclass(frozen=True, slots=True)
class AtlasPreset(Preset):
    """An ATLAS by name.

    Attributes:
        visual: as `Preset`'s, of tokens and skips.
        heads: attention heads of the fusion.
        hidden_dim: of the conditioning's MLP.
        decoder_widths: channels of the decoder at strides 16, 8 and 4.
        conditioning: whether sound modulates the visual tokens before the fusion.
        skips: whether the decoder sees the visual encoder's earlier maps.
    """

    variable: ClassVar[Mapping[str, Sequence[int]]] = {
        **Preset.variable,
        "heads": (1, 2, 4, 8),
        "conditioning": (0, 1),
        "skips": (0, 1),
        "clip_frames": range(1, 65),
    }
    """``clip_frames`` changes nothing of the network: each frame is seen by itself. It tells those
    who feed it to keep clips whole, for methods that look at a clip's frames together (L2P)."""

    visual: Callable[[int], VitEncoder | GridEncoder]
    heads: int = 1
    hidden_dim: int = 256
    decoder_widths: tuple[int, int, int] = (128, 64, 32)
    conditioning: bool = True
    skips: bool = True

    def network(self) -> Atlas:
        """The network with random weights."""
        return Atlas(self)
