"""A folder of good and bad models, samples, plans and configurations; a bench that takes a moment."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import CNN, MLP, filled
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tools.attack import CONFIGS


def replaced(name: str, array: np.ndarray, text: str = CNN) -> onnx.ModelProto:
    made = filled(text)
    for tensor in made.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))
    return made


def external(location: str, length: int = 864) -> onnx.ModelProto:
    made = filled(CNN)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    return made


def _models() -> dict[str, onnx.ModelProto]:
    bad = np.zeros((8, 8, 3, 3), np.float32)
    nan, inf = bad.copy(), bad.copy()
    nan[0, 0, 0, 0], inf[0, 0, 0, :2] = np.nan, (np.inf, -np.inf)
    made = {"good": filled(CNN), "mlp": filled(MLP), "nan": replaced("w2", nan), "inf": replaced("w2", inf)}
    made["zero"] = replaced("w1", np.zeros((0, 3, 3, 3), np.float32))
    made["misfit"] = replaced("w5", np.zeros((4, 13), np.float32))
    made["unknown"] = filled(CNN)
    relu = next(node for node in made["unknown"].graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "Magic", "acme.ops"
    made["unknown"].opset_import.add(domain="acme.ops", version=1)
    made["huge"] = filled(CNN)
    made["huge"].graph.initializer[0].dims[:2] = [10**6, 10**6]
    made["huge_input"] = filled(CNN.replace("[N, 3, 8, 8]", "[4, 3, 1000000, 1000000]").replace("[N, 4]", "[4, 4]"))
    made["opset"], made["no_opset"], made["no_nodes"] = filled(CNN), filled(CNN), filled(CNN)
    made["opset"].opset_import[0].version = 999
    del made["no_opset"].opset_import[:]
    del made["no_nodes"].graph.node[:]
    made["cyclic"], made["dangling"] = filled(CNN), filled(CNN)
    made["cyclic"].graph.node[0].input[0] = "e1"
    made["dangling"].graph.node[0].input[0] = "nowhere"
    made["two_initializers"], made["two_outputs"] = filled(CNN), filled(CNN)
    made["two_initializers"].graph.initializer.append(made["two_initializers"].graph.initializer[0])
    made["two_outputs"].graph.node.append(helper.make_node("Relu", ["c"], ["a"], "again"))
    made["frozen"] = filled(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 4] y) {y = Relu (x)}'
    )
    made |= {"missing_data": external("w.bin"), "above": external("../w.bin"), "absolute": external("/etc/passwd")}
    return made | {"linked": external("link/w.bin"), "short_data": external("short.bin")}


def _samples(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3, 8, 8)).astype(np.float32), np.arange(20) % 4
    spoilt = x.copy()
    spoilt[3, 0, 0, 0] = np.nan
    np.savez(folder / "x.npz", x=x, y=y)
    np.savez(folder / "none_inside.npz", x=x[:0])
    np.savez(folder / "shape.npz", x=rng.normal(size=(20, 3, 9, 9)).astype(np.float32))
    np.savez(folder / "dtype.npz", x=np.ones((20, 3, 8, 8), np.int64))
    np.savez(folder / "name.npz", pixels=x)
    np.savez(folder / "nan.npz", x=spoilt)
    np.savez(folder / "labels.npz", x=x, y=y + 4)
    np.savez(folder / "length.npz", x=x, y=y[:19])
    np.savez(folder / "one_class.npz", x=x, y=0 * y)
    np.savez(folder / "pickled.npz", x=np.array([{}], object))
    (folder / "empty_folder").mkdir()
    (folder / "images").mkdir()
    (folder / "broken").mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / "images" / f"{index}.png")
    for broken in (folder / "images" / "9.png", folder / "broken" / "a.png", folder / "broken" / "b.png"):
        broken.write_bytes((folder / "images" / "0.png").read_bytes()[:60])


def _plans(folder: Path) -> None:
    from onnxprune.cli import main

    words = ["good.onnx", "made.onnx", "--method", "l1", "--no-latency", "-q", "--plan", "plan.json"]
    assert main([str(folder / word) if "." in word else word for word in words]) == 0
    plan = json.loads((folder / "plan.json").read_text())

    def edited(name: str, change) -> None:
        copy = json.loads(json.dumps(plan))
        change(copy)
        (folder / f"{name}.json").write_text(json.dumps(copy))

    edited("old", lambda p: p.update(format="onnxprune-plan/0"))
    edited("no_slices", lambda p: p.pop("slices"))
    edited("dims", lambda p: p["dims"][0]["keep"].pop())
    edited("slices", lambda p: p["slices"][0]["keep"].pop())
    edited("nothing", lambda p: p["dims"][0].update(keep=[]))
    edited("beyond", lambda p: p["dims"][0].update(keep=[0, 999]))
    edited("words", lambda p: p["dims"][0].update(keep=["a"]))
    (folder / "other_json.json").write_text("{}")


@pytest.fixture(scope="session")
def bad(tmp_path_factory) -> Path:
    """The folder of bad things; the tests leave it as it is."""
    folder = tmp_path_factory.mktemp("world") / "bad"
    folder.mkdir()
    for name, made in _models().items():
        onnx.save(made, folder / f"{name}.onnx")
    content = (folder / "good.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    for name in ("text.onnx", "text.npz", "text.json"):
        (folder / name).write_text("this is no model")
    (folder / "short.bin").write_bytes(bytes(16))
    (folder.parent / "w.bin").write_bytes(bytes(864))
    (folder / "link").symlink_to(folder.parent)
    (folder / "same.onnx").symlink_to(folder / "good.onnx")
    onnx.save(
        filled(CNN), folder / "external.onnx", save_as_external_data=True, location="w.onnx.data", size_threshold=0
    )
    _samples(folder)
    _plans(folder)
    for name, text in CONFIGS.items():
        (folder / f"{name}.toml").write_text(text + "\n")
    return folder


@pytest.fixture
def short_bench(monkeypatch):
    """`bench` for a moment: what it measures is of no account."""
    from onnxprune.measure import Rounds, measure_latency
    from onnxprune.studies import bench

    moment = {"rounds": Rounds(5, 0, 0.2)}
    monkeypatch.setattr(bench, "measure_latency", lambda paths, **asked: measure_latency(paths, **asked | moment))
