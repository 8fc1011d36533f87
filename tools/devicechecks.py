"""Checks of `atlasd doctor`: cameras and microphones."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from .findings import Case, Finding

SYSTEM = Path("/sys/class/video4linux")
_ENUM_FMT = 0xC0405602
_FORMAT = struct.Struct("=III32s4s16x")
_CAPTURE = 1
_MOST_FORMATS = 64


def cameras(case: Case) -> list[Finding]:
    """OpenCV, and Video4Linux's devices: names, whether they may be opened, formats."""
    del case
    nodes = sorted(SYSTEM.glob("video*")) if SYSTEM.is_dir() else []
    if not nodes:
        remedy = (
            "plug one in; in a container, pass it in (--device /dev/video0); files and network "
            "streams need none"
        )
        return [*_opencv(), Finding("cameras", "warn", "none", remedy)]
    found = [_camera(Path("/dev") / node.name, _name(node)) for node in nodes]
    return [*_opencv(), *(finding for finding in found if finding is not None)]


def _opencv() -> list[Finding]:
    try:
        import cv2
    except ImportError as error:
        remedy = "to use a camera: apt install libgl1, or pip install opencv-python-headless"
        return [Finding("cameras", "warn", f"OpenCV cannot be loaded: {error}", remedy)]
    return [Finding("cameras", "ok", f"OpenCV {cv2.__version__}")]


def _name(node: Path) -> str:
    try:
        return (node / "name").read_text(errors="replace").strip()
    except OSError:
        return node.name


def _camera(path: Path, name: str) -> Finding | None:
    """One device; None for a node that carries no pictures, as each UVC camera has one."""
    try:
        node = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except PermissionError:
        remedy = "sudo usermod -aG video $USER, then log in again"
        return Finding("cameras", "fail", f"{path} {name}: no permission", remedy)
    except OSError as error:
        remedy = "plug it in again; in a container, pass it in (--device)"
        return Finding("cameras", "fail", f"{path} {name}: {error.strerror}", remedy)
    try:
        formats = list(_formats(node))
    finally:
        os.close(node)
    return Finding("cameras", "ok", f"{path} {name}: {', '.join(formats)}") if formats else None


def _formats(node: int) -> Iterator[str]:
    import fcntl

    for index in range(_MOST_FORMATS):
        asked = _FORMAT.pack(index, _CAPTURE, 0, b"", b"")
        try:
            answer = fcntl.ioctl(node, _ENUM_FMT, asked)
        except OSError:
            return
        yield _FORMAT.unpack(answer)[4].decode("ascii", "replace").strip()


def microphones(case: Case) -> list[Finding]:
    """PortAudio, and the devices with sound that it lists."""
    del case
    try:
        import sounddevice
    except OSError as error:
        remedy = (
            "to use a microphone, install PortAudio: apt install libportaudio2 (Fedora, Arch: "
            "portaudio)"
        )
        return [Finding("microphones", "warn", f"{error}", remedy)]
    try:
        devices = [device for device in sounddevice.query_devices() if device["max_input_channels"]]
    except sounddevice.PortAudioError as error:
        remedy = (
            "see that ALSA, PulseAudio or PipeWire works for this user (arecord -l, pactl info)"
        )
        return [Finding("microphones", "fail", f"PortAudio lists no devices: {error}", remedy)]
    if not devices:
        remedy = (
            "plug one in, join the group audio or start PulseAudio or PipeWire; streams without "
            "sound are served too"
        )
        return [Finding("microphones", "warn", "PortAudio is here, but no microphone", remedy)]
    default = sounddevice.default.device[0]
    return [
        Finding(
            "microphones",
            "ok",
            f"{device['index']}: {device['name']}, {device['default_samplerate']:g} Hz, "
            f"{device['max_input_channels']} channels"
            f"{', the default' if device['index'] == default else ''}",
        )
        for device in devices
    ]
