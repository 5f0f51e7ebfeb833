"""Models as graphs: files, the normal form, what onnxruntime makes of them, shapes observed, tensors.

files       load, normalize, finish, save
simplify    onnxsim, isolated, with weights hidden from it        integrity  what a file must hold to be a model
sessions    the one place that opens onnxruntime sessions         inputs     what a model takes; random feeds for it
shapes      shapes of every value, observed at two sizes          probes     sizes to try for symbolic axes
tensors     initializers as numpy arrays                          half       half precision written out as single
qoperator   QOperator nodes written out as QDQ                    branches   Ifs of which the condition is constant
states      inputs that outputs are handed back as                providers  what brings them, and what they like
zipmaps     outputs that are maps                                 extras     what a model carries beside its graph
"""

from onnxprune.graph.extras import copy
from onnxprune.graph.files import PROTOBUF_LIMIT_BYTES, digest, external_names, finish, load, normalize, save
from onnxprune.graph.simplify import skeleton
from onnxprune.graph.stored import change
from onnxprune.graph.tensors import add_constant, array_of, constant, message_bytes, set_constant, size_bytes, tie

__all__ = [
    "PROTOBUF_LIMIT_BYTES",
    "add_constant",
    "array_of",
    "change",
    "constant",
    "copy",
    "digest",
    "external_names",
    "finish",
    "load",
    "message_bytes",
    "normalize",
    "save",
    "set_constant",
    "size_bytes",
    "skeleton",
    "tie",
]
