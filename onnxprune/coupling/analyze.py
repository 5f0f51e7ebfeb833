"""The coupling of a normalized model: which positions of which tensors live and die together."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import bodies, dims, silence
from onnxprune.coupling import rules as _rules  # noqa: F401  # pyright: ignore[reportUnusedImport]  (fills the table)
from onnxprune.coupling.dims import Axis, Dim, Reason, length
from onnxprune.coupling.layers import layer_of
from onnxprune.coupling.node import Axes, Length, NodeAxes, OpaqueError, Range, Role
from onnxprune.coupling.registry import RULES
from onnxprune.errors import CouplingError
from onnxprune.graph import bodies as graph_bodies
from onnxprune.graph import half, probes, shapes, states

Contraction = tuple[ir.Node, Axis, tuple[int, ...]]  # a node, the axis it sums over, the inputs that have it


@dataclass(frozen=True)
class Member:
    """A place where a Dim stands: `axis` of `initializer`, which is input number `input` of `node`."""

    initializer: str
    node: str
    input: int
    axis: int
    role: Role


@dataclass(frozen=True)
class Coupling:
    """The leaf Dims of a model, where they stand, and what surgery has to repair when they shrink."""

    model: ir.Model
    dims: tuple[Dim, ...]  # those that stand in initializers, named, each with its members
    axes: dict[str, tuple[Axis, ...]]  # value name -> axes
    members: dict[Dim, tuple[Member, ...]]
    lengths: tuple[Length, ...]  # numbers that are lengths of axes
    lifts: tuple[tuple[str, int, int], ...]  # node, input, axis that the node sees at full size
    local: frozenset[str]  # nodes that compute statistics over, or contract, reduced Dims
    pins: tuple[tuple[str, str, float], ...]  # node, attribute, value of a default that depends on a length
    sizes_read: tuple[tuple[str, int, Axis], ...]  # Shape node, entry, axis
    ranges: tuple[Range, ...]  # constant indices to be numbered anew
    shapes: shapes.Shapes

    def of(self, model: ir.Model) -> "Coupling":
        """The same of `model`, a copy of the analysed one with other weights or biases."""
        return replace(self, model=model)

    @property
    def free(self) -> tuple[Dim, ...]:
        """Dims from which positions can be removed."""
        return tuple(dim for dim in self.dims if dim.frozen is None)

    @property
    def exact(self) -> tuple[Dim, ...]:
        """Free Dims whose removal equals silencing, to the last bit of arithmetic."""
        return tuple(dim for dim in self.free if dim.reduced is None)

    @property
    def residual(self) -> frozenset[Dim]:
        """Dims along which computed values are added to one another: the widths of residual streams."""
        found: set[Dim] = set()
        for node in self.model.graph.all_nodes():
            if node.op_type in ("Add", "Sum") and sum(_computed(value) for value in node.inputs) > 1:
                axes = [self.axes.get(value.name or "", ()) for value in (*node.inputs, *node.outputs) if value]
                first, *rest = (set(dims.all_leaves(some)) for some in axes)
                found |= first.intersection(*rest)
        return frozenset(found)

    def stands(self, dim: Dim, values: Iterable[ir.Value]) -> bool:
        """Whether an axis of one of `values` has positions of `dim`."""
        axes = (axis for value in values for axis in self.axes.get(value.name or "", ()))
        return any(leaf is dim for axis in axes for leaf in dims.leaves(axis))

    def sees(self, body: ir.Graph) -> bool:
        """Whether what stands in `body` was analysed; else all that it reads is frozen."""
        made = (value for node in body for value in node.outputs if value.name)
        return all(value.name in self.axes or bodies.is_sequence(value) for value in made)

    def dim(self, name: str) -> Dim:
        """The Dim called `name`. Raises: CouplingError when there is none."""
        found = self._names.get(name)
        if found is None:
            raise CouplingError(f"the model has no dimension '{name}'; 'onnxprune inspect' lists them")
        return found

    @property
    def _names(self) -> dict[str, Dim]:
        return {dim.name: dim for dim in self.dims}

    def matching(self, patterns: Sequence[str]) -> set[Dim]:
        """Dims of which the name, a node or an initializer that produces them matches a glob.

        Names may hold what globs are made of: where one is exactly what was given, the others do not match.
        """
        found: set[Dim] = set()
        for pattern in patterns:
            exact = {dim for dim in self.dims if pattern in _names(dim, self.members[dim])}
            found |= exact or {dim for dim in self.dims if _matches(dim, self.members[dim], pattern)}
        return found


def _computed(value: ir.Value | None) -> bool:
    """Whether `value` depends on the model's inputs by more than a constant."""
    return value is not None and value.const_value is None and value.producer() is not None


def _names(dim: Dim, members: Iterable[Member]) -> list[str]:
    return [dim.name, *(name for m in members if m.role == "produces" for name in (m.node, m.initializer))]


def _matches(dim: Dim, members: Iterable[Member], pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in _names(dim, members))


# Inputs that are settings rather than data: their own positions never go.
SETTINGS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Resize", "Pad"), (1, 2, 3)),
    **dict.fromkeys(("Dropout", "Clip", "OneHot"), (1, 2)),
    **dict.fromkeys("Upsample Reshape Expand Tile TopK Split Unsqueeze Squeeze CumSum Trilu".split(), (1,)),
    **dict.fromkeys("ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2".split(), (1,)),
    "Slice": (1, 2, 3, 4),
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
}


RAISED = "the rule does not apply"


class UnknownShapeError(Exception):
    """A value whose rank is not known: its consumers become opaque."""


@dataclass
class Analysis:
    """The walk over the graph, from inputs to outputs; rules write into it through `NodeAxes`."""

    model: ir.Model
    shapes: shapes.Shapes
    axes: dict[ir.Value, Axes] = field(default_factory=dict[ir.Value, Axes])
    elements: dict[ir.Value, list[Axes]] = field(default_factory=dict[ir.Value, list[Axes]])  # of sequences, by tensor
    roles: dict[tuple[str, int, int], Role] = field(default_factory=dict[tuple[str, int, int], Role])
    lengths: list[Length] = field(default_factory=list[Length])
    lifts: set[tuple[str, int, int]] = field(default_factory=set[tuple[str, int, int]])
    local: set[str] = field(default_factory=set[str])
    pins: list[tuple[str, str, float]] = field(default_factory=list[tuple[str, str, float]])
    sizes_read: list[tuple[str, int, Axis]] = field(default_factory=list[tuple[str, int, Axis]])
    ranges: list[Range] = field(default_factory=list[Range])
    read: set[ir.Value] = field(default_factory=set[ir.Value])  # values read as numbers: shapes, axes, indices
    weights: set[ir.Value] = field(default_factory=set[ir.Value])  # of weighted layers
    steps: bodies.Steps = field(default_factory=bodies.Steps)
    contractions: list[Contraction] = field(default_factory=list[Contraction])

    def opset(self, domain: str) -> int:
        """The opset of `domain`, that of ONNX where the model does not import it."""
        return self.model.opset_imports.get(domain, self.model.opset_imports.get("", 1))

    def axes_of(self, value: ir.Value) -> Axes:
        """The axes of `value`; an initializer that is met for the first time has new ones.

        Raises: UnknownShapeError for a computed value whose node no rule has seen.
        """
        if value not in self.axes:
            if not value.is_initializer() or value.const_value is None:
                raise UnknownShapeError(value.name)
            sizes = value.const_value.shape.numpy()
            self.axes[value] = [dims.fresh(size, f"{value.name}:{k}") for k, size in enumerate(sizes)]
        return self.axes[value]

    def sizes_of(self, value: ir.Value) -> tuple[int, ...] | None:
        """The sizes of `value` as they were observed, None where they were not."""
        return self.shapes.sizes.get(value.name or "")

    def changes(self, value: ir.Value, position: int) -> bool:
        """Whether the size of that axis of `value` differs between the probes."""
        flags = self.shapes.dynamic.get(value.name or "")
        return bool(flags and flags[position])

    def numbers_of(self, value: ir.Value | None, *, again: bool = False) -> np.ndarray | None:
        """The contents of a small integer value at the first probe, or again at the second one."""
        array = graph.constant(value)
        if array is not None or value is None:
            return array
        if value in self.steps.numbers:
            return None
        first = self.shapes.contents.get(value.name or "")
        return self.shapes.again.get(value.name or "", first) if again else first

    def mark_dynamic(self, axis: Axis) -> None:
        """Notes that the length of `axis` differs from run to run."""
        for dim in dims.leaves(axis):
            dim.dynamic = True

    def contract(self, node: ir.Node, axis: Axis, inputs: tuple[int, ...] = (0,)) -> None:
        """Notes that `node` sums over `axis`: exact only where one of `inputs` is zero at silenced positions."""
        self.contractions.append((node, axis, inputs))

    def set_axes(self, node: ir.Node, value: ir.Value, axes: Axes) -> None:
        """Sets what a rule gives for an output.

        Raises: CouplingError where its lengths are not those that were observed: the rule is wrong then.
        """
        sizes, given = self.sizes_of(value), tuple(map(length, axes))
        if sizes is not None and given != sizes:
            raise CouplingError(
                f"{node.op_type} '{node.name}': its rule gives sizes {given} where {sizes} were observed"
            )
        self.axes[value] = axes

    # The walk ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Walks over the graph: inputs stay whole, each node's rule is called, outputs stay whole."""
        for value in self.model.graph.inputs:
            why = Reason(f"graph input '{value.name}'")
            sizes = self.sizes_of(value) or ()
            symbolic = [not isinstance(size, int) for size in probes.symbolic_shape(value)]
            self.axes[value] = [
                dims.fixed(size, why, dynamic=dynamic, name=f"{value.name}:{k}")
                for k, (size, dynamic) in enumerate(zip(sizes, symbolic, strict=True))
            ]
        for node in self.model.graph:
            self.visit(node)
        for value in self.model.graph.outputs:
            self.freeze(value, Reason(f"graph output '{value.name}'"))
        for value in self.read & self.axes.keys():
            self.freeze(value, Reason("read as numbers"))
        for value in self.model.graph.initializers.values():
            self._freeze_infinite(value)
        for number in self.lengths:
            if dims.is_dynamic(number.axis) and len(dims.resolve(number.axis)) > 1:
                dims.freeze(number.axis, Reason("a size that changes from run to run is part of a sum", number.node))

    def visit(self, node: ir.Node) -> None:
        """Relates the axes of what `node` reads and gives, as its rule says; what has none is frozen."""
        if graph_bodies.of(node):
            self._visit_bodies(node)
            return
        rule = RULES.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
        if rule is None:
            domain = f"{node.domain}." if node.domain else ""
            self.opaque(node, f"no coupling rule for operator {domain}{node.op_type}")
            return
        for index in SETTINGS.get(node.op_type, ()):
            if index < len(node.inputs) and node.inputs[index] in self.axes:
                self.freeze(node.inputs[index], Reason(f"{node.op_type}: read as numbers", node.name or ""))
        try:
            rule(NodeAxes(self, node))
            self._note_weights(node)
        except UnknownShapeError as unknown:
            self.opaque(node, f"the shape of '{unknown}' is not known")
        except OpaqueError as known:
            self.opaque(node, str(known))
        except (CouplingError, AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            # A rule that meets what it was not written for must not end the run; the reason names it.
            self.opaque(node, f"{RAISED}: {type(error).__name__} {error}")

    def _note_weights(self, node: ir.Node) -> None:
        """The roles of a weighted layer's weight and bias, wherever its rule gave them none."""
        layer = layer_of(node)
        if layer is None:
            return
        self.weights.add(layer.weight)
        rank = len(self.axes_of(layer.weight))
        places: dict[tuple[int, int], Role] = {
            (layer.weights.weight, layer.outputs(rank)): "produces",
            (layer.weights.weight, layer.inputs(rank)): "consumes",
        }
        if layer.bias is not None and layer.weights.bias is not None:
            places[layer.weights.bias, len(self.axes_of(layer.bias)) - 1] = "produces"
        for (index, axis), role in places.items():
            self.roles.setdefault((node.name or "", index, axis), role)

    def _visit_bodies(self, node: ir.Node) -> None:
        """Couples what the bodies of `node` hold; where that fails all that they read and give is frozen."""
        try:
            bodies.visit(self, node)
        except (bodies.UnseenBodyError, UnknownShapeError) as unseen:
            why = str(unseen)
        except (CouplingError, AssertionError, IndexError, KeyError, TypeError, ValueError) as error:
            why = f"{RAISED}: {type(error).__name__} {error}"
        else:
            return
        self._freeze_captured(node, graph_bodies.of(node))
        self.opaque(node, why)

    def opaque(self, node: ir.Node, text: str) -> None:
        """Freezes all that `node` reads and gives."""
        why = Reason(f"{node.op_type}: {text}", node.name or "")
        for value in node.inputs:
            if value is not None:
                self.freeze(value, why)
        for value in node.outputs:
            sizes = self.sizes_of(value)
            if sizes is not None:
                self.axes[value] = [
                    dims.fixed(size, why, dynamic=self.changes(value, k)) for k, size in enumerate(sizes)
                ]

    def freeze(self, value: ir.Value | None, why: Reason) -> None:
        """Keeps all axes of `value`, as far as they are known."""
        if value is None:
            return
        for axis in (axis for element in self.elements.get(value, ()) for axis in element):
            dims.freeze(axis, why)
        try:
            for axis in self.axes_of(value):
                dims.freeze(axis, why)
        except UnknownShapeError:
            return

    def _freeze_captured(self, node: ir.Node, inside: Sequence[ir.Graph]) -> None:
        """Keeps all axes of outer values that the bodies of `node` read."""
        why = Reason(f"{node.op_type}: used inside its body", node.name or "")
        for body in inside:
            for value in body.inputs:
                if value in self.axes:
                    self.freeze(value, why)
            for inner in body.all_nodes():
                for value in (*inner.inputs, *inner.outputs):
                    known = value in self.axes or value in self.elements
                    if value is not None and (known or value.name in self.model.graph.initializers):
                        self.freeze(value, why)
            for value in body.outputs:
                if value in self.axes:
                    self.freeze(value, why)

    def _freeze_infinite(self, value: ir.Value) -> None:
        """A table that masks by infinity, alike for all units, is meant so, but gives these no score."""
        tensor = value.const_value
        if value not in self.axes or tensor is None or isinstance(tensor, ir.ExternalTensor):
            return
        if value in self.weights:  # nothing is multiplied by infinity, and looking at every weight takes its time
            return
        array = tensor.numpy() if tensor.dtype.is_floating_point() else None
        if array is None or not half.is_floating(array.dtype):
            return
        with np.errstate(all="ignore"):
            finite = np.isfinite(array.sum())  # one quick look at most weights, which hold no infinity
        if finite or not np.isinf(array).any():
            return
        infinite = np.isinf(array)
        for position, axis in enumerate(self.axes[value]):
            if (infinite == infinite.take([0], position)).all():
                dims.freeze(axis, Reason(f"'{value.name}' holds infinity at all of its positions"))


def analyze(model: ir.Model, observed: shapes.Shapes | None = None) -> Coupling:
    """The coupling of a normalized `model`.

    observed: shapes by `shapes.observe`, made here when absent.
    """
    analysis = Analysis(model, observed or shapes.observe(model))
    analysis.run()
    silence.mark_reduced(analysis)
    members = _members(analysis)
    for dim in dims.all_leaves(axis for axes in analysis.axes.values() for axis in axes):
        if dim.frozen is None and dim not in members:
            dim.frozen = Reason("stands in no initializer")
    _name(members)
    axes = {value.name or "": tuple(map(dims.resolve, axes)) for value, axes in analysis.axes.items()}
    return Coupling(
        model,
        tuple(members),
        axes,
        members,
        tuple(analysis.lengths),
        tuple(sorted(analysis.lifts)),
        frozenset(analysis.local),
        tuple(analysis.pins),
        tuple(analysis.sizes_read),
        tuple(analysis.ranges),
        analysis.shapes,
    )


def _members(analysis: Analysis) -> dict[Dim, tuple[Member, ...]]:
    """For each Dim the places in initializers where it stands, with what it does there."""
    found: dict[Dim, list[Member]] = {}
    for node in graph_bodies.all_nodes(analysis.model.graph):
        if states.side(node):
            continue  # flags of gates are no weights: what stands in them alone is a cache's length
        for index, value in enumerate(node.inputs):
            if value is None or not value.is_initializer() or value not in analysis.axes:
                continue
            for position, axis in enumerate(analysis.axes[value]):
                role = analysis.roles.get((node.name or "", index, position), "follows")
                member = Member(value.name or "", node.name or "", index, position, role)
                for dim in (leaf for leaf in dict.fromkeys(dims.leaves(axis)) if leaf.size):  # nothing goes of nothing
                    found.setdefault(dim, []).append(member)
    return {dim: tuple(members) for dim, members in found.items()}


ANONYMOUS = re.compile(r"^(onnx::|val_|_?\d+$|.*::|.*Constant|const|t_?\d)")


def _name(members: dict[Dim, tuple[Member, ...]]) -> None:
    """Names every Dim after the first initializer or node that produces it; names are unique, plain for free ones."""
    counts: dict[str, int] = {}
    order = {"produces": 0, "scales": 1, "follows": 2, "consumes": 3}
    for dim, places in sorted(members.items(), key=lambda item: item[0].frozen is not None):
        first = min(places, key=lambda member: order[member.role])
        stem = re.sub(r"[._/]?(weight|kernel|bias)(@.*)?$", "", first.initializer)
        if ANONYMOUS.match(first.initializer) or not stem:
            stem = re.sub(r"/[A-Z]\w*$", "", first.node).strip("/") or first.node
        counts[stem] = counts.get(stem, 0) + 1
        dim.name = stem if counts[stem] == 1 else f"{stem}#{counts[stem]}"
