"""Cameras and servers on the network: one container with pictures and sound, opened.

All of this may block as long as a library likes, so it runs in a process of its own
(`captureprocess`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import av
import av.error
from av.container import InputContainer

from .addresses import WEB_SCHEMES, check, redacted
from .files import FileSource
from .networkoptions import NetworkOptions
from .networksource import SEGMENTED, NetworkSource
from .sources import AccessError, MediaError, Source, UnsupportedError
from .tracks import reason_of

ANALYSE_US: Final = 2_000_000
"""How long FFmpeg may look for tracks that were announced and never come."""
AUTHORITIES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
"""Where Debian, Red Hat and the BSDs keep whom they trust; $SSL_CERT_FILE is asked first."""
DATAGRAM_BYTES: Final = 4_000_000
"""Wanted of the system for datagrams that wait: a large picture comes in a burst of hundreds."""
_REACHED_BY: Final = (
    "http,https,httpproxy,rtsp,rtsps,rtp,srtp,rtmp,rtmps,rtmpt,ffrtmphttp,srt,udp,tcp,tls,crypto,"
    "data"
)
"""All protocols but those that read files: no stream may name a file of this machine."""


def open_network(
    options: NetworkOptions, *, clock: Callable[[], int] = time.monotonic_ns
) -> Source:
    """Open a stream or a file on the network.

    Args:
        options: see there.
        clock: host monotonic clock in nanoseconds.

    Returns:
        A `NetworkSource`, or a `FileSource` of a file on a web server.

    Raises:
        MediaError: it cannot be opened now.
        UnsupportedError: it never will.
    """
    check(options.address)
    container = _open_container(options)
    mode = options.mode
    if mode == "auto":
        mode = "file" if _has_end(container, options.address) else "live"
    if mode == "file":
        return FileSource(
            redacted(options.address),
            stream=options.stream,
            image_size_px=options.image_size_px,
            keep_full=options.keep_full,
            sample_rate_hz=options.sample_rate_hz,
            clock=clock,
            container=container,
        )
    return NetworkSource(container, options, clock=clock)


def _open_container(options: NetworkOptions) -> InputContainer:
    shown = redacted(options.address)
    wait_us = str(round(options.stall_timeout_s * 1e6))
    settings = {
        "analyzeduration": str(ANALYSE_US),
        "protocol_whitelist": _REACHED_BY,
    }
    scheme = options.address.partition("://")[0].lower()
    if options.tls_verify and (authorities := _authorities()) is not None:
        settings |= {"tls_verify": "1", "ca_file": authorities}
    elif options.tls_verify and scheme == "https":
        raise UnsupportedError(
            f"{shown} cannot be checked: this system has no list of authorities; install "
            "ca-certificates, or set source.tls_verify to false"
        )
    if scheme in {"rtsp", "rtsps"}:
        settings |= {"rtsp_transport": options.transport, "timeout": wait_us}
        settings |= {"buffer_size": str(DATAGRAM_BYTES)} if options.transport == "udp" else {}
    elif scheme in {"udp", "rtp"}:
        settings |= {"timeout": wait_us, "overrun_nonfatal": "1"}
        settings |= {"buffer_size": str(DATAGRAM_BYTES)}
    else:
        settings |= {"rw_timeout": wait_us}
    began_s = time.monotonic()
    try:
        return av.open(
            options.address,
            options=settings,
            metadata_errors="replace",
            timeout=(options.open_timeout_s, options.stall_timeout_s),
        )
    except av.error.ProtocolNotFoundError:
        raise UnsupportedError(
            f"{shown} cannot be read: this build of FFmpeg (PyAV {av.__version__}) has no "
            f"{scheme}; serve the stream by RTSP or HTTP instead"
        ) from None
    except (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError) as error:
        raise AccessError(
            f"{shown} cannot be opened: {error.strerror}; give user and password in the address "
            "(source.uri, better by ATLASD_SOURCE__URI than on the command line)"
        ) from None
    except (av.error.FFmpegError, OSError, ValueError) as error:
        is_late = time.monotonic() - began_s >= options.open_timeout_s
        why = "it did not answer in time" if is_late else reason_of(error)
        if scheme == "https" and options.tls_verify and isinstance(error, OSError):
            why += "; if its certificate is its own, set source.tls_verify to false"
        raise MediaError(f"{shown} cannot be opened: {why}") from None


def _authorities() -> str | None:
    """The system's list of certificate authorities."""
    told = os.environ.get("SSL_CERT_FILE")
    return next((path for path in (told, *AUTHORITIES) if path and Path(path).is_file()), None)


def _has_end(container: InputContainer, address: str) -> bool:
    """Whether a web server knows where it ends: a recording, not a camera."""
    if address.partition("://")[0].lower() not in WEB_SCHEMES:
        return False
    if container.format.name in SEGMENTED:
        return bool(container.duration and container.duration > 0)
    return container.size > 0
