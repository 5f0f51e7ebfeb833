"""Methods that need gradients say so where none flows."""

import pytest
import torch

from onnxprune.errors import BridgeError
from onnxprune.methods.objective import with_gradient


def test_a_loss_without_a_gradient_is_refused():
    loss = torch.ones((), requires_grad=True)
    assert with_gradient(loss) is loss
    with pytest.raises(BridgeError, match="choose a method that needs none"):
        with_gradient(torch.ones(()))
