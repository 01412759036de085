"""The images of a page: which ones, on which scale, and whether as a comparison, pictures, cuts or lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from deconv_cli.report.orthogonal_cuts import Cuts, draw_cuts, plane_of
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, display_range, draw_pictures, signals_plot
from deconv_cli.report.plots import Plot
from deconv_cli.report.run import InvertRun
from deconv_cli.workflows.lambda_series import LambdaView, find_detail
from deconv_cli.workflows.measurement import Diagnosis

N_CHANNELS = 3
"""Channels to show of an image that is not a color picture."""


def images_to_show(
    run: InvertRun, diagnosis: Diagnosis, data: Tensor, truth: Tensor | None
) -> tuple[list[ScaledImage], str | None]:
    """Choose the images of a page, for data of shape `(C_out, *size)` or `(B, C_out, *size)`.

    Returns:
        The images, which are stacks if the kernel spans three axes, and a sentence on images and channels that are not
        shown, if there are any.
    """
    unit = f"in units of the {run.source.dtype} samples"
    estimate = run.reconstruction.image
    curve = run.reconstruction.tone_curve
    of_light = unit if curve is None else f"in units of {run.reconstruction.unit}"
    errors = _errors(run, truth, unit if run.reconstruction.error_curve is None else of_light)
    images = [*_pictures(run, data, truth, unit), _residual(diagnosis, of_light, run.kernel.kernel.n_axes), *errors]
    return images, _omission(run, data, estimate)


def _pictures(run: InvertRun, data: Tensor, truth: Tensor | None, unit: str) -> list[ScaledImage]:
    """Show the data, the estimate, and the truth."""
    is_picture, predicted = run.source.is_picture, run.reconstruction.predicted_error
    inputs, estimates = _channels(run, data), _channels(run, run.reconstruction.image)
    truths = [] if truth is None else _channels(run, truth)
    # A photograph and its restoration share a scale; the input and the output of a layer do not.
    low, high = display_range(*estimates, *truths, *(inputs if is_picture else []))
    if is_picture and np.issubdtype(run.source.dtype, np.integer):
        low, high = _within_limits(low, high, np.iinfo(run.source.dtype))
    of_data = (low, high) if is_picture else display_range(*inputs)
    together = "" if truth is None else ", as the truth has"
    scale = f"The estimate has the same scale{together}." if is_picture else "It has a scale of its own."
    mask = None if predicted is None else ~predicted.trusted.detach().cpu()
    text = "What was restored." if mask is None else "What was restored; hatched where it is not to be trusted."
    return [
        *(ScaledImage(name, x, *of_data, f"As it came. {scale}", unit) for name, x in _named("Input", inputs)),
        *(ScaledImage(name, x, low, high, text, unit, mask=mask) for name, x in _named("Estimate", estimates)),
        *(ScaledImage(name, x, low, high, "The true image.", unit) for name, x in _named("Truth", truths)),
    ]


def _within_limits(low: float, high: float, limits: np.iinfo) -> tuple[float, float]:
    """Narrow a range to that of the samples."""
    darkest, lightest = float(limits.min), float(limits.max)
    low, high = max(low, darkest), min(high, lightest)
    return (low, high) if low < high else (darkest, lightest)


def _errors(run: InvertRun, truth: Tensor | None, unit: str) -> list[ScaledImage]:
    """Show the predicted error and the actual one, on one scale."""
    errors, n_axes = [], run.kernel.kernel.n_axes
    if run.reconstruction.predicted_error is not None:
        size = _root_mean_square(_first(run.reconstruction.predicted_error.map, n_axes))
        errors.append(("Predicted error", size, "The error to be expected, root mean square."))
    if truth is not None:
        image, curve = _first(run.reconstruction.image, n_axes), run.reconstruction.error_curve
        true_image = _first(truth, n_axes).to(image)
        if curve is not None:
            image, true_image = curve.to_light(image), curve.to_light(true_image)
        difference = image - true_image
        errors.append(("Actual error", _root_mean_square(difference), "Estimate less truth, by size."))
    top = max((display_range(values)[1] for _, values, _ in errors), default=1.0)
    return [ScaledImage(name, values, 0.0, top, text, unit, "viridis") for name, values, text in errors]


def _residual(diagnosis: Diagnosis, unit: str, n_axes: int) -> ScaledImage:
    residual = _first(diagnosis.residual, n_axes)
    name, text = "Residual", "Input less the blurred estimate"
    if residual.shape[0] == 1:
        low, high = display_range(residual[0])
        limit = max(-low, high)
        return ScaledImage(name, residual[0], -limit, limit, f"{text}.", unit, "cividis")
    values = _root_mean_square(residual)
    return ScaledImage(name, values, 0.0, display_range(values)[1], f"{text}, over all channels.", unit, "cividis")


def _first(images: Tensor, n_axes: int) -> Tensor:
    """Take the first image of a batch, shape `(C, *size)`."""
    whole = images.detach().cpu()
    return whole if whole.ndim == n_axes + 1 else whole[0]


def _root_mean_square(image: Tensor) -> Tensor:
    return image.double().square().mean(dim=0).sqrt()


def _channels(run: InvertRun, images: Tensor) -> list[Tensor]:
    """Take the first image if it has colors, else its first channels one by one."""
    first = _first(images, run.kernel.kernel.n_axes)
    return [first] if run.source.is_picture and first.shape[0] == 3 else list(first[:N_CHANNELS])


def _named(name: str, channels: list[Tensor]) -> list[tuple[str, Tensor]]:
    if len(channels) == 1:
        return [(name, channels[0])]
    return [(f"{name}, channel {number}", values) for number, values in enumerate(channels, start=1)]


def _omission(run: InvertRun, data: Tensor, estimate: Tensor) -> str | None:
    channels, is_picture = run.kernel.kernel.channel_axis, run.source.is_picture
    n_images = data.shape[0] if data.ndim > -channels else 1
    counts = {data.shape[channels], estimate.shape[channels]}
    parts = [f"the first of {n_images} images"] if n_images > 1 else []
    if max(counts) > N_CHANNELS and not (is_picture and counts == {3}):
        parts.append(f"the first {N_CHANNELS} of {max(counts)} channels")
    return f"Shown: {', '.join(parts)}." if parts else None


MAX_SIDE = 512
"""Longest side of a picture that is compared as a whole, in pixels; a larger one shows a detail of this size."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Data and estimate, pixel on pixel.

    Attributes:
        before: the data.
        after: the estimate.
        caption: the part of the picture, and the scale.
        is_whole: every pixel of the picture is shown.
    """

    before: PagePicture
    after: PagePicture
    caption: str
    is_whole: bool


def draw_comparison(images: Sequence[ScaledImage]) -> Comparison | None:
    """Draw data and estimate of a page; `None` if they are not of one size and scale."""
    named = {image.name: image for image in images}
    if not named.keys() >= {"Input", "Estimate"}:
        return None
    before, after = named["Input"], named["Estimate"]
    size = tuple(before.values.shape[-2:])
    if before.values.shape != after.values.shape or (before.low, before.high) != (after.low, after.high):
        return None
    part = find_detail(before.values, MAX_SIDE, MAX_SIDE)
    cut = [
        replace(
            image, values=image.values[..., part[0], part[1]], mask=None if image.mask is None else image.mask[part]
        )
        for image in (before, after)
    ]
    (left, right), side = draw_pictures(cut)
    rows, columns = (p.stop - p.start for p in part)
    is_whole = (rows, columns) == size
    is_exact = side >= max(rows, columns)
    caption = (
        "The whole picture" if is_whole else f"The {rows}×{columns} pixels of {size[0]}×{size[1]} with most detail"
    )
    caption += "." if is_exact else f", averaged down to at most {side} a side."
    return Comparison(left, right, caption, is_whole and is_exact)


def draw_views(
    views: Sequence[LambdaView], images: Sequence[ScaledImage], n_axes: int = 2
) -> list[tuple[PagePicture, bool]]:
    """Draw the detail under each λ, or at each strength, on the scale of the estimate among the images of the page.

    Returns:
        The pictures, each with whether its λ or strength is the one that was taken.
    """
    if not views:
        return []
    estimate = next(image for image in images if image.name.startswith("Estimate"))
    is_color = estimate.values.ndim > n_axes
    shown = [
        ScaledImage(
            name=_times(view),
            values=view.image.cpu() if is_color else view.image[0].cpu(),
            low=estimate.low,
            high=estimate.high,
            caption=f"λ = {', '.join(f'{lam:.2g}' for lam in dict.fromkeys(view.lams))}."
            if view.strength is None
            else f"Strength {view.strength:g}.",
            unit=estimate.unit,
        )
        for view in views
    ]
    pictures, _ = draw_pictures(shown)
    return [(picture, view.ratio == 1) for picture, view in zip(pictures, views, strict=True)]


def _times(view: LambdaView) -> str:
    setting, ratio = "λ" if view.strength is None else "Strength", view.ratio
    if ratio == 1:
        return f"{setting}, as taken"
    return f"{setting} × {ratio:g}" if ratio > 1 else f"{setting} / {1 / ratio:g}"


@dataclass(frozen=True, eq=False)
class ShownImages:
    """The images of a page, drawn; `longest` is the longest side of an image, `side` that of a picture at most.

    `omission` is a sentence on what is not shown.
    """

    comparisons: tuple[Comparison, ...]
    cuts: Cuts | None
    pictures: list[PagePicture]
    signals: Plot | None
    omission: str | None
    longest: int
    side: int

    @property
    def is_smaller(self) -> bool:
        """Whether pictures have fewer pixels than the images."""
        return bool(self.pictures) and self.longest > self.side


def show_images(
    images: Sequence[ScaledImage],
    omission: str | None,
    spacing: tuple[float, ...] | None,
    n_axes: int,
    *,
    is_picture: bool,
) -> ShownImages:
    """Draw the images of a page, data and estimate among them; `is_picture` if these can be compared.

    `spacing` holds the distances of the samples along the axes of space, if they are known.
    """
    cuts = draw_cuts(images, spacing) if n_axes == 3 else None
    planes = list(images) if cuts is None else [plane_of(image, cuts.geometry.place[0]) for image in images]
    comparison = draw_comparison(planes) if is_picture and n_axes > 1 else None
    compared = ("Input", "Estimate") if comparison is not None and comparison.is_whole else ()
    apart = [image for image in images if image.name not in compared] if n_axes == 2 else []
    pictures, side = draw_pictures(apart)
    return ShownImages(
        comparisons=() if comparison is None else (comparison,),
        cuts=cuts,
        pictures=pictures,
        signals=signals_plot(images) if n_axes == 1 else None,
        omission=omission,
        longest=max(max(image.values.shape[-2:]) for image in planes),
        side=side,
    )
