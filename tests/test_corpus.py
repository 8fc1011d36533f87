"""The corpus: packages made in code, what is taken of them, what is left out and why."""

import io
import json
import zipfile
from dataclasses import replace

import av
import numpy as np
import pytest
from atlasd.streams import corpus
from atlasd.streams.catalogue import Item, content_sha256
from atlasd.streams.corpus import EXCERPT_S, Row, load, sounds
from atlasd.streams.packages import PackageError
from test_packages import make_bundle, make_deb
from test_sounds import make_soundfont, wav

RATE = 16_000


def noise(seed, seconds=1.0):
    """Noise whose level and colour change, as a recording's do."""
    rng = np.random.default_rng(seed)
    n = round(seconds * RATE)
    wave = np.convolve(rng.standard_normal(n), rng.standard_normal(30), "same")
    slow = np.interp(np.arange(n), np.linspace(0, n, 12), rng.uniform(0.1, 1, 12))
    return 0.5 * slow * wave / np.abs(wave).max()


def opus(samples):
    """The sound as a lossy coder at a low rate leaves it, at 48 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = 24_000
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32)[None], "flt", "mono")
        frame.rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


HELD = noise(0, 2.0)


def item(split, path, data, kind="sound", package="held"):
    sha256 = content_sha256(data, kind)
    return Item("dog", (split,), kind, package, path, sha256, "CC0")


ITEMS = (
    item("test", "/usr/howl.wav", wav(HELD)),
    item("train", "/usr/bark.wav", wav(noise(1))),
)


def row(package, without=""):
    return Row(package, "a game", without, "GPL-2")


@pytest.fixture
def folder(tmp_path):
    """A folder with the package that is held out in part."""
    place = tmp_path / "packages"
    place.mkdir()
    files = {"./usr/howl.wav": wav(HELD), "./usr/bark.wav": wav(noise(1))}
    make_deb(place, "held", files=files)
    return place


def corpus_of(folder, files, *, rows=(), items=ITEMS, **options):
    """The corpus of one more package, ``game``, with these files."""
    for old in folder.glob("game_*"):
        old.unlink()
    make_deb(folder, "game", files={f"./usr/{path}": data for path, data in files.items()})
    rows = rows or (row("game"),)
    options = {"sample_rate_hz": RATE, "cache": folder.parent / "cache", **options}
    return sounds(folder, rows=rows, items=items, **options)


def names(made):
    return [excerpt.name.removeprefix("game:/usr/") for excerpt in made.sounds]


def test_each_sound_file_gives_a_sound_whatever_its_format(folder):
    files = {"b.OGG": opus(noise(2)), "a.wav": wav(noise(3)), "readme.txt": b"no sound"}
    made = corpus_of(folder, files)
    assert names(made) == ["a.wav", "b.OGG"]
    assert [len(excerpt.samples) for excerpt in made.sounds] == pytest.approx([RATE] * 2, abs=256)
    assert made.minutes == pytest.approx(2 / 60, rel=0.02)
    assert (made.skipped, made.excluded, made.duplicates) == ((), (), 0)


def test_a_sound_keeps_its_wave_at_a_peak_of_its_own(folder):
    wave = noise(2)
    (excerpt,) = corpus_of(folder, {"a.wav": wav(0.01 * wave)}).sounds
    assert excerpt.samples.dtype == np.float32
    assert np.abs(excerpt.samples).max() == pytest.approx(0.9, abs=0.001)
    np.testing.assert_allclose(excerpt.samples, wave * 0.9 / np.abs(wave).max(), atol=0.01)


def test_a_sound_comes_at_the_rate_that_is_asked_for(folder):
    (excerpt,) = corpus_of(folder, {"a.wav": wav(noise(2))}, sample_rate_hz=32_000).sounds
    assert (len(excerpt.samples), excerpt.sample_rate_hz) == (32_000, 32_000)


def test_a_long_sound_gives_a_stretch_that_follows_the_seed(folder):
    long = np.concatenate([np.zeros(40 * RATE), noise(2, EXCERPT_S + 5)])
    files = {"a.wav": wav(long)}
    one, again, other = (
        corpus_of(folder, files, seed=seed, cache=folder.parent / cache).sounds[0].stored
        for seed, cache in ((0, "one"), (0, "two"), (1, "three"))
    )
    assert len(one) == EXCERPT_S * RATE
    assert np.any(one)
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_bundles_and_archives_are_looked_into(folder):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("sfx/b.wav", wav(noise(2)))
        file.writestr("sfx/b.png", b"no sound")
    bundle = make_bundle([("a.wav", 0, wav(noise(3))), ("a.qml", 0, b"no sound")])
    made = corpus_of(folder, {"a.rcc": bundle, "b.pk3": archive.getvalue()})
    assert names(made) == ["a.rcc!pics/a.wav", "b.pk3!sfx/b.wav"]


@pytest.mark.parametrize("name", ["a.rcc", "a.zip", "a.pk3"])
def test_a_damaged_bundle_is_named_and_the_rest_is_taken(folder, name):
    made = corpus_of(folder, {name: b"PK\3\4 gone bad", "b.wav": wav(noise(2))})
    assert names(made) == ["b.wav"]
    assert len(made.skipped) == 1
    assert name in made.skipped[0]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot be decoded"),
        (b"not sound at all" * 20, "cannot be decoded"),
        (wav([]), "holds no sound"),
        (wav(noise(2, 0.05)), "less than 0.1 s"),
        (wav(np.zeros(RATE)), "is silent"),
    ],
)
def test_what_gives_no_sound_is_named_with_the_reason(folder, data, why):
    made = corpus_of(folder, {"a.wav": data, "b.wav": wav(noise(3))})
    assert names(made) == ["b.wav"]
    assert len(made.skipped) == 1
    assert "game:/usr/a.wav" in made.skipped[0]
    assert why in made.skipped[0]


def test_content_that_came_before_is_counted_and_left_out(folder):
    data = wav(noise(2))
    made = corpus_of(folder, {"z.wav": data, "a.wav": data, "m.wav": wav(noise(3))})
    assert names(made) == ["a.wav", "m.wav"]
    assert made.duplicates == 1


def test_what_is_held_out_is_left_out_by_name_and_by_content(folder):
    rows = (row("held"), row("game"))
    made = corpus_of(folder, {"copy.wav": wav(HELD), "b.wav": wav(noise(3))}, rows=rows)
    assert [excerpt.name for excerpt in made.sounds] == ["game:/usr/b.wav", "held:/usr/bark.wav"]
    assert made.excluded == (
        "game:/usr/copy.wav is held:/usr/howl.wav",
        "held:/usr/howl.wav is held:/usr/howl.wav",
    )


def test_content_is_held_out_by_its_pin_where_the_file_is_another(folder):
    pinned = replace(ITEMS[0], sha256=content_sha256(wav(noise(5)), "sound"))
    made = corpus_of(folder, {"a.wav": wav(noise(5)), "b.wav": wav(noise(6))}, items=(pinned,))
    assert names(made) == ["b.wav"]


@pytest.mark.parametrize(
    "likeness",
    [
        opus(0.2 * HELD),
        wav(-0.7 * HELD[RATE // 3 : -RATE // 5]),
        wav(HELD + 0.02 * noise(7, 2.0)),
        wav(np.concatenate([noise(8, 3.0), HELD, noise(9, 1.0)])),
        wav(0.8 * HELD[RATE : RATE + RATE // 4]),
        wav(np.repeat(HELD, 3)[: 5 * RATE], 48_000),
    ],
    ids=["coded, fainter", "trimmed, inverted", "noisy", "among others", "a quarter", "48 kHz"],
)
def test_what_sounds_like_something_held_out_is_left_out(folder, likeness):
    made = corpus_of(folder, {"like.wav": likeness, "other.wav": wav(noise(3))})
    assert names(made) == ["other.wav"]
    assert len(made.excluded) == 1
    assert made.excluded[0].startswith("game:/usr/like.wav sounds like held:/usr/howl.wav (")


def test_what_open_avs_trains_with_is_no_reason_to_leave_out(folder):
    assert names(corpus_of(folder, {"a.wav": wav(noise(1))})) == ["a.wav"]


def test_a_package_that_is_missing_is_named_and_the_rest_is_taken(folder):
    made = corpus_of(folder, {"a.wav": wav(noise(2))}, rows=(row("game"), row("gone")))
    assert names(made) == ["a.wav"]
    assert len(made.skipped) == 1
    assert "apt-get download gone" in made.skipped[0]


def test_a_package_that_is_damaged_is_named_and_the_rest_is_taken(folder):
    (folder / "bad_1_all.deb").write_bytes(b"gone bad")
    made = corpus_of(folder, {"a.wav": wav(noise(2))}, rows=(row("bad"), row("game")))
    assert names(made) == ["a.wav"]
    assert "package bad: " in made.skipped[0]


def test_no_package_at_all_is_an_error_that_says_what_to_do(folder):
    with pytest.raises(PackageError, match=r"none of the corpus's 1 packages.*download gone"):
        sounds(folder, sample_rate_hz=RATE, rows=(row("gone"),), items=ITEMS, cache=folder)


def test_without_the_held_out_sounds_there_is_no_corpus(folder):
    next(folder.glob("held_*")).unlink()
    with pytest.raises(PackageError, match="apt-get download held"):
        corpus_of(folder, {"a.wav": wav(noise(2))})


def test_the_validation_bank_is_never_used(folder):
    make_deb(folder, "freepats", files={"./usr/a.wav": wav(noise(2))})
    made = corpus_of(folder, {"b.wav": wav(noise(3))}, rows=(row("freepats"), row("game")))
    assert names(made) == ["b.wav"]
    assert made.skipped == ()


def test_packages_of_speech_are_known_by_what_they_are(folder):
    rows = [replace(row("talk"), what="spoken tiles"), row("play")]
    for seed, package in enumerate(("talk", "play"), 5):
        make_deb(folder, package, files={"./usr/a.wav": wav(noise(seed))})
    made = corpus_of(folder, {}, rows=rows)
    assert [sound.name for sound in made.sounds] == ["play:/usr/a.wav", "talk:/usr/a.wav"]
    assert [sound.name for sound in corpus.spoken(made.sounds, rows)] == ["talk:/usr/a.wav"]


def test_files_are_left_out_by_a_part_of_their_path(folder):
    files = {"cat_desc_de.wav": wav(noise(2)), "cat.wav": wav(noise(3))}
    assert names(corpus_of(folder, files, rows=(row("game", "_desc_"),))) == ["cat.wav"]


def test_a_soundfont_plays_melodies_on_each_of_its_programs(folder):
    font = make_soundfont()
    files = {"font.sf2": font}
    fonts = (item("train", "/usr/font.sf2", font, "soundfont", "game"),)
    made = corpus_of(folder, files, items=(*ITEMS, *fonts))
    assert names(made) == [f"game:6 font.sf2 Tone melody {count}" for count in range(2)]
    assert {len(excerpt.samples) for excerpt in made.sounds} == {6 * RATE}
    assert not np.array_equal(*(excerpt.stored for excerpt in made.sounds))
    assert len(made.skipped) == 128


def test_the_second_call_reads_what_the_first_one_wrote(folder, monkeypatch):
    files = {"a.wav": wav(noise(2)), "b.wav": b"not sound"}
    first = corpus_of(folder, files)
    monkeypatch.setattr(corpus, "decode_sound", None)
    again = corpus_of(folder, files)
    assert (first.id, first.skipped, names(first)) == (again.id, again.skipped, names(again))
    assert np.array_equal(first.sounds[0].samples, again.sounds[0].samples)


def test_the_id_is_of_the_content(folder):
    made = [
        corpus_of(folder, {"a.wav": wav(data)}, cache=folder.parent / cache)
        for data, cache in ((noise(2), "one"), (noise(2), "two"), (noise(3), "three"))
    ]
    assert made[0].id == made[1].id
    assert made[0].id != made[2].id


def test_a_corpus_that_was_cut_short_is_made_anew(folder):
    files = {"a.wav": wav(noise(2))}
    corpus_of(folder, files)
    (index,) = (folder.parent / "cache/corpus").glob("*.json")
    index.unlink()
    assert names(corpus_of(folder, files)) == ["a.wav"]
    assert json.loads(index.read_text())["names"] == ["game:/usr/a.wav"]


def test_an_unpacked_tree_gives_what_the_deb_gives(folder):
    files = {"a.wav": wav(noise(2)), "sub/b.wav": wav(noise(3))}
    packed = corpus_of(folder, files, cache=folder.parent / "one")
    next(folder.glob("game_*")).unlink()
    for path, data in files.items():
        file = folder / "game/usr" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    tree = sounds(
        folder, sample_rate_hz=RATE, rows=(row("game"),), items=ITEMS, cache=folder.parent / "two"
    )
    assert (packed.id, names(packed)) == (tree.id, names(tree))


def test_the_list_that_ships_names_each_package_once_with_its_licence():
    rows = load()
    packages = [row.package for row in rows]
    assert packages == sorted(set(packages))
    assert "freepats" not in packages
    assert all(row.what and row.licence for row in rows)
