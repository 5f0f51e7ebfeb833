"""Latency that can be trusted: models timed against each other in onnxruntime, and the machine they ran on.

files      cost of a model file
host       CPU, GPU, clocks, versions
feeds      random inputs on which a model runs
timing     warm-up until stable, interleaved rounds
stats      quantiles and bootstrap intervals
sessions   settings, conversion, IO binding
peak_memory  peak memory, in a process of its own
latency    `measure_latency`
nodes      `profile`: time node by node
predict    latency of a plan from the times of the nodes
alignment  what multiple of channels a provider likes
calibrations  kept in the user's cache folder
records    what was measured, as frozen records
"""

from onnxprune.measure.feeds import bench_feeds
from onnxprune.measure.files import measure_file
from onnxprune.measure.host import default_threads, machine, tool
from onnxprune.measure.latency import doubts, measure_latency, measure_settled, unsettled
from onnxprune.measure.nodes import profile
from onnxprune.measure.timing import QUICK, Rounds

__all__ = [
    "QUICK",
    "Rounds",
    "bench_feeds",
    "default_threads",
    "doubts",
    "machine",
    "measure_file",
    "measure_latency",
    "measure_settled",
    "profile",
    "tool",
    "unsettled",
]
