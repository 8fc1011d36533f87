"""How much later a stream's sound is than its picture, by claps that are seen and heard."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .clips import NS_PER_S, AudioChunk, VideoFrame
from .sources import Discontinuity, SourceEvent

Sight = Literal["flash", "hands"]

FEWEST = 3
"""Fewer claps are chance."""
FARTHEST_NS = NS_PER_S // 2
"""A sound farther from a picture than this is another clap's."""
TOGETHER_NS = {"flash": 30_000_000, "hands": 50_000_000}
"""Offsets this near to the commonest one are of the same kind of event."""
MOST_SPREAD_MS = {"flash": 25.0, "hands": 40.0}
REFRACTORY_NS = 300_000_000
"""After an onset, echoes and the hands' parting are no claps."""
KEPT = 500
"""Onsets of each kind that are kept: eight minutes at one a second."""

HOP_S = 0.002
LOOK_S = 0.012
"""The loudest moment of a clap lies within this after its onset."""
LOUDER = 25.0
"""Energy over the background's, in a hop, that makes an onset: 14 dB."""
FAINTEST = 0.004
"""Changes from sample to sample below this (of full scale) are noise."""

CELLS = (12, 16)
"""Rows and columns in which the brightness is watched: a flash may be small in the picture."""
BRIGHTEST_CELLS = 8
FLASH_LEVELS = 20.0
"""Levels of 255 by which the brightest rises of a flash rise, at least."""
MOTION_LEVELS = 0.6
"""Mean change between two pictures, in levels of 255, that is a movement of hands."""
RECENT = 30


@dataclass(frozen=True, slots=True)
class Measured:
    """What claps say.

    Attributes:
        sight: what was seen: flashes, or hands that stop at each other.
        offset_ms: by how much the sound is later; negative: earlier.
        spread_ms: standard deviation of single claps, robustly.
        claps: those that were both seen and heard, and agree.
        heard: sounds of that kind.
        seen: sights of that kind.
        problem: why this is not to be relied on, and what to do; empty where it is.
    """

    sight: Sight
    offset_ms: float
    spread_ms: float
    claps: int
    heard: int
    seen: int
    problem: str = ""


class SoundOnsets:
    """Finds sudden sounds to a millisecond."""

    def __init__(self) -> None:
        self._samples = np.zeros(0, np.float32)
        self._start_ns = 0
        self._background: float | None = None
        self._last_ns = -REFRACTORY_NS

    def push(self, chunk: AudioChunk) -> list[int]:
        """Times, in ns, of the onsets that are known with this chunk."""
        rate_hz = chunk.sample_rate_hz
        end_ns = self._start_ns + round(self._samples.size * NS_PER_S / rate_hz)
        if abs(chunk.start_ns - end_ns) > NS_PER_S // 50:
            self._samples, self._background = np.zeros(0, np.float32), None
            self._start_ns = chunk.start_ns
        self._samples = np.concatenate([self._samples, chunk.samples])
        self._start_ns = chunk.start_ns + round(
            (chunk.samples.size - self._samples.size) * NS_PER_S / rate_hz
        )
        return self._scan(rate_hz)

    def _scan(self, rate_hz: int) -> list[int]:
        hop, look = max(2, round(HOP_S * rate_hz)), round(LOOK_S * rate_hz)
        change = np.abs(np.diff(self._samples))
        hops = max(0, (change.size - look) // hop)
        onsets: list[int] = []
        for i in range(hops):
            energy = float(np.mean(np.square(change[i * hop : (i + 1) * hop]))) + 1e-12
            background = energy if self._background is None else self._background
            loud = energy > LOUDER * background and energy > FAINTEST**2
            if loud:
                near = change[i * hop : i * hop + look]
                first = i * hop + int(np.argmax(near > 0.3 * near.max()))
                time_ns = self._start_ns + round(first * NS_PER_S / rate_hz)
                if time_ns - self._last_ns > REFRACTORY_NS:
                    onsets.append(time_ns)
                    self._last_ns = time_ns
            self._background = background + 0.01 * (min(energy, 4 * background) - background)
        self._samples = self._samples[hops * hop :]
        self._start_ns += round(hops * hop * NS_PER_S / rate_hz)
        return onsets


class PictureOnsets:
    """Finds flashes, and hands that stop at each other.

    Args:
        is_live: whether pictures show the period before their time, as a camera's do; those of a
            file begin with it.
    """

    def __init__(self, *, is_live: bool) -> None:
        self._is_live = is_live
        self._before: tuple[int, NDArray[np.float32], NDArray[np.float32]] | None = None
        self._rises: deque[float] = deque(maxlen=RECENT)
        self._motions: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._last_ns: dict[Sight, int] = {"flash": -REFRACTORY_NS, "hands": -REFRACTORY_NS}

    def push(self, frame: VideoFrame) -> list[tuple[Sight, int]]:
        """What was seen with this picture, and when."""
        grey = frame.image[::2, ::2].mean(axis=2, dtype=np.float32)
        cells, before = _cells(grey), self._before
        self._before = (frame.pts_ns, grey, cells)
        if before is None or before[1].shape != grey.shape:
            self._rises.clear()
            self._motions.clear()
            return []
        seen = [
            *self._flash(before[0], frame.pts_ns, cells - before[2]),
            *self._hands(before[0], frame.pts_ns, float(np.abs(grey - before[1]).mean())),
        ]
        fresh: list[tuple[Sight, int]] = []
        for sight, time_ns in seen:
            if time_ns - self._last_ns[sight] > REFRACTORY_NS:
                self._last_ns[sight] = time_ns
                fresh.append((sight, time_ns))
        return fresh

    def _flash(
        self, before_ns: int, now_ns: int, change: NDArray[np.float32]
    ) -> list[tuple[Sight, int]]:
        rise = float(np.sort(change, axis=None)[-BRIGHTEST_CELLS:].mean())
        usual = float(np.median(self._rises)) if self._rises else 0.0
        self._rises.append(rise)
        if rise < max(FLASH_LEVELS, 6 * usual):
            return []
        return [("flash", (before_ns + now_ns) // 2 if self._is_live else now_ns)]

    def _hands(self, before_ns: int, now_ns: int, motion: float) -> list[tuple[Sight, int]]:
        """Motion that grows and breaks off: they met within the last interval that moved."""
        motions = self._motions
        found: list[tuple[Sight, int]] = []
        if len(motions) >= 2:
            (first_ns, full), (last_ns, partial) = motions[-2], motions[-1]
            usual = float(np.median([m for _, m in motions]))
            moved = max(full, partial) > max(MOTION_LEVELS, 3 * usual)
            if moved and motion < 0.35 * max(full, partial) and partial > motion:
                share = min(1.0, partial / full) if full > 0 else 1.0
                found = [("hands", round(first_ns + share * (last_ns - first_ns)))]
        motions.append((now_ns, motion))
        return found


@dataclass(slots=True)
class ClapMeter:
    """Measures the offset of a stream's sound by its claps.

    Args:
        is_live: see `PictureOnsets`.
    """

    is_live: bool
    heard: deque[int] = field(default_factory=lambda: deque[int](maxlen=KEPT), init=False)
    seen: dict[Sight, deque[int]] = field(init=False)
    _sounds: SoundOnsets = field(default_factory=SoundOnsets, init=False)
    _pictures: PictureOnsets = field(init=False)

    def __post_init__(self) -> None:
        self.seen = {"flash": deque(maxlen=KEPT), "hands": deque(maxlen=KEPT)}
        self._pictures = PictureOnsets(is_live=self.is_live)

    def push(self, event: SourceEvent) -> int:
        """Take a source's next event; how many sudden sounds it brought."""
        if isinstance(event, Discontinuity):
            self._sounds, self._pictures = SoundOnsets(), PictureOnsets(is_live=self.is_live)
        elif isinstance(event, VideoFrame):
            for sight, time_ns in self._pictures.push(event):
                self.seen[sight].append(time_ns)
        elif isinstance(event, AudioChunk):
            onsets = self._sounds.push(event)
            self.heard.extend(onsets)
            return len(onsets)
        return 0

    def measured(self) -> Measured:
        """What all claps so far say, by the sight that agrees best with the sounds."""
        flash, hands = self._by("flash"), self._by("hands")
        if bool(flash.problem) == bool(hands.problem):
            return flash if flash.claps >= hands.claps else hands
        return hands if flash.problem else flash

    def _by(self, sight: Sight) -> Measured:
        seen = list(self.seen[sight])
        agreeing = _commonest(_offsets(list(self.heard), seen), TOGETHER_NS[sight])
        offset_ms = float(np.median(agreeing)) / 1e6 if agreeing.size else 0.0
        away_ms = np.abs(agreeing / 1e6 - offset_ms)
        spread_ms = 1.4826 * float(np.median(away_ms)) if agreeing.size else 0.0
        found = Measured(
            sight, offset_ms, spread_ms, int(agreeing.size), len(self.heard), len(seen)
        )
        return replace(found, problem=_problem(found))


def _cells(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean brightness in at most 12 rows and 16 columns; edges that do not fit are left out."""
    rows, columns = min(CELLS[0], grey.shape[0]), min(CELLS[1], grey.shape[1])
    height, width = grey.shape[0] // rows, grey.shape[1] // columns
    whole = grey[: rows * height, : columns * width]
    return whole.reshape(rows, height, columns, width).mean(axis=(1, 3))


def _offsets(heard: list[int], seen: list[int]) -> NDArray[np.int64]:
    """By how much each sound is later than each picture that it may belong to."""
    apart = np.subtract.outer(np.array(heard, np.int64), np.array(seen, np.int64)).ravel()
    return apart[np.abs(apart) <= FARTHEST_NS]


def _commonest(offsets: NDArray[np.int64], together_ns: int) -> NDArray[np.int64]:
    """The largest group of offsets around one of them."""
    if not offsets.size:
        return offsets
    near = np.abs(np.subtract.outer(offsets, offsets)) <= together_ns
    return offsets[near[int(np.argmax(near.sum(axis=1)))]]


def _problem(found: Measured) -> str:
    """Why a measurement is not to be relied on, and what to do."""
    if not found.heard:
        return (
            "no clap was heard: see that the right microphone is used (`atlasd devices --meter`) "
            "and clap near to it"
        )
    if not found.seen:
        return "no clap was seen: clap within the picture, or flash a light; see that it is lit"
    if found.claps < FEWEST:
        return (
            f"{found.claps} of {found.heard} sounds fit to {found.seen} sights; at least {FEWEST} "
            "are needed: clap some ten times, a second apart, in front of the camera"
        )
    if found.claps * 2 < found.heard:
        return (
            f"only {found.claps} of {found.heard} sudden sounds agree with what was seen: clap "
            "where it is quiet, and keep all else still"
        )
    if found.spread_ms > MOST_SPREAD_MS[found.sight]:
        return (
            f"single claps differ by {found.spread_ms:.0f} ms; at most "
            f"{MOST_SPREAD_MS[found.sight]:.0f} is allowed: use a flash (`--make clap.html`), more "
            "light, or a higher frame rate"
        )
    return ""
