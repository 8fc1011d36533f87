"""``atlasd subscribe``, against a real bus."""

import io
import json
import threading
from dataclasses import replace

import numpy as np
import pycocotools.mask as coco
import pytest
from atlasd.daemon.client import SilenceError
from atlasd.daemon.messages import Event
from atlasd.daemon.publisher import Publisher
from atlasd.tools.subscribe import subscribe
from PIL import Image
from wire import PATIENCE_S, a_hello, a_mask, picture

TCP = "tcp://127.0.0.1:0"


class Shown(threading.Thread):
    """Runs the command in a thread; `text` joins and gives what it wrote."""

    def __init__(self, endpoint, **options):
        super().__init__(daemon=True)
        self.output = io.StringIO()
        self.options = {"timeout_s": PATIENCE_S, "mode": "all", "output": self.output, **options}
        self.endpoint = endpoint
        self.stats = None
        self.start()

    def run(self):
        self.stats = subscribe(self.endpoint, **self.options)

    def text(self):
        self.join(PATIENCE_S + 5)
        assert self.stats is not None, "the command did not end well"
        return self.output.getvalue()


def show(messages, **options):
    """What the command writes when these messages are published."""
    with Publisher(TCP, "wait") as publisher:
        publisher.publish(a_hello(classes=("dog",)))
        shown = Shown(publisher.endpoint, **options)
        assert publisher.wait_for_subscriber(PATIENCE_S)
        for message in messages:
            publisher.publish(message)
        return shown.text()


def masks_then_end(count, **fields):
    return [*(a_mask(seq, **fields) for seq in range(count)), Event(stream="main", kind="eos")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("enc", ["bits", "bits+zstd", "rle", "prob8"])
def test_json_lines_hold_hello_masks_and_events_and_coco_reads_the_masks(enc):
    text = show(masks_then_end(3, enc=enc, classes=("dog",), scores=(0.5,)), json_lines=True)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["type"] for line in lines] == ["hello", "mask", "mask", "mask", "event"]
    mask = lines[2]
    assert (mask["seq"], mask["classes"], mask["scores"], mask["gap"]) == (1, ["dog"], [0.5], 0)
    assert mask["age_ms"] >= 0
    assert np.array_equal(coco.decode(mask["mask"]), picture())
    assert mask["area"] == pytest.approx(picture().mean(), abs=1e-6)
    assert lines[-1]["kind"] == "eos"


def test_masks_are_saved_as_pictures_named_by_epoch_number_and_time(tmp_path):
    show(masks_then_end(2, epoch=4), save=tmp_path, json_lines=True)
    paths = sorted((tmp_path / "main").iterdir())
    assert [p.name for p in paths] == ["004-00000000-0.png", "004-00000001-40000000.png"]
    with Image.open(paths[1]) as image:
        assert image.mode == "1"
        assert np.array_equal(np.asarray(image), picture())


def test_probabilities_are_saved_as_grey(tmp_path):
    values = np.linspace(0, 1, 60, dtype=np.float32).reshape(6, 10)
    show(masks_then_end(1, enc="prob8", mask=values), save=tmp_path, json_lines=True)
    with Image.open(tmp_path / "main" / "000-00000000-0.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.rint(values * 255).astype(np.uint8))


def test_the_table_shows_each_stream_with_its_latest_mask():
    messages = masks_then_end(8, classes=("guitar",), scores=(0.875,))
    shown = show(messages)
    for part in ("main", "guitar 0.88", "tiny tiny-3", "main: eos"):
        assert part in shown


@pytest.fixture(autouse=True)
def wide_console(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_it_stops_after_so_many_masks():
    text = show(masks_then_end(20), json_lines=True, count=5)
    types = [json.loads(line)["type"] for line in text.splitlines()]
    assert types.count("mask") == 5


def test_a_mask_that_cannot_be_decoded_is_told_and_the_next_is_shown(capsys):
    whole = a_mask(0)
    broken = replace(whole, mask=replace(whole.mask, data=b"\0"))
    end = Event(stream="main", kind="eos")
    text = show([broken, a_mask(1), end], json_lines=True)
    seqs = [line["seq"] for line in map(json.loads, text.splitlines()) if line["type"] == "mask"]
    assert seqs == [1]
    assert "mask 0 of main: bits data of a 6 x 10 mask has 1 bytes" in capsys.readouterr().err


def test_a_closed_pipe_ends_it_quietly():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    assert show(masks_then_end(2), json_lines=True, output=Closed()) == ""


def test_silence_is_an_error():
    with pytest.raises(SilenceError, match="is the daemon running"):
        subscribe("tcp://127.0.0.1:1", timeout_s=0.05, output=io.StringIO())
