"""Small models written as ONNX text: graph inputs that do not start with 'x' become random initializers."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxprune import surgery
from onnxprune.coupling import Coupling
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison

# Integer initializers are settings, so their numbers are given; floats are random and never constant.
Constants = dict[str, object]


def proto(text: str, constants: Constants | None = None, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
    """The model with this signature and body: `(float[2,3] x, float[3,4] w) => (float[2,4] y) { y = MatMul(x, w) }`."""
    head = f'<ir_version: 9, opset_import: ["" : {opset}, "com.microsoft" : 1]> '
    model = onnx.parser.parse_model(head + "g " + text)
    rng = np.random.default_rng(seed)
    inputs = list(model.graph.input)
    del model.graph.input[:]
    for value in inputs:
        if value.name.startswith("x"):
            model.graph.input.append(value)
            continue
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        shape = [dim.dim_value for dim in kind.shape.dim]
        given = (constants or {}).get(value.name)
        if given is not None:
            array = np.asarray(given, dtype).reshape(shape)
        else:
            array = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(-9, 10, shape)
        if value.name.startswith("var"):
            array = np.abs(array) + 0.5
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, dtype), value.name))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def model(text: str, constants: Constants | None = None, opset: int = 18, seed: int = 0) -> ir.Model:
    return ir.from_proto(proto(text, constants, opset, seed))


def random_keep(coupling: Coupling, seed: int, share: float = 0.5) -> dict:
    """A random choice of positions for every free Dim, at least one each, or as many as the model picks of them."""
    rng = np.random.default_rng(seed)
    keep = {}
    for dim in coupling.free:
        mask = rng.random(dim.size) < share
        mask[rng.permutation(dim.size)[: dim.least]] = True
        keep[dim] = mask
    return keep


def prove(coupling: Coupling, keep: dict, seed: int = 0) -> comparison.Verification:
    """Cut against mask on random inputs at both probe sizes."""
    cut, masked = surgery.cut(Selection(coupling, keep)), surgery.mask(Selection(coupling, keep))
    return comparison.compare(cut, masked, comparison.random_feeds(coupling.model, coupling.shapes, seed))
