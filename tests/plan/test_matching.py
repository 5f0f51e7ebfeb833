"""Plans on checkpoints whose exporter merged, folded or renamed other tensors: matched by structure, or refused."""

import onnx
import onnx_ir as ir
import pytest
from onnx_text import proto, random_keep

from onnxprune import graph, surgery
from onnxprune.coupling import analyze
from onnxprune.errors import UsageError
from onnxprune.plan import plan
from onnxprune.plan.select import Selection

HEAD = "(float[2,3,6,6] x, float[8,3,1,1] w, float[8,8,1,1] u, float[5,8,1,1] v{more}) => (float[2,5,6,6] y) "
APART = HEAD.format(more=", float[8] wb, float[8] ub") + (
    "{ a = Conv(x, w, wb) r = Relu(a) b = Conv(r, u, ub) s = Relu(b) y = Conv(s, v) }"
)
SHARED = HEAD.format(more=", float[8] z") + (
    "{ a = Conv(x, w, z) r = Relu(a) b = Conv(r, u, z) s = Relu(b) y = Conv(s, v) }"
)
FOLDED = HEAD.format(more="") + "{ a = Conv(x, w) r = Relu(a) b = Conv(r, u) s = Relu(b) y = Conv(s, v) }"
TIED = (
    HEAD.format(more="")
    .replace(", float[8,8,1,1] u", "")
    .replace("float[8,3,1,1] w", "float[8,8,1,1] w")
    .replace("[2,3,", "[2,8,")
    + "{ a = Conv(x, w) r = Relu(a) b = Conv(r, w) s = Relu(b) y = Conv(s, v) }"
)


def analysed(text: str, **names: str):
    made = proto(text)
    for node in made.graph.node:
        node.name = names.get(node.name, node.name)
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in made.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    return analyze(graph.normalize(ir.from_proto(made)))


def planned(coupling, seed: int = 0) -> plan.Plan:
    selection = Selection(coupling, random_keep(coupling, seed), "random")
    costs = {"macs": 10, "params": 5, "bytes": 20}
    return plan.make(selection, seed=0, sha256="ab", name="m", before=costs, after=costs)


RENAMED_NODES = {"Conv_0": "Conv_9", "Conv_2": "Conv_0", "Conv_4": "Conv_2"}
RENAMED_WEIGHTS = {"w": "onnx::Conv_11", "u": "onnx::Conv_12", "v": "onnx::Conv_13"}
ALIKE = {
    "biases shared": (SHARED, {}),
    "biases folded away": (FOLDED, {}),
    "weights renamed": (APART, RENAMED_WEIGHTS),
    "nodes renamed": (APART, RENAMED_NODES),
    "biases shared and nodes renamed": (SHARED, RENAMED_NODES),
}


@pytest.mark.parametrize("other", ALIKE, ids=str)
@pytest.mark.parametrize("backward", [False, True], ids=["", "backward"])
def test_a_plan_is_found_again_by_where_it_stands(other, backward):
    text, names = ALIKE[other]
    given, here = analysed(APART), analysed(text, **names)
    if backward:
        given, here = here, given
    made = planned(given)
    found, wished = plan.selection_of(made, here), plan.selection_of(made, given)
    cut = surgery.cut(found)
    ours = {tuple(value.shape) for value in cut.graph.initializers.values() if len(value.shape) == 4}
    wanted = {tuple(value.shape) for value in surgery.cut(wished).graph.initializers.values() if len(value.shape) == 4}
    assert ours == wanted
    assert sorted(map(tuple, found.keep.values())) == sorted(map(tuple, wished.keep.values()))


@pytest.mark.parametrize(
    ("text", "names", "words"),
    [
        (APART, {**RENAMED_NODES, **RENAMED_WEIGHTS}, "it keeps|not one of its own|must stay"),
        (TIED, {}, "it was edited|must stay"),
    ],
    ids=["nodes and weights renamed", "weights tied"],
)
def test_what_cannot_be_found_or_would_lose_more_is_refused_in_one_line(text, names, words):
    with pytest.raises(UsageError, match=words) as caught:
        plan.selection_of(planned(analysed(APART), seed=3), analysed(text, **names))
    assert "\n" not in str(caught.value)


def test_apply_takes_a_plan_to_a_checkpoint_with_shared_biases(tmp_path, cli):
    for name, text in (("a", APART), ("b", SHARED)):
        onnx.save(proto(text, seed=ord(name)), tmp_path / f"{name}.onnx")
    a, b, out, made = (tmp_path / name for name in ("a.onnx", "b.onnx", "out.onnx", "plan.json"))
    fixed = ("--no-latency", "--recover", "none")
    assert cli(a, tmp_path / "pruned.onnx", "--plan", made, "--method", "l1", *fixed).code == 0
    ran = cli("apply", b, made, out, "--no-latency")
    assert ran.code == 0, ran.err
    shapes = [
        sorted(tuple(t.dims) for t in onnx.load(file).graph.initializer if len(t.dims) == 4)
        for file in (tmp_path / "pruned.onnx", out)
    ]
    assert shapes[0] == shapes[1]
    assert shapes[1] != sorted(tuple(t.dims) for t in onnx.load(b).graph.initializer if len(t.dims) == 4)
