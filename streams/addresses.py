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
_NAME = re.compile(r"[\w.\-\[\]]{1,40}\Z")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCAL = re.compile(r"(file|ipc)://|/(?!/)|\.\.?/|~")
"""How what is surely on this machine begins."""
_MEANT = re.compile(
    rf"\W*({'|'.join(sorted(SCHEMES))})\s*:|.*://|.*:.*@", re.DOTALL | re.IGNORECASE
)
_ACCOUNT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@|[^\s'\"/@:]*:[^\s'\"]*@")


def is_address(uri: str) -> bool:
    """Whether this names something on the network, not a file here."""
    return _ADDRESS.match(uri) is not None and _LOCAL.match(uri) is None


def is_mistaken(uri: str) -> bool:
    """Whether this was probably meant as an address and is none: it may hold a password.

    As ``rtsp:/joe:secret@camera`` does, or an address in quotes or without its scheme. A path that
    begins with ``/`` or ``./`` is a path, whatever follows.
    """
    return not is_address(uri) and _LOCAL.match(uri) is None and _MEANT.match(uri) is not None


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

    What is no address is given back as it is, but for what was meant as one, which is hidden whole.
    Values of a query are all hidden: cameras and services call their tokens by too many names to
    tell which of them are secret. Where an @ after the host leaves open whether what stands before
    it is a password that should have been percent-encoded, all but the scheme is hidden.
    """
    if not is_address(address):
        return HIDDEN if is_mistaken(address) else address
    scheme, _, rest = address.partition("://")
    host, path, mark, query = _split(rest)
    if "@" in path + query:
        return f"{scheme}://{HIDDEN}"
    if "@" in host:
        host = f"{HIDDEN}@{host.rpartition('@')[2]}"
    return f"{scheme}://{host}{path}{_shown_query(mark, query)}"


def _shown_query(mark: str, query: str) -> str:
    """The names in a query, without values; what has no name, and a fragment, is hidden whole."""
    asked, hash_, _ = query.partition("#") if mark == "?" else ("", mark, query)
    parts = [part.partition("=") for part in asked.split("&")] if mark == "?" else []
    names = [f"{name}={HIDDEN}" if is_ and _NAME.match(name) else HIDDEN for name, is_, _ in parts]
    return f"{'?' if mark == '?' else ''}{'&'.join(names)}{f'#{HIDDEN}' if hash_ else ''}"


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


def without_accounts(text: str) -> str:
    """A text without anything like ``user:password@``, whatever address it may be of.

    For prose whose writer does not know what it quotes. Where the address is known
    `without_secrets` finds more.
    """
    return _ACCOUNT.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)


def _secrets(address: str) -> set[str]:
    rest = address.partition("://")[2]
    query = _split(rest)[3]
    found = {query}
    for separators in ("[&#]", "[&;#]"):
        found |= {part.partition("=")[2] or part for part in re.split(separators, query)}
    if "@" in rest:
        account = rest.rpartition("@")[0]
        user, _, password = account.partition(":")
        found |= {account, password or user, *re.split(r"[/?#]", password)}
    found |= {unquote(secret) for secret in found}
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _split(rest: str) -> tuple[str, str, str, str]:
    """Host with account, path, the mark that ends it, query and fragment."""
    found = re.match(r"([^/?#]*)([^?#]*)([?#]?)(.*)", rest, re.DOTALL)
    return ("", "", "", "") if found is None else (found[1], found[2], found[3], found[4])
