"""Products of queries and keys that lost positions of what they are summed over, fitted to the dense model's.

    minimize over M   sum of samples |Q M K^T - L|^2 + lambda |M - I|^2

Q (T, D) and K (S, D) are what the cut model has at one head of one sample, L (T, S) the dense model's product. M (D, D)
goes into the layer that makes Q, so that nothing is added to the graph (CORP: compensation of attention's logits, in
closed form). What is the same for all keys of a query changes no Softmax: where one is behind, keys are centered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import dims
from onnxprune.graph.stored import Spill
from onnxprune.plan.select import Selection
from onnxprune.recover.biases import add_to_bias, output_of, read_bias
from onnxprune.recover.linear import Linear, number, only_user, read_weights, stored_behind, users, write_weights
from onnxprune.recover.refit.leastsquares import HELD

MOST_SUMMED = 64  # positions that are summed over: beyond, the equations of a head would not fit in memory
RIDGES = (1e-4, 1e-2, 1.0)  # of the mean of the equations' diagonal; held-out samples choose
Gram = tuple[np.ndarray, np.ndarray, np.ndarray, float]  # Q^T Q, K^T K and Q^T L K (D, D), |L|^2 of a head of a sample
KEEPING = frozenset(("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"))


@dataclass(frozen=True)
class Logits:
    """A MatMul of two computed values in the cut model, of which the positions that are summed over became fewer.

    linear: the layer that makes one side of it; path: the values from that layer's output to the MatMul; side: which
    input of the MatMul that is; rows: axis -> positions that are left of the dense product; centered: whether a Softmax
    over the keys is behind.
    """

    node: ir.Node
    wave: int
    linear: Linear
    path: tuple[ir.Value, ...]
    side: int
    rows: Mapping[int, np.ndarray]
    centered: bool

    @property
    def x(self) -> str:
        """The name of the side that is fitted."""
        return self.path[-1].name or ""

    @property
    def other(self) -> str:
        """The name of the side that stays."""
        value = self.node.inputs[1 - self.side]
        assert value is not None
        return value.name or ""

    @property
    def target(self) -> str:
        """The name of the product."""
        return self.node.outputs[0].name or ""


def find(node: ir.Node, wave: int, selection: Selection, linears: Mapping[str, Linear]) -> Logits | None:
    """What can be fitted of a MatMul; None where nothing went that it sums over, or no layer alone makes a side."""
    if node.op_type != "MatMul" or any(value is None or stored_behind(value) is not None for value in node.inputs):
        return None
    axes = selection.coupling.axes
    sides = [axes.get(value.name or "") for value in node.inputs if value is not None]
    product = axes.get(node.outputs[0].name or "")
    if len(sides) != 2 or not all(sides) or not product or sides[0] is None or len(sides[0]) < 3:
        return None
    kept = selection.mask_of(sides[0][-1])
    if kept.all() or kept.sum() > MOST_SUMMED:
        return None
    masks = {axis: selection.mask_of(a) for axis, a in enumerate(product)}
    rows = {axis: np.flatnonzero(mask) for axis, mask in masks.items() if not mask.all()}
    if any(dims.is_dynamic(product[axis]) for axis in rows):
        return None
    centered = _softmax_behind(node.outputs[0], len(product))
    for side in (0, 1):
        found = _made_by(node, side, linears)
        if found is not None:
            return Logits(node, wave, *found, side, rows, centered)
    return None


def _softmax_behind(value: ir.Value, rank: int) -> bool:
    """Whether only a Softmax over the last axis reads `value`, scaled and masked on its way."""
    node = only_user(value)
    while node is not None and node.op_type in {"Mul", "Div", "Add", "Where", "Cast"}:
        node = only_user(node.outputs[0])
    return node is not None and node.op_type == "Softmax" and number(node, "axis", -1) in (-1, rank - 1)


def _made_by(node: ir.Node, side: int, linears: Mapping[str, Linear]) -> tuple[Linear, tuple[ir.Value, ...]] | None:
    """The layer whose outputs are only moved and scaled on their way to an input of `node`, and the values between."""
    value, path = node.inputs[side], []
    while value is not None:
        path.append(value)
        linear = _that_gives(value, linears)
        if linear is not None:
            fit = read_bias(linear) is not None and linear.groups == 1 and len(list(users(linear.stored))) == 1
            return (linear, tuple(reversed(path))) if fit else None
        maker = value.producer()
        if maker is None or not _moves(maker):
            return None
        value = maker.inputs[0] if graph.constant(maker.inputs[0]) is None else maker.inputs[1]
    return None


def _that_gives(value: ir.Value, linears: Mapping[str, Linear]) -> Linear | None:
    """The layer whose output, with its bias, is `value`."""
    maker = value.producer()
    makers = () if maker is None else (maker, *(read.producer() for read in maker.inputs if read is not None))
    found = (linears.get(node.name or "") for node in makers if node is not None)
    return next((linear for linear in found if linear is not None and output_of(linear) is value), None)


def _moves(node: ir.Node) -> bool:
    """Whether `node` only moves, selects or scales what it reads, by what is stored."""
    if node.op_type in {"Mul", "Div"}:
        factors = [graph.constant(value) for value in node.inputs[node.op_type == "Div" :]]
        return any(factor is not None and factor.size == 1 for factor in factors)
    return node.op_type in KEEPING or _selects(node)


def columns(item: Logits, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Which of the layer's outputs stands at each place of what the MatMul sums over: (L, D), L the leading places.

    None where that depends on the place of the query or the key, or where another reads one of them as well.
    """
    first = values[item.path[0].name or ""]
    numbers = np.arange(first.shape[item.linear.y_axis])
    shape = [1] * first.ndim
    shape[item.linear.y_axis] = -1
    index = np.broadcast_to(numbers.reshape(shape), first.shape)
    elsewhere: set[int] = set()
    for before, after in zip(item.path, item.path[1:], strict=False):
        nodes = [use.node for use in before.uses()]
        if before.is_graph_output() or any(not _selects(node) for node in nodes if len(nodes) > 1):
            return None
        for node in nodes:
            for output in node.outputs:
                if output is not after:
                    elsewhere.update(_moved(node, output, index, None).ravel().tolist() if output.uses() else ())
        maker = after.producer()
        assert maker is not None
        index = _moved(maker, after, index, values[after.name or ""].shape)
    if len(list(item.path[-1].uses())) > 1 or item.path[-1].is_graph_output():
        return None
    places = index if item.side == 0 else index.swapaxes(-1, -2)
    same = (places == places[..., :1, :]).all()
    found = places[..., 0, :].reshape(-1, places.shape[-1])
    return found if same and not elsewhere & set(found.ravel().tolist()) else None


def _selects(node: ir.Node) -> bool:
    return node.op_type == "Split" or (node.op_type == "Gather" and graph.constant(node.inputs[1]) is not None)


def _moved(node: ir.Node, output: ir.Value, index: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """What `node` makes of `index`; shape: that its output has."""
    if node.op_type == "Transpose":
        order = node.attributes.get("perm")
        return index.transpose(order.value if order is not None else range(index.ndim)[::-1])
    axis = int(number(node, "axis", 0))
    if node.op_type == "Gather":
        picked = graph.constant(node.inputs[1])
        assert picked is not None
        return np.take(index, picked, axis)
    if node.op_type == "Split":
        return np.split(index, _ends(node, index.shape[axis]), axis)[list(node.outputs).index(output)]
    return index if shape is None else index.reshape(shape)


def _ends(node: ir.Node, size: int) -> list[int]:
    """Where the parts of a Split end, the last left out."""
    given, stored = node.attributes.get("split"), graph.constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if stored is None:
        count = len(node.outputs)
        stored = np.array(given.value if given is not None else [-(-size // count)] * count)
    return np.cumsum(stored)[:-1].tolist()


@dataclass(eq=False)
class Products:
    """What the fit needs of the samples: at each head the products of both sides with themselves and with L.

    room: bytes that they may take. columns: the outputs of the layer at each head, (H, D). heads: of each batch, which
    head stands at each leading place of the MatMul. found: M (H, D, D).
    """

    item: Logits
    room: int
    columns: np.ndarray | None = None
    heads: list[np.ndarray] = field(default_factory=list)
    grams: dict[int, list[Gram]] = field(default_factory=dict)
    found: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    stopped: bool = False

    def add(self, cut_values: Mapping[str, np.ndarray], dense_values: Mapping[str, np.ndarray]) -> None:
        """One batch of samples."""
        places = None if self.stopped else columns(self.item, cut_values)
        if places is None:
            self.stopped = True
            return
        heads, which = np.unique(places, axis=0, return_inverse=True)
        if self.columns is not None and not np.array_equal(heads, self.columns):
            self.stopped = True
            return
        self.columns = heads
        self.heads.append(which.ravel())
        for head, gram in zip(self.heads[-1], self._grams(cut_values, dense_values), strict=True):
            self._keep(int(head), gram)

    def _keep(self, head: int, gram: Gram) -> None:
        size = sum(part.nbytes for part in gram[:3])
        if self.room >= size:
            self.room -= size
            self.grams.setdefault(head, []).append(gram)

    def _grams(self, cut_values: Mapping[str, np.ndarray], dense_values: Mapping[str, np.ndarray]) -> Iterator[Gram]:
        """(Q^T Q, K^T K, Q^T L K, |L|^2) at each leading place."""
        item = self.item
        target = dense_values[item.target].astype(np.float32)
        for axis, left in item.rows.items():
            target = target.take(left, axis)
        q, k = cut_values[item.x].astype(np.float32), cut_values[item.other].astype(np.float32)
        if item.side == 0:
            k = k.swapaxes(-1, -2)
        else:
            q, target = q.swapaxes(-1, -2), target.swapaxes(-1, -2)
        if item.centered:  # over the keys: these are the other side, or the fitted one
            target = target - target.mean(-1 - item.side, keepdims=True)
            q, k = (q, k - k.mean(-2, keepdims=True)) if item.side == 0 else (q - q.mean(-2, keepdims=True), k)
        leading = target.shape[:-2]
        q, k = (np.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (q, k))
        for one, two, goal in zip(q, k, target.reshape(-1, *target.shape[-2:]), strict=True):
            yield one.T @ one, two.T @ two, one.T @ goal @ two, float(np.square(goal).sum(dtype=np.float64))

    def turned(self, batch: int, values: np.ndarray) -> np.ndarray:
        """The fitted side (..., T, D), or (..., D, S), of a batch after the layer was changed."""
        matrices = self.found[self.heads[batch]]
        rows = values if self.item.side == 0 else values.swapaxes(-1, -2)
        new = (rows.reshape(-1, *rows.shape[-2:]) @ matrices).reshape(rows.shape).astype(values.dtype)
        return new if self.item.side == 0 else new.swapaxes(-1, -2)

    def fit(self) -> tuple[float, float] | None:
        """Finds the best M; the error on held-out samples before and after, as a share of their square.

        None where it cannot be said, or nothing is better.
        """
        if self.stopped or self.columns is None or min(map(len, self.grams.values()), default=0) < HELD:
            return None
        found = np.tile(np.eye(self.columns.shape[1]), (len(self.columns), 1, 1))
        before = after = scale = 0.0
        for head, grams in sorted(self.grams.items()):
            held, fitted = grams[HELD - 1 :: HELD], [g for k, g in enumerate(grams) if k % HELD != HELD - 1]
            start = _error(held, found[head])
            best = min(((_error(held, m), m) for m in _solved(fitted)), key=lambda pair: pair[0])
            before, after, scale = before + start, after + min(start, best[0]), scale + sum(g[3] for g in held)
            if best[0] < start:
                found[head] = best[1]
        if not after < before:
            return None
        self.found = found.astype(np.float32)
        return before / max(scale, 1e-30), after / max(scale, 1e-30)


def _error(grams: list[Gram], m: np.ndarray) -> float:
    """sum |Q M K^T - L|^2."""
    error = sum(np.sum((q @ m @ k) * m) - 2 * np.sum(m * both) + goal for q, k, both, goal in grams)
    return float(error) if np.isfinite(error) else float("inf")


def _solved(grams: list[Gram]) -> Iterator[np.ndarray]:
    """M at each ridge."""
    q, k = (np.stack([gram[part] for gram in grams]).astype(np.float32) for part in (0, 1))
    size = q.shape[1]
    a = (q.reshape(len(q), -1).T @ k.reshape(len(k), -1)).reshape(size, size, size, size)
    a = a.transpose(0, 2, 1, 3).reshape(size**2, size**2).astype(np.float64)
    wanted = sum(gram[2].astype(np.float64) for gram in grams) - np.einsum("nij,njk->ik", q, k, dtype=np.float64)
    spread = max(float(np.trace(a)) / len(a), 1e-30)
    values, vectors = np.linalg.eigh(a)
    turned = vectors.T @ wanted.ravel()
    for ridge in RIDGES:
        yield np.eye(size) + (vectors @ (turned / (np.maximum(values, 0) + ridge * spread))).reshape(size, size)


def take(products: Products, cut_model: ir.Model, spill: Spill) -> None:
    """Puts the M that was found into the layer: its outputs at each head become those times M."""
    linear = products.item.linear
    w, b = read_weights(linear), read_bias(linear)
    assert b is not None
    assert products.columns is not None
    new, bias = w.copy(), b.copy()
    for places, matrix in zip(products.columns, products.found, strict=True):
        turn = matrix.T
        new[0, places] = np.tensordot(turn, w[0, places], 1)
        bias[places] = turn @ b[places]
    write_weights(linear, new, spill)
    if np.any(bias != b):
        add_to_bias(cut_model, linear, bias - b)
