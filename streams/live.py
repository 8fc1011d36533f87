"""The live sources by kind: what a capture process is told becomes a source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .sources import Source, UnsupportedError


def open_live(options: Mapping[str, Any]) -> Source:
    """Open a live source.

    Args:
        options: plain values, as they come from another process: ``kind``, which of the functions
            below reads the others.

    Raises:
        MediaError: it cannot be opened.
        UnsupportedError: it never will.
    """
    kinds: dict[str, Callable[[Mapping[str, Any]], Source]] = {
        "network": _network,
        "devices": _devices,
    }
    opener = kinds.get(str(options.get("kind")))
    if opener is None:
        raise UnsupportedError(
            f"a live source of kind {options.get('kind')!r} is not known; known: {', '.join(kinds)}"
        )
    return opener({key: value for key, value in options.items() if key != "kind"})


def _network(options: Mapping[str, Any]) -> Source:
    from .network import open_network
    from .networkoptions import NetworkOptions

    return open_network(NetworkOptions.from_map(options))


def _devices(options: Mapping[str, Any]) -> Source:
    from .devices import DeviceOptions, open_devices

    return open_devices(DeviceOptions.from_map(options))
