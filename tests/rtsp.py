"""A GStreamer RTSP server as a child of a test."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

SYSTEM_PYTHON = "/usr/bin/python3"
PACKAGES = (
    "gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-base gstreamer1.0-plugins-good "
    "gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly gstreamer1.0-libav"
)
PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); "
    "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
    "names = 'x264enc avenc_aac opusenc rtph264pay rtpmp4gpay rtpopuspay appsrc'.split(); "
    "raise SystemExit(not all(Gst.ElementFactory.find(name) for name in names))"
)


@functools.cache
def is_here() -> bool:
    try:
        return not subprocess.run(
            [SYSTEM_PYTHON, "-c", PROBE], capture_output=True, check=False, timeout=60
        ).returncode
    except OSError:
        return False


needs_rtsp_server = pytest.mark.skipif(
    not is_here(), reason=f"needs an RTSP server: apt-get install {PACKAGES}"
)


class RtspServer:
    """Plays a clap each second at `url`; see rtspserver.py for the options."""

    def __init__(self, *options: str, port: int = 0) -> None:
        script = Path(__file__).with_name("rtspserver.py")
        self._process = subprocess.Popen(
            [SYSTEM_PYTHON, str(script), "--port", str(port), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        said = self._process.stdout.readline().split()
        assert said, "the RTSP server did not start"
        self.port = int(said[1])

    def url(self, account: str = "") -> str:
        return f"rtsp://{account + '@' if account else ''}127.0.0.1:{self.port}/clap"

    def kick(self) -> None:
        """Drop all clients, as a camera that restarts its service."""
        self._process.stdin.write(b"kick\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """Die without a word, as a camera that loses its power."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.stdin.close()
        self._process.stdout.close()
