"""λ and the noise of pictures whose highlights are cut off, held against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.settings import ResolvedSettings
from deconv_cli.workflows.find_noise import fill_clipped

PHOTOGRAPH = Path(__file__).parents[2] / "sample_images" / "astronaut.png"
SIZE, CLIPPED, WHITE, NOISE = 88, 0.2, 65535, 0.004


@pytest.fixture(scope="module")
def scene():
    """A photograph in light."""
    stored = np.asarray(Image.open(PHOTOGRAPH).convert("L").reduce(2), dtype=np.float64) / 255
    return torch.from_numpy(stored**2.2)[None, 40 : 40 + SIZE, 40 : 40 + SIZE]


def exposed(scene, kernel):
    """Blur a scene, and expose it so long that its highlights are full; gives 16 bits and the truth on their scale."""
    seen = deconv_cli.forward(scene, kernel.double(), padding="valid")
    gain = WHITE / float(seen.quantile(1 - CLIPPED))
    noise = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    edge = [(n - 1) // 2 for n in kernel.shape]
    truth = gain * scene[:, edge[0] : -edge[0], edge[1] : -edge[1]]
    return (gain * seen + NOISE * WHITE * noise).round().clamp(0, WHITE).int(), truth


def test_clipped_samples_lead_neither_the_noise_nor_lambda_astray(scene):
    kernel = make_kernel("disk:3.3")
    y, truth = exposed(scene, kernel)

    def error(result):
        return float((result.image.clamp(0, WHITE) - truth.clamp(0, WHITE)).square().mean().sqrt())

    chosen = deconv_cli.invert(y, kernel, defaults="picture")
    assert chosen.settings.noise.is_white
    assert error(chosen) < 1.1 * error(deconv_cli.invert(y, kernel, defaults="picture", lam=1e-3))


def test_only_clipped_samples_are_filled_and_only_upward(scene):
    kernel = make_kernel("gaussian:1.5").double()
    y, _ = exposed(scene, kernel)
    data = y.double()
    is_clipped = data >= WHITE
    settings = ResolvedSettings(boundary="unknown", penalty="gradient")
    filled, share = fill_clipped(data, Kernel.from_tensor(kernel), settings, is_clipped)
    assert torch.equal(filled[~is_clipped], data[~is_clipped])
    assert bool((filled >= data).all())
    assert share == pytest.approx(float((filled == data).double().mean()))
    assert 0.5 * CLIPPED < 1 - share < 1.5 * CLIPPED
