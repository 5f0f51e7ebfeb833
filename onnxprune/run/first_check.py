"""The original is checked first: labels that it answers by chance are wrong, or the samples are not what it takes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxprune.data import Samples, input_infos
from onnxprune.errors import DataError
from onnxprune.graph.inputs import is_float
from onnxprune.outputs import accuracies, answers
from onnxprune.outputs.metrics import Accuracy
from onnxprune.run.subject import Subject
from onnxprune.system.words import counted

LOG = logging.getLogger("onnxprune")
LOOKED_AT = 200  # samples
FEWEST = 20  # of which nothing is said
ENOUGH = 100  # of them, from which chance is told from an answer
DOUBTFUL = 0.6  # below it scalings are tried
BETTER = 0.15  # points of 1 by which a scaling fits clearly better
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True, eq=False)
class Scaled(Samples):
    """Samples whose images are multiplied and shifted per channel, or have their channels turned round."""

    base: Samples
    name: str
    factor: np.ndarray
    shift: np.ndarray
    turned: bool
    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.base.labels)

    def __len__(self) -> int:
        return len(self.base)

    def batch(self, indices) -> dict[str, np.ndarray]:
        """The samples at `indices`, scaled."""
        feeds = dict(self.base.batch(indices))
        x = feeds[self.name]
        shape = [1] * x.ndim
        shape[self.axis] = -1
        x = np.flip(x, self.axis) if self.turned else x
        y = x * self.factor.reshape(shape) + self.shift.reshape(shape)
        feeds[self.name] = np.ascontiguousarray(y, x.dtype)
        return feeds


def check(subject: Subject, metric: Any = None) -> None:
    """Checks that the original answers labelled samples better than chance, and that no usual scaling fits better.

    metric: the user's own, which alone knows what is right: then nothing is checked.
    Raises: DataError that names what is likely wrong. Few samples that it answers by chance are only warned of.
    """
    if metric is not None:
        return
    samples = subject.held or subject.tune
    if samples is None or samples.labels is None or len(samples) < FEWEST:
        return
    some = np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int)
    few = samples.subset(np.unique(some))
    found = _accuracy(subject, few)
    if found is None or found.value >= DOUBTFUL:
        return
    found_better = _better(subject, few, found.value)
    if found_better:
        raise DataError(found_better)
    if not by_chance(found):
        return
    told = (
        f"the original answers {found.value:.1%} of {counted(len(few), 'labelled sample')} right, a model that answers "
        f"all alike {found.null or 0.0:.1%}: labels, layout or preprocessing are likely wrong, and no usual scaling "
        "fits better; check the order of the classes, or leave the labels out"
    )
    if len(few) >= ENOUGH:
        raise DataError(told)
    LOG.warning("%s", told)


def by_chance(found: Accuracy) -> bool:
    """Whether an accuracy is no better than what a null model has, within its interval."""
    low = found.interval95[0] if found.interval95 is not None else found.value
    return low <= (found.null or 0.0)


def _accuracy(subject: Subject, samples: Samples) -> Accuracy | None:
    reference = answers.reference(subject.model, samples, subject.outputs)
    if reference is None or accuracies.labelled(reference) is None:
        return None
    return accuracies.accuracy(accuracies.judged(reference.said, reference))


def _better(subject: Subject, samples: Samples, value: float) -> str | None:
    """The likely mistake in the scaling of images, where a usual scaling fits clearly better; None where none does."""
    infos = [info for info in input_infos(subject.model) if info.shape is not None and len(info.shape) == 4]
    if len(input_infos(subject.model)) != 1 or not infos or not is_float(infos[0].dtype):
        return None
    array = samples.batch(np.arange(min(8, len(samples))))[infos[0].name]
    axis = next((k for k in (1, 3) if array.shape[k] in (1, 3)), None)
    if axis is None:
        return None
    tried = {}
    for told, (factor, shift, turned) in scalings(array.shape[axis], float(np.abs(array).max())).items():
        scaled = Scaled(samples, infos[0].name, factor, shift, turned, axis)
        found = _accuracy(subject, scaled)
        if found is not None:
            tried[told] = found.value
    best = max(tried, key=lambda told: tried[told], default=None)
    if best is None or tried[best] < value + BETTER:
        return None
    return (
        f"the original answers {value:.1%} of {counted(len(samples), 'labelled sample')} right, and {tried[best]:.1%} "
        f"with {best}: the samples are not scaled as the model was trained; scale them so, or give --scale, --mean, "
        "--std"
    )


def scalings(channels: int, largest: float) -> Mapping[str, tuple[np.ndarray, np.ndarray, bool]]:
    """What samples are usually wanted to be -> (factor, shift per channel, whether channels are turned round)."""
    one, none = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    mean, std = (MEAN, STD) if channels == 3 else (MEAN[:1], STD[:1])
    byte = largest > 8  # 0 to 255
    unit = 1 / 255 if byte else 1.0
    found = {
        "x / 255" if byte else "x * 255": (one / 255 if byte else one * 255, none, False),
        "values from -1 to 1": (one * 2 * unit, none - 1, False),
        "ImageNet's mean and std": (unit / std, -mean / std, False),
        "ImageNet's mean and std taken back": (std, mean, False),
        "ImageNet's mean and std taken back, x * 255": (std * 255, mean * 255, False),
    }
    if channels == 3:
        found["channels in the order BGR"] = (one, none, True)
    return found
