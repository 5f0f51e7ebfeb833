"""Prunes every .onnx file of a folder with random scores and writes what came of each: the zoo's table.

For each file, in copies of this process with a time limit (so seconds are without those of the imports):
`onnxprune inspect FILE --json`, then `onnxprune FILE OUT --method random --recover none --target params=0.5`, then
`onnxprune verify FILE OUT --plan PLAN`, then OUT is run in onnxruntime by feeds.py. A second call goes on where the
first stopped.

Status: pruned; refused (exit 1 or 2, one reason, no OUT); unequal (exit 3: cut and mask differ); crashed; timeout.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import feeds
from jobs import (
    Job,
    Row,
    last_json,
    load_rows,
    markdown_table,
    note,
    run_forked,
    run_job,
    save_rows,
    with_former,
    write_text,
)

COLUMNS = (
    "file status target analysed free_dims frozen_reasons shrinkable kept_params cut_equals_mask difference verified"
    " fallbacks runs same_interface prune_s peak_mb message"
).split()

INTRODUCTION = """Written by `tools/zoo/run.py FOLDER --out TABLE`: each file through the whole command
`onnxprune FILE OUT --method random --recover none --target params=0.5`, or to the nearest target that it names, then
`onnxprune verify FILE OUT --plan PLAN`. *shrinkable* is the share of parameters that stand on a free dimension,
*difference* the largest between the cut and the masked model over the largest output; *runs* and *same interface* are
what onnxruntime alone says (empty where no random input suits the original); *fallbacks* is what `inspect` says was
done in a lesser way because a rule, a rewriting or a comparison failed. A file that is refused leaves no output,
and its message is all that the user sees."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FOLDER|FILE", help=".onnx files, or folders of them")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="TABLE", help="table.json or table.md; both are written"
    )
    parser.add_argument("--target", default="params=0.5", metavar="KEY=FRACTION", help="default: params=0.5")
    parser.add_argument("--method", default="random", help="default: random")
    parser.add_argument(
        "--extra",
        default="--no-latency",
        metavar="OPTIONS",
        help="further options of onnxprune, in one string (default: --no-latency)",
    )
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one command (default 600)")
    parser.add_argument(
        "--former", type=Path, metavar="FILE.md", help="an earlier table: files of it not looked at now are kept"
    )
    parser.add_argument("--at-most", type=int, metavar="N", help="stop after so many files; the next call goes on")
    parser.add_argument("--match", default="", metavar="REGEX", help="only files whose name has this")
    parser.add_argument("--again", nargs="*", metavar="STATUS", help="repeat these (no STATUS: everything)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the pruned files and plans here")
    return parser.parse_args(argv, argparse.Namespace(threads=1, forked=True))


def find_files(inputs: Iterable[Path], pattern: str) -> list[Path]:
    """The .onnx files named or contained, by name; smallest first, so that a table fills quickly."""
    found = {f for path in inputs for f in (path.rglob("*.onnx") if path.is_dir() else [path])}
    return sorted((f for f in found if re.search(pattern, f.name)), key=lambda f: (f.stat().st_size, f.name))


def status_of(job: Job) -> str:
    """What the exit code of a pruning run says."""
    if job.timed_out:
        return "timeout"
    if "Traceback" in job.stderr or "internal error" in job.stderr:
        return "crashed"
    return {0: "pruned", 1: "refused", 2: "refused", 3: "unequal"}.get(job.code, "crashed")


def command(words: Sequence[object], args: argparse.Namespace) -> Job:
    """One command of onnxprune, as its own process or (args.forked) in a copy of this one."""
    given = [str(word) for word in words]
    if not getattr(args, "forked", False):
        return run_job([sys.executable, "-m", "onnxprune", *given], args.timeout, args.threads)
    from onnxprune.cli import main as onnxprune

    return run_forked(partial(onnxprune, given), args.timeout)


def preload() -> None:
    """Imports once what each copy of this process needs."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    gc.set_threshold(50_000, 10, 20)
    from onnxprune.graph import simplify
    from onnxprune.methods import random_  # noqa: F401

    simplify._import_onnxsim()


def inspect(file: Path, args: argparse.Namespace) -> Row:
    """What `onnxprune inspect` finds: free and frozen Dims, the three first reasons, the share that can shrink."""
    job = command(["inspect", file, "--json"], args)
    row: Row = {"inspect_s": job.seconds, "analysed": job.code == 0}
    if job.code:
        return {**row, "message": job.message.replace(str(file), file.name).removeprefix("onnxprune: ")}
    found = json.loads(job.stdout)
    reasons = Counter(re.sub(r" '[^']*'", "", entry["reason"].split(" (")[0]) for entry in found["frozen"])
    return {
        **row,
        "free_dims": len(found["dims"]),
        "frozen_dims": len(found["frozen"]),
        "frozen_reasons": [f"{reason} ({count})" for reason, count in reasons.most_common(3)],
        "shrinkable": found["shrinkable"]["params"],
        "fallbacks": found["notes"],
    }


def prune(file: Path, out: Path, args: argparse.Namespace) -> Row:
    """What pruning to the target gives; where it cannot be met, to the nearest target that onnxprune names."""
    row = prune_to(args.target, file, out, args)
    nearest = re.search(r"nearest is (\w+)=([0-9.]+[0-9])", row.get("message", ""))
    if row["code"] != 1 or not nearest:
        return row
    target = f"{nearest[1]}={min(1.0, float(nearest[2]) + 0.01):.3f}"
    return {**prune_to(target, file, out, args), "asked": args.target}


def prune_to(target: str, file: Path, out: Path, args: argparse.Namespace) -> Row:
    """What one pruning run gives: status, parameters kept, the proof's numbers, seconds by step, peak memory."""
    report, plan = out.with_suffix(".report.json"), out.with_suffix(".plan.json")
    words = [file, out, "--method", args.method, "--recover", "none", "--target", target]
    job = command([*words, "--report", report, "--plan", plan, *args.extra.split()], args)
    row: Row = {
        "status": status_of(job),
        "target": target,
        "code": job.code,
        "prune_s": job.seconds,
        "peak_mb": job.peak_mb,
    }
    if job.code:
        left = " (and yet OUT was written)" if out.exists() else ""
        message = job.message.replace(str(file), file.name).removeprefix("onnxprune: ")
        return {**row, "message": message + left}
    found = json.loads(report.read_text())
    verified = found["verify"] or {}
    scale = verified.get("scale") or 1.0
    return {
        **row,
        "kept_params": found["ratios"]["params"],
        "cut_equals_mask": verified.get("ok"),
        "difference": verified["max_abs"] / scale if verified else None,
        "steps": {step["name"]: step["seconds"] for step in found["steps"]},
    }


def check(file: Path, out: Path, timeout_s: float) -> Row:
    """What onnxruntime says of the pruned file; `runs` stays unknown where already the original ends its process."""
    job = run_forked(partial(feeds.compare, str(file), str(out)), timeout_s)
    if job.code == 0 and (row := last_json(job.stdout)):
        return row
    tool = [sys.executable, str(Path(__file__).with_name("feeds.py")), str(file)]
    job = run_job([*tool, str(out)], timeout_s)
    if job.code == 0:
        return json.loads(job.stdout)
    alone = run_job([*tool, str(file)], timeout_s)
    return {"runs": None if alone.code else False, "message": job.message}


def one(file: Path, args: argparse.Namespace) -> Row:
    """The row of one file."""
    row: Row = {"key": str(file), "file": file.name, "bytes": file.stat().st_size}
    row |= inspect(file, args)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        out = folder / file.name
        pruned = prune(file, out, args)
        row |= pruned
        if pruned["status"] == "pruned":
            verified = command(["verify", file, out, "--plan", out.with_suffix(".plan.json")], args)
            row["verified"] = verified.code == 0
            row |= check(file, out, args.timeout)
    return row


def summary(rows: Sequence[Row]) -> str:
    """The counts and medians that a reader looks for first, as Markdown lines."""
    statuses = Counter(row["status"] for row in rows)
    shares = sorted(row["shrinkable"] for row in rows if row.get("shrinkable") is not None)
    seconds = sorted(row["prune_s"] for row in rows)
    true = {
        name: sum(row.get(name) is True for row in rows) for name in ("analysed", "cut_equals_mask", "verified", "runs")
    }
    lines = [
        f"{len(rows)} files: " + ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
        f"analysed: {true['analysed']}; cut = mask: {true['cut_equals_mask']}; verified again by its plan:"
        f" {true['verified']} of the {sum('verified' in row for row in rows)} looked at; runs: {true['runs']}",
    ]
    told = [row["fallbacks"] for row in rows if "fallbacks" in row]
    lines.append(f"fallbacks: {sum(map(len, told))} in {sum(map(bool, told))} of the {len(told)} files that were asked")
    if shares:
        middle, few = statistics.median(shares), sum(share < 0.6 for share in shares)
        lines.append(f"parameters that can shrink: median {middle:.1%}, least {shares[0]:.1%}, {few} files below 60 %")
    if seconds:
        lines.append(f"seconds of a pruning run: median {statistics.median(seconds):.1f}, most {seconds[-1]:.1f}")
    return "\n".join(f"- {line}" for line in lines) + "\n"


FORMER = """All of the above counts files that were looked at with the proof as it is now (column *proof*: this).
{} more rows of the table are of the proof before it (former): {} pruned, cut = mask for {} of these.
"""


def write_tables(out: Path, rows: dict[str, Row], former: Path | None = None) -> None:
    """TABLE.json and TABLE.md from all rows so far; trouble first in the Markdown.

    former: an earlier table, whose rows of other files are kept.
    """
    save_rows(out.with_suffix(".json"), rows, format="onnxprune-zoo-run/1")
    ordered = sorted(rows.values(), key=lambda row: (row["status"] == "pruned", row["status"], row["file"]))
    columns, said, table = COLUMNS, summary(ordered), ordered
    if former is not None:
        columns, table = [*COLUMNS, "proof"], with_former(ordered, former.read_text(), ("file",))
        kept = [row for row in table if row["proof"] == "former"]
        pruned = [row for row in kept if row["status"] == "pruned"]
        equal = [row for row in pruned if row["cut_equals_mask"] == "yes"]
        said += "\n" + FORMER.format(len(kept), len(pruned), len(equal))
    text = f"# {out.stem}\n\n{INTRODUCTION}\n\n{said}\n{markdown_table(columns, table)}"
    write_text(out.with_suffix(".md"), text)


def is_done(row: Row | None, again: Sequence[str] | None) -> bool:
    """True if this row stands and need not be made again."""
    return row is not None and (again is None or (bool(again) and row["status"] not in again))


def main(argv: list[str] | None = None) -> int:
    """0 if every file was pruned or refused, 1 if one was unequal, crashed, or took too long."""
    args = parse(argv)
    rows = load_rows(args.out.with_suffix(".json"))
    left = [f for f in find_files(args.inputs, args.match) if not is_done(rows.get(str(f)), args.again)]
    preload()
    for file in left[: args.at_most]:
        row = one(file, args)
        rows[row["key"]] = row
        write_tables(args.out, rows, args.former)
        note(f"{row['file']}: {row['status']} {row.get('message') or ''} ({row['prune_s']:.1f} s)")
    write_tables(args.out, rows, args.former)
    print(summary(list(rows.values())), end="")
    return 0 if all(row["status"] in ("pruned", "refused") and row["analysed"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
