"""The images of a page: which ones, on which scale, and whether as a comparison, pictures, cuts or lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, linalg

from deconv_cli.report.page_pictures import (
    GRAY_LEVELS,
    Cuts,
    Lines,
    PagePicture,
    ScaledImage,
    display_range,
    draw_cuts,
    draw_lines,
    draw_picture,
    plane_of,
)
from deconv_cli.report.run import InputFile
from deconv_cli.workflows.lambda_series import find_detail
from deconv_cli.workflows.reconstruction import Reconstruction

N_CHANNELS = 3
"""Channels to show of an image that is not a color picture."""
MAX_COMPARED = 576
"""Longest side of a picture that is compared as a whole, in pixels; a larger one shows a detail of this size."""


def images_to_show(
    source: InputFile,
    n_axes: int,
    result: Reconstruction,
    data: Tensor,
    residual: Tensor | None = None,
    truth: Tensor | None = None,
) -> list[ScaledImage]:
    """Choose the images of a page, which are stacks if the kernel spans three axes.

    Data and residual have the shape `(C_out, *size)` or `(B, C_out, *size)`, and the truth that of the estimate; of
    several images the first is shown. `n_axes` counts the axes of space that the kernel spans.
    """
    unit, is_picture, predicted = GRAY_LEVELS if source.dtype == "uint8" else "", source.is_picture, None
    if result.predicted_error is not None:
        predicted = result.predicted_error.map
    first, estimate = _first(data, n_axes), _first(result.image, n_axes)
    inputs, estimates = _channels("Input", first, is_picture), _channels("Estimate", estimate, is_picture)
    truths = [] if truth is None else _channels("Truth", _first(truth, n_axes), is_picture)
    # A photograph and its restoration share a scale; the input and the output of a layer do not.
    low, high = display_range(*(x for _, x in [*estimates, *truths, *(inputs if is_picture else [])]))
    if is_picture and np.issubdtype(source.dtype, np.integer):
        darkest, lightest = float(np.iinfo(source.dtype).min), float(np.iinfo(source.dtype).max)
        inner = max(low, darkest), min(high, lightest)
        low, high = inner if inner[0] < inner[1] else (darkest, lightest)
    of_data = (low, high) if is_picture else display_range(*(x for _, x in inputs))
    scale = "As stored, on the scale of the estimate." if is_picture else "As stored, on its own scale."
    mask = None if result.predicted_error is None else ~result.predicted_error.trusted.detach().cpu()
    text = "The result." if mask is None else "The result; do not trust the hatched regions."
    of_light = unit if result.tone_curve is None else f"of {result.unit}"
    shown = [
        *(ScaledImage(name, x, *of_data, scale, unit) for name, x in inputs),
        *(ScaledImage(name, x, low, high, text, unit, mask=mask) for name, x in estimates),
        *(ScaledImage(name, x, low, high, "The true image.", unit) for name, x in truths),
    ]
    if residual is not None:
        caption = "Size of the difference between the input and the result blurred again."
        shown += _errors([("Residual", _first(residual, n_axes), caption)], of_light)
    errors = [] if predicted is None else [("Predicted error", _first(predicted, n_axes), "The error to be expected.")]
    if truth is not None:
        curve, actual = result.error_curve, _first(truth, n_axes).to(estimate)
        if curve is not None:
            estimate, actual = curve.to_light(estimate), curve.to_light(actual)
        errors.append(("Actual error", estimate - actual, "Size of the difference between estimate and truth."))
    return [*shown, *_errors(errors, unit if result.error_curve is None else of_light)]


def _errors(errors: Sequence[tuple[str, Tensor, str]], unit: str) -> list[ScaledImage]:
    """Show the size of errors `(C, *size)` over all channels, on one scale."""
    sizes = [linalg.vector_norm(error, dim=0) / len(error) ** 0.5 for _, error, _ in errors]
    top = display_range(*sizes)[1]
    return [
        ScaledImage(name, size, 0.0, top, text, unit, false_colors=True)
        for (name, _, text), size in zip(errors, sizes, strict=True)
    ]


def _first(images: Tensor, n_axes: int) -> Tensor:
    """Take the first image of a batch, shape `(C, *size)`."""
    whole = images.detach().cpu()
    return whole if whole.ndim == n_axes + 1 else whole[0]


def _channels(name: str, image: Tensor, is_picture: bool) -> list[tuple[str, Tensor]]:
    """List named pictures of an image: one in colors, or the channels with the most contrast."""
    if len(image) == 1 or (is_picture and len(image) == 3):
        return [(name, image if len(image) == 3 else image[0])]
    contrast = image.flatten(1).double().std(dim=1, correction=0)
    chosen = sorted(contrast.argsort(descending=True, stable=True)[:N_CHANNELS].tolist())
    return [(f"{name}, channel {channel + 1}", image[channel]) for channel in chosen]


def describe_omission(n_images: int, n_channels: int, *, is_color: bool, number: int = 1) -> str | None:
    """Say that image `number` alone is shown, and how many channels, if there are more."""
    parts = [f"image {number} of {n_images}"] if n_images > 1 else []
    if n_channels > N_CHANNELS and not is_color:
        parts.append(f"{N_CHANNELS} of {n_channels} channels")
    return f"Shown: {', '.join(parts)}." if parts else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Data and estimate, pixel on pixel, and whether these are all pixels of the picture."""

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
    part = find_detail(before.values, MAX_COMPARED, MAX_COMPARED)
    cut = [
        replace(
            image, values=image.values[..., part[0], part[1]], mask=None if image.mask is None else image.mask[part]
        )
        for image in (before, after)
    ]
    rows, columns = (p.stop - p.start for p in part)
    is_whole = (rows, columns) == size
    caption = f"The {rows}×{columns} pixels of {size[0]}×{size[1]} with the most detail."
    left, right = (draw_picture(image, MAX_COMPARED) for image in cut)
    return Comparison(left, right, "The whole picture." if is_whole else caption, is_whole)


@dataclass(frozen=True, eq=False)
class ShownImages:
    """The images of a page, drawn.

    Attributes:
        scale: the first picture of the estimate, for the values of black and white.
        comparison: data and estimate of one size and scale.
        pair: data and estimate beside each other, where they cannot be compared.
        lines: the same for signals.
        cuts: stacks.
        pictures: everything that is not compared as a whole.
        omission: a sentence on what is not shown.
    """

    scale: ScaledImage
    comparison: Comparison | None = None
    pair: tuple[PagePicture, ...] = ()
    lines: Lines | None = None
    cuts: Cuts | None = None
    pictures: tuple[PagePicture, ...] = ()
    omission: str | None = None


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
    estimate = next(image for image in images if image.name.startswith("Estimate"))
    if n_axes == 1:
        return ShownImages(estimate, lines=draw_lines(images), omission=omission)
    cuts = draw_cuts(images, spacing) if n_axes == 3 else None
    planes = list(images) if cuts is None else [plane_of(image, cuts.place[0]) for image in images]
    comparison = draw_comparison(planes) if is_picture else None
    taken: list[ScaledImage] = []
    if comparison is None:
        taken = [next(image for image in planes if image.name.startswith(name)) for name in ("Input", "Estimate")]
    elif comparison.is_whole:
        taken = [image for image in planes if image.name in ("Input", "Estimate")]
    return ShownImages(
        scale=estimate,
        comparison=comparison,
        pair=tuple(map(draw_picture, taken)) if comparison is None else (),
        cuts=cuts,
        pictures=tuple(draw_picture(image) for image in planes if image not in taken) if cuts is None else (),
        omission=omission,
    )
