"""Results of every recovery are accepted by `verify` with their plan and refused with another, by the zoo's tool."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_results_of_every_recovery_are_verified(tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "zoo" / "recovered.py"), str(ROOT / "models")]
    ran = subprocess.run([*tool, "--out", str(tmp_path / "table")], capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert len(rows) >= 2
    for row in rows:
        assert [row[level] for level in ("none", "constants", "reconstruct", "finetune")] == ["accepted"] * 4
        assert row["other_plan"] == "refused"
