"""The commands for cameras and microphones: `atlasd devices` and `atlasd calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cliconfig import (
    CameraOption,
    ConfigOption,
    KindOption,
    MicOption,
    SetOption,
    load,
    override,
    source_overrides,
)
from .clisite import PANEL


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


def calibrate(
    uri: Annotated[
        str | None,
        typer.Argument(help="Instead of devices: a file or an address with claps in it."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    camera: CameraOption = None,
    mic: MicOption = None,
    kind: KindOption = None,
    seconds: Annotated[
        float, typer.Option(min=3, max=3600, help="How long devices and addresses are watched.")
    ] = 30.0,
    write: Annotated[
        Path | None,
        typer.Option(help="A configuration whose sync.lag_ms is set; its other lines stay."),
    ] = None,
    make: Annotated[
        Path | None,
        typer.Option(help="Instead: write a page (.html) or video (.mp4) that flashes and clicks."),
    ] = None,
) -> None:
    """Measure by how much the sound is later than the picture, from claps seen and heard.

    Clap your hands in front of the camera, some ten times, about once a second:
    `atlasd calibrate --camera 0 --mic default --write my.yaml`.

    Or point the camera at a page that flashes and clicks: `atlasd calibrate --make clap.html`. The
    delays of the screen and the speaker are then part of what is measured; hand claps have none.
    """
    if make is not None:
        from .clapclip import make_clap

        typer.echo(f"{make_clap(make)}: a flash and a click each second")
        return
    from ..daemon.config import SAMPLE_URI
    from ..daemon.parts import open_media
    from .calibrate import IMAGE_PX, SAMPLE_RATE_HZ
    from .calibrate import calibrate as measure

    told = [*source_overrides(uri, camera, mic), *override("source.kind", kind)]
    source = load(config, [*(overrides or ()), *told]).source
    if source.uri == SAMPLE_URI and source.camera is None:
        raise typer.BadParameter("nothing to watch: give --camera and --mic, or a file or address")
    source = source.model_copy(update={"reconnect_limit": 0})  # a person is waiting
    opened = open_media(source, image_size_px=IMAGE_PX, sample_rate_hz=SAMPLE_RATE_HZ)
    measure(opened, seconds=seconds, write=write)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (devices, calibrate):
        app.command(rich_help_panel=PANEL)(command)
