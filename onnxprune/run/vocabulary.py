"""--keep-tokens: a model with fewer rows of its embedding and fewer columns of its head, behind the same interface.

A map from ids to the rows that are left stands in front of the embedding, and the logits of dropped tokens are filled
up with LOWEST, so tokenizers and callers stay as they are. Which tensors lose rows follows from the coupling, as it
does for channels: tied tables, tables of integers with their scales, transposed and packed heads.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune import graph, surgery
from onnxprune.coupling import Coupling, Dim, analyze, dims
from onnxprune.coupling.rules.indexing import OPEN_MAP
from onnxprune.errors import DataError, UsageError
from onnxprune.graph import extras, shapes, states
from onnxprune.plan import cost
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, normal_form

LOG = logging.getLogger("onnxprune")
LOWEST = -1e4  # the logit of a dropped token: half precision holds it, and softmax makes nothing of it
TOKEN_MAP = ".token_map"  # ends the names of nodes that map ids to rows, once the vocabulary is cut
PASSING = frozenset("Cast Reshape Unsqueeze Squeeze Identity Flatten".split())


@dataclass(frozen=True)
class Vocabulary:
    """Which ids of `size` stay, rising."""

    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Restricted:
    """A model with a part of its vocabulary, and what the whole one costs."""

    model: ir.Model
    vocabulary: Vocabulary
    macs: int
    sha256: str  # of the normal form of the whole model


def read_ids(path: Path) -> tuple[int, ...]:
    """The ids in a file, rising: one a line, a list of numbers as JSON, or an array as .npy. Raises: DataError."""
    try:
        if path.suffix == ".npy":
            found: Iterable[object] = np.load(path, allow_pickle=False).ravel().tolist()
        else:
            text = path.read_text(encoding="utf-8-sig").strip()
            found = json.loads(text if text.startswith("[") else f"[{','.join(text.split())}]")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"--keep-tokens {path}: cannot be read ({type(error).__name__}); give ids, one a line, a JSON list or .npy"
        ) from error
    numbers = [number for number in found if isinstance(number, int) and not isinstance(number, bool) and number >= 0]
    if not numbers or len(numbers) != len(list(found)):
        raise DataError(f"--keep-tokens {path}: holds no ids, or more than ids; give whole numbers, one a line")
    return tuple(sorted(set(numbers)))


def restricted(loaded: ir.Model, keep: Sequence[int], seed: int = 0) -> Restricted:
    """`loaded` with the tokens in `keep` alone, proven to compute what it does with them.

    Raises: UsageError where the model has no vocabulary, or one that cannot be cut, VerificationError.
    """
    earlier = next((node.name for node in loaded.graph if is_map(node)), None)
    if earlier is not None:
        raise UsageError(
            f"--keep-tokens: this model has fewer tokens already, by the map '{earlier}'; give the file that it was "
            "made from, with all tokens that shall stay"
        )
    model, observed = normal_form.observed_form(loaded, graph.normalize(loaded))
    original, sha256 = graph.copy(model), graph.digest(model)
    states.drop_gates(original)
    tables = _tables(model, observed)
    if not tables:
        raise UsageError("--keep-tokens: no embedding is read by ids that the model is given; it has no vocabulary")
    size = _size(model, tables, observed)
    if keep[-1] >= size:
        raise UsageError(f"--keep-tokens: id {keep[-1]} is none of the {size} of this model; leave it out")
    gathers = [node for node, rows in tables.items() if rows == size]
    _put_gates(model, gathers, size, observed)
    coupling = analyze(model, shapes.observe(model, observed.probe))
    flags = np.isin(np.arange(size), keep)
    chosen = _chosen(coupling, gathers, flags)
    macs = cost.of(coupling).totals()["macs"]
    cut_model = surgery.cut(Selection(coupling, chosen))
    _renumber(cut_model, flags)
    cut_model = graph.finish(cut_model, rewrite=False, join=False)
    feeds = _within(comparison.random_feeds(original, observed, seed), _ids_of(gathers), np.asarray(keep))
    twin = _twin(original, size, flags, observed)
    comparison.require(comparison.compare_or_tell(cut_model, twin, feeds, "--keep-tokens", look_inside=False))
    extras.note(
        cut_model,
        f"{len(keep)} of {size} tokens are kept; the logits of the others are {LOWEST:.0f}, and as inputs they read as "
        f"token {keep[0]}",
    )
    return Restricted(cut_model, Vocabulary(size, tuple(keep)), macs, sha256)


def _tables(model: ir.Model, observed: shapes.Shapes) -> dict[ir.Node, int]:
    """Gathers of rows of weights by ids that are a graph input, and how many rows there are."""
    found: dict[ir.Node, int] = {}
    for node in model.graph:
        if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0:
            continue
        table, ids = node.inputs[0], node.inputs[1]
        sizes = observed.sizes.get(table.name or "") if table is not None else None
        if (table is None and not sizes) or ids is None or not _is_weight(table) or _input_of(ids) is None:
            continue
        rows = sizes[0] if sizes else table.const_value.shape.numpy()[0]  # type: ignore[union-attr]
        found[node] = int(rows)
    return found


def _is_weight(value: ir.Value | None) -> bool:
    """Whether a table is stored: as it is, or as what is converted."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("DequantizeLinear", "Cast", "Identity", "Transpose"):
            return False
        value = node.inputs[0]
    return value is not None and value.is_initializer()


def _input_of(ids: ir.Value) -> ir.Value | None:
    """The graph input that ids are, None where they are computed."""
    while (node := ids.producer()) is not None:
        if node.op_type not in (*PASSING, "Gather") or (node.op_type == "Gather" and not is_map(node)):
            return None
        source = node.inputs[1] if is_map(node) else node.inputs[0]
        if source is None:
            return None
        ids = source
    return ids if ids.is_graph_input() else None


def is_map(node: ir.Node) -> bool:
    """Whether a node maps ids of the whole vocabulary to rows of its part."""
    return node.op_type == "Gather" and str(node.name).endswith((OPEN_MAP, TOKEN_MAP))


def _size(model: ir.Model, tables: dict[ir.Node, int], observed: shapes.Shapes) -> int:
    """The number of tokens: that of the logits where a table has as many rows, else the rows of the largest."""
    lasts = {observed.sizes.get(value.name or "", (0,))[-1:] for value in model.graph.outputs}
    fitting = [rows for rows in tables.values() if (rows,) in lasts]
    return max(fitting or tables.values())


def _logits(model: ir.Model, size: int, observed: shapes.Shapes) -> list[str]:
    """Outputs of floats with one number per token on their last axis."""
    return [
        value.name or ""
        for value in model.graph.outputs
        if observed.sizes.get(value.name or "", ())[-1:] == (size,) and value.dtype in states.FLOATS
    ]


def _put_gates(model: ir.Model, gathers: Sequence[ir.Node], size: int, observed: shapes.Shapes) -> None:
    """A map in front of every table, which is still the identity, and gates on the logits, in place."""
    for node in gathers:
        table = graph.add_constant(model.graph, f"{node.name}.rows", np.arange(size, dtype=np.int64))
        mapped = ir.Node("", "Gather", [table, node.inputs[1]], name=f"{node.name}{OPEN_MAP}")
        mapped.outputs[0].name = f"{node.name}{TOKEN_MAP}"
        model.graph.insert_before(node, mapped)
        node.replace_input_with(1, mapped.outputs[0])
    _gate_logits(model, size, observed)


def _gate_logits(model: ir.Model, size: int, observed: shapes.Shapes) -> list[ir.Node]:
    """Gates on the logits, in place, which let all tokens through."""
    gates = []
    for name in _logits(model, size, observed):
        rank = len(observed.sizes[name])
        gates.append(states.gate_output(model.graph, name, rank - 1, size=size, rank=rank, fill=LOWEST))
    return gates


def _chosen(coupling: Coupling, gathers: Sequence[ir.Node], flags: np.ndarray) -> dict[Dim, np.ndarray]:
    """The kept positions of every Dim of the vocabulary. Raises: UsageError where one must stay whole."""
    found: dict[Dim, np.ndarray] = {}
    read = [(node.inputs[0], 0) for node in gathers]
    read += [(n.inputs[0], states.axis_of(n)) for n in coupling.model.graph if states.is_logits(n)]
    for value, position in read:
        start = 0
        for segment in coupling.axes[value.name or ""][position] if value is not None else ():
            stop = start + dims.segment_length(segment)
            part = flags[start:stop]
            frozen = next((dim.frozen for dim in segment if dim.frozen is not None), None)
            if frozen is not None or len(segment) != 1 or not part.any():
                why = frozen or "a part of it would lose all tokens, or is no vocabulary alone"
                raise UsageError(f"--keep-tokens: the vocabulary at '{value.name}' has to stay whole: {why}")  # type: ignore[union-attr]
            found[segment[0]] = part
            start = stop
    return found


def _renumber(model: ir.Model, flags: np.ndarray) -> None:
    """Writes the rows that are left into the open maps, which closes them: pruning leaves these rows alone.

    Dropped ids read as the first token that is kept.
    """
    places = np.where(flags, np.cumsum(flags) - 1, 0).astype(np.int64)
    for node in model.graph:
        name = node.name or ""
        if name.endswith(OPEN_MAP) and node.inputs[0] is not None:
            graph.set_constant(node.inputs[0], places)
            node.name = name.removesuffix(OPEN_MAP) + TOKEN_MAP


def _ids_of(gathers: Sequence[ir.Node]) -> set[str]:
    found = (_input_of(node.inputs[1]) for node in gathers if node.inputs[1] is not None)
    return {value.name or "" for value in found if value is not None}


def _within(feeds: Iterable[dict[str, np.ndarray]], names: set[str], keep: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The feeds with ids of kept tokens alone."""
    return [
        {name: keep[a % len(keep)].astype(a.dtype) if name in names else a for name, a in feed.items()}
        for feed in feeds
    ]


def _twin(original: ir.Model, size: int, flags: np.ndarray, observed: shapes.Shapes) -> ir.Model:
    """The whole model with the logits of dropped tokens made LOWEST."""
    twin = graph.copy(original)
    for gate in _gate_logits(twin, size, observed):
        kept = gate.inputs[0]
        assert kept is not None, gate.name
        graph.set_constant(kept, flags.reshape(graph.array_of(kept).shape))
    return twin
