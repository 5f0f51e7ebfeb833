"""Quantization after the cut: onnxruntime's own quantizer, and what makes its result one to rely on.

asked       --quantize KIND:KEY=VALUE,... as a record
records     what quantization is made with, and what comes of it
prepare     a finished model in the form that quantizers take: weights as initializers, names, the opset
ranges      what values reach on samples, by onnxruntime's calibrators
forms       how it is stored and computed
ties        a table that is a matrix as well, stored once as integers
parts       a quantized file taken apart: what stands for which value, weights as floats again
proof       quantized = simulated: the same rounding carried out apart from the quantizer
equalize    channels brought to more equal ranges
tuning      training with the rounding in place
biases      the mean error of each channel taken out of its bias
rounding    how far rounding moves what a model says
nearer      equal ranges and biases tried, and kept where they bring the outputs nearer
spared      which nodes stay in float by rule: those that masks and infinities go through
floats      which nodes stay in float by measuring: those that do not stand it
integers    int8 in order
apply       all kinds: made, verified, told of
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.quantize.apply import as_stored, file_bytes, kind_of, quantize, told, verify
    from onnxprune.quantize.asked import KINDS, NONE, Asked, check, parse
    from onnxprune.quantize.nearer import JUDGED
    from onnxprune.quantize.parts import as_floats
    from onnxprune.quantize.prepare import begun, check_model, quantized_node
    from onnxprune.quantize.ranges import drawn
    from onnxprune.quantize.records import Context, Quantized

# Most runs quantize nothing: a file is imported when something of it is first used.
HOMES = {
    "apply": ("as_stored", "file_bytes", "kind_of", "quantize", "told", "verify"),
    "asked": ("KINDS", "NONE", "Asked", "check", "parse"),
    "nearer": ("JUDGED",),
    "parts": ("as_floats",),
    "prepare": ("begun", "check_model", "quantized_node"),
    "ranges": ("drawn",),
    "records": ("Context", "Quantized"),
}
__all__ = [
    "JUDGED",
    "KINDS",
    "NONE",
    "Asked",
    "Context",
    "Quantized",
    "as_floats",
    "as_stored",
    "begun",
    "check",
    "check_model",
    "drawn",
    "file_bytes",
    "kind_of",
    "parse",
    "quantize",
    "quantized_node",
    "told",
    "verify",
]


def __getattr__(name: str) -> Any:
    for home, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"onnxprune.quantize.{home}"), name)
    raise AttributeError(f"module 'onnxprune.quantize' has no attribute '{name}'")
