"""Child processes with a time limit and their peak memory, and result tables that survive an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What became of one child process. `peak_mb` is its largest resident set, in MiB."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_mb: float
    timed_out: bool

    @property
    def message(self) -> str:
        """The line of stderr that says most about a failure, at most 300 characters."""
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s"
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "error", "Interrupt"))]
        return (errors or lines or [f"exit code {self.code}"])[-1][:300]


def limit_threads(threads: int) -> dict[str, str]:
    """This process's environment with numerical libraries held to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**os.environ, **{name: str(threads) for name in names}}


def wait(child: int, timeout_s: float) -> tuple[int, float, bool]:
    """(exit code, peak MiB, timed out) of a child; ends its whole session after `timeout_s` or on an interruption."""
    deadline, timed_out = time.perf_counter() + timeout_s, False
    try:
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, timed_out
            if not timed_out and time.perf_counter() > deadline:
                timed_out = True
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise


def run_job(command: Sequence[str], timeout_s: float, threads: int = 1) -> Job:
    """Runs a command to its end, or for at most `timeout_s` seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=limit_threads(threads),
            start_new_session=True,
        )
        return finished(child.pid, start, timeout_s, out, err)


def run_forked(function: Callable[[], Row | int], timeout_s: float) -> Job:
    """As run_job, of a function in a copy of this process: what is imported here need not be again.

    A row that it gives is the last line of stdout, a number is the exit code. The caller has started no threads.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                given = function()
                code = given if isinstance(given, int) else 0
                print("" if isinstance(given, int) else json.dumps(given), flush=True)
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)  # some exports leave threads behind that keep a process alive
        return finished(pid, start, timeout_s, out, err)


def finished(pid: int, start: float, timeout_s: float, out: IO[bytes], err: IO[bytes]) -> Job:
    """What became of process `pid`, once it has ended; `out` and `err` hold what it printed."""
    code, peak_mb, timed_out = wait(pid, timeout_s)
    seconds = time.perf_counter() - start
    out.seek(0)
    err.seek(0)
    stdout, stderr = (stream.read().decode(errors="replace") for stream in (out, err))
    return Job(code, stdout, stderr, seconds, peak_mb, timed_out)


def last_json(text: str) -> Row | None:
    """The last line of a child's stdout, if it is a JSON object."""
    lines = text.strip().splitlines()
    with contextlib.suppress(ValueError, IndexError):
        value = json.loads(lines[-1])
        return value if isinstance(value, dict) else None
    return None


def exported(out: Path, name: str, variant: str, row: Row | None, job: Job) -> Row:
    """The row of one export, of which `job` was the last attempt; a file that it left half done is removed."""
    if row is None:
        row = {"status": "timeout" if job.timed_out else "failed", "message": job.message}
    (out / f"{name}.{variant}.part").unlink(missing_ok=True)
    key = f"{name}.{variant}"
    return {"key": key, "name": name, "variant": variant, **row, "total_s": job.seconds, "peak_mb": job.peak_mb}


def note_export(table: Path, rows: dict[str, Row], row: Row) -> None:
    """Adds the row of an export to the table on disk, and says how it went."""
    rows[row["key"]] = row
    save_rows(table, rows, format="onnxprune-zoo-exports/1")
    note(f"{row['key']}: {row['status']} {row.get('message') or ''} ({row['total_s']:.0f} s)")


def statuses(rows: Mapping[str, Row]) -> str:
    """How many rows have which status."""
    found = [row["status"] for row in rows.values()]
    return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))


def baked_in(difference: Callable[[], float]) -> str | None:
    """Why a file with symbolic sizes does not hold at another size, or None: exporters bake sizes in unasked.

    difference: how far the file is from its network at another size.
    """
    try:
        found = difference()
    except Exception as error:
        return f"runs only at the size it was traced at: {str(error).splitlines()[0][:150]}"
    return f"differs by {found:.2g} at another size" if found > 1e-3 else None


def write_text(path: Path, text: str) -> None:
    """Writes beside `path`, then renames: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def load_rows(path: Path) -> dict[str, Row]:
    """Rows of an earlier run by their `key`; none if there was no run."""
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}


def save_rows(path: Path, rows: Mapping[str, Row], **header: Any) -> None:
    """Writes all rows as JSON, atomically."""
    write_text(path, json.dumps({**header, "rows": list(rows.values())}, indent=1) + "\n")


def cell(value: Any) -> str:
    """One value as a Markdown cell: unknown is empty, True and False are yes and no."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return "<br>".join(cell(v) for v in value)
    return str(value).replace("|", "\\|").replace("\n", " ")


def markdown_table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A Markdown table of the named columns, with underscores as spaces in the head."""
    head = "| " + " | ".join(name.replace("_", " ") for name in columns) + " |"
    body = ["| " + " | ".join(cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(columns), *body]) + "\n"


def table_rows(text: str) -> list[Row]:
    """The rows of the first Markdown table in `text`, by the names of its columns, as `markdown_table` wrote them."""
    lines = [line for line in text.partition("\n| ")[2].split("\n\n")[0].splitlines() if line.strip()]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
    return [dict(zip([name.replace(" ", "_") for name in cells[0]], row, strict=True)) for row in cells[2:]]


def with_former(rows: Sequence[Row], text: str, keys: Sequence[str]) -> list[Row]:
    """`rows`, marked as of this proof, and those of the table in an earlier document that are not among them, marked as
    of the former one; `keys` are the columns that say which row it is."""
    known = {tuple(cell(row.get(key)) for key in keys) for row in rows}
    kept = [row for row in table_rows(text) if tuple(row[key] for key in keys) not in known]
    marked = [{**row, "proof": "this"} for row in rows]
    marked += [{**{k: v.replace("\\|", "|") for k, v in row.items()}, "proof": "former"} for row in kept]
    return sorted(marked, key=lambda row: [cell(row[key]) for key in keys])


def note(text: str) -> None:
    """Progress goes to stderr, at once."""
    print(text, file=sys.stderr, flush=True)
