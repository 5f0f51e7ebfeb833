"""Is the judge of fine-tuning right? What it keeps, against accuracy on test images that nothing here was chosen on.

    python tools/judge.py --model cifar10-resnet20-bn --methods l1 taylor --samples 3000

Each run cuts to half of the MACs, refits, and fine-tunes with other settings; the judge says whether the end is kept.
A case is clear where test accuracy before and after differs by more than two standard errors, image by image.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cifar
import recovery

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.data import Samples, split
from onnxprune.graph import sessions
from onnxprune.outputs import metrics
from onnxprune.recover import constants, levels
from onnxprune.recover.finetune import Settings, finetune
from onnxprune.recover.refit import reconstruct

RUNS = (
    "epochs=1",
    "epochs=3",
    "epochs=3,flip=false,crop=0",
    "epochs=3,lr=0.001",
    "epochs=2,lr=0.3,flip=false,crop=0",
    "epochs=2,lr=3,clip=0",
)
CLEAR = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet20-bn")
    parser.add_argument("--methods", nargs="+", default=["l1", "taylor"])
    parser.add_argument("--macs", type=float, default=0.5)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--test", type=int, default=4000)
    parser.add_argument("--runs", nargs="+", default=RUNS, help="KEY=VALUE,... of fine-tuning")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| model, units | fine-tuning | before | end | kept | clear | right |\n|---|---|---:|---:|---|---|---|")
    for method in args.methods:
        for row in rows(args, method):
            print(row, flush=True)


def rows(args: argparse.Namespace, method: str) -> Iterator[str]:
    """A line of the table for each run."""
    model = graph.normalize(graph.load(cifar.DATA / "models" / f"{args.model}.onnx"))
    coupling = analyze(model)
    tune = recovery._samples(model, "train", args.samples)
    test = recovery._samples(model, "test", args.test)
    selection = recovery.chosen(coupling, method, args.macs, 0, tune)
    learned, judged = split(tune, levels.judged_share(len(tune)), 0)
    start = surgery.cut(selection)
    constants.push(selection, start, learned)
    reconstruct.refit(selection, start, learned, limit=levels.MOST)
    before = right(start, test)
    for text in args.runs:
        settings = settings_of(text)
        end, kept = tuned(start, model, learned, judged, settings)
        after = right(end, test)
        gap = after - before
        error = float(gap.std(ddof=1)) / len(gap) ** 0.5
        clear = abs(float(gap.mean())) > CLEAR * max(error, 1e-12)
        good = ("yes" if (gap.mean() > 0) == (kept == "end") else "no") if clear else "-"
        cells = [f"{args.model}, {method}", text, f"{100 * before.mean():.2f} %", f"{100 * after.mean():.2f} %", kept]
        yield "| " + " | ".join([*cells, "yes" if clear else "no", good]) + " |"


def settings_of(text: str) -> Settings:
    """The settings that 'epochs=3,lr=0.001' says."""
    from onnxprune.recover import asked

    pairs = dict(word.split("=") for word in text.split(","))
    own = {"epochs": int, "lr": float, "batch_size": int}
    given = {key: own[key](value) for key, value in pairs.items() if key in own}
    return Settings(**given, **asked._asked({key: value for key, value in pairs.items() if key not in own}))


def tuned(
    start: ir.Model, teacher: ir.Model, learned: Samples, judged: Samples, settings: Settings
) -> tuple[ir.Model, str]:
    """(the model of the end, kept or not; what the judge keeps: end, start or an epoch)."""
    model = start.clone()
    history = finetune(model, teacher, learned, judged, settings)
    print(history.told, file=sys.stderr)
    if history.best_epoch == len(history.epochs):
        return model, "end"
    scores = iter(range(10**6))  # a metric that always rises keeps the end
    model = start.clone()
    finetune(model, teacher, learned, judged, replace(settings, metric=lambda *_: next(scores)))
    return model, f"epoch {history.best_epoch}" if history.best_epoch else "start"


def right(model: ir.Model, test: Samples) -> np.ndarray:
    """Which of the test images (N,) are told right."""
    outputs: Sequence[np.ndarray] = tuple(metrics.outputs_on(sessions.open_session(model), test).values())
    assert test.labels is not None
    return (outputs[0].argmax(1) == test.labels).astype(float)


if __name__ == "__main__":
    main()
