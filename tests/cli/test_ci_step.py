"""The CI examples, by running their own commands on the embedded model: once passing, once failing its gate."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")
ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "models" / "digits.onnx")
PASSING = "--method l1 --recover constants --target macs=0.5"
FAILING = PASSING + " --min-speedup 1000"
NO_LATENCY = PASSING + " --no-latency"


def shell(command, folder, **variables):
    """Runs `command` as a runner would, with onnxprune of this interpreter on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {key: os.environ[key] for key in ("HOME", "PYTHONPATH", "OMP_NUM_THREADS") if key in os.environ}
    variables = {**kept, "PATH": path, **{key: str(value) for key, value in variables.items()}}
    return subprocess.run(["sh", "-e", "-c", command], cwd=folder, env=variables, capture_output=True, text=True)


def action(folder, **inputs):
    """Runs the prune step of action.yml with `inputs` filled in where it takes them."""
    described = yaml.safe_load((ROOT / "action.yml").read_text())
    values = {name: spec.get("default", "") for name, spec in described["inputs"].items()} | inputs
    step = described["runs"]["steps"][-1]
    assert "${{" not in step["run"], "inputs must not become part of a command"
    given = {key: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: values[m[1]], v) for key, v in step["env"].items()}
    return shell(step["run"], folder, GITHUB_ACTION_PATH=ROOT, GITHUB_STEP_SUMMARY=folder / "summary.md", **given)


def gitlab(folder, **variables):
    """Runs the script of gitlab.yml with its variables, some of them replaced."""
    job = yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text())["prune"]
    script = "\n".join(job["script"])
    return shell(script, folder, **{**job["variables"], "STEP": ROOT / "docs/ci/step.sh", **variables})


def step(folder, **variables):
    return shell(f"sh {ROOT / 'docs/ci/step.sh'}", folder, **variables)


@pytest.fixture(scope="module")
def passed(tmp_path_factory):
    """The folder in which the action ran and passed."""
    folder = tmp_path_factory.mktemp("passed")
    done = action(folder, model=MODEL, arguments=PASSING, baseline="not-yet.json")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_github_action_passes_and_leaves_model_reports_and_summary(passed):
    assert (passed / "pruned.onnx").exists()
    report = json.loads((passed / "onnxprune-report" / "report.json").read_text())
    assert report["ratios"]["macs"] <= 0.5
    assert (passed / "summary.md").read_text() == (passed / "onnxprune-report" / "report.md").read_text()
    assert (passed / "onnxprune-report" / "report.html").exists()


def test_the_github_action_fails_its_gate_and_says_why(tmp_path):
    done = action(tmp_path, model=MODEL, arguments=FAILING)
    assert done.returncode == 1
    assert "--min-speedup" in done.stderr
    assert not (tmp_path / "pruned.onnx").exists()
    assert "failed with exit code 1" in (tmp_path / "summary.md").read_text()
    assert "1000.000 was asked" in (tmp_path / "summary.md").read_text()


def test_a_stored_report_that_was_better_fails_the_plain_step(passed, tmp_path):
    stored = json.loads((passed / "onnxprune-report" / "report.json").read_text())
    stored["models"][1]["macs"] -= 1
    (tmp_path / "base.json").write_text(json.dumps(stored))
    done = step(tmp_path, MODEL=MODEL, ARGUMENTS=NO_LATENCY, BASELINE="base.json", SUMMARY="summary.md")
    assert done.returncode == 1
    assert "worse: pruned: macs" in done.stdout
    assert "worse: pruned: macs" in (tmp_path / "summary.md").read_text()


def test_arguments_are_words_and_never_commands(tmp_path):
    done = step(tmp_path, MODEL=MODEL, ARGUMENTS="--method l1 $(touch hacked) ; touch hacked * `touch hacked`")
    assert done.returncode == 2
    assert not (tmp_path / "hacked").exists()


def test_without_a_model_the_step_says_what_is_missing(tmp_path):
    done = step(tmp_path)
    assert done.returncode != 0
    assert "MODEL" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code"), [(PASSING, 0), (FAILING, 1)])
def test_the_gitlab_job_passes_and_fails(tmp_path, arguments, code):
    done = gitlab(tmp_path, MODEL=MODEL, ARGUMENTS=arguments)
    assert done.returncode == code, done.stderr
    assert (tmp_path / "pruned.onnx").exists() == (code == 0)


def test_the_gitlab_example_names_files_that_the_step_writes():
    job = yaml.safe_load((ROOT / "docs/ci/gitlab.yml").read_text())["prune"]
    assert job["variables"]["OUT"] in job["artifacts"]["paths"]
    assert job["variables"]["REPORTS"] + "/" in job["artifacts"]["paths"]


def test_the_three_line_job_gives_inputs_that_the_action_has():
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/ci/README.md").read_text(), re.DOTALL)
    assert block
    (job,) = yaml.safe_load(block[1])
    described = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(job["with"]) <= set(described["inputs"])
    assert len(block[1].splitlines()) == 3
