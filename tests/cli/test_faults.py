"""What fails in the middle of a run, or is interrupted: one line tells of it, and nothing is written."""

import resource

import pytest

from onnxprune import graph
from onnxprune.run import produce, schedule, subject

L1 = ("--method", "l1", "--no-latency")


def raising(error: BaseException):
    """A function that raises it, whatever it is given."""

    def fail(*_, **__):
        raise error

    return fail


def test_full_disk_leaves_nothing(cli, bad, tmp_path, monkeypatch):
    out = tmp_path / "out.onnx"
    out.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        ran = cli(bad / "good.onnx", out, *L1)
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
    monkeypatch.setattr(produce.comparison, "compare", raising(error))
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1)
    assert ran.code == 2
    assert ran.err.startswith("onnxprune: out of memory (")
    assert "Lower --batch-size" in ran.err
    assert list(tmp_path.iterdir()) == []


def test_own_mistake_is_one_line_that_asks_for_a_report(cli, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "finish", raising(KeyError("w7")))
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1)
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
    ran = cli(bad / "good.onnx", out, *L1, "--plan", plan, "--report", report)
    assert ran.code == 130
    assert ran.err.splitlines()[-1] == "onnxprune: interrupted; nothing was written"
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]
    assert out.read_text() == "old"


def test_interruption_with_resume_says_how_to_go_on(cli, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "load", raising(KeyboardInterrupt()))
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1, "--resume", tmp_path / "checkpoints")
    assert ran.code == 130
    assert "the same command goes on from its checkpoints" in ran.err


class Own(BaseException):
    """Of no base that is caught by habit."""


def test_what_a_function_of_the_users_raises_is_one_line_whatever_its_base(cli, bad, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "load", raising(Own("own\nand more")))
    ran = cli(bad / "good.onnx", tmp_path / "o.onnx", *L1)
    assert ran.code == 2
    assert ran.err.splitlines()[-1] == "onnxprune: a function of yours raised Own: own; nothing was written. Mend that"
    assert not list(tmp_path.iterdir())
