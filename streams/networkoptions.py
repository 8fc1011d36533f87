"""What is read from the network, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Mode = Literal["auto", "live", "file"]
Transport = Literal["tcp", "udp"]


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What is read from the network, and how.

    Attributes:
        address: of the stream, with all that is secret in it.
        stream: name that every event carries.
        image_size_px: (width, height) that pictures are scaled to; None keeps their size.
        keep_full: also keep the unscaled upright picture.
        sample_rate_hz: rate of the sound that comes out.
        mode: ``file`` is read to its end without loss, ``live`` is taken as it comes; ``auto``
            takes for a file what a web server knows the length of.
        transport: of RTSP: ``tcp`` loses nothing, ``udp`` waits for nothing.
        open_timeout_s: of FFmpeg's own waiting while it opens.
        stall_timeout_s: and while it reads.
        tls_verify: whether the certificate of an ``https`` server is checked.
        origin_ns: host monotonic clock at 0 of the stream's timeline; None: the moment of opening.
    """

    address: str
    stream: str = "main"
    image_size_px: tuple[int, int] | None = None
    keep_full: bool = False
    sample_rate_hz: int = 32000
    mode: Mode = "auto"
    transport: Transport = "tcp"
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 10.0
    tls_verify: bool = True
    origin_ns: int | None = None

    def to_map(self) -> dict[str, Any]:
        """Plain values, for another process, with the kind that `live.open_live` reads."""
        return {"kind": "network", **asdict(self)}

    @classmethod
    def from_map(cls, options: Mapping[str, Any]) -> NetworkOptions:
        """Read what `to_map` gave, less the kind."""
        values = dict(options)
        size_px = values.pop("image_size_px")
        return cls(**values, image_size_px=None if size_px is None else (size_px[0], size_px[1]))
