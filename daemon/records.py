"""What the bus remembers of a stream, to repeat it to late joiners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .infos import IntakeInfo, LadderInfo, LearnerInfo
from .messages import Event, Hello, Mask, Message, Status, StreamState

_NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class StreamRecord:
    """The latest of a stream, and when its hello and status are due.

    Attributes:
        name: name of the stream.
        counted_ns: when the masks were last counted for `Status.fps`.
        detail: the state in words.
        drops: pictures lost before the bus, by reason.
        lat_ms: milliseconds by stage and percentile.
        intake: how the intake of labels does, None where it is off.
        learner: how the learner does, None where it is off.
        ladder: how the deadline is kept, None where there is none.
        hello: the latest hello, None before the first.
        hello_due_ns: when it is to be repeated.
        status_due_ns: when the next status is to be sent.
    """

    name: str
    counted_ns: int
    detail: str = ""
    drops: Mapping[str, int] = field(default_factory=dict[str, int])
    lat_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    intake: IntakeInfo | None = None
    learner: LearnerInfo | None = None
    ladder: LadderInfo | None = None
    hello: Hello | None = None
    hello_due_ns: int = 0
    status_due_ns: int = 0
    _state: StreamState = "starting"
    _mask: Mask | None = None
    _epoch: int = 0
    _masks: int = 0
    _counted_masks: int = 0

    def note(self, message: Message) -> None:
        """Remember what hello and status repeat."""
        match message:
            case Hello():
                self.hello = message
            case Mask():
                self._mask, self._epoch, self._state = message, message.epoch, "running"
                self._masks += 1
                self.drops = message.drops or self.drops
            case Event(kind="eos"):
                self._state, self.detail = "ended", message.detail
            case Event():
                self._epoch = max(self._epoch, message.epoch)
            case _:
                pass

    def status(
        self, now_ns: int, *, stopping: bool, subscribers: int, bus_drops: Mapping[str, int]
    ) -> Status:
        """What to say of the stream now."""
        seconds = (now_ns - self.counted_ns) / _NS_PER_S
        return Status(
            stream=self.name,
            state="stopping" if stopping and self._state != "ended" else self._state,
            detail=self.detail,
            epoch=self._epoch,
            masks=self._masks,
            fps=(self._masks - self._counted_masks) / seconds if seconds > 0 else 0.0,
            subscribers=subscribers,
            drops={**self.drops, **bus_drops},
            lat_ms=self.lat_ms,
            mask=self._mask,
            intake=self.intake,
            learner=self.learner,
            ladder=self.ladder,
        )

    def status_sent(self, now_ns: int, next_ns: int) -> None:
        """A status has gone out; the next counts its masks from here."""
        self.status_due_ns = next_ns
        self.counted_ns, self._counted_masks = now_ns, self._masks

    def farewell(self) -> Event:
        """What to say when the bus closes."""
        return Event(stream=self.name, kind="goodbye", epoch=self._epoch)
