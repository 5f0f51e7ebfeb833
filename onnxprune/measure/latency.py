"""Latency of models against each other: sessions opened anew, warmed up until stable, timed in interleaved rounds."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort

from onnxprune.errors import GraphError, UsageError
from onnxprune.graph.inputs import Feeds
from onnxprune.graph.sessions import open_session, run
from onnxprune.measure.feeds import bench_feeds
from onnxprune.measure.host import timing_threads
from onnxprune.measure.peak_memory import peak_memory_bytes
from onnxprune.measure.records import Latency, LatencyRatio, LatencyTable
from onnxprune.measure.sessions import Model, Setting, bind, load, prepare, setting_for
from onnxprune.measure.stats import median_interval, quantiles, thin
from onnxprune.measure.timing import QUICK, Rounds, WarmUp, interleave, warm_up

LOG = logging.getLogger("onnxprune")
WARM_UP_SECONDS = 5.0
BUSY = 1.5  # median over minimum: about 1.05 on a quiet machine, more for the shortest runs
SPREAD = 1.5  # third quartile over first: beyond it a median says little
SETTLING = (1, 2)  # how much longer each attempt measures than the first
FeedsFor = Callable[[ort.InferenceSession, int], Feeds]


def measure_latency(
    models: Mapping[str, Model],
    feeds_for: Mapping[str, np.ndarray] | FeedsFor | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    batch: int = 1,
    rounds: Rounds | None = None,
    sessions: int = 3,
    fp16: bool = False,
    cuda_graph: bool = False,
    prefer_nhwc: bool = False,
    sparsity: bool = False,
    sizes: Mapping[str, int] | None = None,
    memory: bool = True,
    seed: int = 0,
) -> LatencyTable:
    """Latencies of `models` by name on `provider`, and the ratios of all to the first, pair by pair.

    feeds_for: arrays by input name, or a function of (session, batch); None makes random ones, with `sizes` for
    symbolic axes. threads: None takes what OMP_NUM_THREADS allows, else the physical cores. The rounds are spread over
    `sessions` fresh sessions, for where a session's memory happens to lie shifts its times by more than their noise.
    Raises: ProviderError when the provider did not load, UsageError for options that it does not have.
    """
    if not models:
        raise UsageError("no model to time; give at least one")
    options = {"fp16": fp16, "cuda_graph": cuda_graph, "prefer_nhwc": prefer_nhwc, "sparsity": sparsity}
    setting = setting_for(provider, threads or timing_threads(), batch, **options)
    ready = {name: _ready(model, setting, feeds_for, sizes, seed) for name, model in models.items()}
    plan, rng = rounds or Rounds(), np.random.default_rng(seed)
    takes = [_take(ready, setting, _share(plan, sessions), rng) for _ in range(max(1, sessions))]
    peaks = {name: _peak(r, setting) if memory else None for name, r in ready.items()}
    return _table(setting, takes, peaks)


def measure_settled(models: Mapping[str, Model], feeds: Feeds | FeedsFor, **setting: Any) -> LatencyTable:
    """Quick latencies of `models`, measured again and longer while they are unstable, as `unsettled` tells.

    feeds: arrays by input name, or a function of (session, batch). setting: provider, threads and batch of
    `measure_latency`, which raises what this does.
    """
    table = None
    for longer in SETTLING:
        rounds = replace(QUICK, runs=longer * QUICK.runs, max_seconds=longer * QUICK.max_seconds)
        table = measure_latency(models, feeds, rounds=rounds, memory=False, sessions=1, **setting)
        if not unsettled(table.latencies.values(), table.ratios):
            break
        LOG.info("  the times are unstable (%s)", "; ".join(doubts(table)))
    assert table is not None
    return table


def unsettled(latencies: Iterable[Latency], ratios: Iterable[LatencyRatio]) -> bool:
    """Whether quartiles lie so far apart that no promise can rest on the medians."""
    spread = (ratio.q3 > SPREAD * ratio.q1 for ratio in ratios)
    return any(spread) or any(entry.q3_ms > SPREAD * entry.q1_ms or _is_busy(entry) for entry in latencies)


def _is_busy(entry: Latency) -> bool:
    return bool(entry.min_ms) and entry.median_ms > BUSY * (entry.min_ms or 0.0)


def doubts(table: LatencyTable) -> list[str]:
    """Sentences on what makes the times of `table` less certain than their intervals say; [] on a quiet machine.

    When other programs take the cores, a long run is interrupted more often than a short one: then even the ratio
    of neighbors is off, and no interval shows it.
    """
    found = []
    for name, entry in table.latencies.items():
        where = f"{name} on {entry.provider}, batch {entry.batch}"
        if entry.q3_ms > SPREAD * entry.q1_ms:
            found.append(f"{where}: the quartiles are far apart, {entry.q1_ms:.3g} and {entry.q3_ms:.3g} ms")
        elif entry.stable is False:
            found.append(f"{where}: times had not settled when the warm-up ended")
        if entry.min_ms and _is_busy(entry):
            found.append(
                f"{where}: half of the runs took over {entry.median_ms / entry.min_ms:.1f} times the fastest; "
                "the machine was busy, so measure again when it is quiet"
            )
    for ratio in table.ratios:
        if ratio.q3 > SPREAD * ratio.q1:
            found.append(
                f"{ratio.model} on {ratio.provider}, batch {ratio.batch}: the ratio is uncertain, its quartiles are "
                f"{ratio.q1:.3g} and {ratio.q3:.3g}; measure again when the machine is quiet"
            )
    return found


@dataclass(frozen=True)
class _Ready:
    """A model that can be opened and timed; `outputs` are arrays of its outputs' shapes."""

    source: str | bytes
    feeds: Feeds
    outputs: Mapping[str, object]


@dataclass(frozen=True)
class _Take:
    """Measurements of one set of fresh sessions, by model: times (R,), load times, warm-ups."""

    times_ms: Mapping[str, np.ndarray]
    load_ms: Mapping[str, float]
    warm: Mapping[str, WarmUp]


def _ready(model: Model, setting: Setting, feeds_for, sizes, seed: int) -> _Ready:
    """The model with feeds and outputs from a trial run on the CPU, which every provider's result is shaped like."""
    source = prepare(model, setting)
    probe = open_session(source, threads=setting.threads, as_stored=True)
    if feeds_for is None:
        feeds = bench_feeds(probe, setting.batch, sizes=sizes, seed=seed)
    else:
        feeds = dict(feeds_for) if isinstance(feeds_for, Mapping) else feeds_for(probe, setting.batch)
    return _Ready(source, {k: np.ascontiguousarray(v) for k, v in feeds.items()}, run(probe, feeds))


def _share(plan: Rounds, parts: int) -> Rounds:
    parts = max(1, parts)
    return Rounds(
        runs=-(-plan.runs // parts),
        min_seconds=plan.min_seconds / parts,
        max_seconds=plan.max_seconds / parts,
        most=-(-plan.most // parts),
        least=-(-plan.least // parts),
    )


def _take(ready: Mapping[str, _Ready], setting: Setting, plan: Rounds, rng: np.random.Generator) -> _Take:
    calls, load_ms = {}, {}
    for name in rng.permutation(list(ready)):
        session, load_ms[name] = load(ready[name].source, setting)
        calls[name] = bind(session, ready[name].feeds, ready[name].outputs, setting)
    calls = {name: calls[name] for name in ready}
    try:
        seconds = min(WARM_UP_SECONDS, plan.max_seconds / 2)
        warm = {name: warm_up(call, max_seconds=seconds) for name, call in calls.items()}
        return _Take(interleave(calls, plan, rng), load_ms, warm)
    except Exception as error:  # onnxruntime's own types have no common base
        raise GraphError(f"a model fails on {setting.provider} at batch {setting.batch}: {error}") from error


def _peak(ready: _Ready, setting: Setting) -> int | None:
    # What a device's arena holds, onnxruntime does not tell.
    if setting.provider != "CPUExecutionProvider":
        return None
    return peak_memory_bytes(ready.source, ready.feeds, setting.threads)


def _table(setting: Setting, takes: list[_Take], peaks: Mapping[str, int | None]) -> LatencyTable:
    times = {name: np.concatenate([take.times_ms[name] for take in takes]) for name in takes[0].times_ms}
    latencies = {name: _latency(setting, values, name, takes, peaks[name]) for name, values in times.items()}
    first, *rest = times
    return LatencyTable(latencies, tuple(_ratio(setting, name, times[name] / times[first]) for name in rest))


def _latency(setting: Setting, values: np.ndarray, name: str, takes: list[_Take], peak: int | None) -> Latency:
    q1, median, q3, p90, p99 = quantiles(values, 0.25, 0.5, 0.75, 0.9, 0.99)
    return Latency(
        **_shared(setting),
        runs=len(values),
        median_ms=median,
        q1_ms=q1,
        q3_ms=q3,
        p90_ms=p90,
        p99_ms=p99,
        min_ms=float(values.min()),
        interval95_ms=median_interval(values),
        throughput=setting.batch / median * 1e3 if median else None,
        load_ms=float(np.median([take.load_ms[name] for take in takes])),
        peak_memory_bytes=peak,
        warmup_runs=sum(take.warm[name].runs for take in takes),
        stable=all(take.warm[name].stable for take in takes) and q3 <= SPREAD * q1,
        samples_ms=thin(values),
    )


def _ratio(setting: Setting, name: str, ratios: np.ndarray) -> LatencyRatio:
    q1, median, q3 = quantiles(ratios, 0.25, 0.5, 0.75)
    interval = median_interval(ratios)
    return LatencyRatio(
        **_shared(setting), model=name, median=median, q1=q1, q3=q3, interval95=interval, pairs=len(ratios)
    )


def _shared(setting: Setting) -> dict:
    return {
        "provider": setting.provider,
        "threads": setting.threads,
        "batch": setting.batch,
        "precision": setting.precision,
        "cuda_graph": setting.cuda_graph,
        "prefer_nhwc": setting.prefer_nhwc,
    }
