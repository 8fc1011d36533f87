"""A PulseAudio server of the test's own: a sink into nothing, whose monitor is the microphone."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

SINK = "virt"
PACKAGES = "pulseaudio, pulseaudio-utils, libasound2-plugins, libportaudio2"


def missing_packages() -> str:
    """Debian packages that are not here, as the reason of a skip; empty where all are."""
    missing = [
        package
        for package, is_there in (
            ("pulseaudio", shutil.which("pulseaudio")),
            ("pulseaudio-utils", shutil.which("pacat")),
            ("libportaudio2", ctypes.util.find_library("portaudio")),
            ("libasound2-plugins", [*Path("/usr/lib").glob("*/alsa-lib/*pulse*")]),
        )
        if not is_there
    ]
    return f"needs the Debian packages {', '.join(missing)}" if missing else ""


class PulseAudio:
    """A server in a folder of its own; `environ` is what its clients need."""

    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir(mode=0o700)
        (folder / "home").mkdir()
        (folder / "home" / ".asoundrc").write_text(
            "pcm.!default { type pulse }\nctl.!default { type pulse }\n"
        )
        (folder / "server.pa").write_text(
            "load-module module-native-protocol-unix\n"
            f"load-module module-null-sink sink_name={SINK} rate=48000\n"
        )
        self._folder = folder
        self._socket = folder / "run" / "pulse" / "native"
        self._server: subprocess.Popen[bytes] | None = None
        self._players: list[subprocess.Popen[bytes]] = []
        self.environ = {
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "PULSE_RUNTIME_PATH": str(folder / "run" / "pulse"),
            "PULSE_SERVER": f"unix:{self._socket}",
            "PULSE_SOURCE": f"{SINK}.monitor",
        }

    def start(self) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *("pulseaudio", "-n", "-F", str(self._folder / "server.pa")),
                    *("--daemonize=no", "--exit-idle-time=-1", "--system=false"),
                    *("--disallow-exit", "--use-pid-file=no"),
                ],
                env=os.environ | self.environ,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while self._control("list", "short", "sources").returncode:
            assert self._server.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "PulseAudio does not answer"

    def _control(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["pactl", *command],
            env=os.environ | self.environ,
            check=False,
            capture_output=True,
            timeout=20,
        )

    def play(self, sound: np.ndarray, rate_hz: int = 48000) -> None:
        """Play float32 (n,) mono into the sink, from about now on."""
        path = self._folder / f"sound{len(self._players)}.raw"
        sound.astype("<f4").tofile(path)
        self._players.append(
            subprocess.Popen(
                [
                    *("pacat", "--playback", f"--device={SINK}", "--format=float32le"),
                    *(f"--rate={rate_hz}", "--channels=1", "--latency-msec=500", str(path)),
                ],
                env=os.environ | self.environ,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def kill(self) -> None:
        """End the server as a crash does."""
        assert self._server is not None
        self._server.kill()
        self._server.wait(10)
        self._socket.unlink(missing_ok=True)

    def hang(self) -> None:
        """Stop the server without ending it: whoever asks it waits for ever."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a `hang`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._server is not None and self._server.poll() is None:
            self.go_on()
        for process in (*self._players, self._server):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(10)


@pytest.fixture
def pulse(tmp_path, monkeypatch):
    """A server at work, and this process its client."""
    reason = missing_packages()
    if reason:
        pytest.skip(reason)
    server = PulseAudio(tmp_path)
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.stop()
