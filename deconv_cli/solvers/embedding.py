"""An image with its border on a torus, where the convolution is circulant: which positions carry what.

The real problem differs only as far as the border is wide: pixels that a rule ties to others or to zero, and outputs
that were not observed.

The torus may be twisted: along a twisted axis a field changes its sign each time around, z(x + N) = −z(x), and the
frequencies are (2k + 1)π/N, never zero. So a kernel of zero mean, which has no inverse on a plain torus, has one there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deconv_cli.operators.axes import crop, masked, space_axes
from deconv_cli.operators.boundary_rules import BoundaryRule
from deconv_cli.operators.circulant import channels_first, channels_last, phases, sum_taps, torus_symbol
from deconv_cli.operators.extension import outside_positions
from deconv_cli.operators.geometry import Geometry
from deconv_cli.vocabulary import Size

Twists = tuple[bool, ...]
"""For each axis whether a field changes its sign around it."""


@dataclass(frozen=True)
class TwistedTorus:
    """The discrete Fourier transform of real fields on a torus, and the symbol of a kernel there.

    Only one frequency of each conjugate pair is kept, as by `torch.fft.rfftn`: along the last axis of length N `N // 2
    + 1` of them, or `(N + 1) // 2` if it is twisted. `twists` names the twisted axes.
    """

    size: Size
    twists: Twists

    @property
    def plane(self) -> Size:
        """The shape of a spectrum."""
        n = self.size[-1]
        return *self.size[:-1], (n + 1) // 2 if self.twists[-1] else n // 2 + 1

    @property
    def _axes(self) -> list[tuple[int, int, bool]]:
        return list(zip(space_axes(len(self.size)), self.size, self.twists, strict=True))

    def transform(self, field: Tensor) -> Tensor:
        """Transform `(*, *smaller size)`, zero beyond its end, to a spectrum `(*, *plane)`."""
        if not any(self.twists):
            return torch.fft.rfftn(field, s=self.size, dim=space_axes(len(self.size)))
        *others, (_, length, is_twisted) = self._axes
        if is_twisted:
            turned = field * self._turn(field.shape[-1], length, field, -1).conj()
            spectrum = torch.fft.fft(turned, n=length, dim=-1)[..., : self.plane[-1]]
        else:
            spectrum = torch.fft.rfft(field, n=length, dim=-1)
        for axis, length, is_twisted in reversed(others):
            if is_twisted:
                spectrum = spectrum * self._turn(field.shape[axis], length, field, axis).conj()
            spectrum = torch.fft.fft(spectrum, n=length, dim=axis)
        return spectrum

    def restore(self, spectrum: Tensor) -> Tensor:
        """Transform a spectrum `(*, *plane)` back to a field `(*, *size)`."""
        if not any(self.twists):
            return torch.fft.irfftn(spectrum, s=self.size, dim=space_axes(len(self.size)))
        *others, (_, length, is_last_twisted) = self._axes
        lines = spectrum
        for axis, n, is_twisted in others:
            lines = torch.fft.ifft(lines, dim=axis)
            if is_twisted:
                lines = lines * self._turn(n, n, spectrum.real, axis)
        if not is_last_twisted:
            return torch.fft.irfft(lines, n=length, dim=-1)
        # The other half holds the conjugates; for an odd length the frequency π is its own.
        weights = torch.full((self.plane[-1],), 2.0, dtype=spectrum.real.dtype, device=spectrum.device)
        if length % 2 == 1:
            weights[-1] = 1.0
        half = torch.fft.ifft(lines * weights, n=length, dim=-1)
        return (half * self._turn(length, length, spectrum.real, -1)).real

    def symbol(self, kernel: Tensor, origin: Size) -> Tensor:
        """Evaluate the symbol `(*plane, C_out, C_in)` of a cross-correlation; see `torus_symbol`."""
        if not any(self.twists):
            return torus_symbol(kernel, self.size, origin)
        tables = [
            phases(2 * torch.arange(n, device=kernel.device) + is_twisted, 2 * length, n_taps, kernel, at)
            for n, is_twisted, length, n_taps, at in zip(
                self.plane, self.twists, self.size, kernel.shape[2:], origin, strict=True
            )
        ]
        return channels_last(sum_taps(kernel.to(tables[0].dtype), tables, first_axis=2)).contiguous()

    def kernel(self, blocks: Tensor) -> Tensor:
        """Turn blocks `(*plane, a, b)` into the real kernel `(a, b, *size)` that they are the symbol of."""
        return self.restore(channels_first(blocks))

    @staticmethod
    def _turn(n: int, length: int, like: Tensor, axis: int) -> Tensor:
        """Tabulate exp(iπx/length) for x = 0, …, n − 1, shaped to multiply along an axis."""
        angle = torch.arange(n, dtype=like.dtype, device=like.device) * (math.pi / length)
        return torch.polar(torch.ones_like(angle), angle).reshape(-1, *[1] * (-1 - axis))


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
    """A torus and its special positions.

    Positions are numbered like the entries of a flattened tensor. The image stands at the start, and its border wraps
    around to the end.

    Attributes:
        line_sources: for each axis the pixels that those beyond the image repeat, shape `(N − n,)`; `None` for zeros.
        line_factors: for each axis the factors of these copies, shape `(N − n,)`; `None` for plain copies.
        device: device of the positions.
        twists: axes around which fields change their sign; only if no pixel repeats another.
    """

    line_sources: tuple[Tensor | None, ...]
    line_factors: tuple[Tensor | None, ...]
    device: torch.device
    twists: Twists

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        boundary: BoundaryRule,
        device: torch.device,
        twists: Twists | None = None,
        n_more: Size | None = None,
    ) -> TorusEmbedding:
        """Lay out a convolution; `twists` are by default none.

        The torus is `n_more` pixels longer than it must be. No observed output depends on these pixels: they belong to
        an image that has none beyond it, and otherwise are zero or repeat the first pixel.
        """
        layout = TorusLayout.plan(geometry, boundary)
        n_more = (0,) * len(layout.torus) if n_more is None else n_more
        image_size = tuple(map(sum, zip(layout.image_size, n_more, strict=True)))
        image_size = image_size if boundary.is_unknown else layout.image_size
        sources: list[Tensor | None] = []
        factors: list[Tensor | None] = []
        pads = zip(geometry.pads.before, geometry.pads.after, strict=True)
        for (before, after), length, n in zip(pads, layout.image_size, n_more, strict=True):
            # Behind the image come the pixels after it, and then those before it.
            first, last = outside_positions(before, after, length, device)
            position = torch.cat([last, last.new_zeros(n), first])
            sources.append(boundary.sources(position, length) if boundary.copies_pixels else None)
            factors.append(boundary.factors(position, length) if boundary.copies_pixels else None)
        return cls(
            tuple(map(sum, zip(layout.torus, n_more, strict=True))),
            image_size,
            layout.output_size,
            layout.origin,
            tuple(sources),
            tuple(factors),
            device,
            (False,) * len(sources) if twists is None else twists,
        )

    @property
    def fourier(self) -> TwistedTorus:
        """The Fourier transform of fields on the torus."""
        return TwistedTorus(self.torus, self.twists)

    @cached_property
    def tied(self) -> Tensor:
        """Positions of pixels that are not free, shape `(n_tied,)`."""
        return self._beyond(self.image_size)

    @cached_property
    def sources(self) -> Tensor | None:
        """For each tied position its source, shape `(n_tied,)`; `None` if all are zero."""
        lines = [
            torch.cat([torch.arange(n, device=self.device), sources])
            for n, sources in zip(self.image_size, self.line_sources, strict=True)
            if sources is not None
        ]
        if len(lines) < len(self.torus):
            return None
        return self._number([line[at] for line, at in zip(lines, self._coordinates(self.tied), strict=True)])

    @cached_property
    def factors(self) -> Tensor | None:
        """For each tied position the factor of its source, shape `(n_tied,)`; `None` for plain copies."""
        lines = [
            None if factors is None else torch.cat([factors.new_ones(n), factors])[at]
            for n, factors, at in zip(self.image_size, self.line_factors, self._coordinates(self.tied), strict=True)
        ]
        given = [line for line in lines if line is not None]
        return torch.stack(given).prod(0) if given else None

    @cached_property
    def unobserved(self) -> Tensor:
        """Positions of outputs that were not observed, shape `(n_unobserved,)`."""
        return self._beyond(self.output_size)

    def _beyond(self, size: Size) -> Tensor:
        """List the positions outside a box at the start of the torus, those beyond the last axis of the box first."""
        numbers = torch.arange(math.prod(self.torus), device=self.device).reshape(self.torus)
        parts = []
        for axis, length in reversed(list(enumerate(size))):
            inside = crop(numbers, (0,) * len(size), (*size[:axis], *self.torus[axis:]))
            parts.append(inside.narrow(axis, length, self.torus[axis] - length).flatten())
        return torch.cat(parts)

    def _coordinates(self, positions: Tensor) -> list[Tensor]:
        coordinates = []
        for length in reversed(self.torus):
            coordinates.append(positions % length)
            positions = positions // length
        return coordinates[::-1]

    def _number(self, coordinates: list[Tensor]) -> Tensor:
        """Join coordinates to positions; coordinates outside the torus wrap around."""
        position = torch.zeros_like(coordinates[0])
        for length, coordinate in zip(self.torus, coordinates, strict=True):
            position = position * length + coordinate % length
        return position

    def covers_inputs(self, symbol: Tensor) -> bool:
        """Return whether there are enough outputs to determine the image, for a symbol `(*, C_out, C_in)`."""
        sizes = zip(self.output_size, self.image_size, strict=True)
        return symbol.shape[-2] >= symbol.shape[-1] and all(outputs >= pixels for outputs, pixels in sizes)

    def gather(self, kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Write out the part of a convolution on the torus from some positions, `columns`, to others, `rows`.

        The kernel is real, of shape `(a, b, *torus)`: entry δ leads from a position to the one δ further on. The result
        is dense, of shape `(a·len(rows), b·len(columns))`, channel by channel.
        """
        pairs = zip(self._coordinates(rows), self._coordinates(columns), strict=True)
        steps = [to[:, None] - start for to, start in pairs]
        part = kernel.flatten(2)[:, :, self._number(steps)]
        for step, is_twisted in zip(steps, self.twists, strict=True):
            if is_twisted:
                part *= torch.where(step < 0, -1.0, 1.0)
        return part.transpose(1, 2).reshape(kernel.shape[0] * len(rows), kernel.shape[1] * len(columns))

    def gather_tied_rows(self, kernel: Tensor, columns: Tensor) -> Tensor:
        """Like `gather`, but each result is the difference between a tied pixel and the copy of its source."""
        result = self.gather(kernel, self.tied, columns)
        if self.sources is not None:
            copies = self.gather(kernel, self.sources, columns)
            result -= self._scaled(copies, kernel.shape[0], axis=0)
        return result

    def gather_tied(self, kernel: Tensor) -> Tensor:
        """Like `gather`, from differences between tied pixels and the copies of their sources to such differences."""
        result = self.gather_tied_rows(kernel, self.tied)
        if self.sources is not None:
            copies = self.gather_tied_rows(kernel, self.sources)
            result -= self._scaled(copies, kernel.shape[1], axis=-1)
        return result

    def take_tied(self, field: Tensor) -> Tensor:
        """Subtract the copies of their sources from tied pixels of `(*batch, C, *torus)`: `(*batch, C·n_tied)`."""
        flat = field.flatten(-len(self.torus))
        tied = flat[..., self.tied]
        if self.sources is not None:
            tied = tied - self._scaled(flat[..., self.sources])
        return tied.flatten(-2)

    def put_tied(self, values: Tensor, n_channels: int) -> Tensor:
        """Apply the transpose of `take_tied`."""
        values = values.unflatten(-1, (n_channels, -1))
        flat = values.new_zeros(*values.shape[:-1], math.prod(self.torus))
        flat = flat.index_add(-1, self.tied, values)
        if self.sources is not None:
            flat = flat.index_add(-1, self.sources, -self._scaled(values))
        return flat.unflatten(-1, self.torus)

    def take_unobserved(self, field: Tensor) -> Tensor:
        """Take the unobserved outputs out of a field `(*batch, C, *torus)`: `(*batch, C·n_unobserved)`."""
        return field.flatten(-len(self.torus))[..., self.unobserved].flatten(-2)

    def put_unobserved(self, values: Tensor, n_channels: int) -> Tensor:
        """Apply the transpose of `take_unobserved`."""
        values = values.unflatten(-1, (n_channels, -1))
        flat = values.new_zeros(*values.shape[:-1], math.prod(self.torus))
        return flat.index_copy(-1, self.unobserved, values).unflatten(-1, self.torus)

    def crop_image(self, field: Tensor) -> Tensor:
        """Cut the image out of a field `(*batch, C, *torus)`."""
        return crop(field, (0,) * len(self.torus), self.image_size)

    def _scaled(self, copies: Tensor, n_channels: int = 1, axis: int = -1) -> Tensor:
        """Multiply copies of sources, channel by channel along the first or last axis, by their factors."""
        if self.factors is None:
            return copies
        factors = self.factors.to(copies.dtype).repeat(n_channels)
        return copies * (factors[:, None] if axis == 0 else factors)
