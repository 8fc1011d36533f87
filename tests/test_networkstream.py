"""Servers as they are: silent, slow, lying, hostile. Each is told, none hangs or grows."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from atlasd.daemon.memory import resident_mb
from atlasd.streams.captureprocess import ProcessSource
from atlasd.streams.clips import AudioChunk, Sample, VideoFrame
from atlasd.streams.network import open_network
from atlasd.streams.networkoptions import NetworkOptions
from atlasd.streams.playoutclock import LATE_NS, PlayoutClock
from atlasd.streams.reconnecting import ReconnectingSource
from atlasd.streams.sources import (
    Discontinuity,
    MediaError,
    Quiet,
    Source,
    Trouble,
    UnsupportedError,
)
from atlasd.streams.synchroniser import Synchroniser
from clapcheck import click_after_flash_s
from media import clicks, flashes, write_video
from webserver import WebServer, jpeg, mjpeg, paced_ts, part

pytestmark = pytest.mark.slow  # streams run in real time

SECOND_NS = 1_000_000_000
SIZE = (64, 48)
LIVE_BAR_S = 0.025
"""In its first five seconds the clock map may move by 20 ms a second, which a window shows."""


def process(address: str, *, memory_mb: int = 0, **how) -> ProcessSource:
    named = {k: how.pop(k) for k in ("open_timeout_s", "stall_timeout_s") if k in how}
    options = NetworkOptions(address, image_size_px=(32, 32), **how, **named)
    return ProcessSource(options.to_map(), label="the camera", memory_mb=memory_mb, **named)


def opening_fails(address: str, **how) -> tuple[str, float]:
    """The error of an opening, and the seconds that it took."""
    source = process(address, **how)
    began = time.monotonic()
    with pytest.raises(MediaError) as caught:
        source.opened()
    took = time.monotonic() - began
    source.close()
    return str(caught.value), took


def everything(source: Source) -> tuple[list, str]:
    """Events but for quiet, until the source ends or fails, and how it failed."""
    events = []
    try:
        for event in source:
            if not isinstance(event, Quiet):
                events.append(event)
    except MediaError as error:
        return events, str(error)
    return events, ""


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("scheme", ["http", "rtsp", "rtmp"])
def test_a_server_that_says_nothing_is_given_up_at_the_deadline(scheme):
    with WebServer(lambda visit: visit.hold(), reads=False) as server:
        message, took = opening_fails(server.url(scheme=scheme), open_timeout_s=1.0)
    assert 0.9 < took < 2.0
    assert "the camera gave no picture within 1 s" in message or "in time" in message


def test_a_process_that_hangs_in_a_library_is_killed_at_the_deadline():
    """SIGSTOP stands for a call that never returns: no deadline inside the child could end it."""
    with WebServer(mjpeg()) as server:
        source = process(server.url(), open_timeout_s=1.0)
        os.kill(source.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(MediaError, match="no picture within 1 s"):
            source.opened()
        assert time.monotonic() - began < 2.0


def test_a_port_where_nobody_listens_and_a_host_that_is_none_are_told():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message, took = opening_fails(f"rtsp://127.0.0.1:{port}/x")
    assert "refused" in message
    assert took < 5.0
    message, _ = opening_fails("http://no-such-host.invalid/x", open_timeout_s=5.0)
    assert "no-such-host.invalid" in message or "the camera" in message


def test_a_page_that_is_no_stream_is_told():
    def page(visit):
        visit.head("text/html", Content_Length=1000)
        visit.send(b"<html>welcome</html>" * 50)

    def absent(visit):
        visit.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    with WebServer(page) as server:
        message, _ = opening_fails(server.url())
        assert "no stream that FFmpeg reads" in message
        server.answer = absent
        message, _ = opening_fails(server.url())
        assert "404" in message


def test_one_that_closes_at_once_is_told():
    with WebServer(lambda visit: None) as server:
        message, took = opening_fails(server.url())
    assert "cannot be opened" in message
    assert took < 5.0


def test_a_stall_in_the_middle_of_a_picture_is_told_in_time():
    def stalls(visit):
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        for shade in range(12):
            visit.send(part(jpeg(shade)))
        visit.send(part(jpeg(99))[:200])
        visit.hold()

    with WebServer(stalls) as server, process(server.url(), stall_timeout_s=1.0) as source:
        source.opened()
        began = time.monotonic()
        events, error = everything(source)
        waited = time.monotonic() - began
    assert len(of(VideoFrame, events)) >= 8
    assert 0.8 < waited < 2.0, error
    assert "was lost: nothing came in time" in error or "no picture for 1 s" in error


def test_sound_that_goes_on_over_a_frozen_picture_is_a_stall(tmp_path):
    """Without pictures there are no masks: sound alone does not keep a source alive."""
    film = write_video(tmp_path / "a.ts", 6.0, times_s=[i / 25 for i in range(50)])
    with (
        WebServer(paced_everything(film)) as server,
        process(server.url(), stall_timeout_s=1.0) as source,
    ):
        events, error = everything(source.opened())
    assert "no picture for 1 s" in error
    sound = of(AudioChunk, events)
    pictures = of(VideoFrame, events)
    assert sound[-1].start_ns > pictures[-1].pts_ns + SECOND_NS // 2


def paced_everything(film: Path):
    """As `paced_ts`, by the times of all packets."""
    schedule = []
    with av.open(str(film)) as container:
        for packet in container.demux():
            if packet.pos is not None and packet.dts is not None:
                schedule.append((float(packet.dts * packet.time_base), packet.pos))
    first = min(due for due, _ in schedule)

    def answer(visit):
        visit.head("video/mp2t")
        data, began, sent = film.read_bytes(), time.monotonic(), 0
        for due, end in sorted(schedule, key=lambda one: one[1]):
            if not visit.hold(max(0.0, began + due - first - time.monotonic())):
                return
            visit.send(data[sent:end])
            sent = max(sent, end)
        visit.send(data[sent:])

    return answer


def clap_ts(path: Path, seconds: float, **how) -> Path:
    return write_video(
        path,
        seconds,
        size=SIZE,
        picture=flashes(SIZE),
        sound=clicks(seconds),
        options={"preset": "ultrafast", "tune": "zerolatency", "g": "25"},
        **how,
    )


def live_samples(source: Source) -> tuple[list[Sample], list]:
    """All samples and other outputs until the source ends."""
    synchroniser = Synchroniser(has_audio=source.has_audio, live=True, audio_wait_ms=200)
    outputs = []
    try:
        for event in source:
            outputs += synchroniser.push(event)
    except MediaError:
        outputs += synchroniser.finish()
    return of(Sample, outputs), [out for out in outputs if not isinstance(out, Sample)]


def test_a_live_transport_stream_keeps_picture_and_sound_together(tmp_path):
    film = clap_ts(tmp_path / "a.ts", 5.0)
    with WebServer(paced_ts(film)) as server, process(server.url("/a.ts")) as source:
        assert source.opened().kind == "live"
        samples, others = live_samples(source)
    errors = click_after_flash_s(samples)
    assert len(errors) >= 3
    assert max(map(abs, errors.values())) < LIVE_BAR_S
    assert not of(Discontinuity, others)
    assert len(samples) >= 75  # a loaded machine takes part of the beginning for old


def test_what_was_sent_ahead_is_old_and_says_so(tmp_path):
    """A server that begins with two seconds of the past: its pictures are not taken for new."""
    film = clap_ts(tmp_path / "a.ts", 6.0)
    with WebServer(paced_ts(film, ahead_s=2.0)) as server, process(server.url("/a.ts")) as source:
        source.opened()
        samples, others = live_samples(source)
    assert not of(Discontinuity, others)
    (told,) = [o for o in of(Trouble, others) if o.kind == "backlog"]
    assert int(told.detail.split()[0]) >= 30
    steps = [b.frame.pts_ns - a.frame.pts_ns for a, b in pairwise(samples)]
    assert min(steps) > 0
    errors = click_after_flash_s(samples)
    assert max(map(abs, errors.values())) < LIVE_BAR_S


def test_times_that_jump_open_an_epoch_that_keeps_sync(tmp_path):
    film = clap_ts(tmp_path / "a.ts", 5.0, jump_s=(2.5, 100.0))
    with WebServer(paced_ts(film)) as server, process(server.url("/a.ts")) as source:
        samples, others = live_samples(source.opened())
    (broken,) = of(Discontinuity, others)
    assert broken.epoch == 1
    assert "went from" in broken.reason
    errors = click_after_flash_s(samples)
    assert {epoch for epoch, _ in errors} == {0, 1}
    assert max(map(abs, errors.values())) < LIVE_BAR_S
    times = [sample.frame.pts_ns for sample in samples]
    assert times == sorted(set(times))
    assert 3.5 < (times[-1] - times[0]) / 1e9 < 5.5


def test_times_that_begin_again_open_an_epoch_that_keeps_sync(tmp_path):
    """Two recordings one after the other in one stream, as a camera's reset: times go back."""
    first, second = clap_ts(tmp_path / "1.ts", 3.0), clap_ts(tmp_path / "2.ts", 3.0)
    both = tmp_path / "both.ts"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with WebServer(paced_ts(both)) as server, process(server.url("/a.ts")) as source:
        samples, others = live_samples(source.opened())
    assert [b.epoch for b in of(Discontinuity, others)] == [1]
    errors = click_after_flash_s(samples)
    assert {epoch for epoch, _ in errors} == {0, 1}
    assert max(map(abs, errors.values())) < LIVE_BAR_S


def test_times_that_repeat_or_go_back_a_little_are_repaired(tmp_path):
    times = [i / 25 for i in range(100)]
    times[40] = times[39]
    film = tmp_path / "a.ts"
    write_video(film, 4.0, times_s=[t + (0.0004 if i == 40 else 0) for i, t in enumerate(times)])
    with WebServer(paced_ts(film)) as server, process(server.url("/a.ts")) as source:
        events, _ = everything(source.opened())
    stamps = [frame.pts_ns for frame in of(VideoFrame, events)]
    assert len(stamps) >= 70
    assert stamps == sorted(set(stamps))
    assert not of(Discontinuity, events)


def test_a_sender_that_paused_opens_an_epoch_once_it_is_known(tmp_path):
    """Its times stood still while ours went on: what follows is not late but new."""
    film = clap_ts(tmp_path / "a.ts", 5.5)
    with (
        WebServer(paced_ts(film, pause_s=(2.5, 1.5))) as server,
        process(server.url("/a.ts")) as source,
    ):
        samples, others = live_samples(source.opened())
    (broken,) = of(Discontinuity, others)
    assert "parted" in broken.reason
    errors = click_after_flash_s(samples)
    assert {epoch for epoch, _ in errors} == {0, 1}
    assert max(map(abs, errors.values())) < LIVE_BAR_S
    ages = [sample.frame.pts_ns - samples[0].frame.pts_ns for sample in samples]
    assert ages == sorted(ages)
    assert ages[-1] / 1e9 > 4.0


def test_a_hole_in_the_network_is_a_hole_and_no_epoch(tmp_path):
    """Two seconds are lost on the way, while the clock goes on: nothing moves."""
    film = clap_ts(tmp_path / "a.ts", 6.0)
    data = film.read_bytes()
    inner = paced_ts(film)

    def lossy(visit):
        sent = 0
        send = visit.send

        def some(piece: bytes) -> None:
            nonlocal sent
            at = sent / len(data)
            sent += len(piece)
            if not 0.4 < at < 0.7:
                send(piece)

        visit.head("video/mp2t")
        visit.head = lambda kind: None
        visit.send = some
        inner(visit)

    with WebServer(lossy) as server, process(server.url("/a.ts")) as source:
        samples, others = live_samples(source.opened())
    assert not of(Discontinuity, others)
    errors = click_after_flash_s(samples)
    assert max(map(abs, errors.values())) < LIVE_BAR_S
    assert "gap" in {sample.window.state for sample in samples}


@pytest.mark.parametrize("kind", ["mjpeg", "ts"])
def test_a_reader_that_is_slower_than_the_stream_stays_fresh_and_says_so(tmp_path, kind):
    """A picture takes 1.3 periods, and its shade says when it was sent; all through sockets."""
    began_s = [0.0]

    def shade(time_s):
        return int(16 + time_s * 20)

    def camera(visit):
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        began_s[0] = time.monotonic()
        for index in range(25 * 9):
            visit.send(part(jpeg(shade(index / 25))))
            if not visit.hold(max(0.0, began_s[0] + index / 25 - time.monotonic())):
                return

    def stamped(visit):
        began_s[0] = time.monotonic()
        paced_ts(film)(visit)

    film = tmp_path / "a.ts"
    if kind == "ts":
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "25"}
        write_video(
            film,
            9.0,
            picture=lambda t: np.full((48, 64, 3), shade(t), np.uint8),
            sound=None,
            options=options,
        )
    slowness, ages, troubles = threading.Event(), [], []
    with (
        WebServer(camera if kind == "mjpeg" else stamped) as server,
        open_network(NetworkOptions(server.url("/a.ts"), mode="live")) as source,
        contextlib.suppress(MediaError),  # the stream ends after nine seconds
    ):
        for event in source:
            assert not isinstance(event, Discontinuity)
            if isinstance(event, Trouble):
                troubles.append(event)
            if isinstance(event, VideoFrame):
                now_s = time.monotonic()
                shown_s = (float(event.image.mean()) - 16) / 20
                true_s = now_s - began_s[0] - shown_s
                ages.append((true_s, now_s - event.capture_ns / 1e9))
                slowness.wait(0.052)
    assert len(ages) > 60
    late = ages[len(ages) // 2 :]
    assert max(true for true, _ in late) < 1.0
    assert max(abs(true - claimed) for true, claimed in late) < 0.35
    assert [t.kind for t in troubles].count("behind") >= 3


def test_a_picture_of_another_size_goes_on_and_says_its_size():
    def grows(visit):
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        for index in range(60):
            visit.send(part(jpeg(100, (64, 48) if index < 30 else (96, 80))))
            if not visit.hold(0.02):
                return

    with WebServer(grows) as server, process(server.url()) as source:
        events, _ = everything(source.opened())
    frames = of(VideoFrame, events)
    assert {frame.source_size_px for frame in frames} == {(64, 48), (96, 80)}
    assert {frame.image.shape for frame in frames} == {(32, 32, 3)}
    assert not of(Discontinuity, events)


def test_a_picture_that_is_too_large_is_told():
    def giant(first):
        def answer(visit):
            visit.head("multipart/x-mixed-replace; boundary=pictures")
            for shade in range(60):
                is_giant = shade == 30 or first
                visit.send(part(jpeg(shade, (40_000, 8) if is_giant else (64, 48))))
                if not visit.hold(0.02):
                    return

        return answer

    with WebServer(giant(first=True)) as server:
        message, _ = opening_fails(server.url())
    assert "40000 x 8; sides of up to 32768" in message
    with WebServer(giant(first=False)) as server, process(server.url()) as source:
        events, _ = everything(source.opened())
    assert [t.kind for t in of(Trouble, events) if t.kind != "backlog"] == ["too_large"]
    assert len(of(VideoFrame, events)) >= 40


def opened_in(source: ProcessSource) -> tuple[str, float, float]:
    """How an opening failed, or nothing, the most memory that it took in MB, and its seconds."""
    most, ending = [0.0], threading.Event()

    def watch():
        while not ending.wait(0.02):
            most[0] = max(most[0], resident_mb(source.pid) or 0.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, error = time.monotonic(), ""
    try:
        source.opened()
    except MediaError as failed:
        error = str(failed)
    took = time.monotonic() - began
    source.close()
    ending.set()
    watcher.join()
    return error, most[0], took


def test_garbage_without_end_is_refused_in_bounded_memory():
    block = random.Random(0).randbytes(1 << 20)

    def garbage(visit):
        visit.head("video/mp2t")
        while not visit.ending.is_set():
            visit.send(block)

    with WebServer(garbage) as server:
        error, most, took = opened_in(process(server.url("/a.ts"), open_timeout_s=4.0))
    assert error
    assert 20 < most < 400
    assert took < 5.0


def test_a_picture_that_claims_all_memory_gets_the_bound():
    """A part of two gigabytes, which FFmpeg would hold whole."""

    def claims(visit):
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        head = "--pictures\r\nContent-Type: image/jpeg\r\nContent-Length: 2000000000\r\n\r\n"
        visit.send(head.encode() + jpeg(3))
        while not visit.ending.is_set():
            visit.send(bytes(1 << 20))

    with WebServer(claims) as server:
        bounded = process(server.url(), memory_mb=300, open_timeout_s=8.0)
        _, most, took = opened_in(bounded)
    assert 20 < most < 500
    assert took < 9.0


def sdp_server(sdp: str):
    """An RTSP server that answers with a description of its choice, and then obeys."""

    def answer(visit):
        request = visit.request
        while True:
            sequence = next(
                (x.split(":")[1].strip() for x in request.splitlines() if x.startswith("CSeq")), "1"
            )
            body = sdp if request.startswith("DESCRIBE") else ""
            head = f"RTSP/1.0 200 OK\r\nCSeq: {sequence}\r\nSession: 1;timeout=60\r\n"
            if request.startswith("OPTIONS"):
                head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            if request.startswith("SETUP"):
                head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            if body:
                head += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            visit.send(f"{head}\r\n{body}".encode("latin1", errors="replace"))
            request = ""
            while "\r\n\r\n" not in request:
                piece = visit._connection.recv(4096)
                if not piece:
                    return
                request += piece.decode("latin1")

    return answer


BASE = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n"
H264 = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"


@pytest.mark.parametrize(
    "sdp",
    [
        "",
        "garbage\r\n" * 100,
        BASE + H264 * 5000,
        BASE + "m=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/-48000/99999\r\n" + H264,
        BASE + H264 + "a=framesize:96 -2000000000-2000000000\r\n",
        BASE + H264 + "a=fmtp:96 sprop-parameter-sets=" + "A" * 1_000_000 + "\r\n",
        BASE + "m=video 0 RTP/AVP 999999999999\r\na=rtpmap:-1 /0/0\r\n",
        BASE + "a=" + "x" * 2_000_000 + "\r\n" + H264,
    ],
    ids=["empty", "garbage", "thousands", "rates", "sizes", "sprop", "numbers", "long"],
)
def test_a_hostile_description_is_told_in_time_and_in_bounded_memory(sdp):
    with WebServer(sdp_server(sdp)) as server:
        address = server.url(scheme="rtsp")
        error, most, took = opened_in(process(address, open_timeout_s=2.0, memory_mb=1500))
    assert error
    assert 20 < most < 400
    assert took < 3.0


def test_a_playlist_may_not_name_files_of_this_machine(tmp_path):
    secret = write_video(tmp_path / "secret.ts", 1.0)

    def playlist(visit):
        visit.head("application/vnd.apple.mpegurl")
        visit.send(
            "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
            f"file://{secret}\n#EXT-X-ENDLIST\n".encode()
        )

    with WebServer(playlist) as server:
        message, _ = opening_fails(server.url("/a.m3u8"), open_timeout_s=5.0)
    assert message


def test_a_protocol_that_this_build_lacks_is_refused_for_good():
    source = process("srt://127.0.0.1:9000")
    try:
        source.opened()
    except UnsupportedError as error:
        assert "has no srt" in str(error)
    except MediaError:
        pytest.skip("this build of FFmpeg has SRT")
    source.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt install openssl")
def test_the_certificate_of_a_server_is_checked_unless_it_is_told_not_to(tmp_path, monkeypatch):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    asked = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1"
    asked += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(["openssl", *asked.split()], check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with WebServer(mjpeg(), tls=tls) as server:
        url = server.url(scheme="https")
        message, _ = opening_fails(url)
        assert "source.tls_verify" in message
        with process(url, tls_verify=False) as source:
            assert source.opened().source_size_px == (64, 48)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with process(url) as source:
            assert source.opened().source_size_px == (64, 48)


def hls_server(folder: Path):
    def answer(visit):
        name = Path(visit.path.split("?")[0]).name
        kind = "application/vnd.apple.mpegurl" if name.endswith("m3u8") else "video/mp2t"
        data = (folder / name).read_bytes()
        visit.head(kind, Content_Length=len(data))
        visit.send(data)

    return answer


def hls_segments(folder: Path, count: int, seconds: float = 1.0) -> list[Path]:
    """A film cut into segments, whose times go on."""
    film = clap_ts(folder / "film.mp4", count * seconds)
    with (
        av.open(str(film)) as source,
        av.open(
            str(folder / "list.m3u8"),
            "w",
            format="hls",
            options={
                "hls_time": str(seconds),
                "hls_list_size": "0",
                "hls_segment_filename": str(folder / "part%03d.ts"),
            },
        ) as out,
    ):
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return sorted(folder.glob("part*.ts"))


def test_a_recorded_playlist_is_a_file_and_a_live_one_is_played_at_its_pace(tmp_path):
    parts = hls_segments(tmp_path, 6)
    assert len(parts) >= 2
    whole = tmp_path / "list.m3u8"
    with WebServer(hls_server(tmp_path)) as server:
        with process(server.url("/list.m3u8")) as source:
            assert source.opened().kind == "file"
            assert len(of(VideoFrame, everything(source)[0])) == 150
        live = tmp_path / "live.m3u8"
        live.write_text(whole.read_text().replace("#EXT-X-ENDLIST\n", ""))
        with process(server.url("/live.m3u8"), stall_timeout_s=20.0) as source:
            assert source.opened().kind == "live"
            frames, ages = [], []
            for event in source:
                if isinstance(event, VideoFrame):
                    frames.append(event)
                    ages.append((time.monotonic_ns() - event.capture_ns) / 1e6)
                if len(frames) == 50:
                    break
    took_ns = frames[-1].capture_ns - frames[0].capture_ns
    assert took_ns / 1e9 == pytest.approx(49 / 25, abs=0.2)
    assert sorted(ages)[40] < 200


def test_a_playout_that_runs_dry_begins_anew():
    clock = PlayoutClock()
    assert not clock.observe(1000, SECOND_NS)
    assert clock.host_ns(1000 + SECOND_NS) == 2 * SECOND_NS
    assert not clock.observe(1000 + SECOND_NS, 2 * SECOND_NS + LATE_NS // 2)
    assert clock.observe(1000 + 2 * SECOND_NS, 5 * SECOND_NS)
    assert clock.host_ns(1000 + 2 * SECOND_NS) == 5 * SECOND_NS


def test_a_transport_stream_by_udp_is_read(tmp_path):
    film = clap_ts(tmp_path / "a.ts", 4.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ending = threading.Event()

    def send():
        data = film.read_bytes()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            step = 188 * 7
            pause = 4.0 / (len(data) / step)
            for at in range(0, len(data), step):
                sender.sendto(data[at : at + step], ("127.0.0.1", port))
                if ending.wait(pause):
                    return

    source = process(f"udp://127.0.0.1:{port}", stall_timeout_s=1.0)
    time.sleep(0.7)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        events, error = everything(source.opened())
    finally:
        ending.set()
        sender.join()
        source.close()
    assert len(of(VideoFrame, events)) >= 25
    assert "no picture" in error or "lost" in error


def test_what_a_camera_is_may_change_with_a_reconnect(tmp_path):
    """Sound and size come and go; where there is no picture it is tried on."""
    both = clap_ts(tmp_path / "both.ts", 1.5)
    mute = write_video(tmp_path / "mute.ts", 1.5, size=(96, 80), sound=None)
    alone = tmp_path / "alone.ts"
    write_sound(alone, 1.5)
    answers = [paced_ts(both), paced_everything(alone), paced_ts(mute), paced_ts(both)]

    def answer(visit):
        answers[min(server.visits - 1, 3)](visit)

    with WebServer(answer) as server:
        source = ReconnectingSource(
            lambda: process(server.url("/a.ts"), open_timeout_s=4.0, stall_timeout_s=2.0),
            label="cam",
            first_s=0.05,
        )
        events = []
        with source:
            for event in source:
                if not isinstance(event, Quiet):
                    events.append(event)
                if isinstance(event, VideoFrame) and event.epoch == 2 and event.index % 20 == 19:
                    break
    breaks = of(Discontinuity, events)
    assert [b.has_audio for b in breaks] == [False, True]
    assert [t.kind for t in of(Trouble, events)].count("reconnect") == 3
    assert any("no pictures" in t.detail for t in of(Trouble, events))
    sizes = {f.epoch: f.source_size_px for f in of(VideoFrame, events)}
    assert sizes == {0: (64, 48), 1: (96, 80), 2: (64, 48)}


def write_sound(path: Path, seconds: float) -> None:
    film = write_video(path.with_suffix(".mkv"), seconds)
    with av.open(str(film)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_reconnects_leak_nothing_and_are_all_told(record_property):
    """Ends, broken connections, garbage and killed processes: threads, files, children, memory."""
    rng = random.Random(0)

    def ill(visit):
        way = rng.choice(["end", "cut", "nonsense", "page"])
        visit.head("multipart/x-mixed-replace; boundary=pictures")
        if way == "page":
            visit.send(b"<html>not now</html>" * 100)
            return
        for shade in range(12):
            visit.send(part(jpeg(shade)))
        if way == "cut":
            visit.send(part(jpeg(99))[:100])
        elif way == "nonsense":
            visit.send(rng.randbytes(20_000))

    children: list[ProcessSource] = []

    def start():
        children.append(process(server.url(), stall_timeout_s=2.0))
        return children[-1]

    used, told, breaks, pictures = [], 0, [], 0
    with (
        WebServer(ill) as server,
        ReconnectingSource(start, label="cam", first_s=0.01, longest_s=0.02) as source,
    ):
        before = (threading.active_count(), open_files())
        for event in source:
            told += isinstance(event, Trouble) and event.kind == "reconnect"
            if isinstance(event, VideoFrame):
                pictures += 1
                assert event.epoch == len(breaks)
            if isinstance(event, Discontinuity):
                breaks.append(event.epoch)
                used.append(resident_mb())
                if len(breaks) % 10 == 0:
                    os.kill(children[-1].pid, signal.SIGKILL)
            if len(breaks) == 100:
                break
        fds = open_files()
    assert breaks == list(range(1, 101))
    assert told == len(children) - 1 >= 100
    assert pictures >= 500
    assert abs(fds - before[1]) <= 6
    assert threading.active_count() <= before[0]
    assert not [child.pid for child in children if Path(f"/proc/{child.pid}").exists()]
    slope_kb = (sum(used[-10:]) - sum(used[20:30])) / 10 / 75 * 1e3
    record_property("rss_kb_per_reconnect", slope_kb)
    assert slope_kb < 40


WALL_CLOCK = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime|ctime|asctime|strftime|clock_gettime\w*)\b"
    r"|\bfrom time import\b|\bdatetime\b|\bCLOCK_REALTIME\b"
)
DATED = {
    "daemon/keeper.py",
    "daemon/labeldesk.py",
    "daemon/learning.py",
    "daemon/spoolbook.py",
    "daemon/spoolclips.py",
}
"""Labels, pauses and checkpoints have their date, and none of these times a frame."""


def test_no_part_of_a_live_stream_asks_the_wall_clock():
    """Whoever sets the clock of the machine moves no frame: only the monotonic one is read."""
    root = Path(__file__).resolve().parent.parent
    asking = {
        str(path.relative_to(root))
        for folder in ("streams", "daemon")
        for path in (root / folder).rglob("*.py")
        if WALL_CLOCK.search(path.read_text())
    }
    assert asking == DATED
