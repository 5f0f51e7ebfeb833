"""The cost polynomials against the model that is really cut."""

import pytest
from onnx_text import model, random_keep
from records import RECORDS

from onnxprune import surgery
from onnxprune.coupling import analyze
from onnxprune.plan import cost

CHAIN = (
    "(float[n,3,6,6] x, float[8,3,3,3] w, float[8] c, float[8,1,3,3] k, float[5,8,1,1] v) => (float[n,5,2,2] y) "
    "{ a = Conv(x, w, c) d = Conv<group = 8>(a, k) y = Conv(d, v) }"
)


def test_macs_parameters_and_bytes_of_a_chain():
    """Conv 8 x 3 x 9 x 16, depthwise 8 x 9 x 4, pointwise 5 x 8 x 4, for a batch of one."""
    costs = cost.of(analyze(model(CHAIN)))
    params = 8 * 3 * 9 + 8 + 8 * 9 + 5 * 8
    assert costs.totals() == {"macs": 8 * 27 * 16 + 8 * 9 * 4 + 5 * 8 * 4, "params": params, "bytes": 4 * params}


def test_a_marginal_is_a_difference_of_totals():
    coupling = analyze(model(CHAIN))
    costs, dim = cost.of(coupling), coupling.dim("w")
    for kind in cost.KINDS:
        assert costs.marginal(kind, dim) == pytest.approx(costs.total(kind) - costs.total(kind, {dim: dim.size - 1}))
    assert sum(costs.by_node().values()) == costs.totals()["macs"]


@pytest.mark.parametrize("record", [r for r in RECORDS if r.free], ids=lambda record: record.name)
def test_the_polynomial_agrees_with_the_cut_model(record):
    """Cut for real, analysed again: parameters and MACs are what the polynomial said."""
    coupling = analyze(model(record.text, dict(record.constants), record.opset))
    keep = random_keep(coupling, 0)
    predicted = cost.of(coupling).totals(cost.keep_sizes(keep))
    cut = surgery.cut(coupling, keep)
    if any(".lift" in (node.name or "") for node in cut.graph):
        pytest.skip("the cut model sees one axis at full size")
    real = cost.of(analyze(cut)).totals()
    assert predicted["params"] == real["params"]
    assert predicted["macs"] == pytest.approx(real["macs"], rel=1e-9)
