"""Quantization after the cut: onnxruntime's own quantizer, and what makes its result one to rely on.

asked       --quantize KIND:KEY=VALUE,... as a record
prepare     a finished model in the form that quantizers take: weights as initializers, names, the opset
ranges      what values reach on samples, by onnxruntime's calibrators
forms       how it is stored and computed
ties        a table that is a matrix as well, stored once as integers
parts       a quantized file taken apart: what stands for which value, weights as floats again
proof       quantized = simulated: the same rounding carried out apart from the quantizer
equalize    channels brought to more equal ranges
tuning      training with the rounding in place
biases      the mean error of each channel taken out of its bias
floats      which nodes stay in float: those that do not stand it
apply       all of it in order
"""

from onnxprune.quantize.apply import Context, Quantized, as_stored, check, file_bytes, kind_of, quantize, told, verify
from onnxprune.quantize.asked import KINDS, NONE, Asked, parse
from onnxprune.quantize.parts import as_floats
from onnxprune.quantize.prepare import check_model, folded

__all__ = [
    "KINDS",
    "NONE",
    "Asked",
    "Context",
    "Quantized",
    "as_floats",
    "as_stored",
    "check",
    "check_model",
    "file_bytes",
    "folded",
    "kind_of",
    "parse",
    "quantize",
    "told",
    "verify",
]
