"""Filters on a large torus, some planes and some frequencies at a time.

A transform of a whole stack keeps several copies of it. Here fields come and go plane by plane, and only one spectrum
is kept whole, transformed along all axes but the first. Along the first axis some columns are transformed, filtered and
transformed back at a time, which stay in the processor's cache meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from deconv_cli.operators.axes import accumulation_dtype, crop, half_spectrum, half_weights, space_axes
from deconv_cli.vocabulary import Size

# Numbers at a time on a processor, which has a cache, and on other devices, which want them many.
MAX_NUMBERS_IN_CACHE = 2**17
MAX_NUMBERS_ELSEWHERE = 2**26

Fill = Callable[[Tensor, slice], None]
"""Writes planes of a field into zeros of shape `(B, C, n_planes, *torus[1:])`."""
Filter = Callable[[int, Tensor], Tensor]
"""Takes the number of a part, and spectra `(B, C, N1, n_columns, *)` of it, which it may overwrite."""


class TorusFilter:
    """Transforms between fields and spectra of a torus with two axes or more.

    Args:
        torus: pixels along each axis.
        like: a tensor of the real dtype and on the device of the arithmetic.
        cuts: whether filters take parts of the frequencies; else they get all at once.
        n_entries: of the blocks that filters multiply by, which share the cache.

    Attributes:
        like: see above.
        parts: parts of the second axis of a spectrum, filtered in turn.
    """

    def __init__(self, torus: Size, like: Tensor, *, cuts: bool = True, n_entries: int = 1) -> None:
        self.torus = torus
        self.like = like
        self._half = half_spectrum(torus)
        self._planes = parts_of(torus[0], math.prod(torus[1:]), like.device)
        n_numbers = n_entries * torus[0] * math.prod(self._half[2:])
        self.parts = parts_of(self._half[1], n_numbers, like.device) if cuts else [slice(0, self._half[1])]
        self._rest = space_axes(len(torus) - 1)

    @property
    def half_spectrum(self) -> Size:
        """The size of a spectrum."""
        return self._half

    def transform(self, shape: tuple[int, int], fill: Fill, n_planes: int | None = None) -> Tensor:
        """Transform a field of `(B, C)` images and channels, which `fill` writes, along all axes but the first.

        The field is zero beyond `n_planes`, by default all. The spectrum has the shape `(B, C, N1, …, Nn // 2 + 1)`.
        """
        n_planes = self.torus[0] if n_planes is None else n_planes
        # With the planes of zeros: the transform along the first axis would copy every part to append them.
        spectrum = self.like.new_empty(*shape, *self._half, dtype=self.like.dtype.to_complex())
        spectrum[:, :, n_planes:] = 0
        for planes in self._planes_up_to(n_planes):
            field = self.like.new_zeros(*shape, planes.stop - planes.start, *self.torus[1:])
            fill(field, planes)
            spectrum[:, :, planes] = torch.fft.rfftn(field, dim=self._rest)
        return spectrum

    def transform_box(self, box: Tensor) -> Tensor:
        """Transform a field `(B, C, *size)` that is zero beyond its end; see `transform`."""
        n_planes, channels = box.shape[2], (len(box), box.shape[1])
        return self.transform(channels, lambda field, planes: write_box(box, field, planes), n_planes)

    def filter(
        self, spectrum: Tensor, apply: Filter, n_channels: int | None = None, n_planes: int | None = None
    ) -> Tensor:
        """Filter the result of `transform`, part by part, and transform it back along the first axis.

        It gives `n_channels`, by default as many as there are, and the first `n_planes`, by default all: complex, shape
        `(B, n_channels, n_planes, …)`, or with further planes that mean nothing. The spectrum may be overwritten.
        """
        n_channels = spectrum.shape[1] if n_channels is None else n_channels
        n_planes = self.torus[0] if n_planes is None else n_planes
        result = spectrum
        if n_channels != spectrum.shape[1]:
            result = spectrum.new_empty(len(spectrum), n_channels, n_planes, *self._half[1:])
        for number, part in enumerate(self.parts):
            columns = self._columns(spectrum, part)
            wanted = torch.fft.ifft(apply(number, columns), dim=2)[:, :, :n_planes]
            result[:, :, :n_planes, part] = wanted
        return result

    def _columns(self, spectrum: Tensor, part: slice) -> Tensor:
        return torch.fft.fft(spectrum[:, :, :, part], dim=2)

    def squares(self, spectrum: Tensor, apply: Filter) -> Tensor:
        """Add up the squares of the field that a filter makes from the result of `transform`, shape `(B,)`."""
        total: Tensor | None = None
        for number, part in enumerate(self.parts):
            values = torch.view_as_real(apply(number, self._columns(spectrum, part))).square()
            weights = half_weights(self.torus[-1], values)
            if len(self.torus) == 2:
                weights = weights[part]
            squares = (values.sum(-1) * weights).flatten(1).sum(-1, dtype=accumulation_dtype(values))
            total = squares if total is None else total + squares
        assert total is not None
        return total / math.prod(self.torus)

    def fields(self, spectrum: Tensor, n_planes: int | None = None) -> Iterator[tuple[Tensor, slice]]:
        """Transform the result of `filter` back; yield its first planes, some at a time: `(B, C, n, *torus[1:])`."""
        for planes in self._planes_up_to(self.torus[0] if n_planes is None else n_planes):
            yield torch.fft.irfftn(spectrum[:, :, planes], s=self.torus[1:], dim=self._rest), planes

    def crop(self, spectrum: Tensor, size: Size) -> Tensor:
        """Transform the result of `filter` back, and cut a box out at the origin: shape `(B, C, *size)`."""
        result = self.like.new_empty(*spectrum.shape[:2], *size)
        for field, planes in self.fields(spectrum, size[0]):
            result[:, :, planes] = crop(field, (0,) * (len(size) - 1), size[1:])
        return result

    def _planes_up_to(self, n: int) -> list[slice]:
        return [slice(part.start, min(part.stop, n)) for part in self._planes if part.start < n]


def write_box(box: Tensor, field: Tensor, planes: slice) -> None:
    """Write what planes hold of a box `(B, C, *size)` at the origin into a field `(B, C, n_planes, *torus[1:])`."""
    part = box[:, :, planes]
    crop(field, (0,) * (part.ndim - 2), tuple(part.shape[2:])).copy_(part)


def parts_of(n: int, n_numbers: int, device: torch.device) -> list[slice]:
    """Cut an axis of length `n` into parts that are worked on one by one; `n_numbers` lie at each place."""
    most = MAX_NUMBERS_IN_CACHE if device.type == "cpu" else MAX_NUMBERS_ELSEWHERE
    length = max(1, most // max(1, n_numbers))
    return [slice(first, min(first + length, n)) for first in range(0, n, length)]
