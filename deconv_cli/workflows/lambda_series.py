"""A detail of a picture, or of a plane of a stack, restored under weaker and stronger λ or strengths of prior photo."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from deconv_cli.diagnostics.stored_samples import find_clipped
from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import squared_gradient
from deconv_cli.settings import ResolvedSettings
from deconv_cli.solvers.clipped import DEFAULT_TOLERANCE, solve_clipped
from deconv_cli.solvers.photo_prior import PhotoEstimator
from deconv_cli.solvers.pseudo_inverse import PseudoInverse
from deconv_cli.solvers.solution import StoppingRule
from deconv_cli.tone_curve import ToneCurve
from deconv_cli.workflows.apply_kernel import subtract_bias
from deconv_cli.workflows.clipped_filling import fill_tiles
from deconv_cli.workflows.estimators import build_estimator, find_noise_levels
from deconv_cli.workflows.reconstruction import Reconstruction

RATIOS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Factors of the λ that was taken; of stacks the middle three, since a hundredth takes most of the time."""
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors of the strength that was taken."""
SIDE, SIDE_IN_SPACE = 192, 96
"""Pixels of the detail along each axis at most. In a stack the planes around it are restored too."""


@dataclass(frozen=True, eq=False)
class LambdaView:
    """The detail under one λ, or at one strength.

    Attributes:
        ratio: λ or strength over the one that was taken.
        lams: λ of all channels, or of each; empty without λ.
        image: shape `(C, h, w)`, on the scale of the data as they were given.
        strength: of prior photo; else `None`.
    """

    ratio: float
    lams: tuple[float, ...]
    image: Tensor
    strength: float | None = None


def find_detail(image: Tensor, height: int, width: int) -> tuple[slice, slice]:
    """Find the rows and columns where neighboring pixels differ most, at most `height` and `width` of them.

    Leading axes of an image `(*, H, W)` are averaged.
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


def vary_smoothing(
    kernel: Kernel, result: Reconstruction, y: Tensor, bias: Tensor | None = None, ceiling: float | None = None
) -> tuple[LambdaView, ...]:
    """Restore the detail of the first image with the most contrast, once for each of `RATIOS` or `STRENGTHS`.

    The detail is cut out with a margin beyond which nothing is assumed, so that the cost does not depend on the size of
    the picture. The noise for prior photo is that of the whole picture.

    Args:
        kernel: what the result was made with.
        result: what was reconstructed.
        y: its data, shape `(C, *output_size)` or `(B, C, *output_size)`.
        bias: of each channel.
        ceiling: the largest value that a sample can have, in light if that is restored; `None` for any.

    Returns:
        Nothing without a λ above 0 or a strength, or if the kernel mixes channels, varies over the frame, or spans a
        single axis.
    """
    settings, n_axes, curve = result.settings, kernel.n_axes, result.tone_curve
    lams = tuple(part.settings.lam for part in result.channels) or (settings.lam,)
    is_photo = settings.objective == "photo"
    if kernel.field is not None or n_axes == 1 or (is_photo and result.channels):
        return ()
    kernels = _kernels(kernel.taps.to(result.image), n_channels=len(lams))
    has_lambda = settings.is_linear and settings.has_lambda and min(lams) > 0
    if not is_photo and not (kernels and has_lambda):
        return ()
    stored = (y if y.ndim == n_axes + 1 else y[0]).detach()

    def in_light(part: Tensor) -> Tensor:
        data = part.to(result.image.dtype)
        return data if curve is None else curve.to_light(data)

    size, shown = tuple(stored.shape[1:]), find_detail_in_space(stored)
    whole = result.image if result.image.ndim == n_axes + 1 else result.image[0]
    is_known = tuple(whole.shape[1:]) == size
    # Farther away than two kernels, little of the rest of the picture matters.
    parts = [
        _with_margin(part, 2 * n_taps, length) for part, n_taps, length in zip(shown, kernel.size, size, strict=True)
    ]
    outer, inner = ((slice(None), *box) for box in zip(*parts, strict=True))
    detail, bounds = subtract_bias(in_light(stored[outer]), bias, n_axes), None
    if result.has_bounds and ceiling is not None:
        is_clipped = find_clipped(in_light(stored), ceiling, kernel.size)
        bounds = None if is_clipped is None else is_clipped[outer]
    is_whole = tuple(detail.shape[1:]) == size and result.padding == "same"
    boundary = result.boundary if is_whole else "unknown"
    kernel = replace(kernel, taps=kernel.taps.detach().to(result.image))
    if is_photo:
        if not settings.noise_levels:
            settings = find_noise_levels(subtract_bias(in_light(stored), bias, n_axes), kernel, settings, curve)
        origin = tuple(part.start or 0 for part in outer[1:])
        settings = replace(settings, padding="same", boundary=boundary, origin=origin)
        detail = detail if bounds is None else fill_tiles(detail, kernel, bounds)
    plain = ResolvedSettings(
        boundary=boundary,
        penalty=settings.penalty,
        spacing=settings.spacing,
        tolerance=settings.tolerance,
        max_memory=settings.max_memory,
    )
    views = []
    for ratio in STRENGTHS if is_photo else RATIOS if n_axes == 2 else RATIOS[1:-1]:
        strength = ratio * (settings.strength or 1.0) if is_photo else None
        weights = () if is_photo else tuple(ratio * lam for lam in lams)
        if ratio == 1 and is_known:
            image = whole[:, *shown].detach()
        else:
            if is_photo:
                image = _restore_photo(kernel, replace(settings, strength=strength), detail, bounds, curve)
            else:
                image = _restore(kernels, weights, plain, detail, bounds)
            image = (image if curve is None else curve.to_stored(image))[inner]
        views.append(LambdaView(ratio, weights, image if n_axes == 2 else image[:, 0], strength))
    return tuple(views)


def _with_margin(part: slice, margin: int, length: int) -> tuple[slice, slice]:
    """Widen a part of an axis; give it, and the place of the part in it."""
    start = max(part.start - margin, 0)
    return slice(start, min(part.stop + margin, length)), slice(part.start - start, part.stop - start)


def _kernels(taps: Tensor, n_channels: int) -> list[Kernel]:
    """Give the kernel of all channels, or of each; none if it mixes them."""
    if n_channels == 1 and taps.shape[:2] != (1, 1):
        return []
    shared, n_axes = taps.detach().flatten(0, 1), taps.ndim - 2
    return [Kernel.from_tensor(shared[channel % len(shared)], dimensions=n_axes) for channel in range(n_channels)]


def _restore_photo(
    kernel: Kernel, settings: ResolvedSettings, data: Tensor, bounds: Tensor | None, curve: ToneCurve | None
) -> Tensor:
    """Restore data of shape `(C, H, W)` with prior photo."""
    estimator = build_estimator(kernel, tuple(data.shape[1:]), settings, data, curve)
    assert isinstance(estimator, PhotoEstimator)
    is_bound = None if bounds is None else estimator.arrange(bounds.to(data)) > 0
    return estimator.frame(estimator.solve(data, None, is_bound).value)


def _restore(
    kernels: list[Kernel], lams: tuple[float, ...], settings: ResolvedSettings, data: Tensor, is_clipped: Tensor | None
) -> Tensor:
    """Restore data of shape `(C, *size)`, channel by channel if each has its kernel or λ."""
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
