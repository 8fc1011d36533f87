"""What a field of a message may hold, said once in its type and checked wherever one is made.

A message is a dataclass whose annotations carry bounds, ``Annotated[int, Whole(0, 10)]``. `settle`
is called at the end of its construction: so no message out of bounds exists, neither one that this
program sends nor one that it received.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin
from typing import get_type_hints as hints_of

LOCAL: Mapping[str, bool] = {"local": True}
"""Metadata of a field that its receiver fills in: it never travels."""

ADDED: Mapping[str, bool] = {"added": True}
"""Metadata of a field that a minor version added: it travels only where it is not None, so that
messages without it keep their bytes."""

_SHOWN = 60


class FieldError(ValueError):
    """A field that breaks its bounds: where it stands, what came, what is allowed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Whole:
    """An integer from `low` to `high`, both allowed."""

    low: int
    high: int


@dataclasses.dataclass(frozen=True, slots=True)
class Real:
    """A finite number from `low` to `high`, both allowed; a whole one on the wire will do."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """At most `most` characters, all of them matching `pattern` where there is one."""

    most: int
    pattern: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Octets:
    """At most `most` bytes."""

    most: int


@dataclasses.dataclass(frozen=True, slots=True)
class Many:
    """At most `most` entries of a list or a map."""

    most: int


Check = Callable[[Any, str], Any]
M = TypeVar("M")


def settle(message: object) -> None:
    """Check every field of a frozen dataclass, and replace lists by tuples and maps by messages.

    Raises:
        FieldError: a field breaks its annotation.
    """
    for name, check in _checks(type(message)).items():
        object.__setattr__(message, name, check(getattr(message, name), name))


def from_map(kind: type[M], entries: Mapping[str, object], where: str = "") -> M:
    """Make a message of a map that came over the wire; keys that it does not know are ignored.

    Raises:
        FieldError: a key without default is missing, or a field breaks its annotation.
    """
    known = _checks(kind)
    for field in dataclasses.fields(cast("Any", kind)):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in entries:
            raise FieldError(f"{_join(where, field.name)} is missing; {kind.__name__} needs it")
    try:
        return kind(**{key: value for key, value in entries.items() if key in known})
    except FieldError as error:
        raise FieldError(_join(where, str(error))) from None


def to_map(message: object) -> dict[str, object]:
    """The map that travels: every field but the local ones, messages within as maps."""
    entries = {name: _plain(getattr(message, name)) for name in _checks(type(message))}
    return {k: v for k, v in entries.items() if v is not None or k not in _added(type(message))}


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(each) for each in cast("tuple[object, ...]", value)]
    return to_map(value) if dataclasses.is_dataclass(value) else value


@cache
def _added(kind: type) -> frozenset[str]:
    fields = dataclasses.fields(cast("Any", kind))
    return frozenset(f.name for f in fields if f.metadata.get("added"))


@cache
def _checks(kind: type) -> Mapping[str, Check]:
    hints = hints_of(kind, include_extras=True)
    fields = dataclasses.fields(cast("Any", kind))
    return {f.name: _check_of(hints[f.name]) for f in fields if not f.metadata.get("local")}


def _check_of(hint: object) -> Check:
    """Compile an annotation into a function (value, where) -> the value to keep."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bounded(arguments[0], arguments[1])
    if origin is Literal:
        return _one_of(arguments)
    if origin in {Union, UnionType}:
        return _either(tuple(a for a in arguments if a is not NoneType), NoneType in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return _row(tuple(_check_of(a) for a in arguments))
    if dataclasses.is_dataclass(hint):
        return _message(cast("type", hint))
    if hint is bool:
        return _one_of((False, True))
    raise TypeError(f"{hint} is no annotation of a message's field")


def _bounded(base: object, bound: object) -> Check:
    match bound:
        case Whole(low, high):
            return _whole(low, high)
        case Real(low, high):
            return _real(low, high)
        case Text(most, pattern):
            return _text(most, pattern)
        case Octets(most):
            return _octets(most)
        case Many(most) if get_origin(base) is tuple:
            return _list(_check_of(get_args(base)[0]), most)
        case Many(most):
            key, value = get_args(base)
            return _map(_check_of(key), _check_of(value), most)
        case _:
            raise TypeError(f"{bound} is no bound of a message's field")


def _whole(low: int, high: int) -> Check:
    def check(value: object, where: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _refused(value, where, f"a whole number, {low} to {high}")
        return value

    return check


def _real(low: float, high: float) -> Check:
    def check(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refused(value, where, f"a finite number, {low:g} to {high:g}")
        if not low <= value <= high:
            raise _refused(value, where, f"a finite number, {low:g} to {high:g}")
        return float(value)

    return check


def _text(most: int, pattern: str) -> Check:
    compiled = re.compile(pattern) if pattern else None
    shape = f" of the form {pattern}" if pattern else ""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise _refused(value, where, f"text of at most {most} characters{shape}")
        if compiled is not None and compiled.fullmatch(value) is None:
            raise _refused(value, where, f"text{shape}")
        return value

    return check


def _octets(most: int) -> Check:
    def check(value: object, where: str) -> bytes:
        if not isinstance(value, bytes) or len(value) > most:
            came = len(value) if isinstance(value, bytes) else value
            raise _refused(came, where, f"at most {most} bytes")
        return value

    return check


def _one_of(allowed: tuple[Any, ...]) -> Check:
    kinds = {type(a) for a in allowed}

    def check(value: object, where: str) -> object:
        if type(value) not in kinds or value not in allowed:
            raise _refused(value, where, "one of " + ", ".join(map(repr, allowed)))
        return value

    return check


def _either(hints: tuple[Any, ...], optional: bool) -> Check:
    checks = tuple(_check_of(hint) for hint in hints)

    def check(value: object, where: str) -> object:
        if value is None and optional:
            return None
        for candidate in checks[:-1]:
            try:
                return candidate(value, where)
            except FieldError:
                continue
        return checks[-1](value, where)

    return check


def _row(checks: tuple[Check, ...]) -> Check:
    def check(value: object, where: str) -> tuple[object, ...]:
        if not isinstance(value, tuple | list) or len(value) != len(checks):
            raise _refused(value, where, f"a list of {len(checks)}")
        pairs = zip(checks, value, strict=True)
        return tuple(each(v, f"{where}[{i}]") for i, (each, v) in enumerate(pairs))

    return check


def _list(each: Check, most: int) -> Check:
    def check(value: object, where: str) -> tuple[object, ...]:
        if not isinstance(value, tuple | list) or len(value) > most:
            raise _refused(value, where, f"a list of at most {most}")
        return tuple(each(v, f"{where}[{i}]") for i, v in enumerate(value))

    return check


def _map(key: Check, each: Check, most: int) -> Check:
    def check(value: object, where: str) -> dict[object, object]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise _refused(value, where, f"a map of at most {most} entries")
        return {key(k, f"{where} key"): each(v, f"{where}.{k}") for k, v in value.items()}

    return check


def _message(kind: type) -> Check:
    def check(value: object, where: str) -> object:
        if isinstance(value, kind):
            return value
        if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
            raise _refused(value, where, f"a map: {kind.__name__}")
        return from_map(kind, value, where)

    return check


def _refused(value: object, where: str, allowed: str) -> FieldError:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."
    return FieldError(f"{where} is {shown}; it must be {allowed}")


def _join(where: str, rest: str) -> str:
    return f"{where}.{rest}" if where else rest
