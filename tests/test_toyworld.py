"""The toy world: labels that are exact, pictures that give nothing away, files that read back."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from atlasd.streams.avsbench import AVSBench, check
from atlasd.streams.scenes import MAX_SPEED, Scene, cast_actor, draw_motion, draw_places
from atlasd.streams.toydrawings import draw_object
from atlasd.streams.toysounds import gated, synthesise
from atlasd.streams.toyworld import CATEGORIES, make_clip, write_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

SIZE_PX = 48
RATE_HZ = 16_000
seeds = st.integers(0, 10_000)


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@settings(max_examples=6, deadline=None)
@given(seed=seeds, subset=st.sampled_from(["s4", "ms3"]))
def test_equal_seeds_give_equal_clips(seed: int, subset: str) -> None:
    first, second = (make_clip(seed, subset, size_px=SIZE_PX) for _ in range(2))
    assert first.clip_id == second.clip_id
    np.testing.assert_array_equal(first.frames, second.frames)
    np.testing.assert_array_equal(first.masks, second.masks)
    np.testing.assert_array_equal(first.sound, second.sound)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, subset=st.sampled_from(["s4", "ms3"]))
def test_a_mask_is_what_is_seen_of_the_sounding_objects(seed: int, subset: str) -> None:
    clip = make_clip(seed, subset, size_px=SIZE_PX)
    assert clip.frames.shape == (5, SIZE_PX, SIZE_PX, 3)
    assert clip.masks.shape == (5, SIZE_PX, SIZE_PX)
    assert not (clip.object_masks.sum(axis=0) > 1).any(), "a pixel belongs to one object"
    for k in range(5):
        union = np.zeros((SIZE_PX, SIZE_PX), bool)
        for seen, heard in zip(clip.object_masks[:, k], clip.sounding[:, k], strict=True):
            union |= seen & bool(heard)
        np.testing.assert_array_equal(clip.masks[k], union)


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_twins_show_the_same_and_sound_otherwise(seed: int) -> None:
    """Nothing in the pictures of a swap pair tells which object sounds."""
    one, other = (make_clip(seed, kind="swap", variant=v, size_px=SIZE_PX) for v in (0, 1))
    np.testing.assert_array_equal(one.frames, other.frames)
    np.testing.assert_array_equal(one.object_masks, other.object_masks)
    assert one.category != other.category
    assert not (one.masks & other.masks).any()
    assert not np.array_equal(one.sound, other.sound)
    assert one.sounding.sum() == other.sounding.sum() == 5


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_a_negative_has_nothing_to_find(seed: int) -> None:
    clip = make_clip(seed, kind="negative", size_px=SIZE_PX)
    assert not clip.masks.any()
    assert not clip.sounding.any()
    assert clip.categories == ()
    assert clip.category in clip.objects


@settings(max_examples=8, deadline=None)
@given(seed=seeds)
def test_several_sources_sound_in_whole_seconds(seed: int) -> None:
    """Two or three sound, each in one span; a fourth object at most is silent."""
    clip = make_clip(seed, "ms3", size_px=SIZE_PX)
    assert 2 <= len(clip.categories) <= 3
    assert len(clip.objects) - len(clip.categories) in {0, 1}
    assert len(set(clip.objects)) == len(clip.objects)
    for name, seconds in zip(clip.objects, clip.sounding, strict=True):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], seconds.astype(int), [0]])))
        assert len(edges) == (2 if name in clip.categories else 0)


def test_the_kinds_come_in_the_recipes_shares() -> None:
    """About 8 % are negative and 69 % hold silent objects; bounds at three deviations of 30."""
    kinds = Counter(make_clip(seed, size_px=8).kind for seed in range(30))
    assert 1 <= kinds["negative"] <= 7
    assert 13 <= kinds["distractor"] <= 28
    assert set(kinds) == {"negative", "distractor", "plain"}


def test_the_cast_can_be_given() -> None:
    cast = ("toy_drum", "toy_bird")
    clips = [make_clip(3, kind="swap", cast=cast, variant=v, size_px=SIZE_PX) for v in (0, 1)]
    assert [clip.category for clip in clips] == list(cast)
    assert set(cast) <= set(clips[0].objects)
    assert make_clip(3, kind="plain", cast=cast[:1], size_px=SIZE_PX).objects == cast[:1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 4}, "size_px is 4; a picture has at least 8"),
        ({"cast": ("dog",)}, "names up to two different of toy_bell"),
        ({"cast": ("toy_bell", "toy_bell"), "kind": "swap"}, "up to two different"),
        ({"cast": ("toy_bell", "toy_bird"), "kind": "plain"}, "cannot be given two objects"),
        ({"variant": 1, "kind": "plain"}, "variant is 1 of kind 'plain'"),
        ({"variant": 2, "kind": "swap"}, "variant is 2"),
        ({"subset": "ms3", "kind": "negative"}, "draws its own kind"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clip(0, **arguments)


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_object_has_a_clear_matte(category: str) -> None:
    """Neither empty nor the whole square, with smooth edges, and never the same twice."""
    one, other = (np.asarray(draw_object(category, np.random.default_rng(s))) for s in (0, 1))
    alpha = one[..., 3]
    assert one.shape == (256, 256, 4)
    assert 0.15 < (alpha > 127).mean() < 0.75
    assert ((alpha > 0) & (alpha < 255)).any()
    assert (one != other).any()


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("rate_hz", [16_000, 32_000])
def test_a_voice_is_heard_in_every_half_second(category: str, rate_hz: int) -> None:
    for seed in range(3):
        voice = synthesise(category, np.random.default_rng(seed), 3.0, rate_hz)
        assert voice.dtype == np.float32
        assert voice.shape == (3 * rate_hz,)
        assert rms(voice) == pytest.approx(1.0, abs=1e-3)
        halves = [rms(part) for part in voice.reshape(6, -1)]
        assert min(halves) > 0.3


def test_voices_can_be_told_apart() -> None:
    """Eight classes from the mean spectrum alone, by the nearest of five others: 7 in 8 right."""
    prints, labels = [], []
    for label, category in enumerate(CATEGORIES):
        for seed in range(6):
            voice = synthesise(category, np.random.default_rng(seed), 2.0, RATE_HZ)
            power = np.abs(np.fft.rfft(voice.reshape(-1, 500) * np.hanning(500))) ** 2
            mean = np.log(power.mean(axis=0) + 1e-6)
            prints.append(np.concatenate([mean, np.log(power + 1e-6).std(axis=0)]))
            labels.append(label)
    table, truth = np.array(prints), np.array(labels)
    distance = ((table[:, None] - table[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (truth[distance.argmin(axis=1)] == truth).mean() > 7 / 8


@settings(max_examples=25, deadline=None)
@given(
    spans=st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.1, 2)).map(lambda s: (s[0], s[0] + s[1])), max_size=3
    )
)
def test_a_gate_silences_all_but_its_spans(spans: list[tuple[float, float]]) -> None:
    rate_hz = 1000
    out = gated(np.ones(4 * rate_hz, np.float32), tuple(spans), rate_hz)
    time_s = np.arange(4 * rate_hz) / rate_hz
    within = np.array([any(a <= t <= b for a, b in spans) for t in time_s])
    deep = np.array([any(a + 0.021 < t < b - 0.021 for a, b in spans) for t in time_s])
    assert not out[~within].any()
    assert (out[deep] == 1).all()
    assert (out >= 0).all() and (out <= 1).all()


def test_the_sound_follows_the_spans() -> None:
    """Seconds in which nothing sounds are at least 10 dB softer than the others."""
    for seed in range(12):
        clip = make_clip(seed, "ms3", size_px=8)
        loud = clip.sounding.any(axis=0)
        levels = np.array([rms(part) for part in clip.sound.reshape(5, RATE_HZ)])
        if loud.any() and not loud.all():
            assert levels[~loud].max() * 3.2 < levels[loud].min()
        assert np.abs(clip.sound).max() <= 1.0


@settings(max_examples=30, deadline=None)
@given(seed=seeds, start=st.floats(0, 60))
def test_nothing_moves_faster_than_allowed(seed: int, start: float) -> None:
    motion = draw_motion(np.random.default_rng(seed), 0.5, 0.5, 10.0)
    (x0, y0, _), (x1, y1, _) = motion.at(start), motion.at(start + 0.01)
    assert np.hypot(x1 - x0, y1 - y0) / 0.01 <= MAX_SPEED + 1e-9


@settings(max_examples=20, deadline=None)
@given(seed=seeds, count=st.integers(1, 4), aspect=st.sampled_from([1.0, 16 / 9]))
def test_objects_stand_in_the_frame(seed: int, count: int, aspect: float) -> None:
    rng = np.random.default_rng(seed)
    places = draw_places(rng, [0.4] * count, aspect)
    assert len(places) == count
    assert all(0 < x < 1 and 0 < y < 1 for x, y in places)


def square_scene(aspect: float) -> Scene:
    """A red square of a quarter of the height in the middle of grey, unrotated and still."""
    motion = draw_motion(np.random.default_rng(0), 0.5, 0.5, 0.0)
    still = type(motion)(0.5, 0.5, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0)
    cutout = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    actor = cast_actor("square", cutout, 0.25, still, shadow=0.0)
    return Scene(Image.new("RGB", (64, 64), (90, 90, 90)), (actor,), aspect, still)


@pytest.mark.parametrize("aspect", [1.0, 2.0])
@pytest.mark.parametrize("size_px", [(64, 64), (200, 100), (33, 77)])
def test_an_object_has_its_size_however_the_picture_is_squashed(
    aspect: float, size_px: tuple[int, int]
) -> None:
    width, height = size_px
    image, masks = square_scene(aspect).draw(0.0, size_px)
    assert image.shape == (height, width, 3)
    rows, columns = np.flatnonzero(masks[0].any(axis=1)), np.flatnonzero(masks[0].any(axis=0))
    assert len(rows) == pytest.approx(height / 4, abs=1.01)
    assert len(columns) == pytest.approx(width / 4 / aspect, abs=1.01)
    assert rows.mean() + 0.5 == pytest.approx(height / 2, abs=0.6)
    assert columns.mean() + 0.5 == pytest.approx(width / 2, abs=0.6)
    inner = image[height // 2, width // 2]
    assert inner.tolist() == [255, 0, 0]
    assert image[0, 0].tolist() == [90, 90, 90]


def test_what_is_in_front_hides_what_is_behind() -> None:
    scene = square_scene(1.0)
    both = Scene(scene.background, (*scene.actors, *scene.actors), 1.0, scene.pan)
    _, masks = both.draw(0.0, (64, 64))
    assert not masks[0].any()
    assert masks[1].sum() == pytest.approx(256, abs=40)


def test_a_clip_travels_as_a_labeled_clip() -> None:
    clip = make_clip(5, kind="plain", size_px=SIZE_PX)
    value = clip.labeled_clip()
    assert value.clip_id == clip.clip_id
    assert value.category == clip.category
    np.testing.assert_array_equal(value.masks, clip.masks)
    assert [len(s.window.samples) for s in value.clip.samples] == [32_000] * 5
    levels = [s.window.rms for s in value.clip.samples]
    assert levels[1] == pytest.approx(rms(clip.sound[15_000:31_000]), rel=0.03)
    silent = make_clip(5, kind="negative", size_px=SIZE_PX)
    assert silent.category is not None
    assert silent.labeled_clip().category is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "set"
    counts = {"train": 3, "test": 1}
    return write_dataset(root, counts, seed=4, ms3_counts={"val": 2}, size_px=224)


def test_a_written_set_is_sound(written: Path) -> None:
    report = check(written)
    assert report.ok, report.lines()
    assert report.totals == {}
    assert [found.subset for found in report.subsets] == ["s4", "ms3"]
    assert report.subsets[0].clips["train"] == dict.fromkeys(CATEGORIES, 3)


def test_a_written_set_reads_as_it_was_made(written: Path) -> None:
    data = AVSBench(written, "s4")
    assert data.categories == CATEGORIES
    for entry in data.clips("train")[:3]:
        masks, labeled = entry.masks()
        assert labeled.all()
        assert masks.any() == (entry.kind != "negative")
        assert rms(entry.sound()) > 0


def test_twins_are_listed_as_such(written: Path) -> None:
    clips = {entry.name: entry for entry in AVSBench(written, "s4").clips("train")}
    twins = [entry for entry in clips.values() if entry.kind == "swap"]
    assert len(twins) == 2 * len(CATEGORIES)
    for entry in twins:
        partner = clips[entry.pair]
        assert partner.pair == entry.name
        assert partner.category != entry.category


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_dataset(tmp_path / name, {"val": 1}, seed=1, size_px=16)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 8 * 11 + 2
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_dataset(tmp_path, {"train": 1})
