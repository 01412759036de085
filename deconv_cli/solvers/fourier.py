"""The inverse on a torus, frequency by frequency, in closed form; a plane of frequencies is that of `torch.fft.rfftn`.

For each frequency θ with the block K(θ) (`C_out × C_in`): the pseudo-inverse K⁺ for λ = 0, else (KᴴK + μ|l|²)⁻¹Kᴴ =
Kᴴ(KKᴴ + μ|l|²)⁻¹, whichever side is smaller. KᴴK is formed only for λ > 0, where squaring does not decide the rank; λ =
0 uses LU or QR, and the singular values if the rank is in doubt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import squared_modulus
from deconv_cli.operators.spectrum import factor_by_parts, singular_values

# Singular values below this many units in the last place of the data are rounding noise, not signal.
RANK_ULPS = 64
# Eigenvalues of a Gram matrix below this part of the largest are rounding noise.
SINGULAR = 1e-15
# The largest distance of K⁺K from the identity if K has full rank; in single precision rounding alone may leave √ε.
MAX_DEFECT = 1e-6
# A block whose factorization leaves a larger defect is factored again.
MAX_FACTORING_DEFECT = 1e-3
# Largest number of channels for which LU inverts a Gram matrix faster than Cholesky's method.
MAX_CHANNELS_BY_LU = 4


def inverse_blocks(
    symbol: Tensor,
    weight: float,
    penalty: Tensor,
    rcond: float,
    sigma_max: Callable[[], float] | None = None,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Invert every block of a symbol `(*plane, C_out, C_in)`, complex or real: shape `(*plane, C_in, C_out)`.

    The weight is μ = λ·σ²max, and the penalty |l(θ)|², shape `(*plane,)`. For weight 0, the pseudo-inverse, singular
    values up to `rcond` times the largest of the whole symbol count as zero; `sigma_max` finds that one faster than by
    all singular values, and is called only if a rank is in doubt. To `overwrite` lets a symbol of one channel give its
    memory to the inverse.
    """
    blocks, diagonal = symbol.flatten(0, -3), weight * penalty.flatten()
    find_largest = sigma_max or (lambda: synchronize.as_number(singular_values(symbol).max()))
    if blocks.shape[-2:] == (1, 1):
        inverse = _invert_scalars(blocks, diagonal, rcond, out=blocks if overwrite else None)
    elif weight > 0:
        inverse = _invert_regularized(blocks, diagonal, rcond, find_largest)
    else:
        inverse, _ = _invert_exactly(blocks, rcond, find_largest)
    return inverse.unflatten(0, symbol.shape[:-2])


def gram_inverse_blocks(symbol: Tensor, weight: float, penalty: Tensor) -> Tensor:
    """Compute (KᴴK + μ|l|²)⁻¹ at every frequency, μ > 0: Hermitian, shape `(*plane, C_in, C_in)`.

    A singular sum gets the pseudo-inverse. The symbol has the shape `(*plane, C_out, C_in)`, the penalty |l(θ)|²
    `(*plane,)`.
    """
    if symbol.shape[-2:] == (1, 1):
        gram = squared_modulus(symbol) + weight * penalty[..., None, None]
        return torch.where(gram > SINGULAR * gram.max(), gram.reciprocal(), 0).to(symbol.dtype)
    blocks, diagonal = symbol.flatten(0, -3), weight * penalty.flatten()
    return _gram_inverse(blocks, diagonal).unflatten(0, symbol.shape[:-2])


@dataclass(frozen=True)
class TorusBlocks:
    """The solution of a problem on a torus: the estimate P, and the parts M and N of the rest.

    λ > 0:                P = (KᴴK + μ|l|²)⁻¹Kᴴ,  M = I − KP,    N = (KᴴK + μ|l|²)⁻¹
    λ = 0, more outputs:  P = K⁺,                 M = I − KK⁺,   N = (KᴴK)⁻¹
    λ = 0, fewer outputs: P = K⁺,                 M = (KKᴴ)⁻¹,   N = I − K⁺K

    Attributes:
        estimate: P, complex, shape `(*plane, C_in, C_out)`.
        outputs: M, Hermitian, shape `(*plane, C_out, C_out)`.
        inputs: N, Hermitian, shape `(*plane, C_in, C_in)`.
    """

    estimate: Tensor
    outputs: Tensor
    inputs: Tensor


def torus_blocks(symbol: Tensor, weight: float, penalty: Tensor, *, covers_inputs: bool) -> TorusBlocks:
    """Compute P, M and N from a symbol `(*plane, C_out, C_in)`, μ, and |l(θ)|², shape `(*plane,)`, unused for λ = 0.

    `covers_inputs` says for λ = 0 whether the outputs determine the image (`more outputs` above).

    Raises:
        SingularSystemError: λ = 0, and some block of the symbol has not full rank.
    """
    shape = symbol.shape[:-2]
    blocks = symbol.flatten(0, -3)
    if weight > 0:
        inputs = gram_inverse_blocks(symbol, weight, penalty)
        if symbol.shape[-2:] == (1, 1):
            # 1 − KP without its cancellation, which is 1 where neither term is anything.
            outputs = torch.where(inputs == 0, 1, inputs * (weight * penalty)[..., None, None])
            return TorusBlocks(inputs * symbol.conj(), outputs, inputs)
        estimate = inputs.flatten(0, -3) @ blocks.mH
        outputs = _identity_minus(blocks @ estimate)
        return TorusBlocks(estimate.unflatten(0, shape), outputs.unflatten(0, shape), inputs)
    estimate = full_rank_inverse(symbol).flatten(0, -3)
    # A square block leaves nothing over.
    is_square = symbol.shape[-1] == symbol.shape[-2]
    if covers_inputs:
        outputs = torch.zeros_like(estimate) if is_square else _identity_minus(blocks @ estimate)
        inputs = estimate @ estimate.mH
    else:
        outputs = estimate.mH @ estimate
        inputs = torch.zeros_like(estimate) if is_square else _identity_minus(estimate @ blocks)
    return TorusBlocks(*(part.unflatten(0, shape) for part in (estimate, outputs, inputs)))


def full_rank_inverse(symbol: Tensor) -> Tensor:
    """Compute K⁺ at every frequency, shape `(*plane, C_out, C_in)`; less than full rank is a `SingularSystemError`."""
    blocks = symbol.flatten(0, -3)
    rcond = default_rcond(symbol.real.dtype)
    # A rank need not be known to the last digit where a lost one is an error anyway.
    inverse, defect = _invert_exactly(blocks, rcond, lambda: synchronize.as_number(block_norms(blocks).max()))
    if not synchronize.as_number(defect.max()) <= max(MAX_DEFECT, torch.finfo(symbol.real.dtype).eps ** 0.5):
        raise SingularSystemError("the kernel's symbol is singular at some frequency of the torus")
    return inverse.unflatten(0, symbol.shape[:-2])


class SingularSystemError(Exception):
    """A matrix to be factored is singular to working precision; another method must take the problem."""


def default_rcond(dtype: torch.dtype) -> float:
    """Return the relative size up to which a singular value is rounding of data of this type."""
    return RANK_ULPS * torch.finfo(dtype).eps


def block_norms(blocks: Tensor) -> Tensor:
    """Compute the Frobenius norms of blocks `(*, a, b)`, shape `(*,)`."""
    if not blocks.is_complex():
        return torch.linalg.vector_norm(blocks.flatten(-2), dim=-1)
    # As real numbers: torch's norms of complex ones are thirty times slower.
    return torch.linalg.vector_norm(torch.view_as_real(blocks.resolve_conj()).flatten(-3), dim=-1)


def _invert_scalars(blocks: Tensor, diagonal: Tensor, rcond: float, out: Tensor | None = None) -> Tensor:
    # In place, since at the size of photographs new memory costs more than arithmetic.
    denominator = squared_modulus(blocks)
    # With a penalty nothing is truncated but what rounding alone has made of a zero.
    threshold = torch.finfo(denominator.dtype).eps if synchronize.holds_anywhere(diagonal) else rcond
    floor = threshold**2 * denominator.max()
    denominator += diagonal[:, None, None]
    factor = denominator.reciprocal_()
    # What the kernel and the penalty both annihilate is zero in the smallest solution.
    factor.masked_fill_(factor >= floor.reciprocal(), 0)
    inverse = torch.empty_like(blocks) if out is None else out
    if not blocks.is_complex():
        return torch.mul(blocks, factor, out=inverse)
    parts = torch.view_as_real(inverse)
    torch.mul(torch.view_as_real(blocks.resolve_conj()), factor[..., None], out=parts)
    parts[..., 1].neg_()
    return inverse


def _invert_regularized(blocks: Tensor, diagonal: Tensor, rcond: float, find_largest: Callable[[], float]) -> Tensor:
    inverse = _gram_inverse(blocks, diagonal, times_adjoint=True)
    unpenalized = diagonal == 0
    if synchronize.holds_anywhere(unpenalized):
        places = synchronize.places(unpenalized)
        inverse[places] = _truncated_pseudo_inverse(blocks[places], rcond * find_largest())
    return inverse


def _invert_exactly(blocks: Tensor, rcond: float, find_largest: Callable[[], float]) -> tuple[Tensor, Tensor]:
    """Factor every block, then redo by singular values the ones whose rank is in doubt.

    Returns:
        K⁺, shape `(F, C_in, C_out)`, and the distance of the smaller of K⁺K and KK⁺ from the identity, shape `(F,)`.
    """
    if blocks.shape[-2:] == (1, 1):
        inverse = _invert_scalars(blocks, blocks.real.new_zeros(len(blocks)), rcond)
        return inverse, _defect(inverse, blocks)
    inverse, defect, norms, inverse_norms = factor_by_parts(_factored_inverse, blocks)
    # ‖K⁺‖ bounds 1/σmin from above, and the largest ‖K‖ the largest singular value.
    has_full_rank = inverse_norms * (4 * rcond * norms.max()) < 1
    doubtful = ~((defect < MAX_FACTORING_DEFECT) & has_full_rank)
    if synchronize.holds_anywhere(doubtful):
        places = synchronize.places(doubtful)
        inverse[places] = _truncated_pseudo_inverse(blocks[places], rcond * find_largest())
        defect[places] = _defect(inverse[places], blocks[places])
    return inverse, defect


def _factored_inverse(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give inverses by LU or QR, their defects, and the norms of the blocks and of the inverses."""
    n_outputs, n_inputs = blocks.shape[-2:]
    if n_outputs == n_inputs:
        # LAPACK's matrices lie column by column: transposed, both ways, nothing has to be copied.
        inverse = torch.linalg.inv_ex(blocks.mT)[0].mT
    else:
        is_tall = n_outputs > n_inputs
        q, r = torch.linalg.qr(blocks if is_tall else blocks.mH)
        inverse = torch.linalg.solve_triangular(r, q.mH, upper=True)
        inverse = inverse if is_tall else inverse.mH.contiguous()
    return inverse, _defect(inverse, blocks), block_norms(blocks), block_norms(inverse)


def _truncated_pseudo_inverse(blocks: Tensor, threshold: float) -> Tensor:
    def factor(blocks: Tensor) -> tuple[Tensor]:
        u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
        inverse = torch.where(s > threshold, 1 / s, 0).to(blocks.dtype)
        return (vh.mH @ (inverse[..., None] * u.mH),)

    return factor_by_parts(factor, blocks)[0]


def _gram_inverse(blocks: Tensor, diagonal: Tensor, *, times_adjoint: bool = False) -> Tensor:
    """Compute (KᴴK + d)⁻¹, or (KᴴK + d)⁻¹Kᴴ by way of the smaller Gram matrix.

    Semidefinite blocks get their pseudo-inverse. Rounding may hide a singular block, but its inverse is too large.
    """
    # No Gram matrix has a larger norm.
    largest = synchronize.as_number((block_norms(blocks).square() + diagonal * blocks.shape[-1] ** 0.5).max())
    return factor_by_parts(
        lambda part, weights: (_gram_inverse_of_part(part, weights, largest, times_adjoint=times_adjoint),),
        blocks,
        diagonal,
    )[0]


def _gram_inverse_of_part(blocks: Tensor, diagonal: Tensor, largest: float, *, times_adjoint: bool) -> Tensor:
    is_wide = times_adjoint and blocks.shape[-2] < blocks.shape[-1]
    # In memory: each product with a lazy conjugate would copy it.
    adjoint = blocks.mH.resolve_conj()
    gram = _add_to_diagonal(blocks @ adjoint if is_wide else adjoint @ blocks, diagonal)
    # LAPACK's matrices lie column by column: transposed, both ways, nothing has to be copied.
    if gram.shape[-1] <= MAX_CHANNELS_BY_LU:
        inverse, info = torch.linalg.inv_ex(gram.mT)
    else:
        inverse, info = torch.linalg.cholesky_ex(gram.mT)
        if synchronize.holds_anywhere(info > 0):
            # What could not be factored may not reach the next step, which would raise.
            inverse[synchronize.places(info > 0)] = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse = torch.cholesky_inverse(inverse)
    inverse = inverse.mT
    is_right = (info == 0) & (_defect(inverse, gram) < MAX_FACTORING_DEFECT)
    singular = ~(is_right & (block_norms(inverse) * largest < 1 / SINGULAR))
    if synchronize.holds_anywhere(singular):
        places = synchronize.places(singular)
        inverse[places] = torch.linalg.pinv(gram[places], hermitian=True, atol=largest * SINGULAR, rtol=0.0)
    if not times_adjoint:
        return inverse
    return adjoint @ inverse if is_wide else inverse @ adjoint


def _defect(inverse: Tensor, blocks: Tensor) -> Tensor:
    """Estimate ‖K⁺K − I‖ or, if it is smaller in size, ‖KK⁺ − I‖ by a product with one vector; shape `(F,)`.

    It checks batched LU, which has given wrong numbers on several threads.
    """
    left, right = (inverse, blocks) if blocks.shape[-2] >= blocks.shape[-1] else (blocks, inverse)
    n = right.shape[-1]
    angle = torch.arange(1, n + 1, dtype=blocks.real.dtype, device=blocks.device).square()
    turns = torch.polar(torch.ones_like(angle), angle)
    vector = (turns if blocks.is_complex() else turns.real).expand(len(blocks), n)[..., None].contiguous()
    return block_norms(left @ (right @ vector) - vector)


def _identity_minus(blocks: Tensor) -> Tensor:
    return _add_to_diagonal(blocks.neg_(), blocks.real.new_ones(blocks.shape[:-2]))


def _add_to_diagonal(blocks: Tensor, diagonal: Tensor) -> Tensor:
    blocks.diagonal(dim1=-2, dim2=-1).add_(diagonal[..., None])
    return blocks
