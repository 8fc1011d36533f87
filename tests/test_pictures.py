"""Pictures: cut-outs and backgrounds drawn in code, staged into scenes with known masks."""

import io

import numpy as np
import pytest
from atlasd.streams.pictures import (
    Background,
    Cutout,
    PictureError,
    read_background,
    read_cutout,
    stage,
)
from PIL import Image


def coded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def disc(color, size=120, category="disc"):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = np.hypot(x, y) < size / 2 - 1
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[..., :3] = color
    rgba[..., 3] = 255 * inside
    return Cutout(f"disc {color}", category, rgba)


def grey(height=300, width=400, level=128):
    return Background("grey", np.full((height, width, 3), level, np.uint8))


def test_a_cutout_is_trimmed_to_what_is_opaque():
    image = Image.new("RGBA", (100, 80))
    image.paste((255, 0, 0, 255), (20, 30, 60, 50))
    assert read_cutout(coded(image), "red").rgba.shape == (20, 40, 4)


def test_a_large_cutout_is_made_smaller_with_its_aspect():
    rgba = read_cutout(coded(Image.new("RGBA", (1440, 720), (9, 9, 9, 255))), "big").rgba
    assert rgba.shape[:2] == (180, 360)


@pytest.mark.parametrize("data", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_a_damaged_picture_is_named(data):
    with pytest.raises(PictureError, match=r"red\.png cannot be read"):
        read_cutout(data, "red.png")
    with pytest.raises(PictureError, match=r"hill\.jpg cannot be read"):
        read_background(data, "hill.jpg")


def test_a_cutout_in_which_nothing_is_opaque_is_refused():
    with pytest.raises(PictureError, match="empty matte"):
        read_cutout(coded(Image.new("RGBA", (10, 10))), "ghost")


def test_grabcut_finds_a_thing_on_a_plain_ground():
    pytest.importorskip("cv2", reason="OpenCV needs libGL", exc_type=ImportError)
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (120, 160, 3)).astype(np.uint8)
    pixels[30:90, 40:120] = rng.integers(200, 230, (60, 80, 3)) * np.array([1, 0.2, 0.1])
    cutout = read_cutout(coded(Image.fromarray(pixels)), "block", kind="image_grabcut")
    height, width = cutout.rgba.shape[:2]
    assert abs(height - 60) <= 4
    assert abs(width - 80) <= 4


def test_a_background_keeps_its_aspect():
    rgb = read_background(coded(Image.new("RGB", (900, 300))), "wide", short_side_px=100).rgb
    assert rgb.shape == (100, 300, 3)


def scene_of(seed=3, cutouts=None, **options):
    cutouts = cutouts or [disc((250, 20, 20)), disc((20, 20, 250))]
    return stage(np.random.default_rng(seed), cutouts, grey(), **options)


def test_the_same_seed_gives_the_same_picture_and_another_another():
    first, again, other = scene_of(3), scene_of(3), scene_of(4)
    assert np.array_equal(first.frame(1.5).image, again.frame(1.5).image)
    assert np.array_equal(first.frame(1.5).masks, again.frame(1.5).masks)
    assert not np.array_equal(first.frame(1.5).image, other.frame(1.5).image)


def test_a_frame_does_not_depend_on_the_frames_before_it():
    scene, fresh = scene_of(5), scene_of(5)
    scene.frame(0.1)
    assert np.array_equal(scene.frame(4.0).image, fresh.frame(4.0).image)


@pytest.mark.parametrize("size_px", [(224, 224), (640, 360), (99, 201)])
def test_pictures_and_masks_have_the_size_that_was_asked_for(size_px):
    picture = scene_of(size_px=size_px).frame(0.0)
    assert picture.image.shape == (size_px[1], size_px[0], 3)
    assert picture.image.dtype == np.uint8
    assert picture.masks.shape == (2, size_px[1], size_px[0])


@pytest.mark.parametrize("seed", range(6))
def test_the_masks_cover_the_objects_colours(seed):
    """Red and blue discs on grey: which pixels are red is measured from the picture alone."""
    picture = scene_of(seed).frame(2.5)
    image = picture.image.astype(int)
    red = image[..., 0] - image[..., 2] > 40
    blue = image[..., 2] - image[..., 0] > 40
    for mask, seen in zip(picture.masks, (red, blue), strict=True):
        assert np.count_nonzero(mask & seen) / np.count_nonzero(mask | seen) > 0.85


@pytest.mark.parametrize("seed", range(8))
def test_masks_never_overlap_and_every_object_stays_in_view(seed):
    cutouts = [disc((200, 50, 50)), disc((50, 200, 50)), disc((50, 50, 200))]
    scene = scene_of(seed, cutouts)
    for t_s in (0.0, 2.5, 5.0):
        masks = scene.frame(t_s).masks
        assert masks.sum(axis=0).max() <= 1
        assert (masks.sum(axis=(1, 2)) > 0.004 * 224 * 224).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_lone_object_has_38_to_75_percent_of_the_frame(seed):
    mask = scene_of(seed, [disc((200, 50, 50))]).frame(2.5).masks[0]
    height = np.flatnonzero(mask.any(axis=1))
    width = np.flatnonzero(mask.any(axis=0))
    longest = max(height[-1] - height[0], width[-1] - width[0]) / 224
    assert 0.36 <= longest <= 0.77


def test_an_object_drifts_slowly():
    for seed in range(8):
        scene = scene_of(seed, [disc((200, 50, 50))])
        centres = [np.argwhere(scene.frame(t).masks[0]).mean(axis=0) for t in (2.0, 3.0)]
        assert np.linalg.norm(centres[1] - centres[0]) < 0.1 * 224


def test_a_shadow_darkens_the_ground():
    flat = Background("light", np.full((300, 300, 3), 200, np.uint8))
    scene = stage(np.random.default_rng(1), [disc((190, 190, 190))], flat)
    picture = scene.frame(2.5)
    ground = picture.image[~picture.masks[0]].mean(axis=-1)
    assert np.percentile(ground, 0.5) < np.median(ground) - 15


def test_a_narrow_background_serves_a_wide_picture():
    scene = stage(np.random.default_rng(0), [disc((9, 9, 9))], grey(400, 120), size_px=(640, 360))
    assert scene.frame(0.0).image.shape == (360, 640, 3)
