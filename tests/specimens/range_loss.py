"""A penalty for errors inside a range: by comparisons, which have no gradient, and as it should be."""

import torch
from torch import nn


class Regressor(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x)))


def counted_loss(output, target):
    error = (output - target).abs()
    wrong = (error > 0.2) & (error < 0.8)  # blame: counted
    return wrong.float().mean()


def listed_loss(output, target):
    errors = (output - target).abs().flatten()
    wrong = [1.0 if 0.2 < error < 0.8 else 0.0 for error in errors]  # blame: listed
    return torch.tensor(wrong, requires_grad=True).mean()


def piecewise_loss(output, target):
    error = (output - target).abs()
    return torch.where((error > 0.2) & (error < 0.8), torch.minimum(error - 0.2, 0.8 - error), 0.0).mean()
