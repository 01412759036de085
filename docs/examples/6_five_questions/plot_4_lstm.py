"""
Is the backward of my LSTM right?
=================================

*"I wrote the backward pass of an LSTM by hand. It trains, but badly. How do I find the mistake?"*

The checker compares each gradient with finite differences. In a hand-written ``backward`` it also names the line
at fault, and it recognizes frequent mistakes.
"""

import runpy

import matplotlib.pyplot as plt
import torch
from shown import open_folder, prompt

folder = open_folder()
right = '''import torch
from torch import nn


class Step(torch.autograd.Function):
    """One step of an LSTM; the rows of the weights are input, forget, cell and output gate."""

    @staticmethod
    def forward(ctx, x, h, c, w, b):
        i, f, g, o = (torch.cat([x, h], 1) @ w.t() + b).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        new_c = f * c + i * g
        ctx.save_for_backward(x, h, c, w, i, f, g, o, new_c)
        return o * new_c.tanh(), new_c

    @staticmethod
    def backward(ctx, grad_h, grad_c):
        x, h, c, w, i, f, g, o, new_c = ctx.saved_tensors
        squashed = new_c.tanh()
        grad_c = grad_c + grad_h * o * (1 - squashed * squashed)
        gate_i = grad_c * g * i * (1 - i)
        gate_f = grad_c * c * f * (1 - f)
        gate_g = grad_c * i * (1 - g * g)
        gate_o = grad_h * squashed * o * (1 - o)
        inner = torch.cat([gate_i, gate_f, gate_g, gate_o], 1)
        joined = inner @ w
        n = x.shape[1]
        return joined[:, :n], joined[:, n:], grad_c * f, inner.t() @ torch.cat([x, h], 1), inner.sum(0)


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(20, 9) * 0.3)
        self.b = nn.Parameter(torch.randn(20) * 0.1)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            h, c = Step.apply(x[:, t], h, c, self.w, self.b)
        return self.head(h)
'''
(folder / "right.py").write_text(right)
(folder / "wrong.py").write_text(right.replace("(1 - g * g)", "(1 - g)"))

# %%
# One gate has the slope ``1 - g`` where the slope of a hyperbolic tangent is ``1 - g * g``:

prompt("deconv check-grad --model wrong.py:Lstm --input-shape 6,4,4", expect=4)

# %%
# The right backward:

prompt("deconv check-grad --model right.py:Lstm --input-shape 6,4,4")

# %%
# Both gradients of the weights, and their difference, which lies in the rows of one gate:


def gradient(name):
    """Give the gradient of the weights for the same network and the same data."""
    torch.manual_seed(0)
    model = runpy.run_path(str(folder / name))["Lstm"]()
    model(torch.randn(6, 4, 4)).square().mean().backward()
    return model.w.grad


right_one, wrong_one = gradient("right.py"), gradient("wrong.py")
figure, axes = plt.subplots(1, 3, figsize=(6, 3.6), layout="constrained")
gradients = {"right": right_one, "wrong": wrong_one, "difference": wrong_one - right_one}
for axis, (title, part) in zip(axes, gradients.items(), strict=True):
    axis.imshow(part, cmap="coolwarm", vmin=-0.008, vmax=0.008)
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
axes[0].set_yticks([2, 7, 12, 17], ["input", "forget", "cell", "output"])
