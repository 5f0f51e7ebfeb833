"""Fine-tuning with the rounding in place (quantization-aware training): weights that are good once they are rounded.

Every pass rounds weights and values as the file does, and gradients pass through the rounding as if it were none
inside its range (Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference, CVPR 2018, section 3; the straight-through gradient of Bengio et al. 2013). The original is the teacher, no
label is used. What comes of it are weights in floats, which are then rounded as any others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.data import Samples, split
from onnxprune.quantize import parts
from onnxprune.recover.levels import FEWEST_TRAINED, judged_share
from onnxprune.recover.settings import Settings

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

HELD = "/held"  # how weights in floats are called in the model that is trained
SPARSE = 0.01  # share of zeros from which on a weight's zeros stay: a sparse method made them


def tuned(
    floats: ir.Model, quantized: ir.Model, teacher: ir.Model, samples: Samples, epochs: int, seed: int
) -> tuple[ir.Model, History | None]:
    """(a copy of `floats` with weights trained for the rounding of `quantized`, how it went); the history is None, and
    nothing was trained, where there are too few samples."""
    if len(samples) < FEWEST_TRAINED:
        return floats, None
    from onnxprune.recover.finetune import finetune

    settings = Settings(epochs=epochs, seed=seed, labels=0.0, batchnorm="off", amp="off")
    rounding = rounding_model(floats, quantized)
    learned, held = split(samples, judged_share(len(samples)), seed)
    history = finetune(rounding, teacher, learned, held, settings, masks=_zeros(rounding))
    return with_weights_of(floats, rounding), history


def rounding_model(floats: ir.Model, quantized: ir.Model) -> ir.Model:
    """`quantized` with weights in floats, rounded by nodes; what is stored as they are are biases, in floats too."""
    made = graph.copy(quantized)
    own = {node.name: node for node in made.graph}
    held: dict[str, ir.Value] = {}
    for node in floats.graph:
        twin = own.get(node.name)
        for index, value in enumerate(node.inputs if twin is not None else ()):
            array, read = graph.constant(value), twin.inputs[index] if index < len(twin.inputs) else None  # type: ignore[union-attr]
            found = parts.stored(read)
            if value is None or array is None or found is None or read is None:
                continue
            name = f"{value.name}{HELD}"
            if name not in held:
                held[name] = graph.add_constant(made.graph, name, array)
            if found[0].dtype == np.int32:  # steps of biases are finer than floats are
                twin.replace_input_with(index, held[name])  # type: ignore[union-attr]
            else:
                _round(made, read, held[name])
    return made


def with_weights_of(floats: ir.Model, trained: ir.Model) -> ir.Model:
    """A copy of `floats` with the numbers that `trained` holds under the same names."""
    made = graph.copy(floats)
    for name, value in made.graph.initializers.items():
        other = graph.constant(trained.graph.initializers.get(f"{name}{HELD}"))
        if other is not None and other.dtype == np.float32:
            graph.set_constant(value, other.copy())
    return made


def _round(model: ir.Model, read: ir.Value, value: ir.Value) -> None:
    """Puts QuantizeLinear of `value`, in floats, before the DequantizeLinear that makes `read` of integers."""
    reader = read.producer()
    assert reader is not None
    stored = reader.inputs[0]
    if stored is None or not stored.is_initializer():
        return  # done already: others read the same weight
    rest = [ir.AttrInt64("axis", reader.attributes.get_int("axis", 1))]
    name = f"{value.name}/rounded"
    writer = ir.Node("", "QuantizeLinear", [value, *reader.inputs[1:]], rest, name=name, num_outputs=1)
    output = writer.outputs[0]
    output.name, output.type, output.shape = name, ir.TensorType(stored.dtype), stored.shape  # type: ignore[arg-type]
    model.graph.insert_before(reader, writer)
    reader.replace_input_with(0, output)


def _zeros(model: ir.Model) -> dict[str, np.ndarray]:
    """Where weights may change, of those that hold many zeros."""
    arrays = {name: graph.constant(value) for name, value in model.graph.initializers.items()}
    floats = {name: array for name, array in arrays.items() if array is not None and array.dtype == np.float32}
    return {name: array != 0 for name, array in floats.items() if array.ndim > 1 and (array == 0).mean() > SPARSE}
