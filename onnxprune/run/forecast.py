"""The plan of a run, told before it starts: what the samples are used for, what will be done, and how long it takes.

Times are estimates: one batch of the original is timed, and the rest is counted in passes like it.
"""

import logging
from time import perf_counter

import numpy as np

from onnxprune.data import Samples, fixed_batch
from onnxprune.graph import sessions
from onnxprune.recover import levels
from onnxprune.recover.fair import grown
from onnxprune.run.settings import Settings
from onnxprune.run.subject import Subject
from onnxprune.system.clock import Clock
from onnxprune.system.memory import halving
from onnxprune.system.words import counted, duration

LOG = logging.getLogger("onnxprune")
TIMED = 16  # samples of the batch that is timed
# Passes of the original through onnxruntime that cost as much, per sample.
FITTED, TRAINED, MEASURED = 6.0, 9.0, 2.0
LATENCY_SECONDS, LEAST_SECONDS = 10.0, 2.0


def tell(subject: Subject, settings: Settings, clock: Clock, *, method: str | None) -> None:
    """Logs the plan of the run, and reserves of its time what follows fine-tuning. method: None where a plan is cut."""
    if settings.seconds is None and not LOG.isEnabledFor(logging.INFO):
        return
    samples = subject.tune or subject.held
    each = _seconds_of_one(subject, samples) if samples is not None else 0.0
    after = (
        MEASURED * each * len(subject.held or ()) + (LATENCY_SECONDS if settings.timing.wanted else 0) + LEAST_SECONDS
    )
    clock.reserved = after if settings.seconds is None else min(after, settings.seconds / 2)
    LOG.info("plan of the run:")
    LOG.info("  data     %s", use_of_data(subject, settings))
    if method is not None:
        LOG.info("  method   %s", method)
        LOG.info("  remove   %s", _cut(settings))
    LOG.info("  repair   %s", _recovery(subject, settings, each))
    LOG.info("  measure  %s (about %s)", _measuring(subject, settings), duration(after))
    if settings.seconds is not None:
        LOG.info("  time     %s in all; fine-tuning takes what is left", duration(settings.seconds))


def use_of_data(subject: Subject, settings: Settings) -> str:
    """How many samples are for what."""
    tune, held = subject.tune, subject.held
    if tune is None:
        return "none" if held is None else f"{counted(len(held), 'sample')} to measure on"
    fitted = levels.learned_from(subject.given, settings.recovery)
    assert fitted is not None
    judged = len(tune) - len(fitted)
    origin = "of --val" if settings.papers.held_given else "held out"
    parts = [f"{len(fitted)} to tune on"]
    parts += [f"{judged} to judge fine-tuning on"] if judged else []
    parts += [f"{len(held)} {origin} to measure on"] if held is not None else []
    return f"samples: {', '.join(parts)}"


def _seconds_of_one(subject: Subject, samples: Samples) -> float:
    """Seconds of the original on one sample."""
    fixed = fixed_batch(subject.model)
    session = sessions.open_session(subject.model)

    def timed(count: int) -> float:
        feeds = samples.batch(np.arange(count) % len(samples))
        sessions.run(session, feeds)
        start = perf_counter()
        sessions.run(session, feeds)
        return (perf_counter() - start) / count

    return halving(timed, fixed or min(TIMED, len(samples)), "timing the original", fixed=fixed is not None)


def _cut(settings: Settings) -> str:
    wanted = [f"{key}={share:g}" for key, share in settings.goal.target.items()]
    wanted += [f"at most {settings.goal.max_drop:g} points lost"] if settings.goal.max_drop is not None else []
    until = f"until {', '.join(wanted)}" if wanted else "as much as the method decides, else half of the MACs"
    return f"{until}; sizes that stay are multiples of {settings.widths.align} where that is possible"


def _recovery(subject: Subject, settings: Settings, each: float) -> str:
    if subject.tune is None or settings.recovery.level in ("none", "constants"):
        return {"none": "nothing", "constants": "biases"}.get(settings.recovery.level, settings.recovery.level)
    learned = levels.learned_from(subject.given, settings.recovery)
    assert learned is not None
    fitted = min(levels.fitting_samples(subject.given), len(grown(learned, subject.model, settings.recovery.tuning)))
    steps = [
        "biases",
        f"weights by least squares on {counted(fitted, 'sample')} (about {duration(FITTED * each * fitted)})",
    ]
    if settings.recovery.level == "finetune":
        steps.append(_tuning(subject, settings, each))
    return ", ".join(steps)


def _tuning(subject: Subject, settings: Settings, each: float) -> str:
    from onnxprune.recover.settings import SECONDS, choose

    fitted = levels.learned_from(subject.given, settings.recovery)
    assert fitted is not None
    chosen = choose(fitted, subject.model, levels.device(settings.recovery.device), settings.recovery.tuning)
    assert chosen.epochs is not None
    seconds = TRAINED * each * len(fitted) * chosen.epochs
    limit = settings.seconds or (SECONDS if settings.recovery.tuning.epochs is None else seconds)
    moved = [f"shifted by up to {chosen.crop} pixels"] if chosen.crop else []
    moved = [*(["mirrored"] if chosen.flip else []), *moved]
    on = f" on images {' and '.join(moved)}" if moved else ""
    epochs = counted(chosen.epochs, "epoch")
    return f"fine-tuning of up to {epochs}{on} (about {duration(min(seconds, limit))})"


def _measuring(subject: Subject, settings: Settings) -> str:
    parts = ["costs"]
    parts += [f"accuracy on {counted(len(subject.held), 'sample')}"] if subject.held is not None else []
    parts += ["latency"] if settings.timing.wanted else []
    return ", ".join(parts)
