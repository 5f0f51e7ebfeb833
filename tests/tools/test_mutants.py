"""tools/mutants.py: which mutants count, that the same seed draws the same ones, and that none gets past the proof."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import mutants
from mutant_damages import DAMAGES, Case
from mutant_networks import networks

from onnxprune import graph, surgery
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison

KINDS = "classifier detector segmentation encoder decoder mixture recurrent qdq qoperator fp16".split()


@pytest.fixture(autouse=True)
def warnings_again():
    """The tool switches warnings off for its whole process, which here is that of the other tests too."""
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("networks"))


@pytest.mark.parametrize("name", ["resnet", "gqa", "stacked", "joined.qdq"])
def test_no_mutant_of_a_few_gets_past_the_proof(folder, name):
    found = mutants.task(name, 0, 0, folder, 3)
    assert found.refused == []
    assert len(found.mutants) == 3
    assert [m for m in found.mutants if m.survived] == []


def test_the_networks_are_of_all_kinds_and_damages_are_many():
    found = networks()
    assert len(found) >= 60
    assert {"dynamic int8", *KINDS} <= {net.kind for net in found.values()}
    assert len(DAMAGES) >= 15


def test_a_proof_that_accepts_everything_is_found_out(monkeypatch, capsys):
    def accepts(cut, masked, feeds):
        return replace(compare(masked, masked, feeds), ok=True)

    compare = comparison.compare
    monkeypatch.setattr(comparison, "compare", accepts)
    monkeypatch.setattr(mutants, "isolated", lambda work: work())  # another process would not know the stand-in
    assert mutants.main(["--count", "3", "--names", "mlp", "--jobs", "1"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 mutants, 3 survived"
    assert sum(line.startswith("survived: mlp (classifier), ") for line in lines) == 3


def test_a_twin_that_is_opened_once_says_the_same(folder, monkeypatch):
    """Sessions of the masked model are kept from one mutant to the next; the proof's words are those of fresh ones."""
    said = []

    def compare(cut, masked, feeds):
        said.append(kept(cut, masked, feeds))
        return said[-1]

    kept = comparison.compare
    monkeypatch.setattr(comparison, "compare", compare)
    mutants._task("gqa", 0, 0, folder, 3)
    first, said = said, []
    monkeypatch.setattr(mutants.Twin, "__enter__", lambda self: self)
    monkeypatch.setattr(mutants.Twin, "__exit__", lambda *_: None)
    mutants._task("gqa", 0, 0, folder, 3)
    assert len(first) == 4
    assert [(one.ok, one.max_abs, one.worst) for one in first] == [(one.ok, one.max_abs, one.worst) for one in said]


def test_no_further_network_is_started_when_time_is_up(capsys):
    assert mutants.main(["--count", "1000", "--names", "mlp", "--jobs", "1", "--seconds", "1e-9"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{mutants.PER_PLAN} mutants, 0 survived"


def test_an_honest_cut_that_is_refused_is_an_error_and_is_listed(monkeypatch, capsys):
    found = mutants.Found(mutants=[mutants.Mutant("mlp", "classifier", "a", "b", False)], refused=["mlp, plan 0: no"])
    monkeypatch.setattr(mutants, "task", lambda *_: found)
    assert mutants.main(["--count", "1", "--names", "mlp", "--jobs", "1"]) == 1
    assert "honest cut refused: mlp, plan 0: no" in capsys.readouterr().out


def test_a_network_that_does_not_exist_is_told(capsys):
    assert mutants.main(["--count", "1", "--names", "nothing"]) == 2
    assert "no such network" in capsys.readouterr().err


def test_the_same_seed_draws_the_same_mutants(folder):
    first, again, other = (mutants.task("mlp", 0, seed, folder, 5).mutants for seed in (3, 3, 4))
    assert first == again
    assert first != other


def _honest(folder: str, name: str) -> tuple[mutants.Prepared, Case, mutants.Honest]:
    subject = mutants.prepared(name, folder)
    keep = mutants.plan_of(subject.coupling, mutants.Random(0))
    cut = surgery.cut(Selection(subject.coupling, keep))
    return subject, Case(subject.coupling, keep, cut), mutants.Honest(cut, subject.probes)


def test_what_makes_no_difference_does_not_count(folder):
    """The same units in another order everywhere, or weights moved by a rounding error, are no mutants."""
    _, case, honest = _honest(folder, "mlp")
    assert not honest.differs(case.cut)
    order, moved, wrong = case.cut.clone(), case.cut.clone(), case.cut.clone()
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        for model in (order, wrong) if name != "b1" else (order,):
            value = model.graph.initializers[name]
            graph.set_constant(value, np.ascontiguousarray(np.flip(graph.array_of(value), axis)))
    for value in moved.graph.initializers.values():
        graph.set_constant(value, graph.array_of(value) * np.float32(1 + 2e-7))
    assert not honest.differs(order)
    assert not honest.differs(moved)
    assert honest.differs(wrong)


def test_every_word_of_a_table_is_tried(folder):
    """One wrong row of a table counts: indices walk over all rows."""
    subject, case, honest = _honest(folder, "gpt")
    table = subject.coupling.model.graph.initializers["table"]
    for row in (0, 17, graph.array_of(table).shape[0] - 1):
        mutant = case.cut.clone()
        array = graph.array_of(mutant.graph.initializers["table"]).copy()
        array[row] *= -1
        graph.set_constant(mutant.graph.initializers["table"], array)
        assert honest.differs(mutant)


@pytest.mark.slow
def test_every_damage_changes_some_network(folder):
    done = set()
    for name in networks(torch=False):
        _, case, _ = _honest(folder, name)
        for damage in set(DAMAGES) - done:
            mutant = graph.copy(case.cut)
            for _, change in DAMAGES[damage](case, mutant):
                change(mutants.Random(1))
                done.add(damage)
                break
        if done == set(DAMAGES):
            break
    assert done == set(DAMAGES)


@pytest.mark.slow
def test_no_mutant_of_hundreds_gets_past_the_proof(capsys):
    code = mutants.main(["--count", "400", "--seed", "7", "--jobs", "2", "--no-torch"])
    out = capsys.readouterr().out
    assert code == 0, out
    assert out.splitlines()[-1] == "400 mutants, 0 survived"
