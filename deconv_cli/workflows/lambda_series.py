"""A detail of a picture, or of a plane of a stack, restored under weaker and stronger λ than the one that was taken.

A photograph whose prior was learned has no λ: its detail is restored at other strengths.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.diagnostics.clipped_samples import find_clipped
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import squared_gradient
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.photo_prior import PhotoEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.clipped_filling import fill_tiles
from deconv_cli.workflows.estimators import build_estimator, find_noise_levels
from deconv_cli.workflows.reconstruction import Reconstruction

RATIOS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""λ over the one that was taken."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Strengths of prior photo over the one that was taken."""
SIDE = 192
"""Of the detail, in pixels, at most."""
SIDE_IN_SPACE = 96
"""The same in a stack, where the planes around it have to be restored with it."""


@dataclass(frozen=True, eq=False)
class LambdaView:
    """The detail under one λ, or at one strength.

    Attributes:
        ratio: λ or strength over the one that was taken.
        lams: λ of all channels, or of each; empty where there is none.
        image: shape `(C, h, w)`, on the scale of the data as they were given.
        strength: of prior photo; `None` for others.
    """

    ratio: float
    lams: tuple[float, ...]
    image: Tensor
    strength: float | None = None


@dataclass(frozen=True, eq=False)
class _Detail:
    """A detail with a margin, beyond which nothing is assumed.

    Attributes:
        whole: the first image of the data, less the bias, in light where that is restored, shape `(C, *size)`.
        outer: where the detail lies with its margin.
        inner: where it lies in that.
        is_clipped: which samples of `outer` are lower bounds; `None` where none are.
        is_whole: whether nothing is cut off.
    """

    whole: Tensor
    outer: tuple[slice, ...]
    inner: tuple[slice, ...]
    is_clipped: Tensor | None
    is_whole: bool

    @classmethod
    def of(
        cls, kernel: Kernel, result: Reconstruction, y: Tensor, bias: Tensor | None, ceiling: float | None
    ) -> _Detail:
        """Find the detail of the first image that has most contrast."""
        n_axes, curve = kernel.n_axes, result.tone_curve
        stored = (y if y.ndim == n_axes + 1 else y[0]).detach()
        data = stored.to(result.image.dtype)
        data = data if curve is None else curve.to_light(data)
        is_clipped = find_clipped(data, ceiling, kernel.size) if result.has_bounds and ceiling is not None else None
        data = subtract_bias(data, bias, n_axes)
        size = tuple(data.shape[1:])
        # Farther away than two kernels little of what was cut off is left.
        parts = [
            _with_margin(part, 2 * n_taps, length)
            for part, n_taps, length in zip(find_detail_in_space(stored), kernel.size, size, strict=True)
        ]
        outer, inner = ((slice(None), *box) for box in zip(*parts, strict=True))
        is_whole = tuple(data[outer].shape[1:]) == size and result.padding == "same"
        return cls(data, outer, inner, None if is_clipped is None else is_clipped[outer], is_whole)


def find_detail(image: Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Find the rows and columns where neighboring pixels differ most.

    Args:
        image: shape `(*, H, W)`; leading axes are averaged.
        height: of the detail; all rows where there are no more.
        width: of the detail.
    """
    plane = image.detach().cpu().float().reshape(-1, *image.shape[-2:]).mean(0)
    height, width = min(height, plane.shape[0]), min(width, plane.shape[1])
    contrast = plane.diff(dim=0, prepend=plane[:1]).abs() + plane.diff(dim=1, prepend=plane[:, :1]).abs()
    step = max(min(height, width) // 8, 1)
    blocks = functional.avg_pool2d(contrast[None], step)
    means = functional.avg_pool2d(blocks, (height // step, width // step), stride=1)[0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    top, left = min(row * step, plane.shape[0] - height), min(column * step, plane.shape[1] - width)
    return slice(top, top + height), slice(left, left + width)


def find_detail_in_space(image: Tensor) -> tuple[slice, ...]:
    """Find where neighbors differ most, in a picture `(C, H, W)` or in one plane of a stack `(C, D, H, W)`."""
    if image.ndim == 3:
        return find_detail(image, SIDE, SIDE)
    planes = squared_gradient(image.detach().float(), n_axes=2).mean(dim=(0, 2, 3))
    plane = synchronize.as_index(planes.argmax())
    return slice(plane, plane + 1), *find_detail(image[:, plane], SIDE_IN_SPACE, SIDE_IN_SPACE)


def restore_at_lambdas(
    kernel: Kernel,
    result: Reconstruction,
    y: Tensor,
    bias: Tensor | None = None,
    ceiling: float | None = None,
) -> tuple[LambdaView, ...]:
    """Restore the detail of the first image that has most contrast, under λ from a hundredth to a hundredfold.

    The detail is cut out with a margin beyond which nothing is assumed, so that it costs the same in a picture of any
    size.

    Args:
        kernel: as the result was made with it.
        result: what was reconstructed.
        y: its data, shape `(C, *output_size)` or `(B, C, *output_size)`.
        bias: of each channel.
        ceiling: the largest value that a sample can have, in light where that is what is restored; `None` for any.

    Returns:
        One view for each of `RATIOS`; none where there is no λ to change, or where the kernel mixes channels, varies
        over the frame, or spans a single axis.
    """
    settings, n_axes = result.settings, kernel.n_axes
    if kernel.field is not None or n_axes == 1:
        return ()
    lams = tuple(part.settings.lam for part in result.channels) or (settings.lam,)
    kernels = _kernels(kernel.taps.to(result.image), n_channels=len(lams))
    if not kernels or not settings.is_linear or not settings.has_lambda or min(lams) == 0:
        return ()
    detail, curve = _Detail.of(kernel, result, y, bias, ceiling), result.tone_curve
    alike = ResolvedSettings(
        boundary=result.boundary if detail.is_whole else "unknown",
        penalty=settings.penalty,
        spacing=settings.spacing,
        tolerance=settings.tolerance,
        max_memory=settings.max_memory,
    )
    views = []
    for ratio in RATIOS:
        weights = tuple(ratio * lam for lam in lams)
        image = _restore(kernels, weights, alike, detail.whole[detail.outer], detail.is_clipped)
        image = (image if curve is None else curve.to_stored(image))[detail.inner]
        views.append(LambdaView(ratio, weights, image if n_axes == 2 else image[:, 0]))
    return tuple(views)


def restore_at_strengths(
    kernel: Kernel,
    result: Reconstruction,
    y: Tensor,
    bias: Tensor | None = None,
    ceiling: float | None = None,
) -> tuple[LambdaView, ...]:
    """Do what `restore_at_lambdas` does at strengths of prior photo, from a quarter to fourfold; see there.

    The noise is that of the whole picture.
    """
    if result.channels or kernel.field is not None:
        return ()
    kernel = replace(kernel, taps=kernel.taps.detach().to(result.image))
    detail, curve = _Detail.of(kernel, result, y, bias, ceiling), result.tone_curve
    settings = result.settings
    if not settings.noise_levels:
        settings = find_noise_levels(detail.whole, kernel, settings, curve)
    settings = replace(
        settings,
        padding="same",
        boundary=result.boundary if detail.is_whole else "unknown",
        origin=tuple(part.start or 0 for part in detail.outer[1:]),
    )
    data, bounds = detail.whole[detail.outer], detail.is_clipped
    data = data if bounds is None else fill_tiles(data, kernel, bounds)
    views = []
    for ratio in STRENGTHS:
        strength = ratio * (result.settings.strength or 1.0)
        own = replace(settings, strength=strength)
        estimator = build_estimator(kernel, tuple(data.shape[1:]), own, data, curve)
        assert isinstance(estimator, PhotoEstimator)
        is_bound = None if bounds is None else estimator.arrange(bounds.to(data)) > 0
        image = estimator.frame(estimator.solve(data, None, is_bound).value)
        image = (image if curve is None else curve.to_stored(image))[detail.inner]
        views.append(LambdaView(ratio, (), image, strength))
    return tuple(views)


def _with_margin(part: slice, margin: int, length: int) -> tuple[slice, slice]:
    """Widen a part of an axis; give it, and where the part lies in it."""
    start = max(part.start - margin, 0)
    return slice(start, min(part.stop + margin, length)), slice(part.start - start, part.stop - start)


def _kernels(taps: Tensor, n_channels: int) -> list[Kernel]:
    """Give the kernel of all channels, or of each; none where it mixes them."""
    if n_channels == 1 and taps.shape[:2] != (1, 1):
        return []
    shared, n_axes = taps.detach().flatten(0, 1), taps.ndim - 2
    return [Kernel.from_tensor(shared[channel % len(shared)], dimensions=n_axes) for channel in range(n_channels)]


def _restore(
    kernels: list[Kernel], lams: tuple[float, ...], settings: ResolvedSettings, data: Tensor, is_clipped: Tensor | None
) -> Tensor:
    """Restore data of shape `(C, *size)`, channel by channel where each has its kernel or λ."""
    rule = StoppingRule(settings.tolerance or DEFAULT_TOLERANCE, settings.max_iterations)
    images = []
    for channels, kernel, lam in zip(torch.arange(len(data)).chunk(len(kernels)), kernels, lams, strict=True):
        part = data[channels]
        inverse = PseudoInverse(kernel, tuple(data.shape[1:]), replace(settings, lam=lam))
        if is_clipped is None:
            solution = inverse.solve(part)
        else:
            bounds = inverse.arrange(is_clipped[channels].to(part)) > 0
            solution = solve_clipped(inverse.problem, inverse.arrange(part), bounds, rule)
        images.append(inverse.frame(solution.value))
    return torch.cat(images)
