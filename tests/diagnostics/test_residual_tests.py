"""Each sentence about a residual, on a simulation that deserves it: a larger scene, cropped after the blur, noised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from deconv_cli.diagnostics.residual_tests import ResidualFinding
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.settings import ReconstructionSettings, ResolvedSettings
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.workflows.library import invert
from deconv_cli.workflows.measurement import diagnose
from deconv_cli.workflows.pipeline import Pipeline
from deconv_cli.workflows.trust import MAX_RISE, RISEN

SAMPLES = Path(__file__).parents[2] / "sample_images"
CROP = 40


KERNELS = {
    "gaussian": make_kernel("gaussian:1.6"),
    "wider": make_kernel("gaussian:2.5"),
    "disk": make_kernel("disk:3"),
    "line": make_kernel("motion:11@0"),
    "slanted": make_kernel("motion:11@45"),
    "motion": torch.from_numpy(np.load(SAMPLES / "motion.npy")).double(),
}


def photograph(taps, noise, seed=0):
    """A camera's frame: it sees the scene beyond its edges, which nobody who restores it does."""
    with Image.open(SAMPLES / "camera.png") as picture:
        scene = torch.from_numpy(np.array(picture, dtype=np.float64))[None, None]
    blurred = functional.conv2d(scene, taps[None, None], padding="same")[0, :, CROP:-CROP, CROP:-CROP]
    generator = torch.Generator().manual_seed(seed)
    return blurred + noise * torch.randn(blurred.shape, generator=generator, dtype=torch.float64)


def inverse_for_output(y, taps, settings, dtype):
    return PseudoInverse(Kernel.from_tensor(taps.to(dtype)), tuple(y.shape[-2:]), settings)


def reconstruct(inverse, y, bias=None):
    settings = ReconstructionSettings(
        padding="same", boundary=inverse.settings.boundary, lam=inverse.lam, penalty="gradient"
    )
    return Pipeline(inverse.kernel.taps, settings, bias=bias).reconstruct(y)


def examined(y, taps, *, boundary="unknown", lam=1e-3, noise=None, bias=None):
    settings = ResolvedSettings(padding="same", boundary=boundary, lam=lam, penalty="gradient")
    inverse = inverse_for_output(y, taps, settings, torch.float64)
    return diagnose(inverse, reconstruct(inverse, y, bias=bias), y, bias=bias, noise=noise).tests


@pytest.mark.parametrize(
    ("name", "noise", "lam"),
    [("gaussian", 0.5, 1e-3), ("gaussian", 3.0, 1e-2), ("disk", 0.5, 1e-3), ("disk", 3.0, 1e-2), ("motion", 0.5, 1e-3)],
)
@pytest.mark.parametrize("is_given", [False, True])
def test_the_right_kernel_is_fine(name, noise, lam, is_given):
    found = examined(photograph(KERNELS[name], noise), KERNELS[name], lam=lam, noise=noise if is_given else None)
    assert found.finding is ResidualFinding.FINE
    assert found.is_noise_given is is_given
    assert found.noise == pytest.approx(noise, rel=0 if is_given else 0.25)


@pytest.mark.parametrize("name", ["gaussian", "disk", "motion"])
def test_too_large_a_weight_is_over_smoothed(name):
    assert examined(photograph(KERNELS[name], 0.5), KERNELS[name], lam=0.1).finding is ResidualFinding.OVER_SMOOTHED


@pytest.mark.parametrize(("name", "noise", "lam"), [("gaussian", 0.5, 1e-5), ("disk", 0.5, 1e-6), ("motion", 3, 1e-4)])
def test_too_small_a_weight_fits_noise(name, noise, lam):
    assert examined(photograph(KERNELS[name], noise), KERNELS[name], lam=lam).finding is ResidualFinding.NOISE_FITTED


@pytest.mark.parametrize(
    ("true", "used"), [("gaussian", "wider"), ("disk", "wider"), ("line", "slanted"), ("disk", "slanted")]
)
def test_another_kernel_is_found_out(true, used):
    found = examined(photograph(KERNELS[true], 0.5), KERNELS[used], lam=1e-3)
    assert found.finding is ResidualFinding.WRONG_KERNEL
    assert found.implausible_share > 0.25


@pytest.mark.parametrize("boundary", ["zero", "circular"])
@pytest.mark.parametrize("name", ["gaussian", "disk", "motion"])
def test_another_border_is_found_out(name, boundary):
    found = examined(photograph(KERNELS[name], 0.5), KERNELS[name], boundary=boundary)
    assert found.finding is ResidualFinding.WRONG_BOUNDARY
    assert found.edge_ratio > 4


def test_the_right_border_is_fine_too():
    """Blurred around a torus, and restored as such."""
    taps = KERNELS["disk"]
    with Image.open(SAMPLES / "camera.png") as picture:
        x = torch.from_numpy(np.array(picture, dtype=np.float64))[None, None]
    y = functional.conv2d(functional.pad(x, (taps.shape[0] // 2,) * 4, mode="circular"), taps[None, None])[0]
    y += 0.5 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert examined(y, taps, boundary="circular").finding is ResidualFinding.FINE
    assert examined(y, taps, boundary="zero").finding is ResidualFinding.WRONG_BOUNDARY


@pytest.mark.parametrize("lam", [1e-3, 1e-2])
def test_a_flat_scene_accuses_no_kernel(lam):
    """What λ leaves of white noise is not white, and speaks against nothing."""
    y = 100 + 2 * torch.randn(1, 80, 80, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    steps = torch.arange(7, dtype=torch.float64) - 3
    line = torch.exp(-0.5 * (steps / 1.2).square())
    taps = line[:, None] * line / line.sum() ** 2
    settings = ResolvedSettings(padding="same", boundary="unknown", lam=lam, penalty="gradient")
    inverse = inverse_for_output(y, taps, settings, torch.float64)
    assert diagnose(inverse, reconstruct(inverse, y), y).tests.finding is not ResidualFinding.WRONG_KERNEL


def test_where_the_noise_cannot_be_told_nothing_is_claimed():
    """A layer's output, as rough as noise, taken back to the last digit."""
    generator = torch.Generator().manual_seed(2)
    taps = torch.randn(4, 4, 3, 3, generator=generator, dtype=torch.float64)
    y = functional.conv2d(torch.randn(1, 4, 24, 24, generator=generator, dtype=torch.float64), taps, padding="same")
    settings = ResolvedSettings(padding="same", boundary="zero", lam=1e-8, penalty="identity")
    inverse = inverse_for_output(y, taps, settings, torch.float64)
    found = diagnose(inverse, reconstruct(inverse, y), y).tests
    assert found.finding is ResidualFinding.INCONCLUSIVE
    assert found.noise is None


def test_a_layer_with_more_outputs_shows_what_no_image_explains():
    """Three outputs of one input: two thirds of white noise are outside the range of the kernel."""
    generator = torch.Generator().manual_seed(3)
    taps = torch.randn(3, 1, 3, 3, generator=generator, dtype=torch.float64)
    settings = ResolvedSettings(padding="same", boundary="circular", lam=1e-6, penalty="identity")
    noise = torch.randn(3, 32, 32, generator=generator, dtype=torch.float64)
    inverse = inverse_for_output(noise, taps, settings, torch.float64)
    found = diagnose(inverse, reconstruct(inverse, noise), noise, noise=0.1)
    assert found.null_share_of_data == pytest.approx(2 / 3, abs=0.03)
    assert found.tests.implausible_share > 0.9
    assert found.tests.finding is ResidualFinding.WRONG_KERNEL
    right = functional.conv2d(
        functional.pad(
            torch.randn(1, 1, 32, 32, generator=generator, dtype=torch.float64), (1, 1, 1, 1), mode="circular"
        ),
        taps,
    )[0]
    right = right + 0.1 * noise
    explained = diagnose(inverse, reconstruct(inverse, right), right, noise=0.1)
    assert explained.null_share_of_data < 0.01
    assert explained.tests.finding is ResidualFinding.FINE


def test_an_estimate_that_follows_the_data_anywhere_tells_nothing():
    found = examined(photograph(KERNELS["motion"], 0.5), KERNELS["motion"], lam=1e-5)
    assert found.finding is ResidualFinding.INCONCLUSIVE
    assert found.interior_rms < 0.4 * found.noise


def test_a_bias_is_no_residual():
    taps = KERNELS["gaussian"][None, None]
    y = photograph(KERNELS["gaussian"], 0.5)
    shifted = examined(y + 1000, taps, bias=torch.tensor([1000.0], dtype=torch.float64))
    plain = examined(y, taps)
    assert shifted.interior_rms == pytest.approx(plain.interior_rms, rel=1e-6)
    assert shifted.finding is plain.finding


@pytest.mark.parametrize(("given", "is_wrong"), [("disk:3", False), ("disk:5", True)])
def test_an_estimate_that_rises_where_the_kernel_is_weak_is_doubted(given, is_wrong):
    result = invert(photograph(KERNELS["disk"], 0.05), make_kernel(given), defaults="picture")
    assert (result.rise > MAX_RISE) is is_wrong
    assert (RISEN in [doubt.sentence for doubt in result.doubts]) is is_wrong


def test_a_chart_that_rises_under_its_kernel_is_not_doubted():
    taps, at = make_kernel("gaussian:3").double(), torch.arange(126, dtype=torch.float64) - 63
    star = 0.5 + 0.45 * (24 * torch.atan2(at[:, None] + 0.3, at - 0.3)).sin().sign()
    y = functional.conv2d(star[None, None], taps[None, None])
    y = y + 0.01 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = invert(y, taps, defaults="picture")
    assert (result.rises, result.doubts) == (True, ())


def test_lines_that_repeat_do_not_speak_against_their_kernel():
    y = photograph(KERNELS["disk"], 0.05)
    y = y + 40 * (torch.arange(y.shape[-1]) * (2 * torch.pi / 9)).cos()
    assert invert(y, KERNELS["disk"], defaults="picture").rise < MAX_RISE
