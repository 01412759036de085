"""A kernel of free form is found in a blurred picture; the nearest kernel without negative taps."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import conv2d

import deconv_cli
from deconv_cli.errors import MalformedInputError, ShapeError, UsageError
from deconv_cli.kernels.blind.free_form import free_form
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.nonnegative_taps import minimize_over_kernels, negative_share, without_negative_taps
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.workflows.apply_kernel import Noise

FLAT = torch.full((3, 3), 1 / 9)


def scene(size: int, seed: int = 0) -> torch.Tensor:
    """Leaves that fell on one another: edges in all directions, as photographs have."""
    g = torch.Generator().manual_seed(seed)
    picture = torch.full((size, size), 0.3)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(150):
        y, x, radius, value = torch.rand(4, generator=g).tolist()
        is_leaf = (rows - y * size) ** 2 + (columns - x * size) ** 2 < (3 + 15 * radius**2) ** 2
        picture = torch.where(is_leaf, torch.tensor(value), picture)
    return picture


def hook() -> torch.Tensor:
    """A path that is like none of itself turned by half a circle."""
    taps = torch.zeros(9, 9)
    taps[1, 1:8] = 1
    taps[1:6, 7] = 1.5
    return taps / taps.sum()


def blurred(size: int = 108) -> torch.Tensor:
    y = conv2d(scene(size)[None, None], hook()[None, None])[0, 0]
    return y + 0.001 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest correlation over all shifts, 1 for kernels that are equal."""
    n = len(a) + len(b)
    spectra = [torch.fft.rfft2(taps.double(), s=(n, n)) for taps in (a, b)]
    return float(torch.fft.irfft2(spectra[0] * spectra[1].conj(), s=(n, n)).max() / (a.norm() * b.norm()))


def test_a_hook_is_found_where_no_family_fits():
    found = free_form(blurred(), FLAT, size=9)
    assert similarity(found.taps.float(), hook()) > 0.85 > 0.6 > similarity(FLAT, hook())
    assert similarity(found.taps.float(), hook()) > similarity(found.taps.float().flip((0, 1)), hook()) + 0.1
    assert found.taps.min() >= 0
    assert float(found.taps.sum()) == pytest.approx(1)
    assert found.taps.shape[0] == found.taps.shape[1]
    numbers = torch.arange(len(found.taps), dtype=torch.float64) - len(found.taps) // 2
    assert all(abs(float((found.taps.sum(axis) * numbers).sum())) <= 0.5 for axis in (0, 1))
    assert found.noise_sigma == pytest.approx(0.001, abs=0.001)


def test_the_part_with_edges_is_looked_at(monkeypatch):
    monkeypatch.setattr("deconv_cli.kernels.blind.free_form._CROP", 64)
    monkeypatch.setattr("deconv_cli.kernels.blind.free_form._N_ITERATIONS", 1)
    picture = torch.full((160, 160), 0.5) + 1e-3 * torch.rand(160, 160, generator=torch.Generator().manual_seed(0))
    picture[96:160, :64] = scene(64)
    found = free_form(picture, FLAT, size=5)
    assert found.part == (slice(96, 160), slice(0, 64))


@pytest.mark.parametrize(
    ("light", "start", "size", "error", "words"),
    [
        (torch.rand(64, 64), FLAT, 8, UsageError, "odd"),
        (torch.rand(64, 64), FLAT, 101, UsageError, "3 to"),
        (torch.rand(40, 64), FLAT, 15, ShapeError, "at least 45 × 45"),
        (torch.zeros(64, 64), FLAT, 5, MalformedInputError, "constant"),
    ],
)
def test_what_cannot_be_is_refused(light, start, size, error, words):
    with pytest.raises(error, match=words):
        free_form(light, start, size=size)


def test_the_kernel_of_least_squares_is_the_best_of_all_kernels():
    g = torch.Generator().manual_seed(0)
    design = torch.randn(40, 9, generator=g, dtype=torch.float64)
    target = torch.randn(40, generator=g, dtype=torch.float64)
    gram, moment = design.T @ design, design.T @ target
    step = 1 / float(gram.abs().sum(1).max())
    found = minimize_over_kernels(lambda kernel: gram @ kernel - moment, step, torch.full((9,), 1 / 9).double())
    assert found.min() >= 0
    assert float(found.sum()) == pytest.approx(1)
    # Optimal where the gradient is equal on the taps in use, and not smaller on the others.
    gradient = gram @ found - moment
    level = float(gradient[found > 0].max())
    assert float(gradient[found > 0].min()) == pytest.approx(level, abs=1e-4)
    assert float(gradient.min()) >= level - 1e-4


def change(taps, other):
    """The mean square of what changes in pictures of power 1/f²."""
    difference = torch.fft.fft2(taps - other, s=(64, 64)).abs().square()
    f = torch.fft.fftfreq(64, dtype=taps.dtype)
    return float((difference / (f[:, None].square() + f.square() + 0.03**2)).mean())


@pytest.mark.parametrize("formula", ["disk:1.3", "motion:9@30", "gaussian:0.3*shift:0.5@0.5"])
def test_it_is_nearer_than_what_cutting_off_gives(formula):
    taps = make_kernel(formula)
    assert negative_share(taps, 2) > 0.05
    nearest = without_negative_taps(taps, 2)
    cut = taps.clamp_min(0) / taps.clamp_min(0).sum()
    assert float(nearest.min()) >= 0
    assert float(nearest.sum()) == pytest.approx(1)
    assert change(nearest, taps) < 0.7 * change(cut, taps)
    # No small way to another kernel leads nearer.
    for other in (cut, torch.full_like(taps, 1 / taps.numel()), taps.clamp_min(0).square() / taps.square().sum()):
        moved = nearest + 1e-3 * (other / other.sum() - nearest)
        assert change(moved, taps) > change(nearest, taps) * (1 - 1e-5)


def test_each_of_several_kernels_keeps_its_sum():
    taps = torch.stack([2 * make_kernel("disk:2"), make_kernel("gaussian:0.5").new_zeros(make_kernel("disk:2").shape)])
    taps[1, 3, 3] = 3
    nearest = without_negative_taps(taps, 2)
    assert torch.equal(nearest[1], taps[1])
    assert float(nearest[0].sum()) == pytest.approx(2)


def test_richardson_lucy_takes_a_formula_with_small_negative_taps():
    scene = torch.full((1, 40, 40), 0.2, dtype=torch.float64)
    scene[0, 12:28, 15:25] = 1
    taps = make_kernel("disk:2")
    y = deconv_cli.forward(scene, taps, boundary="reflect").clamp_min(0)
    found = deconv_cli.invert(y, taps, boundary="reflect", method="richardson-lucy", iterations=60)
    assert "nearest kernel without negative taps, which were" in found.choice.reason
    assert float((found.image - scene).norm()) < 0.6 * float((y - scene).norm())
    edge = torch.tensor([[0.0, -1, 0], [-1, 5, -1], [0, -1, 0]])
    with pytest.raises(UsageError, match="needs a kernel without negative taps"):
        deconv_cli.invert(y, edge, boundary="reflect", method="richardson-lucy")


def test_counts_are_blurred_without_negative_taps():
    taps = make_kernel("disk:2")
    counts, gaussian = Noise.parse("poisson:100"), Noise.parse("gaussian:1")
    assert gaussian.kernel_for(taps, 2) == (taps, ())
    nearest, (note,) = counts.kernel_for(taps, 2)
    assert float(nearest.min()) >= 0
    assert "nearest kernel without negative taps" in note
    field, _ = counts.kernel_for(KernelField(taps.expand(1, 2, *taps.shape), (0.5,), (0.2, 0.8)), 2)
    assert torch.equal(field.middle, nearest)
    edge = torch.tensor([[-1.0, 3, -1]])
    assert counts.kernel_for(edge, 2) == (edge, ())
    star = torch.zeros(1, 31, 31)
    star[0, 15, 15] = math.pi
    seen = Noise.parse("poisson:1000").add(deconv_cli.forward(star, nearest, padding="valid"), 0)
    assert float(seen.min()) == 0
