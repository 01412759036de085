"""Blocks at every frequency, compared with `torch.linalg.pinv`."""

import itertools

import pytest
import torch
from cases import random

from deconv_cli.operators import spectrum
from deconv_cli.solvers.fourier import (
    SingularSystemError,
    default_rcond,
    full_rank_inverse,
    gram_inverse_blocks,
    inverse_blocks,
    torus_blocks,
)

RCOND = default_rcond(torch.float64)
SHAPES = [*itertools.product((1, 2, 3, 4), repeat=2), (6, 6), (7, 3), (3, 7), (6, 5), (5, 6)]
PLANE = (5, 4)


def complex_blocks(*shape, seed=0):
    return torch.view_as_complex(random((*shape, 2), seed=seed))


def graded_blocks(m, n, condition):
    """Blocks whose singular values fall from 1 to 1 / condition."""
    u, _, vh = torch.linalg.svd(complex_blocks(*PLANE, m, n), full_matrices=False)
    values = torch.logspace(0, -1, min(m, n), base=condition, dtype=torch.float64)
    return (u * values.to(u.dtype)) @ vh


def worst(found, expected):
    difference = torch.linalg.matrix_norm(found - expected) / torch.linalg.matrix_norm(expected)
    return float(difference.max())


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("condition", [1e1, 1e4, 1e7, 1e10])
def test_exact_inverses_lose_no_more_digits_than_the_condition_costs(m, n, condition):
    blocks = graded_blocks(m, n, condition)
    found = inverse_blocks(blocks, 0.0, blocks.real.new_zeros(PLANE), RCOND)
    assert found.shape == (*PLANE, n, m)
    assert worst(found, torch.linalg.pinv(blocks)) <= 1e-14 * condition


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("weight", [1.0, 1e-6])
def test_regularized_inverses_are_those_of_the_stacked_matrix(m, n, weight):
    blocks, penalty = complex_blocks(*PLANE, m, n), 0.5 + random(PLANE, seed=1).square()
    root = (weight * penalty).sqrt()[..., None, None] * torch.eye(n, dtype=blocks.dtype)
    stacked = torch.cat([blocks, root], dim=-2)
    expected = torch.linalg.pinv(stacked)
    found = inverse_blocks(blocks, weight, penalty, RCOND)
    assert worst(found, expected[..., :m]) <= 1e-8
    gram = gram_inverse_blocks(blocks, weight, penalty)
    assert worst(gram, torch.linalg.inv(stacked.mH @ stacked)) <= 1e-8
    torus = torus_blocks(blocks, weight, penalty, covers_inputs=True)
    assert worst(torus.estimate, found) <= 1e-8
    assert worst(torus.inputs, gram) <= 1e-8
    rest = torch.eye(m, dtype=blocks.dtype) - blocks @ found
    assert float((torus.outputs - rest).abs().max()) <= 1e-8


@pytest.mark.parametrize(("m", "n"), [(3, 2), (2, 3), (5, 5)])
def test_a_block_that_vanishes_counts_as_zero_beside_frequencies_that_are_inverted_later(m, n, monkeypatch):
    monkeypatch.setattr(spectrum, "MAX_ENTRIES_AT_ONCE", 3 * m * n)
    blocks, penalty = complex_blocks(*PLANE, m, n), torch.ones(PLANE, dtype=torch.float64)
    blocks[0] *= 1e-9
    penalty[0] = 1e-30
    found = inverse_blocks(blocks, 1e-2, penalty, RCOND)
    assert not found[0].any()
    expected = blocks.mH @ torch.linalg.inv(blocks @ blocks.mH + 1e-2 * torch.eye(m, dtype=blocks.dtype))
    assert worst(found[1:], expected[1:]) <= 1e-12


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_blocks_of_lower_rank_get_the_pseudo_inverse(m, n):
    blocks = complex_blocks(*PLANE, m, n)
    blocks[0, 1] = 0
    blocks[1, 2] *= 1e-12  # indistinguishable from zero, though of full rank alone
    if min(m, n) > 1:
        blocks[2, 3] = complex_blocks(m, 1, seed=1) @ complex_blocks(1, n, seed=2)
        blocks[4, 0, :, 0] = blocks[4, 0, :, 1]
    largest = float(torch.linalg.svdvals(blocks).max())
    expected = torch.linalg.pinv(blocks, atol=torch.tensor(1e-10 * largest, dtype=torch.float64), rtol=0.0)
    called = []

    def sigma_max():
        called.append(True)
        return largest

    found = inverse_blocks(blocks, 0.0, blocks.real.new_zeros(PLANE), 1e-10, sigma_max)
    assert float((found - expected).abs().max()) <= 1e-9
    assert bool(called) == ((m, n) != (1, 1))
    with pytest.raises(SingularSystemError):
        full_rank_inverse(blocks)
    gram = gram_inverse_blocks(blocks, 1.0, blocks.real.new_zeros(PLANE))
    expected = torch.linalg.pinv(blocks.mH @ blocks, hermitian=True, atol=1e-10, rtol=0.0)
    if m >= n:
        assert float((gram - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize("covers_inputs", [True, False])
def test_what_exact_blocks_leave_over(covers_inputs):
    """M and N of λ = 0, by their formulas."""
    for m, n in ((2, 2), (6, 6), (3, 2), (2, 3), (7, 5), (5, 7)):
        if (covers_inputs and m < n) or (not covers_inputs and m > n):
            continue
        blocks = complex_blocks(*PLANE, m, n)
        found = torus_blocks(blocks, 0.0, blocks.real.new_zeros(PLANE), covers_inputs=covers_inputs)
        inverse = torch.linalg.pinv(blocks)
        over = torch.eye(m) - blocks @ inverse if covers_inputs else inverse.mH @ inverse
        under = inverse @ inverse.mH if covers_inputs else torch.eye(n) - inverse @ blocks
        assert float((found.estimate - inverse).abs().max()) <= 1e-10
        assert float((found.outputs - over).abs().max()) <= 1e-9 * max(1.0, float(over.abs().max()))
        assert float((found.inputs - under).abs().max()) <= 1e-9 * max(1.0, float(under.abs().max()))


@pytest.mark.parametrize("function", ["inv_ex", "cholesky_inverse"])
def test_a_factorization_that_comes_out_wrong_is_done_again(monkeypatch, function):
    """Batched LU on several threads has been seen to give wrong numbers."""
    module = torch.linalg if function == "inv_ex" else torch
    honest = getattr(module, function)

    def wrong(matrices):
        result = honest(matrices)
        inverse = result[0] if function == "inv_ex" else result
        inverse[3, 1, 2] += 0.5 * inverse[3].norm()
        return result

    blocks = complex_blocks(*PLANE, 6, 6)
    weight = 0.0 if function == "inv_ex" else 1e-2
    expected = inverse_blocks(blocks, weight, torch.ones(PLANE, dtype=torch.float64), RCOND)
    monkeypatch.setattr(module, function, wrong)
    found = inverse_blocks(blocks, weight, torch.ones(PLANE, dtype=torch.float64), RCOND)
    assert worst(found, expected) <= 1e-10
