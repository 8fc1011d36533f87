"""The buffers in front of a network: samples are copied in, batches are taken from there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..streams.clips import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Staging:
    """Input of up to a batch of samples.

    Attributes:
        images: uint8 (B, px, px, 3).
        sound: float32 (B, n).
        sample_rate_hz: of the sound.
    """

    images: torch.Tensor
    sound: torch.Tensor
    sample_rate_hz: int

    @classmethod
    def allocate(
        cls,
        batch: int,
        image_px: int,
        n_samples: int,
        sample_rate_hz: int,
        *,
        device: torch.device,
        pinned: bool = False,
    ) -> Staging:
        """Empty buffers for ``batch`` pictures of ``image_px`` and windows of ``n_samples``.

        Args:
            batch: rows.
            image_px: side of a picture.
            n_samples: of a window.
            sample_rate_hz: of the sound.
            device: where.
            pinned: in memory that a GPU reads by itself.
        """
        images = torch.zeros(
            (batch, image_px, image_px, 3), dtype=torch.uint8, device=device, pin_memory=pinned
        )
        sound = torch.zeros(
            (batch, n_samples), dtype=torch.float32, device=device, pin_memory=pinned
        )
        return cls(images, sound, sample_rate_hz)

    def clear(self) -> None:
        """Black and silent."""
        self.images.zero_()
        self.sound.zero_()

    def put(self, place: int, sample: Sample) -> None:
        """Copy a sample into row ``place``.

        Raises:
            ValueError: it is of another size or rate.
        """
        image, window = sample.frame.image, sample.window
        want_image, want_n = tuple(self.images.shape[1:]), self.sound.shape[1]
        if image.shape != want_image:
            raise ValueError(
                f"the frame is {image.shape}; this network takes {want_image}: open the source"
                f" with image_size_px=({want_image[1]}, {want_image[0]})"
            )
        if window.samples.size != want_n or window.sample_rate_hz != self.sample_rate_hz:
            raise ValueError(
                f"the window holds {window.samples.size} samples at {window.sample_rate_hz} Hz;"
                f" this network takes {want_n} at {self.sample_rate_hz} Hz"
            )
        np.copyto(self.images[place].numpy(), image)
        np.copyto(self.sound[place].numpy(), window.samples)
