"""Addresses of network sources, and how they are shown: never with what is secret in them."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from .sources import UnsupportedError

LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtmpt", "udp", "rtp", "srt", "tcp"})
WEB_SCHEMES = frozenset({"http", "https"})
SCHEMES = LIVE_SCHEMES | WEB_SCHEMES
HIDDEN = "***"
_MAX_CHARACTERS = 4096
_SHORTEST = 3
"""A secret of fewer characters is not looked for in prose: it would be found in every word."""
_ADDRESS = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(uri: str) -> bool:
    """Whether this names something on the network, not a file here."""
    return _ADDRESS.match(uri) is not None and not uri.startswith("file://")


def check(address: str) -> None:
    """Refuse an address that no attempt could ever open.

    Raises:
        UnsupportedError: its scheme is not known, or it has no host, or a port that is none.
    """
    shown = redacted(address)
    scheme = address.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UnsupportedError(
            f"{shown} begins with {scheme}://; {', '.join(sorted(SCHEMES))} can be read, and files"
        )
    if len(address) > _MAX_CHARACTERS or any(c.isspace() or not c.isprintable() for c in address):
        raise UnsupportedError(
            f"{shown[:80]} is no address: blanks and control characters are written as %XX, and"
            f" {_MAX_CHARACTERS} characters are the most"
        )
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise UnsupportedError(
            f"{shown} is no address: a port is a number from 0 to 65535, an IPv6 host stands in"
            " brackets, and @ : / in a password are written as %40 %3A %2F"
        ) from None
    if not host and scheme not in {"udp", "rtp"}:
        raise UnsupportedError(f"{shown} has no host; write {scheme}://HOST:PORT/PATH")


def redacted(address: str) -> str:
    """The address without user, password, and values of its query and fragment.

    What is no address is given back as it is. Values of a query are all hidden: cameras and
    services call their tokens by too many names to tell which of them are secret.
    """
    if not is_address(address):
        return address
    scheme, _, rest = address.partition("://")
    place, mark, query = _split_query(rest)
    host, slash, path = _split_path(place)
    if "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    shown = re.sub(r"=[^&;#]*", f"={HIDDEN}", query)
    if mark and "=" not in query:
        shown = HIDDEN
    return f"{scheme}://{host}{slash}{path}{mark}{shown}"


def without_secrets(text: str, address: str) -> str:
    """A text, as a library's error, without what is secret in an address.

    Args:
        text: any prose.
        address: what it may quote, whole or in part, percent-encoded or not.
    """
    if not is_address(address):
        return text
    text = text.replace(address, redacted(address))
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _secrets(address: str) -> set[str]:
    place, _, query = _split_query(address.partition("://")[2])
    host = _split_path(place)[0]
    found: set[str] = set()
    if "@" in host:
        account = host.rpartition("@")[0]
        user, _, password = account.partition(":")
        found |= {account, password or user}
    found |= {part.partition("=")[2] or part for part in re.split(r"[&;#]", query)}
    found |= {unquote(secret) for secret in found}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _split_query(rest: str) -> tuple[str, str, str]:
    found = re.search(r"[?#]", rest)
    # A `?` in a password that was not written as %3F: the host comes after the last @.
    if found is not None and "@" in rest[found.end() :].split("/", 1)[0]:
        found = re.compile(r"[?#]").search(rest, rest.rindex("@"))
    if found is None:
        return rest, "", ""
    return rest[: found.start()], found.group(), rest[found.end() :]


def _split_path(place: str) -> tuple[str, str, str]:
    """Host with account, slash, path; a `/` in a password that was not written as %2F is kept."""
    at = place.rfind("@")
    slash = place.find("/", at + 1 if at >= 0 else 0)
    return (place, "", "") if slash < 0 else (place[:slash], "/", place[slash + 1 :])
