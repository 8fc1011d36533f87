"""The bench: what it measures is real, and its report is whole."""

from __future__ import annotations

import io
import json

import av
import pytest
from atlasd.tools.bareforward import BenchError
from atlasd.tools.bench import bench_pipeline, write_clip
from rich.console import Console


def test_a_bench_publishes_every_frame_to_a_real_subscriber_and_reports_ratios(tmp_path):
    text = io.StringIO()
    report = bench_pipeline(
        "tiny",
        pairs=2,
        frames=8,
        threads=1,
        device="cpu",
        json_path=tmp_path / "report.json",
        console=Console(file=text, width=160),
    )
    assert report.published == report.received == 3 * 8
    assert len(report.pairs) == 2
    assert all(pair.bare.clock_ms > 0 and pair.pipeline.thread_ms > 0 for pair in report.pairs)
    assert report.ratio == pytest.approx(sum(pair.ratio for pair in report.pairs) / 2)
    assert report.bar is None
    read = json.loads((tmp_path / "report.json").read_text())
    assert (read["preset"], read["weights"], read["frames"]) == ("tiny", "random", 8)
    assert "pipeline ÷ bare" in text.getvalue()


def test_the_clip_is_what_the_bar_speaks_of(tmp_path):
    with av.open(str(write_clip(tmp_path / "clip.mp4", 30))) as clip:
        video, audio = clip.streams.video[0], clip.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (640, 360, 25)
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert sum(1 for _ in clip.decode(video)) == 30


@pytest.mark.parametrize(("pairs", "frames"), [(0, 10), (1, 1)])
def test_too_little_to_measure_is_refused(pairs, frames):
    with pytest.raises(BenchError, match="at least 1 pair of 2"):
        bench_pipeline("tiny", pairs=pairs, frames=frames)
