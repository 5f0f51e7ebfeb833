"""BatchNormalization put back behind the convolutions of a cut model while it trains."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from onnxprune import graph
from onnxprune.bridge import Network
from onnxprune.bridge.batchnorm import fold_batchnorm, insert_batchnorm, normalizable
from onnxprune.bridge.tensors import tensors_of
from onnxprune.data import Samples
from onnxprune.data.samples import walk
from onnxprune.recover.biases import read_bias, write_bias
from onnxprune.recover.linear import linears, stored_behind, users

LIMIT = 512  # samples for the statistics


def with_batchnorm(cut_model: ir.Model, samples: Samples, device: torch.device, batch_size: int) -> ir.Model:
    """A copy of `cut_model` that computes the same, with BatchNormalization behind every convolution.

    Convolutions of `cut_model` without a bias get one of zeros: that is where the norm is folded into. Weights that
    are stored small behind Cast are float32 in the copy.
    """
    for linear in linears(cut_model).values():
        b = read_bias(linear)
        if linear.kind == "convolution" and b is not None and linear.bias is None:
            write_bias(cut_model, linear, b)
    model = graph.copy(cut_model)
    _without_casts(model)
    insert_batchnorm(model, _statistics(model, samples, device, batch_size))
    return model


def take_out(trained: ir.Model, cut_model: ir.Model) -> None:
    """Folds the norms of `trained` and copies its arrays into `cut_model`, in place."""
    fold_batchnorm(trained)
    for name, value in cut_model.graph.initializers.items():
        other = trained.graph.initializers[name]
        if not np.array_equal(graph.array_of(value), graph.array_of(other)):
            graph.set_constant(value, graph.array_of(other))


def _without_casts(model: ir.Model) -> None:
    """Weights in the type in which they are used, under their own names."""
    for linear in linears(model).values():
        for slot in range(1, len(linear.node.inputs)):
            used = linear.node.inputs[slot]
            stored = stored_behind(used)
            if used is None or stored is None or used is stored or used.dtype is None or len(list(users(stored))) > 1:
                continue
            stored.const_value = ir.Tensor(graph.array_of(stored).astype(used.dtype.numpy()), name=stored.name)
            stored.type = ir.TensorType(used.dtype)
            linear.node.replace_input_with(slot, stored)


def _statistics(
    model: ir.Model, samples: Samples, device: torch.device, batch_size: int
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Mean (C,) and variance (C,) of what each convolution gives, by output name."""
    names = normalizable(model)
    network = Network(model).to(device).eval()
    sums = dict.fromkeys(names, 0.0)
    squares, counts = dict(sums), dict.fromkeys(names, 0)
    some = samples.subset(np.arange(min(LIMIT, len(samples))))
    with torch.no_grad():
        for feeds, _ in walk(some, model, batch_size):
            values = network(tensors_of(feeds, device), capture=names)
            for name in names:
                y = values[name].double().transpose(0, 1).flatten(1)
                sums[name] = sums[name] + y.sum(1)
                squares[name] = squares[name] + y.square().sum(1)
                counts[name] += y.shape[1]
    return {name: _moments(sums[name], squares[name], counts[name]) for name in names}


def _moments(total, squares, count: int) -> tuple[np.ndarray, np.ndarray]:
    mean = total / count
    var = (squares / count - mean.square()).clamp_min(0)
    return mean.cpu().numpy().astype(np.float32), var.cpu().numpy().astype(np.float32)
