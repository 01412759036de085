"""A kernel that varies over the frame, undone by conjugate gradients on the true operator under its true boundary.

The preconditioner and the start combine the single kernels' circulant inverses, each on the box of pixels where its
weight w_j is not zero (`operators/varying_convolution.py`): Σ √w_j M_j √w_j, which is symmetric positive definite, and
Σ w_j x_j, where x_j is restored from the piece of the data there. Nagy and O'Leary, Restoring images degraded by
spatially variant blur, SIAM Journal on Scientific Computing 19, 1998, sections 3 and 4, precondition by sections too,
but with piecewise constant weights. On a photograph under motion blur at nine places, strokes that turn by 32° over the
frame take 25 iterations with λ 0.01 and 364 with 1e-4; with the inverse of the mean kernel they take 67 and more than
400.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.operators.axes import crop
from deconv_cli.operators.convolution import Convolution
from deconv_cli.operators.linear_operator import SymmetricOperator
from deconv_cli.operators.varying_convolution import Part, VaryingConvolution, hat_weights, parts_of
from deconv_cli.solvers.inverse import Inverse
from deconv_cli.solvers.iterative import N_ITERATIONS, IterativeInverse, TorusPreconditioner
from deconv_cli.solvers.problem import TikhonovProblem, check_ramps
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.solvers.solver import Cost, Solver, general_refusal, symbol_bytes, transform_operations

# Shares of a pixel that the data show. A photograph under motion blur at four places, boundary unknown, λ 0.01, 1e-3:
# 27 to 47 iterations with these, 41 to 112 with 1e-4, 0.01 and 1, and 130 to more than 400 with 1 alone.
SHARES = (1e-3, 1e-2, 1e-1, 1.0)
# Ratio between the pixels in the boxes of all places and the pixels of the image, about.
OVERLAP = 4


class VaryingSolver(Solver):
    """Conjugate gradients for kernels that vary over the frame, the only way there is."""

    why = "only this method inverts a kernel that varies over the frame"
    takes_varying = True

    def covers(self, problem: TikhonovProblem) -> str | None:
        """Cover determined problems with a kernel that varies over the frame."""
        if not problem.operator.is_varying:
            return "is for kernels that vary over the frame"
        return general_refusal(problem)

    def cost(self, problem: TikhonovProblem) -> Cost:
        """Count the symbols of all boxes, of the operator and the preconditioner, and the iterations."""
        symbols = symbol_bytes(problem, 2 if problem.lam > 0 else 1)
        n_operations = 4 * OVERLAP * N_ITERATIONS * transform_operations(problem)
        return Cost.of_transforms(problem, n_operations, n_bytes_factored=OVERLAP * symbols)

    def build(self, problem: TikhonovProblem, rule: StoppingRule) -> Inverse:
        """Build the preconditioner; without λ nothing preconditions it."""
        check_ramps(problem)
        if problem.weight == 0:
            return IterativeInverse(problem, rule)
        by_places = VaryingPreconditioner(problem)
        return IterativeInverse(problem, rule, by_places, by_places.estimate)


VARYING = VaryingSolver()


class VaryingPreconditioner(SymmetricOperator):
    """`Σ √w_j M_j √w_j`, where M_j is the circulant inverse of the kernel at place j on the box of its weight.

    Pixels near the edge, which the data show only in part, have pieces of their own. Their weights are hats of the
    logarithm of the visible share along each axis, and the inverse is that of the kernel times the share's root.
    """

    def __init__(self, problem: TikhonovProblem) -> None:
        operator = problem.operator
        assert isinstance(operator, VaryingConvolution)
        self.input_shape = self.output_shape = operator.input_shape
        rows, columns = (operator.input_weights(axis) for axis in (0, 1))
        kernel_size, size = operator.kernel.shape[2:], self.input_shape[1:]
        self._parts = [part.widened(kernel_size, size) for part in parts_of(rows, columns, operator.taps)]
        self._problems = [_problem_of(problem, operator, part.place, part.size) for part in self._parts]
        self._inverses = [TorusPreconditioner(inner) for inner in self._problems]
        self._pieces = _pieces(problem, operator, list(zip(self._parts, self._inverses, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply to `x` of shape `(*batch, 1, H, W)`."""
        total = torch.zeros_like(x)
        for part, inverse in self._pieces:
            part.cut(total).add_(part.weights * inverse.forward(part.weights * part.cut(x)))
        return total

    def estimate(self, y: Tensor) -> Tensor:
        """Restore data piece by piece, and blend the pieces; shape `(*batch, 1, H, W)`."""
        total = y.new_zeros(*y.shape[:-2], *self.input_shape[1:])
        for part, inner, inverse in zip(self._parts, self._problems, self._inverses, strict=True):
            piece = crop(y, part.start, inner.operator.output_shape[1:])
            part.cut(total).add_(part.weights * inverse.estimate(piece))
        return total


def _problem_of(
    problem: TikhonovProblem, operator: VaryingConvolution, place: tuple[int, int], size: tuple[int, ...]
) -> TikhonovProblem:
    """Return the problem with the kernel of one place, for an image of the size of its box."""
    boundary, taps = operator.boundary, operator.taps[place][None, None]
    if boundary.is_unknown:
        # The box was cut from the image together with its border, and needs no other border.
        inner = Convolution(taps, size, padding="valid", boundary=boundary)
    else:  # what a rule copies is beyond the reach of a circulant inverse: any that copies will do, of any reach
        rule = "replicate" if boundary.copies_pixels else boundary
        inner = Convolution(taps, size, padding=operator.geometry.pads, boundary=rule)
    return replace(problem, operator=inner, known_sigma_max=problem.sigma_max)


def _pieces(
    problem: TikhonovProblem, operator: VaryingConvolution, whole: list[tuple[Part, TorusPreconditioner]]
) -> list[tuple[Part, TorusPreconditioner]]:
    """Divide the parts, each with the inverse of its kernel, by the visible share of their pixels.

    Returns:
        Parts whose weights are the roots √w, each with its inverse.
    """
    bands = [_bands(operator, axis) for axis in (0, 1)]
    pieces = []
    for part, inverse in whole:
        down, across = (
            band[:, at, first : first + n]
            for band, at, first, n in zip(bands, part.place, part.start, part.size, strict=True)
        )
        # All of a pixel is shown in most of the box: there the inverse is that of the whole part.
        shown = (down[-1][:, None] * across[-1]).to(part.weights)
        pieces.append((replace(part, weights=(part.weights * shown).sqrt()), inverse))
        for box in parts_of(down, across, part.weights):
            share = SHARES[box.place[0]] * SHARES[box.place[1]]
            if share < 1:
                taps = share**0.5 * operator.taps[part.place]
                inner = replace(problem, operator=Convolution(taps, box.size), known_sigma_max=problem.sigma_max)
                start = tuple(a + b for a, b in zip(part.start, box.start, strict=True))
                weights = (box.weights * box.cut(part.weights)).sqrt()
                pieces.append((Part(part.place, start, weights), TorusPreconditioner(inner)))
    return pieces


def _bands(operator: VaryingConvolution, axis: int) -> Tensor:
    """Evaluate the hats of the visible share of each line of pixels, shape `(n_shares, n_places, n)`."""
    weights, boundary, geometry = operator.input_weights(axis), operator.boundary, operator.geometry
    if not boundary.is_unknown and any(geometry.pads.total):  # the data show half of a pixel on the edge, or more
        return torch.stack([torch.full_like(weights, float(share == 1)) for share in SHARES])
    energy = operator.taps.detach().cpu().double().square().sum(dim=(1 - axis, 3 - axis))
    shown = torch.ones(1, 1, geometry.output_size[axis], dtype=energy.dtype)
    share = functional.conv_transpose1d(shown, (energy / energy.sum(dim=1, keepdim=True))[None])[0]
    logarithms = share.clamp_min(SHARES[0]).log10().flatten()
    return hat_weights([math.log10(level) for level in SHARES], logarithms).unflatten(1, share.shape)
