"""Labels on the wire: what a labeler asks of the intake, and what it answers.

A request is one msgpack map in one ZeroMQ frame, and so is its answer; docs/protocol.md specifies
both. `PutClip` brings all of a clip, `PutFrame` the mask of a picture that the daemon has shown to
its network a moment ago, `Delete` takes back what is not yet learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Annotated, ClassVar, Final, Literal, cast

import msgpack

from . import masks
from .fields import ADDED, FieldError, Many, Octets, Text, Whole, from_map, to_map
from .orders import Carried, Order
from .spoolclips import MAX_ID_CHARACTERS
from .spooled import Outcome
from .wire import (
    VERSION,
    Checked,
    Count,
    MaskSide,
    Milliseconds,
    Name,
    Nanoseconds,
    Prose,
    StreamName,
    Version,
    VersionError,
    WireError,
    check_version,
    read_map,
)

MAX_REQUEST_BYTES: Final = 1 << 25
"""Longest request."""

MAX_FRAMES: Final = 64
"""Most pictures of a clip."""

MIN_RATE_HZ: Final = 1000
MAX_RATE_HZ: Final = 384_000
MAX_OFFSET_NS: Final = 3_600_000_000_000

ClipId = Annotated[str, Text(MAX_ID_CHARACTERS, r"[^\s\x00-\x1f\x7f]+")]
LabelEncoding = Literal["bits", "bits+zstd", "rle"]
_NOT_CONTENT = ("v", "request", "replace", "allow_full")


class LabelError(Exception):
    """A request that is refused.

    Attributes:
        code: a short stable name, see docs/protocol.md.
        request: the number of the request, None where it could not be read.
    """

    def __init__(self, code: str, detail: str, request: int | None = None) -> None:
        super().__init__(detail)
        self.code: Final = code
        self.request: Final = request


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelMask(Checked):
    """What sounds in a picture; `enc` and `data` as in a published mask, see `masks`."""

    enc: LabelEncoding
    shape: tuple[MaskSide, MaskSide]
    data: Annotated[bytes, Octets(masks.MAX_PIXELS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureData(Checked):
    """A picture.

    Attributes:
        enc: ``jpeg``, ``png``, or ``rgb8``: rows first, three bytes a pixel.
        shape: (H, W) of ``rgb8``; the others say it themselves.
        data: the bytes.
    """

    enc: Literal["jpeg", "png", "rgb8"]
    shape: tuple[MaskSide, MaskSide] | None = None
    data: Annotated[bytes, Octets(MAX_REQUEST_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundData(Checked):
    """The sound of a clip, mono.

    Attributes:
        enc: ``f32``, full scale 1, or ``i16``; both little-endian.
        sample_rate_hz: samples a second.
        t0_ns: time of the first sample, on the timeline of the pictures.
        gap_ms: how much of it is zeros because sound was lost.
        offset_ns: how long after its picture a window of sound ends, as where the network is shown
            the sound around a picture; None: with it.
        data: the samples.
    """

    enc: Literal["f32", "i16"]
    sample_rate_hz: Annotated[int, Whole(MIN_RATE_HZ, MAX_RATE_HZ)]
    t0_ns: Nanoseconds
    gap_ms: Milliseconds = 0.0
    offset_ns: Annotated[int, Whole(-MAX_OFFSET_NS, MAX_OFFSET_NS)] | None = field(
        default=None, metadata=ADDED
    )
    data: Annotated[bytes, Octets(MAX_REQUEST_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledFrame(Checked):
    """A picture of a clip, when it was seen, and what sounds in it."""

    pts_ns: Nanoseconds
    picture: PictureData
    mask: LabelMask


@dataclass(frozen=True, slots=True, kw_only=True)
class PutClip(Checked):
    """Put a whole clip.

    Attributes:
        v: version of the wire.
        request: comes back with the answer.
        id: names the clip for ever; the same id with the same content is the same clip.
        provenance: where the labels come from, in words.
        category: the class, where one is known.
        replace: take the place of a clip with this id that is not yet learned, or set aside.
        allow_full: masks that cover all of their picture are meant.
        frames: at least one, in the order of time.
        sound: None of a clip without sound.
    """

    op: ClassVar[str] = "put"
    v: Version = VERSION
    request: Count = 0
    id: ClipId
    provenance: Prose = ""
    category: Name | None = None
    replace: bool = False
    allow_full: bool = False
    frames: Annotated[tuple[LabeledFrame, ...], Many(MAX_FRAMES)]
    sound: SoundData | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutFrame(Checked):
    """Put the mask of a picture that the daemon keeps in its replay ring, with its sound.

    Attributes:
        v, request, id, provenance, category, replace, allow_full: as in `PutClip`.
        stream: as in the picture's mask message.
        epoch: as there.
        pts_ns: as there.
        instance: the run of the daemon that published it, as in hello and status, to be sent by
            whoever saw it: times and epochs begin anew with every run. Empty: whichever runs now.
        mask: of the size of the published mask, or of the source picture.
    """

    op: ClassVar[str] = "put_frame"
    v: Version = VERSION
    request: Count = 0
    id: ClipId
    provenance: Prose = ""
    category: Name | None = None
    replace: bool = False
    allow_full: bool = False
    stream: StreamName
    epoch: Count
    pts_ns: Nanoseconds
    instance: Name = ""
    mask: LabelMask


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Checked):
    """Take back a clip that is not yet learned, or set aside; its id stays known."""

    op: ClassVar[str] = "delete"
    v: Version = VERSION
    request: Count = 0
    id: ClipId


Label = PutClip | PutFrame
Request = Label | Delete | Order

_REQUESTS: Final[Mapping[str, type[Request]]] = {
    kind.op: kind for kind in (PutClip, PutFrame, Delete, Order)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted(Checked):
    """A request was granted; what is put is on disk.

    Attributes:
        v: version of the wire.
        request: the request's number.
        id: of the clip.
        state: ``stored``, ``replaced``; ``same`` it was there already; ``consumed`` it was learned
            before; ``discarded`` it was set aside and thrown away before; ``deleted``.
    """

    v: Version = VERSION
    request: Count
    id: ClipId
    state: Outcome | Literal["deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused(Checked):
    """A request was refused; nothing was changed.

    Attributes:
        v: version of the wire.
        request: the request's number, None where it could not be read.
        code: a short stable name.
        detail: what came, what is allowed, what to do.
    """

    v: Version = VERSION
    request: Count | None
    code: Name
    detail: Prose


Answer = Granted | Carried | Refused


def pack_request(request: Request) -> bytes:
    """Write a request as the one frame that travels."""
    return cast("bytes", msgpack.packb({"op": request.op, **to_map(request)}))


def unpack_request(data: bytes) -> Request:
    """Read a request; keys that are not known are ignored.

    Raises:
        LabelError: it is none: ``too_large``, ``malformed``, ``version`` or ``unknown_op``.
    """
    if len(data) > MAX_REQUEST_BYTES:
        raise LabelError(
            "too_large",
            f"the request has {len(data)} bytes; {MAX_REQUEST_BYTES} are allowed: send fewer or "
            "smaller pictures, as JPEG or PNG",
        )
    number = None
    try:
        entries = read_map(data)
        came = entries.get("request")
        number = came if type(came) is int and 0 <= came < 2**63 else None
        check_version(entries.get("v"))
        kind = _REQUESTS.get(str(entries.get("op")))
        if kind is None:
            allowed = ", ".join(_REQUESTS)
            raise LabelError(
                "unknown_op",
                f"op is {entries.get('op')!r:.60}; it must be one of {allowed}",
                number,
            )
        return from_map(kind, entries)
    except VersionError as error:
        raise LabelError("version", str(error), number) from error
    except (WireError, FieldError) as error:
        raise LabelError("malformed", str(error), number) from error


def pack_answer(answer: Answer) -> bytes:
    """Write an answer as the one frame that travels."""
    return cast("bytes", msgpack.packb({"ok": not isinstance(answer, Refused), **to_map(answer)}))


def unpack_answer(data: bytes) -> Answer:
    """Read an answer.

    Raises:
        VersionError: it has another major version.
        WireError: it is none.
    """
    entries = read_map(data)
    check_version(entries.get("v"))
    try:
        if entries.get("ok") is not True:
            return from_map(Refused, entries)
        return from_map(Carried if "order" in entries else Granted, entries)
    except FieldError as error:
        raise WireError(f"the answer: {error}") from error


def digest(label: Label) -> bytes:
    """SHA-256 of what a label says, whatever its request's number: equal for the same clip."""
    content = {k: v for k, v in to_map(label).items() if k not in _NOT_CONTENT}
    return sha256(cast("bytes", msgpack.packb({"op": label.op, **content}))).digest()


def pack_stored(clip: PutClip) -> bytes:
    """Write a clip that was accepted as it lies in the spool; `labelclips.load` reads it."""
    return pack_request(replace(clip, request=0, replace=False, allow_full=True))
