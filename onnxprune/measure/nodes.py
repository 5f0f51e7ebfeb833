"""Where the time goes, node by node, by onnxruntime's own profiler."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from onnxprune.graph.sessions import open_session, run
from onnxprune.measure.feeds import bench_feeds
from onnxprune.measure.host import timing_threads
from onnxprune.measure.records import NodeTime
from onnxprune.measure.sessions import Model, prepare, provider_options, setting_for
from onnxprune.system.atomic_files import scratch

SUFFIX = "_kernel_time"


def profile(
    model: Model,
    feeds: Mapping[str, np.ndarray] | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    runs: int = 30,
    warmup: int = 10,
    fp16: bool = False,
) -> tuple[NodeTime, ...]:
    """Median microseconds of each node that onnxruntime runs, after its fusions, slowest first.

    On CUDA a kernel's time is the time to launch it; compare models there by their latency.
    """
    setting = setting_for(provider, threads or timing_threads(), batch, fp16=fp16)
    with scratch() as folder:
        session = open_session(
            prepare(model, setting),
            provider=setting.provider,
            threads=setting.threads,
            options=provider_options(setting),
            profile_prefix=Path(folder) / "profile",
            as_stored=True,
        )
        arrays = dict(feeds) if feeds is not None else bench_feeds(session, batch)
        trials = 0 if feeds is not None else 1
        for _ in range(warmup + runs - trials):
            run(session, arrays)
        events = json.loads(Path(session.end_profiling()).read_text())
    return node_times(events, warmup + runs, warmup)


def node_times(events: Iterable[Mapping], runs: int, warmup: int = 0) -> tuple[NodeTime, ...]:
    """One record per node of a trace of `runs` runs, of which the first `warmup` do not count, slowest first.

    A node that runs several times in one run (in a loop's body) counts with the sum.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    about: dict[str, Mapping] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(SUFFIX):
            node = name.removesuffix(SUFFIX)
            spent[node].append(float(event["dur"]))
            about[node] = event.get("args", {})
    found = [
        NodeTime(node, str(about[node].get("op_name", "")), _per_run(times, runs, warmup), about[node].get("provider"))
        for node, times in spent.items()
    ]
    return tuple(sorted(found, key=lambda time: -time.microseconds))


def _per_run(times: list[float], runs: int, warmup: int) -> float:
    if len(times) % runs:  # a branch that only some runs took: what a run cost on average
        return sum(times) / runs
    return float(np.median(np.reshape(times, (runs, -1)).sum(axis=1)[warmup:]))
