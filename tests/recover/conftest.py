"""The embedded classifier as fixtures."""

import pytest
from recovering import Digits, digits_of


@pytest.fixture(scope="session")
def folded() -> Digits:
    return digits_of("digits.onnx")


@pytest.fixture(scope="session")
def normed() -> Digits:
    return digits_of("digits-bn.onnx")


@pytest.fixture(params=["folded", "normed"])
def digits(request: pytest.FixtureRequest) -> Digits:
    return request.getfixturevalue(request.param)
