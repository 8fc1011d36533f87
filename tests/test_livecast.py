"""A film that is sent as it is due: whole, in time, from the beginning to each who asks."""

from __future__ import annotations

import time
from http.client import HTTPConnection
from urllib.parse import urlsplit

import av
import pytest
from atlasd.tools.bench import CLIP_FPS, write_clip
from atlasd.tools.livecast import LiveCast


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("film") / "clip.ts", CLIP_FPS)


def asked(cast):
    """The answer to who asks for the film."""
    connection = HTTPConnection(urlsplit(cast.url).netloc)
    connection.request("GET", urlsplit(cast.url).path)
    return connection.getresponse()


def test_all_of_it_comes_and_takes_as_long_as_it_shows(film):
    with LiveCast(film) as cast:
        began = time.monotonic()
        with asked(cast) as answer:
            assert answer.headers["Content-Type"] == "video/mp2t"
            assert "Content-Length" not in answer.headers
            assert answer.read() == film.read_bytes()
        assert time.monotonic() - began >= (CLIP_FPS - 1) / CLIP_FPS


def test_a_reader_who_leaves_and_an_end_in_the_middle_are_no_trouble(film):
    with LiveCast(film) as cast:
        with asked(cast) as answer:
            assert answer.read(1000) == film.read_bytes()[:1000]
        open_still = asked(cast)
        assert open_still.read(1) == film.read_bytes()[:1]
    open_still.close()


def test_a_film_to_be_sent_has_sound_in_small_pieces_and_no_picture_that_waits(film):
    with av.open(str(film)) as container:
        packets = [(p.stream.type, p.pts, p.dts, p.pos) for p in container.demux() if p.size]
    pictures = [(pts, dts) for kind, pts, dts, _ in packets if kind == "video"]
    assert len(pictures) == CLIP_FPS
    assert all(pts == dts for pts, dts in pictures)
    places = {pos for kind, _, _, pos in packets if kind == "audio" and pos is not None}
    assert len(places) > 20  # one of its own for each piece, of some 31
