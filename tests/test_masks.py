"""Masks as bytes."""

import numpy as np
import pycocotools.mask as coco
import pytest
import zstandard
from atlasd.daemon import masks
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

shapes = array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
binary = arrays(bool, shapes)
probabilities = arrays(np.float32, shapes, elements=st.floats(0, 1, width=32))


def coco_counts(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


@given(binary, st.sampled_from(masks.ENCODINGS))
def test_every_encoding_gives_a_mask_back(mask, encoding):
    data = masks.encode(mask, encoding)
    back = masks.decode(data, mask.shape, encoding)
    assert back.dtype == np.bool_
    assert np.array_equal(back, mask)


@given(binary)
def test_rle_is_byte_for_byte_what_pycocotools_writes(mask):
    assert masks.encode(mask, "rle") == coco_counts(mask)


@pytest.mark.parametrize("shape", [(224, 224), (480, 640), (1080, 1920), (1, 3000), (3000, 1)])
@pytest.mark.parametrize("share", [0.0, 0.0005, 0.5, 1.0])
def test_rle_equals_pycocotools_at_real_sizes_and_long_runs(shape, share):
    mask = np.random.default_rng(3).random(shape) < share
    data = masks.encode(mask, "rle")
    assert data == coco_counts(mask)
    assert np.array_equal(masks.decode(data, shape, "rle"), mask)


def test_bits_are_rows_first_with_the_leftmost_pixel_in_the_highest_bit():
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1]], bool)
    assert masks.encode(mask, "bits") == bytes([0b10001100, 0b10000000])


@given(probabilities, st.sampled_from(["bits", "bits+zstd", "rle"]), st.floats(0, 1, width=32))
def test_probabilities_above_the_threshold_become_foreground(values, encoding, threshold):
    data = masks.encode(values, encoding, threshold=threshold)
    assert np.array_equal(masks.decode(data, values.shape, encoding), values > threshold)


@given(probabilities)
def test_prob8_keeps_probabilities_to_half_a_step(values):
    back = masks.decode_probability(masks.encode(values, "prob8"), values.shape)
    assert back.dtype == np.float32
    assert np.abs(back.astype(np.float64) - values).max() <= 0.5 / 255 + 1e-6


@given(probabilities, st.integers(0, 254))
def test_prob8_decodes_at_any_threshold(values, step):
    threshold = (step + 0.5) / 255
    data = masks.encode(values, "prob8")
    expected = np.frombuffer(data, np.uint8).reshape(values.shape) > step
    assert np.array_equal(masks.decode(data, values.shape, "prob8", threshold=threshold), expected)


@given(st.binary(max_size=200), shapes, st.sampled_from(masks.ENCODINGS))
def test_arbitrary_bytes_are_a_mask_of_the_shape_or_a_clear_error(data, shape, encoding):
    try:
        mask = masks.decode(data, shape, encoding)
    except masks.MaskError:
        return
    assert mask.shape == shape


@given(binary, st.data())
def test_damaged_rle_is_a_mask_of_the_shape_or_a_clear_error(mask, data):
    whole = bytearray(masks.encode(mask, "rle"))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = masks.decode(bytes(whole), mask.shape, "rle")
    except masks.MaskError:
        return
    assert back.shape == mask.shape


@pytest.mark.parametrize(
    ("data", "shape", "encoding", "message"),
    [
        (b"\0", (3, 3), "bits", "has 1 bytes; it must have 2"),
        (b"\0" * 3, (3, 3), "bits", "has 3 bytes; it must have 2"),
        (b"", (3, 3), "prob8", "has 0 bytes; it must have 9"),
        (b"", (3, 3), "rle", "has 0 bytes"),
        (b"\x1f9", (3, 3), "rle", "outside COCO's alphabet"),
        (b"8", (3, 3), "rle", "cover 8 pixels"),
        (b"X", (3, 3), "rle", "stops within a number"),
        (b"oooooooo0", (3, 3), "rle", "over 6 characters"),
        (b"no zstd at all", (3, 3), "bits+zstd", "no zstd frame"),
        (b"\0\0", (3, 3), "png", "must be one of bits, bits\\+zstd, rle, prob8"),
        (b"\0", (0, 3), "bits", "each side must be 1 to 8192"),
        (b"\0", (8193, 1), "bits", "each side must be 1 to 8192"),
        (b"\0", (8192, 8192), "bits", "at most 16777216"),
    ],
)
def test_wrong_bytes_are_refused_with_what_came_and_what_is_allowed(data, shape, encoding, message):
    with pytest.raises(masks.MaskError, match=message):
        masks.decode(data, shape, encoding)


def test_a_zstd_bomb_is_refused_by_the_size_it_claims():
    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    with pytest.raises(masks.MaskError, match="claims 50000000 bytes; it must hold 2"):
        masks.decode(bomb, (3, 3), "bits+zstd")


def test_a_zstd_bomb_that_claims_nothing_is_refused_while_it_unfolds():
    writer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    bomb = writer.compress(bytes(50_000_000)) + writer.flush()
    with pytest.raises(masks.MaskError, match="no zstd frame of 2 bytes"):
        masks.decode(bomb, (3, 3), "bits+zstd")


def test_zstd_data_with_something_after_it_is_refused():
    data = masks.encode(np.ones((3, 3), bool), "bits+zstd")
    with pytest.raises(masks.MaskError):
        masks.decode(data + b"more", (3, 3), "bits+zstd")


@pytest.mark.parametrize(
    ("array", "encoding", "message"),
    [
        (np.ones((2, 2, 2), bool), "bits", r"shape \(2, 2, 2\)"),
        (np.ones((2, 2), np.uint8), "bits", "is uint8; it must be bool"),
        (np.full((2, 2), 1.5), "prob8", r"must lie in \[0, 1\]"),
        (np.full((2, 2), np.nan), "prob8", r"must lie in \[0, 1\]"),
        (np.ones((2, 2), bool), "gif", "the encoding is 'gif'"),
    ],
)
def test_what_is_no_mask_cannot_be_encoded(array, encoding, message):
    with pytest.raises(masks.MaskError, match=message):
        masks.encode(array, encoding)
