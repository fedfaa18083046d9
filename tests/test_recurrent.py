"""Recurrent layers and attention against naive loops, rows that end early, and state carried between windows."""

import numpy as np
import pytest
from battery import SMOOTH, Bench, Exposed
from hypothesis import given, settings
from hypothesis import strategies as st

from gpbackprop import data
from gpbackprop.data import Dataset, Preparation, Split
from gpbackprop.errors import DataError, ShapeError
from gpbackprop.layers.attention import SelfAttention
from gpbackprop.layers.combine import Chain, Parallel
from gpbackprop.layers.dense import Dense
from gpbackprop.layers.embedding import Embedding, PositionalEncoding
from gpbackprop.layers.gated import GRU, LSTM
from gpbackprop.layers.recurrent import SimpleRNN
from gpbackprop.layers.shape import Flatten, Reshape
from gpbackprop.losses import HalfSquaredError
from gpbackprop.model import load as model_of
from gpbackprop.optim.sgd import SGD
from gpbackprop.plan import Network, Plan
from gpbackprop.trainer import Trainer

CELLS = (SimpleRNN, LSTM, GRU)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def naive_cell(layer, p, x, h, c):
    """One step of one row."""
    H = layer.units
    if isinstance(layer, SimpleRNN):
        z = x @ p["W"] + h @ p["U"] + p["b"]
        return (np.tanh(z) if layer.activation == "tanh" else np.maximum(z, 0)), c
    if isinstance(layer, LSTM):
        z = x @ p["W"] + h @ p["U"] + p["b"]
        i, f, o = (sigmoid(z[n * H : (n + 1) * H]) for n in range(3))
        c = f * c + i * np.tanh(z[3 * H :])
        return o * np.tanh(c), c
    a, u = x @ p["W"] + p["b"], h @ p["U"]
    r, z = (sigmoid(a[n * H : (n + 1) * H] + u[n * H : (n + 1) * H]) for n in range(2))
    n = np.tanh(a[2 * H :] + r * (u[2 * H :] + p["c"]))
    return (1 - z) * n + z * h, c


def naive(layer, params, x, path=""):
    """The output for one row x (T, features), a loop over steps; `params` are one member's by path."""
    for i in range(layer.layers):
        here = path + (f"layer-{i}/" if layer.layers > 1 else "")
        outs = []
        for name in ("forward/", "backward/") if layer.bidirectional else ("",):
            p = {key.removeprefix(here + name): v for key, v in params.items() if key.startswith(here + name)}
            h, c, states = np.zeros(layer.units), np.zeros(layer.units), {}
            for t in reversed(range(len(x))) if name == "backward/" else range(len(x)):
                states[t] = h, c = naive_cell(layer, p, x[t], h, c)
            outs.append((np.array([states[t][0] for t in range(len(x))]), h))
        x = np.concatenate([states for states, _ in outs], axis=1)
    return x if layer.returns == "sequence" else np.concatenate([h for _, h in outs])


def drawn(layer, row, K=1, lengths=False):
    """A network whose parameters, biases too, are random."""
    net = Network(layer, row, seeds=range(K), dtype="f8", lengths=lengths)
    net.w[...] = np.random.default_rng(1).normal(size=net.w.shape) * 0.7
    return net


def members(net):
    return [{path: view[k] for path, view in net.params.views(net.w).items()} for k in range(net.K)]


recurrent = st.builds(
    lambda cls, **fields: cls(**fields),
    st.sampled_from(CELLS), units=st.integers(1, 4), layers=st.integers(1, 3), bidirectional=st.booleans(),
    returns=st.sampled_from(["last", "sequence"]),
)  # fmt: skip


@given(layer=recurrent, B=st.integers(1, 3), T=st.integers(1, 5), F=st.integers(1, 3), K=st.integers(1, 2))
def test_a_recurrent_layer_is_a_loop_over_steps(layer, B, T, F, K):
    net = drawn(layer, (T, F), K)
    plan = Plan(net, B)
    plan.x.value[...] = np.random.default_rng(0).normal(size=plan.x.value.shape)
    plan.forward()
    for k, params in enumerate(members(net)):
        for b in range(B):
            np.testing.assert_allclose(plan.y.value[k, b], naive(layer, params, plan.x.value[k, b]), atol=1e-12)


def test_relu_is_an_activation_of_the_simple_network():
    layer = SimpleRNN(3, activation="relu", returns="sequence")
    net = drawn(layer, (4, 2))
    plan = Plan(net, 1)
    plan.x.value[...] = np.random.default_rng(0).normal(size=plan.x.value.shape)
    plan.forward()
    np.testing.assert_allclose(plan.y.value[0, 0], naive(layer, members(net)[0], plan.x.value[0, 0]), atol=1e-13)
    assert (plan.y.value == 0).any()


def ending(layer, row, ends, K=2):
    """A bench of rows that end after `ends` steps."""
    net = Network(Exposed(layer), row, seeds=range(K), dtype="f8", lengths=True)
    net.w[...] = np.random.default_rng(1).normal(size=net.w.shape) * 0.7
    bench = Bench(layer, row, batch=len(ends), network=net)
    fill = bench.fill

    def fill_all():
        fill()
        bench.plan.lengths[...] = ends

    bench.fill = fill_all
    fill_all()
    return bench


@given(layer=recurrent, ends=st.lists(st.integers(1, 5), min_size=1, max_size=3), F=st.integers(1, 2))
def test_a_row_that_ends_early_is_the_shorter_row(layer, ends, F):
    bench = ending(layer, (5, F), ends)
    bench.loss()
    for k, params in enumerate(members(bench.net)):
        for b, end in enumerate(ends):
            wanted = naive(layer, params, bench.x[k, b, :end])
            got = bench.plan.y.value[k, b]
            np.testing.assert_allclose(got[:end] if layer.returns == "sequence" else got, wanted, atol=1e-12)


@settings(max_examples=25)
@given(layer=recurrent, ends=st.lists(st.integers(1, 4), min_size=2, max_size=2))
def test_gradients_of_rows_that_end_early_are_right_and_nothing_reaches_the_steps_beyond(layer, ends):
    bench = ending(layer, (4, 2), ends)
    if layer.returns == "sequence":  # nobody asks for the steps beyond the end
        for b, end in enumerate(ends):
            bench.c[:, b, end:] = 0
        bench.fill()
    assert bench.gradient_error() < SMOOTH
    bench.poison()
    grads = bench.gradients()
    for b, end in enumerate(ends):
        assert not grads["x"][:, b, end:].any()


def test_what_stands_beyond_the_end_of_a_row_changes_nothing():
    for layer in (*(cls(3, layers=2, bidirectional=True) for cls in CELLS), Chain(SelfAttention(2), LSTM(2))):
        bench = ending(layer, (4, 2), (2, 4))
        before = bench.gradients() | {"y": bench.plan.y.value.copy()}
        bench.x[:, 0, 2:] = 1e3
        bench.fill()
        after = bench.gradients() | {"y": bench.plan.y.value.copy()}
        for name, value in before.items():
            assert np.array_equal(value, after[name]), (layer, name)


def test_lengths_count_the_steps_of_the_rows_of_the_data():
    with pytest.raises(ShapeError, match="1-lstm: wants the 4 steps of a row, got 2; its lengths count those"):
        Network(Chain({"type": "reshape", "shape": (2, 4)}, LSTM(3)), (4, 2), lengths=True)


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("T", [1, 2, 3])
def test_windows_that_carry_their_state_are_one_long_window(cls, T):
    layer = cls(3, layers=2, returns="sequence")
    whole, part = drawn(layer, (6, 2), 2), drawn(layer, (T, 2), 2)
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 2))
    plan = Plan(whole, 4)
    plan.x.value[...] = x
    plan.forward()
    carried = {}
    window = Plan(part, 4, carried=carried)
    for start in range(0, 6, T):
        window.x.value[...] = x[:, :, start : start + T]
        window.forward()
        assert np.array_equal(window.y.value, plan.y.value[:, :, start : start + T])
    assert len(carried) == layer.layers * (2 if cls is LSTM else 1)


def test_a_window_is_no_place_for_a_network_that_reads_from_the_end():
    with pytest.raises(ShapeError, match="wants a whole sequence where it is bidirectional, got windows of it"):
        Plan(drawn(LSTM(2, bidirectional=True), (3, 2)), 1, carried={})


H4 = (0.5370495669980353, 0.6228448439039872, 0.1957177996989362, 0.29731735570391843)
TRUNCATED = {  # the last k steps: (dL/dw, dL/du)
    1: (-0.00047862884832313893, -0.0006113762379550964),
    2: (-0.0016504883852174529, 0.0003293552687465617),
    3: (-0.0021452512463457536, -0.00013127526848102976),
    4: (-0.0021452512463457536, -0.0006557143837766457),
}


@pytest.mark.parametrize("k", TRUNCATED)
def test_backpropagation_through_the_last_k_steps_is_that_of_the_worked_example(k):
    """h_t = tanh(w h_{t-1} + u x_t), w = 0.8, u = 0.6, x = (1, 0.5, -0.5, 0.25), L = (h_4 - 0.3)^2 / 2."""
    x, total = np.array([1, 0.5, -0.5, 0.25]), {}
    layer = SimpleRNN(1, init={"W": 0.6, "U": 0.8})

    def finish(plan):
        def forward():
            total["L"] = 0.5 * (plan.y.value.item() - 0.3) ** 2

        def backward():
            plan.y.grad[...] = plan.y.value - 0.3

        plan.step(forward, backward)

    nets = {T: Network(layer, (T, 1), dtype="f8") for T in (1, k)}
    carried, h = {}, []
    before, last = Plan(nets[1], 1, carried=carried), Plan(nets[k], 1, carried=carried, training=True, loss=finish)
    for t in range(4 - k):
        before.x.value[...] = x[t]
        before.forward()
        h.append(before.y.value.item())
    last.x.value[0, 0, :, 0] = x[4 - k :]
    last.forward()
    last.backward()
    grads = {path: g.item() for path, g in nets[k].params.views(nets[k].g).items()}
    assert h == pytest.approx(H4[: 4 - k], rel=1e-15)
    assert last.y.value.item() == pytest.approx(H4[3], rel=1e-15)
    assert total["L"] == pytest.approx(3.598290209649464e-06, rel=1e-13)
    assert (grads["U"], grads["W"]) == pytest.approx(TRUNCATED[k], rel=1e-13)


def test_the_forget_gate_starts_open():
    net = Network(LSTM(2), (3, 1))
    assert net.params.views(net.w)["b"][0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_a_recurrent_layer_names_itself_where_it_gets_no_sequence():
    with pytest.raises(ShapeError, match=r"1-gru: wants sequences \(batch, T, features\), got \(1, 6\)"):
        Network(Chain(Flatten(), GRU(2)), (3, 2))


def naive_attention(layer, p, x):
    """One row x (T, D), a loop over heads and steps."""
    T, D = x.shape
    d, out = D // layer.heads, np.zeros((T, D))
    q, k, v = np.split(x @ p["W"] + p["b"], 3, axis=1)
    for start in range(0, D, d):
        for t in range(T):
            seen = range(t + 1) if layer.causal else range(T)
            weight = np.array([np.exp(q[t, start : start + d] @ k[s, start : start + d] / np.sqrt(d)) for s in seen])
            weight /= weight.sum()
            for s in seen:
                out[t, start : start + d] += weight[s] * v[s, start : start + d]
    return out @ p["Wo"] + p["bo"]


@given(
    heads=st.integers(1, 3), d=st.integers(1, 3), causal=st.booleans(),
    ends=st.lists(st.integers(1, 4), min_size=1, max_size=3), K=st.integers(1, 2),
)  # fmt: skip
def test_attention_is_a_loop_over_heads_and_steps(heads, d, causal, ends, K):
    layer = SelfAttention(heads, causal=causal)
    bench = ending(layer, (4, heads * d), ends, K=K)
    bench.loss()
    for k, params in enumerate(members(bench.net)):
        for b, end in enumerate(ends):
            wanted = naive_attention(layer, params, bench.x[k, b, :end])
            np.testing.assert_allclose(bench.plan.y.value[k, b, :end], wanted, atol=1e-12)


def test_attention_stays_finite_where_scores_are_large_and_says_what_heads_share():
    net = drawn(SelfAttention(2, causal=True), (3, 4))
    plan = Plan(net, 2)
    plan.x.value[...] = 1e4
    plan.forward()
    assert np.isfinite(plan.y.value).all()
    with pytest.raises(ShapeError, match="a number of features that 3 heads share evenly, got 4"):
        Network(SelfAttention(3), (3, 4))


def test_an_embedding_looks_symbols_up_and_adds_up_their_gradients_exactly():
    layer, rng = Embedding(6, 3), np.random.default_rng(0)
    net = Network(layer, (4,), seeds=(0, 1), dtype="f4")

    def weigh(plan):
        plan.step(None, lambda: plan.y.grad.__setitem__(..., c))

    plan = Plan(net, 50, training=True, loss=weigh)
    c = (rng.normal(size=(2, 50, 4, 3)) * 10.0 ** rng.integers(-3, 3, (2, 50, 4, 1))).astype("f4")
    x = rng.integers(0, 6, (2, 50, 4))
    plan.x.value[...] = x
    plan.forward()
    plan.backward()
    W, g = net.params["W"].of(net.w), net.params["W"].of(net.g)
    first = g.copy()
    for k in range(2):
        assert np.array_equal(plan.y.value[k], W[k][x[k]])
        wanted = np.zeros((6, 3))
        np.add.at(wanted, x[k], c[k].astype("f8"))
        np.testing.assert_allclose(g[k], wanted, rtol=1e-7, atol=0)
    turned = np.random.default_rng(1).permutation(50)  # the sums do not depend on the order of the rows
    plan.x.value[...], c = x[:, turned], c[:, turned]
    plan.forward()
    plan.backward()
    assert np.array_equal(first, g)


def symbols(x, lengths=None, **preparation):
    """A data set of the inputs x as they are, each with one target."""
    fields = {"shift": np.zeros(1), "scale": np.ones(1), **preparation}
    x = np.asarray(x, np.float32)
    prep = Preparation((), ("t",), None, False, (), x.shape[1:], **fields)
    splits = {"train": np.array([0, 2]), "test": np.array([1])}
    t = np.zeros((len(x), 1), np.float32)
    splits = {name: Split(x, t, None, index, lengths) for name, index in splits.items()}
    return Dataset("symbols", splits, prep, "")


def reader(*layers):
    return Chain(*layers, Flatten(), Dense(1))


def training(model, rows):
    return Trainer(model, HalfSquaredError(), SGD(0.1), rows, device="cpu")


TABLE = Embedding(5, 2)


@pytest.mark.parametrize(
    "model",
    [
        reader(TABLE),
        reader(Reshape((2, 2)), TABLE),
        Chain(Parallel(Chain(TABLE, Flatten()), Dense(3)), Dense(1)),
    ],
    ids=["first", "behind a reshape", "in a branch"],
)
def test_data_that_an_embedding_has_no_row_for_are_refused_before_training_starts(model):
    good = [[0, 1, 2, 3], [0, 0, 0, 0], [4, 4, 4, 4]]
    training(model, symbols(good)).fit(1)
    for row, split, wrong in ((2, "train", 5), (2, "train", -1), (0, "train", 1.5), (1, "test", 7)):
        bad = [list(each) for each in good]
        bad[row][3] = wrong
        said = rf"^{split} row {row}, input 3 .*: found {wrong:g}; an embedding of 5 symbols takes .* from 0 to 4; give"
        with pytest.raises(DataError, match=said):
            training(model, symbols(bad))


def test_normalised_symbols_are_refused_and_told_from_wrong_ones():
    with pytest.raises(DataError, match=r'row 0, input 0 .*: found 1, normalised to 0.2; .* set normalize = "none"'):
        training(reader(TABLE), symbols(np.ones((3, 4)), scale=np.full(1, 0.2)))


def test_what_lies_beyond_the_end_of_a_row_may_be_no_symbol():
    x = np.array([[0, 1, -1], [4, -1, -1], [0, 1, 2]])
    training(reader(TABLE), symbols(x, lengths=np.array([2, 1, 3]))).fit(1)
    with pytest.raises(DataError, match="test row 1, input 1 "):
        training(reader(TABLE), symbols(x, lengths=np.array([2, 2, 3])))


def test_a_model_predicts_for_no_symbol_that_it_does_not_know(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.arange(12).reshape(4, 3) % 5, y=np.linspace(0, 1, 4))
    trainer = training(reader(TABLE), data.load(str(tmp_path / "rows.npz"), normalize="none"))
    trainer.save(tmp_path / "model.h5")
    model = model_of(tmp_path / "model.h5")
    x = np.array([[0, 1, 2], [2, 3, 4]], np.float32)
    assert model.predict(x).shape == (1, 2, 1)
    with pytest.raises(DataError, match=r"^row 1, input 2 .*: found 5; an embedding of 5 symbols"):
        model.predict(x + np.float32([[0], [1]]))


def test_what_an_earlier_layer_computes_is_held_to_nothing():
    assert Network(Chain(Dense(3), TABLE), (4,)).symbols is None
    assert Network(Chain(TABLE, Flatten(), Dense(3), Embedding(2, 2)), (4,)).symbols == 5
    assert Network(Chain(Parallel(TABLE, Embedding(3, 2))), (4,)).symbols == 3


def test_positions_differ_and_are_within_one():
    net = Network(PositionalEncoding(), (50, 6), dtype="f8")
    plan = Plan(net, 1)
    plan.x.value[...] = 0
    plan.forward()
    p = plan.y.value[0, 0]
    assert p[0].tolist() == [0, 1, 0, 1, 0, 1]
    np.testing.assert_allclose(p[7], [f(7 / 10000 ** (i / 6)) for i in (0, 2, 4) for f in (np.sin, np.cos)])
    assert len(np.unique(p.round(6), axis=0)) == 50
    assert np.abs(p).max() <= 1
