"""LSTM, GRU and RNN: one hidden Dim H in all weights, states and outputs. D directions, T steps, N batch."""

from onnxprune.coupling.dims import resolve
from onnxprune.coupling.node import NodeAxes
from onnxprune.coupling.registry import coupling_rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@coupling_rule("DynamicQuantizeLSTM", domain="com.microsoft")
def DynamicQuantizeLSTM(n: NodeAxes) -> None:
    """x (T, N, I), w (D, I, 4 H), r (D, H, 4 H), b (D, 8 H), lengths, h, c, p; scales and zero points per gate or D.

    It quantizes x and h by their own range, which includes zero, so silent positions change nothing.
    """
    x, w, r = n.x(0), n.x(1), n.x(2)
    H = r[1]
    stacked = n.merge([n.fixed(4, "gates"), H])
    n.unify(x[2], w[1])
    n.freeze(w[0], "directions")
    n.unify(w[0], r[0])
    for axis in (w[2], r[2]):
        n.unify(axis, stacked)
    for index in (1, 2):
        n.roles(index, {2: "produces", 1: "consumes"})
    for index, parts in ((3, 8), (7, 3)):
        if n.has(index):
            n.unify(n.x(index)[0], w[0])
            n.unify(n.x(index)[1], n.merge([n.fixed(parts, "gates"), H]))
    for index in (5, 6):
        if n.has(index):
            n.unify(n.x(index)[0], w[0])
            n.unify(n.x(index)[1], x[1])
            n.unify(n.x(index)[2], H)
    for index in (8, 9, 10, 11):
        parameter = n.x(index)
        n.unify(parameter[0], w[0])
        if len(parameter) > 1:
            n.unify(parameter[1], stacked)
    n.analysis.contract(n.node, x[2])
    n.length_attribute("hidden_size", H)
    D, h = resolve(w[0]), resolve(H)
    n.give([x[0], D, x[1], h], [D, x[1], h], [D, x[1], h])


@coupling_rule("LSTM", "GRU", "RNN")
def Recurrent(n: NodeAxes) -> None:
    """x (T, N, I), w (D, G H, I), r (D, G H, H), b (D, 2 G H), lengths (N), h (D, N, H), c (D, N, H), p (D, 3 H).

    With layout 1 the batch comes first. Outputs: y (T, D, N, H), last h (D, N, H), last c.
    """
    gates = GATES[n.op_type]
    x, w, r = n.x(0), n.x(1), n.x(2)
    H = r[2]
    stacked = n.merge([n.fixed(gates, "gates"), H])
    n.unify(x[2], w[2])
    n.unify(w[1], stacked)
    n.unify(r[1], stacked)
    n.freeze(w[0], "directions")
    for index in (2, 3, 7):
        if n.has(index):
            n.unify(n.x(index)[0], w[0])
    n.roles(1, {1: "produces", 2: "consumes"})
    n.roles(2, {1: "produces", 2: "consumes"})
    if n.has(3):
        n.unify(n.x(3)[1], n.merge([n.fixed(2 * gates, "gates"), H]))
        n.roles(3, {1: "produces"})
    if n.has(4):
        n.freeze(n.x(4)[0], "sequence lengths")
    batch_first = n.attribute("layout", 0) == 1
    for index in (5, 6):
        if n.has(index):
            state = n.x(index)
            n.unify(state[1 if batch_first else 0], w[0])
            n.unify(state[0 if batch_first else 1], x[0 if batch_first else 1])
            n.unify(state[2], H)
    if n.has(7):
        n.unify(n.x(7)[1], n.merge([n.fixed(3, "gates"), H]))
    n.length_attribute("hidden_size", H)
    D, h = resolve(w[0]), resolve(H)
    if batch_first:
        n.give([x[0], x[1], D, h], [x[0], D, h], [x[0], D, h])
    else:
        n.give([x[0], D, x[1], h], [D, x[1], h], [D, x[1], h])
