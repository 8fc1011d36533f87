"""The layers of a configuration, file, environment and command line, each with its places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..streams.addresses import without_accounts

ENV_PREFIX = "ATLASD_"


class ConfigError(Exception):
    """A configuration that is refused: every fault with its place, one a line.

    Whatever a fault quotes, an account in it is not shown.
    """

    def __init__(self, faults: str) -> None:
        super().__init__(without_accounts(faults))


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one place, and for each key path where it stands."""

    values: dict[str, Any]
    places: dict[tuple[str, ...], str]


def file_layer(path: Path) -> Layer:
    """A YAML file's values, each with its line.

    Raises:
        ConfigError: it cannot be read, is not valid YAML, or names a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give --config an existing file, or leave it out for defaults"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_spot(error)}") from None
    if root is None:
        return Layer({}, {})
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: holds a {root.tag.rsplit(':', 1)[-1]}; it must map sections")
    places: dict[tuple[str, ...], str] = {}
    for key, node in _walk(root):
        if key in places:
            raise ConfigError(
                f"{path}:{node.start_mark.line + 1}: {'.'.join(key)} stands twice (first at"
                f" {places[key]}); keep one"
            )
        places[key] = f"{path}:{node.start_mark.line + 1}"
    try:
        return Layer(yaml.safe_load(text), places)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_spot(error)}") from None
    except ValueError:
        raise ConfigError(f"{path}: holds a date or number that is none; quote it") from None


def _spot(error: yaml.YAMLError) -> str:
    """Where and why, without the line itself, which may hold a password."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ": not valid YAML"
    mark = error.problem_mark
    return f":{mark.line + 1}: not valid YAML at column {mark.column + 1}: {error.problem}"


def _walk(
    node: yaml.MappingNode, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], yaml.Node]]:
    """All keys below a mapping, as paths, each with the node of its key."""
    for key_node, value_node in node.value:
        key = (*prefix, str(key_node.value))
        yield key, key_node
        if isinstance(value_node, yaml.MappingNode):
            yield from _walk(value_node, key)


def environ_layer(environ: Mapping[str, str]) -> Layer:
    """The values of variables named ``ATLASD_SECTION__KEY``.

    Raises:
        ConfigError: one of them is no YAML.
    """
    values: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for name in sorted(environ):
        section, separator, key = name.removeprefix(ENV_PREFIX).lower().partition("__")
        if not name.startswith(ENV_PREFIX) or not separator:
            continue
        values.setdefault(section, {})[key] = _scalar(environ[name], name)
        places[(section, key)] = name
    return Layer(values, places)


def override_layer(overrides: Sequence[str]) -> Layer:
    """The values of ``section.key=value``, each read as YAML; their places do not show them.

    Raises:
        ConfigError: one of them has not that form, or is no YAML.
    """
    values: dict[str, Any] = {}
    places: dict[tuple[str, ...], str] = {}
    for override in overrides:
        match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", override, flags=re.DOTALL)
        if match is None:
            name = override.partition("=")[0]
            shown = f" {name}" if re.fullmatch(r"[\w.]{1,64}", name) else ""
            raise ConfigError(
                f"--set{shown}: must read section.key=value, as in --set model.threads=2"
            )
        section, key, text = match.groups()
        values.setdefault(section, {})[key] = _scalar(text, f"--set {section}.{key}")
        places[(section, key)] = f"--set {section}.{key}"
    return Layer(values, places)


def _scalar(text: str, place: str) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter: a date that is none
        raise ConfigError(f"{place} is not a YAML value; quote it") from None


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Lay values over others, mapping by mapping."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
