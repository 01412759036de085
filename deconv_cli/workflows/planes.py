"""Stacks that a kernel of fewer axes works on plane by plane: their planes are a batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from deconv_cli.errors import ShapeError
from deconv_cli.kernels.kernel import AXIS_NAMES, Kernel
from deconv_cli.vocabulary import Size
from deconv_cli.workflows.reconstruction import Reconstruction


@dataclass(frozen=True)
class Planes:
    """Where the planes, or lines, of one batch of stacks came from.

    Attributes:
        batch: axes ahead of the channels, none or one.
        numbered: the axes of space that the kernel does not span: `(D,)` for a 2-D kernel on a stack.
        n_axes: the axes of space that it spans.
    """

    batch: Size
    numbered: Size
    n_axes: int

    @classmethod
    def of(cls, images: Tensor, kernel: Kernel, dimensions: int | None) -> Planes | None:
        """Tell how images are taken apart; `None` where the kernel spans all their axes.

        Args:
            images: shape `(C, *size)` or `(B, C, *size)`.
            kernel: what works on them.
            dimensions: axes of space of the images; `None` for those of the kernel.

        Raises:
            ShapeError: the images have other axes.
        """
        n_axes = kernel.n_axes
        n_numbered = 0 if dimensions is None else dimensions - n_axes
        if n_numbered <= 0:
            return None
        assert dimensions is not None
        if images.ndim not in (dimensions + 1, dimensions + 2):
            axes = ", ".join(("C", *AXIS_NAMES[-dimensions:]))
            raise ShapeError(
                f"an image tensor of {dimensions} dimensions must have shape ({axes}) or (B, {axes}), but has "
                f"{tuple(images.shape)}; add the missing axes, for example image[None]."
            )
        channels = images.ndim - dimensions - 1
        return cls(tuple(images.shape[:channels]), tuple(images.shape[channels + 1 : -n_axes]), n_axes)

    def split(self, images: Tensor) -> Tensor:
        """Make a batch of the planes: `(*batch, C, *numbered, *size)` to `(n, C, *size)`."""
        channels = len(self.batch)
        last = images.movedim(channels, channels + len(self.numbered))
        return last.reshape(-1, *last.shape[-self.n_axes - 1 :])

    def join(self, planes: Tensor) -> Tensor:
        """Undo `split`, for planes of any size and number of channels."""
        channels = len(self.batch)
        stacked = planes.reshape(*self.batch, *self.numbered, *planes.shape[1:])
        return stacked.movedim(channels + len(self.numbered), channels)


def join_planes(planes: Planes, result: Reconstruction) -> Reconstruction:
    """Put the planes of an estimate together, and of its predicted error; the solution stays a batch of planes."""
    predicted = result.predicted_error
    return replace(
        result,
        image=planes.join(result.image),
        predicted_error=None if predicted is None else replace(predicted, map=planes.join(predicted.map)),
    )
