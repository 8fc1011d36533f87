"""An RTSP server that plays a clap each second; run with the system's Python, which has GStreamer.

Usage: /usr/bin/python3 rtspserver.py [--port N] [--audio aac|opus|none] [--video h264|none]
    [--size WxH] [--fps N] [--account USER:PASSWORD]

Prints ``port N`` once it listens. The picture is white for one frame at each whole second of the
stream's running time, and a burst of 2 kHz is centred there: both are written here with exact
timestamps, so what the encoders, the payloaders and the wire do to them is GStreamer's own.
Lines on stdin: ``kick`` drops all clients, ``quit`` ends.
"""

import argparse
import math
import sys
import threading
from array import array

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
gi.require_version("GstRtsp", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

RATE_HZ = 48000
CHUNK = 480
CLICK_S = 0.004


def click_samples(start: int, count: int) -> array:
    """Mono s16: bursts of 2 kHz, 4 ms long, centred on each whole second from the first."""
    out = array("h")
    for i in range(start, start + count):
        near = i / RATE_HZ
        second = round(near)
        near -= second
        loud = math.exp(-0.5 * (near / (CLICK_S / 4)) ** 2) if second >= 1 else 0.0
        out.append(int(29000 * loud * math.cos(2 * math.pi * 2000 * near)))
    return out


class Feed:
    """Fills one client pipeline's appsrcs with stamped pictures and sound, ahead of time."""

    def __init__(self, element: Gst.Element, options: argparse.Namespace) -> None:
        self.width, self.height = options.size
        self.fps = options.fps
        frame = self.width * self.height * 3 // 2
        luma = self.width * self.height
        self.dark = bytes([30]) * luma + bytes([128]) * (frame - luma)
        self.white = bytes([235]) * luma + bytes([128]) * (frame - luma)
        self.frames = self.samples = 0
        video, audio = element.get_child_by_name("video"), element.get_child_by_name("audio")
        if video is not None:
            video.set_property(
                "caps",
                Gst.Caps.from_string(
                    f"video/x-raw,format=I420,width={self.width},height={self.height},"
                    f"framerate={self.fps}/1"
                ),
            )
            video.connect("need-data", self.picture)
        if audio is not None:
            audio.set_property(
                "caps",
                Gst.Caps.from_string(
                    f"audio/x-raw,format=S16LE,rate={RATE_HZ},channels=1,layout=interleaved"
                ),
            )
            audio.connect("need-data", self.sound)

    def picture(self, source: Gst.Element, length: int) -> None:
        flash = self.frames % self.fps == 0 and self.frames >= self.fps
        self.push(
            source,
            self.white if flash else self.dark,
            self.frames * Gst.SECOND // self.fps,
            Gst.SECOND // self.fps,
        )
        self.frames += 1

    def sound(self, source: Gst.Element, length: int) -> None:
        data = click_samples(self.samples, CHUNK).tobytes()
        self.push(source, data, self.samples * Gst.SECOND // RATE_HZ, CHUNK * Gst.SECOND // RATE_HZ)
        self.samples += CHUNK

    def push(self, source: Gst.Element, data: bytes, pts: int, duration: int) -> None:
        buffer = Gst.Buffer.new_wrapped(data)
        buffer.pts = buffer.dts = pts
        buffer.duration = duration
        source.emit("push-buffer", buffer)


def launch_line(options: argparse.Namespace) -> str:
    common = "is-live=false format=time block=true max-bytes=200000 do-timestamp=false"
    parts = []
    if options.video != "none":
        parts.append(
            f"appsrc name=video {common} ! identity sync=true ! x264enc tune=zerolatency "
            f"speed-preset=ultrafast key-int-max={options.fps} ! rtph264pay name=pay0 pt=96"
        )
    if options.audio != "none":
        encoder = {
            "aac": "avenc_aac ! aacparse ! rtpmp4gpay",
            "opus": "opusenc frame-size=20 ! rtpopuspay",
        }[options.audio]
        index = len(parts)
        parts.append(
            f"appsrc name=audio {common} ! identity sync=true ! audioconvert ! audioresample ! "
            f"{encoder} name=pay{index} pt=97"
        )
    return f"( {' '.join(parts)} )"


def require_account(server: GstRtspServer.RTSPServer, factory, account: str) -> None:
    user, _, password = account.partition(":")
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", default="0")
    parser.add_argument("--audio", choices=["aac", "opus", "none"], default="aac")
    parser.add_argument("--video", choices=["h264", "none"], default="h264")
    parser.add_argument("--size", type=lambda x: tuple(map(int, x.split("x"))), default=(320, 240))
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--account", default="")
    options = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(options.port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(launch_line(options))
    factory.set_shared(False)
    factory.connect("media-configure", lambda _, media: feeds.append(feed(media, options)))
    feeds: list[Feed] = []
    if options.account:
        require_account(server, factory, options.account)
    server.get_mount_points().add_factory("/clap", factory)
    server.attach(None)
    loop = GLib.MainLoop()

    def listen() -> None:
        for line in sys.stdin:
            if line.strip() == "kick":
                GLib.idle_add(kick, server)
            elif line.strip() == "quit":
                break
        GLib.idle_add(loop.quit)

    threading.Thread(target=listen, daemon=True).start()
    sys.stdout.write(f"port {server.get_bound_port()}\n")
    sys.stdout.flush()
    loop.run()


def feed(media: GstRtspServer.RTSPMedia, options: argparse.Namespace) -> Feed:
    return Feed(media.get_element(), options)


def kick(server: GstRtspServer.RTSPServer) -> bool:
    server.client_filter(lambda _server, _client: GstRtspServer.RTSPFilterResult.REMOVE)
    return False


_ = GstRtsp  # its introspection is needed by the calls above


main()
