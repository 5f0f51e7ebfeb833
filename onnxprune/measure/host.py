"""The machine and the versions that numbers were measured with. Unknown is None."""

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from onnxprune.graph.sessions import allowed_threads

PACKAGES = ("onnxprune", "onnx", "onnx-ir", "onnxruntime-gpu", "onnxruntime", "onnxsim", "torch", "numpy")
GPU_FIELDS = {
    "name": "name",
    "driver": "driver_version",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "max_sm_clock_mhz": "clocks.max.sm",
    "memory_mib": "memory.total",
}


def machine() -> dict[str, Any]:
    """CPU, GPUs, memory, operating system and versions; the keys are those of a report's `machine`."""
    return {
        "cpu": cpu_name(),
        "cores": default_threads(),
        "logical_cpus": os.cpu_count(),
        "cpu_clock_mhz": _cpu_clock_mhz(),
        "memory_bytes": _memory_bytes(),
        "gpus": gpus(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def tool() -> dict[str, Any]:
    """Name and version of this tool; the keys are those of a report's `tool`."""
    return {"name": "onnxprune", "version": versions().get("onnxprune")}


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on, those that are installed; nothing is imported."""
    return {name: version for name in PACKAGES if (version := _version(name)) is not None}


@functools.cache  # reading it takes longer than the proof of a small model
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str | None:
    """The CPU's name, or its architecture where the system does not tell."""
    match = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine() or None


def default_threads() -> int:
    """Physical cores that this process may use: fewer where affinity or a container's quota says so."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {core for cpu, core in _cores().items() if cpu in allowed}
    return max(1, min(len(cores) or len(allowed), _quota() or len(allowed)))


def timing_threads() -> int:
    """Threads to time with where none are asked for: what OMP_NUM_THREADS allows, else the physical cores."""
    return allowed_threads() or default_threads()


def _cores() -> dict[int, tuple[str, str]]:
    """(package, core) of each logical CPU; two CPUs of one core share them."""
    found = {}
    for block in _read("/proc/cpuinfo").split("\n\n"):
        fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", block, re.MULTILINE))
        if {"processor", "physical id", "core id"} <= fields.keys():
            found[int(fields["processor"])] = (fields["physical id"], fields["core id"])
    return found


def _quota() -> int | None:
    """CPUs that the control group grants, rounded up, or None where it sets no limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    return -(-int(quota) // int(period)) if quota.isdigit() and period.strip().isdigit() else None


def gpus() -> list[dict[str, Any]]:
    """Name, driver, memory and clocks of each GPU by nvidia-smi; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()]


def _gpu(line: str) -> dict[str, Any]:
    values = [value.strip() for value in line.split(",")]
    return {key: int(value) if value.isdigit() else value for key, value in zip(GPU_FIELDS, values, strict=False)}


def _cpu_clock_mhz() -> float | None:
    match = re.search(r"^cpu MHz\s*:\s*([\d.]+)", _read("/proc/cpuinfo"), re.MULTILINE)
    return float(match.group(1)) if match else None


def _memory_bytes() -> int | None:
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return 1024 * int(match.group(1)) if match else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
