"""Builds the sdist and the wheel and tries the wheel in clean environments: the light core, beside a CPU onnxruntime.

    python tools/try_install.py                                   # with this Python
    python tools/try_install.py --python python3.12 --python python3.13
    python tools/try_install.py --tests                           # and the tests that do without torch

For each Python: a new environment, onnxruntime first, then the wheel. The three ways that need no torch have to work:
without samples, with samples and least squares, and the checks of both. What the wheel and its dependencies add to the
environment has to stay below 200 MB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_BYTES = 200e6
ABSENT = ("torch", "sklearn", "scipy")
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
SAMPLES = """
import sys
import numpy as np
np.savez(sys.argv[1], image=np.random.default_rng(0).random((300, 1, 8, 8), np.float32))
"""
LOOK = f"""
from importlib.util import find_spec
from importlib.metadata import version
found = [name for name in {ABSENT!r} if find_spec(name)]
assert not found, found
import onnxprune
assert onnxprune.__version__ == version("onnxprune")
assert (__import__("pathlib").Path(onnxprune.__file__).parent / "py.typed").is_file()
"""
TESTS = (
    *("tests/plan", "tests/coupling/test_records.py", "tests/coupling/test_dims.py"),
    *("tests/cli/test_check_command.py", "tests/cli/test_card_command.py", "tests/integrations"),
)


def call(*words: object, cwd: Path | None = None) -> str:
    """What the program prints. Raises: SystemExit with what it said where it fails."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # which may hold another copy
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, env=bare)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(map(str, words))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def built(folder: Path) -> Path:
    """The wheel, made of the sdist, both in `folder`: so the sdist has all that a build needs."""
    call(sys.executable, "-m", "venv", folder / "builder")
    python = folder / "builder" / "bin" / "python"
    call(python, *PIP, "install", "build")
    call(python, "-m", "build", "--outdir", folder / "dist", ROOT)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    print(f"{sdist.name} {sdist.stat().st_size / 1e3:.0f} kB, {wheel.name} {wheel.stat().st_size / 1e3:.0f} kB")
    return wheel


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def tried(wheel: Path, interpreter: str, folder: Path, tests: bool) -> bool:
    """Whether what the wheel adds is small enough; all else that goes wrong ends the script."""
    start = time.monotonic()
    folder.mkdir()
    call(interpreter, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    call(python, *PIP, "install", "onnxruntime")
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    before = size(site)
    call(python, *PIP, "install", wheel)
    ours = size(site) - before
    use(python, folder)
    version = call(python, "-c", "import sys; print(sys.version.split()[0])").strip()
    ran = f", {tested(python)}" if tests else ""
    verdict = "" if ours <= MOST_BYTES else f", more than {MOST_BYTES / 1e6:.0f} MB"
    seconds = time.monotonic() - start
    print(
        f"Python {version}: works without torch, adds {ours / 1e6:.0f} MB{verdict}{ran} ({seconds:.0f} s)", flush=True
    )
    return ours <= MOST_BYTES


def use(python: Path, folder: Path) -> None:
    """Runs what the light core is for, in `folder`, where the sources are out of sight."""
    ours, model = folder / "env" / "bin" / "onnxprune", ROOT / "models" / "digits.onnx"
    call(python, "-c", LOOK, cwd=folder)
    call(python, "-c", SAMPLES, "samples.npz", cwd=folder)
    free, fitted = ("free.onnx", "--plan", "free.json"), ("fitted.onnx", "--plan", "fitted.json")
    call(ours, model, *free, "--no-latency", cwd=folder)
    samples = ("--method", "l1", "--recover", "reconstruct", "--data", "samples.npz")
    call(ours, model, *fitted, *samples, "--report", "report.html", cwd=folder)
    for name in ("free", "fitted"):
        call(ours, "verify", model, f"{name}.onnx", "--plan", f"{name}.json", cwd=folder)
    call(ours, "check", "free.json", "fitted.json", "--model", model, cwd=folder)
    call(ours, "inspect", model, cwd=folder)


def tested(python: Path) -> str:
    """The closing line of the tests that do without torch."""
    call(python, *PIP, "install", "pytest", "hypothesis", "pyyaml")
    return call(python, "-m", "pytest", *TESTS, "-p", "no:cacheprovider", cwd=ROOT).strip().splitlines()[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", metavar="PATH", help="repeatable (default: this one)")
    parser.add_argument("--tests", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheel = built(Path(scratch))
        interpreters = asked.python or [sys.executable]
        good = [tried(wheel, each, Path(scratch, f"try{k}"), asked.tests) for k, each in enumerate(interpreters)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
