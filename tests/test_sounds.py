"""Sounds: SoundFonts and patches made in code, takes, performances and mixes."""

import io
import struct
import wave

import numpy as np
import pytest
from atlasd.streams.catalogue import Item, content_sha256
from atlasd.streams.packages import Package
from atlasd.streams.recordings import RecordingError, decode_sound
from atlasd.streams.soundfonts import SoundFont, SoundFontError, read_patch
from atlasd.streams.sounds import (
    Instrument,
    Take,
    faded,
    mixed,
    noise,
    perform,
    read_sources,
    read_take,
    training_takes,
)

RATE = 16_000


def wav(samples, rate_hz=RATE, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def tone(frequency_hz, seconds, rate_hz=RATE):
    return np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def peak_hz(samples, rate_hz):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))
    return float(np.argmax(spectrum)) * rate_hz / (1 << 17)


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def make_soundfont(*, padded=True, generators=()):
    """One program, one looped sample: 0.1 s of 440 Hz at 32 kHz, root key 69."""
    samples = (tone(440, 0.1, 32_000) * 20_000).astype("<i2")
    sample = samples.tobytes() + bytes(92)
    zone = [*generators, (54, 1), (53, 0)]
    tables = {
        b"phdr": struct.pack("<20sHHHIII", b"Tone", 5, 0, 0, 0, 0, 0)
        + struct.pack("<20sHHHIII", b"EOP", 0, 0, 1, 0, 0, 0),
        b"pbag": struct.pack("<HHHH", 0, 0, 1, 0),
        b"pmod": bytes(10),
        b"pgen": struct.pack("<HHHH", 41, 0, 0, 0),
        b"inst": struct.pack("<20sH20sH", b"Tone", 0, b"EOI", 1),
        b"ibag": struct.pack("<HHHH", 0, 0, len(zone), 0),
        b"imod": bytes(10),
        b"igen": b"".join(struct.pack("<Hh", *pair) for pair in zone) + bytes(4),
        b"shdr": struct.pack(
            "<20sIIIIIBbHH", b"tone", 0, len(samples), 800, 2400, 32_000, 69, 0, 0, 1
        )
        + bytes(46),
    }
    odd = b"" if padded else b"\1"
    data = b"LIST" + struct.pack("<I", len(sample) + 12 + len(odd)) + b"sdta"
    data += b"smpl" + struct.pack("<I", len(sample) + len(odd)) + sample + odd
    data += chunk(b"LIST", b"pdta" + b"".join(chunk(n, c) for n, c in tables.items()))
    return b"RIFF" + struct.pack("<I", len(data) + 4) + b"sfbk" + data


@pytest.mark.parametrize("key", [57, 69, 76])
def test_a_soundfonts_note_has_the_pitch_of_its_key(key):
    note = SoundFont(make_soundfont(), "font").program(5).note(key, 100, 1.0, 32_000)
    expected = 440 * 2 ** ((key - 69) / 12)
    assert peak_hz(note[:32_000], 32_000) == pytest.approx(expected, rel=0.002)
    assert len(note) == 48_000


def test_a_soundfonts_tuning_and_attenuation_are_honoured():
    plain = SoundFont(make_soundfont(), "font").program(5).note(69, 127, 0.5, 32_000)
    changed = SoundFont(make_soundfont(generators=((51, 12), (48, 200))), "font")
    note = changed.program(5).note(69, 127, 0.5, 32_000)
    assert peak_hz(note[:16_000], 32_000) == pytest.approx(880, rel=0.002)
    ratio_db = 20 * np.log10(np.abs(note[:16_000]).max() / np.abs(plain[:16_000]).max())
    assert ratio_db == pytest.approx(-0.4 * 20, abs=0.3)


def test_a_note_outside_the_key_range_is_silent():
    font = SoundFont(make_soundfont(generators=((43, 60 | 72 << 8),)), "font")
    assert np.any(font.program(5).note(72, 100, 0.1, 32_000))
    assert not np.any(font.program(5).note(73, 100, 0.1, 32_000))


def test_a_note_dies_away_once_its_key_is_let_go():
    note = SoundFont(make_soundfont(), "font").program(5).note(69, 100, 0.5, 32_000)
    assert np.abs(note[16_000:][3200:]).max() < 0.01 * np.abs(note[:16_000]).max()


def test_a_soundfont_without_padding_is_read():
    font = SoundFont(make_soundfont(padded=False), "font")
    assert font.program(5).name == "font Tone"


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(SoundFontError, match="no program 7 in bank 0"):
        SoundFont(make_soundfont(), "font").program(7)


@pytest.mark.parametrize("data", [b"", b"RIFF", make_soundfont()[:200], b"OggS" + bytes(100)])
def test_a_damaged_soundfont_is_refused(data):
    with pytest.raises(SoundFontError, match="no SoundFont or is cut short"):
        SoundFont(data, "font")


def make_patch(*, mode=0b101, root_mhz=440_000):
    """A GUS patch with 0.1 s of 440 Hz at 32 kHz; mode bit 0: 16 bit, bit 2: looped."""
    samples = (tone(440, 0.1, 32_000) * 20_000).astype("<i2").tobytes()
    header = struct.pack(
        "<7sBIIIHIII", b"tone", 0, len(samples), 1600, 4800, 32_000, 20_000, 10**7, root_mhz
    )
    header += bytes(2 + 1 + 6 + 6 + 3 + 3) + bytes([mode]) + bytes(40)
    layer = bytes(6) + b"\1" + bytes(40)
    return b"GF1PATCH110\0" + bytes(117) + bytes(63) + layer + header + samples


def test_a_patchs_note_has_the_pitch_of_its_key():
    note = read_patch(make_patch(), "tone").note(81, 100, 1.0, 32_000)
    assert peak_hz(note[:32_000], 32_000) == pytest.approx(880, rel=0.002)


def test_a_drum_strikes_at_its_own_key_alone():
    drum = read_patch(make_patch(), "tone", drum_key=38)
    assert peak_hz(drum.note(38, 100, 0.1, 32_000)[:3000], 32_000) == pytest.approx(440, rel=0.02)
    assert not np.any(drum.note(39, 100, 0.1, 32_000))


@pytest.mark.parametrize("data", [b"", b"GF1PATCH110\0", make_patch()[:400]])
def test_a_damaged_patch_is_refused(data):
    with pytest.raises(SoundFontError, match="no GUS patch or is cut short"):
        read_patch(data, "tone")


def test_a_stereo_recording_becomes_the_mean_of_its_channels():
    left, right = tone(440, 0.2), np.zeros(3200)
    samples, rate_hz = decode_sound(wav(np.stack([left, right], 1), channels=2), "two")
    assert rate_hz == RATE
    np.testing.assert_allclose(samples, left / 2, atol=2e-4)


@pytest.mark.parametrize("data", [b"", b"not sound", wav([])])
def test_a_recording_without_sound_is_named(data):
    with pytest.raises(RecordingError, match="bark"):
        decode_sound(data, "bark")


def test_a_recording_of_an_unknown_coding_is_named():
    data = bytearray(wav(tone(440, 0.2)))
    data[20:22] = b"\x99\x99"
    with pytest.raises(RecordingError, match="bark is coded in a way"):
        decode_sound(bytes(data), "bark")


def test_a_recording_whose_tags_are_no_utf_8_is_decoded():
    data = wav(tone(440, 0.2))
    tags = chunk(b"LIST", b"INFO" + chunk(b"INAM", b"chien \x82\xe9"))
    data = b"RIFF" + struct.pack("<I", len(data) + len(tags) - 8) + data[8:] + tags
    samples, _ = decode_sound(data, "bark")
    assert len(samples) == RATE // 5
    assert content_sha256(data, "sound") == content_sha256(wav(tone(440, 0.2)), "sound")


def test_a_take_loses_its_silence_and_keeps_its_sound():
    silence = np.zeros(RATE)
    data = wav(np.concatenate([silence, tone(500, 0.5), silence, tone(500, 0.5), silence]))
    take = read_take(data, "bark", "dog", RATE)
    assert 1.0 <= len(take.samples) / RATE <= 1.4
    assert np.abs(take.samples).max() == pytest.approx(0.9, abs=0.01)


def test_a_take_is_resampled():
    take = read_take(wav(tone(1000, 0.5, 44_100), 44_100), "bark", "dog", RATE)
    assert len(take.samples) / RATE == pytest.approx(0.5, abs=0.05)
    assert peak_hz(take.samples, RATE) == pytest.approx(1000, rel=0.01)


def bark():
    rng = np.random.default_rng(9)
    burst = rng.standard_normal(RATE // 4) * np.exp(-np.arange(RATE // 4) / 1500)
    return Take("bark", "dog", (0.3 * burst).astype(np.float32), RATE)


def level(samples):
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def test_a_performance_sounds_in_every_second_of_its_spans_and_nowhere_else():
    track = perform(bark(), np.random.default_rng(0), 5.0, [(1, 4)])
    assert track.shape == (5 * RATE,)
    seconds = [level(second) for second in track.reshape(5, RATE)]
    assert min(seconds[1:4]) > 0.03
    edge = RATE // 40
    assert np.abs(track[: RATE - edge]).max() < 1e-6
    assert np.abs(track[4 * RATE + edge :]).max() < 1e-6
    assert level(track[RATE : 4 * RATE]) == pytest.approx(0.1, rel=0.02)


def test_a_performance_follows_its_generator():
    first, again = (perform(bark(), np.random.default_rng(1), 2.0, [(0, 2)]) for _ in range(2))
    other = perform(bark(), np.random.default_rng(2), 2.0, [(0, 2)])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_instrument_plays_as_long_as_it_is_told():
    program = SoundFont(make_soundfont(), "font").program(5)
    for category in ("violin", "piano", "drum_kit"):
        player = Instrument("font Tone", category, program, (35, 75), RATE)
        phrase = player.phrase(np.random.default_rng(0), 3.0)
        assert len(phrase) == 3 * RATE
        assert np.abs(phrase).max() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_mix_lies_between_26_and_16_db_below_full_scale(seed):
    rng = np.random.default_rng(seed)
    track = (0.1 * np.sqrt(2) * tone(500, 5)).astype(np.float32)
    sound = mixed([track], rng, RATE, 5.0)
    assert -26.2 <= 20 * np.log10(level(sound)) <= -15.8
    assert np.abs(sound).max() <= 0.98


def test_a_mix_of_nothing_is_faint_noise():
    sound = mixed([], np.random.default_rng(0), RATE, 5.0)
    assert -58.5 <= 20 * np.log10(level(sound)) <= -37.5


def test_pink_noise_falls_by_3_db_an_octave():
    power = np.abs(np.fft.rfft(noise(np.random.default_rng(0), 1 << 18, tilt=0.5))) ** 2
    low, high = power[1 << 12 : 1 << 13].mean(), power[1 << 13 : 1 << 14].mean()
    assert 10 * np.log10(low / high) == pytest.approx(3.0, abs=0.3)


def test_fades_begin_and_end_at_zero():
    samples = faded(np.ones(1000, np.float32), RATE)
    assert samples[0] == samples[-1] == 0
    assert samples[500] == 1


def item(category, split, kind, path):
    return Item(category, tuple(split.split("+")), kind, "thing", path, "", "CC0")


@pytest.fixture
def package(tmp_path):
    for name, data in (
        ("bark.wav", wav(0.5 * tone(700, 0.6))),
        ("howl.wav", wav(0.5 * tone(300, 0.6))),
        ("font.sf2", make_soundfont()),
        ("040_Tone.pat", make_patch()),
        ("036_Kick.pat", make_patch(mode=1)),
    ):
        (tmp_path / name).write_bytes(data)
    return {"thing": Package("thing", "1", tmp_path)}


ITEMS = (
    item("dog", "train", "sound", "/bark.wav"),
    item("dog", "test", "sound", "/howl.wav"),
    item("violin", "train+val", "gm_program", "6;notes=60-72"),
    item("drum_kit", "train+val", "gm_program", "6;notes=35-40"),
    item("", "train", "soundfont", "/font.sf2"),
    item("violin", "val", "patch", "/040_Tone.pat"),
    item("drum_kit", "val", "patch", "/036_Kick.pat"),
)


def test_each_split_has_sources_of_its_own(package):
    names = {
        split: sorted((s.category, s.name) for s in read_sources(ITEMS, package, split))
        for split in ("train", "val", "test")
    }
    assert names["train"] == [
        ("dog", "thing:/bark.wav"),
        ("drum_kit", "font.sf2 Tone"),
        ("violin", "font.sf2 Tone"),
    ]
    assert names["val"] == [
        ("drum_kit", "FreePats drums"),
        ("violin", "FreePats 040_Tone.pat"),
    ]
    assert names["test"] == [("dog", "thing:/howl.wav")]


def test_training_takes_hold_no_sound_of_another_split(package):
    takes = list(training_takes(ITEMS, package, melodies=2, seconds=1.0))
    assert [take.category for take in takes] == ["dog", "violin", "violin", "drum_kit", "drum_kit"]
    assert {take.sample_rate_hz for take in takes} == {32_000}
    assert not any("howl" in take.name or "FreePats" in take.name for take in takes)
    again = list(training_takes(ITEMS, package, melodies=2, seconds=1.0))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(takes, again, strict=True))
