"""Reports: what a run found, for machines (JSON), for pull requests (Markdown), for readers (HTML, the terminal).

record     frozen dataclasses: what a report holds
document   the JSON document, its schema, reading it back
text       numbers as readers write them
terminal   the table at the end of a run
markdown   for pull requests
html       one page that needs no network; sections and charts hold its pictures, curves its sensitivity table
front      the front as a table
widths     the widths of an inspected graph, as a page or an image
write      a report into a file by suffix
compare    what became worse since an earlier report
card       a model card, for hubs
hyperfine  times in the form of hyperfine's JSON
"""

from onnxprune.measure.records import (
    Frozen,
    Latency,
    LatencyRatio,
    LatencyTable,
    Layer,
    Measurement,
    NodeTime,
    Packing,
    Profile,
    Report,
    SensitivityCurve,
    Step,
    TuningPoint,
    with_latencies,
)
from onnxprune.report.compare import Regression, compare_reports
from onnxprune.report.document import document, read_report, schema
from onnxprune.report.document import to_json as as_json
from onnxprune.report.terminal import print_report, to_table, verdict
from onnxprune.report.write import check_report_path, write_report

__all__ = [
    "Frozen",
    "Latency",
    "LatencyRatio",
    "LatencyTable",
    "Layer",
    "Measurement",
    "NodeTime",
    "Packing",
    "Profile",
    "Regression",
    "Report",
    "SensitivityCurve",
    "Step",
    "TuningPoint",
    "as_json",
    "check_report_path",
    "compare_reports",
    "document",
    "print_report",
    "read_report",
    "schema",
    "to_table",
    "verdict",
    "with_latencies",
    "write_report",
]
