"""Asks `verify` about results of every recovery: accepted with the plan of the run, refused with another one.

For each .onnx file, smallest first: `onnxprune FILE OUT --method random --target params=0.7 --recover LEVEL` on random
samples for every LEVEL, then `onnxprune verify FILE OUT --plan PLAN`, with the plan that OUT was made with and with
that of another seed. Everything runs in copies of this process with a time limit; a second call goes on where the
first stopped. Exit code 1 where a result was not accepted, or accepted with the wrong plan.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import feeds
import numpy as np
from jobs import Row, load_rows, markdown_table, note, save_rows, write_text
from run import command, find_files, preload, status_of

LEVELS = ("none", "constants", "reconstruct", "finetune")
COLUMNS = ("file", *LEVELS, "other_plan")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, metavar="FOLDER|FILE", help=".onnx files, or folders of them")
    parser.add_argument("--out", required=True, type=Path, metavar="TABLE", help="TABLE.json and TABLE.md are written")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="random samples of each file (default 8)")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one command (default 600)")
    parser.add_argument("--at-most", type=int, metavar="N", help="stop after so many files; the next call goes on")
    parser.add_argument("--match", default="", metavar="REGEX", help="only files whose name has this")
    return parser.parse_args(argv, argparse.Namespace(threads=1, forked=True))


def write_samples(file: Path, path: Path, count: int) -> bool:
    """Writes `count` random samples that onnxruntime runs the model on; False where none are found."""
    run = feeds.session(str(file))
    if (first := feeds.accepted(run)) is None:
        return False
    rng = np.random.default_rng(0)
    rows = {name: np.concatenate([fresh(value, rng) for _ in range(count)]) for name, value in first.items()}
    np.savez(path, allow_pickle=False, **rows)
    return True


def fresh(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other numbers of the same kind, for the first row of a batch; integers in another order."""
    row = value[:1]
    if row.dtype.kind == "f":
        return rng.standard_normal(row.shape).astype(row.dtype)
    return rng.permuted(row, axis=-1) if row.ndim > 1 else row


def pruned(file: Path, out: Path, level: str, seed: int, args: argparse.Namespace, *more: object) -> str:
    """Prunes with one recovery; what came of it: pruned, or the status and the message."""
    plan = out.with_suffix(".plan.json")
    words = [file, out, "--method", "random", "--target", "params=0.7", "--recover", level, "--seed", seed]
    job = command([*words, "--plan", plan, "--no-latency", *more], args)
    status = status_of(job)
    return status if status == "pruned" else f"{status}: {job.message.replace(str(file), file.name)}"


def verified(file: Path, out: Path, plan: Path, args: argparse.Namespace) -> str:
    """accepted, or refused with the message."""
    job = command(["verify", file, out, "--plan", plan], args)
    return "accepted" if job.code == 0 else f"refused: {job.message.replace(str(file), file.name)}"


def one(file: Path, args: argparse.Namespace) -> Row:
    """The row of one file."""
    row: Row = {"key": str(file), "file": file.name}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        samples = folder / "samples.npz"
        if not write_samples(file, samples, args.samples):
            return {**row, **dict.fromkeys(LEVELS, "no random input suits it")}
        for level in LEVELS:
            out = folder / level / "out.onnx"
            out.parent.mkdir()
            data = () if level in ("none", "constants") else ("--data", samples)
            epochs = ("--epochs", 1) if level == "finetune" else ()
            said = pruned(file, out, level, 0, args, *data, *epochs)
            row[level] = verified(file, out, out.with_suffix(".plan.json"), args) if said == "pruned" else said
        row["other_plan"] = with_another_plan(file, folder, args)
    return row


def with_another_plan(file: Path, folder: Path, args: argparse.Namespace) -> str:
    """What `verify` says of the result without recovery, with the plan of another seed; the same where plans agree."""
    out, other = folder / "none" / "out.onnx", folder / "other.onnx"
    if not out.exists() or pruned(file, other, "none", 1, args) != "pruned":
        return ""
    said = verified(file, out, other.with_suffix(".plan.json"), args)
    return said.split(":")[0]


def is_wrong(row: Row) -> bool:
    """True where a result was not accepted with its plan, or accepted with another."""
    made = [str(row.get(level, "")) for level in LEVELS]
    # status_of says "refused" of a target that a file cannot meet: nothing was made that could be verified
    return row.get("other_plan") == "accepted" or any(said != "accepted" and "target" not in said for said in made)


def write_tables(out: Path, rows: dict[str, Row]) -> str:
    """TABLE.json and TABLE.md; the line of counts."""
    save_rows(out.with_suffix(".json"), rows, format="onnxprune-zoo-recovered/1")
    counts = [
        f"{level}: {Counter(str(row.get(level, '')).split(':')[0] for row in rows.values())['accepted']} accepted"
        for level in LEVELS
    ]
    other = sum(row.get("other_plan") == "refused" for row in rows.values())
    said = f"{len(rows)} files; " + ", ".join(counts) + f"; with another plan: {other} refused"
    write_text(out.with_suffix(".md"), f"# {out.stem}\n\n{said}\n\n{markdown_table(COLUMNS, list(rows.values()))}")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    """0 where everything was as it should be, else 1."""
    args = parse(list(argv) if argv is not None else None)
    rows = load_rows(args.out.with_suffix(".json"))
    preload()
    for file in [f for f in find_files(args.inputs, args.match) if str(f) not in rows][: args.at_most]:
        rows[str(file)] = one(file, args)
        write_tables(args.out, rows)
        note(f"{file.name}: " + ", ".join(f"{level} {rows[str(file)].get(level)}" for level in LEVELS))
    print(write_tables(args.out, rows))
    return 1 if any(is_wrong(row) for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
