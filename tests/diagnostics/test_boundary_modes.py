"""The count of lost modes against kernels whose zeros are known, and dense matrices."""

from types import SimpleNamespace

import pytest
import torch
from cases import random

from deconv_cli.diagnostics.boundary_modes import count_lost_modes
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.geometry import Geometry, Pads


def lost_modes(*problem):
    found = count_lost_modes(*problem)
    return found and SimpleNamespace(**dict(zip(("n_border", "n_lost", "windings", "n_lines"), found, strict=True)))


def count(kernel, pads, length=32, threshold=1e-3):
    return lost_modes(kernel, Pads((pads[0], 0), (pads[1], 0)), (length, 1), threshold)


def polynomial(*zeros):
    """Taps of a column whose polynomial has these zeros."""
    taps = torch.ones(1, dtype=torch.float64)
    for zero in zeros:
        taps = torch.nn.functional.pad(taps, (1, 0)) - zero * torch.nn.functional.pad(taps, (0, 1))
    return taps[None, None, :, None]


@pytest.mark.parametrize(("channels", "size"), [(1, (3, 3)), (3, (2, 3)), (2, (4, 5))])
def test_a_tap_that_outweighs_all_others_tells_the_winding(channels, size):
    """By Rouché's theorem det K winds as often as the heavy tap stands off the origin, once for every channel."""
    pads = Geometry.of_image((16, 16), size, "same").pads
    for row, column in ((0, 0), (1, 2), (size[0] - 1, 1)):
        kernel = random((channels, channels, *size), seed=row + 7 * column)
        kernel *= 0.9 / torch.linalg.matrix_norm(kernel.permute(2, 3, 0, 1), 2).sum()
        kernel[:, :, row, column] += 2 * torch.linalg.qr(random((channels, channels), seed=5))[0]
        expected = [channels * (at - before) for at, before in zip((row, column), pads.before, strict=True)]
        found = lost_modes(kernel, pads, (16, 16), 1e-3)
        assert found.windings == tuple((n, n) for n in expected)
        assert found.n_border == 16 * sum(map(abs, expected))


@pytest.mark.parametrize("is_mirrored", [False, True])
def test_known_zeros_give_the_winding_and_the_singular_value(is_mirrored):
    kernel = polynomial(0.5, -0.8, 0.9, 3.0)
    kernel, sign = (kernel.flip(-2), -1) if is_mirrored else (kernel, 1)
    value = (1 - 0.81) * 0.9**40
    for threshold, n_lost in ((0.999 * value, 0), (1.001 * value, 1)):
        found = count(kernel, (2, 2), 40, threshold)
        assert (found.windings[0], found.n_border, found.n_lost) == ((sign, sign), 1, n_lost)
    # One pixel more above, or below, makes up for the third zero inside.
    assert count(kernel, (1, 3) if is_mirrored else (3, 1)).n_border == 0


def test_outer_taps_may_be_zero_or_singular():
    padded = torch.nn.functional.pad(polynomial(0.5, 3.0), (0, 0, 2, 1))
    assert [count(padded, pads).windings[0] for pads in ((3, 2), (2, 3))] == [(0, 0), (1, 1)]
    # Two channels: the first and the last matrix have rank one, so there is a zero at 0 and one at infinity.
    mixing = torch.linalg.qr(random((2, 2), seed=1))[0]
    taps = [torch.nn.functional.pad(polynomial(0.5)[0, 0, :, 0], (0, 1)), torch.tensor([0.0, -3.0, 1.0]).double()]
    kernel = torch.einsum("ab,bk,bc->ack", mixing, torch.stack(taps), random((2, 2), seed=2))[..., None]
    assert count(kernel, (1, 1)).windings[0] == (0, 0)


@pytest.mark.parametrize(("boundary", "channels", "length"), [("zero", 1, 5), ("reflect", 2, 3), ("replicate", 1, 4)])
def test_singular_values_of_one_dimension_vanish_as_counted(boundary, channels, length):
    n_kernels = n_vanishing = 0
    for seed in range(40):
        kernel = random((channels, channels, length, 1), seed=seed)
        ordinary = float(kernel.square().sum() / channels) ** 0.5
        for padding in range(length + 1):
            found = count(kernel, (padding, padding), 48, 1e-3)
            if count(kernel, (padding, padding), 48, 1e-5).n_lost < found.n_border:
                continue  # too slow a decay to tell small from vanishing
            geometry = Geometry.of_image((48, 1), (length, 1), (padding, 0))
            values = torch.linalg.svdvals(Convolution.of_geometry(kernel, geometry, boundary).as_matrix()) / ordinary
            assert int((values < 1e-3).sum()) == found.n_lost
            n_kernels, n_vanishing = n_kernels + 1, n_vanishing + found.n_lost
    assert min(n_kernels, n_vanishing) > 10


def test_channels_that_never_meet_are_counted_apart():
    """One channel moves up and the other one down: the determinant winds not at all, and yet both lose a row."""
    kernel = torch.zeros(2, 2, 3, 1, dtype=torch.float64)
    kernel[0, 0, :, 0] = torch.tensor([0.0, 0.2, 1.0])
    kernel[1, 1, :, 0] = torch.tensor([1.0, 0.3, 0.1])
    found = lost_modes(kernel, Pads((1, 0), (1, 0)), (32, 10), 1e-3)
    assert (found.n_lost, found.windings[0]) == (20, (-1, 1))


def test_a_symmetric_kernel_with_zeros_on_the_circle_loses_nothing():
    kernel = torch.tensor([1.0, -0.6, 1.0], dtype=torch.float64)[None, None, :, None]
    assert count(kernel, (1, 1)).n_border == 0
