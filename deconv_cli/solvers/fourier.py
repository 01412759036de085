"""The inverse on a torus, frequency by frequency, in closed form.

For each frequency θ with the block K(θ) (`C_out × C_in`): the pseudo-inverse K⁺ for λ = 0, else
(KᴴK + μ|l|²)⁻¹Kᴴ = Kᴴ(KKᴴ + μ|l|²)⁻¹, whichever side is smaller. KᴴK is formed for λ > 0 only, where squaring does
not decide the rank; λ = 0 goes by LU or QR, and by the singular values wherever those do not vouch for themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.spectrum import single_threaded, singular_values

# Singular values below this many units in the last place of the data are rounding noise, not signal.
RANK_ULPS = 64
# Eigenvalues of a Gram matrix below this part of the largest are rounding noise.
SINGULAR = 1e-15
# How far K⁺K may be from the identity where K has full rank.
MAX_DEFECT = 1e-6


def inverse_blocks(symbol: Tensor, weight: float, penalty: Tensor, rcond: float) -> Tensor:
    """Invert every block of a symbol.

    Args:
        symbol: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`; give it in double precision.
        weight: μ = λ·σ²max; 0 for the pseudo-inverse.
        penalty: |l(θ)|², real, shape `(N1, N2 // 2 + 1)`.
        rcond: for weight 0, singular values up to `rcond` times the largest of the whole symbol count as zero.

    Returns:
        Complex, shape `(N1, N2 // 2 + 1, C_in, C_out)`.
    """
    blocks, diagonal = symbol.flatten(0, 1), weight * penalty.flatten()
    if blocks.shape[-2:] == (1, 1):
        inverse = _invert_scalars(blocks, diagonal, rcond)
    elif weight > 0:
        inverse = _invert_regularized(blocks, diagonal, rcond)
    else:
        inverse = _invert_exactly(blocks, rcond)
    return inverse.unflatten(0, symbol.shape[:2])


def gram_inverse_blocks(symbol: Tensor, weight: float, penalty: Tensor) -> Tensor:
    """Compute (KᴴK + μ|l|²)⁻¹ at every frequency.

    Args:
        symbol: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`.
        weight: μ > 0.
        penalty: |l(θ)|², shape `(N1, N2 // 2 + 1)`.

    Returns:
        Complex Hermitian, shape `(N1, N2 // 2 + 1, C_in, C_in)`; a frequency at which the sum is singular (one that
        neither the kernel nor the penalty sees) gets the pseudo-inverse.
    """
    blocks, diagonal = symbol.flatten(0, 1), weight * penalty.flatten()
    gram = _add_to_diagonal(blocks.mH @ blocks, diagonal)
    if gram.shape[-1] == 1:
        seen = gram.real > SINGULAR * gram.real.max()
        inverse = torch.where(seen, 1 / gram, 0)
    else:
        inverse = _hermitian_inverse(gram)
    return inverse.unflatten(0, symbol.shape[:2])


@dataclass(frozen=True)
class TorusBlocks:
    """What solves a problem on a torus: the estimate P, and the two parts M and N of what it leaves over.

    λ > 0:                P = (KᴴK + μ|l|²)⁻¹Kᴴ,  M = I − KP,    N = (KᴴK + μ|l|²)⁻¹
    λ = 0, more outputs:  P = K⁺,                 M = I − KK⁺,   N = (KᴴK)⁻¹
    λ = 0, fewer outputs: P = K⁺,                 M = (KKᴴ)⁻¹,   N = I − K⁺K

    Attributes:
        estimate: P, complex, shape `(N1, N2 // 2 + 1, C_in, C_out)`.
        outputs: M, Hermitian, shape `(N1, N2 // 2 + 1, C_out, C_out)`.
        inputs: N, Hermitian, shape `(N1, N2 // 2 + 1, C_in, C_in)`.
    """

    estimate: Tensor
    outputs: Tensor
    inputs: Tensor


def torus_blocks(symbol: Tensor, weight: float, penalty: Tensor, *, covers_inputs: bool) -> TorusBlocks:
    """Compute P, M and N.

    Args:
        symbol: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`.
        weight: μ = λ·σ²max.
        penalty: |l(θ)|², shape `(N1, N2 // 2 + 1)`; of no consequence for λ = 0.
        covers_inputs: for λ = 0, whether the outputs determine the image (`more outputs` above).

    Raises:
        SingularSystemError: λ = 0, and some block of the symbol has not full rank.
    """
    if weight > 0:
        inputs = gram_inverse_blocks(symbol, weight, penalty)
        estimate = inputs @ symbol.mH
        return TorusBlocks(estimate, _identity_minus(symbol @ estimate), inputs)
    estimate = full_rank_inverse(symbol)
    if covers_inputs:
        return TorusBlocks(estimate, _identity_minus(symbol @ estimate), estimate @ estimate.mH)
    return TorusBlocks(estimate, estimate.mH @ estimate, _identity_minus(estimate @ symbol))


def full_rank_inverse(symbol: Tensor) -> Tensor:
    """Compute K⁺ at every frequency, for a symbol of full rank.

    Args:
        symbol: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`.

    Raises:
        SingularSystemError: some block has not full rank.
    """
    no_penalty = symbol.real.new_zeros(symbol.shape[:2])
    estimate = inverse_blocks(symbol, 0.0, no_penalty, default_rcond(symbol.real.dtype))
    smaller = estimate @ symbol if symbol.shape[-1] <= symbol.shape[-2] else symbol @ estimate
    if not float(_identity_minus(smaller).abs().max()) <= MAX_DEFECT:
        raise SingularSystemError("the kernel's symbol is singular at some frequency of the torus")
    return estimate


class SingularSystemError(Exception):
    """What was to be factored is singular to working precision; another method must take the problem."""


def _identity_minus(blocks: Tensor) -> Tensor:
    return _add_to_diagonal(blocks.neg_(), blocks.new_ones(blocks.shape[:-2]))


def default_rcond(dtype: torch.dtype) -> float:
    """Pick the relative size under which a singular value cannot be told from rounding of data of this type."""
    return RANK_ULPS * torch.finfo(dtype).eps


def _invert_scalars(blocks: Tensor, diagonal: Tensor, rcond: float) -> Tensor:
    power = blocks.abs().square()
    floor = (rcond * power.max().sqrt()) ** 2
    denominator = power + diagonal[:, None, None]
    # Where the penalty vanishes as well (a constant, under a gradient) the smallest solution is zero.
    seen = denominator > floor if not bool(diagonal.any()) else denominator > 0
    return torch.where(seen, blocks.conj() / denominator.clamp_min(torch.finfo(power.dtype).tiny), 0)


def _invert_regularized(blocks: Tensor, diagonal: Tensor, rcond: float) -> Tensor:
    n_outputs, n_inputs = blocks.shape[-2:]
    if n_outputs >= n_inputs:
        inverse = _hermitian_inverse(_add_to_diagonal(blocks.mH @ blocks, diagonal)) @ blocks.mH
    else:
        inverse = blocks.mH @ _hermitian_inverse(_add_to_diagonal(blocks @ blocks.mH, diagonal))
    unpenalized = diagonal == 0
    if bool(unpenalized.any()):
        scale = singular_values(blocks[None]).max()
        inverse[unpenalized] = _truncated_pseudo_inverse(blocks[unpenalized], rcond * scale)
    return inverse


def _invert_exactly(blocks: Tensor, rcond: float) -> Tensor:
    """Factor every block, then redo by singular values the ones whose rank is in doubt."""
    n_outputs, n_inputs = blocks.shape[-2:]
    scale = torch.linalg.matrix_norm(blocks).max()  # at least the largest singular value
    if n_outputs == n_inputs:
        identity = torch.eye(n_inputs, dtype=blocks.dtype, device=blocks.device).expand_as(blocks)
        inverse, _ = torch.linalg.solve_ex(blocks, identity)
    elif n_outputs > n_inputs:
        inverse = _tall_pseudo_inverse(blocks)
    else:
        inverse = _tall_pseudo_inverse(blocks.mH).mH
    # ‖K⁺‖ bounds 1/σmin from above. The product is checked too: batched LU has been seen to give wrong numbers.
    smallest = 1 / torch.linalg.matrix_norm(inverse)
    product = inverse @ blocks if n_outputs >= n_inputs else blocks @ inverse
    defect = torch.linalg.matrix_norm(product - torch.eye(product.shape[-1], dtype=blocks.dtype, device=blocks.device))
    doubtful = ~((smallest > 4 * rcond * scale) & (defect < 1e-3))
    if bool(doubtful.any()):
        threshold = rcond * singular_values(blocks[None]).max()
        inverse[doubtful] = _truncated_pseudo_inverse(blocks[doubtful], threshold)
    return inverse


def _tall_pseudo_inverse(blocks: Tensor) -> Tensor:
    q, r = torch.linalg.qr(blocks)
    return torch.linalg.solve_triangular(r, q.mH, upper=True)


def _truncated_pseudo_inverse(blocks: Tensor, threshold: Tensor | float) -> Tensor:
    with single_threaded(blocks.device):
        u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
    inverse = torch.where(s > threshold, 1 / s, 0).to(blocks.dtype)
    return vh.mH @ (inverse[..., None] * u.mH)


def _hermitian_inverse(gram: Tensor) -> Tensor:
    """Invert positive definite blocks; blocks that are only semidefinite get their pseudo-inverse."""
    factor, info = torch.linalg.cholesky_ex(gram)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
    inverse = torch.cholesky_solve(identity, factor)
    # Rounding may have let a singular block pass: its inverse is larger than an honest one can be.
    largest = torch.linalg.matrix_norm(gram).max()
    singular = (info > 0) | ~(torch.linalg.matrix_norm(inverse) * largest < 1 / SINGULAR)
    if bool(singular.any()):
        inverse[singular] = torch.linalg.pinv(gram[singular], hermitian=True, atol=float(largest) * SINGULAR, rtol=0.0)
    return inverse


def _add_to_diagonal(blocks: Tensor, diagonal: Tensor) -> Tensor:
    blocks.diagonal(dim1=-2, dim2=-1).add_(diagonal[..., None])
    return blocks
