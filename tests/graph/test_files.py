"""Load, normalize, save: what is kept, what is refused, and with which words."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from networks import CNN, filled
from onnx import TensorProto, helper
from onnx_text import model, proto

from onnxprune import graph
from onnxprune.errors import GraphError, UsageError
from onnxprune.graph import sessions

TEXT = (
    "(float[n,3,6,6] x, float[8,3,1,1] w, float[8] c, float[5,8,1,1] v) => (float[n,5,6,6] y) "
    "{ a = Conv(x, w, c) b = Relu(a) y = Conv(b, v) }"
)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "m.onnx"
    onnx.save(proto(TEXT), file)
    return file


def external(tmp_path, **changes: str):
    """A model with external data, of which entries of the first tensor are changed."""
    file = tmp_path / "e.onnx"
    onnx.save(proto(TEXT), file, save_as_external_data=True, location="e.data", size_threshold=0)
    broken = onnx.load(file, load_external_data=False)
    for entry in broken.graph.initializer[0].external_data:
        entry.value = changes.get(entry.key, entry.value)
    onnx.save(broken, file)
    return file


def same_numbers(one: ir.Model, two: ir.Model) -> bool:
    x = {"x": np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype(np.float32)}
    a, b = (sessions.run(sessions.open_session(m, threads=1), x) for m in (one, two))
    return all(np.allclose(a[name], b[name], atol=1e-5) for name in b)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(GraphError, match=r"none\.onnx: no such file"):
        graph.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("size", [0, 1, 40, 300])
def test_a_truncated_file_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(GraphError, match=r"m\.onnx: "):
        graph.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = tmp_path / "photo.onnx"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    with pytest.raises(GraphError, match="photo"):
        graph.load(file)


def test_a_cycle_is_refused(tmp_path):
    cyclic = proto("(float[2] x) => (float[2] y) { a = Add(x, b) b = Relu(a) y = Relu(b) }")
    onnx.save(cyclic, tmp_path / "c.onnx")
    with pytest.raises(GraphError, match="cycle"):
        graph.load(tmp_path / "c.onnx")


def test_a_value_from_nowhere_is_refused(tmp_path):
    onnx.save(proto("(float[2] x) => (float[2] y) { y = Add(x, ghost) }"), tmp_path / "g.onnx")
    with pytest.raises(GraphError, match="ghost"):
        graph.load(tmp_path / "g.onnx")


def test_an_output_that_nothing_produces_is_refused_by_name(path):
    broken = onnx.load(path)
    broken.graph.output[0].name = "nowhere"
    onnx.save(broken, path)
    with pytest.raises(GraphError, match="nothing produces the output 'nowhere'"):
        graph.load(path)


def test_weights_without_a_type_are_refused_by_name(path):
    broken = onnx.load(path)
    broken.graph.initializer[0].data_type = TensorProto.UNDEFINED
    onnx.save(broken, path)
    with pytest.raises(GraphError, match=f"'{broken.graph.initializer[0].name}' has no type"):
        graph.load(path)


def test_a_name_that_is_no_text_is_refused_wherever_it_stands(path, tmp_path):
    whole = onnx.load(path)
    whole.graph.node[0].name = whole.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "NaMe"
    whole.graph.doc_string = "NaMe"
    content = whole.SerializeToString()
    places = [at for at in range(len(content)) if content.startswith(b"NaMe", at)]
    assert len(places) == 3
    path.write_bytes(content)
    graph.load(path)
    for at in places:
        path.write_bytes(content[: at + 1] + b"\x9f" + content[at + 2 :])
        with pytest.raises(GraphError, match=r"no text \(UTF-8\): b'N.x9fMe'"):
            graph.load(path)


def test_a_location_of_weights_that_is_no_text_is_refused(tmp_path):
    file = external(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"e.data", b"e\x9fdata"))
    with pytest.raises(GraphError, match=r"no text \(UTF-8\)"):
        graph.load(file)
    assert graph.external_names(file) == []


def test_a_file_whose_name_is_no_text_is_saved_loaded_and_run(path, tmp_path):
    odd = tmp_path / "\udcff.onnx"
    graph.save(graph.load(path), odd)
    assert same_numbers(graph.load(odd), graph.load(path))
    x = {"x": np.ones((2, 3, 6, 6), np.float32)}
    named, plain = (sessions.run(sessions.open_session(file, threads=1), x) for file in (odd, path))
    assert np.array_equal(named["y"], plain["y"])


def test_weights_beside_a_file_whose_name_is_no_text_are_refused_in_one_line(tmp_path):
    file = external(tmp_path)
    odd = tmp_path / "\udcff"
    odd.mkdir()
    with pytest.raises(UsageError, match=r"found by text \(UTF-8\) only; choose another output"):
        graph.save(graph.load(file), odd / "e.onnx")
    assert not list(odd.iterdir())
    for name in ("e.onnx", "e.data"):
        (odd / name).write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(UsageError, match=r"found by text \(UTF-8\) only; rename"):
        sessions.open_session(odd / "e.onnx", threads=1)


def test_an_unknown_opset_is_refused(path):
    broken = onnx.load(path)
    broken.opset_import[0].version = 999
    onnx.save(broken, path)
    with pytest.raises(GraphError, match="opset 999"):
        graph.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"location": "../e.data"}, "outside the folder"),
        ({"location": "lost.data"}, "is missing"),
        ({"offset": "4096"}, "bytes"),
    ],
)
def test_broken_external_data_is_refused(tmp_path, changes, words):
    with pytest.raises(GraphError, match=words):
        graph.load(external(tmp_path, **changes))


def test_external_data_goes_in_and_out(tmp_path):
    source = graph.load(external(tmp_path))
    out = tmp_path / "out.onnx"
    graph.save(source, out)
    assert same_numbers(graph.normalize(graph.load(out)), model(TEXT))


def test_external_data_with_several_hard_links_is_read(tmp_path):
    """Package installers link files from their cache."""
    path = external(tmp_path)
    data = next(file for file in tmp_path.iterdir() if file != path)
    (tmp_path / "cache").hardlink_to(data)
    assert same_numbers(graph.normalize(graph.load(path)), model(TEXT))


def test_normalizing_twice_changes_nothing(path):
    once = graph.normalize(graph.load(path))
    assert graph.digest(graph.normalize(once)) == graph.digest(once)


def test_the_normalized_model_computes_the_same_behind_the_same_interface(path):
    source = graph.load(path)
    normal = graph.normalize(source)
    assert same_numbers(normal, source)
    for before, after in zip(
        (*source.graph.inputs, *source.graph.outputs), (*normal.graph.inputs, *normal.graph.outputs), strict=True
    ):
        assert (before.name, before.shape, before.type) == (after.name, after.shape, after.type)
    assert all(node.name for node in normal.graph)


def test_batch_normalization_stays_a_node():
    text = (
        "(float[2,3,6,6] x, float[8,3,1,1] w, float[8] g, float[8] c, float[8] m, float[8] var) => (float[2,8,6,6] y) "
        "{ a = Conv(x, w) y = BatchNormalization(a, g, c, m, var) }"
    )
    assert [node.op_type for node in graph.normalize(model(text)).graph] == ["Conv", "BatchNormalization"]


def test_shared_vectors_are_untied_and_shared_matrices_are_not():
    text = (
        "(float[2,8] x, float[8,8] w, float[8] c) => (float[2,8] y) "
        "{ a = MatMul(x, w) b = Add(a, c) r = Relu(b) d = MatMul(r, w) y = Add(d, c) }"
    )
    normal = graph.normalize(model(text, {"c": [0] * 8}))
    shared = [name for name, value in normal.graph.initializers.items() if len(value.uses()) > 1]
    assert len(shared) == 1
    assert normal.graph.initializers[shared[0]].const_value.shape.numpy() == (8, 8)


def test_functions_are_inlined():
    source = proto("(float[2] x) => (float[2] y) { y = local.Twice(x) }")
    function = onnx.helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    source.functions.append(function)
    source.opset_import.append(onnx.helper.make_opsetid("local", 1))
    normal = graph.normalize(ir.from_proto(source))
    assert not normal.functions
    assert all(node.domain == "" for node in normal.graph)


def test_half_precision_weights_stay_halves():
    text = "(float[2,8] x, float16[8,8] w) => (float[2,8] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    normal = graph.normalize(model(text))
    assert normal.graph.initializers["w"].const_value.dtype == ir.DataType.FLOAT16


def test_quantized_weights_stay_integers():
    text = (
        "(float[2,8] x, int8[8,8] w, float var, int8 z) => (float[2,8] y) "
        "{ f = DequantizeLinear(w, var, z) y = MatMul(x, f) }"
    )
    assert graph.normalize(model(text)).graph.initializers["w"].const_value.dtype == ir.DataType.INT8


def test_saving_is_all_or_nothing(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(
        "onnxprune.system.atomic_files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(UsageError, match="No space left"):
        graph.save(graph.load(path), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_saving_needs_its_folder(path, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        graph.save(graph.load(path), tmp_path / "no" / "m.onnx")


def test_tied_initializers_are_one_again():
    text = (
        "(float[2,8] x, float[8,8] w, float[8] c, float[8,8] v, float[8] d) => (float[2,8] y) "
        "{ a = MatMul(x, w) b = Add(a, c) r = Relu(b) e = MatMul(r, v) y = Add(e, d) }"
    )
    source = model(text)
    source.graph.initializers["v"].const_value = source.graph.initializers["w"].const_value
    graph.tie(source)
    assert set(source.graph.initializers) == {"w", "c", "d"}


def test_sizes_of_minus_one_are_not_reckoned_with():
    """Shape inference made 0 of -1 by a pooling, and onnxruntime refused the pruned model for it."""
    given = proto(
        "(float[n,3,h,w] x, float[4,3,1,1] k) => (float[n,4,p,q] y) "
        "{ a = Conv(x, k) b = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a) y = Relu(b) }"
    )
    for value in (*given.graph.input, *given.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = -1
    found = ir.to_proto(graph.normalize(ir.from_proto(given)))
    sizes = [
        d.dim_value for v in found.graph.value_info for d in v.type.tensor_type.shape.dim if d.HasField("dim_value")
    ]
    assert min(sizes, default=1) > 0
    assert [d.dim_value for d in found.graph.input[0].type.tensor_type.shape.dim] == [-1, 3, -1, -1]


def test_a_map_of_an_input_is_refused_by_name(tmp_path):
    tensor = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3])
    kind = helper.make_map_type_proto(
        onnx.TensorProto.INT64, helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
    )
    output = helper.make_value_info("p", helper.make_sequence_type_proto(kind))
    node = helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    path = tmp_path / "map.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [tensor], [output]), opset_imports=opsets), path)
    with pytest.raises(GraphError, match="'p' is a map"):
        graph.load(path)


# Damaged files -----------------------------------------------------------------------------------------------------


def function_model(*nodes, opset=17):
    """A model that calls F of the domain my, made of `nodes`."""
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    call = helper.make_node("F", ["x"], ["y"], domain="my")
    made = helper.make_function("my", "F", ["a"], ["b"], nodes, imports)
    return helper.make_model(
        helper.make_graph([call], "g", values[:1], values[1:]), opset_imports=imports, functions=[made], ir_version=8
    )


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([helper.make_node("F", ["a"], ["b"], domain="my")], "cannot be written out (Cyclic dependency"),
        ([helper.make_node("Relu", ["nowhere"], ["b"])], "cannot be written out ("),
        ([helper.make_node("Relu", ["a"], ["c"])], "the graph is broken ("),
    ],
    ids=["calls itself", "reads from nowhere", "lacks its output"],
)
def test_broken_functions_are_refused_in_one_line(tmp_path, nodes, told):
    onnx.save(function_model(*nodes), tmp_path / "m.onnx")
    with pytest.raises(GraphError) as caught:
        graph.load(tmp_path / "m.onnx")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"location": "w.bin", "offset": "abc"}, "has offset 'abc', which is no number of bytes"),
        ({"location": "w.bin", "length": "0x10"}, "has length '0x10', which is no number of bytes"),
        ({"location": "w.bin", "length": "-4"}, "has length '-4'"),
        ({"location": "w\0.bin"}, r"'w\0.bin' of 'w1' is missing"),
    ],
)
def test_entries_of_external_data_are_read_strictly(tmp_path, entries, told):
    made = filled(CNN)
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    onnx.save(made, tmp_path / "m.onnx")
    (tmp_path / "w.bin").write_bytes(bytes(864))
    with pytest.raises(GraphError) as caught:
        graph.load(tmp_path / "m.onnx")
    assert told in str(caught.value)
