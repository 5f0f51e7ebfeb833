"""Analyses each exported file, cuts half of its parameters by random scores, and proves cut = mask: the zoo's survey.

FOLDER is one that export.py filled. Quicker than run.py, which runs the whole command for each file: each file gets one
copy of this process, and the steps are those of onnxprune_worker.py. A second call goes on where the first stopped.
TABLE.md is the document: what holds for all, the exceptions, network by network, and the exports that failed.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import onnxprune_worker
from jobs import Row, last_json, load_rows, markdown_table, note, run_forked, save_rows, with_former, write_text

EXPORTERS = {"ts": "TorchScript", "dynamo": "dynamo", "bn": "TorchScript, norms kept"}
COLUMNS = (
    "network exporter parameters free_dims shrinkable kept cut_equals_mask difference fallbacks runs cpu_s".split()
)
FORMER = """All of the above counts files that were looked at with the proof as it is now (column *proof*: this).
{} more rows of the table are of the proof before it (former); cut = mask held for {} of these.
"""
LITTLE = 0.95  # networks of which less can shrink are explained


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with exports.json and .onnx files")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="TABLE", help="table.json or table.md; both are written"
    )
    parser.add_argument("--timeout", type=float, default=300, metavar="S", help="seconds for one file (default 300)")
    parser.add_argument("--at-most", type=int, metavar="N", help="stop after so many files; the next call goes on")
    parser.add_argument(
        "--former", type=Path, metavar="FILE.md", help="an earlier document: networks of it not looked at now are kept"
    )
    parser.add_argument("--again", action="store_true", help="repeat what failed")
    return parser.parse_args(argv)


def one(exported: Row, args: argparse.Namespace) -> Row:
    """The row of one exported file."""
    job = run_forked(partial(onnxprune_worker.main, str(args.folder / exported["file"])), args.timeout)
    row = last_json(job.stdout) if job.code == 0 else None
    return {"key": exported["file"], **(row or {"ok": False, "message": job.message}), "total_s": job.seconds}


def described(exported: Row, row: Row) -> Row:
    """A row of the document."""
    return {
        "network": exported["name"],
        "exporter": EXPORTERS.get(exported["variant"], exported["variant"]),
        "parameters": f"{exported['params'] / 1e6:.1f} M",
        "shrinkable": f"{row['shrinkable']:.1%}" if "shrinkable" in row else None,
        "kept": f"{row['kept_params']:.1%}" if "kept_params" in row else None,
        "cut_equals_mask": row.get("right"),
        "cpu_s": row.get("work_cpu_s"),
        "fallbacks": len(row["fallbacks"]) if "fallbacks" in row else None,
        **{name: row.get(name) for name in ("free_dims", "difference", "runs", "message")},
    }


def summary(exports: Sequence[Row], rows: dict[str, Row]) -> str:
    """What a reader looks for first."""
    done = [(e, rows[e["file"]]) for e in exports if e.get("file") in rows]
    shares = sorted(row["shrinkable"] for _, row in done if "shrinkable" in row)
    times = sorted(row["work_cpu_s"] for _, row in done if "work_cpu_s" in row)
    both = [{e["name"] for e, row in done if row["ok"] and e["variant"] == variant} for variant in ("ts", "dynamo")]
    timm = [sum(not name.startswith("tv_") for name in names) for names in (*both, both[0] & both[1])]
    lines = [
        f"{len(done)} files of {len({e['name'] for e, _ in done})} networks; {len(exports) - len(done)} more exports"
        " failed, were left out, or are still to be looked at (below)",
        f"analysed: {len(shares)}; cut = mask: {sum(row.get('right') is True for _, row in done)}",
        fallbacks([row for _, row in done]),
        f"networks beside those of torchvision: {timm[0]} by TorchScript, {timm[1]} by dynamo, {timm[2]} by both",
    ]
    if shares:
        lines.append(
            f"parameters that can shrink: median {statistics.median(shares):.2%}, least {shares[0]:.1%};"
            f" {sum(share < 0.6 for share in shares)} files below 60 %, {sum(s < LITTLE for s in shares)} below 95 %"
        )
    if times:
        lines.append(f"CPU seconds from normalize to cut: median {statistics.median(times):.2f}, most {times[-1]:.1f}")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def fallbacks(rows: Sequence[Row]) -> str:
    """How often something was done in a lesser way because a rule, a rewriting or a comparison failed."""
    told = [row["fallbacks"] for row in rows if "fallbacks" in row]
    return (
        f"fallbacks (a coupling rule that raised, a simplifier that failed, a normal form that was not compared):"
        f" {sum(map(len, told))} in {sum(map(bool, told))} of the {len(told)} files that were asked for them"
    )


def write_tables(args: argparse.Namespace, exports: Sequence[Row], rows: dict[str, Row]) -> None:
    """TABLE.json and TABLE.md."""
    save_rows(args.out.with_suffix(".json"), rows, format="onnxprune-zoo-survey/1")
    done = sorted((e for e in exports if e.get("file") in rows), key=lambda e: (e["name"], e["variant"]))
    table = [described(e, rows[e["file"]]) for e in done]
    little = [
        {
            **described(e, rows[e["file"]]),
            "frozen_by": rows[e["file"]].get("frozen_reasons"),
            "message": rows[e["file"]].get("message") or rows[e["file"]].get("fallbacks"),
        }
        for e in done
        if not rows[e["file"]]["ok"]
        or rows[e["file"]].get("fallbacks")
        or rows[e["file"]].get("shrinkable", 0.0) < LITTLE
    ]
    failed = [
        {"network": e["name"], "exporter": EXPORTERS.get(e["variant"], e["variant"]), **e}
        for e in exports
        if e["status"] != "exported"
    ]
    columns = [*COLUMNS, "proof"] if args.former else COLUMNS
    if args.former:
        earlier = args.former.read_text().partition("## Network by network\n")[2]
        table = with_former(table, earlier, ("network", "exporter"))
    former = [row for row in table if row.get("proof") == "former"]
    parts = [
        "# The zoo\n",
        "Written by `python tools/zoo/survey.py FOLDER --out docs/results/zoo`, FOLDER filled by"
        " `python tools/zoo/export.py FOLDER`. Weights are random and never constant; half of the parameters go by"
        " random scores; *shrinkable* is the share of parameters that stand on a free dimension; *difference* is the"
        " largest between cut and masked model, over the largest output.\n",
        summary(exports, rows),
        *([FORMER.format(len(former), sum(row["cut_equals_mask"] == "yes" for row in former))] if former else []),
        "## Exceptions\n",
        "Files that failed, of which something was done in a lesser way, or of which less than 95 % of the parameters"
        " can shrink, and what freezes the rest.\n",
        markdown_table(("network", "exporter", "shrinkable", "frozen_by", "message"), little) if little else "None.\n",
        "## Network by network\n",
        markdown_table(columns, table),
        "## Exports that failed or were left out\n",
        markdown_table(("network", "exporter", "status", "message"), failed) if failed else "None.\n",
    ]
    write_text(args.out.with_suffix(".md"), "\n".join(parts))


def main(argv: list[str] | None = None) -> int:
    """0 if every file was cut and proven, else 1."""
    args = parse(argv)
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    gc.set_threshold(50_000, 10, 20)
    onnxprune_worker.preload()
    exports = list(load_rows(args.folder / "exports.json").values())
    rows = load_rows(args.out.with_suffix(".json"))
    here = [e for e in exports if e["status"] == "exported" and (args.folder / e["file"]).exists()]
    left = [e for e in here if e["file"] not in rows or (args.again and not rows[e["file"]]["ok"])]
    for exported in sorted(left, key=lambda e: e["bytes"])[: args.at_most]:
        row = one(exported, args)
        rows[row["key"]] = row
        write_tables(args, exports, rows)
        note(f"{row['key']}: {'ok' if row['ok'] else row.get('message', 'failed')} ({row['total_s']:.1f} s)")
    write_tables(args, exports, rows)
    print(summary(exports, rows), end="")
    return 0 if all(row["ok"] for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
