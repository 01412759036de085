"""
A layer back to its input
=========================

``conv2d`` with 32 input and 32 output channels and zero padding is one large linear operator. Its inverse computes the
input to the last digits.
"""

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from shown import SAMPLES, show

import deconv_cli

layer = load_file(SAMPLES / "layer.safetensors")
weight, bias = layer["conv.weight"].double(), layer["conv.bias"].double()
y = load_file(SAMPLES / "features.safetensors")["image"].double()

# %%
# λ = 0 asks for the pseudo-inverse. ``invert`` subtracts the bias of the layer first. A certificate of 0 would mean
# that the problem was solved exactly.

result = deconv_cli.invert(y, weight, bias=bias, boundary="zero", lam=0, dtype="float64")
x = result.image
again = torch.nn.functional.conv2d(x[None], weight, bias, padding=1)[0]
print(f"solver {result.choice.method}, certificate {result.solution.certificate:.0e}")
print(f"through the layer again: relative difference {float((again - y).norm() / y.norm()):.0e}")

# %%
# The three channels with the most contrast, of the output and of the input that was found.


def strongest(channels, name):
    """Pick the three channels with most contrast, each on its own scale."""
    picked = channels.flatten(1).std(1).argsort(descending=True)[:3]
    return {
        f"{name} {int(c)}": (channels[c] - channels[c].min()) / (channels[c].max() - channels[c].min()) for c in picked
    }


show(strongest(y, "output") | strongest(x, "input"), columns=3, high=1.0, width=7.0)

# %%
# The usual shortcut inverts the layer at every frequency of an FFT. It assumes that opposite edges of the image join (a
# torus). But the layer pads with zeros, so the shortcut is wrong along the border, and the error fades inwards:

symbol = torch.fft.fft2(torch.nn.functional.pad(weight, (0, 29, 0, 29)).roll((-1, -1), (2, 3))).conj()
spectrum = torch.fft.fft2(y - bias[:, None, None])
torus = torch.fft.ifft2(
    torch.einsum("oihw,ohw->ihw", torch.linalg.pinv(symbol.permute(2, 3, 0, 1)).permute(3, 2, 0, 1), spectrum)
).real
error = (torus - x).abs().mean(0)
figure, axis = plt.subplots(figsize=(4.5, 3.6), layout="constrained")
shown_error = axis.imshow(error, cmap="magma")
axis.set_title("error of the FFT shortcut, mean over channels", fontsize=10)
figure.colorbar(shown_error)
print(f"relative error of the shortcut: {float((torus - x).norm() / x.norm()):.2f}")
