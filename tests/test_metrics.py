"""Every metric against plain NumPy, over several batches, with row weights, populations and ties."""

import fake_cupy
import numpy as np
import pytest
from battery import assert_no_growth, assert_same_bits, every, example

from gpbackprop.backend import select
from gpbackprop.errors import ConfigError
from gpbackprop.layers.activation import Linear
from gpbackprop.metrics import R2, Accuracy, Confusion, MeanAbsoluteError, Metric, TopK
from gpbackprop.plan import Network, Plan, Target

every_metric = pytest.mark.parametrize("cls", every(Metric))


class Evaluated:
    """A metric over outputs y (K, B, ..., O) of a batch; `forward()` adds the batch that was filled in."""

    def __init__(self, metric, K, B, O, classes=0, weighted=False, dtype="f8", threshold=0.5, backend=None, scale=None):  # noqa: E741
        self.metric = metric
        self.net = Network(Linear(), (O,), backend, range(K), dtype)

        def finish(plan):
            value = plan.scratch((B,), np.int64) if classes else plan.scratch((B, O))
            self.target = Target(value, classes, plan.scratch((B,)) if weighted else None, scale)
            metric.trace(plan, plan.y, self.target, threshold)

        self.plan = Plan(self.net, B, loss=finish)
        self.forward = self.plan.forward

    def fill(self, y, t, weight=None):
        for array, values in ((self.plan.x.value, y), (self.target.value, t), (self.target.weight, weight)):
            if array is not None:
                self.net.backend.stage(np.asarray(values).astype(array.dtype), array)

    def value(self):
        return self.metric.value({name: self.net.backend.host(tally) for name, tally in self.plan.tallies.items()})


def measured(metric, y, t, weight=None, *, batches=1, **options):
    """The metric of each member over the rows, in equal batches."""
    K, B, O = y.shape  # noqa: E741
    run = Evaluated(metric, K, B // batches, O, weighted=weight is not None, **options)
    for part in np.split(np.arange(B), batches):
        run.fill(y[:, part], t[:, part], None if weight is None else weight[:, part])
        run.forward()
    return run.value()


def rows(metric, K=3, B=60, O=3):  # noqa: E741
    """Outputs, targets, row weights, number of classes."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(K, B, O))
    t = rng.integers(0, O, (K, B)) if metric.classes_only else y + rng.normal(size=y.shape)
    return y, t, rng.uniform(0.5, 2, (K, B)), O if metric.classes_only else 0


def top_k(metric, y, t, w):
    own = np.take_along_axis(y, t[:, None], axis=1)
    return np.average((y >= own).sum(axis=1) <= metric.k, weights=w)


def confusion(metric, y, t, w):
    counts = np.zeros((3, 3), int)
    for truth, guess in zip(t, y.argmax(axis=1), strict=True):
        counts[truth, guess] += 1
    return counts


def r2(metric, y, t, w):
    mean = np.average(t, axis=0, weights=w)
    return np.mean(1 - (w @ (t - y) ** 2) / (w @ (t - mean) ** 2))


# Of one member: outputs (B, O), targets, row weights.
FORMULAS = {
    "accuracy": lambda metric, y, t, w: np.average(y.argmax(axis=1) == t, weights=w),
    "top_k": top_k,
    "confusion": confusion,
    "r2": r2,
    "mean_absolute_error": lambda metric, y, t, w: np.average(np.abs(y - t).mean(axis=1), weights=w),
}


@every_metric
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("batches", [1, 3])
def test_a_metric_is_its_formula_for_each_member(cls, weighted, batches, request):
    name, metric = next(case.id for case in every(Metric) if case.values[0] is cls), example(cls)
    assert name in FORMULAS, f"{name}: give test_metrics.FORMULAS its formula in plain NumPy"
    y, t, weight, classes = rows(metric)
    got = measured(metric, y, t, weight if weighted else None, batches=batches, classes=classes)
    for k in range(3):
        own = weight[k] if weighted else np.ones(y.shape[1])
        np.testing.assert_allclose(got[k], FORMULAS[name](metric, y[k], t[k], own), rtol=1e-13)


@every_metric
def test_float32_outputs_are_added_up_in_float64(cls):
    metric = example(cls)
    y, t, _, classes = (np.float32(a) if isinstance(a, np.ndarray) else a for a in rows(metric))
    t = t.astype(int) if classes else t
    y[...], t[...] = y[:, :1], t[:, :1] if classes else 1 / 3  # the same row many times, so that rounding would pile up
    y[:, ::2] += np.float32(0.25)
    wide = measured(metric, y.astype("f8"), t, classes=classes, batches=20)
    narrow = measured(metric, y, t, classes=classes, batches=20, dtype="f4")
    np.testing.assert_allclose(narrow, wide, rtol=1e-6)


@every_metric
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("outputs", [3, 1])
def test_a_member_of_a_population_has_the_bits_of_the_network_alone(cls, dtype, outputs):
    metric = example(cls)
    if outputs == 1 and cls is TopK:
        metric = TopK(k=1)
    y, t, weight, classes = rows(metric, B=300, O=outputs)
    classes = classes and max(classes, 2)
    together = measured(metric, y, t, weight, classes=classes, dtype=dtype)
    for k in range(3):
        one = slice(k, k + 1)
        assert_same_bits([together[one]], [measured(metric, y[one], t[one], weight[one], classes=classes, dtype=dtype)])


@every_metric
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_a_metric_allocates_nothing_that_grows_with_the_batch(cls, weighted):
    metric = example(cls)

    def step_of(batch):
        y, t, weight, classes = rows(metric, K=1, B=batch)
        run = Evaluated(metric, 1, batch, 3, classes, weighted, dtype="f4")
        run.fill(y, t, weight)
        return run.forward

    assert_no_growth(step_of)


@every_metric
def test_cuda_gives_the_bits_of_the_cpu_and_never_waits_in_a_step(cls, monkeypatch):
    fake_cupy.install(monkeypatch)
    metric, values = example(cls), []
    y, t, weight, classes = rows(metric)
    for device in ("cpu", "cuda"):
        run = Evaluated(metric, 3, 60, 3, classes, True, dtype="f4", backend=select(device))
        run.fill(y, t, weight)
        with fake_cupy.forbid_sync():
            run.forward()
        values.append([run.value()])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)  # CuPy adds float32 up in float32


@pytest.mark.cuda
@every_metric
def test_a_gpu_gives_the_numbers_of_the_cpu(cls, cuda):
    metric = example(cls)
    y, t, weight, classes = rows(metric)
    cpu, gpu = (measured(metric, y, t, weight, classes=classes, backend=backend) for backend in (select("cpu"), cuda))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-10)


def test_accuracy_takes_the_first_of_equal_outputs():
    y = np.zeros((1, 2, 3))
    assert measured(Accuracy(), y, np.array([[0, 2]]), classes=3).tolist() == [0.5]


@pytest.mark.parametrize(("threshold", "expected"), [(0.5, 0.75), (0.0, 0.25)])
def test_one_output_means_the_second_class_above_the_threshold(threshold, expected):
    y, t = np.array([[[-1.0], [0.2], [0.5], [2.0]]]), np.array([[1, 0, 0, 1]])
    assert measured(Accuracy(), y, t, classes=2, threshold=threshold).tolist() == [expected]
    counts = measured(Confusion(), y, t, classes=2, threshold=threshold)[0]
    assert counts.trace() == 4 * expected
    assert counts.sum() == 4


def test_ties_count_against_the_row_in_top_k():
    y, t = np.array([[[1.0, 1.0, 0.0], [3.0, 2.0, 1.0], [5.0, 5.0, 5.0]]]), np.array([[0, 2, 1]])
    assert [measured(TopK(k=k), y, t, classes=3)[0] for k in (1, 2, 3)] == pytest.approx([0, 1 / 3, 1])


def test_outputs_that_are_no_numbers_are_never_among_the_top():
    y = np.full((1, 2, 3), np.nan)
    assert measured(TopK(k=2), y, np.array([[0, 1]]), classes=3).tolist() == [0]


def test_confusion_counts_truth_in_rows_and_predictions_in_columns():
    y = np.eye(3)[None, [0, 1, 1, 2]]
    counts = measured(Confusion(), y, np.array([[0, 0, 1, 2]]), classes=3)
    assert counts.tolist() == [[[1, 1, 0], [0, 1, 0], [0, 0, 1]]]
    assert counts.dtype == np.int64


def test_r2_is_one_for_the_targets_themselves_and_zero_for_their_mean():
    t = np.random.default_rng(0).normal(size=(1, 50, 2)) * [1, 100] + [5, -3]
    assert measured(R2(), t, t).tolist() == [1]
    mean = np.broadcast_to(t.mean(axis=1, keepdims=True), t.shape)
    np.testing.assert_allclose(measured(R2(), mean, t), 0, atol=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1 / 3, -1e6])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_r2_of_constant_targets_is_no_number(constant, weighted):
    y, t = np.random.default_rng(0).normal(size=(1, 77, 1)), np.full((1, 77, 1), constant)
    weight = np.random.default_rng(1).uniform(0.5, 2, (1, 77)) if weighted else None
    assert np.isnan(measured(R2(), y, t, weight)).all()


def test_r2_over_all_variance_lets_outputs_that_hardly_vary_count_little():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(1, 60, 3)) * [1, 0.01, 0]
    y = t + 0.1 * rng.normal(size=t.shape)
    expected = 1 - ((t - y) ** 2).sum() / ((t - t.mean(axis=1)) ** 2).sum()
    assert 0.9 < expected < 1
    assert measured(R2("variance"), y, t)[0] == pytest.approx(expected, rel=1e-10)


def test_r2_sees_a_small_spread_around_a_large_mean():
    rng = np.random.default_rng(0)
    t = 1000 + rng.normal(size=(1, 200, 1))
    y = t + 0.1 * rng.normal(size=t.shape)
    np.testing.assert_allclose(measured(R2(), y, t), r2(None, y[0], t[0], np.ones(200)), rtol=1e-7)


def test_mean_absolute_error_comes_in_the_units_of_the_raw_targets():
    y, t = np.zeros((1, 4, 2)), np.ones((1, 4, 2))
    assert measured(MeanAbsoluteError(), y, t, scale=np.array([10.0, 30.0])).tolist() == [20]


def test_rows_that_all_weigh_nothing_have_no_accuracy():
    y, t = np.zeros((1, 4, 2)), np.zeros((1, 4), int)
    assert np.isnan(measured(Accuracy(), y, t, np.zeros((1, 4)), classes=2)).all()


@pytest.mark.parametrize(
    ("metric", "classes", "message"),
    [
        (Accuracy(), 0, "accuracy needs classes, the targets are numbers"),
        (Confusion(), 0, "confusion needs classes"),
        (TopK(k=2), 0, "top_2_accuracy needs classes"),
        (TopK(k=4), 3, "top_k has k = 4, the model gives 3 outputs"),
        (R2(), 3, "r2 needs numbers for targets, the data has classes"),
        (MeanAbsoluteError(), 3, "mean_absolute_error needs numbers for targets, the data has classes"),
    ],
)
def test_a_metric_says_what_it_cannot_measure(metric, classes, message):
    with pytest.raises(ConfigError, match=f"^train.metrics: {message}"):
        metric.check(classes, 3)


def test_top_k_needs_a_k_above_zero():
    with pytest.raises(ConfigError, match="k"):
        TopK(k=0)
