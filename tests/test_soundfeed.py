"""What the audio encoder learns from: augmentation, pools, batches, the tagger's loss and score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from atlasd.model.audio import LogMel
from atlasd.tools.augmentation import (
    FLOOR_DB,
    mixed,
    spliced,
    varied_mel,
    varied_wave,
)
from atlasd.tools.soundfeed import (
    HINT_WEIGHT,
    SHORTEST_S,
    TAIL_S,
    Labeled,
    SoundFeed,
    SoundPool,
    cut_over,
    make_pool,
    tagging_accuracy,
    tagging_loss,
)
from atlasd.tools.tagger import Taught
from torch import nn

RATE = 32_000


def tone(hz, seconds=1.5):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


RECORDINGS = [
    Labeled(tone(200), ("low",)),
    Labeled(tone(230, 0.2), ("low",)),
    Labeled(tone(3000), ("high",)),
    Labeled(tone(900), ()),
]


def pool(teacher=None, windows=12):
    return make_pool(
        RECORDINGS,
        ["high", "low"],
        LogMel(),
        windows=windows,
        window_samples=RATE // 2,
        sample_rate_hz=RATE,
        seed=3,
        teacher=teacher,
    )


def test_mixing_adds_powers():
    rng = np.random.default_rng(0)
    one, two = (torch.from_numpy(rng.uniform(-80, 0, (2, 5, 4)).astype(np.float32)) for _ in "ab")
    gain = torch.tensor([0.0, -12.0])
    power = 10 ** (one.double() / 10) + 10 ** ((two.double() + gain[:, None, None]) / 10)
    torch.testing.assert_close(
        mixed(one, two, gain).double(), 10 * power.log10(), atol=1e-4, rtol=0
    )


def test_splicing_changes_over_at_the_frame_given():
    first, then = torch.zeros(3, 6, 2), torch.ones(3, 6, 2)
    heard = spliced(first, then, torch.tensor([0, 4, 6]))
    assert heard[:, :, 0].tolist() == [[1] * 6, [0] * 4 + [1] * 2, [0] * 6]


def test_varied_spectrograms_keep_their_shape_and_floor_and_follow_the_generator():
    mel = torch.full((4, 30, 64), -60.0)
    mel[:, :, 54:] = FLOOR_DB
    same = [varied_mel(mel, np.random.default_rng(5)) for _ in range(2)]
    assert torch.equal(*same)
    assert same[0].shape == mel.shape
    assert float(same[0].min()) >= FLOOR_DB
    assert not torch.equal(same[0], varied_mel(mel, np.random.default_rng(6)))


def test_a_varied_wave_moves_a_tone_by_at_most_a_fifth():
    for seed in range(6):
        wave = varied_wave(tone(1000, 0.3), np.random.default_rng(seed), RATE, RATE)
        assert wave.shape == (RATE,)
        assert wave.dtype == np.float32
        peak_hz = np.argmax(np.abs(np.fft.rfft(wave)))
        assert 820 < peak_hz < 1210


def test_cutting_over_leaves_the_doubtful_moments_out():
    lasted_s, lasts = cut_over(np.random.default_rng(0), 4000, 1.0)
    assert lasted_s.min() >= SHORTEST_S
    assert lasted_s.max() <= 1 - SHORTEST_S
    assert (np.abs(lasted_s - TAIL_S) >= SHORTEST_S - 1e-9).all()
    assert (lasts == (lasted_s < TAIL_S)).all()
    assert 0.4 < lasts.mean() < 0.6


@pytest.mark.slow
def test_a_pool_has_every_category_as_often_and_half_of_it_is_unlabeled():
    made = pool(windows=400)
    assert made.mel.shape == (400, 51, 64)
    assert made.mel.dtype == torch.float16
    single = made.tags.sum(dim=1) == 1
    assert (made.tags[~made.known].sum(dim=1) <= 1).all()
    # Unlabeled sounds come alone or are in a mix: 1/2 and an eighth more.
    assert (~made.known).float().mean() == pytest.approx(5 / 8, abs=0.08)
    high, low = made.tags[made.known & single].mean(dim=0).tolist()
    assert high == pytest.approx(low, abs=0.15)
    assert made.teacher.shape == made.hints.shape == (400, 0)
    assert made.n_tags == 2 * 2
    assert torch.equal(made.mel, pool(windows=400).mel)


def test_a_pool_keeps_what_the_teacher_says_of_each_window_as_it_sounds():
    """The teacher hears the mixed window; its features are told in units of their spread."""

    def teacher(wave, rate_hz):
        assert (len(wave), rate_hz) == (RATE // 2, RATE)
        level = float(np.abs(wave).mean())
        return Taught(np.array([level, 1.0], np.float32), np.array([50 * level, 7.0], np.float32))

    made = pool(teacher, windows=50)
    level = made.teacher[:, 0].double()
    assert (made.teacher[:, 1] == 1).all()
    assert made.n_tags == 2 * 2 + 2 + 2
    expected = (level - level.mean()) / level.std(correction=0)
    assert made.hints[:, 0].double().numpy() == pytest.approx(expected.numpy(), abs=0.02)
    assert (made.hints[:, 1] == 0).all()


def test_windows_keep_within_full_scale_and_both_recordings_of_a_mix_are_tagged():
    loud = [Labeled(0.9 * np.sign(tone(hz)), (name,)) for hz, name in ((200, "low"), (3e3, "high"))]
    heard = []

    def teacher(wave, _rate_hz):
        heard.append(float(np.abs(wave).max()))
        return Taught(np.zeros(1, np.float32), np.zeros(1, np.float32))

    made = make_pool(
        loud, ["high", "low"], LogMel(), windows=200, window_samples=RATE // 2,
        sample_rate_hz=RATE, seed=0, teacher=teacher,
    )  # fmt: skip
    assert made.known.all()
    assert max(heard) == pytest.approx(1.0)  # rooms and sums would be louder
    # A quarter are mixed, half of these of both kinds.
    assert (made.tags.sum(dim=1) == 2).float().mean() == pytest.approx(1 / 8, abs=0.07)


def test_a_pool_of_nothing_or_of_unknown_categories_is_refused():
    def make(recordings, categories):
        settings = {"windows": 1, "window_samples": 9, "sample_rate_hz": RATE, "seed": 0}
        return make_pool(recordings, categories, LogMel(), **settings)

    with pytest.raises(ValueError, match="no sound"):
        make([], ["low"])
    with pytest.raises(ValueError, match=r"\['high'\] are not among \['low'\]"):
        make(RECORDINGS, ["low"])


def constant_pool(n=64):
    """Windows that show their own tag: all bands at -20 or at -60 dB."""
    tags = torch.zeros(n, 2)
    tags[torch.arange(n), torch.arange(n) % 2] = 1
    mel = torch.where(tags[:, :1, None] > 0, -20.0, -60.0).expand(n, 50, 64).half().clone()
    nothing = torch.zeros(n, 0).half()
    return SoundPool(mel, tags, torch.ones(n, dtype=torch.bool), nothing, nothing)


def test_batches_follow_seed_epoch_and_step_alone():
    feed = SoundFeed(constant_pool(), 16, 4, seed=1)
    whole, rest = list(feed(2, 0)), list(feed(2, 3))
    assert len(whole) == 4
    assert len(rest) == 1
    assert all(torch.equal(whole[3][key], rest[0][key]) for key in rest[0])
    assert not torch.equal(whole[0]["mel"], whole[1]["mel"])
    assert not torch.equal(whole[0]["mel"], next(iter(feed(3, 0)))["mel"])


def test_what_sounds_at_the_end_sounds_somewhere_and_something_gave_way_in_some_windows():
    batch = next(iter(SoundFeed(constant_pool(), 512, 1, seed=0)(0, 0)))
    assert batch["mel"].shape == (512, 1, 50, 64)
    assert (batch["at_end"] <= batch["anywhere"]).all()
    gave_way = (batch["at_end"] < batch["anywhere"]).any(dim=1)
    assert 0.05 < gave_way.float().mean() < 0.2
    assert batch["known"].all()


class Straight(nn.Module):
    """Gives the batch's spectrogram back as logits."""

    def forward(self, mel):
        return mel[:, 0, 0]


def test_the_tagging_loss_is_a_sum_of_cross_entropies_and_of_the_features_squared_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 9))
    tags, ends, taught = ((rng.random((3, 2)) < 0.5).astype(float) for _ in range(3))
    hints = rng.normal(0, 1, (3, 3))
    known, hinted = np.array([True, False, True]), np.array([False, True, True])
    target = np.concatenate([tags, ends, taught], axis=1)
    p = 1 / (1 + np.exp(-logits[:, :6]))
    ce = -(target * np.log(p) + (1 - target) * np.log(1 - p))
    error = np.mean((logits[1:, 6:] - hints[1:]) ** 2)
    named = {"anywhere": tags, "at_end": ends, "teacher": taught, "hints": hints}
    batch = {k: torch.tensor(v).float() for k, v in named.items()}
    batch |= {"known": torch.tensor(known), "hinted": torch.tensor(hinted)}
    batch |= {"mel": torch.tensor(logits).float()[:, None, None]}
    terms = {k: float(v) for k, v in tagging_loss(Straight())(batch).terms.items()}
    assert terms["tags"] == pytest.approx(ce[known, :4].sum() / 2, rel=1e-5)
    assert terms["teacher"] == pytest.approx(ce[:, 4:].sum() / 3, rel=1e-5)
    assert terms["hints"] == pytest.approx(error, rel=1e-5)
    total = terms["tags"] + terms["teacher"] + HINT_WEIGHT * terms["hints"]
    assert terms["loss"] == pytest.approx(total, rel=1e-5)


def test_accuracy_weighs_each_category_alike():
    class Low(nn.Module):
        """Says ``low`` always."""

        def forward(self, mel):
            return torch.tensor([[0.0, 1.0]]).expand(len(mel), 2)

    accuracy = tagging_accuracy(Low(), RECORDINGS, ["high", "low"], LogMel(), RATE // 2)
    assert accuracy == 0.5
