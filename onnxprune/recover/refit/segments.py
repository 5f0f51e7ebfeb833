"""A model run piece by piece in onnxruntime: every node runs once, and only the values that later pieces read are kept.

That makes it cheap to see what a layer reads after all layers before it were changed: the cost of the whole walk is
one forward pass. One front of the graph over all batches has to be kept; what does not fit a small part of memory is
in files, of which the system keeps in memory what it has room for.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.errors import GraphError
from onnxprune.graph import bodies, half, sessions, stored
from onnxprune.graph.tensors import tensor_of
from onnxprune.system.atomic_files import scratch
from onnxprune.system.memory import VALUES_BYTES, may_hold


class Walk:
    """The walk of one model over batches of feeds; `targets` are all values that will be asked for, each as often."""

    def __init__(self, model: ir.Model, feeds: Iterable[Mapping[str, np.ndarray]], targets: Iterable[str]) -> None:
        self.model, self.kinds = model, sessions.kinds_in_single(model)
        self.values = {value.name: value for node in model.graph for value in node.outputs if value.name}
        self.done: set[ir.Node] = set()
        self.asked = Counter(targets)
        self.needed = self._ancestors(self.asked)
        self.shelf = _Shelf(may_hold(VALUES_BYTES))
        self.batches = 0
        for index, batch in enumerate(feeds):
            self.batches += 1
            for name, array in batch.items():
                self.shelf.put(index, name, array)

    def to(self, names: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
        """The values `names`, batch by batch; the walk then stands behind them. All batches have to be taken."""
        names = list(names)
        self.asked.subtract(names)
        names = list(dict.fromkeys(names))
        missing = [name for name in names if name not in self.shelf.names]
        nodes = self._ancestors(missing) - self.done
        piece = [node for node in self.model.graph if node in nodes]
        after = self.done | nodes
        live = self._live(after)
        session = self._session(piece, live | set(missing)) if piece else None
        for index in range(self.batches):
            new = self._run(session, index)
            result = {name: new[name] if name in new else self.shelf.get(index, name) for name in names}
            for name in live & new.keys():
                if not isinstance(new[name], np.ndarray):
                    raise GraphError(f"'{name}' is no tensor; what reads it is not reconstructed")
                self.shelf.put(index, name, new[name])
            self.shelf.keep_only(index, live)
            yield result
        self.done = after
        self.shelf.names &= live

    def change(self, name: str, how: Callable[[int, np.ndarray], np.ndarray]) -> None:
        """Makes of a held value what it would be now that a layer before it changed; how: of a batch and its array."""
        for index in range(self.batches):
            self.shelf.replace(index, name, how(index, self.shelf.get(index, name)))

    def close(self) -> None:
        """Frees all values, and removes the files of those that were on disk."""
        self.shelf.close()

    def _ancestors(self, names: Iterable[str]) -> set[ir.Node]:
        found: set[ir.Node] = set()
        pending = [self.values[name].producer() for name in names if name in self.values]
        while pending:
            node = pending.pop()
            if node is None or node in found:
                continue
            found.add(node)
            pending += [value.producer() for value in reads(node)]
        return found

    def _live(self, done: set[ir.Node]) -> set[str]:
        """Computed values and inputs that nodes not yet run will read, or that will be asked for."""
        later = (self.values[name] for name, times in self.asked.items() if times > 0 and name in self.values)
        return {
            value.name or ""
            for value in (*(value for node in self.needed - done for value in reads(node)), *later)
            if not value.is_initializer() and (value.producer() is None or value.producer() in done)
        }

    def _session(self, piece: list[ir.Node], outputs: set[str]):
        """A session of a piece of the model that gives `outputs`; None where it gives none of them."""
        made = {value.name for node in piece for value in node.outputs}
        read = {value.name or "": value for node in piece for value in reads(node)}
        inputs = [name for name, value in read.items() if name not in made and not value.is_initializer()]
        proto = onnx.ModelProto(ir_version=self.model.ir_version or 8)
        for domain, version in self.model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.graph.name = "piece"
        proto.graph.node.extend(ir.serde.serialize_node(node) for node in piece)
        weights = [value for value in read.values() if value.is_initializer()]
        large = [] if self.kinds else [value for value in weights if stored.is_stored(value)]
        proto.graph.initializer.extend(_tensor(value) for value in weights if value not in large)
        for name in inputs:
            dtype = onnx.helper.np_dtype_to_tensor_dtype(self.shelf.get(0, name).dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, None))
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(outputs & made))
        # Two models take turns here: threads that spin while they wait would take the other's cores.
        calm = {"session.intra_op.allow_spinning": "0"}
        if not proto.graph.output:
            return None
        # Fits of halves are made in single precision: onnxruntime even crashes on some pieces in half.
        whole = half.single(ir.from_proto(proto), self.kinds) if self.kinds else proto
        if large:
            whole = _with_stored(proto, large)
        return sessions.open_session(whole, session_options=calm, lean=bool(large))

    def _run(self, session, index: int) -> dict[str, np.ndarray]:
        if session is None:
            return {}
        feeds = {entry.name: np.asarray(self.shelf.get(index, entry.name)) for entry in session.get_inputs()}
        (feeds,) = half.single_feeds([feeds], self.kinds)
        return sessions.run(session, feeds)


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """The values that a node reads, those that its subgraphs capture included."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies.of(node):
        graphs = {body, *(inner.graph for inner in body.all_nodes())}
        captured = (v for inner in body.all_nodes() for v in inner.inputs if v is not None)
        yield from (value for value in captured if value.graph not in graphs)


def _with_stored(proto: onnx.ModelProto, weights: Iterable[ir.Value]) -> ir.Model:
    """The model in `proto` with weights that stay in files: onnxruntime maps them, and copies nothing."""
    named = {value.name or "": value for value in weights}
    for name, value in named.items():
        tensor = tensor_of(value)
        shape = tensor.shape.numpy()
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype, shape))
    model = ir.from_proto(proto)
    for value in [value for value in model.graph.inputs if value.name in named]:
        model.graph.inputs.remove(value)
        value.const_value = tensor_of(named[value.name or ""])
        model.graph.register_initializer(value)
    return model


def _tensor(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    if isinstance(tensor, ir.ExternalTensor):
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = value.name or ""
    return proto


class _Shelf:
    """Arrays by batch and name, in memory up to a limit, beyond it in files of a temporary folder."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit = limit_bytes
        self.arrays: dict[tuple[int, str], np.ndarray] = {}
        self.files: dict[tuple[int, str], Path] = {}
        self.names: set[str] = set()
        self.bytes = 0
        self.count = 0
        self.folder: tempfile.TemporaryDirectory | None = None

    def put(self, index: int, name: str, array: np.ndarray) -> None:
        """Keeps an array, in a file where memory for arrays is full."""
        self.names.add(name)
        key = (index, name)
        if self.bytes + array.nbytes <= self.limit or array.dtype.hasobject:
            self.arrays[key] = array
            self.bytes += array.nbytes
            return
        self.folder = self.folder or scratch()
        self.count += 1
        path = Path(self.folder.name) / f"{self.count}.npy"
        np.save(path, array)
        self.files[key] = path
        self.arrays[key] = np.load(path, mmap_mode="r")

    def get(self, index: int, name: str) -> np.ndarray:
        return self.arrays[index, name]

    def replace(self, index: int, name: str, array: np.ndarray) -> None:
        """Another array in the place of one that is kept."""
        self._drop((index, name))
        self.put(index, name, array)

    def keep_only(self, index: int, names: set[str]) -> None:
        for key in [key for key in self.arrays if key[0] == index and key[1] not in names]:
            self._drop(key)

    def _drop(self, key: tuple[int, str]) -> None:
        array, path = self.arrays.pop(key), self.files.pop(key, None)
        if path is None:
            self.bytes -= array.nbytes
        else:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        self.arrays.clear()
        if self.folder is not None:
            self.folder.cleanup()
