"""Make the sample files from the pictures that scikit-image ships; run once, from this folder, with the `dev` extra.

The kernels are computed here, the blurred files come from the tool itself. See README.md beside this file for origins
and licences.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from skimage import color, data, transform
from torch import nn
from torch.nn import functional

import deconv_cli
from deconv_cli.workflows.apply_kernel import Noise, NoiseKind

HERE = Path(__file__).parent
SIZE = 256


def curved_motion(size: int) -> NDArray[np.float32]:
    """Draw the trace of a camera shaken along an arc, as taps of a cross-correlation that sum to one."""
    oversampling = 8
    canvas = np.zeros((size * oversampling, size * oversampling))
    for t in np.linspace(-1, 1, 4001):
        row = (0.5 + 0.30 * t**2 - 0.12) * size * oversampling
        column = (0.5 + 0.42 * t) * size * oversampling
        canvas[int(row), int(column)] += 1.2 - t
    taps = canvas.reshape(size, oversampling, size, oversampling).sum(axis=(1, 3))
    return (taps / taps.sum()).astype(np.float32)


def gaussian(sigma: float, size: int) -> NDArray[np.float64]:
    """Sample a Gaussian point-spread function that sums to one."""
    offset = np.arange(size) - (size - 1) / 2
    line = np.exp(-(offset**2) / (2 * sigma**2))
    taps = np.outer(line, line)
    return taps / taps.sum()


def out_of_focus(path: Path) -> Image.Image:
    """Take a photograph of a photograph: shrunk until its pixels are clean, and blurred in light by a disk."""
    with Image.open(path) as opened:
        scene = opened.convert("RGB").resize((1000, 562), Image.Resampling.HAMMING).crop((124, 104, 696, 516))
    x = torch.from_numpy(np.array(scene)).permute(2, 0, 1).double()
    curve = deconv_cli.ToneCurve.srgb(255)
    y = deconv_cli.forward(x, deconv_cli.make_kernel("disk:3.3"), padding="valid", tone_curve=curve)
    y = Noise(NoiseKind.GAUSSIAN, 1.0).add(y, seed=0)
    return Image.fromarray(y.round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def main() -> None:
    """Write every sample."""
    photographs = Path("/usr/share/backgrounds/budgie")  # of Debian's package budgie-backgrounds
    out_of_focus(photographs / "perched-osprey.jpg").save(HERE / "osprey.jpg", quality=90)
    motion = curved_motion(17)
    np.save(HERE / "motion.npy", motion)
    spread = gaussian(1.6, 11)
    Image.fromarray(np.round(spread / spread.max() * 65535).astype(np.uint16)).save(HERE / "gaussian_psf.png")

    # Each blurred picture sees a larger scene than its frame shows, and is blurred in light before that is encoded as
    # sRGB, as in a camera; the sharp one is cropped to that frame.
    for name, scene, taps in (
        ("camera", data.camera()[50:322, 100:372, None], motion),
        ("astronaut", data.astronaut()[0:266, 90:356], spread),
    ):
        x = torch.from_numpy(scene).permute(2, 0, 1).double()
        y = deconv_cli.forward(x, torch.from_numpy(taps), padding="valid", tone_curve=deconv_cli.ToneCurve.srgb(255))
        y = Noise(NoiseKind.GAUSSIAN, 0.5).add(y, seed=0)
        top, left = (taps.shape[0] - 1) // 2, (taps.shape[1] - 1) // 2
        sharp = scene[top : top + y.shape[1], left : left + y.shape[2]]
        blurred = y.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(sharp.squeeze()).save(HERE / f"{name}.png")
        Image.fromarray(blurred.squeeze()).save(HERE / f"{name}_blurred.png")

    # A retina at microscope-like depth: 16 bits, with the physical size of a pixel.
    retina = transform.resize(color.rgb2gray(data.retina())[300:1068, 300:1068], (SIZE, SIZE), anti_aliasing=True)
    tifffile.imwrite(
        HERE / "retina16.tif",
        np.round(retina / retina.max() * 60000).astype(np.uint16),
        imagej=True,
        resolution=(1 / 11.5, 1 / 11.5),
        metadata={"axes": "YX", "unit": "um"},
    )

    # A layer of learned size: a well-conditioned orthogonal mixture of 32 channels, with the small neighboring taps
    # of a trained layer.
    generator = torch.Generator().manual_seed(0)
    mixture, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator, dtype=torch.float64))
    weight = 0.05 * torch.randn(32, 32, 3, 3, generator=generator, dtype=torch.float64)
    weight[:, :, 1, 1] += mixture
    weight = weight.float()
    bias = 0.1 * torch.randn(32, generator=generator)
    save_file({"conv.weight": weight, "conv.bias": bias}, HERE / "layer.safetensors")
    patch = torch.from_numpy(data.astronaut()[:32, 186:218] / 255.0).permute(2, 0, 1).float()
    lifted = functional.conv2d(patch[None], torch.randn(32, 3, 3, 3, generator=generator) / math.sqrt(27), padding=1)
    features = functional.conv2d(lifted.relu(), weight, bias, padding=1)[0]
    save_file({"image": features}, HERE / "features.safetensors")
    make_network()
    make_activation()


def make_activation() -> None:
    """Write a small encoder, and what it makes of a face."""
    generator = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(3, 24, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(24, 24, 1)]
    encoder = nn.Sequential(*layers).eval().requires_grad_(False)
    for layer in (encoder[0], encoder[2]):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.weight[0].numel()))
        layer.bias.copy_(0.1 * torch.randn(layer.bias.shape, generator=generator))
    torch.save(encoder, HERE / "encoder.pt")
    face = torch.from_numpy(data.astronaut()[80:136, 196:252]).permute(2, 0, 1)[None]
    save_file({"activation": encoder((face - 127.5) / 128)[0].contiguous()}, HERE / "activation.safetensors")


def make_network() -> None:
    """Write the weights of network.py, untrained, and sixteen details of a photograph to feed it with."""
    from network import Network

    torch.manual_seed(0)
    save_file(Network().state_dict(), HERE / "network.safetensors")
    scene = torch.from_numpy(data.camera()[100:356, 100:356] / 255.0).float()
    patches = scene.unfold(0, 16, 64).unfold(1, 16, 64).reshape(16, 1, 16, 16).contiguous()
    save_file({"input": patches, "target": torch.arange(16) % 10}, HERE / "patches.safetensors")


if __name__ == "__main__":
    main()
