"""One run of the evaluator: a protocol is replayed, task by task, and scored after each.

A run that was cut short anywhere ends with the same ``metrics.json``, byte by byte, as one that was
not (same machine, same threads); see `taskloop`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..model.checkpoints import tensor_hash, tensors_of
from ..model.method import Method
from ..model.methods import load as load_method
from ..model.network import Network
from ..streams.manifest import Manifest
from .clipstore import ClipStore
from .diskcache import DiskCache
from .embeddings import clip_embeddings
from .machine import forget_peak_memory
from .runfolder import RunError, RunFolder, write_bytes, write_json, writing
from .runmetrics import metrics_of
from .runnetwork import deploy, deployed, make_features_network, make_network
from .runplan import clips_of, method_faults, planned, protocol_of
from .runspec import RunSpec
from .taskloop import Progress, TaskLoop


def replay(
    spec: RunSpec,
    folder: Path,
    *,
    methods: Sequence[Path] = (),
    cache: DiskCache | None = None,
    twin: Path | None = None,
    save_s: float = 60.0,
    progress: Progress = lambda _what, _share: None,
) -> dict[str, Any]:
    """Make a run, or go on with it.

    Args:
        spec: what to do.
        folder: the run's.
        methods: folders with further methods.
        cache: of decoded clips and encoded sounds; None: none.
        twin: folder of the CIL run that a TIL run shares everything with but what the class head
            may answer; where it is finished, its scores are taken instead of computed again.
        save_s: seconds between two saved states of a task that is being learned.
        progress: told of each step.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        RunError: the folder holds another run, the data cannot be learned from, or the method and
            the network do not fit what is asked for.
        MethodError, DatasetError, ProtocolError, WeightsError: what was asked for cannot be had.
        TrainingError: a loss or gradient was not finite.
    """
    files = RunFolder(folder)
    named = files.claim(spec)
    if files.metrics.exists():
        return json.loads(files.metrics.read_text(encoding="utf-8"))
    torch.set_num_threads(spec.threads)
    forget_peak_memory(spec.device)
    method = load_method(spec.method, spec.options, methods)
    if wrong := list(method_faults(spec, method)):
        raise RunError("; ".join(wrong))
    network = _network(spec, method, files)
    kept = cache or DiskCache(folder, 0)
    store = ClipStore(spec.data, spec.subset, network, kept, seed=spec.seed)
    manifest = _manifest(files, spec, store, network, kept)
    if twin is None or not _take_over(RunFolder(twin), files, spec, method, manifest):
        TaskLoop(spec, files, network, method, store, manifest, progress, save_s).to_the_end()
    result = metrics_of(files, named, manifest)
    write_json(files.metrics, result)
    files.state.unlink(missing_ok=True)
    return result


def _network(spec: RunSpec, method: Method, files: RunFolder) -> Network:
    """The network that the run starts from, always the same one."""
    if not spec.start:
        return make_network(spec, method.trainable)
    base, held = deployed(spec)
    files.begin_from(tensor_hash(tensors_of(base)), base.version, spec.start)
    return deploy(spec, method, base, held)


def _manifest(
    files: RunFolder, spec: RunSpec, store: ClipStore, network: Network, cache: DiskCache
) -> Manifest:
    """The run's manifest: what an earlier part of the run wrote, or a new one."""
    if files.manifest.exists():
        return Manifest.read(files.manifest)
    clips = clips_of(spec, store.entries.values())
    needed = protocol_of(spec).needs_features
    if needed and spec.features_of:
        network = make_features_network(spec)
        store = ClipStore(spec.data, spec.subset, network, cache, seed=spec.seed)
    features = clip_embeddings(network, store, clips) if needed else None
    manifest = planned(spec, clips, features)
    with writing(files.manifest):
        manifest.write(files.manifest)
    return manifest


def _take_over(
    twin: RunFolder, files: RunFolder, spec: RunSpec, method: Method, manifest: Manifest
) -> bool:
    """Take the scores of the run that learned the same; return whether that could be done."""
    if spec.twin is None or method.uses_task_id or not twin.metrics.exists():
        return False
    twin.claim(spec.twin)
    if Manifest.read(twin.manifest).tasks != manifest.tasks:
        raise RunError(f"{twin.path} learned other tasks than {files.path}; delete one of them")
    for path in sorted(twin.path.glob("frames/*")) + sorted(twin.path.glob("examples/*")):
        write_bytes(files.path / path.relative_to(twin.path), path.read_bytes())
    for name in ("prequential.csv", "costs.json"):
        if (twin.path / name).exists():
            write_bytes(files.path / name, (twin.path / name).read_bytes())
    return True
