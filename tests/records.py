"""One record per operator and variant: a small model as ONNX text, and exactly what the analysis must say of it.

`free` names every free Dim with its size, with a '~' in front where it is reduced; `frozen` holds words that must
stand in the reasons of the frozen ones. A rule that couples too much gives fewer free Dims, and is caught here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Record:
    name: str  # operator, then what is special
    text: str
    free: Mapping[str, int]
    frozen: tuple[str, ...] = ()
    constants: Mapping[str, object] = field(default_factory=dict)
    opset: int = 18
    random: bool = False  # the operator draws random numbers, so cut and mask cannot be compared
    domain: str = ""

    @property
    def op_type(self) -> str:
        return self.name.split()[0]


RECORDS: list[Record] = []


def record(name: str, text: str, free: Mapping[str, int], *frozen: str, **rest: object) -> None:
    RECORDS.append(Record(name, text, dict(free), frozen, **rest))  # type: ignore[arg-type]


def image(body: str, extra: str = "", out: int = 8, size: str = "6,6") -> str:
    """x -> Conv w -> a (2, 8, 6, 6) -> `body` -> b (2, out, ...) -> Conv v -> y."""
    more = f", {extra}" if extra else ""
    return (
        f"(float[2,3,{size}] x, float[8,3,1,1] w, float[5,{out},1,1] v{more}) => (float[p,q,r,s] y) "
        f"{{ a = Conv(x, w) {body} y = Conv(b, v) }}"
    )


def tokens(body: str, extra: str = "", out: int = 8, kind: str = "float") -> str:
    """x (2, 6, 4) -> MatMul w -> a (2, 6, 8) -> `body` -> b (..., out) -> MatMul v -> y."""
    more = f", {extra}" if extra else ""
    return (
        f"({kind}[2,6,4] x, {kind}[4,8] w, {kind}[{out},5] v{more}) => ({kind}[p,q,r] y) "
        f"{{ a = MatMul(x, w) {body} y = MatMul(b, v) }}"
    )


# Elementwise ----------------------------------------------------------------------------------------------------

PLAIN = (
    "Abs Asin Asinh Atan Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor HardSigmoid "
    "HardSwish Identity LeakyRelu Mish "
    "Neg Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Tan Tanh ThresholdedRelu Acos Atanh"
).split()
for op in PLAIN:
    text = image(f"t = Tanh(a) b = {op}(t)") if op[-3:] in ("cos", "sin", "anh") else image(f"b = {op}(a)")
    record(op, text, {"w": 8})
record("Gelu", image("b = Gelu(a)"), {"w": 8}, opset=20)
record("Swish", image("b = Swish(a)"), {"w": 8}, opset=24)
record("Sqrt", image("t = Abs(a) b = Sqrt(t)"), {"w": 8})
for op in ("Log", "Reciprocal", "Acosh"):  # no number at zero: the masked twin computes them over kept channels
    record(op, image(f"one = Constant<value = float {{1.5}}>() t = Abs(a) s = Max(t, one) b = {op}(s)"), {"w": 8})
record("Log of zero", image("t = Abs(a) b = Log(t)"), {"~w": 8})
record("Reciprocal of zero", image("b = Reciprocal(a)"), {"~w": 8})
record("Cast", image("t = Cast<to = 11>(a) b = Cast<to = 1>(t)"), {"w": 8})
record("CastLike", image("b = CastLike(a, x)"), {"w": 8})
for op in ("IsInf", "IsNaN"):
    record(op, image(f"t = {op}(a) b = Cast<to = 1>(t)"), {"w": 8})
record("Not", image("t = IsNaN(a) s = Not(t) b = Cast<to = 1>(s)"), {"w": 8})
record("BitwiseNot", image("t = Cast<to = 6>(a) s = BitwiseNot(t) b = Cast<to = 1>(s)"), {"w": 8})
record("Bernoulli", image("t = Sigmoid(a) b = Bernoulli(t)"), {}, "random numbers", random=True)
dropped = image("b = Dropout(a, r, t)", "float r, bool t")
record("Dropout in training mode", dropped, {}, "random numbers", constants={"t": True}, random=True)
record("Dropout not in training mode", dropped, {"w": 8}, constants={"t": False})

for op in ("Add", "Sub", "Mul", "Max", "Min", "Mean", "Sum", "Div", "Pow", "Mod"):
    special = {"Mod": "<fmod = 1>"}.get(op, "")
    second = {"Div": "e = Exp(c)", "Mod": "e = Exp(c)", "Pow": "e = Constant<value = float {2.0}>()"}.get(
        op, "e = Tanh(c)"
    )
    record(
        f"{op} of two branches",
        image(f"c = Conv(x, u) {second} b = {op}{special}(a, e)", "float[8,3,1,1] u"),
        {"w": 8, "u": 8} if op == "Pow" else {"w": 8},
    )
record("Add of a bias", image("b = Add(a, u)", "float[8,1,1] u"), {"w": 8})
record("Add of one number", image("b = Add(a, u)", "float[1] u"), {"w": 8})
record("Div by a vector", image("b = Div(a, var)", "float[8,1,1] var"), {"~w": 8})
record("Pow to a negative power", image("b = Pow(a, e)", "float e"), {"~w": 8}, constants={"e": -1})
for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    record(op, image(f"c = Conv(x, u) t = {op}(a, c) b = Cast<to = 1>(t)", "float[8,3,1,1] u"), {"w": 8})
for op in ("And", "Or", "Xor"):
    body = f"c = Conv(x, u) s = IsNaN(a) r = Greater(a, c) t = {op}(s, r) b = Cast<to = 1>(t)"
    record(op, image(body, "float[8,3,1,1] u"), {"w": 8})
for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
    body = f"c = Conv(x, u) s = Cast<to = 6>(a) r = Cast<to = 6>(c) t = {op}(s, r) b = Cast<to = 1>(t)"
    record(op, image(body, "float[8,3,1,1] u"), {"w": 8})
body = (
    "c = Abs(a) s = Cast<to = 13>(c) r = Constant<value = uint64 {1}>() t = "
    'BitShift<direction = "LEFT">(s, r) b = Cast<to = 1>(t)'
)
record("BitShift", image(body), {"w": 8})
record("Where", image("c = Conv(x, u) t = Greater(a, c) b = Where(t, a, c)", "float[8,3,1,1] u"), {"w": 8})
record("PRelu", image("b = PRelu(a, u)", "float[8,1,1] u"), {"w": 8})
record("PRelu with one slope", image("b = PRelu(a, u)", "float[1] u"), {"w": 8})
record(
    "Mul by a squeeze-and-excite gate",
    image(
        "p = GlobalAveragePool(a) q = Conv(p, u) r = Conv(q, t) g = Sigmoid(r) b = Mul(a, g)",
        "float[4,8,1,1] u, float[8,4,1,1] t",
    ),
    {"w": 8, "u": 4},
)

# Convolutions and poolings ------------------------------------------------------------------------------------------

record(
    "Conv",
    image("b = Conv<pads = [1, 1, 1, 1]>(a, u, c)", "float[4,8,3,3] u, float[4] c", out=4),
    {"w": 8, "u": 4},
    "kernel positions",
)
record("Conv depthwise", image("b = Conv<group = 8>(a, u)", "float[8,1,3,3] u"), {"w": 8})
record(
    "Conv depthwise with a multiplier",
    image("b = Conv<group = 8>(a, u)", "float[16,1,3,3] u", out=16),
    {"w": 8, "u": 2},
)
record("Conv grouped", image("b = Conv<group = 2>(a, u)", "float[6,4,3,3] u", out=6), {"w": 2, "w#2": 4, "u": 3})
record(
    "Conv over channels",
    image(
        "p = GlobalAveragePool(a) q = Reshape(p, s) r = Conv<pads = [1, 1]>(q, u) g = Sigmoid(r) "
        "h = Reshape(g, t) b = Mul(a, h)",
        "float[1,1,3] u, int64[3] s, int64[4] t",
    ),
    {"w": 8},
    constants={"s": [2, 1, 8], "t": [2, 8, 1, 1]},
)
record(
    "Conv in one dimension",
    "(float[2,3,9] x, float[8,3,3] w, float[5,8,1] v) => (float[p,q,r] y) { a = Conv(x, w) y = Conv(a, v) }",
    {"w": 8},
    "kernel positions",
)
record(
    "ConvInteger",
    "(uint8[2,3,6,6] x, int8[8,3,1,1] w, float[5,8,1,1] v) => (float[p,q,r,s] y) { a = "
    "ConvInteger(x, w) b = Cast<to = 1>(a) y = Conv(b, v) }",
    {"w": 8},
)
record(
    "ConvInteger with zero points",
    "(uint8[2,3,6,6] x, uint8[8,3,1,1] w, uint8 az, uint8 wz, float[5,8,1,1] v) => (float[p,q,r,s] y) { a = "
    "ConvInteger(x, w, az, wz) b = Cast<to = 1>(a) y = Conv(b, v) }",
    {"w": 8},
    constants={"az": 7, "wz": 9},
)
record(
    "ConvTranspose",
    image("b = ConvTranspose<strides = [2, 2]>(a, u, c)", "float[8,4,2,2] u, float[4] c", out=4),
    {"w": 8, "u": 4},
)
record(
    "ConvTranspose grouped",
    image("b = ConvTranspose<group = 2>(a, u)", "float[8,3,2,2] u", out=6),
    {"w": 2, "w#2": 4, "u": 3},
)
record("ConvTranspose depthwise", image("b = ConvTranspose<group = 8>(a, u)", "float[8,1,2,2] u"), {"w": 8})
record(
    "DeformConv",
    image("o = Conv(x, t) b = DeformConv(a, u, o)", "float[4,8,1,1] u, float[2,3,1,1] t", out=4),
    {"w": 8, "u": 4},
    "sampling offsets",
    opset=19,
)
for op in ("MaxPool", "AveragePool", "LpPool"):
    record(op, image(f"b = {op}<kernel_shape = [2, 2]>(a)"), {"w": 8})
record(
    "MaxPool with indices",
    image("b, i = MaxPool<kernel_shape = [2, 2]>(a) j = Cast<to = 1>(i) k = Add(b, j) z = Identity(k)").replace(
        "y = Conv(b", "y = Conv(k"
    ),
    {},
    "indices of the flattened tensor",
)
for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    record(op, image(f"b = {op}(a)"), {"w": 8})
record(
    "MaxUnpool",
    image(
        "p, i = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a) b = MaxUnpool<kernel_shape = "
        "[2, 2], strides = [2, 2]>(p, i)"
    ),
    {},
    "indices of the flattened tensor",
)
record(
    "MaxRoiPool",
    image("b = MaxRoiPool<pooled_shape = [2, 2]>(a, r)", "float[1,5] r"),
    {},
    "flattened",
    constants={"r": [0, 0, 0, 3, 3]},
)
record(
    "RoiAlign",
    image("b = RoiAlign<output_height = 2, output_width = 2>(a, r, i)", "float[2,4] r, int64[2] i"),
    {"w": 8},
    constants={"r": [[0, 0, 3, 3], [1, 1, 4, 4]], "i": [0, 1]},
)
record("Resize", image("b = Resize(a, , s)", "float[4] s"), {"w": 8}, constants={"s": [1, 1, 2, 2]})
record("Resize to sizes", image("b = Resize(a, , , s)", "int64[4] s"), {"w": 8}, constants={"s": [2, 8, 9, 9]})
record("Upsample", image("b = Upsample(a, s)", "float[4] s"), {"w": 8}, constants={"s": [1, 1, 2, 2]}, opset=9)
record("GridSample", image("b = GridSample(a, g)", "float[2,3,3,2] g"), {"w": 8}, "sampled positions")
record(
    "AffineGrid",
    "(float[2,2,3] x, float[2,2] w, int64[4] s) => (float[p,q,r,t] y) { a = MatMul(w, x) y = AffineGrid(a, s) }",
    {},
    "coordinates",
    constants={"s": [2, 3, 4, 4]},
    opset=20,
)

# Matrices -----------------------------------------------------------------------------------------------------------

DENSE = "(float[2,4] x, float[4,8] w, float[8] c, float[5,8] v{more}) => (float[p,q] y) {{ {body} }}"
record("Gemm", DENSE.format(more="", body="a = Gemm(x, w, c) y = Gemm<transB = 1>(a, v)"), {"w": 8})
record(
    "Gemm transposed",
    DENSE.format(
        more="", body="t = Gemm<transA = 1, transB = 1>(w, x) s = Transpose(t) a = Add(s, c) y = Gemm<transB = 1>(a, v)"
    ),
    {"w": 8},
)
record("MatMul", tokens("b = MatMul(a, u)", "float[8,6] u", out=6), {"w": 8, "u": 6})
record(
    "MatMul with a vector",
    "(float[2,6,4] x, float[4,8] w, float[8] v) => (float[p,q] y) { a = MatMul(x, w) y = MatMul(a, v) }",
    {"w": 8},
)
record(
    "MatMul of two activations",
    tokens(
        "k = MatMul(x, u) t = Transpose<perm = [0, 2, 1]>(k) s = MatMul(a, t) b = MatMul(s, c)",
        "float[4,8] u, float[6,7] c",
        out=7,
    ),
    {"w": 8, "c": 7},
)
record(
    "MatMul of two activations that are not zero",
    tokens(
        "k = MatMul(x, u) e = Exp(a) f = Exp(k) t = Transpose<perm = [0, 2, 1]>(f) s = MatMul(e, t) b = MatMul(s, c)",
        "float[4,8] u, float[6,7] c",
        out=7,
    ),
    {"~w": 8, "c": 7},
)
record(
    "MatMulInteger",
    "(uint8[2,4] x, uint8[4,8] w, uint8 az, uint8 bz, float[8,5] v) => (float[p,q] y) { a = "
    "MatMulInteger(x, w, az, bz) b = Cast<to = 1>(a) y = MatMul(b, v) }",
    {"w": 8},
    constants={"az": 7},
)
record(
    "MatMulInteger per column",
    "(uint8[2,4] x, uint8[4,8] w, uint8 az, uint8[8] bz, float[8,5] v) => (float[p,q] y) { a = "
    "MatMulInteger(x, w, az, bz) b = Cast<to = 1>(a) y = MatMul(b, v) }",
    {"w": 8},
    constants={"az": 7},
)
record("Einsum", tokens('b = Einsum<equation = "bld,de->ble">(a, u)', "float[8,6] u", out=6), {"w": 8, "u": 6})
record(
    "Einsum of one operand", tokens('t = Einsum<equation = "bld->bdl">(a) b = Transpose<perm = [0, 2, 1]>(t)'), {"w": 8}
)
record(
    "Einsum that sums one operand",
    tokens('b = Einsum<equation = "bld,e->ble">(a, u)', "float[6] u", out=6),
    {"w": 8, "u": 6},
)
record(
    "Einsum of three operands",
    tokens('b = Einsum<equation = "bld,de,e->ble">(a, u, c)', "float[8,6] u, float[6] c", out=6),
    {"w": 8, "u": 6},
)
record(
    "Einsum of attention",
    tokens(
        'k = MatMul(x, u) s = Einsum<equation = "bld,bmd->blm">(a, k) b = MatMul(s, c)',
        "float[4,8] u, float[6,7] c",
        out=7,
    ),
    {"w": 8, "c": 7},
)
record(
    "Einsum with an ellipsis",
    tokens('b = Einsum<equation = "...d,de->...e">(a, u)', "float[8,6] u", out=6),
    {"w": 8, "u": 6},
)
record(
    "Einsum of an outer product",
    tokens(
        'c = MatMul(x, u) t = Einsum<equation = "bli,blj->blij">(a, c) b = Reshape(t, s)',
        "float[4,3] u, int64[3] s",
        out=24,
    ),
    {"w": 8, "u": 3},
    constants={"s": [2, 6, 24]},
)

# Normalizations -----------------------------------------------------------------------------------------------------

record(
    "BatchNormalization",
    image("b = BatchNormalization(a, g, c, m, var)", "float[8] g, float[8] c, float[8] m, float[8] var"),
    {"w": 8},
)
record("InstanceNormalization", image("b = InstanceNormalization(a, g, c)", "float[8] g, float[8] c"), {"w": 8})
record(
    "GroupNormalization",
    image("b = GroupNormalization<num_groups = 2>(a, g, c)", "float[8] g, float[8] c"),
    {"w": 2, "~w#2": 4},
    opset=21,
)
record(
    "GroupNormalization decomposed",
    image(
        "r = Reshape(a, s) n = InstanceNormalization(r, g, c) q = Shape(a) m = Reshape(n, q) b = Mul(m, u)",
        "int64[3] s, float[2] g, float[2] c, float[8,1,1] u",
    ),
    {"w": 2, "~w#2": 4},
    constants={"s": [0, 2, -1]},
)
DYNAMIC_NORM = (  # channels and time are one axis in front of the norm, and time changes from run to run
    "(float[n,3,t] x, float[8,3,5] w, int64[3] s, float[{g}] g, float[{g}] c, float[8,1] u, float[5,8,1] v) "
    "=> (float[n,5,q] y) { a = Conv(x, w) r = Reshape(a, s) n1 = InstanceNormalization(r, g, c) "
    "q = Shape(a) m = Reshape(n1, q) b = Mul(m, u) y = Conv(b, v) }"
)
for groups, free in ((1, {"~w": 8}), (2, {"w": 2, "~w#2": 4})):
    text = DYNAMIC_NORM.replace("{g}", str(groups))
    record(f"InstanceNormalization of {groups} x channels x time", text, free, constants={"s": [0, groups, -1]})
record(
    "InstanceNormalization of a sum of channels x time",
    "(float[n,3,t] x, float[8,3,1] w, float[6,3,1] z, int64[3] s, float[1] g, float[1] c, float[14,1] u, "
    "float[5,14,1] v) => (float[n,5,q] y) { a1 = Conv(x, w) a2 = Conv(x, z) a = Concat<axis = 1>(a1, a2) "
    "r = Reshape(a, s) n1 = InstanceNormalization(r, g, c) q = Shape(a) m = Reshape(n1, q) b = Mul(m, u) "
    "y = Conv(b, v) }",
    {"~w": 8, "~z": 6},
    constants={"s": [0, 1, -1]},
)
record("LayerNormalization", tokens("b = LayerNormalization(a, g, c)", "float[8] g, float[8] c"), {"~w": 8})
record("RMSNormalization", tokens("b = RMSNormalization(a, g)", "float[8] g"), {"~w": 8}, opset=23)
record("SimplifiedLayerNormalization", tokens("b = SimplifiedLayerNormalization(a, g)", "float[8] g"), {"~w": 8})
record("LpNormalization", tokens("b = LpNormalization(a)"), {"~w": 8})
record("MeanVarianceNormalization", image("b = MeanVarianceNormalization(a)"), {"~w": 8})
record("LRN", image("b = LRN<size = 3>(a)"), {"w": 8})
record("LRN of what is not zero", image("e = Exp(a) b = LRN<size = 3>(e)"), {"~w": 8})
record(
    "PRelu of what has no weights",
    "(float[2,3,4,4] x, int64[5] e, int64[4] f, int64[5] s, float[12,1,1] p, float[5,12,1,1] v) => (float[q,r,t,u] y) "
    "{ a = Reshape(x, s) b = Expand(a, e) c = Reshape(b, f) d = PRelu(c, p) l = LRN<size = 3>(d) y = Conv(l, v) }",
    {"~p": 4},
    constants={"s": [0, 3, 1, 4, 4], "e": [1, 1, 4, 1, 1], "f": [0, 12, 4, 4]},
)
record(
    "LayerNormalization with a bias, summed over heads",
    "(float[2,6,4] x, float[4,8] w, int64[4] s, float[2] g, float[2] c, int64[1] k, float[2,5] v) => (float[q,r,t] y) "
    "{ a = MatMul(x, w) b = Reshape(a, s) d = LayerNormalization(b, g, c) e = ReduceSum<keepdims = 0>(d, k) "
    "y = MatMul(e, v) }",
    {"~w": 4, "~w#2": 2},
    constants={"s": [2, 6, 4, 2], "k": [2]},
)
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    record(op, tokens(f"b = {op}<axis = 1>(a)"), {"w": 8})
    record(f"{op} over channels", tokens(f"b = {op}(a)"), {}, "runs over it")
record("Softmax before opset 13", tokens("b = Softmax<axis = 2>(a)"), {}, "runs over it", opset=11)

# Reductions and searches --------------------------------------------------------------------------------------------

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSumExp")
for op in (*SUMS, *OTHERS, "ReduceLogSum"):
    inner = "e = Exp(a)" if op == "ReduceLogSum" else "e = Identity(a)"
    record(op, tokens(f"{inner} b = {op}(e, s)", "int64[1] s"), {"w": 8}, constants={"s": [1]})
    over = f"{inner} r = {op}(e, s) q = MatMul(x, u) b = Mul(q, r)"
    marked = "w" if op in SUMS else "~w"
    record(
        f"{op} over channels",
        tokens(over, "int64[1] s, float[4,7] u", out=7),
        {marked: 8, "u": 7},
        constants={"s": [2]},
    )
record("ReduceMean with attributes", tokens("b = ReduceMean<axes = [1]>(a)"), {"w": 8}, opset=13)
for op in ("ArgMax", "ArgMin"):
    record(op, tokens(f"i = {op}<axis = 1>(a) b = Cast<to = 1>(i)"), {"w": 8})
    record(
        f"{op} over channels",
        tokens(f"i = {op}<axis = 2, keepdims = 0>(a) y1 = Cast<to = 1>(i) b = Mul(a, a)"),
        {},
        "gives positions on it",
    )
record("CumSum", tokens("b = CumSum(a, s)", "int64 s"), {"w": 8}, constants={"s": 1})
record("CumSum over channels", tokens("b = CumSum(a, s)", "int64 s"), {}, "runs along it", constants={"s": 2})
record("TopK", tokens("b, i = TopK<axis = 1>(a, s)", "int64[1] s"), {"w": 8}, constants={"s": [3]})
record("Trilu", tokens("b = Trilu(a)"), {}, "compares positions")
record(
    "OneHot",
    "(int64[2,3] x, int64 d, float[2] z, float[6,5] v) => (float[p,q,r] y) { b = OneHot(x, d, z) y = MatMul(b, v) }",
    {},
    "classes",
    constants={"d": 6},
)

# Shapes -------------------------------------------------------------------------------------------------------------

record(
    "Reshape to heads",
    tokens("h = Reshape(a, s) t = Reshape(h, r) b = Mul(t, u)", "int64[4] s, int64[3] r, float[8] u"),
    {"w": 2, "w#2": 4},
    constants={"s": [2, 6, 2, 4], "r": [0, 0, -1]},
)
record(
    "Reshape",
    image("r = Reshape(a, s) b = Reshape(r, t)", "int64[3] s, int64[4] t"),
    {"w": 8},
    constants={"s": [2, 8, 36], "t": [2, 8, 6, 6]},
)
record(
    "Flatten",
    "(float[2,3,4,4] x, float[8,3,1,1] w, float[128,5] v) => (float[p,q] y) { a = Conv(x, w) "
    "f = Flatten(a) y = MatMul(f, v) }",
    {"w": 8},
)
record(
    "Squeeze",
    "(float[2,3,4,4] x, float[8,3,1,1] w, int64[2] s, float[8,5] v) => (float[p,q] y) { a = "
    "Conv(x, w) g = GlobalAveragePool(a) f = Squeeze(g, s) y = MatMul(f, v) }",
    {"w": 8},
    constants={"s": [2, 3]},
)
record("Unsqueeze", tokens("t = Unsqueeze(a, s) b = Squeeze(t, s)", "int64[1] s"), {"w": 8}, constants={"s": [1]})
record("Transpose", tokens("t = Transpose<perm = [2, 0, 1]>(a) b = Transpose<perm = [1, 2, 0]>(t)"), {"w": 8})
record("Concat", image("c = Conv(x, u) b = Concat<axis = 1>(a, c)", "float[3,3,1,1] u", out=11), {"w": 8, "u": 3})
record(
    "Concat of a class token",
    tokens("c = Expand(u, s) b = Concat<axis = 1>(c, a)", "float[1,1,8] u, int64[3] s"),
    {"w": 8},
    constants={"s": [2, 1, 1]},
)
record(
    "Split",
    image("b, c = Split<axis = 1>(a, s) z = Relu(c) y2 = Conv(z, u)", "int64[2] s, float[5,3,1,1] u", out=5).replace(
        "y = Conv(b, v)", "y1 = Conv(b, v) y = Add(y1, y2)"
    ),
    {"w": 5, "w#2": 3},
    constants={"s": [5, 3]},
)
record("Split in halves that meet", image("c, d = Split<axis = 1, num_outputs = 2>(a) b = Mul(c, d)", out=4), {"w": 4})
record(
    "Split before opset 13", image("c, d = Split<axis = 1>(a) b = Concat<axis = 1>(d, c)"), {"w": 4, "w#2": 4}, opset=11
)
record(
    "Split of stacked q, k, v",
    tokens(
        "q, k, v1 = Split<axis = 2, num_outputs = 3>(a) t = Transpose<perm = [0, 2, 1]>(k) s = "
        "MatMul(q, t) p = Softmax(s) b = MatMul(p, v1)",
        out=4,
    )
    .replace("w,", "w,")
    .replace("[4,8] w", "[4,12] w"),
    {"w": 4, "w#2": 4},
)
record(
    "Slice",
    image("b = Slice(a, s, e, k)", "int64[1] s, int64[1] e, int64[1] k", out=5),
    {"w": 2, "w#2": 5},
    constants={"s": [2], "e": [7], "k": [1]},
)
record(
    "Slice of interleaved pairs",
    tokens(
        "c = Slice(a, s, e, k, t) d = Slice(a, o, e, k, t) n = Neg(d) b = Concat<axis = 2>(n, c)",
        "int64[1] s, int64[1] o, int64[1] e, int64[1] k, int64[1] t",
    ),
    {"w": 4},
    "strided slices",
    constants={"s": [0], "o": [1], "e": [8], "k": [2], "t": [2]},
)
record(
    "Slice backwards",
    tokens("b = Slice(a, s, e, k, t)", "int64[1] s, int64[1] e, int64[1] k, int64[1] t"),
    {},
    "a strided slice",
    constants={"s": [-1], "e": [-100], "k": [2], "t": [-1]},
)
record(
    "Slice that rolls",
    image(
        "c = Slice(a, s, e, k) d = Slice(a, e, g, k) b = Concat<axis = 2>(d, c)",
        "int64[1] s, int64[1] e, int64[1] g, int64[1] k",
    ),
    {"w": 8},
    constants={"s": [0], "e": [2], "g": [6], "k": [2]},
)
record(
    "Slice before opset 10",
    image("b = Slice<axes = [1], starts = [2], ends = [7]>(a)", out=5),
    {"w": 2, "w#2": 5},
    opset=9,
)
record(
    "Pad of channels with zeros",
    image("b = Pad(a, s)", "int64[8] s", out=11),
    {"w": 8, "v": 2},
    constants={"s": [0, 2, 0, 0, 0, 1, 0, 0]},
)
record(
    "Pad by reflection",
    image('b = Pad<mode = "reflect">(a, s)', "int64[8] s"),
    {"w": 8},
    constants={"s": [0, 0, 1, 1, 0, 0, 1, 1]},
)
record("Pad before opset 11", image("b = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(a)"), {"w": 8}, opset=10)
record(
    "Expand",
    tokens("t = Unsqueeze(a, s) e = Expand(t, r) b = Reshape(e, q)", "int64[1] s, int64[4] r, int64[3] q", out=24),
    {"w": 8, "v": 3},
    constants={"s": [2], "r": [2, 6, 3, 8], "q": [2, 6, 24]},
)
record("Tile", tokens("b = Tile(a, s)", "int64[3] s", out=16), {"w": 8}, "repeats", constants={"s": [1, 1, 2]})
record("DepthToSpace", image("b = DepthToSpace<blocksize = 2>(a)", out=2), {"w": 2}, "block positions")
record(
    "DepthToSpace in column order",
    image('b = DepthToSpace<blocksize = 2, mode = "CRD">(a)', out=2),
    {"w": 2},
    "block positions",
)
record("SpaceToDepth", image("b = SpaceToDepth<blocksize = 2>(a)", out=32), {"w": 8}, "block positions")
record("Shape", tokens("q = Shape(a) c = Relu(a) r = Reshape(c, q) b = Mul(r, u)", "float[8] u"), {"w": 8})
record("Shape in arithmetic", tokens("q = Shape<start = 2>(a) f = Cast<to = 1>(q) r = Sqrt(f) b = Div(a, r)"), {"w": 8})
record("Size", tokens("q = Size(a) f = Cast<to = 1>(q) b = Div(a, f)"), {}, "number of elements")
record(
    "ConstantOfShape",
    tokens("z = ConstantOfShape(s) b = Add(a, z)", "int64[3] s"),
    {"w": 8},
    constants={"s": [2, 6, 8]},
)
record(
    "EyeLike",
    "(float[2,4] x, float[4,4] w, float[4,5] v) => (float[p,q] y) { e = EyeLike(w) a = MatMul(x, e) y = MatMul(a, v) }",
    {},
    "compares positions",
)
record(
    "Range",
    (
        "(float[2,6,4] x, float[4,8] w, int64 s, int64 e, int64 d, float[8,5] v) => (float[p,q,r] "
        "y) { i = Range(s, e, d) f = Cast<to = 1>(i) a = MatMul(x, w) b = Add(a, f) y = MatMul(b, "
        "v) }"
    ),
    {},
    "made from numbers",
    constants={"s": 0, "e": 8, "d": 1},
)
for op in ("HannWindow", "HammingWindow", "BlackmanWindow"):
    record(op, tokens(f"h = {op}(s) b = Mul(a, h)", "int64 s"), {}, "made from numbers", constants={"s": 8})
record(
    "MelWeightMatrix",
    "(float[2,9] x, int64 m, int64 d, int64 r, float lo, float hi, float[4,5] v) => "
    "(float[p,q] y) { w = MelWeightMatrix(m, d, r, lo, hi) a = MatMul(x, w) y = MatMul(a, v) "
    "}",
    {},
    "made from numbers",
    constants={"m": 4, "d": 16, "r": 8192, "lo": 0, "hi": 4096},
)
for op in ("RandomNormal", "RandomUniform"):
    record(op, tokens(f"n = {op}<shape = [8]>() b = Add(a, n)"), {}, "made from numbers", random=True)
    record(f"{op}Like", tokens(f"n = {op}Like(a) b = Add(a, n)"), {}, "random numbers", random=True)
record(
    "Multinomial",
    "(float[2,4] x, float[4,8] w, float[1,5] v) => (float[p,q] y) { a = MatMul(x, w) i = "
    "Multinomial(a) f = Cast<to = 1>(i) y = MatMul(f, v) }",
    {},
    "random numbers",
    random=True,
)

# Fourier transforms -------------------------------------------------------------------------------------------------

SPECTRUM = (
    "(float[2,6,4] x, float[4,8] w, int64[1] last, {more}float[8,5] v) => (float[p,q,r] y) {{ a = MatMul(x, w) "
    "u = Unsqueeze(a, last) f = DFT{given} r = ReduceSumSquare<keepdims = 0>(f, last) y = MatMul(r, v) }}"
)
record("DFT", SPECTRUM.format(more="", given="<axis = 1>(u)"), {"w": 8}, constants={"last": [3]})
record(
    "DFT by an axis that is an input",
    SPECTRUM.format(more="int64 axis, ", given="<onesided = 1>(u, , axis)"),
    {"w": 8},
    constants={"last": [3], "axis": 1},
    opset=20,
)
record(
    "DFT over what the weights produce",
    SPECTRUM.format(more="", given="<axis = 2>(u)"),
    {},
    "DFT: transformed",
    constants={"last": [3]},
)
record(
    "STFT",
    "(float[2,4] x, float[4,16] w, int64 step, float[8] window, int64 length, float[2,5] v) => (float[p,q,r,s] y) "
    "{ a = MatMul(x, w) f = STFT(a, step, window, length) y = MatMul(f, v) }",
    {},
    "STFT: cut into frames",
    constants={"step": 4, "length": 8},
)

# Gathers and scatters -------------------------------------------------------------------------------------------------

record(
    "Gather from a table",
    "(int64[2,6] x, float[20,8] w, float[8,5] v) => (float[p,q,r] y) { a = Gather(w, x) y = MatMul(a, v) }",
    {"w": 8},
    "indexed by data",
)
record(
    "Gather from a table that masks by infinity",
    "(int64[2,6] x, float[9,4] t, float[4,8] w, float[8,5] v) => (float[2,6,5] y) "
    "{ e = Gather(t, x) h = MatMul(e, w) c = Clip(h) y = MatMul(c, v) }",
    {"w": 8},
    "infinity",
    constants={"t": [[-float("inf")] * 4, *([float(3 * i - j) for j in range(4)] for i in range(8))]},
)
record(
    "Gather of one position",
    "(float[2,6,4] x, float[4,8] w, int64 i, float[8,5] v) => (float[p,q] y) { a = MatMul(x, "
    "w) b = Gather<axis = 1>(a, i) y = MatMul(b, v) }",
    {"w": 8},
    constants={"i": 0},
)
record(
    "Gather of stacked q, k, v",
    "(float[2,6,4] x, float[4,24] w, int64[4] s, int64[4] p0, int64 i, int64 j, int64 k, "
    "float[8,5] v) => (float[p,q,r,t] y) { a = MatMul(x, w) h = Reshape(a, s) t0 = "
    "Transpose<perm = [2, 0, 1, 3]>(h) q0 = Gather(t0, i) k0 = Gather(t0, j) v0 = Gather(t0, "
    "k) kt = Transpose<perm = [0, 2, 1]>(k0) sc = MatMul(q0, kt) m = MatMul(sc, v0) z = "
    "Unsqueeze(m, i1) y = MatMul(z, v) }".replace("int64 k, ", "int64 k, int64[1] i1, "),
    {"w": 8},
    constants={"s": [2, 6, 3, 8], "p0": [0, 0, 0, 0], "i": 0, "j": 1, "k": 2, "i1": [0]},
)
record(
    "Gather of a range",
    tokens("b = Gather<axis = 2>(a, i)", "int64[3] i", out=3),
    {"w": 2, "w#2": 3, "w#3": 3},
    "numbered anew",
    constants={"i": [2, 3, 4]},
)
record(
    "Gather that shuffles",
    tokens("b = Gather<axis = 2>(a, i)", "int64[8] i"),
    {"w": 2, "w#2": 4},
    "numbered anew",
    constants={"i": [0, 4, 1, 5, 2, 6, 3, 7]},
)
record(
    "Gather that repeats",
    tokens("b = Gather<axis = 2>(a, i)", "int64[16] i", out=16),
    {"w": 8},
    "repeated positions",
    constants={"i": [k // 2 for k in range(16)]},
)
record(
    "Gather that is a reshape",
    tokens("c = Gather<axis = 2>(a, i) b = Reshape(c, s)", "int64[2,4] i, int64[3] s"),
    {"w": 2, "w#2": 4},
    "numbered anew",
    constants={"i": [[0, 1, 2, 3], [4, 5, 6, 7]], "s": [2, 6, -1]},
)
record(
    "Gather without order",
    tokens("b = Gather<axis = 2>(a, i)", "int64[3] i", out=3),
    {},
    "indexed by constants",
    constants={"i": [5, 0, 3]},
)
record(
    "GatherElements",
    tokens("b = GatherElements<axis = 1>(a, i)", "int64[2,6,8] i"),
    {"w": 8},
    "indexes",
    constants={"i": [[[0] * 8] * 6] * 2},
)
record(
    "GatherND",
    tokens("b = GatherND(a, i)", "int64[2,3,2] i"),
    {"w": 8},
    "indexes",
    constants={"i": [[[0, 1], [1, 2], [0, 3]], [[0, 1], [1, 2], [0, 3]]]},
)
record(
    "ScatterND",
    tokens("b = ScatterND(a, i, u)", "int64[1,2] i, float[1,8] u"),
    {"w": 8},
    "indexed by data",
    constants={"i": [[0, 1]]},
)
record(
    "ScatterElements",
    tokens("b = ScatterElements<axis = 1>(a, i, u)", "int64[2,1,8] i, float[2,1,8] u"),
    {"w": 8},
    constants={"i": [[[0] * 8]] * 2},
)
record(
    "Scatter",
    tokens("b = Scatter<axis = 1>(a, i, u)", "int64[2,1,8] i, float[2,1,8] u"),
    {"w": 8},
    constants={"i": [[[0] * 8]] * 2},
    opset=10,
)
record(
    "TensorScatter",
    "(float[2,1,4] x, float[4,8] w, float[2,6,8] c, float[8,5] v, int64[2] i) => "
    "(float[p,q,r] y) { a = MatMul(x, w) b = TensorScatter(c, a, i) y = MatMul(b, v) }",
    {},
    "writes at positions",
    constants={"i": [1, 2]},
    opset=24,
)
record(
    "NonZero",
    tokens("t = Greater(a, u) n = NonZero(t) m = Cast<to = 1>(n) o = ReduceSum(m) b = Mul(a, o)", "float u"),
    {},
    "depends on the data",
)
record("Unique", tokens("n = Unique(a) o = ReduceMax(n) b = Mul(a, o)"), {}, "depends on the data")
record(
    "NonMaxSuppression",
    "(float[1,6,4] x, float[4,4] w, float[1,2,6] s) => (int64[p,q] y) { a = MatMul(x, w) b = "
    "Abs(a) y = NonMaxSuppression(b, s) }",
    {},
    "depends on the data",
)
record(
    "Compress",
    tokens("b = Compress<axis = 1>(a, c)", "bool[6] c"),
    {"w": 8},
    constants={"c": [1, 0, 1, 1, 0, 1]},
)
record(
    "Compress of all positions",
    "(float[2,6,4] x, float[4,8] w, bool[96] c) => (float[p] y) { a = MatMul(x, w) y = Compress(a, c) }",
    {},
    "depends on the data",
    constants={"c": [1, 0, 1] * 32},
)
record(
    "Det", "(float[2,4,4] x, float[4,4] w) => (float[p] y) { a = MatMul(x, w) y = Det(a) }", {}, "depends on the data"
)
record(
    "ReverseSequence",
    tokens("b = ReverseSequence<batch_axis = 0, time_axis = 1>(a, n)", "int64[2] n"),
    {"w": 8},
    constants={"n": [3, 6]},
)
record("StringNormalizer", "(string[2] x) => (string[p] y) { y = StringNormalizer(x) }", {}, random=True)

# Attention ------------------------------------------------------------------------------------------------------------

QKV = (
    "(float[2,6,8] x, float[8,8] w, float[8,8] k, float[8,8] u, float[8,5] v{more}) => "
    "(float[p,q,r] y) {{ q1 = MatMul(x, w) k1 = MatMul(x, k) v1 = MatMul(x, u) {body} y = "
    "MatMul(b, v) }}"
)
record(
    "Attention",
    QKV.format(more="", body="b = Attention<q_num_heads = 2, kv_num_heads = 2>(q1, k1, v1)"),
    {"w": 2, "w#2": 4, "u": 4},
    opset=23,
)
record(
    "Attention with a scale and a mask",
    QKV.format(
        more=", float[6,6] m", body="b = Attention<q_num_heads = 2, kv_num_heads = 2, scale = 0.3>(q1, k1, v1, m)"
    ),
    {"w": 2, "w#2": 4, "u": 4},
    opset=23,
)
record(
    "Attention with grouped queries",
    QKV.format(more="", body="b = Attention<q_num_heads = 4, kv_num_heads = 2>(q1, k1, v1)").replace(
        "float[8,8] k, float[8,8] u", "float[8,4] k, float[8,4] u"
    ),
    {"w": 2, "w#2": 2, "w#3": 2, "u": 2},
    opset=23,
)
heads = "".join(f"{t}h = Reshape({t}1, s) {t}t = Transpose<perm = [0, 2, 1, 3]>({t}h) " for t in "qkv")
record(
    "Attention in four dimensions",
    QKV.format(
        more=", int64[4] s, int64[3] r",
        body=heads + "o = Attention(qt, kt, vt) ot = Transpose<perm = [0, 2, 1, 3]>(o) b = Reshape(ot, r)",
    ),
    {"w": 2, "w#2": 4, "u": 4},
    constants={"s": [0, 0, 2, 4], "r": [0, 0, -1]},
    opset=23,
)
record(
    "Softmax of attention by hand",
    QKV.format(
        more=", int64[4] s, int64[3] r",
        body=heads + "kk = Transpose<perm = [0, 1, 3, 2]>(kt) sc = MatMul(qt, kk) p = Softmax(sc) o = "
        "MatMul(p, vt) ot = Transpose<perm = [0, 2, 1, 3]>(o) b = Reshape(ot, r)",
    ),
    {"w": 2, "w#2": 4, "u": 4},
    constants={"s": [0, 0, 2, 4], "r": [0, 0, -1]},
)
rotary = (
    "qh = Reshape(q1, s) qt = Transpose<perm = [0, 2, 1, 3]>(qh) ro = RotaryEmbedding{a}(qt, "
    "c, n) rt = Transpose<perm = [0, 2, 1, 3]>(ro) rr = Reshape(rt, r) b = Add(rr, k1)"
)
more = ", int64[4] s, int64[3] r, float[2,6,2] c, float[2,6,2] n"

# Recurrent ------------------------------------------------------------------------------------------------------------

for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    for directions, direction in ((1, "forward"), (2, "bidirectional")):
        body = (
            f"(float[5,2,4] x, float[6,4] w, float[{directions},{gates * 3},6] k, float[{directions},{gates * 3},3] u, "
            f"float[{directions},{2 * gates * 3}] c, int64[3] s, float[{3 * directions},5] v) => (float[p,q,r] y) {{ "
            f"a1 = Transpose<perm = [1, 0]>(w) a = MatMul(x, a1) "
            f'h = {op}<hidden_size = 3, direction = "{direction}">(a, k, u, c) '
            f"t = Transpose<perm = [0, 2, 1, 3]>(h) b = Reshape(t, s) y = MatMul(b, v) }}"
        )
        record(
            f"{op} {direction}",
            body,
            {"w": 6, "k": 3},
            "directions" if directions > 1 else "gates",
            constants={"s": [5, 2, 3 * directions]},
        )

# Quantized ------------------------------------------------------------------------------------------------------------

QDQ = (
    "(float[2,3,6,6] x, int8[8,3,1,1] w, float{n} var, int8{n} z, float[5,8,1,1] v) => (float[p,q,r,s] y) "
    "{{ d = DequantizeLinear<axis = 0>(w, var, z) a = Conv(x, d) y = Conv(a, v) }}"
)
record("DequantizeLinear", QDQ.format(n=""), {"w": 8})
record("DequantizeLinear per channel", QDQ.format(n="[8]"), {"var": 8})
record(
    "DequantizeLinear in blocks",
    "(float[2,6] x, int8[6,8] w, float[3,8] var, int8[3,8] z, float[8,5] v) => (float[p,q] y) "
    "{ d = DequantizeLinear<axis = 0, block_size = 2>(w, var, z) a = MatMul(x, d) y = MatMul(a, v) }",
    {"w": 8},
    opset=21,
)
record(
    "QuantizeLinear",
    image("t = QuantizeLinear(a, var, z) b = DequantizeLinear(t, var, z)", "float var, uint8 z"),
    {"w": 8},
    constants={"z": 128, "var": 0.1},
)
record(
    "DynamicQuantizeLinear",
    "(float[2,4] x, float[4,8] w, uint8[8,6] u, uint8 z, float[6,5] v) => (float[p,q] y) "
    "{ a = MatMul(x, w) t, s, o = DynamicQuantizeLinear(a) i = MatMulInteger(t, u, o, z) f = "
    "Cast<to = 1>(i) b = Mul(f, s) y = MatMul(b, v) }",
    {"w": 8, "u": 6},
    constants={"z": 128},
)
QLINEAR = (
    "(float[2,3,4,4] x, float s, uint8 z, uint8[8,3,1,1] w, float[5,8,1,1] v) => "
    "(float[p,q,r,t] y) {{ xq = QuantizeLinear(x, s, z) a = QLinearConv(xq, s, z, w, s, z, s, "
    "z) b = DequantizeLinear(a, s, z) y = Conv(b, v) }}"
)
record("QLinearConv", QLINEAR.format(), {}, "convert the model to QDQ", constants={"s": 0.1, "z": 128})
record(
    "QLinearMatMul",
    "(float[2,4] x, float s, uint8 z, uint8[4,8] w, float[8,5] v) => (float[p,q] y) "
    "{ xq = QuantizeLinear(x, s, z) a = QLinearMatMul(xq, s, z, w, s, z, s, z) b = "
    "DequantizeLinear(a, s, z) y = MatMul(b, v) }",
    {},
    "convert the model to QDQ",
    constants={"s": 0.1, "z": 128},
)

# com.microsoft --------------------------------------------------------------------------------------------------------

MS = "com.microsoft"
for op in ("Gelu", "QuickGelu", "FastGelu"):
    record(op, tokens(f"b = com.microsoft.{op}(a)"), {"w": 8}, domain=MS)
for op in ("BiasGelu", "FastGelu"):
    record(f"{op} with a bias", tokens(f"b = com.microsoft.{op}(a, u)", "float[8] u"), {"w": 8}, domain=MS)
record(
    "FusedConv",
    image('b = com.microsoft.FusedConv<activation = "Relu">(a, u, c)', "float[4,8,3,3] u, float[4] c", out=4),
    {"w": 8, "u": 4},
    domain=MS,
)
record(
    "FusedConv with a Sigmoid, summed over",
    "(float[2,3,6,6] x, float[8,3,1,1] w, int64[1] k, float[5,1,1,1] v) => (float[q,r,t,u] y) "
    '{ a = com.microsoft.FusedConv<activation = "Sigmoid">(x, w) b = ReduceSum(a, k) y = Conv(b, v) }',
    {"~w": 8},
    constants={"k": [1]},
    domain=MS,
)
record(
    "FusedGemm",
    DENSE.format(more="", body='a = com.microsoft.FusedGemm<activation = "Relu">(x, w, c) y = Gemm<transB = 1>(a, v)'),
    {"w": 8},
    domain=MS,
)
record(
    "FusedMatMul",
    tokens(
        "k = MatMul(x, u) s = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(a, k) b = MatMul(s, c)",
        "float[4,8] u, float[6,7] c",
        out=7,
    ),
    {"w": 8, "c": 7},
    domain=MS,
)
record(
    "FusedMatMul of a transposed weight",
    tokens("b = com.microsoft.FusedMatMul<transB = 1>(a, u)", "float[7,8] u", out=7),
    {"w": 8, "u": 7},
    domain=MS,
)
record(
    "FusedMatMul of transposed batches",
    tokens(
        "k = MatMul(x, u) s = com.microsoft.FusedMatMul<transBatchA = 1, transA = 1, transBatchB = 1>(a, k) "
        "b = Reshape(s, r)",
        "float[4,8] u, int64[3] r",
        out=8,
    ),
    {"u": 8},
    "graph output",
    constants={"r": [6, 8, 8]},
    domain=MS,
)
for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"):
    record(
        op,
        tokens(f"c = MatMul(x, u) b = com.microsoft.{op}(a, c, g)", "float[4,8] u, float[8] g"),
        {"~w": 8},
        domain=MS,
    )
record("LayerNormalization", tokens("b = LayerNormalization(a, g)", "float[8] g"), {"~w": 8})
record(
    "EmbedLayerNormalization",
    "(int32[2,6] x, int32[2,6] s, float[20,8] w, float[10,8] o, float[2,8] t, float[8] g, "
    "float[8] c, float[8,5] v) => (float[p,q,r] y) { a, m = "
    "com.microsoft.EmbedLayerNormalization(x, s, w, o, t, g, c) y = MatMul(a, v) }",
    {"~w": 8},
    "indexed by data",
    constants={"s": [[0] * 6] * 2},
    domain=MS,
)
record(
    "Attention packed",
    tokens("b = com.microsoft.Attention<num_heads = 2>(a, u, c)", "float[8,24] u, float[24] c"),
    {"w": 8, "u": 2, "u#2": 4},
    domain=MS,
)
record(
    "Attention packed with widths",
    tokens(
        "b = com.microsoft.Attention<num_heads = 2, qkv_hidden_sizes = [8, 8, 4]>(a, u, c)",
        "float[8,20] u, float[20] c",
        out=4,
    ),
    {"w": 8, "u": 2, "u#2": 4, "u#3": 2},
    domain=MS,
)
record(
    "Attention packed with a past",
    tokens(
        "b, n = com.microsoft.Attention<num_heads = 2, unidirectional = 1>(a, u, c, , past)",
        "float[8,24] u, float[24] c, float[2,2,2,3,4] past",
    ),
    {"w": 8, "u": 2, "u#2": 4},
    "keys and values",
    constants={"past": [[[[[0.1 * k] * 4] * 3] * 2] * 2 for k in (1, 2)]},
    domain=MS,
)
record(
    "QAttention",
    "(float[2,6,4] x, float[4,8] w, uint8[8,24] u, float[24] c, float[24] us, uint8[24] uz, float[8,5] v) => "
    "(float[p,q,r] y) { a = MatMul(x, w) t, s, o = DynamicQuantizeLinear(a) b = "
    "com.microsoft.QAttention<num_heads = 2>(t, u, c, s, us, , o, uz) y = MatMul(b, v) }",
    {"w": 8, "u": 2, "u#2": 4},
    domain=MS,
)
record(
    "MultiHeadAttention",
    QKV.format(more=", float[24] c", body="b = com.microsoft.MultiHeadAttention<num_heads = 2>(q1, k1, v1, c)"),
    {"w": 2, "w#2": 4, "u": 4},
    domain=MS,
)
record(
    "DynamicQuantizeMatMul",
    "(float[2,4] x, float[4,8] w, uint8[8,6] u, float[6] var, uint8[6] z, float[6,5] v) => "
    "(float[p,q] y) { a = MatMul(x, w) b = com.microsoft.DynamicQuantizeMatMul(a, u, var, z) "
    "y = MatMul(b, v) }",
    {"w": 8, "u": 6},
    domain=MS,
)
record(
    "MatMulIntegerToFloat",
    "(float[2,4] x, float[4,8] w, uint8[8,6] u, float[6] var, uint8[6] z, float[6,5] v) => "
    "(float[p,q] y) { a = MatMul(x, w) t, s, o = DynamicQuantizeLinear(a) b = "
    "com.microsoft.MatMulIntegerToFloat(t, u, s, var, o, z) y = MatMul(b, v) }",
    {"w": 8, "u": 6},
    domain=MS,
)
for op in ("QuantizeLinear", "DequantizeLinear"):
    record(
        f"{op} with 16 bits",
        image(
            "t = com.microsoft.QuantizeLinear(a, var, z) b = com.microsoft.DequantizeLinear(t, var, z)",
            "float var, uint16 z",
        ),
        {"w": 8},
        constants={"z": 32768, "var": 0.001},
        domain=MS,
    )
record(
    "DynamicQuantizeLSTM",
    "(float[5,2,4] x, float[4,6] w, uint8[1,6,12] u, uint8[1,3,12] k, float[1] s1, uint8[1] "
    "z1, float[3,5] v, int64[1] i) => (float[p,q,r] y) "
    "{ a = MatMul(x, w) h = com.microsoft.DynamicQuantizeLSTM<hidden_size = 3>(a, u, k, , , , "
    ", , s1, z1, s1, z1) b = Squeeze(h, i) y = MatMul(b, v) }",
    {"w": 6, "u": 3},
    "gates",
    constants={"i": [1], "s1": [0.1], "z1": [7]},
    domain=MS,
)
record(
    "Col2Im",
    "(float[2,3,9] x, float[8,3,1] w, int64[2] i, int64[2] k, float[5,2,1,1] v) => "
    "(float[p,q,r,s] y) { a = Conv(x, w) b = Col2Im(a, i, k) y = Conv(b, v) }",
    {"w": 2},
    "kernel positions",
    constants={"i": [4, 4], "k": [2, 2]},
)
record(
    "AffineGrid",
    "(float[2,2,2] x, float[2,3] w, int64[4] s) => (float[p,q,r,t] y) { a = MatMul(x, w) y = AffineGrid(a, s) }",
    {},
    "coordinates",
    constants={"s": [2, 3, 4, 4]},
    opset=20,
)
record(
    "RotaryEmbedding",
    "(float[2,6,8] x, float[8,8] w, float[8,8] k, int64[4] s, int64[3] r, float[2,6,2] c, "
    "float[2,6,2] n, float[6,5] v) => (float[p,q,t] y) "
    "{ q1 = MatMul(x, w) h = Reshape(q1, s) qt = Transpose<perm = [0, 2, 1, 3]>(h) ro = "
    "RotaryEmbedding(qt, c, n) rt = Transpose<perm = [0, 2, 1, 3]>(ro) "
    "q2 = Reshape(rt, r) k1 = MatMul(x, k) kt = Transpose<perm = [0, 2, 1]>(k1) b = MatMul(q2, kt) y = MatMul(b, v) }",
    {"w": 2, "w#2": 2},
    "pairs turn together",
    constants={"s": [0, 0, 2, 4], "r": [0, 0, -1]},
    opset=23,
)
record(
    "RotaryEmbedding interleaved and flat",
    "(float[2,6,8] x, float[8,8] w, float[2,6,2] c, float[2,6,2] n, float[8,5] v) => "
    "(float[p,q,t] y) { q1 = MatMul(x, w) b = RotaryEmbedding<interleaved = 1, num_heads = "
    "2>(q1, c, n) y = MatMul(b, v) }",
    {"w": 2, "w#2": 2},
    "pairs turn together",
    opset=23,
)

# Decoders -----------------------------------------------------------------------------------------------------------

record(
    "GroupQueryAttention without a past",
    "(float[2,6,4] x, float[4,32] w, float[4,16] k, float[4,16] u, float[32,5] v, int32[2] seq, int32 total) => "
    "(float[q,r,s] y) { a = MatMul(x, w) b = MatMul(x, k) c = MatMul(x, u) d, n, m = "
    'com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(a, b, c, "", "", seq, total) '
    "y = MatMul(d, v) }",
    {"w": 2, "w#2": 2},
    "the width of a head is that of its cache",
    constants={"seq": [5, 5], "total": 6},
    domain=MS,
)
record(
    "RotaryEmbedding of com.microsoft",
    "(float[2,6,4] x, int64[2,6] positions, float[10,4] c, float[10,4] s, float[4,16] w, float[16,5] v) => "
    "(float[p,q,r] y) { a = MatMul(x, w) b = com.microsoft.RotaryEmbedding<num_heads = 2>(a, positions, c, s) "
    "y = MatMul(b, v) }",
    {"w": 2},
    "pairs turn together",
    constants={"positions": [[0, 1, 2, 3, 4, 5]] * 2},
    domain=MS,
)
record(
    "MultiHeadAttention with a past",
    "(float[2,6,4] x, float[2,2,3,4] past, float[2,2,3,4] kept, float[4,8] w, float[4,8] k, float[4,8] u, float[8,5] v)"
    " => (float[q,r,s] y) { a = MatMul(x, w) b = MatMul(x, k) c = MatMul(x, u) "
    'd, n, m = com.microsoft.MultiHeadAttention<num_heads = 2>(a, b, c, "", "", "", past, kept) y = MatMul(d, v) }',
    {"w": 2, "w#2": 4},
    domain=MS,
)
NBITS = (
    "(float[2,64] x, uint8[64,2,16] w, float[{scales}] ws, uint8[48,2,16] u, float[48,2] us, float[48,5] v{more}) => "
    "(float[p,q] y) {{ a = com.microsoft.MatMulNBits<K = 64, N = 64, bits = 4, block_size = 32>(x, w, ws{zeros}) "
    "b = com.microsoft.MatMulNBits<K = 64, N = 48, bits = 4, block_size = 32>(a, u, us) y = MatMul(b, v) }}"
)
for name, scales, more, zeros in (
    ("", "64,2", "", ""),
    (" in a row", "128", "", ""),
    (" with zero points", "64,2", ", uint8[64,1] z", ", z"),
):
    record(
        f"MatMulNBits{name}",
        NBITS.format(scales=scales, more=more, zeros=zeros),
        {"w": 2, "u": 48},
        "positions of a block share a scale",
        domain=MS,
    )
MIXTURE = (
    "(float[6,8] x, float[8,16] w, float[16,4] r, float[4,{wide},16] f, float[4,{wide}] fb, float[4,16,12] g, "
    "float[4,16] gb, float[16,5] v) => (float[p,q] y) {{ a = MatMul(x, w) l = MatMul(a, r) "
    "b = com.microsoft.MoE<k = 2, activation_type = {act}>(a, l, f, fb, g, gb) y = MatMul(b, v) }}"
)
record(
    "MoE",
    MIXTURE.format(wide=12, act='"silu"'),
    {"w": 16, "~r": 4, "f": 12},
    domain=MS,
)
record(
    "MoE gate in pairs",
    MIXTURE.format(wide=24, act='"swiglu", swiglu_fusion = 1, activation_alpha = 1.7'),
    {"w": 16, "~r": 4, "f": 12},
    "a gate and what it gates",
    domain=MS,
)
record(
    "MoE all experts picked",
    MIXTURE.format(wide=12, act='"silu"').replace("k = 2", "k = 4"),
    {"w": 16, "f": 12},
    "the router picks among experts",
    domain=MS,
)
QUANTIZED_MIXTURE = (
    "(float[6,8] x, float[8,32] w, float[32,4] r, uint8[4,64,{c}] f, float[{fs}] fs, float[4,64] fb, "
    "uint8[4,32,{k}] g, float[{gs}] gs, float[4,32] gb{zeros}, float[32,5] v) => (float[p,q] y) {{ a = MatMul(x, w) "
    'l = MatMul(a, r) b = com.microsoft.QMoE<k = 2, activation_type = "swiglu", swiglu_fusion = 1, '
    "expert_weight_bits = {bits}{block}>(a, l, f, fs, fb, g, gs, gb{more}) y = MatMul(b, v) }}"
)
for name, bits, block, zeros, free in (
    ("", 8, 0, False, {"w": 32, "~r": 4, "f": 32}),
    (" of four bits", 4, 0, False, {"w": 16, "~r": 4, "f": 16}),
    (" in blocks", 4, 16, False, {"w": 2, "~r": 4, "f": 2}),
    (" with zero points", 4, 0, True, {"w": 16, "~r": 4, "f": 16}),
):
    record(
        f"QMoE{name}",
        QUANTIZED_MIXTURE.format(
            **{"c": 32 * bits // 8, "k": 32 * bits // 8, "bits": bits},
            fs="4,64,2" if block else "4,64",
            gs="4,32,2" if block else "4,32",
            block=f", block_size = {block}" if block else "",
            zeros=", uint8[4,32] z, uint8[4,16] u" if zeros else "",
            more=', "", "", "", z, u' if zeros else "",
        ),
        free,
        "a gate and what it gates",
        domain=MS,
    )

# Sequences: tensors passed on by element ----------------------------------------------------------------------------

PARTS = (
    "(float[2,6,6] x, float[6,16] w, float[{v},5] v{more}) => (float[p,q,r] y) "
    "{{ a = MatMul(x, w) {body} y = MatMul(b, v) }}"
)
FIRST = "i = Constant<value = int64 {0}>() "
for name, body, v, free, frozen in (
    (
        "SplitToSequence by lengths",
        "n = Constant<value = int64[2] {10, 6}>() s = SplitToSequence<axis = 2>(a, n) "
        + FIRST
        + "b = SequenceAt(s, i)",
        10,
        {"w": 10, "w#2": 6},
        "",
    ),
    (
        "SplitToSequence in equal parts",
        "n = Constant<value = int64 {8}>() s = SplitToSequence<axis = 2>(a, n) " + FIRST + "b = SequenceAt(s, i)",
        8,
        {},
        "split into parts of one length",
    ),
    (
        "SplitToSequence along another axis",
        "s = SplitToSequence<axis = 1, keepdims = 0>(a) b = ConcatFromSequence<axis = 1, new_axis = 1>(s)",
        16,
        {"w": 16},
        "",
    ),
    (
        "SequenceConstruct",
        "r = Relu(a) s = SequenceConstruct(a, r) b = ConcatFromSequence<axis = 2>(s)",
        32,
        {"w": 16},
        "",
    ),
    (
        "SequenceInsert",
        "e = SequenceEmpty() s = SequenceInsert(e, a) r = Neg(a) t = SequenceInsert(s, r) "
        + FIRST
        + "b = SequenceAt(t, i)",
        16,
        {"w": 16},
        "",
    ),
    (
        "SequenceEmpty",
        FIRST
        + "e = SequenceEmpty() r = Neg(a) t = SequenceInsert(e, r) s = SequenceInsert(t, a, i) b = SequenceAt(s, i)",
        16,
        {"w": 16},
        "",
    ),
    (
        "ConcatFromSequence",
        "r = Neg(a) s = SequenceConstruct(r, a) b = ConcatFromSequence<axis = 1>(s)",
        16,
        {"w": 16},
        "",
    ),
    (
        "SequenceErase",
        "r = Neg(a) s = SequenceConstruct(r, a) " + FIRST + "t = SequenceErase(s, i) b = SequenceAt(t, i)",
        16,
        {"w": 16},
        "",
    ),
    (
        "SequenceLength",
        "r = Neg(a) s = SequenceConstruct(r, a) n = SequenceLength(s) f = Cast<to = 1>(n) b = Mul(a, f)",
        16,
        {"w": 16},
        "",
    ),
    (
        "SequenceAt that a run decides",
        "r = Neg(a) s = SequenceConstruct(r, a) m = Shape<start = 0, end = 1>(x) one = Constant<value = int64 {1}>() "
        "k = ReduceSum<keepdims = 0>(m) i = Sub(k, one) b = SequenceAt(s, i)",
        16,
        {"w": 16},
        "",
    ),
):
    record(name, PARTS.format(v=v, more="", body=body), free, *([frozen] if frozen else []))
