"""
How do I invert a convolution, borders included?
================================================

*"I have y = conv2d(x, K) with many channels and want x back. I take the pseudo-inverse of K at every frequency of
the FFT. The result is right in the middle and wrong along the border."*

The FFT diagonalizes a convolution whose opposite edges join (a torus). ``padding="same"`` pads with zeros, which is
another operator. ``pseudo_inverse`` inverts that operator.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn import functional

import deconv_cli

torch.manual_seed(0)
x = torch.randn(8, 32, 32, dtype=torch.float64)
K = torch.randn(8, 8, 3, 3, dtype=torch.float64) * 0.05
K[:, :, 1, 1] += torch.eye(8, dtype=torch.float64)
y = functional.conv2d(x[None], K, padding="same")[0]

# %%
# The shortcut, one small pseudo-inverse at every frequency:

symbol = torch.fft.fft2(functional.pad(K, (0, 29, 0, 29)).roll((-1, -1), (2, 3))).conj().permute(2, 3, 0, 1)
shortcut = torch.fft.ifft2(
    (torch.linalg.pinv(symbol) @ torch.fft.fft2(y).permute(1, 2, 0)[..., None])[..., 0].permute(2, 0, 1)
).real

# %%
# The inverse of the operator with its zeros. You build it once for a kernel and a size, and apply it to any number of
# outputs.

P = deconv_cli.pseudo_inverse(K, input_size=(32, 32), padding="same", boundary="zero", lam=0)
x_hat = P(y)


def error(estimate, part=slice(None)):
    """Give the relative error in a part of the rows."""
    return float((estimate - x)[:, part].norm() / x[:, part].norm())


for name, estimate in {"FFT shortcut": shortcut, "pseudo_inverse": x_hat}.items():
    print(
        f"{name}: error {error(estimate):.0e} in all, {error(estimate, slice(0, 1)):.0e} in the first row, "
        f"{error(estimate, slice(12, 20)):.0e} in the middle"
    )

figure, axes = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
for axis, (name, estimate) in zip(axes, {"FFT shortcut": shortcut, "pseudo_inverse": x_hat}.items(), strict=True):
    drawn = axis.imshow((estimate - x).abs().mean(0).clamp_min(1e-16).log10(), vmin=-16, vmax=0, cmap="magma")
    axis.set_title(f"{name}: log10 of the error", fontsize=10)
figure.colorbar(drawn, ax=axes)

# %%
# It is the Moore–Penrose inverse. Compare it with that of the matrix, on an image small enough for the matrix:

A = deconv_cli.Convolution(K[:2, :2], (6, 6), padding="same", boundary="zero")
small = deconv_cli.pseudo_inverse(K[:2, :2], input_size=(6, 6), padding="same", boundary="zero", lam=0)
data = torch.randn(2, 6, 6, dtype=torch.float64)
dense = (torch.linalg.pinv(A.as_matrix()) @ data.flatten()).reshape(2, 6, 6)
print(f"difference from torch.linalg.pinv of the matrix: {float((small(data) - dense).norm() / dense.norm()):.0e}")
