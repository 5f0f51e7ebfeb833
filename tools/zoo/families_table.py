"""Writes docs/results/families.md from what the other tools found of the exported families.

    python families_table.py FOLDER SURVEY.json RUN.json DERIVED.json OUT.md

What stands in OUT.md above the line MARK is kept. FOLDER: of families.py; SURVEY: of survey.py on it; RUN: of run.py on
some of its files; DERIVED: of run.py on the forms that derive.py made. The last two need not be there: then the table
says nothing of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from jobs import Row, load_rows, markdown_table, write_text
from survey import fallbacks

MARK = "<!-- from here on written by tools/zoo/families_table.py -->"
EXPORT = """    python tools/zoo/families.py families --variants {variants}
    python tools/zoo/survey.py families --out survey
"""
RUN = "    python tools/zoo/run.py families --out run\n"
DERIVE = "    python tools/zoo/derive.py families derived && python tools/zoo/run.py derived --out derived\n"
TABLE = "    python tools/zoo/families_table.py families survey.json run.json derived.json docs/results/families.md\n"
FORMS = """## Forms of deployed files

Made of some of the files by derive.py: optimized by onnxruntime (`ort` extended, `all`), its transformer fusions
(`bert`), quantized (`dynamic`, `qdq`, `qlinear`), `fp16`.

"""
HEAD = """*analysed* and *cut = mask* are files of survey.py, *whole command* the files that run.py took through
`onnxprune`, `onnxprune verify` and onnxruntime with the same interface. *shrinkable* is the least share of parameters
on a free dimension. `ts` is torch's TorchScript exporter with static sizes; `dyn` the same, `dyn_dynamo` its dynamo
exporter, with all sizes symbolic: cut and mask are then compared at two sizes."""
# Words of a message or a reason -> why it is so.
WHY = {
    "conformer_layers": "the network repeats frames as often as it predicts: the exported graph holds for the tokens of"
    " its trace alone, and onnxruntime refuses others before anything is cut",
    "Split node": "the experts' token counts of the trace are constants of the file: onnxruntime refuses other"
    " inputs before anything is cut",
    "graph output": "its last hidden state is an output of the file, so the residual stream and all tables that write"
    " to it have to stay",
    "nchwc": "onnxruntime's own layout for one processor, made when it loads a file; not meant to be stored",
}


def why(text: str) -> str:
    """The explanation that fits, or the text itself."""
    return next((reason for words, reason in WHY.items() if words in text), text)


def holds(row: Row) -> bool:
    """Whether the whole command went through: pruned, verified again, running, the same interface."""
    return row["status"] == "pruned" and all(
        row.get(key) is not False for key in ("verified", "runs", "same_interface")
    )


def share(rows: Sequence[bool]) -> str | None:
    """'3 of 4', or None of nothing."""
    return f"{sum(rows)} of {len(rows)}" if rows else None


def network(name: str, exports: Sequence[Row], surveyed: dict[str, Row], run: dict[str, Row]) -> Row:
    """The row of one network."""
    seen = [surveyed[e["file"]] for e in exports if e.get("file") in surveyed]
    taken = [run[e["file"]] for e in exports if e.get("file") in run]
    shares = [row["shrinkable"] for row in seen if "shrinkable" in row]
    return {
        "family": name,
        "exported": ", ".join(e["variant"] for e in exports if e["status"] == "exported"),
        "analysed": share(["shrinkable" in row for row in seen]),
        "shrinkable": f"{min(shares):.1%}" if shares else None,
        "cut_=_mask": share([row.get("right") is True for row in seen]),
        "whole_command": share([holds(row) for row in taken]),
    }


def exceptions(surveyed: dict[str, Row], run: dict[str, Row], derived: dict[str, Row]) -> str:
    """Everything that failed or shrinks little, by its explanation."""
    found: dict[str, list[str]] = defaultdict(list)
    for file, row in surveyed.items():
        if not row["ok"]:
            found[why(row.get("message") or "cut and mask differ")].append(file)
            continue
        for note in row.get("fallbacks", ()):
            found[why(note)].append(file)
        if row["shrinkable"] < 0.6:
            found[why(" ".join(row["frozen_reasons"]))].append(f"{file} ({row['shrinkable']:.0%})")
    for file, row in (*run.items(), *derived.items()):
        if not holds(row):
            found[why(row.get("message") or row["status"])].append(file)
    return "".join(f"- {', '.join(sorted(set(files)))}: {reason}\n" for reason, files in found.items()) or "None.\n"


def forms(derived: dict[str, Row]) -> str:
    """A line for each derived form."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for file, row in derived.items():
        rows[file.split(".")[-2]].append(row)
    return markdown_table(
        ("form", "files", "whole_command", "median_shrinkable"),
        [
            {
                "form": form,
                "files": len(found),
                "whole_command": sum(map(holds, found)),
                "median_shrinkable": f"{statistics.median(row.get('shrinkable') or 0.0 for row in found):.1%}",
            }
            for form, found in sorted(rows.items())
        ],
    )


def main(folder: str, survey: str, run: str, derived: str, out: str) -> int:
    """Writes the document; 0."""
    exports = list(load_rows(Path(folder) / "exports.json").values())
    surveyed = load_rows(Path(survey))
    known = {e["file"] for e in exports if e.get("file")}
    surveyed = {file: row for file, row in surveyed.items() if file in known}
    runs = {row["file"]: row for row in load_rows(Path(run)).values() if row["file"] in known}
    made = {row["file"]: row for row in load_rows(Path(derived)).values()}
    by_name: dict[str, list[Row]] = defaultdict(list)
    for e in exports:
        by_name[e["name"]].append(e)
    rows = [network(name, found, surveyed, runs) for name, found in sorted(by_name.items())]
    shares = sorted(row["shrinkable"] for row in surveyed.values() if "shrinkable" in row)
    variants = " ".join(dict.fromkeys(e["variant"] for e in exports))
    commands = EXPORT.format(variants=variants) + RUN * bool(runs) + DERIVE * bool(made) + TABLE
    failed: dict[str, list[str]] = defaultdict(list)
    for e in exports:
        if e["status"] != "exported":
            failed[e["variant"]].append(e["name"])
    right, whole = sum(row.get("right") is True for row in surveyed.values()), sum(map(holds, runs.values()))
    parts = [
        f"{MARK}\n\n{HEAD}\n\nWritten {time.strftime('%Y-%m-%d')} by\n\n{commands}",
        f"- {len(known)} files of {sum(bool(row['exported']) for row in rows)} networks;"
        f" {len(exports) - len(known)} exports failed\n"
        f"- surveyed: {len(surveyed)}, analysed: {len(shares)}, cut = mask: {right}"
        f"{f'; whole command: {whole} of {len(runs)}' if runs else ''}\n"
        f"- {fallbacks(list(surveyed.values()))}\n"
        f"- parameters that can shrink: median {statistics.median(shares):.1%},"
        f" {sum(s < 0.6 for s in shares)} files below 60 %\n",
        f"## Exceptions\n\n{exceptions(surveyed, runs, made)}",
        *([FORMS + forms(made)] if made else []),
        f"## Family by family\n\n{markdown_table([c for c in rows[0] if runs or c != 'whole_command'], rows)}",
        "## Exports that failed\n\nIn torch, or their file does not load, or computes something else than torch.\n\n"
        + "".join(f"- {variant}: {', '.join(names)}\n" for variant, names in failed.items()),
    ]
    above = Path(out).read_text().partition(MARK)[0] if Path(out).exists() else "# Families\n\n"
    write_text(Path(out), above + "\n".join(parts))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 6:
        print(__doc__)
        sys.exit(2)
    sys.exit(main(*sys.argv[1:]))
