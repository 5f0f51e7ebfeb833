"""Which optimizer suits a network, and whether its rate is too high: a few steps of each from the same start.

What a graph is made of tells little: detectors have a Softmax and train like any convolutional network. So the first
guess and the other optimizer each run a whole schedule in miniature on the same samples, and are compared on others.
Where least squares came before, the first steps of any optimizer lead away from a good start, and who leads less far
away need not learn more: AdamW does, and by then has moved every weight (docs/results/recovery.md).
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch

from onnxprune.errors import UsageError
from onnxprune.recover.settings import SHORT, Settings
from onnxprune.recover.training import Run, batches_of, loss_on, rate, step_on

STEPS, SHARE, LEAST = 8, 1 / 24, 4  # of a trial; of all steps; fewer tell nothing
COMPARED = 2  # batches that none was trained on
CLEARLY = 0.8  # of the losses of the first guess and the start: less is what the first steps of any run differ by
# Times the loss of the start, of a run that has time to come back as well, and what the rate is then multiplied with.
DIVERGED, DIVERGED_LONG, LOWER = 1.5, 3.0, 0.25


def settled(run: Run, other: Settings) -> Settings:
    """The settings of `run`, or `other`, of another optimizer, where that learns clearly more, at a rate that serves.

    A rate at which the loss grows more than can be made good is lowered. The network is left as it was.
    """
    assert run.settings.epochs is not None
    total = run.settings.epochs * len(run.samples) // (run.settings.batch_size or 1)
    steps = min(STEPS, int(total * SHARE))
    if steps < LEAST:
        return run.settings
    start = _loss(run, steps)
    losses = {s.optimizer: _after(run, s, steps) for s in (run.settings, other)}
    learns = losses[other.optimizer] < CLEARLY * min(losses[run.settings.optimizer], start)
    best = other if learns else run.settings
    assert best.lr is not None
    most = start * (DIVERGED_LONG if total >= SHORT else DIVERGED)
    return replace(best, lr=best.lr * LOWER) if losses[best.optimizer] > most else best


def _after(run: Run, settings: Settings, steps: int) -> float:
    """The loss after a miniature of the whole run."""
    trial = replace(run, settings=settings)
    try:
        for step, (feeds, numbers) in enumerate(_first(trial, steps)):
            step_on(trial, feeds, numbers, rate(step, steps, settings))
            trial.step += 1
        trial.load(trial.average.tensors)
        return _loss(trial, steps)
    except UsageError:  # the loss was no longer finite
        return math.inf
    finally:
        run.load(run.best)


@torch.no_grad()
def _loss(run: Run, steps: int) -> float:
    run.network.eval()
    losses = [loss_on(run, feeds, numbers) for feeds, numbers in islice(_first(run, steps + COMPARED), steps, None)]
    mean = sum(losses) / max(1, len(losses))
    return mean if math.isfinite(mean) else math.inf


def _first(run: Run, count: int) -> Iterator:
    return islice(batches_of(run, 0, 0), count)
