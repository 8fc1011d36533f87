"""The cameras of this machine, found without opening any."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .sources import MediaError

SYSTEM = Path("/sys/class/video4linux")
DEVICES = Path("/dev")
_QUERYCAP = 0x80685600
"""``VIDIOC_QUERYCAP``: struct v4l2_capability, 104 bytes."""
_VIDEO_CAPTURE, _DEVICE_CAPS = 0x0000_0001, 0x8000_0000


@dataclass(frozen=True, slots=True)
class CameraInfo:
    """A camera.

    Attributes:
        index: its number: N of /dev/videoN.
        path: what to open.
        name: what its driver calls it.
        problem: why it cannot be used, in words; empty where nothing is known against it.
    """

    index: int
    path: str
    name: str
    problem: str = ""


def list_cameras(
    system: Path = SYSTEM,
    devices: Path = DEVICES,
    query: Callable[[Path], tuple[bool, str]] | None = None,
) -> list[CameraInfo]:
    """All cameras that Video4Linux knows, by number.

    Nodes that carry only metadata, as each UVC camera has one, are left out.

    Args:
        system: where the kernel lists them.
        devices: where their nodes are.
        query: whether a node gives pictures, and what stands in the way; default: asks the driver.
    """
    found: list[CameraInfo] = []
    for folder in system.glob("video*") if system.is_dir() else ():
        number = re.fullmatch(r"video(\d+)", folder.name)
        if number is None:
            continue
        try:
            name = (folder / "name").read_text(errors="replace").strip()
        except OSError:
            name = folder.name
        path = devices / folder.name
        gives_pictures, problem = (query or _query)(path)
        if gives_pictures:
            found.append(CameraInfo(int(number[1]), str(path), name, problem))
    return sorted(found, key=lambda info: info.index)


def find_camera(wanted: str, found: Sequence[CameraInfo]) -> CameraInfo:
    """The camera that is meant.

    Args:
        wanted: an index, a path (also by another name, as in /dev/v4l/by-id), or a part of a name
            in any case.
        found: what is there.

    Raises:
        MediaError: none or several are meant; the error lists what is there.
    """
    if not sys.platform.startswith("linux") and wanted.isdecimal():
        return CameraInfo(int(wanted), wanted, f"camera {wanted}")
    if wanted.isdecimal():
        chosen = [info for info in found if info.index == int(wanted)]
    elif "/" in wanted:
        real = os.path.realpath(wanted)
        chosen = [info for info in found if real in (info.path, os.path.realpath(info.path))]
    else:
        named = [info for info in found if info.name.lower() == wanted.lower()]
        chosen = named or [info for info in found if wanted.lower() in info.name.lower()]
    if len(chosen) == 1:
        return chosen[0]
    there = "; ".join(f"{info.index}: {info.name}" for info in found) or "none at all"
    what = f"{len(chosen)} cameras are" if chosen else "no camera is"
    raise MediaError(
        f"{what} meant by {wanted!r}; there are: {there}. Give an index, a path as /dev/video0 or "
        "a part of a name; where yours is missing, see that it is plugged in, and in a container "
        "that its device is passed in (`--device /dev/video0`)"
    )


def _query(path: Path) -> tuple[bool, str]:
    """Whether a node gives pictures, and what stands in the way; asked without streaming."""
    import fcntl

    try:
        node = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    except PermissionError:
        return True, f"no permission for {path}: `sudo usermod -aG video $USER`, then log in again"
    except OSError as error:
        return True, f"{path} does not open: {error.strerror}"
    try:
        answer = fcntl.ioctl(node, _QUERYCAP, bytes(104))
    except OSError:
        return False, ""
    finally:
        os.close(node)
    whole, device = struct.unpack_from("=II", answer, 84)
    return bool((device if whole & _DEVICE_CAPS else whole) & _VIDEO_CAPTURE), ""
