"""How commands are told a configuration: a file, and options over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..daemon.config import Config

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file; default: ./config.yaml where it exists."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting."),
]
CameraOption = Annotated[
    str | None,
    typer.Option(help="A camera: its number, path or part of its name (`atlasd devices`)."),
]
MicOption = Annotated[
    str | None,
    typer.Option(help="A microphone beside it: default, a number or part of its name."),
]

KindOption = Annotated[
    Literal["auto", "file", "live"] | None,
    typer.Option(
        help="Addresses: `file` is read to its end without loss, `live` comes back after a loss; "
        "`auto` asks the web server which it is."
    ),
]


def load(path: Path | None, overrides: Sequence[str] | None) -> Config:
    """The configuration of a file (default: ./config.yaml where it exists), with overrides."""
    from ..daemon.config import DEFAULT_FILE, load_config

    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    return load_config(path, environ=os.environ, overrides=overrides or ())


def override(key: str, value: object) -> list[str]:
    """An override for an option of its own, where it was given."""
    import yaml

    text = str(value) if isinstance(value, Path) else value
    return [] if value is None else [f"{key}={yaml.safe_dump(text).splitlines()[0]}"]


def source_overrides(uri: str | None, camera: str | None, mic: str | None) -> list[str]:
    """Overrides for what is watched: what the command line names takes the file's place."""
    from ..daemon.config import SAMPLE_URI

    told = [*override("source.uri", uri)]
    if uri is not None and camera is None:
        told += ["source.camera=null", "source.microphone=null"]
    if camera is not None:
        told += override("source.camera", camera)
        told += override("source.uri", SAMPLE_URI if uri is None else uri)
    return [*told, *override("source.microphone", mic)]
