"""The user's own functions, given as `module:function` or, from Python, as they are."""

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.system.memory import out_of_memory

# What is no failure of a function of the user's: everything else that it raises is, of whatever base.
STOPS = (KeyboardInterrupt, GeneratorExit)


def find(spec: Any, option: str) -> Callable[..., Any]:
    """The function that `spec` names, the module of which may lie in the current folder; a function as it is.

    What it raises when it is called becomes a UsageError that names `option`.
    Raises: UsageError when there is no such module or function.
    """
    if callable(spec):
        return _guarded(spec, f"{option} {name_of(spec)}")
    module_name, colon, name = str(spec).partition(":")
    where = f"{option} '{spec}'"
    if not colon or not module_name or not name:
        raise UsageError(f"{where}: give MODULE:FUNCTION, such as my_task:score for score() in my_task.py")
    function = getattr(_module(module_name, where), name, None)
    if not callable(function):
        have = [n for n, v in vars(sys.modules[module_name]).items() if callable(v) and not n.startswith("_")]
        what = f"'{name}' is no function" if function is not None else f"has no function '{name}'"
        raise UsageError(f"{where}: module '{module_name}': {what}; it has {', '.join(have) or 'none'}")
    return _guarded(function, where)


def name_of(function: Callable[..., Any]) -> str:
    """`module:function`, by which reports name it."""
    return f"{function.__module__}:{getattr(function, '__qualname__', type(function).__name__)}"


def import_here(name: str) -> Any:
    """The module `name`, which may lie in the current folder. Raises whatever importing it raises."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def is_absent(error: Exception, name: str) -> bool:
    """Whether importing `name` failed because there is no such module, and not in something that it imports."""
    return isinstance(error, ModuleNotFoundError) and bool(error.name) and f"{name}.".startswith(f"{error.name}.")


def _module(name: str, where: str) -> Any:
    try:
        return import_here(name)
    except ModuleNotFoundError as error:
        if is_absent(error, name):
            raise UsageError(f"{where}: no module '{error.name}' in {Path.cwd()} or on the Python path") from error
        raise UsageError(f"{where}: importing '{name}' needs '{error.name}', which is not installed") from error
    except STOPS:
        raise
    except BaseException as error:
        raise UsageError(f"{where}: importing '{name}' raised {_told(error)}; mend that") from error


def _guarded(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def called(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (OnnxPruneError, MemoryError, *STOPS):
            raise
        except BaseException as error:
            if out_of_memory(error):
                raise
            raise UsageError(f"{where}: the function raised {_told(error)}; mend that") from error

    if not hasattr(called, "__qualname__"):  # an object with __call__
        called.__qualname__ = type(function).__name__
    return called


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
