"""GSS: the two regularizers and what they do to group norms."""

import numpy as np
import pytest
from toys import context_of, digits_context, toy

from onnxprune import graph
from onnxprune.methods import base, gss
from onnxprune.methods.magnitude import norms

torch = pytest.importorskip("torch")


def spread(context: base.Context, outcome: base.Outcome) -> float:
    """CV^2 of the filter norms of the inner convolutions after training."""
    parts = []
    for name in ("onnx::Conv_84", "onnx::Conv_96", "onnx::Conv_102"):
        w = graph.array_of(outcome.model.graph.initializers[name])
        u = np.linalg.norm(w.reshape(len(w), -1), axis=1)
        parts.append(u.var() / u.mean() ** 2)
    return float(np.mean(parts))


def trained(**options: object) -> tuple[float, base.Outcome]:
    context = digits_context(train_samples=512, epochs=3, lr=1e-3, **options)  # a few steps, so large ones
    outcome = base.run(base.get("gss"), context)
    return spread(context, outcome), outcome


def test_spread_rises_under_gss_and_not_under_plain_group_lasso():
    context = digits_context()
    before = spread(context, base.Outcome({}, model=context.model))
    lasso, _ = trained(lambda_var=0)
    full, outcome = trained()
    assert lasso < 1.3 * before
    assert full > 2 * before
    assert "told strong units from weak ones" in outcome.notes[0]


def test_the_papers_form_raises_the_spread_too():
    before, after = trained(lambda_gl=0, lambda_var=0)[0], trained(form="paper")[0]
    assert after > 1.5 * before


def test_terms_are_those_of_the_paper():
    from onnxprune.bridge.network import Network

    context = context_of(toy("mlp"), form="paper")
    network = Network(context.model)
    lasso, variance = gss.Regularizer(context, network, gss.Settings(form="paper")).terms()
    w1, w2 = (graph.array_of(context.model.graph.initializers[name]) for name in ("w1", "w2"))
    squares = [(w**2).sum(0) for w in (w1, w2)]
    assert float(lasso.detach()) == pytest.approx(sum(np.sqrt(s).sum() for s in squares), rel=1e-5)
    assert float(variance.detach()) == pytest.approx(sum(1 / (s.var() + 1e-8) for s in squares), rel=1e-5)


def test_the_scale_free_variance_term_does_not_reward_growth():
    from onnxprune.bridge.network import Network

    def variance(form: str, factor: float) -> float:
        context = context_of(toy("mlp"))
        network = Network(context.model)
        regularizer = gss.Regularizer(context, network, gss.Settings(form=form))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(factor)
        return float(regularizer.terms()[1].detach())

    assert variance("scale-free", 3) == pytest.approx(variance("scale-free", 1), rel=1e-4)
    assert variance("paper", 3) < 0.02 * variance("paper", 1)  # by the fourth power of the scale


def test_small_dims_are_left_alone_and_input_channels_are_an_option():
    context = context_of(toy("cnn"), groups="input", epochs=1)
    outcome = base.run(base.get("gss"), context)
    assert outcome.model is not None
    with pytest.raises(base.UsageError, match="groups=both"):
        base.run(base.get("gss"), context_of(toy("cnn"), groups="both"))


def test_outputs_weigh_norms_by_activity():
    context = digits_context(train_samples=128, epochs=1, outputs="yes")
    outcome = base.run(base.get("gss"), context)
    plain = base.run(base.get("gss"), digits_context(train_samples=128, epochs=1))
    assert any(
        not np.allclose(outcome.scores[a], plain.scores[b]) for a, b in zip(outcome.scores, plain.scores, strict=True)
    )


def test_without_samples_it_ranks_by_norm_and_says_so():
    from dataclasses import replace

    context = replace(context_of(toy("mlp")), samples=None)
    outcome = base.run(base.get("gss"), context)
    assert "no samples" in outcome.notes[0]
    for dim in context.dims:
        np.testing.assert_array_equal(outcome.scores[dim], norms(context, dim, 2))


def test_training_without_labels_keeps_the_answers():
    from dataclasses import replace

    from onnxprune.data import input_infos, load_samples
    from onnxprune.graph import sessions
    from onnxprune.outputs import metrics

    context = digits_context(epochs=2, train_samples=512)
    assert context.samples is not None
    x = context.samples.batch(np.arange(len(context.samples)))["image"]
    outcome = base.run(base.get("gss"), replace(context, samples=load_samples(x, input_infos(context.model))))
    held = load_samples("digits:test", input_infos(context.model))
    accuracy = metrics.evaluate(sessions.open_session(outcome.model, threads=1), held)
    assert accuracy is not None
    assert accuracy.value > 0.98
