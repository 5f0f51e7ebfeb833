"""Rooms stand in the order of CONTRIBUTING's list; imports run up that list only, and nothing imports in a circle."""

import ast
from graphlib import CycleError, TopologicalSorter

import pytest

from tools.architecture import (
    FACE,
    PACKAGE,
    README,
    REGISTRY,
    arrows,
    children,
    floors,
    folders,
    imports,
    needed,
    parsed,
    rooms,
    statements,
    written,
)

ROOMS = rooms()
RANK = {name: rank for rank, name in enumerate(["errors", "options", *ROOMS, "api", "__init__", "__main__"])}
MOST_CHILDREN, MOST_FLOORS = 24, 15


def _room(file: str) -> str:
    return file.split("/")[0].removesuffix(".py")


def test_contributing_names_every_room():
    assert sorted(ROOMS) == sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert {path.stem for path in PACKAGE.glob("*.py")} == FACE


def test_no_import_runs_down_the_list():
    found = {(name, _room(target)) for name, target in imports() if RANK[_room(target)] > RANK[_room(name)]}
    assert sorted((name, room) for name, room in found if name != "__init__.py") == []


def test_no_circle_but_the_registry_of_methods():
    found = imports(types=False) - REGISTRY
    graph = {name: {target for one, target in found if one == name} for name, _ in found}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from error


@pytest.mark.parametrize("folder", folders())
def test_every_folder_can_be_taken_in(folder):
    """Few enough children to read their names at once, few enough floors to follow, and no circle among them."""
    assert len(children(folder)) <= MOST_CHILDREN
    assert max(floors(arrows(folder)).values()) <= MOST_FLOORS


# Modules of run/ that check options, resolve them, or read the model and samples by them.
DOORS = {"checks", "pipeline", "replay", "settings", "subject"}


def test_options_go_no_further_than_the_doors_of_a_run():
    """A step that took all options could read, and change, what others had decided."""
    takes = {
        path.stem
        for path in (PACKAGE / "run").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.arg) and node.annotation is not None and ast.unparse(node.annotation) == "Options"
    }
    assert takes == DOORS


def test_docstrings_say_what_something_is_for():
    """A newcomer does not learn from 'Nothing, when all is well' that a function checks something."""
    nodes = (node for file in PACKAGE.rglob("*.py") for node in statements(parsed(file)))
    texts = (ast.get_docstring(node) for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef))
    assert [text for text in texts if text and text.split()[0].strip(",") in ("Nothing", "None", "That")] == []


def test_readme_shows_the_imports_of_today():
    text = README.read_text()
    assert text == written(text), "run: python tools/architecture.py --write"


def test_the_picture_leaves_out_arrows_that_follow_from_others_only():
    found = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert needed(found) == {"a": {"b"}, "b": {"c"}, "c": set()}
    assert floors(found) == {"a": 3, "b": 2, "c": 1}
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"a"}})


def test_a_picture_of_yesterday_is_noticed():
    text = README.read_text()
    assert written(text.replace("cli --> studies", "cli --> graph")) == text
