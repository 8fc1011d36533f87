"""Labels on the wire, and what is read from them."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from atlasd.daemon import labels, masks
from atlasd.daemon.infos import IntakeInfo
from atlasd.daemon.labelclips import LOUDEST, load, read_clip, resolve, write_clip
from atlasd.daemon.labels import (
    Delete,
    Granted,
    LabeledFrame,
    LabelError,
    LabelMask,
    PictureData,
    PutFrame,
    Refused,
    digest,
    pack_answer,
    pack_request,
    pack_stored,
    unpack_answer,
    unpack_request,
)
from atlasd.daemon.messages import Status, pack, unpack
from atlasd.daemon.wire import VersionError, WireError
from atlasd.streams.clips import AudioWindow, Clip, LabeledClip, Sample, VideoFrame
from labeled import (
    RATE_HZ,
    SECOND_NS,
    a_clip,
    a_mask,
    a_picture,
    a_reference,
    a_sample,
    a_sound,
    blob,
    pixels,
)

GOLDEN = Path(__file__).parent / "golden"
GRIDS = ("bits", "bits+zstd", "rle")


def full_requests():
    """One request and answer of each kind with every field set: what the golden bytes hold."""
    clip = a_clip("s4/train/dog-7", frames=1, replace=True, allow_full=True, request=41)
    frame = LabeledFrame(
        pts_ns=SECOND_NS,
        picture=PictureData(enc="rgb8", shape=(6, 10), data=pixels().tobytes()),
        mask=a_mask(enc="rle"),
    )
    sound = a_sound(0.002, enc="i16", gap_ms=1.5, t0_ns=SECOND_NS - 2_000_000)
    reference = a_reference(
        "porch-7",
        2_960_000_000,
        request=42,
        category="dog",
        stream="porch",
        epoch=1,
        instance="5f0c",
        mask=a_mask(enc="bits"),
    )
    return {
        "label-put": dataclasses.replace(clip, v="1.1", frames=(frame,), sound=sound),
        "label-put-frame": dataclasses.replace(reference, v="1.1"),
        "label-delete": Delete(v="1.1", request=43, id="porch-7"),
        "label-granted": Granted(v="1.1", request=42, id="porch-7", state="stored"),
        "label-refused": Refused(v="1.1", request=42, code="expired", detail="no longer here"),
    }


KINDS = sorted(full_requests())


def packed(message) -> bytes:
    answer = isinstance(message, Granted | Refused)
    return pack_answer(message) if answer else pack_request(message)


def unpacked(data: bytes):
    return unpack_answer(data) if "ok" in msgpack.unpackb(data) else unpack_request(data)


def refusal(action, *args) -> LabelError:
    with pytest.raises(LabelError) as caught:
        action(*args)
    return caught.value


# The bytes.


@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_bytes_of_1_1_stay_and_are_read_as_what_they_were(kind):
    golden = (GOLDEN / f"{kind}.bin").read_bytes()
    assert packed(full_requests()[kind]) == golden
    assert unpacked(golden) == full_requests()[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_bytes_are_what_the_json_beside_them_says(kind):
    said = json.loads(
        (GOLDEN / f"{kind}.json").read_text(),
        object_hook=lambda m: bytes.fromhex(m["hex"]) if set(m) == {"hex"} else m,
    )
    assert msgpack.unpackb((GOLDEN / f"{kind}.bin").read_bytes()) == said


def test_status_tells_of_the_intake_only_where_there_is_one():
    plain = Status(stream="main", state="running")
    info = IntakeInfo(endpoint="ipc:///x", clips={"pending": 3}, oldest_s=1.5, refused={"quota": 1})
    assert b"intake" not in pack(plain)
    told = dataclasses.replace(plain, intake=info)
    assert unpack(pack(told)) == told


def test_the_requests_number_comes_with_its_refusal():
    data = msgpack.packb({"v": "1.1", "op": "put", "request": 7, "id": "a"})
    error = refusal(unpack_request, data)
    assert (error.code, error.request) == ("malformed", 7)
    assert "frames is missing" in str(error)


@pytest.mark.parametrize(
    ("entries", "code", "part"),
    [
        ({"op": "put_clip"}, "unknown_op", "put, put_frame, delete"),
        ({"v": "2.0"}, "version", "knows 1.x"),
        ({"v": None}, "malformed", "major.minor"),
        ({"id": "two words"}, "malformed", "id is"),
        ({"id": "x" * 257}, "malformed", "256"),
        ({"id": ""}, "malformed", "id is"),
        ({"epoch": -1}, "malformed", "epoch"),
        ({"stream": "a/b"}, "malformed", "stream"),
        ({"mask": {"enc": "prob8", "shape": [6, 10], "data": b""}}, "malformed", "mask.enc"),
        ({"replace": 1}, "malformed", "replace"),
        ({"request": -1}, "malformed", "request"),
    ],
)
def test_what_breaks_the_bounds_is_refused_by_name(entries, code, part):
    body = msgpack.unpackb(pack_request(a_reference()))
    error = refusal(unpack_request, msgpack.packb({**body, **entries}))
    assert error.code == code
    assert part in str(error)


def test_keys_of_a_later_minor_are_ignored():
    body = msgpack.unpackb(pack_request(a_reference()))
    newer = unpack_request(msgpack.packb({**body, "v": "1.9", "mood": "good"}))
    assert newer == a_reference(v="1.9")


def test_a_request_over_the_limit_is_refused_before_it_is_read():
    error = refusal(unpack_request, bytes(labels.MAX_REQUEST_BYTES + 1))
    assert error.code == "too_large"
    assert "33554432 are allowed" in str(error)


def test_a_truncated_request_is_refused():
    data = pack_request(a_clip())
    for end in (0, 1, len(data) // 2, len(data) - 1):
        assert refusal(unpack_request, data[:end]).code == "malformed"


@pytest.mark.parametrize("data", [b"", b"\xc0", b"\x93\x01\x02\x03", b"\x81\xa1v\xa31.1"])
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(WireError):
        unpack_answer(data)


def test_an_answer_of_another_major_is_refused_by_name():
    with pytest.raises(VersionError, match=r"2\.0"):
        unpack_answer(msgpack.packb({"ok": True, "v": "2.0"}))


def test_the_digest_is_of_the_content_alone():
    said = digest(a_clip())
    assert digest(a_clip(request=9, replace=True, allow_full=True, v="1.0")) == said
    for other in ({"category": "cat"}, {"provenance": "x"}, {"frames": ()}, {"sound": None}):
        assert digest(dataclasses.replace(a_clip(), **other)) != said


# The clip.


@pytest.mark.parametrize("enc", GRIDS)
@pytest.mark.parametrize("picture", ["png", "rgb8"])
def test_a_whole_clip_is_read_bit_for_bit(enc, picture):
    frames = tuple(
        LabeledFrame(pts_ns=t, picture=a_picture(pixels(k), picture), mask=a_mask(enc=enc))
        for k, t in enumerate((SECOND_NS, 2 * SECOND_NS))
    )
    clip = read_clip(_with(frames))
    assert [s.frame.pts_ns for s in clip.clip.samples] == [SECOND_NS, 2 * SECOND_NS]
    for k, sample in enumerate(clip.clip.samples):
        np.testing.assert_array_equal(sample.frame.image, pixels(k))
        np.testing.assert_array_equal(clip.masks[k], blob())
        assert (sample.window.state, sample.window.sample_rate_hz) == ("ok", RATE_HZ)
    whole = np.frombuffer(a_sound().data, "<f4")
    np.testing.assert_array_equal(clip.clip.samples[1].window.samples, whole[RATE_HZ : 2 * RATE_HZ])
    assert (clip.clip_id, clip.category, clip.provenance) == ("clip-1", "dog", "drawn")


def _with(frames, **fields):
    return dataclasses.replace(a_clip(), frames=frames, **fields)


def one_frame(picture=None, mask=None, **fields):
    frame = LabeledFrame(pts_ns=SECOND_NS, picture=picture or a_picture(), mask=mask or a_mask())
    return _with((frame,), **fields)


def test_a_jpeg_is_read_as_pillow_reads_it():
    smooth = np.full((6, 10, 3), 90, np.uint8)
    clip = read_clip(one_frame(a_picture(smooth, "jpeg")))
    assert np.abs(clip.clip.samples[0].frame.image.astype(int) - 90).max() <= 2


def test_sound_as_integers_is_the_same_sound():
    exact, rounded = (
        read_clip(one_frame(sound=a_sound(enc=enc))).clip.samples[0].window
        for enc in ("f32", "i16")
    )
    np.testing.assert_allclose(rounded.samples, exact.samples, atol=1e-4)


def test_a_clip_without_sound_is_absent_and_not_a_failure():
    window = read_clip(one_frame(sound=None)).clip.samples[0].window
    assert (window.state, window.rms) == ("absent", 0.0)


def test_sound_that_does_not_cover_a_window_is_a_gap():
    clip = read_clip(a_clip(frames=2, sound=a_sound(1.5)))
    first, second = (sample.window for sample in clip.clip.samples)
    assert (first.state, second.state, second.gap_ms) == ("ok", "gap", 500.0)
    assert not second.samples[RATE_HZ // 2 :].any()


def test_an_empty_mask_says_that_nothing_in_view_sounds():
    empty = a_mask(np.zeros((6, 10), bool))
    assert not read_clip(one_frame(mask=empty)).masks.any()


def test_a_full_mask_is_taken_only_where_it_is_meant():
    full = a_mask(np.ones((6, 10), bool))
    assert refusal(read_clip, one_frame(mask=full)).code == "mask_full"
    assert read_clip(one_frame(mask=full, allow_full=True)).masks.all()
    assert load(pack_stored(one_frame(mask=full, allow_full=True))).masks.all()


FLOATS = np.zeros(RATE_HZ, "<f4")


@pytest.mark.parametrize(
    ("label", "code", "part"),
    [
        (lambda: _with(()), "bad_frames", "one at least"),
        (lambda: _with(a_clip().frames[::-1]), "bad_frames", "later than"),
        (lambda: _with(a_clip().frames[:1] * 2), "bad_frames", "later than"),
        (lambda: one_frame(PictureData(enc="png", data=b"no")), "bad_picture", "no png"),
        (
            lambda: one_frame(PictureData(enc="jpeg", data=a_picture().data)),
            "bad_picture",
            "no jpeg",
        ),
        (
            lambda: one_frame(PictureData(enc="png", data=a_picture().data[:-30])),
            "bad_picture",
            "no png",
        ),
        (lambda: one_frame(PictureData(enc="rgb8", data=b"")), "bad_picture", "its shape"),
        (
            lambda: one_frame(PictureData(enc="rgb8", shape=(6, 10), data=bytes(179))),
            "bad_picture",
            "has 180",
        ),
        (
            lambda: _with(
                (
                    a_clip().frames[0],
                    LabeledFrame(
                        pts_ns=2 * SECOND_NS,
                        picture=a_picture(pixels(0, (12, 6))),
                        mask=a_mask(blob((12, 6))),
                    ),
                )
            ),
            "bad_picture",
            "must have one",
        ),
        (lambda: one_frame(mask=a_mask(blob((12, 6)))), "mask_size", "6 x 12 pixels; the picture"),
        (
            lambda: one_frame(mask=LabelMask(enc="bits", shape=(6, 10), data=bytes(7))),
            "bad_mask",
            "must have 8",
        ),
        (
            lambda: one_frame(mask=LabelMask(enc="rle", shape=(6, 10), data=b"\x00")),
            "bad_mask",
            "alphabet",
        ),
        (lambda: one_frame(sound=a_sound(data=b"")), "bad_sound", "one at least"),
        (lambda: one_frame(sound=a_sound(data=bytes(7))), "bad_sound", "whole samples"),
        (lambda: one_frame(sound=a_sound(data=(FLOATS + 9).tobytes())), "bad_sound", "send i16"),
        (
            lambda: one_frame(sound=a_sound(data=(FLOATS + np.nan).tobytes())),
            "bad_sound",
            "reaches nan",
        ),
        (lambda: one_frame(sound=a_sound(t0_ns=2**62)), "bad_sound", "one origin"),
    ],
)
def test_a_clip_that_cannot_be_learned_is_refused_by_name(label, code, part):
    error = refusal(read_clip, label())
    assert error.code == code
    assert part in str(error)


def test_a_picture_that_claims_too_much_is_refused_before_it_is_decoded():
    wide = bytearray(a_picture().data)
    wide[16:24] = (1 << 13).to_bytes(4, "big") + ((1 << 13) - 1).to_bytes(4, "big")
    wide[29:33] = zlib.crc32(wide[12:29]).to_bytes(4, "big")
    error = refusal(read_clip, one_frame(PictureData(enc="png", data=bytes(wide))))
    assert "are allowed: send fewer or smaller" in str(error)


def test_what_the_spool_keeps_is_the_clip():
    stored = load(pack_stored(a_clip(request=9, replace=True)))
    direct = read_clip(a_clip())
    np.testing.assert_array_equal(stored.masks, direct.masks)
    assert stored.clip_id == direct.clip_id


def test_what_is_no_whole_clip_is_not_loaded():
    assert refusal(load, pack_request(a_reference())).code == "malformed"


@pytest.mark.parametrize("state", ["ok", "absent"])
def test_a_clip_that_is_written_and_read_is_the_same_clip(state):
    rng = np.random.default_rng(0)
    samples = []
    for k in range(3):
        pts_ns = round((k + 0.9375) * SECOND_NS)
        sound = rng.uniform(-1, 1, RATE_HZ).astype(np.float32) * (state == "ok")
        frame = VideoFrame(pixels(k), pts_ns, pts_ns, "x", 0, k, (10, 6))
        window = AudioWindow(sound, RATE_HZ, pts_ns - SECOND_NS, pts_ns, state)
        samples.append(Sample(frame, window))
    stacked = (rng.random((3, 6, 10)) > 0.5).astype(np.uint8)
    clip = LabeledClip(Clip(tuple(samples)), stacked, "x", "drawn", None)
    again = load(pack_stored(write_clip(clip)))
    np.testing.assert_array_equal(again.masks, clip.masks)
    for got, put in zip(again.clip.samples, samples, strict=True):
        np.testing.assert_array_equal(got.frame.image, put.frame.image)
        assert got.window.state == state
        if state == "ok":
            np.testing.assert_array_equal(got.window.samples, put.window.samples)
            assert got.window.start_ns == put.window.start_ns


def test_the_limits_are_those_of_the_specification():
    text = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    assert f"{labels.MAX_REQUEST_BYTES:,} bytes" in text
    assert f"at most {labels.MAX_FRAMES}" in text
    assert f"{LOUDEST:g}" in text
    assert str(masks.MAX_SIDE) in text
    for kind in (PutFrame, Granted, Refused):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, field.name


def test_a_late_window_is_learned_as_it_was_shown_and_its_losses_stay_known():
    """It slid back to the newest sound, and lost some of that."""
    sample = a_sample(50)
    start_ns, end_ns = (
        sample.window.start_ns - SECOND_NS // 4,
        sample.window.end_ns - SECOND_NS // 4,
    )
    late = AudioWindow(sample.window.samples, RATE_HZ, start_ns, end_ns, "late", 30.0)
    clip = resolve(a_reference(), Sample(sample.frame, late))
    window = load(pack_stored(clip)).clip.samples[0].window
    assert (window.state, window.gap_ms) == ("gap", 30.0)
    assert (window.start_ns, window.end_ns) == (start_ns, end_ns)
    np.testing.assert_array_equal(window.samples, late.samples)
