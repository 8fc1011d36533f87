"""The messages of the bus and their bytes."""

import dataclasses
import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
from atlasd.daemon import masks
from atlasd.daemon.client import CUT_OFF_BYTES, RECEIVE_HIGH_WATER_MARK
from atlasd.daemon.messages import (
    MAX_MESSAGE_BYTES,
    Event,
    FrameInfo,
    MaskData,
    pack,
    topic,
    unpack,
)
from atlasd.daemon.outlet import SEND_HIGH_WATER_MARK
from atlasd.daemon.wire import MAX_CONTAINERS, VERSION, VersionError, WireError
from hypothesis import given
from hypothesis import strategies as st
from wire import a_mask, full_messages, picture

GOLDEN = Path(__file__).parent / "golden"
KINDS = sorted(full_messages())


def body_of(message):
    return msgpack.unpackb(pack(message).partition(b"\0")[2])


def changed(message, **entries):
    """The bytes of a message with entries of its map replaced."""
    head = pack(message).partition(b"\0")[0] + b"\0"
    return head + msgpack.packb({**body_of(message), **entries})


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_of_version_1_has_these_bytes_for_ever(kind):
    assert pack(full_messages()[kind]) == (GOLDEN / f"{kind}.bin").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_bytes_are_read_as_the_message_they_were(kind):
    assert unpack((GOLDEN / f"{kind}.bin").read_bytes()) == full_messages()[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_golden_bytes_are_what_the_json_beside_them_says(kind):
    said = json.loads(
        (GOLDEN / f"{kind}.json").read_text(),
        object_hook=lambda m: bytes.fromhex(m["hex"]) if set(m) == {"hex"} else m,
    )
    head, _, body = (GOLDEN / f"{kind}.bin").read_bytes().partition(b"\0")
    assert head + b"\0" == said["topic"].encode()
    assert msgpack.unpackb(body) == said["body"]


def test_keys_of_a_later_minor_are_ignored():
    newer = unpack((GOLDEN / "newer-minor.bin").read_bytes())
    assert newer == dataclasses.replace(full_messages()["mask"], v="1.7")


def test_another_major_is_refused_by_name():
    with pytest.raises(VersionError, match=r"version 2\.0; this reader knows 1\.x"):
        unpack((GOLDEN / "other-major.bin").read_bytes())


def test_keys_with_a_default_may_be_missing():
    body = body_of(full_messages()["mask"])
    for key in ("classes", "scores", "rung", "deadline_ms", "lat_ms", "drops", "publish_ns"):
        del body[key]
    mask = unpack(b"m/porch\0" + msgpack.packb(body))
    assert (mask.classes, mask.rung, mask.deadline_ms, mask.drops) == ((), 0, None, {})


def test_whole_numbers_will_do_for_fractions():
    mask = unpack(changed(a_mask(), lat_ms={"infer": 3}))
    assert mask.lat_ms == {"infer": 3.0}


def test_what_the_receiver_adds_does_not_travel():
    body = body_of(a_mask(gap=3, age_ms=5.0, stale=True))
    assert not {"gap", "age_ms", "stale"} & set(body)
    assert unpack(changed(a_mask(), gap=7)).gap == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"seq": -1}, "seq is -1; it must be a whole number, 0 to"),
        ({"seq": 1.0}, "seq is 1.0; it must be a whole number"),
        ({"seq": True}, "seq is True"),
        ({"seq": None}, "seq is None"),
        ({"seq": 2**63}, "seq is 9223372036854775808"),
        ({"frame": 3}, "frame is 3; it must be a map: FrameInfo"),
        ({"frame": {"w": 0, "h": 1, "index": 0}}, "frame.w is 0; it must be a whole number, 1 to"),
        ({"frame": {"w": 1, "h": 1}}, "frame.index is missing"),
        ({"mask": {}}, "mask.enc is missing"),
        ({"audio": {"state": "loud", "t0_ns": 0, "t1_ns": 1}}, "audio.state is 'loud'.*'absent'"),
        ({"scores": [2.0]}, r"scores\[0\] is 2.0; it must be a finite number, 0 to 1"),
        ({"scores": [float("nan")]}, r"scores\[0\] is nan"),
        ({"scores": ["1"]}, r"scores\[0\] is '1'"),
        ({"classes": "dog"}, "classes is 'dog'; it must be a list"),
        ({"classes": ["x" * 129]}, r"classes\[0\] is .*at most 128 characters"),
        ({"drops": {"stale": "many"}}, "drops.stale is 'many'"),
        ({"lat_ms": {f"s{i}": 1 for i in range(65)}}, "lat_ms is .*at most 64 entries"),
        ({"lat_ms": {"infer": float("inf")}}, "lat_ms.infer is inf"),
        ({"stream": "other"}, "m/main holds a message of stream 'other'"),
        ({"stream": "a b"}, "stream is 'a b'"),
        ({"v": None}, "v is None; it must be major.minor"),
        ({"v": 1}, "v is 1"),
        ({"v": "1"}, "v is '1'"),
    ],
)
def test_a_field_out_of_bounds_is_refused_with_its_place(entries, message):
    with pytest.raises(WireError, match=message):
        unpack(changed(a_mask(), **entries))


def nested(depth):
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"m/main",
        b"m/main\0",
        b"x/main\0\x80",
        b"m/\0\x80",
        b"m/a b\0\x80",
        b"M/main\0\x80",
        b"m/main/\0\x80",
        b"m/main\0\x90",
        b"m/main\0\xc1",
        b"m/main\0" + b"\x80" * 2,
        b"m/main\0\x81\x01\x02",
        b"m/main\0\x81\xa1v",
        b"m/main\0\xdf\xff\xff\xff\xff",
        b"m/main\0\x81\xa1v\xc6\xff\xff\xff\xff",
        b"m/main\0\x81\xa1v\xa2\xff\xfe",
        b"m/main\0\x81\xa1v" + nested(5000),
        b"m/main\0\x81\xa1v\xd4\x05\x00",
        b"m/" + b"a" * 65 + b"\0\x80",
        b"\x80\x04\x95.",
    ],
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(WireError):
        unpack(data)


def test_a_message_of_countless_small_lists_is_refused_before_it_fills_the_memory():
    bomb = changed(a_mask(), more=[[]] * (MAX_CONTAINERS + 1))
    with pytest.raises(WireError, match=f"over {MAX_CONTAINERS} lists and maps"):
        unpack(bomb)


def test_a_message_over_the_size_limit_is_refused_unread():
    with pytest.raises(WireError, match="are allowed"):
        unpack(b"m/main\0" + bytes(20_000_000))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_behind_a_topic_are_refused(data):
    with pytest.raises(WireError):
        unpack(b"m/main\0" + data)


scalars = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=9)
)
trees = st.recursive(
    scalars | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@given(st.sampled_from(KINDS), st.data())
def test_any_value_in_any_field_is_read_or_refused(kind, data):
    message = full_messages()[kind]
    key = data.draw(st.sampled_from(sorted(body_of(message))))
    try:
        back = unpack(changed(message, **{key: data.draw(trees)}))
    except WireError:
        return
    assert unpack(pack(back)) == back


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a\0", ".a", "-a", "é", "a" * 65, "a\n"])
def test_a_stream_name_that_would_blur_topics_is_refused(name):
    with pytest.raises(WireError, match="1 to 64 letters"):
        topic("m", name)
    with pytest.raises(ValueError, match="stream is"):
        Event(stream=name, kind="eos")


def test_no_topic_is_a_prefix_of_another_streams():
    assert not pack(a_mask(stream="cam2")).startswith(topic("m", "cam"))
    assert pack(a_mask(stream="cam")).startswith(topic("m", "cam"))


def test_a_message_out_of_bounds_cannot_even_be_made():
    with pytest.raises(ValueError, match="w is 0; it must be a whole number, 1 to 32768"):
        FrameInfo(w=0, h=1, index=0)


@pytest.mark.parametrize("enc", masks.ENCODINGS)
def test_a_mask_gives_its_array_in_every_encoding(enc):
    message = unpack(pack(a_mask(enc=enc)))
    assert np.array_equal(message.array(), picture())


def test_a_mask_is_enlarged_to_its_frame_by_nearest_neighbour():
    small = np.random.default_rng(1).random((6, 10)) < 0.5
    message = a_mask(mask=small, frame=FrameInfo(w=40, h=24, index=0))
    assert np.array_equal(message.to_frame(), np.kron(small, np.ones((4, 4), bool)))


def test_a_mask_is_scaled_to_a_frame_of_another_shape_at_pixel_centres():
    small = np.random.default_rng(2).random((5, 7)) < 0.5
    large = a_mask(mask=small, frame=FrameInfo(w=16, h=9, index=0)).to_frame()
    for y in range(9):
        for x in range(16):
            assert large[y, x] == small[int((y + 0.5) * 5 / 9), int((x + 0.5) * 7 / 16)]


def test_a_transform_places_the_mask_and_leaves_the_rest_background():
    ones = np.ones((2, 2), bool)
    data = MaskData(
        enc="bits", shape=(2, 2), transform=(2.0, 1.0, 3.0, 1.0), data=masks.encode(ones, "bits")
    )
    frame = a_mask(frame=FrameInfo(w=8, h=4, index=0))
    placed = dataclasses.replace(frame, mask=data).to_frame()
    expected = np.zeros((4, 8), bool)
    expected[1:3, 3:7] = True
    assert np.array_equal(placed, expected)


def test_a_transform_that_folds_the_mask_is_refused():
    with pytest.raises(masks.MaskError, match="both must be positive"):
        masks.enlarge(picture(), (40, 24), (0.0, 4.0, 0.0, 0.0))


def test_a_mask_is_not_enlarged_without_bound():
    endless = a_mask(frame=FrameInfo(w=32768, h=32768, index=0))
    with pytest.raises(masks.MaskError, match="at most 134217728"):
        endless.to_frame()


def test_a_mask_whose_bytes_do_not_fit_its_shape_says_so():
    broken = a_mask(mask=picture())
    data = dataclasses.replace(broken.mask, shape=(60, 10))
    with pytest.raises(masks.MaskError, match="it must have 75"):
        dataclasses.replace(broken, mask=data).array()


def test_the_specification_names_every_field():
    text = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    for name, message in full_messages().items():
        section = text.partition(f"\n## {name.capitalize()}\n")[2].partition("\n## ")[0]
        missing = [key for key in body_of(message) if f"`{key}`" not in section]
        assert not missing, (name, missing)


def test_the_specification_states_the_version_and_the_limits():
    text = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
    assert f"Version: **{VERSION}**" in text
    assert f"at most {MAX_MESSAGE_BYTES:,} bytes, {MAX_CONTAINERS} lists and maps" in text
    assert f"| {CUT_OFF_BYTES:,} |" in text
    assert f"`SNDHWM` {SEND_HIGH_WATER_MARK} | `RCVHWM` {RECEIVE_HIGH_WATER_MARK}" in text
