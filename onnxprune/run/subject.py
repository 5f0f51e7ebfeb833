"""The model at hand: loaded, normalized, proven to be still the same, analysed, with its samples."""

import contextlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph
from onnxprune.coupling import Coupling, Dim, analyze
from onnxprune.data import Completed, Samples, batches, fixed_batch, input_infos, load_samples, split
from onnxprune.errors import DataError, GraphError, UsageError
from onnxprune.graph import defaults, extras, sessions, shapes
from onnxprune.graph.inputs import ONE_BY_ONE, Feeds
from onnxprune.options import Options
from onnxprune.outputs import kinds, metrics
from onnxprune.outputs.describe import describe
from onnxprune.plan import cost
from onnxprune.plan.cost import Cost
from onnxprune.plan.plan import BlockPlan, SlicePlan
from onnxprune.proof import comparison, normal_form
from onnxprune.recover.levels import Given
from onnxprune.report import build
from onnxprune.run import vocabulary
from onnxprune.run.checks import check_finite
from onnxprune.run.settings import Widths
from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
# Of --data, when there is no --val: a fifth is measured on, from so many on that these do only a tenth.
HELD_SHARE, HELD_ENOUGH, HELD_LEAST_SHARE = 0.2, 500, 0.1
SEARCHED_ENOUGH = 2000  # where --max-drop chooses on one half of them and promises on the other
FEWEST_PROMISED = 100  # samples of each part, where --max-drop chooses on one and promises on the other
PROOF_SAMPLES = 32  # real inputs on which cut and mask are compared


@dataclass(frozen=True)
class Shortened:
    """The model before `blocks` of it were removed as a whole, see depth.py.

    model: as it came, without them. full: the whole with all that was learned, whose values recovery fits to.
    coupling, cost: of the whole.
    """

    blocks: tuple[BlockPlan, ...]
    silenced: tuple[SlicePlan, ...]
    model: ir.Model
    full: ir.Model
    coupling: Coupling
    cost: Cost


@dataclass(frozen=True)
class Subject:
    """The model at hand, normalized and analysed, with its samples."""

    path: Path
    model: ir.Model
    sha256: str
    coupling: Coupling
    cost: Cost
    tune: Samples | None
    held: Samples | None
    feeds: list[Feeds]  # on which the proof runs
    outputs: kinds.Outputs = field(default_factory=kinds.Outputs)
    accuracy: metrics.Accuracy | None = None  # of the original on `held`, where it was measured before
    tokens: vocabulary.Vocabulary | None = None  # of which the vocabulary was cut to a part
    searched: Samples | None = None  # on which --max-drop chooses: none of `held`, on which it promises
    short: Shortened | None = None  # where blocks went as a whole: coupling and cost are then of what is left

    @property
    def base(self) -> ir.Model:
        """The model that is cut, as it came: without the blocks that went as a whole."""
        return self.model if self.short is None else self.short.model

    @property
    def whole_cost(self) -> Cost:
        """The cost of the original, with all of its blocks."""
        return self.cost if self.short is None else self.short.cost

    @property
    def normalized(self) -> Coupling:
        """The coupling of the model as it came, which plans are about, whatever was learned or added since."""
        return self.coupling.of(self.base)

    @property
    def given(self) -> Given:
        """The original and the samples that recovery works with."""
        dense = None if self.short is None else self.short.full
        gone = () if self.short is None else tuple(block.name for block in self.short.blocks)
        return Given(self.model, self.tune, self.cost.totals()["macs"], self.outputs, dense, gone)


def prepare(path: Path, options: Options, clock: Clock, tokens: tuple[int, ...] = ()) -> Subject:
    """Loads, normalizes and analyses the model, and loads its samples.

    tokens: ids of the vocabulary that a plan keeps, instead of those that --keep-tokens names.
    """
    with clock("load"):
        loaded = given_model = graph.load(path)
    part = None
    if tokens or options.keep_tokens is not None:
        with clock("keep tokens"):
            ids = tokens or vocabulary.read_ids(Path(options.keep_tokens or ""))
            part = vocabulary.restricted(loaded, ids, options.seed)
            loaded = part.model
    with clock("normalize"):
        model = graph.normalize(loaded)
    with clock("data"):
        tune, held = load_data(model, options)
        searched, held = parted(held, options)
    with clock("observe"):
        given = sample_shapes(model, tune or held)
        model, observed = normal_form.observed_form(loaded, model, given)
        if given is not None and observed.probe != given and not _runs_on_samples(model, tune or held, observed):
            for each in (loaded, model):
                extras.put(each, replace(extras.of(each), only_batch=1))
            sessions.hold_file(path, 1)
            given = sample_shapes(model, tune or held)
            observed = shapes.observe(model, given)
    with clock("verify the normal form"):
        model, observed = normal_form.proven(loaded, model, observed, given, options.seed)
        sha256 = part.sha256 if part is not None else graph.digest(model)
    with clock("analyze"):
        coupling = analyze(model, observed)
        check_finite(coupling)
        costs = cost.of(coupling, given_model)
        if part is not None:
            costs = replace(costs, whole={**costs.whole, "macs": part.macs})
    with clock("outputs"):
        outputs = describe(model, tune or held, sizes=observed.sizes, overrides=options.kinds)
        for entry in outputs.entries:
            LOG.info("  %s", entry)
    feeds = [*real_feeds(model, tune or held), *comparison.random_feeds(model, observed, options.seed)]
    return Subject(
        path,
        model,
        sha256,
        coupling,
        costs,
        tune,
        held,
        feeds,
        outputs,
        searched=searched,
        tokens=part and part.vocabulary,
    )


def load_data(model: ir.Model, options: Options) -> tuple[Samples | None, Samples | None]:
    """(samples to score and tune on, samples to measure on that tuning never sees)."""
    shared = defaults.arrays(model)
    inputs = [info for info in input_infos(model) if info.name not in shared]
    common = {**options.preprocess, "seed": options.seed, "classes": _classes(model), "labels": options.labels}
    common["any_labels"] = options.metric is not None or options.loss is not None

    def read(spec: Any) -> Samples | None:
        if spec is None:
            return None
        samples = load_samples(spec, inputs, **common, model=model)
        return Completed(samples, shared, samples.labels, samples.steps) if shared else samples

    if options.data is None:
        return None, read(options.val)
    if options.val is not None:
        return read(options.data), read(options.val)
    if isinstance(options.data, str) and options.data == "digits":
        return read("digits"), read("digits:test")
    samples = read(options.data)
    assert samples is not None
    if len(samples) < 2:
        return samples, None
    return split(
        samples,
        held_share(len(samples), SEARCHED_ENOUGH if options.max_drop is not None else HELD_ENOUGH),
        options.seed,
    )


def held_share(count: int, enough: int = HELD_ENOUGH) -> float:
    """The share of `count` samples that accuracy is measured on, where no others were given."""
    return min(HELD_SHARE, max(HELD_LEAST_SHARE, enough / count))


def parted(held: Samples | None, options: Options) -> tuple[Samples | None, Samples | None]:
    """(samples on which a search for --max-drop chooses, the others, on which the result is measured).

    The first is None where nothing is searched for, or where there are too few samples to make two parts of them.
    """
    if held is None or options.max_drop is None or len(held) < 2 * FEWEST_PROMISED:
        return None, held
    return split(held, 0.5, options.seed)


def _classes(model: ir.Model) -> int | None:
    shape = model.graph.outputs[0].shape if model.graph.outputs else None
    last = shape[-1] if shape is not None and len(shape) == 2 else None
    return last if isinstance(last, int) and last > 1 else None


def sample_shapes(model: ir.Model, samples: Samples | None) -> dict[str, tuple[int, ...]] | None:
    """Input shapes of a batch of three samples, or of the model's fixed batch."""
    if samples is None or not len(samples):
        return None
    count = fixed_batch(model) or 3
    return {name: array.shape for name, array in samples.batch(np.arange(count) % len(samples)).items()}


def _runs_on_samples(model: ir.Model, samples: Samples | None, observed: shapes.Shapes) -> bool:
    """Whether the model runs on a batch of samples; False where on one alone. Raises: DataError where on neither."""
    session = sessions.open_session(model, threads=sessions.few_threads())
    batch = real_feeds(model, samples)[0]
    try:
        sessions.run(session, batch)
        return True
    except GraphError as error:
        failed = error
    if samples is not None and fixed_batch(model) is None:
        with contextlib.suppress(GraphError):
            sessions.run(session, samples.batch(np.arange(1)))
            LOG.info("  %s", ONE_BY_ONE)
            return False
    ours, theirs = (
        ", ".join(f"{name} {shape}" for name, shape in sizes.items())
        for sizes in ({name: array.shape for name, array in batch.items()}, observed.probe)
    )
    raise DataError(
        f"the model runs neither on a batch of the samples, {ours}, nor on one of them, though it does at {theirs}; "
        "give samples of sizes that it takes"
    ) from failed


def real_feeds(model: ir.Model, samples: Samples | None) -> list[Feeds]:
    """The first samples, in batches that the model takes."""
    if samples is None:
        return []
    fixed = fixed_batch(model)
    few = samples.subset(np.arange(min(len(samples), PROOF_SAMPLES)))
    return [samples.batch(block) for block in batches(few, fixed or PROOF_SAMPLES, fixed=fixed)]


def scored_dims(coupling: Coupling, widths: Widths) -> tuple[Dim, ...]:
    """The Dims that these widths leave to be pruned. Raises: UsageError when there are none."""
    for name, patterns in (("include", widths.include), ("exclude", widths.exclude)):
        for pattern in patterns:
            if not coupling.matching([pattern]):
                raise UsageError(
                    f"--{name} '{pattern}' matches no node, initializer or dimension; 'onnxprune inspect' lists them"
                )
    found = set(coupling.exact if widths.exact_only else coupling.free)
    if widths.inner_only:
        found -= coupling.residual
    if widths.include:
        found &= coupling.matching(widths.include)
    found -= coupling.matching(widths.exclude)
    if not found:
        why = "none is chosen by --include, --exclude, --exact-only or --inner-only"
        if not coupling.free:
            why = "; ".join(build.why_nothing(coupling))
        raise UsageError(
            f"nothing can be pruned: {len(coupling.free)} of {len(coupling.dims)} dimensions are free: {why}; "
            "see 'onnxprune inspect'"
        )
    return tuple(dim for dim in coupling.dims if dim in found)
