"""The images of a page as it shows them: compared, side by side, as cuts of stacks, or as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deconv_cli.report.comparison import Comparison, draw_comparison
from deconv_cli.report.drawing import Plot
from deconv_cli.report.orthogonal_cuts import Cuts, draw_cuts, plane_of
from deconv_cli.report.page_pictures import PagePicture, ScaledImage, draw_pictures, signals_plot


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
