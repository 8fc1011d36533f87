"""``atlasd feed``: label a data set's clips in the order of a protocol, as a person would.

The daemon is told nothing of tasks: clips come one after the other. A feed that was cut short goes
on when it is started again: the daemon knows the clips that it has by their ids.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import TextColumn

from ..daemon.labelclient import LabelClient, LabelRefusedError, NoAnswerError
from ..streams.avsbench import AVSBench, Entry
from ..streams.avslayout import Subset, read_manifest
from ..streams.manifest import Protocol
from ..streams.protocols import clip_info, make_manifests
from .countbar import count_bar
from .label import LabelFacts, label_of_entry

_FULL = {"quota", "disk_full", "storage", "corrupt"}
_NEW = {"stored", "replaced"}
_TOLD_REFUSALS = 5


class FeedError(Exception):
    """A feed that cannot go on; started again, it goes on where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """What is fed, and how fast.

    Attributes:
        data: a data set in AVSBench's layout.
        endpoint: the daemon's intake.
        protocol: ``task-free`` feeds the multi-source clips, ``til`` and ``cil`` the single-source
            ones class by class.
        split: B-I, as in `Protocol`.
        blur: percent of the clips outside `disjoint` whose places are permuted.
        disjoint: percent of the clips (classes) that keep sharp boundaries.
        seed: of the order and of the delays.
        rate: clips a second; 0: as fast as they are taken.
        delay_s: a label comes up to so many seconds after its clip's turn, and so out of order.
        limit: so many clips at most; None: all.
        size_px: width and height of the pictures.
        timeout_s: how long to wait for an answer before asking again.
        attempts: how often to ask.
    """

    data: Path
    endpoint: str
    protocol: Literal["task-free", "til", "cil"] = "task-free"
    split: str = ""
    blur: float = 0.0
    disjoint: float = 50.0
    seed: int = 0
    rate: float = 1.0
    delay_s: float = 0.0
    limit: int | None = None
    size_px: int = 224
    timeout_s: float = 10.0
    attempts: int = 6


def feed(
    options: FeedOptions,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Counter[str]:
    """Put the clips, one after the other, with a progress bar.

    Args:
        options: what is fed, and how fast.
        console: where to report; None is the terminal.
        clock: monotonic seconds.
        pause: waits so many seconds.

    Returns:
        Clips by what became of them: ``stored``, ``replaced``, ``same``, ``consumed``,
        ``discarded`` and, by their codes, refusals.

    Raises:
        FeedError: the daemon does not answer, or can take no more.
        ProtocolError: the data do not fit the protocol.
        DatasetError: a clip cannot be read.
    """
    console = console or Console()
    turns = late(planned(options), options)
    provenance = f"{(read_manifest(options.data) or {}).get('id', options.data.name)}"
    facts = LabelFacts(provenance=provenance)
    done: Counter[str] = Counter()
    with (
        LabelClient(
            options.endpoint, timeout_s=options.timeout_s, attempts=options.attempts
        ) as client,
        count_bar(console, TextColumn("{task.fields[told]}")) as bar,
    ):
        task = bar.add_task("clips", total=len(turns), told="")
        for entry in _paced(turns, done, clock, pause):
            label = label_of_entry(entry, facts, size_px=options.size_px)
            try:
                done[client.put(label)] += 1
            except LabelRefusedError as error:
                done[error.code] += 1
                _tell(console, label.id, error, done)
            except NoAnswerError as error:
                raise FeedError(f"{_told(done)}; {error} Feed again to go on") from error
            bar.update(task, advance=1, told=_told(done))
    console.print(_told(done), soft_wrap=True)
    return done


def planned(options: FeedOptions) -> list[Entry]:
    """The clips in the protocol's order.

    Raises:
        ProtocolError: the data do not fit the protocol.
        DatasetError: there is no such data set.
    """
    protocol = Protocol(
        options.protocol,
        split=options.split,
        seed=options.seed,
        blurry_percent=options.blur,
        disjoint_percent=options.disjoint,
    )
    subset: Subset = "ms3" if options.protocol == "task-free" else "s4"
    data = AVSBench(options.data, subset)
    entries = [e for split in ("train", "val", "test") for e in data.clips(split)]
    (manifest,) = make_manifests(
        protocol, [clip_info(entry) for entry in entries], source=str(options.data)
    )
    by_id = {clip_info(entry).id: entry for entry in entries}
    ordered = [by_id[clip] for task in manifest.tasks for clip in task.train]
    return ordered[: options.limit]


def late(entries: Sequence[Entry], options: FeedOptions) -> list[tuple[Entry, float]]:
    """The clips in the order in which their labels come, each with its second from the start.

    A label is late by up to `FeedOptions.delay_s`, drawn from the seed.
    """
    delays = np.random.default_rng(options.seed).uniform(0, options.delay_s, len(entries))
    turns = np.arange(len(entries)) / options.rate if options.rate else np.zeros(len(entries))
    times = turns + delays
    return [(entries[k], float(times[k])) for k in np.argsort(times, kind="stable")]


def _paced(
    turns: Sequence[tuple[Entry, float]],
    done: Counter[str],
    clock: Callable[[], float],
    pause: Callable[[float], None],
) -> Iterator[Entry]:
    """Each clip at its time; after one that the daemon had already the next comes at once."""
    began, new = clock(), 0
    for entry, at_s in turns:
        before, new = new, sum(done[state] for state in _NEW)
        if done and new == before:
            began = min(began, clock() - at_s)
        if (left_s := began + at_s - clock()) > 0:
            pause(left_s)
        yield entry


def _tell(console: Console, clip_id: str, error: LabelRefusedError, done: Counter[str]) -> None:
    """Say the first refusals; one for want of room ends the feed."""
    if error.code in _FULL:
        raise FeedError(f"{_told(done)}; {error}. Feed again to go on") from error
    if done[error.code] <= _TOLD_REFUSALS:
        console.print(f"{clip_id}: {error}", soft_wrap=True, markup=False)


def _told(done: Counter[str]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(done.items())) or "no clip yet"
