"""Networks that are sound, and built in ways that a checker may stumble over."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Tied(nn.Module):
    """One matrix for embedding and output, with a row for padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(torch.tanh(self.layer(self.embedding(x))))


class SparseEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.embedding(x))


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTMCell(3, 5)
        self.gru = nn.GRUCell(5, 4)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 5)
        k = x.new_zeros(x.shape[0], 4)
        for t in range(x.shape[1]):
            h, c = self.lstm(x[:, t], (h, c))  # blame: cells
            k = self.gru(h, k)
        return k


class GatesWritten(nn.Module):
    """An LSTM written out: of six tensors in each step, two are handed to the next."""

    def __init__(self):
        super().__init__()
        self.wx, self.wh = nn.Linear(3, 20), nn.Linear(5, 20, bias=False)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            gates = self.wx(x[:, t]) + self.wh(h)
            i, f, g, o = gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant=False):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3)
        self.use_reentrant = use_reentrant

    def forward(self, x):
        return checkpoint(lambda h: self.second(torch.relu(h)), self.first(x), use_reentrant=self.use_reentrant)


class Reparameterized(nn.Module):
    """A variational layer: random, but by a seed; the output is a dictionary."""

    def __init__(self):
        super().__init__()
        self.mean, self.log = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        q = torch.distributions.Normal(self.mean(x), (self.log(x) / 2).exp())
        prior = torch.distributions.Normal(0.0, 1.0)
        return {"sample": q.rsample(), "divergence": torch.distributions.kl_divergence(q, prior).sum(1)}


class Masked(nn.Module):
    """Attention with a mask of minus infinity."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(6, 6, bias=False) for _ in range(3))
        self.register_buffer("mask", torch.triu(torch.ones(5, 5), 1).bool())

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        return scores.masked_fill(self.mask, -torch.inf).softmax(-1) @ self.value(x)


class SlopePenalty(nn.Module):
    """The loss holds a derivative."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 1)

    def forward(self, x):
        x = x.clone().requires_grad_()
        y = self.second(torch.tanh(self.first(x))).sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        return slope.square().sum() + y


class Writing(nn.Module):
    """Writes in place, where that is sound."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        out = torch.zeros(x.shape[0], 6, dtype=x.dtype)
        h = self.layer(x)
        for i in range(x.shape[0]):
            out[i] = 2 * h[i]
        out += 1
        return nn.functional.relu(out, inplace=True)


class Watched(nn.Module):
    """Computes an accuracy and prints a number on the way."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        y = self.layer(x)
        self.accuracy = float((y.argmax(1) == 0).float().mean())
        self.last = y.detach()
        return y


class TimeFirst(nn.Module):
    """A loop over axis 0, which is time and not the batch."""

    def __init__(self):
        super().__init__()
        self.wx, self.wh = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = torch.zeros(x.shape[1], 4, dtype=x.dtype)
        outputs = []
        for t in range(x.shape[0]):
            h = torch.tanh(self.wx(x[t]) + self.wh(h))  # blame: time first
            outputs.append(h)
        return torch.stack(outputs)


class HalfPrecision(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(torch.tanh(self.first(x))).float()


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.memory = torch.zeros(2)

    def forward(self, x):
        self.memory = self.memory + self.layer(x).sum(0)
        return self.memory
