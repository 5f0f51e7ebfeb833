"""The closed-form variant of cci: which weights stay, and what they become, from second moments of the inputs.

Legend: O outputs, D inputs of one output (channels times kernel positions), H = sum of x x' over positions (D, D).

    minimize |(W - W^) X|^2 row by row, W^ with k of every G weights: columns are visited in order; the error
    (w_j - w^_j) / U_jj of a column is subtracted, times U_j, from those to come, where U'U = (H + damping)^-1
(SparseGPT, Frantar and Alistarh, 2023, after Optimal Brain Surgeon.) A weight's saliency at its turn is w_j^2 / U_jj^2.
Columns before j can no longer answer an error of j; so, with M fixed, conjugate gradients then take every row to its
least-squares optimum: W^ H = W H on the kept entries.
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from onnxprune import graph
from onnxprune.bridge.network import Network
from onnxprune.methods import objective
from onnxprune.methods.base import Context
from onnxprune.methods.layers import Layer

DAMPING = 0.01  # of the mean diagonal
BATCH = 32
BLOCK = 128  # columns
CG_STEPS, CG_STEPS_WIDE, WIDE = 30, 8, 1200


def fit(
    context: Context, model: ir.Model, chosen: list[Layer], axis: str, size: int, kept: int, count: int
) -> tuple[ir.Model, dict[str, np.ndarray], list[float]]:
    """(model with fitted weights, positions that are zero, relative output error of each layer)."""
    moments = second_moments(context, model, chosen, count)
    result, zeros, errors = graph.copy(model), {}, []
    for layer in chosen:
        value = result.graph.initializers[layer.weight]
        w = graph.array_of(value)
        matrix = layer.matrix(w)
        h = moments[layer.weight].double().cpu().numpy()
        flat = matrix.reshape(len(matrix), -1).astype(np.float64)
        fitted, mask = solve(flat, h, size, kept, rows=axis == "output")
        change = flat - fitted
        energy = np.einsum("oi,ij,oj->", flat, h, flat)
        errors.append(float(np.sqrt(max(np.einsum("oi,ij,oj->", change, h, change), 0) / max(energy, 1e-30))))
        graph.set_constant(value, _back(layer, fitted, matrix.shape).astype(w.dtype))
        zeros[layer.weight] = ~_back(layer, mask, matrix.shape)
    return result, zeros, errors


def _back(layer: Layer, flat: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(flat.reshape(shape), (0, -1), (layer.outputs, layer.inputs)))


def solve(w: np.ndarray, h: np.ndarray, size: int, kept: int, *, rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fitted weights and mask (O, D) of w (O, D) with moments h (D, D).

    rows: groups are `size` neighboring rows of one column, else `size` neighboring columns of one row.
    """
    original, w = w, w.copy()
    mask = np.ones(w.shape, bool)
    u = _factor(h)
    width = max(BLOCK // size, 1) * size
    for start in range(0, w.shape[1], width):
        end = min(start + width, w.shape[1])
        errors = np.zeros((len(w), end - start))
        for j in range(start, end):
            if rows:
                mask[:, j] = _largest(np.abs(w[:, j]).reshape(-1, size), kept).reshape(-1)
            elif j % size == 0:
                saliency = (w[:, j : j + size] / np.diag(u)[j : j + size]) ** 2
                mask[:, j : j + size] = _largest(saliency, kept)
            errors[:, j - start] = np.where(mask[:, j], 0.0, w[:, j]) / u[j, j]
            w[:, j + 1 : end] -= np.outer(errors[:, j - start], u[j, j + 1 : end])
            w[~mask[:, j], j] = 0.0
        w[:, end:] -= errors @ u[start:end, end:]  # what comes later is updated once a block
    return refined(original, w, h, mask), mask


def refined(w: np.ndarray, start: np.ndarray, h: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The minimizer of |(W - W^) X|^2 over W^ (O, D), zero outside `mask`, from `start`, every row on its own."""
    h = h + np.eye(len(h)) * (DAMPING * max(float(np.diag(h).mean()), 1e-12))
    # Scaled by the diagonal: inputs differ in size by orders of magnitude.
    scale = mask / np.diag(h)
    found = start * mask
    residual = ((w - found) @ h) * mask
    z = residual * scale
    direction, rho = z, (residual * z).sum(1)
    for _ in range(CG_STEPS if len(h) < WIDE else CG_STEPS_WIDE):
        if rho.max(initial=0) <= 1e-18:
            break
        image = (direction @ h) * mask
        step = rho / np.maximum((direction * image).sum(1), 1e-300)
        found, residual = found + step[:, None] * direction, residual - step[:, None] * image
        z = residual * scale
        new = (residual * z).sum(1)
        direction, rho = z + (new / np.maximum(rho, 1e-300))[:, None] * direction, new
    return found


def _largest(values: np.ndarray, kept: int) -> np.ndarray:
    """Booleans (groups, size): the `kept` largest of each row."""
    places = np.argsort(-values, axis=1, kind="stable")[:, :kept]
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, places, True, axis=1)
    return mask


def _factor(h: np.ndarray) -> np.ndarray:
    """Upper triangular U with U'U = (h + damping)^-1: row j is what OBS needs once columns before j are fixed."""
    damped = h + np.eye(len(h)) * (DAMPING * max(float(np.diag(h).mean()), 1e-12))
    inverse = np.linalg.inv(damped)
    return np.linalg.cholesky((inverse + inverse.T) / 2).T


# Moments ----------------------------------------------------------------------------------------------------------


def second_moments(context: Context, model: ir.Model, chosen: list[Layer], count: int) -> dict[str, Tensor]:
    """Mean of x x' over samples and positions for the inputs of each layer, ordered as `Layer.matrix` flattens them."""
    network = Network(model, trainable=()).to(context.device).eval()
    nodes = {node.name: node for node in model.graph.all_nodes()}
    sums: dict[str, Tensor] = {}
    seen = dict.fromkeys((layer.weight for layer in chosen), 0)
    by_value: dict[str, list[Layer]] = {}
    for layer in chosen:
        by_value.setdefault(layer.data, []).append(layer)

    def hook(name: str) -> Callable[[Tensor], Tensor]:
        def add(x: Tensor) -> Tensor:
            for layer in by_value[name]:
                columns = _columns(nodes[layer.node], layer, model, x.float())
                sums[layer.weight] = sums.get(layer.weight, 0) + columns @ columns.T
                seen[layer.weight] += columns.shape[1]
            return x

        return add

    network.gates.update({name: hook(name) for name in by_value})
    with torch.no_grad():
        for feeds, _ in objective.walk(context, count, BATCH):
            network(feeds)
    return {name: total / max(1, seen[name]) for name, total in sums.items()}


def _columns(node: ir.Node, layer: Layer, model: ir.Model, x: Tensor) -> Tensor:
    """The inputs of every output position as columns (D, positions)."""
    if layer.kind == "matrix":
        x = x.movedim(layer.x_axis, -1)
        return x.reshape(-1, x.shape[-1]).T
    shape = graph.array_of(model.graph.initializers[layer.weight]).shape
    kernel = shape[2:]
    rank = len(kernel)
    strides, dilations = _ints(node, "strides", [1] * rank), _ints(node, "dilations", [1] * rank)
    x = F.pad(x, _pads(node, x, kernel, strides, dilations))
    for k in range(rank):  # one window axis per spatial axis, at the end
        span = (kernel[k] - 1) * dilations[k] + 1
        x = x.unfold(2 + k, span, strides[k])[..., :: dilations[k]]
    # (N, I, *S, *K) -> (*K, I, N, *S)
    order = [*range(2 + rank, 2 + 2 * rank), 1, 0, *range(2, 2 + rank)]
    return x.permute(order).reshape(int(np.prod(kernel)) * shape[1], -1)


def _pads(node: ir.Node, x: Tensor, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> list[int]:
    """Padding as torch takes it: last axis first, begin and end."""
    rank = len(kernel)
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    pads = _ints(node, "pads", [0] * 2 * rank)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        for k in range(rank):
            length = x.shape[2 + k]
            total = max(0, (-(-length // strides[k]) - 1) * strides[k] + (kernel[k] - 1) * dilations[k] + 1 - length)
            small, large = total // 2, total - total // 2
            pads[k], pads[rank + k] = (small, large) if mode == "SAME_UPPER" else (large, small)
    return [pad for k in reversed(range(rank)) for pad in (pads[k], pads[rank + k])]


def _ints(node: ir.Node, name: str, default: list[int]) -> list[int]:
    if name not in node.attributes:
        return list(default)
    value = node.attributes[name].value
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
