"""The commands that measure: `atlasd score` and `atlasd bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

score_app = typer.Typer(no_args_is_help=True, help="Measure how good weights are.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure speed as ratios, and deaths survived.")

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
    cache_rounds: Annotated[int, typer.Option(min=1, help="Epochs of each kind.")] = 9,
    bfloat16: Annotated[bool, typer.Option(help="Of the epochs: steps in it.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Frames a step.")] = 8,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: all cores.")] = 0,
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
        bfloat16=bfloat16,
        batch=batch,
        threads=threads,
        device=device,
        json_path=json_path,
    )
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("live")
def bench_live(
    preset: PresetOption = "atlas-lite",
    frames: Annotated[int, typer.Option(min=2, help="Masks of each phase.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Phases with the learner on.")] = 5,
    fps: Annotated[int, typer.Option(min=1, max=120, help="Of the source.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Of the learner; 0: all cores.")] = 0,
    device: Annotated[
        str, typer.Option(help="Of masks and of the learner: cpu, or one GPU for both, as cuda:0.")
    ] = "cpu",
    json_path: ReportOption = None,
) -> None:
    """Time masks with the learner in turn off and learning without rest; and its swaps."""
    from .livebench import bench_live as bench

    report = bench(
        preset,
        frames=frames,
        rounds=rounds,
        fps=fps,
        threads=threads,
        device=device,
        json_path=json_path,
    )
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("memory")
def bench_memory(
    preset: Annotated[str, typer.Option(help="The network that is served and learns.")] = "tiny",
    frames: Annotated[int, typer.Option(min=500, help="Masks to wait for.")] = 20_000,
    fps: Annotated[int, typer.Option(min=1, max=120, help="Of the source.")] = 60,
    json_path: ReportOption = None,
) -> None:
    """Watch the memory of a daemon and its learner over thousands of frames and many swaps."""
    from .memorybench import bench_memory as bench

    report = bench(preset, frames=frames, fps=fps, json_path=json_path)
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("faults")
def bench_faults(
    preset: Annotated[str, typer.Option(help="The network that is served and learns.")] = (
        "atlas-lite"
    ),
    kills: Annotated[int, typer.Option(min=1, help="Of the learner, and of the daemon.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the order and the moments of kills.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of the learner.")] = 1,
    folder: Annotated[
        Path | None, typer.Option(help="A new folder for spool, checkpoints and log, which stays.")
    ] = None,
    json_path: ReportOption = None,
) -> None:
    """Kill a daemon and its learner again and again: no clip is lost, none is learned twice."""
    from .faultsbench import bench_faults as torment

    report = torment(
        preset, kills=kills, seed=seed, threads=threads, folder=folder, json_path=json_path
    )
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("subscribers")
def bench_subscribers(
    preset: PresetOption = "atlas-lite",
    subscribers: Annotated[int, typer.Option(min=1, help="That come and go, in all.")] = 1000,
    at_once: Annotated[int, typer.Option(min=1, help="Most of them at one time.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Phases with them.")] = 10,
    frames: Annotated[int, typer.Option(min=2, help="Masks of each phase.")] = 200,
    fps: Annotated[int, typer.Option(min=1, max=120, help="Of the source.")] = 10,
    weights: WeightsOption = None,
    json_path: ReportOption = None,
) -> None:
    """Time masks while subscribers come and go, between phases without any."""
    from .subscribersbench import bench_subscribers as bench

    report = bench(
        preset,
        subscribers=subscribers,
        at_once=at_once,
        rounds=rounds,
        frames=frames,
        fps=fps,
        weights=weights,
        json_path=json_path,
    )
    raise typer.Exit(0 if report.passed else 1)


@bench_app.command("latency")
def bench_latency(
    preset: PresetOption = "atlas-lite",
    frames: Annotated[int, typer.Option(min=2, help="Of each round, live and bare.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Of bare network and daemon in turn.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="Of torch; 0: the engine's choice.")] = 0,
    capacity: Annotated[
        int | None, typer.Option(min=1, help="Of the queue before the network; default: 8.")
    ] = None,
    container: Annotated[
        Literal["flv", "mpegts"], typer.Option(help="That the stream is sent in.")
    ] = "flv",
    weights: WeightsOption = None,
    json_path: ReportOption = None,
) -> None:
    """Time the capture of pictures of a live stream to their masks' publication.

    The stream is sent over a loopback socket as a camera sends: all that a live stream costs is in
    it. Beside it, the bare network in the same run.
    """
    from ..daemon.cores import wait_asleep

    wait_asleep()  # as the daemon's own threads do
    from .latencybench import bench_latency as bench

    report = bench(
        preset,
        frames=frames,
        rounds=rounds,
        threads=threads,
        capacity=capacity,
        container=container,
        weights=weights,
        json_path=json_path,
    )
    raise typer.Exit(0 if report.passed else 1)
