"""The original is checked first: what is wrong with labels or scaling is named before any work."""

import numpy as np
import pytest
from networks import DIGITS

from onnxprune.data.spec import digits_arrays
from onnxprune.run import first_check


@pytest.fixture
def digits(tmp_path):
    def saved(x, y):
        np.savez(tmp_path / "d.npz", x=x.astype(np.float32), y=y)
        return tmp_path / "d.npz"

    x, y = digits_arrays()
    return saved, x.reshape(-1, 1, 8, 8), y


def ran(cli, tmp_path, data):
    return cli(DIGITS, tmp_path / "o.onnx", "--data", data, "--method", "l1", "--recover", "none", "--no-latency")


def test_samples_that_are_scaled_otherwise_are_named(cli, tmp_path, digits):
    saved, x, y = digits
    found = ran(cli, tmp_path, saved(x / 255, y))
    assert found.code == 2
    assert "x * 255" in found.err
    assert found.err.count("\n") == 1
    assert not (tmp_path / "o.onnx").exists()


def test_labels_by_chance_stop_the_run(cli, tmp_path, digits):
    saved, x, y = digits
    found = ran(cli, tmp_path, saved(x, np.random.default_rng(0).permutation(y)))
    assert found.code == 2
    assert "labels, layout or preprocessing are likely wrong" in found.err


@pytest.mark.parametrize("words", [("sensitivity", "--method", "l1"), ("compare", "--methods", "l1")])
def test_studies_check_the_original_first(cli, tmp_path, digits, words):
    saved, x, y = digits
    command, *rest = words
    out = ("--targets", "macs=0.9", "--out", tmp_path / "out") if command == "compare" else ()
    wrong = saved(x, np.random.default_rng(0).permutation(y))
    found = cli(command, DIGITS, "--data", wrong, *rest, *out)
    assert found.code == 2, found.err
    assert "labels, layout or preprocessing are likely wrong" in found.err


def test_samples_as_the_model_takes_them_pass(cli, tmp_path, digits):
    saved, x, y = digits
    found = ran(cli, tmp_path, saved(x, y))
    assert found.code == 0, found.err


def test_few_samples_by_chance_are_only_warned_of(cli, tmp_path, digits):
    saved, x, y = digits
    found = ran(cli, tmp_path, saved(x[:150], np.random.default_rng(0).permutation(y[:150])))
    assert found.code == 0
    assert "likely wrong" in found.err


def test_scalings_are_those_of_the_range_that_samples_have():
    assert "x / 255" in first_check.scalings(3, 255.0)
    assert "x * 255" in first_check.scalings(3, 1.0)
    assert "channels in the order BGR" not in first_check.scalings(1, 1.0)
