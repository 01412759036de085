"""One small network for each way of losing a gradient between parameter and loss."""

import torch
from torch import nn


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.middle(torch.tanh(self.body(x))))

    def middle(self, h):
        return h


class Detach(Base):
    def middle(self, h):
        return h.detach()  # blame: detach


class Data(Base):
    def middle(self, h):
        return h.data  # blame: data


class NoGrad(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        with torch.no_grad():
            h = self.body(x)  # blame: no_grad
        return self.head(h)


class Numpy(Base):
    def middle(self, h):
        values = h.detach().numpy()  # blame: numpy
        return torch.from_numpy(values).to(h.dtype)


class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        factor = self.scale.item()  # blame: item
        return factor * self.head(x)


class Argmax(Base):
    def middle(self, h):
        best = h.argmax(1)  # blame: argmax
        return nn.functional.one_hot(best, 6).to(h.dtype)


class IntegerCast(Base):
    def middle(self, h):
        steps = (h * 4).int()  # blame: cast
        return steps.to(h.dtype)


class Comparison(Base):
    def middle(self, h):
        return (h > 0).to(h.dtype)  # blame: comparison


class SelectedThenDetached(Base):
    """The comparison is no cut, since its branches carry the gradient on; the detach behind it is."""

    def middle(self, h):
        selected = torch.where(h > 0, h, 0.1 * h)
        return selected.detach()  # blame: selected


class PartDetach(Base):
    def middle(self, h):
        return h + torch.sin(3 * h).detach()  # blame: part


class Unused(Base):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class NotInLoss(Base):
    def __init__(self):
        super().__init__()
        self.side = nn.Linear(4, 2)

    def forward(self, x):
        aside = self.side(x)  # blame: aside
        print_free = aside.sum()
        del print_free
        return super().forward(x)


class Frozen(Base):
    def __init__(self):
        super().__init__()
        self.body.requires_grad_(False)


def item_loss(output):
    loss = output.square().mean()
    return loss.item()  # blame: item_loss


class ReturnsNone(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, bias):
        return h + bias

    @staticmethod
    def backward(ctx, grad):  # blame: none
        return grad, None


class NoneForBias(Base):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(6))

    def middle(self, h):
        return ReturnsNone.apply(h, self.bias)  # blame: none_call
