"""What only the features of clips tell is wrong with runs, found before any of them learns.

The features are those by which the runs deal their clips; each is kept in the cache and computed
once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console

from ..model.methods import load as load_method
from ..model.network import Network
from ..model.pretrained import WeightsError
from ..streams.manifest import ProtocolError
from .clipstore import ClipStore
from .countbar import count_bar
from .diskcache import DiskCache
from .embeddings import clip_embeddings
from .runfolder import RunFolder
from .runnetwork import deployed, make_features_network, make_network
from .runoptions import Options
from .runplan import clips_of, planned, protocol_of
from .runspec import RunSpec

_GB = 1 << 30


def domain_faults(specs: Sequence[RunSpec], options: Options, console: Console) -> Iterator[str]:
    """Why clips cannot be dealt by what they are like: a domain may have no test clip.

    Args:
        specs: runs with which nothing else is wrong.
        options: where and by how many. Without a cache nothing is computed here, as it would be
            once more in each run, which then tells it itself.
        console: where progress is shown.
    """
    left = [spec for spec in specs if _is_open(spec, options)] if options.cache_gb else []
    for own in _grouped(left, _features_of):
        try:
            yield from _group_faults(own, options, console)
        except WeightsError as error:
            yield f"{_title(own)}: {error}"
    torch.cuda.empty_cache()  # the runs need the room


def _is_open(spec: RunSpec, options: Options) -> bool:
    files = RunFolder(options.out / spec.folder)
    planned_already = files.manifest.exists() or files.metrics.exists()
    return protocol_of(spec).needs_features and not planned_already


def _features_of(spec: RunSpec) -> object:
    """What the features of a run's clips depend on."""
    network = spec.features_of or (spec.network, spec.start, *sorted(spec.vary.items()))
    drawn = spec.seed if spec.random else None
    return spec.data, spec.subset, network, drawn, spec.device, spec.threads


def _plan_of(spec: RunSpec) -> object:
    """What a run's tasks depend on besides."""
    return protocol_of(spec), spec.clips_per_class, spec.category, spec.score, spec.tasks


def _grouped(
    specs: Iterable[RunSpec], key: Callable[[RunSpec], object]
) -> Iterable[Sequence[RunSpec]]:
    found: dict[object, list[RunSpec]] = {}
    for spec in specs:
        found.setdefault(key(spec), []).append(spec)
    return found.values()


def _group_faults(own: Sequence[RunSpec], options: Options, console: Console) -> list[str]:
    """The faults of runs whose clips have the same features."""
    found: list[str] = []
    first = own[0]
    with _threads(first.threads), count_bar(console, transient=True) as bar:
        network = _network(first, options)
        cache = DiskCache(options.cache_folder, int(options.cache_gb * _GB))
        store = ClipStore(first.data, first.subset, network, cache, seed=first.seed)
        for same in _grouped(own, _plan_of):
            clips = clips_of(same[0], store.entries.values())
            task = bar.add_task(f"what clips are like, for {_title(same)}", total=len(clips))
            features = clip_embeddings(
                network, store, clips, lambda done, task=task: bar.update(task, completed=done)
            )
            try:
                planned(same[0], clips, features)
            except ProtocolError as error:
                found += [f"{_title(same)}: {line}" for line in error.lines]
    return found


def _network(spec: RunSpec, options: Options) -> Network:
    """The network by whose features a run deals its clips."""
    device = next(iter(options.devices), spec.device)
    here = spec.model_copy(update={"device": device})
    if spec.features_of:
        return make_features_network(here)
    if spec.start:
        return deployed(here)[0].to(device)
    return make_network(here, load_method(spec.method, spec.options, options.methods).trainable)


@contextmanager
def _threads(count: int) -> Generator[None]:
    """Inside, torch has as many threads as the runs, whose features are then the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _title(specs: Sequence[RunSpec]) -> str:
    """Some runs that are dealt alike, for people."""
    names = list(dict.fromkeys(spec.name for spec in specs))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(spec.seed for spec in specs))
    return f"{', '.join(names[:3])}{more} {specs[0].protocol} {specs[0].order}, seed {seeds}"
