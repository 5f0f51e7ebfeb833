"""The commands of docs/tasks.md on real trained files: true metrics before and after, and what reports say is kept.

    ONNXPRUNE_WILD=wild PYTHONPATH=. python tools/task_results.py --out tasks.json

Each is the default command, `onnxprune FILE small.onnx --data tools.task_samples:NAME --target macs=0.75`. True metrics
are those of metric_tasks.py, on samples that onnxprune does not see. What is in the rows is not run again. With --time
that option is given as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxprune
from tools import metric_detectors as detectors
from tools import metric_sounds as sounds
from tools import metric_tasks as tasks
from tools import task_samples as samples
from tools.metric_study import TASKS
from tools.metric_tasks import Answers

Row = dict[str, Any]
Truth = Callable[[Path], Callable[[Answers], float]]
RUNS: dict[str, tuple[Callable[[], samples.Arrays], Truth | None]] = {  # task -> samples, truth where it is another
    "turned lines": (samples.turned, None),
    "text recognition": (samples.lines, None),
    "text places": (samples.pages, None),
    "faces": (samples.faces, lambda path: detectors.found_after_tuning(path, "scrfd")),
    "bodies": (samples.bodies, lambda path: detectors.found_after_tuning(path, "yolo")),
    "voice": (samples.streams, sounds.voice_truth),
    "notes": (samples.notes, None),
    "sentences": (samples.sentences, None),
    "image embedding": (samples.crops, lambda path: tasks.copy_truth(path, (0, 150, 300, 450, 600, 750))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of the rows")
    parser.add_argument("--tasks", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--target", type=float, default=0.75, help="share of the MACs (default 0.75)")
    parser.add_argument("--time", help="what the command may take, as 5m")
    args = parser.parse_args()
    rows: list[Row] = json.loads(args.out.read_text()) if args.out.exists() else []
    for name in args.tasks:
        if any((row["task"], row["target"], row["time"]) == (name, args.target, args.time) for row in rows):
            continue
        rows.append(run(name, args.target, args.time))
        args.out.write_text(json.dumps(rows, indent=1))
        print(rows[-1], flush=True)
    print("\n".join(table(rows)))


def run(name: str, target: float, time_given: str | None = None) -> Row:
    """One command and what became of the file."""
    task, (given, truth_of) = TASKS[name], RUNS[name]
    path = samples.WILD / task.file
    answers = task.answers or tasks.answers_of
    truth = (truth_of or task.truth)(path)
    before = truth(answers(path, task.batch))
    with tempfile.TemporaryDirectory() as folder:
        out, report = Path(folder, "small.onnx"), Path(folder, "report.json")
        started = time.monotonic()
        more: dict[str, Any] = {} if time_given is None else {"time": time_given}
        onnxprune.prune(path, out, data=given(), target={"macs": target}, latency=False, report=(report,), **more)
        seconds = time.monotonic() - started
        after = truth(answers(out, task.batch))
        told = json.loads(report.read_text())
    accuracy = told["models"][1]["accuracy"]
    return {
        "task": name, "target": target, "time": time_given, "before": before, "after": after,
        "metric": accuracy["metric"], "share": accuracy["share"], "macs": told["ratios"]["macs"],
        "seconds": round(seconds),
    }  # fmt: skip


def table(rows: Sequence[Row]) -> Iterator[str]:
    """One line per command."""
    yield "| task | file | --time | true metric | before | after, at MACs | kept, as the report says |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        task = TASKS[row["task"]]
        share = "" if row["share"] is None else f"{row['share']:.2f}, by {row['metric']}"
        yield (
            f"| {row['task']} | {task.what} | {row['time'] or ''} | {task.metric} | {row['before']:.3f} | "
            f"{row['after']:.3f}, {row['macs']:.2f} | {share} |"
        )


if __name__ == "__main__":
    main()
