"""What is told where a package that only some work needs is not installed, and that the core does without."""

import subprocess
import sys

import pytest
from networks import DIGITS

from onnxprune.system.packages import EXTRAS, missing

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from onnxprune.cli import main
sys.exit(main({words!r}))
"""


def run_without(*absent, words):
    script = WITHOUT.format(absent=absent, words=[str(word) for word in words])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extra_that_brings_a_package_is_named(name):
    told = missing(ModuleNotFoundError(f"No module named '{name}.nn'", name=f"{name}.nn"))
    assert f"pip install 'onnxprune[{EXTRAS[name][1]}]'" in str(told)


def test_other_packages_are_not_ours_to_explain():
    assert missing(ModuleNotFoundError("No module named 'cv2'", name="cv2")) is None
    assert missing(ImportError("cannot import name 'a'", name="torch")) is None


def test_pruning_without_samples_needs_neither_torch_nor_scikit_learn(tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", "--no-latency", "--report", tmp_path / "r.html")
    done = run_without("torch", "sklearn", "scipy", "numba", words=words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.onnx").is_file()


def test_what_needs_torch_says_so_in_one_line(tmp_path):
    words = (DIGITS, tmp_path / "o.onnx", "--method", "taylor", "--data", "digits", "-q")
    done = run_without("torch", words=words)
    assert done.returncode == 2
    assert done.stderr.startswith("onnxprune: torch is not installed, which is for fine-tuning")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()
