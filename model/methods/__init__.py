"""The continual-learning methods, one file each, found by their file's name.

A file holds one class that inherits from `method.Method`; its fields are the method's options. A
method of one's own is a file in any folder that `load` is told.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

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
    """Make a method.

    Args:
        name: of its file, ``-`` as good as ``_``.
        options: values by the names of its fields; others keep their defaults.
        folders: where to look besides the methods that ship; these come first.

    Raises:
        MethodError: there is no such method, its file is not as it must be, or an option is
            unknown or of another type.
    """
    kind = _class_of(name.replace("-", "_"), folders)
    allowed = {field.name: field for field in fields(kind) if field.init}
    chosen: dict[str, Any] = {}
    for key, value in (options or {}).items():
        if key not in allowed:
            raise MethodError(
                f"{name} has no option {key!r}; it has {', '.join(sorted(allowed)) or 'none'}"
            )
        default = allowed[key].default
        fits = type(value) is type(default) or (type(default) is float and type(value) is int)
        if not fits:
            raise MethodError(
                f"{name}.{key} is {value!r}; a value like {default!r} is needed "
                f"({type(default).__name__})"
            )
        chosen[key] = type(default)(value)
    return kind(**chosen)


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
