"""
A convolution with tan(x + w)
=============================

*"I want a layer like a convolution that sums tan(x + w) instead of x · w. How do I write it, and is its backward
right?"*

``ReceptiveFieldConv2d`` takes any function of a pixel and a weight. Its gradients come from autograd, so there is
no backward to get wrong.
"""

import torch
from shown import open_folder, prompt, read, show

import deconv_cli

folder = open_folder()
torch.manual_seed(0)


def tan_sum(pixel, weight):
    """Give one term of the sum."""
    return torch.tan(pixel + weight)


layer = deconv_cli.ReceptiveFieldConv2d(1, 2, 3, phi=tan_sum).double()
with torch.no_grad():
    layer.weight.mul_(0.3)
scene = torch.from_numpy(read("sample_images/camera.png"))[None, None] / 255
output = layer(0.6 * scene)[0].detach()
show(
    {"picture": scene[0, 0], "output 0": output[0] / output.max(), "output 1": output[1] / output.max()},
    columns=3,
    high=1.0,
)

# %%
# The checker finds no fault in its gradients:

report = deconv_cli.check_gradients(layer, 0.3 * torch.rand(2, 1, 10, 10, dtype=torch.float64))
print(report)

# %%
# It is easy to make a mistake in a backward by hand. The slope of the tangent is 1 + tan², but this one has 1 + tan:

(folder / "tangent.py").write_text("""import torch
from torch import nn


class Tangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        values = torch.tan(x.unfold(2, 3, 1).unfold(3, 3, 1) + w)
        ctx.save_for_backward(x, values)
        return values.sum((-2, -1))

    @staticmethod
    def backward(ctx, grad):
        x, values = ctx.saved_tensors
        inner = grad[..., None, None] * (1 + values)
        grad_x = torch.zeros_like(x)
        for i in range(3):
            for j in range(3):
                grad_x[:, :, i : i + values.shape[2], j : j + values.shape[3]] += inner[..., i, j]
        return grad_x, inner.sum((0, 1, 2, 3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, 3) * 0.2)

    def forward(self, x):
        return Tangent.apply(0.2 * torch.sigmoid(x), self.w)
""")
prompt("deconv check-grad --model tangent.py:Net --input-shape 2,1,6,6", expect=4)
