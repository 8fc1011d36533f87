"""The command line: what each command is told; what it does stands in the module it imports.

Nothing heavy is imported here before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from . import clidevices, clilabels, clilearner
from .cliconfig import (
    CameraOption,
    ConfigOption,
    MicOption,
    SetOption,
    load,
    override,
    source_overrides,
)
from .climeasure import bench_app, score_app, study

app = typer.Typer(
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
app.command()(study)
clidevices.add_to(app)
clilabels.add_to(app)
clilearner.add_to(app)


def main() -> None:
    """Run a command; an error of ours is one clear line and exit code 2, never a traceback."""
    try:
        app()
    except Exception as error:
        if not type(error).__module__.startswith("atlasd."):
            raise
        typer.secho(f"error: {error}", fg="red", err=True)
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
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
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
    from ..daemon.config import SAMPLE_URI
    from ..daemon.service import run as serve

    options = [
        *source_overrides(uri, camera, mic),
        *override("publish.endpoint", endpoint),
        *override("source.pace", pace),
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


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    preset: Annotated[str, typer.Option(help="The network.")] = "atlas-lite",
    start: Annotated[
        Path | None, typer.Option(help="Begin from these weights, with their audio encoder.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Leave visual, conditioning, fusion, decoder or head as they are."),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Change the network: image_px, lora_rank (0: frozen), heads; conditioning and "
            "skips to 0.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set in AVSBench's layout: S4, MS3 or both.")
    ] = None,
    toy: Annotated[int, typer.Option(min=0, help="Clips of the toy world to learn besides.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with the run in OUT.")] = False,
    stages: Annotated[
        Literal["all", "audio", "masks"], typer.Option(help="Both stages, or one alone.")
    ] = "all",
    random: Annotated[
        bool, typer.Option(help="No published weights, all parts random: to try the command.")
    ] = False,
    backbone: Annotated[
        Path | None, typer.Option(help="The backbone's published weights, if not to be fetched.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="An audio encoder, instead of training or fetching one.")
    ] = None,
    packages: Annotated[
        Path | None,
        typer.Option(help="Open-AVS's Debian packages: their sounds are learned in full band."),
    ] = None,
    corpus: Annotated[
        bool,
        typer.Option(help="Hear the sounds of 155 Debian packages, with TEACHER."),
    ] = False,
    teacher: Annotated[
        Path | None, typer.Option(help="YAMNet's tflite file: its scores and features are learned.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="Of torch; equal results need equal threads.")
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Of the masks stage.")] = 30,
    passes: Annotated[int, typer.Option(min=1, help="Over the clips in each epoch.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 16,
    sounds: Annotated[int, typer.Option(min=1, help="Sounds that a picture meets at once.")] = 3,
    variants: Annotated[int, typer.Option(min=1, help="Variations of each clip's sounds.")] = 4,
    blend: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of sounds blended with others of their category."),
    ] = 0.0,
    thin: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of a sound's channels dropped.")
    ] = 0.3,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate of the masks stage.")] = 1e-3,
    dice_weight: Annotated[float, typer.Option(min=0, help="Of the Dice loss.")] = 1.0,
    class_weight: Annotated[float, typer.Option(min=0, help="Of the class loss.")] = 0.5,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of both stages.")] = 5e-4,
    importance: Annotated[
        int, typer.Option(min=0, help="Pictures to measure importances on at the end; 0: none.")
    ] = 300,
    audio_epochs: Annotated[int, typer.Option(min=1, help="Of the audio stage.")] = 10,
    audio_steps: Annotated[int, typer.Option(min=1, help="In each of these.")] = 200,
    audio_windows: Annotated[int, typer.Option(min=1, help="Varied windows to hear.")] = 16_000,
    audio_batch: Annotated[int, typer.Option(min=1, help="Windows a step.")] = 64,
    audio_lr: Annotated[float, typer.Option(min=0, help="Its learning rate.")] = 2e-3,
    bfloat16: Annotated[bool, typer.Option(help="Where it is safe: faster.")] = False,
) -> None:
    """Train a preset on a data set and the toy world; killed, it goes on with --resume."""
    options = dict(locals())
    from .train import TrainOptions
    from .train import train as fit

    options |= {"vary": tuple(vary or ()), "keep": tuple(keep or ())}
    typer.echo(f"the best weights: {fit(TrainOptions(**options))}")


@app.command()
def importance(
    weights: Annotated[Path, typer.Argument(help="A checkpoint's folder; the file goes there.")],
    data: Annotated[Path, typer.Option(help="A data set in AVSBench's layout.")],
    examples: Annotated[int, typer.Option(min=1, help="Training pictures to ask.")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="Of which pictures.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: its own choice.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
) -> None:
    """Measure what weights are worth, so that learning on can hold them; `train` does it itself."""
    from .importancestage import importance as measure

    options = {"examples": examples, "seed": seed, "threads": threads}
    typer.echo(f"the importances: {measure(weights, data, **options, device=device)}")


@app.command()
def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of all runs; what is there is not made again.")],
    grid: Annotated[
        Path | None,
        typer.Argument(help="A grid of runs: a YAML file, or smoke, open-avs, ablations, paper."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="A data set in AVSBench's layout; also over the grid's.")
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option(help="Only these of the grid's systems.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="Of model/methods, or several as panda+dgr; repeated: one run each."),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="til, cil, dil, task-free; several: one run each.")
    ] = None,
    order: Annotated[
        list[str] | None, typer.Option(help="random, similarity; several: one run each.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Several: one run each.")] = None,
    schedule: Annotated[
        Literal["epochs", "stream"] | None,
        typer.Option(help="stream: one pass in the order of arrival, as the daemon learns."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            help="Any other key of a run, as in the grid's base.",
        ),
    ] = None,
    methods: Annotated[
        list[Path] | None, typer.Option(help="A folder with methods of your own.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: this one alone.")] = 0,
    device: Annotated[
        list[str] | None, typer.Option(help="GPUs to deal workers to: cuda:0, cuda:1.")
    ] = None,
    cache_gb: Annotated[
        float, typer.Option(min=0, help="For decoded clips and encoded sounds, on disk.")
    ] = 10.0,
    checked: Annotated[
        bool, typer.Option(help="Do not read all of the data first to see that it is sound.")
    ] = False,
) -> None:
    """Replay continual-learning protocols and score them; killed, it goes on where it was."""
    from .evaluate import Options
    from .evaluate import evaluate as make
    from .runspec import grid_of

    axes = {"method": method, "protocol": protocol, "order": order, "seed": seed}
    specs = grid_of(
        grid,
        data=data,
        systems=system or (),
        axes={name: values for name, values in axes.items() if values},
        overrides=[*(overrides or ()), *([f"schedule={schedule}"] if schedule else ())],
    )
    options = Options(
        out,
        workers=workers,
        devices=tuple(device or ()),
        methods=tuple(methods or ()),
        cache_gb=cache_gb,
        checked=checked,
    )
    raise typer.Exit(0 if make(specs, options) else 1)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders that `atlasd evaluate` filled: its --out.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the report: index.html, tables/ and figures/.")
    ],
    measure: Annotated[
        Literal[
            "AP",
            "AUPR",
            "F_max",
            "F_at",
            "F",
            "J",
            "J_object",
            "Dice_object",
            "class_cil",
            "class_til",
        ],
        typer.Option(help="Of the first table, transfer, radar and, for AP, J and F, the curves."),
    ] = "AP",
    systems: Annotated[
        list[str] | None,
        typer.Option(help="Only these, in this order; default: all, by name."),
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(help="Whose masks are shown; default: those of the first six."),
    ] = None,
) -> None:
    """Make tables, figures and one page to look at from evaluated runs.

    Rows are systems, columns settings; seeds are averaged, with standard deviations. Runs that
    failed or are not finished are listed and left out. Tables come as Markdown, LaTeX and CSV,
    figures as PNG and SVG with their data beside them.
    """
    from .report import Options
    from .report import report as make

    make(runs, out, Options(measure, tuple(systems or ()), tuple(show or ())))


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
