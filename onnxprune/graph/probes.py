"""Sizes to try for symbolic axes: pairs of probes at which a model is run, the likeliest and cheapest first."""

import ast
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from math import prod

import numpy as np
import onnx_ir as ir

from onnxprune.errors import GraphError
from onnxprune.graph import extras
from onnxprune.graph.inputs import axis_of

Probe = dict[str, tuple[int, ...]]  # graph input -> shape

# How the sizes of samples are varied: (images, others), the first that the model takes.
OTHER_SIZES: tuple[tuple[Callable[[int], int], Callable[[int], int]], ...] = (
    (lambda n: n + 32, lambda n: n - 1 if n > 2 else n + 1),
    (lambda n: n * 2, lambda n: n // 2),
    (lambda n: n // 2, lambda n: n + 8),
    (lambda n: n + 1, lambda n: n * 2),
)
MAX_ELEMENTS = 1 << 24  # of one input: larger probes could exhaust the memory
MAX_TRIES = 80

# (first, second) size of each kind of axis. Uncommon numbers first, which keeps accidental factorizations away.
BATCHES = ((3, 2), (1, 2), (2, 4), (1, 1))
CHANNELS = ((3, 3), (1, 1))
IMAGES = ((64, 96), (224, 256), (320, 352), (112, 160), (640, 672), (48, 80), (32, 40), (512, 480), (28, 29), (16, 24))
OTHERS = (
    *((13, 11), (16, 24), (64, 48), (8, 12), (10, 20), (7, 5), (1, 1), (32, 36), (128, 96), (77, 60)),
    *((160, 200), (256, 224), (512, 384), (100, 80), (1024, 800), (4000, 3200), (16000, 12000)),
)


def symbolic_shape(value: ir.Value) -> list[int | str | None]:
    """The shape of a graph input: integers, names, None where nothing is known (some exporters write -1 or 0)."""
    if value.shape is None:
        return [None] * _rank_by_use(value)
    return [axis_of(size) for size in value.shape]


def _rank_by_use(value: ir.Value) -> int:
    """A guess for an input of unknown rank, from the operators that read it."""
    for node, index in value.uses():
        if index == 0 and node.op_type in ("Conv", "ConvTranspose", "InstanceNormalization", "MaxPool", "AveragePool"):
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            return len(weight.shape) if weight is not None and weight.shape is not None else 4
        if node.op_type in ("Gemm", "MatMul"):
            return 2
    return 1


def is_symbolic(inputs: Sequence[ir.Value]) -> bool:
    return any(not isinstance(size, int) for value in inputs for size in symbolic_shape(value))


def pairs(
    model: ir.Model, samples: Mapping[str, Sequence[int]] | None = None
) -> Iterator[tuple[Probe, tuple[Probe, ...]]]:
    """First probes, each with second ones that differ from it: in all symbolic axes, in the batch, in the others."""
    inputs = list(model.graph.inputs)
    _require_tensors(inputs)
    symbols = _Symbols(inputs, caches(model))
    tries = [_from_sample(symbols, samples)] if samples else []
    others = (*OTHERS[:4], *((size, size) for size in hints(model)[:8]), *OTHERS[4:])
    tables = {"batch": BATCHES, "channel": CHANNELS, "image": IMAGES, "other": others}
    kinds = [kind for kind in tables if kind in symbols.kinds.values()]
    # Batches and channels are tried last: they are rarely what makes a model fail.
    weights = {"batch": 4, "channel": 6, "image": 1, "other": 1}
    ranked = sorted(
        product(*(range(len(tables[kind])) for kind in kinds)),
        key=lambda at: (sum(weights[kind] * k for kind, k in zip(kinds, at, strict=True)), at),
    )
    for at in ranked[: MAX_TRIES // 2]:
        chosen = {kind: tables[kind][k] for kind, k in zip(kinds, at, strict=True)}
        first = {kind: sizes[0] for kind, sizes in chosen.items()}
        second = {kind: sizes[1] for kind, sizes in chosen.items()}
        second["batch"] = 2 if first.get("batch") != 2 else 3
        variants = (second, {**first, "batch": second["batch"]}, {**second, "batch": first.get("batch", 1)})
        tries.append((symbols.shapes(first), tuple(symbols.shapes(variant) for variant in variants)))
    # States that are carried from call to call often start as one zero, which is broadcast.
    ones = [(_ones_behind(one, inputs), tuple(_ones_behind(probe, inputs) for probe in two)) for one, two in tries]
    for one, two in (*tries[:3], *ones[:3], *tries[3:], *ones[3:]):
        if _fits(one):
            others = tuple(probe for k, probe in enumerate(two) if probe != one and probe not in two[:k])
            yield one, tuple(filter(_fits, others))


def _fits(probe: Probe) -> bool:
    return all(prod(shape) <= MAX_ELEMENTS for shape in probe.values())


def _ones_behind(probe: Probe, inputs: Sequence[ir.Value]) -> Probe:
    """`probe` with every input of entirely unknown shape, except the first input, at size one."""
    unknown = {v.name for v in inputs[1:] if not any(isinstance(size, int) for size in symbolic_shape(v))}
    return {name: (1,) * len(shape) if name in unknown else shape for name, shape in probe.items()}


def hints(model: ir.Model) -> list[int]:
    """Sizes that the model itself mentions: in shape constants, and as rows of tables that are added."""
    counts: Counter[int] = Counter()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        users = {node.op_type for node, _ in value.uses()}
        if tensor.dtype.is_integer() and tensor.size <= 8 and not users <= {"Gather", "Squeeze", "Unsqueeze"}:
            counts.update(int(number) for number in np.unique(tensor.numpy()) if 3 < number <= 4096)
        elif len(tensor.shape) >= 2 and users & {"Add", "Concat", "Mul"}:
            counts[int(tensor.shape.numpy()[-2])] += 2
    return [size for size, _ in counts.most_common() if size > 3]


def _require_tensors(inputs: Sequence[ir.Value]) -> None:
    for value in inputs:
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise GraphError(f"graph input '{value.name}' is not a tensor ({value.type}): not supported")


def caches(model: ir.Model) -> dict[str, str]:
    """Names of lengths that caches have once they are handed back -> those that they come with.

    A decoder calls them past_sequence_length and total_sequence_length, or as it likes: what grows tells them.
    """
    sizes = {value.name: symbolic_shape(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    found: dict[str, str] = {}
    for given, output, _ in extras.of(model).states:
        for before, after in zip(sizes.get(given, ()), sizes.get(output, ()), strict=False):
            if isinstance(before, str) and isinstance(after, str) and before != after:
                found.setdefault(after, before)
    return found


class _Symbols:
    """The symbolic axes of the inputs: a key and a kind of each; sums: sizes that are computed from other ones."""

    def __init__(self, inputs: Sequence[ir.Value], grown: Mapping[str, str]):
        self.layout: dict[str, list[int | str]] = {}
        self.kinds: dict[str, str] = {}
        for value in inputs:
            shape = symbolic_shape(value)
            keys: list[int | str] = []
            for axis, size in enumerate(shape):
                key = size if isinstance(size, int) else size or f"{value.name}:{axis}"
                keys.append(key)
                if isinstance(key, str):
                    self.kinds.setdefault(key, _kind(key, axis, shape))
            self.layout[value.name or ""] = keys
        self.sums = self._sums(grown)

    def _sums(self, grown: Mapping[str, str]) -> dict[str, str]:
        """Lengths of inputs such as masks, which cover the past and what comes now -> the sum of both."""
        others = [key for key, kind in self.kinds.items() if kind == "other" and key not in {*grown, *grown.values()}]
        step = others[0] if others else "1"
        sums = {after: f"{before} + {step}" for after, before in grown.items() if after in self.kinds}
        return {after: text for after, text in sums.items() if _evaluate(text, dict.fromkeys(self.kinds, 1))}

    def shapes(self, sizes: Mapping[str, int]) -> Probe:
        """Shapes of all inputs when every kind of axis has that size."""
        known = {key: sizes.get(kind, 1) for key, kind in self.kinds.items() if key.isidentifier()}
        return {
            name: tuple(key if isinstance(key, int) else self._size(key, sizes, known) for key in keys)
            for name, keys in self.layout.items()
        }

    def _size(self, key: str, sizes: Mapping[str, int], known: Mapping[str, int]) -> int:
        """The size of one axis; a name such as 'past + 1' is computed from the names in it."""
        computed = self.computed(key, known)
        return max(1, sizes.get(self.kinds[key], 1) if computed is None else computed)

    def computed(self, key: str, known: Mapping[str, int]) -> int | None:
        """The size of an axis that follows from others, by what it is called or as a sum; None for any other."""
        text = self.sums.get(key, key)
        return None if text.isidentifier() else _evaluate(text, known)


def _kind(key: str, axis: int, shape: Sequence[int | str | None]) -> str:
    if "batch" in key.lower() or (axis == 0 and len(shape) > 1):
        return "batch"
    if len(shape) == 3 and axis == 1 and isinstance(shape[0], int) and isinstance(shape[2], int):
        return "batch"  # the state of a recurrent layer: (layers, batch, width)
    if len(shape) == 4 and axis == 1 and not isinstance(shape[3], int):
        return "channel"
    return "image" if len(shape) >= 4 else "other"


OPERATORS = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__, ast.FloorDiv: int.__floordiv__}


def _evaluate(expression: str, known: Mapping[str, int]) -> int | None:
    """The value of an integer expression in `known` names, None where it is not one."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))  # type: ignore[index]
        raise KeyError(type(node).__name__)

    try:
        return value(ast.parse(expression, mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None


def _from_sample(symbols: _Symbols, samples: Mapping[str, Sequence[int]]) -> tuple[Probe, tuple[Probe, ...]]:
    """The shapes of a sample; the same with another size of every symbolic axis, and of the batch alone.

    Samples are often all of one length, of which the model knows nothing: at others it reads more of its tables.
    """
    given = {name: tuple(sizes) for name, sizes in samples.items() if name in symbols.layout}

    def changed(batch: int, change: Callable[[str, int], int]) -> Probe:
        def size_of(key: int | str, size: int) -> int:
            kind = symbols.kinds.get(key, "") if isinstance(key, str) else ""
            return batch if kind == "batch" else max(1, change(kind, size))

        known = {
            key: size_of(key, size)
            for name, sizes in given.items()
            for key, size in zip(symbols.layout[name], sizes, strict=False)
            if isinstance(key, str) and key.isidentifier()
        }

        def new(key: int | str, size: int) -> int:
            computed = symbols.computed(key, known) if isinstance(key, str) else None
            return known.get(key, size_of(key, size)) if computed is None else max(1, computed)  # type: ignore[arg-type]

        return {
            name: tuple(new(key, size) for key, size in zip(symbols.layout[name], sizes, strict=False))
            for name, sizes in given.items()
        }

    def varied(batch: int, image: Callable[[int], int], other: Callable[[int], int]) -> Probe:
        return changed(batch, lambda kind, size: {"image": image, "other": other}.get(kind, int)(size))

    steps = [varied(2 + k % 2, *both) for k, both in enumerate(OTHER_SIZES)]
    batches = [changed(batch, lambda kind, size: size) for batch in (2, 3, 1)]
    return given, (*steps, *batches)
