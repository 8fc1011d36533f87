"""What every map on the wire is made of: its version, the types of its fields, its limits."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgpack

from . import masks
from .fields import Many, Real, Text, Whole, settle

VERSION: Final = "1.2"
"""major.minor of the wire. Minors add keys; a major may change anything."""

MAX_CONTAINERS: Final = 512
"""Most lists and maps in a message."""

MAX_ENTRIES: Final = 1024
"""Most entries of a list or a map."""

STREAM_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

StreamName = Annotated[str, Text(64, STREAM_PATTERN)]
Version = Annotated[str, Text(16, r"[0-9]{1,5}\.[0-9]{1,5}")]
Nanoseconds = Annotated[int, Whole(-(2**63), 2**63 - 1)]
Count = Annotated[int, Whole(0, 2**63 - 1)]
Side = Annotated[int, Whole(1, 32768)]
MaskSide = Annotated[int, Whole(1, masks.MAX_SIDE)]
Fraction = Annotated[float, Real(0, 1)]
Milliseconds = Annotated[float, Real(0, 1e12)]
Number = Annotated[float, Real(-1e300, 1e300)]
Name = Annotated[str, Text(128)]
Prose = Annotated[str, Text(8000)]
Names = Annotated[tuple[Name, ...], Many(MAX_ENTRIES)]
Stages = Annotated[Mapping[Name, Milliseconds], Many(64)]
Counts = Annotated[Mapping[Name, Count], Many(128)]
Facts = Annotated[Mapping[Name, bool | Count | Number | Prose], Many(64)]


class WireError(ValueError):
    """Bytes or values that are no message: what came, what is allowed."""


class VersionError(WireError):
    """A message of another major version, which this reader refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A dataclass whose fields are within their bounds."""

    def __post_init__(self) -> None:
        settle(self)


def read_map(body: bytes) -> dict[str, object]:
    """Decode a msgpack map with bounded memory: the containers are counted as they are made.

    Raises:
        WireError: the bytes are no map, or over the limits.
    """
    made = 0

    def count(container: object) -> object:
        nonlocal made
        made += 1
        if made > MAX_CONTAINERS:
            raise WireError(f"the message has over {MAX_CONTAINERS} lists and maps")
        return container

    try:
        entries = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            object_hook=count,
            list_hook=count,
            max_array_len=MAX_ENTRIES,
            max_map_len=MAX_ENTRIES,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError) as error:
        raise WireError(f"the message's body is no msgpack within limits: {error}") from error
    if not isinstance(entries, dict):
        raise WireError(f"the message's body is a {type(entries).__name__}; it must be a map")
    return entries


def check_version(version: object) -> None:
    """Check the ``v`` of a map.

    Raises:
        WireError: it is no version.
        VersionError: it is another major.
    """
    if not isinstance(version, str) or re.fullmatch(r"[0-9]{1,5}\.[0-9]{1,5}", version) is None:
        raise WireError(f"v is {version!r:.40}; it must be major.minor, such as {VERSION!r}")
    own = VERSION.split(".")[0]
    if version.split(".")[0] != own:
        raise VersionError(
            f"the message has version {version}; this reader knows {own}.x: "
            "install the same major version of atlasd on both sides"
        )


def clock_name() -> str:
    """Names this machine's monotonic clock: equal names mean comparable times."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()
