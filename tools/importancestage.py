"""What trained weights are worth, measured on training clips and written beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress

from ..model import baseimportance
from ..model.losses import NO_LABEL
from ..model.network import Network
from ..model.presets import load
from ..model.training import Batch
from ..streams.avsbench import Entry, frame_times_s, windows_at
from .trainoptions import TrainError, read_entries


def importance(
    weights: Path, data: Path, *, examples: int, seed: int, threads: int, device: str
) -> Path:
    """Measure importances of weights that are there, and return their file.

    Args:
        weights: a checkpoint's folder; the file is written into it.
        data: a data set in AVSBench's layout; its training clips are asked.
        examples: pictures, each with its sound.
        seed: of which.
        threads: of torch; 0 leaves torch's choice.
        device: where to compute.

    Raises:
        TrainError: ``weights`` is no folder, or there are no training clips.
        DatasetError: a clip cannot be read.
        WeightsError: the weights cannot be read.
    """
    if not weights.is_dir():
        raise TrainError(
            f"{weights} is no folder; importances lie in a checkpoint's folder, beside its manifest"
        )
    if threads:
        torch.set_num_threads(threads)
    network = load(weights).to(device)
    command = (
        f"atlasd importance {weights} --data {data} --examples {examples} --seed {seed} "
        f"--threads {threads} --device {device}"
    )
    with Progress(transient=True) as bar:
        task = bar.add_task("importance", total=examples)
        return measure_importance(
            network,
            weights,
            [data],
            examples=examples,
            seed=seed,
            command=command,
            progress=lambda: bar.advance(task),
        )


def measure_importance(
    network: Network,
    folder: Path,
    roots: Sequence[Path],
    *,
    examples: int,
    seed: int,
    command: str,
    progress: Callable[[], None],
) -> Path:
    """Measure importances and write them beside a checkpoint.

    Args:
        network: holds the checkpoint's weights.
        folder: the checkpoint's.
        roots: data sets in AVSBench's layout.
        examples: pictures, each with its sound.
        seed: of which.
        command: to be noted.
        progress: called after each picture.
    """
    entries = [entry for subset in read_entries(roots, "train") for entry in subset]
    data = _examples(entries, network, examples, seed, progress)
    found = baseimportance.measure(network, data, examples)
    notes = {"command": command, "data": ", ".join(map(data_id, roots)), "seed": str(seed)}
    baseimportance.write(folder, network, found, examples=examples, notes=notes)
    return folder / baseimportance.FILE


def data_id(root: Path) -> str:
    """What names a data set: the id that it says itself, or its folder's name."""
    manifest = root / "dataset.json"
    known = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
    return str(known.get("id", root.name))


def _examples(
    entries: Sequence[Entry],
    network: Network,
    count: int,
    seed: int,
    progress: Callable[[], None],
) -> Iterator[Batch]:
    """Pictures with a mask, of all clips in turn in random order, each with its own sound."""
    preset, rng = network.preset, np.random.default_rng(seed)
    categories = list(preset.categories)
    order = rng.permutation(len(entries))
    for number in range(count):
        entry = entries[int(order[number % len(order)])]
        masks, labeled = entry.masks(preset.image_px)
        frames = np.flatnonzero(labeled)
        frame = int(rng.choice(frames)) if len(frames) else 0
        at = frame_times_s()[frame : frame + 1]
        sound = entry.sound(preset.sample_rate_hz)
        known = entry.kind != "negative" and len(entry.categories) == 1
        name = entry.categories[0] if known else None
        label = categories.index(name) if name in categories else NO_LABEL
        yield {
            "images": torch.from_numpy(entry.frames(preset.image_px)[frame : frame + 1]),
            "masks": torch.from_numpy(masks[frame : frame + 1]),
            "valid": torch.from_numpy(labeled[frame : frame + 1]),
            "labels": torch.tensor([label]),
            "waves": torch.from_numpy(
                windows_at(sound, at, preset.window_s, preset.sample_rate_hz)
            ),
        }
        progress()
