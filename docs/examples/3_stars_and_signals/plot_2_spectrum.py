"""
A spectrum in one dimension
===========================

A wide slit blurs the lines of a spectrum. A signal is a tensor of shape ``(C, N)``; everything else works as for
pictures.
"""

import matplotlib.pyplot as plt
import torch

import deconv_cli

# %%
# First make the data: close pairs of lines on a sloping background, blurred by a slit of ten samples and a little
# diffraction.

places = torch.tensor([90.0, 97.0, 180.0, 260.0, 270.0, 272.0, 400.0, 412.0])
heights = torch.tensor([1.0, 0.7, 0.4, 1.2, 0.8, 0.3, 0.6, 0.9])
x = torch.arange(512.0)
truth = (heights * torch.exp(-0.5 * ((x[:, None] - places) / 1.3) ** 2)).sum(1) + 0.1 + x / 4000
truth = truth[None].double()
slit = deconv_cli.make_kernel("box:10*gaussian:1.5", dimensions=1)
counts = torch.poisson(
    deconv_cli.forward(truth, slit, boundary="replicate") * 2000, generator=torch.Generator().manual_seed(1)
)
seen = counts / 2000

# %%
# ``defaults="picture"`` takes the defaults of pictures: it assumes nothing beyond the ends, and chooses λ from the
# data. This estimate is linear in the data and has a predicted error. It has ripples beside strong lines.
# Richardson–Lucy keeps the counts positive and has fewer ripples.

linear = deconv_cli.invert(seen, slit, defaults="picture", predict=True)
lucy = deconv_cli.invert(seen * 2000, slit, boundary="replicate", method="richardson-lucy", gain=1.0)

figure, axes = plt.subplots(3, 1, figsize=(8, 7), layout="constrained", sharex=True)
axes[0].plot(seen[0], color="0.5")
axes[0].set_title("measured", fontsize=10)
error = linear.predicted_error.root_mean_square
axes[1].plot(truth[0], color="tab:green", linewidth=0.8, label="truth")
axes[1].plot(linear.image[0], color="tab:blue", label=f"quadratic prior, expected error {error:.3f}")
axes[2].plot(truth[0], color="tab:green", linewidth=0.8, label="truth")
axes[2].plot(lucy.image[0] / 2000, color="tab:red", label="Richardson–Lucy")
for axis in axes[1:]:
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.38, 1.0))
for axis in axes:
    axis.set_ylim(-0.1, 1.4)
