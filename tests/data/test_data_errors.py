"""Samples that do not fit: each is one line that says what, where, both numbers, and what to do."""

import itertools
import sys
import zipfile

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from onnxprune.data import InputInfo, batches, input_infos, load_samples, objects, random_feeds, split
from onnxprune.errors import DataError

F32, I32, I64 = (np.dtype(d) for d in (np.float32, np.int32, np.int64))
VECTOR = [InputInfo("input", ("batch", 3), F32)]
IMAGE = [InputInfo("image", ("batch", 3, 4, 4), F32)]
TOKENS = [InputInfo("ids", ("batch", "length"), I64), InputInfo("mask", ("batch", "length"), I64)]


def image_input(*shape, dtype=F32):
    return [InputInfo("image", shape, dtype)]


def rows(n=6, width=3, dtype=np.float32):
    return np.arange(n * width, dtype=dtype).reshape(n, width)


def with_nan():
    x = rows()
    x[4, 1] = np.nan
    return x


def refused(spec, inputs, *told, **options):
    """The one-line message with which `spec` is refused; it holds every one of `told`."""
    with pytest.raises(DataError) as caught:
        load_samples(spec, inputs, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in told:
        assert part in message
    return message


ARRAYS = {
    "wrong name": ({"pixels": rows()}, VECTOR, {}, ["'pixels'", "'input' (batch, 3)", "or call it 'x'"]),
    "one of two inputs": (
        {"ids": rows(dtype=np.int64)},
        TOKENS,
        {},
        ["no array named 'mask'", "it has 'ids'", "'ids' (batch, length)"],
    ),
    "x for two inputs": ({"x": rows(dtype=np.int64)}, TOKENS, {}, ["no array named 'ids'"]),
    "wrong width": ({"x": rows(width=4)}, VECTOR, {}, ["(6, 4)", "'input'", "(batch, 3)"]),
    "wrong rank": ({"x": np.zeros((6, 1, 3), np.float32)}, VECTOR, {}, ["(6, 1, 3)", "(batch, 3)", "reshape"]),
    "missing axis": ({"x": np.zeros((6, 4, 4), np.float32)}, IMAGE, {}, ["(6, 4, 4)", "expand_dims"]),
    "a scalar": ({"x": np.float32(1)}, VECTOR, {}, ["shape ()", "(batch, 3)"]),
    "channels last": (
        {"x": np.zeros((2, 4, 4, 3), np.float32)},
        IMAGE,
        {},
        ["(2, 4, 4, 3)", "transpose", "(0, 3, 1, 2)"],
    ),
    "int64 for float": (
        {"x": rows(dtype=np.int64)},
        VECTOR,
        {},
        ["int64", "'input'", "float32", ".astype(np.float32)"],
    ),
    "float for int": ({"ids": rows(), "mask": rows()}, TOKENS, {}, ["float32", "'ids'", "int64"]),
    "int64 for int32": ({"x": rows(dtype=np.int64)}, [InputInfo("i", ("batch", 3), I32)], {}, ["int64", "int32"]),
    "text": ({"x": np.array([["a", "b", "c"]])}, VECTOR, {}, ["str", "'input'", "give numbers"]),
    "complex": ({"x": rows(dtype=np.complex64)}, VECTOR, {}, ["complex64", "float32"]),
    "NaN": ({"x": with_nan()}, VECTOR, {}, ["sample 4", "'input'", "NaN"]),
    "infinity": ({"x": np.where(np.isnan(with_nan()), np.inf, 1)}, VECTOR, {}, ["sample 4", "'input'", "infinity"]),
    "minus infinity": ({"x": np.where(np.isnan(with_nan()), -np.inf, 1)}, VECTOR, {}, ["sample 4", "infinity"]),
    "beyond float16": (
        {"x": rows() * 1e5},
        [InputInfo("h", ("batch", 3), np.dtype(np.float16))],
        {},
        ["sample 0", "float16", "65504"],
    ),
    "no samples": ({"x": rows(0)}, VECTOR, {}, ["no samples"]),
    "counts differ": (
        {"ids": rows(6, dtype=np.int64), "mask": rows(5, dtype=np.int64)},
        TOKENS,
        {},
        ["'ids' 6", "'mask' 5"],
    ),
    "lengths differ": (
        {"ids": rows(6, 3, np.int64), "mask": rows(6, 4, np.int64)},
        TOKENS,
        {},
        ["'length' is 3 in input 'ids' but 4 in input 'mask'"],
    ),
    "labels too few": ({"x": rows(), "y": np.arange(5)}, VECTOR, {}, ["5 labels for 6 samples"]),
    "labels beyond": (
        {"x": rows(), "y": np.arange(6)},
        VECTOR,
        {"classes": 4},
        ["label 4 of sample 4", "4 classes, 0 to 3", "2 of 6"],
    ),
    "labels below": ({"x": rows(), "y": np.arange(6) - 1}, VECTOR, {}, ["label -1 of sample 0", "start at 0"]),
    "labels float": ({"x": rows(), "y": np.arange(6.0)}, VECTOR, {}, ["labels are float64", "not integers"]),
    "labels one-hot": ({"x": rows(), "y": np.eye(6, dtype=int)}, VECTOR, {}, ["(6, 6)", "(6,)", "argmax"]),
    "size for arrays": ({"x": rows()}, VECTOR, {"size": 8}, ["--size", "folders of images"]),
    "mean for two inputs": ({"ids": rows(), "mask": rows()}, TOKENS, {"mean": 1}, ["one input", "2"]),
    "mean for integers": ({"x": rows()}, [InputInfo("i", ("n", 3), I64)], {"mean": 1}, ["int64", "leave --mean"]),
    "mean too long": ({"x": rows()}, IMAGE, {"mean": (1, 2, 3, 4)}, ["mean has 4", "3 channels"]),
    "std of zero": ({"x": rows()}, IMAGE, {"std": (1, 0, 1)}, ["std", "holds 0"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_npz_refused(tmp_path, case):
    arrays, inputs, options, told = ARRAYS[case]
    np.savez(tmp_path / "a.npz", **arrays)
    assert refused(tmp_path / "a.npz", inputs, *told, **options).startswith(str(tmp_path / "a.npz"))


def pickled(path):
    np.savez(path, x=np.array([{"a": 1}], dtype=object))


def truncated(path):
    np.savez(path, x=rows())
    path.write_bytes(path.read_bytes()[:-200])


def corrupt(path):
    np.savez(path, x=rows(1000))
    data = bytearray(path.read_bytes())
    data[5000] ^= 255
    path.write_bytes(data)


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "text")


def lying(path):
    """The header of an array says that it has a million times as many rows."""
    np.savez(path, x=rows())
    lines = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        content = archive.read("x.npy")
    count = f"({len(rows())},".encode()
    assert count in content, content[:100]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content.replace(count, f"({len(rows())}000000,".encode()).replace(b" " * 6, b"", 1))
    assert path.read_bytes() != lines


def npz_as_npy(path):
    with path.open("wb") as file:
        np.savez(file, x=rows())


FILES = {
    "missing": ("a.npz", lambda p: None, "no such file"),
    "text": ("a.npz", lambda p: p.write_text("text"), "not an .npz"),
    "empty": ("a.npz", lambda p: p.write_bytes(b""), "not an .npz"),
    "an image": ("a.png", lambda p: Image.new("RGB", (4, 4)).save(p), "not an .npz"),
    "pickled": ("a.npz", pickled, "never loaded"),
    "truncated": ("a.npz", truncated, "cut short"),
    "corrupt": ("a.npz", corrupt, "cannot be read"),
    "a header that lies": ("a.npz", lying, "the file is damaged, write it again"),
    "a zip of text": ("a.npz", foreign_zip, "'x' in it is not an array"),
    "npy of text": ("a.npy", lambda p: p.write_text("text"), "not an .npy file but something else"),
    "npy of objects": ("a.npy", lambda p: np.save(p, np.array([{}], object)), "never loaded"),
    "npy empty": ("a.npy", lambda p: p.write_bytes(b""), "not an .npy"),
    "npy cut short": ("a.npy", lambda p: p.write_bytes(b"\x93NUMPY\x01"), "cannot be read"),
    "npz called npy": ("a.npy", npz_as_npy, "name it .npz"),
}


@pytest.mark.parametrize("case", FILES)
def test_file_refused(tmp_path, case):
    name, write, told = FILES[case]
    write(tmp_path / name)
    refused(tmp_path / name, VECTOR, str(tmp_path / name), told)


def test_npy_for_two_inputs_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", rows())
    refused(tmp_path / "a.npy", TOKENS, "no array named 'ids'")


@pytest.mark.parametrize("spec", ["", "nothing", "no/such/folder", "digits.npz"])
def test_name_of_nothing_is_refused(spec):
    refused(spec, VECTOR, "samples are" if spec else "empty name", "folder of images")


FUNCTIONS = """
import numpy as np
import torch
secret = _hidden = None
def raises(): raise ValueError("two\\nlines")
def number(): return 7
def numbers(): return range(5)
class Own(BaseException): pass
def raises_own(): raise Own("own")
def yields_own():
    yield np.ones(3)
    raise Own("later")
class OwnItem(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, k): raise Own("item")
def text(): return "text"
def nothing(): return None
def empty(): return []
def partly(): return [(np.ones(3), 1), (np.ones(3), None)]
def ragged(): return [np.ones((2, 3)), np.ones((2, 4))]
def uneven(): return [[[1.0, 2.0, 3.0], [1.0, 2.0]]]
def breaks():
    yield np.ones(3)
    raise KeyError("gone")
def vector_labels(): return [(np.ones(3), np.eye(4, dtype=int)[k]) for k in range(4)]
def odd_labels(): return [(np.ones((2, 3)), np.ones(2, int)), (np.ones((2, 3)), np.ones((2, 2), int))]
def misnamed(): return [{"pixels": np.ones(3)}]
class Broken(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, k): return np.ones(3), 1 // (2 - k)
class Nobody(torch.utils.data.Dataset):
    def __len__(self): return 0
"""
FUNCTION_CASES = {
    "raises": ["raised ValueError: two lines at samples_b.py:5"],
    "number": ["gave int", "DataLoader"],
    "numbers": ["element 0", "shape ()", "has too few axes", "whole samples"],
    "raises_own": ["the function raised Own: own at samples_b.py:9"],
    "yields_own": ["reading samples raised Own: later"],
    "OwnItem": ["reading sample 0 raised Own: item"],
    "text": ["gave str"],
    "nothing": ["gave NoneType"],
    "secret": ["gave NoneType"],
    "empty": ["no samples", "empty"],
    "partly": ["1 of 2 elements have labels"],
    "ragged": ["(2, 3)", "element 1 has (2, 4)", "pad"],
    "uneven": ["element 0", "no array"],
    "breaks": ["reading samples raised KeyError"],
    "vector_labels": ["(4, 4)", "argmax"],
    "odd_labels": ["(2,) in element 0 but (2, 2) in element 1"],
    "misnamed": ["element 0", "no array named 'input'", "'pixels'"],
    "Broken": ["reading sample 2 raised ZeroDivisionError"],
    "Nobody": ["no samples", "length 0"],
    "other": ["has no 'other'", "raises", "number"],
}


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "samples_b.py").write_text(FUNCTIONS)
    (tmp_path / "samples_c.py").write_text("import no_such_module_d")
    (tmp_path / "samples_e.py").write_text("1 +")
    (tmp_path / "samples_f.py").write_text("class Own(BaseException): pass\nraise Own('imported')")
    yield
    for name in ("samples_b", "samples_c", "samples_e", "samples_f"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", FUNCTION_CASES)
def test_function_refused(user_folder, name):
    assert refused(f"samples_b:{name}", VECTOR, *FUNCTION_CASES[name]).startswith(f"samples_b:{name}")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("samples_z:make", "no module 'samples_z'"),
        ("samples_z.deep:make", "no module 'samples_z'"),
        ("samples_c:make", "raised ModuleNotFoundError: No module named 'no_such_module_d'"),
        ("samples_e:make", "raised SyntaxError"),
        ("samples_f:make", "importing the module raised Own: imported"),
    ],
)
def test_module_refused(user_folder, spec, told):
    refused(spec, VECTOR, spec, told)


def leaves(*_):
    sys.exit(0)


def leaving():
    yield np.ones(3, np.float32)
    sys.exit("enough")


class Leaving:
    __len__ = lambda self: 3  # noqa: E731
    __getitem__ = leaves


def test_users_code_that_ends_the_process_is_an_error(user_folder, tmp_path):
    (tmp_path / "samples_leaving.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "samples_leave.py").write_text("import sys\ndef make():\n    sys.exit(3)\n")
    refused(Leaving(), VECTOR, "reading sample 0 raised SystemExit: 0")
    refused(leaving(), VECTOR, "reading samples raised SystemExit: enough")
    refused("samples_leaving:make", VECTOR, "importing the module raised SystemExit: 0")
    refused("samples_leave:make", VECTOR, "the function raised SystemExit: 3")


def test_masks_may_hold_minus_infinity():
    inputs = [InputInfo("attention_mask", ("batch", 3), F32)]
    samples = load_samples({"attention_mask": np.full((2, 3), -np.inf, np.float32)}, inputs)
    assert np.isneginf(samples.batch([1])["attention_mask"]).all()
    refused({"attention_mask": np.full((2, 3), np.inf, np.float32)}, inputs, "infinity")


def test_an_endless_iterable_ends_with_a_message(monkeypatch):
    monkeypatch.setattr(objects, "LIMIT_BYTES", 1000)
    refused(itertools.repeat(np.ones(3)), VECTOR, "more than", "Dataset")


def test_a_large_dataset_is_checked_batch_by_batch(monkeypatch):
    monkeypatch.setattr(objects, "SAMPLES_BYTES", 10)
    samples = load_samples(torch.utils.data.TensorDataset(torch.from_numpy(with_nan())), VECTOR)
    assert len(samples.batch([0, 1])["input"]) == 2
    with pytest.raises(DataError, match="NaN"):
        samples.batch([4])


# Folders of images

FOLDERS = {
    "empty": ([], IMAGE, {}, ["no images in this folder", ".png"]),
    "no image": (["notes.txt"], IMAGE, {}, ["no images"]),
    "all broken": (["a.jpg!", "b.png!"], IMAGE, {}, ["none of 2 images can be read", "a.jpg"]),
    "mixed": (["a.png", "cat/b.png"], IMAGE, {}, ["1 images lie beside 1 class folders"]),
    "too many classes": (["a/1.png", "b/1.png", "c/1.png"], IMAGE, {"classes": 2}, ["3 class folders", "2 classes"]),
    "two inputs": (["a.png"], TOKENS, {}, ["one input", "the model has 2", "'ids'"]),
    "no rank": (["a.png"], [InputInfo("image", None, F32)], {}, ["4 axes", "'image' (any shape)"]),
    "rank 2": (["a.png"], VECTOR, {}, ["4 axes", "'input' (batch, 3)"]),
    "no channels": (["a.png"], image_input("n", 8, 4, 4), {}, ["1 or 3 channels", "--layout"]),
    "no channels as nchw": (["a.png"], image_input("n", 8, 4, 4), {"layout": "nchw"}, ["has 8 as nchw"]),
    "no size": (["a.png"], image_input("n", 3, "h", "w"), {}, ["any height and width", "--size"]),
    "size too small": (["a.png"], IMAGE, {"size": 3}, ["3 x 3", "4 x 4", "'image'"]),
    "size of three": (["a.png"], IMAGE, {"size": (4, 4, 4)}, ["(4, 4, 4)", "224,320"]),
    "size zero": (["a.png"], IMAGE, {"size": 0}, ["size 0"]),
    "no layout": (["a.png"], IMAGE, {"layout": "chwn"}, ["'chwn'", "nchw nor nhwc"]),
    "mean of two": (["a.png"], IMAGE, {"mean": (0.5, 0.5)}, ["mean has 2", "3 channels"]),
    "mean for integers": (["a.png"], image_input("n", 4, 4, 3, dtype=I64), {"mean": 0.5}, ["int64", "--mean"]),
    "bool input": (["a.png"], image_input("n", 3, 4, 4, dtype=np.dtype(bool)), {}, ["bool", "0..255"]),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_refused(tmp_path, case):
    names, inputs, options, told = FOLDERS[case]
    for name in names:
        path = tmp_path / name.rstrip("!")
        path.parent.mkdir(exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("no image")
    refused(tmp_path, inputs, str(tmp_path), *told, **options)


def test_an_image_that_went_bad_during_the_run_is_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    samples = load_samples(tmp_path, IMAGE)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: the image was readable"):
        samples.batch([0])


# The rest


def test_digits_refuse_other_models():
    refused("digits", IMAGE, "digits", "(1797, 1, 8, 8)", "'image' takes (batch, 3, 4, 4)")
    refused("digits:test", TOKENS, "one input", "2")
    refused("digits", [InputInfo("x", ("n", 64), F32)], "label 5", classes=5)


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (6, 0.0), (6, 1.0)])
def test_split_refuses_an_empty_part(count, fraction):
    with pytest.raises(DataError, match=f"{count} samples? cannot be split"):
        split(load_samples(rows(count), VECTOR), fraction, 0)


def test_batches_refuse_a_size_of_zero():
    with pytest.raises(DataError, match="batch size 0"):
        next(batches(load_samples(rows(), VECTOR), 0))


def test_random_feeds_need_a_rank():
    with pytest.raises(DataError, match="'x' of the model has no known rank"):
        random_feeds([InputInfo("x", None, F32)])


@pytest.mark.parametrize("kind", [ir.SequenceType(ir.TensorType(ir.DataType.FLOAT)), None])
def test_inputs_that_are_no_tensors_are_refused(kind):
    model = ir.Model(ir.Graph([ir.Value(name="s", type=kind)], [], nodes=[]), ir_version=8)
    with pytest.raises(DataError, match="input 's' of the model"):
        input_infos(model)


def test_texts_are_samples_of_text_inputs_alone():
    text = [InputInfo("x", (None,), np.dtype(object))]
    assert load_samples({"x": np.array(["a", "bc"])}, text).batch(np.arange(2))["x"].tolist() == ["a", "bc"]
    with pytest.raises(DataError, match="takes texts; give an array of str"):
        load_samples({"x": np.arange(3)}, text)
    with pytest.raises(DataError, match="takes float32"):
        load_samples({"input": np.full((4, 3), "a")}, VECTOR)
