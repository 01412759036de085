"""Steps of a char-RNN and of an LSTM with a backward by hand: right, and with one gate wrong."""

import torch
from torch import nn


class RnnStep(torch.autograd.Function):
    """h' = tanh(Wx x + Wh h + b)."""

    @staticmethod
    def forward(ctx, x, h, wx, wh, b):
        new = torch.tanh(x @ wx.t() + h @ wh.t() + b)
        ctx.save_for_backward(x, h, wx, wh, new)
        return new

    @staticmethod
    def backward(ctx, grad):
        x, h, wx, wh, new = ctx.saved_tensors
        inner = grad * (1 - new * new)
        return inner @ wx, inner @ wh, inner.t() @ x, inner.t() @ h, inner.sum(0)


class WrongRnnStep(RnnStep):
    @staticmethod
    def backward(ctx, grad):  # blame: rnn
        x, h, wx, wh, new = ctx.saved_tensors
        inner = grad * (1 - new)
        return inner @ wx, inner @ wh, inner.t() @ x, inner.t() @ h, inner.sum(0)


class LstmStep(torch.autograd.Function):
    """One step of an LSTM; rows of the weights are input, forget, cell and output gate."""

    @staticmethod
    def forward(ctx, x, h, c, w, b):
        i, f, g, o = (torch.cat([x, h], 1) @ w.t() + b).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new_c = f * c + i * g
        ctx.save_for_backward(x, h, c, w, i, f, g, o, new_c)
        return o * new_c.tanh(), new_c

    @staticmethod
    def slopes(i, f, g, o):
        return i * (1 - i), f * (1 - f), 1 - g * g, o * (1 - o)

    @classmethod
    def gradients(cls, ctx, grad_h, grad_c):
        x, h, c, w, i, f, g, o, new_c = ctx.saved_tensors
        squashed = new_c.tanh()
        grad_c = grad_c + grad_h * o * (1 - squashed * squashed)
        slopes = cls.slopes(i, f, g, o)
        parts = (grad_c * g * slopes[0], grad_c * c * slopes[1], grad_c * i * slopes[2], grad_h * squashed * slopes[3])
        inner = torch.cat(parts, 1)
        joined = inner @ w
        n = x.shape[1]
        return joined[:, :n], joined[:, n:], grad_c * f, inner.t() @ torch.cat([x, h], 1), inner.sum(0)

    @staticmethod
    def backward(ctx, grad_h, grad_c):
        return LstmStep.gradients(ctx, grad_h, grad_c)


class WrongLstmStep(LstmStep):
    @staticmethod
    def slopes(i, f, g, o):
        return i * (1 - i), f * (1 - f), 1 - g, o * (1 - o)

    @staticmethod
    def backward(ctx, grad_h, grad_c):  # blame: lstm
        return WrongLstmStep.gradients(ctx, grad_h, grad_c)


class CharRnn(nn.Module):
    step = RnnStep

    def __init__(self, n_letters=7, n_hidden=5):
        super().__init__()
        self.wx = nn.Parameter(torch.randn(n_hidden, n_letters) * 0.3)
        self.wh = nn.Parameter(torch.randn(n_hidden, n_hidden) * 0.3)
        self.b = nn.Parameter(torch.randn(n_hidden) * 0.1)
        self.head = nn.Linear(n_hidden, n_letters)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], self.wh.shape[0])
        outputs = []
        for t in range(x.shape[1]):
            h = self.step.apply(x[:, t], h, self.wx, self.wh, self.b)
            outputs.append(self.head(h))
        return torch.stack(outputs, 1)


class WrongCharRnn(CharRnn):
    step = WrongRnnStep


class HandLstm(nn.Module):
    step = LstmStep

    def __init__(self, n_in=4, n_hidden=5):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4 * n_hidden, n_in + n_hidden) * 0.3)
        self.b = nn.Parameter(torch.randn(4 * n_hidden) * 0.1)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], self.w.shape[0] // 4)
        for t in range(x.shape[1]):
            h, c = self.step.apply(x[:, t], h, c, self.w, self.b)
        return h


class WrongHandLstm(HandLstm):
    step = WrongLstmStep


class PlainRnn(nn.Module):
    """The same recurrence left to autograd, deep enough in time for the gradient to fade."""

    def __init__(self, scale=0.1, n_steps=12):
        super().__init__()
        self.wh = nn.Parameter(scale * torch.eye(4))
        self.wx = nn.Parameter(torch.ones(4, 3) * 0.1)
        self.n_steps = n_steps

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 4)
        for _ in range(self.n_steps):
            h = torch.tanh(x @ self.wx.t() + h @ self.wh.t())  # blame: loop
        return h
