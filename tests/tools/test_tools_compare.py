"""tools/compare.py and its rival: the command that it makes, and the network that stands for the ONNX file."""

import importlib
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"tools.{name}")


def test_the_padded_shortcut_is_every_second_pixel_between_zeros(tool):
    x = torch.randn(2, 16, 8, 8)
    wanted = torch.nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    assert torch.equal(tool("cifar_resnet").padded_shortcut(16, 32)(x), wanted)


def test_defaults_give_way_to_what_is_asked(tool):
    words = tool("compare").command("cifar10-vgg16-fp16weights", "train1000", "test", Path("o"), ["--epochs", "7"])
    assert words.count("--epochs") == 1
    assert words[words.index("--epochs") + 1] == "7"
    assert words[words.index("--data") + 1] == "tools.cifar:vgg_train1000"


@pytest.mark.slow
def test_torch_and_onnxruntime_agree_on_the_trained_network(tool):
    from onnxprune import graph
    from onnxprune.graph import sessions

    path = tool("cifar").DATA / "models" / "cifar10-resnet20-bn.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}; set ONNXPRUNE_DATA to the folder of shared data")
    x = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    y = sessions.run(sessions.open_session(graph.load(path)), {"input": x})["logits"]
    with torch.no_grad():
        z = tool("cifar_resnet").load(path)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(z, y, atol=1e-4 * np.abs(y).max())
