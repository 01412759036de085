"""The kernel that made blurred images of sharp ones: by least squares or another loss, under the true border."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from deconv_cli.kernels.fit.kernel_model import Constraint
from deconv_cli.kernels.fit.loss_functions import Loss, find_loss, squared
from deconv_cli.kernels.fit.pair_equations import (
    Misfit,
    Pair,
    PairEquations,
    Ridge,
    gather,
    misfit,
    solve_constrained,
    solve_ridge,
    variance_under_sum,
)
from deconv_cli.kernels.nonnegative_taps import describe_raised, raised_detail
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundaries.rule import as_rule
from deconv_cli.regularizers import find_penalty
from deconv_cli.vocabulary import Size, format_percent
from deconv_cli.workflows.image_pairs import arrange_taps, check_constraints, check_memory, checked_size, group_pairs
from deconv_cli.workflows.loss_fit import minimize_loss

ALL_BUT = 1e-3
"""A residual that is no larger a part of held-out data is none."""
RIM, ROUNDING = 2.0, 1e-12
"""Outermost taps of this many error bars, in the root mean square, are no noise; squares below this share are zero."""
CUT_SHORT, UNRELATED = 0.02, 0.5
"""Residuals of held-out data from which on a kernel that is cut is no approximation, and shares of their variance from
which on the images have little to do with one another."""
TRUSTED = 1e-3
"""Distance to the minimum of a loss from which on a kernel is doubted."""


@dataclass(frozen=True, eq=False)
class KernelFit:
    """A kernel that was fitted to pairs of images.

    Attributes:
        taps: of a cross-correlation, shape `(*k)`, `(C, *k)` or `(C_out, C_in, *k)`, float64.
        errors: one standard deviation of every tap, of the same shape. For kernels without negative taps they are those
            without this constraint. `None` under another loss than the square.
        lam: λ of each channel that was fitted by itself, in units of the largest eigenvalue of XᵀX beside LᵀL.
        sigma: standard deviation of what the kernel leaves unexplained, per output, likewise; under another loss than
            the square without the outputs that it does not heed.
        residual: ‖y − Xk‖ / ‖y‖ over all outputs.
        held_out: the same over every fifth stripe of outputs, for a kernel that was fitted without them; NaN where
            there are too few.
        unexplained: the share of the variance of held-out outputs that is left over; NaN likewise.
        n_data: outputs that were used.
        n_effective: taps that the data determine, out of all.
        certificate: how far the minimum of the loss may be, relative to what the kernel makes of the images; `None` for
            the square, whose minimum is solved for.
    """

    taps: Tensor
    errors: Tensor | None
    lam: tuple[float, ...]
    sigma: tuple[float, ...]
    residual: float
    held_out: float
    unexplained: float
    n_data: int
    n_effective: float
    certificate: float | None = None

    def is_cut(self, n_axes: int) -> bool:
        """Tell whether the kernel goes on beyond its support, of so many axes: outermost taps stand out of their bars.

        Then the error bars, which take all beyond for zero, are too small. A kernel that explains all is not cut.
        """
        if self.errors is None or self.held_out <= ALL_BUT:
            return False
        inner = tuple(slice(1, -1) for _ in range(n_axes))
        is_rim = torch.ones(self.taps.shape[-n_axes:], dtype=torch.bool)
        is_rim[inner] = False
        taps, errors = self.taps[..., is_rim], self.errors[..., is_rim]
        return float(taps.square().mean()) > RIM**2 * float(errors.square().mean()) + ROUNDING * float(
            self.taps.square().max()
        )

    def doubts(self, n_axes: int) -> tuple[str, ...]:
        """Say why the kernel, of so many axes, is not to be trusted, a sentence each; nothing where it is."""
        if self.certificate is not None:  # samples that are far off make the residual of other losses large
            change = format_percent(self.certificate)
            sentence = f"the minimum was not reached: what the kernel makes of the images may change by {change}"
            return () if self.certificate <= TRUSTED else (sentence,)
        if self.unexplained > UNRELATED:
            share = f"{100 * min(self.unexplained, 1):.0f} %"
            return (f"the kernel leaves {share} of what was held out over; are the pictures of one scene?",)
        left = f"and leaves {format_percent(self.held_out)} of what was held out over"
        if self.held_out > CUT_SHORT and self._sharpens(n_axes):
            return (f"the kernel sharpens {left}; exchange the pictures if the first of a pair is the blurred one",)
        if self.held_out > CUT_SHORT and self.is_cut(n_axes):
            return (f"the kernel goes on beyond its outermost taps {left}; choose a larger size",)
        return ()

    def notes(self, n_axes: int) -> tuple[str, ...]:
        """Say what is odd about a kernel, of so many axes, that nothing makes doubtful, a sentence each."""
        return () if self.errors is None else describe_raised(raised_detail(self.taps, self.errors, n_axes))

    def _sharpens(self, n_axes: int) -> bool:
        """Tell whether all kernels keep the brightness, but take off as much as they give."""
        taps = self.taps.flatten(-n_axes)
        keeps = (taps.sum(-1) - 1).abs() < 0.1
        return bool((keeps & (taps.clamp_max(0).sum(-1) < -1)).all())


@dataclass(frozen=True)
class FitOptions:
    """How taps are fitted: the penalty, λ (`None` chooses it), and what is known of the taps."""

    penalty: str
    lam: float | None
    nonnegative: bool
    unit_sum: bool


def fit_kernel(
    pairs: Sequence[tuple[Tensor, Tensor]],
    size: Size,
    *,
    channels: Literal["shared", "each", "mix"] = "shared",
    boundary: str = "unknown",
    penalty: str = "gradient",
    lam: float | None = None,
    nonnegative: bool = False,
    unit_sum: bool = False,
    loss: str | Loss = "squared",
) -> KernelFit:
    """Fit the kernel that turned the first image of each pair into the second.

    Args:
        pairs: sharp and blurred, each of shape `(C, *size)` or `(B, C, *size)`; the padding follows from the sizes.
        size: of the kernel: one number for each axis of space.
        channels: fit one kernel for all channels, one for each, or a layer that mixes them.
        boundary: what lies outside the sharp images; `unknown` uses the outputs that do not depend on it.
        penalty: what is kept small of the taps; outside of the support they are zero.
        lam: its weight, in units of the largest eigenvalue of XᵀX beside LᵀL; `None` takes the likeliest.
        nonnegative: no tap is below zero.
        unit_sum: the taps add up to one; for kernels that do not mix channels.
        loss: a name of `LOSSES`, with its number behind a colon (`huber:2.5`), or a function of a prediction and the
            data, two tensors of one shape, that gives a loss of that shape, or the mean of it.

    Raises:
        GradientFaultError: the gradient of the loss is wrong, or does not arrive at the taps.
        ShapeError: images that do not fit one another, or the kernel.
        UsageError: a size, a penalty, a loss or a constraint that cannot be.
        TooLargeError: the normal equations do not fit the memory.
        MalformedInputError: images that are not finite.
    """
    size, rule = checked_size(size), as_rule(boundary)
    check_constraints(channels, lam, unit_sum=unit_sum)
    groups = group_pairs(pairs, size, channels, rule)
    options, chosen = FitOptions(penalty, lam, nonnegative, unit_sum), find_loss(loss)
    if chosen is squared:
        found, certificate = [_fit(group, size, options) for group in groups], None
    else:
        found, certificate = _fit_loss(groups, size, options, chosen)
    bars = [each.errors for each in found if each.errors is not None]
    held, held_rest = sum(each.held for each in found), sum(each.held_rest for each in found)
    squares = [sum(float(pair.y.square().sum()) for pair in group) for group in groups]
    return KernelFit(
        taps=arrange_taps([each.taps for each in found], size, channels),
        errors=arrange_taps(bars, size, channels) if bars else None,
        lam=tuple(each.ridge.lam for each in found),
        sigma=tuple(each.ridge.sigma for each in found),
        residual=math.sqrt(sum(each.rest for each in found) / max(sum(squares), 1e-300)),
        held_out=math.sqrt(held_rest / held) if held > 0 else math.nan,
        unexplained=held_rest / max(sum(each.spread for each in found), 1e-300) if held > 0 else math.nan,
        n_data=sum(pair.y.numel() for group in groups for pair in group),
        n_effective=sum(each.ridge.n_effective for each in found),
        certificate=certificate,
    )


@dataclass(frozen=True)
class _Found:
    """What one fit gives: taps, errors `(N, C_out)`, and squares: of what is left over, of data, of their spread."""

    taps: Tensor
    errors: Tensor | None
    ridge: Ridge
    rest: float
    held_rest: float
    held: float
    spread: float


def _fit(pairs: list[Pair], size: Size, options: FitOptions) -> _Found:
    """Fit one kernel, and another one to the rows that are not held out."""
    n_inputs = pairs[0].wide.shape[0]
    check_memory(n_inputs * math.prod(size), size)
    penalty = penalty_gram(options.penalty, size, n_inputs)
    everything, kept = gather(pairs, size)
    ridge, taps = _solved(everything, penalty, partial(misfit, pairs, size), options)
    _, without = _solved(kept, penalty, partial(misfit, pairs, size, held=False), options)
    variance = variance_under_sum(ridge.variance) if options.unit_sum else ridge.variance
    errors = ridge.sigma * variance.diagonal().clamp_min(0).sqrt()
    return _Found(
        taps=taps,
        errors=errors[:, None].expand_as(taps),
        ridge=ridge,
        rest=misfit(pairs, size, taps).square,
        held_rest=misfit(pairs, size, without, held=True).square,
        held=everything.square - kept.square,
        spread=_spread(pairs, size),
    )


def _fit_loss(groups: list[list[Pair]], size: Size, options: FitOptions, loss: Loss) -> tuple[list[_Found], float]:
    """Fit all kernels under a loss, and others to the rows that are not held out; gives the certificate too."""
    n_inputs = groups[0][0].wide.shape[0]
    check_memory(len(groups) * n_inputs * math.prod(size), size)
    penalty = penalty_gram(options.penalty, size, n_inputs)
    constraint = Constraint(options.nonnegative, 1.0 if options.unit_sum else None)
    minimum = minimize_loss(groups, size, loss, penalty, options.lam, constraint)
    found = [
        _Found(
            taps=taps,
            errors=None,
            ridge=ridge,
            rest=misfit(group, size, taps).square,
            held_rest=misfit(group, size, without, held=True).square,
            held=misfit(group, size, torch.zeros_like(taps), held=True).square,
            spread=_spread(group, size),
        )
        for group, taps, without, ridge in zip(groups, minimum.columns, minimum.without, minimum.ridges, strict=True)
    ]
    return found, minimum.certificate


def _spread(pairs: list[Pair], size: Size) -> float:
    """Sum the squares of held-out outputs less the mean of each pair's channels."""
    stripes = [[part.y for part, is_held in pair.stripes(size) if is_held] for pair in pairs]
    held = [torch.cat([part.flatten(1) for part in parts], 1) for parts in stripes if parts]
    return sum(float((y - y.mean(1, keepdim=True)).square().sum()) for y in held)


def _solved(
    equations: PairEquations, penalty: Tensor, look: Callable[[Tensor], Misfit], options: FitOptions
) -> tuple[Ridge, Tensor]:
    """Solve one set of equations under the constraints; gives the unconstrained solution too."""
    ridge = solve_ridge(equations, penalty, look, options.lam)
    if not (options.nonnegative or options.unit_sum):
        return ridge, ridge.taps
    # Around the solution without constraints, whose digits are better than those of the normal equations.
    hessian = equations.gram + ridge.weight * penalty
    total = 1.0 if options.unit_sum else None
    columns = [
        solve_constrained(hessian, hessian @ column, nonnegative=options.nonnegative, total=total)
        for column in ridge.taps.T
    ]
    return ridge, torch.stack(columns, 1)


def penalty_gram(penalty: str, size: Size, n_inputs: int) -> Tensor:
    """Write LᵀL out for taps `(C_in, *size)` that are zero outside of their support, shape `(N, N)`."""
    wide = tuple(n + 4 for n in size)
    operator = find_penalty(penalty).operator((1, *wide), periodic=False)
    n_taps = math.prod(size)
    basis = torch.zeros(n_taps, 1, *wide, dtype=torch.float64)
    crop(basis[:, 0], (2,) * len(size), size).copy_(torch.eye(n_taps, dtype=torch.float64).reshape(n_taps, *size))
    rows = operator.forward(basis).flatten(1)
    return torch.block_diag(*[rows @ rows.T] * n_inputs)
