"""The commands for cameras and microphones: `atlasd devices` and `atlasd calibrate`."""

from __future__ import annotations

from typing import Annotated

import typer


def devices(
    meter: Annotated[
        bool, typer.Option("--meter", help="Show how loud the microphone is, until Ctrl-C.")
    ] = False,
    mic: Annotated[
        str, typer.Option(help="For --meter: default, an index or a part of a name.")
    ] = "default",
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="For --meter: stop after so long.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="An object for programs; with --meter, one a line.")
    ] = False,
) -> None:
    """List cameras and microphones, or show how loud a microphone is."""
    from .devicelist import show_devices, show_level

    if meter:
        show_level(mic, seconds=seconds, as_json=as_json)
    else:
        show_devices(as_json=as_json)


def add_to(app: typer.Typer) -> None:
    """Hang the commands into the program."""
    app.command()(devices)
