"""The runs of a comparison, one after the other through the pipeline; each is stored as soon as it is finished.

Model and samples are loaded once, and the samples are divided once: every run tunes and is measured on the same ones.
"""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune import graph, quantize, report
from onnxprune.data import Samples
from onnxprune.errors import OnnxPruneError, first_line, no_samples
from onnxprune.measure import machine, measure_file
from onnxprune.measure.records import ratio
from onnxprune.options import Options, options_of, provider_for
from onnxprune.outputs import metrics
from onnxprune.run import checks, first_check, measuring, pipeline
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.studies.compare.grid import Run
from onnxprune.studies.compare.store import Row, Store, file_name
from onnxprune.surgery import dead
from onnxprune.system.atomic_files import scratch
from onnxprune.system.clock import Clock

LOG = logging.getLogger("onnxprune")
DIGESTED = 64  # samples of each set by which it is known again
COMMON = (
    "recover", "epochs", "lr", "batch_size", "finetune", "steps", "align", "floor", "include", "exclude", "exact_only",
    "inner_only", "allocate", "blocks", "device", "preprocess", "data", "val",
)  # fmt: skip


def compare(
    path: Path,
    folder: Path,
    wanted: Sequence[Run],
    common: Options,
    *,
    keep_models: bool = False,
    again: bool = False,
    show: Callable[[Mapping[str, Any], list[Row]], object] = lambda head, rows: None,
) -> tuple[Mapping[str, Any], list[Row]]:
    """(settings, all rows of `folder`) after what of `wanted` is not stored there was run.

    again: repeat what failed. show: called with the settings and all rows at the start and after each run.
    Raises: UsageError for settings that no run could have, or that differ from those of `folder`.
    """
    checks.check_apart(folder, checks.read(path, common), "--out")
    planned = {run.key: (run, run.options(common)) for run in wanted}  # all are checked before the first one
    for form in dict.fromkeys(run.quantize for run in wanted):
        quantize.check(quantize.parse(form), provider_for(common), common.data is not None)
    checks.check_devices(common.device, provider_for(common) if common.latency else None)
    subject = prepare(path, replace(common, seed=0), Clock())
    if subject.held is None or not len(subject.held):
        raise no_samples("compare")
    first_check.check(subject, common.metric)
    settings = settings_of(subject, common)
    store = Store(folder, settings)
    judge = measuring.yardstick(subject, subject.held, common.metric)
    subject = replace(subject, accuracy=judge.accuracy)
    original, before = original_of(subject), graph.digest(subject.model)
    head = {**settings, "original": original}
    rows = store.rows()
    done = {row["key"] for row in rows if not (again and row.get("error"))}
    missing = [pair for key, pair in planned.items() if key not in done]
    LOG.info("%d runs, %d of them are done", len(planned), len(planned) - len(missing))
    show(head, rows)
    for number, (run, options) in enumerate(missing, 1):
        LOG.info("%d of %d: %s", number, len(missing), run.key)
        row = _row(subject, run, options, original, folder / "models" if keep_models else None)
        store.add(row)
        if graph.digest(subject.model) != before:  # every run has to start from the same weights
            raise AssertionError(f"{run.key} changed the model that all runs share")
        rows = store.rows()
        show(head, rows)
    return head, rows


def settings_of(subject: Subject, common: Options) -> dict[str, Any]:
    """The facts that all rows of a folder share."""
    values = {name: getattr(common, name) for name in COMMON}
    return {
        "model": {"name": subject.path.name, "sha256": subject.sha256},
        "samples": {"tune": _digest(subject.tune), "held": _digest(subject.held)},
        "options": {name: _plain(value) for name, value in values.items()} | {"recover": common.level},
        "command": common.command,
        "machine": machine(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(held) for held in value]
    return value if value is None or isinstance(value, int | float | str) else str(value)


def common_of(settings: Mapping[str, Any]) -> Options:
    """The options that all runs of a folder share, from its settings: for tools that add rows to it."""
    return options_of({**settings["options"], **settings["options"]["preprocess"], "latency": False})


def _digest(samples: Samples | None) -> dict[str, Any] | None:
    """Number of samples, and a digest of the first ones and of all labels."""
    if samples is None or not len(samples):
        return None
    hasher = sha256()
    for name, array in sorted(samples.batch(np.arange(min(DIGESTED, len(samples)))).items()):
        hasher.update(name.encode() + np.ascontiguousarray(array).tobytes())
    if samples.labels is not None:
        hasher.update(np.ascontiguousarray(samples.labels).tobytes())
    return {"count": len(samples), "sha256": hasher.hexdigest()}


def original_of(subject: Subject) -> dict[str, Any]:
    """Costs of the original, and its accuracy where it was measured; shares are of these numbers."""
    costs = subject.cost.totals()
    return {
        "accuracy": None if subject.accuracy is None else asdict(subject.accuracy),
        "macs": costs["macs"],
        "params": costs["params"],
        "nonzeros": dead.nonzeros(subject.model),
        "nonzero_macs": dead.nonzero_macs(subject.model),
        "bytes": measure_file("original", subject.path, costs).bytes,
    }


# One run ----------------------------------------------------------------------------------------------------------


def _row(subject: Subject, run: Run, options: Options, original: Mapping[str, Any], models: Path | None) -> Row:
    """The row of a run; of one that was refused or failed, its reason."""
    start = perf_counter()
    clock = Clock()
    told = {"key": run.key, "method": run.method, "target": run.target, "seed": run.seed, "tool": "onnxprune"}
    try:
        with scratch() as folder:
            found = row_of(subject, Path(folder, "out.onnx"), options, original, clock, models, run.key)
    except OnnxPruneError as error:
        found = {"error": str(error), "kind": type(error).__name__}
    except Exception as error:  # a fault of ours must not cost the runs to come; the table shows it
        LOG.debug("%s", traceback.format_exc())
        found = {"error": f"internal error: {type(error).__name__}: {first_line(error)}", "kind": "internal"}
    if "error" in found:
        LOG.warning("%s: %s", run.key, found["error"])
    steps = {step.name: round(step.seconds, 3) for step in clock.steps}
    return {**told, **found, "seconds": round(perf_counter() - start, 3), "steps": steps}


def row_of(
    subject: Subject,
    out: Path,
    options: Options,
    original: Mapping[str, Any],
    clock: Clock,
    models: Path | None,
    key: str,
) -> Row:
    """The row of a run: accuracy after the cut and in the end, and what remains of each cost."""
    cut: list[metrics.Accuracy | None] = []

    def look(model: ir.Model) -> None:
        assert subject.held is not None
        cut.append(measuring.yardstick(subject, subject.held, options.metric).of(model))

    result = pipeline.prune_subject(subject, out, resolved(options), clock, look)
    made = graph.load(out)
    row = measured(result.after, graph.normalize(made), original)
    row["cut"] = None if cut[-1] is None else cut[-1].value
    if result.report.latency_ratios:
        row["latency"] = result.report.latency_ratios[0].median
    proof = result.report.verify
    row["verify"] = None if proof is None else {"max_abs": proof.max_abs, "scale": proof.scale}
    row["notes"] = list(result.report.notes)
    if models is not None:
        models.mkdir(exist_ok=True)
        graph.save(made, models / f"{file_name(key)}.onnx")
    return row


def measured(after: report.Measurement, made: ir.Model, original: Mapping[str, Any]) -> Row:
    """Accuracy, and the shares of the original that remain in `made`, which is normalized as the original is.

    Rows from other tools have this form, too.
    """
    return {
        "accuracy": None if after.accuracy is None else asdict(after.accuracy),
        "macs": ratio(original["macs"], after.macs),
        "params": ratio(original["params"], after.params),
        "nonzeros": ratio(original["nonzeros"], dead.nonzeros(made)),
        "nonzero_macs": ratio(original["nonzero_macs"], dead.nonzero_macs(made)),
        "bytes": ratio(original["bytes"], after.bytes),
    }
