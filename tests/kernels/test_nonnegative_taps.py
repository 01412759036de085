"""The nearest kernel without negative taps: none, the same sum, and nearer than what cutting them off gives."""

import math

import pytest
import torch

import deconv_cli
from deconv_cli.errors import UsageError
from deconv_cli.kernels.kernel_field import KernelField
from deconv_cli.kernels.nonnegative_taps import negative_share, without_negative_taps
from deconv_cli.kernels.sources.formula import make_kernel
from deconv_cli.workflows.apply_kernel import Noise


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
