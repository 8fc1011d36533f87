"""The commands that give a daemon labels: `atlasd label` and `atlasd feed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from .clilearner import PANEL, IntakeEndpoint

AnswerTimeout = Annotated[
    float, typer.Option("--timeout", min=0.01, help="Seconds to wait for an answer, each time.")
]


def label(
    picture: Annotated[
        list[Path] | None,
        typer.Option(help="A picture, or a folder of them; repeated: in the order of time."),
    ] = None,
    mask: Annotated[
        list[Path] | None,
        typer.Option(help="Its mask, white where it sounds; black all over: nothing does."),
    ] = None,
    sound: Annotated[
        Path | None, typer.Option(help="The sound; the last picture lies at its end.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Instead: a data set in AVSBench's layout, with --clip.")
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="A clip of it: its name, or SUBSET/SPLIT/NAME.")
    ] = None,
    pts_ns: Annotated[
        int | None,
        typer.Option(
            help="Instead: a frame that the daemon has just shown a mask of, by its time."
        ),
    ] = None,
    stream: Annotated[str, typer.Option(help="Of that frame.")] = "main",
    epoch: Annotated[
        int | None, typer.Option(min=0, help="Of that frame; default: the stream's present one.")
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(help="The run of the daemon that showed it; default: the present one."),
    ] = None,
    bus: Annotated[
        str, typer.Option(help="Where the daemon publishes: asked for what is present.")
    ] = "tcp://127.0.0.1:5557",
    delete: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Instead: take back a clip not yet learned, or set aside."),
    ] = None,
    clip_id: Annotated[
        str | None,
        typer.Option("--id", help="Names the clip for ever; default: made of its content."),
    ] = None,
    category: Annotated[str | None, typer.Option("--class", help="What sounds.")] = None,
    provenance: Annotated[str, typer.Option(help="Where the mask comes from.")] = "atlasd label",
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take the place of a clip not yet learned, or set aside."),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="A mask that covers all of its picture is meant.")
    ] = False,
    endpoint: IntakeEndpoint = "tcp://127.0.0.1:5558",
    timeout_s: AnswerTimeout = 10.0,
) -> None:
    """Give a running daemon a labeled clip to learn; it is on disk when this says so.

    From files: `atlasd label --picture dog.png --mask dog-mask.png --sound dog.wav --class dog`.

    Of a data set: `atlasd label --data data/open-avs --clip s4/train/NAME`.

    Of what the daemon sees: `atlasd label --pts-ns 2960000000 --mask mine.png`, with the time that
    `atlasd subscribe --json` shows, while the frame is kept (`intake.replay_s`). Times begin anew
    with every epoch and every run: --epoch and --instance, from there too, say which was meant.

    The same label twice is one clip. The daemon must run with `intake.enabled`.
    """
    from . import label as tool

    facts = tool.LabelFacts(
        clip_id=clip_id or "",
        category=category,
        provenance=provenance,
        replace=replace,
        allow_full=full,
    )
    ways = {"--delete": delete, "--data": data, "--pts-ns": pts_ns, "--picture": picture}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) != 1 or (data is None) != (clip is None):
        raise typer.BadParameter(
            f"{' and '.join(given) or 'nothing'} was given; give --picture with --mask, or --data "
            "with --clip, or --pts-ns with --mask, or --delete"
        )
    if delete is not None:
        typer.echo(tool.delete(delete, endpoint, timeout_s=timeout_s))
        return
    if data is not None:
        put = tool.label_of_entry(tool.find_entry(data, clip or ""), facts)
    elif pts_ns is not None:
        if mask is None or len(mask) != 1:
            raise typer.BadParameter("--pts-ns names one frame; give it one --mask")
        if instance is None or epoch is None:
            run, now = tool.present_run(bus, stream, timeout_s=timeout_s)
            instance, epoch = instance or run, now if epoch is None else epoch
        put = tool.label_of_shown(
            mask[0], facts, stream=stream, instance=instance, epoch=epoch, pts_ns=pts_ns
        )
    else:
        put = tool.label_of_files(picture or (), mask or (), sound, facts)
    typer.echo(tool.label(put, endpoint, timeout_s=timeout_s))


def feed(
    data: Annotated[Path, typer.Option(help="A data set in AVSBench's layout.")],
    protocol: Annotated[
        Literal["task-free", "til", "cil"],
        typer.Option(help="task-free: clips of several sources; til, cil: class by class."),
    ] = "task-free",
    split: Annotated[
        str, typer.Option(help="B-I: clips (classes) in the first task and in each later one.")
    ] = "",
    blur: Annotated[
        float, typer.Option(min=0, max=100, help="M: percent of clips that change places.")
    ] = 0.0,
    disjoint: Annotated[
        float, typer.Option(min=0, max=100, help="N: percent that keep sharp boundaries.")
    ] = 50.0,
    rate: Annotated[float, typer.Option(min=0, help="Clips a second; 0: all at once.")] = 1.0,
    delay_s: Annotated[
        float, typer.Option(min=0, help="Labels come up to so much late, and out of order.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the order and of the delays.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="So many clips at most.")] = None,
    size_px: Annotated[int, typer.Option("--size", min=16, help="Side of the pictures.")] = 224,
    endpoint: IntakeEndpoint = "tcp://127.0.0.1:5558",
    timeout_s: AnswerTimeout = 10.0,
) -> None:
    """Label a data set's training clips in a protocol's order, as a person beside the stream would.

    The daemon is told of no task. Cut short, or after a crash of the daemon, the same command goes
    on where it was: clips that are there already are known by their ids and take no time.

    Exit code 0: all clips are there; 1: some were refused, the first ones are shown; 2: the daemon
    does not answer, or has no room.
    """
    options = dict(locals())
    from .feed import FeedOptions
    from .feed import feed as put

    done = put(FeedOptions(**options))
    refused = sum(done.values()) - sum(
        done[state] for state in ("stored", "replaced", "same", "consumed", "discarded")
    )
    raise typer.Exit(1 if refused else 0)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (label, feed):
        app.command(rich_help_panel=PANEL)(command)
