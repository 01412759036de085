"""A detail of a picture, or of a plane of a stack, restored under weaker and stronger λ or strengths of prior photo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional

from deconv_cli.kernels.kernel import Kernel
from deconv_cli.operators import synchronize
from deconv_cli.operators.axes import squared_gradient
from deconv_cli.workflows.reconstruction import Reconstruction
from deconv_cli.workflows.resolve_settings import InputMetadata, ResolvedInput

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
    kernel: Kernel,
    result: Reconstruction,
    y: Tensor,
    restore: Callable[[Tensor, ResolvedInput], Tensor],
    sample_type: str | None = None,
) -> tuple[LambdaView, ...]:
    """Restore the detail of the first image with the most contrast, once for each of `RATIOS` or `STRENGTHS`.

    The detail is cut out of the data `y` with a margin beyond which nothing is assumed, so that the cost does not
    depend on the size of the picture. The noise for prior photo is that of the whole picture. There are no views
    without a λ above 0 or a strength, or if the kernel mixes channels, varies over the frame, spans a single axis, or
    is that of a layer with a stride, a dilation or groups.
    """
    settings, n_axes, is_photo = result.settings, kernel.n_axes, result.settings.objective == "photo"
    lams = tuple(part.settings.lam for part in result.channels) or (settings.lam,)
    if kernel.field is not None or not settings.layer.is_plain or n_axes == 1 or (is_photo and result.channels):
        return ()
    is_mixing = not result.channels and kernel.taps.shape[:2] != (1, 1)
    has_lambda = settings.is_linear and settings.has_lambda and min(lams) > 0
    if not is_photo and (is_mixing or not has_lambda):
        return ()
    stored = (y if y.ndim == n_axes + 1 else y[0]).detach()
    size, shown = tuple(stored.shape[1:]), find_detail_in_space(stored)
    whole = result.image if result.image.ndim == n_axes + 1 else result.image[0]
    # Farther away than two kernels, little of the rest of the picture matters.
    parts = [
        _with_margin(part, 2 * n_taps, length) for part, n_taps, length in zip(shown, kernel.size, size, strict=True)
    ]
    outer, inner = ((slice(None), *box) for box in zip(*parts, strict=True))
    detail = stored[outer]
    is_whole = tuple(detail.shape[1:]) == size and result.padding == "same"
    plain = replace(
        settings,
        boundary=result.boundary if is_whole else "unknown",
        padding="same",
        input_size=None,
        method="auto",
        origin=tuple(part.start or 0 for part in outer[1:]) if is_photo else (),
        noise_levels=result.solution.noise_levels,
        predict=False,
    )
    resolution = ResolvedInput(
        plain,
        result.reasons,
        is_per_channel=bool(result.channels) and len(kernel.taps) > 1,
        tone_curve=result.tone_curve,
        metadata=InputMetadata(sample_type=sample_type),
        has_bounds=result.has_bounds,
        is_tested=False,
    )
    views = []
    for ratio in STRENGTHS if is_photo else RATIOS if n_axes == 2 else RATIOS[1:-1]:
        strength = ratio * (settings.strength or 1.0) if is_photo else None
        weights = () if is_photo else tuple(ratio * lam for lam in lams)
        if ratio == 1 and tuple(whole.shape[1:]) == size:
            image = whole[:, *shown].detach()
        else:
            varied = replace(plain, strength=strength) if is_photo else replace(plain, lam=weights[0])
            image = restore(detail, replace(resolution, settings=varied, lams=weights if result.channels else ()))
            image = image.detach()[inner]
        views.append(LambdaView(ratio, weights, image if n_axes == 2 else image[:, 0], strength))
    return tuple(views)


def _with_margin(part: slice, margin: int, length: int) -> tuple[slice, slice]:
    """Widen a part of an axis; give it, and the place of the part in it."""
    start = max(part.start - margin, 0)
    return slice(start, min(part.stop + margin, length)), slice(part.start - start, part.stop - start)
