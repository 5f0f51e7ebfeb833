"""Functions of models, called in another process: a native library that dies of a model ends that process alone.

Where this process can be copied the copy has the models. Else, as beside torch, they are sent as files to a fresh
process, with what they carry beside their graphs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir

from onnxprune.graph import custom_ops, extras
from onnxprune.graph.extras import Extras
from onnxprune.graph.files import load, save
from onnxprune.graph.tensors import read_external, size_bytes
from onnxprune.system.atomic_files import scratch
from onnxprune.system.isolation import CrashedError, can_copy, isolated

__all__ = ["CrashedError", "apart"]

T = TypeVar("T")


def apart(function: Callable[..., T], models: Sequence[ir.Model], *arguments: Any, fresh: bool = False) -> T:
    """Calls `function(*models, *arguments)` in another process, and returns or raises what it does.

    function: of a module, with arguments and a result that can be pickled; it cannot change the models here.
    fresh: never in a copy of this process, in which a device that was in use here could not be used any more.
    Raises: CrashedError when a native library ended that process.
    """
    if can_copy() and not fresh:
        return isolated(lambda: function(*models, *arguments))
    with scratch() as folder:  # one that the next run removes where this one is killed
        sent = [_written(model, Path(folder) / f"{number}.onnx") for number, model in enumerate(models)]
        return isolated(partial(_called, function, sent, custom_ops.registered(), arguments), fresh=fresh)


def _written(model: ir.Model, path: Path) -> tuple[Path, Extras]:
    """The file that holds `model`, and what the file does not hold."""
    held = extras.of(model)
    try:
        extras.put(model, replace(held, external=True))  # beside the file weights are written, and read, much faster
        save(model, path)
    finally:
        extras.put(model, held)
    return path, replace(held, maps=(), defaults={})  # these two are in the file


def _called(function: Callable[..., T], sent: Sequence[tuple[Path, Extras]], libraries: Sequence[str], given: Any) -> T:
    """In the other process: `function` of the models as they were."""
    for library in libraries:
        custom_ops.register(library)
    return function(*(_read(path, held) for path, held in sent), *given)


def _read(path: Path, held: Extras) -> ir.Model:
    model = load(path)
    own = extras.of(model)
    if not held.external:
        read_external(model, size_bytes(model) + 1)
    extras.put(model, replace(held, maps=own.maps, defaults=own.defaults))
    return model
