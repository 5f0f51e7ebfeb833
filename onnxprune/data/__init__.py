"""Samples for scoring, tuning and measuring: what the model takes, where samples come from, how they are walked.

    inputs    what a model takes: names, shapes, dtypes, the batch axis; random feeds
    samples   the interface `Samples`, arrays in memory, `split` and `batches`
    fit       arrays and labels against a model's inputs: every mismatch is one clear line
    images    folders of images, read batch by batch
    sources   .npz, .npy, iterables, torch datasets and `module:function`
    spec      `load_samples`, the one entry for every SPEC

torch is never imported here: its tensors, datasets and loaders are known by what they can do.
"""

from onnxprune.data.samples import ArraySamples, Completed, Samples, batches, split
from onnxprune.data.spec import load_samples
from onnxprune.graph.inputs import InputInfo, batch_axes, batch_size_of, fixed_batch, input_infos, random_feeds

__all__ = [
    "ArraySamples",
    "Completed",
    "InputInfo",
    "Samples",
    "batch_axes",
    "batch_size_of",
    "batches",
    "fixed_batch",
    "input_infos",
    "load_samples",
    "random_feeds",
    "split",
]
