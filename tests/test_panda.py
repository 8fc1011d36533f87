"""PANDA: who is pasted where, pixel by pixel."""

import numpy as np
import pytest
import torch
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.presets import build
from test_methods import PARTS, Run, assert_equal, batches


def prepared(preset="tiny", **options):
    method = load("panda", options)
    network = build(preset, trained=False, categories=("dog", "cow"))
    method.prepare(network)
    method.begin(None)
    return method


def batch_of(labels, valid=None):
    n, px = len(labels), 8
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, px, px, 3) * 10 + 5
    masks = torch.zeros(n, px, px, dtype=torch.uint8)
    for i in range(n):
        masks[i, i : i + 2, 1:4] = 1
    waves = torch.arange(n, dtype=torch.float32)[:, None].expand(n, 16)
    batch = {"images": images, "masks": masks, "labels": torch.tensor(labels), "waves": waves}
    return batch | {"valid": torch.tensor(valid or [True] * n)}


def test_a_tail_object_sounds_in_a_head_picture():
    batch = batch_of([0, 0, 0, 1])
    before = {name: value.clone() for name, value in batch.items()}
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(batch[name], before[name]) for name in batch), "a new batch"
    mask = before["masks"][3].bool()
    for taker in range(3):
        picture = made["images"][taker]
        assert (picture[mask] == before["images"][3][mask]).all()
        assert (picture[~mask] == before["images"][taker][~mask]).all()
        assert torch.equal(made["masks"][taker], before["masks"][3])
        assert torch.equal(made["waves"][taker], before["waves"][3])
    assert made["labels"].tolist() == [1, 1, 1, 1]
    assert torch.equal(made["images"][3], before["images"][3]), "the tail clip stays"


def test_all_frames_of_a_clip_that_is_seen_together_are_pasted():
    """Frames in pairs; the first alone is labelled, as in the single sources."""
    method = prepared("tiny-avsbench", share=1.0)
    assert method.network.clip_frames == 2
    before = batch_of([0, 0, 0, 0, 0, 0, 1, 1], [True, False] * 4)
    made = method.transform(before, np.random.default_rng(0))
    assert made["labels"].tolist() == [1] * 8
    for taker in (0, 2, 4):
        for frame in (0, 1):
            donor = before["masks"][6 + frame]
            assert torch.equal(made["masks"][taker + frame], donor)
            assert torch.equal(made["waves"][taker + frame], before["waves"][6 + frame])
            pasted = made["images"][taker + frame][donor.bool()]
            assert (pasted == before["images"][6 + frame][donor.bool()]).all()


def test_counts_run_on_and_are_blended():
    """`β·all + (1 − β)·here`: a class that was common before is still half common."""
    method = prepared(share=1.0, beta=0.5)
    method.transform(batch_of([0, 0, 0, 1]), np.random.default_rng(0))
    assert method.state["all"].tolist() == method.state["here"].tolist() == [3.0, 1.0]
    method.begin(PARTS[1])
    made = method.transform(batch_of([1, 1, 1, 0]), np.random.default_rng(0))
    assert method.state["all"].tolist() == [4.0, 4.0]
    assert method.state["here"].tolist() == [1.0, 3.0]
    assert made["labels"].tolist() == [0, 0, 0, 0], "0: 2.5, 1: 3.5"
    method.begin(None)  # nobody tells of a segment: the count goes on
    assert method.state["here"].tolist() == [1.0, 3.0]


def test_as_many_of_each_class_are_left_alone():
    batch = batch_of([0, 1])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(made[name], batch[name]) for name in batch)


def test_without_labels_and_clusters_any_object_goes_into_any_other_picture():
    batch = batch_of([-1, -1, -1])
    made = prepared(share=1.0, clusters=0).transform(batch, np.random.default_rng(0))
    for taker in range(3):
        donor = int(made["waves"][taker, 0])
        assert donor != taker
        assert torch.equal(made["masks"][taker], batch["masks"][donor])
    assert made["labels"].tolist() == [-1, -1, -1]


def test_a_clip_without_a_mask_neither_gives_nor_takes():
    batch = batch_of([0, 0, 0, 1], valid=[True, False, True, False])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert all(torch.equal(made[name], batch[name]) for name in batch), "the tail clip has none"
    batch = batch_of([0, 0, 0, 1], valid=[True, False, True, True])
    made = prepared(share=1.0).transform(batch, np.random.default_rng(0))
    assert made["labels"].tolist() == [1, 0, 1, 1]


def test_the_same_random_numbers_make_the_same_batch():
    labels = [0] * 6 + [1] * 2
    one, two, other = (
        prepared(share=0.5).transform(batch_of(labels), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"share": 1.5}, "both must be from 0 to 1"),
        ({"beta": -0.5}, "both must be from 0 to 1"),
        ({"sound": "add"}, "sound is 'add'; allowed are 'replace' and 'mix'"),
        ({"clusters": 1}, "clusters is 1; it must be 0 or at least 2"),
    ],
)
def test_what_it_cannot_do_is_said(options, why):
    with pytest.raises(MethodError, match=why):
        load("panda", options)


# -- clusters of sounds ----------------------------------------------------------------------------


def heard(embeddings, valid=None):
    """A batch without labels whose sounds are encoded."""
    batch = batch_of([-1] * len(embeddings), valid)
    del batch["waves"]
    batch["embedding"] = torch.tensor(embeddings, dtype=torch.float32)
    batch["tokens"] = batch["embedding"][:, None]
    return batch


def test_without_labels_the_object_of_a_rare_sound_goes_into_pictures_of_a_common_one():
    """Two sounds, of which one comes three times; sounds differ a little each time."""
    draw = np.random.default_rng(3)
    near = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    method = prepared(share=1.0, clusters=2)
    method.transform(heard([near[0], near[1]]), draw)
    sounds = [np.add(near[kind], 0.05 * draw.normal(size=3)).tolist() for kind in (0, 0, 1, 0)]
    batch = heard(sounds)
    made = method.transform(batch, np.random.default_rng(0))
    assert method.state["cluster.all"].tolist() == [4.0, 2.0]
    rare = batch["masks"][2].bool()
    for taker in (0, 1, 3):
        assert torch.equal(made["masks"][taker], batch["masks"][2])
        assert torch.equal(made["tokens"][taker], batch["tokens"][2])
        assert torch.equal(made["embedding"][taker], batch["embedding"][2])
        assert (made["images"][taker][rare] == batch["images"][2][rare]).all()
        assert (made["images"][taker][~rare] == batch["images"][taker][~rare]).all()
    assert torch.equal(made["images"][2], batch["images"][2])
    assert made["labels"].tolist() == [-1] * 4


def test_waves_are_encoded_to_be_compared():
    """A tone that comes three times and noise that comes once, by the frozen encoder itself."""
    method = prepared(share=1.0, sound="mix")
    rate = method.network.preset.sample_rate_hz
    tone = 0.1 * torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)
    noise = 0.1 * torch.randn(rate, generator=torch.Generator().manual_seed(0))
    batch = batch_of([-1] * 4) | {"waves": torch.stack([tone, tone, noise, tone])}
    made = method.transform(batch, np.random.default_rng(0))
    assert method.state["cluster.all"][:2].tolist() == [3.0, 1.0]
    assert [torch.equal(made["waves"][i], batch["waves"][i]) for i in range(4)] == [
        False, False, True, False
    ]  # fmt: skip


def test_as_long_as_each_sound_is_new_nothing_is_pasted():
    """Fewer clips than clusters: each is its own, and none is rarer than another."""
    batch = heard(np.eye(5).tolist())
    method = prepared(share=1.0, clusters=23)
    made = method.transform(batch, np.random.default_rng(0))
    assert all(torch.equal(made[name], batch[name]) for name in batch)
    assert method.state["cluster.counts"].tolist() == [1] * 5 + [0] * 18


def test_counts_of_clusters_run_on_and_are_blended():
    method = prepared(share=1.0, clusters=2)
    a, b = [1.0, 0.0], [0.0, 1.0]
    method.transform(heard([a, a, a, b]), np.random.default_rng(0))
    method.begin(PARTS[1])
    made = method.transform(heard([b, b, b, a]), np.random.default_rng(0))
    assert method.state["cluster.all"].tolist() == [4.0, 4.0]
    assert method.state["cluster.here"].tolist() == [1.0, 3.0]
    assert made["embedding"].tolist() == [a, a, a, a], "a: 2.5, b: 3.5"


def test_frames_of_a_clip_are_one_sound():
    method = prepared("tiny-avsbench", share=1.0, clusters=3)
    batch = heard([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    method.transform(batch, np.random.default_rng(0))
    assert method.state["cluster.counts"].tolist() == [2, 1, 0], "the first two are alike"
    half = float(np.sqrt(0.5))
    expected = torch.tensor([[half, half], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(method.state["cluster.means"], expected)


def test_labels_and_clusters_are_counted_apart():
    method = prepared(share=1.0, clusters=2)
    method.transform(heard([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.random.default_rng(0))
    batch = heard([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]) | {"labels": torch.tensor([0, 0, 1])}
    made = method.transform(batch, np.random.default_rng(0))
    assert method.state["all"].tolist() == [2.0, 1.0]
    assert method.state["cluster.all"].tolist() == [1.0, 2.0]
    assert made["labels"].tolist() == [1, 1, 1]


def test_clusters_go_on_where_they_were_saved():
    draw = np.random.default_rng(1)
    batches = [heard(draw.normal(size=(6, 4)).tolist()) for _ in range(4)]
    whole, resumed = (prepared(share=1.0, clusters=3) for _ in range(2))
    for seed, batch in enumerate(batches[:2]):
        whole.transform(batch, np.random.default_rng(seed))
    resumed.load_state_dict(whole.state_dict())
    for seed, batch in enumerate(batches[2:]):
        one, two = (m.transform(batch, np.random.default_rng(seed)) for m in (whole, resumed))
        assert all(torch.equal(one[name], two[name]) for name in one)
    state = whole.state_dict()
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in state.items())
    assert not torch.equal(state["cluster.means"], torch.zeros(3, 4))


# -- both sounds -----------------------------------------------------------------------------------


def rms(sound):
    return float(np.sqrt(np.mean(np.square(sound.double().numpy()))))


def test_both_sounds_are_mixed_at_equal_loudness_and_both_objects_are_in_the_mask():
    batch = batch_of([0, 0, 0, 1])
    draw = torch.Generator().manual_seed(0)
    loud = torch.tensor([0.5, 0.01, 0.2, 0.03])
    batch["waves"] = loud[:, None] * torch.randn(4, 16, generator=draw)
    made = prepared(share=1.0, sound="mix").transform(batch, np.random.default_rng(0))
    pasted = batch["masks"][3].bool()
    for taker in range(3):
        added = made["waves"][taker] - batch["waves"][taker]
        assert rms(added) == pytest.approx(rms(batch["waves"][taker]), rel=1e-4), "0 dB"
        scale = added / batch["waves"][3]
        torch.testing.assert_close(scale, scale[:1].expand(16), rtol=1e-3, atol=0)
        own = batch["masks"][taker].bool()
        assert torch.equal(made["masks"][taker].bool(), own | pasted)
        assert (made["images"][taker][pasted] == batch["images"][3][pasted]).all()
    assert made["labels"].tolist() == [1, 1, 1, 1]
    assert torch.equal(made["waves"][3], batch["waves"][3])


def test_beside_silence_a_sound_stays_as_it_is():
    batch = batch_of([0, 0, 0, 1])
    batch["waves"] = torch.tensor([0.0, 1.0, 1.0, 0.25])[:, None].repeat(1, 16)
    made = prepared(share=1.0, sound="mix").transform(batch, np.random.default_rng(0))
    assert made["waves"][0].tolist() == [0.25] * 16


def test_where_one_mask_is_not_known_neither_is_that_of_both():
    method = prepared("tiny-avsbench", share=1.0, sound="mix")
    batch = batch_of([0, 0, 0, 0, 1, 1], [True, False, True, True, True, True])
    made = method.transform(batch, np.random.default_rng(0))
    assert made["labels"].tolist() == [1] * 6
    assert made["valid"].tolist() == [True, False, True, True, True, True]


def test_encoded_sounds_can_take_a_place_but_not_be_mixed():
    assert not prepared().mixes_clips
    method = prepared(sound="mix")
    assert method.mixes_clips
    with pytest.raises(MethodError, match="these sounds are encoded: give waves"):
        method.transform(heard([[1.0, 0.0]]), np.random.default_rng(0))


@pytest.mark.parametrize("sound", ["replace", "mix"])
def test_streams_without_labels_are_learned_and_resumed(sound, tmp_path):
    """Through the trainer, with clusters that a save lies in the midst of."""
    path = tmp_path / "state.safetensors"
    made = [Run(load("panda", {"share": 1.0, "sound": sound, "clusters": 2})) for _ in range(2)]
    for run in made:
        run.begin(PARTS[0], told=False, rule="every", every=2)
        run.network.train()
    whole, resumed = made
    given = [
        batch | {"labels": torch.full((3,), -1)}
        for batch in batches(whole.method, whole.network, PARTS[0])
    ]
    for batch in given[:2]:
        whole.trainer.step(dict(batch))
    whole.trainer.save(path)
    resumed.trainer.restore(path)
    for run in made:
        for batch in given[2:]:
            run.trainer.step(dict(batch))
    assert_equal(whole, resumed)
    assert int(whole.method.state["cluster.counts"].sum()) == 12
