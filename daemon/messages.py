"""The messages on the bus, and their bytes: ``topic NUL msgpack-map`` in one ZeroMQ frame.

docs/protocol.md is the specification for readers in other languages; tests/golden holds bytes that
never change within a major version. Times are int nanoseconds: ``pts_ns`` on the stream's
timeline, ``capture_ns`` and ``publish_ns`` on the publishing host's monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal, cast, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray

from . import masks
from .fields import (
    ADDED,
    LOCAL,
    FieldError,
    Many,
    Octets,
    Real,
    Text,
    Whole,
    from_map,
    to_map,
)
from .infos import IntakeInfo, LadderInfo, LearnerInfo
from .wire import (
    MAX_ENTRIES,
    STREAM_PATTERN,
    VERSION,
    Checked,
    Count,
    Counts,
    Facts,
    Fraction,
    MaskSide,
    Milliseconds,
    Name,
    Names,
    Nanoseconds,
    Number,
    Prose,
    Side,
    Stages,
    StreamName,
    Version,
    WireError,
    check_version,
    read_map,
)

MAX_MESSAGE_BYTES: Final = masks.MAX_PIXELS + (1 << 16)
"""Longest message."""

TopicKind = Literal["m", "f", "s", "e", "h"]
"""``m`` masks, ``f`` previews, ``s`` status, ``e`` events, ``h`` hello."""

TOPIC: Final = re.compile(f"([{''.join(get_args(TopicKind))}])/({STREAM_PATTERN})".encode())
"""A topic without its NUL: kind and stream."""

LONGEST_TOPIC: Final = 67
"""Bytes of the longest topic, its NUL included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameInfo(Checked):
    """The picture that a mask belongs to.

    Attributes:
        w: width of the upright source picture in pixels.
        h: its height.
        index: pictures of the stream before it, those that were dropped included.
    """

    w: Side
    h: Side
    index: Count


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskData(Checked):
    """A mask at the network's resolution.

    Attributes:
        enc: how `data` is written, see `masks`.
        shape: (H, W) of the mask.
        threshold: the probability above which a pixel is foreground.
        transform: (sx, sy, tx, ty) in pixels: the point (x, y) of the mask lies at
            (sx·x + tx, sy·y + ty) in the source picture. Points are continuous and pixel i covers
            [i, i + 1). None where the mask covers the whole picture: sx = w/W, sy = h/H, tx = ty
            = 0.
        data: the bytes.
    """

    enc: masks.Encoding
    shape: tuple[MaskSide, MaskSide]
    threshold: Fraction = 0.5
    transform: tuple[Number, Number, Number, Number] | None = None
    data: Annotated[bytes, Octets(masks.MAX_PIXELS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioInfo(Checked):
    """The window of sound that the network heard with the picture.

    Attributes:
        state: ``ok`` all of it was heard; ``late`` its end had not arrived; ``gap`` part of it was
            lost; ``absent`` the stream has no sound.
        t0_ns: start of the window on the stream's timeline.
        t1_ns: end of the window.
        gap_ms: milliseconds of it that are zeros because sound was lost.
        rms: root mean square of its samples, 0 to 1.
    """

    state: Literal["ok", "late", "gap", "absent"]
    t0_ns: Nanoseconds
    t1_ns: Nanoseconds
    gap_ms: Milliseconds = 0.0
    rms: Annotated[float, Real(0, 1e6)] = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(Checked):
    """The weights that made a mask: the network's preset and their version."""

    preset: Name
    version: Name


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask(Checked):
    """One mask of one picture.

    Attributes:
        v: version of the wire, major.minor.
        stream: name of the stream.
        epoch: discontinuities of the stream before this mask.
        seq: masks of the stream published before this one, over all epochs; a step of more than
            one is a loss on the bus.
        pts_ns: presentation time of the picture.
        capture_ns: when the picture left the decoder or the driver.
        publish_ns: when the mask was handed to the bus; the publisher sets it.
        frame: the picture.
        mask: the mask.
        classes: names of the classes, most probable first; empty without a class head.
        scores: their probabilities, in the same order.
        audio: the sound.
        rung: step of the ladder of input sizes that was used, 0 the largest.
        deadline_ms: the deadline that chose the rung, None without one.
        model: the weights.
        lat_ms: milliseconds by stage.
        drops: pictures dropped since the stream began, by reason.
        gap: set by the receiver: masks of this stream lost on the bus just before this one.
        age_ms: set by the receiver: milliseconds from capture to reception.
        stale: set by the receiver: older than it allows.
    """

    topic_kind: ClassVar[TopicKind] = "m"
    v: Version = VERSION
    stream: StreamName
    epoch: Count
    seq: Count
    pts_ns: Nanoseconds
    capture_ns: Nanoseconds
    publish_ns: Nanoseconds = 0
    frame: FrameInfo
    mask: MaskData
    classes: Names = ()
    scores: Annotated[tuple[Fraction, ...], Many(MAX_ENTRIES)] = ()
    audio: AudioInfo
    rung: Annotated[int, Whole(0, 255)] = 0
    deadline_ms: Milliseconds | None = None
    model: ModelInfo
    lat_ms: Stages = field(default_factory=dict[str, float])
    drops: Counts = field(default_factory=dict[str, int])
    gap: int = field(default=0, metadata=LOCAL)
    age_ms: float | None = field(default=None, metadata=LOCAL)
    stale: bool = field(default=False, metadata=LOCAL)

    def array(self) -> NDArray[np.bool_]:
        """The mask at the network's resolution: bool (H, W).

        Raises:
            masks.MaskError: the bytes do not hold a mask of the shape that they claim.
        """
        m = self.mask
        return masks.decode(m.data, m.shape, m.enc, threshold=m.threshold)

    def to_frame(self) -> NDArray[np.bool_]:
        """The mask at the source picture's size: bool (h, w), nearest neighbour.

        Raises:
            masks.MaskError: the bytes do not hold a mask of the shape that they claim, or
                `masks.enlarge` refuses.
        """
        size = (self.frame.w, self.frame.h)
        return masks.enlarge(self.array(), size, self.mask.transform)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview(Checked):
    """A picture as JPEG, encoded only while someone subscribes."""

    topic_kind: ClassVar[TopicKind] = "f"
    v: Version = VERSION
    stream: StreamName
    epoch: Count
    pts_ns: Nanoseconds
    capture_ns: Nanoseconds
    publish_ns: Nanoseconds = 0
    frame: FrameInfo
    jpeg: Annotated[bytes, Octets(masks.MAX_PIXELS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Checked):
    """What a stream is; sent at the start, to late joiners and every two seconds.

    Attributes:
        instance: names this run of the daemon: when it changes, the daemon was restarted and
            `Mask.seq` began anew. The publisher sets it.
        clock: names the clock of ``capture_ns`` and ``publish_ns``: a reader whose `clock_name`
            is equal may compare them with its own monotonic clock. The publisher sets it.
        source: ``file`` or ``live``.
        frame_size: (w, h) of the upright source picture, None until it is known.
        fps: nominal pictures a second, None where unknown.
        has_audio: whether the stream has sound.
        mask_shape: (H, W) of its masks.
        enc: encoding of its masks.
        threshold: probability above which a pixel is foreground.
        classes: all names that `Mask.classes` may hold.
        window_s: seconds of sound that belong to a picture.
        sample_rate_hz: rate at which the network hears it.
        model: the weights at the moment; a mask says which made it.
    """

    topic_kind: ClassVar[TopicKind] = "h"
    v: Version = VERSION
    stream: StreamName
    publish_ns: Nanoseconds = 0
    instance: Name = ""
    clock: Name = ""
    source: Literal["file", "live"]
    frame_size: tuple[Side, Side] | None = None
    fps: Annotated[float, Real(0, 1e6)] | None = None
    has_audio: bool
    mask_shape: tuple[MaskSide, MaskSide]
    enc: masks.Encoding
    threshold: Fraction = 0.5
    classes: Names = ()
    window_s: Annotated[float, Real(0, 3600)]
    sample_rate_hz: Annotated[int, Whole(1, 1_000_000)]
    model: ModelInfo


StreamState = Literal["starting", "running", "ended", "stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status(Checked):
    """How a stream does; once a second, so that silence means that the daemon is gone.

    Attributes:
        instance: as in `Hello`.
        state: ``ended`` after the end of the stream; nothing but status and hello follows it.
        detail: the state in words.
        epoch: discontinuities of the stream so far.
        masks: masks published so far.
        fps: masks a second since the last status.
        subscribers: subscriptions that match the stream's masks.
        drops: losses since the stream began, by reason: pictures before the network, and
            ``bus_queue_full`` and ``subscriber_stalled`` on the bus.
        lat_ms: milliseconds by stage and percentile (``infer_p50``).
        mask: the latest mask, so that the last one of a stream reaches late and slow readers.
        intake: the intake of labels, None where it is off. Since 1.1.
        learner: what becomes of them, None where they are not learned. Since 1.2.
        ladder: how the deadline is kept, None where there is none. Since 1.2.
    """

    topic_kind: ClassVar[TopicKind] = "s"
    v: Version = VERSION
    stream: StreamName
    publish_ns: Nanoseconds = 0
    instance: Name = ""
    state: StreamState
    detail: Prose = ""
    epoch: Count = 0
    masks: Count = 0
    fps: Annotated[float, Real(0, 1e9)] = 0.0
    subscribers: Count = 0
    drops: Counts = field(default_factory=dict[str, int])
    lat_ms: Stages = field(default_factory=dict[str, float])
    mask: Mask | None = None
    intake: IntakeInfo | None = field(default=None, metadata=ADDED)
    learner: LearnerInfo | None = field(default=None, metadata=ADDED)
    ladder: LadderInfo | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Checked):
    """Something happened to a stream.

    Attributes:
        kind: a short stable name; readers ignore those that they do not know. ``epoch`` a
            discontinuity, ``eos`` the end of the stream, ``goodbye`` the daemon leaves,
            ``reconnect`` a live source is lost or not there yet, ``model_swap``, ``trouble``
            damage in the medium, ``failed`` the stream ended by a failure, ``subscriber_stalled``
            masks go on without one that stopped reading. Of the learner: ``batch_refused``,
            ``checkpoint``, ``checkpoint_damaged``, ``rollback``, ``learner_resumed``,
            ``learner_rebased``, ``learner_halted``, ``learner_died``, ``weights_refused``. Of the
            intake: ``intake_failed``, ``intake_opened``.
        epoch: epoch of the stream at that moment.
        pts_ns: where on the stream's timeline, None where nowhere.
        detail: for people.
        data: for programs: numbers, texts and truth values by name.
    """

    topic_kind: ClassVar[TopicKind] = "e"
    v: Version = VERSION
    stream: StreamName
    publish_ns: Nanoseconds = 0
    kind: Annotated[str, Text(64, "[a-z][a-z0-9_]*")]
    epoch: Count = 0
    pts_ns: Nanoseconds | None = None
    detail: Prose = ""
    data: Facts = field(default_factory=dict[str, bool | int | float | str])


Message = Mask | Preview | Status | Event | Hello

_KINDS: Final[Mapping[str, type[Message]]] = {
    kind.topic_kind: kind for kind in (Mask, Preview, Status, Event, Hello)
}


def topic(kind: TopicKind, stream: str) -> bytes:
    """The topic of a stream's messages, its final NUL included.

    With the NUL a subscription to stream ``cam`` does not match ``cam2``.

    Raises:
        WireError: the stream's name is not of the form `STREAM_PATTERN`.
    """
    if re.fullmatch(STREAM_PATTERN, stream) is None:
        raise WireError(
            f"the stream is named {stream!r}; a name is 1 to 64 letters, digits, '.', '_' or '-', "
            "the first a letter or digit"
        )
    return f"{kind}/{stream}".encode() + b"\0"


def pack(message: Message) -> bytes:
    """Write a message as the one frame that travels."""
    body = cast("bytes", msgpack.packb(to_map(message)))
    return topic(message.topic_kind, message.stream) + body


def unpack(data: bytes) -> Message:
    """Read a frame.

    Keys that are not known are ignored; lists, maps and texts are bounded.

    Raises:
        VersionError: the message has another major version.
        WireError: the bytes are no message.
    """
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"the message has {len(data)} bytes; {MAX_MESSAGE_BYTES} are allowed")
    head, _, body = data.partition(b"\0")
    match = TOPIC.fullmatch(head)
    if match is None:
        raise WireError(
            f"the topic is {head[:80]!r}; it must be one of {'/ '.join(_KINDS)}/ with a stream's "
            "name, and a NUL after it"
        )
    entries = read_map(body)
    check_version(entries.get("v"))
    try:
        message = from_map(_KINDS[match[1].decode()], entries)
    except FieldError as error:
        raise WireError(f"{head.decode()}: {error}") from error
    if message.stream.encode() != match[2]:
        raise WireError(f"{head.decode()} holds a message of stream {message.stream!r}")
    return message
