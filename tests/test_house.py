"""Rooms stand in the order of CONTRIBUTING's list; imports run up that list only, and nothing imports in a circle."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnxprune"
FACE = {"__init__", "__main__", "api", "errors", "options"}
ROOMS = re.findall(r"^    (\w+)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
RANK = {name: rank for rank, name in enumerate(["errors", "options", *ROOMS, "api", "__init__", "__main__"])}
# The registry of methods imports each method when it is asked for, and a method imports the registry.
REGISTRY = {("methods/base.py", "methods/__init__.py")}


@cache
def imports(types: bool = True) -> frozenset[tuple[str, str]]:
    """(file, file of the package that it imports), wherever in the file the import stands; with or without `types`,
    which only the type checker imports."""
    return frozenset(
        (name, target)
        for file in PACKAGE.rglob("*.py")
        for name in [file.relative_to(PACKAGE).as_posix()]
        for node in _nodes(ast.parse(file.read_text()), types)
        for module in _imported(node, file)
        for target in _file_of(module)
        if target != name
    )


def _nodes(node: ast.AST, types: bool) -> Iterator[ast.AST]:
    yield node
    if types or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            yield from _nodes(child, types)


def _imported(node: ast.AST, file: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    folder = ["onnxprune", *file.relative_to(PACKAGE).parts[:-1]]
    above = folder[: len(folder) - node.level + 1] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def _file_of(module: str) -> list[str]:
    """The file that holds `module`, or that defines the name at its end."""
    words = module.split(".")[1:] if module.split(".")[0] == "onnxprune" else []
    for places in (words, words[:-1]):
        path = PACKAGE.joinpath(*places)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if places and file.is_file():
                return [file.relative_to(PACKAGE).as_posix()]
    return []


def _room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def test_contributing_names_every_room():
    assert sorted(ROOMS) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert {path.stem for path in PACKAGE.glob("*.py")} == FACE


def test_no_import_runs_down_the_list():
    found = {(name, _room(target)) for name, target in imports() if RANK[_room(target)] > RANK[_room(name)]}
    assert sorted((name, room) for name, room in found if name != "__init__.py") == []


def test_no_circle_but_the_registry_of_methods():
    arrows = imports(types=False) - REGISTRY
    graph = {name: {target for one, target in arrows if one == name} for name, _ in arrows}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from error
