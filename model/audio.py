"""The audio encoders: log-mel front end, PANN's Cnn14, and the small CNN of `atlas-lite`.

Cnn14 is that of Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio
Pattern Recognition" (arXiv 1912.10211), and reads its authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .pretrained import TensorDict, WeightsError, check_tensors

N_AUDIOSET_CLASSES = 527


class AudioFeatures(NamedTuple):
    """What the network needs of a sound.

    Attributes:
        tokens: float (B, T', Da), one token per stretch of time.
        embedding: float (B, De), the window as a whole.
    """

    tokens: Tensor
    embedding: Tensor


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """The constants of a log-mel spectrogram, named as PANN's.

    Attributes:
        sample_rate_hz: samples a second.
        window: samples of the periodic Hann window, and of the DFT.
        hop: samples from one window to the next.
        fmin_hz: lower edge of the first mel band.
        fmax_hz: upper edge of the last.
        n_mels: mel bands.
    """

    sample_rate_hz: int
    window: int
    hop: int
    fmin_hz: float
    fmax_hz: float
    n_mels: int = 64


PANN_32K = FrontEnd(sample_rate_hz=32000, window=1024, hop=320, fmin_hz=50.0, fmax_hz=14000.0)
PANN_16K = FrontEnd(sample_rate_hz=16000, window=512, hop=160, fmin_hz=50.0, fmax_hz=8000.0)


def _hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear to 1 kHz (15 mel), then 27 mel for each factor of 6.4."""
    return np.where(hz < 1000.0, hz * 0.015, 15.0 + 27.0 * np.log(np.maximum(hz, 1.0) / 1e3) / _LOG)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mel < 15.0, mel / 0.015, 1000.0 * np.exp((mel - 15.0) * _LOG / 27.0))


_LOG = float(np.log(6.4))


def mel_weights(front_end: FrontEnd) -> NDArray[np.float32]:
    """Mel filters as librosa's defaults make them (Slaney's scale, triangles of unit area).

    Returns:
        float32 (window / 2 + 1, n_mels), to be multiplied to power spectra from the right.
    """
    spec = front_end
    frequencies = np.arange(spec.window // 2 + 1) * (spec.sample_rate_hz / spec.window)
    low, high = _hz_to_mel(np.array([spec.fmin_hz, spec.fmax_hz]))
    edges = _mel_to_hz(np.linspace(low, high, spec.n_mels + 2))  # (M + 2,)
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]  # (F, M)
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]  # (F, M)
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))).astype(np.float32)


class LogMel(nn.Module):
    """Sound to log-mel spectrogram, always in float32.

    |STFT|² of a 16-bit sound passes float16's range, so neither autocast nor `.half()` reaches this
    module: its filters and its arithmetic stay float32 on whatever device it is moved to.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, front_end: FrontEnd = PANN_32K) -> None:
        super().__init__()
        self.front_end = front_end
        window = torch.hann_window(front_end.window, periodic=True)
        self.register_buffer("window", window, persistent=False)
        filters = torch.from_numpy(mel_weights(front_end))
        self.register_buffer("filters", filters, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LogMel:
        del recurse  # there are no children; a move of device is followed, a change of type is not
        device = fn(torch.empty(0, device=self.window.device)).device
        self.window, self.filters = self.window.to(device), self.filters.to(device)
        return self

    def forward(self, wave: Tensor) -> Tensor:
        """Gives decibels of mel power.

        Args:
            wave: float (B, n) mono in [-1, 1] at the front end's rate, n > window / 2.

        Returns:
            float32 (B, 1, 1 + n // hop, n_mels), -100 where there is silence.

        Raises:
            ValueError: the wave has another shape or is too short.
        """
        spec = self.front_end
        if wave.ndim != 2 or wave.shape[1] <= spec.window // 2:
            raise ValueError(
                f"wave has shape {tuple(wave.shape)}; (B, n) with n > {spec.window // 2} is needed"
            )
        with torch.autocast(wave.device.type, enabled=False):
            spectrum = torch.stft(
                wave.float(),
                spec.window,
                spec.hop,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )  # (B, F, T)
            power = (
                spectrum.real.square() + spectrum.imag.square()
            )  # faster than both parts at once
            mel = power.transpose(1, 2) @ self.filters  # (B, T, M)
            return 10.0 * mel.clamp(min=1e-10).log10().unsqueeze(1)


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, then average pooling, as in PANN."""

    def __init__(self, in_channels: int, out_channels: int, pool: int) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        self.conv1 = conv(in_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, T, F) to (B, Cout, T // pool, F // pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool) if self.pool > 1 else x


def _check_log_mel(log_mel: Tensor, min_frames: int) -> None:
    if log_mel.ndim != 4 or log_mel.shape[1] != 1 or log_mel.shape[2] < min_frames:
        raise ValueError(
            f"log_mel has shape {tuple(log_mel.shape)}; (B, 1, T, 64) with T >= {min_frames} "
            "is needed"
        )


def _over_mels(norm: nn.BatchNorm2d, log_mel: Tensor) -> Tensor:
    """Normalises each mel band by itself: (B, 1, T, M) to the same."""
    return norm(log_mel.transpose(1, 3)).transpose(1, 3)


class Cnn14(nn.Module):
    """PANN's Cnn14 from log-mel on, without its training-time dropout and augmentation."""

    token_dim = 2048
    embedding_dim = 2048
    min_frames = 32

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(64)
        widths = (1, 64, 128, 256, 512, 1024, 2048)
        for i in range(1, 7):
            block = ConvBlock(widths[i - 1], widths[i], pool=2 if i < 6 else 1)
            self.add_module(f"conv_block{i}", block)
        self.fc1 = nn.Linear(2048, 2048)
        self.fc_audioset = nn.Linear(2048, N_AUDIOSET_CLASSES)

    def forward(self, log_mel: Tensor) -> AudioFeatures:
        """Encodes log-mel spectrograms.

        Args:
            log_mel: (B, 1, T, 64) in decibels, T >= 32.

        Returns:
            Tokens (B, T // 32, 2048), the last block's map averaged over frequency, and the
            embedding (B, 2048).

        Raises:
            ValueError: the spectrogram has another shape or is too short.
        """
        _check_log_mel(log_mel, self.min_frames)
        x = _over_mels(self.bn0, log_mel)
        for i in range(1, 7):
            x = self.get_submodule(f"conv_block{i}")(x)
        tokens = x.mean(dim=3).transpose(1, 2)  # (B, 2048, T', 2) to (B, T', 2048)
        pooled = tokens.amax(dim=1) + tokens.mean(dim=1)
        return AudioFeatures(tokens, F.relu(self.fc1(pooled)))

    def class_scores(self, embedding: Tensor) -> Tensor:
        """Probabilities (B, 527) of AudioSet's classes for embeddings (B, 2048)."""
        return torch.sigmoid(self.fc_audioset(embedding))

    def load_published(self, state: TensorDict, front_end: FrontEnd, source: str) -> None:
        """Takes the weights of PANN's authors.

        Args:
            state: the 84 tensors of `Cnn14` or `Cnn14_16k`. Three of them are the front end that
                the weights were trained with; they are compared with `front_end` and not kept.
            front_end: what the log-mel spectrograms are made with here.
            source: names the file in errors.

        Raises:
            WeightsError: names or shapes differ, values are not finite, or the weights were trained
                with another front end.
        """
        front = _published_front_end(front_end)
        for name, expected in front.items():
            found = state.get(name)
            if found is None:
                raise WeightsError(f"{source} lacks {name}: it is not a checkpoint of PANN's Cnn14")
            tolerance = 1e-4 * float(expected.abs().max())
            if found.shape != expected.shape or bool((found - expected).abs().max() > tolerance):
                raise WeightsError(
                    f"{source}: {name} {tuple(found.shape)} is not that of a front end at "
                    f"{front_end.sample_rate_hz} Hz {tuple(expected.shape)}; Cnn14_mAP=0.431.pth "
                    "is for 32 kHz (preset atlas), Cnn14_16k_mAP=0.438.pth for 16 kHz (preset "
                    "atlas-16k)"
                )
        body = {name: tensor for name, tensor in state.items() if name not in front}
        check_tensors(body, self.state_dict(), source)
        self.load_state_dict(body)


def _published_front_end(front_end: FrontEnd) -> TensorDict:
    """The front end's constants as torchlibrosa names and shapes them."""
    n = np.arange(front_end.window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / front_end.window)
    angles = 2 * np.pi / front_end.window * np.outer(n[: front_end.window // 2 + 1], n)  # (F, N)
    stft = "spectrogram_extractor.stft.conv_"
    arrays = {
        f"{stft}real.weight": (np.cos(angles) * hann)[:, None],
        f"{stft}imag.weight": (-np.sin(angles) * hann)[:, None],
        "logmel_extractor.melW": mel_weights(front_end),
    }
    return {name: torch.from_numpy(a.astype(np.float32)) for name, a in arrays.items()}


class AudioCnn(nn.Module):
    """A small CNN in PANN's manner, trained by `atlasd train` and frozen in the network.

    BatchNorm is allowed here: the encoder is trained in a stage of its own, and its statistics are
    folded into the convolutions for serving.
    """

    def __init__(
        self, widths: tuple[int, int, int, int] = (32, 64, 128, 256), embedding_dim: int = 384
    ) -> None:
        """Lays the layers out.

        Args:
            widths: channels at strides 2 (two of them), 4 and 8; the last is a token's size.
            embedding_dim: size of the embedding.
        """
        super().__init__()
        stem, fine, middle, coarse = widths
        self.token_dim = coarse
        self.embedding_dim = embedding_dim
        self.min_frames = 8
        self.bn0 = nn.BatchNorm2d(64)
        self.layers = nn.Sequential(
            *_conv_bn_relu(1, stem, stride=2),
            *_conv_bn_relu(stem, fine),
            nn.AvgPool2d(2),
            *_conv_bn_relu(fine, middle),
            *_conv_bn_relu(middle, middle),
            nn.AvgPool2d(2),
            *_conv_bn_relu(middle, coarse),
            nn.AvgPool2d((1, 2)),
            *_conv_bn_relu(coarse, coarse),
            *_conv_bn_relu(coarse, coarse),
        )
        self.fc = nn.Linear(self.token_dim, embedding_dim)

    def forward(self, log_mel: Tensor) -> AudioFeatures:
        """Encodes log-mel spectrograms.

        Args:
            log_mel: (B, 1, T, 64) in decibels, T >= 8.

        Returns:
            Tokens (B, about T / 8, Da) and the embedding (B, De).

        Raises:
            ValueError: the spectrogram has another shape or is too short.
        """
        _check_log_mel(log_mel, self.min_frames)
        x = self.layers(_over_mels(self.bn0, log_mel))
        tokens = x.mean(dim=3).transpose(1, 2)  # (B, Da, T', F') to (B, T', Da)
        pooled = tokens.amax(dim=1) + tokens.mean(dim=1)
        return AudioFeatures(tokens, F.relu(self.fc(pooled)))


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class AudioTagger(nn.Module):
    """An encoder with a linear tag head: what the encoder is trained as."""

    def __init__(self, encoder: AudioCnn, n_tags: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.embedding_dim, n_tags)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits (B, n_tags) for log-mel spectrograms (B, 1, T, 64)."""
        return self.head(self.encoder(log_mel).embedding)
