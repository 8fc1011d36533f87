"""Photographs of whole scenes: the table, the pixels, and what is measured on them."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from atlasd.model.atlas import Output
from atlasd.model.presets import build
from atlasd.streams import catalogue, photos
from atlasd.streams.catalogue import ContentError, content_sha256
from atlasd.streams.packages import PackageError
from atlasd.streams.photos import Box, Photo, Sighting
from atlasd.streams.pictures import PictureError
from atlasd.streams.sounds import Take
from atlasd.tools import photocheck
from atlasd.tools.boxscore import measured, region_of
from atlasd.tools.photocheck import PhotoCheckError, check, encode_sounds, summary
from PIL import Image

RATE = 16_000
HEADER = ("package", "path", "sha256", "licence", "category", "relative", "box")


def picture(size=(60, 40), color=(200, 30, 30), *, orientation=None, kind="PNG"):
    """A grey picture whose left third is coloured."""
    image = Image.new("RGB", size, (128, 128, 128))
    image.paste(color, (0, 0, size[0] // 3, size[1]))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    return file.getvalue()


def write_table(folder, rows):
    path = folder / "photos.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


@pytest.fixture
def shelf(tmp_path):
    """Writes files of a package and a table of them; returns the listings."""

    def put(files, *, sha256=None):
        rows = []
        for path, (data, sightings) in files.items():
            target = tmp_path / "packages/things" / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            pin = sha256 or content_sha256(data, "image")
            rows += [("things", path, pin, "CC0", *sighting) for sighting in sightings]
        return photos.load(write_table(tmp_path, rows))

    return put


def read(listings, tmp_path, **options):
    return photos.read(listings, tmp_path / "packages", cache=tmp_path / "cache", **options)


def test_the_shipped_table_is_whole():
    listings = photos.load()
    boxed = [s for listing in listings for s in listing.sightings if s.box is not None]
    assert len({listing.key for listing in listings}) == len(listings) == 38
    assert len(boxed) == 69
    assert all(len(listing.sha256) == 64 and listing.licence for listing in listings)
    assert all(photo.boxes() for photo in map(blank, listings))


def test_no_photograph_gives_open_avs_a_picture():
    used = [item for item in catalogue.load() if item.kind not in ("sound", "soundfont", "patch")]
    listings = photos.load()
    assert not {listing.key for listing in listings} & {item.key for item in used}
    assert not {listing.sha256 for listing in listings} & {item.sha256 for item in used}


def test_no_boxes_fill_a_picture():
    """Where they do, any answer is right."""
    shares = [
        region_of(boxes, (100, 100)).mean()
        for listing in photos.load()
        for boxes in blank(listing).boxes().values()
    ]
    assert max(shares) < 0.85


def blank(listing):
    return Photo(listing.key, np.zeros((2, 2, 3), np.uint8), listing.sightings)


def test_rows_of_one_file_make_one_photograph(shelf, tmp_path):
    sightings = [("dog", "", "0 0 0.5 1"), ("dog", "wolf", "0.5 0 1 1"), ("car", "", "")]
    (photo,) = read(shelf({"/usr/a.png": (picture(), sightings)}), tmp_path)
    assert photo.name == "things:/usr/a.png"
    assert photo.image.shape == (40, 60, 3)
    assert photo.image[20, 5].tolist() == [200, 30, 30]
    assert photo.sightings[1] == Sighting("dog", Box(0.5, 0, 1, 1), "wolf")
    assert photo.present == {"dog", "car"}


def test_a_category_with_an_object_that_has_no_box_is_not_scored():
    seen = (
        Sighting("dog", Box(0, 0, 1, 0.5)),
        Sighting("dog", None),
        Sighting("cow", Box(0, 0, 1, 1)),
    )
    assert Photo("p", np.zeros((2, 2, 3), np.uint8), seen).boxes() == {"cow": [Box(0, 0, 1, 1)]}


def test_a_photograph_taken_with_the_camera_on_its_side_stands_upright(shelf, tmp_path):
    data = picture(orientation=3, kind="JPEG")
    (photo,) = read(shelf({"/usr/a.jpg": (data, [("dog", "", "0 0 1 0.5")])}), tmp_path)
    assert photo.image[20, 55, 0] > 180
    assert photo.image[20, 55, 1] < 60
    assert abs(int(photo.image[20, 5, 1]) - 128) < 10


def test_other_content_is_refused_by_name_and_taken_where_that_is_wished(shelf, tmp_path):
    listings = shelf({"/usr/a.png": (picture(), [("dog", "", "0 0 1 0.5")])}, sha256="0" * 64)
    with pytest.raises(ContentError, match=r"/usr/a\.png of things .* Debian 12"):
        read(listings, tmp_path)
    assert len(read(listings, tmp_path, accept=True)) == 1


def test_a_missing_file_and_a_file_that_is_no_picture_are_named(shelf, tmp_path):
    row = [("dog", "", "0 0 1 0.5")]
    listings = shelf({"/usr/b.png": (b"nothing to see", row)}, sha256="0" * 64)
    with pytest.raises(PictureError, match=r"things:/usr/b\.png cannot be read"):
        read(listings, tmp_path)
    (tmp_path / "packages/things/usr/b.png").unlink()
    with pytest.raises(PackageError, match=r"has no /usr/b\.png"):
        read(listings, tmp_path)


@pytest.mark.parametrize(
    ("category", "box", "message"),
    [
        ("unicorn", "0 0 1 1", "line 2: category is 'unicorn'; allowed are accordion"),
        ("dog", "0 0 1", "line 2: box is '0 0 1'"),
        ("dog", "0.5 0 0.5 1", "left under right"),
        ("dog", "0 0 1 1.2", "box is '0 0 1 1.2'"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path, category, box, message):
    path = write_table(tmp_path, [("things", "/a.png", "0" * 64, "CC0", category, "", box)])
    with pytest.raises(ValueError, match=message):
        photos.load(path)


def test_a_mask_that_is_the_box_is_worth_all():
    prob = np.full((10, 20), 0.1, np.float32)
    prob[2:8, 5:15] = 0.9
    found = measured(prob, [Box(0.25, 0.2, 0.75, 0.8)])
    assert found.pointing == 1
    assert found.inside == 1
    assert found.box_iou == pytest.approx(1)
    assert found.share == pytest.approx(0.3)
    assert found.quiet == 0


def test_a_mask_half_beside_its_box_is_worth_half():
    prob = np.zeros((10, 10), np.float32)
    prob[0:4, 0:4] = 0.8
    prob[0, 3] = 0.9
    found = measured(prob, [Box(0, 0, 0.2, 0.4)])
    assert found.pointing == 0
    assert found.inside == pytest.approx(0.5)
    assert found.box_iou == pytest.approx(8 / 16)


def test_boxes_of_one_category_count_together():
    prob = np.zeros((10, 10), np.float32)
    prob[0:2, 0:2] = prob[8:10, 8:10] = 0.7
    found = measured(prob, [Box(0, 0, 0.2, 0.2), Box(0.8, 0.8, 1, 1)])
    assert found.inside == 1
    assert found.box_iou == pytest.approx(1)


def test_an_empty_mask_is_quiet_meets_nothing_and_still_points():
    prob = np.full((10, 10), 0.1, np.float32)
    prob[5, 5] = 0.4
    found = measured(prob, [Box(0.5, 0.5, 1, 1)])
    assert (found.pointing, found.box_iou, found.share, found.quiet) == (1, 0, 0, 1)
    assert math.isnan(found.inside)


@pytest.fixture(scope="module")
def tiny():
    return build("tiny")


def take(category, pitch_hz):
    samples = np.sin(2 * np.pi * pitch_hz * np.arange(RATE) / RATE).astype(np.float32)
    return Take(f"{category} {pitch_hz}", category, 0.9 * samples, RATE)


@pytest.fixture(scope="module")
def sounds(tiny):
    sources = [take("dog", 300), take("dog", 600), take("cow", 150), take("frog", 2000)]
    return encode_sounds(tiny, sources, performances=3)


def snap(name, *sightings):
    rng = np.random.default_rng(len(name))
    return Photo(name, rng.integers(0, 255, (30, 50, 3)).astype(np.uint8), sightings)


def test_sounds_are_performed_by_category_and_follow_from_the_seed(tiny, sounds):
    assert set(sounds) == {"dog", "cow", "frog"}
    assert all(len(features.embedding) == 3 for features in sounds.values())
    again = encode_sounds(tiny, [take("frog", 2000)], performances=3)
    assert torch.equal(again["frog"].embedding, sounds["frog"].embedding)
    other = encode_sounds(tiny, [take("frog", 2000)], performances=3, seed=1)
    assert not torch.equal(other["frog"].embedding, sounds["frog"].embedding)


def test_a_network_without_training_is_scored_the_same_twice(tiny, sounds):
    pictures = [
        snap("one", Sighting("dog", Box(0, 0, 0.5, 1))),
        snap("two", Sighting("cow", Box(0, 0, 1, 0.5)), Sighting("dog", Box(0, 0.5, 1, 1))),
    ]
    seen = []
    trials = check(tiny, pictures, sounds, progress=lambda: seen.append(1))
    result = summary(trials)
    assert [(t.photo, t.category) for t in trials] == [
        ("one", "dog"),
        ("two", "cow"),
        ("two", "dog"),
    ]
    assert (result["photos"], result["trials"], len(seen)) == (2, 3, 2)
    assert result["random"] == pytest.approx(0.5)
    assert result["middle"] == pytest.approx(1 / 3, abs=1e-6)
    assert repr(summary(check(tiny, pictures, sounds))) == repr(result)


def test_only_the_own_sound_of_a_network_that_listens_points_right(tiny, sounds, monkeypatch):
    """An oracle in the network's place: it marks the left half when it hears a dog."""
    dogs = sounds["dog"].embedding

    def oracle(_network, _images, audio):
        logits = torch.full((len(audio.embedding), 64, 64), -9.0)
        for row, embedding in zip(logits, audio.embedding, strict=True):
            row[40, 60] = -8.0
            if (dogs == embedding).all(dim=1).any():
                row[:, :32] = 9.0
        return Output(logits, None)

    monkeypatch.setattr(photocheck, "segment_each", oracle)
    pictures = [snap("one", Sighting("dog", Box(0, 0, 0.5, 1)), Sighting("car", None))]
    result = summary(check(tiny, pictures, sounds))
    assert result["own"] == {"pointing": 1, "inside": 1, "box_iou": 1, "share": 0.5, "quiet": 0}
    assert result["none"]["quiet"] == result["other"]["quiet"] == 1
    assert result["other"]["pointing"] == 0
    assert result["gain"] == {"pointing": 1, "box_iou": 1}
    assert result["intervals"]["gain pointing"] == (1, 1)
    assert result["categories"]["dog"]["photos"] == 1


def test_what_is_not_in_view_is_drawn_from_the_categories_that_are_not(tiny, sounds, monkeypatch):
    """A category that is in view without a box is no control."""
    heard = []

    def listen(_network, _images, audio):
        heard.extend(audio.embedding)
        return Output(torch.zeros(len(audio.embedding), 64, 64), None)

    monkeypatch.setattr(photocheck, "segment_each", listen)
    check(tiny, [snap("one", Sighting("dog", Box(0, 0, 0.5, 1)), Sighting("cow", None))], sounds)
    frogs = sounds["frog"].embedding
    assert len(heard) == 3 + 1 + 3
    assert all((frogs == embedding).all(dim=1).any() for embedding in heard[4:])


def test_a_category_without_sounds_is_named(tiny, sounds):
    with pytest.raises(PhotoCheckError, match=r"zoo shows pig; there are sounds of cow, dog, frog"):
        check(tiny, [snap("zoo", Sighting("pig", Box(0, 0, 0.5, 1)))], sounds)
    with pytest.raises(PhotoCheckError, match="no photograph"):
        summary([])


def test_the_program_writes_numbers_and_a_contact_sheet(tmp_path, shelf, sounds, monkeypatch):
    files = {
        "/usr/a.png": (picture(), [("dog", "", "0 0 0.33 1")]),
        "/usr/b.png": (picture((40, 60)), [("cow", "", "0 0 0.33 1"), ("frog", "", "")]),
    }
    listings = shelf(files)
    voices = [take("dog", 300), take("cow", 150), take("frog", 2000)]
    monkeypatch.setattr(photocheck.photos, "load", lambda: listings)
    monkeypatch.setattr(photocheck, "read_voices", lambda _packages: voices)
    photocheck.photocheck(tmp_path / "out", preset="tiny", packages=tmp_path / "packages", sounds=1)
    result = json.loads((tmp_path / "out/photos.json").read_text(), parse_constant=pytest.fail)
    assert result["photos"] == 2
    assert set(result["categories"]) == {"dog", "cow"}
    with Image.open(tmp_path / "out/photos.png") as sheet:
        assert sheet.width > 600


def test_sounds_come_from_the_validation_split_alone(monkeypatch):
    asked = {}

    def obtain(wanted, _packages):
        asked.update(wanted)
        return {}

    def read_sources(items, _found, split, *, sample_rate_hz):
        return [(item.splits, item.kind, split, sample_rate_hz) for item in items]

    monkeypatch.setattr(photocheck, "obtain", obtain)
    monkeypatch.setattr(photocheck.catalogue, "verified", lambda _items, _found: {})
    monkeypatch.setattr(photocheck, "read_sources", read_sources)
    sources = photocheck.read_voices()
    assert sources
    assert all("val" in splits and split == "val" for splits, _, split, _ in sources)
    assert {kind for _, kind, _, _ in sources} <= {"sound", "gm_program", "patch", "soundfont"}
    assert "freepats" in asked
