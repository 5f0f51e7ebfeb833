"""What leaves the process: nothing that onnxruntime tells its maker."""

import os
import subprocess
import sys

from networks import DIGITS

SESSION = (
    f"import onnxprune, onnxruntime; onnxruntime.InferenceSession({str(DIGITS)!r}, providers=['CPUExecutionProvider'])"
)


def files_left_by(script, home):
    """The files that a session leaves in the home folder. CI is unset: there onnxruntime keeps quiet anyway."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run([sys.executable, "-c", script], env=environment | {"HOME": str(home)}, check=True)
    return [path.name for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_keeps_no_identity_of_the_machine(tmp_path):
    assert files_left_by(SESSION, tmp_path) == []


def test_the_users_own_choice_stands():
    script = "import onnxprune, os; assert os.environ['ORT_DISABLE_TELEMETRY'] == '0'"
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"ORT_DISABLE_TELEMETRY": "0"}, check=True)
