"""One value of a configuration file is changed, and every other line stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from .config import ConfigError, load_config


def write_value(path: Path, section: str, key: str, value: float) -> None:
    """Set ``section.key`` in a YAML file; comments, order and all other lines are kept.

    The file is replaced whole, or not at all, and who may read it stays. It is made where there is
    none.

    Args:
        path: the configuration.
        section: a section that configurations have.
        key: a key of it.
        value: what it is to be.

    Raises:
        ConfigError: the file is no good configuration, before or after; it is left as it was.
        OSError: it cannot be written.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.strip():
        load_config(path)
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        _create(part, with_value(text, section, key, value), 0o600 if path.exists() else 0o666)
        load_config(part)
        if path.exists():
            part.chmod(path.stat().st_mode & 0o7777)
        part.replace(path.resolve())
    finally:
        part.unlink(missing_ok=True)


def _create(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode, less the umask, from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def with_value(text: str, section: str, key: str, value: float) -> str:
    """The text of a YAML file in which ``section.key`` is ``value``.

    Args:
        text: a mapping of mappings, or nothing.
        section: a key of the outer one.
        key: a key of the inner one.
        value: what it is to be.

    Raises:
        ConfigError: the text is no such thing.
    """
    told = f"{key}: {value}"
    ended = text if not text or text.endswith("\n") else f"{text}\n"
    root = _mapping(yaml.compose(text, Loader=yaml.SafeLoader), "the file")
    found = _mapping(_value_of(root, section), section)
    if found is None:
        gap = "\n" if ended else ""
        return f"{ended}{gap}{section}:\n  {told}\n"
    old = _value_of(found, key)
    if old is not None:
        return f"{text[: old.start_mark.index]}{value}{text[old.end_mark.index :]}"
    first = found.start_mark
    if found.flow_style:
        at = first.index + 1
        return f"{text[:at]}{told}{', ' if found.value else ''}{text[at:]}"
    return f"{text[: first.index]}{told}\n{' ' * first.column}{text[first.index :]}"


def _mapping(node: yaml.Node | None, name: str) -> yaml.MappingNode | None:
    if node is None or isinstance(node, yaml.MappingNode):
        return node
    raise ConfigError(f"{name} holds {node.tag.rsplit(':', 1)[-1]}; it must map keys to values")


def _value_of(node: yaml.MappingNode | None, key: str) -> yaml.Node | None:
    pairs = [] if node is None else node.value
    return next((value for name, value in pairs if name.value == key), None)
