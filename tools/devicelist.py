"""The cameras and microphones that are here, and how loud a microphone is."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..streams.cameras import list_cameras
from ..streams.microphone import Microphone, list_microphones
from ..streams.sources import MediaError
from ..streams.videoformats import picture_formats

SILENCE_DBFS = -96.0
_INTERVAL_S = 0.1
_BAR = 50
_FIRST_SOUND_S = 6.0


@dataclass(frozen=True, slots=True)
class Level:
    """How loud sound is, in dB of full scale; silence is -96.

    Attributes:
        rms_dbfs: of its mean power.
        peak_dbfs: of its largest sample.
    """

    rms_dbfs: float
    peak_dbfs: float


def level(samples: NDArray[np.float32]) -> Level:
    """The level of float32 (n,) in [-1, 1]."""
    if not samples.size:
        return Level(SILENCE_DBFS, SILENCE_DBFS)
    rms = math.sqrt(float(np.mean(np.square(samples, dtype=np.float64))))
    return Level(_dbfs(rms), _dbfs(float(np.abs(samples).max())))


def show_devices(*, as_json: bool = False) -> None:
    """Print all cameras and microphones, with what to give `atlasd run`.

    Args:
        as_json: one object, ``{cameras, microphones, problems}``.
    """
    found = _found()
    if as_json:
        print(json.dumps(found, indent=2))  # noqa: T201 (what a program reads)
        return
    console = Console(soft_wrap=True)
    cameras = Table("--camera", "name", "path", "offers", title="cameras")
    for info in found["cameras"]:
        offers = info["problem"] or "\n".join(info["offers"])
        cameras.add_row(str(info["index"]), info["name"], info["path"], offers)
    microphones = Table("--mic", "name", "Hz", "channels", "", title="microphones")
    for info in found["microphones"]:
        default = "default" if info["is_default"] else ""
        microphones.add_row(
            str(info["index"]), info["name"], str(info["rate_hz"]), str(info["channels"]), default
        )
    for table in (cameras, microphones):
        console.print(table if table.row_count else f"no {table.title}")
    for problem in found["problems"]:
        console.print(problem, style="yellow")


def show_level(microphone: str, *, seconds: float | None = None, as_json: bool = False) -> None:
    """Show how loud a microphone is, ten times a second.

    Args:
        microphone: ``default``, an index or a part of a name.
        seconds: for how long; None: until Ctrl-C.
        as_json: an object a line, ``{rms_dbfs, peak_dbfs}``.

    Raises:
        MediaError: it cannot be opened, or has gone silent.
    """
    opened = Microphone(microphone)
    end = math.inf if seconds is None else time.monotonic() + seconds
    try:
        with Live(console=Console(stderr=True), transient=True) as live:
            while time.monotonic() < end:
                time.sleep(_INTERVAL_S)
                blocks = [block.samples for block in opened.read()]
                if not blocks:
                    _check_alive(opened)
                    continue
                now = level(np.concatenate(blocks))
                if as_json:
                    print(json.dumps(asdict(now)), flush=True)  # noqa: T201 (as above)
                else:
                    live.update(_bar(opened.name, now))
    except KeyboardInterrupt:
        pass
    finally:
        opened.close()


def _check_alive(microphone: Microphone) -> None:
    if microphone.silence_s > _FIRST_SOUND_S:
        raise MediaError(
            f"{microphone.name} gives nothing; choose another (`atlasd devices` lists them)"
        )


def _found() -> dict[str, Any]:
    problems: list[str] = []
    microphones: list[dict[str, Any]] = []
    try:
        microphones = [asdict(info) for info in list_microphones()]
    except MediaError as error:
        problems.append(str(error))
    cameras: list[dict[str, Any]] = []
    for info in list_cameras():
        formats = [] if info.problem else picture_formats(info.path)
        told = {"formats": [asdict(each) for each in formats], "offers": list(map(str, formats))}
        cameras.append(asdict(info) | told)
    return {"cameras": cameras, "microphones": microphones, "problems": problems}


def _bar(name: str, now: Level) -> Text:
    filled = round(max(0.0, 1 - now.rms_dbfs / -60) * _BAR)
    colour = "red" if now.peak_dbfs > -1 else "green" if now.rms_dbfs > -50 else "yellow"
    return Text.assemble(
        f"{name}  ",
        ("#" * filled + "." * (_BAR - filled), colour),
        f"  {now.rms_dbfs:6.1f} dBFS, peak {now.peak_dbfs:6.1f}",
    )


def _dbfs(value: float) -> float:
    return max(SILENCE_DBFS, 20 * math.log10(value)) if value > 0 else SILENCE_DBFS
