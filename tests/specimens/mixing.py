"""Samples that leak into one another, and tensors overwritten under autograd's hands."""

import torch
from torch import nn


class Leak(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x):
        return torch.softmax(self.body(x), 0)  # blame: leak


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 5)

    def forward(self, x):
        h = torch.sigmoid(self.body(x))
        y = h * h
        h += 1  # blame: in_place
        return y.sum() + h.sum()
