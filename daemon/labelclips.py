"""From a label that came over the wire to the clip that is learned, and back.

What the intake accepts it has read as a `LabeledClip` first, so what lies in the spool can be
learned. The learner's door is `load`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..streams.avsbench import windows_at
from ..streams.clips import (
    NS_PER_S,
    AudioWindow,
    Clip,
    LabeledClip,
    Sample,
    VideoFrame,
)
from . import masks
from .labels import (
    LabeledFrame,
    LabelError,
    LabelMask,
    PictureData,
    PutClip,
    PutFrame,
    SoundData,
    unpack_request,
)

MAX_CLIP_PIXELS: Final = 1 << 25
"""Most pixels of all pictures of a clip together: sixteen of 1920 x 1080."""

LOUDEST: Final = 2.0
"""Largest absolute sample: full scale is 1, and codecs go over it."""

MAX_SOUND_S: Final = 3600.0
_SILENT_RATE_HZ = 32_000
_FORMATS = {"jpeg": "JPEG", "png": "PNG"}


def load(payload: bytes, window_s: float = 1.0) -> LabeledClip:
    """Read a clip from the spool: pictures at their own size, windows at the sound's own rate.

    Args:
        payload: `spooled.StoredClip.payload`.
        window_s: seconds of sound that belong to a picture.

    Raises:
        LabelError: it is no stored clip.
    """
    label = unpack_request(payload)
    if not isinstance(label, PutClip):
        raise LabelError("malformed", f"the payload is a {label.op}; it must be a whole clip")
    return read_clip(label, window_s)


def read_clip(label: PutClip, window_s: float = 1.0) -> LabeledClip:
    """Check a label and read all of it.

    Args:
        label: the label.
        window_s: seconds of sound that belong to a picture, and end with it, or
            `SoundData.offset_ns` later.

    Returns:
        Pictures at their own size, each with its window of sound at the sound's own rate: ``ok``
        where all of it was there, ``gap`` where part is missing, ``absent`` without sound.

    Raises:
        LabelError: ``bad_frames``, ``bad_picture``, ``bad_mask``, ``mask_size``, ``mask_full`` or
            ``bad_sound``, as docs/protocol.md tells.
    """
    _check_times(label.frames)
    sizes = [_size(frame.picture, place) for place, frame in enumerate(label.frames)]
    if sum(w * h for w, h in sizes) > MAX_CLIP_PIXELS:
        raise LabelError(
            "bad_picture",
            f"the pictures have {sum(w * h for w, h in sizes)} pixels together; {MAX_CLIP_PIXELS} "
            "are allowed: send fewer or smaller ones",
        )
    images = [_image(frame.picture, place) for place, frame in enumerate(label.frames)]
    if len({image.shape for image in images}) > 1:
        raise LabelError(
            "bad_picture",
            f"the pictures have sizes {sorted({image.shape[:2] for image in images})}; those of "
            "one clip must have one",
        )
    for frame, image in zip(label.frames, images, strict=True):
        check_size(frame.mask, (image.shape[0], image.shape[1]))
    pixels = [read_mask(frame.mask, label.allow_full) for frame in label.frames]
    windows = _windows(label, window_s)
    samples = tuple(
        Sample(_video_frame(label, index, image), window)
        for index, (image, window) in enumerate(zip(images, windows, strict=True))
    )
    stacked = np.stack(pixels).astype(np.uint8)
    return LabeledClip(Clip(samples), stacked, label.id, label.provenance, label.category)


def write_clip(clip: LabeledClip) -> PutClip:
    """The label that says what a clip holds: `read_clip` gives the clip back.

    Pictures travel as PNG. The windows are laid on one timeline, so where they overlap they must
    agree, as those of one sound do.
    """
    frames = tuple(
        LabeledFrame(
            pts_ns=sample.frame.pts_ns, picture=_png(sample.frame.image), mask=label_mask(mask)
        )
        for sample, mask in zip(clip.clip.samples, clip.masks, strict=True)
    )
    return PutClip(
        id=clip.clip_id,
        provenance=clip.provenance,
        category=clip.category,
        frames=frames,
        sound=_joined([sample.window for sample in clip.clip.samples]),
    )


def label_mask(mask: NDArray[np.uint8]) -> LabelMask:
    """uint8 (H, W) in {0, 1} as it travels."""
    height, width = mask.shape
    data = masks.encode(mask.astype(np.bool_), "bits+zstd")
    return LabelMask(enc="bits+zstd", shape=(height, width), data=data)


def resolve(label: PutFrame, sample: Sample) -> PutClip:
    """A label by reference as the whole clip that it means.

    The mask is brought to the size of the picture that the network saw, and the window of sound is
    the one that it heard, wherever `sync.anchor`, `sync.lag_ms` or late sound had put that.

    Args:
        label: what came.
        sample: what it refers to.

    Raises:
        LabelError: ``mask_size``, ``mask_full`` or ``bad_mask``.
    """
    frame = sample.frame
    height, width = frame.image.shape[:2]
    check_size(label.mask, (height, width), (frame.source_size_px[1], frame.source_size_px[0]))
    mask = masks.enlarge(read_mask(label.mask, label.allow_full), (width, height))
    labeled = LabeledFrame(
        pts_ns=frame.pts_ns, picture=_png(frame.image), mask=label_mask(mask.astype(np.uint8))
    )
    return PutClip(
        id=label.id,
        provenance=label.provenance,
        category=label.category,
        allow_full=label.allow_full,
        frames=(labeled,),
        sound=_joined([sample.window], sample.window.end_ns - frame.pts_ns),
    )


def check_size(mask: LabelMask, *allowed: tuple[int, int]) -> None:
    """Refuse a mask of another size than one of (H, W).

    Raises:
        LabelError: ``mask_size``.
    """
    if mask.shape not in allowed:
        sizes = " or ".join(f"{height} x {width}" for height, width in dict.fromkeys(allowed))
        raise LabelError(
            "mask_size",
            f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels; the picture has {sizes} "
            "(rows x columns): scale the mask, nearest neighbour",
        )


def read_mask(mask: LabelMask, allow_full: bool) -> NDArray[np.bool_]:
    """Decode a mask: bool (H, W). An empty one says that nothing in view sounds.

    Raises:
        LabelError: ``bad_mask``, or ``mask_full`` for one that covers everything unmeant.
    """
    try:
        pixels = masks.decode(mask.data, mask.shape, mask.enc)
    except masks.MaskError as error:
        raise LabelError("bad_mask", str(error)) from error
    if pixels.all() and not allow_full:
        raise LabelError(
            "mask_full",
            "the mask covers all of its picture, as an inverted empty one does; if it is meant, "
            "set allow_full",
        )
    return pixels


def _check_times(frames: Sequence[LabeledFrame]) -> None:
    times = [frame.pts_ns for frame in frames]
    if not times or any(b <= a for a, b in pairwise(times)):
        raise LabelError(
            "bad_frames",
            f"the pictures come at {times[:8]} ns; there must be one at least, and each later than "
            "the one before",
        )


def _size(picture: PictureData, place: int) -> tuple[int, int]:
    """(w, h) that a picture claims, before anything of it is decoded."""
    if picture.enc != "rgb8":
        with _opened(picture, place) as opened:
            width, height = opened.size
    elif picture.shape is None:
        raise LabelError("bad_picture", f"picture {place} is rgb8; its shape must say [H, W]")
    else:
        height, width = picture.shape
        if len(picture.data) != 3 * height * width:
            raise LabelError(
                "bad_picture",
                f"picture {place} has {len(picture.data)} bytes; rgb8 of {height} x {width} has "
                f"{3 * height * width}",
            )
    if not (width <= masks.MAX_SIDE and height <= masks.MAX_SIDE):
        raise LabelError(
            "bad_picture",
            f"picture {place} is {height} x {width} pixels; a side has at most {masks.MAX_SIDE}",
        )
    return width, height


def _image(picture: PictureData, place: int) -> NDArray[np.uint8]:
    """Uint8 (H, W, 3), upright."""
    if picture.enc == "rgb8" and picture.shape is not None:
        height, width = picture.shape
        return np.frombuffer(picture.data, np.uint8).reshape(height, width, 3)
    with _opened(picture, place) as opened:
        try:
            return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), np.uint8)
        except Exception as error:  # decoders raise anything where data is damaged
            raise _undecodable(picture, place, error) from error


def _opened(picture: PictureData, place: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(picture.data), formats=[_FORMATS[picture.enc]])
    except Exception as error:  # as above
        raise _undecodable(picture, place, error) from error


def _undecodable(picture: PictureData, place: int, error: Exception) -> LabelError:
    return LabelError(
        "bad_picture", f"picture {place} is no {picture.enc} that can be decoded: {error}"
    )


def _png(image: NDArray[np.uint8]) -> PictureData:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return PictureData(enc="png", data=buffer.getvalue())


def _video_frame(label: PutClip, index: int, image: NDArray[np.uint8]) -> VideoFrame:
    pts_ns = label.frames[index].pts_ns
    height, width = image.shape[:2]
    return VideoFrame(image, pts_ns, pts_ns, label.id, 0, index, (width, height))


def _windows(label: PutClip, window_s: float) -> list[AudioWindow]:
    """The sound that ends at each picture, or so long after it as the sound says."""
    sound = label.sound
    offset_ns = (sound.offset_ns if sound else None) or 0
    rate_hz = _SILENT_RATE_HZ if sound is None else sound.sample_rate_hz
    samples = np.zeros(0, np.float32) if sound is None else _samples(sound)
    t0_ns = 0 if sound is None else sound.t0_ns
    ends_ns = [frame.pts_ns + offset_ns for frame in label.frames]
    ends_s = np.array([(end_ns - t0_ns) / NS_PER_S for end_ns in ends_ns])
    cut = windows_at(samples, ends_s, window_s, rate_hz)
    span_ns = round(cut.shape[1] * NS_PER_S / rate_hz)
    windows: list[AudioWindow] = []
    overlaps = False
    for end_ns, end_s, window in zip(ends_ns, ends_s, cut, strict=True):
        begin, end = round(end_s * rate_hz) - cut.shape[1], round(end_s * rate_hz)
        heard = max(0, min(end, len(samples)) - max(begin, 0))
        gap_ms = (cut.shape[1] - heard) * 1e3 / rate_hz + (sound.gap_ms if sound else 0)
        state = "absent" if sound is None else "gap" if gap_ms else "ok"
        gap_ms = gap_ms if sound else 0.0
        windows.append(AudioWindow(window, rate_hz, end_ns - span_ns, end_ns, state, gap_ms))
        overlaps = overlaps or heard > 0
    if sound is not None and not overlaps:
        raise LabelError(
            "bad_sound",
            f"the sound runs from {t0_ns} ns for {len(samples) / rate_hz:g} s and no picture's "
            f"last {window_s:g} s lie in it: count both from one origin",
        )
    return windows


def _samples(sound: SoundData) -> NDArray[np.float32]:
    """Float32 (n,), checked."""
    width = 4 if sound.enc == "f32" else 2
    n, rest = divmod(len(sound.data), width)
    if rest or not n or n > MAX_SOUND_S * sound.sample_rate_hz:
        raise LabelError(
            "bad_sound",
            f"the sound has {len(sound.data)} bytes of {sound.enc} at {sound.sample_rate_hz} Hz; "
            f"it must have whole samples of {width} bytes, one at least, {MAX_SOUND_S:.0f} s at "
            "most; without sound send nil",
        )
    if sound.enc == "i16":
        return np.frombuffer(sound.data, "<i2").astype(np.float32) / np.float32(32768)
    samples = np.frombuffer(sound.data, "<f4").astype(np.float32)
    loudest = float(np.abs(samples).max())
    if not loudest <= LOUDEST:
        raise LabelError(
            "bad_sound",
            f"the sound reaches {loudest:g}; f32 has its full scale at 1, and {LOUDEST:g} is "
            "allowed: divide by the full scale, or send i16",
        )
    return samples


def _joined(windows: Sequence[AudioWindow], offset_ns: int = 0) -> SoundData | None:
    """Windows of one sound as one sound, which end so long after their pictures; None: absent."""
    heard = [window for window in windows if window.state != "absent"]
    if not heard:
        return None
    rate_hz = heard[0].sample_rate_hz
    t0_ns = min(window.start_ns for window in heard)
    starts = [round((window.start_ns - t0_ns) * rate_hz / NS_PER_S) for window in heard]
    n = max(start + len(window.samples) for start, window in zip(starts, heard, strict=True))
    samples = np.zeros(n, "<f4")
    for start, window in zip(starts, heard, strict=True):
        samples[start : start + len(window.samples)] = window.samples
    return SoundData(
        enc="f32",
        sample_rate_hz=rate_hz,
        t0_ns=t0_ns,
        gap_ms=max(window.gap_ms for window in heard),
        offset_ns=offset_ns or None,
        data=samples.tobytes(),
    )
