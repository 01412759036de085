"""An image with its border on a torus, where the convolution is circulant: which positions carry what.

The real problem differs only as far as the border is wide: pixels that a rule ties to others or to zero, and outputs
that were not observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.axes import masked
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.extension import outside_positions
from deconv_cli.operators.geometry import Geometry
from deconv_cli.vocabulary import Size


@dataclass(frozen=True)
class TorusLayout:
    """The smallest torus on which a convolution is exact.

    Attributes:
        torus: pixels along each axis.
        image_size: size of the operator's input (for an unknown border the extended image).
        output_size: size of the output.
        origin: the tap that meets the output pixel.
    """

    torus: Size
    image_size: Size
    output_size: Size
    origin: Size

    @classmethod
    def plan(cls, geometry: Geometry, boundary: BoundaryRule) -> TorusLayout:
        """Find the torus of a convolution with a border."""
        image_size, before, after = geometry.image_size, geometry.pads.before, geometry.pads.after
        wraps = boundary.wraps_beside_edges(len(before))
        if boundary.is_unknown:
            inside = zip(image_size, geometry.extended_size, wraps, strict=True)
            image_size = tuple(n if is_wrapped else extended for n, extended, is_wrapped in inside)
            before, after = masked(before, wraps), masked(after, wraps)
        # Zeros on either side can be the same zeros; copies can not.
        widths = [
            0 if is_wrapped else max(b, a) if boundary.is_zero else b + a
            for b, a, is_wrapped in zip(before, after, wraps, strict=True)
        ]
        sizes = zip(image_size, widths, geometry.output_size, strict=True)
        torus = tuple(max(n + width, n_outputs) for n, width, n_outputs in sizes)
        return TorusLayout(torus, image_size, geometry.output_size, before)

    @property
    def n_tied(self) -> int:
        """Pixels that are not free."""
        return math.prod(self.torus) - math.prod(self.image_size)

    @property
    def n_unobserved(self) -> int:
        """Outputs that were not observed."""
        return math.prod(self.torus) - math.prod(self.output_size)


@dataclass(frozen=True)
class TorusEmbedding(TorusLayout):
    """A torus on which the image stands at the start, and its border wraps around to the end.

    Attributes:
        line_sources: for each axis the pixels that those beyond the image repeat, shape `(N − n,)`; `None` for zeros.
    """

    line_sources: tuple[Tensor | None, ...]

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        boundary: BoundaryRule,
        device: torch.device,
        n_more: Size | None = None,
    ) -> TorusEmbedding:
        """Lay out a convolution.

        The torus is `n_more` pixels longer than it must be. No observed output depends on these pixels: they belong to
        an image that has none beyond it, and otherwise are zero or repeat the first pixel.
        """
        layout = TorusLayout.plan(geometry, boundary)
        n_more = (0,) * len(layout.torus) if n_more is None else n_more
        image_size = tuple(map(sum, zip(layout.image_size, n_more, strict=True)))
        image_size = image_size if boundary.is_unknown else layout.image_size
        sources: list[Tensor | None] = []
        pads = zip(geometry.pads.before, geometry.pads.after, strict=True)
        for (before, after), length, n in zip(pads, layout.image_size, n_more, strict=True):
            # Behind the image come the pixels after it, and then those before it.
            first, last = outside_positions(before, after, length, device)
            copied = [boundary.sources(part, length) for part in (last, first)] if boundary.copies_pixels else None
            sources.append(torch.cat([copied[0], last.new_zeros(n), copied[1]]) if copied else None)
        return cls(
            tuple(map(sum, zip(layout.torus, n_more, strict=True))),
            image_size,
            layout.output_size,
            layout.origin,
            tuple(sources),
        )

    def covers_inputs(self, symbol: Tensor) -> bool:
        """Return whether there are enough outputs to determine the image, for a symbol `(*, C_out, C_in)`."""
        sizes = zip(self.output_size, self.image_size, strict=True)
        return symbol.shape[-2] >= symbol.shape[-1] and all(outputs >= pixels for outputs, pixels in sizes)
