"""BatchNormalization of few channels, against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from onnxprune.bridge import narrow_norm

EPSILON, MOMENTUM = 1e-3, 0.1
SHAPE = (8, 14, 64, 48)


def images(shape=SHAPE, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + torch.arange(shape[1]).view(-1, 1, 1)
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def results(compute, x, g, training):
    """y, the running statistics and the gradients of x, scale and b."""
    dtype = torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
    c = x.shape[1]
    mean, var = torch.linspace(-1, 1, c, dtype=dtype), torch.linspace(0.5, 2, c, dtype=dtype)
    scale, b = torch.linspace(-2, 2, c, dtype=dtype), torch.linspace(1, 0, c, dtype=dtype)
    x, scale, b = (each.clone(memory_format=torch.preserve_format).requires_grad_() for each in (x, scale, b))
    y = compute(x, mean, var, scale, b, training, MOMENTUM, EPSILON)
    return [y.detach(), mean, var, *torch.autograd.grad(y, (x, scale, b), g)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_is_batch_norm(dtype, training):
    check(images(dtype=dtype), images(dtype=dtype, seed=1), training)


def check(x, g, training):
    """The errors against float64 are no larger than twice those of torch's kernel, and a rounding of the largest."""
    assert narrow_norm.is_narrow(x)
    mine, theirs = (results(compute, x, g, training) for compute in (narrow_norm.narrow_batch_norm, F.batch_norm))
    exact = results(F.batch_norm, x.double(), g.double(), training)
    for name, found, right, other in zip("y mean var dx dscale db".split(), mine, exact, theirs, strict=True):
        assert found.dtype == other.dtype, name
        error, allowed = (float((each.double() - right).abs().max()) for each in (found, other))
        assert error <= 2 * allowed + max(1e-10, torch.finfo(found.dtype).eps) * float(right.abs().max()), name


def test_the_result_lies_as_its_input():
    y = results(narrow_norm.narrow_batch_norm, images(), images(seed=1), True)[0]
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.shape == SHAPE


def test_a_channel_that_is_constant_and_gradients_that_lie_otherwise():
    x, g = images(dtype=torch.float32), images(dtype=torch.float32, seed=1).contiguous()
    x[:, 3] = 7
    check(x, g, True)


@pytest.mark.parametrize(
    "x",
    [
        images().contiguous(),  # channels first
        images((8, 32, 64, 48)),  # wide
        images((2, 14, 8, 8)),  # small
        images((1, 14, 201, 101)),  # positions that do not go into copies
        images((8, 1, 512, 512)),
    ],
)
def test_others_are_left_to_torch(x):
    assert not narrow_norm.is_narrow(x)
