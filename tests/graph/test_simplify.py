"""What the simplifier costs before it does anything."""

import subprocess
import sys

COUNT = """
import sys
from onnxprune.graph import simplify
module = simplify._import_onnxsim()
assert callable(module.simplify)
assert "torch" not in sys.modules
print(sum(name.startswith("onnxsim") for name in sys.modules))
"""


def test_a_few_modules_of_onnxsim_are_imported_and_torch_is_not():
    """The package imports more than a hundred modules, which took most of the time of small networks."""
    ran = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert 0 < int(ran.stdout) < 40
