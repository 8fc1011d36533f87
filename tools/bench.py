"""Measure speed as ratios in one run, so that the machine and its load cancel out."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..daemon.cores import available_cores
from ..daemon.engine import TorchEngine
from ..daemon.latency import Latencies
from ..daemon.pipeline import Pipeline, PipelineOptions, Result
from ..daemon.publisher import Publisher
from ..daemon.results import mask_message
from .bareforward import BenchError, bare_pass, last_sample, network_for_speed, open_for

BARS = {"atlas-lite": 1.15, "atlas": 1.03}
"""Most that the pipeline's seconds a frame may be of the bare forward's."""
MIN_FPS = {"atlas-lite": 25.0}

CLIP_SIZE_PX = (640, 360)
CLIP_FPS = 25
_CLIP_RATE_HZ = 48_000
_AAC_FRAME_SAMPLES = 1024
_SUBSCRIBER_TIMEOUT_S = 60.0
_SUBSCRIBER = """
import sys
from atlasd.daemon.client import subscribe
print(sum(1 for _ in subscribe(sys.argv[1], mode="all", follow=False)))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a frame cost in one pass, in milliseconds.

    Attributes:
        clock_ms: by the clock.
        thread_ms: CPU time of the thread that runs the network: where another core is free for
            decoding, the clock cannot do better, and on a busy machine it does far worse.
        process_ms: CPU time of all threads of this process.
    """

    clock_ms: float
    thread_ms: float
    process_ms: float


@dataclass(frozen=True, slots=True)
class Pair:
    """One bare and one pipeline pass."""

    bare: Cost
    pipeline: Cost

    @property
    def ratio(self) -> float:
        """Pipeline over bare, by the clock."""
        return self.pipeline.clock_ms / self.bare.clock_ms

    @property
    def thread_ratio(self) -> float:
        """Pipeline over bare, in CPU time of the network's thread."""
        return self.pipeline.thread_ms / self.bare.thread_ms


@dataclass(frozen=True, slots=True)
class PipelineReport:
    """What `bench_pipeline` measured.

    Attributes:
        preset: name of the network.
        weights: ``trained`` or ``random`` (speed does not depend on them).
        device: where the network ran.
        threads: of torch.
        cores: that the process may use.
        frames: a pass.
        pairs: in the order in which they ran.
        latency_ms: percentiles by stage, over all pipeline passes.
        ratio: median of the pairs' ratios.
        fps: of the pipeline: 1,000 over the median of its milliseconds.
        bar: most that the ratio may be, None where there is none.
        passed: whether ratio and fps keep to their bars.
        published: masks that were published.
        received: masks that the subscriber received.
    """

    preset: str
    weights: str
    device: str
    threads: int
    cores: int
    frames: int
    pairs: tuple[Pair, ...]
    latency_ms: dict[str, dict[str, float]]
    ratio: float
    fps: float
    bar: float | None
    passed: bool
    published: int
    received: int


def bench_pipeline(
    preset: str = "atlas-lite",
    *,
    pairs: int = 10,
    frames: int = 250,
    threads: int = 0,
    device: str = "auto",
    json_path: Path | None = None,
    console: Console | None = None,
) -> PipelineReport:
    """Compare the whole pipeline with the bare forward pass of the same serving network.

    A pair is one pass of each over the same number of frames, first and second in turn. The bare
    pass is the network alone, log-mel and picture ready, audio encoder included. The pipeline
    decodes a 640 x 360 H.264 and AAC file, joins, computes the log-mel, predicts, packs and
    publishes on a real socket with policy ``wait``; a subscriber in another process receives every
    mask. Its time runs from the opened file to the last mask handed to the bus; opening is a cost
    of the stream, not of its frames.

    Args:
        preset: the network; without shipped weights it is random.
        pairs: how many.
        frames: a pass.
        threads: of torch; 0 is the engine's choice.
        device: as for the engine.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.

    Raises:
        BenchError: fewer than one pair or two frames, or masks were lost on the way.
    """
    if pairs < 1 or frames < 2:
        raise BenchError(f"{pairs} pairs of {frames} frames; at least 1 pair of 2 is needed")
    console = console or Console()
    network = network_for_speed(preset)
    weights = "trained" if network.trained else "random"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clip = write_clip(folder / "clip.mp4", frames)
        engine = TorchEngine(network, device, threads, allow_untrained=True)
        stack.callback(engine.close)
        engine.warm()
        with _bus() as (bus, received):
            bare = bare_pass(engine, last_sample(clip, engine), frames)
            whole = _PipelinePass(engine, clip, bus)
            bare()
            whole.prepared()()
            measured = tuple(
                _pair(bare, whole, frames, bare_first=i % 2 == 0)
                for i in track(range(pairs), f"{preset}: pairs", console=console, transient=True)
            )
            arrived = received()
        published = frames * (pairs + 1)
        report = _report(
            preset, weights, engine, frames, measured, whole.latencies, published, arrived
        )
    if report.received != report.published:
        raise BenchError(f"{report.published} masks were published, {report.received} received")
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    for stage, values in report.latency_ms.items():
        told = ", ".join(f"{name} {ms:.2f}" for name, ms in values.items())
        console.print(f"  {stage}: {told} ms", highlight=False)
    return report


class _PipelinePass:
    """The whole way from an opened file to the bus, as one stream over all passes."""

    def __init__(self, engine: TorchEngine, clip: Path, bus: Publisher) -> None:
        self.latencies = Latencies()
        self._engine, self._clip, self._bus = engine, clip, bus
        self._seq = count()

    def prepared(self) -> Callable[[], None]:
        """Open the file, which is done once a stream and not once a frame; returns the rest."""
        options = PipelineOptions(policy="wait", pace="free")
        pipeline = Pipeline(open_for(self._clip, self._engine), self._engine, options)

        def run() -> None:
            with pipeline:
                for item in pipeline:
                    if isinstance(item, Result):
                        self._publish(item)

        return run

    def _publish(self, result: Result) -> None:
        message = mask_message(result, "bits+zstd", 0.5)
        self._bus.publish(replace(message, seq=next(self._seq)))
        self.latencies.add(message.lat_ms)


def _pair(bare: Callable[[], None], whole: _PipelinePass, frames: int, *, bare_first: bool) -> Pair:
    if bare_first:
        bare_cost = _cost(bare, frames)
        return Pair(bare_cost, _cost(whole.prepared(), frames))
    whole_cost = _cost(whole.prepared(), frames)
    return Pair(_cost(bare, frames), whole_cost)


def _cost(work: Callable[[], None], frames: int) -> Cost:
    clocks = (time.perf_counter, time.thread_time, time.process_time)
    began = [clock() for clock in clocks]
    work()
    return Cost(
        *(1e3 * (clock() - then) / frames for clock, then in zip(clocks, began, strict=True))
    )


@contextmanager
def _bus() -> Generator[tuple[Publisher, Callable[[], int]]]:
    """A bus with one subscriber in another process, and what tells how many masks it received."""
    bus = Publisher("tcp://127.0.0.1:*", "wait", stall_timeout_s=_SUBSCRIBER_TIMEOUT_S)
    command = [sys.executable, "-c", _SUBSCRIBER, bus.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            if not bus.wait_for_subscriber(_SUBSCRIBER_TIMEOUT_S):
                raise BenchError("the subscriber's process did not come up")

            def received() -> int:
                bus.close()
                told, _ = child.communicate(timeout=_SUBSCRIBER_TIMEOUT_S)
                if child.returncode != 0:
                    raise BenchError(f"the subscriber's process ended with {child.returncode}")
                return int(told)

            yield bus, received
        finally:
            bus.close(drain=False)
            child.kill()


def _report(
    preset: str,
    weights: str,
    engine: TorchEngine,
    frames: int,
    pairs: tuple[Pair, ...],
    latencies: Latencies,
    published: int,
    received: int,
) -> PipelineReport:
    ratio = statistics.median(pair.ratio for pair in pairs)
    fps = 1e3 / statistics.median(pair.pipeline.clock_ms for pair in pairs)
    bar = BARS.get(preset)
    return PipelineReport(
        preset=preset,
        weights=weights,
        device=str(engine.device),
        threads=engine.threads,
        cores=available_cores(),
        frames=frames,
        pairs=pairs,
        latency_ms=latencies.percentiles(),
        ratio=ratio,
        fps=fps,
        bar=bar,
        passed=(bar is None or ratio <= bar) and fps >= MIN_FPS.get(preset, 0.0),
        published=published,
        received=received,
    )


def _table(report: PipelineReport) -> Table:
    table = Table(
        title=f"{report.preset} ({report.weights} weights), {report.device}, {report.threads}"
        f" threads, {report.cores} cores: {len(report.pairs)} pairs of {report.frames} frames"
    )
    for name in ("", "median", "first quartile", "third quartile", "least", "most"):
        table.add_column(name, justify="right" if name else "left")
    for name, values in (
        ("bare forward, ms a frame", [p.bare.clock_ms for p in report.pairs]),
        ("pipeline, ms a frame", [p.pipeline.clock_ms for p in report.pairs]),
        ("pipeline ÷ bare", [p.ratio for p in report.pairs]),
        ("bare, CPU ms of its thread", [p.bare.thread_ms for p in report.pairs]),
        ("pipeline, CPU ms of that thread", [p.pipeline.thread_ms for p in report.pairs]),
        ("pipeline ÷ bare, CPU of that thread", [p.thread_ratio for p in report.pairs]),
        ("bare, CPU ms of all threads", [p.bare.process_ms for p in report.pairs]),
        ("pipeline, CPU ms of all threads", [p.pipeline.process_ms for p in report.pairs]),
    ):
        spread = np.percentile(values, (50, 25, 75, 0, 100))
        table.add_row(name, *(f"{value:.3f}" for value in spread))
    bar = "no bar" if report.bar is None else f"bar {report.bar:.2f}"
    verdict = "[green]passed[/]" if report.passed else "[red]failed[/]"
    table.caption = f"ratio {report.ratio:.3f} ({bar}), {report.fps:.1f} fps: {verdict}"
    return table


def clip_pictures(frames: int) -> Iterator[NDArray[np.uint8]]:
    """A moving pattern: uint8 (360, 640, 3) of each frame."""
    rng = np.random.default_rng(0)
    width, height = CLIP_SIZE_PX
    coarse = rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8)
    ground = np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
    for index in range(frames):
        yield np.ascontiguousarray(ground[:, 2 * index % width :][:, :width])


def write_clip(path: Path, frames: int) -> Path:
    """Write a moving pattern with a swept tone: 640 x 360, 25 fps, H.264 and AAC.

    Args:
        path: where.
        frames: how many pictures.

    Returns:
        ``path``.
    """
    seconds = np.arange(frames * _CLIP_RATE_HZ // CLIP_FPS) / _CLIP_RATE_HZ
    sound = (0.3 * np.sin(2 * np.pi * (220 + 40 * seconds) * seconds)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=CLIP_FPS, options={"preset": "veryfast"})
        (video.width, video.height), video.pix_fmt = CLIP_SIZE_PX, "yuv420p"
        audio = container.add_stream("aac", rate=_CLIP_RATE_HZ, layout="mono")
        written = 0
        for index, picture in enumerate(clip_pictures(frames)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            due = (index + 1) * _CLIP_RATE_HZ // CLIP_FPS
            while written < due:
                piece = sound[None, written : written + _AAC_FRAME_SAMPLES]
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = _CLIP_RATE_HZ, written
                frame.time_base = Fraction(1, _CLIP_RATE_HZ)
                container.mux(audio.encode(frame))
                written += piece.shape[1]
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path
