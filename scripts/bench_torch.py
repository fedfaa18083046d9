"""PyTorch as contestants of scripts/bench.py: eager, from a DataLoader, compiled, as one CUDA graph, and stacked.

Float32 throughout: TF32 is off, as it is for ours. Of each thing the fastest that PyTorch has: fused optimizers, and
the channels of images last.
"""

import math

import numpy as np
import torch
from bench_work import CLASSES, Network, Rows
from torch import nn

import gpbackprop as gp

LIBRARY, VERSION = "PyTorch", torch.__version__
ACTIVATIONS = {"Sigmoid": nn.Sigmoid, "Relu": nn.ReLU}


class Last(nn.Module):
    """An LSTM whose output is its last state. It has one bias, as ours: the second one is zero and stays so."""

    def __init__(self, features: int, units: int):
        super().__init__()
        self.lstm = nn.LSTM(features, units, batch_first=True)
        nn.init.zeros_(self.lstm.bias_hh_l0).requires_grad_(False)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


def build(network: Network, parameters: dict[str, np.ndarray]) -> nn.Sequential:
    """The network with the given parameters of member 0; images are (channels, height, width)."""
    given = iter([torch.tensor(each[0]) for each in parameters.values()])
    modules: list[nn.Module] = []
    image: tuple[int, ...] = network.shape  # (height, width, channels) of what the next layer sees
    flat: tuple[int, ...] = ()  # the same of the image that was flattened last
    for layer in network.layers:
        match layer:
            case gp.Dense():
                W, b = next(given), next(given)
                if flat:  # our features are in the order height, width, channel
                    W, flat = W.reshape(*flat, -1).movedim(2, 0).flatten(0, 2), ()
                modules.append(filled(nn.Linear(*W.shape), weight=W.T, bias=b))
            case gp.Conv2d():
                W, b = next(given), next(given)
                conv = nn.Conv2d(W.shape[2], layer.units, layer.kernel)
                modules.append(filled(conv, weight=W.movedim((3, 2), (0, 1)), bias=b))
                image = (image[0] - layer.kernel + 1, image[1] - layer.kernel + 1, layer.units)
            case gp.MaxPool2d():
                modules.append(nn.MaxPool2d(layer.kernel))
                image = (image[0] // layer.kernel, image[1] // layer.kernel, image[2])
            case gp.Flatten():
                modules.append(nn.Flatten())
                flat = image
            case gp.LSTM():
                W, U, b = (gates(next(given)) for _ in range(3))
                last = Last(W.shape[0], layer.units)
                filled(last.lstm, weight_ih_l0=W.T, weight_hh_l0=U.T, bias_ih_l0=b)
                modules.append(last)
        if getattr(layer, "activation", None):
            modules.append(ACTIVATIONS[type(layer.activation).__name__]())
    return nn.Sequential(*modules)


def filled(module: nn.Module, **values: torch.Tensor) -> nn.Module:
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(value)
    return module


def gates(a: torch.Tensor) -> torch.Tensor:
    """Ours are in the order i, f, o, g; PyTorch's are i, f, g, o."""
    i, f, o, g = a.chunk(4, dim=-1)
    return torch.cat([i, f, g, o], dim=-1)


class Eager:
    """The loop of the tutorials, with the rows in memory."""

    name = "PyTorch eager"
    capturable = False

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return "not for a population" if network.population > 1 else ""

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.network, self.scale, self.device = network, rows.scale, torch.device(device)
        x = rows.x.transpose(0, 3, 1, 2) if rows.x.ndim == 4 else rows.x
        self.x, self.labels = torch.from_numpy(x).to(device), torch.from_numpy(rows.labels).to(device)
        self.one_hot = torch.eye(CLASSES, device=device)
        self.model = build(network, parameters).to(device, memory_format=torch.channels_last)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if network.adam:
            self.optimizer = torch.optim.Adam(trained, lr=network.optimizer.lr, fused=True, capturable=self.capturable)
        else:
            self.optimizer = torch.optim.SGD(trained, lr=network.optimizer.lr, fused=True)
        self.objective, self.update = self.loss, self.optimizer.step

    def prepared(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale if x.dtype == torch.uint8 else x

    def loss(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        y = self.model(self.prepared(x))
        if self.network.half_squared:
            return 0.5 * (y - self.one_hot[labels]).square().sum() / len(y)
        return nn.functional.cross_entropy(y, labels)

    def step(self, x: torch.Tensor, labels: torch.Tensor, total: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        value = self.objective(x, labels)
        value.backward()
        self.update()
        total.add_(value.detach())

    def epoch(self, order: np.ndarray) -> np.ndarray:
        total = torch.zeros((), device=self.device)
        for rows in torch.from_numpy(order[:, 0]).to(self.device):
            self.step(self.x[rows], self.labels[rows], total)
        return np.array([total.item() / len(order)])


class Loader(Eager):
    """A DataLoader over the rows, as in the tutorials: row by row, collated into batches, in this process."""

    name = "PyTorch DataLoader"

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return Eager.refuses(network, epoch, device) or ("" if epoch else "for whole epochs")

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.dataset = torch.utils.data.TensorDataset(self.x.cpu(), self.labels.cpu())

    def epoch(self, order: np.ndarray) -> np.ndarray:
        loader = torch.utils.data.DataLoader(self.dataset, batch_sampler=order[:, 0].tolist())
        total = torch.zeros((), device=self.device)
        for x, labels in loader:
            self.step(x.to(self.device), labels.to(self.device), total)
        return np.array([total.item() / len(order)])


class Compiled(Eager):
    """torch.compile of the loss, which brings its gradient with it; on a GPU replayed as CUDA graphs."""

    name = "torch.compile"

    def __init__(self, *arguments):
        super().__init__(*arguments)
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        torch.compiler.reset()  # what it has compiled for other networks would make this one general, and slow
        self.objective = torch.compile(self.loss, mode=mode, dynamic=False)


class Graphed(Eager):
    """The whole step as one CUDA graph, gather and update included: one launch a step, and nothing else."""

    name = "PyTorch CUDA graph"
    capturable = True

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        return Eager.refuses(network, epoch, device) or ("" if device == "cuda" else "for a CUDA device")

    def epoch(self, order: np.ndarray) -> np.ndarray:
        given = torch.from_numpy(order[:, 0]).to(self.device)
        if not hasattr(self, "graph"):
            self.capture(given)
        self.order.copy_(given)
        self.at.zero_()
        self.total.zero_()
        for _ in range(len(order)):
            self.graph.replay()
        return np.array([self.total.item() / len(order)])

    def capture(self, order: torch.Tensor) -> None:
        """Three steps on a side stream warm the libraries up; what they have learnt is taken back."""
        self.order, self.at = order.clone(), torch.zeros(1, dtype=torch.int64, device=self.device)
        self.total = torch.zeros((), device=self.device)
        kept = [p.detach().clone() for p in self.model.parameters()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.at.zero_()
                self.whole_step()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.whole_step()
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), kept, strict=True):
                p.copy_(value)
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    if torch.is_tensor(tensor):  # Adam's moments and count; SGD without momentum has none
                        tensor.zero_()

    def whole_step(self) -> None:
        rows = self.order.index_select(0, self.at)[0]
        self.step(self.x[rows], self.labels[rows], self.total)
        self.at.add_(1)


class Stacked:
    """A population by torch.func: vmap of the gradient over stacked parameters."""

    name = "torch.func vmap"

    @staticmethod
    def refuses(network: Network, epoch: bool, device: str) -> str:
        if network.population == 1:
            return "for a population"
        return "" if network.dense and not network.adam else "for dense layers and SGD"

    def __init__(self, network: Network, rows: Rows, parameters: dict[str, np.ndarray], device: str):
        self.eager = Eager(network, rows, parameters, device)
        names = [name for name, _ in self.eager.model.named_parameters()]
        self.w = {
            name: torch.tensor(each.swapaxes(1, 2) if each.ndim == 3 else each, device=device).contiguous()
            for name, each in zip(names, parameters.values(), strict=True)
        }
        self.gradient = torch.func.vmap(torch.func.grad_and_value(self.loss))

    def loss(self, w: dict[str, torch.Tensor], x: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
        y = torch.func.functional_call(self.eager.model, w, (self.eager.prepared(x),))
        if self.eager.network.half_squared:
            return 0.5 * (y - one_hot).square().sum() / len(y)
        return nn.functional.cross_entropy(y, one_hot)

    def epoch(self, order: np.ndarray) -> np.ndarray:
        eager, rate = self.eager, self.eager.network.optimizer.lr
        total = torch.zeros(order.shape[1], device=eager.device)
        for rows in torch.from_numpy(order).to(eager.device):
            gradients, values = self.gradient(self.w, eager.x[rows], eager.one_hot[eager.labels[rows]])
            for name, gradient in gradients.items():
                self.w[name].sub_(gradient, alpha=rate)
            total += values
        return (total / math.prod(order.shape[:1])).cpu().numpy()
