"""The PyTorch forms of the layers over sequences: PyTorch's own modules, called with our parameters."""

import torch
from torch import nn
from torch.func import functional_call


class Sequences(nn.Module):
    """A layer whose parameters keep our names and layout; `forward` hands them to PyTorch in its own."""

    def __init__(self, twin, layer, path):
        super().__init__()
        self.layer, self.path = layer, path
        self.ours = nn.ParameterDict()
        for full in twin.net.params:
            if full.startswith(path):
                name = full.removeprefix(path)
                self.ours[name.replace("/", ":")] = nn.Parameter(torch.empty(0))
                twin.pairs.append((full, self.ours[name.replace("/", ":")], False))

    def __getitem__(self, name):
        return self.ours[name.replace("/", ":")]


class Recurrent(Sequences):
    """nn.RNN, nn.LSTM or nn.GRU; `order` lists our blocks of gates in PyTorch's order."""

    def __init__(self, twin, layer, path, kind, order=(0,), **options):
        super().__init__(twin, layer, path)
        self.order, H = order, layer.units
        first = next(p for p in twin.net.params if p.startswith(path) and p.endswith("W"))
        self.module = kind(
            twin.net.params[first].shape[0], H, layer.layers,
            bidirectional=layer.bidirectional, batch_first=True, dtype=torch.float64, **options,
        )  # fmt: skip

    def forward(self, x):
        theirs, H = {}, self.layer.units

        def turned(a):
            return torch.cat([a[..., n * H : (n + 1) * H] for n in self.order], dim=-1)

        for i in range(self.layer.layers):
            for suffix, direction in (("", "forward/"), ("_reverse", "backward/"))[: 1 + self.layer.bidirectional]:
                here = (f"layer-{i}/" if self.layer.layers > 1 else "") + (
                    direction if self.layer.bidirectional else ""
                )
                b = turned(self[f"{here}b"])
                second = torch.zeros_like(b)
                if f"{here}c".replace("/", ":") in self.ours:
                    second = torch.cat([second[: 2 * H], self[f"{here}c"]])
                theirs |= {
                    f"weight_ih_l{i}{suffix}": turned(self[f"{here}W"]).T,
                    f"weight_hh_l{i}{suffix}": turned(self[f"{here}U"]).T,
                    f"bias_ih_l{i}{suffix}": b,
                    f"bias_hh_l{i}{suffix}": second,
                }
        y, state = functional_call(self.module, theirs, (x,))
        if self.layer.returns == "sequence":
            return y
        state = state[0] if isinstance(state, tuple) else state
        return torch.cat(list(state[-1 - self.layer.bidirectional :]), dim=-1)


class SelfAttention(Sequences):
    """nn.MultiheadAttention of a sequence with itself."""

    def forward(self, x):
        D, T = x.shape[-1], x.shape[1]
        module = nn.MultiheadAttention(D, self.layer.heads, batch_first=True, dtype=x.dtype)
        theirs = {
            "in_proj_weight": self["W"].T, "in_proj_bias": self["b"],
            "out_proj.weight": self["Wo"].T, "out_proj.bias": self["bo"],
        }  # fmt: skip
        mask = torch.ones(T, T, dtype=torch.bool).triu(1) if self.layer.causal else None
        return functional_call(module, theirs, (x, x, x), {"attn_mask": mask, "need_weights": False})[0]


class Embedding(Sequences):
    def forward(self, x):
        return nn.functional.embedding(x.clamp(0, self.layer.vocabulary - 1).long(), self["W"])


class PositionalEncoding(nn.Module):
    def forward(self, x):
        T, D = x.shape[1:]
        rate = torch.exp(-torch.arange(0, D, 2, dtype=torch.float64) / D * torch.log(torch.tensor(1e4).double()))
        angle = torch.arange(T, dtype=torch.float64)[:, None] * rate
        places = torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(T, -1)[:, :D]
        return x + places.to(x.dtype)


LAYERS = {
    "embedding": Embedding,
    "positional_encoding": lambda twin, layer, path: PositionalEncoding(),
    "self_attention": SelfAttention,
    "simple_rnn": lambda twin, layer, path: Recurrent(twin, layer, path, nn.RNN, nonlinearity=layer.activation),
    "lstm": lambda twin, layer, path: Recurrent(twin, layer, path, nn.LSTM, order=(0, 1, 3, 2)),
    "gru": lambda twin, layer, path: Recurrent(twin, layer, path, nn.GRU, order=(0, 1, 2)),
}
