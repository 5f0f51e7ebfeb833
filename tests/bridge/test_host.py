"""Shape arithmetic on Python ints agrees with the torch functions, and leaves to them what it does not know."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.bridge import host
from onnxprune.bridge.ops import find

values = st.integers(-50, 50)
vectors = st.lists(values, min_size=1, max_size=5)


def by_torch(op_type, *arguments, **attributes):
    entry = find(op_type, "", 23)
    tensors = [
        value if k in entry.host else torch.tensor(value, dtype=torch.int64) for k, value in enumerate(arguments)
    ]
    return entry.function(*tensors, **attributes).tolist()


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Max", "Min", "Equal", "Greater", "Less"])
@given(left=vectors | values, right=vectors | values)
def test_arithmetic(op_type, left, right):
    result = host.PLAIN[op_type](left, right)
    if result is NotImplemented:
        assert len(left) != len(right)
    else:
        assert result == by_torch(op_type, left, right)


@given(left=vectors | values, right=values.filter(bool))
def test_division_and_remainder(left, right):
    assert host.PLAIN["Div"](left, right) == by_torch("Div", left, right)
    assert host.PLAIN["Mod"](left, right) == by_torch("Mod", left, right)


@given(x=vectors, start=values, end=values, step=st.integers(1, 3))
def test_slice(x, start, end, step):
    assert host.PLAIN["Slice"](x, [start], [end], [0], [step]) == by_torch("Slice", x, [start], [end], [0], [step])


@given(x=vectors, data=st.data())
def test_gather(x, data):
    index = data.draw(st.integers(-len(x), len(x) - 1))
    assert host.PLAIN["Gather"](x, index) == by_torch("Gather", x, index)
    assert host.PLAIN["Gather"](x, [index, 0]) == by_torch("Gather", x, [index, 0])


def test_forms_that_are_no_vectors_are_left_to_torch():
    assert host.PLAIN["Unsqueeze"]([1, 2], [0]) is NotImplemented
    assert host.PLAIN["Reshape"]([1, 2, 3, 4], [2, 2]) is NotImplemented
    assert host.PLAIN["Cast"](3, to=1) is NotImplemented
    assert host.PLAIN["Slice"]([1, 2, 3], [-1], [-9], [0], [-1]) is NotImplemented
    entry = find("Unsqueeze", "", 13)
    result = host.call([1, 2], [0], function=entry.function, plain=host.PLAIN["Unsqueeze"], positions=entry.host)
    assert result.tolist() == [[1, 2]]


def test_host_values_become_tensors_of_their_type():
    assert host.as_tensor([1, 2]).dtype == torch.int64
    assert host.as_tensor(5).shape == ()
    assert host.as_tensor([]).shape == (0,)
    assert host.as_tensor([True, False]).dtype == torch.bool
    assert host.as_tensor(np.array("text")).dtype.kind == "U"
