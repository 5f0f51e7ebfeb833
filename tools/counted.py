"""Do the bytes that inspect reports equal those of the weights in the file? Every file, counted without our own code.

    python tools/counted.py models FOLDER FILE.onnx --records --conformance

Counted are all initializers and constants, where they stand: bodies, functions, files beside the model. What is packed
counts as packed, what several nodes read counts once, and a sparse tensor as the dense one that it is read as.
--records adds the networks of tests/records.py, --conformance the models of the onnx package.
`--inspect` runs the whole of inspect for each, which takes seconds; else only what it counts with.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from onnxprune import graph  # noqa: E402
from onnxprune.errors import OnnxPruneError  # noqa: E402
from onnxprune.options import Options  # noqa: E402
from onnxprune.plan import cost  # noqa: E402
from onnxprune.studies import inspection  # noqa: E402

LISTS = {"value_floats": ("floats", 4), "value_ints": ("ints", 8)}
NUMBERS = {"value_float": 4, "value_int": 8}


def bytes_in(path: Path) -> int:
    """Bytes of all initializers and constants of a file, by what the message says of types and sizes."""
    model = onnx.load(str(path), load_external_data=False)
    return of_graph(model.graph) + sum(of_nodes(function.node) for function in model.functions)


def of_graph(part: onnx.GraphProto) -> int:
    own = sum(of_tensor(tensor) for tensor in part.initializer)
    own += sum(of_sparse(tensor) for tensor in part.sparse_initializer)
    return own + of_nodes(part.node)


def of_nodes(nodes: Iterable[onnx.NodeProto]) -> int:
    found = 0
    for node in nodes:
        plain = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
        for attribute in node.attribute:
            found += of_constant(attribute) if plain else 0
            found += sum(
                of_graph(body) for body in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)
            )
    return found


def of_constant(attribute: onnx.AttributeProto) -> int:
    """Bytes of one of the seven ways in which a Constant says what it is."""
    if attribute.name in LISTS:
        field, size = LISTS[attribute.name]
        return size * len(getattr(attribute, field))
    if attribute.name == "value_string":
        return len(attribute.s)
    if attribute.name == "value_strings":
        return sum(map(len, attribute.strings))
    if attribute.name == "sparse_value":
        return of_sparse(attribute.sparse_tensor)
    return NUMBERS.get(attribute.name) or of_tensor(attribute.t)


def of_sparse(tensor: onnx.SparseTensorProto) -> int:
    return prod(tensor.dims) * ir.DataType(tensor.values.data_type).bitwidth // 8


def of_tensor(tensor: onnx.TensorProto) -> int:
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    return -(-prod(tensor.dims) * ir.DataType(tensor.data_type).bitwidth // 8)


def counted(path: Path, *, inspect: bool) -> int:
    """The bytes that inspect reports. Raises what it raises."""
    if inspect:
        return inspection.inspect_file(path, Options())["model"]["bytes"]
    return cost.stored(graph.load(path))["bytes"]


def files_in(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    for place in places:
        for path in sorted(place.rglob("*.onnx")) if place.is_dir() else [place]:
            yield str(path), path


def made(folder: Path, *, records: bool, conformance: bool) -> Iterator[tuple[str, Path]]:
    """Networks that lie in no file, written to `folder` one after the other."""
    path = folder / "model.onnx"
    for name, message in chain(of_records() if records else (), of_conformance() if conformance else ()):
        path.write_bytes(message.SerializeToString())
        yield name, path


def of_records() -> Iterator[tuple[str, onnx.ModelProto]]:
    from onnx_text import proto
    from records import RECORDS

    for record in RECORDS:
        yield f"record {record.name}", proto(record.text, record.constants, record.opset)


def of_conformance() -> Iterator[tuple[str, onnx.ModelProto]]:
    """The node cases of the onnx package."""
    from onnx.backend.test.loader import load_model_tests

    for case in load_model_tests(kind="node"):
        yield f"conformance {case.name}", case.model


def main(argv: Sequence[str] | None = None) -> int:
    """1 where some count is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, metavar="FILE", help="files, and folders of files")
    parser.add_argument("--records", action="store_true", help="also the networks of tests/records.py")
    parser.add_argument("--conformance", action="store_true", help="also the node cases of the onnx package")
    parser.add_argument("--inspect", action="store_true", help="run all of inspect")
    args = parser.parse_args(argv)
    right, wrong, refused = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        networks = made(Path(folder), records=args.records, conformance=args.conformance)
        for name, path in chain(files_in(args.places), networks):
            try:
                ours = counted(path, inspect=args.inspect)
            except OnnxPruneError as error:
                refused += 1
                print(f"refused: {name}: {str(error).splitlines()[0][:160]}")
                continue
            theirs = bytes_in(path)
            right, wrong = right + (ours == theirs), wrong + (ours != theirs)
            if ours != theirs:
                print(f"differs: {name}: {ours:,} bytes are reported, {theirs:,} are in the file")
    print(f"{right} files counted right, {wrong} wrong; {refused} refused")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
