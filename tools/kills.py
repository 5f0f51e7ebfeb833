"""Kills runs at random times, as `kill -9` does, and looks at what they leave.

    python tools/kills.py              # 20 kills; exit code 1 and a line for each that left something
    python tools/kills.py --count 100 --seed 1

Each run prunes, proves, tunes and writes a model, a plan and two reports over older ones. After each kill:
no process of that run may live on; the older files are whole, all old or all new; and after the next run the folder
holds nothing but what that run wrote, the temporary folder nothing but what a run that nobody kills leaves there, as
the caches of torch and onnxruntime.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from onnxprune.run.checks import file_sha256

MODEL = Path(__file__).parent.parent / "models" / "digits.onnx"
NAMES = ("out.onnx", "plan.json", "report.html", "report.json")
MARK = "ONNXPRUNE_KILLED_RUN"
GRACE_SECONDS = 3.0  # in which copies of a dead process have to be gone


def words_of(folder: Path, *options: str) -> list[str]:
    """The command line of a run that writes all of NAMES into `folder`."""
    out, plan, *reports = (str(folder / name) for name in NAMES)
    written = [out, "--plan", plan, *(word for report in reports for word in ("--report", report))]
    return [sys.executable, "-m", "onnxprune", str(MODEL), *written, "--method", "l1", *options]


LONG = ("--data", "digits", "--epochs", "1")
SHORT = ("--no-latency",)


def begun(words: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def alive(mark: str) -> list[int]:
    """Numbers of the processes that were started with `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if state != "Z" and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def state(folder: Path) -> dict[str, str]:
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in NAMES if (folder / name).exists()}


def kept_together(folder: Path, before: Mapping[str, str]) -> bool:
    """Whether the model and the plan are both those of before, or both of one new run."""
    if state(folder) == dict(before):
        return True
    plan = json.loads((folder / "plan.json").read_text())
    return plan["result"]["sha256"] == file_sha256(folder / "out.onnx")


def faults(folder: Path, temporary: Path, usual: list[str], seconds: float, mark: str) -> Iterator[str]:
    """What was wrong after a run that is killed after `seconds`, and after the next one."""
    environment = {**os.environ, "TMPDIR": str(temporary), MARK: mark}
    before = state(folder)
    run = begun(words_of(folder, *LONG), environment)
    with suppress(subprocess.TimeoutExpired):
        run.wait(seconds)
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + GRACE_SECONDS
    while alive(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    if alive(mark):
        yield f"processes {alive(mark)} live on"
        for pid in alive(mark):
            os.kill(pid, signal.SIGKILL)
    if not kept_together(folder, before):
        yield "the model and the plan are of two runs"
    if begun(words_of(folder, *SHORT), environment).wait() != 0:
        yield "the next run failed"
    for place, expected in ((folder, sorted(NAMES)), (temporary, usual)):
        if sorted(os.listdir(place)) != expected:
            yield f"{place.name} holds {sorted(os.listdir(place))} after the next run"


def whole_run(folder: Path, temporary: Path) -> float:
    """Seconds of a run that nobody kills."""
    start = time.monotonic()
    begun(words_of(folder, *LONG), {**os.environ, "TMPDIR": str(temporary)}).wait()
    return time.monotonic() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, failed = random.Random(asked.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, temporary = Path(scratch, "results"), Path(scratch, "temporary")
        folder.mkdir()
        temporary.mkdir()
        seconds = whole_run(folder, temporary)
        usual = sorted(os.listdir(temporary))
        for kill in range(asked.count):
            when = rng.uniform(0.1, seconds)
            found = list(faults(folder, temporary, usual, when, f"{os.getpid()}-{kill}"))
            failed += bool(found)
            for fault in found:
                print(f"killed after {when:.2f} s: {fault}", flush=True)
    print(f"{asked.count} kills within {seconds:.1f} s of a run, {failed} left something")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
