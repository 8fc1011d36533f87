"""Secrets in a configuration: where they may stand, and that they are shown nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..streams.addresses import HIDDEN, redacted

Key = tuple[str, ...]

ADDRESS: Key = ("source", "uri")
"""The one setting that takes an address with a password, and is redacted wherever it is shown."""
DEVICES: frozenset[Key] = frozenset({("source", "camera"), ("source", "microphone")})
NO_DEVICE = (
    "this is an address, and a camera or microphone is a device of this machine; give it as the"
    " source: `atlasd run ADDRESS`, or by ATLASD_SOURCE__URI, which others cannot read"
)
NOT_HERE = (
    "this looks like an address with something secret in it, and is not shown; only source.uri"
    " takes one, and a path with : and @ in it begins with ./"
)


def misplaced_secrets(
    values: Mapping[Any, Any], place_of: Callable[[Key], str], above: Key = ()
) -> Iterator[str]:
    """A fault for each value, and each key, that may hold what only `ADDRESS` may.

    Args:
        values: what is configured, by section and key, as YAML gives it: anything.
        place_of: where a key stands.
        above: the keys around these.
    """
    for name, value in values.items():
        key = (*above, str(name))
        if is_secret(str(name)):
            yield f"{place_of(key)}: {'.'.join((*above, HIDDEN))}: {NOT_HERE}"
        elif isinstance(value, Mapping):
            yield from misplaced_secrets(value, place_of, key)
        elif key == ADDRESS and isinstance(value, str):
            continue
        elif any(is_secret(text) for text in _texts_in(value)):
            yield f"{place_of(key)}: {'.'.join(key)}: {NO_DEVICE if key in DEVICES else NOT_HERE}"


def is_secret(text: str) -> bool:
    """Whether a text is an address, well written or not, of which something must not be shown."""
    return redacted(text.strip()) != text.strip()


def _texts_in(value: object) -> Iterator[str]:
    match value:
        case str():
            yield value
        case list() | tuple() | set():
            for each in value:
                yield from _texts_in(each)
        case Mapping():
            for name, each in value.items():
                yield from _texts_in(name)
                yield from _texts_in(each)
        case _:
            return
