"""A convolution with tan(x + w) for x * w, its backward by hand: right, and without the square of the secant."""

import torch
from torch import nn


class Tangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        patches = x.unfold(2, w.shape[-2], 1).unfold(3, w.shape[-1], 1)
        values = torch.tan(patches + w)
        ctx.save_for_backward(x, values)
        return values.sum((-2, -1))

    @staticmethod
    def slope(values):
        return 1 + values * values

    @staticmethod
    def spread(ctx, grad, slope):
        x, values = ctx.saved_tensors
        inner = grad[..., None, None] * slope(values)
        grad_x = torch.zeros_like(x)
        for i in range(values.shape[-2]):
            for j in range(values.shape[-1]):
                grad_x[:, :, i : i + values.shape[2], j : j + values.shape[3]] += inner[..., i, j]
        return grad_x, inner.sum((0, 1, 2, 3))

    @staticmethod
    def backward(ctx, grad):
        return Tangent.spread(ctx, grad, Tangent.slope)


class WrongTangent(Tangent):
    @staticmethod
    def backward(ctx, grad):  # blame: tangent
        return Tangent.spread(ctx, grad, lambda values: 1 + values)


class TangentNet(nn.Module):
    function = Tangent

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, 3) * 0.2)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.function.apply(0.2 * torch.sigmoid(x), self.w).flatten(1))


class WrongTangentNet(TangentNet):
    function = WrongTangent
