"""Advice fits the provider that was named: what brings it, which widths and numbers it likes."""

import re
from pathlib import Path

import pytest

import onnxprune
from onnxprune import quantize
from onnxprune.errors import ProviderError, UsageError
from onnxprune.graph import providers, sessions
from onnxprune.measure.calibrations import alignment_for

PAGE = Path(onnxprune.__file__).parent.parent / "docs" / "questions" / "faster.md"
ABSENT = {
    "openvino": "onnxruntime-openvino",
    "directml": "onnxruntime-directml",
    "DmlExecutionProvider": "onnxruntime-directml",
    "coreml": "macOS",
    "qnn": "onnxruntime-qnn",
    "migraphx": "onnxruntime-migraphx",
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_missing_is_named_and_it_is_not_cuda(name):
    full = providers.full_name(name)
    if full in __import__("onnxruntime").get_available_providers():
        pytest.skip("it is there")
    with pytest.raises(ProviderError, match=re.escape(ABSENT[name])) as caught:
        sessions.require_provider(full)
    assert full in str(caught.value)
    assert "CUDA" not in str(caught.value).partition("offers")[2].partition(";")[2]


def test_an_unknown_provider_is_told_the_known_names():
    with pytest.raises(ProviderError, match=r"known names are cpu, cuda, tensorrt.*or choose --provider cpu"):
        sessions.require_provider("tpu")


@pytest.mark.parametrize("name", ["coreml", "webgpu", "CUDAExecutionProvider", "cuda"])
def test_int8_is_refused_where_it_would_be_computed_in_floats(name):
    asked = quantize.parse("int8")
    with pytest.raises(UsageError, match=r"no integer kernels.*--quantize fp16.*--provider cpu, tensorrt"):
        quantize.check(asked, name, True)
    quantize.check(asked, "openvino", True)


@pytest.mark.parametrize(
    ("name", "multiple"), [("cpu", 16), ("cuda", 8), ("CUDAExecutionProvider", 8), ("qnn", 32), ("x", 8)]
)
def test_widths_follow_the_provider_however_it_is_written(name, multiple):
    assert alignment_for("auto", name) == multiple


def test_the_page_says_what_the_table_does():
    rows = {
        name.strip(): (int(cells[2]), cells[3])
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and line.count("|") == 5 and not line.startswith("| provider")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
        for name in cells[0].split(",")
    }
    assert set(rows) == {provider.names[0] for provider in providers.KNOWN.values()}
    for name, (multiple, numbers) in rows.items():
        known = providers.of(name)
        assert multiple == known.multiple
        assert f"--quantize {known.form}`" in numbers
        assert ("no integers" in numbers) == (not known.integers)
