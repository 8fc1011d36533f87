"""What can be known to be wrong with evaluation runs before anything is computed."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from rich.console import Console

from ..model.method import Method, MethodError
from ..model.methods import load as load_method
from ..model.network import Network
from ..model.presets import PRESETS, WeightsError
from ..streams.avscheck import check
from ..streams.avslayout import DatasetError, Subset, SubsetFolder, find_subset
from .clipstore import read_entries
from .countbar import count_bar
from .filestamps import look_of
from .runfolder import RunError, RunFolder
from .runnetwork import deployed, laid_out, state_bytes
from .runoptions import Options
from .runplan import clips_of, method_faults, plan_faults
from .runspec import RunSpec

_GB = 1 << 30
_LEAST_BYTES = 2 * _GB
"""What must be free on the disk that runs are written to, however small their states."""


_Layouts = Mapping[object, Network]
"""The networks of runs without their numbers, by `_layout`."""


def faults(specs: Sequence[RunSpec], options: Options, console: Console) -> Iterator[str]:
    """All that can be known to be wrong before anything is computed.

    What clustering of clips alone tells is left to `domainchecks`.

    Args:
        specs: the runs.
        options: where and by how many.
        console: where the progress of reading the data is shown.
    """
    if not specs:
        yield "there is nothing to run"
    for spec in specs:
        yield from _folder_faults(spec, options)
    left = [s for s in specs if not RunFolder(options.out / s.folder).metrics.exists()]
    works: list[tuple[RunSpec, Method]] = []
    for spec in specs:
        try:
            works.append((spec, method := _method_of(spec, options)))
            yield from (f"{spec.name}: {line}" for line in method_faults(spec, method))
        except (MethodError, ValueError) as error:
            yield f"{spec.name}: {error}"
    layouts = _laid_out(works)
    yield from _prepare_faults(works, layouts)
    yield from _device_faults(left, options)
    yield from _start_faults([spec for spec in left if spec.network in PRESETS])
    states = [state_bytes(layouts[_layout(*work)]) for work in works if work[0] in left]
    yield from _room(states, options)
    halves: dict[tuple[Path, Subset], None] = dict.fromkeys((s.data, s.subset) for s in specs)
    for root, subset in halves:
        found = find_subset(root, subset)
        if found is None:
            yield (
                f"{root}: no AVSBench-like {subset} in it; name the folder that holds "
                "Single-source and Multi-sources, or compose Open-AVS: `atlasd dataset build`"
            )
            continue
        own = [s for s in specs if (s.data, s.subset) == (root, subset)]
        if not options.checked and any(spec in left for spec in own):
            yield from _data_faults(root, found, options, console)
        yield from _plan_faults([s for s in own if s.network in PRESETS])


def _method_of(spec: RunSpec, options: Options) -> Method:
    """The run's method; a ValueError where its network or method is not to be had."""
    if spec.network not in PRESETS:
        raise ValueError(f"network {spec.network!r} is unknown; choose one of {', '.join(PRESETS)}")
    if spec.features_of and spec.features_of not in PRESETS:
        raise ValueError(
            f"features_of {spec.features_of!r} is unknown; choose one of {', '.join(PRESETS)}"
        )
    PRESETS[spec.network].vary(spec.vary)
    return load_method(spec.method, spec.options, options.methods)


def _layout(spec: RunSpec, method: Method) -> object:
    """What the network of a run is laid out by."""
    trainable = "lora" if spec.start else spec.trainable or method.trainable
    return spec.network, *sorted(spec.vary.items()), trainable


def _laid_out(works: Sequence[tuple[RunSpec, Method]]) -> _Layouts:
    kinds = {_layout(spec, method): (spec, method) for spec, method in works}
    return {kind: laid_out(spec, method.trainable) for kind, (spec, method) in kinds.items()}


def _prepare_faults(works: Sequence[tuple[RunSpec, Method]], layouts: _Layouts) -> Iterator[str]:
    """Methods that refuse the network of their run; each is asked once about each."""
    told: dict[object, str] = {}
    for spec, method in works:
        if type(method).prepare is Method.prepare:
            continue  # it takes any
        kind = _layout(spec, method)
        asked = (kind, spec.method, json.dumps(spec.options, sort_keys=True))
        if asked not in told:
            told[asked] = _refusal(method, copy.deepcopy(layouts[kind]))
        if told[asked]:
            yield f"{spec.name}: {told[asked]}"


def _refusal(method: Method, network: Network) -> str:
    """Why a method cannot be prepared for a network; "" where nothing is known against it."""
    try:
        method.prepare(network)
    except MethodError as error:
        return str(error)
    except Exception:  # noqa: BLE001  one of a user's that needs numbers: its run will tell
        return ""
    return ""


def _folder_faults(spec: RunSpec, options: Options) -> Iterator[str]:
    """A folder that holds another run; likewise the one whose scores would be taken."""
    folders = [(spec, RunFolder(options.out / spec.folder))]
    if spec.twin is not None:
        files = RunFolder(options.out / spec.twin.folder)
        folders += [(spec.twin, files)] if files.metrics.exists() else []
    for one, files in folders:
        try:
            files.owner(one)
        except RunError as error:
            yield str(error)


def _device_faults(left: Sequence[RunSpec], options: Options) -> Iterator[str]:
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in dict.fromkeys(options.devices or (spec.device for spec in left)):
        if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            yield f"device {name!r} is unknown; allowed are cpu, cuda and cuda:N"
        elif name != "cpu" and int(name.partition(":")[2] or 0) >= there:
            yield (
                f"device {name} is not there: torch finds {there} GPUs on this machine; "
                "choose another, or compute on the processor with --device cpu"
            )


def _start_faults(left: Sequence[RunSpec]) -> Iterator[str]:
    """Trained networks that runs are to start from and that are not to be had; each is built."""
    for spec in {(s.network, s.start, s.base): s for s in left if s.start}.values():
        try:
            deployed(spec)
        except WeightsError as error:
            yield f"{spec.name}: start {spec.start}: {error}"


def _room(states: Sequence[int], options: Options) -> Iterator[str]:
    """Too small a disk: of each run at work a state is there, the next, and a boundary.

    Args:
        states: bytes of the states of the runs that are left.
        options: where and by how many.
    """
    folder = options.out
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        yield f"{options.out} cannot be written: name another folder"
        return
    if not states:
        return
    largest = max(states)
    at_once = max(1, min(options.workers, len(states)))
    needed = max(_LEAST_BYTES, 3 * largest * at_once)
    free = shutil.disk_usage(folder).free
    if free < needed:
        yield (
            f"{options.out}: {free / _GB:.1f} GB are free there; {needed / _GB:.1f} GB are "
            f"needed, as {at_once} runs at once save states of up to {largest / _GB:.2f} GB: free "
            "some, name another folder, or take fewer workers"
        )


def _data_faults(
    root: Path, folder: SubsetFolder, options: Options, console: Console
) -> Iterator[str]:
    """What is wrong with a subset; one that was sound is not read again while it looks alike."""
    try:
        stamp = options.cache_folder / "sound" / look_of(root, folder)[:32]
        if stamp.exists():
            return
        with count_bar(console, transient=True) as bar:
            name = f"reading {folder.path}, to see that it is sound (--checked leaves this out)"
            task = bar.add_task(name, total=None)
            report = check(
                root,
                only=folder.subset,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except DatasetError as error:
        yield str(error)
        return
    yield from report.errors()
    if report.ok:
        with suppress(OSError):  # it is read again next time
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()


def _plan_faults(specs: Sequence[RunSpec]) -> Iterator[str]:
    """What keeps the clips of one subset from being dealt to tasks, as far as the table tells."""
    if not specs:
        return
    try:
        entries = list(read_entries(specs[0].data, specs[0].subset).values())
    except DatasetError as error:
        yield str(error)
        return
    for spec in specs:
        for line in plan_faults(spec, clips_of(spec, entries)):
            yield f"{spec.name} {spec.protocol}: {line}"
