"""Convolutions, poolings and norms against loops that spell out their sums, and what they say of wrong shapes."""

import re

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import gpbackprop as gp
from gpbackprop.errors import ConfigError, ShapeError
from gpbackprop.layers.windows import Axis
from gpbackprop.plan import Network, Plan
from gpbackprop.spec import type_name

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def sides(size, kernel, stride, dilation, padding):
    """The zeros before and after one axis."""
    if padding == "same":
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
        return total // 2, total - total // 2
    return (0, 0) if padding == "valid" else (padding, padding)


def windows(layer, x, dilation=1):
    """For each output place (p, q) of images x (B, H, W, C): the places (y, x) of the image that its window holds, or
    None for those on padding, row by row."""
    axes = []
    stride = layer.stride or layer.kernel
    for n, k, s, d, p in zip(x.shape[1:3], *map(pair, (layer.kernel, stride, dilation, layer.padding)), strict=True):
        before, after = sides(n, k, s, d, p)
        count = (before + n + after - d * (k - 1) - 1) // s + 1
        axes.append([[o * s + i * d - before for i in range(k)] for o in range(count)])
    (rows, columns), (H, W) = axes, x.shape[1:3]
    return {
        (p, q): [[(y, z) if 0 <= y < H and 0 <= z < W else None for z in columns[q]] for y in rows[p]]
        for p in range(len(rows))
        for q in range(len(columns))
    }


def shape_of(places):
    return tuple(n + 1 for n in max(places))


def convolution(layer, x, W, b, dy=None):
    """y, and the gradients of sum(y dy) with respect to x, W and b, one product after the other."""
    places = windows(layer, x, layer.dilation)
    y = np.zeros((len(x), *shape_of(places), layer.units)) + b
    c, o = x.shape[3] // layer.groups, layer.units // layer.groups
    dx, dW = np.zeros_like(x), np.zeros_like(W)
    for (p, q), window in places.items():
        for i, row in enumerate(window):
            for j, place in enumerate(row):
                if place:
                    for g in range(layer.groups):
                        ins, outs = slice(g * c, (g + 1) * c), slice(g * o, (g + 1) * o)
                        y[:, p, q, outs] += x[:, *place, ins] @ W[i, j, :, outs]
                        if dy is not None:
                            dW[i, j, :, outs] += x[:, *place, ins].T @ dy[:, p, q, outs]
                            dx[:, *place, ins] += dy[:, p, q, outs] @ W[i, j, :, outs].T
    return y, dx, dW, None if dy is None else dy.sum(axis=(0, 1, 2))


def run(layer, x, dy=None, block=None):
    """What a layer makes of rows x, and the gradients (of x and by parameter) that dy gives, in float64."""
    net = Network(gp.Chain(Leaf(), layer), x.shape[1:], dtype="f8")
    if block:
        net.backend.block = block

    def weigh(plan):
        plan.step(None, lambda: plan.y.grad.__setitem__(..., drawn(plan.y.shape, 1) if dy is None else dy))

    plan = Plan(net, len(x), training=True, loss=weigh)
    plan.x.value[...] = x
    plan.forward()
    plan.backward()
    params = {path.split("/")[-1]: place for path, place in net.params.items()}
    return (
        plan.y.value[0],
        plan.leaf.grad[0],
        {name: place.of(net.w)[0] for name, place in params.items()},
        {name: place.of(net.g)[0] for name, place in params.items()},
    )


class Leaf(gp.layers.base.Layer):
    """A copy of x that has a gradient."""

    __abstract__ = True

    def trace(self, plan, x):
        leaf = plan.leaf = plan.slot(x.shape)
        plan.step(lambda: leaf.value.__setitem__(..., x.value), None)
        return leaf


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


sizes, small = st.integers(1, 9), st.integers(1, 3)
both = st.one_of(small, st.tuples(small, small))
paddings = st.one_of(
    st.sampled_from(["valid", "same"]), st.integers(0, 2), st.tuples(st.integers(0, 2), st.integers(0, 2))
)
blocks = st.sampled_from([1, 100, None])


def fits(layer, H, W, dilation=1):
    """Whether there is a window, and for a pooling none that lies on padding alone."""
    stride = layer.stride or layer.kernel
    for n, k, s, d, p in zip((H, W), *map(pair, (layer.kernel, stride, dilation, layer.padding)), strict=True):
        before, after = sides(n, k, s, d, p)
        if before + n + after < d * (k - 1) + 1 or (not hasattr(layer, "units") and max(before, after) >= k):
            return False
    return True


@settings(max_examples=60)
@given(st.data(), sizes, sizes, both, both, paddings, both, st.integers(1, 3), small, small, st.booleans(), blocks)
def test_conv2d_is_its_sum(data, H, W, kernel, stride, padding, dilation, groups, c, o, bias, block):
    layer = gp.Conv2d(o * groups, kernel, stride, padding, dilation, groups, bias, init={"b": 0.5} if bias else {})
    assume(fits(layer, H, W, dilation))
    x = drawn((data.draw(small), H, W, c * groups))
    shape = (len(x), *shape_of(windows(layer, x, dilation)), layer.units)
    dy = drawn(shape, 1)
    y, dx, w, g = run(layer, x, dy, block)
    expected = convolution(layer, x, w["W"], w.get("b", 0), dy)
    for ours, theirs in zip((y, dx, g["W"], g.get("b")), expected, strict=True):
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, **CLOSE)


@settings(max_examples=40)
@given(
    st.data(), st.integers(1, 5), st.integers(1, 5), both, both, paddings, both, st.integers(1, 2), small, small, blocks
)
def test_conv_transpose2d_is_the_gradient_of_conv2d(data, H, W, kernel, stride, padding, dilation, groups, c, o, block):
    """With the roles of x and dy exchanged: its y is conv2d's dx, its dx conv2d's y."""
    layer = gp.ConvTranspose2d(o * groups, kernel, stride, padding, dilation, groups, bias=False)
    x = drawn((data.draw(small), H, W, c * groups))
    try:
        Network(layer, x.shape[1:])
    except ShapeError:
        assume(False)
    y, dx, w, g = run(layer, x, block=block)
    dy = drawn(y.shape, 1)
    forward = gp.Conv2d(c * groups, kernel, stride, padding, dilation, groups, bias=False)
    back, image, weights, _ = convolution(forward, dy, w["W"], 0, x)
    np.testing.assert_allclose(y, image, **CLOSE)
    np.testing.assert_allclose(dx, back, **CLOSE)
    np.testing.assert_allclose(g["W"], weights, **CLOSE)
    if padding == "same":
        assert y.shape[1:3] == tuple(n * s for n, s in zip((H, W), pair(stride), strict=True))


@settings(max_examples=30)
@given(sizes, small, small, st.sampled_from(["valid", "same", 0, 1, 2]), small, st.integers(1, 2))
def test_conv1d_is_conv2d_of_an_image_one_wide(T, kernel, stride, padding, dilation, groups):
    tall = padding if isinstance(padding, str) else (padding, 0)
    options = {"groups": groups, "init": {"W": 0.25, "b": 1.0}}
    two = gp.Conv2d(2 * groups, (kernel, 1), (stride, 1), tall, (dilation, 1), **options)
    assume(fits(two, T, 1, (dilation, 1)))
    x = drawn((2, T, 3 * groups))
    one = gp.Conv1d(2 * groups, kernel, stride, padding, dilation, **options)
    y, dx, _, g = run(one, x)
    dy = drawn(y.shape, 1)
    y2, dx2, _, g2 = run(two, x[:, :, None], dy[:, :, None])
    for ours, theirs in ((y, y2[:, :, 0]), (dx, dx2[:, :, 0]), (g["W"], g2["W"][:, 0]), (g["b"], g2["b"])):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def pooled(layer, x, dy, kind):
    """y and dx, window by window."""
    places = windows(layer, x)
    y, dx = np.zeros((len(x), *shape_of(places), x.shape[3])), np.zeros_like(x)
    for (p, q), window in places.items():
        held = [place for row in window for place in row if place]
        values = np.stack([x[:, *place] for place in held])
        if kind == "max":
            y[:, p, q] = values.max(axis=0)
            winner = values.argmax(axis=0)  # the first of several
            for n, place in enumerate(held):
                dx[:, *place] += dy[:, p, q] * (winner == n)
        else:
            y[:, p, q] = values.mean(axis=0)
            for place in held:
                dx[:, *place] += dy[:, p, q] / len(held)
    return y, dx


@pytest.mark.parametrize("kind", ["max", "average"])
@settings(max_examples=60)
@given(sizes, sizes, both, st.one_of(st.none(), both), paddings, st.booleans())
@example(4, 4, 2, None, "valid", True)
def test_pooling_is_its_windows(kind, H, W, kernel, stride, padding, ties):
    """Ties go to the first place of the window, row by row."""
    layer = (gp.MaxPool2d if kind == "max" else gp.AveragePool2d)(kernel, stride, padding)
    assume(fits(layer, H, W))
    x = drawn((2, H, W, 3))
    if ties:
        x = np.round(x)
    shape = (2, *shape_of(windows(layer, x)), 3)
    dy = drawn(shape, 1)
    y, dx, _, _ = run(layer, x, dy)
    expected = pooled(layer, x, dy, kind)
    np.testing.assert_allclose(y, expected[0], **CLOSE)
    np.testing.assert_allclose(dx, expected[1], **CLOSE)


@pytest.mark.parametrize(("one", "two"), [(gp.MaxPool1d, gp.MaxPool2d), (gp.AveragePool1d, gp.AveragePool2d)])
@pytest.mark.parametrize("padding", [0, 1])
def test_pooling_of_series_is_that_of_images_one_wide(one, two, padding):
    x = np.round(drawn((3, 7, 2)))
    y, dx, _, _ = run(one(3, 2, padding), x)
    dy = drawn(y.shape, 1)
    y2, dx2, _, _ = run(two((3, 1), (2, 1), (padding, 0)), x[:, :, None], dy[:, :, None])
    assert np.array_equal(y, y2[:, :, 0])
    assert np.array_equal(dx, dx2[:, :, 0])


def test_global_average_pool_is_the_mean_of_each_channel():
    x = drawn((3, 4, 5, 2))
    y, dx, _, _ = run(gp.GlobalAveragePool(), x, np.ones((3, 2)))
    np.testing.assert_allclose(y, x.mean(axis=(1, 2)), **CLOSE)
    np.testing.assert_allclose(dx, 1 / 20, **CLOSE)


def test_the_convolution_of_the_textbook_to_its_last_digit():
    """DeepGrid, eq. 7, 13 and 20."""
    image = np.arange(1.0, 10).reshape(1, 3, 3, 1)
    kernel = np.array([[1.0, 2], [3, 4]]).reshape(2, 2, 1, 1)
    layer = gp.Conv2d(1, 2, init={"W": kernel, "b": 0.5})
    y, _, _, _ = run(layer, image)
    assert y[0, :, :, 0].tolist() == [[37.5, 47.5], [67.5, 77.5]]
    delta = y - np.array([[30.0, 40], [60, 80]]).reshape(y.shape)
    assert (delta**2).sum() / 2 == 87.5
    assert delta[0, :, :, 0].tolist() == [[7.5, 7.5], [7.5, -2.5]]
    _, dx, _, g = run(layer, image, delta)
    assert g["W"][:, :, 0, 0].tolist() == [[40, 60], [100, 120]]
    assert g["b"].tolist() == [20]
    assert dx[0, :, :, 0].tolist() == [[7.5, 22.5, 15], [30, 65, 25], [22.5, 22.5, -10]]


def test_columns_of_blocks_are_those_of_the_whole_batch():
    layer, x = gp.Conv2d(3, 3, padding="same"), drawn((7, 5, 6, 8))
    whole, parts = run(layer, x), run(layer, x, block=1)
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(*(v.values() if isinstance(v, dict) else [v] for v in (one, other)), strict=True):
            np.testing.assert_allclose(a, b, **CLOSE)


@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4)
)
def test_the_windows_of_an_axis(size, kernel, stride, dilation, before, after):
    axis = Axis(size, kernel, stride, dilation, before, after)
    assume(axis.out > 0)
    places = np.arange(axis.padded)
    for i in range(kernel):
        seen = [o * stride + i * dilation for o in range(axis.out)]
        assert places[axis.tap(i)].tolist() == seen
        inside = {o: n - before for o, n in enumerate(seen) if 0 <= n - before < size}
        outputs, inputs = axis.inside(i)
        assert dict(zip(range(axis.out)[outputs], range(size)[inputs], strict=True)) == inside


def moments(x, axes):
    return x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)


NORMS = {
    "batch": (gp.BatchNorm(), (0, 1, 2), (2, 3, 4, 6)),
    "layer": (gp.LayerNorm(), (3,), (2, 3, 4, 6)),
    "one group": (gp.GroupNorm(1), (1, 2, 3), (2, 3, 4, 6)),
    "each channel": (gp.GroupNorm(6), (1, 2), (2, 3, 4, 6)),
    "groups": (gp.GroupNorm(3), (1, 2, 4), (2, 3, 4, 3, 2)),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_takes_its_moments_away(name):
    layer, axes, shape = NORMS[name]
    x = drawn((2, 3, 4, 6)) * 3 + 5
    mean, variance = moments(x.reshape(shape), axes)
    y, _, _, _ = run(layer, x)
    np.testing.assert_allclose(y, ((x.reshape(shape) - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape), **CLOSE)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    x = drawn((4, 6)) + 2
    y, _, _, _ = run(gp.RMSNorm(init={"gamma": 2.0}), x)
    np.testing.assert_allclose(y, 2 * x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5), **CLOSE)


def test_batch_norm_notes_the_moments_and_uses_them_at_inference():
    x = drawn((5, 3, 2, 4)) * 2 + 1
    net = Network(gp.BatchNorm(momentum=0.25, init={"gamma": 3.0, "beta": -1.0}), x.shape[1:], dtype="f8")
    assert {path: place.of(net.state)[0, 0].tolist() for path, place in net.states.items()} == {
        "mean": [0] * 4,
        "variance": [1] * 4,
    }
    plan = Plan(net, 5, training=True)
    plan.x.value[...] = x
    mean, variance = np.zeros(4), np.ones(4)
    for _ in range(2):
        plan.forward()
        mean = 0.75 * mean + 0.25 * x.mean(axis=(0, 1, 2))
        variance = 0.75 * variance + 0.25 * x.var(axis=(0, 1, 2), ddof=1)
    views = net.states.views(net.state)
    np.testing.assert_allclose(views["mean"][0, 0], mean, **CLOSE)
    np.testing.assert_allclose(views["variance"][0, 0], variance, **CLOSE)
    inference = Plan(net, 5)
    inference.x.value[...] = x
    inference.forward()
    np.testing.assert_allclose(inference.y.value[0], 3 * (x - mean) / np.sqrt(variance + 1e-5) - 1, **CLOSE)


def test_batch_norm_takes_a_batch_of_one_value_as_it_comes():
    net = Network(gp.BatchNorm(), (3,), dtype="f8")
    plan = Plan(net, 1, training=True)
    plan.x.value[...] = 7
    plan.forward()
    assert np.array_equal(plan.y.value[0], np.zeros((1, 3)))
    assert np.isfinite(net.state).all()


def trainer(dtype="float64", **options):
    model = gp.Chain(
        gp.Conv2d(4, 3, stride=2, bias=False), gp.BatchNorm(), gp.Relu(), gp.Dropout2d(0.2), gp.Flatten(), gp.Dense(10)
    )
    data = gp.data.load("digits", validation=0.1, test=0.2, shape=(8, 8, 1), dtype=dtype)
    return gp.Trainer(
        model, gp.SoftmaxCrossEntropy(), gp.SGD(0.05, momentum=0.9), data,
        seed=1, batch_size=200, device="cpu", dtype=dtype, **options,
    )  # fmt: skip


def test_running_moments_are_in_the_checkpoint_and_a_resumed_run_has_the_same_bits():
    straight, first, second = trainer(), trainer(), trainer()
    straight.fit(epochs=3)
    first.fit(epochs=1)
    content = first.content()
    assert {"state/1-batch_norm/mean", "state/1-batch_norm/variance"} <= set(content)
    content = {name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in content.items()}
    assert not np.array_equal(content["state/1-batch_norm/mean"], second.network.state[:, :4][:, None])
    second.restore(content)
    second.fit(epochs=3)
    for name in ("w", "state"):
        assert getattr(second.network, name).tobytes() == getattr(straight.network, name).tobytes(), name
    assert second.evaluate("test") == straight.evaluate("test")


def test_dropout2d_drops_whole_channels():
    x = np.ones((50, 3, 4, 20))
    y, dx, _, _ = run(gp.Dropout2d(0.3), x, np.ones_like(x))
    assert np.array_equal(y, np.broadcast_to(y[:, :1, :1], y.shape))
    assert set(np.unique(y)) == {0, 1 / 0.7}
    assert abs((y[:, 0, 0] > 0).mean() - 0.7) < 5 * np.sqrt(0.21 / 1000)
    assert np.array_equal(dx, y)


ADVICE = "; rows of a table become so with `shape = "
STORED = '[28, 28, 1]` in [data], those of an array that has this shape with `shape = "stored"`'


@pytest.mark.parametrize(
    ("layer", "row", "message"),
    [
        (gp.Conv2d(2, 3), (784,), "images (height, width, channels), got (784,)" + ADVICE + "[28, 28, 1]` in [data]"),
        (gp.MaxPool2d(), (784,), "images (height, width, channels), got (784,)" + ADVICE + STORED),
        (gp.Conv1d(2, 3), (8, 8, 1), "series (time, channels), got (8, 8, 1)" + ADVICE + "[100, 1]` in [data]"),
        (gp.ConvTranspose2d(2, 3), (5,), "images (height, width, channels)"),
        (gp.LSTM(2), (6,), "sequences (batch, T, features), got (1, 6); `shape` in [data], a reshape or an embedding"),
        (gp.MaxPool2d(), (5,), "images (height, width, channels)"),
        (gp.MaxPool1d(), (5,), "series (time, channels)"),
        (gp.GlobalAveragePool(), (5,), "images (height, width, channels) or series (time, channels), got (5,)"),
        (gp.Dropout2d(), (5,), "images (height, width, channels) or series (time, channels), got (5,); for single"),
        (
            gp.Conv2d(2, (3, 9)),
            (8, 8, 1),
            "at least 3 x 9 places for the kernel, got 8 x 8; a smaller kernel or padding",
        ),
        (
            gp.Conv2d(2, 3, padding=1, dilation=5),
            (8, 8, 1),
            "at least 11 x 11 places for the kernel and its dilation, got 10 x 10 with padding",
        ),
        (gp.Conv2d(4, 3, groups=2), (8, 8, 3), "inputs that 2 groups can share, got 3 inputs"),
        (gp.Conv2d(3, 3, groups=2), (8, 8, 4), "outputs that 2 groups can share, got 3 outputs"),
        (gp.ConvTranspose2d(2, 2, padding=3), (3, 3, 1), "less padding, got 3, which leaves nothing of the output"),
        (gp.MaxPool2d(9), (8, 8, 1), "at least 9 x 9 places for the kernel, got 8 x 8"),
        (gp.MaxPool2d(2, padding=2), (8, 8, 1), "less padding than the kernel's 2, got 2"),
        (gp.GroupNorm(3), (8, 8, 4), "channels that 3 groups can share, got 4 channels"),
        (gp.BatchNorm(), (), "rows of features (batch, ..., channels)"),
    ],
)
def test_a_shape_that_does_not_fit_names_the_layer_and_what_to_do(layer, row, message):
    name = type_name(type(layer))
    with pytest.raises(ShapeError, match=re.escape(f"0-{name}: wants {message}")):
        Network(gp.Chain(layer), row)


@pytest.mark.parametrize(
    "fields", [{"kernel": 0}, {"kernel": (1, 2, 3)}, {"stride": 0}, {"padding": "full"}, {"padding": -1}, {"bias": 1}]
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        gp.Conv2d(**{"units": 2, "kernel": 3, **fields})


@pytest.mark.parametrize("kind", [gp.Conv1d, gp.Conv2d, gp.ConvTranspose2d])
def test_without_a_bias_there_is_none_to_be_given_or_frozen(kind):
    for key, fields in (("init.b", {"init": {"b": 0.5}}), ("freeze", {"freeze": ("W", "b")})):
        with pytest.raises(ConfigError, match=f"{key}: there is no parameter 'b' where bias = false"):
            kind(2, 3, bias=False, **fields)
        kind(2, 3, **fields)


@pytest.mark.parametrize(
    ("layer", "row"),
    [
        (gp.Conv1d(2, 3, activation="tanh"), (4, 1)),
        (gp.Conv2d(2, 3, groups=2, activation="tanh"), (4, 4, 2)),
        (gp.ConvTranspose2d(2, 3, activation="tanh"), (3, 3, 1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_activation_of_a_convolution_takes_can_be_looked_at(layer, row):
    plan = Plan(Network(gp.Chain(layer), row), 2, training=True)
    plan.x.value[...] = drawn(plan.x.value.shape[1:])
    plan.forward()
    z, y = plan.notes
    assert [(note.path, note.name) for note in (z, y)] == [(f"0-{type_name(type(layer))}", name) for name in "zy"]
    np.testing.assert_allclose(np.tanh(z.slot.value), y.slot.value, rtol=1e-6)
