"""What the network learns masks from: scenes, castings, batches, and scores of the result."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from atlasd.model.audio import AudioFeatures
from atlasd.model.losses import NO_LABEL
from atlasd.model.presets import build
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.toyworld import CATEGORIES, write_dataset
from atlasd.tools.maskfeed import (
    Casting,
    MaskFeed,
    SoundFeatures,
    cached_features,
    cast_items,
    encoder_key,
    mask_objective,
)
from atlasd.tools.score import encode_voices, interval, report, score
from atlasd.tools.voices import Scene, Voice, predicted, read_scenes, segment_each

RATE = 32_000
SIZE = 64


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    return write_dataset(root, {"train": 2}, ms3_counts={"train": 2}, size_px=SIZE)


@pytest.fixture(scope="module")
def network():
    return build("tiny", trained=False)


def voice(name, category, rows, steady=True):
    masks = np.zeros((5, SIZE, SIZE), np.uint8)
    masks[:, rows] = 1
    sound = np.random.default_rng(len(name)).normal(0, 0.1, 5 * RATE).astype(np.float32)
    categories = (category,) if category else ()
    silent = category is None
    return Voice(name, categories, silent, sound, masks, np.ones(5, bool), steady)


def scene(*voices, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    return Scene(frames, voices)


TWO = scene(voice("a", "cat", slice(0, 20)), voice("bb", "dog", slice(30, 64)))
ONE = scene(voice("ccc", "cow", slice(10, 30)), seed=1)
NOBODY = scene(voice("dddd", None, slice(0, 0)), seed=2)
SEVERAL = scene(voice("eeeee", "cat", slice(5, 9), steady=False), seed=3)
SCENES = [TWO, ONE, NOBODY, SEVERAL]


def casting(sounds=3):
    return Casting(SCENES, ["cat", "cow"], sounds=sounds, sample_rate_hz=RATE, window_s=1.0)


def feed(network, scenes=SCENES, **settings):
    made = Casting(scenes, ["cat", "cow"], sounds=2, sample_rate_hz=RATE, window_s=1.0)
    items, encode = cast_items(made, network, variants=2, seed=0, progress=lambda: None)
    return MaskFeed(
        scenes, items, encode(), **({"batch_size": 2, "passes": 2, "seed": 0} | settings)
    )


def test_swap_partners_become_one_scene_of_two_voices(toy):
    entries = AVSBench(toy).clips("train")
    scenes = read_scenes(entries, SIZE, RATE)
    assert sorted(v.name for s in scenes for v in s.voices) == sorted(e.name for e in entries)
    pairs = [s for s in scenes if len(s.voices) == 2]
    assert len(pairs) == sum(e.pair is not None for e in entries) / 2 > 0
    for s in pairs:
        one, other = s.voices
        assert one.categories != other.categories
        assert not (one.masks & other.masks).any()
    several = read_scenes(AVSBench(toy, "ms3").clips("train"), SIZE, RATE)
    assert all(not v.steady for s in several for v in s.voices)


def test_each_voice_of_a_picture_is_heard_with_its_own_mask():
    made = casting()
    seen = set()
    for seed in range(20):
        item, heard = made.draw(0, np.random.default_rng(seed))
        assert len(heard) == len(item.masks) == len(item.labels) == 3
        assert {item.masks[0], item.masks[1]} == {(0,), (1,)}
        assert item.labels[item.masks.index((0,))] == 0
        assert item.labels[item.masks.index((1,))] == NO_LABEL  # no output is called dog
        assert heard[0].gain_db is None
        assert heard[0].lasted_s is None
        seen.add(item.frame)
    assert len(seen) > 1


def test_the_last_sound_is_one_of_the_hard_cases_with_the_mask_that_it_deserves():
    made, cases = casting(), Counter()
    for seed in range(400):
        item, heard = made.draw(0, np.random.default_rng(seed))
        sound, mask, label = heard[-1], set(item.masks[-1]), item.labels[-1]
        if sound.gain_db is not None:
            assert mask == {0, 1}
            assert label == NO_LABEL
            cases["both"] += 1
        elif sound.lasted_s is None:
            assert not mask
            cases["nothing"] += 1
        elif sound.lasted_s > 0.5:
            assert len(mask) <= 1
            cases[f"then {len(mask)}"] += 1
        else:
            assert len(mask) in (1, 2)
            cases[f"still {len(mask)}"] += 1
        if not mask:
            assert label == NO_LABEL
    assert set(cases) == {"both", "nothing", "then 0", "then 1", "still 1", "still 2"}


def test_strangers_are_heard_with_nothing_in_view():
    @dataclass
    class Stranger:
        samples: np.ndarray

    spoken = np.full(3 * RATE, 0.25, np.float32)
    made = Casting(
        SCENES, ["cat", "cow"], sounds=3, sample_rate_hz=RATE, window_s=1.0,
        strangers=[Stranger(spoken)],
    )  # fmt: skip
    heard = []
    for seed in range(200):
        item, sounds = made.draw(0, np.random.default_rng(seed))
        last = sounds[-1]
        if last.lasted_s is None and last.gain_db is None:
            assert item.masks[-1] == ()
            heard.append(set(np.unique(last.first)) <= {np.float32(0), np.float32(0.25)})
    assert 0 < sum(heard) < len(heard)


def test_where_nothing_in_view_sounds_every_mask_is_empty():
    for seed in range(20):
        item, _ = casting().draw(2, np.random.default_rng(seed))
        assert item.masks == ((), (), ())


def test_what_sounds_without_a_name_keeps_its_mask():
    """AVSBench's MS3 names no classes."""
    unnamed = scene(voice("z", "", slice(5, 9), steady=False))
    made = Casting([unnamed], ["cat"], sounds=2, sample_rate_hz=RATE, window_s=1.0)
    item, _ = made.draw(0, np.random.default_rng(0))
    assert item.masks[0] == (0,)
    assert item.labels[0] == NO_LABEL


def test_what_changes_with_time_is_heard_at_its_own_time():
    made = casting(sounds=2)
    own = SEVERAL.voices[0].sound
    for seed in range(20):
        item, heard = made.draw(3, np.random.default_rng(seed))
        end_s = item.frame + 0.9375
        spectrum = np.fft.rfft(heard[0].first, 1 << 19).conj() * np.fft.rfft(own, 1 << 19)
        at = int(np.argmax(np.fft.irfft(spectrum)))
        start_s = (at - (1 << 19) * (at > 1 << 18)) / RATE
        assert end_s - 0.4001 <= start_s + 1 <= end_s + 0.0601


def test_batches_follow_seed_epoch_and_step_alone(network):
    made = feed(network)
    assert made.steps == 4
    whole, rest = list(made(1, 0)), list(made(1, 2))
    assert (len(whole), len(rest)) == (4, 2)
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert not torch.equal(whole[0]["images"], next(iter(made(2, 0)))["images"])


def test_blending_stays_between_recordings_of_one_category(network):
    """Features are told by their sign and size: cats are around 1, cows around -1."""
    made = feed(network, blended_share=1.0, thinned_share=0.0, batch_size=4)
    labels = torch.tensor([item.labels for item in made.items])  # (N, K)
    size = 1 + 0.1 * torch.rand(labels.shape, generator=torch.Generator().manual_seed(0))
    value = torch.where(labels == 0, size, torch.where(labels == 1, -size, 0.0))
    made.features = SoundFeatures(
        value[..., None, None].expand(*labels.shape, 3, 8).half(),
        value[..., None].expand(*labels.shape, 8).half(),
    )
    values = {0: set(), 1: set(), NO_LABEL: set()}
    for epoch in range(4):
        for batch in made(epoch, 0):
            for label, row in zip(batch["labels"].tolist(), batch["embedding"], strict=True):
                values[label] |= {round(float(x), 3) for x in row if x}
    assert values[NO_LABEL] == set()
    assert min(values[0]) >= 0.999
    assert max(values[1]) <= -0.999
    assert len(values[0]) > 2 * (labels == 0).sum()


def test_a_pass_shows_every_scene_once_with_a_mask_for_each_sound(network):
    made = feed(network, batch_size=4, passes=1)
    (batch,) = made(0, 0)
    assert batch["images"].shape == (4, SIZE, SIZE, 3)
    assert batch["masks"].shape == (8, SIZE, SIZE)
    assert batch["tokens"].shape[0] == batch["embedding"].shape[0] == 8
    assert batch["valid"].all()
    assert sorted(batch["labels"].tolist()).count(NO_LABEL) < 8


def test_a_picture_with_one_sound_is_segmented_as_the_network_does(network):
    images = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8)
    audio = network.encode_audio(network.log_mel(torch.randn(2, RATE) * 0.1))
    with torch.no_grad():
        whole = network.forward_features(network.normalise(images), audio)
        each = segment_each(network, images, audio)
        twice = segment_each(network, images[:1], audio)
        other = network.forward_features(network.normalise(images[[0, 0]]), audio)
    torch.testing.assert_close(each.mask_logits, whole.mask_logits)
    torch.testing.assert_close(twice.mask_logits, other.mask_logits)


def test_the_objective_reaches_all_that_trains(network):
    batch = next(iter(feed(network)(0, 0)))
    mask_objective(network)(batch).terms["loss"].backward()
    idle = [
        name
        for name, p in network.named_parameters()
        if p.requires_grad and p.grad is None and ".lora_" not in name
    ]
    assert idle == []
    assert all(p.grad is None for p in network.audio.parameters())
    network.zero_grad()


def test_features_are_computed_once_for_a_key(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return SoundFeatures(
            torch.ones(2, 1, 3, 4).half(), torch.full((2, 1, 4), len(calls)).half()
        )

    path = tmp_path / "sounds.safetensors"
    for key, expected in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        features = cached_features(path, {"encoder": key}, compute)
        assert features.embedding[0, 0, 0] == expected
    assert len(calls) == 3


def test_the_key_of_an_encoder_changes_with_its_weights(network):
    other = build("tiny", trained=False, seed=1)
    assert encoder_key(network) == encoder_key(build("tiny", trained=False))
    assert encoder_key(network) != encoder_key(other)


def test_scores_tell_frames_swaps_and_controls_apart(network, monkeypatch):
    def painted(_network, shown, audio, chosen):
        """Voice 0's mask whatever is heard: a network that is deaf."""
        masks = shown.voices[0].masks[list(chosen)].astype(np.float32)
        return np.stack([masks] * len(shown.voices), axis=1)

    monkeypatch.setattr("atlasd.tools.score.predicted", painted)
    scenes = [TWO, ONE, NOBODY]
    result = score(network, scenes, encode_voices(network, scenes))
    summary = result.summary()
    assert summary["frames"] == 20
    assert summary["J"] == pytest.approx((1 + 0 + 1 + 1) / 4, abs=1e-6)
    assert summary["J_empty"] == pytest.approx(1, abs=1e-6)
    assert summary["swaps"] == 0.5
    assert result.clips == ["a"] * 5 + ["bb"] * 5 + ["ccc"] * 5 + ["dddd"] * 5
    part = score(network, scenes, encode_voices(network, scenes), rotate=True)
    assert part.summary()["frames"] == 4


def test_predictions_are_the_networks_for_each_picture_and_voice(network):
    (audio,) = encode_voices(network, [TWO])
    probs = predicted(network, TWO, audio, [1, 4])
    assert probs.shape == (2, 2, SIZE, SIZE)
    row = 4 * 2 + 1  # picture 4, voice 1
    alone = AudioFeatures(audio.tokens[[row]], audio.embedding[[row]])
    with torch.no_grad():
        images = network.normalise(torch.from_numpy(TWO.frames[[4]]))
        expected = torch.sigmoid(network.forward_features(images, alone).mask_logits)
    np.testing.assert_allclose(probs[1, 1], expected[0].numpy(), atol=1e-5)


def test_controls_take_the_sound_away_or_bring_another_categorys(network):
    own = encode_voices(network, [TWO, ONE])
    none = encode_voices(network, [TWO, ONE], "none")
    other = encode_voices(network, [TWO, ONE], "other")
    silence = network.encode_audio(network.log_mel(torch.zeros(1, RATE)))
    torch.testing.assert_close(none[0].embedding[:1], silence.embedding)
    assert not torch.equal(own[1].embedding, other[1].embedding)
    voices = [torch.stack(list(own[0].embedding)), torch.stack(list(own[1].embedding))]
    assert any(torch.allclose(other[1].embedding[0], row, atol=1e-5) for row in voices[0])


def test_an_interval_over_single_frames_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 400)
    low, high = interval(values, [str(i) for i in range(400)])
    assert (low, high) == pytest.approx((3 - 1.96 * 0.1, 3 + 1.96 * 0.1), abs=0.12)
    groups = [str(i // 100) for i in range(400)]
    wide = interval(np.repeat([0.0, 1, 2, 3], 100), groups)
    assert wide[1] - wide[0] > 1.5


def test_toy_clips_label_nothing_that_open_avs_names():
    """The two worlds' categories are kept apart by name."""
    assert not set(CATEGORIES) & set(build("atlas-lite", pretrained=False).preset.categories)


def test_a_report_scores_the_controls_and_gives_intervals_around_the_mean(toy, network):
    made = report(network, AVSBench(toy).clips("train"))
    assert {"own", "none", "other", "intervals"} == set(made)
    low, high = made["intervals"]["J by recording"]
    assert low <= made["own"]["J"] <= high
    assert made["own"]["frames"] == made["none"]["frames"] == 5 * 2 * len(CATEGORIES)


def test_a_sound_lacks_some_of_its_features_in_training_and_keeps_their_mean(network):
    made = feed(network, batch_size=4, passes=1)
    whole = made.features.tokens[:4].float()  # the variation that even epochs show
    batches = [next(iter(made(epoch, 0)))["tokens"] for epoch in range(0, 60, 2)]
    gone = torch.stack([(tokens == 0).all(dim=1).float().mean() for tokens in batches])
    idle = (whole == 0).all(dim=2).float().mean()
    assert gone.mean() == pytest.approx(0.3 + 0.7 * float(idle), abs=0.05)
    total = torch.stack([tokens.sum() for tokens in batches]).mean()
    assert float(total) == pytest.approx(float(whole.sum()), rel=0.1)
