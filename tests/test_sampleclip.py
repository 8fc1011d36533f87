"""The sample: a video that plays, and a truth that agrees with what is seen and heard in it."""

import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from atlasd.streams import samplecast, sampleclip
from atlasd.streams.avslayout import DatasetError
from atlasd.streams.catalogue import ContentError, Item, content_sha256
from atlasd.streams.packages import PackageError
from atlasd.streams.samplecast import SOUND_RATE_HZ, openavs_cast, toy_cast, turns
from atlasd.streams.sampleclip import (
    FLOOR,
    TAIL_S,
    SampleClip,
    make_sample,
    read_truth,
    settled_at,
    sounding_at,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

SIZE_PX = (96, 64)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleClip:
    """Eight seconds: three turns of two seconds and a silent one."""
    out = tmp_path_factory.mktemp("sample")
    return make_sample(out, world="toy", seconds=8.0, fps=10.0, size_px=SIZE_PX, seed=3)


def pictures(video: Path) -> list[np.ndarray]:
    with av.open(str(video)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def sound(video: Path) -> tuple[np.ndarray, int]:
    """Sound by presentation time: what lies before 0 s is cut."""
    with av.open(str(video)) as container:
        frames = list(container.decode(audio=0))
    rate_hz = frames[0].sample_rate
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    start = round(float(frames[0].pts * frames[0].time_base) * rate_hz)
    return (samples[-start:] if start < 0 else np.pad(samples, (start, 0))), rate_hz


def test_the_video_plays(sample: SampleClip) -> None:
    with av.open(str(sample.video)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate) == (*SIZE_PX, 10)
        assert video.codec_context.pix_fmt == "yuv420p"
        times = [float(frame.pts * frame.time_base) for frame in container.decode(video)]
    assert times == pytest.approx([k / 10 for k in range(80)])
    samples, rate_hz = sound(sample.video)
    assert len(samples) / rate_hz == pytest.approx(8.0, abs=0.05)


def test_the_truth_has_the_videos_frames(sample: SampleClip) -> None:
    truth = read_truth(sample.truth)
    assert truth.times_ns.tolist() == [k * 100_000_000 for k in range(80)]
    assert truth.visible.shape == (80, 3, SIZE_PX[1], SIZE_PX[0])
    assert truth.categories == tuple(item.category for item in sample.objects)
    assert not (truth.visible.sum(axis=1) > 1).any()
    assert truth.visible.any(axis=(2, 3)).all()


def test_objects_take_turns_and_are_silent_together(sample: SampleClip) -> None:
    """In settled frames the truth is the schedule: at most one sounds."""
    truth = read_truth(sample.truth)
    times_s = truth.times_ns / 1e9
    settled = truth.settled
    assert settled.mean() == pytest.approx(0.5, abs=0.06)
    for index, item in enumerate(sample.objects):
        ((start, end),) = item.turns_s
        own = (times_s > start) & (times_s <= end)
        np.testing.assert_array_equal(truth.sounding[settled, index], own[settled])
    silent = settled & (times_s > 4.0) & (times_s <= 6.0)
    assert silent.any()
    assert not truth.masks()[silent].any()
    assert truth.masks()[settled & ~silent & (times_s > 0)].any(axis=(1, 2)).all()


def test_what_is_heard_is_what_the_truth_says(sample: SampleClip) -> None:
    """The decoded second before each settled frame is loud where an object sounds, else soft."""
    truth = read_truth(sample.truth)
    samples, rate_hz = sound(sample.video)
    for index in np.flatnonzero(truth.settled & (truth.times_ns >= 1_000_000_000)):
        end = round(truth.times_ns[index] / 1e9 * rate_hz)
        level = np.sqrt(np.mean(np.square(samples[end - rate_hz : end])))
        assert (level > 0.03) == truth.sounding[index].any(), truth.times_ns[index]


def test_the_sound_begins_with_its_turn(sample: SampleClip) -> None:
    """The end of the silence, found in the decoded sound, lies where the last turn begins."""
    samples, rate_hz = sound(sample.video)
    loud = np.flatnonzero(np.abs(samples[round(5.0 * rate_hz) :]) > 0.02)[0] / rate_hz + 5.0
    assert loud == pytest.approx(6.0, abs=0.05)


def test_what_is_seen_is_what_the_truth_says(sample: SampleClip) -> None:
    """Objects move: a pixel that leaves an object changes more than one of the background."""
    truth = read_truth(sample.truth)
    shown = np.stack(pictures(sample.video)).astype(int)
    seen = truth.visible.any(axis=1)
    first, last = 0, 40
    change = np.abs(shown[first] - shown[last]).mean(axis=2)
    moved = seen[first] != seen[last]
    assert moved.any()
    assert change[moved].mean() > 2 * change[~seen[first] & ~seen[last]].mean()


def test_equal_seeds_give_equal_samples(tmp_path: Path) -> None:
    made = [
        make_sample(tmp_path / name, world="toy", seconds=2.0, fps=5.0, size_px=SIZE_PX, seed=3)
        for name in "ab"
    ]
    first, second = (read_truth(sample.truth) for sample in made)
    np.testing.assert_array_equal(first.visible, second.visible)
    np.testing.assert_array_equal(first.sounding, second.sounding)
    one, other = (np.stack(pictures(sample.video)).astype(int) for sample in made)
    assert np.abs(one - other).mean() < 1, "the encoder may round, and no more"


def test_the_objects_can_be_chosen(tmp_path: Path) -> None:
    names = ("toy_drum", "toy_siren")
    made = make_sample(
        tmp_path, world="toy", seconds=1.0, fps=4.0, size_px=SIZE_PX, categories=names
    )
    assert tuple(item.category for item in made.objects) == names
    assert {item.split for item in made.objects} == {"none"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample-truth.npz", "sample.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": 0.5}, r"seconds is 0\.5; allowed are 1 to 600"),
        ({"fps": 0.0}, r"fps is 0\.0; allowed are 1 to 120"),
        ({"size_px": (641, 360)}, r"size_px is \(641, 360\); both are even and at least 64"),
        ({"categories": ("toy_bell",)}, "give two or three different of toy_bell"),
        ({"categories": ("dog", "cat")}, "categories are dog, cat"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    tmp_path: Path, arguments: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_sample(tmp_path, **{"world": "toy", "seconds": 1.0, "size_px": SIZE_PX, **arguments})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [PackageError("no network"), ContentError("another photo")])
def test_a_toy_steps_in_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sampleclip, "openavs_cast", fails)
    made = make_sample(tmp_path, seconds=1.0, fps=4.0, size_px=SIZE_PX)
    assert made.world == "toy"
    assert made.fallback == f"Open-AVS cannot be had: {error}"
    with pytest.raises(DatasetError, match=str(error)):
        make_sample(tmp_path, seconds=1.0, size_px=SIZE_PX, fallback=False)


def test_a_missing_package_is_a_reason(tmp_path: Path) -> None:
    """An empty folder of packages holds none; the reason names one."""
    (tmp_path / "packages").mkdir()
    made = make_sample(
        tmp_path / "out",
        seconds=1.0,
        fps=4.0,
        size_px=SIZE_PX,
        packages=tmp_path / "packages",
    )
    assert made.world == "toy"
    assert "-data_*.deb" in str(made.fallback)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: np.savez(path, times_ns=np.zeros(3)),
        lambda path: np.savez(path, size_px=np.array([{}], dtype=object)),
    ],
    ids=["missing", "empty", "cut short", "something else", "pickled"],
)
def test_a_truth_that_is_none_is_refused(
    sample: SampleClip, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    path = tmp_path / "truth.npz"
    path.write_bytes(sample.truth.read_bytes())
    spoil(path)
    with pytest.raises(DatasetError, match=r"truth\.npz: is not the truth of a sample"):
        read_truth(path)


def test_a_truth_of_another_size_is_refused(sample: SampleClip) -> None:
    assert read_truth(sample.truth, SIZE_PX).visible.any()
    with pytest.raises(DatasetError, match="it has 96x64 pixels"):
        read_truth(sample.truth, (640, 360))


@given(count=st.integers(1, 6), seconds=st.floats(1, 100))
@settings(deadline=None)
def test_turns_are_equal_and_one_is_silent(count: int, seconds: float) -> None:
    given_turns = turns(count, seconds)
    length = seconds / (count + 1)
    assert len(given_turns) == count
    for start, end in given_turns:
        assert end - start == pytest.approx(length)
    starts = sorted(start for start, _ in given_turns)
    gaps = np.diff([-length, *starts, seconds])
    assert sorted(gaps)[-1] == pytest.approx(2 * length)
    assert sorted(gaps)[:-1] == pytest.approx([length] * count)


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 30),
    length=st.integers(1, 30),
    seed=st.integers(0, 99),
    at=st.integers(0, 70),
)
def test_sounding_is_energy_in_the_windows_tail(
    start: int, length: int, seed: int, at: int
) -> None:
    """Held against a plain loop over the samples, on tenths of seconds."""
    rate_hz, seconds = 100, 6.0
    span = (start / 10, min((start + length) / 10, seconds))
    stem = np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    stem *= np.random.default_rng(seed + 1).random(len(stem)) < 0.1
    first, last = round(span[0] * rate_hz), round(span[1] * rate_hz)
    stem[:first] = stem[last:] = 0.0
    end = round(at / 10 * rate_hz)
    tail = [float(stem[i]) ** 2 for i in range(end - round(TAIL_S * rate_hz), end) if 0 <= i < 600]
    usual = sum(float(v) ** 2 for v in stem) / (last - first)
    expected = usual > 0 and sum(tail) / (TAIL_S * rate_hz) > FLOOR * usual
    (found,) = sounding_at(stem.astype(np.float32), rate_hz, [span], [at / 10])
    assert bool(found) == expected


def test_an_object_without_a_turn_never_sounds() -> None:
    assert not sounding_at(np.ones(100, np.float32), 100, [], [0.5, 1.0]).any()


def test_a_long_pause_within_a_turn_is_unsettled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two objects fall silent for the middle second of the 3 s that each has."""
    cast = toy_cast(3, 9.0, SIZE_PX, ("toy_siren", "toy_kettle"))
    for stem in cast.stems:
        stem[:] *= np.arange(len(stem)) // SOUND_RATE_HZ % 3 != 1
    monkeypatch.setattr(sampleclip, "toy_cast", lambda *_: cast)
    truth = read_truth(
        make_sample(tmp_path, world="toy", seconds=9.0, fps=5.0, size_px=SIZE_PX).truth
    )
    for item in cast.objects:
        ((start, _),) = item.turns_s
        paused = (truth.times_ns > (start + 1.5) * 1e9) & (truth.times_ns <= (start + 2) * 1e9)
        assert paused.any()
        assert not truth.sounding[paused].any()
        assert not truth.settled[paused].any()


@example(edges=[0, 1, 2, 12], at=12)
@settings(max_examples=50, deadline=None)
@given(
    edges=st.lists(st.integers(0, 60), min_size=2, max_size=6, unique=True).map(sorted),
    at=st.integers(0, 80),
)
def test_settled_frames_look_back_on_one_turn(edges: list[int], at: int) -> None:
    """The schedule is sampled within the open second before the frame: it must not change."""
    spans = [[(a / 10, b / 10)] for a, b in zip(edges[::2], edges[1::2], strict=False)]
    moments = np.linspace(at / 10 - 1, at / 10, 202)[1:-1]
    heard = {tuple(any(a <= t < b for a, b in own) for own in spans) for t in moments}
    (found,) = settled_at(spans, [at / 10])
    assert bool(found) == (len(heard) == 1)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An unpacked package with discs for photos, tones for recordings, and a catalogue of it."""
    packages = tmp_path / "packages"
    folder = packages / "qabcs-data" / "usr"
    folder.mkdir(parents=True)
    items: list[Item] = []

    def add(category: str, split: str, kind: str, name: str) -> None:
        data = (folder / name).read_bytes()
        pin = content_sha256(data, kind)
        items.append(Item(category, (split,), kind, "qabcs-data", f"/usr/{name}", pin, "CC0"))

    for number, category in enumerate(("dog", "piano", "violin", "cow")):
        for split in ("train", "test"):
            disc = Image.new("RGBA", (60, 60))
            ImageDraw.Draw(disc).ellipse((5, 5, 55, 55), fill=(60 * number, 90, 200, 255))
            disc.save(folder / f"{category}-{split}.png")
            add(category, split, "image", f"{category}-{split}.png")
            if (category, split) != ("cow", "test"):
                write_tone(folder / f"{category}-{split}.wav", 300.0 * (number + 1))
                add(category, split, "sound", f"{category}-{split}.wav")
    for split in ("train", "test"):
        Image.new("RGB", (160, 120), (120, 130, 140)).save(folder / f"field-{split}.png")
        add("", split, "background", f"field-{split}.png")
    monkeypatch.setattr(samplecast, "load", lambda: tuple(items))
    return packages


def write_tone(path: Path, hz: float) -> None:
    time_s = np.arange(16_000) / 16_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((20_000 * np.sin(2 * np.pi * hz * time_s)).astype("<i2").tobytes())


def test_photos_come_from_the_splits_that_are_asked_for(photos: Path, tmp_path: Path) -> None:
    made = make_sample(
        tmp_path / "out",
        seconds=4.0,
        fps=4.0,
        size_px=SIZE_PX,
        packages=photos,
        cutout_split="test",
        recording_split="train",
        fallback=False,
    )
    assert (made.world, made.fallback) == ("openavs", None)
    assert {item.category for item in made.objects} <= {"dog", "piano", "violin", "cow"}
    for item in made.objects:
        assert item.cutout == f"qabcs-data:/usr/{item.category}-test.png"
        assert item.recording == f"qabcs-data:/usr/{item.category}-train.wav"
        assert item.split == "test picture, train sound"
    assert made.background == "qabcs-data:/usr/field-train.png"
    truth = read_truth(made.truth)
    assert truth.sounding.any(axis=0).all()


def test_a_category_without_a_recording_is_not_offered(photos: Path) -> None:
    with pytest.raises(ValueError, match="give two or three different of dog, piano, violin"):
        openavs_cast(0, 4.0, SIZE_PX, ("dog", "cow"), packages=photos)


def test_content_that_differs_is_a_reason(photos: Path, tmp_path: Path) -> None:
    """A photo that is not the pinned one is never used in silence."""
    for path in (photos / "qabcs-data" / "usr").glob("field-*.png"):
        Image.new("RGB", (160, 120), (1, 2, 3)).save(path)
    made = make_sample(tmp_path / "out", seconds=1.0, fps=4.0, size_px=SIZE_PX, packages=photos)
    assert made.world == "toy"
    assert "field-test.png" in str(made.fallback)
