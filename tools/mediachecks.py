"""Checks of `atlasd doctor`: what the FFmpeg inside PyAV can read."""

from __future__ import annotations

from .findings import Case, Finding

CODECS = {
    "h264": "most cameras and files",
    "hevc": "newer cameras",
    "mjpeg": "webcams, MJPEG over HTTP",
    "aac": "most sound",
    "opus": "WebRTC and web sound",
    "pcm_alaw": "sound of IP cameras",
    "pcm_mulaw": "sound of IP cameras",
}
"""Decoders with what needs them."""

PROTOCOLS = ("rtsp", "http", "https", "tls", "udp", "srt")
"""What network sources use."""

_REFUSED = "127.0.0.1:1"
_REMEDY = "pip install --force-reinstall 'av>=18,<20': its wheels have them"


def codecs(case: Case) -> list[Finding]:
    """Decoders of what cameras, files and streams send."""
    del case
    import av
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    missing: list[str] = []
    for name in CODECS:
        try:
            Codec(name, "r")
        except UnknownCodecError:
            missing.append(name)
    here = f"PyAV {av.__version__}, FFmpeg {av.ffmpeg_version_info}"
    if not missing:
        return [Finding("codecs", "ok", f"{here}: {', '.join(CODECS)}")]
    lacks = ", ".join(f"{name} ({CODECS[name]})" for name in missing)
    return [Finding("codecs", "fail", f"{here} lacks {lacks}", _REMEDY)]


def protocols(case: Case) -> list[Finding]:
    """Network protocols; one that the configured source needs must be there."""
    missing = [name for name in PROTOCOLS if not _speaks(name)]
    there = [name for name in PROTOCOLS if name not in missing]
    findings = [Finding("protocols", "ok", ", ".join(there) or "none")]
    scheme = case.config.source.uri.partition("://")[0].lower()
    for name in missing:
        wanted = name == scheme
        found = f"no {name}{', which source.uri needs' if wanted else ''}"
        remedy = (
            f"have the stream sent by another protocol (RTSP, MPEG-TS over HTTP), or build PyAV on "
            f"an FFmpeg with {name}; PyAV's wheels have all of these but srt"
        )
        findings.append(Finding("protocols", "fail" if wanted else "warn", found, remedy))
    return findings


def _speaks(protocol: str) -> bool:
    """Whether FFmpeg knows a protocol: it says so before it finds that nobody answers."""
    import av
    from av.error import FFmpegError, ProtocolNotFoundError

    try:
        av.open(f"{protocol}://{_REFUSED}", timeout=0.3).close()
    except ProtocolNotFoundError:
        return False
    except (FFmpegError, OSError):
        return True
    return True
