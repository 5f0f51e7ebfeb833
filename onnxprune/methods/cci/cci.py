"""cci: cross-channel intragroup sparsity (Yu et al., arXiv 1910.11971): of every G weights exactly k stay.

    axis output  G neighboring output channels at one (input, kernel position)   default, the paper's word
    axis input   G neighboring input channels at one (output, kernel position)   2:4 is what tensor cores read

A fixed count per group gives every lane the same work, and k values with k log2(G) bits per group in storage.
Training (the paper's own algorithm is not public; this is sparse-refined straight-through, SR-STE, with its parts):

    w^ = M w,  M the k largest |w| of each group, found anew every few steps
    w <- w - eta (dL/dw^ + lambda_w (1 - M) w)         pruned weights shrink, yet take gradients and may return

k falls from G to its target along a cubic ramp over the first half, M is frozen for the last third. Before it, units
of each Dim are permuted, with everything that stands on them, so that groups keep more energy: exact in value.

`closed` needs no training: M and the kept weights come from the layer's input statistics, the second moments H
of its inputs on calibration samples, one input column after the other (SparseGPT's update): the error of a pruned
column is spread over those still to come.

Left alone: layers whose axis G does not divide, first convolutions, grouped ones, and with `last` off classifiers.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune import graph
from onnxprune.bridge.network import Network
from onnxprune.methods import layers, options, training
from onnxprune.methods import zeros as zeroed
from onnxprune.methods.base import Context, Needs, Outcome, method
from onnxprune.methods.cci.closed_form import fit
from onnxprune.methods.cci.permute import permute
from onnxprune.methods.layers import Layer
from onnxprune.methods.training import Course, Lessons, Step

AXES = ("output", "input")
RAMP_END, FREEZE_FROM = 0.5, 2 / 3


@dataclass(frozen=True)
class Settings(Course):
    """group: G, 0 takes 16, or 4 along inputs. kept: k, 0 takes the most that --target allows, or half of G.
    axis: output or input. shrink: lambda_w. refresh: steps between masks. permute: reorder channels first.
    closed: calibration only. last: prune the classifier, too."""

    epochs: int = 6
    lr: float = 1e-3
    group: int = 0
    kept: int = 0
    axis: str = "output"
    shrink: float = 2e-4
    refresh: int = 4
    permute: bool = True
    closed: bool = False
    last: bool = False
    calibration: int = 256


@method(
    "cci",
    options=Settings,
    needs=Needs(data=True, training=True),
    summary="exactly k of every G weights stay (CCI, N:M)",
)
def cci(context: Context) -> Outcome:
    """Returns a model with exactly k non-zeros in every group of the layers that the pattern fits."""
    settings = options.read(Settings, context, "cci")
    size = group_size(settings)
    chosen = [layer for layer in layers.linear_layers(context.model) if fits(context.model, layer, settings, size)]
    options.require(
        bool(chosen), "cci", f"no layer's {settings.axis} channels divide by {size}; choose a smaller group"
    )
    kept = count_kept(context, settings, chosen, size)
    model = context.model
    notes = [
        f"cci: {kept} of every {size} weights along {settings.axis} channels stay in {len(chosen)} layers: "
        + _names(chosen)
    ]
    if settings.permute:
        model, before, after = permute(context, chosen, settings.axis, size, kept)
        notes.append(f"cci: another order of channels keeps {after:.1%} of the squared weights instead of {before:.1%}")
    torch.manual_seed(context.seed)
    if settings.closed:
        model, zeros, errors = fit(context, model, chosen, settings.axis, size, kept, settings.calibration)
        notes.append(
            f"cci: relative output error of the layers {np.mean(errors):.4f} on average, {max(errors):.4f} at most"
        )
        return zeroed.outcome(context, model, zeros, notes)
    network = Network(model, freeze_norm=True).to(context.device).train()
    trainer = Trainer(network, chosen, settings, size, kept)
    lessons = Lessons(context, settings)
    optimizer = training.adam(network, settings.lr)
    history = training.run(
        context,
        network,
        lessons,
        settings,
        [optimizer],
        name="cci",
        before=trainer.before,
        shrink_gradients=trainer.shrink,
    )
    model = graph.copy(model)
    zeros = trainer.fold(model)
    notes.append(f"cci: {training.told(history)}")
    return zeroed.outcome(context, model, zeros, notes)


def group_size(settings: Settings) -> int:
    """G. Raises: UsageError for an axis that is none, and for more kept than there are."""
    options.require(settings.axis in AXES, "cci", f"axis={settings.axis}: choose of {', '.join(AXES)}")
    size, kept = settings.group or (4 if settings.axis == "input" else 16), settings.kept
    options.require(0 <= kept <= size, "cci", f"kept={kept} of group={size}: keep at least 1 and at most all")
    return size


def count_kept(context: Context, settings: Settings, chosen: list[Layer], size: int) -> int:
    """k: as asked for, else the most that the targets allow. Raises: BudgetError where that is not even one."""
    if settings.kept:
        return settings.kept
    if not context.shares:
        return max(1, round(size * (context.target or 0.5)))
    allowed = zeroed.allowances(context, [(layer.node, layer.weight) for layer in chosen], 0.0)
    for each in allowed:
        each.require(1 / size)
    return min(int(size * each.density) for each in allowed)


def fits(model: ir.Model, layer: Layer, settings: Settings, size: int) -> bool:
    """Whether the pattern is for `layer`."""
    w = graph.array_of(model.graph.initializers[layer.weight])
    length = w.shape[layer.outputs if settings.axis == "output" else layer.inputs]
    return layer.groups == 1 and not layer.first and length % size == 0 and (settings.last or not layer.last)


def _names(chosen: list[Layer]) -> str:
    return ", ".join(layer.node for layer in chosen[:6]) + (" ..." if len(chosen) > 6 else "")


def group_mask(w: Tensor, axis: int, size: int, kept: int) -> Tensor:
    """Booleans of w's shape, True for the `kept` largest |w| of every `size` neighbors along `axis`; ties by order."""
    moved = w.detach().abs().movedim(axis, -1)
    rows = moved.reshape(-1, size)
    places = torch.argsort(rows, dim=1, descending=True, stable=True)[:, :kept]
    mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, places, True)
    return mask.reshape(moved.shape).movedim(-1, axis)


class Trainer:
    """The masks of all layers, hooked into a network."""

    def __init__(self, network: Network, chosen: list[Layer], settings: Settings, size: int, kept: int) -> None:
        self.network, self.settings, self.size, self.kept = network, settings, size, kept
        self.layers = [layer for layer in chosen if layer.weight in network.parameters_by_name]
        self.masks: dict[str, Tensor] = {}
        self.frozen = False
        self.refresh(size)
        for layer in self.layers:
            network.overrides[layer.weight] = self._masked(layer.weight)

    def before(self, step: Step) -> None:
        """Masks follow the weights until they are frozen."""
        if self.frozen:
            return
        self.frozen = step.progress >= FREEZE_FROM
        if self.frozen or step.index % self.settings.refresh == 0:
            self.refresh(self.count(step.progress))

    def count(self, progress: float) -> int:
        """k of a step: from G to the target along a cubic ramp."""
        left = max(0.0, 1 - progress / RAMP_END) ** 3
        return self.kept + round((self.size - self.kept) * left)

    def shrink(self, step: Step) -> None:
        """Adds lambda_w (1 - M) w to the gradients; once frozen, pruned weights stay where they are."""
        for layer in self.layers:
            w, mask = self.network.parameters_by_name[layer.weight], self.masks[layer.weight]
            if w.grad is None:  # its branch reaches no output that is trained on
                continue
            if self.frozen:
                w.grad.mul_(mask)
            else:
                w.grad.add_(self.settings.shrink * w.detach() * ~mask)

    def refresh(self, kept: int) -> None:
        for layer in self.layers:
            w = self.network.parameters_by_name[layer.weight]
            axis = layer.outputs if self.settings.axis == "output" else layer.inputs
            self.masks[layer.weight] = group_mask(w, axis, self.size, kept)

    def fold(self, model: ir.Model) -> dict[str, np.ndarray]:
        """Writes the masked weights into `model`; the positions that are zero, by initializer."""
        if not self.frozen:
            self.refresh(self.kept)
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.network.parameters_by_name[name].mul_(mask)
        self.network.write_back(model)
        return {name: ~mask.cpu().numpy() for name, mask in self.masks.items()}

    def _masked(self, name: str):
        def apply(w: Tensor) -> Tensor:
            return w + (w * self.masks[name] - w).detach()  # the value is masked, the gradient is not

        return apply
