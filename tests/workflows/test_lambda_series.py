"""A detail under other λ equals a restoration with that λ at the same place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import random
from PIL import Image

import deconv_cli
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows import lambda_series
from deconv_cli.workflows.apply_kernel import forward
from deconv_cli.workflows.lambda_series import RATIOS, STRENGTHS, find_detail
from deconv_cli.workflows.library import invert
from deconv_cli.workflows.noise_of_data import fill_clipped
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.resolve_settings import InputMetadata

KERNEL = torch.tensor([[0.0, 1.0, 0.0], [1.0, 4.0, 2.0], [0.0, 1.0, 1.0]], dtype=torch.float64) / 10


def views_of(y, kernel, tone_curve=None, bias=None, **options):
    pipeline = Pipeline(kernel, ReconstructionSettings.of(**options), bias=bias)
    result = pipeline.reconstruct(y, pipeline.resolve(InputMetadata(tone_curve=tone_curve)))
    return result, pipeline.vary_lambda(result, y)


@pytest.fixture
def bright():
    """A checkered picture of two channels, blurred, with a little noise."""
    sharp = 60 + 120 * ((torch.arange(24)[:, None] // 6 + torch.arange(20) // 5) % 2)
    return forward(sharp.double().expand(2, 24, 20), KERNEL, boundary="reflect") + 0.5 * random((2, 24, 20))


@pytest.mark.parametrize("boundary", ["zero", "reflect", "unknown"])
@pytest.mark.parametrize("curve", [None, ToneCurve.srgb(255)])
def test_each_view_is_the_restoration_with_its_lambda(bright, boundary, curve):
    given = {"boundary": boundary, "penalty": "gradient", "padding": "same", "light": "linear" if curve else "stored"}
    _, views = views_of(bright, KERNEL, curve, lam=1e-2, **given)
    assert tuple(view.ratio for view in views) == RATIOS
    for view in views:
        assert view.lams == (pytest.approx(1e-2 * view.ratio),)
        whole = invert(bright, KERNEL, tone_curve=curve, lam=view.lams[0], **given).image
        assert (view.image - whole).abs().max() < 0.1


@pytest.mark.parametrize("curve", [None, ToneCurve.srgb(255)])
def test_each_view_of_a_photograph_is_the_restoration_at_its_strength(bright, curve):
    given = {"prior": "photo", "light": "linear" if curve else "stored", "defaults": "picture"}
    _, views = views_of(bright, KERNEL, curve, strength=1.5, **given)
    assert tuple(view.strength for view in views) == tuple(1.5 * ratio for ratio in STRENGTHS)
    for view in views[::2]:
        whole = invert(bright, KERNEL, tone_curve=curve, strength=view.strength, **given).image
        assert (view.image - whole).abs().max() < 0.1


def test_of_a_stack_it_is_a_plane():
    sharp = torch.zeros(1, 9, 20, 18, dtype=torch.float64)
    sharp[:, 5:, 8:12, 6:10] = 100
    kernel = KERNEL.expand(3, 3, 3) / 3
    blurred = forward(sharp, kernel, dimensions=3, boundary="reflect")
    given = {"boundary": "reflect", "penalty": "gradient", "padding": "same", "dimensions": 3}
    _, views = views_of(blurred, kernel, lam=1e-2, **given)
    whole = invert(blurred, kernel, lam=0.1, **given).image
    assert [view.ratio for view in views] == [0.1, 1.0, 10.0]  # a hundredth would take most of the time of a page
    assert views[2].image.shape == (1, 20, 18)
    assert min((views[2].image - plane).abs().max() for plane in whole.unbind(1)) < 0.1


def test_each_channel_has_its_kernel_its_lambda_and_its_bias(bright):
    kernels = torch.stack([KERNEL, KERNEL.flip(0)])
    bias = torch.tensor([10.0, -20.0], dtype=torch.float64)
    given = {"boundary": "zero", "penalty": "gradient", "padding": "same", "defaults": "picture"}
    _, views = views_of(bright, kernels, bias=bias, lam=(1e-2, 3e-2), **given)
    assert views[3].lams == pytest.approx((0.1, 0.3))
    whole = invert(bright, kernels, bias=bias, lam=(0.1, 0.3), **given).image
    assert (views[3].image - whole).abs().max() < 0.1


def test_full_samples_are_bounds_in_every_view_too(bright):
    """Else rings would surround them that the restoration has not."""
    full = (1.6 * bright).clamp(0, 255).byte()
    given = {"boundary": "zero", "penalty": "gradient", "padding": "same", "defaults": "picture", "noise": "auto"}
    result, views = views_of(full, KERNEL, lam=(1e-2, 1e-2), **given)
    assert any("saturated" in note for part in result.channels for note in part.notes)
    whole = invert(full, KERNEL, lam=(0.1, 0.1), **given).image
    assert (views[3].image - whole).abs().max() < 0.1
    plain = invert(full, KERNEL, lam=(0.1, 0.1), **given | {"noise": "white"}).image
    assert (whole - plain).abs().max() > 5


def test_of_a_large_picture_only_a_detail_is_restored(monkeypatch):
    """What lies beyond the margin hardly matters."""
    monkeypatch.setattr(lambda_series, "SIDE", 16)
    y = 0.1 * random((1, 64, 80))
    y[0, 30:50, 40:60] += random((20, 20))
    given = {"boundary": "reflect", "penalty": "gradient"}
    result, views = views_of(y, KERNEL, lam=1e-2, **given)
    part = (slice(None), *find_detail(y, 16, 16))
    assert torch.equal(views[2].image, result.image[part])
    there = invert(y, KERNEL, lam=0.1, **given).image[part]
    assert views[3].image.shape == there.shape == (1, 16, 16)
    assert (views[3].image - there).square().mean() < 1e-4 * there.square().mean()


def test_there_is_none_without_a_lambda_to_vary_or_where_channels_mix_or_the_kernel_varies(bright):
    for kernel, options in [
        (KERNEL, {"lam": 0.0}),
        (KERNEL, {"lam": 1e-2, "nonnegative": True}),
        (KERNEL, {"prior": "tv", "weight": 0.1}),
        (random((2, 2, 3, 3)), {"lam": 1e-2}),
        (KernelField(KERNEL.expand(1, 2, 3, 3), (0.5,), (0.0, 1.0)), {"lam": 1e-2}),
    ]:
        assert views_of(bright, kernel, boundary="zero", **options)[1] == ()


@pytest.mark.parametrize(("row", "column"), [(0, 0), (37, 51), (59, 81)])
def test_the_detail_is_where_neighbors_differ_most(row, column):
    image = torch.zeros(3, 83, 107)
    image[:, row : row + 24, column : column + 26] = random((24, 26)).float()
    rows, columns = find_detail(image, 24, 26)
    assert (rows.stop - rows.start, columns.stop - columns.start) == (24, 26)
    assert abs(rows.start - row) <= 3
    assert abs(columns.start - column) <= 3
    assert find_detail(image, 200, 26)[0] == slice(0, 83)


PHOTOGRAPH = Path(__file__).parents[2] / "sample_images" / "astronaut.png"
SIZE, CLIPPED, WHITE, NOISE = 88, 0.2, 65535, 0.004


@pytest.fixture(scope="module")
def scene():
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


def test_a_layer_with_a_stride_has_no_views(bright):
    """Its data and its image have different sizes, so that a detail of one is another place of the other."""
    result, views = views_of(bright[:1], KERNEL[None, None], lam=1e-2, stride=2, boundary="zero")
    assert result.image.shape[-1] > bright.shape[-1]
    assert views == ()
