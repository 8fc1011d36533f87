"""Each picture gets the window of sound that belongs to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from .audio import AudioRing, Heard
from .clips import NS_PER_S, AudioChunk, AudioState, AudioWindow, Sample, VideoFrame
from .sources import AudioEnded, Discontinuity, Quiet, SourceEvent, Trouble

Anchor = Literal["end", "center"]
Output = Sample | Discontinuity | Trouble

PENDING_NS = 5 * NS_PER_S
"""Sound of a file that is interleaved later than this after its picture is not waited for."""
PENDING_BYTES = 512_000_000
"""Pictures that wait for their sound take no more memory than this (but one may always wait)."""
RING_S = 25.0
"""Sound that is kept beyond the window: sound may be interleaved this far ahead of pictures."""


@dataclass(slots=True)
class State:
    """All that a synchroniser knows of its stream.

    Attributes:
        ring: the sound of this epoch.
        ended: whether this epoch's sound has ended.
        pending: pictures that wait for sound, oldest first.
        pending_bytes: what they take.
        repeated: how often sound repeated a time that was already heard.
        began_ns: time of the first picture of this epoch, None before it.
    """

    ring: AudioRing
    ended: bool = False
    pending: deque[VideoFrame] = field(default_factory=deque[VideoFrame])
    pending_bytes: int = 0
    repeated: int = 0
    began_ns: int | None = None


class Synchroniser:
    """Turns the events of a source into samples, in the order of the pictures.

    The window of a picture at T is ``[T + lag - W, T + lag]``, or with ``anchor="center"`` it
    reaches from ``T + lag - W/2`` to ``T + lag + W/2``; always ``round(W * rate)`` samples. Its
    state is

    - ``ok``: all of it was heard;
    - ``gap``: ``gap_ms`` of it are zeros: sound was lost, or had not begun, or has ended;
    - ``late``: its end has not arrived in time. Where less than half is missing it slides back to
      end with the newest sound (``start_ns`` and ``end_ns`` say so), else its end is zeros;
    - ``absent``: the stream has no sound, or none any more: all zeros.

    A file is decided by the order of the medium alone, so the same file gives the same samples: a
    picture waits until its sound has come or is known not to come, at most for five seconds of
    media. A live stream waits ``audio_wait_ms`` of the clock; call `poll`, or push its `Quiet`s,
    while nothing arrives. Both count from the end of the window where that lies after the picture.
    Sound comes in pieces, and waiting for the last one would make each mask older: where a live
    window lacks no more than ``audio_slack_ms``, it slides back likewise, and is ``ok``.
    Where a live stream has given no sound for the length of a window, none is waited for until it
    comes again: windows are ``gap`` and then ``absent``, not ``late``.

    Args:
        window_s: W, seconds of sound for a picture.
        sample_rate_hz: rate of the sound that will be pushed.
        anchor: which point of the window lies at the picture.
        lag_ms: moves the window later; negative is earlier.
        audio_wait_ms: how long a live picture waits for sound after its capture, or after the end
            of its window where that is later.
        audio_slack_ms: how much of its end a live window need not wait for.
        has_audio: whether the source has sound; a discontinuity may say otherwise.
        live: whether `audio_wait_ms` counts.
        clock: host monotonic clock in nanoseconds, the one that stamps ``capture_ns``.

    Raises:
        ValueError: a window without a sample, or a negative wait.
    """

    def __init__(
        self,
        window_s: float = 1.0,
        sample_rate_hz: int = 32000,
        anchor: Anchor = "end",
        lag_ms: float = 0.0,
        audio_wait_ms: float = 100.0,
        audio_slack_ms: float = 0.0,
        has_audio: bool = True,
        live: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._n_samples = round(window_s * sample_rate_hz)
        if self._n_samples < 1 or min(audio_wait_ms, audio_slack_ms) < 0:
            raise ValueError(
                f"window_s {window_s}, audio_wait_ms {audio_wait_ms}, audio_slack_ms "
                f"{audio_slack_ms}: a window holds at least one sample and times are not negative"
            )
        self._rate_hz = sample_rate_hz
        self._length_ns = round(self._n_samples * NS_PER_S / sample_rate_hz)
        after_ns = self._length_ns // 2 if anchor == "center" else 0
        self._end_offset_ns = after_ns + round(lag_ms * 1e6)
        self._wait_ns = round(audio_wait_ms * 1e6)
        self._slack_samples = round(audio_slack_ms * sample_rate_hz / 1e3) if live else 0
        self._has_audio = has_audio
        self._live = live
        self._clock = clock
        self._state = State(AudioRing(sample_rate_hz, window_s + RING_S))

    def push(self, event: SourceEvent) -> list[Output]:
        """Take the next event of the source.

        Returns:
            What is decided by it, in order: samples, and the source's discontinuities and troubles.
        """
        match event:
            case VideoFrame():
                return [*self._take(event)]
            case AudioChunk():
                return self._listen(event)
            case AudioEnded():
                if event.epoch == self._state.ring.epoch:
                    self._state.ended = True
                return [*self._decide()]
            case Discontinuity():
                before = self.finish()
                self._state.ring.reset(event.epoch)
                self._state.ended = False
                self._state.began_ns = None
                if event.has_audio is not None:
                    self._has_audio = event.has_audio
                return [*before, event]
            case Trouble():
                return [event]
            case Quiet():
                return [*self._decide()]

    def poll(self) -> list[Sample]:
        """Samples whose sound has kept them waiting too long; for live streams."""
        return self._decide()

    def finish(self) -> list[Sample]:
        """The stream or its epoch has ended: samples of all pictures that still wait."""
        self._state.ended = True
        return self._decide()

    @property
    def after_ns(self) -> int:
        """How long after its picture a window ends; 0 where it ends with it or before."""
        return max(0, self._end_offset_ns)

    @property
    def pending(self) -> int:
        """Pictures that wait for their sound."""
        return len(self._state.pending)

    def _take(self, frame: VideoFrame) -> list[Sample]:
        if self._state.began_ns is None:
            self._state.began_ns = frame.pts_ns
        self._state.pending.append(frame)
        self._state.pending_bytes += _bytes_of(frame)
        return self._decide()

    def _listen(self, chunk: AudioChunk) -> list[Output]:
        state = self._state
        before = state.ring.repeated_samples
        state.ring.push(chunk)
        state.ended = False  # a microphone that had vanished is back
        samples = self._decide()
        repeated = state.ring.repeated_samples - before
        if not repeated:
            return [*samples]
        state.repeated += 1
        detail = f"{repeated / self._rate_hz * 1e3:.0f} ms of sound at {chunk.start_ns} ns"
        return [*samples, Trouble("repeated_audio", f"{detail} were heard already", state.repeated)]

    def _decide(self) -> list[Sample]:
        state = self._state
        samples: list[Sample] = []
        while state.pending:
            frame = state.pending[0]
            window = self._window(frame)
            if window is None:
                break
            state.pending.popleft()
            state.pending_bytes -= _bytes_of(frame)
            samples.append(Sample(frame, window))
        return samples

    def _window(self, frame: VideoFrame) -> AudioWindow | None:
        """The frame's window, or None while its sound may still come."""
        end_ns = frame.pts_ns + self._end_offset_ns
        start_ns = end_ns - self._length_ns
        if not self._has_audio:
            silence = np.zeros(self._n_samples, np.float32)
            return AudioWindow(silence, self._rate_hz, start_ns, end_ns, "absent")
        heard = self._state.ring.window(start_ns, self._n_samples)
        missing = heard.missing_tail_samples
        if missing and not self._state.ended and not self._is_silent(frame):
            if missing <= self._slack_samples:
                return self._slid_back(missing, start_ns, "ok")
            if not self._is_overdue(frame):
                return None
            if missing * 2 < self._n_samples:
                return self._slid_back(missing, start_ns, "late")
            return self._made(heard, start_ns, "late", heard.gap_samples)
        lost = heard.gap_samples + missing
        state: AudioState = "gap" if lost else "ok"
        if missing == self._n_samples:
            state = "absent"
        return self._made(heard, start_ns, state, lost)

    def _slid_back(self, missing: int, start_ns: int, state: AudioState) -> AudioWindow:
        """The window that ends with the newest sound."""
        start_ns -= round(missing * NS_PER_S / self._rate_hz)
        heard = self._state.ring.window(start_ns, self._n_samples)
        if state == "ok" and heard.gap_samples:
            state = "gap"
        return self._made(heard, start_ns, state, heard.gap_samples)

    def _made(self, heard: Heard, start_ns: int, state: AudioState, lost: int) -> AudioWindow:
        gap_ms = 0.0 if state == "absent" else lost * 1e3 / self._rate_hz
        end_ns = start_ns + self._length_ns
        return AudioWindow(heard.samples, self._rate_hz, start_ns, end_ns, state, gap_ms)

    def _is_silent(self, frame: VideoFrame) -> bool:
        """Whether a live stream has given no sound for the length of a window."""
        heard_ns = self._state.ring.end_ns
        since_ns = self._state.began_ns if heard_ns is None else heard_ns
        is_long = since_ns is not None and frame.pts_ns - since_ns >= self._length_ns
        return self._live and is_long

    def _is_overdue(self, frame: VideoFrame) -> bool:
        pending = self._state.pending
        if self._live and self._clock() - frame.capture_ns >= self._wait_ns + self.after_ns:
            return True
        waited_ns = pending[-1].pts_ns - frame.pts_ns - self.after_ns
        too_much = self._state.pending_bytes > PENDING_BYTES and len(pending) > 1
        return waited_ns > PENDING_NS or too_much


def _bytes_of(frame: VideoFrame) -> int:
    return frame.image.nbytes + (frame.full.nbytes if frame.full is not None else 0)
