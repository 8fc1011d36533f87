"""L2P: chosen prompts by hand, and what copies see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from atlasd.model.lora import base_state
from atlasd.model.losses import total_loss
from atlasd.model.method import MethodError
from atlasd.model.methods import load
from atlasd.model.presets import QUERY_AND_VALUE, TINY, build
from atlasd.model.teacher import Teacher, answer
from atlasd.model.visual import VitEncoder
from scipy.special import erf
from test_methods import ALL, FIRST, PARTS, STEPS, Part, Run, assert_equal, batches, network_for

PLACES = ("attention", "vit")


def vit_network(px=64, rank=0):
    """`tiny` upon the smallest of timm's ViTs, in random weights."""

    def visual(rank):
        return VitEncoder("vit_tiny_patch16_224", QUERY_AND_VALUE._replace(rank=rank))

    preset = replace(TINY, name="tiny-vit", visual=visual, image_px=px, lora_rank=rank)
    torch.manual_seed(0)
    return preset.classify(FIRST).network()


def prepared(kind="attention", **options):
    """The method in a network where by default its prompts join in a place."""
    network = (
        vit_network()
        if kind == "vit"
        else build("tiny", trained=False, vary={"lora_rank": 0}, categories=FIRST)
    )
    method = load("l2p", options)
    method.prepare(network)
    return network, method


def batch_of(network, n=3):
    draw = torch.Generator().manual_seed(1)
    px = network.preset.image_px
    images = torch.randint(0, 256, (n, px, px, 3), generator=draw, dtype=torch.uint8)
    return {"images": images, "waves": 0.1 * torch.randn(n, 32_000, generator=draw)}


def test_each_picture_chooses_the_keys_nearest_to_it_by_cosine():
    network, method = prepared(prompts=7, chosen=3, pull=0.25)
    batch = batch_of(network)
    with torch.no_grad():
        out = answer(network, batch)
        maps = network.visual.maps(network.normalise(batch["images"]))
    queries = maps[-1].mean(dim=(2, 3)).double().numpy()
    keys = network.prompt_pool.keys.detach().double().numpy()
    cosines = np.array(
        [[q @ k / np.linalg.norm(q) / np.linalg.norm(k) for k in keys] for q in queries]
    )
    expected = np.argsort(-cosines, axis=1)[:, :3]
    indices, near = network.prompt_pool.nearest()
    assert indices.tolist() == expected.tolist()
    chosen = np.take_along_axis(cosines, expected, axis=1)
    np.testing.assert_allclose(near.detach().numpy(), chosen, atol=1e-6)
    pull = method.extra_loss(batch, out)["pull"]
    assert float(pull.detach()) == pytest.approx(-0.25 * chosen.sum(axis=1).mean(), abs=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_only_chosen_keys_and_prompts_get_gradients(place):
    network, method = prepared(place, prompts=8, chosen=2)
    batch = batch_of(network)
    out = answer(network, batch)
    (out.mask_logits.square().mean() + method.extra_loss(batch, out)["pull"]).backward()
    pool = network.prompt_pool
    used = set(pool.nearest()[0].flatten().tolist())
    for parameter in (pool.prompts, pool.keys):
        moved = set(parameter.grad.flatten(1).any(dim=1).nonzero()[:, 0].tolist())
        assert moved == used
    assert all(p.grad is None for p in network.visual.backbone.parameters())


@pytest.mark.parametrize("place", PLACES)
def test_what_a_picture_chooses_does_not_depend_on_its_company(place):
    network, _ = prepared(place)
    batch = batch_of(network)
    with torch.no_grad():
        together = answer(network, batch).mask_logits
        alone = [
            answer(network, {n: v[i : i + 1] for n, v in batch.items()}).mask_logits
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_several_sounds_of_a_picture_meet_its_own_prompts(place):
    network, _ = prepared(place)
    batch = batch_of(network, 2)
    frames = network.normalise(batch["images"])
    audio = network.encode_audio(network.log_mel(batch["waves"]))
    four = type(audio)(*(part.repeat_interleave(2, dim=0) for part in audio))
    with torch.no_grad():
        once = network.forward_features(frames, audio).mask_logits
        twice = network.forward_features(frames, four).mask_logits
    torch.testing.assert_close(twice, once.repeat_interleave(2, dim=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
def test_copies_of_the_network_keep_the_prompts_of_their_moment(place):
    """A hook that is not bound to the pool would show a teacher the prompts that go on learning."""
    network, method = prepared(place)
    batch = batch_of(network)
    out = answer(network, batch)
    method.extra_loss(batch, out)["pull"].backward()
    teacher, served = Teacher(network), network.for_serving()
    assert not any(p.requires_grad for p in teacher.network.parameters())
    with torch.no_grad():
        before = teacher(batch).mask_logits, answer(served, batch).mask_logits
        network.prompt_pool.prompts.add_(1.0)
        assert torch.equal(teacher(batch).mask_logits, before[0])
        assert torch.equal(answer(served, batch).mask_logits, before[1])
        assert not torch.equal(answer(network, batch).mask_logits, before[0])


def test_a_network_without_cross_attention_is_refused():
    with pytest.raises(MethodError, match="tiny-avsbench has none"):
        load("l2p").prepare(build("tiny-avsbench"))


def test_a_vit_that_is_not_there_is_refused():
    with pytest.raises(MethodError, match="place is vit, and tiny has no ViT; 'attention' is for"):
        prepared(place="vit")


@pytest.mark.parametrize(
    "options",
    [
        {"chosen": 11}, {"chosen": 0}, {"length": 0}, {"pull": -1.0}, {"place": "head"},
        {"query": "batch"},
    ],
)  # fmt: skip
def test_options_out_of_bounds_are_named(options):
    with pytest.raises(MethodError, match=next(iter(options))):
        load("l2p", options)


# -- who chooses ----------------------------------------------------------------------------------


def queries_in_float64(network, batch, kind):
    """What the frozen backbone makes of each picture, without prompts."""
    frames = network.normalise(batch["images"])
    with torch.no_grad():
        if kind == "vit":
            return network.visual.backbone.forward_features(frames)[:, 0].double().numpy()
        return network.visual.maps(frames)[-1].mean(dim=(2, 3)).double().numpy()


@pytest.mark.parametrize("query", ["video", "frame"])
@pytest.mark.parametrize("kind", PLACES)
def test_frames_of_a_clip_choose_together_by_the_mean_of_their_queries(kind, query):
    network, method = prepared(kind, prompts=9, chosen=3, pull=1.0, query=query)
    network.clip_frames = 3
    batch = batch_of(network, 6)
    with torch.no_grad():
        out = answer(network, batch)
    asked = queries_in_float64(network, batch, kind)
    if query == "video":
        asked = np.repeat([asked[:3].sum(axis=0) / 3, asked[3:].sum(axis=0) / 3], 3, axis=0)
    keys = network.prompt_pool.keys.detach().double().numpy()
    length = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(keys, axis=1)
    cosines = asked @ keys.T / length
    expected = np.argsort(-cosines, axis=1)[:, :3]
    assert network.prompt_pool.nearest()[0].tolist() == expected.tolist()
    pull = float(method.extra_loss(batch, out)["pull"].detach())
    near = np.take_along_axis(cosines, expected, axis=1).sum(axis=1).mean()
    assert pull == pytest.approx(-near, abs=1e-5)


def test_who_chooses_matters_where_frames_differ_and_only_if_they_are_seen_together():
    network, _ = prepared("vit", prompts=40, chosen=1)
    batch = batch_of(network, 6)

    def chosen(frames):
        network.clip_frames = frames
        with torch.no_grad():
            answer(network, batch)
        return network.prompt_pool.nearest()[0][:, 0].tolist()

    alone, together = chosen(1), chosen(3)
    assert alone != together
    assert together == [together[0]] * 3 + [together[3]] * 3
    assert chosen(1) == alone


def test_a_clip_that_is_not_whole_is_refused():
    network, _ = prepared()
    network.clip_frames = 2
    with pytest.raises(ValueError, match="got 3 frames; clips of 2"):
        answer(network, batch_of(network, 3))


@pytest.mark.parametrize("place", PLACES)
def test_a_copy_has_its_own_number_of_frames_together(place):
    """What is served sees frames one by one, whatever the network that learns does."""
    network, _ = prepared(place)
    served = network.for_serving()
    network.clip_frames = 3
    batch = batch_of(network, 2)
    with torch.no_grad():
        assert answer(served, batch).mask_logits.shape == (2, 64, 64)
    assert Teacher(network).network.prompt_pool._together() == 3


# -- whose logits the cross-entropy sees ----------------------------------------------------------


def total(method, network, batch):
    """The loss that is differentiated, as the trainer puts it together."""
    out = answer(network, batch)
    terms = total_loss(out, batch["masks"], batch["valid"], batch["labels"], class_weight=0.5)
    return sum(method.extra_loss(batch, out).values(), terms["loss"]), terms, out


def cross_entropy_in_float64(logits, labels, rows):
    """Mean over the labels that are known, of logits of some rows alone."""
    losses = [
        np.log(np.exp(one[rows]).sum()) - one[label]
        for one, label in zip(logits.detach().double().numpy(), labels.tolist(), strict=True)
        if label >= 0
    ]
    return np.mean(losses)


def second_segment(method, classes=(2, 3)):
    """The method where the class head has four rows, two of them of the segment."""
    network = network_for(method, ALL)
    method.prepare(network)
    method.begin(Part(1, classes, 2))
    return network, batches(method, network, PARTS[1], 1)[0]


@pytest.mark.parametrize("labels", [[2, 3, 2], [3, -1, 3]])
def test_the_cross_entropy_sees_the_logits_of_the_current_classes_alone(labels):
    method = load("l2p", {"pull": 0.0})
    network, batch = second_segment(method)
    batch["labels"] = torch.tensor(labels)
    loss, terms, out = total(method, network, batch)
    masked = cross_entropy_in_float64(out.class_logits, batch["labels"], [2, 3])
    plain = cross_entropy_in_float64(out.class_logits, batch["labels"], [0, 1, 2, 3])
    assert plain - masked > 0.1
    masks = float(terms["bce"].detach() + terms["dice"].detach())
    assert float(loss.detach()) == pytest.approx(masks + 0.5 * masked, abs=1e-5)
    loss.backward()
    for parameter in (network.head.linear.weight, network.head.linear.bias):
        assert not parameter.grad[:2].any(), "not even by rounding, which Adam would blow up"
        assert parameter.grad[2:].any()


def test_the_weight_of_the_classes_counts():
    method = load("l2p", {"pull": 0.0})
    method.weigh_classes(2.0)
    network, batch = second_segment(method)
    out = answer(network, batch)
    found = float(method.extra_loss(batch, out)["current_classes"].detach())
    masked, plain = (
        cross_entropy_in_float64(out.class_logits, batch["labels"], rows)
        for rows in ([2, 3], [0, 1, 2, 3])
    )
    assert found == pytest.approx(2 * (masked - plain), abs=1e-5)


def test_a_label_of_another_segment_keeps_its_row_from_then_on():
    """As blurred boundaries bring them: the loss stays finite."""
    method = load("l2p", {"pull": 0.0})
    network, batch = second_segment(method)
    for labels, rows in (([2, 0, 3], [0, 2, 3]), ([2, 3, 3], [0, 2, 3])):
        batch["labels"] = torch.tensor(labels)
        loss, terms, out = total(method, network, batch)
        masked = cross_entropy_in_float64(out.class_logits, batch["labels"], rows)
        masks = float(terms["bce"].detach() + terms["dice"].detach())
        assert float(loss.detach()) == pytest.approx(masks + 0.5 * masked, abs=1e-5)
    method.begin(Part(2, (1,), 2))
    assert method.state["current"].tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("options", "segment"),
    [
        ({"current_classes": False}, Part(1, (2, 3), 2)),
        ({}, None),
        ({}, Part(1, (), 2)),
    ],
)
def test_where_no_class_is_told_all_so_far_are_seen(options, segment):
    method = load("l2p", {"pull": 0.0} | options)
    network, batch = second_segment(method)
    method.begin(segment)
    loss, terms, _ = total(method, network, batch)
    assert torch.equal(loss, terms["loss"])
    assert method.state_dict() == {}


def test_rows_of_strange_labels_outlive_a_restart(tmp_path):
    """The trainer's state tells what `begin` cannot."""
    path, blurred = tmp_path / "state.safetensors", (2,)
    part = Part(1, blurred, 2)
    whole, resumed = (Run(load("l2p")) for _ in range(2))
    for run in (whole, resumed):
        run.begin(part)
    whole.learn(PARTS[1], 0, 3)
    whole.trainer.save(path)
    assert whole.method.state["current"].tolist() == [False, False, True, True]
    resumed.trainer.restore(path)
    for run in (whole, resumed):
        run.learn(PARTS[1], 3, STEPS)
        run.consolidate(PARTS[1])
    assert_equal(whole, resumed)


# -- in the ViT -----------------------------------------------------------------------------------


def layer_norm(x, w, name):
    away = x - x.mean(axis=-1, keepdims=True)
    scaled = away / np.sqrt((away**2).mean(axis=-1, keepdims=True) + 1e-6)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def vit_in_float64(w, frame, prompts, heads=3):
    """One picture (3, 224, 224) and its prompts (n, D): tokens at the end, and after each block."""
    patches = [
        frame[:, y : y + 16, x : x + 16].ravel()
        for y in range(0, 224, 16)
        for x in range(0, 224, 16)
    ]
    kernel = w["patch_embed.proj.weight"].reshape(192, -1)
    embedded = np.stack(patches) @ kernel.T + w["patch_embed.proj.bias"]
    x = np.concatenate([w["cls_token"][0], embedded]) + w["pos_embed"][0]
    x, after = np.concatenate([x[:1], prompts, x[1:]]), []
    for i in range(12):
        q, k, v = np.split(
            linear(layer_norm(x, w, f"blocks.{i}.norm1"), w, f"blocks.{i}.attn.qkv"), 3, axis=1
        )
        heard = []
        for one in np.split(np.arange(192), heads):
            scores = np.exp(q[:, one] @ k[:, one].T / np.sqrt(len(one)))
            heard.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, one])
        x = x + linear(np.concatenate(heard, axis=1), w, f"blocks.{i}.attn.proj")
        hidden = linear(layer_norm(x, w, f"blocks.{i}.norm2"), w, f"blocks.{i}.mlp.fc1")
        gelu = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
        x = x + linear(gelu, w, f"blocks.{i}.mlp.fc2")
        after.append(x)
    return layer_norm(x, w, "norm"), after


def test_prompts_in_a_vit_against_a_float64_loop():
    network = vit_network(224)
    method = load("l2p", {"prompts": 6, "chosen": 2, "length": 3})
    method.prepare(network)
    frames = network.normalise(batch_of(network, 2)["images"])
    with torch.no_grad():
        found = network.visual(frames)
    w = {n: t.double().numpy() for n, t in base_state(network.visual.backbone).items()}
    pool = {n: t.double().numpy() for n, t in network.prompt_pool.state_dict().items()}
    choices = []
    for i, frame in enumerate(frames.double().numpy()):
        query = vit_in_float64(w, frame, np.zeros((0, 192)))[0][0]
        cosines = pool["keys"] @ query / np.linalg.norm(pool["keys"], axis=1)
        choices.append(np.argsort(-cosines)[:2].tolist())
        prompts = np.concatenate([pool["prompts"][j] for j in choices[-1]])
        tokens, after = vit_in_float64(w, frame, prompts)
        near = {"rtol": 1e-3, "atol": 1e-4}
        np.testing.assert_allclose(found.tokens[i].flatten(0, 1), tokens[7:], **near)
        for skip, number in zip(found.skips, network.visual.skip_blocks, strict=True):
            np.testing.assert_allclose(skip[i].flatten(1).T, after[number][7:], **near)
        bare = vit_in_float64(w, frame, np.zeros((0, 192)))[0][1:]
        assert np.abs(tokens[7:] - bare).max() > 0.01, "prompts have a say"
    assert network.prompt_pool.nearest()[0].tolist() == choices
    assert found.tokens.shape == (2, 14, 14, 192)


@pytest.mark.parametrize("px", [64, 224])
@pytest.mark.parametrize("rank", [0, 8])
def test_without_prompts_a_vit_says_what_timms_says(px, rank):
    encoder = vit_network(px, rank).visual
    frames = torch.randn(2, 3, px, px)
    with torch.no_grad():
        found = encoder(frames)
        tokens, maps = encoder.backbone.forward_intermediates(frames, indices=[2, 5])
    assert torch.equal(found.tokens.flatten(1, 2), tokens[:, 1:])
    assert torch.equal(found.skips[0], maps[1])
    assert torch.equal(found.skips[1], maps[0])


def test_in_a_vit_prompts_and_keys_train_and_the_backbone_does_not():
    network, _ = prepared("vit")
    trained = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    parts = {"conditioning", "fusion", "decoder", "head", "prompt_pool"}
    assert {name.partition(".")[0] for name in trained} == parts
    assert trained["prompt_pool.prompts"] == 10 * 5 * 192
    assert trained["prompt_pool.keys"] == 10 * 192


def test_in_a_vit_the_prompts_can_still_join_the_attention():
    network, _ = prepared("vit", place="attention")
    audio_dim = network.fusion.key.in_features
    assert network.prompt_pool.prompts.shape == (10, 5, audio_dim)
    assert answer(network, batch_of(network)).mask_logits.shape == (3, 64, 64)


def test_prompts_in_a_vit_go_on_where_they_were_saved(tmp_path):
    path, stop = tmp_path / "state.safetensors", 3
    whole, resumed = (Run(load("lwf+l2p"), vit_network()) for _ in range(2))
    for run in (whole, resumed):
        run.begin(PARTS[0])
    whole.learn(PARTS[0], 0, stop)
    whole.trainer.save(path)
    whole.learn(PARTS[0], stop)
    resumed.trainer.restore(path)
    resumed.learn(PARTS[0], stop)
    for run in (whole, resumed):
        run.consolidate(PARTS[0])
    assert_equal(whole, resumed)
    late = Run(load("lwf+l2p"), vit_network())
    late.go_on(whole.boundary())
    for run in (whole, late):
        run.begin(PARTS[1])
        run.learn(PARTS[1])
        run.consolidate(PARTS[1])
    assert_equal(whole, late)
    assert whole.answers().class_logits.shape == (3, 4)


@pytest.mark.slow
def test_the_atlas_preset_learns_prompts():
    vary = {"lora_rank": 0}
    network = build("atlas", trained=False, pretrained=False, vary=vary, categories=FIRST)
    run = Run(load("l2p"), network)
    assert network.prompt_pool.prompts.shape == (10, 5, 768)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    run.begin(PARTS[0])
    run.learn(PARTS[0], 0, 1)
    moved = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    assert {"prompt_pool.prompts", "prompt_pool.keys"} < moved
    assert not any(n.startswith(("visual.", "audio.")) for n in moved)
