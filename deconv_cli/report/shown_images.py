"""The images of a page as it shows them: compared, side by side, as cuts of stacks, or as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from deconv_cli.report.drawing import Plot
from deconv_cli.report.orthogonal_cuts import Cuts, draw_cuts, plane_of
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, draw_pictures, signals_plot
from deconv_cli.workflows.lambda_series import LambdaView, find_detail

MAX_SIDE = 512
"""Longest side of a picture that is compared as a whole, in pixels; of a larger one it is a detail of this size."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """The data and the estimate, pixel on pixel.

    Attributes:
        before: the data.
        after: the estimate.
        caption: which part of them it is, and on which scale.
        is_whole: they are shown from edge to edge, and with every pixel.
    """

    before: PagePicture
    after: PagePicture
    caption: str
    is_whole: bool


def draw_comparison(images: Sequence[ScaledImage]) -> Comparison | None:
    """Draw the pair of the images of a page; `None` where data and estimate are not of one size and scale."""
    named = {image.name: image for image in images}
    if not named.keys() >= {"Input", "Estimate"}:
        return None
    before, after = named["Input"], named["Estimate"]
    size = tuple(before.values.shape[-2:])
    if before.values.shape != after.values.shape or (before.low, before.high) != (after.low, after.high):
        return None
    part = find_detail(before.values, MAX_SIDE, MAX_SIDE)
    (left, right), side = draw_pictures([_cut(image, part) for image in (before, after)])
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
    """Draw the detail under each λ on the scale of the estimate.

    Args:
        views: the details.
        images: those of the page, the estimate among them.
        n_axes: axes of space of these.

    Returns:
        The pictures, each with whether its λ is the one that was taken.
    """
    if not views:
        return []
    estimate = next(image for image in images if image.name.startswith("Estimate"))
    is_color = estimate.values.ndim > n_axes
    shown = [
        ScaledImage(
            name=_times(view.ratio),
            values=view.image.cpu() if is_color else view.image[0].cpu(),
            low=estimate.low,
            high=estimate.high,
            caption=f"λ = {', '.join(f'{lam:.2g}' for lam in dict.fromkeys(view.lams))}.",
            unit=estimate.unit,
        )
        for view in views
    ]
    pictures, _ = draw_pictures(shown)
    return [(picture, view.ratio == 1) for picture, view in zip(pictures, views, strict=True)]


def _cut(image: ScaledImage, part: tuple[slice, slice]) -> ScaledImage:
    def cut(values: Tensor) -> Tensor:
        return values[..., part[0], part[1]]

    return replace(image, values=cut(image.values), mask=None if image.mask is None else cut(image.mask))


def _times(ratio: float) -> str:
    if ratio == 1:
        return "λ, as taken"
    return f"λ × {ratio:g}" if ratio > 1 else f"λ / {1 / ratio:g}"


@dataclass(frozen=True, eq=False)
class ShownImages:
    """What became of images.

    Attributes:
        comparisons: before and after under a line that is dragged.
        cuts: of stacks; `None` for others.
        pictures: those that are not compared.
        signals: before and after as lines; `None` for others.
        omission: what is left out, a sentence; `None` where nothing is.
        longest: longest side of an image, in pixels.
        side: of a picture, at most.
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
    """Draw the images of a page.

    Args:
        images: the data and the estimate, and what else there is.
        omission: what is left out.
        spacing: distances of the samples along the axes of space, where they are known.
        n_axes: axes of space.
        is_picture: whether data and estimate are of one kind, and can be compared.
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
