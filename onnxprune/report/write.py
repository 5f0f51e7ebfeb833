"""A report into a file, in the form that the file's suffix names."""

from collections.abc import Callable, Iterable
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.measure.records import Report
from onnxprune.report.document import to_json
from onnxprune.report.markdown import to_markdown
from onnxprune.system.atomic_files import replace_text


def _html(report: Report) -> str:
    from onnxprune.report.html import to_html  # jinja2 is loaded for those who want it

    return to_html(report)


WRITERS: dict[str, Callable[[Report], str]] = {".json": to_json, ".md": to_markdown, ".html": _html}


def check_report_path(path: str | Path) -> Path:
    """`path`, when a report can be written there; worth calling before hours of work.

    Raises: UsageError for another suffix than .json, .md and .html, or a folder that does not exist.
    """
    return check_suffix(path, WRITERS, "report ")


def check_suffix(path: str | Path, suffixes: Iterable[str], what: str = "") -> Path:
    """`path`, when a file of one of `suffixes` can be written there; `what` it is stands before the path in messages.

    Raises: UsageError for another suffix, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{what}{path}: suffix '{path.suffix}' is none of {', '.join(suffixes)}; choose one of them")
    if not path.parent.is_dir():
        raise UsageError(f"{what}{path}: the folder {path.parent} does not exist; create it or choose another")
    return path


def write_report(report: Report, path: str | Path) -> None:
    """Writes `report` beside `path` and renames it: `path` holds the old file or the whole new one.

    Raises: UsageError for an unknown suffix, or where the file cannot be written.
    """
    path = check_report_path(path)
    replace_text(path, WRITERS[path.suffix.lower()](report))
