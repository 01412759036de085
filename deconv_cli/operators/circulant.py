"""Block-circulant operators: convolutions on a torus, diagonal in frequency but for their channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from deconv_cli.operators.linear_operator import LinearOperator
from deconv_cli.vocabulary import Size

# Up to this many channel pairs, sums of whole frequency planes are faster than one tiny matrix product a frequency.
MAX_PAIRS_AS_PLANES = 16
# Up to this many taps in a row, their sum at each frequency is cheaper than an FFT of the zero-padded plane.
MAX_TAPS_AS_SUM = 9
# The same where the sums are matrix products of whole planes.
MAX_TAPS_AS_PRODUCT = 64


class FrequencyBlocks:
    """A small complex matrix at every frequency of `torch.fft.rfft2`, to multiply spectra with.

    Args:
        blocks: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`; not copied where they lie in memory as `torus_symbol`
            lays them.
    """

    def __init__(self, blocks: Tensor) -> None:
        n_outputs, n_inputs = blocks.shape[-2:]
        self._plane = blocks.shape[:2]
        # Of the two layouts only the one that is used is kept.
        self._planes: Tensor | None = None
        self._blocks: Tensor | None = None
        if n_outputs * n_inputs <= MAX_PAIRS_AS_PLANES:
            self._planes = blocks.permute(2, 3, 0, 1).contiguous()
        else:
            self._blocks = blocks.flatten(0, 1).contiguous()

    @property
    def matrices(self) -> Tensor:
        """The matrices themselves, shape `(N1, N2 // 2 + 1, C_out, C_in)`, as they lie in memory."""
        if self._planes is not None:
            return self._planes.permute(2, 3, 0, 1)
        assert self._blocks is not None
        return self._blocks.unflatten(0, self._plane)

    def multiply(self, spectrum: Tensor, *, adjoint: bool = False) -> Tensor:
        """Multiply a spectrum `(*batch, C_in, N1, N2 // 2 + 1)` by the blocks, or by their conjugate transposes."""
        if self._planes is not None:
            planes = self._planes.conj().transpose(0, 1) if adjoint else self._planes
            return _multiply_planes(planes, spectrum)
        assert self._blocks is not None
        multiply = multiply_lines_adjoint if adjoint else multiply_lines
        return multiply(self._blocks, spectrum.flatten(-2)).unflatten(-1, self._plane)


class BlockCirculant(LinearOperator):
    """A real convolution on a torus, given by its blocks at the frequencies of `torch.fft.rfft2`.

    Args:
        blocks: complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`.
        torus: `(N1, N2)`.
    """

    def __init__(self, blocks: Tensor, torus: Size) -> None:
        n_outputs, n_inputs = blocks.shape[-2:]
        self.blocks = FrequencyBlocks(blocks)
        self.torus = torus
        self.input_shape = (n_inputs, *torus)
        self.output_shape = (n_outputs, *torus)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`; an `x` smaller than the torus is taken to be zero beyond its end.

        Args:
            x: shape `(*batch, C_in, H, W)` with `H <= N1`, `W <= N2`.

        Returns:
            Shape `(*batch, C_out, N1, N2)`.
        """
        return self._apply(x, adjoint=False)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the transpose to `y` of shape `(*batch, C_out, H, W)`, zero beyond its end."""
        return self._apply(y, adjoint=True)

    def _apply(self, x: Tensor, *, adjoint: bool) -> Tensor:
        spectrum = self.blocks.multiply(torch.fft.rfft2(x, s=self.torus), adjoint=adjoint)
        return torch.fft.irfft2(spectrum, s=self.torus)


def multiply_lines(blocks: Tensor, lines: Tensor) -> Tensor:
    """Multiply one small matrix at each position of a line: `(F, a, b)` by `(*batch, b, F)` gives `(*batch, a, F)`."""
    columns = lines.reshape(-1, *lines.shape[-2:]).permute(2, 1, 0)
    # Contiguous, since torch's batched product of complex matrices is up to a hundred times slower otherwise.
    product = torch.bmm(blocks, columns.contiguous())
    return product.permute(2, 1, 0).reshape(*lines.shape[:-2], blocks.shape[-2], lines.shape[-1])


def multiply_lines_adjoint(blocks: Tensor, lines: Tensor) -> Tensor:
    """Multiply by the conjugate transposes: `(F, a, b)` and `(*batch, a, F)` give `(*batch, b, F)`."""
    # vᴴK is the conjugate of Kᴴv, and reads the blocks as they lie: to transpose them would copy them all.
    rows = lines.reshape(-1, *lines.shape[-2:]).permute(2, 0, 1).conj().resolve_conj()
    product = torch.bmm(rows.contiguous(), blocks).conj().resolve_conj()
    return product.permute(1, 2, 0).reshape(*lines.shape[:-2], blocks.shape[-1], lines.shape[-1])


def _multiply_planes(planes: Tensor, spectrum: Tensor) -> Tensor:
    """Multiply `(C_out, C_in, *plane)` by `(*batch, C_in, *plane)`, plane by plane."""
    if planes.shape[:2] == (1, 1):
        return spectrum * planes[0, 0]
    rows = []
    for row in planes:
        total = row[0] * spectrum[..., 0, :, :]
        for i in range(1, planes.shape[1]):
            total = torch.addcmul(total, row[i], spectrum[..., i, :, :])
        rows.append(total)
    return torch.stack(rows, dim=-3)


def torus_symbol(kernel: Tensor, torus: Size, origin: Size = (0, 0)) -> Tensor:
    """Evaluate the symbol of a cross-correlation at the frequencies of `rfft2` on a torus.

    For `y[m] = Σ_d K[d] x[m + d − origin]` the symbol is `Σ_d K[d] exp(iθ·(d − origin))`. A kernel larger than the
    torus wraps around and its taps add up; `torch.fft` with a smaller size would cut them off in silence.

    Args:
        kernel: real, shape `(C_out, C_in, kH, kW)`.
        torus: `(N1, N2)`.
        origin: the tap that meets the output pixel.

    Returns:
        Complex, shape `(N1, N2 // 2 + 1, C_out, C_in)`. In memory a block lies together, or a plane of frequencies does
        where the channels are few: as `FrequencyBlocks` multiplies with them.
    """
    n_pairs = kernel.shape[0] * kernel.shape[1]
    if kernel.shape[-1] <= (MAX_TAPS_AS_PRODUCT if n_pairs <= MAX_PAIRS_AS_PLANES else MAX_TAPS_AS_SUM):
        return _symbol_by_sum(kernel, torus, origin)
    wrapped = kernel
    for axis, n, at in ((-2, torus[0], origin[0]), (-1, torus[1], origin[1])):
        taps = torch.arange(kernel.shape[axis], device=kernel.device)
        shape = list(wrapped.shape)
        shape[axis] = n
        # conv2d correlates: tap d stands at −d, seen from the output pixel.
        wrapped = wrapped.new_zeros(shape).index_add(axis, (at - taps) % n, wrapped)
    symbol = torch.fft.rfft2(wrapped).permute(2, 3, 0, 1)
    return symbol if symbol.shape[-2] * symbol.shape[-1] <= MAX_PAIRS_AS_PLANES else symbol.contiguous()


def _symbol_by_sum(kernel: Tensor, torus: Size, origin: Size) -> Tensor:
    """Sum the few taps at every frequency: faster than FFTs of almost empty planes, and frequency-major at once."""
    n_outputs, n_inputs, height, width = kernel.shape
    numbers = torch.arange(max(torus), device=kernel.device)
    rows = phases(numbers[: torus[0]], torus[0], height, kernel, origin[0])
    columns = phases(numbers[: torus[1] // 2 + 1], torus[1], width, kernel, origin[1])
    if n_outputs * n_inputs <= MAX_PAIRS_AS_PLANES:
        return (rows @ kernel.to(rows.dtype) @ columns.T).permute(2, 3, 0, 1)
    taps = kernel.permute(2, 3, 0, 1).to(rows.dtype).reshape(height, -1)
    by_row = (rows @ taps).reshape(torus[0], width, n_outputs * n_inputs)
    return (columns @ by_row).reshape(torus[0], -1, n_outputs, n_inputs)


def phases(frequencies: Tensor, length: int, n_taps: int, like: Tensor, origin: int = 0) -> Tensor:
    """Tabulate `exp(iθ(d − origin))` for d = 0, …, n_taps − 1 at θ = 2π/length times whole numbers `(F,)`.

    Returns:
        Shape `(F, n_taps)`, complex, of the precision and on the device of `like`.
    """
    offset = torch.arange(n_taps, device=like.device) - origin
    # Reduced modulo the length as whole numbers: the angle keeps every digit.
    angle = (frequencies[:, None] * offset % length).to(like.dtype) * (2 * math.pi / length)
    return torch.polar(torch.ones_like(angle), angle)


def to_float64(taps: Tensor) -> Tensor:
    """Convert to double precision where the device has it: symbols are factored there, applied in the data's own."""
    return taps if taps.device.type == "mps" else taps.double()


def next_fast_size(n: int) -> int:
    """Find the smallest size from `n` up that has no prime factor above 7: the FFT is fast there."""
    while not _is_smooth(n):
        n += 1
    return n


def _is_smooth(n: int) -> bool:
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1
