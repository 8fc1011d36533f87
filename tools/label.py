"""``atlasd label``: put one labeled clip into a running daemon."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from ..daemon.client import SilenceError, subscribe
from ..daemon.labelclient import LabelClient
from ..daemon.labelclips import label_mask, write_clip
from ..daemon.labels import (
    Label,
    LabeledFrame,
    PictureData,
    PutClip,
    PutFrame,
    SoundData,
    digest,
)
from ..daemon.messages import Status
from ..streams.avsbench import AVSBench, Entry, Split, read_mask, read_wave
from ..streams.avslayout import Subset, find_subset
from ..streams.clips import NS_PER_S
from ..streams.folders import natural_key, read_image
from ..streams.protocols import clip_info

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_UNNAMED = "unnamed"


class LabelToolError(Exception):
    """Files or options that make no label: what came, what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """What a label says besides its pictures, sound and masks.

    Attributes:
        clip_id: names the clip for ever; empty: made of its content, so that the same files are the
            same clip.
        category: the class, where one is known.
        provenance: where the masks come from.
        replace: take the place of a clip with this id that is not yet learned.
        allow_full: masks that cover all of their picture are meant.
    """

    clip_id: str = ""
    category: str | None = None
    provenance: str = "atlasd label"
    replace: bool = False
    allow_full: bool = False


def label_of_files(
    pictures: Sequence[Path], masks: Sequence[Path], sound: Path | None, facts: LabelFacts
) -> PutClip:
    """A clip from files.

    Pictures lie at even distances, the last at the end of the sound; without sound they lie a
    second apart. JPEG files travel as they are, others as PNG; masks are white over 127.

    Args:
        pictures: files, or folders whose pictures are taken in natural order.
        masks: as many, likewise.
        sound: anything that PyAV reads; None: the clip has no sound.
        facts: the rest.

    Raises:
        LabelToolError: there is no picture, or not one mask for each.
        MediaError, DatasetError: a file cannot be read.
    """
    shown, drawn = _files(pictures), _files(masks)
    if not shown or len(shown) != len(drawn):
        raise LabelToolError(
            f"there are {len(shown)} pictures and {len(drawn)} masks; give one --mask for each "
            "--picture, in the same order, or a folder of each"
        )
    heard = None if sound is None else _sound(sound)
    seconds = len(shown) if heard is None else heard[1]
    frames = tuple(
        LabeledFrame(
            pts_ns=round((k + 1) * seconds * NS_PER_S / len(shown)),
            picture=_picture(picture),
            mask=label_mask(read_mask(mask)),
        )
        for k, (picture, mask) in enumerate(zip(shown, drawn, strict=True))
    )
    label = PutClip(
        id=facts.clip_id or _UNNAMED,
        provenance=facts.provenance,
        category=facts.category,
        replace=facts.replace,
        allow_full=facts.allow_full,
        frames=frames,
        sound=None if heard is None else heard[0],
    )
    return label if facts.clip_id else replace(label, id=f"label-{digest(label).hex()[:32]}")


def label_of_entry(entry: Entry, facts: LabelFacts, *, size_px: int = 224) -> PutClip:
    """A clip of a data set: the pictures that have a mask, with their seconds of sound.

    Args:
        entry: the clip; its class and its own id are taken where `facts` has none.
        facts: the rest.
        size_px: width and height of the pictures.

    Raises:
        DatasetError: a file is missing or cannot be decoded.
    """
    label = write_clip(entry.labeled_clip(size_px))
    return replace(
        label,
        id=facts.clip_id or label.id,
        category=facts.category or label.category,
        provenance=facts.provenance,
        replace=facts.replace,
        allow_full=facts.allow_full,
    )


def present_run(bus: str, stream: str, *, timeout_s: float = 10.0) -> tuple[str, int]:
    """Ask a daemon's bus which run of it shows a stream now, and in which epoch.

    Args:
        bus: ``tcp://HOST:PORT`` or ``ipc:///PATH``.
        stream: its name.
        timeout_s: give up after so long.

    Raises:
        LabelToolError: nothing was heard of the stream.
        endpoints.EndpointError: the address is malformed.
    """
    try:
        with subscribe(bus, stream, kinds=(Status,), timeout_s=timeout_s) as messages:
            came = next(messages)
    except SilenceError as error:
        raise LabelToolError(
            f"{bus} says nothing of stream {stream!r} within {timeout_s:g} s, so which run of the "
            "daemon showed the picture is not known: give its bus (--bus), or --instance and "
            "--epoch as `atlasd subscribe --json` shows them"
        ) from error
    return came.instance, came.epoch


def label_of_shown(
    mask: Path, facts: LabelFacts, *, stream: str, instance: str, epoch: int, pts_ns: int
) -> PutFrame:
    """A mask for a picture that the daemon has just shown to its network.

    Args:
        mask: a picture of the size of the published mask or of the source picture.
        facts: the rest; the id is made of the picture's place where there is none.
        stream: as in the picture's mask message.
        instance: the run of the daemon that showed it, as in hello and status.
        epoch: as in the mask message.
        pts_ns: as there.

    Raises:
        DatasetError: the file cannot be read.
    """
    return PutFrame(
        id=facts.clip_id or f"{stream}/{instance}/{epoch}/{pts_ns}",
        provenance=facts.provenance,
        category=facts.category,
        replace=facts.replace,
        allow_full=facts.allow_full,
        stream=stream,
        instance=instance,
        epoch=epoch,
        pts_ns=pts_ns,
        mask=label_mask(read_mask(mask)),
    )


def find_entry(data: Path, name: str) -> Entry:
    """The clip of a data set with an id (``s4/train/NAME``) or a name that only one has.

    Raises:
        LabelToolError: none has it, or several.
        DatasetError: there is no data set.
    """
    subsets: list[Subset] = [subset for subset in get_args(Subset) if find_subset(data, subset)]
    entries = [
        entry
        for subset in subsets or ["s4"]
        for split in get_args(Split)
        for entry in AVSBench(data, subset).clips(split)
        if name in {entry.name, clip_info(entry).id}
    ]
    if len(entries) != 1:
        ids = ", ".join(clip_info(entry).id for entry in entries[:8])
        raise LabelToolError(
            f"{len(entries)} clips of {data} are called {name!r}{': ' if ids else ''}{ids}; give "
            "one as SUBSET/SPLIT/NAME, as in s4/train/NAME"
        )
    return entries[0]


def label(put: Label, endpoint: str, *, timeout_s: float = 10.0) -> str:
    """Put a label and say in a line what became of it.

    Raises:
        LabelRefusedError: it was refused.
        NoAnswerError: no answer came.
    """
    with LabelClient(endpoint, timeout_s=timeout_s) as client:
        return f"{put.id}: {client.put(put)}"


def delete(clip_id: str, endpoint: str, *, timeout_s: float = 10.0) -> str:
    """Take back a clip that is not yet learned, and say so.

    Raises:
        LabelRefusedError: there is none with this id, or it is being learned or was.
        NoAnswerError: no answer came.
    """
    with LabelClient(endpoint, timeout_s=timeout_s) as client:
        client.delete(clip_id)
    return f"{clip_id}: deleted"


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        inside = path.iterdir() if path.is_dir() else ()
        pictures = [p for p in inside if p.suffix.lower() in _PICTURES]
        found += sorted(pictures, key=natural_key) if path.is_dir() else [path]
    return found


def _picture(path: Path) -> PictureData:
    image = read_image(path)
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        return PictureData(enc="jpeg", data=path.read_bytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return PictureData(enc="png", data=buffer.getvalue())


def _sound(path: Path) -> tuple[SoundData, float]:
    """The sound, and its seconds."""
    samples, rate_hz = read_wave(path)
    if not samples.size:
        raise LabelToolError(f"{path}: holds no sound; leave --sound out for a clip without")
    data = samples.astype(np.dtype("<f4")).tobytes()
    sound = SoundData(enc="f32", sample_rate_hz=rate_hz, t0_ns=0, data=data)
    return sound, len(samples) / rate_hz
