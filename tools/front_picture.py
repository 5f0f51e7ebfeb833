"""The fronts of several networks side by side, as a picture and as a table: what is lost against cost.

    onnxprune net.onnx out.onnx --front --data samples.npz --report net.json
    python tools/front_picture.py net.json other.json --names "Net" "Other" --out front.svg

A REPORT.json is that of a run with --front. Full dots are sizes that went through the full recovery, hollow ones are
predicted from the quick one. Lost is, as in the report, of 100 points between a model that answers all alike and the
original.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from onnxprune.system.atomic_files import replace_text
from tools.panels import Dot, Look, picture

FULL, QUICK = "full recovery", "quick recovery"
LOOK = Look({QUICK: "#9aa7b5", FULL: "#b3261e"}, ("MACs", "parameters", "latency"), (0, 2, 5, 10, 15, 20))
HEAD = """\
| network | MACs | parameters | latency | lost, quick recovery | lost, full recovery | |
|---|---:|---:|---:|---:|---:|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.json")
    parser.add_argument("--names", nargs="+", help="of the networks; default: the names of the files")
    parser.add_argument("--out", type=Path, help="SVG to write")
    args = parser.parse_args()
    names = args.names or [path.stem for path in args.reports]
    if len(names) != len(args.reports):
        parser.error(f"--names: {len(names)} names for {len(args.reports)} reports; give one for each")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in args.reports]
    for path, report in zip(args.reports, found, strict=True):
        if not report.get("front"):
            parser.error(f"{path}: the report of a run without --front; give one with it")
    print("\n".join([HEAD, *(row for name, told in zip(names, found, strict=True) for row in rows(name, told))]))
    if args.out:
        dots = [dot for name, told in zip(names, found, strict=True) for dot in dots_of(name, told)]
        replace_text(args.out, picture(dots, LOOK))


def rows(name: str, report: dict[str, Any]) -> Iterator[str]:
    """A line for each size, the largest first."""
    for point in report["front"]:
        latency = "–" if point["latency"] is None else f"{point['latency']:.3f}"
        cells = [name, f"{point['macs']:.3f}", f"{point['params']:.3f}", latency]
        cells += [f"{lost_quickly(point, report):.2f}", f"{point['lost']:.2f}"]
        cells.append(", ".join(["measured" if point["measured"] else "predicted", *["the result"] * point["chosen"]]))
        yield f"| {' | '.join(cells)} |"


def dots_of(name: str, report: dict[str, Any]) -> Iterator[Dot]:
    """The original, and each size with both recoveries."""
    whole = dict.fromkeys(LOOK.costs, 1.0)
    for series in LOOK.inks:
        yield Dot(name, series, whole, 0.0)
    for point in report["front"]:
        costs = {"MACs": point["macs"], "parameters": point["params"], "latency": point["latency"]}
        yield Dot(name, QUICK, costs, lost_quickly(point, report))
        yield Dot(name, FULL, costs, point["lost"], solid=point["measured"])


def lost_quickly(point: dict[str, Any], report: dict[str, Any]) -> float:
    """Of 100 points between a model that answers all alike and the original, those lost after the quick recovery."""
    final = report["models"][1]["accuracy"]
    return 100 * (final["original"] - point["quick"]) / (final["original"] - final["null"])


if __name__ == "__main__":
    main()
