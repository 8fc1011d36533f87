"""Data sets in AVSBench's layout are read as they lie on disk, and what is wrong is named."""

import csv
import json
import pickle
import wave
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from atlasd.streams.avsbench import (
    AVSBench,
    DatasetError,
    check,
    frame_times_s,
    read_mask,
    read_wave,
    windows_at,
)
from atlasd.streams.avscheck import AVSBENCH_S4, AVSBENCH_SPLITS
from atlasd.streams.avslayout import Row, SubsetFolder, read_table, write_table
from atlasd.streams.clips import NS_PER_S
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

RATE_HZ = 16_000


def picture(shade: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    return Image.new("RGB", size, (shade, 255 - shade, 40))


def mask(columns: int, size: tuple[int, int] = (224, 224)) -> Image.Image:
    grey = np.zeros(size[::-1], np.uint8)
    grey[:, :columns] = 255
    return Image.fromarray(grey)


def write_wave(path: Path, seconds: float = 5.0, hz: float = 440.0, channels: int = 2) -> None:
    """16-bit stereo, as moviepy leaves it: a tone on the left, half of it on the right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    tone = 0.5 * np.sin(2 * np.pi * hz * time_s)
    sides = np.stack([tone, tone / 2][:channels], axis=1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(np.round(sides * 32767).astype("<i2").tobytes())


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def write_s4(root: Path, clips: list[tuple[str, str, str]]) -> Path:
    """AVSBench's own single-source layout: (name, category, split); train has mask 1 alone."""
    data = root / "Single-source" / "s4_data"
    for number, (name, category, split) in enumerate(clips):
        group = Path(split) / category
        for k in range(1, 6):
            shade = 40 * k + number
            save(picture(shade), data / "visual_frames" / group / name / f"{name}_{k}.png")
            if split != "train" or k == 1:
                save(mask(10 * k), data / "gt_masks" / group / name / f"{name}_{k}.png")
        write_wave(data / "audio_wav" / group / f"{name}.wav", hz=300 + 50 * number)
    with (root / "Single-source" / "s4_meta_data.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "start", "category", "split"])
        table.writerows([[name, 30, category, split] for name, category, split in clips])
    return root


def write_ms3(root: Path, clips: list[tuple[str, str]]) -> Path:
    """AVSBench's own multi-source layout: frames lie flat and are called NAME.mp4_K.png."""
    data = root / "Multi-sources" / "ms3_data"
    for number, (name, split) in enumerate(clips):
        for k in range(1, 6):
            frame = data / "visual_frames" / name / f"{name}.mp4_{k}.png"
            save(picture(40 * k + 10 + number), frame)
            save(mask(20 * (k - 1)), data / "gt_masks" / split / name / f"{name}_{k}.png")
        write_wave(data / "audio_wav" / split / f"{name}.wav", hz=900 + 50 * number)
    table = "video_id,split\n" + "".join(f"{name},{split}\n" for name, split in clips)
    (root / "Multi-sources" / "ms3_meta_data.csv").write_text(table)
    return root


S4_CLIPS = [
    ("-aB_c1", "dog_barking", "train"),
    ("xyz", "horse_clip-clop", "val"),
    ("t1", "dog_barking", "test"),
]
MS3_CLIPS = [("0WxgIKuetYI_0", "train"), ("abc_1", "test")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_ms3(tmp_path, MS3_CLIPS)
    return write_s4(tmp_path, S4_CLIPS)


def test_s4_training_clips_have_their_first_mask_alone(root: Path) -> None:
    (entry,) = AVSBench(root, "s4").clips("train")
    masks, labeled = entry.masks()
    assert labeled.tolist() == [True, False, False, False, False]
    assert masks.shape == (5, 224, 224)
    assert masks.sum(axis=(1, 2)).tolist() == [10 * 224, 0, 0, 0, 0]
    assert entry.category == "dog_barking"
    assert entry.kind == "plain"


def test_s4_test_clips_have_all_five_masks(root: Path) -> None:
    (entry,) = AVSBench(root, "s4").clips("test")
    masks, labeled = entry.masks()
    assert labeled.all()
    assert masks.sum(axis=(1, 2)).tolist() == [224 * 10 * k for k in range(1, 6)]


def test_frames_come_in_order_as_rgb(root: Path) -> None:
    (entry,) = AVSBench(root, "s4").clips("train")
    frames = entry.frames()
    assert frames.dtype == np.uint8
    assert frames[:, 100, 100].tolist() == [[40 * k, 255 - 40 * k, 40] for k in range(1, 6)]
    assert entry.frames(64).shape == (5, 64, 64, 3)


def test_ms3_frames_are_found_under_their_other_name(root: Path) -> None:
    entry = AVSBench(root, "ms3").clips("train")[0]
    assert entry.frames()[:, 0, 0, 0].tolist() == [50, 90, 130, 170, 210]
    masks, labeled = entry.masks()
    assert labeled.all()
    assert masks.sum(axis=(1, 2)).tolist() == [224 * 20 * k for k in range(5)]
    assert entry.category is None
    assert entry.categories == ()


def test_sound_is_the_mean_of_the_channels(root: Path) -> None:
    entry = AVSBench(root, "s4").clips("train")[0]
    sound = entry.sound(RATE_HZ)
    expected = 0.375 * np.sin(2 * np.pi * 300 * np.arange(5 * RATE_HZ) / RATE_HZ)
    np.testing.assert_allclose(sound, expected, atol=2 / 32768)


def test_sound_is_resampled_in_place(root: Path) -> None:
    """The same tone at twice the rate, away from the ends where a filter rings."""
    sound = AVSBench(root, "s4").clips("train")[0].sound(32_000)
    expected = 0.375 * np.sin(2 * np.pi * 300 * np.arange(5 * 32_000) / 32_000)
    np.testing.assert_allclose(sound[3200:-3200], expected[3200:-3200], atol=2e-3)


def test_a_window_ends_at_its_frame(root: Path) -> None:
    entry = AVSBench(root, "s4").clips("test")[0]
    windows = entry.windows(1.0, RATE_HZ)
    sound = entry.sound(RATE_HZ)
    assert windows.shape == (5, RATE_HZ)
    assert not windows[0, : RATE_HZ // 16].any()
    np.testing.assert_array_equal(windows[0, RATE_HZ // 16 :], sound[: RATE_HZ * 15 // 16])
    end = 4 * RATE_HZ + RATE_HZ * 15 // 16
    np.testing.assert_array_equal(windows[4], sound[end - RATE_HZ : end])


@settings(deadline=None)
@given(
    sound=hnp.arrays(np.float32, st.integers(0, 300), elements=st.floats(-1, 1, width=32)),
    ends=st.lists(st.integers(-50, 400), min_size=1, max_size=6),
    n=st.integers(1, 120),
)
def test_windows_are_slices_of_the_sound_between_silences(
    sound: np.ndarray, ends: list[int], n: int
) -> None:
    rate_hz = 100
    windows = windows_at(sound, np.array(ends) / rate_hz, n / rate_hz, rate_hz)
    endless = np.concatenate([np.zeros(500), sound, np.zeros(500)])
    for window, end in zip(windows, ends, strict=True):
        np.testing.assert_array_equal(window, endless[500 + end - n : 500 + end])


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(1, 50))
def test_windows_side_by_side_make_the_sound_whole(pieces: int, n: int) -> None:
    sound = np.arange(1, pieces * n + 1, dtype=np.float32)
    ends = np.arange(1, pieces + 1) * n / 1000
    assert windows_at(sound, ends, n / 1000, 1000).ravel().tolist() == sound.tolist()


def test_a_window_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        windows_at(np.zeros(10, np.float32), frame_times_s(), 0.0)


def test_a_labeled_clip_holds_the_labeled_frames_alone(root: Path) -> None:
    train = AVSBench(root, "s4").clips("train")[0].labeled_clip(size_px=64)
    assert train.masks.shape == (1, 64, 64)
    assert [s.frame.pts_ns for s in train.clip.samples] == [937_500_000]
    assert train.clip_id == "s4/train/-aB_c1"
    test = AVSBench(root, "s4").clips("test")[0].labeled_clip()
    assert test.masks.shape == (5, 224, 224)
    for sample, time_s in zip(test.clip.samples, frame_times_s(), strict=True):
        assert sample.window.end_ns == sample.frame.pts_ns == round(time_s * NS_PER_S)
        assert sample.window.samples.shape == (32_000,)
    assert test.category == "dog_barking"


def test_a_negative_brings_no_class(root: Path) -> None:
    """Its category is of something in view that is silent."""
    entry = AVSBench(root, "s4").clips("test")[0]
    negative = replace(entry, row=replace(entry.row, kind="negative"))
    assert negative.category == "dog_barking"
    assert negative.labeled_clip(32).category is None


def test_first_labels_leave_other_training_masks_out(tmp_path: Path) -> None:
    """A set with all masks in train can be used as AVSBench's protocol has it."""
    write_ms3(tmp_path, MS3_CLIPS)
    train = AVSBench(tmp_path, "ms3", labels="first").clips("train")[0]
    test = AVSBench(tmp_path, "ms3", labels="first").clips("test")[0]
    assert train.masks()[1].tolist() == [True] + 4 * [False]
    assert test.masks()[1].all()


@pytest.mark.parametrize("below", ["", "avsbench_data", "avsbench_data/Single-source"])
def test_the_root_may_be_any_of_its_folders(tmp_path: Path, below: str) -> None:
    write_s4(tmp_path / "avsbench_data", S4_CLIPS)
    assert len(AVSBench(tmp_path / below, "s4").clips("val")) == 1


@pytest.mark.parametrize(
    "table",
    [
        "-aB_c1,30,dog_barking,train\n",
        "\ufeffvideo,start second,what,which\n-aB_c1,30,dog_barking,train\n",
        'split,category,name\ntrain,dog_barking," -aB_c1 "\n\n',
    ],
    ids=["no header", "other names and a byte-order mark", "other order, spaces, empty line"],
)
def test_the_table_is_read_in_any_dress(root: Path, table: str) -> None:
    (root / "Single-source" / "s4_meta_data.csv").write_text(table, encoding="utf-8")
    (entry,) = AVSBench(root, "s4").clips("train")
    assert (entry.name, entry.category) == ("-aB_c1", "dog_barking")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,0,dog,dev", "line 2: split is 'dev'; allowed are train, val, test"),
        ("../a,0,dog,train", "line 2: name is '../a'; it must be a plain file name"),
        ("a,0,..,train", "line 2: category is '..'"),
        ("a,0,,train", "line 2: category is ''"),
        ("a", "line 2: split is ''"),
        ("a,0,dog,train,odd,0", "line 2: kind is 'odd'; allowed are plain"),
        ("a,0,dog,train,plain,2", "line 2: novel is '2'; allowed are 0 and 1"),
    ],
)
def test_a_line_that_makes_no_sense_is_named(tmp_path: Path, line: str, message: str) -> None:
    table = tmp_path / "s4_meta_data.csv"
    table.write_text(f"name,start,category,split,kind,novel\n{line}\n")
    with pytest.raises(DatasetError) as caught:
        AVSBench(tmp_path, "s4")
    assert str(table) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00name", b"\n\n"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s4_meta_data.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"s4_meta_data\.csv"):
        AVSBench(tmp_path, "s4")


def test_a_folder_without_a_data_set_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no Multi-sources/ms3_meta_data.csv.*dataset build"):
        AVSBench(tmp_path, "ms3")


names = st.text("abcXYZ019-_=", min_size=1, max_size=8)
rows = st.builds(
    Row,
    name=names,
    split=st.sampled_from(["train", "val", "test"]),
    category=names,
    categories=st.lists(names, min_size=1, max_size=3).map(tuple),
    kind=st.sampled_from(["plain", "distractor", "swap"]),
    novel=st.booleans(),
    pair=st.none() | names,
    recording=st.text("abc,;\"'/. ", max_size=12).map(str.strip),
    cutout=names,
)


@settings(max_examples=40, deadline=None)
@given(table=st.lists(rows, min_size=1, max_size=4))
def test_a_table_reads_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, table: list[Row]
) -> None:
    root = tmp_path_factory.mktemp("table")
    write_table(root, "s4", table)
    assert read_table(SubsetFolder(root / "Single-source", "s4")) == table


def test_novel_clips_are_a_split_apart(tmp_path: Path) -> None:
    row = Row("old", "test", "dog", ("dog",))
    novel = Row("new", "test", "dog", ("dog",), kind="swap", novel=True, pair="twin")
    silent = Row("none", "test", "dog", (), kind="negative")
    write_table(tmp_path, "s4", [row, novel, silent])
    data = AVSBench(tmp_path, "s4")
    assert [entry.name for entry in data.clips("test")] == ["old", "none"]
    (entry,) = data.clips("test_novel")
    assert (entry.name, entry.pair, entry.kind, entry.split) == ("new", "twin", "swap", "test")
    assert data.clips("test")[1].categories == ()


def test_ms3_classes_come_from_a_semantic_table(root: Path) -> None:
    path = root / "metadata.csv"
    path.write_text(
        "vid,uid,a_obj,split,label\n"
        "0WxgIKuetYI,0WxgIKuetYI_0_5000,man_piano,train,v1m\n"
        "abc_1,abc_1_0_5000,dog,test,v1m\n"
        "abc_1,abc_1_0_5000,cat,test,v2\n"
    )
    data = AVSBench(root, "ms3", class_map=path)
    assert data.clips("train")[0].categories == ("man", "piano")
    assert data.clips("test")[0].categories == ("dog",)
    assert data.categories == ("dog", "man", "piano")


def test_ms3_classes_come_from_a_plain_table(root: Path) -> None:
    path = root / "classes.csv"
    path.write_text("name,categories\nabc_1,violin;piano\n")
    data = AVSBench(root, "ms3", class_map=path)
    assert data.clips("test")[0].categories == ("violin", "piano")
    assert data.clips("train")[0].categories == ()


def test_a_class_map_of_another_form_is_refused(root: Path) -> None:
    path = root / "classes.csv"
    path.write_text("id,class\na,b\n")
    with pytest.raises(DatasetError, match=r"has the columns \['class', 'id'\]"):
        AVSBench(root, "ms3", class_map=path)


@given(grey=hnp.arrays(np.uint8, (6, 7)))
@settings(max_examples=25, deadline=None)
def test_a_mask_is_what_is_brighter_than_127(
    tmp_path_factory: pytest.TempPathFactory, grey: np.ndarray
) -> None:
    path = tmp_path_factory.mktemp("mask") / "m.png"
    Image.fromarray(grey).save(path)
    assert read_mask(path).tolist() == [[int(v >= 128) for v in row] for row in grey.tolist()]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_mask_reads_alike_in_every_mode(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((8, 8), np.uint8)
    grey[2:5, 1:7] = 255
    path = tmp_path / "m.png"
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).convert(mode).save(path)
    assert (read_mask(path) == grey // 255).all()


@pytest.mark.parametrize("size_px", [100, 224, 448])
def test_a_scaled_mask_stays_binary(tmp_path: Path, size_px: int) -> None:
    path = tmp_path / "m.png"
    mask(112).save(path)
    scaled = read_mask(path, size_px)
    assert set(np.unique(scaled)) == {0, 1}
    assert scaled.mean() == pytest.approx(0.5, abs=0.01)


def test_missing_files_are_named(root: Path) -> None:
    entry = AVSBench(root, "s4").clips("test")[0]
    below = "Single-source/s4_data/{}/test/dog_barking/t1"
    (root / below.format("visual_frames") / "t1_3.png").unlink()
    (root / below.format("gt_masks") / "t1_2.png").unlink()
    (root / (below.format("audio_wav") + ".wav")).unlink()
    for read, name in ((entry.frames, "t1_3.png"), (entry.masks, "t1_2.png"), (entry.sound, "wav")):
        with pytest.raises(DatasetError, match=rf"{name}: is missing"):
            read()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_damaged_files_are_named(root: Path, content: bytes) -> None:
    entry = AVSBench(root, "s4").clips("test")[0]
    frame, sound = entry.folder.frame(entry.row, 1), entry.folder.sound(entry.row)
    frame.write_bytes(content)
    sound.write_bytes(content)
    with pytest.raises(DatasetError, match=r"t1_1\.png: is not a picture"):
        entry.frames()
    with pytest.raises(DatasetError, match=r"t1\.wav"):
        entry.sound()


def test_a_picture_cut_short_is_damaged(root: Path) -> None:
    entry = AVSBench(root, "s4").clips("test")[0]
    path = entry.folder.mask(entry.row, 4)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError, match=r"t1_4\.png: is not a mask"):
        entry.masks()


def test_mono_and_empty_sounds_are_read(tmp_path: Path) -> None:
    write_wave(tmp_path / "mono.wav", seconds=1.0, channels=1)
    samples, rate_hz = read_wave(tmp_path / "mono.wav")
    assert (samples.shape, samples.dtype, rate_hz) == ((RATE_HZ,), np.float32, RATE_HZ)
    write_wave(tmp_path / "empty.wav", seconds=0.0)
    assert read_wave(tmp_path / "empty.wav")[0].size == 0


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_u8"])
def test_sounds_read_alike_in_every_form(tmp_path: Path, codec: str) -> None:
    """A tone on one of two channels, written by FFmpeg; 8 bits allow for 1 part in 128."""
    path = tmp_path / "tone.wav"
    tone = 0.5 * np.sin(2 * np.pi * 300 * np.arange(RATE_HZ) / RATE_HZ).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE_HZ, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([tone, 0 * tone]), "fltp", "stereo")
        frame.sample_rate = RATE_HZ
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    samples, rate_hz = read_wave(path)
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(samples, tone / 2, atol=1 / 128 if codec == "pcm_u8" else 2 / 32768)


def test_a_sound_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    write_wave(path, seconds=1.0)
    path.write_bytes(path.read_bytes()[: 44 + 4 * 1000 + 3])
    assert read_wave(path)[0].shape == (1000,)


@pytest.mark.parametrize(("argument", "value"), [("subset", "avss"), ("labels", "some")])
def test_an_unknown_choice_is_refused(root: Path, argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} is '{value}'; allowed are"):
        AVSBench(root, **{argument: value})
    with pytest.raises(ValueError, match="split is 'dev'; allowed are"):
        AVSBench(root).clips("dev")


def test_pickles_are_never_opened(root: Path) -> None:
    """AVSBench ships log-mels as pickles; one that would run code stays shut."""
    folder = root / "Single-source/s4_data/audio_log_mel/train/dog_barking"
    folder.mkdir(parents=True)

    class Trap:
        def __reduce__(self):
            return (Path(folder / "sprung").touch, ())

    (folder / "-aB_c1.pkl").write_bytes(pickle.dumps(Trap()))
    AVSBench(root, "s4").clips("train")[0].labeled_clip()
    check(root)
    assert not (folder / "sprung").exists()


def kinds(root: Path) -> dict[tuple[str, str], int]:
    return dict(check(root, workers=2).totals)


def named(root: Path, **manifest: object) -> Path:
    """Gives a data set a name of its own, so that it is not held against AVSBench's table."""
    (root / "dataset.json").write_text(json.dumps({"id": "own", **manifest}))
    return root


def test_a_sound_data_set_passes(root: Path) -> None:
    counts = {"s4 train": 1, "s4 val": 1, "s4 test": 1, "ms3 train": 1, "ms3 test": 1}
    report = check(named(root, counts=counts))
    assert report.ok
    assert report.totals == {}
    assert report.name == "own"
    s4, ms3 = report.subsets
    assert s4.clips["train"] == {"dog_barking": 1}
    assert (s4.masks, s4.empty_masks["test"]) == ({"train": 1, "val": 5, "test": 5}, 0)
    assert (ms3.masks["train"], ms3.empty_masks["train"]) == (5, 1)
    assert report.lines()[-1] == "The data set is sound."
    assert [table.columns for table in report.tables()] == 2 * [("clips", "train", "val", "test")]


def test_the_published_table_adds_up() -> None:
    """4,932 clips, 740 of them for test, as AVSBench's home page says."""
    total, test = (sum(column) for column in zip(*AVSBENCH_S4.values(), strict=True))
    assert (len(AVSBENCH_S4), total, test) == (23, 4932, 740)
    assert sum(AVSBENCH_SPLITS["s4"].values()) == total
    assert sum(AVSBENCH_SPLITS["ms3"].values()) == 424


def test_what_claims_to_be_avsbench_is_held_against_its_table(root: Path) -> None:
    report = check(root)
    assert not report.ok
    assert report.name == "AVSBench"
    assert report.totals["error", "count"] == 6
    assert report.totals["error", "category_count"] == 23
    text = "\n".join(report.lines())
    assert "lists 1 clips of train; there should be 3452" in text
    assert "and 3 more of kind category count" in text


def test_counts_are_held_against_the_manifest(root: Path) -> None:
    named(root, counts={"s4 train": 2, "s4 val": 1})
    report = check(root)
    (problem,) = report.problems
    assert problem.detail == "lists 1 clips of train; there should be 2"
    assert problem.path.name == "s4_meta_data.csv"


def test_a_check_finds_what_is_missing_damaged_or_odd(root: Path) -> None:
    named(root)
    data = root / "Single-source/s4_data"
    (data / "visual_frames/train/dog_barking/-aB_c1/-aB_c1_5.png").unlink()
    (data / "gt_masks/test/dog_barking/t1/t1_2.png").unlink()
    (data / "gt_masks/test/dog_barking/t1/t1_3.png").write_bytes(b"no picture")
    picture(9, (320, 240)).save(data / "visual_frames/test/dog_barking/t1/t1_2.png")
    grey = np.full((224, 224), 100, np.uint8)
    Image.fromarray(grey).save(data / "gt_masks/test/dog_barking/t1/t1_4.png")
    write_wave(data / "audio_wav/test/dog_barking/t1.wav", seconds=3.0)
    (data / "audio_wav/val/horse_clip-clop/xyz.wav").write_bytes(b"no sound")
    (data / "audio_wav/train/dog_barking/-aB_c1.wav").unlink()
    save(mask(3), data / "gt_masks/test/dog_barking/left/left_1.png")
    assert kinds(root) == {
        ("error", "damaged_mask"): 1,
        ("error", "damaged_sound"): 1,
        ("error", "missing_frame"): 1,
        ("error", "missing_mask"): 1,
        ("error", "missing_sound"): 1,
        ("warning", "frame_size"): 1,
        ("warning", "mask_values"): 1,
        ("warning", "orphan"): 1,
        ("warning", "sound_length"): 1,
    }


def test_a_check_finds_clips_in_two_splits(tmp_path: Path) -> None:
    """By name, and by equal pictures and sounds under different names."""
    clips = [("a", "dog", "train"), ("b", "dog", "test"), ("a", "dog", "val")]
    named(write_s4(tmp_path, clips))
    data = tmp_path / "Single-source/s4_data"
    group = Path("visual_frames/train/dog/a/a_1.png"), Path("visual_frames/test/dog/b/b_1.png")
    (data / group[1]).write_bytes((data / group[0]).read_bytes())
    (data / "audio_wav/test/dog/b.wav").write_bytes(
        (data / "audio_wav/train/dog/a.wav").read_bytes()
    )
    assert kinds(tmp_path) == {
        ("error", "repeated_name"): 1,
        ("warning", "same_picture"): 1,
        ("warning", "same_sound"): 1,
    }


def test_a_check_shows_some_problems_and_counts_all(root: Path) -> None:
    named(root)
    for path in (root / "Multi-sources/ms3_data/visual_frames").rglob("*.png"):
        path.unlink()
    report = check(root, limit=3)
    assert len(report.problems) == 3
    assert report.totals == {("error", "missing_frame"): 10}
    assert "error: and 7 more of kind missing frame" in report.lines()
    assert all(problem.path.suffix == ".png" for problem in report.problems)


def test_a_check_tells_its_progress(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(named(root), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]


@pytest.mark.parametrize("manifest", ["[]", "{", "\x00"])
def test_a_manifest_that_is_none_is_refused(root: Path, manifest: str) -> None:
    (root / "dataset.json").write_text(manifest)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        check(root)


def test_a_folder_with_nothing_to_check_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds neither Single-source"):
        check(tmp_path)
