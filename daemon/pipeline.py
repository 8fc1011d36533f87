"""The pipeline: one source, one engine, results in order.

A capture thread reads the source, joins each frame with its sound, paces files and fills a bounded
mailbox; it makes no torch call. The consumer's thread takes samples out and runs the engine. The
daemon and the offline tool use this same object, so a file gives the same masks in both.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from ..streams.clips import Sample, VideoFrame
from ..streams.mailbox import Mailbox, MailboxClosedError
from ..streams.pacing import Pacer
from ..streams.sources import Discontinuity, Source, Trouble
from ..streams.synchroniser import Synchroniser
from .engine import Engine, Prediction

Policy = Literal["auto", "wait", "live"]

WAITING: Mapping[Literal["wait", "live"], int] = {"wait": 32, "live": 8}
"""Samples that may wait, by policy, where nobody says. Of a live queue only what arrived together
lasts; see `PipelineOptions.max_wait_ms`."""
LEAST_PERIOD_MS, MOST_PERIOD_MS = 10.0, 200.0
"""Bounds of a frame's period, since containers declare any."""
STAGES = ("decode", "sync_wait", "queue", "pre", "infer", "post")
"""Keys of `Result.latency_ms`, in the order in which a frame passes them."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How a pipeline joins, paces and queues.

    Attributes:
        policy: ``wait`` holds the source at a full queue, ``live`` drops the oldest sample;
            ``auto`` waits for files and is live otherwise.
        pace: ``real`` gives each frame of a file when it is due, ``free`` as fast as it is taken.
        capacity: samples that may wait for the engine; None: `WAITING`, or a batch if that is more.
        max_age_ms: live: a sample older than this is dropped. It counts from the end of the
            window where that lies after the picture: nothing can be told before.
        max_wait_ms: live: so is one that has waited this long, where a newer one is there. None:
            half a frame's period, as the source has it at present. One that has waited three
            quarters of it waits for its successor, a quarter at most.
        anchor: where the frame lies in its window of sound.
        lag_ms: shifts the window later.
        audio_wait_ms: live: how long a frame waits for the end of its window once that is over.
        audio_slack_ms: live: how much of that end it does not wait for.
    """

    policy: Policy = "auto"
    pace: Literal["real", "free"] = "free"
    capacity: int | None = None
    max_age_ms: float = 500.0
    max_wait_ms: float | None = None
    anchor: Literal["end", "center"] = "end"
    lag_ms: float = 0.0
    audio_wait_ms: float = 80.0
    audio_slack_ms: float = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """A sample and what the engine says about it.

    Attributes:
        sample: the frame and its sound; ``frame.capture_ns`` of a file paced as ``real`` is the
            moment the frame was due, as if a camera had given it.
        prediction: the engine's answer.
        latency_ms: milliseconds in each of `STAGES`. ``decode`` is the time the source spent since
            the frame before; of a live source all that lies between the moment of capture and it.
            ``pre``, ``infer`` and ``post`` are the whole batch's.
        seq: results of this pipeline before this one.
        drops: samples dropped so far, by reason.
    """

    sample: Sample
    prediction: Prediction
    latency_ms: dict[str, float]
    seq: int
    drops: dict[str, int]

    def mask(self, threshold: float = 0.5) -> NDArray[np.bool_]:
        """Bool (H, W) at model resolution: where the probability is above ``threshold``."""
        return self.prediction.logits > math.log(threshold / (1 - threshold))


@dataclass(frozen=True, slots=True)
class Ended:
    """The last item of a pipeline. ``stopped`` is true where `Pipeline.stop` ended it early."""

    results: int
    stopped: bool
    drops: dict[str, int]


Item = Result | Discontinuity | Trouble | Ended


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """A sample on its way to the engine."""

    sample: Sample
    decode_ms: float
    sync_wait_ms: float
    queued_ns: int


class Pipeline:
    """Results of one source by one engine, in order, with what happened between them.

    Use it as a context manager; iterate it, or call `take` where something else must happen while
    nothing comes. The last item is `Ended`. An error in the capture thread is raised in the
    consumer, after the results before it. The source is closed by the pipeline, the engine is not.

    Args:
        source: an opened source at the engine's picture size and rate.
        engine: what predicts.
        options: see `PipelineOptions`.
        clock: monotonic nanoseconds, the one the source stamps ``capture_ns`` with.

    Attributes:
        policy: ``wait`` or ``live``, as it was decided.
        capacity: samples that may wait for the engine.
    """

    def __init__(
        self,
        source: Source,
        engine: Engine,
        options: PipelineOptions | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        options = options or PipelineOptions()
        self._source = source
        self._engine = engine
        self._clock = clock
        self._follows_fps = options.max_wait_ms is None
        self._batch_size = engine.batch
        self.policy: Literal["wait", "live"] = (
            ("wait" if source.kind == "file" else "live")
            if options.policy == "auto"
            else options.policy
        )
        self._synchroniser = Synchroniser(
            window_s=engine.window_s,
            sample_rate_hz=engine.sample_rate_hz,
            anchor=options.anchor,
            lag_ms=options.lag_ms,
            audio_wait_ms=options.audio_wait_ms,
            audio_slack_ms=options.audio_slack_ms,
            has_audio=source.has_audio,
            live=source.kind == "live",
            clock=clock,
        )
        self.capacity = options.capacity or max(WAITING[self.policy], engine.batch)
        self._mailbox: Mailbox[_Captured | Discontinuity | Trouble] = Mailbox(
            self.capacity,
            self.policy,
            max_age_ms=options.max_age_ms if self.policy == "live" else None,
            max_wait_ms=options.max_wait_ms or _period_ms(source.fps) / 2,
            period_ms=_period_ms(source.fps),
            clock=clock,
        )
        paced = source.kind == "file" and options.pace == "real"
        self._pacer = Pacer("real" if paced else "free", clock=clock)
        self._is_paced = paced
        self._stop = threading.Event()
        self._decode_ms: deque[tuple[int, float]] = deque()
        self._batch: list[tuple[_Captured, float]] = []
        self._ready: deque[Item] = deque()
        self._seq = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._capture, name="atlasd-capture", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Item]:
        """All items; the last is `Ended`."""
        while (item := self.take()) is not None:
            yield item

    @property
    def queued(self) -> int:
        """Items that wait for the engine."""
        return len(self._mailbox)

    @property
    def drops(self) -> dict[str, int]:
        """Samples dropped so far, by reason."""
        return dict(self._mailbox.drops)

    def take(self, timeout_s: float | None = None) -> Item | None:
        """The next item.

        Args:
            timeout_s: how long to wait for a sample; None waits as long as it takes.

        Returns:
            The item, or None at the timeout or after `Ended`.

        Raises:
            MediaError: the source failed; everything captured before has been given.
            EngineError: the engine refused a sample.
        """
        while not self._ready and not self._is_over:
            was_closed = self._mailbox.closed
            try:
                item = self._mailbox.get(timeout_s)
            except Exception:
                if not self._batch:
                    raise
                self._predict()  # the error comes again, after these
                break
            if item is not None:
                self._accept(item)
            elif was_closed:
                self._predict()
                self._ready.append(Ended(self._seq, self._stop.is_set(), self.drops))
                self._is_over = True
            elif not self._mailbox.closed:
                break  # the timeout
        return self._ready.popleft() if self._ready else None

    def stop(self) -> None:
        """End early: what has been captured is finished, then `Ended` comes.

        May be called from any thread and from a signal handler.
        """
        self._stop.set()
        self._pacer.stop()

    def close(self) -> None:
        """Stop without finishing, and free the source; closing twice is harmless."""
        self.stop()
        self._mailbox.close()
        if self._thread.ident is None:
            self._source.close()
        else:
            self._thread.join()

    # The consumer's thread.

    def _accept(self, item: _Captured | Discontinuity | Trouble) -> None:
        """Predict once a batch is full; an event comes after the results before it."""
        if not isinstance(item, _Captured):
            self._predict()
            self._ready.append(item)
            return
        self._batch.append((item, (self._clock() - item.queued_ns) / 1e6))
        if len(self._batch) >= self._batch_size:
            self._predict()

    def _predict(self) -> None:
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        predictions = self._engine.infer([captured.sample for captured, _ in batch])
        drops = self.drops
        for (captured, queue_ms), prediction in zip(batch, predictions, strict=True):
            latency_ms = {
                "decode": captured.decode_ms,
                "sync_wait": captured.sync_wait_ms,
                "queue": queue_ms,
                "pre": prediction.pre_ms,
                "infer": prediction.infer_ms,
                "post": prediction.post_ms,
            }
            self._ready.append(Result(captured.sample, prediction, latency_ms, self._seq, drops))
            self._seq += 1

    # The capture thread: no torch here.

    def _capture(self) -> None:
        try:
            with self._source:
                self._read()
        except MailboxClosedError:
            return  # the consumer has left
        except Exception as error:  # noqa: BLE001 (the consumer raises it)
            self._mailbox.fail(error)
        else:
            self._mailbox.close()

    def _read(self) -> None:
        events = iter(self._source)
        spent_ns = 0
        while not self._stop.is_set():
            began_ns = self._clock()
            event = next(events, None)
            spent_ns += self._clock() - began_ns
            if event is None:
                outputs = self._synchroniser.finish()
            else:
                outputs = self._synchroniser.push(event)
            if isinstance(event, Discontinuity):
                self._follow_fps()
            if isinstance(event, VideoFrame):
                if self._source.kind == "live":  # it waits for the world, which is no work
                    spent_ns = max(0, self._clock() - event.capture_ns)
                self._decode_ms.append((event.index, spent_ns / 1e6))
                spent_ns = 0
            for output in outputs:
                if not self._offer(output):
                    return
            if event is None:
                return

    def _follow_fps(self) -> None:
        """With less than half a period, what sound let go together would be dropped at once."""
        self._mailbox.period_ms = _period_ms(self._source.fps)
        if self._follows_fps:
            self._mailbox.max_wait_ms = self._mailbox.period_ms / 2

    def _offer(self, output: Sample | Discontinuity | Trouble) -> bool:
        """Put an output into the mailbox when it is due; False where the pipeline was stopped."""
        if not isinstance(output, Sample):
            self._mailbox.put(output)
            return True
        frame = output.frame
        ready_ns = self._clock()
        decode_ms = self._decoding_ms(frame.index)
        sync_wait_ms = (ready_ns - frame.capture_ns) / 1e6
        if self._source.kind == "live":
            sync_wait_ms = max(0.0, sync_wait_ms - decode_ms)
        if not self._pacer.wait_until_due(frame.pts_ns, frame.epoch):
            return False
        if self._is_paced:
            output = replace(output, frame=replace(frame, capture_ns=self._clock()))
        captured = _Captured(output, decode_ms, sync_wait_ms, queued_ns=self._clock())
        self._mailbox.put(captured, self._complete_ns(output))
        return True

    def _complete_ns(self, sample: Sample) -> int:
        """When all that the sample shows had happened: its age counts from there."""
        waits = self._source.kind == "live" and sample.window.state != "absent"
        return sample.frame.capture_ns + (self._synchroniser.after_ns if waits else 0)

    def _decoding_ms(self, index: int) -> float:
        """What decoding frame ``index`` took; frames leave in the order in which they came."""
        while self._decode_ms:
            decoded, ms = self._decode_ms.popleft()
            if decoded == index:
                return ms
        return 0.0


def _period_ms(fps: float | None) -> float:
    return min(MOST_PERIOD_MS, max(LEAST_PERIOD_MS, 1e3 / (fps or 25.0)))
