"""
What a border does, beside the circular FFT
===========================================

A photograph shows part of a larger scene. Light from outside the frame is blurred into it. The usual FFT filter
assumes that the left edge continues at the right edge, and this causes ripples.
"""

import numpy as np
import torch
from shown import SAMPLES, psnr, read, show

import deconv_cli

blurred, truth = read("sample_images/camera_blurred.png"), read("sample_images/camera.png")
kernel = np.load(SAMPLES / "motion.npy")
curve = deconv_cli.ToneCurve.srgb(255)

# %%
# A Wiener filter in NumPy, with the regularization that comes closest to the sharp picture. Both methods work in linear
# light, since a camera blurs light.


def wiener(y, taps, balance):
    """Restore y as if it were a torus."""
    padded = np.zeros(y.shape)
    padded[: taps.shape[0], : taps.shape[1]] = taps[::-1, ::-1]  # conv2d correlates, an FFT convolves
    K = np.fft.fft2(np.roll(padded, (-(taps.shape[0] // 2), -(taps.shape[1] // 2)), (0, 1)))
    return np.fft.ifft2(np.fft.fft2(y) * K.conj() / (abs(K) ** 2 + balance)).real


y = torch.from_numpy(blurred)[None]
light = curve.to_light(y)[0].numpy()
filtered = [
    curve.to_stored(torch.from_numpy(wiener(light, kernel, 10.0**p))[None])[0].numpy() for p in np.arange(-4, 0, 0.25)
]
circular = max(filtered, key=lambda picture: psnr(picture, truth))

# %%
# ``deconv`` treats the pixels outside the frame as unknowns. λ comes from the picture.

taps = torch.from_numpy(kernel)
real = deconv_cli.invert(y, taps, defaults="picture", tone_curve=curve, prior="quadratic").image[0]
pictures = {"blurred": blurred, "circular FFT": circular, "deconv": real.numpy()}
show({f"{name}: {psnr(p, truth):.1f} dB": p for name, p in pictures.items()}, columns=3, width=9.0)

# %%
# The right edge, magnified:

show(pictures, columns=3, crop=(120, 176, 80, 80), width=9.0)

# %%
# The error of each method by the distance from the edge, in gray levels:

rows, columns = np.indices(truth.shape)
depth = np.minimum(np.minimum(rows, 255 - rows), np.minimum(columns, 255 - columns))
for low, high in ((0, 4), (4, 16), (16, 128)):
    band = (depth >= low) & (depth < high)
    errors = {name: np.sqrt(np.mean((p - truth)[band] ** 2)) for name, p in list(pictures.items())[1:]}
    print(f"{low:3d} to {high:3d} pixels from the edge: " + ", ".join(f"{name} {e:.1f}" for name, e in errors.items()))
