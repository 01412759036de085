"""Block-circulant operators: convolutions on a torus of any number of dimensions, diagonal in frequency.

A torus is an image that repeats itself along every axis. There a kernel of one channel is a number at each frequency,
and a kernel of several channels a small matrix, the symbol.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from deconv_cli.operators.axes import crop, half_spectrum, planes_of, slabs, space_axes
from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.operators.torus_filter import TorusFilter
from deconv_cli.vocabulary import Size

# Up to this many channel pairs, sums of whole frequency planes are faster than one tiny matrix product a frequency.
MAX_PAIRS_AS_PLANES = 16
# Up to this many taps in a row, their sum at each frequency is cheaper than an FFT of the zero-padded plane.
MAX_TAPS_AS_SUM = 9
# The same where the sums are matrix products of whole planes.
MAX_TAPS_AS_PRODUCT = 64
# With this many axes or more, fields are transformed by parts, without planes of zeros and planes that are cropped. For
# 64 planes in 96 and a kernel of 31 that took half the time and half the memory.
MIN_AXES_BY_PARTS = 3
# Transforms along both axes of planes, averaged over all lengths up to 760: of the next length without a large prime
# factor 1.25 times as long as of the best one from there on, of the next multiple of four among them 1.02 times.
MIN_LENGTH_BY_FOURS = 32
# Inverse transforms of at least this many rows take 1.3 to 2.3 times as long for multiples of 256: 34 ms for
# 2048 × 3072, 18 ms for 2016 × 3072. By parts a filter on 2048 × 2048 takes 0.79 times as long as on 2100 × 2100.
MIN_SLOW_LENGTH = 1024


class FrequencyBlocks:
    """A small complex matrix at every frequency of `torch.fft.rfftn`, to multiply spectra with.

    Args:
        blocks: complex, shape `(*torus[:-1], torus[-1] // 2 + 1, C_out, C_in)`; not copied if they lie in memory as
            `torus_symbol` lays them.
        by_columns: whether entries along the first axis of the plane lie together in memory, as in a spectrum that
            `TorusFilter` has transformed along it.
    """

    def __init__(self, blocks: Tensor, *, by_columns: bool = False) -> None:
        n_outputs, n_inputs = blocks.shape[-2:]
        self._plane = blocks.shape[:-2]
        # Of the two layouts only the one that is used is kept.
        self._planes: Tensor | None = None
        self._blocks: Tensor | None = None
        if n_outputs * n_inputs <= MAX_PAIRS_AS_PLANES:
            planes = channels_first(blocks)
            self._planes = planes.movedim(2, -1).contiguous().movedim(-1, 2) if by_columns else planes.contiguous()
        else:
            self._blocks = blocks.flatten(0, -3).contiguous()

    @property
    def matrices(self) -> Tensor:
        """The matrices themselves, shape `(*plane, C_out, C_in)`, as they lie in memory."""
        if self._planes is not None:
            return channels_last(self._planes)
        assert self._blocks is not None
        return self._blocks.unflatten(0, self._plane)

    @property
    def are_planes(self) -> bool:
        """Whether each entry is a plane over the frequencies, so that parts of them can be multiplied."""
        return self._planes is not None

    def multiply(self, spectrum: Tensor, *, adjoint: bool = False, part: slice | None = None) -> Tensor:
        """Multiply a spectrum by the blocks.

        Args:
            spectrum: shape `(*batch, C_in, *plane)`.
            adjoint: multiply by their conjugate transposes.
            part: the spectrum is this part of the plane's second axis alone; only if `are_planes`.
        """
        if self._planes is not None:
            planes = self._planes if part is None else self._planes[:, :, :, part]
            planes = planes.conj().transpose(0, 1) if adjoint else planes
            return _multiply_planes(planes, spectrum)
        assert self._blocks is not None
        multiply = multiply_lines_adjoint if adjoint else multiply_lines
        return multiply(self._blocks, spectrum.flatten(-len(self._plane))).unflatten(-1, self._plane)

    def add_product(self, total: Tensor, spectrum: Tensor, *, adjoint: bool = False, sign: float = 1.0) -> Tensor:
        """Add the product, times a sign, to `total` in place."""
        if self._planes is None or self._planes.shape[:2] != (1, 1):
            return total.add_(self.multiply(spectrum, adjoint=adjoint), alpha=sign)
        plane = self._planes[0, 0]
        return total.addcmul_(spectrum, plane.conj() if adjoint else plane, value=sign)

    def multiply_once(self, spectrum: Tensor, *, adjoint: bool = False) -> Tensor:
        """Multiply a spectrum that nobody reads again: in place, unless a derivative is needed."""
        planes = self._planes
        is_single = planes is not None and planes.shape[:2] == (1, 1)
        if not is_single or (torch.is_grad_enabled() and (spectrum.requires_grad or self.matrices.requires_grad)):
            return self.multiply(spectrum, adjoint=adjoint)
        assert planes is not None
        for part, block in slabs(min(len(self._plane), 2), spectrum, planes[0, 0]):
            part.mul_(block.conj() if adjoint else block)
        return spectrum


class BlockCirculant(LinearOperator):
    """A real convolution on a torus, given by its blocks at the frequencies of `torch.fft.rfftn`.

    Args:
        blocks: complex, shape `(*torus[:-1], torus[-1] // 2 + 1, C_out, C_in)`.
        torus: pixels along each axis.
        by_parts: whether fields are transformed by parts; by default if there are `MIN_AXES_BY_PARTS` axes.
    """

    def __init__(self, blocks: Tensor, torus: Size, *, by_parts: bool = False) -> None:
        n_outputs, n_inputs = blocks.shape[-2:]
        self._by_parts = by_parts or len(torus) >= MIN_AXES_BY_PARTS
        self.blocks = FrequencyBlocks(blocks, by_columns=self._by_parts)
        self.torus = torus
        self.input_shape = (n_inputs, *torus)
        self.output_shape = (n_outputs, *torus)

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        """Convolve `x` of shape `(*batch, C_in, *size)`, zero beyond its end, and crop the result to `size`."""
        return self._apply(x, size, adjoint=False)

    def adjoint(self, y: Tensor, size: Size | None = None) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, *size)`, zero beyond its end."""
        return self._apply(y, size, adjoint=True)

    def forward_parts(self, x: Tensor, size: Size | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Convolve `x`, and yield the result some planes at a time; see `LinearOperator.forward_parts`."""
        return self._apply_by_parts(x, self.torus if size is None else size, adjoint=False)

    def adjoint_parts(self, y: Tensor, size: Size | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Apply the transpose in the same way."""
        return self._apply_by_parts(y, self.torus if size is None else size, adjoint=True)

    def _apply(self, x: Tensor, size: Size | None, *, adjoint: bool) -> Tensor:
        size, axes = self.torus if size is None else size, space_axes(len(self.torus))
        if self._by_parts:
            n_channels = (self.input_shape if adjoint else self.output_shape)[0]
            result = x.new_empty(*x.shape[: -1 - len(axes)], n_channels, *size)
            for planes, part in self._apply_by_parts(x, size, adjoint=adjoint):
                planes_of(result, planes, len(axes)).copy_(part)
            return result
        spectrum = self.blocks.multiply_once(torch.fft.rfftn(x, s=self.torus, dim=axes), adjoint=adjoint)
        return crop(torch.fft.irfftn(spectrum, s=self.torus, dim=axes), (0,) * len(size), size)

    def _apply_by_parts(self, x: Tensor, size: Size, *, adjoint: bool) -> Iterator[tuple[slice, Tensor]]:
        n_axes, n_channels = len(self.torus), (self.input_shape if adjoint else self.output_shape)[0]
        if not self._by_parts:
            yield slice(None), self._apply(x, size, adjoint=adjoint)
            return
        n_entries = self.input_shape[0] * self.output_shape[0]
        torus = TorusFilter(self.torus, x, cuts=self.blocks.are_planes, n_entries=n_entries)

        def multiply(number: int, columns: Tensor) -> Tensor:
            part = torus.parts[number] if self.blocks.are_planes else None
            return self.blocks.multiply(columns, adjoint=adjoint, part=part)

        batch = x.shape[: -1 - n_axes]
        box = x.reshape(math.prod(batch), *x.shape[-1 - n_axes :])
        spectrum = torus.filter(torus.transform_box(box), multiply, n_channels, size[0])
        for field, planes in torus.fields(spectrum, size[0]):
            part = crop(field, (0,) * (n_axes - 1), size[1:])
            yield planes, part.reshape(*batch, *part.shape[1:])


def multiply_lines(blocks: Tensor, lines: Tensor) -> Tensor:
    """Multiply one small matrix at each position of a line: `(F, a, b)` by `(*batch, b, F)` gives `(*batch, a, F)`."""
    columns = lines.reshape(math.prod(lines.shape[:-2]), *lines.shape[-2:]).permute(2, 1, 0)
    # Contiguous, since torch's batched product of complex matrices is up to a hundred times slower otherwise.
    product = torch.bmm(blocks, columns.contiguous())
    return product.permute(2, 1, 0).reshape(*lines.shape[:-2], blocks.shape[-2], lines.shape[-1])


def multiply_lines_adjoint(blocks: Tensor, lines: Tensor) -> Tensor:
    """Multiply by the conjugate transposes: `(F, a, b)` and `(*batch, a, F)` give `(*batch, b, F)`."""
    # vᴴK is the conjugate of Kᴴv, and reads the blocks as they lie: to transpose them would copy them all.
    rows = lines.reshape(math.prod(lines.shape[:-2]), *lines.shape[-2:]).permute(2, 0, 1).conj().resolve_conj()
    product = torch.bmm(rows.contiguous(), blocks).conj().resolve_conj()
    return product.permute(1, 2, 0).reshape(*lines.shape[:-2], blocks.shape[-1], lines.shape[-1])


def _multiply_planes(planes: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply `(C_out, C_in, *plane)` by `(*batch, C_in, *plane)`, plane by plane."""
    if planes.shape[:2] == (1, 1):
        return spectrum * planes[0, 0]
    channel_axis = 1 - planes.ndim
    inputs = spectrum.unbind(channel_axis)
    rows = []
    for row in planes:
        total = row[0] * inputs[0]
        for block, channel in zip(row[1:], inputs[1:], strict=True):
            total = torch.addcmul(total, block, channel)
        rows.append(total)
    return torch.stack(rows, dim=channel_axis)


def channels_last(taps: Tensor) -> Tensor:
    """View `(C_out, C_in, *size)` as `(*size, C_out, C_in)`."""
    return taps.permute(*range(2, taps.ndim), 0, 1)


def channels_first(blocks: Tensor) -> Tensor:
    """View `(*size, C_out, C_in)` as `(C_out, C_in, *size)`."""
    return blocks.permute(-2, -1, *range(blocks.ndim - 2))


def torus_symbol(kernel: Tensor, torus: Size, origin: Size | None = None) -> Tensor:
    """Evaluate the symbol of a cross-correlation `(C_out, C_in, *k)` at the frequencies of `rfftn` on a torus.

    For `y[m] = Σ_d K[d] x[m + d − origin]` the symbol is `Σ_d K[d] exp(iθ·(d − origin))`; the origin is the first tap
    by default. A kernel larger than the torus wraps around and its taps add up; `torch.fft` with a smaller size would
    cut them off in silence. The result has the shape `(*torus[:-1], torus[-1] // 2 + 1, C_out, C_in)`, in memory as
    `FrequencyBlocks` multiplies with it: plane by plane for few channels, else block by block.
    """
    start = (0,) * len(torus) if origin is None else origin
    is_thin = kernel.shape[0] * kernel.shape[1] <= MAX_PAIRS_AS_PLANES
    if kernel.shape[-1] <= (MAX_TAPS_AS_PRODUCT if is_thin else MAX_TAPS_AS_SUM):
        # FFTs of almost empty planes take longer.
        tables = phase_tables(kernel, torus, frequency_numbers(torus, kernel.device), start)
        taps = kernel.to(tables[0].dtype)
        if is_thin:
            return channels_last(sum_taps(taps, tables, first_axis=2))
        return sum_taps(channels_last(taps).contiguous(), tables, first_axis=0)
    wrapped = kernel
    for axis, n, at in zip(space_axes(len(torus)), torus, start, strict=True):
        taps = torch.arange(kernel.shape[axis], device=kernel.device)
        shape = list(wrapped.shape)
        shape[axis] = n
        # conv2d correlates: tap d stands at −d, seen from the output pixel.
        wrapped = wrapped.new_zeros(shape).index_add(axis, (at - taps) % n, wrapped)
    symbol = channels_last(torch.fft.rfftn(wrapped, dim=space_axes(len(torus))))
    return symbol if is_thin else symbol.contiguous()


class PartialSymbol:
    """The symbol of a cross-correlation at a part of the frequencies of a torus; see `torus_symbol`.

    The taps have the shape `(C_out, C_in, *k)` with at least two axes of space.
    """

    def __init__(self, taps: Tensor, torus: Size, origin: Size) -> None:
        self.n_outputs, self.n_inputs = taps.shape[:2]
        tables = phase_tables(taps, torus, frequency_numbers(torus, taps.device), origin)
        self._tables = tables[:2]
        self._taps = sum_taps(taps.to(tables[0].dtype), tables[2:], first_axis=4)

    def to(self, dtype: torch.dtype) -> PartialSymbol:
        """Give the same symbol in another complex dtype."""
        other = copy(self)
        other._tables = [table.to(dtype) for table in self._tables]
        other._taps = self._taps.to(dtype)
        return other

    def at(self, part: slice) -> Tensor:
        """Evaluate it at a part of the second axis: complex, shape `(C_out, C_in, N1, n_columns, *)`."""
        first, second = self._tables
        return sum_taps(sum_taps(self._taps, [second[part]], first_axis=3), [first], first_axis=2)


def sum_taps(taps: Tensor, tables: Sequence[Tensor], first_axis: int) -> Tensor:
    """Contract each axis of complex taps, from `first_axis` on, with a table `(F, k)` of phases."""
    for axis, table in enumerate(tables, first_axis):
        if axis == taps.ndim - 1:
            taps = taps @ table.T
        else:
            rest = taps.shape[axis + 1 :]
            taps = (table @ taps.flatten(axis + 1)).unflatten(-1, rest)
    return taps


def phases(frequencies: Tensor, length: int, n_taps: int, like: Tensor, origin: int = 0) -> Tensor:
    """Tabulate `exp(iθ(d − origin))` for d = 0, …, n_taps − 1 at θ = 2π/length times whole numbers of any shape.

    The result is complex, of shape `(*frequencies, n_taps)`, with the precision and the device of `like`.
    """
    offset = torch.arange(n_taps, device=like.device) - origin
    # Reduced modulo the length as whole numbers: the angle keeps every digit.
    angle = (frequencies[..., None] * offset % length).to(like.dtype) * (2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)


def frequency_numbers(torus: Size, device: torch.device) -> list[Tensor]:
    """List the numbers of the frequencies of `torch.fft.rfftn` along each axis."""
    return [torch.arange(n, device=device) for n in half_spectrum(torus)]


def phase_tables(taps: Tensor, torus: Size, numbers: Sequence[Tensor], origin: Size | None = None) -> list[Tensor]:
    """Tabulate the `phases` of taps `(*, *k)` at numbered frequencies along each axis of a torus, shape `(F, k)`."""
    start, sizes = origin or (0,) * len(torus), taps.shape[-len(torus) :]
    axes = zip(numbers, torus, sizes, start, strict=True)
    return [phases(each, length, n_taps, taps, at) for each, length, n_taps, at in axes]


def to_float64(taps: Tensor) -> Tensor:
    """Convert to double precision if the device has it: symbols are factored there, and applied in the data's own."""
    return taps if taps.device.type == "mps" else taps.double()


def next_fast_size(n: int, *, by_parts: bool = False) -> int:
    """Find the smallest length from `n` up that is fast for the FFT: no prime factor above 7, and a multiple of 4.

    On a processor, transforms of odd lengths take twice as long, as do long ones of multiples of 256 unless they go
    `by_parts`, as in `TorusFilter`. Short transforms may have any of these lengths.
    """
    least_slow = math.inf if by_parts else MIN_SLOW_LENGTH
    while not _is_smooth(n) or (n >= MIN_LENGTH_BY_FOURS and n % 4) or (n >= least_slow and n % 256 == 0):
        n += 1
    return n


def near_fast_size(n: int) -> int:
    """Find a length from `n` up without a prime factor above 13, at most a part in 256 or 4 longer, else `n`.

    A length with a prime factor of three digits takes two to three times as long. One of up to 19 stays.
    """
    if _is_smooth(n, (2, 3, 5, 7, 11, 13, 17, 19)):
        return n
    lengths = range(n, n + 1 + max(4, n // 256))
    return next((length for length in lengths if _is_smooth(length, (2, 3, 5, 7, 11, 13))), n)


def _is_smooth(n: int, primes: tuple[int, ...] = (2, 3, 5, 7)) -> bool:
    for prime in primes:
        while n % prime == 0:
            n //= prime
    return n == 1
