"""A sample to show and to measure with: a video with sound, and the truth about each of its frames.

Objects stand before a background, sway slowly, and take turns to sound; in one turn none does. What
is heard at time T is the second that ends there, so the truth is about that second:

- An object *sounds at T* if the mean square of its own sound (its stem, before mixing) over the
  last `TAIL_S` of [T − 1 s, T] is above `FLOOR` (−10 dB) times its mean square over its turns.
  Before 0 s there was silence.
- A frame is *settled* if the same turn lasted all through [T − 1 s, T] and what sounds is what the
  turn says. In the others the window holds two turns, or a pause within one longer than `TAIL_S`,
  and what ought to be seen is a matter of taste: report scores both ways.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from .avslayout import DatasetError
from .catalogue import ContentError
from .clips import NS_PER_S
from .packages import PackageError, Progress, quiet
from .pictures import PictureError
from .recordings import RecordingError
from .samplecast import SOUND_RATE_HZ, Cast, SampleObject, Split, openavs_cast, toy_cast
from .scenes import Scene
from .toysounds import pink_noise

World = Literal["openavs", "toy"]
WINDOW_S = 1.0
TAIL_S = 0.5
FLOOR = 0.1
_LOUDNESS_DB = -20.0
_NOISE_DB = -60.0


@dataclass(frozen=True, slots=True)
class SampleClip:
    """A sample on disk.

    Attributes:
        video: MP4 with H.264 and AAC.
        truth: what `read_truth` reads.
        world: what it is made of.
        fallback: why it is not made of what was asked for, in words, or None.
        objects: what is in view, back to front.
        background: provenance of the background.
        seconds: length.
        fps: frames a second.
        size_px: (width, height).
    """

    video: Path
    truth: Path
    world: World
    fallback: str | None
    objects: tuple[SampleObject, ...]
    background: str
    seconds: float
    fps: Fraction
    size_px: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What is so in each frame of a sample.

    Attributes:
        times_ns: int64 (F,), presentation times from the video's start.
        categories: the objects, A of them.
        visible: bool (F, A, H, W), the visible pixels of each object.
        sounding: bool (F, A), whether the object sounds at the frame's time.
        settled: bool (F,), whether the window lies within one turn and sounds like it.
    """

    times_ns: NDArray[np.int64]
    categories: tuple[str, ...]
    visible: NDArray[np.bool_]
    sounding: NDArray[np.bool_]
    settled: NDArray[np.bool_]

    def masks(self) -> NDArray[np.bool_]:
        """The sounding objects' visible pixels, bool (F, H, W)."""
        return np.any(self.visible & self.sounding[:, :, None, None], axis=1)


def make_sample(
    out: Path,
    *,
    world: World = "openavs",
    seconds: float = 12.0,
    fps: float = 25.0,
    size_px: tuple[int, int] = (640, 360),
    seed: int = 1,
    packages: Path | None = None,
    categories: Sequence[str] = (),
    cutout_split: Split = "train",
    recording_split: Split = "test",
    fallback: bool = True,
    progress: Progress = quiet,
) -> SampleClip:
    """Makes ``sample.mp4`` and ``sample-truth.npz``; the video appears last, when both are whole.

    Args:
        out: folder for both, made where it is missing.
        world: ``openavs`` composes photos and recordings from Debian packages, ``toy`` draws and
            synthesises.
        seconds: length, 1 to 600.
        fps: frames a second, 1 to 120.
        size_px: (width, height), even numbers of at least 64.
        seed: decides all that is not given.
        packages: folder with Debian packages; None asks apt for `samplecast.SAMPLE_PACKAGES`.
        categories: two or three of the world's; none is the world's own choice.
        cutout_split: of Open-AVS: whose pictures; ``test`` are seen by no training.
        recording_split: of Open-AVS: whose recordings.
        fallback: whether to make a toy, and say why, where Open-AVS cannot be had.
        progress: told of packages, content and frames.

    Returns:
        What was made, and of what.

    Raises:
        ValueError: an argument outside of what is allowed.
        DatasetError: Open-AVS cannot be had, and ``fallback`` is off.
    """
    rate = Fraction(fps).limit_denominator(1001)
    _check_request(seconds, rate, size_px)
    reason: str | None = None
    if world == "openavs":
        try:
            cast = openavs_cast(
                seed,
                seconds,
                size_px,
                categories,
                cutout_split=cutout_split,
                recording_split=recording_split,
                packages=packages,
                progress=progress,
            )
        except (PackageError, ContentError, PictureError, RecordingError, ImportError) as error:
            if not fallback:
                raise DatasetError(f"no sample of Open-AVS can be made: {error}") from error
            world, reason = "toy", f"Open-AVS cannot be had: {error}"
            cast = toy_cast(seed, seconds, size_px)
    else:
        cast = toy_cast(seed, seconds, size_px, categories)
    times_s = [float(index / rate) for index in range(round(seconds * rate))]
    sound = _mix(cast, seed, math.ceil(len(times_s) / rate * SOUND_RATE_HZ))
    out.mkdir(parents=True, exist_ok=True)
    video, truth = out / "sample.mp4", out / "sample-truth.npz"
    unfinished = out / "sample.mp4.part"
    visible = _write_video(unfinished, cast.scene, times_s, rate, size_px, sound, progress)
    _write_truth(truth, cast, times_s, size_px, visible)
    unfinished.replace(video)
    return SampleClip(
        video, truth, world, reason, cast.objects, cast.background, seconds, rate, size_px
    )


def _check_request(seconds: float, fps: Fraction, size_px: tuple[int, int]) -> None:
    if not 1.0 <= seconds <= 600.0:
        raise ValueError(f"seconds is {seconds}; allowed are 1 to 600")
    if not 1 <= fps <= 120:
        raise ValueError(f"fps is {float(fps)}; allowed are 1 to 120")
    if any(side < 64 or side % 2 for side in size_px):
        raise ValueError(f"size_px is {size_px}; both are even and at least 64")


def sounding_at(
    stem: NDArray[np.float32],
    rate_hz: int,
    spans_s: Sequence[tuple[float, float]],
    times_s: Sequence[float],
) -> NDArray[np.bool_]:
    """Whether an object sounds at each time; see the head of this file.

    Args:
        stem: float32 (n,), its own sound from 0 s on, silent outside of its turns.
        rate_hz: samples a second.
        spans_s: its turns, (start, end) in seconds.
        times_s: T of them.

    Returns:
        bool (T,).
    """
    energy = np.concatenate([[0.0], np.cumsum(np.square(stem, dtype=np.float64))])

    def between(start_s: float, end_s: float) -> float:
        first, last = (round(min(max(t, 0.0) * rate_hz, len(stem))) for t in (start_s, end_s))
        return float(energy[last] - energy[first])

    active_s = sum(end - start for start, end in spans_s)
    if active_s <= 0:
        return np.zeros(len(times_s), dtype=np.bool_)
    usual = sum(between(*span) for span in spans_s) / active_s
    return np.array([between(t - TAIL_S, t) / TAIL_S > FLOOR * usual > 0 for t in times_s])


def has_turn_at(
    spans_s: Sequence[tuple[float, float]], times_s: Sequence[float]
) -> NDArray[np.bool_]:
    """Whether each time lies in a turn, its beginning left out: bool (T,)."""
    return np.array([any(start < t <= end for start, end in spans_s) for t in times_s])


def settled_at(
    spans_s: Sequence[Sequence[tuple[float, float]]], times_s: Sequence[float]
) -> NDArray[np.bool_]:
    """Whether the second before each time lies within one turn of all objects.

    Args:
        spans_s: for each object its turns, (start, end) in seconds.
        times_s: T of them.

    Returns:
        bool (T,). Before 0 s no object has its turn.
    """
    edges = {edge for own in spans_s for span in own for edge in span}
    hair = 1e-6  # a turn that ends where the window begins must not count by rounding
    return np.array(
        [not any(t - WINDOW_S + hair < edge < t - hair for edge in edges) for t in times_s]
    )


def _mix(cast: Cast, seed: int, n: int) -> NDArray[np.float32]:
    """The stems together at about −20 dBFS over faint noise: float32 (n,), peak at most 0.97."""
    noise = pink_noise(np.random.default_rng([seed, 8]), n)
    mix = noise * np.float32(10 ** (_NOISE_DB / 20))
    for stem in cast.stems:
        heard = min(n, len(stem))
        mix[:heard] += stem[:heard] * np.float32(10 ** (_LOUDNESS_DB / 20))
    return (mix * min(1.0, 0.97 / float(np.abs(mix).max()))).astype(np.float32)


def _write_video(
    path: Path,
    scene: Scene,
    times_s: Sequence[float],
    fps: Fraction,
    size_px: tuple[int, int],
    sound: NDArray[np.float32],
    progress: Progress,
) -> NDArray[np.uint8]:
    """Draws and encodes; returns the visible pixels, bit-packed uint8 (F, A, ceil(W * H / 8))."""
    packed: list[NDArray[np.uint8]] = []
    written = 0
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream(
            "libx264", rate=fps, options={"crf": "18", "preset": "veryfast", "g": "50"}
        )
        video.width, video.height = size_px
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="mono")
        for index, time_s in enumerate(times_s):
            progress("frames", index, len(times_s))
            picture, masks = scene.draw(time_s, size_px)
            packed.append(np.packbits(masks.reshape(len(masks), -1), axis=1))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, 1 / fps
            container.mux(video.encode(frame))
            until = round(float((index + 1) / fps) * SOUND_RATE_HZ)
            chunk = av.AudioFrame.from_ndarray(sound[None, written:until], "fltp", "mono")
            chunk.sample_rate, chunk.pts = SOUND_RATE_HZ, written
            chunk.time_base = Fraction(1, SOUND_RATE_HZ)
            container.mux(audio.encode(chunk))
            written = until
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return np.stack(packed)


def _write_truth(
    path: Path,
    cast: Cast,
    times_s: Sequence[float],
    size_px: tuple[int, int],
    visible: NDArray[np.uint8],
) -> None:
    spans = [item.turns_s for item in cast.objects]
    sounding = [
        sounding_at(stem, SOUND_RATE_HZ, own, times_s)
        for stem, own in zip(cast.stems, spans, strict=True)
    ]
    as_meant = np.all(
        [heard == has_turn_at(own, times_s) for heard, own in zip(sounding, spans, strict=True)],
        axis=0,
    )
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            times_ns=np.array([round(time_s * NS_PER_S) for time_s in times_s], dtype=np.int64),
            categories=np.array([item.category for item in cast.objects]),
            size_px=np.array(size_px),
            visible=visible,
            sounding=np.stack(sounding, axis=1),
            settled=settled_at(spans, times_s) & as_meant,
        )


def read_truth(path: Path, size_px: tuple[int, int] | None = None) -> Truth:
    """Reads a sample's truth.

    Args:
        path: what `make_sample` wrote.
        size_px: (width, height) of the video that it must fit; None takes any.

    Raises:
        DatasetError: the file is missing, damaged, or something else, or does not fit.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            width, height = (int(side) for side in stored["size_px"])
            if size_px not in {None, (width, height)}:
                raise ValueError(f"it has {width}x{height} pixels, not {size_px}")
            visible = np.unpackbits(stored["visible"], axis=2, count=width * height)
            return Truth(
                times_ns=stored["times_ns"],
                categories=tuple(str(name) for name in stored["categories"]),
                visible=visible.reshape(*visible.shape[:2], height, width).astype(np.bool_),
                sounding=stored["sounding"],
                settled=stored["settled"],
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path}: is not the truth of a sample ({error}); make the sample anew"
        ) from error
