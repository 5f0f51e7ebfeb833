"""The same target with and without whole blocks that go: accuracy on test images that nothing was chosen on, and time.

    python tools/blocks_study.py --model cifar10-resnet20-bn --methods l1 taylor --macs 0.5

Least squares only, no labels, kept sizes in multiples of one. The models and images are those of $ONNXPRUNE_DATA, see
cifar.py. Time is that of the processor for one image and one thread: the original and the results take turns, so that
ratios hold where other programs run beside. --cache FOLDER keeps which blocks were chosen, and goes on with that.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

sys.path.insert(0, str(Path(__file__).parent))
import allocation_study
import cifar

from onnxprune import surgery
from onnxprune.data import input_infos, load_samples
from onnxprune.graph import sessions
from onnxprune.methods.base import Outcome
from onnxprune.options import Options
from onnxprune.plan import cost
from onnxprune.recover import levels
from onnxprune.run import allocation, depth, schedule, search
from onnxprune.run.finish import finish
from onnxprune.run.settings import resolved
from onnxprune.run.subject import Subject, prepare
from onnxprune.system.clock import Clock

TURNS, RUNS = 30, 5  # in which models are timed, and runs of one turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-resnet20-bn")
    parser.add_argument("--methods", nargs="+", default=["l1"])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5])
    parser.add_argument("--samples", type=int, default=1000, help="training images, without labels")
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--start", type=int, default=0, help="the first of the test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blocks", nargs="+", default=[depth.MEASURED], help="which go, as --blocks of onnxprune")
    parser.add_argument("--rows", nargs="+", choices=("none", "blocks"), default=["none", "blocks"])
    parser.add_argument("--cache", type=Path, help="folder for what was chosen")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    print(
        "| method | blocks that go | MACs | parameters | processor time | top-1 | 95 % interval | what was measured |"
    )
    print("|---|---:|---:|---:|---:|---:|---|---|")
    for method in args.methods:
        for macs in args.macs:
            for row in rows(args, method, macs):
                print(row, flush=True)


def rows(args: argparse.Namespace, method: str, macs: float) -> Iterator[str]:
    """The rows without blocks that go and with them, from one scoring."""
    x, tested = allocation_study.images(args.model, args.samples, args.test, args.start)
    given = {"data": x, "val": tested, "target": {"macs": macs}, "align": 1, "latency": False, "method": method}
    options = Options(**given, recover="reconstruct", seed=args.seed)
    settings = resolved(options)
    subject = prepare(cifar.DATA / "models" / f"{args.model}.onnx", options, Clock())
    subject, outcome = schedule.scored(subject, settings, Clock())
    outcome = allocation.allocated(subject, outcome, settings, Clock())
    models, told = {}, {}
    for name in args.rows:
        left, ranking, gone = subject, outcome, ()
        if name == "blocks":
            gone = chosen(args, subject, outcome, options) if args.blocks == [depth.MEASURED] else tuple(args.blocks)
            if not gone:
                continue
            left, ranking = depth.chosen(subject, outcome, resolved(with_blocks(options, gone)), Clock())
        selection = next(search.selections(left, ranking, settings))
        model = surgery.cut(selection)
        levels.recover(left.given, selection, model, settings.recovery, Clock())
        sizes = cost.keep_sizes(selection.keep)
        shares = [f"{left.cost.total(k, sizes) / left.cost.total(k):.3f}" for k in ("macs", "params")]
        count = 0 if left.short is None else len(left.short.blocks)
        models[name], told[name] = finish(model), (str(count), *shares)
    test = load_samples(tested, input_infos(subject.model))
    seconds = times({"original": finish(subject.model), **models}, test.batch(np.arange(1)))
    for name, model in models.items():
        ratio = f"{seconds[name] / seconds['original']:.3f}"
        note = noted(args, method, macs) if name == "blocks" and kept_in(args, method, macs).exists() else ""
        yield "| " + " | ".join((method, *told[name], ratio, *allocation_study.shown(model, test), note)) + " |"


def with_blocks(options: Options, names: tuple[str, ...]) -> Options:
    """`options` with these blocks asked for."""
    return Options(**{**vars(options), "blocks": names})


def chosen(args: argparse.Namespace, subject: Subject, outcome: Outcome, options: Options) -> tuple[str, ...]:
    """The names of the blocks that measuring chooses, from --cache where they are there."""
    file = kept_in(args, "auto" if options.method_found else options.method, options.target["macs"])
    if file.exists():
        return tuple(json.loads(file.read_text())["blocks"])
    left, ranking = depth.chosen(subject, outcome, resolved(with_blocks(options, (depth.MEASURED,))), Clock())
    names = () if left.short is None else tuple(block.name for block in left.short.blocks)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"blocks": names, "note": ranking.notes[-1]}))
    return names


def noted(args: argparse.Namespace, method: str, macs: float) -> str:
    """What was measured, without the names."""
    note = json.loads(kept_in(args, method, macs).read_text())["note"]
    return note.removeprefix("whole blocks: measured, ").partition("): ")[0].replace(" (", ", ")


def kept_in(args: argparse.Namespace, method: str, macs: float) -> Path:
    """The file that holds what was chosen."""
    folder = args.cache or Path("blocks")
    return folder / f"{args.model}_{args.samples}_{method}_{macs:g}_{args.seed}.json"


def times(models: Mapping[str, ir.Model], feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Seconds of the processor that a run of each model takes: the median of turns."""
    opened = {name: sessions.open_session(model, threads=1) for name, model in models.items()}
    found: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(TURNS):
        for name, session in opened.items():
            start = time.process_time()
            for _ in range(RUNS):
                sessions.run(session, feeds)
            found[name].append((time.process_time() - start) / RUNS)
    return {name: float(np.median(values)) for name, values in found.items()}


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
