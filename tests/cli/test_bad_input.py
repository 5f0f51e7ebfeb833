"""Bad input and hostility: each is one line on stderr that says what, where and what to do.

Nothing is written then: no OUT, no plan, no leftovers; the input is never touched.
"""

from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from networks import CNN, filled

from onnxprune.run import pipeline


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
    "an operator that onnxruntime does not have": model("unknown", "acme.ops:Magic", "--custom-ops LIB"),
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
        "verify {w}/good.onnx {w}/mlp.onnx --plan {w}/plan.json", "inputs are", "not made by this plan", code=3
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
