"""No path that is written is one that is read, by whatever name."""

import os
import socket

import numpy as np
import onnx
import pytest
from networks import CNN, filled

L1 = ("--method", "l1", "--no-latency")


@pytest.fixture
def folder(tmp_path):
    """A model with its weights in w.bin, samples, a configuration, a plan, and other names of all of these."""
    onnx.save(filled(CNN), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32))
    (tmp_path / "c.toml").write_text('method = "l1"\nno-latency = true\n')
    (tmp_path / "mine.py").write_text("def samples():\n    return []\n")
    for name in ("w.bin", "x.npz"):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
        os.link(tmp_path / name, tmp_path / f"hard-{name}")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "nowhere.onnx")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    return tmp_path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


REFUSED = {
    "OUT is the weights of IN": ("m.onnx w.bin", "has read that file already"),
    "OUT is a link to the weights": ("m.onnx link-w.bin", "has read that file already"),
    "OUT is another name of the weights": ("m.onnx hard-w.bin", "has read that file already, as"),
    "plan is the weights": ("m.onnx o.onnx --plan w.bin", "has read that file already"),
    "plan is another name of the samples": ("m.onnx o.onnx --data x.npz --plan hard-x.npz", "has read that file"),
    "plan is the configuration": ("m.onnx o.onnx --config c.toml --plan c.toml", "c.toml: this run has read that"),
    "OUT is the configuration": ("m.onnx c.toml --config c.toml", "c.toml: this run has read that file"),
    "OUT is the user's module": ("m.onnx mine.py --data mine:samples", "mine.py: this run has read that file"),
    "plan is the module of a metric": (
        "m.onnx o.onnx --data x.npz --metric mine:score --plan mine.py",
        "mine.py: this run",
    ),
    "normalize onto the weights": ("normalize m.onnx w.bin", "has read that file already"),
    "apply onto the plan": ("apply m.onnx c.toml c.toml", "c.toml: not a plan file"),
    "OUT's weights are the samples": (
        "m.onnx x --data x.data",
        "x: its weights would replace x.data, which this run reads",
    ),
    "OUT is a named pipe": ("m.onnx pipe", "pipe: is a named pipe, which is never replaced"),
    "OUT is a socket": ("m.onnx socket", "socket: is a socket, which is never replaced"),
    "OUT is a device": ("m.onnx /dev/null", "/dev/null: is a device, which is never replaced"),
    "plan is a device": ("m.onnx o.onnx --plan /dev/null", "is a device, which is never replaced"),
    "plan is a circle of links": ("m.onnx o.onnx --plan circle", "circle: is a link to circle, which would be"),
    "OUT is a link": ("m.onnx elsewhere", "elsewhere: is a link to "),
    "report of inspect is the model": ("inspect m.svg --report m.svg", "has read that file already"),
    "report of bench is a model": ("bench m.onnx b.json --report b.json", "has read that file already"),
    "resume is a file": ("m.onnx o.onnx --resume c.toml", "--resume c.toml: is a file; give a folder"),
    "checkpoint is the samples": ("m.onnx o.onnx --resume r --data r/finetune-1-2.npz", "2.npz: this run has read"),
    "comparison around the model": ("compare m.onnx --data x.npz --out .", "--out .: holds m.onnx, which this run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_read_is_never_written(cli, folder, monkeypatch, name):
    words, told = REFUSED[name]
    monkeypatch.chdir(folder)
    (folder / "r").mkdir()
    for copy, source in {
        "x.data": "x.npz",
        "r/finetune-1-2.npz": "x.npz",
        "m.svg": "m.onnx",
        "b.json": "m.onnx",
    }.items():
        (folder / copy).write_bytes((folder / source).read_bytes())
    before, names = contents(folder), sorted(os.listdir(folder))
    plain = words.split()[0] not in ("normalize", "apply", "inspect", "bench", "compare")
    ran = cli(*words.split(), *(L1 if plain else ()))
    assert ran.code == 2
    assert told in ran.err
    assert ran.err.count("\n") == 1
    assert contents(folder) == before
    assert sorted(os.listdir(folder)) == names


def test_files_beside_what_is_read_are_written(cli, folder, monkeypatch):
    monkeypatch.chdir(folder)
    ran = cli("m.onnx", "o.onnx", *L1, "--config", "c.toml", "--plan", "p.json", "--data", "x.npz", "--recover", "none")
    assert ran.code == 0, ran.err
    assert {"o.onnx", "o.onnx.data", "p.json"} <= set(os.listdir(folder))
