"""How much of an input its outputs determine, by the derivative of what gave them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.solvers.cgls import iterate
from deconv_cli.solvers.normal_equations import NormalEquations
from deconv_cli.solvers.solution import StoppingRule

RULE = StoppingRule(tolerance=1e-4, max_iterations=300)
MAX_DENSE_ENTRIES = 2**20
"""Up to so many entries the matrix of a derivative is written out."""


@dataclass(frozen=True)
class DeterminedShare:
    """Which part of the dimensions of an input its outputs determine.

    Attributes:
        share: from 0, none, to 1, all.
        n_dimensions: numbers that the input consists of.
        is_exact: by the rank of the derivative; else by what conjugate gradients find again of white noise, which
            leaves out what the outputs hardly show.
    """

    share: float
    n_dimensions: int
    is_exact: bool


def determined_share(jacobian: LinearOperator, like: Tensor) -> DeterminedShare:
    """Measure which part of an input's dimensions the outputs determine around it.

    Args:
        jacobian: the derivative J there.
        like: a tensor of the input's shape, dtype and device.
    """
    n_inputs, n_outputs = math.prod(jacobian.input_shape), math.prod(jacobian.output_shape)
    if n_inputs * n_outputs > MAX_DENSE_ENTRIES:
        return DeterminedShare(1 - _undetermined_share(jacobian, like), n_inputs, is_exact=False)
    rank = synchronize.as_index(torch.linalg.matrix_rank(jacobian.as_matrix()))
    return DeterminedShare(rank / n_inputs, n_inputs, is_exact=True)


def _undetermined_share(jacobian: LinearOperator, like: Tensor) -> float:
    """Estimate which part of an image the outputs do not determine: that of white noise in the null space of J.

    The noise v less J⁺Jv, found by conjugate gradients from zero, is its part that J annihilates, or all but does.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    seen = iterate(NormalEquations(jacobian, jacobian.forward(noise)), RULE).value
    return synchronize.as_number((noise - seen).square().sum() / noise.square().sum())
