"""Pairs of images as least squares for the kernel between them: ‖Xk − y‖², a row of X for each output pixel.

Each row holds the input pixels that the taps cover at that output pixel. X itself is never stored: the code goes
through it in pieces of a few rows of output pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.errors import ShapeError
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.extension import Extension
from deconv_cli.operators.geometry import Geometry
from deconv_cli.vocabulary import Size, format_size

CHUNK_BYTES = 64 * 2**20
N_STRIPES, HELD_OUT = 25, 5
"""Number of stripes into which the rows of outputs are cut; every fifth can be held out."""


@dataclass(frozen=True)
class Pair:
    """One pair of a sharp and a blurred image, with the weights of its outputs.

    Attributes:
        wide: the sharp image with its border, shape `(C_in, *(output size + k − 1))`, float64.
        y: the blurred image, shape `(C_out, *output size)`, float64.
        weights: of the outputs in least squares, shape `(*output size)`; `None` if all are equal.
    """

    wide: Tensor
    y: Tensor
    weights: Tensor | None = None

    @classmethod
    def of(cls, sharp: Tensor, blurred: Tensor, size: Size, boundary: BoundaryRule) -> Pair:
        """Lay out a pair of `(C_in, *size)` and `(C_out, *output size)`; its padding follows from the sizes.

        Under boundary `unknown` only outputs count that do not depend on pixels outside of the sharp image. Sizes that
        neither padding `same`, nor `valid`, nor `full` relates are a `ShapeError`.
        """
        n_axes = len(size)
        sizes = tuple(sharp.shape[-n_axes:]), tuple(blurred.shape[-n_axes:])
        is_larger = any(k > n for k, n in zip(size, sizes[0], strict=True))
        if is_larger and (boundary.is_unknown or sizes[0] != sizes[1]):
            raise ShapeError(
                f"a kernel of {format_size(size)} does not fit into images of {format_size(sizes[0])}, as boundary "
                "unknown requires; use a smaller size, or another boundary with images of one size."
            )
        for padding in ("same", "valid", "full"):
            geometry = Geometry(sizes[0], size, Geometry.of_image(sizes[0], size, padding).pads)
            if geometry.output_size == sizes[1]:
                break
        else:
            raise ShapeError(
                f"a kernel of {format_size(size)} cannot turn an image of {format_size(sizes[0])} into one of "
                f"{format_size(sizes[1])}; both must have the same size, or differ by the size of the kernel minus "
                "one."
            )
        y, wide = blurred.double(), sharp.double()
        if not boundary.is_unknown:
            wide = Extension(geometry, wide.shape[0], boundary).forward(wide)
        elif padding != "valid":
            before = geometry.pads.before if padding == "same" else tuple(k - 1 for k in size)
            y = crop(y, before, Geometry.of_image(sizes[0], size, "valid").output_size)
        return cls(wide, y)

    @property
    def stripe_height(self) -> int:
        """Number of output rows that are held out, or kept, together."""
        return max(1, self.y.shape[1] // N_STRIPES)

    def stripes(self, size: Size) -> Iterator[tuple[Pair, bool]]:
        """Cut the pair into stripes of rows, the last of which may be lower, each with whether it can be held out."""
        for number, start in enumerate(range(0, self.y.shape[1], self.stripe_height)):
            stop = min(start + self.stripe_height, self.y.shape[1])
            part = Pair(self.wide[:, start : stop + size[0] - 1], self.y[:, start:stop])
            yield part, number % HELD_OUT == HELD_OUT - 1

    def pieces(self, size: Size) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go through the rows: pieces of X `(n, C_in·prod(k))`, of y `(n, C_out)`, and which rows can be held out.

        Both are multiplied by the roots of the weights, if there are any.
        """
        n_rows = self.y.shape[1]
        per_row = 8 * self.wide.shape[0] * math.prod(size) * math.prod(self.y.shape[2:])
        step = max(1, CHUNK_BYTES // max(per_row, 1))
        for start in range(0, n_rows, step):
            stop = min(start + step, n_rows)
            windows = self.wide[:, start : stop + size[0] - 1]
            for axis, k in enumerate(size):
                windows = windows.unfold(1 + axis, k, 1)
            # (C_in, *out, *k) to (*out, C_in, *k)
            rows = windows.movedim(0, len(size)).flatten(0, len(size) - 1).flatten(1)
            outputs = self.y[:, start:stop].flatten(1).T
            if self.weights is not None:
                roots = self.weights[start:stop].sqrt().reshape(-1, 1)
                rows, outputs = rows * roots, outputs * roots
            is_held = (torch.arange(start, stop) // self.stripe_height) % HELD_OUT == HELD_OUT - 1
            yield rows, outputs, is_held.repeat_interleave(len(outputs) // (stop - start))


@dataclass(frozen=True)
class PairEquations:
    """The normal equations of pairs: XᵀX `(N, N)` with N = C_in·prod(k), Xᵀy `(N, C_out)`, and the rows of X."""

    gram: Tensor
    right: Tensor
    n_data: int


def gather(pairs: Sequence[Pair], size: Size) -> tuple[PairEquations, PairEquations]:
    """Build the equations of all rows, and of the rows that are not held out, in one pass over the pairs."""
    n_taps = pairs[0].wide.shape[0] * math.prod(size)
    n_outputs = pairs[0].y.shape[0]
    grams, rights = torch.zeros(2, n_taps, n_taps).double(), torch.zeros(2, n_taps, n_outputs).double()
    counts = [0, 0]
    for pair in pairs:
        for rows, outputs, is_held in pair.pieces(size):
            for part in (0, 1):
                chosen = is_held if part == 1 else ~is_held
                x, y = rows[chosen], outputs[chosen]
                grams[part].addmm_(x.T, x)
                rights[part].addmm_(x.T, y)
                counts[part] += len(x)
    kept = PairEquations(grams[0], rights[0], counts[0])
    return PairEquations(grams.sum(0), rights.sum(0), sum(counts)), kept


Look = Callable[[Tensor], tuple[Tensor, float]]
"""Computes the misfit of taps."""


def misfit(pairs: Sequence[Pair], size: Size, taps: Tensor, held: bool | None = None) -> tuple[Tensor, float]:
    """Compute the misfit of taps `(N, C_out)` directly from the data: Xᵀ(y − Xk) and ‖y − Xk‖² over selected rows.

    `held` selects the rows: those that are held out, the others, or all for `None`.
    """
    gradient, square = torch.zeros_like(taps), 0.0
    for pair in pairs:
        for rows, outputs, is_held in pair.pieces(size):
            chosen = slice(None) if held is None else is_held == held
            x = rows[chosen]
            rest = outputs[chosen] - x @ taps
            gradient += x.T @ rest
            square += float(rest.square().sum())
    return gradient, square


SMALLEST, LARGEST, PER_DECADE = 1e-16, 1e4, 4
"""λ that are tried, in units of the largest generalized eigenvalue."""
N_REFINEMENTS = 4
FLOOR = 1e-15
"""Generalized eigenvalues below this part of the largest are rounding."""


@dataclass(frozen=True)
class Ridge:
    """The taps given the data.

    Attributes:
        taps: shape `(N, C_out)`.
        variance: of each tap for noise of variance 1, shape `(N, N)`: the inverse of XᵀX + μLᵀL. Times σ² it is the
            covariance.
        weight: μ, the weight of ‖Lk‖².
        lam: the same in units of the largest generalized eigenvalue of XᵀX and LᵀL: dimensionless.
        sigma: standard deviation of the noise.
        n_effective: taps that the data determine, Σ γ/(γ + μ).
    """

    taps: Tensor
    variance: Tensor
    weight: float
    lam: float
    sigma: float
    n_effective: float


def solve_ridge(equations: PairEquations, penalty: Tensor, look: Look, lam: float | None = None) -> Ridge:
    """Solve for the taps, with an error bar for every tap.

    The prior of the taps is Gaussian with the precision λLᵀL/σ²; the noise is white with the standard deviation σ. λ
    and σ are the values that make the data most likely, unless λ is given (MacKay, Bayesian interpolation, Neural
    Computation 4, 1992, section 4). The error bars are the standard deviations of the taps given the data. In
    coordinates in which both quadratic forms are diagonal, all of these are sums over taps. `penalty` is LᵀL, positive
    definite, `(N, N)`; `look` computes the misfit of taps directly from the data, so that squaring loses no digits.
    """
    root = torch.linalg.cholesky(penalty, upper=True)
    half = torch.linalg.solve_triangular(root, torch.eye(len(root)).to(root), upper=True)
    gains, vectors = torch.linalg.eigh(half.T @ equations.gram @ half)
    vectors, largest = half @ vectors, gains[-1]
    gains = gains.clamp_min(FLOOR * largest)
    taps = _refined(vectors @ ((vectors.T @ equations.right) / gains[:, None]), gains, vectors, look)
    _, rest = look(taps)
    coordinates = (vectors.T @ penalty @ taps).square().sum(1)
    n_data = equations.n_data * equations.right.shape[1]

    def explained(weight: Tensor) -> Tensor:
        """Return the least value of ‖Xk − y‖² + μ‖Lk‖²."""
        return rest + (coordinates * gains * weight / (gains + weight)).sum()

    def evidence(weight: Tensor) -> float:
        prior = 0.5 * equations.right.shape[1] * (weight / (gains + weight)).log().sum()
        return float(prior - 0.5 * n_data * explained(weight).clamp_min(1e-300).log())

    if lam is None:
        n = round(math.log10(LARGEST / SMALLEST) * PER_DECADE) + 1
        tried = [largest * SMALLEST * 10 ** (i / PER_DECADE) for i in range(n)]
        weight = max(tried, key=evidence)
    else:
        weight = largest * lam
    kept = (gains / (gains + weight))[:, None]
    sigma = float((explained(weight) / n_data).clamp_min(0).sqrt())
    return Ridge(
        taps=vectors @ (kept * (vectors.T @ penalty @ taps)),
        variance=(vectors / (gains + weight)) @ vectors.T,
        weight=float(weight),
        lam=float(weight / largest),
        sigma=sigma,
        n_effective=float(kept.sum()) * equations.right.shape[1],
    )


def _refined(taps: Tensor, gains: Tensor, vectors: Tensor, look: Look) -> Tensor:
    """Solve again for the residual, as long as it shrinks."""
    gradient, least = look(taps)
    for _ in range(N_REFINEMENTS):
        tried = taps + vectors @ ((vectors.T @ gradient) / gains[:, None])
        gradient, square = look(tried)
        if not square < least:
            break
        taps, least = tried, square
    return taps


PATIENCE = 3
MAX_ROUNDS = 2000
TOLERANCE = 1e-12
"""Taps and slopes of this part of the largest count as zero."""


@dataclass(frozen=True)
class Constraint:
    """A constraint on the taps of a kernel: none is negative, they add up to `total`, or both."""

    nonnegative: bool
    total: float | None

    @property
    def is_empty(self) -> bool:
        """Whether there is no constraint."""
        return not self.nonnegative and self.total is None


def solve_constrained(hessian: Tensor, right: Tensor, constraint: Constraint) -> Tensor:
    """Minimize ½kᵀHk − bᵀk over taps k `(N,)` under a constraint.

    Block pivoting, which falls back to one tap at a time and so ends (Portugal, Júdice and Vicente, A comparison of
    block pivoting and interior-point algorithms for linear least squares problems with nonnegative variables,
    Mathematics of Computation 63, 1994). A multiplier keeps the sum. The Hessian H `(N, N)` is positive definite.
    """
    n, total = len(right), constraint.total
    free = torch.ones(n, dtype=torch.bool)
    taps, slopes = _on_face(hessian, right, free, total)
    if not constraint.nonnegative:
        return taps
    fewest, patience = n + 1, PATIENCE
    for _ in range(MAX_ROUNDS):
        is_wrong = torch.where(free, taps < -TOLERANCE * taps.abs().max(), slopes < -TOLERANCE * right.abs().max())
        n_wrong = int(is_wrong.sum())
        if n_wrong == 0:
            break
        if n_wrong < fewest:
            fewest, patience = n_wrong, PATIENCE
        elif patience > 0:
            patience -= 1
        else:  # the last one alone, which cannot return to its old place
            last = int(is_wrong.nonzero()[-1])
            is_wrong = torch.zeros_like(is_wrong)
            is_wrong[last] = True
        changed = free ^ is_wrong
        free = changed if bool(changed.any()) else free
        taps, slopes = _on_face(hessian, right, free, total)
    return taps.clamp_min(0)


def _on_face(hessian: Tensor, right: Tensor, free: Tensor, total: float | None) -> tuple[Tensor, Tensor]:
    """Minimize over the free taps, with all others zero; return all taps, and the slopes at all of them."""
    factor = torch.linalg.cholesky(hessian[free][:, free])
    taps = torch.zeros_like(right)
    taps[free] = torch.cholesky_solve(right[free, None], factor)[:, 0]
    multiplier = right.new_zeros(())
    if total is not None:
        of_ones = torch.cholesky_solve(torch.ones_like(right[free, None]), factor)[:, 0]
        multiplier = (taps.sum() - total) / of_ones.sum()
        taps[free] -= multiplier * of_ones
    return taps, hessian @ taps - right + multiplier


def variance_under_sum(variance: Tensor) -> Tensor:
    """Remove changes of the sum of the taps from a covariance of shape `(N, N)`."""
    of_ones = variance.sum(1)
    return variance - of_ones[:, None] * of_ones / of_ones.sum()
