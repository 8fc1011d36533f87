"""The folders know of each other only what the design allows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "streams": set(),
    "model": set(),
    "daemon": {"streams", "model"},
    "tools": {"streams", "model", "daemon"},
}
DEVICE_MODULES = {"cv2", "sounddevice"}
MODULES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Imported modules, ours as folder.module, others as their top package."""
    package = path.relative_to(ROOT).parent.parts
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.module.split(".")[0]
                continue
            base = (*package[: len(package) - node.level + 1], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            yield from (".".join((*base, alias.name)) for alias in node.names)


def resolve(name: str) -> str:
    """The module that an imported name lives in: `streams.clips.Clip` lives in `streams.clips`."""
    known = {module_name(path) for path in MODULES}
    return name if name in known else name.rpartition(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_folder_imports_only_what_the_table_allows(path: Path):
    folder = path.relative_to(ROOT).parts[0]
    names = set(imports(path, ast.walk(ast.parse(path.read_text()))))

    assert "atlasd" not in names, "siblings are imported relatively, so that pyright follows"
    ours = {name.split(".")[0] for name in names} & set(ALLOWED)
    assert ours - {folder} <= ALLOWED[folder]
    if folder == "streams":
        assert "torch" not in names


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_device_libraries_are_imported_only_where_a_device_opens(path: Path):
    top_level = set(imports(path, iter(ast.parse(path.read_text()).body)))
    assert not top_level & DEVICE_MODULES


def test_no_import_cycle():
    graph = {
        module_name(path): {
            resolve(name)
            for name in imports(path, ast.walk(ast.parse(path.read_text())))
            if name.split(".")[0] in ALLOWED
        }
        for path in MODULES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
