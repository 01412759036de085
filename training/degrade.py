"""What the denoiser meets inside a restoration: noise of any strength, color and dependence on the light.

The error of an estimate inside plug-and-play splitting is never white: the regularized inverse amplifies some
frequencies and removes others, a camera's noise grows with the light, and JPEG leaves blocks. Each sample draws one of
each.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIGMAS = (0.003, 0.3)
"""Least and largest mean noise level, of white."""
PRINT = 0.1
"""Part of the patches that are no photographs."""
FINE = 0.3
"""Part of the patches that are chosen for their detail instead of their contrast."""
LETTERS = "".join(chr(code) for code in range(33, 127)) + " " * 12


def draw_patches(pictures: list[np.ndarray], n: int, side: int, rng: np.random.Generator) -> Tensor:
    """Cut square patches out of photographs, turned and flipped; large photographs give more of them.

    Returns:
        Stored values in 0..1, shape `(n, 3, side, side)`; a part of them gray, with three equal channels, and a part
        print: letters, lines and shapes.
    """
    areas = np.sqrt([float(p.shape[0] * p.shape[1]) for p in pictures])
    patches = []
    for index in rng.choice(len(pictures), n, p=areas / areas.sum()):
        picture = pictures[index]
        # Flat candidates are left out: most of a photograph is sky and blur.
        is_fine = rng.random() < FINE
        corners = rng.integers(np.array(picture.shape[:2]) - side + 1, size=(4 if is_fine else 2, 2))
        cuts = [picture[i : i + side, j : j + side] for i, j in corners]
        cut = max(cuts, key=_detail if is_fine else _contrast)
        cut = np.rot90(cut, rng.integers(4))
        cut = cut[:, ::-1] if rng.random() < 0.5 else cut
        cut = _print(side, rng) if rng.random() < PRINT else cut
        patches.append(torch.from_numpy(cut.copy()).permute(2, 0, 1))
    batch = torch.stack([_recolored(patch.float() / 255, rng) for patch in patches])
    is_gray = torch.from_numpy(rng.random(n) < 0.15)[:, None, None, None]
    return torch.where(is_gray, batch.mean(dim=1, keepdim=True).expand_as(batch), batch)


def _contrast(cut: np.ndarray) -> float:
    return float(cut[::3, ::3].std())


def _detail(cut: np.ndarray) -> float:
    return float(np.abs(np.diff(cut.astype(np.float32), axis=0)).mean())


def _recolored(stored: Tensor, rng: np.random.Generator) -> Tensor:
    """Give half of the patches other colors: channels exchanged, deeper or paler, some channels dark."""
    if rng.random() < 0.5:
        return stored
    stored = stored[torch.from_numpy(rng.permutation(3))]
    gray = stored.mean(dim=0, keepdim=True)
    stored = (gray + math.exp(rng.uniform(math.log(0.7), math.log(3.0))) * (stored - gray)).clamp(0, 1)
    gains = np.where(rng.random((3, 1, 1)) < 0.3, rng.uniform(0.1, 1.0, (3, 1, 1)), 1.0)
    return stored * torch.from_numpy(gains).float()


def _print(side: int, rng: np.random.Generator) -> np.ndarray:
    """Draw letters, lines and shapes on an even ground, at twice the size, and shrink them."""
    ground, *inks = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(4))
    if rng.random() < 0.5:
        ground, inks = (255, 255, 255), [(0, 0, 0), *inks]
    picture = Image.new("RGB", (2 * side, 2 * side), ground)
    canvas, top = ImageDraw.Draw(picture), int(rng.integers(-20, 20))
    while top < 2 * side:
        size, ink = int(rng.integers(14, 64)), inks[int(rng.integers(len(inks)))]
        corners = [tuple(int(v) for v in corner) for corner in rng.integers(-side // 2, 5 * side // 2, (2, 2))]
        kind = rng.random()
        if kind < 0.7:
            line = "".join(rng.choice(list(LETTERS), 40))
            canvas.text((int(rng.integers(-60, 10)), top), line, fill=ink, font=ImageFont.load_default(size))
        elif kind < 0.85:
            canvas.line([*corners[0], *corners[1]], fill=ink, width=int(rng.integers(1, 9)))
        else:
            low, high = np.minimum(*corners), np.maximum(*corners)
            draw = canvas.ellipse if rng.random() < 0.5 else canvas.rectangle
            draw([*map(int, low), *map(int, high)], outline=ink, width=int(rng.integers(1, 9)))
        top += size
    return np.asarray(picture.rotate(float(rng.uniform(-8, 8)), fillcolor=ground).resize((side, side)))


def degrade(stored: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Put stored values into light or near it, and add noise.

    Args:
        stored: clean patches in 0..1, shape `(B, 3, side, side)`.
        rng: draws the noise.

    Returns:
        The noisy patches, the clean ones, and the standard deviation of the noise, shape `(B, 1, side, side)`.
    """
    samples = [_degraded(patch, rng) for patch in stored]
    noisy, clean, sigma = (torch.stack(tensors) for tensors in zip(*samples, strict=True))
    return noisy, clean, sigma


def _degraded(stored: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    gamma = rng.choice([1.0, 1.5, 2.2])
    is_gray = bool((stored[0] == stored[1]).all())
    clean = stored**gamma * rng.uniform(0.3, 1.0)
    sigma = math.exp(rng.uniform(*np.log(SIGMAS)))
    if sigma < 0.05 and rng.random() < 0.15:
        compressed = _compressed(stored, int(rng.integers(70, 96))) ** gamma * (
            clean.max() / (stored**gamma).max().clamp(min=1e-6)
        )
        error = compressed - clean
        level = error.square().mean().sqrt().expand(1, *clean.shape[1:]) + 1e-4
        return compressed, clean, level
    level = torch.ones(1, *clean.shape[1:])
    if rng.random() < 0.6:  # noise that grows with the light, as the slope of a tone curve does
        light = _low_pass(clean.mean(dim=0, keepdim=True), rng.uniform(0.8, 4.0))
        level = (light.clamp(min=0) + 0.01) ** rng.uniform(0.2, 0.7)
        level = level / level.square().mean().sqrt()
    noise = _noise(clean.shape, rng, is_gray=is_gray)
    return clean + sigma * level * noise, clean, sigma * level


def _noise(shape: torch.Size, rng: np.random.Generator, *, is_gray: bool) -> Tensor:
    """Draw noise of variance one: white, blurred, or as a regularized inverse leaves it; colors more or less alike."""
    white = torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))
    common = torch.from_numpy(rng.standard_normal((1, *shape[1:]), dtype=np.float32))
    share = 1.0 if is_gray else rng.choice([0.0, rng.uniform(0.0, 0.9)])
    noise = math.sqrt(1 - share) * white + math.sqrt(share) * common
    kind = rng.random()
    if kind < 0.4:
        return noise
    if kind < 0.55:
        gain = gaussian_gain(shape, rng.uniform(0.3, 1.2))
    else:
        blur = blur_gain(shape, rng)
        mu = math.exp(rng.uniform(math.log(3e-4), math.log(0.3)))
        inverse = blur / (blur.square() + mu)
        # The noise of the data after the inverse, and the rest of the last estimate's error.
        gain = (inverse.square() + rng.uniform(0, 1) * (mu / (blur.square() + mu) / math.sqrt(mu)).square()).sqrt()
    colored = torch.fft.irfft2(torch.fft.rfft2(noise) * gain, s=shape[-2:])
    return colored / colored.square().mean().sqrt()


def _frequencies(shape: torch.Size) -> tuple[Tensor, Tensor]:
    return torch.fft.fftfreq(shape[-2])[:, None], torch.fft.rfftfreq(shape[-1])[None]


def gaussian_gain(shape: torch.Size, width: float) -> Tensor:
    """Give the transform of a Gaussian of a width in pixels."""
    rows, columns = _frequencies(shape)
    return torch.exp(-2 * (math.pi * width) ** 2 * (rows**2 + columns**2))


def blur_gain(shape: torch.Size, rng: np.random.Generator, largest: float = 7.0) -> Tensor:
    """Give the transform of a disk, a straight motion or a Gaussian, centered and so real."""
    rows, columns = _frequencies(shape)
    kind, size = rng.integers(3), rng.uniform(0.7, largest)
    if kind == 0:
        return gaussian_gain(shape, size / 2)
    if kind == 1:
        angle = rng.uniform(0, math.pi)
        return torch.sinc(2 * size * (columns * math.cos(angle) + rows * math.sin(angle)))
    radius = 2 * math.pi * size * (rows**2 + columns**2).sqrt()
    return torch.where(radius > 1e-6, 2 * torch.special.bessel_j1(radius) / radius.clamp(min=1e-6), 1.0)


def _low_pass(picture: Tensor, width: float) -> Tensor:
    shape = picture.shape
    return torch.fft.irfft2(torch.fft.rfft2(picture) * gaussian_gain(shape, width), s=shape[-2:])


def _compressed(stored: Tensor, quality: int) -> Tensor:
    """Give what JPEG makes of a picture."""
    values = (stored.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()).permute(2, 0, 1).float() / 255
