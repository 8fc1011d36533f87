"""What one evaluation run is told, and how a grid of runs is written down.

A run is (network, method, protocol, order, seed, everything else): its folder's name says the
first part, the hash of the whole says whether a folder holds this run or another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..model.adapting import Parts
from ..model.consolidator import consolidator_of
from ..model.method import Trainable
from ..streams.avslayout import FRAMES_PER_CLIP, Subset

_GRIDS = Path(__file__).parent / "grids"

ProtocolName = Literal["til", "cil", "dil", "dil-per-category", "task-free"]
_PROTOCOLS = get_args(ProtocolName)

_NAMED = {"network", "vary", "system", "protocol", "order", "seed"}
"""Keys that a run's folder names by themselves."""

_LATER = frozenset(
    ["base", "bfloat16", "clip_norm", "features_of", "loss", "parts", "passes", "start", "together"]
)
"""Keys that came later count only where they say something: older runs are found."""

Decoder = Literal["full", "lora_after_first"]


class GridError(ValueError):
    """A grid or a run that cannot be started: every fault, one a line."""


class RunSpec(BaseModel):
    """One run.

    The defaults are the paper's where it states them (§5.1: AdamW, 30 epochs, learning rate 1e-3,
    weight decay 5e-4).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: Path
    """A data set in AVSBench's layout."""
    system: str = Field(default="", pattern=r"^[a-z0-9][a-z0-9+=._-]{0,63}$|^$")
    """What tables call it; empty: the method's name. What a grid's axis varies is added to it."""
    network: str = "atlas-lite"
    """A preset; it starts untrained, but for published or shipped frozen parts."""
    vary: dict[str, int] = {}
    """What is other than in the preset, as `atlasd train --vary`."""
    random: bool = False
    """Take no published weights at all: every part random."""
    start: str = ""
    """A trained network to go on from, as a daemon does: `ship`, the weights that ship, or a
    checkpoint; empty: untrained. What its training saw is the user's to know."""
    parts: Literal["", Parts] = ""
    """Of a start: what moves, as `learner.parts`: adapters or all."""
    base: Literal["zero", "ship"] = "zero"
    """Of a start, as `learner.base`: `ship` holds what it knows by the importances beside it."""
    method: str = "atlas"
    """A file in `model/methods`, or in a folder given with `--methods`; several that learn together
    as a list, or with `+` between them."""
    options: dict[str, float | int | bool | str] = {}
    """The method's options; of several methods `NAME.OPTION`, or the option where one has it."""
    trainable: Trainable | None = None
    """What trains of the visual backbone: all, lora or decoder (nothing); none: as the method."""
    protocol: ProtocolName = "cil"
    """`til`, `cil`, `dil`, `dil-per-category` on single sources, `task-free` on several."""
    category: str = ""
    """Of `dil-per-category`: the one that is learned."""
    apart: str = Field(default="", pattern=r"^[\w.+-]*$")
    """A further part of the folder's name; a grid puts the category there where it is an axis."""
    split: str = ""
    """B-I: classes (or clips) in the first task and in each further one; empty: 11-2 or 31-5."""
    remainder: Literal["refuse", "drop", "keep"] | None = None
    """What becomes of classes or clips that fill no task; none: refuse, in task-free drop."""
    protocol_tasks: int = Field(default=0, ge=0)
    """Tasks (domains, in `dil`) that the protocol makes; 0: the paper's, or what the split does."""
    order: Literal["random", "similarity"] = "random"
    """Of the classes or clips."""
    features_of: str = ""
    """A preset by whose frozen features `dil` makes its domains and `similarity` its order; empty:
    the run's own network, so that runs of two networks have other domains."""
    blur_disjoint: int = Field(default=50, ge=0, le=100)
    """N: percent of the clips that stay in their task. Only where `blur` is over 0."""
    blur: int = Field(default=-1, ge=-1, le=100)
    """M: percent of the others that change places over the whole stream; -1: 10 in task-free,
    else 0."""
    soft_clips: int = Field(default=0, ge=0)
    """Clips by which each boundary is softened to either side."""
    tasks: int = Field(default=0, ge=0)
    """Stop after so many tasks; 0: all. Tuning sees the first two."""
    clips_per_class: int = Field(default=0, ge=0)
    """Training clips of each category, at even distances in the data set's list; 0: all. Clips
    without a category all take part."""
    seed: int = Field(default=0, ge=0)
    """Of the order, the network's random parts, the batches."""
    schedule: Literal["epochs", "stream"] = "epochs"
    """`stream`: one pass in the order of arrival, as the daemon learns."""
    together: int = Field(default=0, ge=0, le=10_000)
    """Of a stream: clips that are learned together, as `learner.clips`; 0: what a step takes."""
    passes: int = Field(default=1, ge=1, le=100)
    """Of a stream: over what is learned together, as `learner.passes`."""
    consolidate: str = "oracle"
    """At told boundaries, on plateaus, or every N steps; `plateau:5:5` looks at 5 steps and lets at
    least 5 lie between (20 and 25 by default), for tasks of few steps."""
    decoder: Decoder = "full"
    """`full` trains in every task; `lora_after_first`: from the second task on only LoRA on its
    convolutions does, of the rank that the backbone's has, over the decoder of the first."""
    epochs: int = Field(default=30, ge=1, le=1000)
    """Over each task's clips."""
    batch: int = Field(default=16, ge=1, le=1024)
    """Frames a step."""
    lr: float = Field(default=1e-3, gt=0)
    """AdamW's."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """AdamW's."""
    clip_norm: float = Field(default=0.0, ge=0)
    """Largest norm of the whole gradient, as `learner.clip_norm`; 0 leaves it as it is."""
    class_weight: float = Field(default=0.5, ge=0)
    """λ_cls of Eq. 10."""
    loss: Literal["atlas", "avsbench"] = "atlas"
    """What is learned by: the ATLAS paper's, or that of AVSBench's authors for their network."""
    bfloat16: bool = False
    """Make the forward pass of training steps in bfloat16 where that is safe: faster on processors
    that have it. Encoded sounds, consolidation and scores stay float32."""
    variants: int = Field(default=4, ge=1, le=64)
    """Variations of each clip's sound that training draws from; 1: the sound as it is, and the
    pictures too."""
    score: Literal["val", "test"] = "test"
    """What is scored; tune on val."""
    score_frames: Literal["all", "one"] = "all"
    """Score all pictures of a clip, or one each, in turn: a fifth of the work."""
    score_px: int = Field(default=224, ge=32, le=2048)
    """Side of the masks that are compared."""
    threads: int = Field(default=1, ge=1, le=1024)
    """Of torch; equal results need equal threads."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """Where to compute."""

    @field_validator("method", mode="before")
    @classmethod
    def _joined(cls, told: object) -> object:
        return "+".join(map(str, told)) if isinstance(told, list) else told

    @field_validator("vary")
    @classmethod
    def _whole_clips_or_frames(cls, value: dict[str, int]) -> dict[str, int]:
        if (frames := value.get("clip_frames", 1)) not in (1, FRAMES_PER_CLIP):
            raise ValueError(
                f"clip_frames is {frames}; a run learns and scores frames by themselves (1) or all "
                f"{FRAMES_PER_CLIP} of a clip together"
            )
        return value

    @field_validator("consolidate")
    @classmethod
    def _is_a_rule(cls, value: str) -> str:
        consolidator_of(value)
        return value

    @field_validator("together", "passes")
    @classmethod
    def _needs_a_stream(cls, value: int, info: ValidationInfo) -> int:
        default = cls.model_fields[info.field_name or ""].default
        if value != default and info.data.get("schedule", "epochs") != "stream":
            raise ValueError(f"{info.field_name} is {value}, and schedule no stream: it is of that")
        return value

    @field_validator("decoder")
    @classmethod
    def _needs_boundaries_and_a_rank(cls, value: Decoder, info: ValidationInfo) -> Decoder:
        if value == "lora_after_first":
            consolidate = info.data.get("consolidate", "oracle")
            if consolidate != "oracle":
                raise ValueError(
                    "lora_after_first is applied at the first boundary, which must be told: "
                    f"consolidate is {consolidate}, oracle is needed"
                )
            if info.data.get("vary", {}).get("lora_rank") == 0:
                raise ValueError("lora_after_first needs a rank: vary.lora_rank is 0")
        return value

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        if not self.start and (self.parts or self.base == "ship"):
            raise ValueError(
                f"parts is {self.parts!r} and base {self.base}, and there is no start: they are of "
                "a trained network; set start to ship or to a checkpoint's path, or leave both out"
            )
        if self.start and not self.parts:
            raise ValueError(
                f"start is {self.start}, and parts does not say what of it moves: adapters, as a "
                "daemon by default, or all"
            )
        brought = {"random", "vary", "trainable", "decoder"} & self.model_fields_set
        told = [
            n for n in sorted(brought) if getattr(self, n) != type(self).model_fields[n].default
        ]
        if self.start and told:
            raise ValueError(
                f"start is {self.start}, and so is told {', '.join(told)}: a trained network "
                "brings its own, and parts says what moves; leave out one or the other"
            )
        return self

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.system or self.method

    @property
    def subset(self) -> Subset:
        """Which half of AVSBench the protocol runs on."""
        return "ms3" if self.protocol == "task-free" else "s4"

    @property
    def blurred(self) -> int:
        """M, in percent."""
        return (10 if self.protocol == "task-free" else 0) if self.blur < 0 else self.blur

    @property
    def folder(self) -> Path:
        """Where the run lies below the grid's folder."""
        network = self.network + "".join(f"+{k}={v}" for k, v in sorted(self.vary.items()))
        setting = "-".join(filter(None, (self.protocol, self.apart, self.order)))
        return Path(network) / self.name / setting / f"seed{self.seed}"

    @property
    def twin(self) -> RunSpec | None:
        """The CIL run that learns what this TIL run learns, by the same steps; None: not TIL."""
        return self.model_copy(update={"protocol": "cil"}) if self.protocol == "til" else None

    @property
    def hash(self) -> str:
        """Names all that decides the result; where it is computed does not count."""
        fields = type(self).model_fields
        later = {name for name in _LATER if getattr(self, name) == fields[name].default}
        told = self.model_dump(mode="json", exclude={"device", "system", "apart"} | later)
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


class _Grid(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    base: dict[str, Any] = {}
    systems: dict[str, dict[str, Any]] = {}
    axes: dict[str, list[Any]] = {}


def grid_of(
    path: Path | None,
    *,
    data: Path | None = None,
    systems: Sequence[str] = (),
    axes: Mapping[str, Sequence[Any]] | None = None,
    overrides: Sequence[str] = (),
) -> list[RunSpec]:
    """All runs of a grid file, of the command line, or of both.

    In the file ``base`` holds what all runs share, ``systems`` names rows of a table with what is
    special to each, ``axes`` lists values by key; the runs are all combinations. An axis over any
    key that neither a folder nor a setting names makes a row of each value: ``atlas+c=0.1``.
    ``a.b`` is key b of a. A value that is a mapping with the axis's own key in it brings further
    keys along: ``protocol: [cil, {protocol: task-free, protocol_tasks: 30}]``. In a system, a
    protocol's name holds what it is told there besides: ``task-free: {options.gamma: 0.9}``.

    Args:
        path: the file, YAML, or the name of one that ships; None: there is none.
        data: over the file's.
        systems: only these of the file's; none: all.
        axes: values by key, instead of the file's of the same key; what the file's value brings
            along comes along.
        overrides: ``KEY=VALUE``, the value as in YAML; over all else.

    Raises:
        GridError: it cannot be read, or a run in it is told something unknown.
    """
    grid = _read(path) if path is not None else _Grid()
    told: dict[str, Any] = {} if data is None else {"data": data}
    for one in overrides:
        key, equals, value = one.partition("=")
        if not equals:
            raise GridError(f"--set {one}: KEY=VALUE is needed")
        _merge(told, {key: yaml.safe_load(value)})
    if unknown := [name for name in systems if name not in grid.systems]:
        raise GridError(
            f"--system {unknown[0]}: {path or 'the command line'} has "
            f"{', '.join(grid.systems) or 'no systems'}"
        )
    wanted = {n: told for n, told in grid.systems.items() if not systems or n in systems}
    chosen = dict(grid.axes)
    for key, values in (axes or {}).items():
        brought = [v for v in grid.axes.get(key, []) if _brings(key, v)]
        chosen[key] = [next((b for b in brought if b[key] == v), v) for v in values]
    base = {"method": "atlas"} | grid.base
    return expand(base, wanted, chosen, str(path or "command line"), told)


def shipped_grids() -> tuple[str, ...]:
    """Names of the grids that ship with the program."""
    return tuple(sorted(path.stem for path in _GRIDS.glob("*.yaml")))


def _read(path: Path) -> _Grid:
    if not path.exists() and str(path) in shipped_grids():
        path = _GRIDS / f"{path}.yaml"
    try:
        return _Grid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(
            f"{path} cannot be read as YAML ({error}); name a file, or one of the grids that ship: "
            f"{', '.join(shipped_grids())}"
        ) from error
    except ValidationError as error:
        raise GridError("\n".join(_faults(str(path), error))) from error


def expand(
    base: Mapping[str, Any],
    systems: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Sequence[Any]],
    source: str = "grid",
    over: Mapping[str, Any] | None = None,
) -> list[RunSpec]:
    """All runs of a grid; see `grid_of`; ``over`` is put over everything.

    Raises:
        GridError: a run is told something unknown, or two runs have one folder.
    """
    specs: list[RunSpec] = []
    faults: list[str] = []
    for system, special in (systems or {"": {}}).items():
        for values in itertools.product(*axes.values()):
            told: dict[str, Any] = {}
            chosen: dict[str, Any] = {}
            for key, value in zip(axes, values, strict=True):
                chosen |= value if _brings(key, value) else {key: value}
            every = {**base, **special, **chosen, **(over or {})}
            there = special.get(str(every.get("protocol", "cil")), {})
            always = {key: value for key, value in special.items() if key not in _PROTOCOLS}
            for part in (base, {"system": system}, always, there, chosen, over or {}):
                _merge(told, part)
            _name(told, [(k, v) for k, v in zip(axes, values, strict=True) if len(axes[k]) > 1])
            where = f"{source}, {system or 'run'} {chosen}"
            try:
                specs.append(RunSpec.model_validate(told))
            except ValidationError as error:
                faults += _faults(where, error)
    folders: dict[Path, RunSpec] = {}
    for spec in specs:
        if folders.setdefault(spec.folder, spec) != spec:
            faults.append(f"{source}: two different runs would lie in {spec.folder}; name systems")
    if faults:
        raise GridError("\n".join(dict.fromkeys(faults)))
    return list(folders.values())


def _name(told: dict[str, Any], varied: Sequence[tuple[str, Any]]) -> None:
    """Add what axes vary to a run's names where nothing else tells it."""
    parts: list[str] = []
    for key, value in varied:
        only = value[key] if _brings(key, value) else value
        if key == "category":
            told["apart"] = _slug(only)
        elif key.partition(".")[0] not in _NAMED and (key != "method" or told.get("system")):
            inner = only if isinstance(only, Mapping) else {key.partition(".")[2] or key: only}
            parts += [f"{name}={_slug(one).lower()}" for name, one in inner.items()]
    if parts:
        method = told.get("method", "atlas")
        known = "+".join(map(str, method)) if isinstance(method, list) else str(method)
        told["system"] = "+".join([told.get("system") or known, *parts])


def _slug(value: object) -> str:
    joined = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "_", joined)


def _brings(key: str, value: object) -> bool:
    """Whether an axis's value brings further keys along."""
    return isinstance(value, Mapping) and key in value


def _merge(told: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        outer, _, inner = key.partition(".")
        if inner:
            told[outer] = {**told.get(outer, {}), inner: value}
        elif isinstance(value, Mapping):
            told[outer] = {**told.get(outer, {}), **value}
        else:
            told[outer] = value


def _faults(where: str, error: ValidationError) -> list[str]:
    return [
        f"{where}: {'.'.join(map(str, fault['loc'])) or 'all'}: {fault['msg']}, "
        f"not {fault['input']!r}"
        for fault in error.errors()
    ]
