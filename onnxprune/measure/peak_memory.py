"""Peak memory of a model, measured in a process of its own: this one's heap would hide what it already holds.

Run as `python -m onnxprune.measure.peak_memory MODEL FEEDS.npz THREADS` it prints the peak in bytes.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.sessions import open_session, run
from onnxprune.system.atomic_files import scratch
from onnxprune.system.isolation import die_with


def peak_memory_bytes(source: str | bytes, feeds: Mapping[str, np.ndarray], threads: int) -> int | None:
    """Bytes that loading and running the model adds to a process at its peak, on the CPU; None where unknown."""
    with scratch() as folder:
        path = Path(folder) / "model.onnx"
        if isinstance(source, bytes):
            path.write_bytes(source)
        plain = {name: array.astype(str) if array.dtype.kind == "O" else array for name, array in feeds.items()}
        np.savez(Path(folder) / "feeds.npz", allow_pickle=False, **plain)
        command = [sys.executable, "-m", __name__, str(path if isinstance(source, bytes) else source)]
        command += [str(Path(folder) / "feeds.npz"), str(threads)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError):
            return None
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else None


def main(arguments: list[str]) -> int:
    """Prints the peak in bytes and returns 0, or 1 where this system does not tell it."""
    die_with(os.getppid())
    model, feeds, threads = arguments
    with np.load(feeds) as arrays:
        feed = dict(arrays)
    before = _reset_peak() or _status("VmHWM")
    try:
        session = open_session(model, threads=int(threads), as_stored=True)
        for _ in range(3):
            run(session, feed)
    except OnnxPruneError:
        return 1
    after = _status("VmHWM")
    if before is None or after is None or after <= before:
        return 1
    print(after - before)
    return 0


def _reset_peak() -> int | None:
    """Sets the peak back to what the process holds now, and returns that in bytes; None where it may not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(key: str) -> int | None:
    try:
        match = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(match.group(1)) if match else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
