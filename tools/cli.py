"""The command line: what each command is told; what it does stands in the module it imports.

Nothing heavy is imported here before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import clidevices, clilabels, clilearner, cliresearch, clisite
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
from .climeasure import bench_app, score_app
from .discretion import DiscreetFormatter, DiscreetGroup, discreet

app = typer.Typer(
    cls=DiscreetGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segment what sounds: video and sound in, masks of the sounding object out.\n\n"
    "Start with `atlasd segment FILE --out DIR` for a file, or `atlasd run` and, beside it, "
    "`atlasd subscribe` for a stream.",
)
dataset_app = typer.Typer(no_args_is_help=True, help="Build and check data sets.")
config_app = typer.Typer(no_args_is_help=True, help="Show and check configurations.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(score_app, name="score")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")
cliresearch.add_to(app)
clidevices.add_to(app)
clilabels.add_to(app)
clilearner.add_to(app)
clisite.add_to(app)


def main() -> None:
    """Run a command; an error of ours is one clear line and exit code 2, never a traceback."""
    try:
        app()
    except Exception as error:  # noqa: BLE001 (it is printed, and ends the program)
        words = sys.argv[1:]
        if not type(error).__module__.startswith("atlasd."):
            typer.echo(discreet("".join(traceback.format_exception(error)), words), err=True)
            sys.exit(1)
        typer.secho(discreet(f"error: {error}", words), fg="red", err=True)
        sys.exit(2)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atlasd {version('atlasd')}")
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(DiscreetFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("PIL").setLevel(logging.INFO)


@app.command()
def run(
    uri: Annotated[
        str | None,
        typer.Argument(
            help="A media file, a folder of frames, or an address as in rtsp://HOST/PATH; default: "
            "`source.uri`. Addresses with a password: by ATLASD_SOURCE__URI, others can't read it."
        ),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    camera: CameraOption = None,
    mic: MicOption = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Where subscribers connect, as in tcp://127.0.0.1:5557.")
    ] = None,
    pace: Annotated[
        Literal["real", "free"] | None,
        typer.Option(help="Files: frame by frame when due, or as fast as possible."),
    ] = None,
    kind: KindOption = None,
    repeat: Annotated[
        bool, typer.Option("--repeat", help="Begin again at the end of the medium, for ever.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the resolved configuration and the summary.")
    ] = None,
    intake: Annotated[
        bool | None,
        typer.Option(help="Take labeled clips, and keep them until they are learned."),
    ] = None,
    learn: Annotated[
        bool, typer.Option("--learn", help="Take labeled clips, and learn them beside the masks.")
    ] = False,
) -> None:
    """Watch and listen, and publish masks over ZeroMQ until the stream ends or SIGTERM comes."""
    from ..daemon.cores import wait_asleep

    wait_asleep()
    from ..daemon.config import SAMPLE_URI
    from ..daemon.service import run as serve

    options = [
        *source_overrides(uri, camera, mic),
        *override("publish.endpoint", endpoint),
        *override("source.pace", pace),
        *override("source.kind", kind),
        *override("source.repeat", repeat or None),
        *override("run.out", out),
        *override("intake.enabled", learn or intake),
        *override("learner.enabled", learn or None),
    ]
    resolved = load(config, [*(overrides or ()), *options])
    if resolved.source.uri == SAMPLE_URI and resolved.source.camera is None:
        from .demo import sample_video

        options += override("source.uri", sample_video())
        resolved = load(config, [*(overrides or ()), *options])
    raise typer.Exit(serve(resolved))


@app.command()
def segment(
    file: Annotated[Path, typer.Argument(help="A media file with sound, or a folder of frames.")],
    out: Annotated[Path, typer.Option(help="Folder for what is written.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Segment a whole file: overlay video with sound, masks, table, contact sheet, summary."""
    from .segment import segment as segment_file

    segment_file(file, out, load(config, overrides))


@app.command()
def subscribe(
    endpoint: Annotated[str, typer.Argument(help="The daemon's bus.")] = "tcp://127.0.0.1:5557",
    stream: Annotated[str | None, typer.Option(help="One stream; default: all.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every mask in order; default: only the latest.")
    ] = False,
    json_lines: Annotated[
        bool, typer.Option("--json", help="A JSON object a line instead of the live table.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Folder for the masks as PNG.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Stop after so many masks.")] = None,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=0.01, help="Give up after so much silence.")
    ] = None,
) -> None:
    """Show the masks that a daemon publishes: a live table, JSON lines, PNG files."""
    from .subscribe import subscribe as show

    show(
        endpoint,
        stream=stream,
        mode="all" if every else "latest",
        json_lines=json_lines,
        save=save,
        count=count,
        timeout_s=timeout_s,
    )


@app.command(rich_help_panel=clilearner.PANEL)
def status(
    endpoint: Annotated[str, typer.Argument(help="The daemon's bus.")] = "tcp://127.0.0.1:5557",
    stream: Annotated[str | None, typer.Option(help="One stream; default: the first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object, not a table.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.01, help="Give up after so much silence.")
    ] = 5.0,
) -> None:
    """Show how a daemon's stream does, and how many labels wait, were taken and were refused."""
    from .status import status as show

    show(endpoint, stream=stream, as_json=as_json, timeout_s=timeout_s)


@dataset_app.command("build")
def dataset_build(
    folder: Annotated[Path, typer.Argument(help="Where the data set is to stand.")],
    size: Annotated[
        Literal["ci", "standard", "full"],
        typer.Option(help="257 clips (150 MB), 2,475 (1.4 GB), or as many as AVSBench (3 GB)."),
    ] = "ci",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the Debian packages, instead of apt.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; default: all cores.")
    ] = None,
    accept_content: Annotated[
        bool, typer.Option(help="Build from content that differs from what is pinned.")
    ] = False,
) -> None:
    """Compose Open-AVS from Debian packages; killed, it goes on where it was."""
    from .dataset import build

    build(
        folder, size, seed=seed, packages=packages, workers=workers, accept_content=accept_content
    )


@dataset_app.command("check")
def dataset_check(
    folder: Annotated[Path, typer.Argument(help="A data set in AVSBench's layout.")],
) -> None:
    """Read all of a data set and tell what is there and what is wrong with it."""
    from .dataset import check

    raise typer.Exit(0 if check(folder) else 1)


@config_app.command("check")
def config_check(
    path: Annotated[Path | None, typer.Argument(help="Default: ./config.yaml.")] = None,
    overrides: SetOption = None,
) -> None:
    """Check a configuration; each fault is told with its line."""
    from ..daemon.config import DEFAULT_FILE

    load(path or DEFAULT_FILE, overrides)
    typer.echo(f"{path or DEFAULT_FILE}: good")


@config_app.command("show")
def config_show(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Print the resolved configuration as commented YAML."""
    from ..daemon.config import dump_config

    typer.echo(dump_config(load(config, overrides)), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from ..daemon.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


if __name__ == "__main__":
    main()
