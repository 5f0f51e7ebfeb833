"""Short commands start at once: what they do not need is not loaded, and is there when it is needed."""

import subprocess
import sys

import pytest
from networks import DIGITS

HEAVY = ("torch", "sympy.core", "sklearn", "scipy", "numba", "jinja2")
SCRIPT = """
import sys
from onnxprune.system import late
late.load_late()
from onnxprune.cli import main
code = main({words!r})
print("loaded", [name for name in {heavy!r} if name in sys.modules], code)
"""


@pytest.mark.parametrize("words", [["methods"], ["inspect", str(DIGITS)], ["--version"]], ids=lambda words: words[0])
def test_short_commands_load_no_heavy_package(words):
    script = SCRIPT.format(words=words, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded [] 0"


def test_sizes_that_are_expressions_are_computed_although_sympy_comes_late():
    script = (
        "import sys\nfrom onnxprune.system import late\nlate.load_late()\nimport onnx_ir as ir\n"
        "assert 'sympy.core' not in sys.modules\n"
        "print((ir.SymbolicDim('N') + 1) * 2, 'sympy.core' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2*N + 2 True\n"


def test_modules_that_are_missing_stay_missing():
    script = (
        "from onnxprune.system import late\nlate.LATE = ('no_such_module_at_all',)\nlate.load_late()\n"
        "import no_such_module_at_all\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ModuleNotFoundError: No module named 'no_such_module_at_all'" in done.stderr
