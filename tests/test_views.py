"""Other views of a picture: what they show of the mask is what they show of the picture."""

from __future__ import annotations

import numpy as np
from atlasd.tools.views import CELLS, View, draw_view, restyled, varied_colours
from PIL import Image


def regular_grid(width, height):
    return np.stack(
        np.meshgrid(np.linspace(0, width, CELLS + 1), np.linspace(0, height, CELLS + 1)), axis=-1
    )


def test_a_view_shows_the_mask_where_it_shows_the_picture():
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:50, 60:100] = 255
    mask = (image[..., 0] > 0).astype(np.uint8)
    areas = []
    for seed in range(40):
        view = draw_view(np.random.default_rng(seed), 120, 80)
        picture = np.asarray(view.of_picture(image))[..., 0] > 127
        shown = view.of_mask(mask)
        assert shown.shape == (80, 120)
        assert set(np.unique(shown)) <= {0, 1}
        assert np.mean(picture != shown) < 0.03
        areas.append(shown.mean())
    assert np.ptp(areas) > 0.1


def test_a_regular_grid_shows_the_picture_as_it_is_and_a_mirrored_one_mirrors_it():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    grid = regular_grid(60, 40)
    assert np.abs(np.asarray(View(grid).of_picture(image)).astype(int) - image).max() <= 1
    mask = (image[..., 0] > 127).astype(np.uint8)
    assert (View(grid).of_mask(mask) == mask).all()
    assert (View(grid[:, ::-1]).of_mask(mask) == mask[:, ::-1]).all()


def test_views_show_half_of_each_side_at_least_and_nothing_from_outside():
    for seed in range(200):
        grid = draw_view(np.random.default_rng(seed), 100, 100).grid
        assert grid.shape == (CELLS + 1, CELLS + 1, 2)
        assert grid.min() >= 0
        assert grid.max() <= 100
        across = np.linalg.norm(grid[2, -1] - grid[2, 0])
        assert across > 40  # half of the side, but for the bend and what is cut at the edge


def test_a_restyled_object_changes_and_its_surroundings_do_not():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:40] = 1
    near = np.zeros_like(mask)
    near[8:32, 18:42] = 1
    changed = restyled(image, mask, np.random.default_rng(0))
    assert (changed[near == 0] == image[near == 0]).all()
    assert np.mean(changed[mask > 0] != image[mask > 0]) > 0.9
    assert restyled(image, np.zeros_like(mask), rng) is image


def test_colours_vary_with_the_generator_alone():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    for seed in range(10):
        one, two = (varied_colours(picture, np.random.default_rng(seed)) for _ in "ab")
        assert one.shape == (20, 30, 3)
        assert one.dtype == np.uint8
        assert (one == two).all()
