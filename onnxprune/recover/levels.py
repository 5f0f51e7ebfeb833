"""The levels of recovery after a cut, and the twin that a recovered model is compared with."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune import graph, surgery
from onnxprune.data import Samples, fixed_batch, split
from onnxprune.graph import extras
from onnxprune.options import Level
from onnxprune.outputs.kinds import Outputs
from onnxprune.plan.select import Selection
from onnxprune.recover import biases
from onnxprune.recover.fair import grown
from onnxprune.recover.settings import Settings
from onnxprune.surgery import dead
from onnxprune.system import processes
from onnxprune.system.clock import Clock
from onnxprune.system.memory import retrying
from onnxprune.system.words import counted

if TYPE_CHECKING:
    from onnxprune.recover.finetune import History

LOG = logging.getLogger("onnxprune")
JUDGED_SHARE, MOST_JUDGED = 0.1, 256  # of the samples to tune on: on them the end of fine-tuning is judged
TRIAL_SAMPLES = 2048  # that a trial tunes on
FEWEST_TRAINED = 3  # two to train on and one to judge on
FEWEST, MOST = 512, 4096  # samples of least squares; more than the fewest while all of them stay below
FITTED_MACS, FITTED_NUMBERS = 600_000_000_000, 1024 * 3 * 224 * 224  # these MACs, and numbers in the inputs


@dataclass(frozen=True)
class Given:
    """The means of recovery: the original as teacher, the samples to tune on."""

    original: ir.Model
    tune: Samples | None
    macs: int  # of the original
    outputs: Outputs | None = None  # what the original's outputs are, where that is known already
    dense: ir.Model | None = None  # what layers are fitted to, where that is not the model of the coupling
    gone: tuple[str, ...] = ()  # the nodes that added what blocks computed that `dense` has and the coupling has not


@dataclass(frozen=True)
class Recovery:
    """How a cut model is to recover, see asked.py: the level, and how it is fine-tuned.

    device: auto, cpu or cuda. resume: the folder in which checkpoints of the whole recovery live.
    """

    level: Level
    tuning: Settings
    device: str = "auto"
    resume: Path | None = None

    @property
    def quiet(self) -> "Recovery":
        """The same without bars on the terminal."""
        return replace(self, tuning=replace(self.tuning, progress=False))

    @property
    def trial(self) -> "Recovery":
        """For one epoch, and without a trace."""
        return replace(self, tuning=replace(self.tuning, epochs=1, progress=False), resume=None)


def recover(
    given: Given, selection: Selection, cut_model: ir.Model, how: Recovery, clock: Clock, *, trial: bool = False
) -> "History | None":
    """Carries out `how` in place on `cut_model`, which was cut by `selection`; the fine-tuning history or None.

    trial: on few samples, for one epoch: to tell what the whole would bring.
    """
    tune = partial(tuned, given, how)
    if trial:
        given, how = _fewer(given), how.trial
    if how.level == "none":
        return None
    from onnxprune.recover import constants

    fixed = fixed_batch(given.original) is not None
    with clock("push constants"):
        retrying(lambda: constants.push(selection, cut_model, given.tune), "pushing constants", fixed=fixed)
    fitted = learned_from(given, how)
    if fitted is None or how.level == "constants":
        return None
    if not selection.zeros:  # least squares would fill them
        from onnxprune.recover.refit import reconstruct

        with clock("reconstruct"):
            limit = FEWEST if trial else fitting_samples(given)
            fitted = grown(fitted, given.original, how.tuning)
            retrying(
                lambda: reconstruct.refit(
                    selection,
                    cut_model,
                    fitted,
                    limit=limit,
                    bar=how.tuning.progress,
                    dense=given.dense,
                    gone=given.gone,
                ),
                "least squares",
                fixed=fixed,
            )
    if how.level != "finetune":
        return None
    if not _can_train(cut_model):
        _left_out(cut_model, "all weights are integers, or stand where nothing can be learned")
        return None
    assert given.tune is not None
    if len(given.tune) < FEWEST_TRAINED:
        _left_out(cut_model, f"only {counted(len(given.tune), 'sample')}; give more with --data")
        return None
    with clock("finetune"):
        stays = {name: ~mask for name, mask in dead.cut_zeros(selection).items()}
        positions = surgery.kept_positions(selection) if how.tuning.features > 0 else {}
        left = clock.left()
        history = processes.together(tune, cut_model, stays, positions, how.resume, trial, left, save=graph.save)
        LOG.info("  %s", history.settings.described())
        LOG.info("  %s", history.told)
        return history


def _left_out(cut_model: ir.Model, why: str) -> None:
    """Says on the terminal and in the report that there was no fine-tuning."""
    note = f"fine-tuning was left out: {why}"
    LOG.warning("%s", note)
    extras.note(cut_model, note)


def _can_train(model: ir.Model) -> bool:
    from onnxprune.bridge.trainable import trainable

    return bool(trainable(model.graph, dict(model.opset_imports)))


def tuned(
    given: Given,
    how: Recovery,
    model: ir.Model,
    masks: Mapping[str, np.ndarray],
    positions: Mapping[str, Mapping[int, np.ndarray]],
    resume: Path | None,
    trial: bool,
    seconds: float | None = None,
) -> "History":
    """Fine-tunes `model` in place; where `masks` are False its weights stay zero.

    positions: of the values that `model` has only in part, see surgery.kept_positions. seconds: that it may take.
    """
    from onnxprune.recover import finetune

    if trial:
        given, how, resume = _fewer(given), how.trial, None
    settings = replace(
        how.tuning,
        device=device(how.device),
        resume_dir=str(resume) if resume else None,
        seconds=seconds,
        outputs=given.outputs,
    )
    return finetune.finetune(
        model, given.original, *_parts(given, how), settings, masks=masks or None, positions=positions
    )


def fitting_samples(given: Given) -> int:
    """The samples that least squares look at: more of them where they are small and the model is quick."""
    assert given.tune is not None
    numbers = sum(array.size for array in given.tune.batch(np.arange(1)).values())
    macs = given.macs
    return min(max(FEWEST, min(FITTED_MACS // max(1, macs), FITTED_NUMBERS // max(1, numbers))), MOST)


def _fewer(given: Given) -> Given:
    """`given` with as many samples as a trial tunes on."""
    if given.tune is None or len(given.tune) <= TRIAL_SAMPLES:
        return given
    some = np.linspace(0, len(given.tune) - 1, TRIAL_SAMPLES).astype(int)
    return replace(given, tune=given.tune.subset(some))


def learned_from(given: Given, how: Recovery) -> Samples | None:
    """The samples that weights may be fitted to before fine-tuning: not those on which its end is judged."""
    if given.tune is None or how.level != "finetune" or len(given.tune) < FEWEST_TRAINED:
        return given.tune
    return _parts(given, how)[0]


def _parts(given: Given, how: Recovery) -> tuple[Samples, Samples]:
    """(samples to fine-tune on, samples of --data on which its end is judged): those of --val stay unseen."""
    assert given.tune is not None
    return split(given.tune, judged_share(len(given.tune)), how.tuning.seed)


def judged_share(count: int) -> float:
    """Share of `count` tuning samples that is held out to judge epochs; bounded, so that large sets lose few."""
    return min(JUDGED_SHARE, MOST_JUDGED / max(1, count))


def twin_of(selection: Selection, cut_model: ir.Model) -> ir.Model:
    """The masked model with the weights of a recovered `cut_model`, and with the biases that were made in it."""
    twin = surgery.uncut(selection, cut_model)
    biases.carry(selection, cut_model, twin)
    return twin


def device(name: str) -> str:
    """cpu or cuda, for training; `name` may be auto, which loads torch to see what is there."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
