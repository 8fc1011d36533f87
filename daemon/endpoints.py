"""Where the bus may stand: ZeroMQ addresses, checked before anything is bound or connected."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket as unix
import stat
from pathlib import Path
from typing import Final

import zmq

IPC_MODE: Final = 0o700
"""Mode of a directory that is made for an ipc socket: its owner alone."""

_SOCKET_MODE = 0o600
_TCP = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/;]+):(?P<port>[0-9]{1,5}|\*)")
_FORMS = "tcp://HOST:PORT (HOST 127.0.0.1, [::1] or localhost) or ipc:///PATH"


class EndpointError(ValueError):
    """An address that cannot be used: what came, what is allowed, what to do."""


def check(endpoint: str) -> None:
    """Check the form of an address.

    Raises:
        EndpointError: it is none of tcp, ipc and inproc.
    """
    if endpoint.startswith("ipc://"):
        path = endpoint.removeprefix("ipc://")
        if not path.strip() or path in {"*", "@"}:
            raise EndpointError(f"{endpoint!r} names no file; write ipc:///PATH")
        longest: int = zmq.IPC_PATH_MAX_LEN
        if len(path.encode()) > longest:
            raise EndpointError(
                f"{endpoint!r} has a path of {len(path.encode())} bytes; the system allows "
                f"{longest}: choose a shorter one"
            )
    elif endpoint.startswith("tcp://"):
        match = _TCP.fullmatch(endpoint)
        if match is None or (match["port"] != "*" and int(match["port"]) > 65535):
            raise EndpointError(f"{endpoint!r} is no tcp://HOST:PORT with a port of 0 to 65535")
    elif not endpoint.startswith("inproc://"):
        raise EndpointError(f"the endpoint is {endpoint!r}; it must be {_FORMS}")


def check_private(endpoint: str) -> None:
    """Refuse an address that other machines can reach.

    Raises:
        EndpointError: the address is neither loopback nor ipc.
    """
    match = _TCP.fullmatch(endpoint)
    if match is None or _is_loopback(match["host"].strip("[]")):
        return
    raise EndpointError(
        f"{endpoint!r} can be reached from other machines, and is not encrypted: whoever "
        "reaches it reads every mask, or teaches the network. Use tcp://127.0.0.1:PORT or "
        "ipc:///PATH, or on a network that you trust set insecure beside it (publish.insecure, "
        "intake.insecure, or --insecure of a proxy). Encryption (CURVE) is not part of this version"
    )


def bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """Bind a socket, with the directory of an ipc address made and its file kept private.

    Returns:
        The address as bound: a port of ``*`` or 0 replaced by the one that was found.

    Raises:
        EndpointError: the address is in use, or the system does not allow it.
    """
    path = Path(endpoint.removeprefix("ipc://")) if _is_file(endpoint) else None
    if path is not None:
        _prepare(path, endpoint)
    if endpoint.startswith("tcp://["):
        socket.setsockopt(zmq.IPV6, 1)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise EndpointError(_why(endpoint, error)) from error
    if path is not None:
        path.chmod(_SOCKET_MODE)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _is_file(endpoint: str) -> bool:
    return endpoint.startswith("ipc://") and not endpoint.startswith("ipc://@")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _prepare(path: Path, endpoint: str) -> None:
    """Make the directory; refuse a file that is in use, as ZeroMQ would silently replace it."""
    try:
        if not path.parent.exists():
            path.parent.mkdir(parents=True, mode=IPC_MODE)
        kind = path.stat().st_mode if path.exists() else None
    except OSError as error:
        raise EndpointError(f"{endpoint}: {error}") from error
    if kind is None:
        return
    if not stat.S_ISSOCK(kind):
        raise EndpointError(f"{path} is a file, not a socket; move it or choose another endpoint")
    with unix.socket(unix.AF_UNIX, unix.SOCK_STREAM) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise EndpointError(_in_use(endpoint))


def _why(endpoint: str, error: zmq.ZMQError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return _in_use(endpoint)
        case errno.EACCES:
            return f"{endpoint} is not permitted for this user; choose a port above 1023"
        case errno.ENODEV | errno.EADDRNOTAVAIL:
            return f"{endpoint} is no address of this machine; use tcp://127.0.0.1:PORT"
        case _:
            return f"cannot bind {endpoint}: {error}"


def _in_use(endpoint: str) -> str:
    return (
        f"{endpoint} is in use by another program, perhaps another atlasd; stop that one or choose "
        "another address (publish.endpoint, intake.endpoint, or --to of a proxy)"
    )
