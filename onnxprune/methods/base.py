"""Methods: each says what it needs, and gives scores. Budgets are not its business.

A method is a function of a `Context` registered with `@method`. It returns an `Outcome`: one score per unit of
every free Dim, larger = keep; training methods also return the model with the weights they learned, sparse ones
the positions that are zero.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, methods
from onnxprune.coupling import Coupling, Dim, Keep, Member, unit_positions
from onnxprune.data import Samples, fixed_batch
from onnxprune.errors import UsageError
from onnxprune.outputs.describe import describe
from onnxprune.outputs.kinds import Outputs
from onnxprune.plan.cost import Cost, Kind
from onnxprune.system.memory import retrying


@dataclass(frozen=True)
class Needs:
    """What a method needs: samples, their labels, gradients through the bridge, or a training run."""

    data: bool = False
    labels: bool = False
    gradients: bool = False
    training: bool = False


@dataclass(frozen=True)
class Context:
    """The facts and services that a method is given."""

    coupling: Coupling
    cost: Cost
    dims: tuple[Dim, ...]  # those to be scored: free, and chosen by --include, --exclude, --exact-only, --inner-only
    samples: Samples | None = None
    seed: int = 0
    device: str = "cpu"
    target: float | None = None  # share of MACs or parameters that may remain, for methods that train towards it
    options: Mapping[str, Any] = field(default_factory=dict)
    progress: bool = False  # progress bars on stderr
    recover: str = "none"  # what follows the cut, see Options.level
    align: int = 1  # kept sizes that a method decides on are multiples of this, as select.align does
    shares: Mapping[Kind, float] = field(default_factory=dict)  # of macs and params, as they were asked for
    described: Outputs | None = None  # what the outputs are, where that is known already
    decides: bool = True  # whether the method says how much goes; not where a target or a search does

    @cached_property
    def outputs(self) -> Outputs:
        """The description of the model's outputs."""
        if self.described is not None:
            return self.described
        return describe(self.model, self.samples, sizes=self.coupling.shapes.sizes)

    @property
    def model(self) -> ir.Model:
        """The analysed model."""
        return self.coupling.model

    def with_weights(self, model: ir.Model) -> "Context":
        """The same for `model`, which has other weights."""
        return replace(self, coupling=self.coupling.of(model))


@dataclass(frozen=True)
class Outcome:
    """The result of a method.

    scores: Dim -> (size,) floats, larger = keep.
    comparable: whether a score means the same in every Dim; otherwise they are compared after normalization.
    losses: whether a score is what the loss loses when that unit alone goes; see `ranking`.
    limits: largest share of a Dim that may be removed. keep: the method's own decision (size,) booleans, for
    methods that need no target. model: the normalized model with other weights. zeros: initializer -> positions
    that are zero, for sparse methods. notes: lines for the report.
    """

    scores: Mapping[Dim, np.ndarray]
    comparable: bool = False
    losses: bool = False
    limits: Mapping[Dim, float] = field(default_factory=dict)
    keep: Keep | None = None
    model: ir.Model | None = None
    zeros: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prices: Mapping[Dim, float] = field(default_factory=dict)  # factors of whole Dims, from the allocation

    @property
    def ranking(self) -> Mapping[Dim, np.ndarray]:
        """The scores as selection compares them: losses as what each unit adds to those that went before it."""
        return {dim: together(values) for dim, values in self.scores.items()} if self.losses else self.scores


def together(losses: np.ndarray) -> np.ndarray:
    """Losses (size,) of units that go alone -> what each adds when all cheaper ones of its Dim have gone.

    A loss is the square of a change, and changes of one layer's units add up: together they cost up to
    (sum of sqrt(loss))^2, not the sum. Taken one by one, cheap units of one Dim would go until it collapses. [ours]
    """
    losses = np.maximum(np.asarray(losses, np.float64), 0.0)
    order = np.argsort(losses, kind="stable")
    changes = np.sqrt(losses[order])
    added = np.empty_like(losses)
    added[order] = changes * (2 * np.cumsum(changes) - changes)
    return added


Run = Callable[[Context], Outcome]


@dataclass(frozen=True)
class Method:
    """A registered method."""

    name: str
    summary: str
    needs: Needs
    run: Run
    options: type | None = None  # a dataclass, whose fields are the names of --option; None where they are not known


@dataclass(frozen=True)
class NoOptions:
    """The options of a method that has none."""


METHODS: dict[str, Method] = {}


def method(
    name: str, *, needs: Needs = Needs(), summary: str = "", options: type | None = None
) -> Callable[[Run], Run]:
    """Registers the decorated function `context -> Outcome` as method `name`.

    A function that returns a mapping Dim -> scores is accepted as well. options: a dataclass of what --option may
    name, with defaults; others are refused then.
    """

    def register(run: Run) -> Run:
        text = summary or (run.__doc__ or name).strip().splitlines()[0]
        METHODS[name] = Method(name, text, needs, run, options)
        return run

    return register


def told(method: Method) -> tuple[str, str]:
    """(what a method needs, its summary), as lists of methods show them."""
    needs = [entry.name for entry in fields(method.needs) if getattr(method.needs, entry.name)] or ["weights"]
    return ", ".join(needs), method.summary


def get(name: str) -> Method:
    """The method called `name`, built in or registered by the user. Raises: UsageError listing those there are."""
    methods.load(name)
    if name not in METHODS:
        known = ", ".join(sorted({*METHODS, *methods.MODULES}))
        raise UsageError(f"--method {name}: there is no such method; choose one of {known}")
    return METHODS[name]


def run(chosen: Method, context: Context) -> Outcome:
    """Runs a method and checks what it returns.

    Raises: UsageError when it needs samples or labels that are absent, or its scores have the wrong shape.
    """
    samples = context.samples
    if chosen.needs.data and samples is None:
        raise UsageError(
            f"--method {chosen.name} needs samples: give --data, "
            "or choose a method that looks at weights only (l1, l2, fpgm)"
        )
    if chosen.needs.labels and (samples is None or samples.labels is None):
        raise UsageError(f"--method {chosen.name} needs labelled samples: give --data with labels")
    fixed = fixed_batch(context.model) is not None
    outcome = retrying(lambda: chosen.run(context), f"--method {chosen.name}", fixed=fixed)
    if isinstance(outcome, Mapping):
        outcome = Outcome(outcome)
    for dim in context.dims:
        scores = outcome.scores.get(dim)
        shape = None if scores is None else np.shape(scores)
        if scores is None or shape != (dim.size,):
            raise UsageError(f"method {chosen.name} gave scores of shape {shape} for '{dim.name}' of size {dim.size}")
        if not np.isfinite(scores).all():
            raise UsageError(
                f"method {chosen.name} gave scores of '{dim.name}' that are not finite: "
                "the weights or samples hold NaN or infinity"
            )
    return outcome


# Reading weights by unit ------------------------------------------------------------------------------------------


def slices(context: Context, dim: Dim, *roles: str) -> Iterator[tuple[Member, np.ndarray, np.ndarray]]:
    """(member, array, unit of each position on member.axis or -1) for every place where `dim` stands in a role.

    The array is the initializer; positions (length of the axis,) tell which unit of `dim` each belongs to.
    """
    initializers = context.model.graph.initializers
    for member, positions in places(context, dim, *roles):
        yield member, graph.array_of(initializers[member.initializer]), positions


def places(context: Context, dim: Dim, *roles: str) -> Iterator[tuple[Member, np.ndarray]]:
    """(member, unit of each position) for every place where `dim` stands in a role: `slices` without the arrays."""
    for member in context.coupling.members[dim]:
        if member.role in roles:
            axis = context.coupling.axes[member.initializer][member.axis]
            yield member, unit_positions(axis, dim)


def sum_by_unit(array: np.ndarray, axis: int, units: np.ndarray, size: int) -> np.ndarray:
    """`array` summed over everything but the unit: -> (size,); positions with unit -1 are left out."""
    totals = array.sum(axis=tuple(k for k in range(array.ndim) if k != axis), dtype=np.float64)
    inside = units >= 0
    return np.bincount(units[inside], weights=totals[inside], minlength=size)
