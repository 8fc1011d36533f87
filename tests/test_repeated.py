"""A medium that begins again: rounds follow each other as epochs, and nothing is lost between."""

from __future__ import annotations

from itertools import islice

import pytest
from atlasd.streams.clips import VideoFrame
from atlasd.streams.files import open_source
from atlasd.streams.repeated import RepeatedSource
from atlasd.streams.sources import Discontinuity, MediaError
from media import write_video


def test_rounds_are_epochs_with_growing_picture_numbers(tmp_path):
    video = write_video(tmp_path / "a.mp4", 0.4, size=(32, 32))
    with RepeatedSource(lambda: open_source(video)) as source:
        assert (source.has_audio, source.source_size_px, source.duration_ns) == (
            True,
            (32, 32),
            None,
        )
        events = list(islice((e for e in source if isinstance(e, VideoFrame | Discontinuity)), 32))
    frames = [event for event in events if isinstance(event, VideoFrame)]
    breaks = [event for event in events if isinstance(event, Discontinuity)]
    assert [frame.index for frame in frames] == list(range(len(frames)))
    assert [frame.epoch for frame in frames] == [k // 10 for k in range(len(frames))]
    assert [frame.pts_ns for frame in frames[10:20]] == [frame.pts_ns for frame in frames[:10]]
    assert [event.epoch for event in breaks] == [1, 2]


def test_a_medium_that_is_gone_at_its_end_is_told(tmp_path):
    video = write_video(tmp_path / "a.mp4", 0.2, size=(32, 32))
    with RepeatedSource(lambda: open_source(video)) as source:
        video_events = iter(source)
        next(video_events)
        video.unlink()
        with pytest.raises(MediaError):
            list(video_events)
