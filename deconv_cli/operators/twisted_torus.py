"""A torus on which a field may change its sign each time around: its frequencies lie between those of a plain one.

Along a twisted axis z(x + N) = −z(x), and the frequencies are (2k + 1)π/N, never zero. So a kernel of zero mean, which
has no inverse on a plain torus, has one here. Other axes are as in `torch.fft`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deconv_cli.operators.axes import space_axes
from deconv_cli.operators.circulant import channels_first, channels_last, phases, sum_taps, torus_symbol
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
        """Each axis of space with its length, and whether it is twisted."""
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
