"""The rooms of the package and the imports between them, read from the source: README's picture, and how deep it goes.

    python tools/architecture.py            # children, floors and arrows of every folder
    python tools/architecture.py --write    # draws README's picture again

A folder's children are its modules and subfolders; `__init__` is the folder itself and does not count. An arrow goes
from a child to one that it imports; the floors of a folder are the children on its longest chain of imports.
tests/test_house.py holds the limits, and that the picture is up to date.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnxprune"
README = ROOT / "README.md"
FACE = {"__init__", "__main__", "api", "errors", "options"}
PICTURE = re.compile(
    r"(?<=<!-- architecture: tools/architecture.py --write -->\n).*?(?=<!-- architecture: end -->)", re.S
)
# The registry of methods imports each method when it is asked for, and a method imports the registry.
REGISTRY = {("methods/base.py", "methods/__init__.py")}

Arrows = dict[str, set[str]]


@cache
def imports(types: bool = True) -> frozenset[tuple[str, str]]:
    """(file, file of the package that it imports), wherever in the file the import stands; with or without `types`,
    which only the type checker imports."""
    return frozenset(
        (name, target)
        for file in PACKAGE.rglob("*.py")
        for name in [file.relative_to(PACKAGE).as_posix()]
        for node in statements(parsed(file), types)
        for module in _imported(node, file)
        for target in _file_of(module)
        if target != name
    )


def statements(node: ast.AST, types: bool = True) -> Iterator[ast.AST]:
    """`node` and all statements in it, however deep; with or without those for the type checker alone."""
    yield node
    if types or not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # expressions hold no statements
                yield from statements(child, types)


@cache
def parsed(file: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(file.read_text())


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


def rooms() -> list[str]:
    """The folders of the package in CONTRIBUTING's order; imports run upwards in that list only."""
    return re.findall(r"^    (\w+)/ ", (ROOT / "CONTRIBUTING.md").read_text(), re.M)


def folders() -> list[str]:
    """Every folder of the package by its path inside it; the package itself is the empty text."""
    return sorted("/".join(file.parent.relative_to(PACKAGE).parts) for file in PACKAGE.rglob("__init__.py"))


def arrows(folder: str) -> Arrows:
    """child of `folder` -> the other children that it imports when it runs, the registry of methods left out."""
    start = f"{folder}/" if folder else ""
    found: Arrows = {name: set() for name in children(folder)}
    for names in imports(types=False) - REGISTRY:
        if all(name.startswith(start) for name in names):
            source, target = (name.removeprefix(start).split("/")[0].removesuffix(".py") for name in names)
            if source != "__init__":
                found[source] |= {target} - {source, "__init__"}
    return found


def children(folder: str) -> list[str]:
    """Modules and subfolders of `folder`, sorted."""
    place = PACKAGE / folder
    modules = {file.stem for file in place.glob("*.py")} - {"__init__"}
    return sorted(modules | {file.parent.name for file in place.glob("*/__init__.py")})


def floors(found: Arrows) -> dict[str, int]:
    """child -> length of the longest chain of imports that starts there; raises CycleError for a circle."""
    heights: dict[str, int] = {}
    for name in TopologicalSorter(found).static_order():
        heights[name] = 1 + max((heights[target] for target in found[name]), default=0)
    return heights


def needed(found: Arrows) -> Arrows:
    """The arrows that do not follow from longer ways: a -> c is left out where a -> b and b -> c are there."""
    reach: dict[str, set[str]] = {}
    for name in TopologicalSorter(found).static_order():
        reach[name] = found[name].union(*(reach[target] for target in found[name]))
    return {name: targets - set().union(*(reach[target] for target in targets)) for name, targets in found.items()}


def picture() -> str:
    """README's picture as mermaid text: the rooms, what each uses directly, the command line at the top."""
    drawn = needed({name: targets - FACE for name, targets in arrows("").items() if name not in FACE})
    order = list(reversed(rooms()))
    lines = [f"    {room} --> {target}" for room in order for target in order if target in drawn[room]]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```", ""])


def written(text: str) -> str:
    """README's text with the picture as it is drawn now."""
    if not PICTURE.search(text):
        raise SystemExit("README.md has no lines '<!-- architecture: ... -->' around its picture; put them back")
    return PICTURE.sub(lambda _: picture(), text)


def table() -> str:
    """Children, floors and arrows of each folder as lines of text."""
    rows = ["children  floors  arrows  folder"]
    for folder in folders():
        found = arrows(folder)
        deepest = max(floors(found).values())
        rows.append(f"{len(found):8}  {deepest:6}  {sum(map(len, found.values())):6}  onnxprune/{folder}")
    return "\n".join(rows)


def main() -> None:
    """Runs the command line that the docstring of this file shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="draw README's picture again")
    if parser.parse_args().write:
        README.write_text(written(README.read_text()))
    print(table())


if __name__ == "__main__":
    main()
