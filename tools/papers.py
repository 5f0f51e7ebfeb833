"""The papers' methods at the papers' budgets: long training, one row after another, resumable at any moment.

    python tools/papers.py OUT                                   # every row of the list below, ended rows are kept
    python tools/papers.py OUT --rows snacs-half cci-8of16 --time 40m
    python tools/papers.py OUT --epochs 200 --device cuda --jobs 4
    python tools/papers.py OUT --list                            # the rows, and whether they have ended
    python tools/papers.py OUT -- --finetune amp=bf16            # options of onnxprune for every row stand behind --

A row is (network, method, target, recipe). It runs in a process of its own, in OUT/<row>/, with checkpoints there: the
same command takes an interrupted row up where it was. A row that has ended is a line of OUT/rows.jsonl and of
OUT/rows.md, with the epochs that were really trained. Fine-tuning sees all 50,000 training images, of which 256 judge
its end; test images give the figure of the row and nothing else. With --time each row takes that long, and its learning
rate falls to its lowest by then. --jobs runs several rows at once, on a GPU for example.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from onnxprune.system.atomic_files import replace_text  # noqa: E402
from tools import cifar  # noqa: E402

Found = dict[str, Any]
RESNET, VGG = "cifar10-resnet56-bn", "cifar10-vgg16-fp16weights"


@dataclass(frozen=True)
class Row:
    """A network, how it is pruned, how it is trained, and what the paper reports for it.

    words: of `onnxprune prune`, which decide what is removed. recipe: a key of RECIPES.
    """

    name: str
    network: str
    words: str
    recipe: str
    paper: str


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What is known of a paper's own training stands in docs/results/papers.md.
RECIPES: Mapping[str, tuple[str, ...]] = {
    # Labels and the original's answers half and half, flip and crop, cosine, average of weights: onnxprune's own.
    "common": _words("--finetune labels=0.5 --finetune flip=true --finetune crop=4"),
    "label-free": _words("--finetune labels=0 --finetune flip=true --finetune crop=4"),
    # MINT's retraining of ResNet-56 and of VGG-16, the same authors' earlier method: labels only.
    "snacs-resnet": _words(
        "--finetune labels=1 --finetune flip=true --finetune crop=4 --lr 0.1 --batch-size 128 "
        "--finetune optimizer=sgd --finetune weight_decay=5e-4 --finetune statistics=batch"
    ),
    "snacs-vgg": _words(
        "--finetune labels=1 --finetune flip=true --finetune crop=4 --lr 0.001 --batch-size 128 "
        "--finetune optimizer=sgd --finetune weight_decay=1e-4"
    ),
}

# What the figures of SNACS are about: half of the MACs, 63 and 85 % fewer parameters.
HALF = "--method snacs --align 1 --target macs=0.5"
THIRD = "--method snacs --align 1 --target params=0.37"
SEVENTH = "--method snacs --align 1 --target params=0.15"
FEWER_63, FEWER_85 = "SNACS: 63 % fewer parameters, 0.5 points lost", "SNACS: 85 % fewer parameters, 93.43 % or more"
ROWS = (
    Row("snacs-half", RESNET, HALF, "common", "CHIP 94.16 % at 0.53, DepGraph 93.77 % at 0.47"),
    Row("snacs-63", RESNET, THIRD, "common", FEWER_63),
    Row("cci-8of16", RESNET, "--method cci --option group=16 --option kept=8", "common", "no figure found"),
    Row("aswl-90", RESNET, "--method aswl --option density=0.1", "common", "no figure found"),
    Row("aswl-50", RESNET, "--method aswl --option density=0.5", "common", "no figure found"),
    Row("snacs-vgg-85", VGG, SEVENTH, "common", FEWER_85),
    Row("taylor-half", RESNET, "--method taylor --align 1 --target macs=0.5", "common", "as snacs-half"),
    Row("l1-half", RESNET, "--method l1 --align 1 --target macs=0.5", "common", "as snacs-half"),
    Row(
        "paam-half",
        RESNET,
        "--method paam --align 1 --target params=0.48",
        "common",
        "PAAM: 52 % fewer parameters, 1.02 points won",
    ),
    Row(
        "paam-scratch",
        RESNET,
        "--method paam --option reinit=true --align 1 --target params=0.48",
        "common",
        "PAAM: 52 % fewer parameters, 1.02 points won, in one stage from random weights",
    ),
    Row("gss-80", RESNET, "--method gss --align 1 --target params=0.2", "common", "GSS: 0.51 points lost"),
    Row("gss-90", RESNET, "--method gss --align 1 --target params=0.1", "common", "GSS: 0.62 points lost"),
    Row("cci-2of4", RESNET, "--method cci --option axis=input --option group=4 --option kept=2", "common", ""),
    Row("snacs-half-label-free", RESNET, HALF, "label-free", "as snacs-half"),
    Row("snacs-63-own", RESNET, THIRD, "snacs-resnet", FEWER_63),
    Row("snacs-vgg-85-own", VGG, SEVENTH, "snacs-vgg", FEWER_85),
)


def command(row: Row, folder: Path, args: argparse.Namespace) -> list[str]:
    """The words of the process that makes the row."""
    prefix = "vgg_" if row.network == VGG else ""
    model = Path(row.network) if row.network.endswith(".onnx") else cifar.DATA / "models" / f"{row.network}.onnx"
    data = args.data or f"tools.cifar:{prefix}train"
    test = args.test or f"tools.cifar:{prefix}test"
    words = [sys.executable, "-m", "onnxprune", str(model), str(folder / "out.onnx"), "--data", data, "--val", test]
    words += [*row.words.split(), *RECIPES[row.recipe]]
    words += ["--recover", "finetune", "--seed", str(args.seed), "--no-latency"]
    words += ["--device", args.device, "--resume", str(folder / "checkpoints"), "--report", str(folder / "report.json")]
    words += ["--epochs", str(args.epochs)] if args.epochs else []
    words += ["--time", args.time] if args.time else []
    return [*words, *args.rest, "-v"]


def make(row: Row, args: argparse.Namespace) -> Found | None:
    """The row, made now or earlier; None where its process failed, which its log then tells."""
    folder = args.out / row.name
    folder.mkdir(parents=True, exist_ok=True)
    if (found := ended(row, args.out)) is None:
        words = command(row, folder, args)
        print(f"{row.name}: {shlex.join(words)}", file=sys.stderr, flush=True)
        with (folder / "log.txt").open("a") as log:
            paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
            code = subprocess.run(words, cwd=ROOT, stderr=log, stdout=log, env={**os.environ, "PYTHONPATH": paths})
        if code.returncode:
            print(f"{row.name}: exit code {code.returncode}, see {folder / 'log.txt'}", file=sys.stderr, flush=True)
            return None
        found = row_of(row, json.loads((folder / "report.json").read_text(encoding="utf-8")), args.seed)
        replace_text(folder / "row.json", json.dumps(found, indent=1) + "\n")
    write_table(args.out)
    return found


def ended(row: Row, out: Path) -> Found | None:
    """The row as it was stored; None where it has not ended yet."""
    path = out / row.name / "row.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def row_of(row: Row, report: Mapping[str, Any], seed: int) -> Found:
    """What the report of a run says of it."""
    original, pruned = report["models"]
    chosen = {name: choice["value"] for name, choice in report["settings"].items()}
    points = report["finetune"]
    return {
        "row": row.name,
        "network": Path(row.network).stem,
        "words": row.words,
        "recipe": row.recipe,
        "paper": row.paper,
        "seed": seed,
        "original": original["accuracy"]["value"],
        "accuracy": pruned["accuracy"]["value"],
        "interval95": pruned["accuracy"]["interval95"],
        "samples": pruned["accuracy"]["samples"],
        "macs": pruned["macs"] / original["macs"],
        "params": pruned["params"] / original["params"],
        "nonzeros": pruned["nonzeros"] / original["nonzeros"],
        "epochs": points[-1]["epoch"] if points else 0,
        "settings": {
            name: chosen[name] for name in ("batch_size", "optimizer", "lr", "ema", "statistics", "batchnorm")
        },
        "judge": next((note for note in report["notes"] if note.startswith("fine-tuning was")), ""),
        "proof": report["verify"]["ok"],
        "steps": {step["name"]: round(step["seconds"], 1) for step in report["steps"]},
        "seconds": round(sum(step["seconds"] for step in report["steps"])),
        "command": report["command"],
    }


HEAD = "row | original | result | 95 % interval | MACs | parameters | non-zeros | recipe | epochs | seconds | the paper"


def write_table(out: Path) -> None:
    """OUT/rows.jsonl and OUT/rows.md, of all rows in the folder that have ended."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/row.json"))]
    replace_text(out / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"| {HEAD} |", "|---|" + "---:|" * 6 + "---|---:|---:|---|", *map(_line, rows)]
    replace_text(out / "rows.md", "\n".join(lines) + "\n")


def _line(row: Found) -> str:
    low, high = row["interval95"]
    cells = [
        f"{row['row']}: {row['network']}, {row['words']}",
        f"{100 * row['original']:.2f} %",
        f"{100 * row['accuracy']:.2f} %",
        f"{100 * low:.2f} to {100 * high:.2f} %",
        *(f"{row[name]:.3f}" for name in ("macs", "params", "nonzeros")),
        row["recipe"],
        f"{row['epochs']:.3g}",
        str(row["seconds"]),
        row["paper"],
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None, rows: Sequence[Row] = ROWS) -> int:
    """0 where all rows that were asked for have ended."""
    args = parsed(list(sys.argv[1:] if argv is None else argv), rows)
    chosen = sorted((row for row in rows if row.name in args.rows), key=lambda row: args.rows.index(row.name))
    if args.list:
        for row in chosen:
            state = "ended" if ended(row, args.out) else "not ended"
            print(f"{row.name}: {Path(row.network).stem}, {row.words}, recipe {row.recipe}: {state}")
        return 0
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda row: make(row, args), chosen))
    return 0 if all(found) else 1


def parsed(words: list[str], rows: Sequence[Row]) -> argparse.Namespace:
    """The options; `rest` are those behind --, for onnxprune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in rows]
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the rows")
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help="these, in this order")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, at most; default: chosen by device and time")
    parser.add_argument("--time", help="of each row, such as 40m; default: 20m of fine-tuning, or the epochs asked for")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    parser.add_argument("--jobs", type=int, default=1, help="rows at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", help="samples to tune on; default: all training images of CIFAR-10")
    parser.add_argument("--test", help="samples to measure on; default: all test images of CIFAR-10")
    parser.add_argument("--list", action="store_true", help="say which rows there are and which have ended")
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:end])
    args.rest, args.out = words[end + 1 :], args.out.resolve()
    return args


if __name__ == "__main__":
    sys.exit(main())
