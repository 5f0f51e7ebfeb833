"""gss: attention-based guided structured sparsity (Torfi et al., arXiv 1802.09902).

Plain group lasso pulls every group norm to zero. GSS adds a term that rewards *spread* among the norms of a layer, so
that some groups stay alive while others vanish ("attention" is this term: no module, no parameters). With
s_g = sum of w^2 over the weights that produce unit g:

    form paper       R_gl  = sum_l sum_g sqrt(s_g)                    lambda_gl = 0.001
                     R_var = sum_l 1 / Var_g(s_g)                     lambda_var = 0.01
    form scale-free  R_gl  = sum_l sqrt(|g|) sum_g sqrt(s_g)          lambda_gl = lambda_var = 300, where 1 makes the
                     R_var = sum_l (n_l / N) / (CV_l^2 + 0.01)        term worth a loss of 0.1 at the start
                     CV_l^2 = Var(u) / mean(u)^2, u_g = sqrt(s_g / |g|)

Deviations, and why. Scale-free is the default: 1/V of the paper is met by growing all weights alike, and dies out as
1/V^2 (Distiller's authors saw no effect). Groups are summed over all tensors that share a Dim, so residual sums are
handled, where the paper has none; scale-free measures each tensor in units of its rms norm at the start. Dims of
fewer than 4 units are left alone, 1e-12 and 1e-8 guard root and fraction. The paper cuts single weights below 1e-3 at
evaluation; here groups are ranked by norm and the budget cuts. With `outputs` u_g is multiplied by the rms of the
unit's values, the second motive of the abstract.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune import graph
from onnxprune.bridge.network import Network
from onnxprune.coupling import Dim
from onnxprune.methods import groups, objective, options, training, units
from onnxprune.methods.base import Context, Needs, Outcome, method
from onnxprune.methods.magnitude import norms
from onnxprune.methods.training import Course, Lessons, Step

LEAST_UNITS = 4
FORMS = ("scale-free", "paper")
PAPER_LAMBDAS = (0.001, 0.01)
SCALE_FREE_LAMBDAS = (300.0, 300.0)
REFERENCE_LOSS = 0.1  # what both terms are worth at the start with lambda 1: a distilled network starts at loss 0


@dataclass(frozen=True)
class Settings(Course):
    """form: scale-free or paper. lambda_gl, lambda_var: negative takes the form's own. groups: output or input
    channels. outputs: weigh norms by the rms of activations. Others: see training.Course."""

    lr: float = 3e-4
    form: str = "scale-free"
    lambda_gl: float = -1.0
    lambda_var: float = -1.0
    groups: str = "output"
    outputs: bool = False


@method(
    "gss",
    options=Settings,
    needs=Needs(training=True),
    summary="group lasso and variance of group norms while fine-tuning (GSS)",
)
def gss(context: Context) -> Outcome:
    """Trains with both regularizers, then scores units by their norm; without samples it scores alone."""
    settings = options.read(Settings, context, "gss")
    options.require(settings.form in FORMS, "gss", f"form={settings.form}: choose of {', '.join(FORMS)}")
    options.require(settings.groups in ("output", "input"), "gss", f"groups={settings.groups}: output or input")
    if context.samples is None:
        return _untrained(context, "samples to train on")
    torch.manual_seed(context.seed)
    network = Network(context.model, freeze_norm=True).to(context.device).train()
    if not network.parameters_by_name:
        return _untrained(context, "weights to train: all of them are integers")
    regularizer = Regularizer(context, network, settings)
    start = regularizer.spread()
    lessons = Lessons(context, settings)
    optimizer = training.adam(network, settings.lr)
    history = training.run(context, network, lessons, settings, [optimizer], name="gss", penalty=regularizer)
    model = graph.copy(context.model)
    network.write_back(model)
    return Outcome(
        _scores(context, model, regularizer), model=model, notes=(_note(start, regularizer.spread(), history),)
    )


def _untrained(context: Context, lacks: str) -> Outcome:
    scores = {dim: norms(context, dim, 2) for dim in context.dims}
    return Outcome(scores, notes=(f"gss had no {lacks}; units are ranked by the norms as they are",))


def _note(start: float, end: float, history: list[float]) -> str:
    return (
        "gss: training told strong units from weak ones: the variance of their norms, over the squared mean, was "
        f"{start:.3g} before and is {end:.3g}; {training.told(history)}"
    )


def _scores(context: Context, model: ir.Model, regularizer: "Regularizer") -> dict[Dim, np.ndarray]:
    """The relative norm of every unit in the trained model, times its activity where that is asked for."""
    learned = context.with_weights(model)
    scores = {dim: norms(learned, dim, 2) for dim in context.dims}
    return {
        d: v * regularizer.activity[d].double().numpy() if d in regularizer.activity else v for d, v in scores.items()
    }


class Regularizer:
    """lambda_gl R_gl + lambda_var R_var of a network, called once a step."""

    def __init__(self, context: Context, network: Network, settings: Settings) -> None:
        role = "produces" if settings.groups == "output" else "consumes"
        found = [groups.of(context, network, dim, role, relative=settings.form != "paper") for dim in context.dims]
        self.context, self.network, self.settings = context, network, settings
        self.all = {g.dim: g for g in found}
        self.active = [g for g in found if g.parts and g.dim.size >= LEAST_UNITS]
        self.total = sum(g.weights for g in self.active) or 1.0
        self.activity: dict[Dim, Tensor] = {}
        self._refresh()
        defaults = PAPER_LAMBDAS if settings.form == "paper" else SCALE_FREE_LAMBDAS
        asked = (settings.lambda_gl, settings.lambda_var)
        self.lambdas = [default if value < 0 else value for value, default in zip(asked, defaults, strict=True)]
        self.units = (1.0, 1.0)
        if settings.form == "scale-free":
            self.units = tuple(max(float(term.detach()), 1e-12) / REFERENCE_LOSS for term in self.terms())

    def __call__(self, step: Step) -> Tensor | None:
        if not self.active:
            return None
        if step.first and step.index:
            self._refresh()
        lasso, variance = self.terms()
        return self.lambdas[0] * lasso / self.units[0] + self.lambdas[1] * variance / self.units[1]

    def terms(self) -> tuple[Tensor, Tensor]:
        """(R_gl, R_var), not yet multiplied."""
        lasso, variance = torch.zeros(()), torch.zeros(())
        for group in self.active:
            s = group.squares(self.network)
            if self.settings.form == "paper":
                lasso = lasso.to(s) + (s + 1e-12).sqrt().sum()
                variance = variance.to(s) + 1 / (s.var(unbiased=False) + 1e-8)
            else:
                lasso = lasso.to(s) + group.size**0.5 * (s + 1e-12).sqrt().sum()
                variance = variance.to(s) + group.weights / self.total / (self._cv2(group, s) + 0.01)
        return lasso, variance

    def spread(self) -> float:
        """CV^2 of the group norms, averaged over layers by their weights."""
        with torch.no_grad():
            parts = [g.weights / self.total * self._cv2(g, g.squares(self.network)) for g in self.active]
        return float(sum(parts, torch.zeros(())))

    def _norms(self, group: groups.Groups, s: Tensor) -> Tensor:
        u = (s + 1e-12).sqrt()
        return u * self.activity[group.dim].to(u) if group.dim in self.activity else u

    def _cv2(self, group: groups.Groups, s: Tensor) -> Tensor:
        u = self._norms(group, s)
        return u.var(unbiased=False) / (u.mean().square() + 1e-12)

    def _refresh(self) -> None:
        if self.settings.outputs:
            self.activity = activity(self.context, self.network)


def activity(context: Context, network: Network, count: int = 64) -> dict[Dim, Tensor]:
    """rms of the values that carry each unit, over a calibration batch: Dim -> (U,) in units of its mean."""
    found = {dim: units.sources(context.coupling, dim) for dim in context.dims}
    names = sorted({source.value for sources in found.values() for source in sources})
    feeds, _ = next(objective.walk(context, count, count))
    was = network.training
    with torch.no_grad():
        values = network.eval()(feeds, capture=names)
    network.train(was)
    result = {}
    for dim, sources in found.items():
        total = torch.zeros(dim.size + 1)
        for source in sources:
            y = values[source.value].movedim(source.axis, 0)
            index = torch.from_numpy(np.where(source.units < 0, dim.size, source.units))
            total.index_add_(0, index, y.reshape(len(y), -1).float().square().mean(1).cpu())
        if sources:
            rms = total[:-1].sqrt()
            result[dim] = rms / rms.mean().clamp_min(1e-12)
    return result
