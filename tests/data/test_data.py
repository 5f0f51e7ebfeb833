"""Samples: what every SPEC but a folder of images gives, and how samples are split and walked."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxprune.data import (
    InputInfo,
    batch_axes,
    batch_size_of,
    batches,
    input_infos,
    load_samples,
    objects,
    random_feeds,
    split,
)

MODELS = Path(__file__).parents[2] / "models"
F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
IMAGE = [InputInfo("image", ("batch", 3, 4, 4), F32)]
VECTOR = [InputInfo("input", ("batch", 3), F32)]
TOKENS = [InputInfo("ids", ("batch", "length"), I64), InputInfo("mask", ("batch", "length"), I64)]


def rows(n=6, width=3, dtype=np.float32):
    return np.arange(n * width, dtype=dtype).reshape(n, width)


def everything(samples):
    return samples.batch(slice(None))


# Inputs of a model


def test_input_infos_read_names_shapes_and_types_and_skip_initializers():
    model = ir.from_onnx_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[batch,3] x, int64[batch,?] ids, float16 scale, float[3] w) => (float[batch,3] y)
        <float[3] w = {1,2,3}> { y = Add(x, w) }""")
    x, ids, scale = input_infos(model)
    assert x == InputInfo("x", ("batch", 3), F32)
    assert (ids.name, ids.shape[0], ids.dtype) == ("ids", "batch", I64)
    assert (scale.shape, scale.dtype) == ((), np.dtype(np.float16))


def test_input_infos_take_an_axis_of_0_or_less_as_symbolic():
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([0, 3]))
    assert input_infos(ir.Model(ir.Graph([value], [], nodes=[]), ir_version=8))[0].shape == (None, 3)


@pytest.mark.parametrize(
    ("shapes", "axes", "fixed"),
    [
        ([("batch", 3)], [0], None),
        ([(None, 3)], [0], None),
        ([(8, 3)], [0], 8),
        ([("seq", "N", 5), ("N",)], [1, 0], None),
        ([("batch", "seq"), (2, "batch", 16)], [0, 1], None),
        ([("batch_1", 3), ("batch_2", 3)], [0, 0], None),
        ([("batch", 3), (10, 10), ()], [0, None, None], None),
        ([(), (1, 512), (2, 1, 128)], [None, 0, None], 1),
        ([None], [0], None),
    ],
)
def test_batch_axes_are_found_by_symbol_or_fixed_size(shapes, axes, fixed):
    inputs = [InputInfo(f"i{k}", shape, F32) for k, shape in enumerate(shapes)]
    assert list(batch_axes(inputs).values()) == axes
    assert batch_size_of(inputs) == fixed


# Random feeds


def test_random_feeds_match_the_inputs_and_repeat_by_seed():
    inputs = [
        InputInfo("x", ("batch", 3, "h", "w"), F32),
        InputInfo("ids", ("batch", "length"), I64),
        InputInfo("attention_mask", ("batch", "length"), I64),
        InputInfo("token_type_ids", ("batch", "length"), I64),
        InputInfo("half", (7,), np.dtype(ml_dtypes.bfloat16)),
        InputInfo("flag", (), np.dtype(bool)),
        InputInfo("step", (), I64),
    ]
    feeds = random_feeds(inputs, 3, seed=1, sizes={"h": 16, "length": 5})
    assert {name: (x.shape, x.dtype) for name, x in feeds.items()} == {
        "x": ((3, 3, 16, 64), F32),
        "ids": ((3, 5), I64),
        "attention_mask": ((3, 5), I64),
        "token_type_ids": ((3, 5), I64),
        "half": ((7,), np.dtype(ml_dtypes.bfloat16)),
        "flag": ((), np.dtype(bool)),
        "step": ((), I64),
    }
    assert abs(feeds["x"].std() - 1) < 0.1
    assert set(np.unique(feeds["ids"])) <= {0, 1, 2, 3}
    assert feeds["attention_mask"].all()
    assert not feeds["token_type_ids"].any()
    again, other = (random_feeds(inputs, 3, seed=s, sizes={"h": 16, "length": 5}) for s in (1, 2))
    assert (again["x"] == feeds["x"]).all()
    assert (other["x"] != feeds["x"]).any()


def test_random_feeds_keep_a_fixed_batch():
    assert random_feeds([InputInfo("x", (8, 3), F32)], 2)["x"].shape == (8, 3)


# Digits


def test_digits_have_a_fixed_stratified_split():
    inputs = input_infos(ir.load(MODELS / "digits.onnx"))
    tune, held = load_samples("digits", inputs, classes=10), load_samples("digits:test", inputs, seed=9)
    assert (len(tune), len(held)) == (1258, 539)
    assert np.bincount(held.labels).tolist() == [53, 55, 53, 55, 54, 55, 54, 54, 52, 54]
    x = everything(tune)["image"]
    assert (x.shape, x.dtype, x.min(), x.max()) == ((1258, 1, 8, 8), F32, 0, 1)
    seen = {row.tobytes() for row in x}
    assert not any(row.tobytes() in seen for row in everything(held)["image"])


@pytest.mark.parametrize("shape", [("batch", 8, 8, 1), ("batch", 64), ("batch", 8, 8), (4, 1, 8, 8)])
def test_digits_take_the_form_of_the_input(shape):
    samples = load_samples("digits", [InputInfo("x", shape, F32)])
    assert samples.batch([0, 1])["x"].shape == (2, *shape[1:])


@pytest.mark.parametrize("name", ["digits.onnx", "digits-bn.onnx"])
def test_the_embedded_models_know_the_digits_that_they_never_saw(name):
    from onnxruntime import InferenceSession, SessionOptions

    model = ir.load(MODELS / name)
    assert model.opset_imports[""] == 17
    assert any(node.op_type == "BatchNormalization" for node in model.graph) == name.endswith("-bn.onnx")
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(MODELS / name, options, providers=["CPUExecutionProvider"])
    samples = load_samples("digits:test", input_infos(model))
    assert (session.run(None, everything(samples))[0].argmax(1) == samples.labels).mean() >= 0.98


# Files of arrays


def test_npz_by_input_name_and_by_x(tmp_path):
    for name in ("input", "x"):
        np.savez(tmp_path / "a.npz", **{name: rows(dtype=np.float64), "y": np.arange(6, dtype=np.int32)})
        samples = load_samples(str(tmp_path / "a.npz"), VECTOR, classes=6)
        feeds = samples.batch([4, 1, 4])
        assert list(feeds) == ["input"]
        assert feeds["input"].dtype == F32
        assert (feeds["input"] == rows()[[4, 1, 4]]).all()
        assert samples.labels.dtype == I64
        assert samples.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_npz_with_several_inputs_states_and_constants(tmp_path):
    inputs = [
        InputInfo("x", ("batch", 3), F32),
        InputInfo("state", (2, "batch", 5), F32),
        InputInfo("rate", (), I64),
        InputInfo("table", (4, 4), F32),
    ]
    rng = np.random.default_rng(0)
    state, table = rng.random((2, 6, 5), np.float32), rng.random((4, 4), np.float32)
    np.savez(tmp_path / "a.npz", x=rows(), state=state, rate=np.int32(16000), table=table)
    samples = load_samples(tmp_path / "a.npz", inputs)
    feeds = samples.batch([5, 0])
    assert len(samples) == 6
    assert samples.labels is None
    assert (feeds["state"] == state[:, [5, 0]]).all()
    assert (feeds["rate"], feeds["rate"].dtype, feeds["rate"].shape) == (16000, I64, ())
    assert (feeds["table"] == table).all()


def test_an_input_of_exactly_the_fixed_shape_is_shared_by_all_batches(tmp_path):
    inputs = [InputInfo("x", (1, 3), F32), InputInfo("scale", (1,), F32)]
    np.savez(tmp_path / "a.npz", x=rows(), scale=np.float32([2]))
    samples = load_samples(tmp_path / "a.npz", inputs)
    assert len(samples) == 6
    assert samples.batch([3])["scale"].tolist() == [2]


def test_an_input_called_y_is_no_label(tmp_path):
    np.savez(tmp_path / "a.npz", y=rows())
    samples = load_samples(tmp_path / "a.npz", [InputInfo("y", ("batch", 3), F32)])
    assert samples.labels is None


def test_an_input_of_unknown_rank_takes_any_shape():
    samples = load_samples(rows(), [InputInfo("input", None, F32)])
    assert samples.batch([1])["input"].tolist() == [[3, 4, 5]]


def test_tokens_keep_their_type(tmp_path):
    np.savez(tmp_path / "a.npz", ids=rows(dtype=np.int32), mask=np.ones((6, 3), bool))
    feeds = load_samples(tmp_path / "a.npz", TOKENS).batch([1])
    assert [x.dtype for x in feeds.values()] == [I64, I64]
    assert feeds["ids"].tolist() == [[3, 4, 5]]


def test_floats_become_the_models_half_type(tmp_path):
    np.save(tmp_path / "a.npy", rows())
    for dtype in (np.float16, ml_dtypes.bfloat16):
        samples = load_samples(tmp_path / "a.npy", [InputInfo("x", ("batch", 3), np.dtype(dtype))])
        assert samples.batch([1])["x"].astype(np.float32).tolist() == [[3, 4, 5]]


def test_npy_stays_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", rows())
    samples = load_samples(tmp_path / "a.npy", VECTOR)
    assert isinstance(samples.arrays["input"], np.memmap)
    assert (samples.batch([2])["input"] == rows()[2]).all()


def test_bytes_become_floats_and_options_scale_arrays(tmp_path):
    x = np.arange(2 * 48, dtype=np.uint8).reshape(2, 3, 4, 4)
    np.savez(tmp_path / "a.npz", x=x)
    plain = load_samples(tmp_path / "a.npz", IMAGE)
    scaled = load_samples(tmp_path / "a.npz", IMAGE, scale=1 / 255, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2))
    assert (everything(plain)["image"] == x).all()
    mean, std = np.reshape([0.1, 0.2, 0.3], (3, 1, 1)), np.reshape([0.5, 0.25, 2], (3, 1, 1))
    np.testing.assert_allclose(everything(scaled)["image"], (x / 255 - mean) / std, atol=1e-6)


def test_an_array_that_is_not_used_is_told(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", x=rows(), label=np.arange(6))
    assert load_samples(tmp_path / "a.npz", VECTOR).labels is None
    assert "'label' is no input" in caplog.text


def test_labels_of_one_class_are_told(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", x=rows(), y=np.full((6, 1), 3))
    assert load_samples(tmp_path / "a.npz", VECTOR).labels.tolist() == [3] * 6
    assert "all 6 samples are of class 3" in caplog.text


# Functions, iterables, torch


def labeled():
    return [(row, k) for k, row in enumerate(rows())]


def loader(**options):
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(rows()), torch.arange(6))
    return torch.utils.data.DataLoader(dataset, **options)


class Stream(torch.utils.data.IterableDataset):
    """An iterable dataset that tells its length, as many do."""

    def __iter__(self):
        return iter(labeled())

    def __len__(self):
        return 6


@pytest.mark.parametrize(
    "made",
    [
        (rows(), np.arange(6)),
        {"input": rows(), "y": np.arange(6)},
        labeled(),
        [(rows()[:4], np.arange(4)), (rows()[4:], np.arange(4, 6))],
        [{"input": row, "label": k, "other": "text"} for row, k in labeled()],
        [{"x": torch.from_numpy(row), "labels": torch.tensor([k])} for row, k in labeled()],
        [((row,), k) for row, k in labeled()],
        [([row], k) for row, k in labeled()],
        [(row.tolist(), k) for row, k in labeled()],
        loader().dataset,
        loader(batch_size=4),
        Stream(),
    ],
)
def test_labeled_objects_give_the_same_samples(made):
    samples = load_samples(made, VECTOR, classes=6)
    assert (everything(samples)["input"] == rows()).all()
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "made", [rows(), rows().tolist(), list(rows()), iter(rows()), torch.from_numpy(rows()).bfloat16(), [(rows(), None)]]
)
def test_unlabeled_objects(made):
    samples = load_samples(made, VECTOR)
    assert (everything(samples)["input"] == rows()).all()
    assert samples.labels is None


def test_tuples_follow_the_order_of_several_inputs():
    a, b = rows(dtype=np.int64), np.ones((6, 3), np.int64)
    for made in ([(a, b, np.arange(6))], [((a, b), np.arange(6))], [{"mask": b, "ids": a, "y": np.arange(6)}]):
        samples = load_samples(made, TOKENS)
        assert (samples.batch([2])["ids"] == a[2]).all()
        assert samples.labels[2] == 2


def test_samples_pass_through():
    samples = load_samples(rows(), VECTOR)
    assert load_samples(samples, VECTOR) is samples


@pytest.mark.parametrize("targets", [True, False])
def test_a_large_dataset_is_read_when_asked_for(monkeypatch, targets):
    class Large:
        reads = 0

        def __len__(self):
            return 6

        def __getitem__(self, k):
            self.reads += 1
            return rows()[k].astype(np.float64), k

    dataset = Large()
    if targets:
        dataset.targets = list(range(6))
    monkeypatch.setattr(objects, "SAMPLES_BYTES", 10)
    samples = load_samples(dataset, VECTOR)
    assert dataset.reads == (1 if targets else 7)
    feeds = samples.subset([4, 5, 0]).batch([2, 1])
    assert dataset.reads == (3 if targets else 9)
    assert feeds["input"].dtype == F32
    assert (feeds["input"] == rows()[[0, 5]]).all()
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_module_function_from_the_current_folder_repeats_by_seed(tmp_path, monkeypatch):
    (tmp_path / "my_samples_a.py").write_text(
        "import numpy as np\ndef noise():\n    return np.random.rand(6, 3)\nfixed = [np.ones(3)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    one, same, other = (load_samples("my_samples_a:noise", VECTOR, seed=s).batch([0])["input"] for s in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert len(load_samples("my_samples_a:fixed", VECTOR)) == 1


def test_torch_is_not_imported():
    code = (
        "import sys, numpy as np; from onnxprune.data import *\n"
        "assert len(load_samples('digits', [InputInfo('x', ('batch', 64), np.dtype('float32'))])) == 1258\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Split, subsets, batches


def test_split_is_stratified_disjoint_and_fixed_by_the_seed():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    samples = load_samples((rows(100), labels), VECTOR)
    tune, held = split(samples, 0.2, 3)
    assert np.bincount(held.labels).tolist() == [12, 6, 2]
    numbers = [everything(part)["input"][:, 0].astype(int) // 3 for part in (tune, held)]
    assert sorted(np.concatenate(numbers)) == list(range(100))
    assert (tune.labels == labels[numbers[0]]).all()
    same, other = (everything(split(samples, 0.2, seed)[1])["input"] for seed in (3, 4))
    assert (same == everything(held)["input"]).all()
    assert (other != same).any()


@pytest.mark.parametrize(("count", "fraction", "held"), [(2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2), (7, 0.5, 4)])
def test_split_leaves_something_on_both_sides(count, fraction, held):
    assert [len(p) for p in split(load_samples(rows(count), VECTOR), fraction, 0)] == [count - held, held]


def test_split_keeps_its_total_where_every_class_is_small():
    samples = load_samples((rows(10), np.arange(10)), VECTOR)
    assert len(split(samples, 0.3, 0)[1]) == 3


def test_subsets_of_subsets_count_from_their_own_start():
    samples = load_samples((rows(), np.arange(6)), VECTOR)
    part = samples.subset(slice(1, None)).subset(np.array([True, False, True, False, True]))
    assert part.labels.tolist() == [1, 3, 5]
    assert part.batch([2])["input"].tolist() == [[15, 16, 17]]


def test_batches_walk_every_sample_once():
    samples = load_samples(rows(7), VECTOR)
    assert [b.tolist() for b in batches(samples, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [len(b) for b in batches(samples, 3, drop_last=True)] == [3, 3]
    shuffled = [np.concatenate(list(batches(samples, 3, shuffle=True, seed=s))).tolist() for s in (0, 0, 1)]
    assert sorted(shuffled[0]) == list(range(7))
    assert shuffled[0] == shuffled[1] != shuffled[2]


def test_batches_of_a_fixed_size_are_full_and_keep_their_order():
    samples = load_samples(rows(7), VECTOR)
    assert [b.tolist() for b in batches(samples, 64, fixed=4)] == [[0, 1, 2, 3], [4, 5, 6, 0]]
    assert [b.tolist() for b in batches(samples, 64, fixed=4, drop_last=True)] == [[0, 1, 2, 3]]
    assert [b.tolist() for b in batches(samples.subset([0, 1]), 64, fixed=5)] == [[0, 1, 0, 1, 0]]


def test_a_batch_of_transposed_images_copies_no_more_than_the_batch():
    """np.take made the whole array contiguous for every batch: half of the time of training on 50,000 images."""
    images = np.random.default_rng(0).normal(size=(2000, 16, 16, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    samples = load_samples({"x": images}, [InputInfo("x", ("N", 3, 16, 16), F32)])
    numbers = np.array([7, 3, 1999])
    tracemalloc.start()
    try:
        batch = samples.batch(numbers)["x"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(batch, images[numbers])
    assert batch.flags.c_contiguous
    assert peak < images.nbytes / 10
