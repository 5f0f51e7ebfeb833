"""Does alignment pay? Original, aligned, unaligned and uniformly narrowed networks of equal MACs, interleaved.

    python tools/align.py resnet50.onnx mobilenet_v2.onnx --repeat 3 --markdown docs/results/alignment.md

Scores are those of `--method` (weights only); no accuracy is measured here, times do not depend on what weights say.
The uniformly narrowed network keeps the same share of every dimension, rounded to the same multiple: what a designer
would have built at these MACs.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxprune import graph, surgery
from onnxprune.measure import Rounds, doubts, machine, measure_latency
from onnxprune.measure.calibrations import alignment_for
from onnxprune.methods import base
from onnxprune.options import Options
from onnxprune.plan import cost
from onnxprune.plan.select import Budget, Selection, alignment, select
from onnxprune.run.settings import Widths
from onnxprune.run.subject import Subject, prepare, scored_dims
from onnxprune.system.clock import Clock


@dataclass(frozen=True)
class Row:
    """One variant of one network: MACs and time divided by the original's, medians over the repetitions."""

    network: str
    variant: str
    macs: float
    times: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return float(np.median(self.times))

    @property
    def share(self) -> float:
        """Speed-up divided by the reduction of MACs."""
        return self.macs / self.ratio


def variants(subject: Subject, method: str, macs: float, align: int) -> dict[str, Mapping]:
    """Kept positions by variant; all have the MACs of the aligned one, as near as sizes allow."""
    context = base.Context(subject.coupling, subject.cost, scored_dims(subject.coupling, Widths()))
    outcome = base.run(base.get(method), context)
    budget = Budget({"macs": macs}, align=align)
    chosen = select(outcome.ranking, subject.cost, budget, comparable=outcome.comparable)
    reached = share_of(subject, chosen)
    free = select(
        outcome.ranking,
        subject.cost,
        replace(budget, targets={"macs": reached}, align=1),
        comparable=outcome.comparable,
    )
    return {
        f"aligned to {align}": chosen,
        "unaligned": free,
        f"uniform, multiples of {align}": uniform(subject, reached, align),
        "uniform, unaligned": uniform(subject, reached, 1),
    }


def share_of(subject: Subject, keep: Mapping) -> float:
    return subject.cost.total("macs", cost.keep_sizes(keep)) / subject.cost.total("macs")


def uniform(subject: Subject, macs: float, align: int) -> dict:
    """The same share of every free Dim, rounded to multiples, with MACs nearest to `macs`."""
    found = [narrowed(subject, share, align) for share in np.linspace(0.3, 1.0, 281)]
    return min(found, key=lambda keep: abs(share_of(subject, keep) - macs))


def narrowed(subject: Subject, share: float, align: int) -> dict:
    keep = {}
    for dim in subject.coupling.free:
        step = alignment(dim.size, align)
        kept = min(dim.size, max(step, step * round(share * dim.size / step)))
        keep[dim] = np.arange(dim.size) < kept
    return keep


def compare(path: Path, arguments: argparse.Namespace, align: int) -> list[Row]:
    """All variants of one network against it, in interleaved rounds, `repeat` times with fresh sessions."""
    subject = prepare(path, Options(), Clock())
    plans = variants(subject, arguments.method, arguments.macs, align)
    with tempfile.TemporaryDirectory() as folder:
        models = {"original": str(path)}
        for number, (name, keep) in enumerate(plans.items()):
            models[name] = str(Path(folder) / f"{number}.onnx")
            graph.save(graph.finish(surgery.cut(Selection(subject.coupling, keep))), models[name])
        rounds = Rounds(runs=30, min_seconds=2.0, max_seconds=arguments.seconds)
        setting = {"provider": arguments.provider, "threads": arguments.threads, "rounds": rounds}
        tables = [measure_latency(models, **setting, sessions=1, memory=False) for _ in range(arguments.repeat)]
    busy = sum(bool(doubts(table)) for table in tables)
    print(f"{path.stem}: the machine was busy in {busy} of {len(tables)} repetitions", file=sys.stderr)
    return [_row(path.stem, name, share_of(subject, plans[name]), tables) for name in plans]


def _row(network: str, name: str, macs: float, tables: list) -> Row:
    ratios = tuple(next(r.median for r in table.ratios if r.model == name) for table in tables)
    return Row(network, name, macs, ratios)


def markdown(rows: list[Row]) -> str:
    """The table of results."""
    lines = [
        "| network | variant | MACs | time | least and most | speed-up | speed-up / MACs reduction |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.macs:.3f}", f"{row.ratio:.3f}", f"{min(row.times):.3f} to {max(row.times):.3f}"]
        cells += [f"{1 / row.ratio:.2f}", f"{row.share:.2f}"]
        lines.append(f"| {row.network} | {row.variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures all networks and prints or writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--method", default="l2")
    parser.add_argument("--align", default="auto")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="at most this long per repetition and network")
    parser.add_argument("--markdown", type=Path, help="append the table to this file")
    arguments = parser.parse_args()
    align = alignment_for("auto" if arguments.align == "auto" else int(arguments.align), arguments.provider)
    where = machine()
    versions = where["versions"]
    print(f"{where['cpu']}, {where['cores']} cores, {arguments.threads} thread(s), multiples of {align}")
    print(", ".join(f"{name} {versions[name]}" for name in sorted(versions) if name.startswith("onnx")))
    rows = [row for path in arguments.models for row in compare(path, arguments, align)]
    found = markdown(rows)
    print(found)
    if arguments.markdown is not None:
        before = arguments.markdown.read_text() if arguments.markdown.exists() else ""
        arguments.markdown.write_text(before + found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
