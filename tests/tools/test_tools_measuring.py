"""tools/align.py and tools/scale.py: the networks that they compare, and what they make of measurements."""

import importlib.util
import sys
from pathlib import Path

import onnx
import pytest

from onnxprune.options import Options
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock

ROOT = Path(__file__).parents[2]


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(ROOT / "tools"))  # tools import each other
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "tools"))
    return module


align, scale = tool("align"), tool("scale")


@pytest.fixture(scope="module")
def subject():
    return prepare(ROOT / "models" / "digits.onnx", Options(), Clock())


def test_all_variants_have_nearly_the_same_macs(subject):
    plans = align.variants(subject, "l2", 0.5, 8)
    shares = {name: align.share_of(subject, keep) for name, keep in plans.items()}
    assert len(plans) == 4
    assert shares["aligned to 8"] <= 0.5
    assert all(abs(share - shares["aligned to 8"]) < 0.08 for share in shares.values()), shares
    assert all(int(mask.sum()) % 8 == 0 for mask in plans["aligned to 8"].values())
    assert any(int(mask.sum()) % 8 for mask in plans["unaligned"].values())


def test_narrowing_keeps_the_same_share_in_multiples(subject):
    kept = align.narrowed(subject, 0.6, 8)
    assert [int(mask.sum()) for mask in kept.values()] == [min(dim.size, 8 * round(0.6 * dim.size / 8)) for dim in kept]


def test_the_table_says_what_share_of_the_reduction_became_speed():
    row = align.Row("net", "aligned", 0.5, (0.4, 0.625, 0.8))
    assert row.share == pytest.approx(0.8)
    assert "| net | aligned | 0.500 | 0.625 | 0.400 to 0.800 | 1.60 | 0.80 |" in align.markdown([row])


@pytest.mark.parametrize(
    "model", [scale.conv_net(8, 2), scale.transformer(16, 1, heads=2)], ids=["conv", "transformer"]
)
def test_synthetic_models_are_valid(model):
    onnx.checker.check_model(model, full_check=True)
    assert scale.parameters(model) > 0


def test_growth_is_the_exponent_of_the_last_step_above_the_start():
    points = [scale.Point("s", size, 1.0 + 0.2 * size, 0) for size in (0, 10, 20)]
    assert scale.growth([scale.Point("s", 1, 0.0, 0), *points[1:]], "seconds") == pytest.approx(0.74, abs=0.01)
    assert scale.growth([scale.Point("s", n, float(n * n), 0) for n in (1, 100, 200)], "seconds") == pytest.approx(
        2, abs=0.01
    )


def test_table_and_plot_hold_every_series(tmp_path):
    beside = scale.markdown([scale.Point("verify decoder", 100, 2.0, 3 << 20, 2 << 20)], "parameters")
    assert beside.endswith("| verify decoder | 100 | 2.0 | 3 | 1.50 |\n")
    points = [scale.Point(f"inspect {k}", 10**e, 1.0 + e, 10 ** (7 + e)) for k in "ab" for e in (3, 5, 7)]
    table = scale.markdown(points, "parameters")
    assert "1,000<br>100,000<br>10,000,000" in table
    assert table.count("\n") == 4
    scale.plot((("parameters", points), ("samples", points)), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
