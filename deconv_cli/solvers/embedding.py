"""An image with its border laid onto a torus: which places carry what.

On a torus the convolution is circulant. What keeps the real problem from being so is a border's width of places:
pixels that are not free, because a rule ties them to others or to zero, and outputs that were not observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators.extension import border_sources
from deconv_cli.operators.geometry import Geometry
from deconv_cli.operators.twisted_torus import TwistedTorus, Twists
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class TorusLayout:
    """The smallest torus on which a convolution is exact: sizes alone, and how many places are special.

    Attributes:
        torus: `(N1, N2)`.
        image_size: height and width of the operator's input (for an unknown border the extended image).
        output_size: height and width of the output.
        origin: the tap that meets the output pixel.
    """

    torus: Size
    image_size: Size
    output_size: Size
    origin: Size

    @classmethod
    def plan(cls, geometry: Geometry, boundary: str) -> TorusLayout:
        """Find the torus of a convolution with a border."""
        pads = geometry.pads
        if boundary == "unknown":
            image_size, before, after = geometry.extended_size, (0, 0), (0, 0)
        else:
            image_size, before, after = geometry.image_size, (pads.top, pads.left), (pads.bottom, pads.right)
        # Zeros on either side can be the same zeros; copies can not.
        widths = [max(b, a) if boundary == "zero" else b + a for b, a in zip(before, after, strict=True)]
        torus = (
            max(image_size[0] + widths[0], geometry.output_size[0]),
            max(image_size[1] + widths[1], geometry.output_size[1]),
        )
        return TorusLayout(torus, image_size, geometry.output_size, before)

    @property
    def n_tied(self) -> int:
        """Places of pixels that are not free."""
        return math.prod(self.torus) - math.prod(self.image_size)

    @property
    def n_unobserved(self) -> int:
        """Places of outputs that were not observed."""
        return math.prod(self.torus) - math.prod(self.output_size)


@dataclass(frozen=True)
class TorusEmbedding(TorusLayout):
    """A torus and its special places.

    Places are numbered row by row. The image stands at the start, its border wraps around to the end.

    Attributes:
        row_sources: for each row beyond the image the row that it repeats, shape `(N1 − H,)`; `None` where it is zero.
        column_sources: the same for columns.
        device: where places are wanted.
        twists: axes around which fields change their sign; only where no pixel repeats another.
    """

    row_sources: Tensor | None
    column_sources: Tensor | None
    device: torch.device
    twists: Twists = (False, False)

    @classmethod
    def of(
        cls, geometry: Geometry, boundary: str, device: torch.device, twists: Twists = (False, False)
    ) -> TorusEmbedding:
        """Lay out a convolution.

        Args:
            geometry: the sizes.
            boundary: what lies outside the image.
            device: where the places are wanted.
            twists: axes around which fields change their sign; only for borders of zeros or of unknown pixels.
        """
        layout = TorusLayout.plan(geometry, boundary)
        pads, (height, width) = geometry.pads, layout.image_size
        rows, columns = None, None
        if boundary not in ("zero", "unknown"):
            rows = _line_sources(boundary, pads.top, pads.bottom, height, device)
            columns = _line_sources(boundary, pads.left, pads.right, width, device)
        sizes = (layout.torus, layout.image_size, layout.output_size, layout.origin)
        return cls(*sizes, rows, columns, device, twists)

    @property
    def fourier(self) -> TwistedTorus:
        """The Fourier transform of fields on the torus."""
        return TwistedTorus(self.torus, self.twists)

    @cached_property
    def tied(self) -> Tensor:
        """Places of pixels that are not free, shape `(n_tied,)`."""
        return self._beyond(self.image_size)

    @cached_property
    def sources(self) -> Tensor | None:
        """For each tied place the place whose value it repeats, shape `(n_tied,)`; `None` where all are zero."""
        if self.row_sources is None or self.column_sources is None:
            return None
        rows = torch.cat([torch.arange(self.image_size[0], device=self.device), self.row_sources])
        columns = torch.cat([torch.arange(self.image_size[1], device=self.device), self.column_sources])
        n2 = self.torus[1]
        return rows[self.tied // n2] * n2 + columns[self.tied % n2]

    @cached_property
    def unobserved(self) -> Tensor:
        """Places of outputs that were not observed, shape `(n_unobserved,)`."""
        return self._beyond(self.output_size)

    def _beyond(self, size: Size) -> Tensor:
        """List the places outside a rectangle at the start of the torus, row by row."""
        n1, n2 = self.torus
        rows = torch.arange(size[0], device=self.device)
        columns = torch.arange(size[1], n2, device=self.device)
        beside = (rows[:, None] * n2 + columns).flatten()
        return torch.cat([beside, torch.arange(size[0] * n2, n1 * n2, device=self.device)])

    def covers_inputs(self, symbol: Tensor) -> bool:
        """Tell whether there are enough outputs to determine the image, by their numbers alone.

        Args:
            symbol: of shape `(*, C_out, C_in)`.
        """
        sizes = zip(self.output_size, self.image_size, strict=True)
        return symbol.shape[-2] >= symbol.shape[-1] and all(outputs >= pixels for outputs, pixels in sizes)

    def gather(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Write out the part of a convolution on the torus that leads from some places to others.

        Args:
            kernel: real, shape `(a, b, N1, N2)`: entry δ leads from a place to the one δ further on.
            rows: places of the results, shape `(m,)`.
            columns: places of the arguments, shape `(k,)`.

        Returns:
            Dense, shape `(a·m, b·k)`, channel by channel.
        """
        n1, n2 = self.torus
        down = rows[:, None] // n2 - columns // n2
        right = rows[:, None] % n2 - columns % n2
        part = kernel.flatten(2)[:, :, down % n1 * n2 + right % n2]
        for steps, is_twisted in zip((down, right), self.twists, strict=True):
            if is_twisted:
                part *= torch.where(steps < 0, -1.0, 1.0)
        return part.transpose(1, 2).reshape(kernel.shape[0] * len(rows), kernel.shape[1] * len(columns))

    def gather_tied_rows(self, kernel: Tensor, columns: Tensor) -> Tensor:
        """Like `gather`, but each result is the difference between a tied pixel and its source."""
        result = self.gather(kernel, self.tied, columns)
        if self.sources is not None:
            result -= self.gather(kernel, self.sources, columns)
        return result

    def gather_tied(self, kernel: Tensor) -> Tensor:
        """Like `gather`, from differences between tied pixels and their sources to such differences."""
        result = self.gather_tied_rows(kernel, self.tied)
        if self.sources is not None:
            result -= self.gather_tied_rows(kernel, self.sources)
        return result

    def take_tied(self, field: Tensor) -> Tensor:
        """Subtract from each tied pixel of a field `(*batch, C, N1, N2)` its source: `(*batch, C·n_tied)`."""
        flat = field.flatten(-2)
        tied = flat[..., self.tied]
        if self.sources is not None:
            tied = tied - flat[..., self.sources]
        return tied.flatten(-2)

    def put_tied(self, values: Tensor, n_channels: int) -> Tensor:
        """Apply the transpose of `take_tied`."""
        values = values.unflatten(-1, (n_channels, -1))
        flat = values.new_zeros(*values.shape[:-1], self.torus[0] * self.torus[1])
        flat = flat.index_add(-1, self.tied, values)
        if self.sources is not None:
            flat = flat.index_add(-1, self.sources, -values)
        return flat.unflatten(-1, self.torus)

    def take_unobserved(self, field: Tensor) -> Tensor:
        """Take the unobserved outputs out of a field `(*batch, C, N1, N2)`: `(*batch, C·n_unobserved)`."""
        return field.flatten(-2)[..., self.unobserved].flatten(-2)

    def put_unobserved(self, values: Tensor, n_channels: int) -> Tensor:
        """Apply the transpose of `take_unobserved`."""
        values = values.unflatten(-1, (n_channels, -1))
        flat = values.new_zeros(*values.shape[:-1], self.torus[0] * self.torus[1])
        return flat.index_copy(-1, self.unobserved, values).unflatten(-1, self.torus)

    def crop_image(self, field: Tensor) -> Tensor:
        """Cut the image out of a field `(*batch, C, N1, N2)`."""
        return field[..., : self.image_size[0], : self.image_size[1]]


def _line_sources(boundary: str, before: int, after: int, length: int, device: torch.device) -> Tensor:
    """Tell for each place of one axis beyond the image which pixel of the line it repeats."""
    first, last = border_sources(boundary, before, after, length, device)
    return torch.cat([last, first])
