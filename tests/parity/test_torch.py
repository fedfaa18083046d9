"""The same networks in PyTorch: forward, gradients, and ten steps of training.

PyTorch judges the definitions; it is not needed to run or test anything else, and without it this file is skipped.
"""

import dataclasses
import math

import numpy as np
import pytest
from battery import Held, Training, every, example, layers, outputs_and_targets

from gpbackprop.backend import random
from gpbackprop.layers.combine import Chain
from gpbackprop.layers.dense import Dense
from gpbackprop.losses import HalfSquaredError, Loss, SoftmaxCrossEntropy
from gpbackprop.optim.adam import Adam, AdamW, NAdam
from gpbackprop.optim.adaptive import Adadelta, Adagrad, RMSProp
from gpbackprop.optim.base import Optimizer
from gpbackprop.optim.lbfgs import LBFGS
from gpbackprop.optim.local import DeltaBarDelta, Quickprop, Rprop
from gpbackprop.optim.rule import GradientRule
from gpbackprop.optim.schedules import ReduceOnPlateau, Schedule
from gpbackprop.optim.sgd import SGD
from gpbackprop.spec import type_name

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
import images  # noqa: E402  (it needs PyTorch)
import sequences  # noqa: E402

nn, F = torch.nn, torch.nn.functional

torch.set_num_threads(1)
BOUND = {"f8": 1e-10, "f4": 1e-5}
precisions = pytest.mark.parametrize("dtype", ["f4", "f8"])


def counterpart(table, name, item):
    """The entry of a class in one of the tables below; fails with what to do where there is none."""
    if (key := type_name(type(item))) not in table:
        pytest.fail(
            f"{type(item).__name__} has no counterpart: give parity/test_torch.py {name}[{key!r}] its PyTorch form"
        )
    return table[key]


class Twin:
    """`net` in PyTorch. `pairs` lists each parameter: (path, PyTorch's parameter, whether it is transposed there)."""

    def __init__(self, net):
        self.net, self.pairs, self.step = net, [], 0
        self.w = net.params.views(net.w)
        self.module = self(net.model, "")
        for path, theirs, transposed in self.pairs:
            ours = torch.tensor(self.w[path][0])
            theirs.data = ours.T.contiguous() if transposed else ours
            theirs.requires_grad_(not net.params[path].frozen)

    def __call__(self, layer, path):
        return counterpart(LAYERS, "LAYERS", layer)(self, layer, path)

    def row(self, items, path):
        return nn.Sequential(*(self(item, f"{path}{i}-{type_name(type(item))}/") for i, item in enumerate(items)))

    def dense(self, layer, path):
        inputs, outputs = self.net.params[f"{path}W"].shape
        linear = nn.Linear(inputs, outputs)
        self.pairs += [(f"{path}W", linear.weight, True), (f"{path}b", linear.bias, False)]
        return nn.Sequential(linear, self(layer.activation, path)) if layer.activation else linear

    def arrays(self, of):
        """Each parameter's `of` ("data" or "grad") in our layout, by path."""
        found = {path: (getattr(theirs, of), transposed) for path, theirs, transposed in self.pairs}
        return {path: (t.T if transposed else t).numpy() for path, (t, transposed) in found.items() if t is not None}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Parallel(nn.Module):
    def __init__(self, branches, combine):
        super().__init__()
        self.branches, self.combine = nn.ModuleList(branches), combine

    def forward(self, x):
        join = {"concat": lambda outs: torch.cat(outs, dim=-1), "sum": sum, "product": math.prod}[self.combine]
        return join([branch(x) for branch in self.branches])


class Dropout(nn.Module):
    """PyTorch draws other masks: this one is given ours, from their definition."""

    def __init__(self, twin, layer, path):
        super().__init__()
        self.twin, self.rate = twin, layer.rate
        self.key = random.key(twin.net.seeds[0], f"{path}uniform")[None]

    def forward(self, x):
        u, bits = np.empty((1, *x.shape)), np.empty((2, 1, *x.shape), np.uint32)
        index = np.arange(x.numel(), dtype=np.uint32).reshape(x.shape)
        random.uniform(np, u, bits, index, self.key, np.array([self.twin.step], np.uint32))
        return x * torch.tensor(u[0] >= self.rate) / (1 - self.rate)


# A class of ours: (the twin, the layer, its path) -> a PyTorch module. Paths end with "/".
LAYERS = {
    "dense": Twin.dense,
    "linear": lambda twin, layer, path: nn.Identity(),
    "sigmoid": lambda twin, layer, path: nn.Sigmoid(),
    "tanh": lambda twin, layer, path: nn.Tanh(),
    "relu": lambda twin, layer, path: nn.ReLU(),
    "leaky_relu": lambda twin, layer, path: nn.LeakyReLU(layer.slope),
    "elu": lambda twin, layer, path: nn.ELU(layer.alpha),
    "gelu": lambda twin, layer, path: nn.GELU(approximate="tanh"),
    "silu": lambda twin, layer, path: nn.SiLU(),
    "softplus": lambda twin, layer, path: nn.Softplus(threshold=1e4),
    "softmax": lambda twin, layer, path: nn.Softmax(dim=-1),
    "dropout": Dropout,
    "flatten": lambda twin, layer, path: nn.Flatten(),
    "reshape": lambda twin, layer, path: nn.Unflatten(1, layer.shape),
    "chain": lambda twin, layer, path: twin.row(layer.layers, path),
    "residual": lambda twin, layer, path: Residual(twin.row(layer.layers, path)),
    "parallel": lambda twin, layer, path: Parallel(
        [twin(branch, f"{path}{i}-{type_name(type(branch))}/") for i, branch in enumerate(layer.branches)],
        layer.combine,
    ),
}

LAYERS |= images.LAYERS | sequences.LAYERS

# The loss of each row: (the loss, outputs, targets) -> a tensor without the last axis.
LOSSES = {
    "half_squared_error": lambda loss, y, t: F.mse_loss(y, t, reduction="none").sum(dim=-1) / 2,
    "mean_squared_error": lambda loss, y, t: F.mse_loss(y, t, reduction="none").mean(dim=-1),
    "mean_absolute_error": lambda loss, y, t: F.l1_loss(y, t, reduction="none").mean(dim=-1),
    "huber": lambda loss, y, t: F.huber_loss(y, t, reduction="none", delta=loss.delta).mean(dim=-1),
    "softmax_cross_entropy": lambda loss, y, t: F.cross_entropy(
        y, t, reduction="none", label_smoothing=loss.label_smoothing
    ),
    "binary_cross_entropy": lambda loss, y, t: F.binary_cross_entropy_with_logits(y, t, reduction="none").mean(dim=-1),
    "perceptron": lambda loss, y, t: F.relu(-y * t).sum(dim=-1),
    "hinge": lambda loss, y, t: F.hinge_embedding_loss(y * t, -torch.ones_like(y), reduction="none").sum(dim=-1),
}


class Elementwise(torch.optim.Optimizer):
    """A rule that PyTorch lacks, written for one weight: (weight, gradient, its memory, options) -> new weight."""

    def __init__(self, groups, rule, **options):
        self.rule = rule
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                memory = self.state[p].setdefault("memory", [{} for _ in range(p.numel())])
                flat, grad = p.view(-1), (p.grad + group["weight_decay"] * p).reshape(-1).tolist()
                new = [self.rule(w, g, m, group) for w, g, m in zip(flat.tolist(), grad, memory, strict=True)]
                flat.copy_(torch.tensor(new))


def quickprop(w, g, memory, group):
    """As in Fahlman's program: by the sign of the last step, with the slope downhill."""
    slope, before, step, shrink = (
        -g,
        memory.get("slope", 0),
        memory.get("step", 0),
        group["growth"] / (1 + group["growth"]),
    )
    after = 0
    if step > 0:
        after += group["lr"] * slope if slope > 0 else 0
        after += group["growth"] * step if slope > shrink * before else step * slope / (before - slope)
    elif step < 0:
        after += group["lr"] * slope if slope < 0 else 0
        after += group["growth"] * step if slope < shrink * before else step * slope / (before - slope)
    else:
        after += group["lr"] * slope
    memory.update(slope=slope, step=after)
    return w + after


def delta_bar_delta(w, g, memory, group):
    bar, gain = memory.get("bar", 0), memory.get("gain", 1)
    gain = gain + group["kappa"] if bar * g > 0 else gain * (1 - group["phi"]) if bar * g < 0 else gain
    memory.update(gain=gain, bar=(1 - group["theta"]) * g + group["theta"] * bar)
    return w - group["lr"] * gain * g


def groups(opt, matrices, vectors):
    return [{"params": matrices, "weight_decay": opt.weight_decay}, {"params": vectors, "weight_decay": 0.0}]


# (the optimizer, parameters with weight decay, those without) -> PyTorch's optimizer.
OPTIMIZERS = {
    "sgd": lambda opt, matrices, vectors: torch.optim.SGD(
        groups(opt, matrices, vectors), lr=opt.lr, momentum=opt.momentum, nesterov=opt.nesterov,
    ),
    "adagrad": lambda opt, matrices, vectors: torch.optim.Adagrad(
        groups(opt, matrices, vectors), lr=opt.lr, initial_accumulator_value=opt.initial, eps=opt.eps
    ),
    "rmsprop": lambda opt, matrices, vectors: torch.optim.RMSprop(
        groups(opt, matrices, vectors),
        lr=opt.lr, alpha=opt.alpha, eps=opt.eps, momentum=opt.momentum, centered=opt.centered,
    ),
    "adadelta": lambda opt, matrices, vectors: torch.optim.Adadelta(
        groups(opt, matrices, vectors), lr=opt.lr, rho=opt.rho, eps=opt.eps
    ),
    "adam": lambda opt, matrices, vectors: torch.optim.Adam(
        groups(opt, matrices, vectors), lr=opt.lr, betas=(opt.beta1, opt.beta2), eps=opt.eps, amsgrad=opt.amsgrad
    ),
    "adamw": lambda opt, matrices, vectors: torch.optim.AdamW(
        groups(opt, matrices, vectors), lr=opt.lr, betas=(opt.beta1, opt.beta2), eps=opt.eps, amsgrad=opt.amsgrad
    ),
    "rprop": lambda opt, matrices, vectors: torch.optim.Rprop(
        [*matrices, *vectors], lr=opt.lr, etas=(opt.down, opt.up), step_sizes=(opt.least, opt.most)
    ),
    "quickprop": lambda opt, matrices, vectors: Elementwise(
        groups(opt, matrices, vectors), quickprop, lr=opt.lr, growth=opt.growth
    ),
    "delta_bar_delta": lambda opt, matrices, vectors: Elementwise(
        groups(opt, matrices, vectors), delta_bar_delta, lr=opt.lr, kappa=opt.kappa, phi=opt.phi, theta=opt.theta
    ),
    "nadam": lambda opt, matrices, vectors: torch.optim.NAdam(
        groups(opt, matrices, vectors),
        lr=opt.lr, betas=(opt.beta1, opt.beta2), eps=opt.eps, momentum_decay=opt.momentum_decay,
    ),
}  # fmt: skip

# Options of an optimizer that are tried beside its example.
OPTIONS = {
    "sgd": [
        SGD(0.1),
        SGD(0.1, momentum=0.9),
        SGD(0.1, momentum=0.9, nesterov=True),
        SGD(0.1, weight_decay=0.05),
        SGD(0.1, momentum=0.5, weight_decay=0.05),
    ],
    "adagrad": [Adagrad(), Adagrad(0.05, initial=0.1, eps=1e-3, weight_decay=0.05)],
    "rmsprop": [RMSProp(), RMSProp(0.02, alpha=0.9, weight_decay=0.05), RMSProp(momentum=0.9, eps=1e-3)],
    "adadelta": [Adadelta(), Adadelta(0.5, rho=0.8, weight_decay=0.05)],
    "adam": [Adam(), Adam(0.02, beta1=0.5, beta2=0.9, eps=1e-4), Adam(0.02, amsgrad=True, beta2=0.5)],
    "adamw": [AdamW(), AdamW(0.02, weight_decay=0.3, amsgrad=True), AdamW(weight_decay=0.0)],
    "rprop": [Rprop(0.05, up=1.5, least=0.01, most=0.1)],
    "quickprop": [Quickprop(0.05, growth=1.2, weight_decay=0.05)],
    "delta_bar_delta": [DeltaBarDelta(0.1, kappa=0.5, phi=0.5, theta=0.2, weight_decay=0.05)],
    "nadam": [NAdam(), NAdam(0.02, beta1=0.5, momentum_decay=0.1, weight_decay=0.05)],
}

# (the schedule, PyTorch's optimizer, the number of epochs) -> PyTorch's schedule, stepped once an epoch.
SCHEDULES = {
    "constant": lambda s, opt, T: torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0),
    "step": lambda s, opt, T: torch.optim.lr_scheduler.StepLR(opt, s.every, s.gamma),
    "exponential": lambda s, opt, T: torch.optim.lr_scheduler.ExponentialLR(opt, s.gamma),
    "polynomial": lambda s, opt, T: torch.optim.lr_scheduler.PolynomialLR(opt, T, s.power),
    "warm_restarts": lambda s, opt, T: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        opt, s.period, s.growth, s.floor
    ),
    # PyTorch's peak is at step pct_start total_steps - 1, its end at step total_steps - 1
    "one_cycle": lambda s, opt, T: torch.optim.lr_scheduler.OneCycleLR(
        opt,
        1.0,
        total_steps=T + 1,
        pct_start=(s.rise * T + 1) / (T + 1),
        div_factor=1 / s.start,
        final_div_factor=s.start / s.end,
        cycle_momentum=False,
    ),
    "reduce_on_plateau": lambda s, opt, T: torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0),  # nothing seen yet
    "cosine": lambda s, opt, T: torch.optim.lr_scheduler.CosineAnnealingLR(opt, T, eta_min=s.floor),
    "warmup": lambda s, opt, T: torch.optim.lr_scheduler.LambdaLR(
        opt,
        lambda t: s.start + (1 - s.start) * t / s.epochs if t < s.epochs else s.then.factor(t - s.epochs, T - s.epochs),
    ),
}


def torch_loss(loss, y, t, weight):
    """Our weights and reduction around a row loss of PyTorch's."""
    named = type_name(type(loss))
    w = weight.reshape(-1, *(1,) * (y.ndim - 2)).expand(y.shape[:-1])
    if t.dtype == torch.int64:
        if loss.class_weights:
            w = w * torch.tensor(loss.class_weights, dtype=y.dtype)[t]
        if named != "softmax_cross_entropy":
            t = torch.tensor(loss.table(y.shape[-1], y.shape[-1]), dtype=y.dtype)[t]
    total = (w * counterpart(LOSSES, "LOSSES", loss)(loss, y, t)).sum()
    return total / w.sum() if loss.reduce == "mean" else total


def apart(ours, theirs):
    """max |ours - theirs| / max |theirs|."""
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-12)) if theirs.size else 0.0


def trajectory(training: Training, optimizer: Optimizer, steps: int = 10) -> float:
    """The worst difference in outputs, loss, gradients and parameters over some steps."""
    twin, worst = Twin(training.net), 0.0
    trained = [(path, p) for path, p, _ in twin.pairs if p.requires_grad]
    decays = training.net.params
    theirs = counterpart(OPTIMIZERS, "OPTIMIZERS", optimizer)(
        optimizer,
        [p for path, p in trained if decays[path].decay],
        [p for path, p in trained if not decays[path].decay],
    )
    for step in range(steps):
        training.load(step)
        x, t, weight = (
            torch.tensor(a[0]) for a in (training.plan.x.value, training.target.value, training.target.weight)
        )
        theirs.zero_grad()
        twin.step = step
        y = twin.module(x)
        loss = torch_loss(training.loss, y, t, weight)
        loss.backward()
        training.plan.forward()
        training.plan.backward()
        total = training.total[0, 0, 0] / (training.mass[0, 0, 0] if training.loss.reduce == "mean" else 1)
        worst = max(worst, apart(training.plan.y.value[0], y.detach().numpy()), abs(total / loss.item() - 1))
        for path, grad in twin.arrays("grad").items():
            worst = max(worst, apart(training.net.params[path].of(training.net.g)[0], grad))
        theirs.step()
        training.update.step()
        training.net.clock += 1
        for path, value in twin.arrays("data").items():
            worst = max(worst, apart(twin.w[path][0], value))
    return worst


def layer_difference(layer, row, dtype):
    optimizer = SGD(0.02, momentum=0.9)
    return trajectory(Training(layer, row, batch=6, dtype=dtype, optimizer=optimizer), optimizer)


def loss_difference(loss, dtype):
    """Ten steps with classes, and values and gradients with numbers."""
    optimizer = SGD(0.02, momentum=0.9)
    model = Chain(Dense(4, activation="tanh"), Dense(3))
    training = Training(model, (5,), batch=6, dtype=dtype, loss=loss, optimizer=optimizer, classes=3)
    worst = trajectory(training, optimizer)
    if loss.class_weights:
        return worst
    y, t = outputs_and_targets(loss, classes=False, K=1)
    weight = np.random.default_rng(0).uniform(0.5, 2, (1, 5))
    value, grad = Held(loss, y, t, 0, weight, dtype).run()
    theirs = torch.tensor(y[0].astype(dtype), requires_grad=True)
    total = torch_loss(loss, theirs, *(torch.tensor(a[0].astype(dtype)) for a in (t, weight)))
    total.backward()
    return max(worst, abs(value[0] / total.item() - 1), apart(grad[0], theirs.grad.numpy()))


def optimizer_difference(optimizer, dtype):
    model = Chain(Dense(4, activation="tanh"), Dense(4, freeze=("W",)), Dense(2))
    torch.set_default_dtype(torch.float64)  # in which PyTorch keeps NAdam's product, whatever the parameters are
    try:
        training = Training(model, (5,), batch=6, dtype=dtype, optimizer=optimizer)
        return trajectory(training, optimizer, steps=50 if dtype == "f8" else 10)  # in float32 rounding grows
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", layers())
@precisions
def test_a_layer_trains_as_in_pytorch(make, dtype):
    assert layer_difference(*make(), dtype) < BOUND[dtype]


@pytest.mark.parametrize("cls", every(Loss))
@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0, 1.0)], ids=["", "class weights"])
@precisions
def test_a_loss_trains_as_in_pytorch(cls, reduce, class_weights, dtype):
    loss = dataclasses.replace(example(cls), reduce=reduce, class_weights=class_weights)
    assert loss_difference(loss, dtype) < BOUND[dtype]


@precisions
def test_label_smoothing_is_that_of_pytorch(dtype):
    assert loss_difference(SoftmaxCrossEntropy(label_smoothing=0.1), dtype) < BOUND[dtype]


def test_means_are_those_of_pytorch_where_it_has_them():
    y, t = outputs_and_targets(SoftmaxCrossEntropy(), classes=True, K=1)
    ours, _ = Held(SoftmaxCrossEntropy(class_weights=(0.5, 2.0, 1.0)), y, t, 3).run()
    theirs = F.cross_entropy(torch.tensor(y[0]), torch.tensor(t[0]), weight=torch.tensor([0.5, 2.0, 1.0]).double())
    assert ours[0] == pytest.approx(theirs.item(), rel=1e-13)
    for name, mean in (("mean_squared_error", F.mse_loss), ("mean_absolute_error", F.l1_loss)):
        loss = next(case.values[0] for case in every(Loss) if case.id == name)()
        assert Held(loss, y, y * 0 + 1).run()[0][0] == pytest.approx(mean(torch.tensor(y), torch.ones(y.shape)).item())


@pytest.mark.parametrize("cls", every(GradientRule))
@precisions
def test_an_optimizer_trains_as_in_pytorch(cls, dtype):
    for optimizer in (example(cls), *OPTIONS.get(type_name(cls), [])):
        assert optimizer_difference(optimizer, dtype) < BOUND[dtype], optimizer


def lbfgs_differences(optimizer: LBFGS, steps: int) -> list[float]:
    """The worst difference of the parameters after each of some steps over one batch, in float64."""
    training = Training(
        Chain(Dense(4, activation="tanh"), Dense(4, freeze=("W",)), Dense(2)), (5,), batch=30, dtype="f8",
        optimizer=optimizer,
    )  # fmt: skip
    training.load()
    twin, found = Twin(training.net), []
    x, t, weight = (torch.tensor(a[0]) for a in (training.plan.x.value, training.target.value, training.target.weight))
    theirs = torch.optim.LBFGS(
        [p for _, p, _ in twin.pairs if p.requires_grad], optimizer.lr,
        max_iter=1, max_eval=26, history_size=optimizer.memory, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        theirs.zero_grad()
        value = torch_loss(training.loss, twin.module(x), t, weight)
        value.backward()
        return value

    for _ in range(steps):
        training.step()
        theirs.step(loss)
        found.append(max(apart(twin.w[path][0], value) for path, value in twin.arrays("data").items()))
    return found


@pytest.mark.parametrize("memory", [3, 20])
@pytest.mark.parametrize("lr", [1.0, 0.01, 50.0], ids="lr {}".format)
def test_lbfgs_takes_the_steps_of_pytorch(memory, lr):
    """lr is the first length of the line search: 0.01 makes it grow, 50 makes it shrink."""
    steps = 50 if lr <= 1 else 25  # the rounding of long interpolations grows, in PyTorch as here
    found = lbfgs_differences(LBFGS(lr, memory=memory), steps)
    assert max(found[:15]) < 1e-9
    assert max(found) < 1e-6


@pytest.mark.parametrize("cls", every(Schedule))
def test_a_schedule_is_that_of_pytorch_at_each_epoch(cls):
    schedule, epochs = example(cls), 8
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = counterpart(SCHEDULES, "SCHEDULES", schedule)(schedule, optimizer, epochs)
    for t in range(epochs):
        assert schedule.factor(t, epochs) == pytest.approx(theirs.get_last_lr()[0], abs=1e-14)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("options", [{}, {"patience": 1, "cooldown": 2}, {"gamma": 0.5, "threshold": 0.2}], ids=str)
def test_reduce_on_plateau_sees_what_pytorch_sees(options):
    schedule = ReduceOnPlateau(**{"patience": 3, "gamma": 0.7, "floor": 0.1, **options})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=schedule.gamma, patience=schedule.patience, threshold=schedule.threshold,
        cooldown=schedule.cooldown, min_lr=schedule.floor, eps=0,
    )  # fmt: skip
    past = []
    for value in np.random.default_rng(0).uniform(0, 1, 40) + np.linspace(1, 0, 40) ** 4:
        past.append(float(value))
        theirs.step(past[-1])
        assert schedule.factor(0, 40, past) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
    assert schedule.factor(0, 40, past) < 1


def test_a_class_without_a_counterpart_is_told_what_to_give():
    class New(Dense):
        __abstract__ = True

    with pytest.raises(pytest.fail.Exception, match=r"New has no counterpart: give .* LAYERS\['new'\]"):
        counterpart(LAYERS, "LAYERS", New(3))
    with pytest.raises(pytest.fail.Exception, match=r"LOSSES\['loss'\]"):
        counterpart(LOSSES, "LOSSES", Loss())


def test_a_difference_is_seen():
    training = Training(Dense(3), (5,), dtype="f8", loss=HalfSquaredError(), optimizer=SGD(0.1, momentum=0.9))
    assert trajectory(training, SGD(0.1, momentum=0.9001)) > 1e-6
