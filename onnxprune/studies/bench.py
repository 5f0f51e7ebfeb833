"""The `bench` command: models against the first of them, for every provider, batch size and number of threads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import perf_counter

from onnxprune import graph
from onnxprune.errors import UsageError
from onnxprune.graph.inputs import fixed_batch
from onnxprune.graph.sessions import provider_name
from onnxprune.measure import sparsity
from onnxprune.measure.files import measure_file
from onnxprune.measure.host import machine, tool
from onnxprune.measure.latency import doubts, measure_latency
from onnxprune.measure.nodes import profile
from onnxprune.measure.records import LatencyTable, Measurement, Profile, Report, Step, with_latencies
from onnxprune.measure.timing import Rounds
from onnxprune.report.write import check_report_path, write_report

Measure = Callable[[str, Path], Measurement]


def run_bench(
    models: Sequence[str | Path],
    providers: Sequence[str] = ("cpu",),
    batches: Sequence[int] | None = None,
    threads: Sequence[int | None] = (None,),
    reports: Sequence[str | Path] = (),
    *,
    command: str = "",
    rounds: Rounds | None = None,
    profiles: bool = True,
    measure: Measure | None = None,
    **options,
) -> Report:
    """Times `models`, writes `reports`, and returns the report; the first model is what ratios refer to.

    batches: None takes 1, or the batch that the models are fixed to. measure: cost of a named file, `measure_file`
    unless given. options: those of `measure_latency` (fp16, cuda_graph, prefer_nhwc, sparsity, sizes, sessions,
    memory, seed).
    """
    if not models:
        raise UsageError("bench needs at least one model; give the path of an .onnx file")
    targets = [check_report_path(path) for path in reports]
    paths = _named(models)
    steps, tables, where = [], [], []
    start = perf_counter()
    measured = [(measure or measure_file)(name, path) for name, path in paths.items()]
    steps.append(Step("read models", perf_counter() - start))
    for provider, batch, count in product(providers, batches or [_default_batch(paths)], threads):
        start = perf_counter()
        setting = {"provider": provider, "batch": batch, "threads": count}
        tables.append(measure_latency(paths, rounds=rounds, **setting, **options))
        where += _profiles(paths, setting, options) if profiles else []
        steps.append(Step(f"time on {provider}, batch {batch}", perf_counter() - start))
    report = _report(command, measured, tables, where, steps)
    if options.get("sparsity"):
        report = replace(report, notes=(*report.notes, *(sparsity.told(name, path) for name, path in paths.items())))
    for path in targets:
        write_report(report, path)
    return report


def _named(models: Sequence[str | Path]) -> dict[str, Path]:
    """Paths by name: the file's stem, with #2, #3 for further models of one name."""
    found: dict[str, Path] = {}
    for path in map(Path, models):
        same = sum(other.stem == path.stem for other in found.values())
        found[f"{path.stem}#{same + 1}" if same else path.stem] = path
    return found


def _default_batch(paths: Mapping[str, Path]) -> int:
    fixed = [fixed_batch(graph.load(path)) for path in paths.values()]
    return next((size for size in fixed if size is not None), 1)


def _profiles(paths: Mapping[str, Path], setting: Mapping, options: Mapping) -> list[Profile]:
    chosen = {key: options[key] for key in ("fp16",) if key in options}
    batch, provider = setting["batch"], provider_name(setting["provider"])
    return [Profile(name, provider, batch, profile(path, **setting, **chosen)) for name, path in paths.items()]


def _report(command: str, models: list[Measurement], tables: list[LatencyTable], profiles, steps) -> Report:
    notes = [note for table in tables for note in doubts(table)]
    report = Report(command, with_latencies(models, tables), tuple(r for table in tables for r in table.ratios))
    kept = {"profile": tuple(profiles), "steps": tuple(steps), "notes": tuple(notes)}
    return replace(report, **kept, tool=tool(), machine=machine())
