"""Counts and durations in sentences."""

import pytest

from onnxprune.system.words import counted, duration


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


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h")]
)
def test_durations_are_told_in_the_unit_that_one_would_say(seconds, told):
    assert duration(seconds) == told
