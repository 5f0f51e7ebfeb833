"""What runs leave behind, and what the next run makes of it."""

import os
import signal
import subprocess
import sys
import time

import pytest
from networks import DIGITS

from onnxprune.errors import UsageError
from onnxprune.system import atomic_files
from onnxprune.system.atomic_files import scratch, staged


def test_folders_of_dead_processes_are_removed_and_others_stay(tmp_path):
    host = atomic_files._host()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".o.onnx.onnxprune-{host}-{dead.pid}-1-ab12", f".x.onnxprune-{host}-{os.getpid()}-1-cd34"]
    stay = [f".o.onnxprune-{host}-{os.getpid()}-{atomic_files._started(os.getpid())}-ef56", ".o.onnx.abcd", "onnxprune"]
    stay += [f".o.onnxprune-{'0' * 8}-{dead.pid}-1-gh78"]  # of another machine, where it may be alive
    for name in (*gone, *stay):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.onnx").write_text("half")
    file = tmp_path / f".y.onnxprune-{host}-{dead.pid}-1-ij90"
    file.write_text("a file of that name is not ours")
    with scratch(tmp_path, ".o.") as made:
        assert set(os.listdir(tmp_path)) == {*stay, file.name, os.path.basename(made)}
    assert set(os.listdir(tmp_path)) == {*stay, file.name}


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 120 + "name.onnx")
    atomic_files.replace_text(path, "text")
    assert path.read_text() == "text"


def test_names_beside_a_long_name_fit_and_differ(tmp_path):
    longest = ["ä" * 125 + "1.onnx"[-k:] for k in (4, 5)] + ["b" * 255, "b" * 254 + "c"]
    made = [atomic_files.beside(tmp_path / name, ".unmeasured") for name in longest]
    assert len(set(made)) == len(longest)
    for path in made:
        path.mkdir()
    assert atomic_files.beside(tmp_path / "short.onnx", ".data") == tmp_path / "short.onnx.data"


def test_a_result_of_a_long_name_is_written(tmp_path, cli):
    out = tmp_path / ("o" * 250 + ".onnx")
    ran = cli(DIGITS, out, "--method", "l1", "--target", "params=0.7", "--recover", "none")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [out.name]


def test_files_beside_a_target_that_are_links_are_not_replaced(tmp_path):
    (tmp_path / "o.onnx.data").symlink_to(tmp_path / "theirs.bin")
    (tmp_path / "theirs.bin").write_text("theirs")
    target = tmp_path / "o.onnx"

    def write():
        with staged(target) as places:
            places[target].write_text("model")
            places[target].with_name("o.onnx.data").write_text("weights")

    with pytest.raises(UsageError, match=r"o\.onnx\.data: is a link to"):
        write()
    assert not target.exists()
    assert (tmp_path / "theirs.bin").read_text() == "theirs"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="process numbers as in /proc")
def test_what_kill_9_leaves_is_gone_after_the_next_run_and_no_process_stays(cli, tmp_path):
    words = [sys.executable, "-m", "onnxprune", str(DIGITS), str(tmp_path / "o.onnx"), "--method", "l1"]
    run = subprocess.Popen([*words, "--data", "digits"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert run.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert cli(DIGITS, tmp_path / "o.onnx", "--method", "l1", "--no-latency").code == 0
    assert os.listdir(tmp_path) == ["o.onnx"]
