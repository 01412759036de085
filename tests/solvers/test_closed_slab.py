"""A closed slab is inverted as the dense matrix of the convolution between its places is."""

import pytest
import torch
from cases import random

from deconv_cli.operators.circulant import BlockCirculant
from deconv_cli.solvers import closed_slab
from deconv_cli.solvers.closed_slab import ClosedSlab, SlabPlanes

ALL = 10**9


def definite_symbol(n_channels, torus):
    """Make the symbol of KᴴK + 0.1 for random taps, as planes; and the convolution that it is of."""
    taps = random((n_channels, n_channels, *torus))
    symbol = torch.fft.rfftn(taps, dim=tuple(range(2, taps.ndim)))
    blocks = symbol.permute(*range(2, symbol.ndim), 0, 1)
    blocks = blocks.mH @ blocks + 0.1 * torch.eye(n_channels)
    symbol = blocks.permute(-2, -1, *range(len(torus)))
    return symbol.real if n_channels == 1 else symbol, BlockCirculant(blocks, torus)


def solve(slab, *right):
    """Solve for right-hand sides of one kind, or of several, which are kept."""
    found = [part.clone() for part in right]
    slab.solve(found)
    return found[0] if len(found) == 1 else found


@pytest.mark.parametrize("torus", [(5, 6), (1, 7), (3, 4, 5), (4, 3, 4)])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_slab_is_inverted_exactly(torus, n_channels, monkeypatch):
    monkeypatch.setattr(closed_slab, "NEGLIGIBLE_CHANGE", 0.0)
    symbol, operator = definite_symbol(n_channels, torus)
    places = torch.arange(operator.as_matrix().shape[0]).reshape(n_channels, *torus)
    for axis in range(len(torus)):
        if torus[axis] < 3:
            continue
        inside = places.narrow(1 + axis, torus[axis] - 2, 2).movedim(1 + axis, 1)
        matrix = operator.as_matrix()[inside.flatten()][:, inside.flatten()]
        right = random((2, *inside.shape))
        expected = torch.linalg.solve(matrix, right.flatten(1).T).T.reshape(right.shape)
        found = solve(ClosedSlab(symbol, torus, axis, [SlabPlanes(n_channels, 2)], ALL), right)
        assert (found - expected).norm() < 1e-11 * expected.norm()


@pytest.mark.parametrize("n_channels", [1, 2])
def test_means_stand_for_matrices_that_are_not_stored(n_channels):
    """They are exact where the symbol does not change along the axis, and symmetric and definite everywhere."""
    torus = (6, 4, 5)
    symbol, _ = definite_symbol(n_channels, torus)
    none = ClosedSlab(symbol, torus, 0, [SlabPlanes(n_channels, 3)], 0)
    assert none.n_numbers == 0
    some = ClosedSlab(symbol, torus, 0, [SlabPlanes(n_channels, 3)], 2 * (3 * n_channels) ** 2)
    assert some.n_numbers == 2 * (3 * n_channels) ** 2
    for slab in (none, some):
        a, b = random((1, n_channels, 3, 4, 5)), random((1, n_channels, 3, 4, 5), seed=1)
        forth, back = (solve(slab, a) * b).sum(), (a * solve(slab, b)).sum()
        assert float((forth - back).abs()) < 1e-12 * float(forth.abs())
        assert float((solve(slab, a) * a).sum()) > 0
    constant = symbol[:, :, :1].expand_as(symbol)
    # Nothing changes along the first axis: there is nothing to store, and the mean is all there is.
    exact = ClosedSlab(constant, torus, 0, [SlabPlanes(n_channels, 3)], ALL)
    assert exact.n_numbers == 0
