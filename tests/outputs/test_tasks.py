"""Every task: detector, segmentation, audio and text networks, pruned and recovered with unlabelled samples."""

import json

import numpy as np
import onnx
import pytest
from task_networks import TASKS, network

FOUND = '''
import numpy as np

def found(outputs, originals, labels):
    """Share of the original's boxes that the pruned model finds as well (intersection over union above 0.5)."""
    return np.array([share(a, b) for a, b in zip(outputs["boxes"], originals["boxes"])])

def share(boxes, wanted):
    if not len(wanted):
        return float(not len(boxes))
    if not len(boxes):
        return 0.0
    low, high = np.maximum(boxes[:, None, :2], wanted[:, :2]), np.minimum(boxes[:, None, 2:], wanted[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), -1)
    area = lambda b: np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), -1)
    return float((both / (area(boxes)[:, None] + area(wanted) - both + 1e-9) > 0.5).any(0).mean())
'''


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_recovery_without_labels_is_better_than_the_cut_alone(cli, tmp_path, monkeypatch, name):
    task = TASKS[name]
    onnx.save(network(name), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", **task.samples(np.random.default_rng(0), 240))
    (tmp_path / "boxes_found.py").write_text(FOUND)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = "boxes_found:found" if task.metric == "found" else task.metric
    words = "--method l1 --target macs=0.6 --align 1 --data x.npz --no-latency --epochs 3 --metric".split()
    values = {}
    for level in ("none", "reconstruct", "finetune"):
        out, plan, report = (tmp_path / f"{level}.{suffix}" for suffix in ("onnx", "plan", "json"))
        ran = cli("in.onnx", out, *words, metric, "--recover", level, "--plan", plan, "--report", report)
        assert ran.code == 0, ran.err
        found = json.loads(report.read_text())
        assert found["verify"]["ok"]
        assert found["ratios"]["macs"] <= 0.6
        accuracy = found["models"][1]["accuracy"]
        assert accuracy["metric"] == metric
        values[level] = -accuracy["value"] if metric == "relative_error" else accuracy["value"]
        assert cli("verify", "in.onnx", out, "--plan", plan).code == 0
    assert values["none"] < values["reconstruct"], values
    assert values["none"] < values["finetune"], values
    assert values["reconstruct"] < values["finetune"] + 0.02, values


def test_detections_are_measured_on_the_boxes_and_scores_that_they_are_chosen_from(cli, tmp_path):
    onnx.save(network("detector"), tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", **TASKS["detector"].samples(np.random.default_rng(0), 60))
    files = (tmp_path / "in.onnx", tmp_path / "o.onnx", "--data", tmp_path / "x.npz", "--report", tmp_path / "r.json")
    ran = cli(*files, "--method", "l1", "--target", "macs=0.7", "--epochs", 1, "--no-latency")
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "r.json").read_text())["models"][1]["accuracy"]
    assert found["metric"] == "detections_ap"
    assert found["null"] < found["value"] <= found["original"] == 1
    assert 0 < found["parts"][0]["more"]["f1"] <= 1
