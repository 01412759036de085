"""Gradients that arrive as zero, as NaN, or faded away."""

import torch
from torch import nn


class Round(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x):
        return torch.round(3 * self.body(x)).square().mean()  # blame: round


class DeadRelu(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)
        nn.init.constant_(self.body.bias, -100.0)

    def forward(self, x):
        h = torch.relu(self.body(x))  # blame: dead
        return self.head(h)


class SqrtAtZero(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        length = torch.sqrt((x * self.scale).square())  # blame: sqrt
        return length.sum()


class LogOfNegative(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(-torch.ones(4))

    def forward(self, x):
        return torch.log(self.scale * (1 + x.square())).sum()  # blame: log


class SaturatedSoftmax(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x):
        scores = 1e6 * self.body(x)
        return torch.softmax(scores, 1)  # blame: softmax


class BiasBeforeNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


class DeepSigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(14))

    def forward(self, x):
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        return x


class DeepLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8, bias=False)
        self.middle = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(6))
        self.last = nn.Linear(8, 1, bias=False)
        for layer in self.middle:
            layer.weight.data = 100 * torch.eye(8)
        nn.init.constant_(self.first.weight, 1e-6)

    def forward(self, x):
        h = self.first(x)
        for layer in self.middle:
            h = layer(h)
        return self.last(h)


class Corner(nn.Module):
    """A bias of zero at the limit of a clamp: a kink, not a fault."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.weight = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return (self.weight * self.bias.clamp_min(0)).sum() + (self.weight * x).sum()


class Unseeded(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 2)
        self.generator = torch.Generator()
        self.generator.seed()

    def forward(self, x):
        noise = torch.rand(x.shape, generator=self.generator)  # blame: unseeded
        return self.body(x * noise)
