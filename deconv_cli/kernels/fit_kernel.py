"""The kernel that made blurred images of sharp ones: by least squares or another loss, under the true border."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from deconv_cli.errors import MalformedInputError, ShapeError, TooLargeError, UsageError
from deconv_cli.kernels.loss_fit import Loss, find_loss, fit_squares, minimize_loss, squared
from deconv_cli.kernels.nonnegative_taps import describe_sharpening
from deconv_cli.kernels.pair_equations import Constraint, Pair, misfit, variance_under_sum
from deconv_cli.operators.axes import crop
from deconv_cli.operators.boundary_rules import BoundaryRule, as_rule
from deconv_cli.operators.linear_operator import check_image
from deconv_cli.operators.synchronize import free_memory
from deconv_cli.parts import ShownInNotebook
from deconv_cli.regularizers import find_penalty
from deconv_cli.vocabulary import Size, check_name, format_memory, format_percent, format_size

CHANNELS = ("shared", "each", "mix")
"""One kernel for all channels, one for each, or one that mixes them."""
N_MATRICES = 8
"""Square matrices of all taps that are held at once."""
ALL_BUT = 1e-3
"""Relative residual of held-out data below which everything is explained."""
RIM, ROUNDING = 2.0, 1e-12
"""Error bars, in the root mean square, above which outermost taps are no noise; squares below this share are zero."""
CUT_SHORT, UNRELATED = 0.02, 0.5
"""Residual of held-out data above which a kernel that is cut is doubted, and share of their variance above which the
images are unrelated."""
TRUSTED = 1e-3
"""Change in the last round above which a kernel that minimizes a loss is doubted."""


@dataclass(frozen=True, eq=False)
class KernelFit(ShownInNotebook):
    """A kernel that was fitted to pairs of images.

    Attributes:
        taps: of a cross-correlation, shape `(*k)`, `(C, *k)` or `(C_out, C_in, *k)`, float64.
        errors: one standard deviation of every tap, of the same shape. For kernels without negative taps they are those
            without this constraint. `None` under another loss than the square.
        lam: λ of each fitted kernel, in units of the largest eigenvalue of XᵀX relative to LᵀL.
        sigma: standard deviation of the residual of each; under another loss without the outputs that it ignores.
        residual: ‖y − Xk‖ / ‖y‖ over all outputs.
        held_out: the same over every fifth stripe of outputs, for a kernel that was fitted without them; NaN where
            there are too few.
        unexplained: the unexplained share of the variance of held-out outputs; NaN likewise.
        n_data: outputs that were used.
        n_effective: taps that the data determine, out of all.
        certificate: largest change of the predicted images in the last round that minimizes the loss, relative to
            them; `None` for the square, whose minimum is solved for.
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

    def __repr__(self) -> str:
        """Describe it in one line."""
        return f"KernelFit({format_size(self.taps.shape)} taps, residual {format_percent(self.residual)})"

    def is_cut(self, n_axes: int) -> bool:
        """Return whether the kernel continues outside its support of `n_axes` axes: outer taps exceed their error bars.

        Then the error bars are too small. A kernel that explains everything is not cut.
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
        """Give the reasons not to trust a kernel of `n_axes` axes, a sentence each."""
        if self.certificate is not None:  # samples that are far off make the residual of other losses large
            change = format_percent(self.certificate)
            sentence = f"the minimum was not reached: the predicted images may change by {change}"
            return () if self.certificate <= TRUSTED else (sentence,)
        if self.unexplained > UNRELATED:
            share = f"{100 * min(self.unexplained, 1):.0f} %"
            return (
                f"the kernel leaves {share} of the held-out samples unexplained; check that the pictures show one "
                "scene",
            )
        left = f"and leaves {format_percent(self.held_out)} of the held-out samples unexplained"
        if self.held_out > CUT_SHORT and self._sharpens(n_axes):
            return (f"the kernel sharpens {left}; swap the pictures if the first of a pair is the blurred one",)
        if self.held_out > CUT_SHORT and self.is_cut(n_axes):
            return (f"the kernel continues beyond its outermost taps {left}; choose a larger size",)
        return ()

    def notes(self, n_axes: int) -> tuple[str, ...]:
        """List other unusual properties of a kernel of `n_axes` axes, a sentence each."""
        return () if self.errors is None else describe_sharpening(self.taps, self.errors, n_axes)

    def _sharpens(self, n_axes: int) -> bool:
        """Return whether all kernels keep the brightness, but subtract as much as they add."""
        taps = self.taps.flatten(-n_axes)
        keeps = (taps.sum(-1) - 1).abs() < 0.1
        return bool((keeps & (taps.clamp_max(0).sum(-1) < -1)).all())


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
    size, chosen = _checked_size(size), find_loss(loss)
    if unit_sum and channels == "mix":
        raise UsageError(
            "unit_sum is for kernels that do not mix channels; leave it out, or use one kernel for each channel."
        )
    if lam is not None and not (math.isfinite(lam) and lam > 0):
        raise UsageError(f"lam must be a positive number, or None to choose it, but is {lam}.")
    groups = _group_pairs(pairs, size, channels, as_rule(boundary))
    n_inputs = groups[0][0].wide.shape[0]
    is_squared = chosen is squared
    _check_memory(n_inputs * math.prod(size), size)
    gram, constraint = penalty_gram(penalty, size, n_inputs), Constraint(nonnegative, 1.0 if unit_sum else None)
    certificate, bars = None, []
    if is_squared:
        fits = [fit_squares(group, size, gram, lam, constraint) for group in groups]
        for taps, _, ridge in fits:
            variance = variance_under_sum(ridge.variance) if unit_sum else ridge.variance
            bars.append((ridge.sigma * variance.diagonal().clamp_min(0).sqrt())[:, None].expand_as(taps))
    else:
        found = [minimize_loss(group, size, chosen, gram, lam, constraint) for group in groups]
        fits, certificate = [fit for fit, _ in found], max(distance for _, distance in found)
    rest = held_rest = held = spread = total = 0.0
    for group, (taps, without, _) in zip(groups, fits, strict=True):
        rest += misfit(group, size, taps)[1]
        held_rest += misfit(group, size, without, held=True)[1]
        total += sum(float(pair.y.square().sum()) for pair in group)
        squares, around_mean = _held_out_squares(group, size)
        held, spread = held + squares, spread + around_mean
    return KernelFit(
        taps=_arrange_taps([taps for taps, _, _ in fits], size, channels),
        errors=_arrange_taps(bars, size, channels) if bars else None,
        lam=tuple(ridge.lam for _, _, ridge in fits),
        sigma=tuple(ridge.sigma for _, _, ridge in fits),
        residual=math.sqrt(rest / max(total, 1e-300)),
        held_out=math.sqrt(held_rest / held) if held > 0 else math.nan,
        unexplained=held_rest / max(spread, 1e-300) if held > 0 else math.nan,
        n_data=sum(pair.y.numel() for group in groups for pair in group),
        n_effective=sum(ridge.n_effective for _, _, ridge in fits),
        certificate=certificate,
    )


def _held_out_squares(pairs: list[Pair], size: Size) -> tuple[float, float]:
    """Sum the squares of held-out outputs, and of their distances from the mean of each pair's channels."""
    stripes = [[part.y for part, is_held in pair.stripes(size) if is_held] for pair in pairs]
    held = [torch.cat([part.flatten(1) for part in parts], 1) for parts in stripes if parts]
    around_mean = sum(float((y - y.mean(1, keepdim=True)).square().sum()) for y in held)
    return sum(float(y.square().sum()) for y in held), around_mean


def _checked_size(size: object) -> Size:
    """Read the size of a kernel, one number of taps for each axis of space; anything else raises a `UsageError`."""
    if not isinstance(size, tuple | list) or not 1 <= len(size) <= 3:
        raise UsageError(f"size must hold one number of taps for each of one to three axes, but is {size!r}.")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
        raise UsageError(f"size must hold positive whole numbers of taps, but is {size!r}.")
    return tuple(size)


def _listed(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """List pairs of a sharp and a blurred image; anything else raises a `UsageError`."""
    try:
        return [(sharp, blurred) for sharp, blurred in pairs]
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"pairs must be a list of pairs of a sharp and a blurred tensor, but is of type {type(pairs).__name__} "
            "and does not split into pairs."
        ) from error


def _group_pairs(
    pairs: Sequence[tuple[Tensor, Tensor]], size: Size, channels: str, boundary: BoundaryRule
) -> list[list[Pair]]:
    """Lay out the pairs that each kernel is fitted to: all images, or those of one channel.

    Raises:
        UsageError: there are none.
        ShapeError: images that do not fit one another, or the kernel.
        MalformedInputError: images that are not finite, or zero everywhere.
    """
    check_name(CHANNELS, channels, "channels")
    images = [one for sharp, blurred in _listed(pairs) for one in _one_by_one(sharp, blurred, len(size))]
    if not images:
        raise UsageError("a kernel is fitted to pairs of a sharp and a blurred image, but there are none.")
    counts = {(len(sharp), len(blurred)) for sharp, blurred in images}
    if len(counts) > 1:
        raise ShapeError(
            "all pairs must have the same numbers of channels, but there are pairs of "
            f"{' and '.join(f'{a} and {b}' for a, b in sorted(counts)[:2])}; leave one kind out."
        )
    ((n_sharp, n_blurred),) = counts
    if channels != "mix" and n_sharp != n_blurred:
        raise ShapeError(
            f"sharp and blurred images must have the same number of channels, but have {n_sharp} and {n_blurred}; "
            'channels="mix" finds a kernel between different numbers.'
        )
    if not any(bool(sharp.any()) for sharp, _ in images):
        raise MalformedInputError("the sharp images are zero everywhere, so they do not determine a kernel.")
    if channels == "mix":
        return [[Pair.of(sharp, blurred, size, boundary) for sharp, blurred in images]]
    by_channel = [
        [Pair.of(sharp[c : c + 1], blurred[c : c + 1], size, boundary) for sharp, blurred in images]
        for c in range(n_sharp)
    ]
    return by_channel if channels == "each" else [[pair for group in by_channel for pair in group]]


def _one_by_one(sharp: Tensor, blurred: Tensor, n_axes: int) -> list[tuple[Tensor, Tensor]]:
    """Split a pair of batches into pairs of images `(C, *size)`."""
    for image, role in ((sharp, "the sharp image"), (blurred, "the blurred image")):
        check_image(image, role)
        if image.ndim not in (n_axes + 1, n_axes + 2):
            raise ShapeError(
                f"{role} must have the shape (C, ...) or (B, C, ...) with {n_axes} axes of space, but has "
                f"{tuple(image.shape)}."
            )
    if sharp.ndim != blurred.ndim or (sharp.ndim == n_axes + 2 and len(sharp) != len(blurred)):
        raise ShapeError(
            f"sharp and blurred images should come in equal numbers, but are of shapes {tuple(sharp.shape)} and "
            f"{tuple(blurred.shape)}."
        )
    if sharp.ndim == n_axes + 1:
        return [(sharp.detach().cpu(), blurred.detach().cpu())]
    return list(zip(sharp.detach().cpu(), blurred.detach().cpu(), strict=True))


def _arrange_taps(columns: Sequence[Tensor], size: Size, channels: str) -> Tensor:
    """Bring taps `(C_in·prod(k), C_out)` of each group into torch's order: `(*k)`, `(C, *k)` or `(C_out, C_in, *k)`."""
    taps = torch.stack([column.T.reshape(column.shape[1], -1, *size) for column in columns])
    return taps[0] if channels == "mix" else taps[:, 0, 0] if channels == "each" else taps[0, 0, 0]


def penalty_gram(penalty: str, size: Size, n_inputs: int) -> Tensor:
    """Write LᵀL out for taps `(C_in, *size)` that are zero outside of their support, shape `(N, N)`."""
    wide = tuple(n + 4 for n in size)
    operator = find_penalty(penalty).operator((1, *wide), periodic=False)
    n_taps = math.prod(size)
    basis = torch.zeros(n_taps, 1, *wide, dtype=torch.float64)
    crop(basis[:, 0], (2,) * len(size), size).copy_(torch.eye(n_taps, dtype=torch.float64).reshape(n_taps, *size))
    rows = operator.forward(basis).flatten(1)
    return torch.block_diag(*[rows @ rows.T] * n_inputs)


def _check_memory(n_taps: int, size: Size) -> None:
    """Refuse kernels whose normal equations do not fit the memory by a `TooLargeError`."""
    needed, available = 8 * N_MATRICES * n_taps**2, free_memory(torch.device("cpu"))
    if needed > available:
        raise TooLargeError(
            f"a fit of {n_taps} taps on {format_size(size)} takes about {format_memory(needed)}, more than the "
            f"{format_memory(available)} that are free; use a smaller size, or fit each channel separately."
        )
