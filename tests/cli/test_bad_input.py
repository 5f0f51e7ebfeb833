"""Bad input, faults and hostility: each is one line on stderr that says what, where and what to do.

Nothing is written then: no OUT, no plan, no leftovers; the input is never touched.
"""

import json
import resource
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from networks import CNN, MLP, filled
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from onnxprune import graph
from onnxprune.run import pipeline, produce, schedule, subject

FLOAT = TensorProto.FLOAT


class Case(NamedTuple):
    """Words after `onnxprune`, in which {w} is the folder of bad things and {o} the folder to write to."""

    words: str
    told: tuple[str, ...]
    code: int = 2


L1 = "--method l1 --no-latency"


def case(words: str, *told: str, code: int = 2) -> Case:
    return Case(words, told, code)


def model(name: str, *told: str, words: str = L1) -> Case:
    """A model that cannot be pruned."""
    return Case(f"{{w}}/{name}.onnx {{o}}/out.onnx {words}", told)


def good(words: str, *told: str, code: int = 2) -> Case:
    """A good model with something else that is bad."""
    return Case(f"{{w}}/good.onnx {{o}}/out.onnx {words}", told, code)


MODELS = {
    "no such file": model("none", "none.onnx: no such file; give the path"),
    "a folder": case("{w} {o}/out.onnx", "no such file"),
    "empty file": model("empty", "empty.onnx: ", "export or copy it again"),
    "text": model("text", "text.onnx: not an ONNX file", "export or copy it again"),
    "truncated": model("truncated", "truncated.onnx: not an ONNX file, or truncated", "copy it again"),
    "no nodes": model("no_nodes", "holds no ONNX graph (0 nodes)"),
    "opset of the future": model("opset", "opset 999 is unknown (newest known:", "export at"),
    "no opset": model("no_opset", "holds no ONNX graph"),
    "cycle": model("cyclic", "cyclic.onnx: the graph has a cycle"),
    "value from nowhere": model("dangling", "node 'stem' reads 'nowhere', which nothing produces"),
    "external data missing": model(
        "missing_data", "external data file 'w.bin'", "is missing; copy it beside the model"
    ),
    "external data above the folder": model("above", "is at '../w.bin', outside the folder; move it there"),
    "external data at an absolute path": model("absolute", "is at '/etc/passwd', outside the folder"),
    "external data behind a link": model("linked", "is at 'link/w.bin', outside the folder"),
    "external data too short": model("short_data", "is 16 bytes, 'w1' ends at 864"),
    "declared shape is huge": model(
        "huge", "'w1' is declared as [1000000, 1000000, 3, 3], which takes", "but holds 864"
    ),
    "input shape is huge": model("huge_input", "memory"),
    "weights hold NaN": model("nan", "'w2': 1 of 576 numbers are NaN or infinite"),
    "weights hold infinity": model("inf", "'w2': 2 of 576 numbers are NaN or infinite"),
    "a dimension of size zero": model("zero", "onnxruntime refuses the model", "(add)"),
    "two initializers of one name": model(
        "two_initializers", "several initializers are called 'w1'; give each its own name"
    ),
    "two nodes with one output": model("two_outputs", "several node outputs are called 'a'"),
    "shapes that do not fit": model("misfit", "onnxruntime refuses the model"),
    "nothing to prune": model("frozen", "nothing can be pruned: ", "see 'onnxprune inspect'"),
    "inspect of no file": case("inspect {w}/none.onnx", "no such file"),
    "normalize of no model": case("normalize {w}/text.onnx {o}/out.onnx", "not an ONNX file"),
    "bench of no model": case("bench {w}/text.onnx", "not an ONNX file"),
}

PATHS = {
    "OUT is IN": case("{w}/good.onnx {w}/good.onnx", "output and input are the same file; choose another output"),
    "OUT is IN by another name": case("{w}/good.onnx {w}/../bad/good.onnx", "output and input are the same file"),
    "OUT is IN by a link": case("{w}/good.onnx {w}/same.onnx", "output and input are the same file"),
    "OUT is a folder": case("{w}/good.onnx {o}", "is a folder; give the path of the file to write"),
    "folder of OUT is missing": case("{w}/good.onnx {o}/no/out.onnx", "/no does not exist; create it"),
    "folder of OUT is a file": case("{w}/good.onnx {w}/good.onnx/out.onnx", "does not exist"),
    "folder of OUT cannot be written": case(
        "{w}/good.onnx /proc/out.onnx", "/proc cannot be written", "choose another"
    ),
    "OUT's weights would replace IN's": case(
        "{w}/external.onnx {w}/w.onnx", "its weights would replace", "w.onnx.data"
    ),
    "normalize onto the input": case("normalize {w}/good.onnx {w}/good.onnx", "are the same file"),
    "plan is IN": good("--plan {w}/good.onnx", "this run has read that file already; choose another"),
    "plan is OUT": good("--plan {o}/out.onnx", "this run has written that file already"),
    "plan is a folder": good("--plan {o}", "is a folder"),
    "plan in no folder": good("--plan {o}/no/p.json", "/no does not exist; create it"),
    "plan over the samples": good("--data {w}/x.npz --plan {w}/x.npz", "has read that file already"),
    "report without a known suffix": good("--report {o}/r.txt", "suffix '.txt' is none of .json, .md, .html"),
    "report in no folder": good("--report {o}/no/r.md", "does not exist"),
    "report given twice": good("--report {o}/r.md --report {o}/r.md", "has written that file already"),
}

OPTIONS = {
    "no arguments": case("", "a model and the path of the result are required", "onnxprune -h"),
    "no OUT": case("{w}/good.onnx", "required: OUT.onnx; 'onnxprune -h' shows the options"),
    "misspelt command": case(
        "inspct {w}/good.onnx", "'inspct' is neither a file nor a command; did you mean 'inspect'?"
    ),
    "unknown option": good("--metod l1", "unrecognized arguments: --metod l1"),
    "unknown method": good("--method l3", "--method l3: there is no such method; choose one of", "taylor"),
    "target without a number": good("--target macs", "--target 'macs': expected KEY=VALUE, such as macs=0.5"),
    "target of words": good("--target macs=half", "'half' is not a number; give macs=0.5, say"),
    "target in percent": good("--target macs=50", "--target macs=50.0: give the fraction that may remain, above 0 and"),
    "target of zero": good("--target macs=0", "--target macs=0.0: give the fraction"),
    "target not a number": good("--target macs=nan", "--target macs=nan: give the fraction"),
    "target of an unknown cost": good("--target flops=0.5", "flops: unknown; choose of macs, params, size, latency"),
    "target given twice": good("--target macs=0.5 --target macs=0.6", "macs was given before; give it once"),
    "target out of reach": good(L1 + " --target macs=0.001", "the nearest is macs=0.", code=1),
    "size out of reach": good(
        L1 + " --target size=0.01", "--target size=0.01 cannot be met", "nearest is size=", code=1
    ),
    "aligned target out of reach": good(L1 + " --target macs=0.2 --align 8", "the nearest is macs=0.9", code=1),
    "include matches nothing": good("--method l1 --include nix*", "--include 'nix*' matches no node, initializer or"),
    "exclude matches nothing": good("--method l1 --exclude nix", "--exclude 'nix' matches no node"),
    "everything excluded": good("--method l1 --exclude *", "dimensions are free: none is chosen by --include"),
    "align of zero": good("--align 0", "--align 0: give 1 or more, auto or calibrated"),
    "align of words": good("--align some", "--align: invalid", "value: 'some'"),
    "epochs of zero": good("--epochs 0", "--epochs 0: give 1 or more"),
    "epochs of words": good("--epochs few", "--epochs: invalid whole number value: 'few'"),
    "learning rate of zero": good("--lr 0", "--lr 0.0: give a number above 0"),
    "learning rate not a number": good("--lr nan", "--lr nan: give a number above 0"),
    "batch size below zero": good("--batch-size -1", "--batch-size -1: give 1 or more"),
    "floor above one": good("--floor 2", "--floor 2.0: give a share from 0 to 1"),
    "seed below zero": good("--seed -1", "--seed -1: give a whole number from 0"),
    "steps of zero": good("--steps 0", "--steps 0: give 1 or more"),
    "steps towards nothing": good("--steps 2", "--steps 2 needs a --target of macs, params or size"),
    "recovery unknown": good("--recover best", "--recover best: unknown; choose of none, constants, reconstruct"),
    "recovery without samples": good("--recover finetune", "--recover finetune needs samples; give --data"),
    "max-drop without samples": good("--max-drop 1", "--max-drop needs samples to measure on; give --data or --val"),
    "max-drop below zero": good("--max-drop -1 --data {w}/x.npz", "--max-drop -1.0: give points that may be lost"),
    "speed without measuring": good("--no-latency --min-speedup 2", "which has to be measured; leave --no-latency out"),
    "device unknown": good("--device tpu", "--device tpu: unknown; choose of auto, cpu, cuda"),
    "provider unknown": good(
        "--method l1 --provider tpu", "execution provider tpu did not load", "choose --provider cpu"
    ),
    "provider of bench unknown": case("bench {w}/good.onnx --provider tpu", "execution provider tpu did not load"),
    "bench of nothing": case("bench", "required: MODEL.onnx; 'onnxprune bench -h'"),
    "batch of bench of zero": case("bench {w}/good.onnx --batch 0", "batch"),
    "option that no method has": good("--method l1 --option bits=3", "--option bits: method l1 has no options"),
    "option of another method": good(
        "--option kept=4 --data {w}/x.npz", "--option kept: method snacs has no such option; choose of mode,"
    ),
    "option of another type": good("--option samples=few --data {w}/x.npz", "option samples=few: give a number"),
    "fine-tuning by an unknown name": good(
        "--finetune mix=1 --data {w}/x.npz", "--finetune mix: unknown; choose of op"
    ),
    "fine-tuning without a value": good(
        "--finetune mixup", "--finetune 'mixup': expected KEY=VALUE, such as mixup=0.2"
    ),
    "fine-tuning by an own option": good("--finetune lr=1", "--finetune lr: that is an option of its own, --lr"),
    "fine-tuning by words": good("--finetune mixup=some", "--finetune mixup=some: give a number"),
    "fine-tuning by half a pixel": good("--finetune crop=0.5", "--finetune crop=0.5: give a whole number"),
    "fine-tuning by no truth": good("--finetune flip=sideways", "--finetune flip=sideways: give true or false"),
    "fine-tuning out of range": good("--finetune ema=1", "fine-tuning: ema is 1.0; give a decay from 0 to below 1"),
    "fine-tuning of another choice": good(
        "--finetune optimizer=lion", "optimizer is lion; give one of auto, sgd, adamw"
    ),
    "fine-tuning without samples": good("--finetune mixup=1", "nothing is fine-tuned, for there are no samples; give"),
    "fine-tuning at another level": good(
        "--finetune mixup=1 --recover none --data {w}/x.npz", "nothing is fine-tuned, for --recover is none"
    ),
    "loss without samples": good("--loss math:sin", "--loss: nothing is fine-tuned, for there are no samples"),
    "loss without a function": good("--loss mine", "--loss 'mine': give MODULE:FUNCTION, such as"),
    "loss in no module": good("--loss no_such_module:f", "no module 'no_such_module' in ", "or on the Python path"),
    "metric that is not there": good("--metric math:f1", "module 'math': has no function 'f1'; it has acos"),
    "metric that is no function": good("--metric math:pi", "module 'math': 'pi' is no function"),
    "metric that fails": good(
        "--metric math:sin --data {w}/x.npz --recover none -q", "the function raised TypeError: "
    ),
    "metric of nothing": good(
        "--metric builtins:slice --data {w}/x.npz --recover none --no-latency -q",
        "--metric builtins:slice: gave slice(",
    ),
    "method without samples": good("--method taylor", "--method taylor needs samples: give --data, or choose"),
    "method without norms": good("--method bn", "bn", "BatchNormalization"),
}

SAMPLES = {
    "no such samples": good("--data {w}/none.npz", "none.npz: no such file or folder; samples are"),
    "no samples": good("--data {w}/none_inside.npz", "none_inside.npz: no samples"),
    "not an archive": good("--data {w}/text.npz", "text.npz"),
    "samples of another shape": good("--data {w}/shape.npz", "(20, 3, 9, 9)", "'x' takes (N, 3, 8, 8)", "resize"),
    "samples of another dtype": good("--data {w}/dtype.npz", "int64", "'x'", "float32"),
    "samples of another name": good("--data {w}/name.npz", "'pixels'", "'x' (N, 3, 8, 8)"),
    "samples with NaN": good("--data {w}/nan.npz", "sample 3", "NaN"),
    "labels out of range": good("--data {w}/labels.npz", "label 4 of sample 0 is out of range", "4 classes"),
    "labels of another length": good("--data {w}/length.npz", "20", "19"),
    "pickled samples": good("--data {w}/pickled.npz", "pickled.npz"),
    "empty folder": good("--data {w}/empty_folder", "empty_folder", "no image"),
    "every image broken": good("--data {w}/broken", "broken"),
    "no such module": good("--data no_such_module:samples", "no_such_module"),
    "no such function": good("--data math:samples", "samples"),
    "mean for other channels": good("--data {w}/x.npz --mean 1,2", "2", "3"),
}

PLANS = {
    "no such plan": case(
        "apply {w}/good.onnx {w}/none.json {o}/out.onnx", "no such plan file; 'onnxprune IN OUT --plan"
    ),
    "plan is no JSON": case("apply {w}/good.onnx {w}/text.json {o}/out.onnx", "not a plan file (JSONDecodeError)"),
    "plan is binary": case("apply {w}/good.onnx {w}/good.onnx {o}/out.onnx", "not a plan file"),
    "plan is another JSON": case("apply {w}/good.onnx {w}/other_json.json {o}/out.onnx", "format is 'None', expected"),
    "plan of an older tool": case(
        "apply {w}/good.onnx {w}/old.json {o}/out.onnx", "'onnxprune-plan/0', expected 'onnx"
    ),
    "plan without its slices": case(
        "apply {w}/good.onnx {w}/no_slices.json {o}/out.onnx", "the plan is damaged (KeyError"
    ),
    "plan of another model": case("apply {w}/mlp.onnx {w}/plan.json {o}/out.onnx", "it was made for another model"),
    "plan whose dims were edited": case("apply {w}/good.onnx {w}/dims.json {o}/out.onnx", "it was edited, or made for"),
    "plan whose slices were edited": case(
        "apply {w}/good.onnx {w}/slices.json {o}/out.onnx", "slices do not follow from"
    ),
    "plan that keeps nothing": case("apply {w}/good.onnx {w}/nothing.json {o}/out.onnx", "at least one"),
    "plan beyond the size": case("apply {w}/good.onnx {w}/beyond.json {o}/out.onnx", "must be rising positions below"),
    "plan of numbers in words": case("apply {w}/good.onnx {w}/words.json {o}/out.onnx", "the plan is damaged"),
    "verify without a plan": case("verify {w}/good.onnx {w}/mlp.onnx", "required: --plan; 'onnxprune verify -h'"),
    "verify of no model": case("verify {w}/good.onnx {w}/text.onnx --plan {w}/plan.json", "not an ONNX file"),
    "verify of another network": case(
        "verify {w}/good.onnx {w}/mlp.onnx --plan {w}/plan.json", "its inputs are", "not made by this plan", code=3
    ),
}

CONFIGS = {
    "no such configuration": good("--config {w}/none.toml", "none.toml: no such configuration file"),
    "no TOML": good("--config {w}/text.npz", "not a TOML file"),
    "unknown key": good("--config {w}/unknown.toml", "unknown option 'metod'; 'onnxprune -h' lists them"),
    "path in a configuration": good("--config {w}/input.toml", "unknown option 'input'"),
    "text for a number": good("--config {w}/type.toml", "option 'epochs' is '3'; give a whole number"),
    "number for text": good("--config {w}/number.toml", "option 'method' is 1; give text in quotes"),
    "number for a switch": good("--config {w}/switch.toml", "option 'exact-only' is 1; give true or false"),
    "truth for a number": good("--config {w}/truth.toml", "option 'seed' is True; give a whole number"),
    "unknown choice": good("--config {w}/choice.toml", "option 'device' is 'tpu'; choose of auto, cpu, cuda"),
    "text for a target": good("--config {w}/target.toml", "option 'target' is 0.5; give a table such as {macs = 0.5}"),
    "target out of range": good("--config {w}/range.toml", "--target macs=5: give the fraction"),
}
CASES = {**MODELS, **PATHS, **OPTIONS, **SAMPLES, **PLANS, **CONFIGS}


# The folder of bad things ----------------------------------------------------------------------------------------


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


CONFIG_FILES = {
    "unknown": 'metod = "l1"',
    "input": 'input = "a.onnx"',
    "type": 'epochs = "3"',
    "number": "method = 1",
    "switch": "exact-only = 1",
    "truth": "seed = true",
    "choice": 'device = "tpu"',
    "target": "target = 0.5",
    "range": "target = {macs = 5}",
}


@pytest.fixture(scope="module")
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
    for name, text in CONFIG_FILES.items():
        (folder / f"{name}.toml").write_text(text + "\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_line(cli, bad, tmp_path, name):
    words, told, code = CASES[name]
    before = contents(bad)
    ran = cli(*words.format(w=bad, o=tmp_path).split())
    assert ran.code == code, ran
    lines = ran.err.splitlines()
    usage = [line for line in lines if not line.startswith("onnxprune: ")]
    assert len(lines) - len(usage) == 1, ran.err
    assert not usage, ran.err
    for part in told:
        assert part in ran.err
    assert "internal error" not in ran.err
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []
    assert contents(bad) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("words", ["--provider cuda", "--provider tensorrt", "--device cuda"])
def test_missing_cuda_is_told_before_the_work(cli, bad, tmp_path, monkeypatch, words):
    monkeypatch.setattr(pipeline, "prepare", None)
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", "--method", "l1", *words.split())
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert "internal error" not in ran.err
    assert "choose --" in ran.err
    assert ran.out == ""


def test_there_are_sixty_cases_at_least():
    assert len(CASES) >= 60


# What is odd but works ---------------------------------------------------------------------------------------------


def test_labels_of_one_class_are_measured_and_nothing_breaks(cli, bad, tmp_path):
    words = (bad / "good.onnx", tmp_path / "o.onnx", *L1.split(), "--data", bad / "one_class.npz")
    assert cli(*words, "--recover", "constants").code == 0


def test_broken_images_among_good_ones_are_left_out_with_a_warning(cli, bad, tmp_path):
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1.split(), "--data", bad / "images", "--recover", "none")
    assert ran.code == 0
    assert "1 of 5 images cannot be read and are left out" in ran.err


def test_model_with_external_data_is_pruned_from_any_folder(cli, bad, tmp_path):
    before = contents(bad)
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    assert cli(bad / "external.onnx", out, *L1.split(), "--plan", plan).code == 0
    assert cli("verify", bad / "external.onnx", out, "--plan", plan).code == 0
    assert contents(bad) == before


def test_unknown_operators_freeze_and_the_run_goes_on(cli, tmp_path):
    text = CNN.replace("[tanh]", "").replace('["" : 17]', '["" : 17, "com.microsoft" : 1]')
    path = tmp_path / "odd.onnx"
    onnx.save(filled(text.replace("e1 = Relu (e)", "e1 = com.microsoft.QuickGelu (e)")), path)
    ran = cli(path, tmp_path / "o.onnx", *L1.split(), "--target", "macs=0.9", "--align", 1)
    assert ran.code == 0, ran


# Faults -------------------------------------------------------------------------------------------------------------


def test_full_disk_leaves_nothing(cli, bad, tmp_path, monkeypatch):
    out = tmp_path / "out.onnx"
    out.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        ran = cli(bad / "good.onnx", out, *L1.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.code == 2
    assert "cannot be written (File too large)" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]
    assert out.read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 8 GiB"),
        RuntimeError("std::bad_alloc"),
    ],
    ids=["numpy", "torch", "cuda", "onnxruntime"],
)
def test_out_of_memory_says_what_to_lower(cli, bad, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(produce.comparison, "compare", fail)
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1.split())
    assert ran.code == 2
    assert ran.err.startswith("onnxprune: out of memory (")
    assert "Lower --batch-size" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_own_mistake_is_one_line_that_asks_for_a_report(cli, bad, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyError("w7")

    monkeypatch.setattr(graph, "finish", fail)
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1.split())
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == (
        "onnxprune: internal error: KeyError: 'w7'; nothing was written. Run it again with -v and report that"
    )
    assert "Traceback" not in ran.err


STEPS = {
    "load": (graph, "load"),
    "normalize": (graph, "normalize"),
    "data": (subject, "load_data"),
    "analyze": (subject, "analyze"),
    "score": (schedule.base, "run"),
    "cut": (produce.surgery, "cut"),
    "mask": (produce.surgery, "mask"),
    "verify": (produce.comparison, "compare"),
    "recover": (produce.levels, "recover"),
    "finish": (graph, "finish"),
    "verify the result": (produce.surgery, "uncut"),
    "save": (graph, "save"),
    "measure": (produce.measuring, "measure"),
    "plan": (produce.plan, "save"),
    "report": (produce.report, "write_report"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_interruption_at_any_step_writes_nothing(cli, bad, tmp_path, monkeypatch, step, after):
    out, plan, report = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "r.json"
    out.write_text("old")
    owner, name = STEPS[step]
    good = getattr(owner, name)

    def interrupted(*arguments, **options):
        if after:
            good(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, name, interrupted)
    ran = cli(bad / "good.onnx", out, *L1.split(), "--plan", plan, "--report", report)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "onnxprune: interrupted; nothing was written"
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]
    assert out.read_text() == "old"


def test_interruption_with_resume_says_how_to_go_on(cli, bad, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(graph, "load", interrupted)
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1.split(), "--resume", tmp_path / "checkpoints")
    assert ran.code == 130
    assert "the same command goes on from its checkpoints" in ran.err


class Own(BaseException):
    """Of no base that is caught by habit."""


def test_what_a_function_of_the_users_raises_is_one_line_whatever_its_base(cli, bad, tmp_path, monkeypatch):
    def raises(*_, **__):
        raise Own("own\nand more")

    monkeypatch.setattr(graph, "load", raises)
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1.split())
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == "onnxprune: a function of yours raised Own: own; nothing was written. Mend that"
    assert not list(tmp_path.iterdir())
