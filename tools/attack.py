"""Bad models, samples, plans, paths, options, streams and signals against every command: none may leave the contract.

    python tools/attack.py                 # all cases, two at a time; exit code 1 and a line for each that failed
    python tools/attack.py --only samples  # those with the word in their name
    python tools/attack.py --every 10      # each tenth

The contract: exit code 0, 1, 2, 3 or 130; where it is not 0 exactly one line on stderr starts with 'onnxprune: ' and
it is the last; no trace, no internal error; nothing that is read changes; no file appears or changes unless the exit
code is 0, and what appears then is whole.

Every case is a copy of one process that has imported what commands import; those about streams and signals are
processes of their own.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

os.environ.setdefault("OMP_NUM_THREADS", "1")
SECONDS = 240.0  # after which a case counts as hanging, on a busy machine
CODES = (0, 1, 2, 3, 130)
L1 = "--method l1 --no-latency -q"
CNN = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[8, 3, 3, 3] w1, float[8] b1, float[12, 8, 3, 3] w2, float[4, 12] w3, float[4] b3>
{
  [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
  [relu] b = Relu (a)
  [wide] c = Conv <pads = [1, 1, 1, 1]> (b, w2)
  [tanh] d = Tanh (c)
  [pool] e = GlobalAveragePool (d)
  [flat] f = Flatten (e)
  [head] y = Gemm <transB = 1> (f, w3, b3)
}
"""


@dataclass(frozen=True)
class Case:
    """Words after `onnxprune`, in which {w} is the folder of bad things and {o} one to write to, and what may come."""

    name: str
    words: str
    codes: tuple[int, ...] = CODES
    run: Callable[["Case", Path, Path], "Ran"] | None = None  # in a process of its own, where a copy will not do
    before: Mapping[str, str] = field(default_factory=dict)  # files in {o} and what is in them

    def arguments(self, world: Path, out: Path) -> list[str]:
        return [word.replace("{w}", str(world)).replace("{o}", str(out)) for word in self.words.split(" ") if word]


@dataclass(frozen=True)
class Ran:
    """What became of a case."""

    code: int
    out: str
    err: str


# The folder of bad things ----------------------------------------------------------------------------------------


def cnn(seed: int = 0) -> onnx.ModelProto:
    """A small network with random weights."""
    made, rng = onnx.parser.parse_model(CNN), np.random.default_rng(seed)
    for value in made.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        made.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), value.name))
    made.graph.ClearField("value_info")
    return made


def edited(change: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    made = cnn()
    change(made)
    return made


def external(entries: Mapping[str, str]) -> onnx.ModelProto:
    made = cnn()
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return made


def with_weight(index: int, array: np.ndarray) -> onnx.ModelProto:
    return edited(
        lambda m: m.graph.initializer[index].CopyFrom(numpy_helper.from_array(array, m.graph.initializer[index].name))
    )


def with_functions(*nodes: onnx.NodeProto, name: str = "F") -> onnx.ModelProto:
    made = cnn()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    made.functions.append(helper.make_function("my", name, ["a"], ["b"], list(nodes), imports))
    made.opset_import.append(helper.make_opsetid("my", 1))
    made.graph.node[1].op_type, made.graph.node[1].domain = "F", "my"
    return made


def models() -> dict[str, onnx.ModelProto]:
    """Broken models by name; what they are is in the name."""
    node = helper.make_node
    nan = np.full((12, 8, 3, 3), np.nan, np.float32)
    found = {
        "no_nodes": edited(lambda m: m.graph.ClearField("node")),
        "no_opset": edited(lambda m: m.ClearField("opset_import")),
        "no_outputs": edited(lambda m: m.graph.ClearField("output")),
        "no_inputs": edited(lambda m: m.graph.ClearField("input")),
        "no_ir_version": edited(lambda m: m.ClearField("ir_version")),
        "ir_version_of_the_future": edited(lambda m: setattr(m, "ir_version", 99)),
        "opset_of_the_future": edited(lambda m: setattr(m.opset_import[0], "version", 999)),
        "opset_below_one": edited(lambda m: setattr(m.opset_import[0], "version", -1)),
        "opset_one": edited(lambda m: setattr(m.opset_import[0], "version", 1)),
        "cycle": edited(lambda m: m.graph.node[0].input.__setitem__(0, "e")),
        "value_from_nowhere": edited(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")),
        "output_from_nowhere": edited(lambda m: setattr(m.graph.output[0], "name", "nowhere")),
        "two_outputs_of_one_name": edited(lambda m: m.graph.node.append(node("Relu", ["c"], ["a"], "again"))),
        "two_initializers_of_one_name": edited(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        "two_inputs_of_one_name": edited(lambda m: m.graph.input.append(m.graph.input[0])),
        "node_without_inputs": edited(lambda m: m.graph.node[0].ClearField("input")),
        "node_without_type": edited(lambda m: m.graph.node[1].ClearField("op_type")),
        "unknown_operator": edited(lambda m: setattr(m.graph.node[1], "op_type", "Rulu")),
        "unknown_domain": edited(lambda m: setattr(m.graph.node[1], "domain", "nobody.knows")),
        "negative_sizes": edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, -8)),
        "huge_declared_sizes": edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**9)),
        "overflowing_sizes": edited(lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62)),
        "weights_of_another_rank": with_weight(0, np.ones((8, 27), np.float32)),
        "weights_of_another_size": with_weight(3, np.ones((4, 13), np.float32)),
        "weights_of_size_zero": with_weight(0, np.ones((0, 3, 3, 3), np.float32)),
        "weights_of_integers": with_weight(0, np.ones((8, 3, 3, 3), np.int64)),
        "weights_of_texts": with_weight(1, np.array(["a"] * 8, object)),
        "weights_not_a_number": with_weight(2, nan),
        "weights_infinite": with_weight(2, nan * 0 + np.inf),
        "type_undefined": edited(lambda m: setattr(m.graph.initializer[0], "data_type", 0)),
        "type_unknown": edited(lambda m: setattr(m.graph.initializer[0], "data_type", 99)),
        "input_without_type": edited(lambda m: m.graph.input[0].ClearField("type")),
        "input_that_is_huge": edited(
            lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 2**40)
        ),
        "input_below_zero": edited(lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -7)),
        "group_of_zero": edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 0))),
        "group_that_divides_nothing": edited(
            lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 5))
        ),
        "pads_of_texts": edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", ["a"]))),
        "strides_of_zero": edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0]))),
        "names_of_nodes_equal": edited(lambda m: [setattr(n, "name", "same") for n in m.graph.node]),
        "name_with_a_newline": edited(lambda m: setattr(m.graph.node[0], "name", "a\nb\tc")),
        "function_that_calls_itself": with_functions(node("F", ["a"], ["b"], domain="my")),
        "function_that_reads_nowhere": with_functions(node("Relu", ["nowhere"], ["b"])),
        "function_without_its_output": with_functions(node("Relu", ["a"], ["c"])),
        "function_that_is_missing": with_functions(node("Relu", ["a"], ["b"]), name="G"),
        "data_offset_of_letters": external({"location": "w.bin", "offset": "abc"}),
        "data_length_in_hex": external({"location": "w.bin", "length": "0x10"}),
        "data_length_negative": external({"location": "w.bin", "length": "-864"}),
        "data_beyond_the_end": external({"location": "w.bin", "offset": "4096", "length": "864"}),
        "data_at_a_nul": external({"location": "w\0.bin"}),
        "data_above": external({"location": "../w.bin"}),
        "data_absolute": external({"location": "/etc/passwd"}),
        "data_missing": external({"location": "none.bin"}),
        "data_is_a_folder": external({"location": "images"}),
        "data_is_a_pipe": external({"location": "pipe"}),
        "data_nowhere": external({}),
        "data_at_a_long_name": external({"location": "w" * 5000}),
    }
    return found


def nested(depth: int) -> onnx.ModelProto:
    """An If in an If in an If ..."""
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])], "in", [], [helper.make_empty_tensor_value_info("z")]
    )
    for level in range(depth):
        inner = helper.make_node("If", ["c"], ["z"], then_branch=made, else_branch=made)
        made = helper.make_graph([inner], f"g{level}", [], [helper.make_empty_tensor_value_info("z")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_models(folder: Path) -> None:
    for name, made in models().items():
        (folder / f"{name}.onnx").write_bytes(made.SerializeToString())
    good = cnn()
    onnx.save(good, folder / "good.onnx")
    onnx.save(cnn(1), folder / "other.onnx")
    onnx.save(good, folder / "external.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    (folder / "nested.onnx").write_bytes(nested(8).SerializeToString())
    content = (folder / "good.onnx").read_bytes()
    for percent in (1, 10, 50, 90, 99):
        (folder / f"cut_at_{percent}.onnx").write_bytes(content[: len(content) * percent // 100])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "zeros.onnx").write_bytes(bytes(4096))
    (folder / "text.onnx").write_text("this is no model")
    (folder / "pickle.onnx").write_bytes(
        b"\x80\x04\x95\x1b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    )
    for seed in range(FLIPS):
        (folder / f"flipped_{seed}.onnx").write_bytes(flipped(content, seed))


FLIPS = 40


def flipped(content: bytes, seed: int) -> bytes:
    """`content` with three bytes changed, of which one stands in front, where names and sizes are."""
    rng, data = np.random.default_rng(seed), bytearray(content)
    for place in (rng.integers(0, 400), *rng.integers(0, len(data), 2)):
        data[place] ^= int(rng.integers(1, 256))
    return bytes(data)


def write_samples(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 3, 8, 8)).astype(np.float32), np.arange(24) % 4
    nan, inf = x.copy(), x.copy()
    nan[3, 0, 0, 0], inf[5, 1] = np.nan, np.inf
    sets = {
        "x": {"x": x, "y": y},
        "one": {"x": x[:1]},
        "none": {"x": x[:0]},
        "nan": {"x": nan},
        "infinite": {"x": inf},
        "huge_numbers": {"x": x * np.float32(1e30)},
        "wide": {"x": rng.normal(size=(24, 3, 9, 9)).astype(np.float32)},
        "flat": {"x": x.reshape(24, -1)},
        "scalar": {"x": np.float32(1)},
        "last": {"x": x.transpose(0, 2, 3, 1)},
        "whole": {"x": np.ones((24, 3, 8, 8), np.int64)},
        "complex": {"x": x.astype(np.complex64)},
        "texts": {"x": np.array(["a", "b"])},
        "times": {"x": np.array(["2020-01-01"], "datetime64[D]")},
        "named": {"pixels": x},
        "nothing": {},
        "labels_high": {"x": x, "y": y + 4},
        "labels_low": {"x": x, "y": y - 1},
        "labels_short": {"x": x, "y": y[:9]},
        "labels_float": {"x": x, "y": y + 0.5},
        "labels_one_hot": {"x": x, "y": np.eye(4)[y]},
        "labels_text": {"x": x, "y": np.array(["a"] * 24)},
        "one_class": {"x": x, "y": y * 0},
        "objects": {"x": np.array([{}], object)},
        "records": {"x": np.zeros(4, [("a", "f4"), ("b", "i4")])},
    }
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    content = (folder / "x.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[:-300])
    (folder / "spoilt.npz").write_bytes(content[:900] + bytes([content[900] ^ 255]) + content[901:])
    (folder / "text.npz").write_text("this is no archive")
    (folder / "empty.npz").write_bytes(b"")
    (folder / "short.npy").write_bytes(b"\x93NUMPY\x01\x00")
    np.save(folder / "good.npy", x)
    header = (
        np.lib.format.magic(1, 0) + b"\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000000,), }"
    )
    (folder / "lying.npy").write_bytes(header.ljust(127) + b"\n" + bytes(64))
    (folder / "evil.npy").write_bytes(
        np.lib.format.magic(1, 0) + b"\x26\x00__import__('os').system('touch owned') " + b"\n"
    )
    write_images(folder)


def write_images(folder: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("images", "broken", "mixed/a", "mixed/b", "no_images"):
        (folder / name).mkdir(parents=True)
    (folder / "empty_folder").mkdir()
    for index in range(6):
        image = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8))
        image.save(folder / "images" / f"{index}.png")
        image.save(folder / "mixed" / "ab"[index % 2] / f"{index}.png")
    (folder / "no_images" / "a.txt").write_text("no image")
    (folder / "broken" / "a.png").write_bytes((folder / "images" / "0.png").read_bytes()[:60])
    (folder / "broken" / "b.jpg").write_text("no image")
    (folder / "mixed" / "lonely.png").write_bytes((folder / "images" / "0.png").read_bytes())


NUMPY = "import numpy as np\n"
USER_CODE = {
    "leaves_0": "import sys\ndef make():\n    sys.exit(0)\n",
    "leaves_7": "import sys\ndef make():\n    sys.exit(7)\n",
    "leaves_text": "import sys\ndef make():\n    sys.exit('enough')\n",
    "leaves_hard": "import os\ndef make():\n    os._exit(9)\n",
    "leaves_at_import": "import sys\nsys.exit(0)\n",
    "quits": "def make():\n    quit()\n",
    "raises": "def make():\n    raise KeyError('a')\n",
    "raises_lines": "def make():\n    raise ValueError('one\\ntwo\\nTraceback (most recent call last):')\n",
    "raises_late": NUMPY + "def make():\n    yield np.ones((3, 8, 8), np.float32)\n    raise OSError(5, 'gone')\n",
    "leaves_late": NUMPY + "import sys\ndef make():\n    yield np.ones((3, 8, 8), np.float32)\n    sys.exit(5)\n",
    "interrupts": "def make():\n    raise KeyboardInterrupt\n",
    "recurses": "def make():\n    return make()\n",
    "no_memory": "def make():\n    raise MemoryError('little')\n",
    "none": "def make():\n    return None\n",
    "text": "def make():\n    return 'text'\n",
    "numbers": "def make():\n    return range(5)\n",
    "needs_argument": "def make(path):\n    return []\n",
    "is_no_function": "make = 3\n",
    "syntax": "def make(:\n",
    "missing": "import no_such_module_at_all\n",
    "ragged": NUMPY + "def make():\n    return [np.ones((3, size, 8), np.float32) for size in (8, 9)]\n",
    "closes_stdout": NUMPY
    + "import sys\ndef make():\n    sys.stdout.close()\n    return np.ones((8, 3, 8, 8), np.float32)\n",
    "prints": NUMPY
    + "import os\nprint('imported')\ndef make():\n    print('made')\n    os.system('echo from a shell')\n"
    "    return np.random.rand(24, 3, 8, 8).astype(np.float32)\n",
    "raises_base": "class Own(BaseException):\n    pass\ndef make():\n    raise Own('own')\n",
}
CONFIGS = {
    "unknown": 'metod = "l1"',
    "input": 'input = "a.onnx"',
    "type": 'epochs = "3"',
    "number": "method = 1",
    "switch": "exact-only = 1",
    "truth": "seed = true",
    "choice": 'device = "tpu"',
    "target": "target = 0.5",
    "range": "target = {macs = 5}",
    "twice": "seed = 1\nseed = 2",
    "deep": "include = " + "[" * 20_000,
    "binary": "\x00\x01",
    "not_a_number": "lr = nan",
    "infinite": "max-drop = inf",
    "nested": "target = {macs = {a = 1}}",
    "list": "method = ['l1']",
    "empty_list": "report = []",
    "huge": "seed = 99999999999999999999999",
}


def write_texts(folder: Path) -> None:
    for name, text in USER_CODE.items():
        (folder / f"user_{name}.py").write_text(text)
    for name, text in CONFIGS.items():
        (folder / f"{name}.toml").write_text(text + "\n")
    (folder / "latin.toml").write_bytes('method = "é"'.encode("latin-1"))
    (folder / "labels.csv").write_text("a.png,1\n")


def write_plans(folder: Path) -> None:
    """Plans and reports, of which one each is good."""
    words = f"{folder}/good.onnx {folder}/made.onnx {L1} --plan {folder}/plan.json --report {folder}/report.json"
    made = in_copy(words.split(), folder)
    assert made.code == 0, made
    plan = json.loads((folder / "plan.json").read_text())
    changes: dict[str, Callable[[dict], object]] = {
        "old": lambda p: p.update(format="onnxprune-plan/0"),
        "no_format": lambda p: p.pop("format"),
        "no_slices": lambda p: p.pop("slices"),
        "no_dims": lambda p: p.pop("dims"),
        "no_cost": lambda p: p.pop("cost"),
        "no_model": lambda p: p.pop("model"),
        "model_is_text": lambda p: p.update(model="a"),
        "dims_are_a_table": lambda p: p.update(dims={}),
        "dims_are_numbers": lambda p: p.update(dims=[1, 2]),
        "keeps_less": lambda p: p["dims"][0]["keep"].pop(),
        "keeps_nothing": lambda p: p["dims"][0].update(keep=[]),
        "keeps_beyond": lambda p: p["dims"][0].update(keep=[0, 999]),
        "keeps_below": lambda p: p["dims"][0].update(keep=[-1, 0]),
        "keeps_floats": lambda p: p["dims"][0].update(keep=[float(k) for k in p["dims"][0]["keep"]]),
        "keeps_texts": lambda p: p["dims"][0].update(keep=[str(k) for k in p["dims"][0]["keep"]]),
        "keeps_truths": lambda p: p["dims"][0].update(keep=[False, True]),
        "keeps_twice": lambda p: p["dims"][0].update(keep=[0, 0, 1]),
        "keeps_a_text": lambda p: p["dims"][0].update(keep="012"),
        "keeps_null": lambda p: p["dims"][0].update(keep=None),
        "dim_twice": lambda p: p["dims"].append(p["dims"][0]),
        "dim_unknown": lambda p: p["dims"][0].update(name="nobody"),
        "dim_of_another_size": lambda p: p["dims"][0].update(size=999),
        "size_huge": lambda p: p["dims"][0].update(size=10**30),
        "seed_text": lambda p: p.update(seed="a"),
        "seed_negative": lambda p: p.update(seed=-5),
        "recover_unknown": lambda p: p.update(recover="magic"),
        "method_unknown": lambda p: p.update(method="magic"),
        "slice_of_nobody": lambda p: p["slices"][0].update(node="nobody"),
        "slice_of_axis_99": lambda p: p["slices"][0].update(axis=99),
        "cost_of_texts": lambda p: p["cost"].update(before={"macs": "a"}),
    }
    for name, change in changes.items():
        copy = json.loads(json.dumps(plan))
        change(copy)
        (folder / f"plan_{name}.json").write_text(json.dumps(copy))
    texts = {"text": "no plan", "empty": "", "list": "[]", "number": "1", "null": "null", "nan": '{"format": NaN}'}
    texts |= {"brackets": "[" * 100_000, "braces": '{"a":' * 100_000, "bom": "\ufeff{}", "other": "{}"}
    for name, text in texts.items():
        (folder / f"plan_{name}.json").write_text(text)
    (folder / "plan_bytes.json").write_bytes(b"\xff\xfe\x00{")
    report = json.loads((folder / "report.json").read_text())
    for key in ("models", "ratios", "verify", "layers"):
        (folder / f"report_without_{key}.json").write_text(json.dumps({k: v for k, v in report.items() if k != key}))
    (folder / "report_of_texts.json").write_text(json.dumps({**report, "models": ["a", "b"]}))


def build_world(folder: Path) -> None:
    """Everything bad, and a few good things beside it."""
    write_models(folder)
    write_samples(folder)
    write_texts(folder)
    (folder / "short.bin").write_bytes(bytes(16))
    (folder / "linked.onnx").symlink_to(folder / "good.onnx")
    os.link(folder / "good.onnx", folder / "hard.onnx")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "dangling").symlink_to(folder / "none")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))
    write_plans(folder)


# Cases ------------------------------------------------------------------------------------------------------------


def model_cases() -> Iterator[Case]:
    broken = [*models(), "empty", "zeros", "text", "pickle", "nested", *(f"cut_at_{p}" for p in (1, 10, 50, 90, 99))]
    for name in broken:
        yield Case(f"model {name}: prune", f"{{w}}/{name}.onnx {{o}}/out.onnx {L1}", before={"out.onnx": "old"})
        yield Case(f"model {name}: inspect", f"inspect {{w}}/{name}.onnx --json")
    for name in broken[::4]:
        yield Case(f"model {name}: normalize", f"normalize {{w}}/{name}.onnx {{o}}/out.onnx")
        yield Case(
            f"model {name}: bench", f"bench {{w}}/{name}.onnx --threads 1 -q", codes=(2,) if "cut" in name else CODES
        )
    for name in broken[1::6]:
        yield Case(f"model {name}: verify", f"verify {{w}}/good.onnx {{w}}/{name}.onnx --plan {{w}}/plan.json")
        yield Case(f"model {name}: apply", f"apply {{w}}/{name}.onnx {{w}}/plan.json {{o}}/out.onnx --no-latency -q")
    for seed in range(FLIPS):
        yield Case(f"model flipped {seed}: prune", f"{{w}}/flipped_{seed}.onnx {{o}}/out.onnx {L1}")


PRUNE = "{w}/good.onnx {o}/out.onnx " + L1


def path_cases() -> Iterator[Case]:
    taken = "good.onnx linked.onnx hard.onnx x.npz x.toml pipe socket dangling circle images none/a.onnx".split()
    for name in taken:
        if name == "x.toml":
            name = "empty_list.toml"
        samples = "--data {w}/x.npz --config {w}/empty_list.toml"
        yield Case(f"path OUT {name}", f"{{w}}/good.onnx {{w}}/{name} {L1} {samples} --recover none", (2,))
        yield Case(f"path --plan {name}", f"{PRUNE} {samples} --recover none --plan {{w}}/{name}", (2,))
    for name in ("w.bin", "external.onnx", "plan.json", "images/0.png"):
        yield (
            Case(f"path OUT of external {name}", f"{{w}}/external.onnx {{w}}/{name} {L1} --data {{w}}/images", (2,))
            if (name != "plan.json")
            else Case(f"path apply onto {name}", f"apply {{w}}/good.onnx {{w}}/{name} {{w}}/{name}", (2,))
        )
    for command in ("normalize {w}/external.onnx", "apply {w}/external.onnx {w}/plan.json"):
        for name in ("w.bin", "external.onnx", "pipe", "images", "dangling"):
            yield Case(f"path {command.split()[0]} onto {name}", f"{command} {{w}}/{name}", (2,))
    for place in ("/dev/null", "/dev/full", "/proc/out.onnx", "/dev/stdout", "/none/out.onnx", "/"):
        yield Case(f"path OUT {place}", f"{{w}}/good.onnx {place} {L1}", (2,))
    for name in ("r.txt", "r", ".json", "none/r.md", "r.JSONX"):
        yield Case(f"path --report {name}", f"{PRUNE} --report {{o}}/{name}", (2,) if name != ".json" else CODES)
    yield Case("path --report twice", f"{PRUNE} --report {{o}}/r.md --report {{o}}/r.md", (2,))
    yield Case("path --report is OUT", f"{{w}}/good.onnx {{o}}/o.json {L1} --report {{o}}/o.json", (2,))
    yield Case("path --resume is a file", f"{PRUNE} --data {{w}}/x.npz --resume {{w}}/plan.json", (2,))
    yield Case("path --resume in a file", f"{PRUNE} --data {{w}}/x.npz --resume {{w}}/plan.json/r", (2,))
    yield Case("path --out of compare around IN", "compare {w}/good.onnx --data {w}/x.npz --out {w}", (2,))
    yield Case("path inspect --report", "inspect {w}/good.onnx --report {w}/pipe", (2,))
    yield Case("path bench --report", "bench {w}/good.onnx --report {w}/socket", (2,))


def option_cases() -> Iterator[Case]:
    numbers = ["0", "-1", "nan", "inf", "1e999", "abc", "0x10", "1.5", "99999999999999999999", "٣", "1_0", "=", "--"]
    for option in ("epochs", "lr", "batch-size", "steps", "floor", "seed", "align", "threads", "max-drop"):
        for value in numbers[::2] if option in ("lr", "threads", "steps") else numbers:
            words = f"--{option}={value}" if option != "max-drop" else f"--{option}={value} --data {{w}}/none.npz"
            # A number that is fine meets samples that are not: nothing is trained here.
            yield Case(f"option {option}={value}", f"{PRUNE} {words} --data {{w}}/nan.npz", (2,))
    for value in (
        "macs",
        "macs=",
        "macs=2",
        "macs=0",
        "macs=-1",
        "macs=nan",
        "=0.5",
        "flops=0.5",
        "macs=50%",
        "macs==1",
    ):
        yield Case(f"option target {value}", f"{PRUNE} --target {value}", (2,))
    singles = ["--metod l1", "--method l3", "--method", "--target macs=0.0001", "--include none*", "--exclude *"]
    singles += [
        "--recover best",
        "--recover finetune",
        "--device tpu",
        "--provider tpu",
        "--finetune mix=1",
        "--loss a",
    ]
    singles += [
        "--finetune ema=2 --data {w}/x.npz",
        "--metric math:pi",
        "--metric math:sin --data {w}/x.npz --recover none",
    ]
    singles += [
        "--loss no_such:f --data {w}/x.npz",
        "--option a",
        "--option tolerance=abc --method snacs",
        "--plugin none",
    ]
    singles += ["--plugin", "--size 4 --data {w}/x.npz", "--mean 1,2 --data {w}/images", "--std 0 --data {w}/images"]
    singles += [
        "--layout chwn",
        "--scale abc",
        "--min-speedup 2",
        "--include [",
        "--option =1",
        "--config",
        "extra.onnx",
    ]
    for words in singles:
        # Without latency a provider is not asked for; where a metric fails the proven result stays.
        codes = (0, 2) if words.startswith(("--provider", "--metric math:sin")) else (1, 2)
        yield Case(f"option {words}", f"{PRUNE} {words}", codes)
    for words in (
        "",
        "-",
        "--",
        "prunee a b",
        "{w}/good.onnx",
        "{w}/good.onnx {o}/a {o}/b",
        "help",
        "--help -q",
        "--version",
    ):
        yield Case(f"usage '{words}'", words)
    for (
        command
    ) in "inspect normalize apply verify bench methods ops compare sensitivity calibrate compare-reports".split():
        yield Case(f"usage {command} alone", command if command != "calibrate" else "calibrate --threads 0")
        yield Case(f"usage {command} of nothing", f"{command} {{w}}/none.onnx {{w}}/none.json --nothing", (2,))


def sample_cases() -> Iterator[Case]:
    names = "one none nan infinite huge_numbers wide flat scalar last whole complex texts times named nothing objects"
    names += " records cut spoilt text empty one_class labels_high labels_low labels_short labels_float labels_one_hot"
    names += " labels_text"
    for name in names.split():
        yield Case(f"samples {name}.npz", f"{PRUNE} --recover constants --data {{w}}/{name}.npz")
    for name in (
        "good.npy",
        "short.npy",
        "lying.npy",
        "evil.npy",
        "plan.json",
        "good.onnx",
        "pipe",
        "socket",
        "circle",
    ):
        yield Case(f"samples {name}", f"{PRUNE} --recover constants --data {{w}}/{name}")
    for name in ("images", "broken", "mixed", "no_images", "empty_folder", "none", "images/0.png"):
        yield Case(f"samples folder {name}", f"{PRUNE} --recover constants --data {{w}}/{name}")
    for name in USER_CODE:
        codes = (130,) if name == "interrupts" else (0,) if name in ("prints", "closes_stdout") else (2,)
        yield Case(f"samples function {name}", f"{PRUNE} --recover constants --data user_{name}:make", codes)
    for name in ("leaves_0", "leaves_hard", "raises", "none", "needs_argument"):
        words = f"{PRUNE} --recover none --data {{w}}/x.npz --metric user_{name}:make"
        yield Case(f"samples metric {name}", words, (0, 2))  # what was proven stays where measuring fails
    yield Case("samples val of nothing", f"{PRUNE} --val {{w}}/none.npz", (2,))
    yield Case("samples of infinity to measure on", f"{PRUNE} --val {{w}}/infinite.npz", (2,))
    for command in (
        "inspect {w}/good.onnx",
        "sensitivity {w}/good.onnx",
        "verify {w}/good.onnx {w}/made.onnx --plan {w}/plan.json",
    ):
        for name in ("nan", "wide", "text"):
            yield Case(f"samples {name} of {command.split()[0]}", f"{command} --data {{w}}/{name}.npz", (2,))


def plan_cases(world: Path) -> Iterator[Case]:
    for path in sorted(world.glob("plan_*.json")):
        yield Case(f"{path.stem}: apply", f"apply {{w}}/good.onnx {{w}}/{path.name} {{o}}/out.onnx --no-latency -q")
    for path in sorted(world.glob("plan_*.json"))[::3]:
        yield Case(f"{path.stem}: verify", f"verify {{w}}/good.onnx {{w}}/made.onnx --plan {{w}}/{path.name}")
    yield Case("plan of another model", "apply {w}/external.onnx {w}/plan.json {o}/out.onnx --no-latency -q")
    yield Case(
        "plan with samples that are not", "apply {w}/good.onnx {w}/plan.json {o}/out.onnx --data {w}/nan.npz", (2,)
    )
    yield Case("plan and a result of nobody", "verify {w}/good.onnx {w}/other.onnx --plan {w}/plan.json", (3,))
    for name in ("none", "images", "plan", "plan_brackets", "plan_text", "report_of_texts", *REPORTS):
        yield Case(f"report {name} to compare", f"compare-reports {{w}}/report.json {{w}}/{name}.json", (0, 1, 2))
    for name in (*CONFIGS, "latin", "none"):
        yield Case(f"config {name}", f"{PRUNE} --config {{w}}/{name}.toml", CODES if name == "empty_list" else (2,))


REPORTS = tuple(f"report_without_{key}" for key in ("models", "ratios", "verify", "layers"))


def name_cases() -> Iterator[Case]:
    for name in (
        "äöü.onnx",
        "a{b}.onnx",
        "%s%n.onnx",
        "日本.onnx",
        "a'b\".onnx",
        "$(touch owned).onnx".replace(" ", "\u00a0"),
    ):
        yield Case(
            f"name OUT {name}", f"{{w}}/good.onnx {{o}}/{name} {L1} --report {{o}}/r.html --report {{o}}/r.json", (0,)
        )
    yield Case("name OUT is long", f"{{w}}/good.onnx {{o}}/{'n' * 250}.onnx {L1}", (0, 2))
    yield Case("name OUT is too long", f"{{w}}/good.onnx {{o}}/{'n' * 300}.onnx {L1}", (2,))
    yield Case(
        "name OUT holds no text",
        f"{{w}}/good.onnx {{o}}/\udcff.onnx {L1} --report {{o}}/r.md --plan {{o}}/p.json",
        (0,),
    )


def stream_cases() -> Iterator[Case]:
    inspect, prune = "inspect {w}/good.onnx", "{w}/good.onnx {o}/out.onnx --method l1 --no-latency"
    for encoding in ("cp932", "cp437", "latin-1", "ascii", "utf-16"):
        started = partial(program, environment={"PYTHONIOENCODING": encoding})
        yield Case(f"stdout in {encoding}: prune", prune, (0,), started)
        yield Case(f"stdout in {encoding}: inspect", inspect, (0,), started)
    for ending, codes in (
        (">&-", (0,)),
        ("</dev/null >&- 2>&-", (0,)),
        (">/dev/full", (0,)),
        ("2>/dev/full", (0,)),
        ("2>&-", (0,)),
    ):
        yield Case(f"stdout {ending}: prune", prune, codes, partial(program, ending=ending))
    yield Case("stdout >/dev/full: inspect", inspect, (2,), partial(program, ending=">/dev/full"))
    yield Case("stdout >/dev/full: methods", "methods", (2,), partial(program, ending=">/dev/full"))
    yield Case("stdout closed: inspect", inspect, (0, 2), partial(program, ending=">&-"))
    yield Case("stdout has no reader", "ops", (0,), partial(program, ending="| head -c 10"))
    yield Case("stderr closed and bad input", "{w}/none.onnx {o}/out.onnx", (2,), partial(program, ending="2>&-"))
    yield Case("file size limit", f"{PRUNE}", (2,), partial(program, beginning="ulimit -f 1;"))
    yield Case("memory limit", f"{PRUNE}", (0, 2), partial(program, beginning="ulimit -v 600000;"))
    for name, number in {"SIGTERM": 15, "SIGINT": 2}.items():
        for wait in (0.7, 1.5, 3.0):
            words = "{w}/good.onnx {o}/out.onnx --method l1 --data {w}/x.npz --epochs 2000"
            yield Case(
                f"signal {name} after {wait} s", words, (130, -number, -2), partial(signalled, number=number, wait=wait)
            )


def cases(world: Path) -> list[Case]:
    """All cases; those on plans are found in `world`."""
    tables = (
        model_cases(),
        path_cases(),
        option_cases(),
        sample_cases(),
        plan_cases(world),
        name_cases(),
        stream_cases(),
    )
    return [case for table in tables for case in table]


# Running ----------------------------------------------------------------------------------------------------------


def in_copy(words: list[str], folder: Path) -> Ran:
    """What `onnxprune` does with `words` in a copy of this process, which works in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch, name) for name in ("out", "err")]
        child = os.fork()
        if child == 0:
            _be_program(words, folder, files)
        code = _waited(child)
        return Ran(code, *(file.read_text(errors="replace") if file.exists() else "" for file in files))


def _be_program(words: list[str], folder: Path, files: list[Path]) -> None:
    end = os._exit
    code = 99
    try:
        os.setsid()
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8") for number in (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
        sys.argv = ["onnxprune", *words]
        from onnxprune.__main__ import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 98
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        end(code)


def _waited(child: int) -> int:
    """The exit code of a process, negative for a signal; one that hangs is ended, with its descendants."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def program(
    case: Case,
    world: Path,
    out: Path,
    *,
    environment: Mapping[str, str] | None = None,
    beginning: str = "",
    ending: str = "",
) -> Ran:
    """The real program, started by a shell, with its streams as `ending` says."""
    words = " ".join(f"'{word}'" for word in [sys.executable, "-m", "onnxprune", *case.arguments(world, out)])
    script = f"{beginning} {words} {ending}; exit ${{PIPESTATUS[0]}}"
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(["bash", "-c", script], capture_output=True, timeout=SECONDS, env=variables, cwd=world)
    return Ran(done.returncode, *(text.decode(errors="replace") for text in (done.stdout, done.stderr)))


def signalled(case: Case, world: Path, out: Path, *, number: int, wait: float) -> Ran:
    """The real program, sent a signal after some seconds."""
    words = [sys.executable, "-m", "onnxprune", *case.arguments(world, out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes, text=True, cwd=world, start_new_session=True) as run:
        time.sleep(wait)
        run.send_signal(number)
        told = run.communicate(timeout=SECONDS)
        return Ran(run.returncode, *told)


# Judging ----------------------------------------------------------------------------------------------------------


def attacked(case: Case, world: Path) -> list[str]:
    """What of the contract the case broke; nothing where it held."""
    out = Path(tempfile.mkdtemp(prefix="out"))
    try:
        for name, text in case.before.items():
            (out / name).write_text(text)
        before = fingerprint(out)
        ran = case.run(case, world, out) if case.run else in_copy(case.arguments(world, out), world)
        # A broken model is as broken in its normal form.
        return [*_judged(case, ran), *_files_judged(out, before, ran, runs=not case.words.startswith("normalize"))]
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _judged(case: Case, ran: Ran) -> Iterator[str]:
    told = f"; it said: {ran.err.strip()[-300:]!r}"
    if ran.code not in case.codes:
        yield f"exit code {ran.code}, not {' or '.join(map(str, case.codes))}{told}"
    for word in ("Traceback", "internal error", "Exception ignored", "Segmentation", "terminate called"):
        if any(line.startswith(("onnxprune: internal", word)) for line in ran.err.splitlines() if word in line):
            yield f"says {word!r}{told}"
    lines = [line for line in ran.err.splitlines() if line.startswith("onnxprune: ")]
    reads_stderr = case.run is None or "2>" not in str(getattr(case.run, "keywords", ""))
    if reads_stderr and ran.code in (1, 2, 3, 130) and not ran.out.startswith("worse") and len(lines) != 1:
        yield f"{len(lines)} lines of ours on stderr, not one{told}"
    if ran.code and lines and ran.err.splitlines()[-1] != lines[-1]:
        yield f"its line is not the last{told}"
    if "--json" in case.words and ran.out:
        yield from _json_judged(ran.out)


def _json_judged(text: str) -> Iterator[str]:
    try:
        json.loads(text)
    except ValueError as error:
        yield f"stdout is no JSON: {error}"


def _files_judged(out: Path, before: Mapping[str, str], ran: Ran, *, runs: bool = True) -> Iterator[str]:
    after = fingerprint(out)
    if ran.code and after != before:
        yield f"exit code {ran.code}, and yet files changed: {sorted(set(after.items()) ^ set(before.items()))}"
    for path in out.iterdir():
        if path.name.startswith(".") and path.name not in before and path.suffix not in (".json", ".md"):
            yield f"left {path.name}"
        if ran.code == 0 and path.suffix == ".onnx" and runs:
            yield from _model_judged(path)
        if ran.code == 0 and path.suffix == ".json":
            yield from _json_judged(path.read_text())


def _model_judged(path: Path) -> Iterator[str]:
    """What is wrong with a result: it runs, at least, though what it was made of may not be as the standard says.

    It is opened from where it lies, where weights beside it are found; onnxruntime takes no path that is no text.
    """
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1  # a pool of threads would not be in copies of this process
    settings.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(_source(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        yield f"{path.name} does not run: {str(error)[:200]}"


def _source(path: Path) -> str | bytes:
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return str(path)


def fingerprint(folder: Path) -> dict[str, str]:
    """What is in `folder`, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path.relative_to(folder))] = sha256(path.read_bytes()).hexdigest() if plain else "no plain file"
    return found


def attack(chosen: Callable[[list[Case]], list[Case]] = list, jobs: int = 2) -> dict[str, list[str]]:
    """What each case that was run broke, by its name."""
    import onnxprune.cli.commands
    import onnxprune.run.pipeline
    import onnxprune.studies.inspection  # noqa: F401 - copies of this process have it

    with tempfile.TemporaryDirectory(prefix="world") as folder:
        world = Path(folder)
        build_world(world)
        before = fingerprint(world)
        wanted = chosen(cases(world))
        # Workers have one thread, so that they can be copied at any moment.
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            told = pool.map(partial(attacked, world=world), wanted, chunksize=1)
        found = dict(zip((case.name for case in wanted), told, strict=True))
        shutil.rmtree(world / "__pycache__", ignore_errors=True)
        if fingerprint(world) != before:
            changed = sorted({name for name, _ in set(fingerprint(world).items()) ^ set(before.items())})
            found["what is read"] = [f"changed: {changed}"]
        return found


def main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins, and lets begin, without
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="cases with the word in their name")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="at a time (default: 2)")
    given = parser.parse_args()
    start = time.monotonic()
    found = attack(lambda all_cases: [c for c in all_cases if given.only in c.name][:: given.every], given.jobs)
    broken = {name: what for name, what in found.items() if what}
    for name, what in broken.items():
        print(f"{name}: {'; '.join(what)}")
    print(f"{len(found)} cases, {len(broken)} outside the contract, {time.monotonic() - start:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
