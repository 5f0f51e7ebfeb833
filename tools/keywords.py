"""Writes onnxprune/run/keywords.py: the options as keywords that editors complete; `python tools/keywords.py`."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE, TARGET = ROOT / "onnxprune" / "options.py", ROOT / "onnxprune" / "run" / "keywords.py"
HEAD = '''"""The options of `onnxprune.prune` as keywords, for editors and type checkers; written by tools/keywords.py.

What a keyword means and which values there are is said in options.py, of which this is made.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from onnxprune.options import Align, Level


class Keywords(TypedDict, total=False):
    """Every option of the command line by its name in Python; those that are left out are chosen."""

'''
# What users may give where the record holds another form of it.
LOOSER = {
    "target": "Mapping[str, float]",
    "include": "str | tuple[str, ...] | list[str]",
    "exclude": "str | tuple[str, ...] | list[str]",
    "blocks": "str | tuple[str, ...] | list[str]",
    "report": "str | Path | tuple[str | Path, ...] | list[str | Path]",
    "time": "str | float | None",
}


def fields() -> dict[str, str]:
    """The type of each option by name, as text."""
    tree = ast.parse(SOURCE.read_text())
    found = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    return {
        node.target.id: {"Path | None": "str | Path | None"}.get(kind := ast.unparse(node.annotation), kind)
        for node in found.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if isinstance(node.value, ast.Call)
    }


def text() -> str:
    shown = {**fields(), **LOOSER, "command": "str", "progress": "bool"}
    return HEAD + "".join(f"    {name}: {kind}\n" for name, kind in shown.items())


if __name__ == "__main__":
    TARGET.write_text(text())
