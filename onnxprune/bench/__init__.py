"""Latency that can be trusted: models timed against each other in onnxruntime, and the machine they ran on.

machine    CPU, GPU, clocks, versions
feeds      random inputs on which a model runs
timing     warm-up until stable, interleaved rounds
stats      quantiles and bootstrap intervals
sessions   settings, conversion, IO binding
memory     peak memory, in a process of its own
latency    `measure_latency`
nodes      `profile`: time node by node
predict    latency of a plan from the times of the nodes
alignment  what multiple of channels a provider likes
cache      calibrations, kept in the user's cache folder
command    `run_bench`: the command's report
"""

from onnxprune.bench.command import measure_file, run_bench
from onnxprune.bench.feeds import bench_feeds
from onnxprune.bench.host import default_threads, machine, tool
from onnxprune.bench.latency import doubts, measure_latency
from onnxprune.bench.nodes import profile
from onnxprune.bench.timing import QUICK, Rounds

__all__ = [
    "QUICK",
    "Rounds",
    "bench_feeds",
    "default_threads",
    "doubts",
    "machine",
    "measure_file",
    "measure_latency",
    "profile",
    "run_bench",
    "tool",
]
