"""The commands of research: train and weigh a network, replay protocols, report, experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

_GRIDS = ", ".join(sorted(path.stem for path in (Path(__file__).parent / "grids").glob("*.yaml")))


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (train, importance, evaluate, report, study):
        app.command(rich_help_panel="Training and research")(command)


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
            help="Change the network: image_px, lora_rank (0: frozen), lora_alpha, heads; "
            "conditioning and skips to 0.",
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


def evaluate(
    out: Annotated[Path, typer.Option(help="Folder of all runs; what is there is not made again.")],
    grid: Annotated[
        Path | None,
        typer.Argument(help=f"A grid of runs: a YAML file, or one of {_GRIDS}."),
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
        list[str] | None,
        typer.Option(
            help="Repeated: dealt to the workers, cuda:0, cuda:1; without workers the first "
            "counts. Default: as the runs say."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of decoded clips and encoded sounds; default: the user's."),
    ] = None,
    cache_gb: Annotated[
        float, typer.Option(min=0, help="That it may take on disk; 0: nothing is kept.")
    ] = 10.0,
    save_s: Annotated[
        float, typer.Option(min=0, help="Seconds between two saved states of a task at work.")
    ] = 60.0,
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
        cache=cache,
        cache_gb=cache_gb,
        save_s=save_s,
        checked=checked,
    )
    raise typer.Exit(0 if make(specs, options) else 1)


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
            "F_batch",
            "F_batch2",
            "F_batch1",
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


def study(
    out: Annotated[Path, typer.Option(help="The experiment's folder; cut short, it goes on.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A data set in AVSBench's layout; none: the toy world, in minutes."),
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="Repeated; default: 0 1 2.")
    ] = None,
    systems: Annotated[
        list[str] | None,
        typer.Option("--system", help="Only these: atlas, atlas-zero, no-lra, finetune."),
    ] = None,
    image_px: Annotated[int, typer.Option("--size", min=64, help="Side of the input.")] = 96,
    clips: Annotated[int, typer.Option(min=1, help="Training clips of each class.")] = 30,
    tests: Annotated[int, typer.Option(min=1, help="Test clips of each class.")] = 6,
    epochs: Annotated[int, typer.Option(min=1, help="Of the base.")] = 8,
    lr: Annotated[float, typer.Option(min=1e-9, help="Learning rate of all systems.")] = 3e-3,
    blur: Annotated[
        int, typer.Option(min=0, max=100, help="Percent of the stream's clips that change places.")
    ] = 20,
    quiet_s: Annotated[
        float, typer.Option("--quiet", min=1, help="Seconds of masks before and after.")
    ] = 20.0,
) -> None:
    """Stream half of a data set's classes into a daemon that knows the other half, and draw it.

    Real daemons: masks of a video go on meanwhile, and their latency is drawn too. ATLAS, the same
    without base importance, without anchoring, and fine-tuning of all parts, for each seed.
    """
    from .study import StudyOptions, toy_data
    from .study import study as run

    options = StudyOptions(
        data=data or toy_data(out),
        out=out,
        seeds=tuple(seeds or (0, 1, 2)),
        image_px=image_px,
        clips_per_class=clips,
        tests_per_class=tests,
        base_epochs=epochs,
        lr=lr,
        blur=blur,
        quiet_s=quiet_s,
    )
    run(options, systems=systems or ())
