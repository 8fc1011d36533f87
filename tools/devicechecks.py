"""Checks of `atlasd doctor`: cameras and microphones."""

from __future__ import annotations

from collections.abc import Sequence

from ..streams.cameras import CameraInfo, find_camera, list_cameras
from ..streams.microphone import MicrophoneInfo, find_microphone, list_microphones
from ..streams.sources import MediaError
from ..streams.videoformats import picture_formats
from .findings import Case, Finding


def cameras(case: Case) -> list[Finding]:
    """OpenCV; the cameras, whether they may be opened, their formats; the configured one."""
    found, wanted = list_cameras(), case.config.source.camera
    meant, missing = (None, []) if wanted is None else _configured_camera(str(wanted), found)
    findings = [*_opencv(), *(_camera(info, is_meant=info == meant) for info in found), *missing]
    if wanted is None and not found:
        remedy = (
            "plug one in; in a container, pass it in (--device /dev/video0); files and network "
            "streams need none"
        )
        findings.append(Finding("cameras", "warn", "none", remedy))
    return findings


def microphones(case: Case) -> list[Finding]:
    """PortAudio, the microphones that it lists, and the one that is configured."""
    wanted = case.config.source.microphone
    try:
        found = list_microphones()
    except MediaError as error:
        remedy = (
            "apt install libportaudio2 (Fedora, Arch: portaudio); where it is there, see that "
            "ALSA, PulseAudio or PipeWire works for this user (arecord -l, pactl info)"
        )
        return [Finding("microphones", "warn" if wanted is None else "fail", f"{error}", remedy)]
    findings = [_microphone(info) for info in found]
    if wanted is not None:
        findings += _configured_microphone(str(wanted), found)
    elif not found:
        remedy = (
            "plug one in, join the group audio or start PulseAudio or PipeWire; streams without "
            "sound are served too"
        )
        findings.append(Finding("microphones", "warn", "PortAudio, but no microphone", remedy))
    return findings


def _opencv() -> list[Finding]:
    try:
        import cv2
    except ImportError as error:
        remedy = "to use a camera: apt install libgl1, or pip install opencv-python-headless"
        return [Finding("cameras", "warn", f"OpenCV cannot be loaded: {error}", remedy)]
    return [Finding("cameras", "ok", f"OpenCV {cv2.__version__}")]


def _camera(info: CameraInfo, *, is_meant: bool) -> Finding:
    """A camera that is not used may be broken: that is told, and is no failure."""
    told = f"{info.index}: {info.name}, {info.path}"
    if info.problem:
        remedy = "do as it says, or plug the camera in again; in a container, pass it in (--device)"
        status = "fail" if is_meant else "warn"
        return Finding("cameras", status, f"{told}: {info.problem}", remedy)
    offered = "; ".join(map(str, picture_formats(info.path))) or "lists no formats"
    return Finding("cameras", "ok", f"{told}: {offered}")


def _configured_camera(
    wanted: str, found: Sequence[CameraInfo]
) -> tuple[CameraInfo | None, list[Finding]]:
    """The camera that is meant; where none or several are, that is a failure."""
    try:
        return find_camera(wanted, found), []
    except MediaError as error:
        told = f"source.camera: {error}"
        return None, [Finding("cameras", "fail", told, "set source.camera anew")]


def _configured_microphone(wanted: str, found: Sequence[MicrophoneInfo]) -> list[Finding]:
    try:
        find_microphone(wanted, found)
    except MediaError as error:
        remedy = "set source.microphone anew"
        return [Finding("microphones", "fail", f"source.microphone: {error}", remedy)]
    return []


def _microphone(info: MicrophoneInfo) -> Finding:
    default = ", the default" if info.is_default else ""
    told = f"{info.index}: {info.name}, {info.rate_hz} Hz, {info.channels} channels{default}"
    return Finding("microphones", "ok", told)
