"""Every operator has a record, each record's axes are exactly as written there, and its cut equals its mask."""

from dataclasses import replace

import pytest
from onnx_ir import to_proto
from onnx_text import model, prove, random_keep
from records import RECORDS, Record

from onnxprune import surgery
from onnxprune.coupling import analyze
from onnxprune.coupling.registry import RULES
from onnxprune.graph import shapes
from onnxprune.plan.select import Selection

BY_NAME = pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)


def test_every_registered_operator_has_a_record():
    missing = set(RULES) - {(record.domain, record.op_type) for record in RECORDS}
    assert not missing, f"add a record for {sorted(missing)} to records.py"


@BY_NAME
def test_the_axes_are_as_written_and_cut_equals_mask(record: Record):
    coupling = analyze(model(record.text, dict(record.constants), record.opset))
    free = {("~" if dim.reduced else "") + dim.name: dim.size for dim in coupling.free}
    assert free == dict(record.free)
    reasons = [str(dim.frozen) for dim in coupling.dims if dim.frozen]
    for words in record.frozen:
        assert any(words in reason for reason in reasons), (words, reasons)
    for seed in range(0 if record.random else 2):
        verification = prove(coupling, random_keep(coupling, seed), seed)
        assert verification.ok, verification
        assert verification.max_abs <= 1e-5 * verification.scale or verification.note


@BY_NAME
def test_an_empty_plan_changes_nothing(record: Record):
    source = model(record.text, dict(record.constants), record.opset)
    coupling = analyze(source)
    assert to_proto(surgery.cut(Selection(coupling, {}))) == to_proto(source)
    assert to_proto(surgery.mask(Selection(coupling, {}))) == to_proto(source)


def test_a_slice_by_bounds_that_were_not_seen_freezes_only_the_axis_that_it_cuts():
    source = model(
        "(float[2,6,4] x, float[4,8] w, int64[1] s, int64[1] t, int64[1] axes, float[8,5] v) => (float[p,q,r] y) "
        "{ e = Add(s, t) a = MatMul(x, w) b = Slice(a, s, e, axes) y = MatMul(b, v) }",
        {"s": [1], "t": [3], "axes": [1]},
    )
    observed = shapes.observe(source)
    coupling = analyze(source, replace(observed, contents={}, again={}))
    assert [dim.name for dim in coupling.free] == ["w"]
    assert prove(coupling, random_keep(coupling, 0), 0).ok
