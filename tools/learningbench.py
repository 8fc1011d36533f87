"""Measure what continual learning costs: LRA's and SI's steps, and what the cache saves."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..daemon.cores import available_cores
from ..model.method import Batch, Method
from ..model.methods import load
from ..model.network import Network
from ..model.presets import build
from ..model.taskloss import task_loss
from ..model.training import Settings, Trainer
from ..streams.toyworld import write_dataset
from .clipfeed import ClipFeed
from .clipstore import ClipStore
from .diskcache import DiskCache

STEP_BAR = 1.05
"""Most that a step with LRA or SI may take of Finetune's."""
CACHE_BAR = 0.9
"""Most that an epoch with all in the cache may take of one without it."""
PERSISTENT_BAR = 3.0
"""Most tensors of a parameter's size that a method may keep; one more for each further anchor."""

_METHODS: dict[str, tuple[str, dict[str, int]]] = {
    "atlas": ("atlas", {}),
    "atlas with 3 anchors": ("atlas", {"anchors": 3}),
    "si": ("si", {}),
}
"""What is timed beside Finetune: the method and its options."""


@dataclass(frozen=True, slots=True)
class LearningReport:
    """What `bench_learning` measured.

    Attributes:
        preset: the network of the steps.
        threads: of torch.
        finetune_ms: median of its step.
        steps: for each method, its step over Finetune's of the same round: the median.
        persistent: for each method, what it keeps, in tensors of an anchored parameter's size.
        cache_preset: the network of the epochs.
        bfloat16: whether their steps run in it where that is safe.
        cached_s: an epoch whose clips are decoded and whose sounds are encoded already.
        cache: that epoch over one without a cache: the median of rounds.
        encoding: that epoch over one that has decoded clips and encodes their sounds.
        passed: whether all keep to their bars.
    """

    preset: str
    threads: int
    finetune_ms: float
    steps: dict[str, float]
    persistent: dict[str, float]
    cache_preset: str
    bfloat16: bool
    cached_s: float
    cache: float
    encoding: float
    passed: bool


def bench_learning(
    preset: str = "atlas-lite",
    *,
    cache_preset: str = "atlas",
    rounds: int = 30,
    batch: int = 8,
    cache_rounds: int = 9,
    bfloat16: bool = False,
    threads: int = 0,
    device: str = "cpu",
    json_path: Path | None = None,
    console: Console | None = None,
) -> LearningReport:
    """Compare LRA's and SI's steps with Finetune's, and epochs with and without the cache.

    Steps are made in rounds, one of each method on the same batch and equal networks, after as many
    consolidations as the method keeps anchors, so that the penalty is at work. Epochs run over
    eight clips of the toy world, in turn with all of them in the cache, with decoded clips whose
    sounds are encoded in each step, and with nothing kept.

    Args:
        preset: of the steps; random weights.
        cache_preset: of the epochs; random weights.
        rounds: of steps.
        batch: frames a step.
        cache_rounds: of epochs.
        bfloat16: make their steps in it where that is safe, as `RunSpec.bfloat16` does.
        threads: of torch; 0: all cores.
        device: where to compute.
        json_path: where to write the report, or None.
        console: where to print, or None for standard output.
    """
    console = console or Console()
    threads = threads or available_cores()
    torch.set_num_threads(threads)
    times, persistent = _steps(preset, rounds, batch, device, console)
    ratios = {name: _ratio(times[name], times["finetune"]) for name in _METHODS}
    settings = Settings(bfloat16=bfloat16)
    cached, encoding, bare = _epochs(
        cache_preset, cache_rounds, min(batch, 4), settings, device, console
    )
    cache = _ratio(cached, bare)
    report = LearningReport(
        preset=preset,
        threads=threads,
        finetune_ms=1e3 * statistics.median(times["finetune"]),
        steps=ratios,
        persistent=persistent,
        cache_preset=cache_preset,
        bfloat16=bfloat16,
        cached_s=statistics.median(cached),
        cache=cache,
        encoding=_ratio(cached, encoding),
        passed=max(ratios.values()) <= STEP_BAR
        and all(count <= _persistent_bar(name) for name, count in persistent.items())
        and cache <= CACHE_BAR,
    )
    if json_path is not None:
        json_path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    console.print(_table(report))
    return report


def _steps(
    preset: str, rounds: int, batch: int, device: str, console: Console
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each method's steps, and what it keeps by the size of what it anchors."""
    start = build(preset, trained=False, pretrained=False, categories=("one", "two"))
    drawn = _batch(start, batch, device)
    trainers: dict[str, Trainer] = {}
    for name, (file, options) in {"finetune": ("finetune", {}), **_METHODS}.items():
        network = copy.deepcopy(start).to(device)
        trainers[name] = _trainer(network, load(file, options), Settings())
        for _ in range(options.get("anchors", 1)):
            trainers[name].step(dict(drawn))
            trainers[name].method.consolidate([])
    persistent = {name: _kept(trainers[name].method) for name in _METHODS}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    names = list(trainers)
    for number in track(range(rounds), "learning: steps", console=console, transient=True):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_timed(lambda n=name: trainers[n].step(dict(drawn)), device))
    return times, persistent


def _trainer(network: Network, method: Method, settings: Settings) -> Trainer:
    method.prepare(network)
    method.begin(None)
    return Trainer(network, task_loss(network, 0.5), settings, 1_000_000, method=method)


def _kept(method: Method) -> float:
    """Bytes of a method's state over bytes of the parameters that it anchors, to 1 %: it counts."""
    sizes = {name: t.numel() * t.element_size() for name, t in method.state_dict().items()}
    anchored = sum(size for name, size in sizes.items() if name.startswith("anchor."))
    return round(sum(sizes.values()) / anchored, 2)


def _persistent_bar(name: str) -> float:
    return PERSISTENT_BAR + _METHODS[name][1].get("anchors", 1) - 1


def _batch(network: Network, size: int, device: str) -> Batch:
    preset, source = network.preset, torch.Generator().manual_seed(0)
    px = preset.image_px
    waves = 0.1 * torch.randn(
        size, round(preset.window_s * preset.sample_rate_hz), generator=source
    )
    features = network.encode_audio(network.log_mel(waves))
    drawn = {
        "images": torch.randint(0, 256, (size, px, px, 3), generator=source, dtype=torch.uint8),
        "masks": (torch.rand(size, px, px, generator=source) < 0.2).to(torch.uint8),
        "valid": torch.ones(size, dtype=torch.bool),
        "labels": torch.arange(size) % 2,
        "tokens": features.tokens,
        "embedding": features.embedding,
    }
    return {name: value.to(device) for name, value in drawn.items()}


def _epochs(
    preset: str, rounds: int, batch: int, settings: Settings, device: str, console: Console
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of epochs with all in the cache, of those that encode, and of those without one."""
    network = build(preset, trained=False, pretrained=False, categories=("one",)).to(device)
    trainer = _trainer(network, load("finetune"), settings)
    with tempfile.TemporaryDirectory() as folder:
        root = write_dataset(Path(folder) / "toy", {"train": 1})
        kept, nothing = (DiskCache(Path(folder) / "cache", size) for size in (1 << 30, 0))

        def epoch(cache: DiskCache, *, raw: bool) -> Callable[[], None]:
            store = ClipStore(root, "s4", network, cache, seed=0)  # nothing in memory yet
            clips: Sequence[str] = list(store.entries)
            batches = ClipFeed(store, clips, {}, batch=batch, seed=(0,), variants=2, raw_sounds=raw)

            def learn() -> None:
                for drawn in batches(0, 0):
                    trainer.step(drawn)

            return learn

        kinds = ((kept, False), (kept, True), (nothing, True))
        times: list[list[float]] = [[] for _ in kinds]
        for cache, raw in kinds:
            epoch(cache, raw=raw)()
        for number in track(range(rounds), "learning: epochs", console=console, transient=True):
            for place in range(len(kinds)):
                kind = (number + place) % len(kinds)
                cache, raw = kinds[kind]
                times[kind].append(_timed(epoch(cache, raw=raw), device))
    cached, encoding, bare = times
    return cached, encoding, bare


def _ratio(mine: Sequence[float], other: Sequence[float]) -> float:
    """One over the other, round by round: the median."""
    return statistics.median(a / b for a, b in zip(mine, other, strict=True))


def _timed(work: Callable[[], object], device: str) -> float:
    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _table(report: LearningReport) -> Table:
    table = Table(title=f"What learning costs, {report.threads} threads")
    for column in ("what", "measured", "bar"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row(f"Finetune's step, {report.preset}", f"{report.finetune_ms:.1f} ms", "")
    for name, ratio in report.steps.items():
        table.add_row(f"{name} step ÷ Finetune's", f"{ratio:.3f}", f"≤ {STEP_BAR}")
    for name, count in report.persistent.items():
        table.add_row(
            f"{name}: tensors kept per parameter", f"{count:.2f}", f"≤ {_persistent_bar(name):.0f}"
        )
    network = f"{report.cache_preset}{', bfloat16' if report.bfloat16 else ''}"
    table.add_row(f"epoch of {network}, all cached", f"{report.cached_s:.1f} s", "")
    table.add_row("that ÷ epoch without a cache", f"{report.cache:.3f}", f"≤ {CACHE_BAR}")
    table.add_row("that ÷ epoch that only encodes sounds", f"{report.encoding:.3f}", "")
    table.caption = "all bars held" if report.passed else "a bar was missed"
    return table
