"""
λ: too small, chosen from the data, too large
=============================================

λ balances grain against blur in the quadratic prior. ``deconv`` chooses it from the picture alone.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from shown import psnr, read, show

import deconv_cli

scene = torch.from_numpy(read("sample_images/camera.png")[30:180, 70:220].copy())[None]
kernel = deconv_cli.make_kernel("disk:2.5")
y = deconv_cli.forward(scene, kernel, boundary="reflect")
y = y + 2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)


def restore(lam):
    """Restore the picture with one λ."""
    return deconv_cli.invert(y, kernel, defaults="picture", lam=lam)


chosen = restore("auto")
print(f"λ chosen from the data: {chosen.lam:.2g}, penalty {chosen.penalty}")

# %%
# The picture with a hundredth of that λ, with that λ, and with a hundred times as much:

pictures = {"blurred": y[0]}
for name, lam in {"λ / 100": chosen.lam / 100, "λ": chosen.lam, "100 λ": 100 * chosen.lam}.items():
    pictures[name] = restore(lam).image[0]
show(pictures, columns=4, width=10.0)

# %%
# The quality of the result for many λ, measured with the sharp picture, and the λ that was chosen without it:

lambdas = np.logspace(-5, 1, 9)
errors = [psnr(restore(float(lam)).image[0], scene[0]) for lam in lambdas]
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
axis.semilogx(lambdas, errors, "o-", markersize=3)
axis.axvline(chosen.lam, color="tab:red", label="chosen from the data")
axis.set_xlabel("λ")
axis.set_ylabel("PSNR in dB")
axis.legend()
