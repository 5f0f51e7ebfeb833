"""What inputs seldom reach, and what stands in bodies: each of these wrong cuts was once accepted."""

from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_text import model as written
from onnx_text import prove, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.graph import bodies, sessions
from onnxprune.plan.select import Selection
from onnxprune.proof import comparison, steps
from onnxprune.proof.unreached import ML


def judged(text: str, constants: dict, damage) -> tuple[bool, bool, set[str]]:
    """(whether the honest cut is accepted, and what `damage` makes of it; the kinds of evidence that differ)."""
    model = graph.normalize(written(text, constants))
    for value in model.graph.initializers.values():
        array = graph.array_of(value)
        if array.ndim > 1 and array.dtype == np.float32 and value.name not in constants:
            graph.set_constant(value, array / np.float32(np.sqrt(len(array))))
    coupling = analyze(model)
    keep = {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free}
    assert keep
    chosen = Selection(coupling, keep)
    masked, honest, mutant = surgery.mask(chosen), surgery.cut(chosen), surgery.cut(chosen)
    damage(mutant)
    feeds = comparison.random_feeds(coupling.model, coupling.shapes)
    found = comparison.compare(mutant, masked, feeds)
    return comparison.compare(honest, masked, feeds).ok, found.ok, {e.kind for e in found.evidence if not e.ok}


def operator(model: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in bodies.all_nodes(model.graph) if node.op_type == op_type)


def stored(name: str, new, model: ir.Model) -> None:
    value = model.graph.initializers[name]
    graph.set_constant(value, np.ascontiguousarray(new(graph.array_of(value).copy())))


def own_input(op_type: str, index: int, number, model: ir.Model) -> None:
    """Gives an operator another constant, of its own."""
    node = operator(model, op_type)
    value = node.inputs[index]
    assert value is not None
    kind = graph.array_of(value).dtype
    node.replace_input_with(index, graph.add_constant(model.graph, "other", np.asarray(number, kind)))


def attribute(op_type: str, name: str, value, model: ir.Model) -> None:
    operator(model, op_type).attributes[name] = ir.convenience.convert_attribute(name, value)


def row(axis: int, number: int, array: np.ndarray) -> np.ndarray:
    """`array` with one row of a table as the one before."""
    rows = np.moveaxis(array, axis, 0)
    rows[number] = rows[number - 1]
    return array


LAYERS = (
    "(float[n,8] x, float[8,16] w, float[16,4] v{more}) => (float[n,4] y) {{ a = MatMul(x, w) {op} y = MatMul(b, v) }}"
)
CLIP = LAYERS.format(more=", float lo, float hi", op="b = Clip(a, lo, hi)")
ALPHA = LAYERS.format(more="", op="b = LeakyRelu<alpha = 0.01>(a)")
EPSILON = LAYERS.format(more=", float[16] g", op="c = Relu(a) b = LayerNormalization<epsilon = 1e-5>(c, g)")
SLICED = LAYERS.format(more=", int64[1] s, int64[1] e", op="c = Relu(a) b = Slice(c, s, e)").replace(
    "float[n,4]", "float[m,4]"
)
PICTURE = (
    "(uint8[n,3,8,8] x, uint8 t, float[8,3,3,3] w, float[4,8,1,1] v) => (float[n,4,8,8] y) { g = Greater(x, t) "
    "f = Cast<to = 1>(g) c = Conv<pads = [1,1,1,1]>(f, w) r = Relu(c) y = Conv(r, v) }"
)
POOLED = (
    "(float[n,3,8,8] x, float[8,3,3,3] w, float[4,8,1,1] v) => (float[n,4,h,k] y) { c = Conv<pads = [1,1,1,1]>(x, w) "
    "r = Relu(c) p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r) y = Conv(p, v) }"
)
POSITIONS = (
    "(float[n,s,16] x, float[1,512,16] pos, int64[1] st, int64[1] one, float[16,64] w, float[64,8] v) => "
    "(float[n,s,8] y) { l = Shape<start = 1, end = 2>(x) p = Slice(pos, st, l, one) e = Add(x, p) h = MatMul(e, w) "
    "r = Relu(h) y = MatMul(r, v) }"
)
ROWS = (
    "(int64[n,1] x, float[900,32] table, float[32,64] w, float[64,8] v) => (float[n,8] y) "
    "{ e = GatherND(table, x) h = MatMul(e, w) r = Relu(h) y = MatMul(r, v) }"
)
COLUMNS = (
    "(int64[n] x, float[32,900] table, float[32,64] w, float[64,8] v) => (float[n,8] y) "
    "{ g = Gather<axis = 1>(table, x) e = Transpose(g) h = MatMul(e, w) r = Relu(h) y = MatMul(r, v) }"
)
MAPPED = (
    "(int64[n] x, int64[900] map, float[300,32] table, float[32,64] w, float[64,8] v) => (float[n,8] y) "
    "{ k = Gather(map, x) e = Gather(table, k) h = MatMul(e, w) r = Relu(h) y = MatMul(r, v) }"
)
POSITION_CONSTANTS = {"st": [0], "one": [1]}


TURNED = (
    "(float[n,s,16] x, int64[n,s] xp, float[64,2] cosines, float[64,2] sines, float[16,16] q, float[16,32] w, "
    "float[32,4] v) => (float[n,s,4] y) { a = MatMul(x, q) r = com.microsoft.RotaryEmbedding<num_heads = 4>(a, xp, "
    "cosines, sines) h = MatMul(r, w) b = Relu(h) y = MatMul(b, v) }"
)
HASHED = (
    "(int64[n,4] x, int64 m, float[40,8] table, float[32,16] w, float[16,4] v) => (float[n,4] y) { k = Mod(x, m) "
    "e = Gather(table, k) f = Flatten(e) h = MatMul(f, w) b = Relu(h) y = MatMul(b, v) }"
)
NEVER = LAYERS.format(more=", float t, float o", op="g = Greater(a, t) b = Where(g, a, o)")
COUNTED = (
    "(float[n,8] x, int64 xc, int64 most, bool on, int64 last, float[8,16] w, float[16,8] v) => (float[n,8] y) "
    "{ count = Min(xc, most) y = Loop(count, on, x) <body = step (int64 i, bool c, float[n,8] h) => "
    "(bool c2, float[n,8] h2) { c2 = Less(i, last) a = MatMul(h, w) r = Relu(a) h2 = MatMul(r, v) }> }"
)
STEPS = {"most": 100, "last": 50, "on": True}


@pytest.mark.parametrize(
    ("text", "constants", "damage", "kind"),
    [
        (TURNED, {}, partial(stored, "cosines", partial(row, 0, 60)), "table"),
        (TURNED, {}, partial(stored, "sines", partial(row, 0, 60)), "table"),
        (HASHED, {"m": 40}, partial(own_input, "Mod", 1, 39), "setting"),
        (NEVER, {"t": -1e5, "o": 0}, partial(own_input, "Where", 2, 7), "table"),
        (COUNTED, STEPS, partial(own_input, "Min", 1, 20), "setting"),
        (COUNTED, STEPS, partial(own_input, "Less", 1, 20), "setting"),
        (CLIP, {"lo": 0, "hi": 6}, partial(own_input, "Clip", 2, 60), "setting"),
        (CLIP, {"lo": -9, "hi": 6}, partial(own_input, "Clip", 1, -60), "setting"),
        (ALPHA, {}, partial(attribute, "LeakyRelu", "alpha", 0.0101), "setting"),
        (EPSILON, {}, partial(attribute, "LayerNormalization", "epsilon", 1e-6), "setting"),
        (SLICED, {"s": [0], "e": [2**31 - 1]}, partial(own_input, "Slice", 2, [16]), "setting"),
        (PICTURE, {"t": 128}, partial(own_input, "Greater", 1, 200), "setting"),
        (POOLED, {}, partial(attribute, "MaxPool", "ceil_mode", 1), "setting"),
        (POSITIONS, POSITION_CONSTANTS, partial(stored, "pos", partial(row, 1, 400)), "table"),
        (ROWS, {}, partial(stored, "table", partial(row, 0, 777)), "table"),
        (MAPPED, {"map": np.arange(900) // 3}, partial(stored, "map", partial(row, 0, 777)), "table"),
        (COLUMNS, {}, partial(stored, "table", partial(row, 1, 777)), "table"),
    ],
)
def test_what_no_input_of_the_proof_reaches_is_compared_as_it_is_stored(text, constants, damage, kind):
    honest, mutant, kinds = judged(text, constants, damage)
    assert honest
    assert not mutant
    assert kind in kinds


def reader(model: ir.Model, op_type: str, *order: int) -> None:
    """Lets an operator read its inputs in another order."""
    node = operator(model, op_type)
    for index, value in enumerate([node.inputs[k] for k in order]):
        node.replace_input_with(index, value)


def without_last_input(op_type: str, model: ir.Model) -> None:
    operator(model, op_type).resize_inputs(len(operator(model, op_type).inputs) - 1)


def with_computed_bound(model: ir.Model) -> None:
    """Multiplies the upper bound of Clip by a thousand, which no input of the proof comes near."""
    clip = operator(model, "Clip")
    many = graph.add_constant(model.graph, "many", np.array(1000, np.float32))
    product = ir.node("Mul", [clip.inputs[2], many], name="product")
    product.outputs[0].name = "product.y"
    model.graph.insert_before(clip, product)
    clip.replace_input_with(2, product.outputs[0])


def skipped(op_type: str, model: ir.Model) -> None:
    """Leaves an operator out: what follows reads what it read; what it gave to the outside its input gives."""
    node = operator(model, op_type)
    read, given = node.inputs[0], node.outputs[0]
    assert read is not None
    name = given.name
    for use in list(given.uses()):
        use.node.replace_input_with(use.idx, read)
    if given.is_graph_output():
        model.graph.outputs[list(model.graph.outputs).index(given)] = read
        given.name, read.name = None, name
    model.graph.remove(node, safe=True)


def instead(op_type: str, other: str, model: ir.Model) -> None:
    operator(model, op_type).op_type = other


def renamed(model: ir.Model) -> None:
    own_input("Clip", 2, 600, model)
    operator(model, "Clip").outputs[0].name = "another"


STRIDED = (
    "(float[n,3,s,t] x, float[8,3,3,3] w, float[4,8,1,1] v) => (float[n,4,h,k] y) "
    "{ c = Conv<pads = [1,1,1,1], strides = [2,2]>(x, w) r = Relu(c) y = Conv(r, v) }"
)
OVER_TIME = (
    "(float[n,s,16] x{more}, float[16,32] w, float[32,8] v) => (float[n,t,8] y) "
    "{{ l = Shape<start = 1, end = 2>(x) {e} h = MatMul(e, w) r = Relu(h) y = MatMul(r, v) }}"
)
SHORTENED = OVER_TIME.format(
    more=", int64[1] zero, int64[1] most, int64[1] one", e="k = Min(l, most) e = Slice(x, zero, k, one)"
)
LONG = OVER_TIME.format(
    more=", int64[1] most",
    e="g = Greater(l, most) e = If(g) <then_branch = one () => (float[n,s,16] o) { o = Tanh(x) }, "
    "else_branch = two () => (float[n,s,16] p) { p = Neg(x) }>",
)
RELATIVE = OVER_TIME.format(
    more=", int64 zero, int64 one, int64 low, int64 high, float[65] table",
    e="i = Squeeze(l) d = Range(zero, i, one) c = Clip(d, low, high) b = Gather(table, c) u = Unsqueeze(b, ones) "
    "e = Mul(x, u)",
).replace("int64 zero", "int64[1] ones, int64 zero")
BAND = OVER_TIME.format(
    more=", int64 k, float[1,1] one",
    e="q = Concat<axis = 0>(l, l) m = Expand(one, q) b = Trilu<upper = 0>(m, k) e = MatMul(b, x)",
)
HIDING = OVER_TIME.format(
    more=", int64[n,s] xm, float one, float much, int64[1] ones, float[16,16] q",
    e="a = MatMul(x, q) at = Transpose<perm = [0,2,1]>(a) p = MatMul(x, at) f = Cast<to = 1>(xm) i = Sub(one, f) "
    "m = Mul(i, much) u = Unsqueeze(m, ones) j = Add(p, u) g = Softmax(j) e = MatMul(g, x)",
)
CHOICE = (
    "(float[n,8] x, int64 xf, int64 one, float[8,16] w, float[16,4] v, float[16,4] u) => (float[n,4] y) "
    "{ a = MatMul(x, w) b = Relu(a) p = MatMul(b, v) q = MatMul(b, u) g = Equal(xf, one) s = Add(p, q) d = Sub(p, q) "
    "y = Where(g, s, d) }"
)
LABELS = (
    "(float[n,8] x, float[8,16] w, float[16,10] v, int64[10] labels) => (int64[n] y) { a = MatMul(x, w) b = Relu(a) "
    "c = MatMul(b, v) k = ArgMax<axis = 1, keepdims = 0>(c) y = Gather(labels, k) }"
)
FOUND = (
    "(float[n,8] x, float[8,16] w, float[16,4] v, float high, int64[1] second) => (int64[1,k] z, float[n,4] y) "
    "{ a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) g = Greater(y, high) f = NonZero(g) z = Gather(f, second) }"
)
TIME = {"zero": 0, "one": 1, "ones": [1]}


ENDING = "(float[n,8] x, float[8,16] w, float[16,4] v, float lo, float hi) => (float[n,4] y) "
ENDING += "{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) y = Clip(c, lo, hi) }"
SOFTCAP = "(float[n,8] x, float[8,16] w, float[16,4] v, float cap) => (float[n,4] y) "
SOFTCAP += "{ a = MatMul(x, w) b = Relu(a) c = MatMul(b, v) d = Div(c, cap) e = Tanh(d) y = Mul(e, cap) }"
FAR = LAYERS.format(more=", float far", op="g = Greater(a, far) m = Neg(a) b = Where(g, m, a)")


@pytest.mark.parametrize(
    ("text", "constants", "damage"),
    [
        (CLIP, {"lo": -60, "hi": 60}, partial(skipped, "Clip")),
        (ENDING, {"lo": -60, "hi": 60}, partial(skipped, "Clip")),
        (SOFTCAP, {"cap": 3000}, partial(skipped, "Tanh")),
        (FAR, {"far": 50}, partial(instead, "Neg", "Identity")),
    ],
)
def test_an_operator_that_bends_numbers_no_input_has_is_not_left_out(text, constants, damage):
    """Operators that were added were counted, those that were gone were not."""
    assert judged(text, constants, damage)[:2] == (True, False)


@pytest.mark.parametrize(
    ("text", "constants", "damage"),
    [
        (CLIP, {"lo": 0, "hi": 60}, partial(without_last_input, "Clip")),
        (CLIP, {"lo": 0, "hi": 60}, with_computed_bound),
        (CLIP, {"lo": 0, "hi": 60}, renamed),
        (STRIDED, {}, partial(attribute, "Conv", "pads", [1, 1, 0, 0])),  # the same where lengths are even
        (SHORTENED, {"zero": [0], "one": [1], "most": [512]}, partial(own_input, "Min", 1, [256])),
        (LONG, {"most": [100]}, partial(own_input, "Greater", 1, [80])),
        (RELATIVE, {**TIME, "low": 0, "high": 40}, partial(own_input, "Clip", 2, 30)),
        (BAND, {"k": 64, "one": [[1]]}, partial(own_input, "Trilu", 1, 50)),
        (HIDING, {"one": 1, "much": -1e4, "ones": [1]}, partial(own_input, "Mul", 1, -40)),
        (CHOICE, {"one": 1}, lambda m: reader(m, "Sub", 1, 0)),
        (LABELS, {"labels": np.arange(10, 20)}, partial(own_input, "Gather", 0, [*range(10, 19), 77])),
        (FOUND, {"high": 1e5, "second": [1]}, partial(own_input, "Gather", 1, [0])),
    ],
)
def test_lengths_that_nobody_tried_and_branches_that_nobody_took_hide_no_other_setting(text, constants, damage):
    """Each was accepted: a bound that is gone, a node of another name, whole numbers of lengths, a mask that hides
    less, operands exchanged in a case that no input chooses, rows of a few whole numbers."""
    assert judged(text, constants, damage)[:2] == (True, False)


def test_tokens_that_no_input_holds_weigh_the_same():
    source = ir.to_proto(written("(int64[n,6] x, float[12,16] w, float[16,4] v) => (float[n,4] y) "
                                 "{ a = MatMul(t, w) b = Relu(a) y = MatMul(b, v) }"))  # fmt: skip
    kinds = {"mode": "TFIDF", "max_gram_length": 1, "min_gram_length": 1, "max_skip_count": 0, "ngram_counts": [0]}
    numbers = {"ngram_indexes": list(range(12)), "pool_int64s": [3 * k for k in range(12)], "weights": [1.0] * 12}
    source.graph.node.insert(0, onnx.helper.make_node("TfIdfVectorizer", ["x"], ["t"], "t", **kinds, **numbers))
    one, two = ir.from_proto(source), ir.from_proto(source)
    attribute("TfIdfVectorizer", "weights", [1.0] * 9 + [50.0] * 3, two)
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, one, feeds).ok
    assert not comparison.compare(two, one, feeds).ok


MERGED = (
    "(float[n,8] x, float[8,16] w, float[16,4] v) => (float[n,4] y) "
    "{{ z = MatMul(x, w) a = Relu(z) b = Relu(z) c = Tanh(z) d = Add(a, c) e = Add({}, c) f = Add(d, e) "
    "y = MatMul(f, v) }}"
)


def test_a_sum_that_reads_a_merged_value_reads_the_same():
    """Sorted by name, the values of a sum stood in another order where a rewriting had merged one of them."""
    one = written(MERGED.format("b"))
    merged = written(MERGED.format("a").replace("b = Relu(z) ", ""))
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(merged, one, feeds).ok
    assert not comparison.compare(written(MERGED.format("z")), one, feeds).ok


SAME_NAMES = (
    "(float[n,8] x, float zero, float[8,16] w, float[16,8] v, float o, float six, float nine) => (float[n,8] y) "
    "{ s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) a = MatMul(x, w) b = Relu(a) d = MatMul(b, v) y = If(c) "
    "<then_branch = t () => (float[n,8] p) { p = Clip(d, o, six) }, "
    "else_branch = e () => (float[n,8] p) { p = Clip(d, o, nine) }> }"
)


def test_branches_that_give_values_of_one_name_are_told_apart():
    constants = {"zero": 0, "o": 0, "six": 60, "nine": 90}
    assert judged(SAME_NAMES, constants, lambda m: None)[:2] == (True, True)


TREE = {
    "n_targets": 1, "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
    "nodes_values": [-50.0, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0],
    "nodes_falsenodeids": [2, 0, 0], "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
    "target_weights": [3.0, 5.0],
}  # fmt: skip


def test_leaves_of_a_tree_that_no_input_reaches_are_compared():
    source = ir.to_proto(written(LAYERS.format(more="", op="b = Relu(a)")))
    source.graph.node.append(onnx.helper.make_node("TreeEnsembleRegressor", ["x"], ["z"], "t", domain=ML, **TREE))
    source.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["n", 1]))
    source.opset_import.append(onnx.helper.make_opsetid(ML, 3))
    one, two = ir.from_proto(source), ir.from_proto(source)
    attribute("TreeEnsembleRegressor", "target_weights", [99.0, 5.0], two)
    feeds = comparison.random_feeds(one, analyze(one).shapes)
    assert comparison.compare(one, one, feeds).ok
    assert not comparison.compare(two, one, feeds).ok


NOT_A_NUMBER = LAYERS.format(more="", op="s = Sqrt(a) b = Relu(s)")
LOGARITHM = (
    "(float[n,8] x, float[8,16] w, float[16,4] v) => (float[n,4] y) "
    "{ l = Log(x) a = MatMul(l, w) b = Relu(a) y = MatMul(b, v) }"
)


@pytest.mark.parametrize(("text", "weight"), [(NOT_A_NUMBER, "v"), (LOGARITHM, "w"), (LOGARITHM, "v")])
def test_numbers_that_are_none_in_both_models_hide_no_wrong_weights(text, weight):
    assert judged(text, {}, partial(stored, weight, lambda w: w[::-1]))[:2] == (True, False)


def test_bytes_are_drawn_over_their_range_and_masks_still_are_zeros_and_ones():
    model = graph.normalize(written(PICTURE, {"t": 128}))
    for batch in comparison.random_feeds(model, analyze(model).shapes):
        assert batch["x"][::2].max() > 200
        assert batch["x"][1::2].max() == 1


# Bodies ---------------------------------------------------------------------------------------------------------------

LOOP = (
    "(float[n,8] x, int64 count, bool on, float[8,16] w, float[16,8] v) => (float[n,8] y) { y = Loop(count, on, x) "
    "<body = step (int64 i, bool c, float[n,8] h) => (bool c2, float[n,8] h2) { c2 = Identity(c) a = MatMul(h, w) "
    "q = Round(a) r = Relu(q) h2 = MatMul(r, v) }> }"
)
SCAN = (
    "(float[s,n,8] x, float[n,8] xh, float[8,16] w, float[16,8] v) => (float[n,8] last, float[s,n,8] y) "
    "{ last, y = Scan(xh, x) <num_scan_inputs = 1, body = step (float[n,8] h, float[n,8] e) => "
    "(float[n,8] h2, float[n,8] o) { s1 = Add(h, e) a = MatMul(s1, w) q = Round(a) r = Relu(q) h2 = MatMul(r, v) "
    "o = Identity(h2) }> }"
)
BRANCHES = (
    "(float[n,8] x, float zero, float[8,16] w, float[16,8] v) => (float[n,8] y) { s = ReduceSum<keepdims = 0>(x) "
    "c = Greater(s, zero) y = If(c) <then_branch = t () => (float[n,8] o) { a = MatMul(x, w) q = Round(a) r = Relu(q) "
    "o = MatMul(r, v) }, else_branch = e () => (float[n,8] p) { p = Neg(x) }> }"
)
CONSTANTS = {"count": 3, "on": True, "zero": 0}


@pytest.mark.parametrize("text", [LOOP, SCAN, BRANCHES])
@pytest.mark.parametrize("weight", ["w", "v"])
def test_weights_around_a_decision_in_a_body_are_compared(text, weight):
    """Small numbers are rounded to zero in every step: all that is behind was silent, and told to be untested."""
    constants = {name: number for name, number in CONSTANTS.items() if f" {name}" in text.split("=>")[0]}
    assert judged(text, constants, partial(stored, weight, lambda w: w[::-1]))[:2] == (True, False)


@pytest.mark.parametrize("text", [LOOP, SCAN])
def test_a_step_gives_what_the_second_step_of_the_operator_does(text):
    constants = {"count": 2, "on": True} if text == LOOP else {}
    model = graph.normalize(written(text, constants))
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(3, 8) if text == LOOP else (2, 3, 8)).astype(np.float32)}
    feeds |= {} if text == LOOP else {"xh": rng.normal(size=(3, 8)).astype(np.float32)}
    whole = sessions.run(sessions.open_session(model, threads=1), feeds)
    step = steps.stepped(model, "y")
    found = sessions.run(sessions.open_session(step, threads=1), feeds)
    assert "Round" in {node.op_type for node in step.graph}
    assert np.allclose(found["h2"], whole["y" if text == LOOP else "last"])


# A state that is handed on as it came, a result of every step, a weight and a value from outside, an If in the body.
BUSY = (
    "(float[n,8] x, float[n,8] xk, int64 count, bool on, float zero, float[8,16] w, float[16,8] v) => "
    "(float[n,8] y, float[n,8] k, float[s,n,8] z) { y, k, z = Loop(count, on, x, xk) <body = step "
    "(int64 i, bool c, float[n,8] h, float[n,8] same) => (bool c, float[n,8] h2, float[n,8] same, float[n,8] each) { "
    "s = ReduceSum<keepdims = 0>(h) d = Greater(s, zero) a = MatMul(h, w) r = Relu(a) t = MatMul(r, v) h2 = If(d) "
    "<then_branch = one () => (float[n,8] o) { o = Tanh(t) }, "
    "else_branch = two () => (float[n,8] p) { p = Add(t, x) }> each = Mul(h2, same) }> }"
)


@pytest.mark.parametrize("weight", ["w", "v"])
def test_loops_with_all_that_loops_may_have_are_compared_as_well(weight):
    constants = {"count": 3, "on": True, "zero": 0}
    assert judged(BUSY, constants, partial(stored, weight, lambda w: w[::-1]))[:2] == (True, False)
    model = graph.normalize(written(BUSY, constants))
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=(3, 8)).astype(np.float32) for name in ("x", "xk")}
    whole = sessions.run(sessions.open_session(model, threads=1), feeds)
    found = sessions.run(sessions.open_session(steps.stepped(model, "y"), threads=1), feeds)
    assert np.allclose(found["each"], whole["z"][1], atol=1e-6)


def test_positions_that_masking_gathers_are_no_other_value():
    """A cut LRN is lifted and lowered again; the masked model gathers the same positions for what summarizes them."""
    model = written(
        "(float[2,3,4,4] x, float[8,3,1,1] w, float[5,8,1,1] v, int64[1] one) => (float[2,5,4,4] y) "
        "{ a = Conv(x, w) l = LRN<size = 3>(a) m = ReduceMax(l, one) b = Mul(l, m) y = Conv(b, v) }",
        {"one": 1},
    )
    coupling = analyze(model)
    assert prove(coupling, random_keep(coupling, 1, 0.5), 0).ok
