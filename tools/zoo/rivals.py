"""onnxprune beside Torch-Pruning and onnxsim's structured pruning, in one run on the same networks and files.

FOLDER is one that export.py filled. Each network goes through Torch-Pruning (in torch, with random and with L1
importance, ratio 0.5), each of its files through onnxsim (sparsity 0.5) and onnxprune (random scores, half of the
parameters); every attempt in a process of its own with the same time limit, one tool after the other.

`work` is the time that a tool takes inside its process, after its imports and with the network built or the file
loaded: Torch-Pruning: graph and step; onnxsim: the call; onnxprune: normalize to cut, and as `core` observe to cut, as
for a file that is in normal form. Each has one thread. CPU seconds are compared: other processes do not change them.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import onnxprune_worker
import onnxsim_worker
from jobs import Row, last_json, load_rows, markdown_table, note, run_forked, run_job, save_rows, write_text

HERE = Path(__file__).parent
TOOLS = ("torch-pruning random", "torch-pruning l1", "onnxsim", "onnxprune")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder with exports.json and .onnx files")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="TABLE", help="table.json or table.md; both are written"
    )
    parser.add_argument("--names", nargs="+", default=["*"], metavar="GLOB", help="networks (default: all)")
    parser.add_argument("--variants", nargs="+", default=["ts", "dynamo"], metavar="V", help="default: ts dynamo")
    parser.add_argument(
        "--tools", nargs="+", default=TOOLS, choices=TOOLS, metavar="TOOL", help=f"of {', '.join(TOOLS)}"
    )
    parser.add_argument("--python", metavar="EXE", help="interpreter that has torch-pruning (default: this one)")
    parser.add_argument("--timeout", type=float, default=400, metavar="S", help="seconds for one attempt (default 400)")
    parser.add_argument("--at-most", type=int, metavar="N", help="stop after so many networks; the next call goes on")
    parser.add_argument("--again", action="store_true", help="repeat everything")
    return parser.parse_args(argv)


def attempts(args: argparse.Namespace) -> Iterator[tuple[str, str, str | None]]:
    """(tool, network, file or None for torch) of everything to try, network by network."""
    exported: dict[str, list[str]] = {}
    for row in load_rows(args.folder / "exports.json").values():
        wanted = any(fnmatch.fnmatch(row["name"], glob) for glob in args.names)
        if wanted and row["status"] == "exported" and row["variant"] in args.variants:
            exported.setdefault(row["name"], []).append(row["file"])
    for name, files in exported.items():
        for tool in args.tools:
            yield from ((tool, name, None),) if tool.startswith("torch") else ((tool, name, f) for f in files)


def worker(function: Callable[[], Row], args: argparse.Namespace) -> Row:
    """The row of one attempt in a copy of this process, or one that says why there is none."""
    job = run_forked(function, args.timeout)
    row = last_json(job.stdout) if job.code == 0 else None
    return {**(row or {"ok": False, "message": job.message}), "total_s": job.seconds, "peak_mb": job.peak_mb}


def torch_worker(command: Sequence[str], args: argparse.Namespace) -> Row:
    """The row that a process with an interpreter of its own prints, or one that says why there is none."""
    job = run_job(command, args.timeout)
    row = last_json(job.stdout) if job.code == 0 else None
    return {**(row or {"ok": False, "message": job.message}), "total_s": job.seconds, "peak_mb": job.peak_mb}


def preload(args: argparse.Namespace) -> None:
    """Imports once what the attempts need."""
    tools = args.tools
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    gc.set_threshold(50_000, 10, 20)
    if "onnxprune" in tools:
        onnxprune_worker.preload()
    if "onnxsim" in tools:
        import onnxsim.pruning  # noqa: F401
    if args.python is None and any(tool.startswith("torch") for tool in tools):
        import torch_pruning_worker

        torch_pruning_worker.preload()
    gc.collect()
    gc.freeze()  # a search for garbage among all that was imported takes as long as a tool's work, and hits any


def attempt(tool: str, name: str, file: str | None, args: argparse.Namespace) -> Row:
    """One tool on one network or file."""
    key = f"{tool}: {file or name}"
    note(key)
    if tool == "onnxprune":
        row = worker(partial(onnxprune_worker.main, str(args.folder / str(file))), args)
    elif tool == "onnxsim":
        row = worker(partial(onnxsim_worker.main, str(args.folder / str(file))), args)
    elif args.python is None:
        import torch_pruning_worker

        row = worker(partial(torch_pruning_worker.main, name, tool.split()[-1]), args)
    else:
        row = torch_worker([args.python, str(HERE / "torch_pruning_worker.py"), name, tool.split()[-1]], args)
    return {"key": key, "tool": tool, "network": name, "file": file, **row}


def geometric_mean(values: Sequence[float]) -> float | None:
    """The geometric mean, None of nothing."""
    return statistics.geometric_mean(values) if values else None


def tool_summary(tool: str, rows: Sequence[Row]) -> Row:
    """Counts and times of one tool over its attempts; times and shares over those that succeeded."""
    good = [row for row in rows if row["ok"]]
    work = [row["work_cpu_s"] for row in good if row.get("work_cpu_s")]
    return {
        "tool": tool,
        "attempts": len(rows),
        "succeeded": len(good),
        "networks": len({row["network"] for row in good}),
        "unchanged": sum(row.get("changed") is False for row in rows),
        "does_not_run": sum(row.get("runs") is False for row in rows),
        "wrong": sum(row.get("right") is False for row in rows),
        "kept_params": geometric_mean([row["kept_params"] for row in good if row.get("kept_params")]),
        "work_median_cpu_s": statistics.median(work) if work else None,
        "work_most_cpu_s": max(work, default=None),
    }


def side_by_side(rows: Sequence[Row], tools: Sequence[str]) -> list[Row]:
    """One row per network and tool pair of columns: ok and work; of several files a tool must manage all."""
    table = []
    for name in dict.fromkeys(row["network"] for row in rows):
        line: Row = {"network": name}
        for tool in tools:
            mine = [row for row in rows if row["network"] == name and row["tool"] == tool]
            times = [row["work_cpu_s"] for row in mine if row.get("work_cpu_s")]
            line[tool] = all(row["ok"] for row in mine) if mine else None
            line[f"{tool} s"] = max(times) if times else None
        table.append(line)
    return table


def slowest(rows: Sequence[Row], tool: str, column: str) -> dict[str, float]:
    """By network the longest time of a tool's successful attempts."""
    times: dict[str, float] = {}
    for row in rows:
        if row["tool"] == tool and row["ok"] and row.get(column):
            times[row["network"]] = max(row[column], times.get(row["network"], 0.0))
    return times


def common_ratio(rows: Sequence[Row], column: str, other: str) -> str | None:
    """How onnxprune's time compares with another tool's work on the networks where both succeed, as a sentence."""
    mine, theirs = slowest(rows, "onnxprune", column), slowest(rows, other, "work_cpu_s")
    ratios = [mine[name] / theirs[name] for name in mine if name in theirs]
    if not ratios:
        return None
    middle, mean = statistics.median(ratios), statistics.geometric_mean(ratios)
    what = {"work_cpu_s": "normalize to cut", "core_cpu_s": "observe to cut"}[column]
    return f"onnxprune ({what}) / {other}, {len(ratios)} networks: median {middle:.3g}, geometric mean {mean:.3g}"


def write_tables(out: Path, rows: dict[str, Row]) -> None:
    """TABLE.json and TABLE.md: the tools, the ratios of times, network by network, and every failure."""
    save_rows(out.with_suffix(".json"), rows, format="onnxprune-zoo-rivals/1")
    all_rows = list(rows.values())
    tools = [tool for tool in TOOLS if any(row["tool"] == tool for row in all_rows)]
    totals = [tool_summary(tool, [row for row in all_rows if row["tool"] == tool]) for tool in tools]
    pairs = [(column, tool) for tool in tools if tool != "onnxprune" for column in ("work_cpu_s", "core_cpu_s")]
    ratios = [line for column, tool in pairs if (line := common_ratio(all_rows, column, tool))]
    failures = [row for row in all_rows if not row["ok"]]
    parts = [
        "# Beside other tools\n",
        "Written by `python tools/zoo/rivals.py FOLDER --out docs/results/rivals`. Random scores; Torch-Pruning removes"
        " half of the channels, onnxsim is asked for a sparsity of 0.5, onnxprune for half of the parameters. Times are"
        " CPU seconds in one thread, after imports and loading: graph and step for Torch-Pruning, the call for onnxsim,"
        " normalize to cut for onnxprune, with the copies of its process in which it calls onnxsim. None includes a"
        " proof; *right* says whether cut = mask.\n",
        markdown_table(list(totals[0]) if totals else [], totals),
        "".join(f"- {line}\n" for line in ratios),
        "## Network by network\n",
        markdown_table(
            ["network", *(column for tool in tools for column in (tool, f"{tool} s"))], side_by_side(all_rows, tools)
        ),
        "## What failed\n",
        markdown_table(("tool", "network", "file", "changed", "runs", "right", "message"), failures),
    ]
    write_text(out.with_suffix(".md"), "\n".join(parts))


def main(argv: list[str] | None = None) -> int:
    """0; a tool that fails is a row."""
    args = parse(argv)
    rows = {} if args.again else load_rows(args.out.with_suffix(".json"))
    preload(args)
    names: set[str] = set()
    for tool, name, file in attempts(args):
        if args.at_most is not None and len(names | {name}) > args.at_most:
            break
        if f"{tool}: {file or name}" not in rows:
            names.add(name)
            row = attempt(tool, name, file, args)
            rows[row["key"]] = row
            write_tables(args.out, rows)
    write_tables(args.out, rows)
    print(args.out.with_suffix(".md").read_text().split("\n## ")[0], end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
