"""The continual-learning methods, one file each, found by their file's name.

A file holds one class that inherits from `method.Method`; its fields are the method's options. A
method of one's own is a file in any folder that `load` is told. ``panda+dgr`` is several methods
that learn together (`composition`).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from ..composition import Composed
from ..method import Method, MethodError

_HERE = Path(__file__).parent


def names(folders: Sequence[Path] = ()) -> tuple[str, ...]:
    """All methods that `load` finds, sorted."""
    found = {
        path.stem
        for folder in (_HERE, *folders)
        for path in folder.glob("*.py")
        if not path.stem.startswith("_")
    }
    return tuple(sorted(found))


def load(
    name: str, options: Mapping[str, Any] | None = None, folders: Sequence[Path] = ()
) -> Method:
    """Make a method, or several as one.

    Args:
        name: of its file, ``-`` as good as ``_``; of several with ``+`` between them, in order.
        options: values by the names of its fields; others keep their defaults. Of several methods
            ``ewc.lam`` is an option of one of them; ``lam`` will do where only one has it.
        folders: where to look besides the methods that ship; these come first.

    Raises:
        MethodError: there is no such method, its file is not as it must be, an option is unknown,
            of more than one method, or of another type, or methods do not go together.
    """
    parts = [part.replace("-", "_") for part in name.split("+")]
    kinds = {part: _class_of(part, folders) for part in parts}
    if len(kinds) < len(parts):
        raise MethodError(f"{name} names a method more than once; once is needed")
    dealt = _dealt(name, kinds, options or {})
    made = {part: kind(**dealt[part]) for part, kind in kinds.items()}
    return Composed(made) if len(made) > 1 else made[parts[0]]


def _dealt(
    name: str, kinds: Mapping[str, type[Method]], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Each method's options by the names of its fields, checked."""
    allowed = {
        (part, field.name): field
        for part, kind in kinds.items()
        for field in fields(kind)
        if field.init
    }
    dealt: dict[str, dict[str, Any]] = {part: {} for part in kinds}
    for key, value in options.items():
        part, option = _owner(name, key, allowed)
        if option in dealt[part]:
            raise MethodError(f"{part}.{option} is given twice, with {key!r} the second time")
        dealt[part][option] = _checked(f"{part}.{option}", value, allowed[part, option])
    return dealt


def _owner(name: str, key: str, allowed: Iterable[tuple[str, str]]) -> tuple[str, str]:
    """The method and the field that an option's name means."""
    head, _, option = key.rpartition(".")
    part = head.replace("-", "_")
    found = [one for one in allowed if one[1] == option and part in ("", one[0])]
    if len(found) == 1:
        return found[0]
    spelled = [".".join(one) if "+" in name else one[1] for one in found or allowed]
    if found:
        raise MethodError(f"{name} has several options {key!r}; name one of {', '.join(spelled)}")
    raise MethodError(
        f"{name} has no option {key!r}; it has {', '.join(sorted(spelled)) or 'none'}"
    )


def _checked(name: str, value: Any, field: Field[Any]) -> Any:  # noqa: ANN401  as YAML gives it
    default = field.default
    fits = type(value) is type(default) or (type(default) is float and type(value) is int)
    if not fits:
        raise MethodError(
            f"{name} is {value!r}; a value like {default!r} is needed ({type(default).__name__})"
        )
    return type(default)(value)


def _class_of(name: str, folders: Sequence[Path]) -> type[Method]:
    module = _module(name, folders)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise MethodError(
            f"{module.__file__} holds {len(found)} classes that inherit from Method; a method's "
            "file holds one"
        )
    return found[0]


def _module(name: str, folders: Iterable[Path]) -> ModuleType:
    if re.fullmatch(r"[a-z][a-z0-9_]*", name):
        for folder in folders:
            path = folder / f"{name}.py"
            if path.is_file():
                return _from_file(path)
        if (_HERE / f"{name}.py").is_file():
            return importlib.import_module(f".{name}", __package__)
    raise MethodError(
        f"there is no method {name!r}; there are {', '.join(names(tuple(folders)))}. One of your "
        "own is a file of that name in a folder named with --methods"
    )


def _from_file(path: Path) -> ModuleType:
    # Below this package, so that the file may import `from ..method import Method` as ours do.
    spec = importlib.util.spec_from_file_location(f"{__package__}._own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise MethodError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look annotations up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise MethodError(f"{path} cannot be imported: {error!r}") from error
    return module
