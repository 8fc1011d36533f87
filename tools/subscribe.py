"""``atlasd subscribe``: watch the masks of a daemon as a live table, JSON lines or PNG files."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

import numpy as np
from PIL import Image
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..daemon import client, masks
from ..daemon.fields import to_map
from ..daemon.messages import Event, Hello, Mask

Shown = Mask | Event | Hello

_NS_PER_S = 1_000_000_000
_REFRESH_HZ = 8
_COLUMNS = (
    "stream",
    "state",
    "time s",
    "epoch",
    "mask",
    "age ms",
    "fps",
    "area %",
    "class",
    "lost",
    "drops",
    "model",
)


def subscribe(
    endpoint: str,
    *,
    stream: str | None = None,
    mode: client.Mode = "latest",
    json_lines: bool = False,
    save: Path | None = None,
    count: int | None = None,
    timeout_s: float | None = None,
    output: TextIO | None = None,
) -> client.ClientStats:
    """Show what a daemon publishes until the stream ends, Ctrl-C, or one of the limits.

    Args:
        endpoint: the daemon's bus, ``tcp://HOST:PORT`` or ``ipc:///PATH``.
        stream: one stream; None for all.
        mode: ``latest`` shows the newest mask of each stream, ``all`` every one in order.
        json_lines: write a JSON object a line (see `to_json`) instead of the table.
        save: folder for the masks as PNG, see `PngFolder`.
        count: stop after so many masks.
        timeout_s: give up after so long without a message.
        output: where to write; standard output by default.

    Returns:
        The counters of the subscription.

    Raises:
        client.SilenceError: nothing came within `timeout_s`.
        endpoints.EndpointError: the endpoint is malformed.
        VersionError: the daemon speaks another major version.
    """
    target = output or sys.stdout
    folder = PngFolder(save) if save is not None else None
    with (
        client.subscribe(
            endpoint, stream, kinds=(Mask, Event, Hello), mode=mode, timeout_s=timeout_s
        ) as messages,
        _display(messages, target, json_lines) as display,
    ):
        try:
            for message in _limited(messages, count):
                display.show(message)
                if folder is not None and isinstance(message, Mask):
                    folder.write(message)
        except (KeyboardInterrupt, BrokenPipeError):
            return messages.stats  # the reader of our output, or the person, has had enough
    return messages.stats


def to_json(message: Shown) -> dict[str, Any]:
    """A message as what JSON can hold.

    The keys are those of docs/protocol.md with ``type`` before them: ``mask``, ``event`` or
    ``hello``. The pixels of a mask are COCO's ``{size: [H, W], counts: text}``, which pycocotools
    reads; ``area`` is the share of foreground. ``gap``, ``age_ms`` and ``stale`` are the
    receiver's.
    """
    entries = {"type": type(message).__name__.lower(), **to_map(message)}
    if isinstance(message, Mask):
        pixels = message.array()
        counts = masks.encode(pixels, "rle").decode("ascii")
        entries["mask"] = {
            "size": list(pixels.shape),
            "counts": counts,
            "threshold": message.mask.threshold,
            "transform": message.mask.transform,
        }
        entries["area"] = round(float(pixels.mean()), 6)
        entries.update(gap=message.gap, age_ms=message.age_ms, stale=message.stale)
    return entries


class PngFolder:
    """Writes masks as ``FOLDER/STREAM/EPOCH-SEQ-PTS.png``, PTS in nanoseconds.

    Binary masks become 1-bit pictures at the network's resolution, ``prob8`` ones 8-bit grey.

    Args:
        folder: made when the first mask comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder

    def write(self, mask: Mask) -> Path:
        """Write one mask; the file's path."""
        place = self.folder / mask.stream
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"{mask.epoch:03d}-{mask.seq:08d}-{mask.pts_ns}.png"
        if mask.mask.enc == "prob8":
            pixels = np.frombuffer(mask.mask.data, np.uint8).reshape(mask.mask.shape)
        else:
            pixels = mask.array()
        Image.fromarray(pixels).save(path)
        return path


class _Display(Protocol):
    def show(self, message: Shown) -> None: ...


@contextmanager
def _display(
    messages: client.Subscription[Shown], output: TextIO, json_lines: bool
) -> Generator[_Display]:
    if json_lines:
        yield _JsonLines(output)
        return
    console = Console(file=output)
    with Live(console=console, refresh_per_second=_REFRESH_HZ) as live:
        board = _Board(messages, live)
        yield board
        board.refresh()


def _limited(messages: client.Subscription[Shown], count: int | None) -> Iterator[Shown]:
    """Readable messages, up to so many masks; a mask that cannot be decoded is told and left."""
    left = count
    for message in messages:
        if isinstance(message, Mask):
            try:
                message.array()
            except masks.MaskError as error:
                sys.stderr.write(f"mask {message.seq} of {message.stream}: {error}\n")
                continue
            left = None if left is None else left - 1
        yield message
        if left == 0:
            return


@dataclass(slots=True)
class _JsonLines:
    """One object a line; a hello only where it says something new."""

    output: TextIO
    hello: dict[str, Hello] = field(default_factory=dict[str, Hello])

    def show(self, message: Shown) -> None:
        if isinstance(message, Hello):
            same = replace(message, publish_ns=0)
            if self.hello.get(message.stream) == same:
                return
            self.hello[message.stream] = same
        self.output.write(json.dumps(to_json(message), separators=(",", ":")) + "\n")
        self.output.flush()


@dataclass(slots=True)
class _Board:
    """The live table: a row for each stream, the last event below."""

    messages: client.Subscription[Shown]
    live: Live
    latest: dict[str, Mask] = field(default_factory=dict[str, Mask])
    lost: dict[str, int] = field(default_factory=dict[str, int])
    event: str = ""

    def show(self, message: Shown) -> None:
        match message:
            case Mask():
                self.latest[message.stream] = message
                self.lost[message.stream] = self.lost.get(message.stream, 0) + message.gap
            case Event():
                self.event = f"{message.stream}: {message.kind} {message.detail}".strip()
            case Hello():
                pass
        self.live.update(self._table())

    def refresh(self) -> None:
        self.live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(*_COLUMNS, title=self.messages.endpoint, caption=self.event or None)
        for stream in sorted({*self.latest, *self.messages.status, *self.messages.hello}):
            table.add_row(stream, *self._cells(stream))
        return table

    def _cells(self, stream: str) -> tuple[str, ...]:
        status, mask = self.messages.status.get(stream), self.latest.get(stream)
        state = status.state if status else ""
        fps = f"{status.fps:.1f}" if status else ""
        drops = str(sum(status.drops.values())) if status else ""
        if mask is None:
            return (state, "", "", "", "", fps, "", "", "", drops, "")
        best = f"{mask.classes[0]} {mask.scores[0]:.2f}" if mask.classes and mask.scores else ""
        return (
            state,
            f"{mask.pts_ns / _NS_PER_S:.2f}",
            str(mask.epoch),
            str(mask.seq),
            f"{mask.age_ms or 0:.0f}",
            fps,
            f"{100 * mask.array().mean():.1f}",
            best,
            str(self.lost[stream]),
            drops,
            f"{mask.model.preset} {mask.model.version}",
        )
