"""Modules of others that are loaded when something of them is used, so that short commands start at once.

onnx_ir imports sympy, which takes a quarter of a second, for sizes that are expressions ('N + 1'). Most models have
none. Only the process of the command line does this: in a user's process imports are as Python makes them.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader, _LazyModule  # type: ignore[attr-defined]
from types import ModuleType

LATE = ("sympy", "onnx_ir._symbolic_shapes")


class _Finder:
    """Finds the modules of LATE as Python does, but has them loaded at the first use of one of their names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name in LATE else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found


def load_late() -> None:
    """Has the modules of LATE loaded at their first use; those that are loaded already stay so."""
    sys.meta_path.insert(0, _Finder())


def is_late(module: ModuleType) -> bool:
    """Whether a module was not used yet and is not loaded."""
    return isinstance(module, _LazyModule)
