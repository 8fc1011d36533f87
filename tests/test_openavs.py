"""Open-AVS: what is planned, and small data sets composed of pictures and sounds made in code."""

import csv
import hashlib
import io
import json
import wave
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from atlasd.streams import avsplan, openavs
from atlasd.streams.avsplan import PlanError, planned
from atlasd.streams.catalogue import CATEGORIES, ContentError, content_sha256, load, wanted
from atlasd.streams.openavs import BuildError, build
from atlasd.streams.packages import obtain
from PIL import Image, ImageDraw

RATE = 16_000
COLORS = {"bell": (220, 40, 40), "drum": (40, 200, 40), "horn": (40, 40, 220)}
PITCHES = {"bell": 2500, "drum": 200, "horn": 800}


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def tone(frequency_hz, seconds=0.8):
    samples = 0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE)) / RATE)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def cutout(color, corners):
    image = Image.new("RGBA", (120, 120))
    ImageDraw.Draw(image).regular_polygon((60, 60, 55), corners, fill=(*color, 255))
    return png(image)


@pytest.fixture(scope="module", autouse=True)
def few_clips():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(avsplan.PER_CATEGORY, "ci", (2, 1, 2))
        patch.setitem(avsplan.SEVERAL, "ci", (2, 1, 2))
        yield


@pytest.fixture
def small(tmp_path):
    """What `build` needs to compose of three categories that are drawn here."""
    return make_content(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, few_clips):
    """A finished set, what it was built with, and what its build reported; only to be read."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    content = make_content(folder)
    built = build(
        folder / "set", "ci", workers=1, progress=lambda what, *_: seen.append(what), **content
    )
    return built, content, seen


def make_content(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for split, corners in (("train", 3), ("test", 5)):
        for name, color in COLORS.items():
            rows.append((name, split, "image", f"/usr/{name}_{split}.png", cutout(color, corners)))
    for at, split in enumerate(("train", "val", "test")):
        noise = rng.integers(60, 200, (9, 9, 3)).astype(np.uint8)
        ground = png(Image.fromarray(noise).resize((300, 250), Image.Resampling.BICUBIC))
        rows.append(("", split, "background", f"/usr/ground_{split}.png", ground))
        for name, pitch in PITCHES.items():
            path = f"/usr/{name}_{split}.wav"
            rows.append((name, split, "sound", path, tone(pitch * (1 + 0.03 * at))))
    catalogue = tmp_path / "catalogue.csv"
    with catalogue.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("category", "split", "kind", "package", "path", "sha256", "licence"))
        for category, split, kind, path, data in rows:
            target = tmp_path / "packages/things" / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            sha256 = content_sha256(data, kind)
            writer.writerow((category, split, kind, "things", path, sha256, "CC0"))
    return {"packages": tmp_path / "packages", "catalogue": catalogue, "cache": tmp_path / "cache"}


def digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def table(root, subset):
    folder = {"s4": "Single-source", "ms3": "Multi-sources"}[subset]
    with (root / folder / f"{subset}_meta_data.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_masks(root, row):
    folder = root / "Single-source/s4_data/gt_masks" / row["split"] / row["category"] / row["name"]
    return [np.asarray(Image.open(folder / f"{row['name']}_{k}.png")) for k in range(1, 6)]


def frame_bytes(root, row):
    folder = root / "Single-source/s4_data/visual_frames" / row["split"] / row["category"]
    return [(folder / row["name"] / f"{row['name']}_{k}.png").read_bytes() for k in range(1, 6)]


@pytest.mark.parametrize("size", ["ci", "standard", "full"])
def test_every_category_has_its_clips_in_every_split(size):
    counts = avsplan.PER_CATEGORY[size]
    single = [plan.row for plan in planned(size, 0) if plan.subset == "s4"]
    for split, n in zip(("train", "val", "test"), counts, strict=True):
        found = Counter(row.category for row in single if row.split == split)
        assert found == dict.fromkeys(CATEGORIES, n)
    assert len({row.name for row in single}) == len(single)


def test_half_of_test_is_novel_and_categories_without_novel_cutouts_stay_out_of_it():
    plans = planned("standard", 0, novel=["dog", "crow", "car"])
    novel = [plan for plan in plans if plan.row.novel]
    assert {plan.row.split for plan in novel} == {"test"}
    assert {name for plan in novel for name in plan.objects} == {"dog", "crow", "car"}
    known = [p for p in plans if p.row.split == "test" and not p.row.novel and p.subset == "s4"]
    assert Counter(p.row.category for p in known) == dict.fromkeys(CATEGORIES, 10)


def test_three_quarters_with_a_source_show_silent_objects_too_and_negatives_are_5_to_10_percent():
    kinds = Counter(plan.row.kind for plan in planned("standard", 0) if plan.subset == "s4")
    total = sum(kinds.values())
    assert 0.05 <= kinds["negative"] / total <= 0.10
    shared = kinds["distractor"] + kinds["swap"]
    assert shared / (total - kinds["negative"]) == pytest.approx(0.75, abs=0.01)
    assert kinds["distractor"] == kinds["swap"]


def test_a_swap_pair_has_one_picture_and_the_other_object_sounds():
    plans = {plan.row.name: plan for plan in planned("standard", 0)}
    pairs = [plan for plan in plans.values() if plan.row.kind == "swap"]
    for plan in pairs:
        partner = plans[plan.row.pair]
        assert partner.row.pair == plan.row.name
        assert partner.scene == plan.scene
        assert partner.objects == plan.objects
        assert partner.row.category != plan.row.category
        assert partner.row.split == plan.row.split
        assert partner.row.novel == plan.row.novel
        assert partner.sound != plan.sound


def test_categories_sound_as_often_as_they_are_silent_beside_a_source():
    """Else the category would tell whether an object sounds, without listening."""
    heard, silent = Counter(), Counter()
    for plan in planned("full", 0):
        if plan.row.kind in ("distractor", "swap"):
            for name, spans in zip(plan.objects[:2], plan.spans, strict=False):
                (heard if spans else silent)[name] += 1
    assert heard == silent


def test_clips_of_several_sources_sound_in_whole_seconds():
    plans = [plan for plan in planned("standard", 0) if plan.subset == "ms3"]
    assert len(plans) == sum(avsplan.SEVERAL["standard"])
    for plan in plans:
        sounding = [spans for spans in plan.spans if spans]
        assert 2 <= len(sounding) <= 3
        assert len(plan.objects) - len(sounding) <= 1
        assert len(set(plan.objects)) == len(plan.objects)
        assert all(0 <= start < end <= 5 for spans in sounding for start, end in spans)


def test_another_seed_plans_other_clips():
    assert planned("ci", 0) == planned("ci", 0)
    assert planned("ci", 0) != planned("ci", 1)


def test_one_category_alone_cannot_be_planned():
    with pytest.raises(PlanError, match="at least three categories"):
        planned("ci", 0, categories=["dog"], novel=["dog"])


def test_the_catalogue_keeps_the_splits_content_apart():
    """No file's content is in two splits; every category can be seen and heard in each."""
    splits = defaultdict(set)
    for item in load():
        if item.sha256:
            splits[item.sha256].update(item.splits)
    assert all(len(found) == 1 for found in splits.values())
    for kinds, needed in (
        (("image", "image_grabcut"), "train"),
        (("sound", "soundfont"), "train"),
        (("sound",), "test"),
        (("sound", "patch"), "val"),
    ):
        rows = [item for item in load() if item.kind in kinds and needed in item.splits]
        found = {item.category for item in rows}
        if needed == "train" and "soundfont" in kinds:
            found |= {item.category for item in load() if item.kind == "gm_program"}
        assert found >= set(CATEGORIES)
    assert all(len(item.sha256) == 64 for item in load() if item.package)
    assert all(item.licence for item in load() if item.package)


def test_a_built_set_has_all_files_and_says_what_it_is_made_of(whole):
    built, _, seen = whole
    root = built.root
    assert built.counts == {
        "s4 train": 6, "s4 val": 3, "s4 test": 3, "s4 test_novel": 3,
        "ms3 train": 2, "ms3 val": 1, "ms3 test": 1, "ms3 test_novel": 1,
    }  # fmt: skip
    assert {"content", "pictures", "sounds", "clips"} <= set(seen)
    for row in table(root, "s4"):
        assert len(frame_bytes(root, row)) == 5
        masks = read_masks(root, row)
        assert all(mask.shape == (224, 224) and set(np.unique(mask)) <= {0, 255} for mask in masks)
        assert any(mask.any() for mask in masks) == (row["kind"] != "negative")
        sound = root / "Single-source/s4_data/audio_wav" / row["split"] / row["category"]
        with wave.open(str(sound / f"{row['name']}.wav")) as file:
            found = (file.getframerate(), file.getnchannels(), file.getnframes())
        assert found == (RATE, 1, 5 * RATE)
    assert len(table(root, "ms3")) == 5
    assert not (root / ".building").exists()
    manifest = json.loads((root / "dataset.json").read_text())
    assert manifest["id"] == built.dataset_id
    assert manifest["packages"] == {"things": "unknown"}
    assert len(manifest["content"]) == 18


def test_the_pictures_of_a_swap_pair_are_equal_and_their_masks_apart(whole):
    root = whole[0].root
    rows = {row["name"]: row for row in table(root, "s4")}
    swaps = [row for row in rows.values() if row["kind"] == "swap"]
    assert swaps
    for row in swaps:
        partner = rows[row["pair"]]
        assert frame_bytes(root, row) == frame_bytes(root, partner)
        for one, other in zip(read_masks(root, row), read_masks(root, partner), strict=True):
            assert not np.any(one & other)


def test_masks_lie_on_the_object_that_sounds(whole):
    root = whole[0].root
    for row in table(root, "s4"):
        if row["kind"] == "negative":
            continue
        frame = np.asarray(Image.open(io.BytesIO(frame_bytes(root, row)[2])).convert("RGB"))
        inside = frame[read_masks(root, row)[2] > 0].mean(axis=0)
        assert int(np.argmax(inside)) == list(COLORS).index(row["category"])
        assert row["cutout"].startswith(f"things:/usr/{row['category']}")
        assert row["recording"] == f"things:/usr/{row['category']}_{row['split']}.wav"


@pytest.mark.slow
def test_what_stands_in_front_tells_nothing_of_what_sounds(small):
    """In swap scenes of three objects each of them is in front as often as the others."""
    items = load(small["catalogue"])
    found = obtain(wanted(items), small["packages"], cache=small["cache"])
    materials = openavs.read_materials(items, found)
    scenes = [
        replace(plan, scene=f"depth/{number}")
        for plan in planned("ci", 0, categories=sorted(COLORS), novel=sorted(COLORS))
        if plan.subset == "s4" and plan.row.kind == "distractor"
        for number in range(40)
    ]
    front = Counter()
    for plan in scenes:
        scene, places = openavs.staged(replace(plan, objects=tuple(COLORS)), materials)
        assert [scene.cutouts[place].category for place in places] == list(COLORS)
        front[places.index(len(places) - 1)] += 1
    n = sum(front.values())
    assert n >= 100
    # Four standard deviations of a fair draw.
    assert all(abs(front[at] / n - 1 / 3) < 4 * (2 / 9 / n) ** 0.5 for at in range(3)), front


def test_extra_cutouts_are_shown_in_training_clips_alone(small):
    items = load(small["catalogue"])
    more = replace(next(i for i in items if i.splits == ("test",)), splits=("extra",))
    found = obtain(wanted(items), small["packages"], cache=small["cache"])
    plain, extended = (
        openavs.read_materials(rows, found).cutouts for rows in (items, (*items, more))
    )
    names = {
        pool: [cutout.name for cutout in extended[pool][more.category]]
        for pool in ("train", "val", "test", "novel")
    }
    assert len(names["train"]) == len(plain["train"][more.category]) + 1
    assert names["train"][-1] == more.key
    for pool in ("val", "test", "novel"):
        assert names[pool] == [cutout.name for cutout in plain[pool][more.category]]
    assert set(extended) == {"train", "val", "test", "novel"}


@pytest.mark.slow
def test_two_builds_are_equal_in_every_byte_whatever_the_number_of_workers(whole, tmp_path):
    one, content, _ = whole
    two = build(tmp_path / "two", "ci", workers=2, **content)
    assert one.dataset_id == two.dataset_id
    assert digests(one.root) == digests(two.root)


@pytest.mark.slow
def test_a_build_that_was_cut_short_goes_on_and_ends_equal(whole, tmp_path):
    built, content, _ = whole
    out = tmp_path / "cut"

    def stop(what, done, _total):
        if what == "clips" and done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(out, "ci", workers=1, progress=stop, **content)
    assert not (out / "dataset.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.wav")}
    assert finished
    build(out, "ci", workers=1, **content)
    assert digests(out) == digests(built.root)
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items())


def test_a_finished_set_is_left_as_it_is(whole):
    first, content, _ = whole
    times = {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    assert build(first.root, "ci", workers=1, **content) == first
    assert {path: path.stat().st_mtime_ns for path in first.root.rglob("*")} == times


def test_a_folder_with_another_set_or_other_files_is_refused(whole, tmp_path):
    built, content, _ = whole
    with pytest.raises(BuildError, match="holds data set open-avs-ci-"):
        build(built.root, "ci", seed=1, workers=1, **content)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("keep me")
    with pytest.raises(BuildError, match="not empty"):
        build(tmp_path / "mine", "ci", workers=1, **content)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.slow
def test_a_clip_that_cannot_be_written_is_named_and_the_build_can_go_on(small, tmp_path):
    out = tmp_path / "set"

    def block(what, done, _total):
        if what == "sounds" and done == 0:
            (out / "Single-source").write_text("in the way")

    with pytest.raises(BuildError, match=r"clip .* cannot be written .*run the same command again"):
        build(out, "ci", workers=1, progress=block, **small)
    (out / "Single-source").unlink()
    assert build(out, "ci", workers=1, **small).counts["s4 train"] == 6


def test_a_begun_build_is_not_continued_with_another_seed(small, tmp_path):
    def stop(what, done, _total):
        if what == "clips" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "set", "ci", workers=1, progress=stop, **small)
    with pytest.raises(BuildError, match="the beginning of data set"):
        build(tmp_path / "set", "ci", seed=1, workers=1, **small)


@pytest.mark.slow
def test_content_that_differs_is_refused_and_taken_under_another_id_if_told(whole, small, tmp_path):
    (small["packages"] / "things/usr/horn_val.wav").write_bytes(tone(900))
    with pytest.raises(ContentError, match=r"horn_val\.wav .*expected sha256.*--accept-content"):
        build(tmp_path / "other", "ci", workers=1, **small)
    assert not (tmp_path / "other").exists()
    other = build(tmp_path / "other", "ci", workers=1, accept_content=True, **small)
    assert other.dataset_id != whole[0].dataset_id


def test_a_picture_repacked_without_loss_is_the_same_content():
    image = Image.effect_noise((40, 30), 50).convert("RGBA")
    plain, tight = io.BytesIO(), io.BytesIO()
    image.save(plain, "PNG", compress_level=0)
    image.save(tight, "PNG", optimize=True)
    assert plain.getvalue() != tight.getvalue()
    assert content_sha256(plain.getvalue(), "image") == content_sha256(tight.getvalue(), "image")
    image.putpixel((3, 3), (1, 2, 3, 255))
    assert content_sha256(png(image), "image") != content_sha256(plain.getvalue(), "image")


def test_frames_are_taken_at_the_times_of_avsbench():
    assert openavs.FRAME_TIMES_S == (0.9375, 1.9375, 2.9375, 3.9375, 4.9375)
