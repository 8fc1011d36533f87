"""Every continual-learning method keeps the same promises, and any is found by its file's name."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest
import torch
from atlasd.model.anchoring import Anchored
from atlasd.model.consolidator import Consolidator
from atlasd.model.method import Method, MethodError, PastDataError, SegmentData
from atlasd.model.methods import load, names
from atlasd.model.presets import build
from atlasd.model.taskloss import task_loss
from atlasd.model.training import Settings, Trainer

FIRST, ALL = ("dog", "cow"), ("dog", "cow", "car", "violin")
STEPS = 4
OWN = "eleventh"
COMPOSED = ("panda+dgr", "panda+atlas", "lwf+ewc", "lwf+atlas", "panda+fecam")
METHODS = (*names(), OWN, *COMPOSED)
FEW = {"examples": 5}
LIGHT = {"ranpac": {"projections": 64}, "ewc": FEW, "mas": FEW, "lwf+ewc": FEW}
"""Sizes no promise depends on: with those of the defaults, solving and asking take the most time;
five examples are still of two batches."""

OWN_SOURCE = '''
"""Weight decay towards the first consolidation, as a method of one's own may be written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from ..method import Batch, Method
from ..network import Output


@dataclass(eq=False)
class Eleventh(Method):
    strength: ClassVar[str] = "pull"

    pull: float = 0.1

    def extra_loss(self, batch: Batch, out: Output) -> dict[str, Tensor]:
        if self.pull == 0 or "anchor" not in self.state:
            return {}
        return {"pull": self.pull * (self.weight() - self.state["anchor"]).square().sum()}

    def consolidate(self, data: Iterable[Batch]) -> None:
        self.state["anchor"] = self.weight().detach().clone()

    def weight(self) -> Tensor:
        return next(self.network.get_submodule("decoder").parameters())
'''


@dataclass(frozen=True)
class Part:
    """A segment as the evaluator tells it."""

    index: int
    classes: tuple[int, ...]
    known: int


PARTS = (Part(0, (0, 1), 0), Part(1, (2, 3), 2))


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Loads a method by name, those of a temporary folder included."""
    folder = tmp_path_factory.mktemp("own")
    (folder / f"{OWN}.py").write_text(OWN_SOURCE)
    assert OWN in names([folder])
    return lambda name, **options: load(name, LIGHT.get(name, {}) | options, [folder])


def network_for(method, categories=FIRST):
    """The network that a run with the method starts from, in random weights that have a say."""
    vary = {} if method.trainable == "lora" else {"lora_rank": 0}
    network = build("tiny", trained=False, vary=vary, categories=categories)
    if method.trainable == "all":
        network.unfreeze_backbone()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(network.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return network


def batches(method, network, part, count=STEPS):
    """Batches of three frames with sounds as the method needs them, the same for the same part."""
    preset, audio = network.preset, network.audio.state_dict()
    key = (preset.name, preset.image_px, preset.lora_rank, method.mixes_clips, part)
    if key not in drawn:
        drawn[key] = audio, draw_batches(method, network, part)
    encoder, made = drawn[key]
    assert same(encoder, audio), f"the audio encoder of {preset.name} is another one"
    return [{n: value.clone() for n, value in batch.items()} for batch in made[:count]]


drawn = {}
"""By network, kind of sound and part: the frozen audio encoder, and the batches that it encoded."""


def draw_batches(method, network, part):
    draw = torch.Generator().manual_seed(100 + part.index)
    px, rate = network.preset.image_px, network.preset.sample_rate_hz
    made = []
    for step in range(STEPS):
        rows = torch.tensor(part.classes)
        images = torch.randint(0, 256, (3, px, px, 3), generator=draw, dtype=torch.uint8)
        masks = torch.zeros(3, px, px, dtype=torch.uint8)
        for row in range(3):
            y, x = torch.randint(0, px // 2, (2,), generator=draw).tolist()
            masks[row, y : y + px // 3, x : x + px // 3] = 1
        labels = rows[torch.tensor([step % 2, 0, 1 if step == 2 else 0])].clone()
        waves = 0.1 * torch.randn(3, rate, generator=draw)
        batch = {"images": images, "masks": masks, "labels": labels}
        batch["valid"] = torch.tensor([True, True, step != 1])
        if method.mixes_clips:
            batch["waves"] = waves
        else:
            features = network.encode_audio(network.log_mel(waves))
            batch |= {"tokens": features.tokens, "embedding": features.embedding}
        made.append(batch)
    return made


class Run:
    """A method on its own network, driven as the evaluator drives it."""

    def __init__(self, method, network=None):
        self.method = method
        self.network = network or network_for(method)
        method.prepare(self.network)
        self.moving = {n for n, p in self.network.named_parameters() if p.requires_grad}
        self.trainer = None

    def begin(self, part, told=True, **consolidation):
        torch.manual_seed(part.index)
        if part.index:
            self.network.grow(ALL)
        self.moving |= {n for n, _ in self.network.named_parameters() if n.startswith("head.")}
        self.method.begin(part if told else None)
        self.trainer = None
        if any(p.requires_grad for p in self.network.parameters()):
            self.trainer = Trainer(
                self.network,
                task_loss(self.network, 0.5),
                Settings(epochs=1, lr=1e-2),
                STEPS,
                method=self.method,
                consolidator=Consolidator(**consolidation),
                seed=3,
            )

    def learn(self, part, first=0, last=STEPS):
        self.network.train()
        for batch in batches(self.method, self.network, part)[first:last]:
            if self.trainer is not None:
                self.trainer.step({name: value.clone() for name, value in batch.items()})

    def consolidate(self, part, steps=STEPS):
        data = SegmentData(batches(self.method, self.network, part, steps))
        self.method.consolidate(data)
        data.close()
        self.network.eval()

    def boundary(self):
        tensors = {n: p.detach().clone() for n, p in self.network.named_parameters()}
        state = {n: value.clone() for n, value in self.method.state_dict().items()}
        return {n: value for n, value in tensors.items() if n in self.moving}, state

    def go_on(self, boundary):
        """Take a boundary's tensors into fresh objects, as `replay` does."""
        own = dict(self.network.named_parameters())
        with torch.no_grad():
            for name, value in boundary[0].items():
                own[name].copy_(value)
        self.method.load_state_dict(boundary[1])

    def answers(self):
        part = PARTS[len(self.network.preset.categories) > 2]
        batch = batches(self.method, self.network, part, 1)[0]
        with torch.no_grad():
            out = task_loss(self.network, 0.5)(batch).out
            return self.method.predict(batch, out, None)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def assert_equal(a, b):
    """Two runs have the same weights, the same state and say the same."""
    assert same(a.network.state_dict(), b.network.state_dict())
    assert same(a.method.state_dict(), b.method.state_dict())
    first, second = a.answers(), b.answers()
    assert torch.equal(first.mask_logits, second.mask_logits)
    assert torch.equal(first.class_logits, second.class_logits)


def two_segments(run, on_boundary=lambda: None):
    for part in PARTS:
        run.begin(part)
        run.learn(part)
        run.consolidate(part)
        on_boundary()
    return run


# -- the promises ---------------------------------------------------------------------------------


STRONG = [
    name for name in METHODS if all(part == OWN or load(part).strength for part in name.split("+"))
]


def at_zero(name, make):
    """Options with which a method is to be Finetune."""
    return {f"{part}.{make(part).strength}": 0.0 for part in name.split("+")}


@pytest.mark.parametrize("name", STRONG)
def test_strength_zero_is_finetune_bit_for_bit(name, make):
    method = make(name, **at_zero(name, make))
    plain = Method()
    vars(plain).update(trainable=method.trainable, mixes_clips=method.mixes_clips)
    one, two = Run(method), Run(plain)
    for part in PARTS:
        for run in (one, two):
            run.begin(part)
            run.learn(part)
            run.consolidate(part)
        assert same(one.network.state_dict(), two.network.state_dict()), f"segment {part.index}"


@pytest.mark.parametrize("name", STRONG)
def test_with_its_default_strength_it_is_not_finetune(name, make):
    one, two = two_segments(Run(make(name))), two_segments(Run(make(name, **at_zero(name, make))))
    assert not same(one.network.state_dict(), two.network.state_dict())


@pytest.mark.parametrize("stop", [1, STEPS - 1])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_was_cut_short_ends_as_one_that_was_not(name, stop, make, tmp_path):
    """Within the first segment, within the second, and at the boundary between them."""
    path = tmp_path / "state.safetensors"
    whole = Run(make(name))
    boundary = None
    for part in PARTS:
        resumed = Run(make(name))
        if boundary is not None:
            resumed.network.grow(FIRST)
            resumed.go_on(boundary)
        whole.begin(part)
        whole.learn(part, 0, stop)
        resumed.begin(part)
        if whole.trainer is not None:
            whole.trainer.save(path)
            torch.manual_seed(99)
            resumed.trainer.restore(path)
            rng = torch.get_rng_state()
            resumed.learn(part, stop)
            torch.set_rng_state(rng)
        whole.learn(part, stop)
        resumed.consolidate(part)
        whole.consolidate(part)
        assert_equal(whole, resumed)
        boundary = whole.boundary()


@pytest.mark.parametrize("name", METHODS)
def test_what_was_read_from_a_file_is_put_where_the_network_is(name, make):
    """On a device without numbers, which all networks can be on; PANDA counts on the CPU."""
    run = Run(make(name))
    run.begin(PARTS[0])
    run.learn(PARTS[0], last=1)
    run.consolidate(PARTS[0], 1)
    there = make(name)
    network = network_for(there).to("meta")
    network.grow(ALL)  # a teacher's head is then another
    there.prepare(network)
    there.load_state_dict(run.method.state_dict())
    for key, value in there.state_dict().items():
        counted = "panda" in (name, key.split(".")[0])
        assert value.device.type == ("cpu" if counted or not value.ndim else "meta"), key


@pytest.mark.parametrize("name", METHODS)
def test_told_of_no_boundary_again_nothing_is_counted_anew(name, make):
    run = Run(make(name))
    run.begin(PARTS[0], told=False)
    run.learn(PARTS[0], last=1)
    before = {key: value.clone() for key, value in run.method.state_dict().items()}
    run.method.begin(None)
    assert same(before, run.method.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_without_boundaries_it_learns_and_resumes(name, make, tmp_path):
    """Nobody tells where a segment begins; a save lies before and one after a consolidation."""
    if make(name).needs_boundaries:
        pytest.skip("it declares that it needs boundaries")
    for stop in (1, 3):
        path = tmp_path / f"{stop}.safetensors"
        runs = [Run(make(name)) for _ in range(2)]
        for run in runs:
            run.begin(PARTS[0], told=False, rule="every", every=2)
        whole, resumed = runs
        whole.learn(PARTS[0], 0, stop)
        whole.trainer.save(path)
        whole.learn(PARTS[0], stop)
        resumed.trainer.restore(path)
        resumed.learn(PARTS[0], stop)
        assert_equal(whole, resumed)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parameters_and_statistics_do_not_move(name, make):
    run = Run(make(name))
    frozen = {n: p.clone() for n, p in run.network.named_parameters() if not p.requires_grad}
    frozen |= {n: b.clone() for n, b in run.network.named_buffers()}
    trained = {n: p.detach().clone() for n, p in run.network.named_parameters() if p.requires_grad}
    two_segments(run)
    now = run.network.state_dict()
    assert frozen, "the audio encoder at least"
    assert [n for n in frozen if n in now and not torch.equal(frozen[n], now[n])] == []
    assert any(not torch.equal(trained[n], now[n]) for n in trained if not n.startswith("head."))


@pytest.mark.parametrize("name", METHODS)
def test_all_that_asks_for_gradients_is_optimised(name, make):
    run = Run(make(name))
    for part in PARTS:
        run.begin(part)
        if run.trainer is not None:
            groups = run.trainer._optimizer.param_groups
            optimised = {id(p) for group in groups for p in group["params"]}
            wanted = {id(p) for p in run.network.parameters() if p.requires_grad}
            assert optimised == wanted
        run.learn(part)
        run.consolidate(part)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_trains_it_can_train(name, make):
    """Each parameter that is optimised is reached by the loss at some step, and gets finite."""
    run = Run(make(name))
    run.begin(PARTS[0])
    run.learn(PARTS[0], 0, 1)
    reached = {n for n, p in run.network.named_parameters() if p.grad is not None}
    assert reached == {n for n, p in run.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("name", METHODS)
def test_state_is_tensors_only(name, make):
    run = Run(make(name))

    def check():
        for key, value in run.method.state_dict().items():
            assert isinstance(key, str)
            assert isinstance(value, torch.Tensor), key
            assert not value.requires_grad, key

    check()
    two_segments(run, check)


def held(method, steps):
    """Shapes of a method's state after two segments of so many batches."""
    run = Run(method)
    for part in PARTS:
        run.begin(part)
        run.learn(part, last=steps)
        run.consolidate(part, steps)
    return {name: value.shape for name, value in method.state_dict().items()}


class Hoarder(Method):
    """Takes the pictures of each segment along."""

    def consolidate(self, data):
        kept = [self.state["kept"]] if "kept" in self.state else []
        self.state["kept"] = torch.cat([*kept, *(batch["images"] for batch in data)])


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_without_exemplars_holds_does_not_grow_with_clips(name, make):
    """Nor does any ask for a segment that is over, which would raise."""
    assert make(name).exemplar_free
    assert held(make(name), 2) == held(make(name), STEPS)


def test_a_method_that_hoards_is_found_out():
    assert held(Hoarder(), 2) != held(Hoarder(), STEPS)


def test_a_method_that_asks_for_a_segment_that_is_over_is_stopped():
    class Nostalgic(Method):
        def consolidate(self, data):
            for batch in getattr(self, "before", data):
                assert batch
            self.before = data

    with pytest.raises(PastDataError, match="earlier segment"):
        two_segments(Run(Nostalgic()))


def test_segment_data_lies_where_it_is_wanted():
    (batch,) = SegmentData([{"images": torch.zeros(2)}], "meta")
    assert batch["images"].device.type == "meta"


def test_segment_data_closes_while_it_is_read_and_reads_again_before():
    data = SegmentData([{"images": torch.zeros(1)}, {"images": torch.ones(1)}])
    assert len(list(data)) == len(list(data)) == 2
    reader = iter(data)
    next(reader)
    data.close()
    with pytest.raises(PastDataError, match="without exemplars"):
        next(reader)


ANCHORED = [n for n in names() if isinstance(load(n), Anchored)]


@pytest.mark.parametrize("name", ANCHORED)
def test_the_penaltys_gradient_is_autograds(name, make):
    """`edit_grads` adds in closed form what differentiating `penalty()` would add."""
    run = Run(make(name))
    two_segments(run)
    method = run.method
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.named.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    penalty = method.penalty()
    assert penalty > 0
    expected = torch.autograd.grad(penalty, list(method.named.values()))
    own = [torch.randn(p.shape, generator=draw) for p in method.named.values()]
    for parameter, grad in zip(method.named.values(), own, strict=True):
        parameter.grad = grad.clone()
    method.edit_grads()
    found = [p.grad for p in method.named.values()]
    for name_, f, o, e in zip(method.named, found, own, expected, strict=True):
        torch.testing.assert_close(
            f, o + e, rtol=1e-5, atol=1e-6, msg=lambda m, n=name_: f"{n} {m}"
        )


@pytest.mark.parametrize("name", ANCHORED)
def test_new_rows_of_the_class_head_are_free_until_the_next_consolidation(name, make):
    run = Run(make(name))
    run.begin(PARTS[0])
    run.learn(PARTS[0])
    run.consolidate(PARTS[0])
    run.begin(PARTS[1])
    for key, value in run.method.state_dict().items():
        kind, _, parameter = key.partition(".")
        if parameter == "head.linear.weight" and kind == "importance":
            assert not value[2:].any()
            assert value[:2].any()
        if parameter == "head.linear.weight" and kind == "anchor":
            assert torch.equal(value[2:], run.network.head.linear.weight[2:])


@pytest.mark.parametrize("name", METHODS)
def test_a_class_head_may_come_after_a_consolidation(name, make):
    """Streams may be without labels at first."""
    method = make(name)
    run = Run(method, network_for(method, ()))
    run.begin(PARTS[0])
    run.learn(PARTS[0])
    run.consolidate(PARTS[0])
    run.begin(PARTS[1])
    run.learn(PARTS[1])
    run.consolidate(PARTS[1])
    assert run.answers().class_logits.shape == (3, 4)


@pytest.mark.parametrize("name", METHODS)
def test_told_the_segment_it_means_its_classes_alone(name, make):
    run = two_segments(Run(make(name)))
    batch = batches(run.method, run.network, PARTS[1], 1)[0]
    with torch.no_grad():
        out = task_loss(run.network, 0.5)(batch).out
        told = run.method.predict(batch, out, PARTS[1])
        free = run.method.predict(batch, out, None)
    assert (told.class_logits[:, :2] == -torch.inf).all()
    assert torch.equal(told.class_logits[:, 2:], free.class_logits[:, 2:])
    assert torch.isfinite(free.mask_logits).all()
    assert torch.isfinite(free.class_logits).all()
    if not run.method.uses_task_id:
        assert torch.equal(told.mask_logits, free.mask_logits)


@pytest.mark.parametrize("name", METHODS)
def test_batches_without_a_label_or_without_a_mask_are_learned(name, make):
    run = Run(make(name))
    run.begin(PARTS[0])
    run.network.train()
    for blank in ("labels", "valid"):
        batch = batches(run.method, run.network, PARTS[0], 1)[0]
        batch[blank] = torch.full_like(batch[blank], -1 if blank == "labels" else 0)
        scalars = run.trainer.step(batch)
        assert all(value == value for value in scalars.values())


# -- loading --------------------------------------------------------------------------------------


def test_all_methods_of_the_design_are_there():
    found = set(names())
    assert found == {
        "atlas", "finetune", "lwf", "ewc", "si", "mas", "l2p", "ranpac", "fecam", "dgr", "panda",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, r"there is no method 'nothing'; there are atlas, dgr, .*--methods"),
        ("../ewc", {}, r"there is no method '../ewc'"),
        ("_own", {}, "there is no method"),
        ("ewc", {"lambda": 1.0}, r"ewc has no option 'lambda'; it has examples, gamma, lam"),
        ("ewc", {"state": 1}, "ewc has no option 'state'"),
        ("finetune", {"lam": 1.0}, "finetune has no option 'lam'; it has none"),
        ("ewc", {"lam": "1"}, r"ewc\.lam is '1'; a value like 10\.0 is needed \(float\)"),
        ("ewc", {"examples": 1.5}, r"ewc\.examples is 1\.5; .*\(int\)"),
        ("ewc", {"lam": True}, r"ewc\.lam is True"),
        ("lwf", {"where": 3}, r"lwf\.where is 3; a value like 'everywhere'"),
        ("ewc", {"lam": -1}, r"lam -1\.0.*at least 0"),
    ],
)
def test_what_cannot_be_loaded_is_said(name, options, message):
    with pytest.raises(MethodError, match=message):
        load(name, options)


def test_an_integer_is_good_enough_for_a_float():
    method = load("ewc", {"lam": 3})
    assert method.lam == 3.0
    assert type(method.lam) is float


def test_a_hyphen_is_as_good_as_an_underscore(tmp_path):
    source = OWN_SOURCE.replace("Eleventh", "MyOwn")
    (tmp_path / "my_own.py").write_text(source)
    assert load("my-own", {}, [tmp_path]).pull == 0.1


def test_ones_own_folder_comes_first(tmp_path):
    (tmp_path / "ewc.py").write_text(OWN_SOURCE)
    assert type(load("ewc", {}, [tmp_path])).__name__ == "Eleventh"
    assert type(load("ewc")).__name__ == "EWC"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", r"bad\.py holds 0 classes that inherit from Method"),
        (OWN_SOURCE + "\n\nclass Twelfth(Eleventh):\n    pass\n", "holds 2 classes"),
        ("from ..method import Method\n", "holds 0 classes"),
        ("import nowhere_at_all\n", r"bad\.py cannot be imported: ModuleNotFoundError"),
        ("def broken(:\n", r"bad\.py cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_is_no_method_is_refused(source, message, tmp_path):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(MethodError, match=message):
        load("bad", {}, [tmp_path])


def test_every_option_is_described_by_its_class():
    """A field that is not named in the docstring is one that nobody can know of."""
    for name in names():
        kind = type(load(name))
        told = " ".join(base.__doc__ or "" for base in kind.__mro__)
        options = {f.name for f in fields(kind) if f.init and f.name != "xi"}
        assert [option for option in options if f"{option}:" not in told] == []
