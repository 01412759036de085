"""The count of lost modes against kernels whose roots are known, the phase of the determinant, and dense matrices."""

import math

import pytest
import torch
from cases import random

from deconv_cli.diagnostics.boundary_modes import MAX_ORDER, axis_roots
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry


def n_modes(roots, pads, length=32, edge=1):
    return sum(modes.estimate(modes.n_modes) for modes in roots.border_modes(pads, length, edge))


def polynomial(*roots):
    """Taps of a column whose polynomial has these roots."""
    taps = torch.ones(1, dtype=torch.float64)
    for root in roots:
        taps = torch.nn.functional.pad(taps, (1, 0)) - root * torch.nn.functional.pad(taps, (0, 1))
    return taps


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(3, 3), (4, 5), (2, 3)])
def test_a_tap_that_outweighs_all_others_tells_the_winding(channels, size):
    """By Rouché's theorem det K winds as often as the heavy tap stands off the origin, once for every channel."""
    pads = Geometry.of_image((16, 16), size, "same").pads
    for row in range(size[0]):
        for column in range(size[1]):
            kernel = random((channels, channels, *size), seed=row + 7 * column)
            kernel *= 0.9 / torch.linalg.matrix_norm(kernel.permute(2, 3, 0, 1), 2).sum()
            kernel[:, :, row, column] += 2 * torch.linalg.qr(random((channels, channels), seed=5))[0]
            expected = channels * (row - pads.before[0]), channels * (column - pads.before[1])
            sides = tuple(zip(pads.before, pads.after, strict=True))
            for axis in (0, 1):
                roots = axis_roots(kernel, axis, edge=16)
                assert roots.windings(sides[axis]) == (expected[axis], expected[axis])
                assert n_modes(roots, sides[axis], edge=16) == 16 * abs(expected[axis])


def test_known_roots_give_the_winding_the_decay_and_the_singular_value():
    kernel = torch.outer(polynomial(0.5, -0.8, 0.9, 3.0), torch.tensor([0.2, 1.0, 0.3], dtype=torch.float64))[
        None, None
    ]
    roots = axis_roots(kernel, 0, edge=8)
    assert roots.windings((2, 2)) == (1, 1)
    assert roots.nearest_root == pytest.approx(0.9, rel=1e-9)
    (modes,) = roots.border_modes((2, 2), length=40, edge=8)
    assert modes.singular_values.flatten().tolist() == pytest.approx([(1 - 0.81) * 0.9**40] * 4, rel=1e-6)
    # One pixel more above makes up for the third root inside.
    assert roots.windings((3, 1)) == (0, 0)
    assert n_modes(roots, (3, 1)) == 0
    # Roots of the mirrored kernel are the inverse ones.
    mirrored = axis_roots(kernel.flip(-2), 0, edge=8)
    assert mirrored.windings((2, 2)) == (-1, -1)
    assert mirrored.nearest_root == pytest.approx(0.9, rel=1e-9)
    (modes,) = mirrored.border_modes((2, 2), length=40, edge=8)
    assert modes.singular_values.flatten().tolist() == pytest.approx([(1 - 0.81) * 0.9**40] * 4, rel=1e-6)


def test_outer_taps_may_be_zero_or_singular():
    inner = polynomial(0.5, 3.0)[None, None, :, None]
    padded = torch.nn.functional.pad(inner, (0, 0, 2, 1))
    roots = axis_roots(padded, 0, edge=1)
    assert roots.nearest_root == pytest.approx(0.5)
    assert roots.windings((3, 2)) == (0, 0)
    assert roots.windings((2, 3)) == (1, 1)
    # Two channels: the first and the last matrix have rank one, so there is a root at zero and one at infinity.
    mixing = torch.linalg.qr(random((2, 2), seed=1))[0]
    late = torch.nn.functional.pad(polynomial(0.5), (0, 1))
    early = torch.nn.functional.pad(polynomial(3.0), (1, 0))
    kernel = torch.einsum("ab,bk,bc->ack", mixing, torch.stack([late, early]), random((2, 2), seed=2))[..., None]
    roots = axis_roots(kernel, 0, edge=1)
    assert roots.nearest_root == pytest.approx(0.5)
    assert roots.windings((1, 1)) == (0, 0)


@pytest.mark.parametrize("shape", [(1, 1, 3, 3), (1, 1, 4, 6), (2, 2, 3, 3), (4, 4, 3, 3), (3, 3, 5, 2)])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_winding_is_that_of_the_phase_of_the_determinant(shape, axis):
    kernel = random(shape, seed=sum(shape))
    pads = Geometry.of_image((24, 24), shape[2:], "same").pads
    before, after = pads.before[axis], pads.after[axis]
    roots = axis_roots(kernel, axis, edge=24)
    along = kernel if axis == 0 else kernel.transpose(-2, -1)
    windings = []
    for j in range(roots.n_lines):
        angle = math.pi * (j + 0.5) / roots.n_lines * torch.arange(along.shape[3], dtype=torch.float64)
        line = (along * torch.polar(torch.ones_like(angle), angle)).sum(-1)
        # From e^{−iθ} to e^{iθ}, and from tap 0 to the tap at the origin.
        symbol = torch.fft.fft(line, n=4096).permute(2, 0, 1)
        phase = torch.linalg.det(symbol).angle()
        step = torch.remainder(phase.roll(-1) - phase + math.pi, 2 * math.pi) - math.pi
        windings.append(-round(float(step.sum()) / (2 * math.pi)) - shape[0] * before)
    assert roots.windings((before, after)) == (min(windings), max(windings))
    assert n_modes(roots, (before, after), edge=2 * roots.n_lines) == 2 * sum(map(abs, windings))
    assert any(windings)


@pytest.mark.parametrize("boundary", ["zero", "reflect", "replicate"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("length", [3, 4, 5])
def test_singular_values_of_one_dimension_vanish_as_counted(boundary, channels, length):
    """Any padding, any kernel length: as many singular values vanish, of the size that is estimated."""
    n, n_kernels, n_vanishing = 48, 0, 0
    for seed in range(60):
        kernel = random((channels, channels, length, 1), seed=seed)
        roots = axis_roots(kernel, 0, edge=1)
        if roots.nearest_root > 0.78:
            continue  # too slow a decay to tell small from vanishing
        n_kernels += 1
        ordinary = float(kernel.square().sum() / channels) ** 0.5
        for padding in range(length + 1):
            geometry = Geometry.of_image((n, 1), (length, 1), (padding, 0))
            values = torch.linalg.svdvals(Convolution.of_geometry(kernel, geometry, boundary).as_matrix()) / ordinary
            (modes,) = roots.border_modes((padding, padding), n, edge=1)
            expected = modes.singular_values[0][modes.singular_values[0].isfinite()]
            assert int((values < 1e-3).sum()) == len(expected)
            excess = values[len(values) - len(expected) :].clamp_min(1e-14).log10()
            excess = excess - expected.sort(descending=True).values.clamp_min(1e-14).log10()
            assert excess.le(1.5).all()
            # Two roots of one modulus may happen to cancel.
            if (roots.groups[0].moduli[0].diff() > 1e-6).all():
                assert excess.ge(-1.5).all()
            n_vanishing += len(expected)
    assert n_kernels >= 1
    assert n_vanishing >= 1


def test_outputs_that_share_their_roots_are_as_bad_as_one():
    single = torch.outer(polynomial(0.5, -0.6), polynomial(0.4, 2.5))[None, None]
    differences = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    differences[0, 0, 0], differences[1, 0, :, 0] = torch.tensor([[1.0, -0.3], [-0.5, 1.0]], dtype=torch.float64)
    filtered = torch.nn.functional.conv2d(single, differences.flip(-2, -1), padding=1).transpose(0, 1)
    for axis, lost in ((0, 24), (1, 0)):
        assert n_modes(axis_roots(single, axis, edge=24), (1, 1), edge=24) == lost
        for several in (torch.cat([single, 2 * single]), torch.cat([single, 2 * single], 1)):
            assert n_modes(axis_roots(several, axis, edge=24), (1, 1), edge=24) == lost
        assert n_modes(axis_roots(filtered, axis, edge=24), (1, 2), edge=24) == lost
        for shape in ((3, 2, 3, 3), (2, 3, 3, 3)):
            assert n_modes(axis_roots(random(shape), axis, edge=24), (1, 1), edge=24) == 0
    values = torch.linalg.svdvals(
        Convolution.of_geometry(filtered, Geometry.of_image((24, 24), (4, 4), "same"), "zero").as_matrix()
    )
    assert int((values < 1e-3).sum()) == 24


def test_channels_that_never_meet_are_counted_apart():
    """One channel moves up and the other one down: the determinant winds not at all, and yet both lose a row."""
    kernel = torch.zeros(2, 2, 3, 1, dtype=torch.float64)
    kernel[0, 0, :, 0] = torch.tensor([0.0, 0.2, 1.0])
    kernel[1, 1, :, 0] = torch.tensor([1.0, 0.3, 0.1])
    roots = axis_roots(kernel, 0, edge=10)
    assert n_modes(roots, (1, 1), edge=10) == 20
    assert roots.windings((1, 1)) == (-1, 1)


def test_what_cannot_be_tested_is_not():
    dependent = random((3, 3, 3, 3))
    dependent[:, 2] = dependent[:, 0] - 2 * dependent[:, 1]
    assert axis_roots(dependent, 0, edge=8) is None
    n_channels = MAX_ORDER // 2 + 1
    assert axis_roots(random((n_channels, n_channels, 3, 1)), 0, edge=8) is None
    assert axis_roots(random((n_channels, n_channels, 3, 1)), 1, edge=8) is not None


def test_a_symmetric_kernel_with_zeros_on_the_circle_loses_nothing():
    kernel = torch.tensor([1.0, -0.6, 1.0], dtype=torch.float64)[None, None, :, None]
    roots = axis_roots(kernel, 0, edge=4)
    assert roots.nearest_root == pytest.approx(1)
    assert n_modes(roots, (1, 1)) == 0
