"""Blocks of up to four channels, computed for all frequencies at once: millions of LAPACK calls cost far more.

A block's entries are planes over the frequencies, and every formula is arithmetic on whole planes, a few frequencies at
a time, so that the planes stay in the processor's cache. Nothing pivots here, so every inverse comes with measures by
which its caller decides which blocks LAPACK has to do again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from deconv_cli.operators.spectrum import single_threaded

MAX_CHANNELS = 4
# Frequencies at a time: a dozen matrices of planes of this size fit into a processor's cache. Threads
# would wait for one another longer than they compute on so few.
N_AT_ONCE = 2**12


@dataclass(frozen=True)
class SmallInverse:
    """Inverses `(F, n, m)` of blocks A, plane by plane in memory, with ‖A‖, ‖A⁻¹‖ by Frobenius, and a flaw.

    The measures have the shape `(F,)`; ‖A⁻¹‖ is not finite where A is singular.
    """

    inverse: Tensor
    norm: Tensor
    inverse_norm: Tensor
    flaw: Tensor


def is_small(blocks: Tensor) -> bool:
    """Return whether blocks `(*, a, b)` are small enough for this module."""
    return max(blocks.shape[-2:]) <= MAX_CHANNELS


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply `(F, a, b)` by `(F, b, c)`, frequency by frequency: shape `(F, a, c)`, in memory plane by plane."""
    shape = (left.shape[-2], right.shape[-1])
    return _by_parts(lambda a, b: (_multiply(a, b),), shape, 0, left, right)[0]


def gram_inverse(blocks: Tensor, diagonal: Tensor, *, times_adjoint: bool = False) -> SmallInverse:
    """Compute (KᴴK + d)⁻¹, or (KᴴK + d)⁻¹Kᴴ, by elimination, which is stable as it is.

    K is complex, of shape `(F, m, n)`, d of shape `(F,)`. Times Kᴴ with m < n goes by way of the smaller KKᴴ. The norms
    are those of the Gram matrix and its inverse; the flaw is minus its smallest pivot.
    """
    n_outputs, n_inputs = blocks.shape[-2:]
    is_wide = times_adjoint and n_outputs < n_inputs

    def invert(k: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        adjoint = _adjoint(k)
        gram = _multiply(k, adjoint) if is_wide else _multiply(adjoint, k)
        gram.diagonal().T.add_(d[0])
        norm = _norm(gram)
        inverse, pivot = _definite_inverse(gram)
        inverse_norm = _norm(inverse)
        if times_adjoint:
            inverse = _multiply(adjoint, inverse) if is_wide else _multiply(inverse, adjoint)
        return inverse, norm, inverse_norm, -pivot

    shape = (n_inputs, n_outputs if times_adjoint else n_inputs)
    inverse, measures = _by_parts(invert, shape, 3, blocks, diagonal[:, None, None])
    return SmallInverse(inverse, *measures)


def pseudo_inverse(blocks: Tensor) -> SmallInverse:
    """Invert blocks K of full rank, shape `(F, m, n)`: square ones by cofactors, others by the smaller Gram matrix.

    A Newton step then squares the defect δ = ‖I − K⁺K‖ (or ‖I − KK⁺‖, whichever is smaller in size), so the inverse is
    as good as rounding allows wherever δ was below the root of the unit of rounding. The flaw is δ before the step, not
    finite where K is singular.
    """
    n_outputs, n_inputs = blocks.shape[-2:]

    def invert(k: Tensor) -> tuple[Tensor, ...]:
        if n_outputs < n_inputs:
            inverse, *measures = invert_tall(_adjoint(k))
            return _adjoint(inverse), *measures
        return invert_tall(k)

    def invert_tall(k: Tensor) -> tuple[Tensor, ...]:
        if k.shape[0] == k.shape[1]:
            x = _cofactor_inverse(k)
        else:
            adjoint = _adjoint(k)
            x = _multiply(_definite_inverse(_multiply(adjoint, k))[0], adjoint)
        # X + (I − XK)X: Newton's step for the pseudo-inverse, which keeps the rows of X where those of Kᴴ are.
        rest = _multiply(x, k).neg_()
        rest.diagonal().add_(1)
        better = x + _multiply(rest, x)
        return better, _norm(k), _norm(better), _norm(rest)

    inverse, measures = _by_parts(invert, (n_inputs, n_outputs), 3, blocks)
    return SmallInverse(inverse, *measures)


def _by_parts(
    compute: Callable[..., tuple[Tensor, ...]], shape: tuple[int, int], n_measures: int, *blocks: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Compute matrices of a shape, and real measures, from blocks `(F, ·, ·)`, some frequencies at a time.

    In `compute` and below, matrices have the shape `(·, ·, n)` and measures `(n,)`.
    """
    n = blocks[0].shape[0]
    result = blocks[0].new_empty(*shape, n)
    measures = [blocks[0].real.new_empty(n) for _ in range(n_measures)]
    with single_threaded(result.device):
        for first in range(0, n, N_AT_ONCE):
            part = slice(first, first + N_AT_ONCE)
            matrix, *values = compute(*(b[part].permute(1, 2, 0).resolve_conj().contiguous() for b in blocks))
            result[..., part] = matrix
            for measure, value in zip(measures, values, strict=True):
                measure[part] = value
    return result.permute(2, 0, 1), measures


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    total = a[:, 0, None] * b[0]
    for k in range(1, len(b)):
        total.addcmul_(a[:, k, None], b[k])
    return total


def _adjoint(a: Tensor) -> Tensor:
    # In memory: a lazy conjugate would be evaluated in every product.
    return a.transpose(0, 1).conj().resolve_conj()


def _norm(a: Tensor) -> Tensor:
    squares = torch.view_as_real(a).square().sum(dim=(0, 1))
    return (squares[:, 0] + squares[:, 1]).sqrt()


def _definite_inverse(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Invert positive definite matrices in place by Gauss–Jordan elimination.

    No pivoting is needed: as in Cholesky's way the pivots are Schur complements of a definite matrix (Higham, Accuracy
    and Stability of Numerical Algorithms, 2002, section 14.4). Also returns the smallest pivots, shape `(n,)`.
    """
    smallest: Tensor | None = None
    for k in range(len(gram)):
        pivot = gram[k, k].real.clone()
        smallest = pivot if smallest is None else torch.minimum(smallest, pivot)
        reciprocal = pivot.reciprocal().to(gram.dtype)
        row, column = gram[k] * reciprocal, gram[:, k].clone()
        row[k] = reciprocal
        gram[:, k] = 0
        column[k] = 0
        gram.addcmul_(column[:, None], row, value=-1)
        gram[k] = row
    assert smallest is not None
    return gram, smallest


def _cofactor_inverse(a: Tensor) -> Tensor:
    """Invert by Cramer's rule, which tolerates rows and columns of very different size."""
    n = len(a)

    @cache
    def minor(rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
        if not rows:
            return torch.ones_like(a[0, 0])
        first, *others = rows
        total = a[first, columns[0]] * minor(tuple(others), columns[1:]) if others else a[first, columns[0]]
        for k, column in enumerate(columns[1:], start=1):
            smaller = minor(tuple(others), columns[:k] + columns[k + 1 :])
            total = torch.addcmul(total, a[first, column], smaller, value=(-1) ** k)
        return total

    everything = tuple(range(n))
    reciprocal = minor(everything, everything).reciprocal()
    signed = (reciprocal, -reciprocal)
    inverse = torch.empty_like(a)
    for i in everything:
        for j in everything:
            cofactor = minor(everything[:i] + everything[i + 1 :], everything[:j] + everything[j + 1 :])
            torch.mul(cofactor, signed[(i + j) % 2], out=inverse[j, i])
    return inverse
