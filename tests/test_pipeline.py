"""The pipeline: order, bounds, events, errors and the end."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from atlasd.daemon.engine import Prediction
from atlasd.daemon.memory import resident_mb
from atlasd.daemon.pipeline import STAGES, Ended, Pipeline, PipelineOptions, Result
from atlasd.streams.clips import AudioChunk, VideoFrame
from atlasd.streams.files import open_source
from atlasd.streams.sources import Discontinuity, MediaError, Quiet, Trouble
from media import write_video
from served import tiny_engine

PERIOD_NS = 40_000_000


def picture(index: int, epoch: int = 0) -> VideoFrame:
    image = np.full((4, 4, 3), index % 256, np.uint8)
    return VideoFrame(image, index * PERIOD_NS, 0, "main", epoch, index, (4, 4))


class ScriptedSource:
    """Gives events as told; an exception among them is raised, a callable is called."""

    stream, has_audio, source_size_px, fps, duration_ns = "main", False, (4, 4), 25.0, None

    def __init__(self, events, kind="file"):
        self.kind = kind
        self.closed = False
        self.exhausted = threading.Event()
        self._events = events

    def __iter__(self) -> Iterator[object]:
        try:
            for event in self._events:
                if isinstance(event, Exception):
                    raise event
                if callable(event):
                    event()
                else:
                    yield event
        finally:
            self.exhausted.set()

    def close(self):
        self.closed = True

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()


class EchoEngine:
    """Says what it saw: logits are the picture's first channel."""

    image_px, sample_rate_hz, window_s = 4, 32000, 1.0
    categories: tuple[str, ...] = ()
    preset, version = "echo", "1"

    def __init__(self, batch: int = 1):
        self.batch = batch
        self.batches: list[int] = []

    def warm(self):
        pass

    def infer(self, samples: Sequence) -> list[Prediction]:
        self.batches.append(len(samples))
        return [
            Prediction(
                s.frame.image[:, :, 0].astype(np.float32), None, 0, 1.0, 2.0, 3.0, "echo", "1"
            )
            for s in samples
        ]

    def close(self):
        pass


def run(events, engine=None, **options) -> list:
    with Pipeline(
        ScriptedSource(events), engine or EchoEngine(), PipelineOptions(**options)
    ) as pipeline:
        return list(pipeline)


def test_every_frame_comes_once_in_order_with_its_own_prediction():
    items = run([picture(i) for i in range(200)], capacity=3)
    results = [item for item in items if isinstance(item, Result)]
    assert [r.seq for r in results] == list(range(200))
    assert [r.sample.frame.index for r in results] == list(range(200))
    assert [int(r.prediction.logits[0, 0]) for r in results] == [i % 256 for i in range(200)]
    assert items[-1] == Ended(200, False, {"queue_full": 0, "stale": 0})


def test_every_stage_has_a_latency():
    (result, _) = run([picture(0)])
    assert tuple(result.latency_ms) == STAGES
    assert result.latency_ms["infer"] == 2.0
    assert all(ms >= 0 for ms in result.latency_ms.values())


@pytest.mark.parametrize("batch", [1, 4])
def test_events_keep_their_place_between_results(batch):
    gap, broken = Discontinuity(1, "jump"), Trouble("corrupt_packet", "one", 1)
    script = [picture(0), broken, picture(1), picture(2), gap, picture(3, epoch=1)]
    items = run(script, EchoEngine(batch))
    told = [i.sample.frame.index if isinstance(i, Result) else i for i in items[:-1]]
    assert told == [0, broken, 1, 2, gap, 3]


def test_batches_are_filled_and_the_rest_comes_at_the_end():
    engine = EchoEngine(batch=4)
    items = run([picture(i) for i in range(10)], engine)
    assert engine.batches == [4, 4, 2]
    assert items[-1].results == 10


def test_an_error_of_the_source_comes_after_the_results_before_it():
    source = ScriptedSource([picture(0), picture(1), MediaError("the cable fell out")])
    seen = []
    with Pipeline(source, EchoEngine(batch=8)) as pipeline:
        with pytest.raises(MediaError, match="the cable fell out"):
            seen.extend(pipeline)
        with pytest.raises(MediaError):
            pipeline.take()
    assert [item.sample.frame.index for item in seen] == [0, 1]
    assert source.closed


def test_live_drops_the_oldest_and_counts_them():
    source = ScriptedSource([picture(i) for i in range(20)], kind="live")
    options = PipelineOptions(capacity=4, max_age_ms=60_000)
    with Pipeline(source, EchoEngine(), options, clock=lambda: 0) as pipeline:
        assert pipeline.policy == "live"
        source.exhausted.wait(10)
        items = list(pipeline)
    assert [i.sample.frame.index for i in items[:-1]] == [16, 17, 18, 19]
    assert items[-1].drops == {"queue_full": 16, "stale": 0}


def test_live_keeps_events_when_frames_are_dropped():
    script = [picture(0), Discontinuity(1, "jump"), *(picture(i, epoch=1) for i in range(1, 20))]
    source = ScriptedSource(script, kind="live")
    options = PipelineOptions(capacity=4, max_age_ms=60_000)
    with Pipeline(source, EchoEngine(), options, clock=lambda: 0) as pipeline:
        source.exhausted.wait(10)
        items = list(pipeline)
    assert Discontinuity(1, "jump") in items


def test_live_passes_over_stale_frames():
    now = [0]
    source = ScriptedSource([picture(0), picture(1)], kind="live")
    options = PipelineOptions(max_age_ms=100)
    with Pipeline(source, EchoEngine(), options, clock=lambda: now[0]) as pipeline:
        source.exhausted.wait(10)
        now[0] = 200_000_000
        items = list(pipeline)
    assert items == [Ended(0, False, {"queue_full": 0, "stale": 2})]


@pytest.mark.parametrize(
    ("how", "waited_ms"), [({"lag_ms": 1500.0}, 1500), ({"anchor": "center"}, 500), ({}, 0)]
)
def test_a_live_picture_is_not_too_old_for_having_waited_for_its_window(how, waited_ms):
    """Its age counts from when its window was over; from there it may be as old as any."""

    def script():
        yield picture(0)
        now[0] = waited_ms * 1_000_000 + 20_000_000
        yield AudioChunk(np.zeros(32 * (waited_ms + 20), np.float32), 32000, 0, "main", 0)

    def taken_after(ms):
        now[0] = 0
        source = ScriptedSource(script(), kind="live")
        source.has_audio = True
        with Pipeline(source, EchoEngine(), PipelineOptions(**how), clock=lambda: now[0]) as it:
            assert source.exhausted.wait(10)
            now[0] += ms * 1_000_000
            return list(it)

    now = [0]
    result, _ = taken_after(479)
    assert result.sample.window.end_ns == waited_ms * 1_000_000
    assert taken_after(481) == [Ended(0, False, {"queue_full": 0, "stale": 1})]


@pytest.mark.parametrize(("fps", "shown"), [(25.0, [2]), (5.0, [0, 1, 2]), (None, [2])])
def test_a_live_picture_that_waited_half_a_period_gives_way_to_newer_ones(fps, shown):
    """Behind a busy network a mask is a period and a forward pass old, and no more."""
    now = [0]
    source = ScriptedSource([picture(i) for i in range(3)], kind="live")
    source.fps = fps
    options = PipelineOptions(max_age_ms=60_000)
    with Pipeline(source, EchoEngine(), options, clock=lambda: now[0]) as pipeline:
        source.exhausted.wait(10)
        now[0] = 60_000_000
        *results, ended = pipeline
    assert [result.sample.frame.index for result in results] == shown
    assert ended == Ended(len(shown), False, {"queue_full": 0, "stale": 3 - len(shown)})


@pytest.mark.parametrize(("told_ms", "shown"), [(None, [0, 1, 2]), (40.0, [2])])
def test_the_period_is_that_of_the_source_as_it_is_now(told_ms, shown):
    """One that was not there at first said no rate; a period that somebody told stays."""
    now = [0]

    def found():
        source.fps = 5.0

    back = Discontinuity(1, "it is there", has_audio=False)
    pictures = [picture(i, epoch=1) for i in range(3)]
    source = ScriptedSource([found, back, *pictures], kind="live")
    source.fps = None
    options = PipelineOptions(max_age_ms=60_000, max_wait_ms=told_ms)
    with Pipeline(source, EchoEngine(), options, clock=lambda: now[0]) as pipeline:
        source.exhausted.wait(10)
        now[0] = 60_000_000
        results = [item for item in pipeline if isinstance(item, Result)]
    assert [result.sample.frame.index for result in results] == shown


def test_a_live_picture_whose_sound_never_comes_is_decided_while_nothing_comes():
    """Quiet is enough: no picture after it has to push it out."""

    def quiet():
        yield picture(0)
        for _ in range(20):
            now[0] += 10_000_000
            yield Quiet()
        yield from itertools.repeat(Quiet())

    now = [0]
    source = ScriptedSource(quiet(), kind="live")
    source.has_audio = True
    options = PipelineOptions(audio_wait_ms=80, max_age_ms=60_000)
    with Pipeline(source, EchoEngine(), options, clock=lambda: now[0]) as pipeline:
        result = pipeline.take(10)
        assert isinstance(result, Result)
        assert result.sample.window.state == "late"


def test_stop_ends_a_live_source_that_is_quiet():
    source = ScriptedSource(itertools.repeat(Quiet()), kind="live")
    with Pipeline(source, EchoEngine()) as pipeline:
        assert pipeline.take(0.01) is None
        pipeline.stop()
        assert pipeline.take(10) == Ended(0, True, {"queue_full": 0, "stale": 0})
    assert source.closed


def test_the_decoding_of_a_live_picture_is_all_since_its_capture():
    now = [100_000_000]
    source = ScriptedSource([picture(0)], kind="live")
    options = PipelineOptions(max_age_ms=60_000)
    with Pipeline(source, EchoEngine(), options, clock=lambda: now[0]) as pipeline:
        result = pipeline.take(10)
    assert (result.latency_ms["decode"], result.latency_ms["sync_wait"]) == (100.0, 0.0)


def test_stop_finishes_what_was_captured():
    def endless():
        index = 0
        while True:
            yield picture(index)
            index += 1

    source = ScriptedSource(endless())
    with Pipeline(source, EchoEngine(), PipelineOptions(capacity=4)) as pipeline:
        first = pipeline.take()
        pipeline.stop()
        items = [first, *pipeline]
    indices = [i.sample.frame.index for i in items[:-1]]
    assert indices == list(range(len(indices)))
    assert items[-1].stopped
    assert items[-1].results == len(indices)
    assert source.closed


def test_stop_ends_the_wait_for_a_paced_frame():
    source = ScriptedSource([picture(0), picture(1_000_000)])
    with Pipeline(source, EchoEngine(), PipelineOptions(pace="real")) as pipeline:
        assert isinstance(pipeline.take(), Result)
        pipeline.stop()
        assert isinstance(pipeline.take(), Ended)


def test_leaving_early_frees_a_capture_thread_that_waits():
    source = ScriptedSource([picture(i) for i in range(100)])
    with Pipeline(source, EchoEngine(), PipelineOptions(capacity=1)) as pipeline:
        pipeline.take()
    assert source.closed


def test_closing_a_pipeline_that_never_began_closes_its_source():
    source = ScriptedSource([])
    Pipeline(source, EchoEngine()).close()
    assert source.closed


def test_take_gives_up_at_its_timeout():
    gate = threading.Event()
    source = ScriptedSource([gate.wait, picture(0)])
    with Pipeline(source, EchoEngine()) as pipeline:
        assert pipeline.take(0.01) is None
        gate.set()
        assert isinstance(pipeline.take(), Result)


def test_a_refusing_engine_is_heard():
    class Refusing(EchoEngine):
        def infer(self, samples):
            raise RuntimeError("no")

    with (
        Pipeline(ScriptedSource([picture(0)]), Refusing()) as pipeline,
        pytest.raises(RuntimeError, match="no"),
    ):
        pipeline.take()


def test_real_pace_takes_the_time_of_the_film_and_stamps_frames_when_due(tmp_path):
    path = write_video(tmp_path / "a.mp4", 0.4)
    options = PipelineOptions(pace="real")
    with Pipeline(open_source(path, image_size_px=(4, 4)), EchoEngine(), options) as pipeline:
        results = [item for item in pipeline if isinstance(item, Result)]
    stamps = [r.sample.frame.capture_ns for r in results]
    times = [r.sample.frame.pts_ns for r in results]
    assert stamps[-1] - stamps[0] >= 0.9 * (times[-1] - times[0])


def from_file(path) -> list:
    with Pipeline(open_source(path, image_size_px=(64, 64)), tiny_engine()) as pipeline:
        return list(pipeline)


@pytest.mark.parametrize(
    ("sound", "seconds", "states"),
    [
        ("tone", 1.6, {"gap", "ok"}),
        ("silence", 1.6, {"gap", "ok"}),
        (None, 0.4, {"absent"}),
        ("tone", 0.04, {"gap"}),
    ],
)
def test_masks_go_on_whatever_the_sound(tmp_path, sound, seconds, states):
    items = from_file(write_video(tmp_path / "a.mp4", seconds, sound=sound))
    results = items[:-1]
    assert len(results) == round(seconds * 25)
    assert {r.sample.window.state for r in results} == states
    assert all(np.isfinite(r.prediction.logits).all() for r in results)


def test_corrupt_packets_are_told_and_masks_go_on(tmp_path):
    path = write_video(tmp_path / "a.ts", 2.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(bytes(data))
    items = from_file(path)
    assert any(isinstance(item, Trouble) for item in items)
    assert sum(isinstance(item, Result) for item in items) >= 20
    assert isinstance(items[-1], Ended)


def test_two_runs_over_a_file_give_the_same_bits(tmp_path):
    path = write_video(tmp_path / "a.mp4", 0.6)
    first, second = from_file(path), from_file(path)
    for a, b in zip(first[:-1], second[:-1], strict=True):
        assert a.prediction.logits.tobytes() == b.prediction.logits.tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_flat_over_ten_thousand_frames():
    def scene():
        rng = np.random.default_rng(0)
        for index in range(10_000):
            sound = rng.normal(0, 0.1, 1280).astype(np.float32)
            yield AudioChunk(sound, 32000, index * PERIOD_NS, "main", 0)
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            pts_ns = (index + 1) * PERIOD_NS
            yield VideoFrame(image, pts_ns, 0, "main", 0, index, (64, 64))

    source = ScriptedSource(scene())
    source.has_audio = True
    used = []
    with Pipeline(source, tiny_engine()) as pipeline:
        for item in pipeline:
            if isinstance(item, Result) and item.seq % 500 == 499:
                used.append(resident_mb())
    settled = used[4:]
    assert len(used) == 20
    assert max(settled) - settled[0] < 20.0  # what other tests left may go meanwhile
