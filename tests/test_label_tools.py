"""`atlasd label`, `atlasd feed` and `atlasd status`, against a real intake."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import wave
from collections import Counter

import numpy as np
import pytest
from atlasd.daemon.client import SilenceError
from atlasd.daemon.infos import IntakeInfo, LadderInfo, RungInfo
from atlasd.daemon.intake import Intake
from atlasd.daemon.labelclient import LabelRefusedError
from atlasd.daemon.labelclips import load
from atlasd.daemon.labeldesk import LabelDesk, LabelRules
from atlasd.daemon.publisher import Publisher
from atlasd.daemon.replayring import ReplayRing
from atlasd.daemon.spool import Spool
from atlasd.streams.avsbench import AVSBench
from atlasd.streams.manifest import ProtocolError
from atlasd.streams.protocols import clip_info
from atlasd.streams.toyworld import write_dataset
from atlasd.tools import cli
from atlasd.tools.feed import FeedError, FeedOptions, feed, late, planned
from atlasd.tools.label import LabelToolError, find_entry
from atlasd.tools.status import status, to_json
from labeled import PERIOD_NS, a_sample, blob, pixels
from media import write_video
from PIL import Image
from rich.console import Console
from served import tiny_checkpoint, tiny_config
from typer.testing import CliRunner
from wire import PATIENCE_S, a_hello, a_mask, await_masks

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy"
    counts = {"train": 8, "val": 2, "test": 3}
    return write_dataset(root, {"train": 1, "test": 1}, ms3_counts=counts, size_px=48)


class Served:
    """A running intake, and a look into its spool."""

    def __init__(self, folder, *, epoch=0, **quota):
        self.spool = Spool(folder / "spool", **quota)
        ring = ReplayRing(10, 10_000_000)
        ring.add(a_sample(3, epoch=epoch))
        self.bus = Publisher(f"ipc://{folder}/bus", status_s=0.02)
        self.bus.publish(a_hello())
        self.bus.publish(a_mask(3, epoch=epoch))
        rules = LabelRules(instance=self.bus.instance)
        self.intake = Intake(f"ipc://{folder}/labels", LabelDesk(self.spool, ring, rules))
        self.endpoint = self.intake.endpoint
        self._folder = folder

    def clips(self, n=50):
        """What a learner would get, once the intake is closed."""
        self.close()
        with Spool(self._folder / "spool") as spool:
            batch = spool.next_batch(0, n, 0)
            return [] if batch is None else [load(clip.payload) for clip in batch.clips]

    def close(self):
        self.intake.close()
        self.bus.close()


@pytest.fixture
def served(tmp_path):
    opened = Served(tmp_path)
    yield opened
    opened.close()


def said(served, *words) -> str:
    result = RUNNER.invoke(cli.app, [words[0], "--endpoint", served.endpoint, *words[1:]])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def failed(served, *words):
    return RUNNER.invoke(cli.app, [words[0], "--endpoint", served.endpoint, *words[1:]])


@pytest.fixture
def files(tmp_path):
    """Two pictures, two masks, two seconds of sound."""
    for k in range(2):
        Image.fromarray(pixels(k)).save(tmp_path / f"p{k}.png")
        Image.fromarray(blob()).save(tmp_path / f"m{k}.png")
    with wave.open(str(tmp_path / "s.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.full(16000, 8192, "<i2").tobytes())
    return tmp_path


def given(files):
    words = []
    for k in range(2):
        words += ["--picture", f"{files}/p{k}.png", "--mask", f"{files}/m{k}.png"]
    return [*words, "--sound", f"{files}/s.wav"]


# label


def test_files_become_a_clip_and_the_same_files_the_same_clip(served, files):
    first = said(served, "label", *given(files), "--class", "dog")
    assert first.startswith("label-") and first.endswith(": stored\n")
    assert said(served, "label", *given(files), "--class", "dog") == first.replace("stored", "same")
    (clip,) = served.clips()
    assert (clip.category, clip.provenance) == ("dog", "atlasd label")
    assert [s.frame.pts_ns for s in clip.clip.samples] == [10**9, 2 * 10**9]
    for k, sample in enumerate(clip.clip.samples):
        np.testing.assert_array_equal(sample.frame.image, pixels(k))
        np.testing.assert_array_equal(clip.masks[k], blob())
        assert (sample.window.state, sample.window.rms) == ("ok", 0.25)


def test_folders_are_taken_in_natural_order(served, files):
    (files / "seen").mkdir()
    (files / "drawn").mkdir()
    for k in (10, 9):
        Image.fromarray(pixels(k)).save(files / "seen" / f"p{k}.png")
        Image.fromarray(blob()).save(files / "drawn" / f"p{k}.png")
    told = said(
        served, "label", "--picture", f"{files}/seen", "--mask", f"{files}/drawn", "--id", "two"
    )
    assert told == "two: stored\n"
    (clip,) = served.clips()
    np.testing.assert_array_equal(clip.clip.samples[0].frame.image, pixels(9))
    assert clip.clip.samples[0].window.state == "absent"


def test_a_jpeg_travels_as_it_is(served, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "p.jpg", quality=80)
    Image.fromarray(blob()).save(tmp_path / "m.png")
    said(served, "label", "--picture", f"{tmp_path}/p.jpg", "--mask", f"{tmp_path}/m.png")
    (clip,) = served.clips()
    with Image.open(tmp_path / "p.jpg") as picture:
        np.testing.assert_array_equal(clip.clip.samples[0].frame.image, np.asarray(picture))


def of_shown(served, files, *words):
    """Words that label the picture shown at three periods, of the present run and epoch."""
    mask = f"{files}/m0.png"
    bus = served.bus.endpoint
    return ["label", "--pts-ns", str(3 * PERIOD_NS), "--mask", mask, "--bus", bus, *words]


def test_a_frame_that_was_shown_is_labeled_by_its_time(served, files):
    told = said(served, *of_shown(served, files))
    assert told == f"main/{served.bus.instance}/0/{3 * PERIOD_NS}: stored\n"
    np.testing.assert_array_equal(served.clips()[0].clip.samples[0].frame.image, pixels(3))


def test_a_frame_is_of_the_present_epoch_unless_told(tmp_path, files):
    served = Served(tmp_path, epoch=2)
    assert said(served, *of_shown(served, files)).endswith(f"/2/{3 * PERIOD_NS}: stored\n")
    result = failed(served, *of_shown(served, files, "--epoch", "1"))
    assert result.exception.code == "expired"
    assert "main is in epoch 2 now" in str(result.exception)
    assert "kept of epoch 2" in str(result.exception)
    served.close()


def test_the_same_frame_of_the_next_run_is_another_clip(tmp_path, files):
    first = Served(tmp_path)
    said(first, *of_shown(first, files))
    first.close()
    second = Served(tmp_path)
    assert said(second, *of_shown(second, files)).endswith(": stored\n")
    stale = of_shown(second, files, "--instance", "0" * 32, "--epoch", "0")
    assert failed(second, *stale).exception.code == "expired"
    assert len(second.clips()) == 2


def test_a_run_that_is_not_heard_of_is_told(served, files, tmp_path):
    words = of_shown(served, files, "--timeout", "0.1")
    words[words.index("--bus") + 1] = f"ipc://{tmp_path}/nobody"
    result = failed(served, *words)
    assert isinstance(result.exception, LabelToolError)
    assert "--instance and --epoch" in str(result.exception)


def test_a_clip_of_a_data_set_is_labeled_by_its_name(served, toy):
    entry = AVSBench(toy, "ms3").clips("train")[0]
    told = said(served, "label", "--data", str(toy), "--clip", entry.name)
    assert told == f"{clip_info(entry).id}: stored\n"
    (clip,) = served.clips()
    np.testing.assert_array_equal(clip.masks, entry.masks()[0])


def test_a_clip_that_is_not_there_is_told(toy):
    with pytest.raises(LabelToolError, match=r"0 clips of .* 'nothing'.*SUBSET/SPLIT/NAME"):
        find_entry(toy, "nothing")


def test_a_label_is_replaced_and_taken_back(served, files):
    words = given(files)
    said(served, "label", *words, "--id", "a")
    assert (
        said(served, "label", *words, "--id", "a", "--class", "x", "--replace") == "a: replaced\n"
    )
    assert said(served, "label", "--delete", "a") == "a: deleted\n"
    assert served.clips() == []


def test_a_refusal_is_told_with_its_code(served, files):
    Image.fromarray(np.ones((6, 10), bool)).save(files / "m0.png")
    result = failed(served, "label", *given(files))
    assert isinstance(result.exception, LabelRefusedError)
    assert result.exception.code == "mask_full"
    assert said(served, "label", *given(files), "--full").endswith("stored\n")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--picture", "p.png", "--pts-ns", "1"),
        ("--data", "x"),
        ("--clip", "x", "--delete", "y"),
        ("--pts-ns", "1"),
    ],
)
def test_options_that_contradict_each_other_are_refused(served, words):
    result = failed(served, "label", *words)
    assert result.exit_code == 2
    assert "give" in result.output


def test_pictures_without_masks_are_refused(served, files):
    result = failed(served, "label", "--picture", f"{files}/p0.png")
    assert "1 pictures and 0 masks" in str(result.exception)


# feed


def told_to(toy, served, **fields) -> FeedOptions:
    endpoint = served.endpoint if served else "ipc:///nowhere"
    values = {"split": "4-2", "rate": 0, "size_px": 48, **fields}
    return FeedOptions(data=toy, endpoint=endpoint, **values)


class Clock:
    """A clock that goes on by pauses alone."""

    def __init__(self):
        self.now = 100.0
        self.pauses = []

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.pauses.append(round(seconds, 6))
        self.now += seconds


def fed(options, clock=None, output=None) -> Counter:
    clock = clock or Clock()
    console = Console(file=output or io.StringIO(), width=200)
    return feed(options, console=console, clock=clock, pause=clock.pause)


def test_a_protocols_clips_come_in_its_order_and_whole(served, toy):
    options = told_to(toy, served, blur=50.0, disjoint=0.0, seed=3)
    assert fed(options) == {"stored": 8}
    clips = served.clips()
    assert [c.clip_id for c in clips] == [clip_info(e).id for e in planned(options)]
    for clip, entry in zip(clips, planned(options), strict=True):
        np.testing.assert_array_equal(clip.masks, entry.masks(48)[0])
        windows = np.stack([sample.window.samples for sample in clip.clip.samples])
        np.testing.assert_array_equal(windows, entry.windows())
        assert clip.provenance == "toy-world-1-0-48px"


def test_single_sources_come_class_by_class(toy):
    options = told_to(toy, None, protocol="cil", split="5-1")
    entries = planned(options)
    assert {entry.folder.subset for entry in entries} == {"s4"}
    assert len(entries) == len({entry.category for entry in entries})


def test_the_seed_decides_the_order(toy):
    names = [[e.name for e in planned(told_to(toy, None, seed=seed))] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_a_feed_goes_on_where_it_was_without_waiting(served, toy):
    fed(told_to(toy, served, limit=5))
    clock = Clock()
    assert fed(told_to(toy, served, rate=2.0), clock) == {"same": 5, "stored": 3}
    assert clock.pauses == [0.5, 0.5]


def test_clips_come_at_the_rate(served, toy):
    clock = Clock()
    fed(told_to(toy, served, rate=4.0, limit=4), clock)
    assert clock.pauses == [0.25, 0.25, 0.25]


def test_late_labels_come_out_of_order_but_never_before_their_turn(toy):
    options = told_to(toy, None, rate=1.0, delay_s=4.0)
    turns = late(planned(options), options)
    order = [planned(options).index(entry) for entry, _ in turns]
    assert order != sorted(order)
    assert sorted(order) == list(range(8))
    assert all(k <= at_s <= k + 4.0 for k, (_, at_s) in zip(order, turns, strict=True))
    assert [at_s for _, at_s in turns] == sorted(at_s for _, at_s in turns)


def test_refused_clips_are_told_and_the_others_go_on(served, toy):
    options = told_to(toy, served)
    first = clip_info(planned(options)[0]).id
    entry = AVSBench(toy, "ms3").clips("train")[0]
    said(served, "label", "--data", str(toy), "--clip", entry.name, "--id", first)
    output = io.StringIO()
    assert fed(options, output=output) == {"conflict": 1, "stored": 7}
    assert f"{first}: conflict: the id" in output.getvalue()


def test_a_full_spool_ends_the_feed_with_what_to_do(tmp_path, toy):
    served = Served(tmp_path, max_clips=2)
    with pytest.raises(FeedError, match=r"1 quota, 2 stored; quota: .*Feed again to go on"):
        fed(told_to(toy, served))
    served.close()


def test_a_daemon_that_is_gone_ends_the_feed_with_what_to_do(tmp_path, toy):
    options = FeedOptions(
        data=toy, endpoint=f"ipc://{tmp_path}/gone", split="4-2", timeout_s=0.05, attempts=1
    )
    with pytest.raises(FeedError, match=r"no clip yet; ipc.*Feed again to go on"):
        fed(options)


def test_a_split_that_does_not_fit_is_refused(toy):
    with pytest.raises(ProtocolError):
        planned(told_to(toy, None, split="400-2"))


def test_the_command_says_by_its_exit_code_whether_all_are_there(served, toy):
    words = ["feed", "--data", str(toy), "--split", "4-2", "--rate", "0", "--size", "48"]
    assert "8 stored" in said(served, *words, "--blur", "10", "--delay-s", "1", "--seed", "1")
    result = failed(served, *words[:-1], "32")
    assert result.exit_code == 1, "other pictures under the same ids"
    assert "8 conflict" in result.output


# A daemon that is really killed


@pytest.fixture
def daemons(tmp_path):
    """A function that starts `atlasd run` as a user does, with its intake on; all are ended."""
    video = write_video(tmp_path / "a.mp4", 120.0, size=(32, 32), fps=5)
    config = tiny_config(
        tiny_checkpoint(tmp_path),
        video,
        f"ipc://{tmp_path}/bus",
        "source.pace=real",
        f"intake.endpoint=ipc://{tmp_path}/labels",
        f"intake.spool={tmp_path}/spool",
        f"run.out={tmp_path}/out",
    )
    settings = tmp_path / "config.json"
    settings.write_text(config.model_dump_json())
    command = [sys.executable, "-m", "atlasd.tools.cli", "run", "--config", str(settings)]
    started = []

    def start():
        process = subprocess.Popen([*command, "--intake"], stderr=subprocess.DEVNULL)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_daemon_killed_amid_a_feed_has_lost_nothing_and_has_nothing_twice(tmp_path, toy, daemons):
    running = [daemons()]
    status(f"ipc://{tmp_path}/bus", timeout_s=PATIENCE_S)

    turns = []

    def killed_before_the_fifth(seconds):
        turns.append(seconds)
        if len(turns) == 4:  # the first clip comes without a pause
            running[0].kill()
            running[0].wait()
            running.append(daemons())

    options = FeedOptions(
        data=toy,
        endpoint=f"ipc://{tmp_path}/labels",
        split="4-2",
        rate=1000.0,
        size_px=48,
        timeout_s=2.0,
        attempts=30,
    )
    done = feed(
        options,
        console=Console(file=io.StringIO()),
        clock=lambda: 0.0,
        pause=killed_before_the_fifth,
    )
    assert sum(done.values()) == 8
    assert set(done) <= {"stored", "same"}
    came = status(f"ipc://{tmp_path}/bus", timeout_s=PATIENCE_S)
    while came.intake is None or came.intake.clips != {"pending": 8}:
        came = status(f"ipc://{tmp_path}/bus", timeout_s=PATIENCE_S)
    assert came.state == "running", "masks went on"
    running[1].send_signal(signal.SIGTERM)
    assert running[1].wait(PATIENCE_S) == 0
    with Spool(tmp_path / "spool") as spool:
        batch = spool.next_batch(0, 50, 0)
    assert [clip.id for clip in batch.clips] == [clip_info(e).id for e in planned(options)]


# status


@pytest.fixture
def bus(tmp_path):
    with Publisher(f"ipc://{tmp_path}/bus", status_s=0.02) as publisher:
        yield publisher


INFO = IntakeInfo(
    endpoint="ipc:///labels",
    clips={"pending": 3, "consumed": 40},
    held=5,
    bytes=2_500_000,
    oldest_s=12.0,
    batches=20,
    aside=1,
    refused={"quota": 2},
)


def test_status_shows_the_stream_and_the_spool(bus):
    bus.publish(a_hello())
    bus.publish(a_mask(7))
    await_masks(bus, 1)
    bus.report("main", detail="queue 0/32", lat_ms={"total_p50": 21.5}, intake=INFO)
    output = io.StringIO()
    came = status(bus.endpoint, output=output)
    assert came.intake == INFO
    shown = output.getvalue()
    for part in ("40 consumed, 3 pending", "5 clips, 2.5 MB", "12 s", "2 quota", "1 set aside"):
        assert part in shown
    for part in ("stream main", "running queue 0/32", "tiny tiny-3", "total_p50 21.5"):
        assert part in shown


def test_status_as_json_has_the_keys_of_the_protocol(bus):
    bus.publish(a_hello())
    bus.publish(a_mask(7))
    await_masks(bus, 1)
    bus.report("main", intake=INFO)
    told = json.loads(RUNNER.invoke(cli.app, ["status", bus.endpoint, "--json"]).output)
    assert told["mask"] == {"epoch": 0, "seq": 7, "pts_ns": 280_000_000}
    assert told["intake"]["clips"] == {"pending": 3, "consumed": 40}
    assert told["model"] == {"preset": "tiny", "version": "tiny-3"}


def test_status_without_an_intake_says_so(bus):
    bus.publish(a_hello())
    output = io.StringIO()
    came = status(bus.endpoint, output=output)
    assert "intake.enabled is false" in output.getvalue()
    assert "intake" not in to_json(came, None)


def test_status_shows_the_rungs_of_a_deadline(bus):
    rungs = (RungInfo(px=256, p95_ms=52.25, frames=7), RungInfo(px=192, p95_ms=31.0, frames=93))
    ladder = LadderInfo(deadline_ms=40.0, rung=1, rungs=rungs)
    bus.publish(a_hello())
    bus.report("main", ladder=ladder)
    output = io.StringIO()
    came = status(bus.endpoint, output=output)
    assert came.ladder == ladder
    shown = output.getvalue()
    for part in ("40 ms, now at rung 1", "256 px, p95 52.2 ms, 7 frames", "192 px, p95 31.0 ms"):
        assert part in shown
    told = to_json(came, None)["ladder"]
    assert told["rungs"][1] == {"px": 192, "p95_ms": 31.0, "frames": 93}


def test_status_of_nothing_is_told(tmp_path):
    with pytest.raises(SilenceError, match="is the daemon running"):
        status(f"ipc://{tmp_path}/nobody", timeout_s=0.05)
