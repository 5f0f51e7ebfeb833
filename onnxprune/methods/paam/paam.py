"""paam: an attention network scores filters by their weights (Pruning by Active Attention Manipulation, 2210.11114).

A small attention network per layer, with query, key and value, maps the layer's filters to "analog" scores S that
multiply the feature maps. Only it is trained; the scores of all layers are learned jointly:

    L = task(f(x; W frozen, S)) + lambda sum_l omega_l mean_i S_l,i          omega_l: share of the MACs
    S = LE(c + 1/n sum_j e_ij u(F_j)),  e_ij = v tanh(Wq F_i + Wk F_j + b),  u(F) = Wv F
    LE(x) = exp(x) for x <= 0, 1 + 0.01 x above

LE is the "leaky exponential": positive, starting dense at exactly 1, with a gradient everywhere. Selection is global.
With a target: units of all layers in order of their score's mean over the run, until it is met; without one: the
highest scores, until their sum reaches `mass` of the whole or their MACs the budget, whichever prunes less.

Deviations, and why. Query, key and value as wired here, LE's formula and omega are ours: the paper's are not
public. Filters are standardized per layer with their log norm as one column more, gates end at 1.05 and stand
behind bias and norm. lambda is steered so that the weighted mean score falls along a line to the budget, where the
paper leaves its tuning open. Scores are averaged over that way: a unit that holds out longer ranks higher, and the
order no longer depends on where the way ends. Units that share a Dim share one score, the mean over its layers.
Without labels the task is distillation. `reinit` trains filters and scores in one stage from random weights, units
leave as the budget grows and may return until 60 % of the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import exp

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune import graph
from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim
from onnxprune.graph import half
from onnxprune.methods import options, reinit, training
from onnxprune.methods.base import Context, Needs, Outcome, method, slices
from onnxprune.methods.gates import Gates
from onnxprune.methods.magnitude import norms
from onnxprune.methods.paam.network import AttentionNetwork, gate
from onnxprune.methods.training import Course, Lessons, Step
from onnxprune.plan import cost
from onnxprune.plan.select import aligned

LEAST_SHARE, LEAST_UNITS = 0.05, 2
STEERING, STEP_LIMIT = 1.0, 0.1  # growth of log lambda per step: by the gap of the mean score, and at most
RAMP = (0.2, 0.6)  # of a one-stage run: where the budget begins to bite, and where the masks are fixed


@dataclass(frozen=True)
class Settings(Course):
    """budget: mean score to reach, 0 takes --target or 0.5. lr: of the attention network. lambda_score: where the
    weight of the score term starts. mass: share of the sum of scores that stays without a target. width: of queries
    and keys. reinit: one stage from random weights; weights_lr is then the rate of the filters."""

    epochs: int = 8
    lr: float = 0.03
    budget: float = 0.0
    lambda_score: float = 1.0
    mass: float = 0.95
    width: int = 32
    reinit: bool = False
    weights_lr: float = 2e-3


@method(
    "paam",
    options=Settings,
    needs=Needs(data=True, gradients=True, training=True),
    summary="an attention network scores filters (PAAM)",
)
def paam(context: Context) -> Outcome:
    """Trains the attention network; returns its scores, and the units that hold most of their sum."""
    settings = options.read(Settings, context, "paam")
    budget = settings.budget or context.target or 0.5
    options.require(0 < budget < 1, "paam", f"budget={budget:g}: give a share between 0 and 1")
    options.require(0 < settings.mass <= 1, "paam", f"mass={settings.mass:g}: give a share above 0 and up to 1")
    torch.manual_seed(context.seed)
    if settings.reinit:
        return _from_scratch(context, settings, budget)
    network = Network(context.model, trainable=()).to(context.device)
    run = Run(context, network, settings, budget)
    history = run.scores_only(Lessons(context, settings))
    return _outcome(context, settings, history, run, None)


def _from_scratch(context: Context, settings: Settings, budget: float) -> Outcome:
    working = reinit.architecture(context.model)
    network = Network(working).to(context.device)
    reinit.draw(working, network, context.seed)
    run = Run(
        context.with_weights(reinit.trained(context.model, _written(network, working))), network, settings, budget
    )
    history = run.one_stage(Lessons(context, settings, teach=False), working)
    model = reinit.trained(context.model, _written(network, working))
    silence(context, model, run.masks or {})
    return _outcome(context, settings, history, run, model)


def _written(network: Network, working: ir.Model) -> ir.Model:
    copy = graph.copy(working)
    network.write_back(copy)
    return copy


def silence(context: Context, model: ir.Model, masks: Mapping[Dim, Tensor]) -> None:
    """Zeroes what makes masked units in `model`, in place: they emit zero and can be cut without a change."""
    for dim, mask in masks.items():
        extended = np.append(mask.cpu().numpy(), 1).astype(np.float32)
        for member, array, positions in slices(context.with_weights(model), dim, "produces", "scales", "follows"):
            if half.is_floating(array.dtype):
                shape = [1] * array.ndim
                shape[member.axis] = -1
                factors = extended[np.where(positions < 0, dim.size, positions)].reshape(shape)
                graph.set_constant(model.graph.initializers[member.initializer], (array * factors).astype(array.dtype))


def _outcome(context: Context, settings: Settings, history: list[float], run: "Run", model: ir.Model | None) -> Outcome:
    with torch.no_grad():
        learned = {dim: score.double().cpu().numpy() for dim, score in run.attention().items()}
    unseen = [dim for dim in context.dims if dim not in learned]
    raw = {**learned, **{dim: np.minimum(norms(context, dim, 2), 1) for dim in unseen}}
    keep = decided(context, raw, settings.mass, run.budget)
    if run.masks is not None:  # a one-stage run has decided already, and trained under its decision
        keep.update({dim: mask.bool().cpu().numpy() for dim, mask in run.masks.items()})
        raw = {dim: values * keep[dim] for dim, values in raw.items()}
    mean = float(np.concatenate(list(raw.values())).mean())
    ranks = {**raw, **run.means()}
    # Ranks are comparable as they are; selection divides by what a removal saves, so that is multiplied in here.
    scores = {dim: ranks[dim] * max(context.cost.marginal("macs", dim), 1e-9) for dim in context.dims}
    notes = [
        f"paam: the attention of units went from 1 to {mean:.3f} on average, at a price of {run.weight:.3g} for what "
        f"it keeps; {training.told(history)}"
    ]
    if unseen:
        notes.append(
            f"paam: {len(unseen)} dimensions were scored by the size of their weights, for no weights of equal size "
            "produce their units"
        )
    return Outcome(scores, comparable=True, keep=keep, model=model, notes=tuple(notes))


def decided(context: Context, scores: Mapping[Dim, np.ndarray], mass: float, budget: float) -> dict[Dim, np.ndarray]:
    """The units kept without a target: the highest scores by `mass`, or by the `budget` of MACs, what prunes less."""

    def at(share: float) -> tuple[dict[Dim, np.ndarray], float]:
        keep = kept_by_mass(scores, share)
        keep = {dim: aligned(mask, scores[dim], context.align) for dim, mask in keep.items()}
        return keep, context.cost.total("macs", cost.keep_sizes(keep)) / max(1.0, context.cost.total("macs"))

    keep, left = at(mass)
    low, high = mass, 1.0
    if left >= budget:
        return keep
    for _ in range(20):  # along the cumulative distribution of the scores: more mass, more MACs
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle)[1] >= budget else (middle, high)
    return at(high)[0]


def kept_by_mass(scores: Mapping[Dim, np.ndarray], mass: float) -> dict[Dim, np.ndarray]:
    """The highest scores of all Dims together that hold `mass` of their sum; 5 % of each Dim, at least 2, stay."""
    pooled = np.sort(np.concatenate(list(scores.values())))[::-1]
    reached = np.searchsorted(np.cumsum(pooled), mass * pooled.sum())
    threshold = pooled[min(reached, len(pooled) - 1)]
    keep = {}
    for dim, values in scores.items():
        mask = values >= threshold
        mask[np.argsort(-values, kind="stable")[: max(min(LEAST_UNITS, dim.size), round(LEAST_SHARE * dim.size))]] = (
            True
        )
        keep[dim] = mask
    return keep


class Run:
    """The attention network of a context, hooked into a network, and its training."""

    def __init__(self, context: Context, network: Network, settings: Settings, budget: float) -> None:
        self.context, self.network, self.settings, self.budget = context, network, settings, budget
        self.attention = AttentionNetwork(context, settings.width).to(context.device)
        gates_context = replace(context, dims=tuple(self.attention.dims))
        self.gates = Gates(gates_context, network)
        self.silencers = Gates(gates_context, network, all_makers=True) if settings.reinit else None
        shares = {dim: context.cost.marginal("macs", dim) * dim.size for dim in self.attention.dims}
        total = sum(shares.values()) or 1.0
        self.omega = {dim: share / total for dim, share in shares.items()}
        self.weight = settings.lambda_score
        self.masks: dict[Dim, Tensor] | None = None
        self.settled = False  # whether the masks are those of the budget, to stay
        self.sums: dict[Dim, Tensor] = {}
        self.steps = 0

    def mean_score(self, scores: dict[Dim, Tensor]) -> Tensor:
        """sum_l omega_l mean_i S_l,i."""
        return torch.stack([self.omega[dim] * score.mean() for dim, score in scores.items()]).sum()

    def scores_only(self, lessons: Lessons) -> list[float]:
        """Trains the attention network with the filters frozen; loss by epoch."""
        self.network.eval()
        optimizer = torch.optim.Adam(self.attention.parameters(), lr=self.settings.lr)
        history = training.run(
            self.context,
            self.network,
            lessons,
            self.settings,
            [optimizer],
            name="paam",
            before=self.apply,
            penalty=self.penalty,
        )
        with torch.no_grad():  # the last step's scores count as well
            self._count(self.attention())
        return history

    def one_stage(self, lessons: Lessons, working: ir.Model) -> list[float]:
        """Trains filters under the masks of the growing budget, and scores by every fourth batch; loss by epoch."""
        self.network.train()
        self.working = working
        own = torch.optim.Adam(self.attention.parameters(), lr=self.settings.lr)
        weights = torch.optim.Adam(self.network.parameters_by_name.values(), lr=self.settings.weights_lr)
        history = training.run(
            self.context,
            self.network,
            lessons,
            self.settings,
            [own, weights],
            name="paam",
            before=self.apply_masked,
            penalty=lambda step: self.penalty(step) if _scores_turn(step) else None,
            shrink_gradients=self.only_the_turn,
        )
        self.network.gates.clear()
        return history

    def apply(self, step: Step) -> None:
        self.scores = self.attention()
        gate(self.gates, self.scores)
        self._count(self.scores)

    def _count(self, scores: dict[Dim, Tensor]) -> None:
        self.steps += 1
        for dim, score in scores.items():
            self.sums[dim] = self.sums.get(dim, 0) + score.detach().double().clamp_max(1)

    def means(self) -> dict[Dim, np.ndarray]:
        """The mean score of every unit over the run; only where nothing but scores was trained."""
        return {dim: total.cpu().numpy() / self.steps for dim, total in self.sums.items()}

    def apply_masked(self, step: Step) -> None:
        """Scores on their turn, without masks so that units may return; on the filters' turn masks alone."""
        if step.first and step.progress <= RAMP[1]:
            self._refresh_filters()
        self.scores = self.attention()
        way = (step.progress - RAMP[0]) / (RAMP[1] - RAMP[0])
        if way > 0 and not self.settled and (step.first or way >= 1):  # once an epoch: filters need time under a mask
            self.settled = way >= 1
            with torch.no_grad():
                self.masks = self._highest(1 - (1 - self.budget) * min(way, 1.0))
        assert self.silencers is not None
        if _scores_turn(step):
            gate(self.gates, self.scores)
            self.silencers.values = {}
        else:
            self.gates.values = {}
            self.silencers.values = {dim: mask[None] for dim, mask in (self.masks or {}).items()}

    def only_the_turn(self, step: Step) -> None:
        """Filters are constant while scores learn, and the other way round."""
        for parameter in (self.network if _scores_turn(step) else self.attention).parameters():
            parameter.grad = None

    def penalty(self, step: Step) -> Tensor:
        """lambda sum_l omega_l mean S, with lambda steered along a line from 1 to the budget at 70 % of the run."""
        mean = self.mean_score(self.scores)
        wanted = 1 - (1 - self.budget) * min(1.0, step.progress / 0.7)
        gap = float(mean.detach()) - wanted
        self.weight *= exp(min(max(STEERING * gap, -STEP_LIMIT), STEP_LIMIT))
        return self.weight * mean

    def _highest(self, share: float) -> dict[Dim, Tensor]:
        """Masks of the highest scores whose MACs are `share` of all, or just above it."""
        pooled = torch.cat([score.flatten() for score in self.scores.values()]).sort(descending=True).values
        low, high = 0, len(pooled)
        masks = self._above(pooled[-1], share)
        while low + 1 < high:
            middle = (low + high) // 2
            tried = self._above(pooled[middle - 1], share)
            sizes = {dim: int(mask.sum()) for dim, mask in tried.items()}
            if self.context.cost.total("macs", sizes) >= share * self.context.cost.total("macs"):
                high, masks = middle, tried
            else:
                low = middle
        return masks

    def _above(self, threshold: Tensor, share: float) -> dict[Dim, Tensor]:
        masks = {}
        for dim, score in self.scores.items():
            # Early scores are noise: no Dim falls below half of the share that the budget leaves to all.
            least = max(min(LEAST_UNITS, dim.size), round(share / 2 * dim.size))
            masks[dim] = (score >= torch.minimum(threshold, score.topk(least).values[-1])).float()
        return masks

    def _refresh_filters(self) -> None:
        model = reinit.trained(self.context.model, _written(self.network, self.working))
        now = AttentionNetwork(self.context.with_weights(model), self.settings.width)
        for (_, old), (_, new) in zip(self.attention.named_buffers(), now.named_buffers(), strict=True):
            old.copy_(new)


def _scores_turn(step: Step) -> bool:
    return step.index % 4 == 3 and step.progress <= RAMP[1]
