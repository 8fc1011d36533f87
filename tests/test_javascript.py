"""The JavaScript reader of docs/examples, against a real bus: what Python says, it says."""

import hashlib
import json
import shutil
import signal
import subprocess
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from atlasd.daemon.messages import Event, Status, pack, topic
from atlasd.daemon.publisher import Publisher
from wire import PATIENCE_S, a_mask, await_subscribers, picture, proxied

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "examples" / "javascript"
TCP = "tcp://127.0.0.1:0"
INSTALL_S = 100
TOPICS = 4
ENCODINGS = ("bits", "bits+zstd", "rle", "prob8")


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """The reader with its packages, as `npm ci` installs them: the path of masks.mjs."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not here; install nodejs 20 or newer and npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < 20:
        pytest.skip(f"node is {version.stdout.strip()}; the reader needs 20 or newer")
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "package-lock.json", "masks.mjs"):
        shutil.copy(EXAMPLE / name, folder)
    try:
        subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=INSTALL_S,
        )
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm cannot install the reader's packages here: {error.stderr[-300:]}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install the reader's packages within {INSTALL_S} s")
    return folder / "masks.mjs"


@pytest.fixture
def started(reader):
    """Starts the reader as a process."""
    processes = []

    def start(endpoint, *words):
        command = ["node", str(reader), endpoint, *words]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def bus():
    """A publisher whose socket the test holds: it sends whatever it likes."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.linger = 0
        socket.rcvtimeo = int(PATIENCE_S * 1000)
        socket.bind(TCP)
        yield socket


def endpoint_of(bus):
    return bus.last_endpoint.decode()


def await_join(bus):
    for _ in range(TOPICS):
        assert bus.recv()[:1] == b"\1"


def ended(process, code=0):
    """What it wrote, and what it complained of."""
    out, complaints = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, complaints
    return [json.loads(line) for line in out.splitlines()], complaints


def noise(seed, height, width):
    """A mask of blobs and single pixels, so that runs of all lengths occur."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 4 + 1, width // 4 + 1)) > 0.6
    blobs = coarse.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]
    return blobs ^ (rng.random((height, width)) > 0.97)


def sha256(mask):
    return hashlib.sha256(mask.astype(np.uint8).tobytes()).hexdigest()


@pytest.mark.parametrize("enc", ENCODINGS)
def test_every_pixel_of_every_encoding_is_equal(started, enc):
    shapes = [(1, 1), (37, 53), (224, 224), (5, 300)]
    pictures = [noise(seed, *shape) for seed, shape in enumerate(shapes)]
    pictures += [np.zeros((9, 7), bool), np.ones((9, 7), bool), picture()]
    with Publisher(TCP, "wait") as publisher:
        process = started(publisher.endpoint, "main", "--all", "--json")
        await_subscribers(publisher, 1)
        for seq, mask in enumerate(pictures):
            publisher.publish(a_mask(seq, mask=mask, enc=enc))
        publisher.publish(Event(stream="main", kind="eos"))
        lines, _ = ended(process)
    assert [line["sha256"] for line in lines] == [sha256(mask) for mask in pictures]
    assert [line["shape"] for line in lines] == [list(mask.shape) for mask in pictures]
    assert [line["area"] for line in lines] == [int(mask.sum()) for mask in pictures]


def test_times_of_64_bits_are_exact(started):
    times = [0, -1, 2**53 + 1, 2**63 - 1, -(2**63)]
    with Publisher(TCP, "wait") as publisher:
        process = started(publisher.endpoint, "main", "--all", "--json")
        await_subscribers(publisher, 1)
        for seq, time_ns in enumerate(times):
            publisher.publish(a_mask(seq, pts_ns=time_ns, capture_ns=time_ns))
        publisher.publish(Event(stream="main", kind="eos"))
        lines, _ = ended(process)
    assert [int(line["pts_ns"]) for line in lines] == times
    assert [int(line["capture_ns"]) for line in lines] == times


def test_another_major_version_is_refused(started, bus):
    process = started(endpoint_of(bus), "main")
    await_join(bus)
    bus.send(topic("m", "main") + msgpack.packb({"v": "2.0", "stream": "main"}))
    _, complaints = ended(process, 3)
    assert "version 2.0; this reads 1.x" in complaints


def test_a_newer_minor_version_and_unknown_keys_are_read(started, bus):
    newer = (EXAMPLE.parents[2] / "tests" / "golden" / "newer-minor.bin").read_bytes()
    process = started(endpoint_of(bus), "porch", "--all", "--json")
    await_join(bus)
    bus.send(newer)
    bus.send(pack(Event(stream="porch", kind="eos")))
    lines, _ = ended(process)
    assert [line["stream"] for line in lines] == ["porch"]


def test_an_unknown_encoding_is_told(started, bus):
    process = started(endpoint_of(bus), "main")
    await_join(bus)
    entries = msgpack.unpackb(pack(a_mask()).partition(b"\0")[2])
    entries["mask"]["enc"] = "bits+brotli"
    bus.send(topic("m", "main") + msgpack.packb(entries))
    _, complaints = ended(process, 5)
    assert "masks come as bits+brotli" in complaints


def test_what_is_malformed_is_counted_and_the_masks_go_on(started, bus):
    process = started(endpoint_of(bus), "main", "--all", "--json")
    await_join(bus)
    good = msgpack.unpackb(pack(a_mask(enc="bits+zstd", mask=noise(1, 64, 64))).partition(b"\0")[2])
    huge = {**good, "mask": {**good["mask"], "shape": [4, 4]}}
    for garbage in (
        b"\xc1\xff",
        msgpack.packb([1, 2]),
        msgpack.packb({"v": "1.0", "stream": "main"}),
        msgpack.packb({**good, "stream": "other"}),
        msgpack.packb(huge),
        msgpack.packb({**good, "mask": {**good["mask"], "data": b"no zstd"}}),
    ):
        bus.send(topic("m", "main") + garbage)
    bus.send_multipart([pack(a_mask(1)), b"a second part"])
    bus.send(pack(a_mask(2)))
    bus.send(pack(Event(stream="main", kind="goodbye")))
    lines, complaints = ended(process)
    assert [line["seq"] for line in lines] == [2]
    assert "7 messages malformed" in complaints


def test_a_status_that_says_ended_brings_the_last_mask(started, bus):
    process = started(endpoint_of(bus), "main", "--json")
    await_join(bus)
    bus.send(pack(Status(stream="main", state="ended", mask=a_mask(41))))
    lines, _ = ended(process)
    assert [line["seq"] for line in lines] == [41]


def test_losses_are_counted(started, bus):
    process = started(endpoint_of(bus), "main", "--all", "--json")
    await_join(bus)
    for seq in (0, 1, 5):
        bus.send(pack(a_mask(seq)))
    bus.send(pack(Event(stream="main", kind="eos")))
    _, complaints = ended(process)
    assert "3 masks lost" in complaints


def test_after_a_pause_the_latest_comes_and_what_lay_before_it_is_passed_over(started, bus):
    process = started(endpoint_of(bus), "main", "--json")
    await_join(bus)
    bus.send(pack(a_mask(0)))
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    for seq in range(1, 300):
        bus.send(pack(a_mask(seq)))
    process.send_signal(signal.SIGCONT)
    bus.send(pack(Event(stream="main", kind="eos")))
    lines, complaints = ended(process)
    seqs = [line["seq"] for line in (first, *lines)]
    assert seqs == sorted(set(seqs))
    assert (seqs[0], seqs[-1]) == (0, 299)
    assert len(seqs) < 30
    assert "0 masks lost" in complaints


def test_what_the_proxy_passes_on_is_read_and_the_last_mask_reaches_who_comes_late(started):
    with Publisher(TCP, "wait") as publisher, proxied(publisher.endpoint) as proxy:
        process = started(proxy.endpoint, "main", "--all", "--json")
        await_subscribers(publisher, 1)
        for seq in range(20):
            publisher.publish(a_mask(seq))
        publisher.publish(Event(stream="main", kind="eos"))
        publisher.publish(Status(stream="main", state="ended", mask=a_mask(19)))
        lines, _ = ended(process)
        assert [line["seq"] for line in lines] == list(range(20))
        late, _ = ended(started(proxy.endpoint, "main", "--json"))
        assert [line["seq"] for line in late] == [19]


def test_silence_and_wrong_calls_have_codes_of_their_own(started):
    _, complaints = ended(started("tcp://127.0.0.1:1", "main", "--timeout", "0.2"), 4)
    assert "is the daemon running?" in complaints
    ended(started("tcp://127.0.0.1:1", "--wrong"), 2)
    ended(started("tcp://127.0.0.1:1", "--timeout", "soon"), 2)


def test_its_versions_are_pinned():
    package = json.loads((EXAMPLE / "package.json").read_text())
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    for name, version in package["dependencies"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
        assert lock["packages"][f"node_modules/{name}"]["integrity"].startswith("sha512-")
