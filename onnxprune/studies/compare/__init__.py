"""Methods x budgets x seeds on one model and one set of samples: one loop, one recovery, one table.

grid       what is to be run
store      the folder in which every finished run is a file of its own
loop       the runs
summary    runs that differ by seed only as one line, with 95 % intervals
tables     Markdown, CSV and JSON
plot       accuracy against what remains, as SVG
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxprune.studies.compare import plot, tables
from onnxprune.studies.compare.grid import Entry, Run, entry_of, runs
from onnxprune.studies.compare.loop import compare
from onnxprune.studies.compare.store import Row, Store
from onnxprune.studies.compare.summary import Line, summarize
from onnxprune.system.atomic_files import replace_text

__all__ = ["Entry", "Line", "Row", "Run", "Store", "compare", "entry_of", "runs", "summarize", "write"]


def write(folder: Path, head: Mapping, rows: Sequence[Row]) -> list[Line]:
    """Writes compare.md, .json, .csv and .svg into `folder`, each whole; the lines of the table."""
    lines = summarize(rows)
    replace_text(folder / "compare.svg", plot.image(head, lines))
    replace_text(folder / "compare.csv", tables.to_csv(rows))
    replace_text(folder / "compare.json", tables.to_json(head, rows, lines))
    replace_text(folder / "compare.md", tables.to_markdown(head, lines))
    return lines
