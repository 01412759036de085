"""Backwards that are wrong by a little, or everywhere, or lack a sum."""

import torch
from torch import nn


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, grad):  # blame: doubled
        x, w = ctx.saved_tensors
        return grad * w, 2 * (grad * x).sum(0)


class DoubledNet(nn.Module):
    function = Doubled

    def __init__(self, n=1000, scale=1.0):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n))
        self.scale = scale

    def forward(self, x):
        return self.scale * torch.tanh(self.function.apply(x, self.w)).mean()


class OneOff(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, grad):  # blame: one
        x, w = ctx.saved_tensors
        grad_w = (grad * x).sum(0)
        grad_w[377] *= 1.01
        return grad * w, grad_w


class OneOffNet(DoubledNet):
    function = OneOff


class NoSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, b):
        return x + b

    @staticmethod
    def backward(ctx, grad):  # blame: sum
        return grad, grad[0]


class NoSumNet(DoubledNet):
    function = NoSum


def hooked():
    """A network with a hook that doubles a gradient; no Function is to blame."""
    model = nn.Linear(3, 2)
    model.weight.register_hook(lambda grad: 2 * grad)  # blame: hook
    return model
