"""The windows of a convolution, against onnxruntime's own convolution."""

import numpy as np
import pytest
from onnx_text import model as text_model

from onnxprune.graph import sessions
from onnxprune.recover.linear import linears, read_weights, write_weights
from onnxprune.recover.patches import mean_taps, window_of, windows

# Shape of x, shape of w, attributes; one name of an axis for each axis of the output.
CASES = {
    "plain": ("2,4,7,8", "6,4,3,2", "Conv"),
    "padded": ("2,4,7,8", "6,4,3,3", "Conv<pads = [1,0,2,3]>"),
    "strided": ("2,4,9,8", "6,4,3,3", "Conv<strides = [2,3], pads = [1,1,1,1]>"),
    "dilated": ("2,4,9,8", "6,4,2,3", "Conv<dilations = [3,2]>"),
    "grouped": ("2,4,7,7", "6,2,3,3", "Conv<group = 2>"),
    "depthwise": ("2,4,7,7", "8,1,3,3", "Conv<group = 4>"),
    "one axis": ("2,4,9", "6,4,3", "Conv<pads = [2,0]>"),
    "three axes": ("2,4,5,5,4", "6,4,3,3,2", "Conv"),
    "same upper": ("2,4,8,7", "6,4,3,4", 'Conv<auto_pad = "SAME_UPPER", strides = [2,2]>'),
    "same lower": ("2,4,8,7", "6,4,3,4", 'Conv<auto_pad = "SAME_LOWER", strides = [2,2]>'),
    "transposed": ("2,4,5,6", "4,3,3,2", "ConvTranspose<strides = [2,3]>"),
    "transposed, padded": (
        "2,4,5,6",
        "4,3,3,3",
        "ConvTranspose<strides = [2,2], pads = [1,2,1,0], output_padding = [1,0]>",
    ),
    "transposed, cropped": ("2,4,5,6", "4,3,2,2", "ConvTranspose<strides = [1,2], pads = [2,2,1,3]>"),
    "transposed, grouped": ("2,4,5,6", "4,3,3,3", "ConvTranspose<group = 2, dilations = [2,1]>"),
}


def _setup(case: tuple[str, str, str]):
    x_shape, w_shape, op = case
    y_shape = ",".join("NCDHW"[: x_shape.count(",") + 1])
    model = text_model(f"(float[{x_shape}] x, float[{w_shape}] w) => (float[{y_shape}] y) {{ y = {op}(x, w) }}")
    linear = next(iter(linears(model).values()))
    x = np.random.default_rng(1).normal(size=[int(s) for s in model.graph.inputs[0].shape]).astype(np.float32)
    y = sessions.run(sessions.open_session(model, threads=1), {"x": x})["y"]
    return model, linear, x, y


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_windows_times_weights_are_the_convolution(case: tuple[str, str, str]):
    _, linear, x, y = _setup(case)
    picks = np.random.default_rng(0).permutation(y.size // y.shape[1])[:50]
    seen = windows(x, window_of(linear, x.shape[2:], y.shape[2:]), picks)
    w = read_weights(linear)
    grouped = seen.reshape(len(picks), w.shape[0], w.shape[2], w.shape[3])
    result = np.einsum("rgik,goik->rgo", grouped, w).reshape(len(picks), -1)
    wanted = np.moveaxis(y, 1, -1).reshape(-1, y.shape[1])[picks]
    assert np.abs(result - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mean_taps_times_weights_are_the_mean_output(case: tuple[str, str, str]):
    _, linear, x, y = _setup(case)
    w = read_weights(linear)
    means = mean_taps(x, window_of(linear, x.shape[2:], y.shape[2:])).reshape(w.shape[0], w.shape[2], w.shape[3])
    result = np.einsum("gik,goik->go", means, w).reshape(-1)
    wanted = y.mean(axis=(0, *range(2, y.ndim)))
    assert np.abs(result - wanted).max() <= 1e-5 * np.abs(y).max()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_weights_are_written_as_they_were_read(case: tuple[str, str, str]):
    model, linear, x, y = _setup(case)
    write_weights(linear, 2 * read_weights(linear))
    doubled = sessions.run(sessions.open_session(model, threads=1), {"x": x})["y"]
    assert np.abs(doubled - 2 * y).max() <= 1e-5 * np.abs(y).max()
