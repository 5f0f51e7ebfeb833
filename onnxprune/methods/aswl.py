"""aswl: adaptive structure and weight learning by layer attentions (arXiv 2111.02399); a sparse result.

One scalar attention a_l per layer scales the layer's output and fixes how much of it is pruned:

    y = a_l f_l(x; w^_l),   p_l = (1 - a_l)^alpha,   w^_l = w_l where |w_l| is above its p_l-quantile, else 0
    L = task + gamma (S - r)^2,   S = sum_l (1 - p_l) n_l / sum_l n_l        S density, r its target

Dual tracking: dense weights w take the gradient found at the pruned ones w^ (straight-through, no mask on it), so
weights return. Attentions have an optimizer of their own. At the end a_l is multiplied into weight and bias.

Deviations, and why. a = 0.01 + 0.99 sigmoid(theta): no clamp with a dead gradient; theta starts at 3 with w / a, so
that the given function is unchanged (at 0 with --reinit). Magnitudes are ranked, where the public code ranked signed
values; biases are not pruned; p_l <= 0.98, in first and last layers 0.5. r falls from 1 to the target over the first
half of a run and gamma rises while S lags behind; in the second half most of what is missing is shifted into all
theta alike at each refresh, keeping the function (w / a again), so that the density is met exactly. Masks are
refreshed every 16 steps and frozen, with the attentions, for the last quarter. Where a BatchNormalization follows in
train mode a_l would be normalized away: norms keep their statistics in training; with --reinit, where they are put
back and learn, a_l scales what comes out of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune import graph
from onnxprune.bridge.network import Network
from onnxprune.methods import layers, options, reinit, training
from onnxprune.methods import zeros as zeroed
from onnxprune.methods.base import Context, Needs, Outcome, method
from onnxprune.methods.layers import Layer
from onnxprune.methods.training import Course, Lessons, Step

Hook = Callable[[Tensor], Tensor]
CAP, EDGE_CAP = 0.98, 0.5
FROZEN_SHARE = 0.25
PRETRAINED, FRESH = 3.0, 0.0
LR, LEAST_LR = 3e-3, 7e-4  # of Adam; deep networks multiply what each layer changes, and lose what they were trained to
SHALLOW = 6  # layers


@dataclass(frozen=True)
class Settings(Course):
    """density: share of the weights that stays, 0 leaves as many as --target allows, or 0.3. alpha, gamma: as in the
    formulas. refresh: steps between masks. lr: 0 takes 3e-3, and in trained networks of over 6 layers L only 6 / L of
    it, at least 7e-4. attention_lr: 0 chooses by the number of steps. reinit: train from random weights."""

    epochs: int = 6
    lr: float = 0.0
    density: float = 0.0
    alpha: float = 1.0
    gamma: float = 5.0
    refresh: int = 16
    attention_lr: float = 0.0
    reinit: bool = False


@method(
    "aswl",
    options=Settings,
    needs=Needs(data=True, training=True),
    summary="layer attentions decide where weights are zeroed (ASWL)",
)
def aswl(context: Context) -> Outcome:
    """Learns weights, attentions and zeros; returns the folded model, its zeros and what is dead."""
    settings = options.read(Settings, context, "aswl")
    asked = settings.density or (0.0 if context.shares else context.target or 0.3)
    options.require(0 <= asked <= 1, "aswl", f"density={asked:g}: give a share above 0 and up to 1")
    options.require(settings.alpha > 0, "aswl", f"alpha={settings.alpha:g}: give a number above 0")
    torch.manual_seed(context.seed)
    chosen = [layer for layer in layers.linear_layers(context.model) if layer.groups == 1]
    options.require(
        bool(chosen), "aswl", "the model has no Conv, Gemm or MatMul with constant weights; use another method"
    )
    working = reinit.architecture(context.model) if settings.reinit else graph.copy(context.model)
    network = Network(working, freeze_norm=not settings.reinit).to(context.device).train()
    if settings.reinit:
        reinit.draw(working, network, context.seed)
    known = [layer for layer in chosen if layer.weight in network.parameters_by_name]
    allowed = zeroed.allowances(context, [(layer.node, layer.weight) for layer in known], asked)
    attention = Attention(working, network, known, settings, allowed)
    lessons = Lessons(context, settings, teach=not settings.reinit)
    if settings.reinit:
        weights = torch.optim.Adam(network.parameters_by_name.values(), lr=settings.lr or LR)
    else:
        weights = training.adam(network, settings.lr or max(LEAST_LR, LR * min(1.0, SHALLOW / len(chosen))))
    rate = settings.attention_lr or 12 / max(1, settings.epochs * lessons.steps_per_epoch)
    own = torch.optim.Adam([attention.theta], lr=rate)
    start = attention.values()
    history = training.run(
        context, network, lessons, settings, [weights, own], name="aswl",
        penalty=attention.penalty, before=attention.before, shrink_gradients=attention.freeze,
    )  # fmt: skip
    zeros = attention.fold()
    network.write_back(working)
    model = reinit.trained(context.model, working) if settings.reinit else working
    goals = ", ".join(f"{each.density:.4g}" + (f" for {each.kind}" if each.kind else "") for each in allowed)
    notes = (
        f"aswl: {attention.density():.2%} of the weights that it may set to zero are left ({goals} were to be); "
        f"attention of the layers {start.mean():.2f} at first, {attention.values().min():.2f} to "
        f"{attention.values().max():.2f} in the end; {training.told(history)}",
    )
    return zeroed.outcome(context, model, zeros, notes)


class Attention:
    """The attentions of all layers with their masks, hooked into a network."""

    def __init__(
        self,
        model: ir.Model,
        network: Network,
        chosen: list[Layer],
        settings: Settings,
        allowed: Sequence[zeroed.Allowance],
    ) -> None:
        known = network.parameters_by_name
        self.network, self.settings, self.layers = network, settings, chosen
        self.targets = torch.tensor([each.density for each in allowed])
        self.counts = torch.tensor(np.array([each.counts / each.counts.sum() for each in allowed]), dtype=torch.float32)
        self.caps = torch.tensor([EDGE_CAP if layer.first or layer.last else CAP for layer in self.layers])
        for each, least in zip(allowed, (self.counts @ (1 - self.caps)).tolist(), strict=True):
            each.require(least)
        start = FRESH if settings.reinit else PRETRAINED
        self.theta = torch.full((len(self.layers),), start, requires_grad=True)
        self.gamma = settings.gamma
        self.frozen = False
        self.masks = [torch.ones_like(known[layer.weight]) for layer in self.layers]
        nodes = {node.name: node for node in model.graph.all_nodes()}
        self.scaled = [_scaled_names(nodes[layer.node], layer, known, settings.reinit) for layer in self.layers]
        for index, layer in enumerate(self.layers):
            if not settings.reinit:  # the function stays as it is given
                self._rescale(index, 1 / float(self.values()[index]))
            network.overrides |= {name: self._scale(index) for name in self.scaled[index]}
            network.overrides[layer.weight] = self._prune(index)
        self.refresh()

    def a(self) -> Tensor:
        """Attentions (layers,), differentiable."""
        return 0.01 + 0.99 * torch.sigmoid(self.theta)

    def pruned_shares(self) -> Tensor:
        """p_l (layers,), differentiable."""
        return torch.minimum((1 - self.a()) ** self.settings.alpha, self.caps)

    def values(self) -> np.ndarray:
        return self.a().detach().numpy()

    def density(self) -> float:
        """Share of the weights that the masks keep."""
        kept = sum(float(mask.sum()) for mask in self.masks)
        return kept / sum(mask.numel() for mask in self.masks)

    def expected(self) -> Tensor:
        """S (targets,), differentiable: a target of MACs counts each weight as often as it is multiplied."""
        return self.counts @ (1 - self.pruned_shares())

    def goal(self, step: Step) -> Tensor:
        """r (targets,) of a step: on its way from 1 to the target, which it reaches when half of the run is over."""
        way = min(1.0, 2 * step.progress)
        return self.targets + (1 - self.targets) * (1 - way) ** 3

    def missing(self, goal: Tensor) -> Tensor:
        """S - r of the target that is farthest from being met, differentiable."""
        return (self.expected() - goal).max()

    # The run ----------------------------------------------------------------------------------------------------

    def before(self, step: Step) -> None:
        """Masks follow the weights and attentions until they are frozen."""
        if self.frozen:
            return
        if step.progress >= 1 - FROZEN_SHARE:
            self.shift(self.targets)
            self.frozen = True
        elif step.index % max(1, min(self.settings.refresh, step.total // 40)) == 0:
            missing = float(self.missing(self.goal(step)).detach())
            if missing > 0.01:
                self.gamma *= 1.1
                if step.progress > 0.5:
                    self.shift(self.goal(step) + missing * 0.7)
            self.refresh()

    def penalty(self, step: Step) -> Tensor | None:
        if self.frozen:
            return None
        return self.gamma * self.missing(self.goal(step)) ** 2

    def freeze(self, step: Step) -> None:
        """Once the masks are frozen so are the attentions."""
        if self.frozen:
            self.theta.grad = None

    def shift(self, goal: Tensor) -> None:
        """Shifts all theta alike so that S meets `goal`; the function stays: what attentions lose the weights gain."""
        with torch.no_grad():
            low, high = -20.0, 20.0
            first, before = self.theta.clone(), self.a()
            for _ in range(50):
                middle = (low + high) / 2
                self.theta.copy_(first + middle)
                low, high = (low, middle) if float(self.missing(goal)) > 0 else (middle, high)
            self.theta.copy_(first + low)
            for index, ratio in enumerate(before / self.a()):
                self._rescale(index, float(ratio))
        self.refresh()

    def refresh(self) -> None:
        """Keeps, of each layer, the largest magnitudes."""
        shares = self.pruned_shares().detach()
        for index, layer in enumerate(self.layers):
            w = self.network.parameters_by_name[layer.weight].detach()
            count = min(ceil(float(shares[index]) * w.numel() - 1e-3), w.numel() - 1)
            threshold = w.abs().flatten().float().kthvalue(count).values if count else -1.0
            self.masks[index] = (w.abs() > threshold).to(w)

    def fold(self) -> dict[str, np.ndarray]:
        """Multiplies masks and attentions into the parameters; the positions that are zero, by initializer."""
        with torch.no_grad():
            for index, layer in enumerate(self.layers):
                self._rescale(index, float(self.values()[index]))
                self.network.parameters_by_name[layer.weight].mul_(self.masks[index])
        return {
            layer.weight: ~mask.bool().cpu().numpy()
            for layer, mask in zip(self.layers, self.masks, strict=True)
            if not bool(mask.all())
        }

    # Hooks ------------------------------------------------------------------------------------------------------

    def _rescale(self, index: int, factor: float) -> None:
        with torch.no_grad():
            for name in self.scaled[index]:
                self.network.parameters_by_name[name].mul_(factor)

    def _prune(self, index: int) -> Hook:
        name = self.layers[index].weight

        def apply(w: Tensor) -> Tensor:
            hard = w + (w * self.masks[index] - w).detach()  # the value is masked, the gradient is not
            return hard * self.a()[index].to(w) if name in self.scaled[index] else hard

        return apply

    def _scale(self, index: int) -> Hook:
        return lambda b: b * self.a()[index].to(b)


def _scaled_names(node: ir.Node, layer: Layer, known: Mapping[str, Tensor], fresh: bool) -> list[str]:
    """The parameters that, scaled, scale the layer's output: its weight and bias.

    Where statistics are renewed in training a norm behind it would undo that: then they are the norm's two.
    """
    users = list(node.outputs[0].uses())
    if fresh and len(users) == 1 and users[0].node.op_type == "BatchNormalization":
        names = [value.name for value in users[0].node.inputs[1:3] if value is not None]
    else:
        names = [layer.weight, layer.bias]
    return [name for name in names if name is not None and name in known]
