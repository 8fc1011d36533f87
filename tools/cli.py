"""The command line: what each command is told; what it does stands in the module it imports.

Nothing heavy is imported here before a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..daemon.config import Config

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
score_app = typer.Typer(no_args_is_help=True, help="Measure how good weights are.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed as ratios in one run.")
config_app = typer.Typer(no_args_is_help=True, help="Show and check configurations.")
app.add_typer(dataset_app, name="dataset")
app.add_typer(score_app, name="score")
app.add_typer(bench_app, name="bench")
app.add_typer(config_app, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file; default: ./config.yaml where it exists."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting."),
]


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


def _load(path: Path | None, overrides: Sequence[str] | None) -> Config:
    from ..daemon.config import DEFAULT_FILE, load_config

    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    return load_config(path, environ=os.environ, overrides=overrides or ())


def _set(key: str, value: object) -> list[str]:
    """An override for an option of its own, where it was given."""
    import yaml

    text = str(value) if isinstance(value, Path) else value
    return [] if value is None else [f"{key}={yaml.safe_dump(text).splitlines()[0]}"]


@app.command()
def run(
    uri: Annotated[
        str | None,
        typer.Argument(help="A media file or a folder of frames; default: `source.uri`."),
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Where subscribers connect, as in tcp://127.0.0.1:5557.")
    ] = None,
    pace: Annotated[
        Literal["real", "free"] | None,
        typer.Option(help="Files: frame by frame when due, or as fast as possible."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the resolved configuration and the summary.")
    ] = None,
    intake: Annotated[
        bool | None,
        typer.Option(help="Take labeled clips, and keep them until they are learned."),
    ] = None,
) -> None:
    """Watch and listen, and publish masks over ZeroMQ until the stream ends or SIGTERM comes."""
    from ..daemon.config import SAMPLE_URI
    from ..daemon.service import run as serve

    options = [
        *_set("source.uri", uri),
        *_set("publish.endpoint", endpoint),
        *_set("source.pace", pace),
        *_set("run.out", out),
        *_set("intake.enabled", intake),
    ]
    resolved = _load(config, [*(overrides or ()), *options])
    if resolved.source.uri == SAMPLE_URI:
        from .demo import sample_video

        options += _set("source.uri", sample_video())
        resolved = _load(config, [*(overrides or ()), *options])
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

    segment_file(file, out, _load(config, overrides))


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


IntakeEndpoint = Annotated[
    str, typer.Option(help="The daemon's intake, as `intake.endpoint` says.")
]
AnswerTimeout = Annotated[
    float, typer.Option("--timeout", min=0.01, help="Seconds to wait for an answer, each time.")
]


@app.command()
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
    epoch: Annotated[int, typer.Option(min=0, help="Of that frame.")] = 0,
    delete: Annotated[
        str | None, typer.Option(metavar="ID", help="Instead: take back a clip not yet learned.")
    ] = None,
    clip_id: Annotated[
        str | None,
        typer.Option("--id", help="Names the clip for ever; default: made of its content."),
    ] = None,
    category: Annotated[str | None, typer.Option("--class", help="What sounds.")] = None,
    provenance: Annotated[str, typer.Option(help="Where the mask comes from.")] = "atlasd label",
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the place of a clip not yet learned.")
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
    `atlasd subscribe --json` shows, while the frame is kept (`intake.replay_s`).

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
        put = tool.label_of_shown(mask[0], facts, stream=stream, epoch=epoch, pts_ns=pts_ns)
    else:
        put = tool.label_of_files(picture or (), mask or (), sound, facts)
    typer.echo(tool.label(put, endpoint, timeout_s=timeout_s))


@app.command()
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


@app.command()
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


WeightsOption = Annotated[
    Path | None, typer.Option(help="A checkpoint; default: the weights that ship.")
]
PresetOption = Annotated[str, typer.Option(help="The network whose shipped weights are meant.")]
SplitOption = Annotated[
    Literal["train", "val", "test"],
    typer.Option(help="Decide by val; open test once per released version."),
]
ReportOption = Annotated[Path | None, typer.Option("--json", help="Also write all numbers here.")]


@score_app.command("masks")
def score_masks(
    data: Annotated[Path, typer.Option(help="A data set in AVSBench's layout.")],
    weights: WeightsOption = None,
    preset: PresetOption = "atlas-lite",
    split: SplitOption = "val",
    json_path: ReportOption = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for sheets of masks, from the worst to the best.")
    ] = None,
) -> None:
    """Score masks with each clip's own sound, with none, and with another clip's."""
    from .scorecard import score_masks as score

    score(
        data,
        weights=weights,
        preset=preset,
        split=split,
        json_path=json_path,
        pictures=pictures,
    )


@score_app.command("sounds")
def score_sounds(
    weights: WeightsOption = None,
    preset: PresetOption = "atlas-lite",
    packages: Annotated[
        Path | None, typer.Option(help="Folder with Open-AVS's Debian packages, instead of apt.")
    ] = None,
    split: SplitOption = "val",
    leave_one_out: Annotated[
        bool, typer.Option(help="Also ask about each recording of train and val by itself.")
    ] = False,
    json_path: ReportOption = None,
) -> None:
    """Probe the audio encoder: a linear classifier, asked about recordings never heard."""
    from .scorecard import score_sounds as score

    score(
        weights=weights,
        preset=preset,
        packages=packages,
        split=split,
        leave_one_out=leave_one_out,
        json_path=json_path,
    )


@score_app.command("photos")
def score_photos(
    out: Annotated[Path, typer.Option(help="Folder for photos.json and photos.png.")],
    weights: WeightsOption = None,
    preset: PresetOption = "atlas-lite",
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the Debian packages, instead of apt.")
    ] = None,
    sounds: Annotated[int, typer.Option(min=1, help="Sounds that each category is played.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the sounds.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: its own choice.")] = 0,
) -> None:
    """Point at what sounds in 38 photographs of whole scenes, with validation sounds."""
    from .photocheck import photocheck

    photocheck(
        out,
        weights=weights,
        preset=preset,
        packages=packages,
        sounds=sounds,
        seed=seed,
        threads=threads,
    )


@bench_app.command("pipeline")
def bench_pipeline(
    preset: Annotated[str, typer.Option(help="The network.")] = "atlas-lite",
    pairs: Annotated[int, typer.Option(min=1, help="Passes of each, interleaved.")] = 10,
    frames: Annotated[int, typer.Option(min=2, help="Frames a pass.")] = 250,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: the engine's choice.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the report here.")
    ] = None,
) -> None:
    """Compare the whole pipeline, decoding to bus, with the bare forward pass."""
    from .bench import bench_pipeline as compare

    report = compare(
        preset, pairs=pairs, frames=frames, threads=threads, device=device, json_path=json_path
    )
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("metrics")
def bench_metrics(
    frames: Annotated[int, typer.Option(min=1, help="Of 224 x 224 pixels.")] = 1000,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Also write the report here.")
    ] = None,
) -> None:
    """Compare AP, AUPR and the best F with scikit-learn's, on the same predictions."""
    from .metricsbench import bench_metrics as compare

    raise typer.Exit(0 if compare(frames, json_path=json_path).passed else 1)


@bench_app.command("learning")
def bench_learning(
    preset: Annotated[str, typer.Option(help="The network whose steps are timed.")] = "atlas-lite",
    cache_preset: Annotated[
        str, typer.Option(help="The network whose epochs are timed.")
    ] = "atlas",
    rounds: Annotated[int, typer.Option(min=1, help="Steps of each method.")] = 30,
    cache_rounds: Annotated[int, typer.Option(min=1, help="Epochs of each kind.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Frames a step.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    json_path: ReportOption = None,
) -> None:
    """Compare LRA's and SI's steps with Finetune's, and epochs with and without encoded sounds."""
    from .learningbench import bench_learning as compare

    report = compare(
        preset,
        cache_preset=cache_preset,
        rounds=rounds,
        cache_rounds=cache_rounds,
        batch=batch,
        threads=threads,
        device=device,
        json_path=json_path,
    )
    raise typer.Exit(0 if report.passed else 1)


@config_app.command("check")
def config_check(
    path: Annotated[Path | None, typer.Argument(help="Default: ./config.yaml.")] = None,
    overrides: SetOption = None,
) -> None:
    """Check a configuration; each fault is told with its line."""
    from ..daemon.config import DEFAULT_FILE

    _load(path or DEFAULT_FILE, overrides)
    typer.echo(f"{path or DEFAULT_FILE}: good")


@config_app.command("show")
def config_show(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Print the resolved configuration as commented YAML."""
    from ..daemon.config import dump_config

    typer.echo(dump_config(_load(config, overrides)), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from ..daemon.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


if __name__ == "__main__":
    main()
