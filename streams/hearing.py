"""What a microphone gives, on the host's clock: chunks of sound at the stream's rate."""

from __future__ import annotations

from collections import Counter

import numpy as np
from av.audio.frame import AudioFrame

from .capturering import Block
from .clips import NS_PER_S, AudioChunk
from .clockmap import STEP_NS, ClockMap
from .listener import Lost, Opened, Told
from .resampler import MonoResampler, Piece
from .sources import AudioEnded, Discontinuity, Trouble, TroubleKind

SETTLE_S = 2.5
"""A sound server says wrongly for a second or two how old its sound is. So the first sound is
held for so long, and its place is taken from the last quarter."""

HOLE_NS, HOLE_AFTER_NS = 30_000_000, 800_000_000
"""Where all sound for so long is later than its count says by more than this, but less than a step
of the clock, some was lost and nobody said so: sound servers drop what is fetched too late."""

Event = AudioChunk | AudioEnded | Discontinuity | Trouble


class Hearing:
    """Turns the blocks of a microphone that comes and goes into the sound of a stream.

    A block's own clock is the count of its samples, which has no jitter; `ClockMap` ties it to the
    host's. So a run of sound stays a run, and the microphone's skew shows only in where it lies.

    Args:
        stream: name that chunks carry.
        sample_rate_hz: the rate that comes out.
        origin_ns: host monotonic clock at the stream's time 0.
        settle_s: how long the first sound after an opening is held.

    Attributes:
        epoch: of the next chunk; whoever opens an epoch sets it.
        is_lost: whether there is no microphone at present.
    """

    def __init__(
        self, stream: str, sample_rate_hz: int, origin_ns: int, settle_s: float = SETTLE_S
    ) -> None:
        self.epoch = 0
        self.is_lost = False
        self._stream, self._rate_hz, self._origin_ns = stream, sample_rate_hz, origin_ns
        self._settle_ns = round(settle_s * NS_PER_S)
        self._counts: Counter[str] = Counter()
        self._openings = 0
        self._begin(sample_rate_hz)

    def push(self, told: Told) -> list[Event]:
        """Take what the listener tells next.

        Returns:
            Chunks, and what else is to be told of. A `Discontinuity` asks for ``epoch + 1``, which
            has begun here already.
        """
        match told:
            case Opened():
                return self._opened(told)
            case Lost():
                return self._lose(told.reason)
            case Block():
                return self._listen(told)

    def _begin(self, in_rate_hz: int) -> None:
        self._in_rate_hz = in_rate_hz
        self._clock = ClockMap()
        self._resampler = MonoResampler(self._rate_hz)
        self._held: list[Block] | None = []
        self._overflows = self._not_finite = self._dropped = 0
        self._late_since_ns: int | None = None
        self._least_late_ns = 0
        self._is_presumed = False

    def _opened(self, told: Opened) -> list[Event]:
        self._begin(told.rate_hz)
        self._openings += 1
        was_lost, self.is_lost = self.is_lost, False
        kind = "microphone_back" if was_lost or self._openings > 1 else "microphone_open"
        return [self._trouble(kind, f"{told.name} is heard at {told.rate_hz} Hz")]

    def _lose(self, reason: str) -> list[Event]:
        events: list[Event] = [*self._release(), *self._chunks(self._resampler.flush())]
        if not self.is_lost:
            events += [self._trouble("microphone_lost", reason), AudioEnded(self.epoch)]
        self.is_lost = True
        return events

    def _listen(self, block: Block) -> list[Event]:
        events = self._judge_stamps(block)
        if self._held is not None:
            self._held.append(block)
            settled = block.arrival_ns - self._held[0].arrival_ns >= self._settle_ns
            return [*events, *(self._release() if settled else [])]
        events += self._count_dropped(block)
        if self._clock.observe(self._device_ns(block), block.host_ns):
            events += self._break()
        return [*events, *self._placed(block)]

    def _judge_stamps(self, block: Block) -> list[Event]:
        """Tell where the device's word about its times begins to count, or ends."""
        was_presumed, self._is_presumed = self._is_presumed, block.presumed_ns is not None
        if self._is_presumed == was_presumed:
            return []
        if block.presumed_ns is None:
            again = "the device's times of sound are plausible again, and are taken again"
            return [self._trouble("microphone_stamps", again)]
        presumed = (
            "the device's times of sound cannot be; it is now taken to come as late as was usual, "
            f"{block.presumed_ns / 1e6:.0f} ms"
        )
        return [self._trouble("microphone_stamps", presumed)]

    def _count_dropped(self, block: Block) -> list[Event]:
        """Find samples that were lost without a word, and count them from here on."""
        late_ns = block.host_ns - self._clock.host_ns(self._device_ns(block))
        if not HOLE_NS < late_ns <= STEP_NS:
            self._late_since_ns = None
            return []
        if self._late_since_ns is None:
            self._late_since_ns, self._least_late_ns = block.arrival_ns, late_ns
        self._least_late_ns = min(self._least_late_ns, late_ns)
        if block.arrival_ns - self._late_since_ns < HOLE_AFTER_NS:
            return []
        self._late_since_ns = None
        self._dropped += self._least_late_ns * self._in_rate_hz // NS_PER_S
        lost = f"{self._least_late_ns / 1e6:.0f} ms were lost, and nobody said so"
        return [self._trouble("microphone_hole", lost)]

    def _release(self) -> list[Event]:
        """Give the first sound, now that it is known where it lies."""
        if not self._held:
            return []
        held, self._held = self._held, None
        believed_ns = held[-1].arrival_ns - self._settle_ns // 4
        for block in held:
            if block.arrival_ns >= believed_ns:
                self._clock.observe(self._device_ns(block), block.host_ns)
        return [event for block in held for event in self._placed(block)]

    def _break(self) -> list[Event]:
        """The microphone's clock has stepped: what follows is another epoch."""
        events: list[Event] = [*self._chunks(self._resampler.flush())]
        self.epoch += 1
        return [*events, Discontinuity(self.epoch, "the microphone's clock has stepped")]

    def _placed(self, block: Block) -> list[Event]:
        events: list[Event] = []
        if block.overflows > self._overflows:
            lost_ms = block.lost * 1e3 / self._in_rate_hz
            events.append(self._trouble("microphone_overflow", f"{lost_ms:.0f} ms were lost"))
        self._overflows = block.overflows
        frame = AudioFrame.from_ndarray(block.samples[np.newaxis], format="fltp", layout="mono")
        frame.sample_rate = self._in_rate_hz
        events += self._chunks(self._resampler.push(frame, self._device_ns(block)))
        if self._resampler.not_finite > self._not_finite:
            events.append(self._trouble("not_finite", "sound held NaN or infinity, now zeros"))
        self._not_finite = self._resampler.not_finite
        return events

    def _chunks(self, pieces: list[Piece]) -> list[AudioChunk]:
        return [
            AudioChunk(
                piece.samples,
                self._rate_hz,
                self._clock.host_ns(piece.start_ns) - self._origin_ns,
                self._stream,
                self.epoch,
            )
            for piece in pieces
        ]

    def _device_ns(self, block: Block) -> int:
        return round((block.position + self._dropped) * NS_PER_S / self._in_rate_hz)

    def _trouble(self, kind: TroubleKind, detail: str) -> Trouble:
        self._counts[kind] += 1
        return Trouble(kind, detail, self._counts[kind])
