"""Counts in sentences."""

import pytest

from onnxprune.system.words import counted


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 samples"),
        (1, "1 sample"),
        (2, "2 samples"),
        (1.0, "1 sample"),
        (0.5, "0.5 samples"),
        (15.08, "15.1 samples"),
    ],
)
def test_one_is_singular(count, told):
    assert counted(count, "sample") == told
